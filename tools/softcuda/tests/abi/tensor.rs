//! Tensor maps through the driver's interface, and the copies that read them.

use crate::support::{Code, context};
use cudarc::driver::{CudaStream, DevicePtr, result, sys};
use cudarc::nvrtc::Ptx;
use std::ffi::c_void;
use std::sync::Arc;

/// Copies the box at (x, y) of one tensor to the same place of another, through shared memory, and
/// what lies there to `out`.
const TEXT: &str = "
.version 9.0
.target sm_90
.address_size 64

.visible .entry move(
    .param .align 64 .b8 from[128],
    .param .align 64 .b8 to[128],
    .param .u64 out,
    .param .u32 x,
    .param .u32 y
)
{
    .reg .pred %p;
    .reg .b32 %t, %x, %y, %a, %v;
    .reg .b64 %from, %to, %out;
    .shared .align 8 .b8 gate[8];
    .shared .align 256 .b8 box[256];

    mov.u32 %t, %tid.x;
    ld.param.u32 %x, [x];
    ld.param.u32 %y, [y];
    mov.b64 %from, from;
    cvta.param.u64 %from, %from;
    mov.b64 %to, to;
    cvta.param.u64 %to, %to;
    setp.ne.u32 %p, %t, 0;
    @%p bra READY;
    mbarrier.init.shared::cta.b64 [gate], 1;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [gate], 256;
    mov.u32 %a, box;
    mov.u32 %v, gate;
    cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes
        [%a], [%from, {%x, %y}], [%v];
READY:
    bar.sync 0;
WAIT:
    mbarrier.try_wait.parity.shared::cta.b64 %p, [gate], 0;
    @!%p bra WAIT;
    mov.u32 %a, box;
    mad.lo.u32 %a, %t, 4, %a;
    ld.shared.u32 %v, [%a];
    ld.param.u64 %out, [out];
    mad.wide.u32 %out, %t, 4, %out;
    st.global.u32 [%out], %v;
    setp.ne.u32 %p, %t, 0;
    @%p bra DONE;
    mov.u32 %a, box;
    cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%to, {%x, %y}], [%a];
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group 0;
DONE:
    ret;
}
";

/// Rows and columns of the tensor; rows are as long as the next multiple of 16 bytes.
const SIZE: [usize; 2] = [10, 22];
const PITCH: usize = 24;
/// Rows and columns of the box.
const PART: [usize; 2] = [8, 8];

fn map(address: u64, swizzle: u32, part: u32) -> Result<sys::CUtensorMap, Code> {
    // SAFETY: a map is plain data; the arrays have a value for each axis.
    unsafe {
        let mut map: sys::CUtensorMap = std::mem::zeroed();
        let extents = [SIZE[1] as u64, SIZE[0] as u64];
        let (strides, part, steps) = ([PITCH as u64 * 4], [part, PART[0] as u32], [1, 1]);
        let answer = sys::cuTensorMapEncodeTiled(
            &mut map,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT32,
            2,
            address as *mut c_void,
            extents.as_ptr(),
            strides.as_ptr(),
            part.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            std::mem::transmute::<u32, sys::CUtensorMapSwizzle>(swizzle),
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        );
        if answer == Code::CUDA_SUCCESS { Ok(map) } else { Err(answer) }
    }
}

/// What a thread's word of the box holds; zero outside of the tensor.
fn expected(host: &[u32], at: [usize; 2], thread: usize, swizzle: u32) -> u32 {
    // A row of the box is 32 bytes: two pieces, which change places in every other 128 bytes.
    let piece = (thread / 4) ^ (usize::from(swizzle == 1) * (thread / 32 % 2));
    let (row, column) = (at[0] + piece / 2, at[1] + piece % 2 * 4 + thread % 4);
    let inside = row < SIZE[0] && column < SIZE[1];
    if inside { host[row * PITCH + column] } else { 0 }
}

fn moves(stream: &Arc<CudaStream>, function: sys::CUfunction, swizzle: u32, at: [usize; 2]) {
    let host: Vec<u32> = (0..SIZE[0] * PITCH).map(|i| i as u32 + 1).collect();
    let from = stream.clone_htod(&host).expect("memory");
    let to = stream.clone_htod(&vec![0u32; host.len()]).expect("memory");
    let out = stream.clone_htod(&[0u32; 64]).expect("memory");
    let (a, b, c) = (from.device_ptr(stream).0, to.device_ptr(stream).0, out.device_ptr(stream).0);
    let maps = [a, b].map(|address| map(address, swizzle, PART[1] as u32).expect("a map"));
    let (mut x, mut y, mut c) = (at[1] as u32, at[0] as u32, c);
    let [mut from_map, mut to_map] = maps;
    let mut values = [
        std::ptr::from_mut(&mut from_map).cast::<c_void>(),
        std::ptr::from_mut(&mut to_map).cast(),
        std::ptr::from_mut(&mut c).cast(),
        std::ptr::from_mut(&mut x).cast(),
        std::ptr::from_mut(&mut y).cast(),
    ];
    let (grid, block) = ((1, 1, 1), (64, 1, 1));
    // SAFETY: the parameters are those of the kernel.
    unsafe {
        result::launch_kernel(function, grid, block, 0, stream.cu_stream(), &mut values)
            .expect("a launch");
    }
    let landed = stream.clone_dtoh(&out).expect("the box");
    for (thread, got) in landed.iter().enumerate() {
        assert_eq!(*got, expected(&host, at, thread, swizzle), "thread {thread} at {at:?}");
    }
    let back = stream.clone_dtoh(&to).expect("the tensor");
    for (i, got) in back.iter().enumerate() {
        let (row, column) = (i / PITCH, i % PITCH);
        let rows = (at[0]..SIZE[0].min(at[0] + PART[0])).contains(&row);
        let columns = (at[1]..SIZE[1].min(at[1] + PART[1])).contains(&column);
        assert_eq!(*got, if rows && columns { host[i] } else { 0 }, "{row}, {column}");
    }
}

#[test]
fn boxes_of_a_tensor_are_copied_both_ways_and_end_where_it_ends() {
    let context = context();
    let stream = context.new_stream().expect("a stream");
    let module = context.load_module(Ptx::from_src(TEXT)).expect("the module");
    let function = module.load_function("move").expect("the kernel");
    for swizzle in [0, 1] {
        for at in [[0, 0], [2, 8], [5, 16]] {
            moves(&stream, function.cu_function(), swizzle, at);
        }
    }
}

#[test]
fn a_map_that_the_hardware_refuses_is_refused() {
    let context = context();
    context.bind_to_thread().expect("the context");
    assert_eq!(map(64, 0, 3).err(), Some(Code::CUDA_ERROR_INVALID_VALUE), "12 bytes a row");
    assert_eq!(map(64, 0, 260).err(), Some(Code::CUDA_ERROR_INVALID_VALUE), "too long a row");
    assert_eq!(map(64, 1, 16).err(), Some(Code::CUDA_ERROR_INVALID_VALUE), "beyond the pattern");
    assert_eq!(map(8, 0, 8).err(), Some(Code::CUDA_ERROR_INVALID_VALUE), "an odd address");
    assert!(map(64, 1, 8).is_ok());
}
