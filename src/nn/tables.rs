//! Constant tables of a layer: computed once, kept where they were last used.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use crate::device::{Device, OnGpu};
use crate::error::Result;
use crate::ops::layout::rounded;
use crate::tensor::{DType, Tensor};

/// Tables by number.
#[derive(Default)]
pub struct Tables(RwLock<BTreeMap<usize, Tensor>>);

impl Tables {
    /// Table `i`, of the type of `beside`, bf16 on a GPU too, and on its device.
    ///
    /// # Errors
    /// Those of `make` and of the device.
    pub fn get(
        &self,
        i: usize,
        beside: &Tensor,
        make: impl FnOnce(DType) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (dtype, device) = (beside.dtype(), Device::of([beside]));
        let bf16 = OnGpu::is_bf16(beside);
        let made = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&i).cloned();
        let fits = |t: &Tensor| {
            t.dtype() == dtype && Device::of([t]).is(&device) && OnGpu::is_bf16(t) == bf16
        };
        if let Some(table) = made.filter(fits) {
            return Ok(table);
        }
        let table = device.put(&make(dtype)?)?;
        let table = if bf16 { rounded(&table)? } else { table };
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(i, table.clone());
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Meter;

    #[test]
    fn a_table_is_made_once_for_a_type_and_a_device() {
        let tables = Tables::default();
        let mut made = 0;
        let mut get = |i: usize, beside: &Tensor| {
            let make = |dtype| {
                made += 1;
                Ok(Tensor::full(dtype, [2], i as f64))
            };
            (tables.get(i, beside, make).unwrap(), made)
        };
        let here = Tensor::zeros(DType::F32, [1]);
        let (table, times) = get(3, &here);
        assert_eq!((table.at(1), times), (3.0, 1));
        assert_eq!((get(3, &here).1, get(4, &here).1), (1, 2));
        assert_eq!(get(3, &Tensor::zeros(DType::F64, [1])).0.dtype(), DType::F64);
        let planned = Device::Plan(Meter::default()).put(&here).unwrap();
        let (there, times) = get(4, &planned);
        assert!(matches!(Device::of([&there]), Device::Plan(_)) && times == 4);
    }
}
