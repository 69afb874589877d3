//! The four passes on a small model: values agree, tangents and gradients agree with each other and
//! with central differences, and what must not be possible is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

use genevar::autograd::{Params, Pass, Var};
use genevar::ops::activation::{Gelu, Square};
use genevar::ops::elementwise::{ADD, Affine, Modulate, Mul};
use genevar::ops::gemm::Linear;
use genevar::ops::heard;
use genevar::ops::reduce::SumTo;
use genevar::tensor::{DType, Purpose, Stream, Tensor};

struct Model {
    params: Params,
    parts: Vec<genevar::autograd::Param>,
}

fn model() -> Model {
    let mut params = Params::new(11);
    let parts = vec![
        params.normal("w1", [9, 6], 0.5, true),
        params.normal("b1", [9], 0.5, false),
        params.normal("w2", [6, 9], 0.5, true),
    ];
    params.cast(DType::F64).unwrap();
    Model { params, parts }
}

/// x [4, 6], t [4, 1] to [4, 6]; x is used twice, so gradients must add up.
fn forward(p: &Pass, m: &Model, x: &Var, t: &Var) -> Var {
    let [w1, b1, w2] = [0, 1, 2].map(|i| p.param(&m.parts[i]));
    let h = p.op(Linear, &[x, &w1, &b1]).unwrap();
    let h = p.op(Gelu, &[&h]).unwrap();
    let h = p.op(Linear, &[&h, &w2]).unwrap();
    let shift = p.op(Affine { scale: 2.0, shift: 0.5 }, &[t]).unwrap();
    let h = p.op(Modulate, &[&h, t, &shift]).unwrap();
    let h = p.op(Mul, &[&h, x]).unwrap();
    p.op(ADD, &[&h, x]).unwrap()
}

fn noise(n: u64, shape: [usize; 2]) -> Tensor {
    let draws = Stream::new(3, n, 0, Purpose::Test).normals(shape[0] * shape[1]);
    Tensor::from_f64s(DType::F64, draws.iter().map(|&x| f64::from(x)).collect(), shape).unwrap()
}

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    a.to_f64s().iter().zip(b.to_f64s()).map(|(x, y)| x * y).sum()
}

fn moved(x: &Tensor, d: &Tensor, by: f64) -> Tensor {
    let v = x.to_f64s().iter().zip(d.to_f64s()).map(|(x, d)| x + by * d).collect();
    Tensor::new_f64(v, x.shape()).unwrap()
}

#[test]
fn all_four_passes_have_the_same_values() {
    let m = model();
    let (x, t) = (noise(0, [4, 6]), noise(1, [4, 1]));
    let want = forward(&Pass::eval(), &m, &x.clone().into(), &t.clone().into()).into_value();
    for p in [Pass::tape(), Pass::dual(), Pass::dual_tape()] {
        let p = p.training(&m.params).checked(true);
        let xv = p.with_tangent(x.clone(), noise(2, [4, 6]));
        let got = forward(&p, &m, &xv, &t.clone().into());
        assert_eq!(got.value().to_f64s(), want.to_f64s());
    }
}

#[test]
fn tangents_match_central_differences() {
    let m = model();
    let (x, t, dx, dt) = (noise(0, [4, 6]), noise(1, [4, 1]), noise(2, [4, 6]), noise(3, [4, 1]));
    let p = Pass::dual();
    let (xv, tv) = (p.with_tangent(x.clone(), dx.clone()), p.with_tangent(t.clone(), dt.clone()));
    let y = forward(&p, &m, &xv, &tv);
    let dy = y.tangent().unwrap().clone().into_tensor().to_f64s();
    let at = |by: f64| {
        forward(&Pass::eval(), &m, &moved(&x, &dx, by).into(), &moved(&t, &dt, by).into())
            .into_value()
            .to_f64s()
    };
    let (hi, lo) = (at(1e-6), at(-1e-6));
    for ((d, h), l) in dy.iter().zip(hi).zip(lo) {
        assert!((d - (h - l) / 2e-6).abs() < 1e-7 * (1.0 + d.abs()));
    }
}

