//! Activations and other functions of one variable; each is a formula, its derivative and a name.

mod dual;

use super::kinds::{Pointwise, pointwise};
use super::{Case, Cases, DynOp, Grads, In, Input, Out, Real, Saved, call};
use crate::error::Result;
use crate::tensor::{Shape, Tensor};

pub use dual::SiluDual;

/// GELU, tanh form: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
#[derive(Clone, Debug)]
pub struct Gelu;

const GELU_C: f64 = 0.797_884_560_802_865_4;
const GELU_A: f64 = 0.044_715;

impl Pointwise for Gelu {
    #[inline(always)]
    fn f<R: Real>(&self, x: R) -> R {
        let t = (R::of(GELU_C) * (x + R::of(GELU_A) * x * x * x)).tanh();
        R::of(0.5) * x * (R::of(1.0) + t)
    }
    #[inline(always)]
    fn df<R: Real>(&self, x: R) -> R {
        let t = (R::of(GELU_C) * (x + R::of(GELU_A) * x * x * x)).tanh();
        let dt = (R::of(1.0) - t * t) * R::of(GELU_C) * (R::of(1.0) + R::of(3.0 * GELU_A) * x * x);
        R::of(0.5) * (R::of(1.0) + t) + R::of(0.5) * x * dt
    }
}
pointwise!(Gelu, GeluVjp, "gelu", "gelu_vjp", Input::normal, Gelu, gelu_fwd, gelu_vjp);

/// SiLU: x sigmoid(x).
#[derive(Clone, Debug)]
pub struct Silu;

impl Pointwise for Silu {
    #[inline(always)]
    fn f<R: Real>(&self, x: R) -> R {
        x * x.sigmoid()
    }
    #[inline(always)]
    fn df<R: Real>(&self, x: R) -> R {
        let s = x.sigmoid();
        s + x * s * (R::of(1.0) - s)
    }
    fn at_once(&self) -> Option<Box<dyn DynOp>> {
        Some(Box::new(SiluDual))
    }
}
pointwise!(Silu, SiluVjp, "silu", "silu_vjp", Input::normal, Silu, silu_fwd, silu_vjp);

/// Leaky ReLU: x for x > 0, else slope x. Slope 0 is ReLU.
#[derive(Clone, Debug)]
pub struct LeakyRelu {
    /// Slope of the negative side.
    pub slope: f64,
}

impl Pointwise for LeakyRelu {
    #[inline(always)]
    fn f<R: Real>(&self, x: R) -> R {
        // Written so that NaN stays NaN.
        if x > R::of(0.0) { x } else { R::of(self.slope) * x }
    }
    #[inline(always)]
    fn df<R: Real>(&self, x: R) -> R {
        if x > R::of(0.0) { R::of(1.0) } else { R::of(self.slope) }
    }
}
pointwise!(
    LeakyRelu,
    LeakyReluVjp,
    "leaky_relu",
    "leaky_relu_vjp",
    |s| Input::away(s, 0.01),
    LeakyRelu { slope: 0.2 },
    leaky_relu_fwd,
    leaky_relu_vjp,
    slope
);

/// Hyperbolic tangent.
#[derive(Clone, Debug)]
pub struct Tanh;

impl Pointwise for Tanh {
    #[inline(always)]
    fn f<R: Real>(&self, x: R) -> R {
        x.tanh()
    }
    #[inline(always)]
    fn df<R: Real>(&self, x: R) -> R {
        let t = x.tanh();
        R::of(1.0) - t * t
    }
}
pointwise!(Tanh, TanhVjp, "tanh", "tanh_vjp", Input::normal, Tanh, tanh_fwd, tanh_vjp);

/// e^x.
#[derive(Clone, Debug)]
pub struct Exp;

