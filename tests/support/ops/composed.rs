//! What a fused op spares: its composition of other ops gives the same results.

use genevar::ops::{DynOp, In};
use genevar::tensor::{DType, Tensor};

use super::data::Data;
use super::faces::{Verdict, in_f64, in_running, lift};
use super::inputs::Inputs;

/// Unit roundoff of f64 over that of f32.
const FINER: f64 = 1.0 / (1u64 << 29) as f64;
/// The composition rounds more often than the fused op, and in another order: about as often
/// again for each pass between them, of which no composition has so many.
const PASSES: f64 = 16.0;

/// In f64 the composition is the reference within what f64 rounds: the bound that `Running` derives
/// for f32, scaled down. Integer answers satisfy the op's predicate.
pub fn composed(op: &dyn DynOp, data: &Inputs) -> Verdict {
    let tell = |e: genevar::Error| e.to_string();
    let wide = |d: &Data| match d.is_int {
        true => Ok(d.tensor()),
        false => {
            let values = d.real.iter().map(|&x| f64::from(x)).collect();
            Tensor::from_f64s(DType::F64, values, d.shape.clone())
        }
    };
    let x = data.iter().map(wide).collect::<genevar::Result<Vec<_>>>().map_err(tell)?;
    let Some(got) = op.composed(&x.iter().collect::<Vec<_>>()).map_err(tell)? else {
        return Ok(());
    };
    let (want, bound) = (in_f64(op, data)?, in_running(op, data)?);
    let mut ints = Vec::new();
    for (i, got) in got.iter().enumerate() {
        if op.int_outputs().contains(&i) {
            ints.push(got.i32s().map_err(tell)?.to_vec());
            continue;
        }
        let (got, want) = (got.f64s().map_err(tell)?, want.real(i));
        if got.len() != want.len() {
            return Err(format!("output {i} has {} elements, not {}", got.len(), want.len()));
        }
        for (j, ((got, want), bound)) in got.iter().zip(want).zip(bound.real(i)).enumerate() {
            let e = PASSES * FINER * bound.e;
            // Not `>`: a NaN must fail too.
            let near = (got - want).abs() <= e;
            if !near {
                let names = format!("output {i}[{j}] of the other ops is {got:e}");
                return Err(format!("{names}, of this one {want:e}; they may differ by {e:e}"));
            }
        }
    }
    if !ints.is_empty() {
        let x = lift(data, |_, _, x| x);
        let x: Vec<In<'_, f64>> = x.views();
        return op.refuses(&x, &ints).map_or(Ok(()), |why| Err(format!("the other ops: {why}")));
    }
    Ok(())
}
