//! The library itself: its name, its table of functions, its device and its contexts.

use crate::support::{Code, code, context, library, path};
use cudarc::driver::{CudaContext, result, sys};
use std::collections::BTreeSet;
use std::ffi::{CString, c_void};
use std::process::Command;

#[test]
fn libcuda_is_this_library_once_it_is_loaded_by_its_path() {
    type Init = unsafe extern "C" fn(u32) -> u32;
    let ours = unsafe { library().get::<Init>(b"cuInit\0") }.expect("cuInit");
    assert!(unsafe { sys::is_culib_present() }, "dlopen(\"libcuda.so\") finds nothing");
    let theirs = unsafe { sys::culib().get::<Init>(b"cuInit\0") }.expect("cuInit");
    assert_eq!(*ours as *const (), *theirs as *const ());
}

#[test]
fn every_name_that_cudarc_can_load_is_exported() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    // Other platforms' packages may never have been fetched.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let metadata = Command::new(cargo)
        .args(["metadata", "--offline", "--format-version=1", "--manifest-path", manifest])
        .args(["--filter-platform", &platform])
        .output()
        .expect("cargo metadata");
    let metadata: serde_json::Value =
        serde_json::from_slice(&metadata.stdout).expect("JSON of cargo metadata");
    let packages = metadata["packages"].as_array().expect("packages");
    let cudarc = packages.iter().find(|package| package["name"] == "cudarc").expect("cudarc");
    let manifest = cudarc["manifest_path"].as_str().expect("the path of cudarc");
    let source = manifest.replace("Cargo.toml", "src/driver/sys/mod.rs");
    let source = std::fs::read_to_string(source).expect("cudarc's list of functions");

    let wanted: BTreeSet<_> = source
        .split("pub unsafe fn ")
        .filter_map(|rest| rest.split('(').next())
        .filter(|name| name.starts_with("cu") && *name != "culib" && !name.contains(' '))
        .collect();
    assert!(wanted.len() > 400, "cudarc has a new way to list its functions");
    let known: BTreeSet<_> = softcuda::abi::names().map(|(name, _)| name).collect();
    let missing: Vec<_> = wanted.difference(&known).collect();
    assert!(missing.is_empty(), "put these into src/abi/unsupported.rs: {missing:?}");
    for name in known {
        let found = unsafe { library().get::<unsafe extern "C" fn()>(name.as_bytes()) };
        assert!(found.is_ok(), "{name} is in the table and not exported");
    }
}

#[test]
fn a_name_without_an_implementation_says_not_supported() {
    library();
    let answer = unsafe { sys::cuTexRefCreate(&mut std::ptr::null_mut()) };
    assert_eq!(answer, Code::CUDA_ERROR_NOT_SUPPORTED);
}

#[test]
fn functions_are_found_by_name_and_version() {
    library();
    let find = |name: &str, version| {
        let name = CString::new(name).expect("a name");
        let (mut found, mut status) = (std::ptr::null_mut(), unsafe { std::mem::zeroed() });
        let answer =
            unsafe { sys::cuGetProcAddress_v2(name.as_ptr(), &mut found, version, 0, &mut status) };
        assert_eq!(answer, Code::CUDA_SUCCESS);
        (found, status as u32)
    };
    type Alloc = unsafe extern "C" fn(*mut u64, usize) -> u32;
    let symbol = unsafe { library().get::<Alloc>(b"cuMemAlloc_v2\0") }.expect("a symbol");
    assert_eq!(find("cuMemAlloc", 13000), (*symbol as *mut c_void, 0));
    assert_eq!(find("cuNothingOfTheKind", 13000), (std::ptr::null_mut(), 1));
}

#[test]
fn the_device_is_an_sm_90_card_with_a_name_of_its_own() {
    let context = context();
    assert_eq!(CudaContext::device_count(), Ok(1));
    assert_eq!(context.name().as_deref(), Ok("softcuda (PTX on the CPU)"));
    assert_eq!(context.compute_capability(), Ok((9, 0)));
    assert!(context.has_async_alloc());
    let (free, total) = context.mem_get_info().expect("memory");
    assert!(0 < free && free <= total);
    assert_eq!(context.total_mem(), Ok(total));
    let mut version = 0;
    assert_eq!(unsafe { sys::cuDriverGetVersion(&mut version) }, Code::CUDA_SUCCESS);
    assert_eq!(version, 13000);
    assert_eq!(code(result::device::get(1)), Code::CUDA_ERROR_INVALID_DEVICE);
}

#[test]
fn errors_have_names_and_sentences() {
    library();
    let error = cudarc::driver::DriverError(Code::CUDA_ERROR_ILLEGAL_ADDRESS);
    let name = error.error_name().expect("a name");
    assert_eq!(name.to_str(), Ok("CUDA_ERROR_ILLEGAL_ADDRESS"));
    assert!(!error.error_string().expect("a sentence").is_empty());
}

#[test]
fn contexts_are_a_stack_of_the_thread() {
    let (one, two) = (context(), context());
    one.bind_to_thread().expect("the first");
    assert_eq!(unsafe { sys::cuCtxPushCurrent_v2(two.cu_ctx()) }, Code::CUDA_SUCCESS);
    assert_eq!(result::ctx::get_current(), Ok(Some(two.cu_ctx())));
    let mut popped = std::ptr::null_mut();
    assert_eq!(unsafe { sys::cuCtxPopCurrent_v2(&mut popped) }, Code::CUDA_SUCCESS);
    assert_eq!(popped, two.cu_ctx());
    assert_eq!(result::ctx::get_current(), Ok(Some(one.cu_ctx())));
    let (gone, left) = (two.cu_ctx(), one.cu_ctx());
    drop(two);
    unsafe { result::ctx::set_current(left) }.expect("the first again");
    let dead = unsafe { result::ctx::set_current(gone) };
    assert_eq!(code(dead), Code::CUDA_ERROR_INVALID_CONTEXT);
}

#[test]
fn the_library_is_where_the_tests_look_for_it() {
    assert!(path().is_file(), "{} is not built", path().display());
}
