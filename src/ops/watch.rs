//! Whether a training step may happen, decided where its numbers are: a step on a GPU that asked
//! the CPU would wait for itself.

use std::ops::RangeInclusive;

use super::cuda::{Kernels, kernels, over_elements};
use super::{Case, Cases, Diff, In, Input, Op, Out, Real};
use crate::device::kernel::Grid;
use crate::device::launch::watch as launch;
use crate::error::{Error, Result};
use crate::tensor::Shape;

/// Why no derivative is taken.
const BETWEEN: Diff = Diff::No("a step is judged outside of any derivative");

/// (numbers of a step `[n]`, norm of its gradients `[1]`, running mean of norms `[1]`) to
/// (gate `[1]`, running mean `[1]`).
///
/// The gate is the norm if all numbers are finite and the norm is no spike, else NaN, which
/// [`AdamW`](super::optim::AdamW) and [`Commit`] take as a step that changes nothing. The mean
/// begins at 0, which is none yet; a mean that is not finite lets no step happen.
#[derive(Clone, Debug)]
pub struct Watch {
    /// A norm so many times the mean is a spike; 0 looks for none.
    pub spike: f64,
    /// How far the mean goes towards the norm.
    pub follow: f64,
    /// Whether a step that does not happen is the last one: the mean becomes NaN.
    pub ends: bool,
}

/// (before, after, gate `[1]`) to what holds after a step: `after`, or `before` where the gate is
/// not finite.
#[derive(Clone, Debug)]
pub struct Commit;

