//! Checks of unusual input: special values, extents 0 and 1, shapes and types that do not fit.

use genevar::ops::{DynOp, run};
use genevar::tensor::{DType, Purpose, Shape, Stream, Tensor};

use super::data::Data;
use super::faces::{Face, Outs, Verdict, calmly};
use super::inputs::Inputs;

/// Values where formulas break, and how they are called in a message. Huge finite values are
/// absent: whether a sum of them overflows depends on its order, which is free.
const VALUES: &[(&str, &[f32])] = &[
    ("zeros", &[0.0, -0.0]),
    ("subnormals", &[1e-45, -3e-39, 1.1e-38]),
    ("+inf", &[f32::INFINITY]),
    ("-inf", &[f32::NEG_INFINITY]),
    ("NaN", &[f32::NAN]),
    ("all kinds", &[f32::NAN, 0.0, f32::INFINITY, -1e-40, f32::NEG_INFINITY]),
];

/// Ops whose faces may disagree on which outputs are NaN or infinite, with the reason.
const EXCEPTIONS: &[(&str, &str)] = &[];

/// Ops whose inputs may have any shapes together, with the reason.
const ANY_SHAPES: &[(&str, &str)] = &[("global_norm", "it takes all gradients of a model at once")];

const EVERY: &str = "accepts every combination of shapes";

/// The exceptions that no op of the table bears.
pub fn stale_exceptions(names: &[&str]) -> Vec<&'static str> {
    EXCEPTIONS
        .iter()
        .chain(ANY_SHAPES)
        .map(|(op, _)| *op)
        .filter(|op| !names.contains(op))
        .collect()
}

/// The faces agree on which outputs are NaN, +inf, -inf or finite when such values are sprinkled
/// over the inputs: one element of one input, then a tenth of all.
pub fn special(op: &dyn DynOp, data: &Inputs) -> Verdict {
    for (kind, values) in VALUES {
        for i in (0..data.len()).filter(|&i| !data[i].real.is_empty()) {
            let mut one = data.clone();
            let at = Stream::new(1, i as u64, 0, Purpose::Test).below(0, data[i].real.len());
            one.set(i, at, values[0]);
            classes_agree(op, &one).map_err(|e| format!("{kind} at input {i}[{at}]: {e}"))?;
        }
        let mut many = data.clone();
        for i in 0..many.len() {
            let s = Stream::new(2, i as u64, 0, Purpose::Test);
            for j in (0..many[i].real.len()).filter(|j| s.below(*j, 10) == 0) {
                many.set(i, j, values[j % values.len()]);
            }
        }
        classes_agree(op, &many).map_err(|e| format!("{kind} sprinkled: {e}"))?;
    }
    indices(op, data)
}

/// Integer inputs outside their range may give any answer, but no panic.
fn indices(op: &dyn DynOp, data: &Inputs) -> Verdict {
    for i in (0..data.len()).filter(|&i| !data[i].int.is_empty()) {
        for bad in [-1, i32::MAX, i32::MIN] {
            let mut wrong = data.clone();
            wrong[i].int[0] = bad;
            for face in Face::of(op, data) {
                face.run(op, &wrong).map_err(|e| format!("input {i}[0] = {bad}: {e}"))?;
            }
        }
    }
    Ok(())
}

fn classes_agree(op: &dyn DynOp, data: &Inputs) -> Verdict {
    let slow = Face::Reference.run(op, data)?;
    for face in Face::of(op, data).into_iter().filter(|f| *f != Face::Reference) {
        let fast = face.run(op, data)?;
        if EXCEPTIONS.iter().all(|(name, _)| *name != op.name()) {
            same_classes(&face.name(), &fast, &slow)?;
        }
    }
    Ok(())
}

fn same_classes(face: &str, fast: &Outs<f32>, slow: &Outs<f32>) -> Verdict {
    let class = |x: f32| match x {
        x if x.is_nan() => "NaN",
        x if x.is_finite() => "finite",
        x if x > 0.0 => "+inf",
        _ => "-inf",
    };
    for i in 0..fast.count() {
        for (j, (&a, &b)) in fast.real(i).iter().zip(slow.real(i)).enumerate() {
            if class(a) != class(b) {
                return Err(format!("output {i}[{j}]: {face} {a:e}, reference {b:e}"));
            }
        }
    }
    Ok(())
}

/// Each extent of the case set to 0 and to 1 wherever it occurs: if the op accepts the shapes, its
/// faces run and write what they must.
pub fn sizes(op: &dyn DynOp, data: &Inputs) -> Verdict {
    let mut extents: Vec<usize> = data.iter().flat_map(|d| d.shape.dims().to_vec()).collect();
    extents.sort_unstable();
    extents.dedup();
    for &from in extents.iter().filter(|&&n| n > 1) {
        for to in [0, 1] {
            let small = data.map(|d| resized(d, from, to));
            let fault = |e: String| format!("extent {from} as {to}: {e}");
            if calmly("shapes", || op.shapes(&small.shapes())).map_err(fault)?.is_ok() {
                super::value::guards(op, &small).map_err(fault)?;
                classes_agree(op, &small).map_err(fault)?;
            }
        }
    }
    Ok(())
}