#[test]
fn reverse_is_the_adjoint_of_forward_through_the_whole_model() {
    let m = model();
    let (x, t, dx, gy) = (noise(0, [4, 6]), noise(1, [4, 1]), noise(2, [4, 6]), noise(4, [4, 6]));
    let p = Pass::dual();
    let xv = p.with_tangent(x.clone(), dx.clone());
    let dy = forward(&p, &m, &xv, &t.clone().into()).tangent().unwrap().clone().into_tensor();
    let p = Pass::tape();
    let xv = p.leaf(x);
    let y = forward(&p, &m, &xv, &t.into());
    let grads = p.backward_from(&y, gy.clone()).unwrap();
    let (a, b) = (dot(&gy, &dy), dot(grads.of(&xv).unwrap(), &dx));
    assert!((a - b).abs() < 1e-12 * a.abs().max(1.0), "{a} {b}");
    assert!(grads.param(&m.parts[0]).is_none(), "parameters were not to be tracked");
}

#[test]
fn parameter_gradients_match_central_differences() {
    let m = model();
    let (x, t) = (noise(0, [4, 6]), noise(1, [4, 1]));
    let loss = |p: &Pass| {
        let y = forward(p, &m, &x.clone().into(), &t.clone().into());
        let s = p.op(Square, &[&y]).unwrap();
        p.op(SumTo { to: [1].into() }, &[&s]).unwrap()
    };
    let p = Pass::tape().training(&m.params);
    let l = loss(&p);
    let grads = p.backward(&l).unwrap();
    for param in &m.parts {
        let start = param.value();
        let d = Tensor::from_f64s(DType::F64, vec![1.0; start.len()], start.shape()).unwrap();
        let at = |by: f64| {
            param.set(moved(&start, &d, by)).unwrap();
            loss(&Pass::eval()).value().item().unwrap()
        };
        let numeric = (at(1e-6) - at(-1e-6)) / 2e-6;
        param.set(start.clone()).unwrap();
        let exact: f64 = grads.param(param).unwrap().to_f64s().iter().sum();
        assert!((numeric - exact).abs() < 1e-5 * exact.abs().max(1.0), "{}", param.name());
    }
}

#[test]
fn a_non_finite_value_names_its_op() {
    let m = model();
    let mut x = noise(0, [4, 6]).to_f64s();
    x[7] = f64::NAN;
    let x = Tensor::new_f64(x, [4, 6]).unwrap();
    let p = Pass::eval().checked(true);
    let w = p.param(&m.parts[0]);
    let e = p.op(Linear, &[&x.into(), &w]).unwrap_err().to_string();
    assert!(e.contains("linear") && e.contains("NaN"), "{e}");
}

#[test]
fn a_derivative_kernel_refuses_to_be_differentiated() {
    let p = Pass::tape();
    let x = p.leaf(noise(0, [4, 6]));
    let g = p.leaf(noise(1, [4, 6]));
    let op = genevar::ops::activation::GeluVjp(Gelu);
    let e = p.op(op, &[&x, &g]).unwrap_err().to_string();
    assert!(e.contains("gelu_vjp is not differentiable"), "{e}");
}

/// A segment, with one inside it, gives the gradients of what it is made of, to the last bit, and
/// computes again no more than its rules look at.
#[test]
fn segments_are_computed_again_with_the_same_bits() {
    let m = model();
    let (x, t, gy) = (noise(0, [4, 6]), noise(1, [4, 1]), noise(2, [4, 6]));
    let run = |p: Pass, segments: bool| {
        let p = p.training(&m.params).recomputing(segments);
        let leaf = p.leaf(x.clone());
        let ((y, tangent), before) = heard(|| {
            let t = p.with_tangent(t.clone(), noise(4, [4, 1]));
            let y = p.segment(|| Ok(forward(&p, &m, &leaf, &t))).unwrap();
            let inner = || p.segment(|| Ok(forward(&p, &m, &y, &t)));
            let y = p.segment(inner).unwrap();
            let tangent = y.tangent().map(|dy| dy.clone().into_tensor().to_f64s());
            (y.without_tangent(), tangent)
        });
        let (grads, after) = heard(|| p.backward_from(&y, gy.clone()).unwrap());
        let all = m.parts.iter().map(|w| grads.param(w).unwrap().to_f64s());
        let all: Vec<Vec<f64>> = all.chain([grads.of(&leaf).unwrap().to_f64s()]).collect();
        (all, tangent, before.len(), after.len())
    };
    for make in [Pass::tape, Pass::dual_tape] {
        let (kept, again) = (run(make(), false), run(make(), true));
        assert_eq!((&again.0, &again.1, again.2), (&kept.0, &kept.1, kept.2));
        // Twice: two products, GELU and the modulation with its shift; what nothing looks at stays.
        assert!((6..=10).contains(&(again.3 - kept.3)), "{} and {} ops", kept.3, again.3);
    }
}
