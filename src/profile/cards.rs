//! What an op must move and compute: the cards of its kernels say it, on the CPU too.
//!
//! An op of the CPU is run a second time on an imagined GPU, shapes only, and the cards of its
//! launches give the floor. So a count of operations is written in one place, the card.

use super::model::{KNOWN, Work};
use crate::device::cuda::{Buffer, Gpu, Launch, Queue};
use crate::device::kernel::{Entry, Floor};
use crate::device::{Device, OnGpu};
use crate::error::Result;
use crate::ops::{Timed, run_on};
use crate::tensor::{Shape, Tensor};

/// Bytes of an element of the CPU's tensors.
const ELEMENT: u64 = 4;

/// Asks cards.
pub struct Cards(Queue);

impl Cards {
    /// On an imagined GPU.
    ///
    /// # Errors
    /// None that a person could cause.
    pub fn new() -> Result<Self> {
        Ok(Self(Gpu::imagined(KNOWN[0].facts()).queue()?))
    }

    /// The bytes and operations of an op that the CPU ran. Bytes are those of its inputs and
    /// outputs, or fewer where the cards say that it does not read all.
    pub fn of(&self, ran: &Timed) -> Floor {
        let len = |shapes: &[Shape]| shapes.iter().map(|s| s.len() as u64).sum::<u64>();
        let whole = ELEMENT * (len(&ran.inputs) + len(&ran.outputs));
        match self.launches(ran) {
            Ok(launches) if !launches.is_empty() => {
                let floors = launches.iter().map(|l| (l.entry.floor)(&l.args));
                let zero = Floor { bytes: 0, flops: 0 };
                let sum = floors.fold(zero, |a, b| Floor {
                    bytes: a.bytes + b.bytes,
                    flops: a.flops + b.flops,
                });
                Floor { bytes: whole.min(sum.bytes), flops: sum.flops }
            }
            // An op without kernels: one operation an element.
            _ => Floor { bytes: whole, flops: len(&ran.outputs) },
        }
    }

    fn launches(&self, ran: &Timed) -> Result<Vec<Launch>> {
        let queue = &self.0;
        let ints = ran.op.int_inputs();
        let input = |(i, shape): (usize, &Shape)| {
            let held = match ints.contains(&i) {
                true => OnGpu::I32(Buffer::new(queue, shape.len())?),
                false => OnGpu::F32(Buffer::new(queue, shape.len())?),
            };
            Tensor::away(held, shape)
        };
        let x = ran.inputs.iter().enumerate().map(input).collect::<Result<Vec<_>>>()?;
        let x: Vec<&Tensor> = x.iter().collect();
        let device = Device::Cuda(queue.clone());
        let (done, launches) = queue.trace(|| run_on(&device, &*ran.op, &x));
        done.map(|_| launches)
    }
}

/// The work of a launch, by its card.
pub fn work(launch: &Launch) -> Work {
    let work = split(launch.entry, (launch.entry.floor)(&launch.args));
    Work { beside: launch.overlaps, ..work }
}

/// Operations go to the units that the kernel's machine code has instructions for.
fn split(entry: &Entry, floor: Floor) -> Work {
    let tensor = entry.resources.iter().any(|r| r.tensor > 0);
    let (bytes, flops) = (floor.bytes as f64, floor.flops as f64);
    let [scalar, tensor] = if tensor { [0.0, flops] } else { [flops, 0.0] };
    Work { bytes, scalar, tensor, beside: false }
}