/// The input with every extent `from` replaced; indices stay below the new extent.
fn resized(d: &Data, from: usize, to: usize) -> Data {
    let dims = d.shape.dims().iter().map(|&n| if n == from { to } else { n });
    let shape = Shape::from(dims.collect::<Vec<_>>());
    let n = shape.len();
    let int = match d.is_int {
        true => d.int.iter().map(|&v| v % to.max(1) as i32).cycle().take(n).collect(),
        false => Vec::new(),
    };
    let real = d.real.iter().copied().cycle().take(if d.is_int { 0 } else { n }).collect();
    Data { shape, real, int, is_int: d.is_int }
}

/// Numbers of inputs outside the declared range are refused; none panics.
fn numbers(op: &dyn DynOp, data: &[Data]) -> Verdict {
    let mut x: Vec<Tensor> = data.iter().map(Data::tensor).collect();
    if x.is_empty() {
        // Something to give an op that takes nothing.
        x.push(Tensor::zeros(DType::F32, Shape::from([1])));
    }
    for n in 0..=data.len() + 2 {
        let some: Vec<&Tensor> = x.iter().cycle().take(n).collect();
        let taken = calmly("run", || run(op, &some)).map_err(|e| format!("{n} inputs: {e}"))?;
        if taken.is_ok() && !op.inputs().contains(&n) {
            return Err(format!("takes {n} inputs, not {:?}", op.inputs()));
        }
    }
    Ok(())
}

/// Shapes, types and numbers of inputs that do not fit are refused with an error; none panics, and
/// what is accepted can be run.
pub fn refuses(op: &dyn DynOp, data: &Inputs) -> Verdict {
    numbers(op, data)?;
    let mut refused = 0;
    for i in 0..data.len() {
        for shape in wrong_shapes(&data[i].shape) {
            let mut wrong = data.clone();
            let fill = if data[i].is_int { 0 } else { shape.len() };
            wrong[i].real = vec![0.5; fill];
            wrong[i].int = vec![0; shape.len() * usize::from(data[i].is_int)];
            wrong[i].shape = shape.clone();
            let result =
                run_calmly(op, &wrong).map_err(|e| format!("input {i} as {shape}: {e}"))?;
            refused += usize::from(result.is_err());
        }
    }
    let real = data.iter().filter(|d| !d.is_int).count();
    let any = ANY_SHAPES.iter().any(|(name, _)| *name == op.name());
    if data.len() > 1 && (refused == 0) != any {
        let what = if any { "refuses some shapes, its exception is stale" } else { EVERY };
        return Err(what.into());
    }
    for i in 0..data.len() {
        let mut x: Vec<Tensor> = data.iter().map(Data::tensor).collect();
        let wrong: &[DType] = match data[i].is_int {
            true => &[DType::F32],
            false if real > 1 => &[DType::I32, DType::F64],
            false => &[DType::I32],
        };
        for &dtype in wrong {
            x[i] = data[i].tensor().cast(dtype);
            let refs: Vec<&Tensor> = x.iter().collect();
            if calmly("run", || run(op, &refs))?.is_ok() {
                return Err(format!("input {i} is taken as {dtype:?}"));
            }
        }
    }
    Ok(())
}

/// Near misses of a shape: other extents, other ranks.
fn wrong_shapes(right: &Shape) -> Vec<Shape> {
    let d = right.dims();
    let mut wrong: Vec<Vec<usize>> = vec![vec![], vec![0], vec![1; 7], vec![3]];
    for axis in 0..d.len() {
        for to in [d[axis] + 1, d[axis].saturating_sub(1)] {
            let mut dims = d.to_vec();
            dims[axis] = to;
            wrong.push(dims);
        }
        let mut dims = d.to_vec();
        dims.remove(axis);
        wrong.push(dims);
    }
    wrong.push([&[2], d].concat());
    wrong.push([d, &[2]].concat());
    wrong.push(d.iter().rev().copied().collect());
    wrong.into_iter().filter(|w| w != d).map(Shape::from).collect()
}

fn run_calmly(op: &dyn DynOp, data: &[Data]) -> Result<genevar::Result<Vec<Tensor>>, String> {
    let x: Vec<Tensor> = data.iter().map(Data::tensor).collect();
    let refs: Vec<&Tensor> = x.iter().collect();
    calmly("run", || run(op, &refs))
}
