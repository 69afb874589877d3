//! Kernels of a loaded module: their attributes, parameters and names.

use super::attribute::{MAX_THREADS, SHARED, model};
use super::call::{abi, current};
use super::code::{Code, Result};
use super::module::Loaded;
use super::raw::Out;
use crate::ptx::Entry;
use std::ffi::{CString, c_char};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

/// Codes of this compute capability are what PTX and binary version attributes say.
const CAPABILITY: i32 = 80;

/// A kernel.
pub(super) struct Function {
    pub(super) module: Arc<Loaded>,
    pub(super) entry: Entry,
    name: CString,
    /// Dynamic shared memory that a launch may ask for, in bytes.
    dynamic: AtomicU32,
    carveout: AtomicI32,
}

impl Function {
    pub(super) fn new(module: Arc<Loaded>, entry: Entry) -> Self {
        let dynamic = AtomicU32::new(SHARED.saturating_sub(entry.static_shared_bytes));
        let name = CString::new(entry.name.as_str()).unwrap_or_default();
        Self { module, entry, name, dynamic, carveout: AtomicI32::new(-1) }
    }

    /// Threads of a block, at most.
    pub(super) fn max_threads(&self) -> u32 {
        self.entry.max_threads.min(MAX_THREADS)
    }

    /// Dynamic shared memory that a launch may ask for, in bytes.
    pub(super) fn max_dynamic(&self) -> u32 {
        self.dynamic.load(Ordering::Relaxed)
    }

    /// The kernel's name as C reads it.
    pub(super) fn c_name(&self) -> *const c_char {
        self.name.as_ptr()
    }

    /// Attribute `CU_FUNC_ATTRIBUTE_...` number `attribute`.
    pub(super) fn attribute(&self, attribute: u32) -> Result<i32> {
        let value = match attribute {
            0 => self.max_threads() as i32,
            1 => self.entry.static_shared_bytes as i32,
            3 => self.entry.local_bytes as i32,
            // Nothing here allocates registers: this is how many values are alive at once.
            4 => self.entry.registers.min(255) as i32,
            5 | 6 => CAPABILITY,
            8 => self.max_dynamic() as i32,
            9 => self.carveout.load(Ordering::Relaxed),
            // Constant memory, caching of globals, and all that belongs to clusters.
            2 | 7 | 10..=15 => 0,
            _ => return Err(Code::INVALID_VALUE),
        };
        Ok(value)
    }

    /// Sets one of the attributes that can be set.
    pub(super) fn set_attribute(&self, attribute: u32, value: i32) -> Result {
        match attribute {
            8 => {
                let dynamic = u32::try_from(value).map_err(|_| Code::INVALID_VALUE)?;
                let all = dynamic.checked_add(self.entry.static_shared_bytes);
                if all.is_none_or(|all| all > model().shared_opt_in) {
                    return Err(Code::INVALID_VALUE);
                }
                self.dynamic.store(dynamic, Ordering::Relaxed);
            }
            9 if (-1..=100).contains(&value) => self.carveout.store(value, Ordering::Relaxed),
            10..=15 if value == 0 => {}
            10..=15 => return Err(Code::NOT_SUPPORTED),
            _ => return Err(Code::INVALID_VALUE),
        }
        Ok(())
    }
}

/// The kernel behind a handle, in a context without a fault.
pub(super) fn function(handle: usize) -> Result<Arc<Function>> {
    let (driver, _context) = current()?;
    driver.functions.get(handle)
}

/// Offset and size of a parameter.
pub(super) fn parameter(
    handle: usize,
    index: usize,
    offset: Out<usize>,
    bytes: Out<usize>,
) -> Result {
    let function = function(handle)?;
    let parameter = function.entry.params.get(index).ok_or(Code::INVALID_VALUE)?;
    offset.set(parameter.offset as usize)?;
    bytes.offer(parameter.bytes as usize);
    Ok(())
}

abi! {
    /// One of a kernel's attributes.
    fn cuFuncGetAttribute(value: Out<i32>, attribute: u32, kernel: usize) {
        value.set(function(kernel)?.attribute(attribute)?)
    }

    /// Sets one of a kernel's attributes.
    fn cuFuncSetAttribute(kernel: usize, attribute: u32, value: i32) {
        function(kernel)?.set_attribute(attribute, value)
    }

    /// How caches are divided for a kernel: there are none, so nothing changes.
    fn cuFuncSetCacheConfig(kernel: usize, config: u32) {
        function(kernel)?;
        if config > 3 { Err(Code::INVALID_VALUE) } else { Ok(()) }
    }

    /// A kernel's name.
    fn cuFuncGetName(name: Out<*const c_char>, kernel: usize) {
        name.set(function(kernel)?.c_name())
    }

    /// Offset and size of one of a kernel's parameters.
    fn cuFuncGetParamInfo(kernel: usize, index: usize, offset: Out<usize>, bytes: Out<usize>) {
        parameter(kernel, index, offset, bytes)
    }

    /// How many parameters a kernel has.
    fn cuFuncGetParamCount(kernel: usize, count: Out<usize>) {
        count.set(function(kernel)?.entry.params.len())
    }

    /// Whether a kernel's code is loaded: always.
    fn cuFuncIsLoaded(state: Out<u32>, kernel: usize) {
        function(kernel)?;
        state.set(1)
    }

    /// Loads a kernel's code: it is.
    fn cuFuncLoad(kernel: usize) {
        function(kernel).map(drop)
    }
}
