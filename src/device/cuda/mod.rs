//! The CUDA device: a context on one GPU, through whatever `libcuda.so` the machine has.
//!
//! The library is looked for at run time, so one binary serves machines with and without a GPU. An
//! error of the driver becomes an [`Error::Driver`] that says what was tried and what to do; the
//! driver reports faults of kernels at a later call, so that error names the launches before it.

#![allow(unsafe_code)]

mod buffer;
mod clock;
mod constants;
mod counts;
mod event;
mod graph;
mod launch;
mod plan;
mod queue;
mod staging;
mod tensor_map;

pub use buffer::Buffer;
pub use clock::{Clock, Clocked};
pub use counts::{Counts, is_counting};
pub use event::Event;
pub use graph::Graph;
pub use plan::MemoryPlan;
pub use queue::{Launch, Queue};
pub use staging::Sent;

use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUmodule};
use cudarc::driver::{CudaContext, DriverError, result};

use self::launch::Function;
use crate::device::kernel::{Entry, Image, Module};
use crate::error::{Error, Result};

/// What one can do when there is no driver.
const NO_DRIVER: &str = "the CPU works without; for a GPU, install NVIDIA's driver";

/// One GPU, opened.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    /// None for a GPU that is imagined.
    context: Option<Arc<CudaContext>>,
    facts: Facts,
    loaded: Mutex<HashMap<&'static str, Loaded>>,
}

/// A kernel file in the driver's hands.
struct Loaded {
    module: CUmodule,
    arch: &'static str,
    entries: HashMap<&'static str, Function>,
}

// SAFETY: handles of modules and functions may be used from any thread that has the context bound.
unsafe impl Send for Loaded {}

/// What the driver says of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its number.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Bytes of memory.
    pub memory: usize,
    /// Multiprocessors.
    pub multiprocessors: i32,
}

/// Whether there is a driver library.
pub fn is_present() -> bool {
    // SAFETY: it only opens the library, whose loading runs no code of ours.
    unsafe { sys::is_culib_present() }
}

/// The driver's version (13000 is CUDA 13.0) and the GPUs it sees.
///
/// # Errors
/// No driver library; a driver that does not start.
pub fn survey() -> Result<(i32, Vec<Facts>)> {
    if !is_present() {
        return Err(absent());
    }
    result::init().map_err(|e| failed(e, "starting the driver".into(), NO_DRIVER))?;
    let mut version = 0;
    // SAFETY: the driver writes one integer.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }
        .result()
        .map_err(|e| failed(e, "asking for the driver's version".into(), NO_DRIVER))?;
    let count = CudaContext::device_count()
        .map_err(|e| failed(e, "counting GPUs".into(), "look at `nvidia-smi`"))?;
    let facts = (0..usize::try_from(count).unwrap_or(0)).map(facts).collect::<Result<_>>()?;
    Ok((version, facts))
}

fn facts(ordinal: usize) -> Result<Facts> {
    let ask = || -> Result<Facts, DriverError> {
        let device = result::device::get(i32::try_from(ordinal).unwrap_or(i32::MAX))?;
        // SAFETY: the device was just handed out.
        let attribute = |a| unsafe { result::device::get_attribute(device, a) };
        Ok(Facts {
            ordinal,
            name: result::device::get_name(device)?,
            capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            // SAFETY: as above.
            memory: unsafe { result::device::total_mem(device) }?,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        })
    };
    ask().map_err(|e| failed(e, format!("looking at GPU {ordinal}"), "look at `nvidia-smi`"))
}

impl Gpu {
    /// Opens GPU number `ordinal`.
    ///
    /// # Errors
    /// No driver, no such GPU, a GPU that another process holds for itself.
    pub fn open(ordinal: usize) -> Result<Self> {
        let (_, all) = survey()?;
        let Some(facts) = all.get(ordinal).cloned() else {
            let what = format!("there is no GPU {ordinal}; the driver sees {}", all.len());
            return Err(Error::data(what, "`genevar doctor` lists them"));
        };
        let context = CudaContext::new(ordinal).map_err(|e| {
            let fix = "another process may hold it; look at `nvidia-smi`";
            failed(e, format!("opening GPU {ordinal} ({})", facts.name), fix)
        })?;
        // SAFETY: every buffer belongs to one queue, whose stream orders its uses; cudarc's own
        // events would double the calls and cannot be captured.
        unsafe { context.disable_event_tracking() };
        let context = Some(context);
        let gpu = Self(Arc::new(Inner { context, facts, loaded: Mutex::default() }));
        gpu.keep_memory()?;
        Ok(gpu)
    }

    /// A GPU that is not there: kernels are chosen and launches made as for one of these facts,
    /// and nothing of it runs. What is fetched from it is zeros. It needs no driver.
    pub fn imagined(facts: Facts) -> Self {
        Self(Arc::new(Inner { context: None, facts, loaded: Mutex::default() }))
    }

    /// Whether it is [`Gpu::imagined`].
    pub fn is_imagined(&self) -> bool {
        self.0.context.is_none()
    }

