//! A block of the transformer for few tokens as one op: self-attention with a cache and the
//! network behind it, each under adaptive layer norm (DiT, VAR). Where a scale has few tokens, the
//! time goes to reading the weights; in one launch that never stops.

use std::ops::RangeInclusive;

use super::attention::{Attention, Mask};
use super::composed::Composed;
use super::cuda::{CudaIn, Kernels, Window, kernels};
use super::gemm::{Act, FusedLinear, Linear};
use super::layout::Concat;
use super::norm::{AdaNorm, HEAD_EPS, LN_MAX_SCALE, UnitHeads};
use super::{Case, Cases, CpuFace, Diff, DynOp, In, Input, Op, Out, Real, run};
use crate::device::cuda::{Buffer, Queue};
use crate::device::kernel::{Grid, Slice};
use crate::device::launch::ada_block as launch;
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

/// Tokens x [B, n, C] after m positions of which keys and values are known:
///   h = x + g1 proj(attention(qkv(ada(x, s1, t1)))), y = h + g2 down(gelu(up(ada(h, s2, t2)))).
///
/// Inputs: x; gates g1, g2, scales s1, s2 and shifts t1, t2, each [B, 1, C]; weight and bias of
/// qkv, [3 C, C] and [3 C]; keys and values [B, m, H, C / H]; weights and biases of proj, up and
/// down, [C, C], [F, C] and [C, F]; and, where queries and keys have unit length, ln of the
/// temperatures [H, 1]. Outputs: y, and the keys and values [B, n, H, C / H] of x; where they are
/// written into a room, what stands before them there is the past, and m is 0.
#[derive(Clone, Debug)]
pub struct AdaBlock {
    /// Number of heads H.
    pub heads: usize,
    /// Added to the variance by both norms.
    pub eps: f64,
}

/// Numbers of a head that the kernel takes.
const WIDEST: usize = 256;

/// Where inputs stand.
const MODULATION: RangeInclusive<usize> = 1..=6;
const QKV: usize = 7;
const PAST: usize = 9;
const PROJ: usize = 11;
const UP: usize = 13;
const DOWN: usize = 15;
const HEAT: usize = 17;

/// What the steps of a block are run on: buffers of a scalar, or tensors.
trait Steps {
    type Value: Clone;
    fn op<O: Op>(&self, op: O, x: &[&Self::Value]) -> Result<Vec<Self::Value>>;
    /// The same under another shape, kept as elements of the op's type.
    fn kept(&self, x: Self::Value, shape: &Shape) -> Result<Self::Value>;
}

/// A buffer and its shape.
type Held<R> = (Shape, Vec<R>);

/// The references, or any other face at a scalar.
struct Faces;

impl Faces {
    fn run<R: Real>(
        op: &impl Op,
        x: &[&Held<R>],
        face: impl FnOnce(&[In<'_, R>], &mut [Out<'_, R>]),
    ) -> Result<Vec<Held<R>>> {
        let shapes: Vec<&Shape> = x.iter().map(|x| &x.0).collect();
        let blank = |s: Shape| (vec![R::of(0.0); s.len()], s);
        let mut outs: Vec<(Vec<R>, Shape)> =
            Op::shapes(op, &shapes)?.into_iter().map(blank).collect();
        let ins: Vec<In<'_, R>> = x.iter().map(|x| In::real(&x.0, &x.1)).collect();
        let mut views: Vec<Out<'_, R>> = outs.iter_mut().map(|o| Out::Real(&mut o.0)).collect();
        face(&ins, &mut views);
        drop(views);
        Ok(outs.into_iter().map(|(values, shape)| (shape, values)).collect())
    }
}

/// The references at a scalar.
struct References<R>(std::marker::PhantomData<R>);

impl<R: Real> Steps for References<R> {
    type Value = Held<R>;
    fn op<O: Op>(&self, op: O, x: &[&Held<R>]) -> Result<Vec<Held<R>>> {
        Faces::run(&op, x, |x, y| op.reference(x, y))
    }
    fn kept(&self, x: Held<R>, shape: &Shape) -> Result<Held<R>> {
        Ok((shape.clone(), x.1.into_iter().map(Real::stored).collect()))
    }
}

