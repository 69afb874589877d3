//! Checks of the derivative rules at f64 against dual numbers.
//!
//! The rules run on F64 tensors, whose ops run their f64 references, so what is left is f64
//! rounding: a sum of n terms errs by at most n 2^-53 of the sum of magnitudes, and 1e-12 leaves
//! room for n = 9000, more than any case has. A dropped or doubled term is off by about 1.

use genevar::ops::{DynOp, Saved, run};
use genevar::tensor::{DType, Purpose, Shape, Stream, Tensor};

use super::data::Data;
use super::faces::{Verdict, calmly, in_dual};
use super::inputs::Inputs;

const TOLERANCE: f64 = 1e-12;
/// Where a derivative is zero by cancellation (softmax of one class), what is left is rounding of
/// its terms; this share of the direction's size stands for them.
const FLOOR: f64 = 1e-2;
/// The rules on F32 tensors must run and mean the same. Accuracy of the ops they call is `value`'s
/// business, so this only has to tell a right rule from a wrong one.
const SAME_MEANING: f64 = 1e-2;

/// A point to differentiate at.
struct At {
    x: Vec<Tensor>,
    y: Vec<Tensor>,
}

impl At {
    fn new(op: &dyn DynOp, data: &[Data], dtype: DType) -> Result<Self, String> {
        let x: Vec<Tensor> = data
            .iter()
            .map(|d| if d.is_int { d.tensor() } else { d.tensor().cast(dtype) })
            .collect();
        let refs: Vec<&Tensor> = x.iter().collect();
        let y = calmly("run", || run(op, &refs))?.map_err(|e| e.to_string())?;
        Ok(Self { x, y })
    }

    fn refs(&self) -> Vec<&Tensor> {
        self.x.iter().collect()
    }
}

/// Standard normal direction for a tensor.
fn direction(like: &Tensor, salt: u64) -> Tensor {
    let numbers = Stream::new(0xd1ec, salt, 1, Purpose::Test).normals(like.len());
    let wide = numbers.into_iter().map(f64::from).collect();
    Tensor::new_f64(wide, like.shape()).unwrap()
}

/// Which inputs take part: each alone, all together, and up to four inputs every combination.
fn subsets(data: &[Data]) -> Vec<Vec<bool>> {
    let real: Vec<usize> = (0..data.len()).filter(|&i| !data[i].is_int).collect();
    let n = real.len();
    (1u32..1 << n)
        .filter(|set| n <= 4 || set.count_ones() == 1 || set.count_ones() as usize >= n - 1)
        .map(|set| {
            let mut chosen = vec![false; data.len()];
            (0..n).filter(|bit| set >> bit & 1 == 1).for_each(|bit| chosen[real[bit]] = true);
            chosen
        })
        .collect()
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |m: f64, v| if v.is_nan() { v } else { m.max(v.abs()) })
}

/// The tangent from dual numbers and from the rule agree, for every choice of inputs that carry
/// one.
pub fn jvp(op: &dyn DynOp, data: &Inputs) -> Verdict {
    let at = At::new(op, data, DType::F64)?;
    let narrow = At::new(op, data, DType::F32)?;
    let v: Vec<Tensor> = at.x.iter().zip(0..).map(|(x, i)| direction(x, i)).collect();
    for chosen in subsets(data) {
        let d: Vec<Option<&Tensor>> = (0..v.len()).map(|i| chosen[i].then_some(&v[i])).collect();
        let fault = |e: String| format!("tangents of inputs {}: {e}", listed(&chosen));
        let dual = in_dual(op, data, &d)?;
        let want: Vec<f64> = dual.real(0).iter().map(|y| y.d).collect();
        let size = largest(d.iter().flatten().flat_map(|t| (0..t.len()).map(|j| t.at(j))));
        let got = tangent(op, &at, &d).map_err(fault)?;
        compare(&want, &got, TOLERANCE, size).map_err(fault)?;
        at_once(op, &at, &d, (&want, size)).map_err(|e| fault(format!("at once: {e}")))?;

        let d32: Vec<Option<Tensor>> = d.iter().map(|t| t.map(|t| t.cast(DType::F32))).collect();
        let d32: Vec<Option<&Tensor>> = d32.iter().map(Option::as_ref).collect();
        let got = tangent(op, &narrow, &d32).map_err(|e| fault(format!("at f32: {e}")))?;
        compare(&want, &got, SAME_MEANING, size).map_err(|e| fault(format!("at f32: {e}")))?;
    }
    let none = vec![None; data.len()];
    match tangent(op, &at, &none)?.iter().all(|&d| d == 0.0) {
        true => Ok(()),
        false => Err("without any tangent the result has one".into()),
    }
}

/// The op that is value and tangent in one, where there is one, gives the op's own outputs and the
/// tangent wanted.
fn at_once(op: &dyn DynOp, at: &At, d: &[Option<&Tensor>], (want, size): (&[f64], f64)) -> Verdict {
    let shapes: Vec<&Shape> = at.x.iter().map(Tensor::shape).collect();
    let given: Vec<bool> = d.iter().map(Option::is_some).collect();
    let Some(dual) = op.dual(&shapes, &given) else { return Ok(()) };
    let x: Vec<&Tensor> = at.x.iter().chain(d.iter().copied().flatten()).collect();
    let mut outs = calmly("dual", || run(&*dual, &x))?.map_err(|e| e.to_string())?;
    let dy = outs.pop().ok_or("no outputs")?;
    like(&dy, &at.y[0])?;
    compare(want, &dy.to_f64s(), TOLERANCE, size)?;
    if outs.len() != at.y.len() {
        return Err(format!("{} outputs beside the tangent", outs.len()));
    }
    for (got, want) in outs.iter().zip(&at.y) {
        like(got, want)?;
        compare(&want.to_f64s(), &got.to_f64s(), TOLERANCE, 1.0)?;
    }
    Ok(())
}

