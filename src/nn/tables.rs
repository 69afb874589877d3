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

/// A tensor made of parameters' values, kept while they are the same ones.
#[derive(Default)]
pub struct Joined(RwLock<Option<(Vec<Tensor>, Tensor)>>);

impl Joined {
    /// What is made of these.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn get(
        &self,
        of: Vec<Tensor>,
        make: impl FnOnce(&[Tensor]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let kept = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        let same = |old: &[Tensor]| old.len() == of.len() && old.iter().zip(&of).all(is_same);
        if let Some((_, joined)) = kept.filter(|(old, _)| same(old)) {
            return Ok(joined);
        }
        let joined = make(&of)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some((of, joined.clone()));
        Ok(joined)
    }
}

fn is_same((a, b): (&Tensor, &Tensor)) -> bool {
    a.is_same(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Meter;

    #[test]
    fn what_is_made_of_parameters_follows_them() {
        let joined = Joined::default();
        let mut made = 0;
        let mut get = |of: &[&Tensor]| {
            let make = |of: &[Tensor]| {
                made += 1;
                Ok(of[1].clone())
            };
            (joined.get(of.iter().map(|&t| t.clone()).collect(), make).unwrap().at(0), made)
        };
        let [a, b, c] = [1.0, 2.0, 3.0].map(|x| Tensor::full(DType::F32, [2], x));
        assert_eq!((get(&[&a, &b]), get(&[&a, &b])), ((2.0, 1), (2.0, 1)));
        assert_eq!((get(&[&a, &c]), get(&[&a, &c])), ((3.0, 2), (3.0, 2)));
        // Equal elements are not the same ones.
        assert_eq!(get(&[&a, &Tensor::full(DType::F32, [2], 3.0)]), (3.0, 3));
    }

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