impl Pointwise for Exp {
    #[inline(always)]
    fn f<R: Real>(&self, x: R) -> R {
        x.exp()
    }
    #[inline(always)]
    fn df<R: Real>(&self, x: R) -> R {
        x.exp()
    }
}
pointwise!(Exp, ExpVjp, "exp", "exp_vjp", Input::normal, Exp, exp_fwd, exp_vjp);

/// ln(1 + e^x), without overflow.
#[derive(Clone, Debug)]
pub struct Softplus;

impl Pointwise for Softplus {
    #[inline(always)]
    fn f<R: Real>(&self, x: R) -> R {
        let tail = (R::of(1.0) + (-x.abs()).exp()).ln();
        if x > R::of(0.0) { x + tail } else { tail }
    }
    #[inline(always)]
    fn df<R: Real>(&self, x: R) -> R {
        x.sigmoid()
    }
}
pointwise!(
    Softplus,
    SoftplusVjp,
    "softplus",
    "softplus_vjp",
    Input::normal,
    Softplus,
    softplus_fwd,
    softplus_vjp
);

/// x^2.
#[derive(Clone, Debug)]
pub struct Square;

impl Pointwise for Square {
    #[inline(always)]
    fn f<R: Real>(&self, x: R) -> R {
        x * x
    }
    #[inline(always)]
    fn df<R: Real>(&self, x: R) -> R {
        R::of(2.0) * x
    }
}
pointwise!(
    Square,
    SquareVjp,
    "square",
    "square_vjp",
    Input::normal,
    Square,
    square_fwd,
    square_vjp
);

/// |x|, with derivative 0 at 0.
#[derive(Clone, Debug)]
pub struct Abs;

impl Pointwise for Abs {
    #[inline(always)]
    fn f<R: Real>(&self, x: R) -> R {
        x.abs()
    }
    #[inline(always)]
    fn df<R: Real>(&self, x: R) -> R {
        let zero = R::of(0.0);
        if x > zero {
            R::of(1.0)
        } else if x < zero {
            R::of(-1.0)
        } else {
            zero
        }
    }
}
pointwise!(Abs, AbsVjp, "abs", "abs_vjp", |s| Input::away(s, 0.01), Abs, abs_fwd, abs_vjp);

/// x limited to lo..=hi; NaN stays NaN. The gradient is zero outside.
#[derive(Clone, Debug)]
pub struct Clamp {
    /// Lower end.
    pub lo: f64,
    /// Upper end.
    pub hi: f64,
}

impl Pointwise for Clamp {
    #[inline(always)]
    fn f<R: Real>(&self, x: R) -> R {
        let x = if x < R::of(self.lo) { R::of(self.lo) } else { x };
        if x > R::of(self.hi) { R::of(self.hi) } else { x }
    }
    #[inline(always)]
    fn df<R: Real>(&self, x: R) -> R {
        let out = x < R::of(self.lo) || x > R::of(self.hi);
        if out { R::of(0.0) } else { R::of(1.0) }
    }
}
pointwise!(
    Clamp,
    ClampVjp,
    "clamp",
    "clamp_vjp",
    |s| Input::away(s, 0.01),
    Clamp { lo: -0.005, hi: 60.0 },
    clamp_fwd,
    clamp_vjp,
    lo,
    hi
);

/// x^p for x > 0 and a constant p, as e^(p ln x).
#[derive(Clone, Debug)]
pub struct Power {
    /// The exponent.
    pub p: f64,
}

impl Pointwise for Power {
    #[inline(always)]
    fn f<R: Real>(&self, x: R) -> R {
        (R::of(self.p) * x.ln()).exp()
    }
    #[inline(always)]
    fn df<R: Real>(&self, x: R) -> R {
        R::of(self.p) * (R::of(self.p - 1.0) * x.ln()).exp()
    }
}
pointwise!(
    Power,
    PowerVjp,
    "power",
    "power_vjp",
    |s| Input::uniform(s, 0.1, 3.0),
    Power { p: -0.75 },
    power_fwd,
    power_vjp,
    p
);
