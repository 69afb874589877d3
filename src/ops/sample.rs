//! Drawing tokens: guidance, top-k, top-p, then the inverse of the cumulative distribution in index
//! order.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use super::composed::{self, Composed};
use super::cuda::{Kernels, block_per_job, kernels};
use super::{Case, Cases, CpuFace, Diff, In, Input, Op, Out, Real, Running};
use crate::device::cpu;
use crate::device::launch::sample as launch;
use crate::error::{Error, Result};
use crate::tensor::Shape;

/// A token for each row: logits [B, .., V] and u [B, ..] in [0, 1) to integers [B, ..].
///
/// Guided logits are [2 B, .., V], the conditional stream's and then the null's: a row is drawn
/// from own + tau (own - null), each operation rounded to binary32, so that every face ranks alike.
/// Top-k keeps the logits that are at least the k-th largest. Top-p sorts what is left by (logit,
/// then lower index first), drops the tail whose probabilities add up to at most 1 - p, and always
/// keeps the best. A row with NaN or +infinity, or with nothing above -infinity, is no
/// distribution: its token is -1.
#[derive(Clone, Debug)]
pub struct SampleToken {
    /// How many logits top-k keeps; 0 keeps all.
    pub top_k: usize,
    /// The probability that top-p keeps; 1 keeps all.
    pub top_p: f64,
    /// tau of guided logits; None where there is no null stream.
    pub guidance: Option<f64>,
}

/// Rows a parallel piece holds.
const ROWS: usize = 8;

/// Whether the logits define a distribution.
fn is_distribution<R: Real>(x: &[R]) -> bool {
    let possible = |x: &R| x.val() > f64::NEG_INFINITY;
    // NaN fails the comparison with +infinity.
    let clean = x.iter().all(|x| x.val() < f64::INFINITY);
    clean && x.iter().any(possible)
}