/// The rule's tangent, zeros if it says zero.
fn tangent(op: &dyn DynOp, at: &At, d: &[Option<&Tensor>]) -> Result<Vec<f64>, String> {
    let saved = Saved::all(op, &at.refs(), &at.y);
    let got = calmly("jvp", || op.jvp(&saved, d))?.map_err(|e| e.to_string())?;
    let y = &at.y[0];
    let Some(got) = got else { return Ok(vec![0.0; y.len()]) };
    like(&got, y)?;
    Ok(got.to_f64s())
}

fn like(got: &Tensor, want: &Tensor) -> Verdict {
    let (s, t) = (got.shape(), want.shape());
    match s == t && got.dtype() == want.dtype() {
        true => Ok(()),
        false => Err(format!("is {:?} {s}, wanted {:?} {t}", got.dtype(), want.dtype())),
    }
}

fn compare(want: &[f64], got: &[f64], tolerance: f64, size: f64) -> Verdict {
    let scale = largest(want.iter().copied()).max(FLOOR * size);
    for (j, (w, g)) in want.iter().zip(got).enumerate() {
        let near = (w - g).abs() <= tolerance * scale;
        if !near {
            return Err(format!("[{j}] is {g:e}, wanted {w:e} (scale {scale:e})"));
        }
    }
    Ok(())
}

/// <gy, J v> = <J' gy, v>, with J v from dual numbers and J' gy from the rule, which sees only what
/// the op declares to save. Gradients nobody wants are absent.
pub fn adjoint(op: &dyn DynOp, data: &Inputs) -> Verdict {
    let at = At::new(op, data, DType::F64)?;
    let narrow = At::new(op, data, DType::F32)?;
    let gy = direction(&at.y[0], 77);
    let v: Vec<Tensor> = at.x.iter().zip(0..).map(|(x, i)| direction(x, 100 + i)).collect();
    let mut forward = Vec::new();
    for i in 0..v.len() {
        let d: Vec<Option<&Tensor>> = (0..v.len()).map(|j| (i == j).then_some(&v[i])).collect();
        forward.push(match data[i].is_int {
            true => Vec::new(),
            false => in_dual(op, data, &d)?.real(0).iter().map(|y| y.d).collect(),
        });
    }
    for want in subsets(data) {
        let fault = |e: String| format!("gradients of inputs {}: {e}", listed(&want));
        let wide = gradients(op, &at, &gy, &want).map_err(fault)?;
        let gy32 = gy.cast(DType::F32);
        let short = gradients(op, &narrow, &gy32, &want).map_err(|e| fault(format!("f32: {e}")))?;
        for i in (0..want.len()).filter(|&i| want[i]) {
            pair(&gy, &forward[i], &wide[i], &v[i], TOLERANCE)
                .and_then(|()| pair(&gy, &forward[i], &short[i], &v[i], SAME_MEANING))
                .map_err(|e| fault(format!("input {i}: {e}")))?;
        }
    }
    Ok(())
}

/// The rule's gradients, with shapes, types and absences as they must be.
fn gradients(
    op: &dyn DynOp,
    at: &At,
    gy: &Tensor,
    want: &[bool],
) -> Result<Vec<Option<Tensor>>, String> {
    let saved = Saved::declared(op, &at.refs(), &at.y);
    let got = calmly("vjp", || op.vjp(&saved, gy, want))?.map_err(|e| e.to_string())?;
    if got.len() != want.len() {
        return Err(format!("{} gradients for {} inputs", got.len(), want.len()));
    }
    for (i, g) in got.iter().enumerate() {
        match g {
            Some(_) if !want[i] => return Err(format!("input {i}: a gradient nobody wants")),
            Some(g) => like(g, &at.x[i]).map_err(|e| format!("input {i}: {e}"))?,
            None => {}
        }
    }
    Ok(got)
}

/// That <gy, jv> = <g, v>, relative to the sum of the magnitudes of all products.
fn pair(gy: &Tensor, jv: &[f64], g: &Option<Tensor>, v: &Tensor, tolerance: f64) -> Verdict {
    let dot = |a: &dyn Fn(usize) -> f64, b: &dyn Fn(usize) -> f64, n: usize| {
        (0..n).fold((0.0, 0.0), |(s, m), i| (s + a(i) * b(i), m + (a(i) * b(i)).abs()))
    };
    let (left, a) = dot(&|i| gy.at(i), &|i| jv[i], jv.len());
    let (right, b) = match g {
        Some(g) => dot(&|i| g.at(i), &|i| v.at(i), v.len()),
        None => (0.0, 0.0),
    };
    let size = largest(gy.to_f64s().into_iter()) * largest(v.to_f64s().into_iter());
    let scale = (a + b).max(FLOOR * size);
    let near = (left - right).abs() <= tolerance * scale;
    match near {
        true => Ok(()),
        false => Err(format!("<gy, J v> = {left:e}, <J' gy, v> = {right:e} (scale {scale:e})")),
    }
}

fn listed(chosen: &[bool]) -> String {
    let set: Vec<String> =
        (0..chosen.len()).filter(|&i| chosen[i]).map(|i| i.to_string()).collect();
    set.join(", ")
}
