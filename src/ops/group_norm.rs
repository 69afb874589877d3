//! Group norm over channels-last maps, with the SiLU that nearly always follows it.
//!
//! h = (x - mean) rstd within an image's group of channels, u = h w + b, y = u or u sigmoid(u). The
//! map S(v) = rstd (v - mean(v) - h mean(h v)) is symmetric, hence with a(u) the activation's slope
//!   dy = a(u) (w S(dx) + h dw + db),  gx = S(w a(u) gy),  gw = sum a(u) gy h,  gb = sum a(u) gy.

mod cpu;
mod cuda;

use std::ops::RangeInclusive;

pub(super) use cuda::statistics;

use super::composed::{self, Composed};
use super::cuda::Kernels;
use super::{
    Case, Cases, CpuFace, Diff, FIRST_ORDER, Grads, In, Input, Op, Out, Real, Saved, Saves, call,
    run,
};
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

/// x [B, H, W, C], w `[C]`, b `[C]` to y [B, H, W, C]. Second output: mean and rstd, [B, 2,
/// groups].
#[derive(Clone, Debug)]
pub struct GroupNorm {
    /// Groups of C / groups neighbouring channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// Tangent of [`GroupNorm`], from (x, statistics, w, b, dx, dw, db).
#[derive(Clone, Debug)]
pub struct GroupNormJvp(pub GroupNorm);

/// Gradients (gx, gw, gb) of [`GroupNorm`], from (x, statistics, w, b, gy).
#[derive(Clone, Debug)]
pub struct GroupNormVjp(pub GroupNorm);

/// u, or u sigmoid(u).
#[inline(always)]
fn act<R: Real>(silu: bool, u: R) -> R {
    if silu { u * u.sigmoid() } else { u }
}

/// The activation's slope at u.
#[inline(always)]
fn slope<R: Real>(silu: bool, u: R) -> R {
    if !silu {
        return R::of(1.0);
    }
    let s = u.sigmoid();
    s * (R::of(1.0) + u * (R::of(1.0) - s))
}

impl GroupNorm {
    /// Checks (x, w, b) for `op`; the shape of the statistics.
    fn fit(&self, op: &'static str, x: &Shape, wb: [&Shape; 2]) -> Result<Shape> {
        let c = x.last();
        let grouped = self.groups > 0 && c > 0 && c.is_multiple_of(self.groups);
        if x.rank() != 4 || !grouped || wb.iter().any(|s| s.dims() != [c]) {
            let what = format!(
                "wants x [B, H, W, C], C a multiple of {} groups, w [C], b [C]; found {x}, {}, {}",
                self.groups, wb[0], wb[1]
            );
            return Err(Error::shape(op, what));
        }
        Ok(Shape::from([x.dims()[0], 2, self.groups]))
    }

    /// Group of channel c.
    fn group(&self, c: usize, channels: usize) -> usize {
        c / (channels / self.groups)
    }

    /// S(v) of one image's group as (mean of v, mean of h v), of all of its groups.
    fn moments<R: Real>(&self, c: usize, v: impl Fn(usize) -> R, h: &[R]) -> Vec<[R; 2]> {
        let inv = R::of(1.0 / (h.len() / self.groups) as f64);
        let moments = |g: usize| {
            let own = || (0..h.len()).filter(move |i| self.group(i % c, c) == g);
            [R::sum(own().map(&v)) * inv, R::sum(own().map(|i| v(i) * h[i])) * inv]
        };
        (0..self.groups).map(moments).collect()
    }
}

/// What one image's derivative in the reference starts from.
struct Image<'a, R> {
    /// The normalised image.
    h: Vec<R>,
    /// h w + b.
    u: Vec<R>,
    rstd: &'a [R],
    at: std::ops::Range<usize>,
}

/// The images of (x, statistics, w, b).
fn images<'a, R: Real>(op: &GroupNorm, x: &[In<'a, R>]) -> Vec<Image<'a, R>> {
    let (d, g) = (x[0].shape.dims(), op.groups);
    let (c, len) = (d[3], d[1] * d[2] * d[3]);
    let image = |i: usize| {
        let (mean, rstd) = x[1].r()[2 * g * i..2 * g * (i + 1)].split_at(g);
        let at = i * len..(i + 1) * len;
        let own = x[0].r()[at.clone()].iter().enumerate();
        let h: Vec<R> =
            own.map(|(i, &x)| (x - mean[op.group(i % c, c)]) * rstd[op.group(i % c, c)]).collect();
        let u = (0..len).map(|i| h[i] * x[2].r()[i % c] + x[3].r()[i % c]).collect();
        Image { h, u, rstd, at }
    };
    (0..d[0]).map(image).collect()
}