impl SampleToken {
    /// The logits that row `r` is drawn from, of `rows` rows of `n`.
    fn row<'a, R: Real>(&self, x: &'a [R], (r, rows): (usize, usize), n: usize) -> Cow<'a, [R]> {
        let own = &x[r * n..(r + 1) * n];
        let Some(tau) = self.guidance else { return Cow::Borrowed(own) };
        let (null, tau) = (&x[(rows + r) * n..(rows + r + 1) * n], tau as f32);
        let mixed = own.iter().zip(null).map(|(own, null)| {
            let (own, null) = (own.val() as f32, null.val() as f32);
            R::of(f64::from(own + tau * (own - null)))
        });
        Cow::Owned(mixed.collect())
    }

    /// What top-k keeps, best first; equal logits by index. Comparisons are of inputs, hence exact.
    fn candidates<R: Real>(&self, x: &[R]) -> Vec<(R, usize)> {
        let mut kept: Vec<(R, usize)> =
            x.iter().enumerate().map(|(i, &x)| (x, i)).filter(|c| c.0.val().is_finite()).collect();
        let order =
            |a: &(R, usize), b: &(R, usize)| b.0.val().total_cmp(&a.0.val()).then(a.1.cmp(&b.1));
        if (1..kept.len()).contains(&self.top_k) {
            let least = kept.select_nth_unstable_by(self.top_k - 1, order).1.0;
            kept.retain(|c| c.0 >= least);
        }
        if self.top_p < 1.0 {
            kept.sort_unstable_by(order);
        }
        kept
    }

    fn draw<R: Real>(&self, x: &[R], u: R) -> i32 {
        if !is_distribution(x) {
            return -1;
        }
        let mut kept = self.candidates(x);
        let top = kept.iter().fold(kept[0].0, |m, c| m.max(c.0));
        for c in &mut kept {
            c.0 = (c.0 - top).exp();
        }
        if self.top_p < 1.0 {
            let limit = R::of(1.0 - self.top_p) * R::sum(kept.iter().map(|c| c.0));
            let mut tail = R::of(0.0);
            while let [_, .., last] = kept[..] {
                tail = tail + last.0;
                if tail > limit {
                    break;
                }
                kept.pop();
            }
        }
        kept.sort_unstable_by_key(|c| c.1);
        let target = u * R::sum(kept.iter().map(|c| c.0));
        let mut below = R::of(0.0);
        for &(e, i) in &kept {
            below = below + e;
            if below > target {
                return i as i32;
            }
        }
        // Rounding may leave the whole sum at the target: then it is the last token that has any
        // weight.
        let last = kept.iter().rev().find(|c| c.0 > R::of(0.0));
        last.map_or(-1, |c| c.1 as i32)
    }

    /// Why `token` cannot come from this row, whatever the order and rounding of the sums.
    fn refusal(&self, x: &[f64], u: f64, token: i32) -> Option<String> {
        if !is_distribution(x) {
            return (token != -1).then(|| format!("{token} from a row that is no distribution"));
        }
        let exact: Vec<Running> = x.iter().map(|&x| Running::exact(x)).collect();
        let mut kept = self.candidates(&exact);
        let top = kept.iter().fold(kept[0].0, |m, c| m.max(c.0));
        for c in &mut kept {
            c.0 = (c.0 - top).exp();
        }
        let sum = |c: &[(Running, usize)]| Running::sum(c.iter().map(|c| c.0));
        let limit = Running::of(1.0 - self.top_p) * sum(&kept);
        // Whether top-p may cut just after the first n candidates.
        let all = kept.len();
        let may_cut = |&n: &usize| {
            let kept_tail = n == 1 || may_exceed(sum(&kept[n - 1..]), limit);
            let dropped_tail = n == all || !must_exceed(sum(&kept[n..]), limit);
            kept_tail && dropped_tail
        };
        let cuts: Vec<usize> =
            if self.top_p < 1.0 { (1..=all).filter(may_cut).collect() } else { vec![all] };
        let reaches = |&n: &usize| {
            let mut kept = kept[..n].to_vec();
            kept.sort_unstable_by_key(|c| c.1);
            let target = Running::exact(u) * sum(&kept);
            let at = kept.iter().position(|c| c.1 as i32 == token);
            at.is_some_and(|at| {
                !must_exceed(sum(&kept[..at]), target) && may_exceed(sum(&kept[..=at]), target)
            })
        };
        let found = cuts.iter().any(reaches);
        (!found).then(|| format!("{token} is not what u = {u} draws from {all} candidates"))
    }
}

/// Whether a > b is possible within the bounds.
fn may_exceed(a: Running, b: Running) -> bool {
    a.v + a.e >= b.v - b.e
}

/// Whether a > b is certain within the bounds.
fn must_exceed(a: Running, b: Running) -> bool {
    a.v - a.e > b.v + b.e
}

