//! Inputs of a case: random numbers named by the case, as binary32 values that every scalar can
//! hold exactly.

use genevar::ops::{DynOp, Fill, In, Input};
use genevar::tensor::{Purpose, Shape, Stream, Tensor};

/// One filled input. Integer inputs have their elements in `int`, all others in `real`.
#[derive(Clone)]
pub struct Data {
    pub shape: Shape,
    pub real: Vec<f32>,
    pub int: Vec<i32>,
    pub is_int: bool,
}

impl<'a> From<&'a Data> for In<'a, f32> {
    fn from(data: &'a Data) -> Self {
        match data.is_int {
            true => In::int(&data.shape, &data.int),
            false => In::real(&data.shape, &data.real),
        }
    }
}

impl Data {
    pub fn tensor(&self) -> Tensor {
        match self.is_int {
            true => Tensor::new_i32(self.int.clone(), &self.shape).unwrap(),
            false => Tensor::new(self.real.clone(), &self.shape).unwrap(),
        }
    }
}

/// A number for a name (FNV-1a), so that every case has its own random numbers on every machine.
pub fn seed(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Fills the inputs of a case.
pub fn fill(op: &dyn DynOp, inputs: &[Input], seed: u64) -> Vec<Data> {
    let one = |(i, input): (usize, &Input)| {
        let stream = Stream::new(seed, i as u64, 0, Purpose::Test);
        let n = input.shape.len();
        let numbers: Vec<f32> = match input.fill {
            Fill::Normal => stream.normals(n),
            Fill::Uniform(lo, hi) => {
                let spread = |u: f32| (lo + (hi - lo) * f64::from(u)) as f32;
                stream.uniforms(n).into_iter().map(spread).collect()
            }
            Fill::Away(gap) => {
                let push = |x: f32| x + (gap as f32).copysign(x);
                stream.normals(n).into_iter().map(push).collect()
            }
            Fill::Coins => (0..n).map(|i| stream.below(i, 2) as f32).collect(),
            Fill::Below(end) => (0..n).map(|i| stream.below(i, end) as f32).collect(),
        };
        let is_int = op.int_inputs().contains(&i);
        let shape = input.shape.clone();
        match is_int {
            true => {
                let int = numbers.iter().map(|&x| x as i32).collect();
                Data { shape, real: Vec::new(), int, is_int }
            }
            false => Data { shape, real: numbers, int: Vec::new(), is_int },
        }
    };
    inputs.iter().enumerate().map(one).collect()
}