/// The CPU's fast paths.
struct Fast;

impl Steps for Fast {
    type Value = Held<f32>;
    fn op<O: Op>(&self, op: O, x: &[&Held<f32>]) -> Result<Vec<Held<f32>>> {
        Faces::run(&op, x, |x, y| op.cpu(x, y))
    }
    fn kept(&self, x: Held<f32>, shape: &Shape) -> Result<Held<f32>> {
        Ok((shape.clone(), x.1))
    }
}

/// Other ops of the table.
struct Others;

impl Steps for Others {
    type Value = Tensor;
    fn op<O: Op>(&self, op: O, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        run(&op, x)
    }
    fn kept(&self, x: Tensor, shape: &Shape) -> Result<Tensor> {
        x.reshape(shape)
    }
}

fn first<V>(all: Vec<V>) -> Result<V> {
    all.into_iter().next().ok_or_else(|| Error::Internal("an op without outputs".into()))
}

/// The extents of a block.
#[derive(Clone, Copy)]
struct Extents {
    batch: usize,
    n: usize,
    past: usize,
    c: usize,
    hidden: usize,
}

impl AdaBlock {
    fn extents(&self, x: &[&Shape]) -> Option<Extents> {
        let (&[batch, n, c], &[hidden, _]) = (x[0].dims(), x[UP].dims()) else { return None };
        let &[_, past, _, _] = x[PAST].dims() else { return None };
        let heads = self.heads > 0 && c > 0 && c.is_multiple_of(self.heads);
        let head = [batch, past, self.heads, c.checked_div(self.heads)?];
        let layer = |at: usize, [cols, k]: [usize; 2]| {
            x[at].dims() == [cols, k] && x[at + 1].dims() == [cols]
        };
        let fits = heads
            && MODULATION.into_iter().all(|i| x[i].dims() == [batch, 1, c])
            && (PAST..PROJ).all(|i| x[i].dims() == head)
            && layer(QKV, [3 * c, c])
            && layer(PROJ, [c, c])
            && layer(UP, [hidden, c])
            && layer(DOWN, [c, hidden])
            && x.get(HEAT).is_none_or(|s| s.dims() == [self.heads, 1]);
        fits.then_some(Extents { batch, n, past, c, hidden })
    }

    /// The factor of the scores: 1 for unit lengths.
    fn scale(&self, c: usize, unit: bool) -> f64 {
        if unit { 1.0 } else { ((c / self.heads) as f64).powf(-0.5) }
    }

    /// y, keys and values.
    fn steps<S: Steps>(&self, s: &S, x: &[&S::Value], e: Extents) -> Result<Vec<S::Value>> {
        let rows = Shape::from([e.batch, e.n, e.c]);
        let kept = |v: S::Value| s.kept(v, &rows);
        let norm = |x: &S::Value, scale, shift| {
            kept(first(s.op(AdaNorm { eps: self.eps }, &[x, scale, shift])?)?)
        };
        let plain = FusedLinear { act: Act::None, keep: false };
        let h = norm(x[0], x[3], x[5])?;
        let qkv = first(s.op(Linear, &[&h, x[QKV], x[QKV + 1]])?)?;
        let split = s.op(
            UnitHeads { heads: self.heads },
            &[&qkv].into_iter().chain(x.get(HEAT).copied()).collect::<Vec<_>>(),
        )?;
        let [q, k, v] = <[S::Value; 3]>::try_from(split)
            .map_err(|_| Error::Internal("unit_heads has three outputs".into()))?;
        let join = |old, new| first(s.op(Concat { axis: 1 }, &[old, new])?);
        let (keys, values) = (join(x[PAST], &k)?, join(x[PAST + 1], &v)?);
        let scale = self.scale(e.c, x.len() > HEAT);
        let o = s.op(Attention { scale, mask: Mask::Full }, &[&q, &keys, &values])?;
        let o = kept(first(o)?)?;
        let m = first(s.op(plain.clone(), &[&o, x[PROJ], x[PROJ + 1], x[0], x[1]])?)?;
        let h = norm(&m, x[4], x[6])?;
        let gelu = FusedLinear { act: Act::Gelu, keep: false };
        let wide = first(s.op(gelu, &[&h, x[UP], x[UP + 1]])?)?;
        let wide = s.kept(wide, &[e.batch, e.n, e.hidden].into())?;
        let y = first(s.op(plain, &[&wide, x[DOWN], x[DOWN + 1], &m, x[2]])?)?;
        Ok(vec![y, k, v])
    }

