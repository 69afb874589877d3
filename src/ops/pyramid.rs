//! Residual quantisation of latent maps: the tokens of all scales in one go.
//!
//! Scale k takes s_k = the nearest codes of D_p(rest), then rest -= phi(U_p(e of s_k)), with
//! phi(h) = (1 - q) h + q (h * w + b), D_p the area pooling to p x p and U_p the bicubic
//! enlargement (VAR; algorithm.md 1.4). One kernel keeps the rest of a map on chip through all
//! scales; the path of small ops is `models::quantiser`.

mod rests;

use std::ops::RangeInclusive;

use super::composed::{self, Composed};
use super::cuda::{Kernels, block_per_job, kernels};
use super::quantize::NearestCode;
use super::resample::{Band, Map};
use super::{Case, Cases, Diff, In, Input, Op, Out, Real, Running};
use crate::device::kernel::Grid;
use crate::device::launch::pyramid as launch;
use crate::error::{Error, Result};
use crate::tensor::Shape;

pub use rests::{QuantiseRests, QuantiseRestsVjp};

/// Maps f [B, H, H, d], a codebook [V, d], the filters [J d, 3, 3, d] and biases [J d] of the J
/// convolutions phi, to tokens [B, L], all scales in a row; -1 where a vector has no nearest code.
///
/// The kernel holds maps of at most 16 x 16 vectors of at most 32 numbers, and 16 scales:
/// [`QuantisePyramid::fits`].
#[derive(Clone, Debug)]
pub struct QuantisePyramid {
    /// Side of each scale.
    pub sides: Vec<usize>,
    /// Which phi each scale has.
    pub phis: Vec<usize>,
    /// q: the convolution's share of phi.
    pub share: f64,
    /// Whether nearness is the angle to the code instead of the distance.
    pub cosine: bool,
}

/// Most scales, rows of a map and numbers of a vector.
const SCALES: usize = 16;
const SIDE: usize = 16;
const WIDTH: usize = 32;

/// Sides of scales as kernels/lib/scales.cuh takes them.
///
/// # Errors
/// More than 16 scales, or a side above 255.
pub(super) fn packed(op: &'static str, sides: &[usize]) -> Result<[u64; 2]> {
    if sides.len() > SCALES || sides.iter().any(|&p| p > 255) {
        let what = format!("its kernel takes {SCALES} scales of at most 255; found {sides:?}");
        return Err(Error::shape(op, what));
    }
    let (low, high) = sides.split_at(sides.len().min(8));
    let pack = |all: &[usize]| all.iter().rev().fold(0, |word, &n| word << 8 | n as u64);
    Ok([pack(low), pack(high)])
}

/// What the op was given.
struct Given<'a, R> {
    side: usize,
    width: usize,
    book: &'a [R],
    filters: &'a [R],
    bias: &'a [R],
}

impl<'a, R: Real> Given<'a, R> {
    fn new(x: &[In<'a, R>]) -> Self {
        let (side, width) = (x[0].shape.dims()[1], x[0].shape.last());
        Self { side, width, book: x[1].r(), filters: x[2].r(), bias: x[3].r() }
    }

    /// A map [n, n, d] through a banded matrix on both axes, to [m, m, d].
    fn resized(&self, map: Map, x: &[R], n: usize, m: usize) -> Vec<R> {
        let bands = map.matrix(n, m).unwrap_or_default();
        let d = self.width;
        let line = |b: &Band, f: &dyn Fn(usize) -> R| {
            let terms = b.weights.iter().enumerate();
            R::sum(terms.map(|(k, &w)| R::of(w) * f(b.start + k)))
        };
        let element = |i: usize| {
            let (row, col, c) = (&bands[i / d / m], &bands[i / d % m], i % d);
            line(row, &|r| line(col, &|q| x[(r * n + q) * d + c]))
        };
        (0..m * m * d).map(element).collect()
    }

    /// The code's vector, NaN for none.
    fn code(&self, token: i32) -> Vec<R> {
        let at = usize::try_from(token).ok().map(|t| t * self.width);
        let own = at.and_then(|at| self.book.get(at..at + self.width));
        own.map_or_else(|| vec![R::of(f64::NAN); self.width], <[R]>::to_vec)
    }

    /// phi number `j` of h [H, H, d].
    fn phi(&self, j: usize, share: f64, h: &[R]) -> Vec<R> {
        let (d, n) = (self.width, self.side as isize);
        if self.bias.is_empty() {
            return h.to_vec();
        }
        let element = |i: usize| {
            let (row, col, o) = ((i / d) as isize / n, (i / d) as isize % n, j * d + i % d);
            let taps = (0..9 * d).filter_map(|k| {
                let (r, q) = (row + (k / d / 3) as isize - 1, col + (k / d % 3) as isize - 1);
                let inside = (0..n).contains(&r) && (0..n).contains(&q);
                let h = || h[(r * n + q) as usize * d + k % d];
                inside.then(|| self.filters[o * 9 * d + k] * h())
            });
            let sum = R::sum(taps.chain([self.bias[o]]));
            R::of(1.0 - share) * h[i] + R::of(share) * sum
        };
        (0..h.len()).map(element).collect()
    }
}

impl QuantisePyramid {
    /// Whether the kernel takes maps of this side and width.
    pub fn fits(&self, side: usize, width: usize) -> bool {
        side <= SIDE && width <= WIDTH && self.sides.len() <= SCALES
    }

