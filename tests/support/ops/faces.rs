//! Running the faces of an op at every scalar, on buffers with sentinels on both sides.

use genevar::device::OnGpu;
use genevar::device::cuda::{Buffer, Queue};
use genevar::ops::real::stored_in_bf16;
use genevar::ops::{CudaIn, CudaOut, Dual, DynOp, In, Out, Precision, Running, Site};
use genevar::tensor::{Shape, Tensor};
use half::bf16;

use super::data::Data;
use super::gpu;
use super::inputs::Inputs;

/// Why a check failed.
pub type Verdict = Result<(), String>;

/// Sentinel elements before and after every output.
pub const PAD: usize = 24;
/// The quiet NaN that outputs and sentinels hold before a face runs; no arithmetic makes this
/// payload.
pub const POISON: f32 = f32::from_bits(0x7fc5_eed5);
/// The same for integers.
pub const POISON_INT: i32 = 0x5eed_5eed;

/// The GPU and what elements are; any GPU where there is none, for then nothing is run.
pub fn site(precision: Precision) -> Site<'static> {
    gpu::gpu().map_or(Site::any(precision), |gpu| Site::on(precision, gpu))
}

/// Inputs at some scalar.
pub struct Lifted<'a, R> {
    data: &'a [Data],
    reals: Vec<Vec<R>>,
}

/// Inputs with each real element mapped by `f(input, element, value)`.
pub fn lift<R>(data: &[Data], f: impl Fn(usize, usize, f64) -> R) -> Lifted<'_, R> {
    let one = |(i, d): (usize, &Data)| {
        d.real.iter().enumerate().map(|(j, &x)| f(i, j, f64::from(x))).collect()
    };
    Lifted { data, reals: data.iter().enumerate().map(one).collect() }
}

impl<R> Lifted<'_, R> {
    pub fn views(&self) -> Vec<In<'_, R>> {
        let pairs = self.data.iter().zip(&self.reals);
        pairs
            .map(|(d, r)| match d.is_int {
                true => In::int(&d.shape, &d.int),
                false => In::real(&d.shape, r),
            })
            .collect()
    }
}

/// Outputs of a face, sentinels included.
pub struct Outs<R> {
    reals: Vec<Vec<R>>,
    ints: Vec<Vec<i32>>,
    is_int: Vec<bool>,
}

impl<R> Outs<R> {
    /// How many outputs there are.
    pub fn count(&self) -> usize {
        self.is_int.len()
    }
    /// The elements of output `i`; none if it is of integers.
    pub fn real(&self, i: usize) -> &[R] {
        if self.is_int[i] { &[] } else { inner(&self.reals[i]) }
    }
    /// The elements of output `i`; none if it is real.
    pub fn int(&self, i: usize) -> &[i32] {
        if self.is_int[i] { inner(&self.ints[i]) } else { &[] }
    }
    /// The integer outputs, in order.
    pub fn all_ints(&self) -> Vec<Vec<i32>> {
        (0..self.count()).filter(|&i| self.is_int[i]).map(|i| self.int(i).to_vec()).collect()
    }
}

fn inner<T>(padded: &[T]) -> &[T] {
    &padded[PAD..padded.len() - PAD]
}

impl Outs<f32> {
    /// That no sentinel was touched.
    pub fn sentinels(&self) -> Verdict {
        for i in 0..self.count() {
            let broken = match self.is_int[i] {
                true => touched(&self.ints[i], |&n| n == POISON_INT),
                false => touched(&self.reals[i], |x| x.to_bits() == POISON.to_bits()),
            };
            if let Some(at) = broken {
                return Err(format!("output {i}: wrote outside its buffer, at element {at}"));
            }
        }
        Ok(())
    }

