//! Op: one operation with its faces side by side.
//!
//! A file of this folder defines ops; each states its shapes, its mathematics once
//! ([`Op::reference`]), an optional fast f32 path ([`Op::CPU`]), its derivative rules and its test
//! cases. [`DynOp`] is the same thing behind a pointer: what the tape stores and what the tests
//! walk.

use std::ops::RangeInclusive;

use half::bf16;

use crate::device::cuda::Queue;
use crate::device::pack::Weights;
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

use super::cases::Cases;
use super::composed::Composed;
use super::cuda::{CudaIn, CudaOut, Kernels, Precision, Site};
use super::layout::stacked;
use super::real::{Dual, Real, Running};
use super::saved::{Saved, Saves};

/// An input as a face sees it.
#[derive(Clone, Copy)]
pub struct In<'a, R> {
    /// Extents.
    pub shape: &'a Shape,
    real: &'a [R],
    half: Option<&'a [bf16]>,
    int: &'a [i32],
}

impl<'a, R> In<'a, R> {
    /// A real input.
    pub fn real(shape: &'a Shape, data: &'a [R]) -> Self {
        Self { shape, real: data, half: None, int: &[] }
    }
    /// An integer input.
    pub fn int(shape: &'a Shape, data: &'a [i32]) -> Self {
        Self { shape, real: &[], half: None, int: data }
    }
    /// Weights in bf16, for a face that takes them so ([`Op::HALVES`]).
    pub fn half(shape: &'a Shape, data: &'a [bf16]) -> Self {
        Self { shape, real: &[], half: Some(data), int: &[] }
    }
    /// The real elements; empty for an integer input.
    pub fn r(&self) -> &'a [R] {
        self.real
    }
    /// The integer elements; empty for a real input.
    pub fn i(&self) -> &'a [i32] {
        self.int
    }
}

impl<'a> In<'a, f32> {
    /// The real elements, in what they are stored in.
    pub fn weights(&self) -> Weights<'a> {
        self.half.map_or(Weights::F32(self.real), Weights::Bf16)
    }
}

/// An output as a face writes it. Every element must be written: buffers arrive with arbitrary
/// contents.
pub enum Out<'a, R> {
    /// Real elements.
    Real(&'a mut [R]),
    /// Integer elements.
    Int(&'a mut [i32]),
}

impl<R> Out<'_, R> {
    /// The real elements; empty for an integer output.
    pub fn r(&mut self) -> &mut [R] {
        match self {
            Self::Real(v) => v,
            Self::Int(_) => &mut [],
        }
    }
    /// The integer elements; empty for a real output.
    pub fn i(&mut self) -> &mut [i32] {
        match self {
            Self::Int(v) => v,
            Self::Real(_) => &mut [],
        }
    }
}

/// Whether an op has derivative rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Diff {
    /// `jvp` and `vjp` are defined.
    Yes,
    /// They are not, and this is why.
    No(&'static str),
}

/// Why the second derivative of a derivative kernel is never asked for.
pub const FIRST_ORDER: Diff = Diff::No(
    "it is itself a derivative; MeanFlow carries tangents beside untaped primals, so no \
     derivative of a derivative is ever needed",
);

/// The fast f32 path of an op: same contract as the reference, within `Running`'s bound of it.
pub type CpuFace<O> = fn(&O, &[In<'_, f32>], &mut [Out<'_, f32>]);

/// Gradients by input, `None` where not wanted or zero.
pub type Grads = Vec<Option<Tensor>>;

