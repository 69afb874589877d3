//! A linear layer, alone or with what follows it, and its tangent: the rows of x and of dx share
//! one read of the weights.

use std::ops::RangeInclusive;

use super::cuda::Size;
use super::fused::{Act, FusedLinear};
use super::linear::{Linear, layer};
use super::parted::PartedLinear;
use crate::device::Held;
use crate::device::cuda::Queue;
use crate::device::kernel::{Bf16, Grid, Slice, SliceMut};
use crate::device::launch::gemm_dual as launch;
use crate::error::{Error, Result};
use crate::ops::broadcast::groups;
use crate::ops::composed::{self, Composed};
use crate::ops::cuda::{CudaIn, CudaOut, Kernels, PROCESSORS, variant};
use crate::ops::{Case, Cases, Diff, DynOp, FIRST_ORDER, In, Input, Op, Out, Real};
use crate::tensor::Shape;

/// y = residual + gate act(x w^T + b) and dy along dx and those of residual and gate.
///
/// Inputs are the layer's as [`Linear`], [`PartedLinear`] and [`FusedLinear`] have them, then dx,
/// then those of the residual's and the gate's tangents that are not zero. Outputs are the layer's,
/// then dy.
#[derive(Clone, Debug)]
pub struct LinearDual {
    /// How many inputs the layer has: x, w, then b, residual and gate as far as they go.
    pub inputs: usize,
    /// The activation.
    pub act: Act,
    /// Whether x w^T + b is an output, as of [`FusedLinear`].
    pub keep: bool,
    /// Whether the tangents of residual and gate are given.
    pub given: [bool; 2],
    /// The pieces that y and dy come in, as of [`PartedLinear`]; 1 of other layers.
    pub parts: usize,
}

impl LinearDual {
    /// Of a layer whose inputs have these tangents; weights stand still, and x moves.
    pub(super) fn of(act: Act, keep: bool, parts: usize, given: &[bool]) -> Option<Box<dyn DynOp>> {
        let moves = |i: usize| given.get(i).copied().unwrap_or(false);
        let op = Self { inputs: given.len(), act, keep, given: [moves(3), moves(4)], parts };
        (moves(0) && !moves(1) && !moves(2)).then(|| Box::new(op) as Box<dyn DynOp>)
    }

    /// Input `i` of the layer, if it has so many.
    fn input(&self, i: usize) -> Option<usize> {
        (i < self.inputs).then_some(i)
    }

    /// Which input is the tangent of the residual (0) or the gate (1).
    fn place(&self, t: usize) -> Option<usize> {
        self.given[t].then(|| self.inputs + 1 + usize::from(t == 1 && self.given[0]))
    }

    /// Rows of the gate, 0 without one.
    fn gates(&self, x: &Shape, w: &Shape, gate: Option<&Shape>) -> usize {
        gate.and_then(|g| groups(&x.with_last(w.dims()[0]), g)).unwrap_or(0)
    }

    fn tiles<T: Pairs>(
        &self,
        q: &Queue,
        x: &[CudaIn<'_>],
        y: &mut [CudaOut],
        side: usize,
    ) -> Result<()> {
        let part = |i: Option<usize>| i.map_or(Ok(Slice::none(q)), |i| x[i].get::<T>());
        let gate = self.input(4).map(|i| x[i].shape);
        let [y, kept @ .., dy] = y else { return Err(outputs()) };
        let kept = match kept {
            [kept] => kept.get()?,
            _ => SliceMut::none(q),
        };
        let call = Pair {
            size: layer(&[x[0].shape, x[1].shape]),
            y: y.get()?,
            dy: dy.get()?,
            kept,
            x: x[0].get()?,
            dx: x[self.inputs].get()?,
            w: x[1].get()?,
            bias: part(self.input(2))?,
            residual: part(self.input(3))?,
            dresidual: part(self.place(0))?,
            gate: part(self.input(4))?,
            dgate: part(self.place(1))?,
            gates: self.gates(x[0].shape, x[1].shape, gate),
            act: self.act as usize,
            parts: self.parts,
        };
        T::launch(q, call, side)
    }

    /// The layer.
    fn layer(&self) -> Box<dyn DynOp> {
        match (self.inputs, self.parts) {
            (2, 1) => Box::new(Linear),
            (_, 1) => Box::new(FusedLinear { act: self.act, keep: self.keep }),
            (_, parts) => Box::new(PartedLinear { parts }),
        }
    }

    /// Predicted, not measured on a card yet: the larger tiles where they fill one.
    fn fastest(x: &[&Shape]) -> usize {
        let Size { m, n, .. } = layer(x);
        usize::from((2 * m).div_ceil(128) * n.div_ceil(128) < PROCESSORS)
    }
}

fn outputs() -> Error {
    Error::Internal("a layer and its tangent are two or three outputs".into())
}

/// One launch; absent parts have no elements.
struct Pair<'a, T> {
    size: Size,
    y: SliceMut<'a, T>,
    dy: SliceMut<'a, T>,
    kept: SliceMut<'a, T>,
    x: Slice<'a, T>,
    dx: Slice<'a, T>,
    w: Slice<'a, T>,
    bias: Slice<'a, T>,
    residual: Slice<'a, T>,
    dresidual: Slice<'a, T>,
    gate: Slice<'a, T>,
    dgate: Slice<'a, T>,
    gates: usize,
    act: usize,
    parts: usize,
}

