//! Attention: softmax(scale q k^T + mask) v per head, its tangent and its gradients, without an n x
//! m matrix but for wide heads on a GPU (`wide`).
//!
//! With s = scale q k^T, p = softmax(s) = e^(s - lse) and, per query, mean(a) = sum_j p_j a_j:
//!   tangent    o' = (p (s' - <s'>)) v + p v'
//!   gradients  gv = p^T go,  gs = scale p (c - mean(c)) with c = go v^T,  gq = gs k,  gk = gs^T q
//! q is [B, n, H, D], k and v are [B, m, H, D], lse is [B, n, H]. The fast faces are in `cpu`, the
//! kernels' launches in `cuda`.

mod cpu;
mod cuda;
mod dual;
mod sizes;
mod wide;

use std::ops::RangeInclusive;

use self::sizes::{ROOMS, SIZES, Sizes, TIMED, WIDE, derived, drawn, roomy, sized};
use super::composed::{self, Composed};
use super::layout::{Narrow, Place};
use super::{
    Case, Cases, CpuFace, Diff, DynOp, FIRST_ORDER, Grads, In, Input, Kernels, Op, Out, Real,
    Saved, Saves, call, run,
};
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

pub use dual::AttentionDual;

/// Which keys a query sees. The queries are the last n of the m positions when it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    Full,
    /// The first so many: what lies behind them is room, in a cache that is not full yet.
    First(usize),
    /// Block-causal: cumulative ends of the scales; a query sees its own scale and those before.
    /// The number of keys must be one of the ends (fewer queries than keys is decoding with a
    /// cache).
    Blocks(Vec<usize>),
}

/// softmax(scale q k^T + mask) v. Second output: the log-sum-exp of the scaled scores, [B, n, H].
#[derive(Clone, Debug)]
pub struct Attention {
    /// Factor of the scores.
    pub scale: f64,
    /// Which keys a query sees.
    pub mask: Mask,
}

/// Tangent of [`Attention`], from (q, k, v, lse) and those of (dq, dk, dv) that are not zero.
#[derive(Clone, Debug)]
pub struct AttentionJvp {
    /// The op.
    pub of: Attention,
    /// Which tangents are given.
    pub given: [bool; 3],
}

/// Gradients (gq, gk, gv) of [`Attention`], from (q, k, v, lse, o, go). The result o tells mean(c),
/// for sum_j p_j (go . v_j) = go . o.
#[derive(Clone, Debug)]
pub struct AttentionVjp {
    /// The op.
    pub of: Attention,
}

/// Extents.
#[derive(Clone, Copy)]
struct Dims {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    width: usize,
}

impl Dims {
    /// Of shapes that fit.
    fn of(q: &Shape, k: &Shape) -> Self {
        let (q, keys) = (q.dims(), k.dims()[1]);
        Self { batch: q[0], queries: q[1], keys, heads: q[2], width: q[3] }
    }
    /// Index of the first element of (sample, position, head) among `rows` positions a sample.
    fn at(&self, rows: usize, b: usize, row: usize, h: usize) -> usize {
        ((b * rows + row) * self.heads + h) * self.width
    }
    /// Every (sample, position of the query, head).
    fn each_query(self) -> impl Iterator<Item = (usize, usize, usize)> {
        (0..self.batch * self.queries * self.heads).map(move |i| {
            let (row, h) = (i / self.heads, i % self.heads);
            (row / self.queries, row % self.queries, h)
        })
    }
}

impl Mask {
    /// (first query, end, keys seen) of the runs of queries that see the same keys.
    fn spans(&self, queries: usize, keys: usize) -> Vec<(usize, usize, usize)> {
        let ends = match self {
            Self::Full => return vec![(0, queries, keys)],
            Self::First(seen) => return vec![(0, queries, *seen)],
            Self::Blocks(ends) => ends,
        };
        let before = keys - queries;
        let mut first = 0;
        let mut spans = Vec::new();
        for &end in ends.iter().filter(|&&end| end > before && end <= keys) {
            spans.push((first, end - before, end));
            first = end - before;
        }
        spans
    }

