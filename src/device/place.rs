//! Devices as a choice: where tensors live and ops run.
//!
//! A tensor on a GPU holds an [`OnGpu`]; one in a plan holds no elements at all and is only
//! counted, so a training step can be rehearsed to learn what memory it takes.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::cuda::{Buffer, Gpu, Queue, Sent};
use super::kernel::{Bf16, Element};
use super::mmap::Halves;
use crate::error::{Error, Result};
use crate::tensor::{Coming, DType, Remote, Shape, Tensor};

/// Where tensors live and ops run.
#[derive(Clone, Debug, Default)]
pub enum Device {
    /// The CPU and its memory.
    #[default]
    Cpu,
    /// A GPU, through a queue of it.
    Cuda(Queue),
    /// Nowhere: shapes only, and a count of the bytes that a GPU would hold.
    Plan(Meter),
}

impl Device {
    /// The device of this name: `cpu`, `cuda` (the first GPU) or `cuda:1`.
    ///
    /// # Errors
    /// Another name; no driver, no such GPU.
    pub fn named(name: &str) -> Result<Self> {
        let number = match name {
            "cpu" => return Ok(Self::Cpu),
            "cuda" => Some(0),
            _ => name.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
        };
        let Some(ordinal) = number else {
            let what = format!("there is no device {name:?}");
            return Err(Error::data(what, "name cpu, cuda or, with several GPUs, cuda:1"));
        };
        Ok(Self::Cuda(Gpu::open(ordinal)?.queue()?))
    }

    /// Whether it is the same place; no plan is.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cpu, Self::Cpu) => true,
            (Self::Cuda(a), Self::Cuda(b)) => a.id() == b.id(),
            _ => false,
        }
    }

    /// The device that the first tensor elsewhere than in the CPU's memory is on.
    pub fn of<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Self {
        let away = |t: &Tensor| {
            let any = t.remote()?;
            let gpu = any.downcast_ref::<OnGpu>().map(|held| Self::Cuda(held.queue().clone()));
            gpu.or_else(|| any.downcast_ref::<Planned>().map(|p| Self::Plan(p.meter.clone())))
        };
        tensors.into_iter().find_map(away).unwrap_or_default()
    }

    /// The same elements on this device; shared, not copied, where they are there already.
    ///
    /// # Errors
    /// Elements in f64, which no kernel takes; those of the driver.
    pub fn put(&self, t: &Tensor) -> Result<Tensor> {
        match self {
            // Weights that a file holds in bf16 are read there.
            Self::Cpu if Halves::of(t).is_some() => Ok(t.clone()),
            Self::Cpu => t.here(),
            Self::Cuda(queue) if OnGpu::of(t).is_none() => {
                Tensor::away(OnGpu::upload(queue, t)?, t.shape())
            }
            Self::Plan(meter) if t.remote().is_none() || Halves::of(t).is_some() => {
                meter.tensor(t.dtype(), t.shape())
            }
            _ => Ok(t.clone()),
        }
    }
}

/// A constant where `beside` is, in its type of reals: placed once on a GPU, whoever asks for it
/// and however often, and then used without a copy.
///
/// # Errors
/// Those of the device.
pub fn constant(beside: &Tensor, t: &Tensor) -> Result<Tensor> {
    let Device::Cuda(queue) = Device::of([beside]) else {
        return Device::of([beside]).put(t);
    };
    let held = match t.dtype() {
        DType::I32 => OnGpu::I32(queue.constant(t.i32s()?)?),
        _ if OnGpu::is_bf16(beside) => {
            let halves: Vec<Bf16> = t.f32s()?.iter().map(|&x| Bf16::from_f32(x)).collect();
            OnGpu::Bf16(queue.constant(&halves)?)
        }
        _ => OnGpu::F32(queue.constant(t.f32s()?)?),
    };
    Tensor::away(held, t.shape())
}

/// Elements of `t` from `first` on as a tensor of this shape that shares them; `None` where they
/// are in the CPU's memory.
///
/// # Errors
/// More elements than there are.
pub fn shared(t: &Tensor, first: usize, shape: &Shape) -> Result<Option<Tensor>> {
    let len = shape.len();
    let Some(any) = t.remote() else { return Ok(None) };
    if first + len > t.len() {
        let what = format!("{len} elements from {first} on of {}", t.shape());
        return Err(Error::shape("part", what));
    }
    match (any.downcast_ref::<OnGpu>(), any.downcast_ref::<Planned>()) {
        (Some(on), _) => Tensor::away(on.part(t, first, len), shape).map(Some),
        (_, Some(planned)) => Tensor::away(planned.part(t, len), shape).map(Some),
        _ => Ok(None),
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(queue) => {
                let facts = queue.gpu().facts();
                write!(f, "cuda:{} ({})", facts.ordinal, facts.name)
            }
            Self::Plan(_) => f.write_str("plan"),
        }
    }
}

