//! Random numbers as ops: a stream's uniforms and normals, dropout masks, and rows of numbers of
//! which each has a stream of its own.
//!
//! A tensor of them is a function of the streams' names and its shape, the same bits on every
//! device. In f64 they are the f32 numbers, widened, so that a model in f64 draws what its f32 twin
//! draws.

use std::ops::RangeInclusive;

use super::cuda::{Kernels, Variant, kernels, over_elements};
use super::{Case, Cases, CpuFace, Diff, In, Input, Op, Out, Real, run_on};
use crate::device::Device;
use crate::device::launch::random as launch;
use crate::error::{Error, Result};
use crate::tensor::{Purpose, Shape, Stream, Tensor};

/// Uniforms 0.. of a stream, in [0, 1).
#[derive(Clone, Debug)]
pub struct RandomUniform {
    /// Where they come from.
    pub stream: Stream,
    /// The result's shape.
    pub shape: Shape,
}

/// Standard normals 0.. of a stream.
#[derive(Clone, Debug)]
pub struct RandomNormal {
    /// Where they come from.
    pub stream: Stream,
    /// The result's shape.
    pub shape: Shape,
}

/// What inputs are multiplied by under dropout: 0 where the stream's uniform is below the rate,
/// else 1 / (1 - rate).
#[derive(Clone, Debug)]
pub struct DropoutMask {
    /// Where the uniforms come from.
    pub stream: Stream,
    /// The result's shape.
    pub shape: Shape,
    /// The probability of 0, at least 0 and below 1.
    pub rate: f64,
}

/// Tokens, but a share of them swapped for codes drawn at random: at place i where the stream's
/// uniform 2i is below the share, its integer 2i + 1.
#[derive(Clone, Debug)]
pub struct SwapTokens {
    /// Where the draws come from.
    pub stream: Stream,
    /// The probability of a swap.
    pub share: f64,
    /// Codes to draw from.
    pub codes: usize,
}

/// What names the numbers of rows, beside the number of each row's sample and the seed.
#[derive(Clone, Debug)]
pub struct Rows {
    /// The scale.
    pub scale: u16,
    /// What they are for.
    pub purpose: Purpose,
    /// The shape of one row.
    pub row: Shape,
}

/// Uniforms in [0, 1), a row for each sample, whose [`names`] [B, 4] are the input: those 0.. of
/// its stream.
#[derive(Clone, Debug)]
pub struct UniformRows(pub Rows);

/// Standard normals, a row for each sample, whose [`names`] [B, 4] are the input: those 0.. of its
/// stream.
#[derive(Clone, Debug)]
pub struct NormalRows(pub Rows);

/// Rows of standard normals on a device, one for each sample, of [B, ..].
///
/// # Errors
/// Those of the device.
pub fn normal_rows(device: &Device, rows: Rows, names: &Tensor) -> Result<Tensor> {
    let none = || Error::Internal("normal_rows has no output".into());
    run_on(device, &NormalRows(rows), &[names])?.pop().ok_or_else(none)
}

/// As [`normal_rows`], uniforms in [0, 1).
///
/// # Errors
/// Those of the device.
pub fn uniform_rows(device: &Device, rows: Rows, names: &Tensor) -> Result<Tensor> {
    let none = || Error::Internal("uniform_rows has no output".into());
    run_on(device, &UniformRows(rows), &[names])?.pop().ok_or_else(none)
}

/// What names the random numbers of samples [B, 4]: their own numbers and the run's seed, low words
/// first.
pub fn names(seed: u64, samples: &[u64]) -> Result<Tensor> {
    let words = |n: u64| [n as u32, (n >> 32) as u32].map(u32::cast_signed);
    let all = samples.iter().flat_map(|&s| [words(s), words(seed)].concat());
    Tensor::new_i32(all.collect(), [samples.len(), 4])
}

/// Why nothing here has derivative rules.
const DRAWN: Diff = Diff::No("random numbers depend on no input");

/// The shape of an op without inputs.
fn alone(op: &'static str, x: &[&Shape], shape: &Shape) -> Result<Vec<Shape>> {
    match x.is_empty() {
        true => Ok(vec![shape.clone()]),
        false => Err(Error::shape(op, "takes no inputs")),
    }
}

