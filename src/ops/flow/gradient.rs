//! The gradient of [`super::FlowLoss`] to u, in one pass over the maps.

use std::ops::RangeInclusive;

use super::{MAPS, MOST, Sample, check, extents, negatives};
use crate::device::cpu;
use crate::device::launch::flow as launch;
use crate::error::Result;
use crate::ops::composed::{self, Composed};
use crate::ops::cuda::{Kernels, kernels, over_elements};
use crate::ops::{Case, Cases, CpuFace, Diff, FIRST_ORDER, In, Input, Op, Out, Real};
use crate::tensor::Shape;

/// The gradient to u: maps u, f, eps, du/dt, t - r `[B]`, the factors [B, 1 + 2 N], the gradient
/// `[B]` of the losses, and N maps f_n.
#[derive(Clone, Debug)]
pub struct FlowLossVjp {
    /// As in [`super::FlowLoss`].
    pub sign: f64,
}

impl FlowLossVjp {
    /// The gradient of one sample.
    fn row<R: Real>(&self, at: &Sample<'_, R>, factors: &[R], gy: R, gu: &mut [R]) {
        let (sign, count) = (R::of(self.sign), at.negatives.len());
        for (i, gu) in gu.iter_mut().enumerate() {
            let pull = factors[0] * (at.u[i] - at.anchor(sign, i));
            let push = (0..count).map(|n| {
                let c = factors[1 + count + n] * at.towards(n, i);
                factors[1 + n] * (at.u[i] - c)
            });
            *gu = gy * R::sum([pull].into_iter().chain(push));
        }
    }
}

impl Op for FlowLossVjp {
    const NAME: &'static str = "flow_loss_vjp";
    const INPUTS: RangeInclusive<usize> = 7..=7 + MOST;
    const COMPOSED: Option<Composed<Self>> = Some(composed::flow_loss_vjp);
    const DIFF: Diff = FIRST_ORDER;
    const F32_INPUTS: &'static [usize] = &[4, 5, 6];
    const CPU: Option<CpuFace<Self>> = Some(|op, x, gu| {
        let ((_, cols), k) = (extents(x[0].shape), x[5].shape.last());
        cpu::par_rows(gu[0].r(), cols, |first, part| {
            for (i, gu) in part.chunks_exact_mut(cols.max(1)).enumerate() {
                let b = first + i;
                let (factors, gy) = (&x[5].r()[b * k..(b + 1) * k], x[6].r()[b]);
                op.row(&Sample::new(x, b, 7), factors, gy, gu);
            }
        });
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, gu| {
        let (rows, cols) = extents(x[0].shape);
        let [u, f, eps, dudt] = [0, 1, 2, 3].map(|i| x[i].get::<T>());
        let [span, factors, gy] = [4, 5, 6].map(|i| x[i].get::<f32>());
        let ([n0, n1, n2, n3], n) = (negatives::<T>(q, &x[7..])?, x.len() - 7);
        let (gu, grid) = (&mut gu[0].get::<T>()?, over_elements(q, rows * cols));
        launch::flow_loss_vjp(
            q,
            grid,
            gu,
            &u?,
            &f?,
            &eps?,
            &dudt?,
            &span?,
            &factors?,
            &gy?,
            &n0,
            &n1,
            &n2,
            &n3,
            rows,
            cols,
            n,
            op.sign as f32,
        )
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let (rows, n) = (x[0].dims().first().copied().unwrap_or(0), x.len() - 7);
        let maps: Vec<&Shape> = x[..4].iter().chain(&x[7..]).copied().collect();
        let others = [
            ("t - r", x[4], vec![rows]),
            ("factors", x[5], vec![rows, 1 + 2 * n]),
            ("gy", x[6], vec![rows]),
        ];
        check(Self::NAME, &maps, &others).map(|(shape, _)| vec![shape])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], gu: &mut [Out<'_, R>]) {
        let ((rows, cols), k) = (extents(x[0].shape), x[5].shape.last());
        for b in 0..rows {
            let gu = &mut gu[0].r()[b * cols..(b + 1) * cols];
            let factors = &x[5].r()[b * k..(b + 1) * k];
            self.row(&Sample::new(x, b, 7), factors, x[6].r()[b], gu);
        }
    }
    fn cases() -> Cases {
        Cases {
            named: MAPS
                .iter()
                .zip([4, 2, 1, 0, 2])
                .map(|((name, s), n)| vjp_case(name, s, n))
                .collect(),
            draw: |d| vjp_case("drawn", &[d.size(1, 4), d.size(1, 90)], d.size(0, MOST)),
            bench: vec![vjp_case("reference", &[32, 16, 16, 32], MOST)],
        }
    }
}

fn vjp_case(name: &str, s: &[usize], n: usize) -> Case {
    let map = || Input::normal(s);
    let times = Input::uniform([s[0]], 0.0, 1.0);
    let factors = Input::normal([s[0], 1 + 2 * n]);
    let mut inputs = vec![map(), map(), map(), map(), times, factors, Input::normal([s[0]])];
    inputs.extend((0..n).map(|_| map()));
    Case::new(name, FlowLossVjp { sign: 1.0 }, inputs)
}