/// One operation. The first output is the result; further outputs are results of fused derivative
/// ops or statistics kept for the backward pass.
pub trait Op: Clone + Send + Sync + Sized + 'static {
    /// The name in messages, tests and benches.
    const NAME: &'static str;
    /// How many inputs there may be; [`crate::ops::run`] refuses others.
    const INPUTS: RangeInclusive<usize>;
    /// Indices of integer inputs.
    const INT_INPUTS: &'static [usize] = &[];
    /// Indices of integer outputs.
    const INT_OUTPUTS: &'static [usize] = &[];
    /// What the backward pass needs.
    const SAVES: Saves = Saves::NOTHING;
    /// Whether there are derivative rules.
    const DIFF: Diff = Diff::Yes;
    /// Indices of inputs that [`Op::CPU`] also takes in bf16 ([`In::weights`]).
    const HALVES: &'static [usize] = &[];
    /// The fast path, where the reference is too slow to use.
    const CPU: Option<CpuFace<Self>> = None;
    /// The same by other ops, where this one spares their passes.
    const COMPOSED: Option<Composed<Self>> = None;
    /// The kernels' launches.
    const CUDA: Kernels<Self> = Kernels::NONE;
    /// Whether the result is the input under another shape: [`crate::ops::run`] then shares the
    /// elements instead of running a face.
    const SHARES: bool = false;
    /// Indices of inputs that kernels take in f32 when the others are in bf16: statistics.
    const F32_INPUTS: &'static [usize] = &[];
    /// Indices of outputs that kernels give in f32 when the others are in bf16.
    const F32_OUTPUTS: &'static [usize] = &[];

    /// Shapes of all outputs, or what does not fit.
    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>>;

    /// The mathematics.
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]);

    /// Tangent of the result for tangents of the inputs (`None` is zero). `None` back means zero.
    fn jvp(&self, _at: &Saved, _dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        Err(Error::NotDifferentiable { op: Self::NAME, reason: "no jvp rule" })
    }

    /// This op and its tangent as one op, where that saves reading or computing something twice: it
    /// takes the inputs, then the tangents of those that have one, and gives this op's outputs and
    /// that of the result. A dual pass runs it on a GPU in place of this op and its jvp rule.
    fn dual(&self, _x: &[&Shape], _given: &[bool]) -> Option<Box<dyn DynOp>> {
        None
    }

    /// Gradients of the wanted inputs for the gradient `gy` of the result.
    fn vjp(&self, _at: &Saved, _gy: &Tensor, _want: &[bool]) -> Result<Grads> {
        Err(Error::NotDifferentiable { op: Self::NAME, reason: "no vjp rule" })
    }

    /// Which entry of its input's outermost axis the result is, if it is one: on a GPU
    /// [`crate::ops::run`] then shares the elements instead of running a face, and the tape hands
    /// gradients of entries to [`Op::vjp_of_parts`] without a sum over them.
    fn part(&self) -> Option<usize> {
        None
    }

    /// [`Op::vjp`] for the gradients of the entries of the result's outermost axis.
    fn vjp_of_parts(&self, at: &Saved, parts: &[Tensor], want: &[bool]) -> Result<Grads> {
        Op::vjp(self, at, &stacked(parts)?, want)
    }

    /// Integer answers: why `got` is not acceptable for these inputs. The default wants the f64
    /// reference's own answer; an op where ties or rounding may decide states its predicate here.
    fn refuses(&self, x: &[In<'_, f64>], got: &[Vec<i32>]) -> Option<String> {
        let shapes: Vec<&Shape> = x.iter().map(|i| i.shape).collect();
        let outs = self.shapes(&shapes).ok()?;
        let mut want: Vec<(Vec<f64>, Vec<i32>)> =
            outs.iter().map(|s| (vec![0.0; s.len()], vec![0; s.len()])).collect();
        let is_int = |i: &usize| Self::INT_OUTPUTS.contains(i);
        let mut views: Vec<Out<'_, f64>> = (0..)
            .zip(want.iter_mut())
            .map(|(i, (r, n))| if is_int(&i) { Out::Int(n) } else { Out::Real(r) })
            .collect();
        self.reference(x, &mut views);
        drop(views);
        let ints = Self::INT_OUTPUTS.iter().map(|&i| &want[i].1);
        ints.zip(got).find(|(w, g)| w != g).map(|(w, g)| format!("wanted {w:?}, got {g:?}"))
    }

    /// Named shapes, a generator of random ones and bench shapes.
    fn cases() -> Cases;
}