    /// The driver's context.
    fn context(&self) -> Result<&Arc<CudaContext>> {
        let none = || Error::Internal("an imagined GPU was asked to do something".into());
        self.0.context.as_ref().ok_or_else(none)
    }

    /// Tells the driver's pool to keep what buffers give back, for the next ones.
    fn keep_memory(&self) -> Result<()> {
        let mut threshold = u64::MAX;
        let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        let fix = "this GPU has no stream-ordered memory, which CUDA 11.2 and later offer";
        // SAFETY: the attribute is a number of 64 bits.
        let set = Self::pool(self.context()?).and_then(|pool| unsafe {
            sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast()).result()
        });
        set.map_err(|e| failed(e, "setting up the memory pool".into(), fix))
    }

    fn pool(context: &CudaContext) -> Result<sys::CUmemoryPool, DriverError> {
        let mut pool = std::ptr::null_mut();
        // SAFETY: the driver writes one handle, which lives as long as the device.
        unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device()) }.result()?;
        Ok(pool)
    }

    /// The most bytes that buffers held at one time.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn high_water(&self) -> Result<u64> {
        self.of_pool(sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_USED_MEM_HIGH)
    }

    /// Bytes that buffers may still take: free memory, and what the driver's pool keeps for them.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn spare(&self) -> Result<usize> {
        use sys::CUmemPool_attribute_enum as Of;
        let kept = self.of_pool(Of::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
        let used = self.of_pool(Of::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        let idle = usize::try_from(kept.saturating_sub(used)).unwrap_or(0);
        Ok(self.memory()?.0 + idle)
    }

    /// A number of bytes that the driver's pool tells.
    fn of_pool(&self, attribute: sys::CUmemPool_attribute_enum) -> Result<u64> {
        let mut bytes = 0u64;
        // SAFETY: the attribute is a number of 64 bits.
        let asked = Self::pool(self.context()?).and_then(|pool| unsafe {
            sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast()).result()
        });
        let fix = "the GPU may have failed; look at `nvidia-smi`";
        asked.map_err(|e| failed(e, "asking for the memory used".into(), fix))?;
        Ok(bytes)
    }

    /// What the driver says of it.
    pub fn facts(&self) -> &Facts {
        &self.0.facts
    }

    /// Bytes of free and of all memory.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn memory(&self) -> Result<(usize, usize)> {
        let fix = "the GPU may have failed; look at `nvidia-smi`";
        match &self.0.context {
            None => Ok((self.0.facts.memory, self.0.facts.memory)),
            Some(context) => {
                context.mem_get_info().map_err(|e| failed(e, "asking for free memory".into(), fix))
            }
        }
    }

    /// The architecture of the image that serves a kernel file here, loading it if need be.
    ///
    /// # Errors
    /// As for a launch.
    pub fn image_of(&self, module: &'static Module) -> Result<&'static str> {
        self.with_loaded(module, |loaded| Ok(loaded.arch))
    }

    /// The driver's handle of an entry; its file is loaded at the first call.
    fn function(&self, entry: &'static Entry) -> Result<Function> {
        self.with_loaded(entry.module, |loaded| {
            if let Some(&function) = loaded.entries.get(entry.symbol) {
                return Ok(function);
            }
            let name = std::ffi::CString::new(entry.symbol)
                .map_err(|_| Error::Internal(format!("{entry}: its symbol holds a zero")))?;
            // SAFETY: the module is loaded and stays so as long as the context.
            let function = unsafe { result::module::get_function(loaded.module, name) };
            let fix = "rebuild genevar: its launchers and its images differ";
            let function = function.map_err(|e| failed(e, format!("finding {entry}"), fix))?;
            grow_shared(entry, function)?;
            let function = Function::new(function, self, entry, loaded.arch);
            loaded.entries.insert(entry.symbol, function);
            Ok(function)
        })
    }

    fn with_loaded<T>(
        &self,
        module: &'static Module,
        f: impl FnOnce(&mut Loaded) -> Result<T>,
    ) -> Result<T> {
        let mut all = self.0.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.contains_key(module.name) {
            all.insert(module.name, self.load(module)?);
        }
        match all.get_mut(module.name) {
            Some(loaded) => f(loaded),
            None => Err(Error::Internal(format!("{} was loaded and is gone", module.name))),
        }
    }

    /// Machine code for this GPU if there is some, else PTX, which the driver compiles.
    fn load(&self, module: &'static Module) -> Result<Loaded> {
        self.bind()?;
        let mut last = None;
        for image in suited(module.images, self.0.facts.capability) {
            // PTX ends in a zero for the driver; a cubin does not mind one.
            let bytes = [image.bytes, &[0]].concat();
            // SAFETY: a whole image with a final zero, alive during the call, which copies it.
            match unsafe { result::module::load_data(bytes.as_ptr().cast()) } {
                Ok(module) => {
                    return Ok(Loaded { module, arch: image.arch, entries: HashMap::new() });
                }
                Err(error) => last = Some((error, image.arch)),
            }
        }
        let what = format!("loading kernels/{}.cu on {}", module.name, self.0.facts.name);
        match last {
            Some((error, arch)) => {
                let fix = "the driver may be older than CUDA 13.0; `genevar doctor` says";
                Err(failed(error, format!("{what} as {arch}"), fix))
            }
            None => Err(unserved(module, &what)),
        }
    }

    /// Whether there is an image of this file for this GPU: some kernels are for one architecture.
    pub fn serves(&self, module: &'static Module) -> bool {
        !suited(module.images, self.0.facts.capability).is_empty()
    }

    /// Whether launches of an entry may begin beside the one before, as its best image tells.
    fn overlaps(&self, entry: &'static Entry) -> bool {
        let best = suited(entry.module.images, self.0.facts.capability);
        best.first().is_some_and(|image| launch::overlaps(self, entry, image.arch))
    }

    /// Makes the context current for the calling thread.
    fn bind(&self) -> Result<()> {
        let Some(context) = &self.0.context else { return Ok(()) };
        let fix = "an earlier kernel may have failed; start again";
        context.bind_to_thread().map_err(|e| failed(e, "binding the context".into(), fix))
    }
}