impl Op for SampleToken {
    const NAME: &'static str = "sample_token";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const COMPOSED: Option<Composed<Self>> = Some(composed::sample_token);
    const INT_OUTPUTS: &'static [usize] = &[0];
    const DIFF: Diff = Diff::No("a drawn token is a step function of the logits");
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| {
        let (n, u) = (x[0].shape.last(), x[1].r());
        let pieces = cpu::par_map(u.len().div_ceil(ROWS), |i| {
            let rows = i * ROWS..((i + 1) * ROWS).min(u.len());
            let draw = |r: usize| op.draw(&op.row(x[0].r(), (r, u.len()), n), u[r]);
            rows.map(draw).collect::<Vec<_>>()
        });
        for (y, token) in y[0].i().iter_mut().zip(pieces.into_iter().flatten()) {
            *y = token;
        }
    });
    const F32_INPUTS: &'static [usize] = &[1];
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, y| {
        let (rows, n) = (x[1].shape.len(), x[0].shape.last());
        let (x, u) = (x[0].get::<T>()?, x[1].get::<f32>()?);
        let (y, grid) = (&mut y[0].get::<i32>()?, block_per_job(q, rows));
        let keep = if op.top_k == 0 { n } else { op.top_k.min(n) };
        let (guided, tau) = (usize::from(op.guidance.is_some()), op.guidance.unwrap_or(0.0));
        let dropped = (1.0 - op.top_p) as f32;
        launch::sample_token_fwd(q, grid, y, &x, &u, rows, n, keep, guided, dropped, tau as f32)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let mut wanted = x[1].dims().to_vec();
        if let (Some(batch), Some(_)) = (wanted.first_mut(), self.guidance) {
            *batch *= 2;
        }
        wanted.push(x[0].last());
        let streams = self.guidance.is_none() || x[1].rank() > 0;
        if x[0].rank() == 0 || x[0].last() == 0 || x[0].dims() != wanted || !streams {
            let kind = if self.guidance.is_some() { "2 B" } else { "B" };
            let what = format!("wants logits [{kind}, .., V], u [B, ..]; found {}, {}", x[0], x[1]);
            return Err(Error::shape(Self::NAME, what));
        }
        Ok(vec![x[1].clone()])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (n, u) = (x[0].shape.last(), x[1].r());
        for (r, (y, &u_r)) in y[0].i().iter_mut().zip(u).enumerate() {
            *y = self.draw(&self.row(x[0].r(), (r, u.len()), n), u_r);
        }
    }
    fn refuses(&self, x: &[In<'_, f64>], got: &[Vec<i32>]) -> Option<String> {
        let (n, u) = (x[0].shape.last(), x[1].r());
        u.iter().zip(got.first()?).enumerate().find_map(|(r, (&u_r, &token))| {
            let why = self.refusal(&self.row(x[0].r(), (r, u.len()), n), u_r, token)?;
            Some(format!("row {r}: {why}"))
        })
    }
    fn cases() -> Cases {
        let case = |name: &str, rows: &[usize], n: usize, top_k, top_p| {
            case_of(name, rows, n, SampleToken { top_k, top_p, guidance: None })
        };
        Cases {
            named: vec![
                case("one_class", &[3], 1, 0, 1.0),
                case("all", &[40], 37, 0, 1.0),
                case("top_k", &[40], 37, 5, 1.0),
                case("top_p", &[40], 37, 0, 0.8),
                case("both", &[3, 20], 64, 20, 0.9),
                case("best", &[9], 50, 1, 0.0),
                case("no_rows", &[0], 5, 0, 1.0),
                guided("guided", &[3, 5], 33, 9, 0.9),
                guided("guided_all", &[4], 300, 0, 1.0),
            ],
            draw: |d| {
                let (rows, n) = ([d.size(1, 9)], d.size(1, 40));
                let (top_k, top_p) = (d.size(0, 40), d.pick(&[1.0, 0.96, 0.5, 0.0]));
                match d.coin() {
                    true => guided("drawn", &rows, n, top_k, top_p),
                    false => {
                        case_of("drawn", &rows, n, SampleToken { top_k, top_p, guidance: None })
                    }
                }
            },
            bench: vec![
                case("last_scale", &[256], 4096, 900, 0.96),
                guided("last_scale_guided", &[256], 4096, 900, 0.96),
            ],
        }
    }
}

fn guided(name: &str, rows: &[usize], n: usize, top_k: usize, top_p: f64) -> Case {
    case_of(name, rows, n, SampleToken { top_k, top_p, guidance: Some(1.5) })
}

fn case_of(name: &str, rows: &[usize], n: usize, op: SampleToken) -> Case {
    let mut streams = rows.to_vec();
    streams[0] *= 1 + usize::from(op.guidance.is_some());
    let x = Input::normal([&streams, &[n][..]].concat());
    Case::new(name, op, vec![x, Input::uniform(rows, 0.0, 1.0)])
}

#[cfg(test)]
mod tests {
    use super::super::run;
    use super::*;
    use crate::tensor::{Purpose, Stream, Tensor};

    fn draw(op: &SampleToken, x: &[f32], u: f32) -> i32 {
        op.draw(x, u)
    }