    /// A face of the op from faces of its steps.
    fn face<R: Real, S: Steps<Value = Held<R>>>(
        &self,
        s: &S,
        x: &[In<'_, R>],
        y: &mut [Out<'_, R>],
    ) {
        let shapes: Vec<&Shape> = x.iter().map(|x| x.shape).collect();
        let Some(extents) = self.extents(&shapes) else { return };
        let held: Vec<Held<R>> = x.iter().map(|x| (x.shape.clone(), x.r().to_vec())).collect();
        let Ok(made) = self.steps(s, &held.iter().collect::<Vec<_>>(), extents) else { return };
        for (y, (_, made)) in y.iter_mut().zip(made) {
            y.r().copy_from_slice(&made);
        }
    }

    /// All blocks must be on the GPU at once: at most one a multiprocessor, and each with some jobs
    /// of a product, for every block makes the others' barriers longer.
    fn grid(&self, q: &Queue, e: Extents) -> Grid {
        let processors = usize::try_from(q.gpu().facts().multiprocessors).unwrap_or(1).max(1);
        let products = (3 * e.c).max(e.hidden).div_ceil(16);
        let queries = (e.batch * e.n * self.heads).div_ceil(8);
        Grid { together: true, ..Grid::line(products.max(queries).min(processors), 256) }
    }
}

impl Op for AdaBlock {
    const NAME: &'static str = "ada_block";
    const INPUTS: RangeInclusive<usize> = HEAT..=HEAT + 1;
    const DIFF: Diff = Diff::No(
        "a result has one derivative and this has three; passes that differentiate run the parts",
    );
    const F32_INPUTS: &'static [usize] = &[HEAT];
    const COMPOSED: Option<Composed<Self>> = Some(|op, x| {
        let shapes: Vec<&Shape> = x.iter().map(|x| x.shape()).collect();
        op.extents(&shapes).map(|e| op.steps(&Others, x, e)).transpose()
    });
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| op.face(&Fast, x, y));
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, stream, x, y| {
        let shapes: Vec<&Shape> = x.iter().map(|x| x.shape).collect();
        let (Some(e), [y, k, v]) = (op.extents(&shapes), y) else {
            return Err(Error::Internal("ada_block was given other outputs than it has".into()));
        };
        let (Extents { batch, n, past, c, hidden }, unit) = (e, x.len() - HEAT);
        if c / op.heads > WIDEST {
            let what =
                format!("its kernel takes heads of at most {WIDEST}, found {}", shapes[PAST]);
            return Err(Error::shape(Self::NAME, what));
        }
        let (Window { room, at }, rows) = (k.window(), batch * n);
        let (mut y, mut k, mut v) = (y.get::<T>()?, k.get_within::<T>()?, v.get_within::<T>()?);
        if rows == 0 {
            return Ok(());
        }
        let mut h = Buffer::<T>::new(stream, rows * c)?;
        let mut qkv = Buffer::<f32>::new(stream, rows * 3 * c)?;
        let mut middle = Buffer::<f32>::new(stream, rows * c)?;
        let mut wide = Buffer::<T>::new(stream, rows * hidden)?;
        let mut gate = stream.gate()?;
        let heat = x.get(HEAT).map_or(Ok(Slice::none(stream)), CudaIn::get::<f32>)?;
        let part = |i: usize| x[i].get::<T>();
        launch::ada_block_fwd(
            stream,
            op.grid(stream, e),
            &mut y,
            &mut k,
            &mut v,
            &mut h.slice_mut(),
            &mut qkv.slice_mut(),
            &mut middle.slice_mut(),
            &mut wide.slice_mut(),
            &mut gate.slice_mut(),
            &part(0)?,
            &part(1)?,
            &part(2)?,
            &part(3)?,
            &part(4)?,
            &part(5)?,
            &part(6)?,
            &part(QKV)?,
            &part(QKV + 1)?,
            &heat,
            &part(PAST)?,
            &part(PAST + 1)?,
            &part(PROJ)?,
            &part(PROJ + 1)?,
            &part(UP)?,
            &part(UP + 1)?,
            &part(DOWN)?,
            &part(DOWN + 1)?,
            batch,
            n,
            past,
            room,
            at,
            c,
            op.heads,
            hidden,
            unit,
            op.eps as f32,
            HEAD_EPS as f32,
            LN_MAX_SCALE as f32,
            op.scale(c, unit > 0) as f32,
        )
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        match self.extents(x) {
            Some(Extents { batch, n, c, .. }) => {
                let heads = Shape::from([batch, n, self.heads, c / self.heads]);
                Ok(vec![x[0].clone(), heads.clone(), heads])
            }
            None => {
                let found: Vec<String> = x.iter().map(ToString::to_string).collect();
                let what = format!(
                    "wants x [B, n, C], six rows [B, 1, C], layers and keys of {} heads; found {}",
                    self.heads,
                    found.join(", ")
                );
                Err(Error::shape(Self::NAME, what))
            }
        }
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        self.face(&References(std::marker::PhantomData), x, y);
    }
    fn cases() -> Cases {
        Cases {
            named: vec![
                case("first", ([2, 1, 16], 0), [2, 32], true),
                case("scale", ([2, 4, 16], 5), [4, 24], true),
                case("odd", ([3, 5, 21], 2), [3, 13], true),
                case("plain", ([1, 3, 24], 4), [2, 40], false),
                case("past_a_tile", ([1, 35, 8], 31), [1, 8], true),
                case("no_samples", ([0, 3, 8], 2), [2, 8], true),
                case("no_tokens", ([2, 0, 8], 2), [2, 8], true),
            ],
            draw: |d| {
                let (heads, per) = (d.size(1, 3), d.size(1, 12));
                let x = [d.size(1, 3), d.size(1, 9), heads * per.max(2)];
                case("drawn", (x, d.size(0, 40)), [heads, d.size(1, 40)], d.coin())
            },
            bench: vec![
                case("d16_scale_1", ([2, 1, 1024], 0), [16, 4096], true),
                case("d16_scale_6", ([2, 36, 1024], 55), [16, 4096], true),
                case("demo_scale_4", ([2, 16, 192], 14), [6, 768], true),
            ],
        }
    }
}

/// Weights of the size that a trained layer has, and gates that leave most of x in the result: sums
/// of bf16 values say little about their last digits.
fn case(
    name: &str,
    ([b, n, c], past): ([usize; 3], usize),
    [heads, hidden]: [usize; 2],
    unit: bool,
) -> Case {
    let layer = |cols: usize, k: usize| {
        let size = (3.0 / k as f64).sqrt();
        [Input::uniform([cols, k], -size, size), Input::uniform([cols], -0.5, 0.5)]
    };
    let row = |size: f64| Input::uniform([b, 1, c], -size, size);
    let kept = Input::uniform([b, past, heads, c / heads], -1.0, 1.0);
    let mut inputs = vec![Input::normal([b, n, c])];
    inputs.extend([row(0.2), row(0.2), row(0.5), row(0.5), row(0.5), row(0.5)]);
    inputs.extend(layer(3 * c, c));
    inputs.extend([kept.clone(), kept]);
    inputs.extend(layer(c, c).into_iter().chain(layer(hidden, c)).chain(layer(c, hidden)));
    if unit {
        inputs.push(Input::uniform([heads, 1], 0.5, 2.0));
    }
    Case::new(name, AdaBlock { heads, eps: 1e-6 }, inputs)
}