/// Asks for as much dynamic shared memory as an entry has; without asking there are 48 KiB.
fn grow_shared(entry: &'static Entry, function: sys::CUfunction) -> Result<()> {
    let Ok(bytes @ 1..) = i32::try_from(entry.dynamic_shared) else { return Ok(()) };
    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: the function is of a module that stays loaded.
    let asked = unsafe { sys::cuFuncSetAttribute(function, attribute, bytes) }.result();
    let fix = "this GPU's blocks have less: another variant of the op wants none";
    asked.map_err(|e| failed(e, format!("{bytes} bytes of shared memory for {entry}"), fix))
}

/// The error of a kernel file that has no image for this GPU.
fn unserved(module: &Module, what: &str) -> Error {
    if module.images.is_empty() {
        let what = format!("{what}: this genevar was built without CUDA kernels for it");
        return Error::data(what, "run tools/setup, which fetches NVRTC, and build again");
    }
    let archs: Vec<&str> = module.images.iter().map(|i| i.arch).collect();
    let what = format!("{what}: it is compiled for {} alone", archs.join(", "));
    Error::data(what, "ops choose another variant by themselves; name none, or one that runs here")
}

/// The images that may run on a GPU of this capability, best first: machine code of the same major
/// version, then PTX that is not newer.
fn suited(images: &'static [Image], (major, minor): (i32, i32)) -> Vec<&'static Image> {
    let here = 10 * major + minor;
    let number = |image: &Image| Image::number(image.arch);
    let fits = |image: &&Image| {
        let n = number(image);
        let exact = image.arch.ends_with('a');
        match image.is_ptx() {
            _ if exact => n == here,
            true => n <= here,
            false => n / 10 == major && n <= here,
        }
    };
    let mut found: Vec<&Image> = images.iter().filter(fits).collect();
    found.sort_by_key(|image| (image.is_ptx(), -number(image)));
    found
}

fn absent() -> Error {
    let what = "there is no CUDA driver (libcuda.so) on this machine".into();
    Error::Data { what, fix: NO_DRIVER.into() }
}

/// A driver's error with what was tried.
fn failed(error: DriverError, what: String, fix: &str) -> Error {
    let text = |found: Result<&CStr, DriverError>| {
        found.map_or_else(|_| "unknown".into(), |s| s.to_string_lossy().into_owned())
    };
    let (name, says) = (text(error.error_name()), text(error.error_string()));
    Error::Driver { what, name, says, fix: fix.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    static HOPPER: Module = Module {
        name: "x",
        images: &[Image { arch: "compute_90a", bytes: b"" }, Image { arch: "sm_90a", bytes: b"" }],
    };

    #[test]
    fn code_for_one_architecture_runs_on_no_other() {
        let count = |capability| suited(HOPPER.images, capability).len();
        assert_eq!([(8, 0), (8, 9), (9, 0), (10, 0)].map(count), [0, 0, 2, 0]);
        assert_eq!(suited(HOPPER.images, (9, 0))[0].arch, "sm_90a");
        let told = unserved(&HOPPER, "loading kernels/x.cu on an A100").to_string();
        let want = "loading kernels/x.cu on an A100: it is compiled for compute_90a, sm_90a alone";
        assert!(told.contains(want), "{told}");
    }

    static IMAGES: [Image; 4] = [
        Image { arch: "compute_80", bytes: b"" },
        Image { arch: "sm_80", bytes: b"" },
        Image { arch: "sm_86", bytes: b"" },
        Image { arch: "sm_90a", bytes: b"" },
    ];

    #[test]
    fn machine_code_comes_first_and_ptx_serves_the_rest() {
        let names = |capability| -> Vec<&str> {
            suited(&IMAGES, capability).iter().map(|image| image.arch).collect()
        };
        assert_eq!(names((8, 0)), ["sm_80", "compute_80"]);
        assert_eq!(names((8, 9)), ["sm_86", "sm_80", "compute_80"]);
        assert_eq!(names((9, 0)), ["sm_90a", "compute_80"]);
        assert_eq!(names((10, 0)), ["compute_80"]);
        assert!(names((7, 5)).is_empty());
    }
}
