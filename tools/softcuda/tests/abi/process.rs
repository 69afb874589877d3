//! What needs a process of its own: settings from the environment, and captures that forbid other
//! threads what is unsafe. A test runs this same program again with `child` as its only test.

use crate::kernels::{blocks, scale};
use crate::support::{Code, code, context, end_capture, library, new_stream};
use cudarc::driver::{PushKernelArg, result, sys};
use std::path::Path;
use std::process::Command;

#[test]
fn memory_and_report_are_set_by_the_environment() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (report, counts) = (folder.join("report.txt"), folder.join("counts.jsonl"));
    for file in [&report, &counts] {
        let _ = std::fs::remove_file(file);
    }
    let child = Command::new(std::env::current_exe().expect("the test's own path"))
        .args(["--exact", "process::child", "--ignored"])
        .env("SOFTCUDA_MEMORY", "1M")
        .env("SOFTCUDA_REPORT", &report)
        .env("SOFTCUDA_COUNTS", &counts)
        .output()
        .expect("the child");
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    let said = std::fs::read_to_string(&report).expect("the report");
    assert_eq!(said.matches("freed memory").count(), 1, "{said}");
    assert_eq!(said.matches("kernel scale").count(), 1, "{said}");
    assert_eq!(said.matches("CUDA_ERROR_ILLEGAL_ADDRESS").count(), 2, "one a context: {said}");
    assert!(String::from_utf8_lossy(&child.stderr).contains("freed memory"), "and on stderr");
    let counts = std::fs::read_to_string(&counts).expect("the counts");
    let lines: Vec<serde_json::Value> =
        counts.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 2, "one line a launch: {counts}");
    for line in lines {
        assert_eq!((&line["kernel"], &line["grid"]), (&"scale".into(), &[1, 1, 1].into()));
        assert_eq!(line["global_read_bytes"], 4 * 20);
    }
}

#[test]
#[ignore = "runs in the process that another test starts"]
fn child() {
    if std::env::var_os("SOFTCUDA_REPORT").is_none() {
        return; // Asked for by hand: the driver of this process is not the one to look at.
    }
    library();
    let early = code(result::device::get_count());
    assert_eq!(early, Code::CUDA_ERROR_NOT_INITIALIZED, "before cuInit");
    little_memory();
    a_global_capture_forbids_other_threads_what_is_unsafe();
    two_launches();
    a_use_after_free();
    an_address_out_of_bounds();
}

fn little_memory() {
    let context = context();
    assert_eq!(context.total_mem(), Ok(1 << 20));
    let stream = new_stream(&context);
    let large = unsafe { stream.alloc::<u8>(768 << 10) }.expect("most of the memory");
    let more = unsafe { result::malloc_sync(512 << 10) };
    assert_eq!(code(more), Code::CUDA_ERROR_OUT_OF_MEMORY);
    drop(large);
    let again = unsafe { stream.alloc::<u8>(768 << 10) };
    assert!(again.is_ok(), "what a stream is about to free is waited for");
}

fn a_global_capture_forbids_other_threads_what_is_unsafe() {
    let context = context();
    let stream = new_stream(&context);
    let global = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
    let allocate = |mut mode: sys::CUstreamCaptureMode| {
        let context = context.clone();
        let thread = std::thread::spawn(move || unsafe {
            context.bind_to_thread().expect("the context");
            let set = sys::cuThreadExchangeStreamCaptureMode(&mut mode);
            assert_eq!((set, mode), (Code::CUDA_SUCCESS, global), "each thread begins global");
            result::malloc_sync(16).map(|memory| result::free_sync(memory).expect("a free"))
        });
        thread.join().expect("the other thread")
    };
    let begin = || unsafe { result::stream::begin_capture(stream.cu_stream(), global) };
    begin().expect("a capture");
    allocate(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("memory");
    assert!(end_capture(&stream).is_ok(), "nobody broke a rule");
    begin().expect("a capture");
    assert_eq!(code(allocate(global)), Code::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    assert_eq!(code(end_capture(&stream)), Code::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
}

fn two_launches() {
    let context = context();
    let stream = new_stream(&context);
    let kernel = scale(&context);
    let mut memory = stream.alloc_zeros::<f32>(20).expect("memory");
    for _ in 0..2 {
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&mut memory).arg(&2.0_f32).arg(&20_u32);
        unsafe { launch.launch(blocks(1, 32, 0)) }.expect("a launch");
    }
    stream.synchronize().expect("the end of the stream");
}

fn a_use_after_free() {
    let context = context();
    let stream = new_stream(&context);
    let raw = stream.cu_stream();
    let hold = crate::support::Hold::in_stream(raw);
    unsafe {
        let memory = result::malloc_async(raw, 64).expect("memory");
        result::free_async(memory, raw).expect("a free");
        for _ in 0..2 {
            result::memset_d8_async(memory, 0, 64, raw).expect("a memset to fail later");
        }
    }
    hold.open();
    assert_eq!(code(stream.synchronize()), Code::CUDA_ERROR_ILLEGAL_ADDRESS);
}

fn an_address_out_of_bounds() {
    let context = context();
    let stream = new_stream(&context);
    let kernel = scale(&context);
    let mut memory = stream.alloc_zeros::<f32>(20).expect("memory");
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&mut memory).arg(&2.0_f32).arg(&21_u32);
    unsafe { launch.launch(blocks(1, 32, 0)) }.expect("a launch to fail later");
    assert_eq!(code(stream.synchronize()), Code::CUDA_ERROR_ILLEGAL_ADDRESS);
}

#[test]
fn a_program_that_cannot_be_changed_preloads_the_library() {
    let child = Command::new(std::env::current_exe().expect("the test's own path"))
        .args(["--exact", "process::preloaded", "--ignored"])
        .env("LD_PRELOAD", crate::support::path())
        .output()
        .expect("the child");
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "runs in the process that another test starts"]
fn preloaded() {
    if std::env::var_os("LD_PRELOAD").is_none() {
        return; // Asked for by hand.
    }
    let context = cudarc::driver::CudaContext::new(0).expect("a context of the preloaded driver");
    assert_eq!(context.name().as_deref(), Ok("softcuda (PTX on the CPU)"));
}
