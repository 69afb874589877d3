//! Kernels through an unmodified client: modules, launches, their parameters and limits, graphs of
//! kernels, and what becomes of a fault.

use crate::support::{Code, begin_capture, code, context};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaStream, DevicePtr, LaunchConfig, PushKernelArg, result, sys,
};
use cudarc::nvrtc::Ptx;
use std::ffi::c_void;
use std::sync::Arc;

/// `scale` multiplies `count` numbers by a factor; `numbers` is a variable that it leaves alone.
const TEXT: &str = "
.version 8.0
.target sm_80
.address_size 64

.visible .global .align 4 .b8 numbers[16];

.visible .entry scale(
    .param .u64 scale_param_0,
    .param .f32 scale_param_1,
    .param .u32 scale_param_2
)
.maxntid 256, 1, 1
{
    .reg .pred %p<2>;
    .reg .f32 %f<4>;
    .reg .b32 %r<6>;
    .reg .b64 %rd<5>;

    ld.param.u64 %rd1, [scale_param_0];
    ld.param.f32 %f1, [scale_param_1];
    ld.param.u32 %r2, [scale_param_2];
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, %ntid.x;
    mov.u32 %r5, %tid.x;
    mad.lo.s32 %r1, %r3, %r4, %r5;
    setp.ge.u32 %p1, %r1, %r2;
    @%p1 bra $L_done;
    cvta.to.global.u64 %rd2, %rd1;
    mul.wide.u32 %rd3, %r1, 4;
    add.s64 %rd4, %rd2, %rd3;
    ld.global.f32 %f2, [%rd4];
    mul.f32 %f3, %f2, %f1;
    st.global.f32 [%rd4], %f3;
$L_done:
    ret;
}
";

/// The kernel of the text.
pub fn scale(context: &Arc<CudaContext>) -> CudaFunction {
    let module = context.load_module(Ptx::from_src(TEXT)).expect("the module");
    module.load_function("scale").expect("the kernel")
}

/// Launches it.
pub fn launch(
    stream: &CudaStream,
    kernel: &CudaFunction,
    (memory, factor, count): (u64, f32, u32),
    config: LaunchConfig,
) -> Result<(), cudarc::driver::DriverError> {
    let mut builder = stream.launch_builder(kernel);
    builder.arg(&memory).arg(&factor).arg(&count);
    unsafe { builder.launch(config) }.map(drop)
}

/// A launch of some blocks of some threads with dynamic shared memory.
pub fn blocks(grid: u32, block: u32, shared: u32) -> LaunchConfig {
    let (grid_dim, block_dim) = ((grid, 1, 1), (block, 1, 1));
    LaunchConfig { grid_dim, block_dim, shared_mem_bytes: shared }
}

#[test]
fn a_kernel_gets_its_parameters_and_all_its_threads() {
    let context = context();
    let stream = context.new_stream().expect("a stream");
    let kernel = scale(&context);
    let host: Vec<f32> = (0..1000).map(|x| x as f32).collect();
    let memory = stream.clone_htod(&host).expect("memory");
    let (address, _keep) = memory.device_ptr(&stream);
    launch(&stream, &kernel, (address, 0.5, 999), blocks(4, 256, 0)).expect("a launch");
    let back = stream.clone_dtoh(&memory).expect("numbers");
    assert!((0..999).all(|x| back[x] == host[x] * 0.5));
    assert_eq!(back[999], 999.0, "the one beyond the count");
}

#[test]
fn parameters_may_come_in_one_buffer() {
    let context = context();
    let stream = context.new_stream().expect("a stream");
    let kernel = scale(&context);
    let memory = stream.clone_htod(&[3.0_f32]).expect("memory");
    let (address, _keep) = memory.device_ptr(&stream);
    let mut buffer = [0_u8; 16];
    buffer[..8].copy_from_slice(&address.to_le_bytes());
    buffer[8..12].copy_from_slice(&2.0_f32.to_le_bytes());
    buffer[12..].copy_from_slice(&1_u32.to_le_bytes());
    let mut bytes = buffer.len();
    let number = std::ptr::without_provenance_mut::<c_void>;
    let (buffer, bytes) = (buffer.as_mut_ptr().cast(), std::ptr::from_mut(&mut bytes).cast());
    let mut extra = [number(1), buffer, number(2), bytes, number(0)];
    let answer = unsafe {
        let (kernel, stream) = (kernel.cu_function(), stream.cu_stream());
        let (none, extra) = (std::ptr::null_mut(), extra.as_mut_ptr());
        sys::cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 0, stream, none, extra)
    };
    assert_eq!(answer, Code::CUDA_SUCCESS);
    assert_eq!(stream.clone_dtoh(&memory).expect("a number"), [6.0]);
}

