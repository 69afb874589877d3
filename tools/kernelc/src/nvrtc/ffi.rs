//! NVRTC's C functions, loaded by absolute path: the only unsafe code of this crate.
//!
//! The builtins library is loaded first and both stay loaded: NVRTC looks its builtins up by name
//! in the middle of a compilation, and finds what the process has loaded already.

#![allow(unsafe_code, reason = "foreign functions")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::path::Path;
use std::ptr;

use libloading::Library;

type Handle = *mut c_void;
type Code = c_int;
type Size = unsafe extern "C" fn(Handle, *mut usize) -> Code;
type Fill = unsafe extern "C" fn(Handle, *mut c_char) -> Code;

/// The functions of a loaded NVRTC. They may be called from several threads, each with programs of
/// its own.
pub(super) struct Api {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Code,
    error: unsafe extern "C" fn(Code) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Handle,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Code,
    destroy: unsafe extern "C" fn(*mut Handle) -> Code,
    expect: unsafe extern "C" fn(Handle, *const c_char) -> Code,
    compile: unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> Code,
    lowered: unsafe extern "C" fn(Handle, *const c_char, *mut *const c_char) -> Code,
    log: (Size, Fill),
    ptx: (Size, Fill),
    cubin: (Size, Fill),
    /// Never unloaded: NVRTC keeps threads and tables of its own.
    _libraries: ManuallyDrop<[Library; 2]>,
}

/// A program of NVRTC, destroyed when dropped.
pub(super) struct Program<'a> {
    api: &'a Api,
    handle: Handle,
}

/// What of a compiled program is wanted.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Log,
    Ptx,
    Cubin,
}

macro_rules! load {
    ($library:ident, $name:literal) => {{
        // SAFETY: the signature is nvrtc.h's; the library outlives the pointer (see `Api`).
        let symbol = unsafe { $library.get($name) };
        *symbol.map_err(|e| format!("{} is not in it: {e}", $name))?
    }};
}

impl Api {
    /// Loads both libraries.
    pub(super) fn load(builtins: &Path, nvrtc: &Path) -> Result<Self, String> {
        let open = |path: &Path| {
            // SAFETY: loading runs the library's initialisers, which NVIDIA's libraries allow at
            // any time.
            unsafe { Library::new(path) }.map_err(|e| e.to_string())
        };
        let first = open(builtins)?;
        let library = open(nvrtc)?;
        Ok(Self {
            version: load!(library, "nvrtcVersion"),
            error: load!(library, "nvrtcGetErrorString"),
            create: load!(library, "nvrtcCreateProgram"),
            destroy: load!(library, "nvrtcDestroyProgram"),
            expect: load!(library, "nvrtcAddNameExpression"),
            compile: load!(library, "nvrtcCompileProgram"),
            lowered: load!(library, "nvrtcGetLoweredName"),
            log: (load!(library, "nvrtcGetProgramLogSize"), load!(library, "nvrtcGetProgramLog")),
            ptx: (load!(library, "nvrtcGetPTXSize"), load!(library, "nvrtcGetPTX")),
            cubin: (load!(library, "nvrtcGetCUBINSize"), load!(library, "nvrtcGetCUBIN")),
            _libraries: ManuallyDrop::new([first, library]),
        })
    }

    /// Major and minor version.
    pub(super) fn version(&self) -> Result<(i32, i32), String> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are valid for the call.
        self.check(unsafe { (self.version)(&raw mut major, &raw mut minor) })?;
        Ok((major, minor))
    }

    fn check(&self, code: Code) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the function takes any code and returns a static string.
        let text = unsafe { (self.error)(code) };
        if text.is_null() {
            return Err(format!("NVRTC error {code}"));
        }
        // SAFETY: it is not null, ends in a zero and lives as long as the library.
        Err(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }

    /// A program of `source` called `name`, with `headers` (name, text).
    pub(super) fn program(
        &self,
        name: &CStr,
        source: &CStr,
        headers: &[(CString, CString)],
    ) -> Result<Program<'_>, String> {
        let names: Vec<*const c_char> = headers.iter().map(|(name, _)| name.as_ptr()).collect();
        let texts: Vec<*const c_char> = headers.iter().map(|(_, text)| text.as_ptr()).collect();
        let count = c_int::try_from(headers.len()).map_err(|_| "too many headers".to_string())?;
        let mut handle = ptr::null_mut();
        // SAFETY: every pointer is valid for the call, both arrays have `count` elements, and NVRTC
        // copies the texts.
        let code = unsafe {
            (self.create)(
                &raw mut handle,
                source.as_ptr(),
                name.as_ptr(),
                count,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        self.check(code)?;
        Ok(Program { api: self, handle })
    }
}

impl Program<'_> {
    /// Asks that a template instance be compiled.
    pub(super) fn expect(&self, expression: &CStr) -> Result<(), String> {
        // SAFETY: the handle is live and the string is valid for the call.
        self.api.check(unsafe { (self.api.expect)(self.handle, expression.as_ptr()) })
    }

    /// Compiles; the log says why not.
    pub(super) fn compile(&self, options: &[CString]) -> Result<(), String> {
        let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        let count = c_int::try_from(options.len()).map_err(|_| "too many options".to_string())?;
        // SAFETY: the handle is live and the array has `count` valid strings.
        self.api.check(unsafe { (self.api.compile)(self.handle, count, pointers.as_ptr()) })
    }

    /// The symbol of an expected instance.
    pub(super) fn lowered(&self, expression: &CStr) -> Result<String, String> {
        let mut name = ptr::null();
        // SAFETY: the handle is live and both pointers are valid for the call.
        let code = unsafe { (self.api.lowered)(self.handle, expression.as_ptr(), &raw mut name) };
        self.api.check(code)?;
        if name.is_null() {
            return Err("NVRTC gave no name".to_string());
        }
        // SAFETY: it is not null, ends in a zero and lives as long as the program.
        Ok(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
    }

    /// The bytes of a part, without the zeros that end a text.
    pub(super) fn part(&self, part: Part) -> Result<Vec<u8>, String> {
        let (size, fill) = match part {
            Part::Log => self.api.log,
            Part::Ptx => self.api.ptx,
            Part::Cubin => self.api.cubin,
        };
        let mut bytes = 0;
        // SAFETY: the handle is live and the pointer is valid for the call.
        self.api.check(unsafe { size(self.handle, &raw mut bytes) })?;
        let mut buffer = vec![0u8; bytes];
        // SAFETY: the buffer has the size that NVRTC asked for.
        self.api.check(unsafe { fill(self.handle, buffer.as_mut_ptr().cast()) })?;
        while !matches!(part, Part::Cubin) && buffer.last() == Some(&0) {
            buffer.pop();
        }
        Ok(buffer)
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle is live and dropped once. A failure leaves nothing to do.
        unsafe { (self.api.destroy)(&raw mut self.handle) };
    }
}