    fn check(&self, op: &'static str, queries: usize, keys: usize) -> Result<()> {
        let ends = match self {
            Self::Full => return Ok(()),
            Self::First(seen) if (1..=keys).contains(seen) && op == Attention::NAME => {
                return Ok(());
            }
            Self::First(seen) => {
                let what = format!("cannot see the first {seen} of {keys} keys");
                return Err(Error::shape(op, what));
            }
            Self::Blocks(ends) => ends,
        };
        if !ends.is_sorted() || queries > keys || (keys > 0 && !ends.contains(&keys)) {
            let what = format!(
                "{queries} queries and {keys} keys do not fit the scales that end at {ends:?}"
            );
            return Err(Error::shape(op, what));
        }
        Ok(())
    }
}

impl Attention {
    /// Checks q, k, v and hands back the extents and the shape of the log-sum-exp.
    fn check(&self, op: &'static str, x: &[&Shape]) -> Result<(Dims, Shape)> {
        let fits = x.iter().take(3).all(|s| s.rank() == 4) && x.len() >= 3 && x[1] == x[2] && {
            let (q, k) = (x[0].dims(), x[1].dims());
            q[0] == k[0] && q[2..] == k[2..] && (q[1] == 0 || k[1] > 0)
        };
        if !fits {
            let found: Vec<String> = x.iter().map(ToString::to_string).collect();
            let what =
                format!("wants q [B, n, H, D], k, v [B, m, H, D]; found {}", found.join(", "));
            return Err(Error::shape(op, what));
        }
        let d = Dims::of(x[0], x[1]);
        self.mask.check(op, d.queries, d.keys)?;
        Ok((d, Shape::from([d.batch, d.queries, d.heads])))
    }

    /// Where keys have room behind them: the op, keys and values without it, and how to cut it off.
    fn without_room(&self, at: &Saved) -> Result<Option<(Self, [Tensor; 2], Narrow)>> {
        let Mask::First(len) = self.mask else { return Ok(None) };
        let cut = Narrow { axis: 1, start: 0, len };
        let full = Self { mask: Mask::Full, ..self.clone() };
        Ok(Some((full, [call(&cut, &[at.x(1)?])?, call(&cut, &[at.x(2)?])?], cut)))
    }

    /// How many keys each query sees.
    fn seen(&self, d: Dims) -> Vec<usize> {
        let spans = self.mask.spans(d.queries, d.keys);
        spans.iter().flat_map(|&(first, end, keys)| (first..end).map(move |_| keys)).collect()
    }

    /// Scaled products of a query row with the first `n` keys.
    fn scores<R: Real>(&self, d: Dims, q: &[R], k: &[R], at: [usize; 3], n: usize) -> Vec<R> {
        let [b, row, h] = at;
        let q = &q[d.at(d.queries, b, row, h)..][..d.width];
        let k = |j| &k[d.at(d.keys, b, j, h)..][..d.width];
        let dot = |j| R::sum(q.iter().zip(k(j)).map(|(&q, &k)| q * k));
        (0..n).map(|j| R::of(self.scale) * dot(j)).collect()
    }