    /// Tokens of a map.
    fn tokens(&self) -> usize {
        self.sides.iter().map(|p| p * p).sum()
    }

    /// Walks through the scales of one map, of which the first `kept` take away what they find;
    /// `choose(pooled vectors)` gives their codes, `left(rest)` hears what a scale leaves.
    fn walk<R: Real>(
        &self,
        given: &Given<'_, R>,
        (f, kept): (&[R], i32),
        mut choose: impl FnMut(&[R]) -> Vec<i32>,
        mut left: impl FnMut(&[R]),
    ) -> Vec<i32> {
        let mut rest = f.to_vec();
        let mut all = Vec::with_capacity(self.tokens());
        for ((&p, &phi), k) in self.sides.iter().zip(&self.phis).zip(0..) {
            let tokens = match p == given.side {
                true => choose(&rest),
                false => choose(&given.resized(Map::Area, &rest, given.side, p)),
            };
            let codes: Vec<R> = tokens.iter().flat_map(|&t| given.code(t)).collect();
            let up = match p == given.side {
                true => codes,
                false => given.resized(Map::Bicubic, &codes, p, given.side),
            };
            let adds = if k < kept { given.phi(phi, self.share, &up) } else { Vec::new() };
            for (rest, h) in rest.iter_mut().zip(adds) {
                *rest = *rest - h;
            }
            left(&rest);
            all.extend(tokens);
        }
        all
    }

