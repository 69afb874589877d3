//! Attention and its tangent in one pass over the keys.
//!
//! With s' the scores' tangents and mean(a) = sum_j p_j a_j under p = softmax(s):
//!   o = mean(v),  o' = mean(s' v + v') - mean(s') o
//! so that every sum can be taken online, beside the softmax's.

use std::ops::RangeInclusive;

use super::cuda::{Job, LEAST_MMA, WIDEST, by_width, rows};
use super::sizes::{SIZES, Sizes, TIMED, drawn, sized};
use super::{Attention, Dims};
use crate::device::Held;
use crate::device::cuda::Queue;
use crate::device::kernel::{Bf16, Grid};
use crate::device::launch::attention_dual as launch;
use crate::error::{Error, Result};
use crate::ops::composed::{self, Composed};
use crate::ops::cuda::{CudaIn, CudaOut, Kernels, Precision, Variant, variant};
use crate::ops::{Case, Cases, Diff, FIRST_ORDER, In, Input, Op, Out, Real};
use crate::tensor::Shape;

/// The widest head that the tensor cores take: both sums of a query stay in registers.
pub(super) const WIDEST_MMA: usize = 64;

/// [`Attention`] and its tangent: from (q, k, v) and those of (dq, dk, dv) that are not zero, to o,
/// the log-sum-exp, and o'.
#[derive(Clone, Debug)]
pub struct AttentionDual {
    /// The op.
    pub of: Attention,
    /// Which tangents are given.
    pub given: [bool; 3],
}

impl AttentionDual {
    /// The given tangents by input, from what follows the values.
    fn tangents<'a, T>(&self, x: &'a [T]) -> [Option<&'a T>; 3] {
        let mut rest = x[3..].iter();
        self.given.map(|given| if given { rest.next() } else { None })
    }
}

fn outputs() -> Error {
    Error::Internal("attention and its tangent are three outputs".into())
}

