//! Quantisation in training: what every scale of the pyramid leaves, and the gradients at codes and
//! phi. The path of small ops is `models::quantiser`.

use std::ops::RangeInclusive;

use super::{Given, QuantisePyramid, SIDE, WIDTH, packed, scales};
use crate::device::kernel::Grid;
use crate::device::launch::{pyramid as launch, pyramid_back as back};
use crate::error::{Error, Result};
use crate::ops::composed::{self, Composed};
use crate::ops::conv::Conv2d;
use crate::ops::cuda::{Kernels, block_per_job, kernels};
use crate::ops::elementwise::{ADD, Affine, Axpy, Mul, SUB};
use crate::ops::embed::{GatherRows, ScatterRows};
use crate::ops::layout::{Concat, Narrow};
use crate::ops::reduce::{SumTo, broadcast_into};
use crate::ops::resample::{Map, Resample};
use crate::ops::{
    Case, Cases, Diff, FIRST_ORDER, Grads, In, Input, Op, Out, Real, Saved, Saves, call, run,
};
use crate::tensor::{Shape, Tensor};

/// As [`QuantisePyramid`], with how many scales each sample keeps `[B]`, to what each scale leaves
/// of the maps [B, K, H, H, d], and the tokens [B, L] beside it. Scales that a sample does not keep
/// take nothing away.
///
/// The result is differentiated with the tokens fixed; what the maps' gradient then is passes
/// through to them.
#[derive(Clone, Debug)]
pub struct QuantiseRests(pub QuantisePyramid);

/// From the gradient at a result of [`QuantiseRests`], the tokens, codebook, filters and what is
/// kept: gradients at the tokens' vectors [B, L, d], and of each sample its share of those at the
/// filters [B, J d, 3, 3, d] and biases [B, J d].
#[derive(Clone, Debug)]
pub struct QuantiseRestsVjp(pub QuantisePyramid);

impl QuantisePyramid {
    /// The kernels' last arguments but nearness: sides, phis, shares of phi.
    pub(super) fn words(
        &self,
        op: &'static str,
        [side, width]: [usize; 2],
    ) -> Result<([u64; 3], [f32; 2])> {
        if !self.fits(side, width) {
            let what =
                format!("the kernel takes {SIDE} x {SIDE} x {WIDTH}, found maps {side} x {width}");
            return Err(Error::shape(op, what));
        }
        if !self.phis.is_sorted() {
            return Err(Error::shape(op, format!("phis {:?} decrease", self.phis)));
        }
        let [low, high] = packed(op, &self.sides)?;
        let phis = self.phis.iter().rev().fold(0, |word, &n| word << 4 | n as u64);
        Ok(([low, high, phis], [(1.0 - self.share) as f32, self.share as f32]))
    }

    /// Where each scale's tokens begin.
    fn begins(&self) -> Vec<usize> {
        let begin = |end: &mut usize, p: &usize| {
            *end += p * p;
            Some(*end - p * p)
        };
        self.sides.iter().scan(0, begin).collect()
    }

    /// The vectors of scale `k`, of those of all tokens [B, L, d], as a map [B, H, H, d].
    fn raised(&self, k: usize, codes: &Tensor, side: usize) -> Result<Tensor> {
        let (p, start) = (self.sides[k], self.begins()[k]);
        let own = call(&Narrow { axis: 1, start, len: p * p }, &[codes])?;
        let own = own.reshape([codes.shape().dims()[0], p, p, codes.shape().last()])?;
        match p == side {
            true => Ok(own),
            false => call(&Resample::new(Map::Bicubic, [p; 2], [side; 2]), &[&own]),
        }
    }

    /// The filters or biases of phi number `j`, whose first axis is J d.
    fn own(&self, j: usize, width: usize, all: &Tensor) -> Result<Tensor> {
        call(&Narrow { axis: 0, start: j * width, len: width }, &[all])
    }