impl Op for Watch {
    const NAME: &'static str = "watch";
    const INPUTS: RangeInclusive<usize> = 3..=3;
    const DIFF: Diff = BETWEEN;
    const CUDA: Kernels<Self> = kernels!([f32], |op, q, x, y| {
        let [gate, mean] = y else {
            return Err(Error::Internal("watch has two outputs".into()));
        };
        let (mut gate, mut next) = (gate.get::<T>()?, mean.get::<T>()?);
        let (felt, norm, mean) = (x[0].get::<T>()?, x[1].get::<T>()?, x[2].get::<T>()?);
        let (spike, follow, ends) = (op.spike as f32, op.follow as f32, i32::from(op.ends));
        let (grid, n) = (Grid::line(1, 32), x[0].shape.len());
        launch::watch_fwd(
            q, grid, &mut gate, &mut next, &felt, &norm, &mean, n, spike, follow, ends,
        )
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        match (x[0].dims(), x[1].dims(), x[2].dims()) {
            ([_], [1], [1]) => Ok(vec![[1].into(); 2]),
            _ => {
                let what = format!("wants [n], [1], [1]; found {}, {}, {}", x[0], x[1], x[2]);
                Err(Error::shape(Self::NAME, what))
            }
        }
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (norm, mean) = (x[1].r()[0], x[2].r()[0]);
        let finite = |v: &R| v.val().is_finite();
        let spikes =
            self.spike > 0.0 && mean.val() > 0.0 && norm.val() > (R::of(self.spike) * mean).val();
        let well = x[0].r().iter().all(finite) && finite(&norm) && finite(&mean) && !spikes;
        let nan = R::of(f64::NAN);
        y[0].r()[0] = if well { norm } else { nan };
        y[1].r()[0] = match (well, self.ends) {
            (true, _) if mean.val() == 0.0 => norm,
            (true, _) => mean + R::of(self.follow) * (norm - mean),
            (false, true) => nan,
            (false, false) => mean,
        };
    }
    fn cases() -> Cases {
        let case = |name: &str, n: usize, spike: f64| {
            let op = Watch { spike, follow: 0.125, ends: n.is_multiple_of(2) };
            let few = [Input::uniform([1], 0.1, 2.0), Input::uniform([1], 0.5, 1.0)];
            Case::new(name, op, [vec![Input::normal([n])], few.to_vec()].concat())
        };
        Cases {
            named: vec![
                case("nothing_felt", 0, 0.0),
                case("one", 1, 50.0),
                case("some", 8, 0.0),
                case("more_than_a_warp", 77, 50.0),
            ],
            draw: |d| {
                let op = Watch { spike: d.pick(&[0.0, 40.0]), follow: 0.01, ends: d.coin() };
                let few = [Input::uniform([1], 0.1, 2.0), Input::uniform([1], 0.5, 1.0)];
                let felt = Input::normal([d.size(0, 90)]);
                Case::new("drawn", op, [vec![felt], few.to_vec()].concat())
            },
            bench: vec![],
        }
    }
}

impl Op for Commit {
    const NAME: &'static str = "commit";
    const INPUTS: RangeInclusive<usize> = 3..=3;
    const DIFF: Diff = BETWEEN;
    const CUDA: Kernels<Self> = kernels!([f32], |_, q, x, y| {
        let (n, mut y) = (x[0].shape.len(), y[0].get::<T>()?);
        let (before, after, gate) = (x[0].get::<T>()?, x[1].get::<T>()?, x[2].get::<f32>()?);
        launch::commit_fwd(q, over_elements(q, n), &mut y, &before, &after, &gate, n)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        if x[0] != x[1] || x[2].dims() != [1] {
            let what = format!("wants two alike and [1]; found {}, {}, {}", x[0], x[1], x[2]);
            return Err(Error::shape(Self::NAME, what));
        }
        Ok(vec![x[0].clone()])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let from = usize::from(x[2].r()[0].val().is_finite());
        y[0].r().copy_from_slice(x[from].r());
    }
    fn cases() -> Cases {
        let case = |name: &str, s: &[usize]| {
            let gate = Input::uniform([1], 0.1, 2.0);
            Case::new(name, Commit, vec![Input::normal(s), Input::normal(s), gate])
        };
        Cases {
            named: vec![
                case("nothing", &[0]),
                case("one", &[1]),
                case("odd", &[3, 7]),
                case("past_a_chunk", &[16_390]),
            ],
            draw: |d| {
                let s = Shape::from([d.size(1, 9), d.size(1, 40)]);
                let gate = Input::uniform([1], 0.1, 2.0);
                Case::new("drawn", Commit, vec![Input::normal(&s), Input::normal(&s), gate])
            },
            bench: vec![],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{call, run};
    use super::*;
    use crate::tensor::Tensor;

    fn one(x: f32) -> Tensor {
        Tensor::new(vec![x], [1]).unwrap()
    }

    /// The gate and the mean, NaN being told apart.
    fn watched(op: &Watch, felt: &[f32], norm: f32, mean: f32) -> [Option<f32>; 2] {
        let felt = Tensor::new(felt.to_vec(), [felt.len()]).unwrap();
        let out = run(op, &[&felt, &one(norm), &one(mean)]).unwrap();
        [0, 1].map(|i| Some(out[i].f32s().unwrap()[0]).filter(|x| !x.is_nan()))
    }

    #[test]
    fn a_step_happens_unless_a_number_is_bad_or_the_norm_leaps() {
        let op = Watch { spike: 10.0, follow: 0.5, ends: false };
        assert_eq!(watched(&op, &[1.0], 3.0, 0.0), [Some(3.0), Some(3.0)]);
        assert_eq!(watched(&op, &[1.0], 3.0, 1.0), [Some(3.0), Some(2.0)]);
        assert_eq!(watched(&op, &[], 10.0, 1.0), [Some(10.0), Some(5.5)]);
        assert_eq!(watched(&op, &[], 10.5, 1.0), [None, Some(1.0)]);
        assert_eq!(watched(&op, &[1.0, f32::NAN], 1.0, 1.0), [None, Some(1.0)]);
        assert_eq!(watched(&op, &[], f32::INFINITY, 0.0), [None, Some(0.0)]);
        let last = Watch { ends: true, spike: 0.0, ..op };
        assert_eq!(watched(&last, &[], 1e30, 1.0)[0], Some(1e30));
        assert_eq!(watched(&last, &[f32::INFINITY], 1.0, 1.0), [None, None]);
        assert_eq!(watched(&last, &[0.0], 1.0, f32::NAN), [None, None]);
    }

    #[test]
    fn what_a_bad_step_made_is_not_kept() {
        let (a, b) = (one(1.0), one(f32::NAN));
        assert_eq!(call(&Commit, &[&a, &b, &b]).unwrap().f32s().unwrap(), [1.0]);
        assert_eq!(call(&Commit, &[&b, &a, &a]).unwrap().f32s().unwrap(), [1.0]);
    }
}
