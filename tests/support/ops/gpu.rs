//! The GPU that tests run kernels on: softcuda, our driver in software, unless GENEVAR_TEST_DEVICE
//! names one of the machine's, as `cuda:0`.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::sync::OnceLock;

use genevar::device::cuda::{Gpu, Queue};
use genevar::device::launch;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// Whether there are kernels to test: the build found NVRTC.
pub fn has_kernels() -> bool {
    launch::NVRTC.is_some()
}

/// The GPU that the environment names, else softcuda's.
fn open() -> Result<Gpu, String> {
    let ordinal = match std::env::var("GENEVAR_TEST_DEVICE") {
        Ok(name) => {
            let number = name.strip_prefix("cuda:").and_then(|n| n.parse().ok());
            number.ok_or(format!("GENEVAR_TEST_DEVICE is {name:?}, not cuda:0 or so"))?
        }
        Err(_) => {
            let mut path = std::env::current_exe().map_err(|e| e.to_string())?;
            path.set_file_name("libsoftcuda.so");
            // SAFETY: softcuda has no code that runs when it is loaded. It stays loaded, so that
            // the name libcuda.so means it from now on.
            let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
            std::mem::forget(library.map_err(|e| format!("{}: {e}", path.display()))?);
            0
        }
    };
    Gpu::open(ordinal).map_err(|e| e.to_string())
}

/// The one GPU of this process.
pub fn gpu() -> Result<&'static Gpu, String> {
    static GPU: OnceLock<Result<Gpu, String>> = OnceLock::new();
    GPU.get_or_init(open).as_ref().map_err(Clone::clone)
}

/// A queue of the calling thread's own.
pub fn queue() -> Result<Queue, String> {
    thread_local!(static QUEUE: RefCell<Option<Queue>> = const { RefCell::new(None) });
    QUEUE.with_borrow_mut(|queue| match queue {
        Some(queue) => Ok(queue.clone()),
        None => {
            let new = gpu()?.queue().map_err(|e| e.to_string())?;
            Ok(queue.insert(new).clone())
        }
    })
}