    /// Softmax weights of a query from its log-sum-exp.
    fn weights<R: Real>(&self, d: Dims, x: &[In<'_, R>], at: [usize; 3], n: usize) -> Vec<R> {
        let [b, row, h] = at;
        let lse = x[3].r()[(b * d.queries + row) * d.heads + h];
        let s = self.scores(d, x[0].r(), x[1].r(), at, n);
        s.into_iter().map(|s| (s - lse).exp()).collect()
    }
}

impl Op for Attention {
    const NAME: &'static str = "attention";
    const INPUTS: RangeInclusive<usize> = 3..=3;
    const COMPOSED: Option<Composed<Self>> = Some(composed::attention);
    const SAVES: Saves = Saves::inputs(&[0, 1, 2]).and_output().and_extras();
    const CPU: Option<CpuFace<Self>> = Some(cpu::forward);
    const CUDA: Kernels<Self> = cuda::FORWARD;
    const F32_OUTPUTS: &'static [usize] = &[1];

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let (_, lse) = self.check(Self::NAME, x)?;
        Ok(vec![x[0].clone(), lse])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let d = Dims::of(x[0].shape, x[1].shape);
        let seen = self.seen(d);
        for (i, (b, row, h)) in d.each_query().enumerate() {
            let s = self.scores(d, x[0].r(), x[1].r(), [b, row, h], seen[row]);
            let top = s.iter().fold(s[0], |m, &s| m.max(s));
            let e: Vec<R> = s.iter().map(|&s| (s - top).exp()).collect();
            let total = R::sum(e.iter().copied());
            for c in 0..d.width {
                let v = |j| x[2].r()[d.at(d.keys, b, j, h) + c];
                y[0].r()[i * d.width + c] =
                    R::sum(e.iter().enumerate().map(|(j, &e)| e / total * v(j)));
            }
            y[1].r()[i] = top + total.ln();
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let given = [dx[0].is_some(), dx[1].is_some(), dx[2].is_some()];
        if given == [false; 3] {
            return Ok(None);
        }
        if let Some((full, [k, v], cut)) = self.without_room(at)? {
            let moved = |d: Option<&Tensor>| d.map(|d| call(&cut, &[d])).transpose();
            let (dk, dv) = (moved(dx[1])?, moved(dx[2])?);
            let mut x = vec![at.x(0)?, &k, &v, at.extra(0)?];
            x.extend([dx[0], dk.as_ref(), dv.as_ref()].into_iter().flatten());
            return call(&AttentionJvp { of: full, given }, &x).map(Some);
        }
        let mut x = vec![at.x(0)?, at.x(1)?, at.x(2)?, at.extra(0)?];
        x.extend(dx.iter().flatten());
        call(&AttentionJvp { of: self.clone(), given }, &x).map(Some)
    }
    fn dual(&self, x: &[&Shape], given: &[bool]) -> Option<Box<dyn DynOp>> {
        let dual = AttentionDual { of: self.clone(), given: [given[0], given[1], given[2]] };
        let takes = x[0].last() <= dual::WIDEST_MMA && !matches!(self.mask, Mask::First(_));
        takes.then(|| Box::new(dual) as Box<dyn DynOp>)
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
        if let Some((of, [k, v], _)) = self.without_room(at)? {
            let x = [at.x(0)?, &k, &v, at.extra(0)?, at.y()?, gy];
            let mut grads = run(&AttentionVjp { of }, &x)?;
            let back = Place { axis: 1, start: 0, extent: at.shape(1).dims()[1] };
            for g in grads.iter_mut().skip(1) {
                *g = call(&back, &[g])?;
            }
            return Ok(grads.into_iter().zip(want).map(|(g, &want)| want.then_some(g)).collect());
        }
        let x = [at.x(0)?, at.x(1)?, at.x(2)?, at.extra(0)?, at.y()?, gy];
        let grads = run(&AttentionVjp { of: self.clone() }, &x)?;
        Ok(grads.into_iter().zip(want).map(|(g, &want)| want.then_some(g)).collect())
    }
    fn cases() -> Cases {
        let case = |s: &Sizes| {
            let (op, q, k) = sized(s);
            Case::new(s.0, op, vec![Input::normal(q), Input::normal(k), Input::normal(k)])
        };
        Cases {
            named: SIZES.iter().chain(WIDE).map(case).chain(ROOMS.iter().map(roomy)).collect(),
            draw: |d| {
                let (op, q, k) = drawn(d, &[0, 0, 0, 0, 0, 0, 32, 128]);
                Case::new("drawn", op, vec![Input::normal(q), Input::normal(k), Input::normal(k)])
            },
            bench: TIMED.iter().map(case).collect(),
        }
    }
}

impl AttentionJvp {
    /// The given tangents by input, from what follows the log-sum-exp.
    fn tangents<'a, T>(&self, x: &'a [T]) -> [Option<&'a T>; 3] {
        let mut rest = x[4..].iter();
        self.given.map(|given| if given { rest.next() } else { None })
    }
}