/// Elements on a GPU.
#[derive(Debug)]
pub enum OnGpu {
    /// Real numbers.
    F32(Buffer<f32>),
    /// Real numbers in half the bytes.
    Bf16(Buffer<Bf16>),
    /// Integers.
    I32(Buffer<i32>),
}

/// What an [`OnGpu`] may hold.
pub trait Held: Element {
    /// The buffer, if it holds this type.
    fn held(on: &OnGpu) -> Option<&Buffer<Self>>;
    /// The buffer, if it holds this type.
    fn held_mut(on: &mut OnGpu) -> Option<&mut Buffer<Self>>;
}

macro_rules! held {
    ($($t:ty: $variant:ident),*) => {
        $(impl Held for $t {
            fn held(on: &OnGpu) -> Option<&Buffer<Self>> {
                match on {
                    OnGpu::$variant(buffer) => Some(buffer),
                    _ => None,
                }
            }
            fn held_mut(on: &mut OnGpu) -> Option<&mut Buffer<Self>> {
                match on {
                    OnGpu::$variant(buffer) => Some(buffer),
                    _ => None,
                }
            }
        })*
        impl OnGpu {
            /// The queue whose order the elements live in.
            pub fn queue(&self) -> &Queue {
                match self {
                    $(Self::$variant(buffer) => buffer.queue(),)*
                }
            }

            /// The name of the elements' type.
            pub fn element(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => <$t>::NAME,)*
                }
            }

            fn elements(&self) -> usize {
                match self {
                    $(Self::$variant(buffer) => buffer.len(),)*
                }
            }

            /// Some of the elements, which are those of a tensor.
            fn part(&self, of: &Tensor, first: usize, len: usize) -> Self {
                match self {
                    $(Self::$variant(buffer) => {
                        Self::$variant(buffer.part(of.clone(), first, len))
                    })*
                }
            }
        }
    };
}
held!(f32: F32, Bf16: Bf16, i32: I32);

impl OnGpu {
    /// The elements of a tensor that is on a GPU.
    pub fn of(t: &Tensor) -> Option<&Self> {
        t.remote()?.downcast_ref()
    }

    /// Whether a tensor is on a GPU in bf16.
    pub fn is_bf16(t: &Tensor) -> bool {
        matches!(Self::of(t), Some(Self::Bf16(_)))
    }

    /// So many elements of the type of these, not filled yet.
    ///
    /// # Errors
    /// Too little memory.
    pub fn unfilled(&self, len: usize) -> Result<Self> {
        let queue = self.queue();
        Ok(match self {
            Self::F32(_) => Self::F32(Buffer::new(queue, len)?),
            Self::Bf16(_) => Self::Bf16(Buffer::new(queue, len)?),
            Self::I32(_) => Self::I32(Buffer::new(queue, len)?),
        })
    }

    /// Writes a tensor's elements, of the same type and no more, in the place of these.
    ///
    /// # Errors
    /// Other elements; those of the driver.
    pub fn write(&mut self, t: &Tensor) -> Result<()> {
        match self {
            Self::F32(buffer) => buffer.write(t.f32s()?),
            Self::I32(buffer) => buffer.write(t.i32s()?),
            Self::Bf16(_) => Err(Error::shape("write", "no tensor of the CPU holds bf16")),
        }
    }

    /// A copy of a tensor's elements.
    ///
    /// # Errors
    /// As [`Device::put`].
    pub fn upload(queue: &Queue, t: &Tensor) -> Result<Self> {
        if let Some(halves) = Halves::of(t) {
            // Not through the tensor, which would keep the copy.
            return Self::upload(queue, &halves.fetch()?);
        }
        match t.dtype() {
            DType::I32 => Ok(Self::I32(Buffer::from_slice(queue, t.i32s()?)?)),
            DType::F32 => Ok(Self::F32(Buffer::from_slice(queue, t.f32s()?)?)),
            DType::F64 => Err(Error::shape("upload", "kernels compute in f32, found F64")),
        }
    }
}

/// Elements that a GPU is sending.
#[derive(Debug)]
struct Sending {
    sent: Sent,
    dtype: DType,
    len: usize,
}

