//! What stands between self-attention's projection and its scores, in one pass: the split into
//! heads and, for VAR's attention, queries and keys of unit length with a learned temperature.

use std::ops::RangeInclusive;

use crate::device::kernel::Slice;
use crate::device::launch::norm as launch;
use crate::error::{Error, Result};
use crate::ops::composed::{self, Composed};
use crate::ops::cuda::{Kernels, Window, kernels, warp_per_row};
use crate::ops::{Case, Cases, Diff, In, Input, Op, Out, Real};
use crate::tensor::Shape;

/// Smallest length a query or key is divided by.
pub const EPS: f64 = 1e-12;
/// Largest temperature of unit-length queries, as a logarithm: ln 100.
pub const LN_MAX_SCALE: f64 = 4.605_170_185_988_092;

/// Rows [q, k, v] [B, n, 3 C] and, for unit lengths, ln of the temperatures [H, 1] to q, k, v, each
/// [B, n, H, C / H]: q / |q| min(e^s, 100), k / |k| and v, or all three as they are.
#[derive(Clone, Debug)]
pub struct UnitHeads {
    /// Number of heads H.
    pub heads: usize,
}

impl UnitHeads {
    /// [B, n, H, D] of the rows.
    fn split(&self, rows: &Shape) -> Option<[usize; 4]> {
        match *rows.dims() {
            [b, n, c] if self.heads > 0 && c % (3 * self.heads) == 0 && c > 0 => {
                Some([b, n, self.heads, c / 3 / self.heads])
            }
            _ => None,
        }
    }
}

impl Op for UnitHeads {
    const NAME: &'static str = "unit_heads";
    const INPUTS: RangeInclusive<usize> = 1..=2;
    const COMPOSED: Option<Composed<Self>> = Some(composed::unit_heads);
    const DIFF: Diff = Diff::No(
        "a result has one derivative and this has three; passes that \
                                 differentiate run the parts",
    );
    const F32_INPUTS: &'static [usize] = &[1];
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, stream, x, y| {
        let split = op.split(x[0].shape);
        let (Some([b, n, heads, cols]), [q, k, v]) = (split, y) else {
            return Err(Error::Internal("unit_heads was given other outputs than it has".into()));
        };
        let Window { room, at } = k.window();
        let (q, k, v) = (&mut q.get::<T>()?, &mut k.get_within::<T>()?, &mut v.get_within::<T>()?);
        let scale = x.get(1).map_or(Ok(Slice::none(stream)), |s| s.get::<f32>())?;
        let (unit, grid) = (x.len() - 1, warp_per_row(stream, b * n * heads));
        let (x, eps, most) = (x[0].get::<T>()?, EPS as f32, LN_MAX_SCALE as f32);
        launch::unit_heads_fwd(
            stream, grid, q, k, v, &x, &scale, b, n, heads, cols, room, at, unit, eps, most,
        )
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        match self.split(x[0]) {
            Some(split) if x.get(1).is_none_or(|s| s.dims() == [self.heads, 1]) => {
                Ok(vec![split.into(); 3])
            }
            _ => {
                let found: Vec<String> = x.iter().map(ToString::to_string).collect();
                let what = format!(
                    "wants rows [B, n, 3 C] of {h} heads and temperatures [{h}, 1]; found {}",
                    found.join(", "),
                    h = self.heads
                );
                Err(Error::shape(Self::NAME, what))
            }
        }
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let Some([_, _, heads, cols]) = self.split(x[0].shape) else { return };
        let wide = heads * cols;
        for (part, y) in y.iter_mut().enumerate() {
            for (job, y) in y.r().chunks_mut(cols).enumerate() {
                let (row, head) = (job / heads, job % heads);
                let from = &x[0].r()[(3 * row + part) * wide + head * cols..][..cols];
                let norm = R::sum(from.iter().map(|&v| v * v)).sqrt().max(R::of(EPS));
                for (y, &v) in y.iter_mut().zip(from) {
                    *y = match (x.get(1), part) {
                        (Some(s), 0) => v / norm * s.r()[head].min(R::of(LN_MAX_SCALE)).exp(),
                        (Some(_), 1) => v / norm,
                        _ => v,
                    };
                }
            }
        }
    }
    fn cases() -> Cases {
        Cases {
            named: vec![
                case("unit", [2, 5], 4, 16, true),
                case("odd", [1, 3], 3, 7, true),
                case("plain", [2, 3], 2, 8, false),
                case("past_a_warp", [1, 2], 2, 1100, true),
                case("no_rows", [0, 3], 2, 4, true),
            ],
            draw: |d| {
                let rows = [d.size(1, 3), d.size(1, 6)];
                case("drawn", rows, d.size(1, 5), d.size(1, 70), d.coin())
            },
            bench: vec![case("d16", [2, 256], 16, 64, true), case("phi_m", [1, 256], 8, 64, false)],
        }
    }
}

fn case(name: &str, [b, n]: [usize; 2], heads: usize, cols: usize, unit: bool) -> Case {
    let mut inputs = vec![Input::normal([b, n, 3 * heads * cols])];
    if unit {
        inputs.push(Input::uniform([heads, 1], 0.5, 5.0));
    }
    Case::new(name, UnitHeads { heads }, inputs)
}
