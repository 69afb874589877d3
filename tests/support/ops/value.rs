//! Checks of values: within the rounding bound, inside the buffers, the same bits again.

use std::sync::OnceLock;

use genevar::ops::{DynOp, In, Running};

use super::faces::{Face, POISON, POISON_INT, Verdict, in_f64, in_running, lift, site};
use super::inputs::Inputs;
use super::soft;

/// A bound above this share of the output's largest value would let a wrong digit pass.
const VACUOUS: f64 = 0.05;

/// All f32 faces lie within the bound that `Running` derives from the reference, at each element;
/// integer answers satisfy the op's predicate. A case whose bound says nothing is refused, not
/// excused.
pub fn value(op: &dyn DynOp, data: &Inputs) -> Verdict {
    let want = in_f64(op, data)?;
    let bound = in_running(op, data)?;
    for i in 0..want.count() {
        let wide: Vec<f64> = bound.real(i).iter().map(|b| b.e).collect();
        meaningful(i, want.real(i), &wide)?;
    }
    fastest_is_a_variant(op, data)?;
    for face in Face::of(op, data) {
        let got = face.run(op, data)?;
        for i in 0..want.count() {
            let halved = face.gives_bf16(op, i);
            let elements = got.real(i).iter().zip(want.real(i)).zip(bound.real(i));
            for (j, ((&got, &want), bound)) in elements.enumerate() {
                // Not `>`: a NaN must fail too.
                let bound = Running { v: want, e: bound.e };
                let e = if halved { bound.in_bf16().e } else { bound.e };
                let near = (f64::from(got) - want).abs() <= e;
                if !near {
                    let name = face.name();
                    return Err(format!(
                        "{name}: output {i}[{j}] is {got:e}, wanted {want:e} within {e:e}"
                    ));
                }
            }
        }
        if !op.int_outputs().is_empty() {
            let x = lift(data, |_, _, x| x);
            let x: Vec<In<'_, f64>> = x.views();
            if let Some(why) = op.refuses(&x, &got.all_ints()) {
                return Err(format!("{}: {why}", face.name()));
            }
        }
    }
    Ok(())
}

/// The variant that the rule chooses exists and takes these inputs.
fn fastest_is_a_variant(op: &dyn DynOp, data: &Inputs) -> Verdict {
    let (precision, shapes) = (data.precision, data.shapes());
    let site = site(precision);
    let (all, fastest) = (op.variants(site, &shapes), op.fastest(site, &shapes));
    match fastest.is_none_or(|name| all.contains(&name)) {
        true => Ok(()),
        false => Err(format!("the rule chooses {fastest:?} for {precision:?}, there are {all:?}")),
    }
}

/// Fails unless most bounds are small against the output and its values are finite.
fn meaningful(i: usize, want: &[f64], wide: &[f64]) -> Verdict {
    if let Some(j) = want.iter().position(|v| !v.is_finite()) {
        let v = want[j];
        return Err(format!("output {i}[{j}] is {v} in f64: change the case to stay finite"));
    }
    let scale = want.iter().fold(0.0f64, |m, v| m.max(v.abs())).max(1e-30);
    let vacuous = wide.iter().filter(|&&e| e.is_nan() || e > VACUOUS * scale).count();
    if 2 * vacuous > want.len() {
        let n = want.len();
        return Err(format!(
            "output {i}: {vacuous} of {n} bounds exceed {VACUOUS} of its scale {scale:e}: the case \
             is ill-conditioned, change the case (never the bound)"
        ));
    }
    Ok(())
}

/// Nothing outside the outputs is written, everything inside is, and what was there before is not
/// read.
pub fn guards(op: &dyn DynOp, data: &Inputs) -> Verdict {
    for face in Face::of(op, data) {
        let fault = |e: String| format!("{}: {e}", face.name());
        let poisoned = face.run(op, data)?;
        poisoned.sentinels().map_err(fault)?;
        for i in 0..poisoned.count() {
            let left = poisoned.real(i).iter().position(|x| x.to_bits() == POISON.to_bits());
            let left_int = poisoned.int(i).iter().position(|&n| n == POISON_INT);
            if let Some(j) = left.or(left_int) {
                return Err(fault(format!("output {i}[{j}] was not written, or was added to")));
            }
        }
        let zeroed = face.run_on(op, data, (0.0, 0))?;
        zeroed.same_bits(&poisoned, "depends on what the buffer held").map_err(fault)?;
    }
    Ok(())
}

/// Another order of blocks and warps than the plain one.
const SCHEDULE: u64 = 11;

/// The same bits twice, on one thread as on all, and from kernels under another schedule.
pub fn repeat(op: &dyn DynOp, data: &Inputs) -> Verdict {
    static ONE: OnceLock<rayon::ThreadPool> = OnceLock::new();
    let one = ONE.get_or_init(|| rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap());
    for face in Face::of(op, data) {
        let first = face.run(op, data)?;
        let again = face.run(op, data)?;
        let fault = |e: String| format!("{}: {e}", face.name());
        first.same_bits(&again, "differs from run to run").map_err(fault)?;
        let (other, how) = match face {
            Face::Cuda(..) => {
                let turned = soft::launched(SCHEDULE, || face.run(op, data));
                (turned.0, "depends on the order of blocks and warps")
            }
            _ => (one.install(|| face.run(op, data)), "differs on one thread"),
        };
        first.same_bits(&other?, how).map_err(fault)?;
    }
    Ok(())
}