    /// Why tokens are not acceptable for maps of which each keeps so many scales, all if not said.
    fn refusal(&self, x: &[In<'_, f64>], kept: &[i32], got: &[Vec<i32>]) -> Option<String> {
        let exact: Vec<Vec<Running>> =
            x.iter().map(|x| x.r().iter().map(|&v| Running::exact(v)).collect()).collect();
        let exact: Vec<In<'_, Running>> =
            x.iter().zip(&exact).map(|(x, data)| In::real(x.shape, data)).collect();
        let (given, d) = (Given::new(&exact), x[0].shape.last());
        let n = given.side * given.side * d;
        let maps = exact[0].r().chunks(n.max(1)).zip(got.first()?.chunks(self.tokens().max(1)));
        let mut why = None;
        for (b, (f, tokens)) in maps.enumerate() {
            // What was chosen decides what is left for the next scale.
            let mut at = 0;
            let kept = kept.get(b).copied().unwrap_or(i32::MAX);
            let choose = |q: &[Running]| {
                let own = &tokens[at..at + q.len() / d];
                for (i, (v, &token)) in q.chunks(d).zip(own).enumerate() {
                    let refused = self.nearest().refusal(v, x[1].r(), token);
                    why = why.take().or(refused.map(|w| format!("map {b}, token {}: {w}", at + i)));
                }
                at += own.len();
                own.to_vec()
            };
            self.walk(&given, (f, kept), choose, |_| ());
        }
        why
    }

    fn nearest(&self) -> NearestCode {
        NearestCode { cosine: self.cosine }
    }
}

impl Op for QuantisePyramid {
    const NAME: &'static str = "quantise_pyramid";
    const INPUTS: RangeInclusive<usize> = 4..=4;
    const COMPOSED: Option<Composed<Self>> = Some(composed::quantise_pyramid);
    const INT_OUTPUTS: &'static [usize] = &[0];
    const DIFF: Diff = Diff::No("tokens have no derivative; straight-through is the caller's");
    // In f32 alone: what a scale leaves is the next one's input, as VAR keeps it out of autocast.
    const CUDA: Kernels<Self> = kernels!([f32], |op, q, x, y| {
        let (batch, side, width) = (x[0].shape.dims()[0], x[0].shape.dims()[1], x[0].shape.last());
        let ([low, high, phis], [keep, share]) = op.words(Self::NAME, [side, width])?;
        let (codes, filters) = (x[1].shape.dims()[0], x[3].shape.len() / width.max(1));
        let (scales, tokens, grid) =
            (op.sides.len(), op.tokens(), Grid { threads: [512, 1, 1], ..block_per_job(q, batch) });
        let [f, book, w, b] = [0, 1, 2, 3].map(|i| x[i].get::<T>());
        launch::quantise_pyramid_fwd(
            q,
            grid,
            &mut y[0].get::<i32>()?,
            &f?,
            &book?,
            &w?,
            &b?,
            batch,
            side,
            width,
            codes,
            tokens,
            scales,
            filters,
            low,
            high,
            phis,
            keep,
            share,
            op.cosine,
        )
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let found = || x.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let wrong =
            |what: &str| Err(Error::shape(Self::NAME, format!("{what}; found {}", found())));
        let [batch, h, w, d] = match *x[0].dims() {
            [b, h, w, d] => [b, h, w, d],
            _ => return wrong("wants maps [B, H, H, d]"),
        };
        if h != w || d == 0 || x[1].rank() != 2 || x[1].last() != d || x[1].is_empty() {
            return wrong("wants maps [B, H, H, d] and a codebook [V, d]");
        }
        let rows = x[3].len();
        let fits = x[2].dims() == [rows, 3, 3, d] && x[3].dims() == [rows];
        let known = self.phis.iter().all(|j| rows == 0 || (j + 1) * d <= rows);
        if !fits || !rows.is_multiple_of(d) || !known || self.phis.len() != self.sides.len() {
            return wrong("wants filters [J d, 3, 3, d] and biases [J d] of every phi");
        }
        if self.sides.iter().any(|&p| p == 0 || p > h || p > 255) {
            return wrong(&format!("scales {:?} do not fit", self.sides));
        }
        Ok(vec![[batch, self.tokens()].into()])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (given, d) = (Given::new(x), x[0].shape.last());
        let n = given.side * given.side * d;
        let maps = x[0].r().chunks(n.max(1)).zip(y[0].i().chunks_mut(self.tokens().max(1)));
        for (f, y) in maps {
            let nearest = |q: &[R]| {
                q.chunks(d).map(|v| self.nearest().search(v, given.book)).collect::<Vec<_>>()
            };
            y.copy_from_slice(&self.walk(&given, (f, i32::MAX), nearest, |_| ()));
        }
    }
    fn refuses(&self, x: &[In<'_, f64>], got: &[Vec<i32>]) -> Option<String> {
        self.refusal(x, &[], got)
    }
    fn cases() -> Cases {
        Cases {
            named: vec![
                case("t0", (3, 4, 16), 40, &[1, 2, 3, 4], 4),
                case("odd", (2, 5, 7), 33, &[1, 3, 4, 5], 2),
                case("no_phi", (2, 3, 5), 9, &[2, 3], 0),
                case("one", (1, 1, 1), 1, &[1], 1),
                case("no_maps", (0, 4, 4), 6, &[1, 4], 1),
                case("wide", (1, 8, 32), 70, &[1, 2, 5, 8], 2),
                Case {
                    op: Box::new(QuantisePyramid { cosine: true, ..scales(&[1, 2, 4], 1) }),
                    ..case("cosine", (1, 4, 6), 20, &[1, 2, 4], 1)
                },
            ],
            draw: |d| {
                let side = d.size(1, 6);
                let sides = [d.size(1, side), side];
                let shape = (d.size(1, 2), side, d.size(1, 12));
                case("drawn", shape, d.size(1, 50), &sides, d.size(0, 2))
            },
            bench: vec![case("paper", (8, 16, 32), 4096, &[1, 2, 3, 4, 5, 6, 8, 10, 13, 16], 4)],
        }
    }
}

/// Scales of these sides that share `filters` convolutions evenly.
fn scales(sides: &[usize], filters: usize) -> QuantisePyramid {
    let n = sides.len().max(1);
    let phis = (0..sides.len()).map(|k| k * filters / n).collect();
    QuantisePyramid { sides: sides.to_vec(), phis, share: 0.5, cosine: false }
}

fn case(
    name: &str,
    (b, side, d): (usize, usize, usize),
    codes: usize,
    sides: &[usize],
    filters: usize,
) -> Case {
    let rows = filters * d;
    // Filters of about the size of trained ones.
    let filter = Input::uniform([rows, 3, 3, d], -0.1, 0.1);
    let inputs = vec![
        Input::normal([b, side, side, d]),
        Input::normal([codes, d]),
        filter,
        Input::uniform([rows], -0.1, 0.1),
    ];
    Case::new(name, scales(sides, filters), inputs)
}