    /// That the bits equal those of another run.
    pub fn same_bits(&self, other: &Self, how: &str) -> Verdict {
        for i in 0..self.count() {
            let (a, b) = (self.real(i), other.real(i));
            let real = a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits());
            let int = self.int(i).iter().zip(other.int(i)).position(|(a, b)| a != b);
            if let Some(j) = real {
                return Err(format!("output {i}[{j}] {how}: {:e} and {:e}", a[j], b[j]));
            }
            if let Some(j) = int {
                let (a, b) = (self.int(i)[j], other.int(i)[j]);
                return Err(format!("output {i}[{j}] {how}: {a} and {b}"));
            }
        }
        Ok(())
    }
}

/// Index, relative to the buffer's begin, of the first sentinel that does not hold `is_sentinel`.
fn touched<T>(padded: &[T], is_sentinel: impl Fn(&T) -> bool) -> Option<isize> {
    let end = padded.len() - PAD;
    let mut at = (0..PAD).chain(end..padded.len());
    at.find(|&j| !is_sentinel(&padded[j])).map(|j| j as isize - PAD as isize)
}

/// Runs `face` on outputs whose elements are `blank` and whose sentinels are the same.
pub fn evaluate<R: Copy>(
    op: &dyn DynOp,
    shapes: &[Shape],
    blank: (R, i32),
    sentinel: (R, i32),
    face: impl FnOnce(&mut [Out<'_, R>]),
) -> Outs<R> {
    let is_int: Vec<bool> = (0..shapes.len()).map(|i| op.int_outputs().contains(&i)).collect();
    let mut outs = Outs {
        reals: shapes.iter().map(|s| padded(s.len(), blank.0, sentinel.0)).collect(),
        ints: shapes.iter().map(|s| padded(s.len(), blank.1, sentinel.1)).collect(),
        is_int,
    };
    let buffers = outs.reals.iter_mut().zip(&mut outs.ints);
    let mut views: Vec<Out<'_, R>> = buffers
        .zip(&outs.is_int)
        .map(|((r, n), &int)| match int {
            true => Out::Int(middle(n)),
            false => Out::Real(middle(r)),
        })
        .collect();
    face(&mut views);
    drop(views);
    outs
}

fn padded<T: Copy>(len: usize, blank: T, sentinel: T) -> Vec<T> {
    let mut v = vec![sentinel; len + 2 * PAD];
    v[PAD..PAD + len].fill(blank);
    v
}

fn middle<T>(padded: &mut [T]) -> &mut [T] {
    let end = padded.len() - PAD;
    &mut padded[PAD..end]
}

/// A face: the fast one, the reference, both in f32, or a variant of the kernels.
#[derive(Clone, Copy, PartialEq)]
pub enum Face {
    Cpu,
    Reference,
    Cuda(Precision, &'static str),
}

impl Face {
    /// The faces that an op has in this build for these inputs; for bf16 values, the kernels alone.
    pub fn of(op: &dyn DynOp, data: &Inputs) -> Vec<Face> {
        let mut faces = match data.precision {
            Precision::F32 => vec![Face::Cpu, Face::Reference],
            Precision::Bf16 => Vec::new(),
        };
        if gpu::has_kernels() {
            let variants = op.variants(site(data.precision), &data.shapes()).into_iter();
            faces.extend(variants.map(|name| Face::Cuda(data.precision, name)));
        }
        faces
    }

    /// Whether output `i` is rounded to bf16.
    pub fn gives_bf16(self, op: &dyn DynOp, i: usize) -> bool {
        matches!(self, Face::Cuda(Precision::Bf16, _)) && !op.f32_outputs().contains(&i)
    }

    pub fn name(self) -> String {
        match self {
            Face::Cpu => "cpu face".into(),
            Face::Reference => "reference in f32".into(),
            Face::Cuda(precision, variant) => format!("cuda face ({variant}, {precision:?})"),
        }
    }

    /// Runs it on poisoned outputs.
    pub fn run(self, op: &dyn DynOp, data: &Inputs) -> Result<Outs<f32>, String> {
        self.run_on(op, data, (POISON, POISON_INT))
    }

    /// Runs it on outputs that hold `blank`.
    pub fn run_on(
        self,
        op: &dyn DynOp,
        data: &Inputs,
        blank: (f32, i32),
    ) -> Result<Outs<f32>, String> {
        let outs = out_shapes(op, data)?;
        let x: Vec<In<'_, f32>> = data.iter().map(In::from).collect();
        let mut failed = None;
        let outs = calmly(&self.name(), || {
            evaluate(op, &outs, blank, (POISON, POISON_INT), |y| match self {
                Face::Cpu => op.cpu(&x, y),
                Face::Reference => op.reference_f32(&x, y),
                Face::Cuda(..) => failed = self.on_gpu(op, data, &outs, y).err(),
            })
        });
        match failed {
            Some(e) => Err(format!("{}: {e}", self.name())),
            None => outs,
        }
    }
}

impl Face {
    /// Runs the kernels on buffers of exactly the outputs' sizes, which hold what `y` holds. A
    /// write beyond a buffer is the sanitizer's to find: softcuda's, or compute-sanitizer.
    fn on_gpu(
        self,
        op: &dyn DynOp,
        data: &Inputs,
        shapes: &[Shape],
        y: &mut [Out<'_, f32>],
    ) -> Result<(), String> {
        let Face::Cuda(precision, variant) = self else { return Err("no kernels".into()) };
        let queue = gpu::queue()?;
        let tell = |e: genevar::Error| e.to_string();
        let inputs = (0..data.len()).map(|i| uploaded(&queue, &data[i], data.is_half(i)));
        let inputs = inputs.collect::<genevar::Result<Vec<_>>>().map_err(tell)?;
        let x: Vec<CudaIn<'_>> =
            data.iter().zip(&inputs).map(|(d, held)| CudaIn::new(&d.shape, held)).collect();
        let blank = |(i, (y, shape)): (usize, (&Out<'_, f32>, &Shape))| {
            let held = match y {
                Out::Real(y) if self.gives_bf16(op, i) => OnGpu::Bf16(bf16_buffer(&queue, y)?),
                Out::Real(y) => OnGpu::F32(Buffer::from_slice(&queue, y)?),
                Out::Int(y) => OnGpu::I32(Buffer::from_slice(&queue, y)?),
            };
            Ok(CudaOut::new(shape.clone(), held))
        };
        let outs = y.iter().zip(shapes).enumerate().map(blank);
        let mut outs = outs.collect::<genevar::Result<Vec<_>>>().map_err(tell)?;
        op.cuda(&queue, precision, Some(variant), &x, &mut outs).map_err(tell)?;
        for (y, out) in y.iter_mut().zip(&outs) {
            match (y, out.held()) {
                (Out::Real(y), OnGpu::F32(held)) => y.copy_from_slice(&held.read().map_err(tell)?),
                (Out::Real(y), OnGpu::Bf16(held)) => {
                    let wide = held.read().map_err(tell)?.into_iter().map(widened);
                    y.iter_mut().zip(wide).for_each(|(y, v)| *y = v);
                }
                (Out::Int(y), OnGpu::I32(held)) => y.copy_from_slice(&held.read().map_err(tell)?),
                _ => return Err("an output changed its type".into()),
            }
        }
        Ok(())
    }
}

fn uploaded(queue: &Queue, d: &Data, half: bool) -> genevar::Result<OnGpu> {
    match (d.is_int, half) {
        (true, _) => Ok(OnGpu::I32(Buffer::from_slice(queue, &d.int)?)),
        (false, true) => Ok(OnGpu::Bf16(bf16_buffer(queue, &d.real)?)),
        (false, false) => Ok(OnGpu::F32(Buffer::from_slice(queue, &d.real)?)),
    }
}

/// The upper halves of f32 values: bf16 values as they are, and a mark of [`POISON`].
fn bf16_buffer(queue: &Queue, values: &[f32]) -> genevar::Result<Buffer<bf16>> {
    let upper = |x: &f32| bf16::from_bits((x.to_bits() >> 16) as u16);
    Buffer::from_slice(queue, &values.iter().map(upper).collect::<Vec<_>>())
}

/// A bf16 value as f32; what is left of [`POISON`] is [`POISON`] again.
fn widened(v: bf16) -> f32 {
    let poisoned = u32::from(v.to_bits()) == POISON.to_bits() >> 16;
    if poisoned { POISON } else { v.to_f32() }
}

/// The output shapes the op states for these inputs.
pub fn out_shapes(op: &dyn DynOp, data: &[Data]) -> Result<Vec<Shape>, String> {
    let shapes: Vec<&Shape> = data.iter().map(|d| &d.shape).collect();
    match calmly("shapes", || op.shapes(&shapes))? {
        Ok(outs) => Ok(outs),
        Err(e) => Err(format!("its own case is refused: {e}")),
    }
}

/// Runs a reference of kernels that take these inputs.
fn as_stored<T>(data: &Inputs, run: impl FnOnce() -> T) -> T {
    match data.precision {
        Precision::F32 => run(),
        Precision::Bf16 => stored_in_bf16(run),
    }
}

/// The reference in f64.
pub fn in_f64(op: &dyn DynOp, data: &Inputs) -> Result<Outs<f64>, String> {
    let outs = out_shapes(op, data)?;
    let x = lift(data, |_, _, x| x);
    let blank = (f64::NAN, POISON_INT);
    let run = || evaluate(op, &outs, blank, blank, |y| op.reference_f64(&x.views(), y));
    calmly("reference in f64", || as_stored(data, run))
}

/// The reference with rounding bounds.
pub fn in_running(op: &dyn DynOp, data: &Inputs) -> Result<Outs<Running>, String> {
    let outs = out_shapes(op, data)?;
    let x = lift(data, |_, _, x| Running::exact(x));
    let blank = (Running::exact(f64::NAN), POISON_INT);
    let run = || evaluate(op, &outs, blank, blank, |y| op.reference_running(&x.views(), y));
    calmly("reference at Running", || as_stored(data, run))
}

/// The reference with derivatives along `d`, one direction for each input (`None` is zero).
pub fn in_dual(op: &dyn DynOp, data: &[Data], d: &[Option<&Tensor>]) -> Result<Outs<Dual>, String> {
    let outs = out_shapes(op, data)?;
    let x = lift(data, |i, j, v| Dual { v, d: d[i].map_or(0.0, |t| t.at(j)) });
    let blank = (Dual { v: f64::NAN, d: f64::NAN }, POISON_INT);
    calmly("reference at Dual", || {
        evaluate(op, &outs, blank, blank, |y| op.reference_dual(&x.views(), y))
    })
}

/// Runs `f`, turning a panic into a message.
pub fn calmly<T>(what: &str, f: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).map_err(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| payload.downcast_ref::<&str>().map(ToString::to_string));
        format!("{what} panicked: {}", text.unwrap_or_default())
    })
}

/// A sentinel that was overwritten is seen, on either side and in either type.
pub fn sentinels_can_fail() -> Verdict {
    let fresh = || Outs {
        reals: vec![padded(5, 0.0, POISON), Vec::new()],
        ints: vec![Vec::new(), padded(3, 0, POISON_INT)],
        is_int: vec![false, true],
    };
    fresh().sentinels()?;
    for at in [0, PAD - 1, PAD + 5, 2 * PAD + 4] {
        let mut outs = fresh();
        outs.reals[0][at] = 0.0;
        if outs.sentinels().is_ok() {
            return Err(format!("a real written at {at} was not noticed"));
        }
    }
    for at in [PAD - 1, PAD + 3] {
        let mut outs = fresh();
        outs.ints[1][at] = 0;
        if outs.sentinels().is_ok() {
            return Err(format!("an integer written at {at} was not noticed"));
        }
    }
    Ok(())
}