#[test]
fn what_a_module_does_not_have_is_not_found() {
    let context = context();
    let module = context.load_module(Ptx::from_src(TEXT)).expect("the module");
    let missing = module.load_function("shrink");
    assert_eq!(code(missing.map(drop)), Code::CUDA_ERROR_NOT_FOUND);
    let stream = context.new_stream().expect("a stream");
    let global = module.get_global("numbers", &stream).expect("the variable");
    assert_eq!(global.len(), 16);
    assert_eq!(code(module.get_global("letters", &stream)), Code::CUDA_ERROR_NOT_FOUND);
}

#[test]
fn launches_beyond_the_limits_are_refused_and_leave_no_trace() {
    let context = context();
    let stream = context.new_stream().expect("a stream");
    let kernel = scale(&context);
    for config in [blocks(0, 32, 0), blocks(1, 0, 0), blocks(1, 512, 0), blocks(1, 32, 49_153)] {
        let refused = launch(&stream, &kernel, (0, 1.0, 0), config);
        assert_eq!(code(refused), Code::CUDA_ERROR_INVALID_VALUE, "{config:?}");
    }
    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    kernel.set_attribute(attribute, 64 << 10).expect("more shared memory");
    launch(&stream, &kernel, (0, 1.0, 0), blocks(1, 32, 49_153)).expect("a launch");
    stream.synchronize().expect("the context is as good as before");
    assert_eq!(kernel.max_threads_per_block(), Ok(256));
}

#[test]
fn occupancy_counts_threads_and_shared_memory() {
    let context = context();
    let kernel = scale(&context);
    let resident =
        |block, shared| kernel.occupancy_max_active_blocks_per_multiprocessor(block, shared, None);
    assert_eq!(resident(256, 0), Ok(8));
    assert_eq!(resident(32, 0), Ok(32));
    assert_eq!(resident(256, 40 << 10), Ok(5));
    extern "C" fn none(_block: std::ffi::c_int) -> usize {
        0
    }
    let best = kernel.occupancy_max_potential_block_size(none, 0, 0, None);
    assert_eq!(best, Ok((8 * 132, 256)));
}