    #[test]
    fn top_k_keeps_ties_and_top_p_keeps_the_best() {
        let x = [1.0, 3.0, 2.0, 2.0, -f32::INFINITY, 0.0];
        let all = |op: SampleToken| {
            let mut seen: Vec<i32> = (0..1000).map(|i| draw(&op, &x, i as f32 / 1000.0)).collect();
            assert!(seen.is_sorted(), "index order");
            seen.dedup();
            seen
        };
        assert_eq!(all(SampleToken { top_k: 0, top_p: 1.0, guidance: None }), [0, 1, 2, 3, 5]);
        assert_eq!(all(SampleToken { top_k: 2, top_p: 1.0, guidance: None }), [1, 2, 3]);
        assert_eq!(all(SampleToken { top_k: 1, top_p: 1.0, guidance: None }), [1]);
        assert_eq!(all(SampleToken { top_k: 0, top_p: 0.0, guidance: None }), [1]);
        // Probabilities .07, .51, .19, .19, .03: the tail .03 + .07 is dropped, .03 + .07 + .19 is
        // not.
        assert_eq!(all(SampleToken { top_k: 0, top_p: 0.75, guidance: None }), [1, 2, 3]);
        // Of the two equal ones the later goes first.
        assert_eq!(all(SampleToken { top_k: 0, top_p: 0.6, guidance: None }), [1, 2]);
    }

    #[test]
    fn frequencies_are_the_softmax() {
        let (x, n) = ([0.0f32, 1.0, 2.0], 100_000);
        let u = Stream::new(3, 0, 0, Purpose::Test).uniforms(n);
        let op = SampleToken { top_k: 0, top_p: 1.0, guidance: None };
        let mut counts = [0.0f64; 3];
        u.iter().for_each(|&u| counts[draw(&op, &x, u) as usize] += 1.0 / n as f64);
        let total: f64 = x.iter().map(|&x| f64::from(x).exp()).sum();
        for (c, x) in counts.iter().zip(x) {
            let p = f64::from(x).exp() / total;
            assert!((c - p).abs() < 5.0 * (p * (1.0 - p) / n as f64).sqrt(), "{c} {p}");
        }
    }

    #[test]
    fn what_is_no_distribution_draws_no_token() {
        let (inf, op) = (f32::INFINITY, SampleToken { top_k: 2, top_p: 0.9, guidance: None });
        for x in [[0.0, f32::NAN], [0.0, inf], [-inf, -inf]] {
            assert_eq!(draw(&op, &x, 0.5), -1);
        }
        assert_eq!(draw(&op, &[-inf, -3.0], 0.999), 1);
    }

    #[test]
    fn the_predicate_refuses_a_neighbour_and_takes_either_side_of_a_boundary() {
        let op = SampleToken { top_k: 0, top_p: 1.0, guidance: None };
        let x = [0.0f64, 0.0, 0.0, 0.0];
        assert_eq!(op.refusal(&x, 0.6, 2), None);
        assert!(op.refusal(&x, 0.6, 1).is_some() && op.refusal(&x, 0.6, 4).is_some());
        assert_eq!((op.refusal(&x, 0.5, 1), op.refusal(&x, 0.5, 2)), (None, None));
        assert!(
            SampleToken { top_k: 1, top_p: 1.0, guidance: None }
                .refusal(&[0.0, 1.0], 0.1, 0)
                .is_some()
        );
    }

    #[test]
    fn a_row_draws_the_same_alone() {
        let op = SampleToken { top_k: 30, top_p: 0.9, guidance: None };
        let x =
            Tensor::new(Stream::new(4, 0, 0, Purpose::Test).normals(50 * 70), [50, 70]).unwrap();
        let u = Tensor::new(Stream::new(5, 0, 0, Purpose::Test).uniforms(50), [50]).unwrap();
        let all = run(&op, &[&x, &u]).unwrap().swap_remove(0);
        let one = run(&op, &[&x.rows(33, 1).unwrap(), &u.rows(33, 1).unwrap()]).unwrap();
        assert_eq!(all.i32s().unwrap()[33], one[0].i32s().unwrap()[0]);
    }
}