/// Types of elements and their kernels.
trait Pairs: Held {
    /// Launches tiles of this side.
    fn launch(q: &Queue, p: Pair<'_, Self>, side: usize) -> Result<()>;
}

macro_rules! pairs {
    ($t:ty, $entry:ident, $threads:literal) => {
        impl Pairs for $t {
            fn launch(q: &Queue, mut p: Pair<'_, Self>, side: usize) -> Result<()> {
                let launch = match side {
                    64 => launch::$entry::<$t, 64>,
                    _ => launch::$entry::<$t, 128>,
                };
                let Size { m, n, k, .. } = p.size;
                let has = |s: &Slice<'_, $t>| usize::from(!s.is_empty());
                let keep = usize::from(!p.kept.is_empty());
                let piece = if p.parts > 1 { n / p.parts } else { 0 };
                launch(
                    q,
                    Grid::line((2 * m).div_ceil(side) * n.div_ceil(side), $threads),
                    &mut p.y,
                    &mut p.dy,
                    &mut p.kept,
                    &p.x,
                    &p.dx,
                    &p.w,
                    &p.bias,
                    &p.residual,
                    &p.dresidual,
                    &p.gate,
                    &p.dgate,
                    m,
                    n,
                    k,
                    keep,
                    has(&p.bias),
                    has(&p.residual),
                    has(&p.dresidual),
                    p.gates,
                    if p.dgate.is_empty() { 0 } else { p.gates },
                    p.act,
                    piece,
                )
            }
        }
    };
}
pairs!(f32, linear_dual_fma_fwd, 256);
pairs!(Bf16, linear_dual_mma_fwd, 128);

impl Op for LinearDual {
    const NAME: &'static str = "linear_dual";
    const INPUTS: RangeInclusive<usize> = 3..=8;
    const DIFF: Diff = FIRST_ORDER;
    const COMPOSED: Option<Composed<Self>> = Some(|op, x| {
        let part = |t: usize| op.place(t).and_then(|at| x.get(at)).copied();
        let tangents = [Some(x[op.inputs]), None, None, part(0), part(1)];
        composed::apart(&*op.layer(), &x[..op.inputs], &tangents[..op.inputs])
    });
    const CUDA: Kernels<Self> = Kernels {
        variants: &[
            variant!("tiles 128", [f32, bf16], |op, q, x, y| op.tiles::<T>(q, x, y, 128)),
            variant!("tiles 64", [f32, bf16], |op, q, x, y| op.tiles::<T>(q, x, y, 64)),
        ],
        fastest: |_, _, x| Self::fastest(x),
    };

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let n = self.inputs;
        let count = n + 1 + self.given.iter().filter(|g| **g).count();
        if !(2..=5).contains(&n) || x.len() != count {
            let what = format!("a layer of {n} inputs and its tangents are {count}, not these");
            return Err(Error::shape(Self::NAME, what));
        }
        let plain = self.act == Act::None && !self.keep && n <= 3;
        if self.parts != 1 && !plain {
            return Err(Error::shape(Self::NAME, "pieces go through nothing"));
        }
        let mut outs = self.layer().shapes(&x[..n])?;
        let like = |t: usize, i: usize| {
            self.place(t).is_none_or(|at| self.input(i).is_some_and(|i| x[at] == x[i]))
        };
        if x[n] != x[0] || !like(0, 3) || !like(1, 4) {
            return Err(Error::shape(Self::NAME, "a tangent is not of its value's shape"));
        }
        outs.push(outs[0].clone());
        Ok(outs)
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let Size { m, n, k, .. } = layer(&[x[0].shape, x[1].shape]);
        let part = |i: Option<usize>| i.map(|i| x[i].r());
        let (bias, residual) = (part(self.input(2)), part(self.input(3)));
        let (gate, dx) = (part(self.input(4)), x[self.inputs].r());
        let (dresidual, dgate) = (part(self.place(0)), part(self.place(1)));
        let gates = self.gates(x[0].shape, x[1].shape, self.input(4).map(|i| x[i].shape));
        let (each, piece) = (m / gates.max(1), n / self.parts.max(1));
        let last = y.len() - 1;
        for i in 0..m {
            for j in 0..n {
                let w = |l: usize| x[1].r()[j * k + l];
                let products = (0..k).map(|l| x[0].r()[i * k + l] * w(l));
                let sum = R::sum(products.chain(bias.map(|b| b[j])));
                let along = R::sum((0..k).map(|l| dx[i * k + l] * w(l)));
                let (mut v, mut d) = (self.act.f(sum), self.act.df(sum, along));
                if let Some(gate) = gate {
                    let own = i / each.max(1) * n + j;
                    d = gate[own] * d;
                    if let Some(dgate) = dgate {
                        d = d + dgate[own] * v;
                    }
                    v = gate[own] * v;
                }
                let at = (j / piece * m + i) * piece + j % piece;
                if let Some(residual) = residual {
                    v = residual[at] + v;
                }
                if let Some(dresidual) = dresidual {
                    d = dresidual[at] + d;
                }
                y[0].r()[at] = v;
                if self.keep {
                    y[1].r()[at] = sum;
                }
                y[last].r()[at] = d;
            }
        }
    }
    fn cases() -> Cases {
        let plain = |name: &str, x: &[usize], o: usize, inputs: usize| {
            let given = [false; 2];
            let op = LinearDual { inputs, act: Act::None, keep: false, given, parts: 1 };
            case(name, op, x, o, &[])
        };
        let full = |act: Act, keep: bool, given: [bool; 2]| {
            let inputs = 5;
            LinearDual { inputs, act, keep, given, parts: 1 }
        };
        let after = |act: Act, keep: bool| {
            let given = [false; 2];
            LinearDual { inputs: 3, act, keep, given, parts: 1 }
        };
        let onto = |given| LinearDual { inputs: 4, act: Act::None, keep: false, given, parts: 1 };
        let cut = |name: &str, x: &[usize], o: usize, inputs: usize, parts: usize| {
            let given = [false; 2];
            let op = LinearDual { inputs, act: Act::None, keep: false, given, parts };
            case(name, op, x, o, &[])
        };
        let all = [true; 2];
        Cases {
            named: vec![
                plain("plain", &[33, 18], 65, 2),
                plain("bias", &[3, 5, 20], 7, 3),
                plain("one_row", &[1, 64], 130, 3),
                plain("several_tiles", &[70, 136], 136, 3),
                cut("pieces", &[2, 5, 20], 24, 3, 3),
                cut("odd_pieces", &[3, 35, 21], 35, 2, 5),
                case("gelu", after(Act::Gelu, false), &[2, 20, 24], 72, &[]),
                case("silu_kept", after(Act::Silu, true), &[33, 18], 65, &[]),
                case("residual", onto([true, false]), &[2, 3, 9], 12, &[]),
                case("residual_at_rest", onto([false; 2]), &[2, 3, 9], 12, &[]),
                case("gate_per_sample", full(Act::None, true, all), &[2, 35, 24], 72, &[2, 1, 72]),
                case("gate_per_row", full(Act::Gelu, false, all), &[2, 3, 9], 11, &[2, 3, 11]),
                case("gate_at_rest", full(Act::Silu, true, [true, false]), &[2, 4, 16], 8, &[8]),
                case("gate_alone", full(Act::None, false, [false, true]), &[8, 16], 8, &[8, 8]),
                case("no_rows", full(Act::Gelu, true, all), &[0, 4], 3, &[0, 3]),
            ],
            draw: |d| {
                let (b, n) = (d.size(1, 3), d.size(1, 15));
                let (i, o) = (d.size(1, 70), d.size(1, 40));
                let act = d.pick(&[Act::None, Act::Gelu, Act::Silu]);
                let gate = d.pick(&[[b, 1, o], [b, n, o], [1, 1, o]]);
                let (keep, given) = (d.coin(), [d.coin(), d.coin()]);
                let op = LinearDual { inputs: 5, act, keep, given, parts: 1 };
                case("drawn", op, &[b, n, i], o, &gate)
            },
            bench: vec![
                plain("phi_m_qkv", &[8, 256, 512], 1536, 3),
                case("phi_m_fc1", after(Act::Gelu, false), &[8, 256, 512], 2048, &[]),
                case("phi_m_fc2", full(Act::None, false, all), &[8, 256, 2048], 512, &[8, 1, 512]),
            ],
        }
    }
}

/// A case of a layer from x to [.., o].
fn case(name: &str, op: LinearDual, x: &[usize], o: usize, gate: &[usize]) -> Case {
    let (i, y) = (x[x.len() - 1], [&x[..x.len() - 1], &[o]].concat());
    let layer = [x.to_vec(), vec![o, i], vec![o], y.clone(), gate.to_vec()];
    let moved = [y, gate.to_vec()].into_iter().zip(op.given).filter(|(_, given)| *given);
    let shapes = layer.into_iter().take(op.inputs).chain([x.to_vec()]);
    let inputs = shapes.chain(moved.map(|(shape, _)| shape)).map(Input::normal);
    Case::new(name, op, inputs.collect())
}