/// The same numbers at any scalar.
fn widen<R: Real>(y: &mut [Out<'_, R>], numbers: Vec<f32>) {
    for (y, v) in y[0].r().iter_mut().zip(numbers) {
        *y = R::of(f64::from(v));
    }
}

/// Extents round a block of Philox and the CPU's pieces, for a test's stream.
fn cases_of<O: Op>(make: fn(Stream, Shape) -> O, draw: fn(&mut super::Draw<'_>) -> Case) -> Cases {
    let case = |(name, shape): (&str, &[usize])| {
        let stream = Stream::new(0x0123_4567_89ab_cdef, 1 << 40 | 5, 3, Purpose::Test);
        Case::new(name, make(stream, shape.into()), Vec::new())
    };
    let shapes: [(&str, &[usize]); 6] = [
        ("none", &[0]),
        ("one", &[1]),
        ("odd", &[3, 5, 7]),
        ("blocks", &[8, 16]),
        ("past_a_packet", &[133]),
        ("past_a_chunk", &[4099]),
    ];
    Cases { named: shapes.map(case).into(), draw, bench: vec![case(("tokens", &[16, 130, 256]))] }
}

fn drawn(d: &mut super::Draw<'_>) -> (Stream, Shape) {
    let stream = Stream::new(d.size(0, 9999) as u64, d.size(0, 99) as u64, 1, Purpose::Test);
    (stream, Shape::from([d.size(1, 9), d.size(1, 40)]))
}

impl Op for RandomUniform {
    const NAME: &'static str = "random_uniform";
    const INPUTS: RangeInclusive<usize> = 0..=0;
    const DIFF: Diff = DRAWN;
    const CPU: Option<CpuFace<Self>> =
        Some(|op, _, y| y[0].r().copy_from_slice(&op.stream.uniforms(op.shape.len())));
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, _, y| {
        let (n, ([k0, k1], [t0, t1, t2])) = (op.shape.len(), op.stream.name());
        let y = &mut y[0].get::<T>()?;
        launch::random_uniform_fwd(q, over_elements(q, n), y, n, k0, k1, t0, t1, t2)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        alone(Self::NAME, x, &self.shape)
    }
    fn reference<R: Real>(&self, _: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        widen(y, (0..self.shape.len()).map(|i| self.stream.uniform(i)).collect());
    }
    fn cases() -> Cases {
        cases_of(
            |stream, shape| Self { stream, shape },
            |d| {
                let (stream, shape) = drawn(d);
                Case::new("drawn", Self { stream, shape }, Vec::new())
            },
        )
    }
}

impl Op for RandomNormal {
    const NAME: &'static str = "random_normal";
    const INPUTS: RangeInclusive<usize> = 0..=0;
    const DIFF: Diff = DRAWN;
    const CPU: Option<CpuFace<Self>> =
        Some(|op, _, y| y[0].r().copy_from_slice(&op.stream.normals(op.shape.len())));
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, _, y| {
        let (n, ([k0, k1], [t0, t1, t2])) = (op.shape.len(), op.stream.name());
        let y = &mut y[0].get::<T>()?;
        launch::random_normal_fwd(q, over_elements(q, n), y, n, k0, k1, t0, t1, t2)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        alone(Self::NAME, x, &self.shape)
    }
    fn reference<R: Real>(&self, _: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        widen(y, (0..self.shape.len()).map(|i| self.stream.normal(i)).collect());
    }
    fn cases() -> Cases {
        cases_of(
            |stream, shape| Self { stream, shape },
            |d| {
                let (stream, shape) = drawn(d);
                Case::new("drawn", Self { stream, shape }, Vec::new())
            },
        )
    }
}

impl DropoutMask {
    /// The mask, with 1 / (1 - rate) as the scalar gives it.
    fn fill<R: Real>(&self, y: &mut [R], uniforms: impl Iterator<Item = f32>) {
        let (rate, kept) = (self.rate as f32, R::of(1.0 / (1.0 - self.rate)));
        for (y, u) in y.iter_mut().zip(uniforms) {
            *y = if u < rate { R::of(0.0) } else { kept };
        }
    }
}

impl Op for DropoutMask {
    const NAME: &'static str = "dropout_mask";
    const INPUTS: RangeInclusive<usize> = 0..=0;
    const DIFF: Diff = DRAWN;
    const CPU: Option<CpuFace<Self>> = Some(|op, _, y| {
        op.fill(y[0].r(), op.stream.uniforms(op.shape.len()).into_iter());
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, _, y| {
        let (n, ([k0, k1], [t0, t1, t2])) = (op.shape.len(), op.stream.name());
        let (y, grid) = (&mut y[0].get::<T>()?, over_elements(q, n));
        let (rate, kept) = (op.rate as f32, (1.0 / (1.0 - op.rate)) as f32);
        launch::dropout_mask_fwd(q, grid, y, n, k0, k1, t0, t1, t2, rate, kept)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        if !(0.0..1.0).contains(&self.rate) {
            let what = format!("a rate of {} is not at least 0 and below 1", self.rate);
            return Err(Error::shape(Self::NAME, what));
        }
        alone(Self::NAME, x, &self.shape)
    }
    fn reference<R: Real>(&self, _: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        self.fill(y[0].r(), (0..self.shape.len()).map(|i| self.stream.uniform(i)));
    }
    fn cases() -> Cases {
        cases_of(
            |stream, shape| Self { stream, shape, rate: 0.3 },
            |d| {
                let (stream, shape) = drawn(d);
                let rate = d.pick(&[0.0, 0.1, 0.5, 0.9]);
                Case::new("drawn", Self { stream, shape, rate }, Vec::new())
            },
        )
    }
}

impl SwapTokens {
    /// The share in units of a uniform, 2^-24: below it lie the same uniforms.
    fn threshold(&self) -> u32 {
        (self.share * f64::from(1 << 24)).ceil() as u32
    }
}

impl Op for SwapTokens {
    const NAME: &'static str = "swap_tokens";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const INT_INPUTS: &'static [usize] = &[0];
    const INT_OUTPUTS: &'static [usize] = &[0];
    const DIFF: Diff = Diff::No("tokens have no derivative");
    const CUDA: Kernels<Self> = Kernels {
        variants: &[Variant {
            name: "only",
            f32: Some(|op, q, x, y| {
                let (n, ([k0, k1], [t0, t1, t2])) = (x[0].shape.len(), op.stream.name());
                let (y, x) = (&mut y[0].get::<i32>()?, x[0].get::<i32>()?);
                let (codes, share) = (op.codes as u32, op.threshold());
                let grid = over_elements(q, n);
                launch::swap_tokens_fwd(q, grid, y, &x, n, codes, k0, k1, t0, t1, t2, share)
            }),
            bf16: None,
            takes: |_, _| true,
            needs: None,
        }],
        fastest: |_, _, _| 0,
    };

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![x[0].clone()])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        for (i, (y, &x)) in y[0].i().iter_mut().zip(x[0].i()).enumerate() {
            let hit = f64::from(self.stream.uniform(2 * i)) < self.share;
            *y = if hit { self.stream.below(2 * i + 1, self.codes) as i32 } else { x };
        }
    }
    fn cases() -> Cases {
        let case = |name: &str, shape: &[usize], share, codes| {
            let op = SwapTokens { stream: Stream::new(9, 2, 1, Purpose::Test), share, codes };
            Case::new(name, op, vec![Input::below(shape, codes)])
        };
        Cases {
            named: vec![
                case("some", &[3, 30], 0.3, 40),
                case("none", &[2, 5], 0.0, 9),
                case("all", &[7], 1.0, 9),
                case("one", &[1], 0.5, 2),
                case("no_tokens", &[0, 4], 0.5, 2),
                case("past_a_block", &[2, 680], 0.1, 4096),
            ],
            draw: |d| {
                let (share, codes) = (d.pick(&[0.0, 0.05, 0.5, 1.0]), d.size(1, 99));
                let stream = Stream::new(d.size(0, 99) as u64, 1, 0, Purpose::Test);
                let tokens = Input::below([d.size(1, 5), d.size(1, 90)], codes);
                Case::new("drawn", SwapTokens { stream, share, codes }, vec![tokens])
            },
            bench: vec![case("paper", &[32, 680], 0.1, 4096)],
        }
    }
}

/// The stream of a sample of this name.
pub(super) fn stream_of((scale, purpose): (u16, Purpose), words: &[i32]) -> Stream {
    let word = |i: usize| u64::from(words.get(i).map_or(0, |w| w.cast_unsigned()));
    Stream::new(word(2) | word(3) << 32, word(0) | word(1) << 32, scale, purpose)
}

/// What tells streams of one name apart, as the kernels take it.
pub(super) fn last_word(scale: u16, purpose: Purpose) -> u32 {
    stream_of((scale, purpose), &[]).name().1[2]
}

impl Rows {
    fn stream(&self, words: &[i32]) -> Stream {
        stream_of((self.scale, self.purpose), words)
    }

    fn shapes(&self, op: &'static str, x: &[&Shape]) -> Result<Vec<Shape>> {
        match *x[0].dims() {
            [rows, 4] => Ok(vec![Shape::from([&[rows], self.row.dims()].concat())]),
            _ => Err(Error::shape(op, format!("wants names [B, 4]; found {}", x[0]))),
        }
    }

    fn cases<O: Op>(make: fn(Self) -> O, draw: fn(&mut super::Draw<'_>) -> Case) -> Cases {
        let case = |(name, rows, row): (&str, usize, &[usize])| {
            let of = Self { scale: 3, purpose: Purpose::Test, row: row.into() };
            Case::new(name, make(of), vec![Input::below([rows, 4], 1 << 30)])
        };
        let shapes: [(&str, usize, &[usize]); 6] = [
            ("none", 0, &[4]),
            ("one", 1, &[1]),
            ("odd", 3, &[5, 7]),
            ("packets", 8, &[16]),
            ("no_columns", 2, &[0]),
            ("past_a_chunk", 2, &[4099]),
        ];
        let bench = vec![case(("scale", 64, &[16, 16, 32]))];
        Cases { named: shapes.map(case).into(), draw, bench }
    }

    fn drawn(d: &mut super::Draw<'_>) -> (Self, Vec<Input>) {
        let of = Self { scale: 1, purpose: Purpose::Test, row: [d.size(1, 40)].into() };
        (of, vec![Input::below([d.size(1, 9), 4], 1 << 30)])
    }
}

/// Rows of `f`'s numbers of each sample's stream.
fn each_row<R: Real>(
    of: &Rows,
    x: &[In<'_, R>],
    y: &mut [Out<'_, R>],
    f: impl Fn(&Stream, usize) -> Vec<f32>,
) {
    let n = of.row.len();
    for (y, words) in y[0].r().chunks_mut(n.max(1)).zip(x[0].i().chunks(4)) {
        for (y, v) in y.iter_mut().zip(f(&of.stream(words), n)) {
            *y = R::of(f64::from(v));
        }
    }
}

/// An op that makes rows of numbers: its name, its launcher and a stream's numbers.
macro_rules! rows_op {
    ($op:ident, $name:literal, $launch:ident, $numbers:expr) => {
        impl Op for $op {
            const NAME: &'static str = $name;
            const INPUTS: RangeInclusive<usize> = 1..=1;
            const INT_INPUTS: &'static [usize] = &[0];
            const DIFF: Diff = DRAWN;
            const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, y| {
                let (rows, cols) = (x[0].shape.matrix().0, op.0.row.len());
                let last = last_word(op.0.scale, op.0.purpose);
                let (y, names) = (&mut y[0].get::<T>()?, x[0].get::<i32>()?);
                launch::$launch(q, over_elements(q, rows * cols), y, &names, rows, cols, last)
            });

            fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
                self.0.shapes(Self::NAME, x)
            }
            fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
                each_row(&self.0, x, y, $numbers);
            }
            fn cases() -> Cases {
                Rows::cases(Self, |d| {
                    let (of, inputs) = Rows::drawn(d);
                    Case::new("drawn", Self(of), inputs)
                })
            }
        }
    };
}
rows_op!(UniformRows, "uniform_rows", uniform_rows_fwd, Stream::uniforms);
rows_op!(NormalRows, "normal_rows", normal_rows_fwd, Stream::normals);

#[cfg(test)]
mod tests {
    use super::super::call;
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn a_mask_keeps_the_mean_and_bad_rates_are_refused() {
        let stream = Stream::new(3, 1, 0, Purpose::Test);
        let mask = |rate| DropoutMask { stream, shape: [40_000].into(), rate };
        let y = call(&mask(0.25), &[]).unwrap();
        let mean = (0..y.len()).map(|i| y.at(i)).sum::<f64>() / y.len() as f64;
        assert!((mean - 1.0).abs() < 0.02 && y.dtype() == DType::F32, "{mean}");
        for rate in [-0.1, 1.0, f64::NAN] {
            assert!(call(&mask(rate), &[]).is_err(), "{rate}");
        }
    }
}
