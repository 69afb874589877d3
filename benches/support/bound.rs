//! How far an op's outputs are from the mathematics, over what rounding allows.

use genevar::ops::real::stored_in_bf16;
use genevar::ops::{DynOp, In, Out, Precision, Running};
use genevar::tensor::Shape;

use crate::data::Data;

/// The largest error over its bound of the real outputs that came out, which are `None` where
/// none is to be judged. In bf16 inputs hold what the kernels were given.
pub fn error(
    (op, precision): (&dyn DynOp, Precision),
    data: &[Data],
    shapes: &[Shape],
    outs: &[Option<Vec<f32>>],
) -> f64 {
    let lift = |d: &Data| d.real.iter().map(|&x| Running::exact(f64::from(x))).collect();
    let reals: Vec<Vec<Running>> = data.iter().map(lift).collect();
    let x: Vec<In<'_, Running>> = data
        .iter()
        .zip(&reals)
        .map(|(d, r)| if d.is_int { In::int(&d.shape, &d.int) } else { In::real(&d.shape, r) })
        .collect();
    let mut exact: Vec<Vec<Running>> =
        shapes.iter().map(|s| vec![Running::exact(0.0); s.len()]).collect();
    let mut ints: Vec<Vec<i32>> = shapes.iter().map(|s| vec![0; s.len()]).collect();
    let whole = op.int_outputs();
    let pairs = exact.iter_mut().zip(&mut ints).enumerate();
    let mut y: Vec<Out<'_, Running>> = pairs
        .map(|(i, (r, n))| if whole.contains(&i) { Out::Int(n) } else { Out::Real(r) })
        .collect();
    match precision {
        Precision::F32 => op.reference_running(&x, &mut y),
        Precision::Bf16 => stored_in_bf16(|| op.reference_running(&x, &mut y)),
    }
    drop(y);
    let mut worst = 0.0f64;
    for (i, (exact, got)) in exact.iter().zip(outs).enumerate() {
        let halved = precision == Precision::Bf16 && !op.f32_outputs().contains(&i);
        for (x, got) in exact.iter().zip(got.iter().flatten()) {
            let e = if halved { x.in_bf16().e } else { x.e };
            let off = (f64::from(*got) - x.v).abs();
            worst = worst.max(if off == 0.0 { 0.0 } else { off / e });
        }
    }
    worst
}
