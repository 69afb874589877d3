//! NVTX: this library as a tool. A program that is told of it by NVTX_INJECTION64_PATH gives it the
//! ranges that its threads begin and end; with the launches between them they are appended to the
//! file that `SOFTCUDA_RANGES` names: `push NAME`, `pop`, `launch KERNEL`.
//!
//! Tests see by it that a program's ranges arrive, and which kernels lie in them.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::OpenOptions;
use std::io::Write;

use super::report::say;

/// Where a function of ours is written.
type Cell = *const c_void;

/// The first of the program's tables.
#[repr(C)]
struct Callbacks {
    size: usize,
    module: unsafe extern "C" fn(c_int, *mut *mut *mut Cell, *mut c_uint) -> c_int,
}

const CALLBACKS: u32 = 1;
/// The module of plain ranges, and the numbers of its functions.
const CORE: c_int = 1;
const PUSH: usize = 9;
const POP: usize = 11;

/// Appends a line where the person wants them.
pub(super) fn note(line: &str) {
    let path = std::env::var_os("SOFTCUDA_RANGES").filter(|path| !path.is_empty());
    let Some(path) = path else { return };
    let file = OpenOptions::new().create(true).append(true).open(&path);
    if let Err(error) = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())) {
        say(&format!("cannot write ranges to {}: {error}", path.display()));
    }
}

/// Begins a range.
unsafe extern "C" fn push(name: *const c_char) -> c_int {
    if !name.is_null() {
        // SAFETY: a program gives a text that ends in a zero.
        note(&format!("push {}", unsafe { CStr::from_ptr(name) }.to_string_lossy()));
    }
    0
}

/// Ends one.
extern "C" fn pop() -> c_int {
    note("pop");
    0
}

/// What a program calls that speaks NVTX: writes our functions into its cells.
///
/// # Safety
/// `table` hands out tables of version 3 of NVTX's protocol.
// SAFETY: the name is the protocol's, and a program asks one library for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn InitializeInjectionNvtx2(
    table: unsafe extern "C" fn(u32) -> *const c_void,
) -> c_int {
    // SAFETY: the protocol says that table 1 is this one or null.
    let callbacks = unsafe { table(CALLBACKS).cast::<Callbacks>().as_ref() };
    let Some(callbacks) = callbacks.filter(|c| c.size >= size_of::<Callbacks>()) else { return 0 };
    let (mut cells, mut count) = (std::ptr::null_mut(), 0);
    // SAFETY: both are written or left as they are.
    let known = unsafe { (callbacks.module)(CORE, &raw mut cells, &raw mut count) };
    if known == 0 || cells.is_null() || count as usize <= POP {
        return 0;
    }
    // SAFETY: the table has more than `POP` cells, each null or writable.
    unsafe {
        let (own_push, own_pop) = (*cells.add(PUSH), *cells.add(POP));
        if own_push.is_null() || own_pop.is_null() {
            return 0;
        }
        *own_push = push as *const c_void;
        *own_pop = pop as *const c_void;
    }
    1
}