impl Op for GroupNorm {
    const NAME: &'static str = "group_norm";
    const INPUTS: RangeInclusive<usize> = 3..=3;
    const COMPOSED: Option<Composed<Self>> = Some(composed::group_norm);
    const SAVES: Saves = Saves::inputs(&[0, 1, 2]).and_extras();
    const CPU: Option<CpuFace<Self>> = Some(cpu::forward);
    const CUDA: Kernels<Self> = cuda::FORWARD;
    const F32_OUTPUTS: &'static [usize] = &[1];

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let [image, w, b] = x else { return Err(Error::shape(Self::NAME, "wants x, w, b")) };
        let stats = self.fit(Self::NAME, image, [w, b])?;
        Ok(vec![(*image).clone(), stats])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (d, g) = (x[0].shape.dims(), self.groups);
        let (c, len) = (d[3], d[1] * d[2] * d[3]);
        let inv = R::of(1.0 / (len / g) as f64);
        for i in 0..d[0] {
            let v = &x[0].r()[i * len..(i + 1) * len];
            for group in 0..g {
                let own = || (0..len).filter(move |j| self.group(j % c, c) == group);
                let mean = R::sum(own().map(|j| v[j])) * inv;
                let var = R::sum(own().map(|j| (v[j] - mean) * (v[j] - mean))) * inv;
                let rstd = R::of(1.0) / (var + R::of(self.eps)).sqrt();
                y[1].r()[2 * g * i + group] = mean;
                y[1].r()[2 * g * i + g + group] = rstd;
                for j in own() {
                    let u = (v[j] - mean) * rstd * x[1].r()[j % c] + x[2].r()[j % c];
                    y[0].r()[i * len + j] = act(self.silu, u);
                }
            }
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        if dx.iter().all(Option::is_none) {
            return Ok(None);
        }
        let (x, w, b) = (at.x(0)?, at.x(1)?, at.x(2)?);
        let zero = |like: &Tensor| Tensor::zeros(like.dtype(), like.shape());
        let d = |i: usize, like: &Tensor| dx[i].cloned().unwrap_or_else(|| zero(like));
        let (dx, dw, db) = (d(0, x), d(1, w), d(2, b));
        let op = GroupNormJvp(self.clone());
        Ok(Some(call(&op, &[x, at.extra(0)?, w, b, &dx, &dw, &db])?))
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
        let op = GroupNormVjp(self.clone());
        let all = run(&op, &[at.x(0)?, at.extra(0)?, at.x(1)?, at.x(2)?, gy])?;
        Ok(all.into_iter().zip(want).map(|(g, &want)| want.then_some(g)).collect())
    }
    fn cases() -> Cases {
        let make = |op: GroupNorm, x: [usize; 4]| (op, with_channels(x));
        Cases {
            named: cases_of(make),
            draw: |d| {
                let (op, x) = drawn(d);
                Case::new("drawn", op, with_channels(x))
            },
            bench: bench_of(make),
        }
    }
}

impl Op for GroupNormJvp {
    const NAME: &'static str = "group_norm_jvp";
    const INPUTS: RangeInclusive<usize> = 7..=7;
    const DIFF: Diff = FIRST_ORDER;
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| match op.0.silu {
        true => cpu::jvp::<true>(&op.0, x, y[0].r()),
        false => cpu::jvp::<false>(&op.0, x, y[0].r()),
    });
    const CUDA: Kernels<Self> = cuda::TANGENT;
    const F32_INPUTS: &'static [usize] = &[1];

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let [image, stats, w, b, dx, dw, db] = x else {
            return Err(Error::shape(Self::NAME, "wants x, statistics, w, b, dx, dw, db"));
        };
        let fits = self.0.fit(Self::NAME, image, [w, b])? == **stats;
        if !fits || dx != image || dw != w || db != b {
            let what = format!("statistics {stats} or a tangent do not fit x {image}");
            return Err(Error::shape(Self::NAME, what));
        }
        Ok(vec![(*image).clone()])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let c = x[0].shape.last();
        for image in images(&self.0, x) {
            let dx = &x[4].r()[image.at.clone()];
            let moments = self.0.moments(c, |i| dx[i], &image.h);
            for (i, y) in y[0].r()[image.at.clone()].iter_mut().enumerate() {
                let g = self.0.group(i % c, c);
                let (h, [m, mh]) = (image.h[i], moments[g]);
                let dh = image.rstd[g] * (dx[i] - m - h * mh);
                let du = x[2].r()[i % c] * dh + h * x[5].r()[i % c] + x[6].r()[i % c];
                *y = slope(self.0.silu, image.u[i]) * du;
            }
        }
    }
    fn cases() -> Cases {
        let make = |op: GroupNorm, x: [usize; 4]| {
            let mut inputs = with_stats(&op, x);
            inputs.extend(with_channels(x));
            (GroupNormJvp(op), inputs)
        };
        Cases {
            named: cases_of(make),
            draw: |d| {
                let (op, x) = drawn(d);
                let mut inputs = with_stats(&op, x);
                inputs.extend(with_channels(x));
                Case::new("drawn", GroupNormJvp(op), inputs)
            },
            bench: vec![],
        }
    }
}