#[test]
fn a_cooperative_grid_has_to_fit_the_card() {
    let context = context();
    let stream = context.new_stream().expect("a stream");
    let kernel = scale(&context);
    let (memory, factor, count) = (0_u64, 1.0_f32, 0_u32);
    let cooperative = |grid| {
        let mut builder = stream.launch_builder(&kernel);
        builder.arg(&memory).arg(&factor).arg(&count);
        unsafe { builder.launch_cooperative(blocks(grid, 256, 0)) }.map(drop)
    };
    cooperative(2).expect("a launch");
    let refused = code(cooperative(8 * 132 + 1));
    assert_eq!(refused, Code::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
    stream.synchronize().expect("the end of the stream");
}

#[test]
fn a_graph_of_kernels_replays() {
    let context = context();
    let stream = context.new_stream().expect("a stream");
    let kernel = scale(&context);
    let memory = stream.clone_htod(&[1.0_f32; 32]).expect("memory");
    let (address, _keep) = memory.device_ptr(&stream);
    begin_capture(stream.cu_stream());
    for factor in [2.0, 3.0] {
        launch(&stream, &kernel, (address, factor, 32), blocks(1, 32, 0)).expect("a node");
    }
    let flags = sys::CUgraphInstantiate_flags_enum(0);
    let graph = stream.end_capture(flags).expect("a graph").expect("a graph with nodes");
    graph.launch().expect("a launch");
    graph.launch().expect("a launch");
    assert_eq!(stream.clone_dtoh(&memory).expect("numbers"), [36.0; 32]);
}

#[test]
fn an_illegal_address_of_a_kernel_ends_its_context() {
    let context = context();
    let stream = context.new_stream().expect("a stream");
    let kernel = scale(&context);
    launch(&stream, &kernel, (64, 1.0, 1), blocks(1, 32, 0)).expect("a launch to fail later");
    assert_eq!(code(stream.synchronize()), Code::CUDA_ERROR_ILLEGAL_ADDRESS);
    let later = launch(&stream, &kernel, (64, 1.0, 0), blocks(1, 32, 0));
    assert_eq!(code(later), Code::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(code(result::mem_get_info()), Code::CUDA_ERROR_ILLEGAL_ADDRESS);
}

/// `CUlaunchConfig` for a grid of some blocks of 32 threads, with attributes.
fn config(
    grid: u32,
    stream: &CudaStream,
    attributes: &mut [sys::CUlaunchAttribute],
) -> sys::CUlaunchConfig {
    sys::CUlaunchConfig {
        gridDimX: grid,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: 32,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: stream.cu_stream(),
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    }
}

#[test]
fn a_launch_with_attributes_looks_at_those_that_change_what_runs() {
    use sys::CUlaunchAttributeID as Id;
    let context = context();
    let stream = context.new_stream().expect("a stream");
    let kernel = scale(&context);
    let memory = stream.clone_htod(&[1.0_f32; 64]).expect("memory");
    let (address, _keep) = memory.device_ptr(&stream);
    let (mut address, mut factor, mut count) = (address, 3.0_f32, 64_u32);
    let mut values = [
        std::ptr::from_mut(&mut address).cast::<c_void>(),
        std::ptr::from_mut(&mut factor).cast(),
        std::ptr::from_mut(&mut count).cast(),
    ];
    let mut launch = |id, value: [u32; 3]| {
        // SAFETY: an attribute is plain data, of which zero is a value.
        let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
        attribute.id = id;
        let bytes: [u8; 12] = bytemuck::cast(value);
        let mut pad = [0; 64];
        pad[..12].copy_from_slice(&bytes.map(|byte| byte as std::ffi::c_char));
        attribute.value.pad = pad;
        let mut attributes = [attribute];
        let config = config(2, &stream, &mut attributes);
        let none = std::ptr::null_mut();
        unsafe { sys::cuLaunchKernelEx(&config, kernel.cu_function(), values.as_mut_ptr(), none) }
    };
    assert_eq!(launch(Id::CU_LAUNCH_ATTRIBUTE_PRIORITY, [0; 3]), Code::CUDA_SUCCESS);
    assert_eq!(launch(Id::CU_LAUNCH_ATTRIBUTE_COOPERATIVE, [1, 0, 0]), Code::CUDA_SUCCESS);
    let cluster = launch(Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, [2, 1, 1]);
    assert_eq!(cluster, Code::CUDA_ERROR_INVALID_CLUSTER_SIZE, "sm_80 has no clusters");
    assert_eq!(stream.clone_dtoh(&memory).expect("numbers"), [9.0; 64]);
}

#[test]
fn a_library_is_a_module_and_its_kernels_are_functions() {
    let context = context();
    context.bind_to_thread().expect("the context");
    let text = std::ffi::CString::new(TEXT).expect("text without zeros");
    let (mut library, mut kernel, mut function) =
        (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
    unsafe {
        let none = std::ptr::null_mut;
        let text = text.as_ptr().cast();
        let loaded = sys::cuLibraryLoadData(
            &mut library,
            text,
            none(),
            none().cast(),
            0,
            none().cast(),
            none().cast(),
            0,
        );
        assert_eq!(loaded, Code::CUDA_SUCCESS);
        let found = sys::cuLibraryGetKernel(&mut kernel, library, c"scale".as_ptr());
        assert_eq!(found, Code::CUDA_SUCCESS);
        assert_eq!(sys::cuKernelGetFunction(&mut function, kernel), Code::CUDA_SUCCESS);
        let (mut offset, mut bytes) = (0, 0);
        let asked = sys::cuFuncGetParamInfo(function, 2, &mut offset, &mut bytes);
        assert_eq!((asked, offset, bytes), (Code::CUDA_SUCCESS, 12, 4));
        let beyond = sys::cuFuncGetParamInfo(function, 3, &mut offset, &mut bytes);
        assert_eq!(beyond, Code::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(sys::cuLibraryUnload(library), Code::CUDA_SUCCESS);
        let gone = sys::cuFuncGetParamInfo(function, 2, &mut offset, &mut bytes);
        assert_eq!(gone, Code::CUDA_ERROR_INVALID_HANDLE);
    }
}
