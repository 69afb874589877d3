//! Tensor maps: what the copy engine of compute capability 9.0 is told of a tensor.

use cudarc::driver::sys::{
    CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave,
    CUtensorMapL2promotion, CUtensorMapSwizzle, cuTensorMapEncodeTiled,
};

use super::failed;
use crate::device::kernel::{Boxes, Entry};
use crate::error::{Error, Result};

/// The map of a tensor, zeros beyond it. A row of a box that is 32, 64 or 128 bytes long has its
/// packets of 16 bytes permuted over as many.
pub(super) fn tensor_map(entry: &'static Entry, boxes: &Boxes) -> Result<CUtensorMap> {
    let bytes = boxes.element();
    let ([depth, rows, cols], [z, y, x]) = (boxes.extents(), boxes.part());
    let address = boxes.span().address();
    let line = cols.saturating_mul(bytes);
    let strides = [line, line.saturating_mul(rows)];
    let whole = |n: &u64| n.is_multiple_of(Boxes::GRAIN);
    if ![address, strides[0], strides[1]].iter().all(whole) {
        let what = format!("{entry}: lines of {cols} {} at {address:#x}", boxes.span().element());
        let what = format!("{what} do not begin at multiples of {} bytes", Boxes::GRAIN);
        return Err(Error::Shape { op: entry.name, what });
    }
    let (extents, part, steps) = ([cols, rows, depth], [x, y, z], [1; 3]);
    let mut map = CUtensorMap { opaque: [0; 16] };
    // SAFETY: the arrays have a value for each axis (strides for all but the first), and the map is
    // written and no more; it holds an address that launches alone read through.
    let made = unsafe {
        cuTensorMapEncodeTiled(
            &raw mut map,
            element(boxes.span().element()),
            3,
            address as *mut _,
            extents.as_ptr(),
            strides.as_ptr(),
            part.as_ptr(),
            steps.as_ptr(),
            CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle(u64::from(x) * bytes),
            CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    let what = || format!("{entry}: a map of {extents:?} in boxes of {part:?}");
    let fix = "this is a mistake in the kernel's launch";
    made.result().map_err(|e| failed(e, what(), fix))?;
    Ok(map)
}

/// The engine's name of an element type, which matters for its size: zeros are zeros.
fn element(name: &str) -> CUtensorMapDataType {
    match name {
        "bf16" => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        "f64" => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT64,
        "i64" => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_INT64,
        "u64" => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT64,
        "i32" => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_INT32,
        "u32" => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT32,
        "u16" => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT16,
        "u8" => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        _ => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
    }
}

/// How packets are permuted where a box's rows have so many bytes.
fn swizzle(row: u64) -> CUtensorMapSwizzle {
    match row {
        128 => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        64 => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        32 => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
        _ => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
    }
}