impl Op for GroupNormVjp {
    const NAME: &'static str = "group_norm_vjp";
    const INPUTS: RangeInclusive<usize> = 5..=5;
    const DIFF: Diff = FIRST_ORDER;
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| match op.0.silu {
        true => cpu::vjp::<true>(&op.0, x, y),
        false => cpu::vjp::<false>(&op.0, x, y),
    });
    const CUDA: Kernels<Self> = cuda::BACKWARD;
    const F32_INPUTS: &'static [usize] = &[1];

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let [image, stats, w, b, gy] = x else {
            return Err(Error::shape(Self::NAME, "wants x, statistics, w, b, gy"));
        };
        if self.0.fit(Self::NAME, image, [w, b])? != **stats || gy != image {
            let what = format!("statistics {stats} or gy {gy} do not fit x {image}");
            return Err(Error::shape(Self::NAME, what));
        }
        Ok(vec![(*image).clone(), (*w).clone(), (*b).clone()])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let c = x[0].shape.last();
        let mut terms = vec![(Vec::new(), Vec::new()); c];
        for image in images(&self.0, x) {
            let (h, gy) = (&image.h, &x[4].r()[image.at.clone()]);
            let gu: Vec<R> =
                gy.iter().zip(&image.u).map(|(&g, &u)| g * slope(self.0.silu, u)).collect();
            let v = |i: usize| gu[i] * x[2].r()[i % c];
            let moments = self.0.moments(c, v, h);
            for (i, gx) in y[0].r()[image.at.clone()].iter_mut().enumerate() {
                let g = self.0.group(i % c, c);
                let [m, mh] = moments[g];
                *gx = image.rstd[g] * (v(i) - m - h[i] * mh);
                terms[i % c].0.push(gu[i] * h[i]);
                terms[i % c].1.push(gu[i]);
            }
        }
        for (i, (gw, gb)) in terms.into_iter().enumerate() {
            y[1].r()[i] = R::sum(gw.into_iter());
            y[2].r()[i] = R::sum(gb.into_iter());
        }
    }
    fn cases() -> Cases {
        let make = |op: GroupNorm, x: [usize; 4]| {
            let mut inputs = with_stats(&op, x);
            inputs.push(Input::normal(x));
            (GroupNormVjp(op), inputs)
        };
        Cases {
            named: cases_of(make),
            draw: |d| {
                let (op, x) = drawn(d);
                let mut inputs = with_stats(&op, x);
                inputs.push(Input::normal(x));
                Case::new("drawn", GroupNormVjp(op), inputs)
            },
            bench: bench_of(make),
        }
    }
}

fn with_channels(x: [usize; 4]) -> Vec<Input> {
    vec![Input::normal(x), Input::normal([x[3]]), Input::normal([x[3]])]
}

/// (x, statistics, w, b): any statistics will do, since a derivative kernel takes them as given.
fn with_stats(op: &GroupNorm, x: [usize; 4]) -> Vec<Input> {
    let mut inputs = with_channels(x);
    inputs.insert(1, Input::uniform([x[0], 2, op.groups], 0.5, 1.5));
    inputs
}

fn cases_of<O: Op>(make: fn(GroupNorm, [usize; 4]) -> (O, Vec<Input>)) -> Vec<Case> {
    let case = |name: &str, groups, silu, x| {
        let (op, inputs) = make(GroupNorm { groups, eps: 1e-6, silu }, x);
        Case::new(name, op, inputs)
    };
    vec![
        case("silu", 2, true, [2, 3, 5, 6]),
        case("plain", 3, false, [2, 4, 3, 6]),
        case("instance", 5, true, [1, 4, 4, 5]),
        case("one_group", 1, false, [3, 2, 2, 7]),
        case("vectors", 2, true, [2, 5, 5, 16]),
        case("past_a_stretch", 4, true, [2, 3, 7, 32]),
        case("no_images", 2, true, [0, 3, 3, 4]),
        case("past_a_chunk", 2, true, [2, 33, 34, 16]),
    ]
}

fn bench_of<O: Op>(make: fn(GroupNorm, [usize; 4]) -> (O, Vec<Input>)) -> Vec<Case> {
    let (op, inputs) = make(GroupNorm { groups: 2, eps: 1e-6, silu: true }, [8, 64, 64, 16]);
    vec![Case::new("demo_64", op, inputs)]
}

fn drawn(d: &mut super::Draw<'_>) -> (GroupNorm, [usize; 4]) {
    let groups = d.size(1, 4);
    let op = GroupNorm { groups, eps: 1e-5, silu: d.coin() };
    (op, [d.size(1, 3), d.size(2, 6), d.size(2, 6), groups * d.size(1, 9)])
}