impl Op for AttentionJvp {
    const NAME: &'static str = "attention_jvp";
    const INPUTS: RangeInclusive<usize> = 4..=7;
    const COMPOSED: Option<Composed<Self>> = Some(composed::attention_jvp);
    const DIFF: Diff = FIRST_ORDER;
    const CPU: Option<CpuFace<Self>> = Some(cpu::tangent);
    const CUDA: Kernels<Self> = cuda::TANGENT;
    const F32_INPUTS: &'static [usize] = &[3];

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let (_, lse) = self.of.check(Self::NAME, x)?;
        let count = self.given.iter().filter(|&&given| given).count();
        let fits = x.len() == 4 + count && *x[3] == lse && {
            let tangents = self.tangents(x);
            tangents.iter().zip(x).all(|(t, x)| t.is_none_or(|t| t == x))
        };
        match fits {
            true => Ok(vec![x[0].clone()]),
            false => Err(Error::shape(Self::NAME, "lse or a tangent has the wrong shape")),
        }
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let d = Dims::of(x[0].shape, x[1].shape);
        let [dq, dk, dv] = self.tangents(x);
        let seen = self.of.seen(d);
        for (i, (b, row, h)) in d.each_query().enumerate() {
            let (at, n) = ([b, row, h], seen[row]);
            let p = self.of.weights(d, x, at, n);
            let by_q = dq.map(|dq| self.of.scores(d, dq.r(), x[1].r(), at, n));
            let by_k = dk.map(|dk| self.of.scores(d, x[0].r(), dk.r(), at, n));
            let ds: Option<Vec<R>> = match (by_q, by_k) {
                (Some(a), Some(b)) => Some(a.iter().zip(b).map(|(&a, b)| a + b).collect()),
                (a, b) => a.or(b),
            };
            let dp: Option<Vec<R>> = ds.map(|ds| {
                let mean = R::sum(p.iter().zip(&ds).map(|(&p, &ds)| p * ds));
                p.iter().zip(ds).map(|(&p, ds)| p * (ds - mean)).collect()
            });
            for c in 0..d.width {
                let v = |v: &In<'_, R>, j| v.r()[d.at(d.keys, b, j, h) + c];
                let moved = dp.iter().flatten().enumerate().map(|(j, &dp)| dp * v(&x[2], j));
                let carried = (0..n).filter_map(|j| dv.map(|dv| p[j] * v(dv, j)));
                y[0].r()[i * d.width + c] = R::sum(moved.chain(carried));
            }
        }
    }
    fn cases() -> Cases {
        let make =
            |name: &str, (of, q, k): (Attention, [usize; 4], [usize; 4]), given: [bool; 3]| {
                let all = [Input::normal(q), Input::normal(k), Input::normal(k)];
                let some: Vec<Input> =
                    all.into_iter().zip(given).filter(|(_, g)| *g).map(|(t, _)| t).collect();
                Case::new(name, AttentionJvp { of, given }, derived(q, k, &some))
            };
        let all = [true; 3];
        let mut named: Vec<Case> =
            SIZES.iter().chain(WIDE).map(|s| make(s.0, sized(s), all)).collect();
        named.push(make("queries_only", sized(&SIZES[1]), [true, false, false]));
        named.push(make("values_only", sized(&SIZES[5]), [false, false, true]));
        named.push(make("wide_keys_only", sized(&WIDE[0]), [false, true, false]));
        named.push(make("wide_values_only", sized(&WIDE[0]), [false, false, true]));
        Cases {
            named,
            draw: |d| {
                let (of, q, k) = drawn(d, &[0, 0, 0, 0, 0, 0, 32, 128]);
                let some = [Input::normal(k), Input::normal(k)];
                let op = AttentionJvp { of, given: [false, true, true] };
                Case::new("drawn", op, derived(q, k, &some))
            },
            bench: TIMED.iter().map(|s| make(s.0, sized(s), all)).collect(),
        }
    }
}