impl Coming for Sending {
    fn arrive(&self) -> Result<Tensor> {
        match self.dtype {
            DType::I32 => Tensor::new_i32(self.sent.read(self.len)?, [self.len]),
            _ => Tensor::new(self.sent.read(self.len)?, [self.len]),
        }
    }
}

impl Remote for OnGpu {
    fn dtype(&self) -> DType {
        match self {
            Self::I32(_) => DType::I32,
            Self::F32(_) | Self::Bf16(_) => DType::F32,
        }
    }
    fn len(&self) -> usize {
        self.elements()
    }
    fn fetch(&self) -> Result<Tensor> {
        let shape = [self.elements()];
        match self {
            Self::F32(b) => Tensor::new(b.read()?, shape),
            Self::Bf16(b) => Tensor::new(b.read()?.iter().map(|v| v.to_f32()).collect(), shape),
            Self::I32(b) => Tensor::new_i32(b.read()?, shape),
        }
    }
    fn send(&self) -> Result<Option<Box<dyn Coming>>> {
        let sent = match self {
            Self::F32(b) => b.send()?,
            Self::I32(b) => b.send()?,
            Self::Bf16(_) => None,
        };
        let (dtype, len) = (self.dtype(), self.elements());
        Ok(sent.map(|sent| -> Box<dyn Coming> { Box::new(Sending { sent, dtype, len }) }))
    }
}

/// Counts the bytes of planned tensors; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<Count>);

#[derive(Debug, Default)]
struct Count {
    now: AtomicU64,
    peak: AtomicU64,
}

impl Meter {
    /// What the driver's pool rounds an allocation up to.
    const GRAIN: usize = 512;

    /// The most bytes that were held at once.
    pub fn peak(&self) -> u64 {
        self.0.peak.load(Ordering::Relaxed)
    }

    /// A tensor without elements; reading it gives zeros.
    pub(crate) fn tensor(&self, dtype: DType, shape: &Shape) -> Result<Tensor> {
        let size = if dtype == DType::F64 { 8 } else { 4 };
        let bytes = (shape.len() * size).next_multiple_of(Self::GRAIN) as u64;
        let now = self.0.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.0.peak.fetch_max(now, Ordering::Relaxed);
        let planned = Planned { dtype, len: shape.len(), bytes, meter: self.clone(), _of: None };
        Tensor::away(planned, shape)
    }
}

/// Elements that are only counted.
#[derive(Debug)]
struct Planned {
    dtype: DType,
    len: usize,
    bytes: u64,
    meter: Meter,
    /// What it is a part of, and only keeps.
    _of: Option<Tensor>,
}

impl Planned {
    /// A part of it, which takes no bytes of its own.
    fn part(&self, of: &Tensor, len: usize) -> Self {
        let meter = self.meter.clone();
        Self { dtype: self.dtype, len, bytes: 0, meter, _of: Some(of.clone()) }
    }
}

impl Drop for Planned {
    fn drop(&mut self) {
        self.meter.0.now.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Remote for Planned {
    fn dtype(&self) -> DType {
        self.dtype
    }
    fn len(&self) -> usize {
        self.len
    }
    fn fetch(&self) -> Result<Tensor> {
        Ok(Tensor::zeros(self.dtype, [self.len]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::elementwise::ADD;
    use crate::ops::{call, run};

    #[test]
    fn a_plan_counts_what_is_alive_at_once() {
        let meter = Meter::default();
        let plan = Device::Plan(meter.clone());
        let x = plan.put(&Tensor::zeros(DType::F32, [1024])).unwrap();
        let y = call(&ADD, &[&x, &x]).unwrap();
        assert_eq!(meter.peak(), 2 * 4096);
        drop(y);
        // What was given back is used again; a small tensor takes a whole grain.
        let y = run(&ADD, &[&x, &x]).unwrap().remove(0);
        assert_eq!((meter.peak(), y.shape().dims()), (2 * 4096, &[1024][..]));
        let _one = plan.put(&Tensor::zeros(DType::I32, [1])).unwrap();
        assert_eq!(meter.peak(), 2 * 4096 + 512);
        assert_eq!((y.at(3), y.item().is_err()), (0.0, true));
        assert!(matches!(Device::of([&Tensor::zeros(DType::F32, [1]), &y]), Device::Plan(_)));
    }

    #[test]
    fn devices_have_names() {
        assert!(matches!(Device::named("cpu"), Ok(Device::Cpu)));
        for wrong in ["", "gpu", "cuda:", "cuda:x", "cuda:-1"] {
            let told = Device::named(wrong).unwrap_err().to_string();
            assert!(told.contains("name cpu, cuda"), "{told}");
        }
    }
}