    /// The tangent of what scale `k` adds, for tangents of the tokens' vectors, filters and biases.
    fn tangent(
        &self,
        k: usize,
        side: usize,
        (codes, w): (&Tensor, &Tensor),
        [dcodes, dw, db]: [Option<&Tensor>; 3],
    ) -> Result<Option<Tensor>> {
        let (width, j, conv) = (codes.shape().last(), self.phis[k], Conv2d::same(3));
        let up = dcodes.map(|d| self.raised(k, d, side)).transpose()?;
        if w.is_empty() {
            return Ok(up);
        }
        let linear = |up: &Tensor| {
            let mixed = call(&conv, &[up, &self.own(j, width, w)?])?;
            let kept = call(&Affine { scale: 1.0 - self.share, shift: 0.0 }, &[up])?;
            call(&Axpy { alpha: self.share }, &[&kept, &mixed])
        };
        let share = |x: Tensor| call(&Affine { scale: self.share, shift: 0.0 }, &[&x]);
        let map = self.raised(k, codes, side)?;
        let of_w = |d: &Tensor| share(call(&conv, &[&map, &self.own(j, width, d)?])?);
        let of_b = |d: &Tensor| broadcast_into(&share(self.own(j, width, d)?)?, map.shape());
        let terms = [
            up.as_ref().map(linear).transpose()?,
            dw.map(of_w).transpose()?,
            db.map(of_b).transpose()?,
        ];
        let mut terms = terms.into_iter().flatten();
        let Some(first) = terms.next() else { return Ok(None) };
        terms.try_fold(first, |a, b| call(&ADD, &[&a, &b])).map(Some)
    }
}