fn no_kernel(precision: Precision, variant: Option<&str>) -> String {
    match variant {
        Some(name) => format!("has no CUDA kernel {name:?} for this in {precision:?}"),
        None => format!("has no CUDA kernel in {precision:?} yet; use --device cpu"),
    }
}

macro_rules! dyn_op {
    ($($face:ident: $scalar:ty),*) => {
        /// An [`Op`] behind a pointer.
        pub trait DynOp: Send + Sync {
            /// [`Op::NAME`].
            fn name(&self) -> &'static str;
            /// [`Op::INT_INPUTS`].
            fn int_inputs(&self) -> &'static [usize];
            /// [`Op::INPUTS`].
            fn inputs(&self) -> RangeInclusive<usize>;
            /// [`Op::INT_OUTPUTS`].
            fn int_outputs(&self) -> &'static [usize];
            /// [`Op::DIFF`].
            fn diff(&self) -> Diff;
            /// [`Op::SAVES`].
            fn saves(&self) -> Saves;
            /// Whether [`Op::CPU`] exists.
            fn has_cpu(&self) -> bool;
            /// Whether [`Op::COMPOSED`] exists.
            fn has_composed(&self) -> bool;
            /// [`Op::COMPOSED`]: the first outputs by other ops; none where there is nothing to
            /// compose.
            ///
            /// # Errors
            /// Those of the other ops.
            fn composed(&self, x: &[&Tensor]) -> Result<Option<Vec<Tensor>>>;
            /// [`Op::shapes`].
            fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>>;
            /// [`Op::jvp`].
            fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>>;
            /// [`Op::dual`].
            fn dual(&self, x: &[&Shape], given: &[bool]) -> Option<Box<dyn DynOp>>;
            /// [`Op::vjp`].
            fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads>;
            /// [`Op::part`].
            fn part(&self) -> Option<usize>;
            /// [`Op::vjp_of_parts`].
            fn vjp_of_parts(&self, at: &Saved, parts: &[Tensor], want: &[bool]) -> Result<Grads>;
            /// [`Op::refuses`].
            fn refuses(&self, x: &[In<'_, f64>], got: &[Vec<i32>]) -> Option<String>;
            /// [`Op::HALVES`].
            fn halves(&self) -> &'static [usize];
            /// [`Op::CPU`], or the reference where there is none.
            fn cpu(&self, x: &[In<'_, f32>], y: &mut [Out<'_, f32>]);
            /// Whether [`Op::CUDA`] exists.
            fn has_cuda(&self) -> bool;
            /// [`Op::SHARES`].
            fn shares(&self) -> bool;
            /// [`Op::F32_INPUTS`].
            fn f32_inputs(&self) -> &'static [usize];
            /// [`Op::F32_OUTPUTS`].
            fn f32_outputs(&self) -> &'static [usize];
            /// Names of the variants of [`Op::CUDA`] that take these shapes there.
            fn variants(&self, site: Site<'_>, x: &[&Shape]) -> Vec<&'static str>;
            /// The name of the variant that runs unless one is named.
            fn fastest(&self, site: Site<'_>, x: &[&Shape]) -> Option<&'static str>;
            /// A variant of [`Op::CUDA`], the fastest unless one is named.
            ///
            /// # Errors
            /// No such variant, or none at all; those of the launch.
            fn cuda(
                &self,
                q: &Queue,
                precision: Precision,
                variant: Option<&str>,
                x: &[CudaIn<'_>],
                y: &mut [CudaOut],
            ) -> Result<()>;
            /// A copy for the tape.
            fn boxed(&self) -> Box<dyn DynOp>;
            $(
                #[doc = concat!("[`Op::reference`] at `", stringify!($scalar), "`.")]
                fn $face(&self, x: &[In<'_, $scalar>], y: &mut [Out<'_, $scalar>]);
            )*
        }

        impl<O: Op> DynOp for O {
            fn name(&self) -> &'static str {
                O::NAME
            }
            fn inputs(&self) -> RangeInclusive<usize> {
                O::INPUTS
            }
            fn int_inputs(&self) -> &'static [usize] {
                O::INT_INPUTS
            }
            fn int_outputs(&self) -> &'static [usize] {
                O::INT_OUTPUTS
            }
            fn diff(&self) -> Diff {
                O::DIFF
            }
            fn saves(&self) -> Saves {
                O::SAVES
            }
            fn has_cpu(&self) -> bool {
                O::CPU.is_some()
            }
            fn has_composed(&self) -> bool {
                O::COMPOSED.is_some()
            }
            fn composed(&self, x: &[&Tensor]) -> Result<Option<Vec<Tensor>>> {
                O::COMPOSED.map_or(Ok(None), |composed| composed(self, x))
            }
            fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
                Op::shapes(self, x)
            }
            fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
                Op::jvp(self, at, dx)
            }
            fn dual(&self, x: &[&Shape], given: &[bool]) -> Option<Box<dyn DynOp>> {
                Op::dual(self, x, given)
            }
            fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
                Op::vjp(self, at, gy, want)
            }
            fn part(&self) -> Option<usize> {
                Op::part(self)
            }
            fn vjp_of_parts(&self, at: &Saved, parts: &[Tensor], want: &[bool]) -> Result<Grads> {
                Op::vjp_of_parts(self, at, parts, want)
            }
            fn refuses(&self, x: &[In<'_, f64>], got: &[Vec<i32>]) -> Option<String> {
                Op::refuses(self, x, got)
            }
            fn halves(&self) -> &'static [usize] {
                O::HALVES
            }
            fn cpu(&self, x: &[In<'_, f32>], y: &mut [Out<'_, f32>]) {
                match O::CPU {
                    Some(face) => face(self, x, y),
                    None => self.reference(x, y),
                }
            }
            fn has_cuda(&self) -> bool {
                !O::CUDA.variants.is_empty()
            }
            fn shares(&self) -> bool {
                O::SHARES
            }
            fn f32_inputs(&self) -> &'static [usize] {
                O::F32_INPUTS
            }
            fn f32_outputs(&self) -> &'static [usize] {
                O::F32_OUTPUTS
            }
            fn variants(&self, site: Site<'_>, x: &[&Shape]) -> Vec<&'static str> {
                let fit = O::CUDA.variants.iter().filter(|v| v.fits(self, site, x));
                fit.map(|v| v.name).collect()
            }
            fn fastest(&self, site: Site<'_>, x: &[&Shape]) -> Option<&'static str> {
                let index = (O::CUDA.fastest)(self, site, x);
                O::CUDA.variants.get(index).map(|v| v.name)
            }
            fn cuda(
                &self,
                q: &Queue,
                precision: Precision,
                variant: Option<&str>,
                x: &[CudaIn<'_>],
                y: &mut [CudaOut],
            ) -> Result<()> {
                let shapes: Vec<&Shape> = x.iter().map(|x| x.shape).collect();
                let site = Site::on(precision, q.gpu());
                let name = variant.or_else(|| self.fastest(site, &shapes));
                let chosen = O::CUDA.variants.iter().find(|v| Some(v.name) == name);
                let chosen = chosen.filter(|v| v.fits(self, site, &shapes));
                match chosen.and_then(|v| v.at(precision)) {
                    Some(face) => face(self, q, x, y),
                    None => Err(Error::shape(O::NAME, no_kernel(precision, variant))),
                }
            }
            fn boxed(&self) -> Box<dyn DynOp> {
                Box::new(self.clone())
            }
            $(
                fn $face(&self, x: &[In<'_, $scalar>], y: &mut [Out<'_, $scalar>]) {
                    self.reference(x, y);
                }
            )*
        }
    };
}

dyn_op!(reference_f32: f32, reference_f64: f64, reference_dual: Dual, reference_running: Running);
