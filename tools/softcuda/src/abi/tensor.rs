//! Tensor maps: how a box of a tensor is found by `cp.async.bulk.tensor`.

use super::call::{abi, current};
use super::code::{Code, Result};
use super::raw::{In, Out};
use crate::exec::{AXES, Map};

/// Bytes of an element by `CU_TENSOR_MAP_DATA_TYPE_...`.
const SIZES: [u64; 13] = [1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4];
/// Bytes over which pieces are permuted by `CU_TENSOR_MAP_SWIZZLE_...`.
const ROWS: [u64; 4] = [16, 32, 64, 128];

/// Values of each axis; `rest` for those beyond the last.
fn values<T: Copy + Into<u64>>(from: In<T>, axes: usize, rest: u64) -> Result<[u64; AXES]> {
    let mut all = [rest; AXES];
    for (axis, value) in all.iter_mut().enumerate().take(axes) {
        *value = from.at(axis)?.into();
    }
    Ok(all)
}

abi! {
    /// Writes the map of a tiled tensor: 128 bytes at a multiple of 64.
    fn cuTensorMapEncodeTiled(
        map: Out<[u64; 16]>,
        kind: u32,
        rank: u32,
        address: u64,
        extents: In<u64>,
        strides: In<u64>,
        part: In<u32>,
        steps: In<u32>,
        interleave: u32,
        swizzle: u32,
        _promotion: u32,
        fill: u32,
    ) {
        current()?;
        let axes = rank as usize;
        let (Some(&element), Some(&row)) = (SIZES.get(kind as usize), ROWS.get(swizzle as usize))
        else {
            return Err(Code::INVALID_VALUE);
        };
        if !(1..=AXES).contains(&axes) || !address.is_multiple_of(16) {
            return Err(Code::INVALID_VALUE);
        }
        let (extents, part) = (values(extents, axes, 1)?, values(part, axes, 1)?);
        // The distance along the contiguous axis is not given.
        let given = values(strides, axes - 1, 0)?;
        let mut strides = [element; AXES];
        strides[1..].copy_from_slice(&given[..AXES - 1]);
        let wrong = extents.iter().any(|e| !(1..=1 << 32).contains(e))
            || part.iter().any(|e| !(1..=256).contains(e))
            || strides[1..axes].iter().any(|s| !s.is_multiple_of(16) || *s >= 1 << 40)
            || !(part[0] * element).is_multiple_of(16)
            || (row > 16 && part[0] * element > row);
        if wrong {
            return Err(Code::INVALID_VALUE);
        }
        if values(steps, axes, 1)? != [1; AXES] || interleave != 0 || fill != 0 {
            return Err(Code::NOT_SUPPORTED);
        }
        let axes = u64::from(rank);
        map.set(Map { address, extents, strides, part, axes, element, row }.pack())
    }
}