impl Op for QuantiseRests {
    const NAME: &'static str = "quantise_rests";
    const INPUTS: RangeInclusive<usize> = 5..=5;
    const INT_INPUTS: &'static [usize] = &[4];
    const INT_OUTPUTS: &'static [usize] = &[1];
    const COMPOSED: Option<Composed<Self>> = Some(composed::quantise_rests);
    const SAVES: Saves = Saves::inputs(&[1, 2, 4]).and_extras();
    // In f32 alone, as quantise_pyramid.
    const CUDA: Kernels<Self> = kernels!([f32], |op, q, x, y| {
        let op = &op.0;
        let (batch, side, width) = (x[0].shape.dims()[0], x[0].shape.dims()[1], x[0].shape.last());
        let ([low, high, phis], [keep, share]) = op.words(Self::NAME, [side, width])?;
        let (codes, filters) = (x[1].shape.dims()[0], x[3].shape.len() / width.max(1));
        let (scales, tokens) = (op.sides.len(), op.tokens());
        let grid = Grid { threads: [512, 1, 1], ..block_per_job(q, batch) };
        let [f, book, w, b] = [0, 1, 2, 3].map(|i| x[i].get::<T>());
        let [y, found] = y else {
            return Err(Error::Internal("quantise_rests has two outputs".into()));
        };
        launch::quantise_rests_fwd(
            q,
            grid,
            &mut y.get::<T>()?,
            &mut found.get::<i32>()?,
            &f?,
            &book?,
            &w?,
            &b?,
            &x[4].get::<i32>()?,
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
        let tokens = Op::shapes(&self.0, &x[..4])?;
        let d = x[0].dims();
        if x[4].dims() != &d[..1] {
            let what = format!("maps {} want scales kept [B], found {}", x[0], x[4]);
            return Err(Error::shape(Self::NAME, what));
        }
        let rests = Shape::from([&d[..1], &[self.0.sides.len()], &d[1..]].concat());
        Ok([vec![rests], tokens].concat())
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let [rests, found] = y else { return };
        let (op, given, d) = (&self.0, Given::new(x), x[0].shape.last());
        let n = given.side * given.side * d;
        let maps = x[0].r().chunks(n.max(1)).zip(found.i().chunks_mut(op.tokens().max(1)));
        let rests = rests.r().chunks_mut((op.sides.len() * n).max(1));
        for (((f, found), rests), &kept) in maps.zip(rests).zip(x[4].i()) {
            let nearest = |q: &[R]| {
                q.chunks(d).map(|v| op.nearest().search(v, given.book)).collect::<Vec<_>>()
            };
            let mut each = rests.chunks_mut(n.max(1));
            let left = |rest: &[R]| each.next().into_iter().for_each(|y| y.copy_from_slice(rest));
            found.copy_from_slice(&op.walk(&given, (f, kept), nearest, left));
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let &[b, _, side, _, d] = at.y_shape().dims() else { return Ok(None) };
        let (tokens, w) = (at.extra(0)?, at.x(2)?);
        let gather = |table: &Tensor| call(&GatherRows, &[table, tokens]);
        let codes = gather(at.x(1)?)?;
        let dcodes = dx[1].map(gather).transpose()?;
        let Some(dtype) = dx.iter().flatten().map(|t| t.dtype()).next() else { return Ok(None) };
        let mut rest = dx[0].cloned().unwrap_or(Tensor::zeros(dtype, [b, side, side, d]));
        let mut rests = Vec::with_capacity(self.0.sides.len());
        for k in 0..self.0.sides.len() {
            let own = [dcodes.as_ref(), dx[2], dx[3]];
            if let Some(adds) = self.0.tangent(k, side, (&codes, w), own)? {
                let kept = at.x(4)?.i32s()?.iter().map(|&n| f64::from(n > k as i32)).collect();
                let kept = Tensor::from_f64s(dtype, kept, [b, 1, 1, 1])?;
                rest = call(&SUB, &[&rest, &call(&Mul, &[&adds, &kept])?])?;
            }
            rests.push(rest.reshape([b, 1, side, side, d])?);
        }
        call(&Concat { axis: 1 }, &rests.iter().collect::<Vec<_>>()).map(Some)
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
        let &[b, k, side, _, d] = at.y_shape().dims() else { return Ok(vec![None; 5]) };
        let through = || -> Result<Tensor> {
            let sum = call(&SumTo { to: [b, 1, side, side, d].into() }, &[gy])?;
            sum.reshape([b, side, side, d])
        };
        let gf = want[0].then(|| if k == 0 { zeros(gy, at.shape(0)) } else { through() });
        if !want[1..4].contains(&true) {
            return Ok(vec![gf.transpose()?, None, None, None, None]);
        }
        let (tokens, rows) = (at.extra(0)?, at.shape(1).dims()[0]);
        let own =
            run(&QuantiseRestsVjp(self.0.clone()), &[gy, tokens, at.x(1)?, at.x(2)?, at.x(4)?])?;
        let [gcodes, gw, gb] = <[Tensor; 3]>::try_from(own)
            .map_err(|_| Error::Internal("quantise_rests_vjp has three outputs".into()))?;
        let over = |g: &Tensor, i: usize| {
            let shape = at.shape(i);
            call(&SumTo { to: [&[1], shape.dims()].concat().into() }, &[g])?.reshape(shape)
        };
        Ok(vec![
            gf.transpose()?,
            want[1].then(|| call(&ScatterRows { rows }, &[&gcodes, tokens])).transpose()?,
            want[2].then(|| over(&gw, 2)).transpose()?,
            want[3].then(|| over(&gb, 3)).transpose()?,
            None,
        ])
    }
    fn refuses(&self, x: &[In<'_, f64>], got: &[Vec<i32>]) -> Option<String> {
        self.0.refusal(&x[..4], x[4].i(), got)
    }
    fn cases() -> Cases {
        let case = |name: &str, s, codes, sides: &[usize], filters| {
            forward(name, s, codes, sides, filters)
        };
        Cases {
            named: vec![
                case("t0", (3, 4, 16), 40, &[1, 2, 3, 4], 4),
                case("odd", (2, 5, 7), 33, &[1, 3, 4, 5], 2),
                case("no_phi", (2, 3, 5), 9, &[2, 3], 0),
                case("one", (1, 1, 1), 1, &[1], 1),
                case("no_maps", (0, 4, 4), 6, &[1, 4], 1),
                case("wide", (1, 8, 32), 70, &[1, 2, 5, 8], 2),
            ],
            draw: |d| {
                let side = d.size(1, 6);
                let sides = [d.size(1, side), side];
                let shape = (d.size(1, 2), side, d.size(1, 12));
                forward("drawn", shape, d.size(1, 50), &sides, d.size(0, 2))
            },
            bench: vec![case("paper", (8, 16, 32), 4096, &[1, 2, 3, 4, 5, 6, 8, 10, 13, 16], 4)],
        }
    }
}

fn zeros(like: &Tensor, shape: &Shape) -> Result<Tensor> {
    crate::device::Device::of([like]).put(&Tensor::zeros(like.dtype(), shape))
}

type Extents = (usize, usize, usize);

fn forward(name: &str, shape: Extents, codes: usize, sides: &[usize], filters: usize) -> Case {
    let Case { mut inputs, .. } = super::case(name, shape, codes, sides, filters);
    inputs.push(Input::below([shape.0], sides.len() + 1));
    Case::new(name, QuantiseRests(scales(sides, filters)), inputs)
}

/// The transpose of a map of a resample, applied to gradients [m, m, d].
fn lowered<R: Real>(g: &[R], n: usize, m: usize, d: usize) -> Vec<R> {
    let bands = Map::Bicubic.matrix(n, m).unwrap_or_default();
    let line = |to: usize, f: &dyn Fn(usize) -> R| {
        let meets = bands.iter().enumerate().filter_map(|(i, band)| {
            let weight = to.checked_sub(band.start).and_then(|k| band.weights.get(k))?;
            Some(R::of(*weight) * f(i))
        });
        R::sum(meets)
    };
    let element = |i: usize| {
        let (row, col, c) = (i / d / n, i / d % n, i % d);
        line(row, &|r| line(col, &|q| g[(r * m + q) * d + c]))
    };
    (0..n * n * d).map(element).collect()
}

/// One sample of the way back.
struct Back<'a, R> {
    given: Given<'a, R>,
    share: R,
    keep: R,
}

impl<R: Real> Back<'_, R> {
    /// The element of a map, zero outside.
    fn tap(&self, map: &[R], [row, col]: [isize; 2], c: usize) -> R {
        let n = self.given.side as isize;
        match (0..n).contains(&row) && (0..n).contains(&col) {
            true => map[(row * n + col) as usize * self.given.width + c],
            false => R::of(0.0),
        }
    }

    /// The gradient at h for that at phi(h), number `j`.
    fn through(&self, j: usize, g: &[R]) -> Vec<R> {
        let (d, n) = (self.given.width, self.given.side as isize);
        let element = |i: usize| {
            let (row, col, c) = ((i / d) as isize / n, (i / d) as isize % n, i % d);
            let taps = (0..9 * d).filter_map(|k| {
                let at = [row + 1 - (k / d / 3) as isize, col + 1 - (k / d % 3) as isize];
                let inside = at.iter().all(|x| (0..n).contains(x));
                let w = || self.given.filters[((j * d + k % d) * 9 + k / d) * d + c];
                inside.then(|| w() * self.tap(g, at, k % d))
            });
            self.keep * g[i] + self.share * R::sum(taps)
        };
        (0..g.len()).map(element).collect()
    }

    /// Adds the gradients at filters [d, 9, d] and biases of a phi that saw h.
    fn weigh(&self, g: &[R], h: &[R], gw: &mut [R], gb: &mut [R]) {
        let (d, n) = (self.given.width, self.given.side);
        let pixels = || (0..n * n).map(|p| [(p / n) as isize, (p % n) as isize]);
        for (i, gw) in gw.iter_mut().enumerate() {
            let (o, t, c) = (i / d / 9, i / d % 9, i % d);
            let [down, across] = [(t / 3) as isize - 1, (t % 3) as isize - 1];
            let one = |[r, q]: [isize; 2]| {
                self.tap(g, [r, q], o) * self.tap(h, [r + down, q + across], c)
            };
            *gw = *gw + self.share * R::sum(pixels().map(one));
        }
        for (o, gb) in gb.iter_mut().enumerate() {
            *gb = *gb + self.share * R::sum(pixels().map(|at| self.tap(g, at, o)));
        }
    }
}

impl Op for QuantiseRestsVjp {
    const NAME: &'static str = "quantise_rests_vjp";
    const INPUTS: RangeInclusive<usize> = 5..=5;
    const INT_INPUTS: &'static [usize] = &[1, 4];
    const DIFF: Diff = FIRST_ORDER;
    const CUDA: Kernels<Self> = kernels!([f32], |op, q, x, y| {
        let op = &op.0;
        let &[batch, scales, side, _, width] = x[0].shape.dims() else {
            return Err(Error::Internal("gradients have five axes".into()));
        };
        let ([low, high, phis], [keep, share]) = op.words(Self::NAME, [side, width])?;
        let (codes, filters) = (x[2].shape.dims()[0], x[3].shape.dims()[0] / width.max(1));
        let grid = Grid { threads: [512, 1, 1], ..block_per_job(q, batch) };
        let [gy, book, w] = [0, 2, 3].map(|i| x[i].get::<T>());
        let [gcode, gw, gb] = y else {
            return Err(Error::Internal("quantise_rests_vjp has three outputs".into()));
        };
        back::quantise_rests_vjp(
            q,
            grid,
            &mut gcode.get::<T>()?,
            &mut gw.get::<T>()?,
            &mut gb.get::<T>()?,
            &gy?,
            &x[1].get::<i32>()?,
            &book?,
            &w?,
            &x[4].get::<i32>()?,
            batch,
            side,
            width,
            codes,
            op.tokens(),
            scales,
            filters,
            low,
            high,
            phis,
            keep,
            share,
        )
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let wrong = || {
            let found: Vec<String> = x.iter().map(ToString::to_string).collect();
            let wants = "gy [B, K, H, H, d], tokens [B, L], codes, filters and scales kept [B]";
            Err(Error::shape(Self::NAME, format!("wants {wants}; found {}", found.join(", "))))
        };
        let (&[b, k, side, _, d], &[rows, ..]) = (x[0].dims(), x[3].dims()) else { return wrong() };
        let map = Shape::from([b, side, x[0].dims()[3], d]);
        let fits = Op::shapes(&self.0, &[&map, x[2], x[3], &[rows].into()]);
        let fits = fits.is_ok_and(|tokens| tokens[0] == *x[1]) && x[4].dims() == [b];
        if !fits || k != self.0.sides.len() {
            return wrong();
        }
        let gw = Shape::from([&[b], x[3].dims()].concat());
        Ok(vec![[b, self.0.tokens(), d].into(), gw, [b, rows].into()])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (op, &[_, scales, side, _, width]) = (&self.0, x[0].shape.dims()) else { return };
        let [gcodes, gw, gb] = y else { return };
        let given = Given { side, width, book: x[2].r(), filters: x[3].r(), bias: &[] };
        let back = Back { given, share: R::of(op.share), keep: R::of(1.0 - op.share) };
        let (n, begins, filters) = (side * side * width, op.begins(), x[3].shape.dims()[0]);
        gw.r().fill(R::of(0.0));
        gb.r().fill(R::of(0.0));
        for (b, &kept) in x[4].i().iter().enumerate() {
            let tokens = &x[1].i()[b * op.tokens()..(b + 1) * op.tokens()];
            let mut g = vec![R::of(0.0); n];
            for k in (0..scales).rev() {
                let gy = &x[0].r()[(b * scales + k) * n..][..n];
                g.iter_mut().zip(gy).for_each(|(g, &gy)| *g = *g - gy);
                let (p, j) = (op.sides[k], op.phis[k]);
                let to = &mut gcodes.r()[(b * op.tokens() + begins[k]) * width..][..p * p * width];
                if kept <= k as i32 {
                    to.fill(R::of(0.0));
                    continue;
                }
                let mut down = g.clone();
                if filters > 0 {
                    let codes = tokens[begins[k]..begins[k] + p * p].iter();
                    let codes: Vec<R> = codes.flat_map(|&t| back.given.code(t)).collect();
                    let up = match p == side {
                        true => codes,
                        false => back.given.resized(Map::Bicubic, &codes, p, side),
                    };
                    let own = |rows: usize| (b * filters + j * width) * rows..;
                    let (gw, gb) = (&mut gw.r()[own(9 * width)], &mut gb.r()[own(1)]);
                    back.weigh(&g, &up, &mut gw[..width * 9 * width], &mut gb[..width]);
                    down = back.through(j, &g);
                }
                let down = if p == side { down } else { lowered(&down, p, side, width) };
                to.copy_from_slice(&down);
            }
        }
    }
    fn cases() -> Cases {
        Cases {
            named: vec![
                backward("t0", (3, 4, 16), 40, &[1, 2, 3, 4], 4),
                backward("odd", (2, 5, 7), 33, &[1, 3, 4, 5], 2),
                backward("no_phi", (2, 3, 5), 9, &[2, 3], 0),
                backward("one", (1, 1, 1), 1, &[1], 1),
                backward("no_maps", (0, 4, 4), 6, &[1, 4], 1),
                backward("wide", (1, 8, 32), 70, &[1, 2, 5, 8], 2),
            ],
            draw: |d| {
                let side = d.size(1, 6);
                let sides = [d.size(1, side), side];
                let shape = (d.size(1, 2), side, d.size(1, 12));
                backward("drawn", shape, d.size(1, 50), &sides, d.size(0, 2))
            },
            bench: vec![backward(
                "paper",
                (8, 16, 32),
                4096,
                &[1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
                4,
            )],
        }
    }
}

fn backward(
    name: &str,
    (b, side, d): Extents,
    codes: usize,
    sides: &[usize],
    filters: usize,
) -> Case {
    let op = scales(sides, filters);
    let inputs = vec![
        Input::normal([b, sides.len(), side, side, d]),
        Input::below([b, op.tokens()], codes),
        Input::normal([codes, d]),
        Input::uniform([filters * d, 3, 3, d], -0.1, 0.1),
        Input::below([b], sides.len() + 1),
    ];
    Case::new(name, QuantiseRestsVjp(op), inputs)
}