impl Op for AttentionVjp {
    const NAME: &'static str = "attention_vjp";
    const INPUTS: RangeInclusive<usize> = 6..=6;
    const COMPOSED: Option<Composed<Self>> = Some(composed::attention_vjp);
    const DIFF: Diff = FIRST_ORDER;
    const CPU: Option<CpuFace<Self>> = Some(cpu::gradients);
    const CUDA: Kernels<Self> = cuda::GRADIENTS;
    const F32_INPUTS: &'static [usize] = &[3];

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let (_, lse) = self.of.check(Self::NAME, x)?;
        match *x[3] == lse && x[4] == x[0] && x[5] == x[0] {
            true => Ok(vec![x[0].clone(), x[1].clone(), x[2].clone()]),
            false => Err(Error::shape(Self::NAME, "lse, o or the gradient has the wrong shape")),
        }
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let d = Dims::of(x[0].shape, x[1].shape);
        let seen = self.of.seen(d);
        let [q, k, v, o, go] = [x[0].r(), x[1].r(), x[2].r(), x[4].r(), x[5].r()];
        // Sums over queries are collected term by term: `Real::sum` bounds any order of them.
        let mut gk: Vec<Vec<R>> = vec![Vec::new(); k.len()];
        let mut gv: Vec<Vec<R>> = vec![Vec::new(); v.len()];
        for (i, (b, row, h)) in d.each_query().enumerate() {
            let (n, query) = (seen[row], i * d.width);
            let p = self.of.weights(d, x, [b, row, h], n);
            let key = |j| d.at(d.keys, b, j, h);
            let dot = |j| R::sum((0..d.width).map(|c| go[query + c] * v[key(j) + c]));
            let gp: Vec<R> = (0..n).map(dot).collect();
            let mean = R::sum((0..d.width).map(|c| go[query + c] * o[query + c]));
            let gs = |j: usize| R::of(self.of.scale) * p[j] * (gp[j] - mean);
            for c in 0..d.width {
                y[0].r()[query + c] = R::sum((0..n).map(|j| gs(j) * k[key(j) + c]));
                for j in 0..n {
                    gk[key(j) + c].push(gs(j) * q[query + c]);
                    gv[key(j) + c].push(p[j] * go[query + c]);
                }
            }
        }
        for (out, terms) in y[1..].iter_mut().zip([gk, gv]) {
            for (g, t) in out.r().iter_mut().zip(terms) {
                *g = R::sum(t.into_iter());
            }
        }
    }
    fn cases() -> Cases {
        let make = |name: &str, (of, q, k): (Attention, [usize; 4], [usize; 4])| {
            let more = [Input::normal(q), Input::normal(q)];
            Case::new(name, AttentionVjp { of }, derived(q, k, &more))
        };
        Cases {
            named: SIZES.iter().chain(WIDE).map(|s| make(s.0, sized(s))).collect(),
            draw: |d| {
                let (of, q, k) = drawn(d, &[0, 0, 0, 0, 0, 0, 32, 128]);
                let more = [Input::normal(q), Input::normal(q)];
                Case::new("drawn", AttentionVjp { of }, derived(q, k, &more))
            },
            bench: TIMED.iter().map(|s| make(s.0, sized(s))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_sees_its_own_scale_and_those_before() {
        let ends = vec![1, 5, 14, 30];
        for keys in ends.clone() {
            for queries in 0..=keys {
                let op = Attention { scale: 1.0, mask: Mask::Blocks(ends.clone()) };
                let d = Dims { batch: 1, queries, keys, heads: 1, width: 1 };
                let scale_end = |position: usize| ends.iter().copied().find(|&e| e > position);
                let want: Option<Vec<usize>> = (keys - queries..keys).map(scale_end).collect();
                assert_eq!(Some(op.seen(d)), want, "{queries} queries, {keys} keys");
            }
        }
        let full = Attention { scale: 1.0, mask: Mask::Full };
        assert_eq!(full.seen(Dims { batch: 1, queries: 2, keys: 7, heads: 1, width: 1 }), [7, 7]);
    }
}
