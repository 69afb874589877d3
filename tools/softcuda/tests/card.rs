//! Runs every file of `ptx/` through the driver's interface: on softcuda, or with SOFTCUDA_CARD=0
//! on card number 0, which shows that softcuda's bits are the hardware's. SOFTCUDA_PTX names
//! another folder of files.

#![allow(unsafe_code)] // The driver API is one of pointers; each call is on objects of its test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

mod fixture;

use cudarc::driver::{CudaContext, DriverError, result, sys};
use fixture::{Fixture, Param, files};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use libtest_mimic::{Arguments, Failed, Trial};
use std::ffi::{CString, c_void};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// The card that the environment names; none is softcuda.
fn card() -> Option<usize> {
    std::env::var("SOFTCUDA_CARD").ok().map(|n| n.parse().expect("SOFTCUDA_CARD is a number"))
}

/// The context of the tests; one that a fault has spoilt is replaced.
fn context() -> Result<Arc<CudaContext>, DriverError> {
    static CONTEXT: Mutex<Option<Arc<CudaContext>>> = Mutex::new(None);
    let mut held = CONTEXT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(context) = &*held
        && context.bind_to_thread().is_ok()
        && result::ctx::synchronize().is_ok()
    {
        return Ok(context.clone());
    }
    if card().is_none() {
        let path = std::env::current_exe().expect("a path").with_file_name("libsoftcuda.so");
        // SAFETY: the library has no code that runs when it is loaded.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
        std::mem::forget(library.expect("libsoftcuda.so beside the test"));
    }
    assert!(unsafe { sys::is_culib_present() }, "there is no libcuda.so");
    let context = CudaContext::new_non_primary(card().unwrap_or(0), 0)?;
    // SAFETY: each test waits for its own work.
    unsafe { context.disable_event_tracking() };
    Ok(held.insert(context).clone())
}

fn tell(what: &str) -> impl Fn(DriverError) -> String {
    move |e| format!("{what}: {e:?}")
}

/// Launches the file's kernel; returns what its outputs hold.
fn launch(text: &str, all: &Fixture) -> Result<Vec<Vec<u8>>, String> {
    let context = context().map_err(tell("the context"))?;
    let source = CString::new(text).map_err(|e| e.to_string())?;
    let name = text.split(".entry ").nth(1).and_then(|t| t.split('(').next());
    let name = CString::new(name.ok_or("no kernel")?.trim()).map_err(|e| e.to_string())?;
    // SAFETY: buffers are as long as what is copied; the kernel gets what its file declares, and
    // everything is released after the wait.
    unsafe {
        let module = result::module::load_data(source.as_ptr().cast()).map_err(tell("loading"))?;
        let kernel = result::module::get_function(module, name).map_err(tell("the kernel"))?;
        let mut addresses = Vec::new();
        for buffer in &all.buffers {
            let address = result::malloc_sync(buffer.bytes.len()).map_err(tell("memory"))?;
            if !buffer.is_out {
                result::memcpy_htod_sync(address, &buffer.bytes).map_err(tell("copying"))?;
            }
            addresses.push(address);
        }
        let mut values: Vec<Vec<u8>> = all
            .params
            .iter()
            .map(|param| match param {
                Param::Buffer(i) => addresses[*i].to_le_bytes().to_vec(),
                Param::Scalar(bytes) => bytes.clone(),
            })
            .collect();
        let mut pointers: Vec<*mut c_void> =
            values.iter_mut().map(|v| v.as_mut_ptr().cast()).collect();
        let stream = context.default_stream();
        let ([gx, gy, gz], [bx, by, bz]) = (all.grid, all.block);
        let (grid, block, shared) = ((gx, gy, gz), (bx, by, bz), all.shared);
        let stream = stream.cu_stream();
        result::launch_kernel(kernel, grid, block, shared, stream, &mut pointers)
            .map_err(tell("launching"))?;
        result::stream::synchronize(stream).map_err(tell("running"))?;
        let mut outs = Vec::new();
        for (buffer, &address) in all.buffers.iter().zip(&addresses) {
            let mut bytes = vec![0u8; buffer.bytes.len()];
            result::memcpy_dtoh_sync(&mut bytes, address).map_err(tell("copying back"))?;
            outs.push(bytes);
        }
        for address in addresses {
            result::free_sync(address).map_err(tell("freeing"))?;
        }
        result::module::unload(module).map_err(tell("unloading"))?;
        Ok(outs)
    }
}

/// Whether the file is for a newer card than the one that the environment names.
fn is_too_new(text: &str) -> Result<bool, String> {
    let context = context().map_err(tell("the context"))?;
    let (major, _) = context.compute_capability().map_err(tell("the capability"))?;
    Ok(card().is_some() && major != 9 && text.contains(".target sm_90"))
}

fn check(text: &str) -> Result<(), Failed> {
    let all = Fixture::read(text);
    if is_too_new(text)? {
        println!("left out: the card is not of capability 9");
        return Ok(());
    }
    match (launch(text, &all), &all.fault) {
        // Which error it is depends on who looks.
        (Err(_), Some(_)) => Ok(()),
        (Err(e), None) => Err(e.into()),
        (Ok(_), Some(want)) => Err(format!("nothing stopped it, not even {want}").into()),
        (Ok(outs), None) => {
            let exact = card().is_none();
            let mut outs = all.buffers.iter().zip(&outs).filter(|(buffer, _)| buffer.is_out);
            Ok(outs.try_for_each(|(buffer, got)| buffer.judge(got, exact))?)
        }
    }
}

fn main() {
    let trial = |(name, path): (String, PathBuf)| {
        Trial::test(name, move || check(&std::fs::read_to_string(&path)?))
    };
    let trials = files().into_iter().map(trial).collect();
    // One thread: a fault spoils the context for those who share it.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit();
}