/// A face at widths up to D: its entry, threads of a block, rows and columns of a tile.
macro_rules! face {
    ($name:ident: $entry:ident, $threads:expr, $rows:expr, $cols:expr) => {
        fn $name<T: Held + launch::$entry::Instance<D>, const D: i32>(
            op: &AttentionDual,
            queue: &Queue,
            x: &[CudaIn<'_>],
            out: &mut [CudaOut],
        ) -> Result<()> {
            let job = Job::new(&op.of, x)?;
            let [y, lse, dy] = out else { return Err(outputs()) };
            let (mut y, mut lse, mut dy) = (y.get::<T>()?, lse.get::<f32>()?, dy.get::<T>()?);
            let (q, k, v) = (x[0].get::<T>()?, x[1].get::<T>()?, x[2].get::<T>()?);
            // What is not given is not read; its place is taken by the input of the same shape.
            let [dq, dk, dv] = op.tangents(x);
            let [dqs, dks, dvs] = op.given.map(usize::from);
            let dq = dq.map_or(Ok(q), CudaIn::get::<T>)?;
            let dk = dk.map_or(Ok(k), CudaIn::get::<T>)?;
            let dv = dv.map_or(Ok(v), CudaIn::get::<T>)?;
            let (d, [e0, e1, e2, e3]) = (job.d, job.ends);
            let (tiles, work) = job.by_queries($rows, $cols);
            launch::$entry::<T, D>(
                queue,
                Grid { threads: [$threads, 1, 1], ..job.grid(queue, tiles) },
                &mut y,
                &mut lse,
                &mut dy,
                &q,
                &k,
                &v,
                &dq,
                &dk,
                &dv,
                d.batch,
                d.queries,
                d.keys,
                d.heads,
                d.width,
                work,
                tiles,
                job.scale,
                dqs,
                dks,
                dvs,
                e0,
                e1,
                e2,
                e3,
            )
        }
    };
}
face!(tiles_of: attention_dual_fwd, 256, rows(D), rows(D));
face!(mma_of: attention_dual_mma_fwd, 128, 64, 64);

impl Op for AttentionDual {
    const NAME: &'static str = "attention_dual";
    const INPUTS: RangeInclusive<usize> = 4..=6;
    const DIFF: Diff = FIRST_ORDER;
    const F32_OUTPUTS: &'static [usize] = &[1];
    const COMPOSED: Option<Composed<Self>> =
        Some(|op, x| composed::apart(&op.of, &x[..3], &op.tangents(x).map(|d| d.copied())));
    const CUDA: Kernels<Self> = Kernels {
        variants: &[
            Variant {
                takes: |_, x| x[0].last() <= WIDEST,
                ..variant!("tiles", [f32, bf16], |op, q, x, y| by_width!(tiles_of, op, q, x, y))
            },
            Variant {
                name: "mma",
                f32: None,
                bf16: Some(|op, q, x, y| match x[0].shape.last() {
                    0..=32 => mma_of::<Bf16, 32>(op, q, x, y),
                    _ => mma_of::<Bf16, 64>(op, q, x, y),
                }),
                takes: |_, x| (LEAST_MMA..=WIDEST_MMA).contains(&x[0].last()),
                needs: None,
            },
        ],
        // The tensor cores where there are bf16: predicted, not measured on a card yet.
        fastest: |_, site, x| {
            let takes = (LEAST_MMA..=WIDEST_MMA).contains(&x[0].last());
            usize::from(site.precision == Precision::Bf16 && takes)
        },
    };

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let (_, lse) = self.of.check(Self::NAME, x)?;
        let count = self.given.iter().filter(|&&given| given).count();
        let fits = x.len() == 3 + count && {
            let tangents = self.tangents(x);
            tangents.iter().zip(x).all(|(t, x)| t.is_none_or(|t| t == x))
        };
        match fits {
            true => Ok(vec![x[0].clone(), lse, x[0].clone()]),
            false => Err(Error::shape(Self::NAME, "a tangent is not of its value's shape")),
        }
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let d = Dims::of(x[0].shape, x[1].shape);
        let [dq, dk, dv] = self.tangents(x);
        let seen = self.of.seen(d);
        for (i, (b, row, h)) in d.each_query().enumerate() {
            let (at, n) = ([b, row, h], seen[row]);
            let s = self.of.scores(d, x[0].r(), x[1].r(), at, n);
            let top = s.iter().fold(s[0], |m, &s| m.max(s));
            let e: Vec<R> = s.iter().map(|&s| (s - top).exp()).collect();
            let total = R::sum(e.iter().copied());
            let p: Vec<R> = e.iter().map(|&e| e / total).collect();
            let by_q = dq.map(|dq| self.of.scores(d, dq.r(), x[1].r(), at, n));
            let by_k = dk.map(|dk| self.of.scores(d, x[0].r(), dk.r(), at, n));
            let ds: Option<Vec<R>> = match (by_q, by_k) {
                (Some(a), Some(b)) => Some(a.iter().zip(b).map(|(&a, b)| a + b).collect()),
                (a, b) => a.or(b),
            };
            let pds = ds.map(|ds| p.iter().zip(ds).map(|(&p, ds)| p * ds).collect::<Vec<R>>());
            let mean = pds.as_ref().map(|pds| R::sum(pds.iter().copied()));
            for c in 0..d.width {
                let v = |v: &In<'_, R>, j| v.r()[d.at(d.keys, b, j, h) + c];
                let o = R::sum((0..n).map(|j| p[j] * v(&x[2], j)));
                let moved = pds.iter().flatten().enumerate().map(|(j, &w)| w * v(&x[2], j));
                let carried = (0..n).filter_map(|j| dv.map(|dv| p[j] * v(dv, j)));
                let along = R::sum(moved.chain(carried));
                y[0].r()[i * d.width + c] = o;
                y[2].r()[i * d.width + c] = mean.map_or(along, |mean| along - mean * o);
            }
            y[1].r()[i] = top + total.ln();
        }
    }
    fn cases() -> Cases {
        let some = |s: &Sizes, name, given| case(name, sized(s), given);
        let mut named: Vec<Case> = SIZES.iter().map(|s| some(s, s.0, [true; 3])).collect();
        named.push(some(&SIZES[3], "queries_only", [true, false, false]));
        named.push(some(&SIZES[1], "keys_only", [false, true, false]));
        named.push(some(&SIZES[5], "values_only", [false, false, true]));
        Cases {
            named,
            draw: |d| {
                let sizes = drawn(d, &[0, 0, 0, 32]);
                case("drawn", sizes, d.pick(&[[true; 3], [false, true, true], [true, false, true]]))
            },
            bench: TIMED
                .iter()
                .filter(|s| s.1[4] <= WIDEST)
                .map(|s| some(s, s.0, [true; 3]))
                .collect(),
        }
    }
}

fn case(name: &str, sizes: (Attention, [usize; 4], [usize; 4]), given: [bool; 3]) -> Case {
    let (of, q, k) = sizes;
    let moved = [q, k, k].into_iter().zip(given).filter(|(_, given)| *given).map(|(s, _)| s);
    let inputs = [q, k, k].into_iter().chain(moved).map(Input::normal);
    Case::new(name, AttentionDual { of, given }, inputs.collect())
}
