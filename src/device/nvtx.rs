//! NVTX: ranges by name for the tools that listen to them (Nsight Systems, Nsight Compute).
//!
//! A tool announces itself by NVTX_INJECTION64_PATH, which names its library. The protocol of
//! version 3: the library's `InitializeInjectionNvtx2` is given a function that hands out tables;
//! through these it finds, for each module and function number, the cell where it writes its own
//! function. NVIDIA's headers do this inside each program; here are the two functions that we call,
//! and empty cells for the rest. Without the variable nothing is loaded.

#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use libloading::Library;

/// Where a tool's function is written; null until then.
type Cell = *mut c_void;

/// The numbers of modules begin at 1; how many cells each has, the unused one at 0 among them:
/// core, CUDA, OpenCL, CUDA runtime, core of domains, synchronisation.
const CELLS: [usize; 6] = [16, 9, 15, 7, 16, 7];
/// Numbers in the core module.
const PUSH: usize = 9;
const POP: usize = 11;
/// Numbers of tables.
const CALLBACKS: u32 = 1;
const VERSION: u32 = 3;

/// The first table: how a tool finds cells.
#[repr(C)]
struct Callbacks {
    size: usize,
    module: unsafe extern "C" fn(c_int, *mut *mut *mut Cell, *mut c_uint) -> c_int,
}

/// The third table: of what version we are, and where a tool says its own.
#[repr(C)]
struct Versions {
    size: usize,
    version: u32,
    reserved: u32,
    theirs: extern "C" fn(u32),
}

static CALLBACK_TABLE: Callbacks = Callbacks { size: size_of::<Callbacks>(), module: find_cells };
static VERSION_TABLE: Versions =
    Versions { size: size_of::<Versions>(), version: 3, reserved: 0, theirs: no_matter };

/// For each module the addresses of its cells, a null at the end. They live as long as the program.
struct Cells([*mut *mut Cell; 6]);

// SAFETY: the cells are written by the tool while it is set up, in `find`, and only read after.
unsafe impl Send for Cells {}
// SAFETY: as above.
unsafe impl Sync for Cells {}

fn cells() -> &'static Cells {
    static ALL: OnceLock<Cells> = OnceLock::new();
    ALL.get_or_init(|| {
        Cells(CELLS.map(|count| {
            let cells: &'static mut [Cell] = Box::leak(vec![null_mut(); count].into());
            let mut addresses: Vec<*mut Cell> = cells.iter_mut().map(|c| &raw mut *c).collect();
            if let Some(unused) = addresses.first_mut() {
                *unused = null_mut();
            }
            addresses.push(null_mut());
            Box::leak(addresses.into_boxed_slice()).as_mut_ptr()
        }))
    })
}

/// Hands out the cells of a module.
unsafe extern "C" fn find_cells(
    module: c_int,
    table: *mut *mut *mut Cell,
    size: *mut c_uint,
) -> c_int {
    let at = usize::try_from(module).ok().and_then(|m| m.checked_sub(1));
    let Some((at, count)) = at.and_then(|at| Some((at, *CELLS.get(at)?))) else { return 0 };
    // SAFETY: both are null or have room for one value; the tool promises that.
    unsafe {
        if !table.is_null() {
            *table = cells().0[at];
        }
        if !size.is_null() {
            *size = count as c_uint;
        }
    }
    1
}

extern "C" fn no_matter(_: u32) {}

extern "C" fn hand_out(table: u32) -> *const c_void {
    match table {
        CALLBACKS => (&raw const CALLBACK_TABLE).cast(),
        VERSION => (&raw const VERSION_TABLE).cast(),
        _ => null(),
    }
}

type Push = unsafe extern "C" fn(*const c_char) -> c_int;
type Pop = unsafe extern "C" fn() -> c_int;

/// The functions of the tool that listens.
struct Tool {
    push: Push,
    pop: Pop,
}

fn tool() -> Option<&'static Tool> {
    static TOOL: OnceLock<Option<Tool>> = OnceLock::new();
    TOOL.get_or_init(find).as_ref()
}

/// Loads the tool that the environment names.
fn find() -> Option<Tool> {
    type Start = unsafe extern "C" fn(extern "C" fn(u32) -> *const c_void) -> c_int;
    let path = std::env::var_os("NVTX_INJECTION64_PATH").filter(|path| !path.is_empty())?;
    // SAFETY: the person names the library for this purpose. It is never unloaded; the function is
    // of the type that the protocol gives it, and the tables are those of version 3.
    let started = unsafe {
        let library = Library::new(&path).ok()?;
        let start: Start = *library.get(b"InitializeInjectionNvtx2\0").ok()?;
        std::mem::forget(library);
        start(hand_out)
    };
    if started == 0 {
        return None;
    }
    let core = cells().0[0];
    // SAFETY: the core module has these cells. What a tool writes there are functions of the types
    // that the protocol gives to their numbers; without one the cell is null.
    unsafe {
        let (push, pop) = (**core.add(PUSH), **core.add(POP));
        if push.is_null() || pop.is_null() {
            return None;
        }
        let push = std::mem::transmute::<Cell, Push>(push);
        Some(Tool { push, pop: std::mem::transmute::<Cell, Pop>(pop) })
    }
}

/// Whether a tool listens.
pub fn is_heard() -> bool {
    tool().is_some()
}

/// Begins a range of the calling thread; whether a tool heard.
pub fn push(name: &str) -> bool {
    let Some((tool, name)) = tool().and_then(|tool| Some((tool, CString::new(name).ok()?))) else {
        return false;
    };
    // SAFETY: the name ends in a zero and is alive during the call, in which the tool copies it.
    unsafe { (tool.push)(name.as_ptr()) };
    true
}

/// Ends the range that the calling thread began last.
pub fn pop() {
    if let Some(tool) = tool() {
        // SAFETY: a range was begun: whoever calls this heard so from `push`.
        unsafe { (tool.pop)() };
    }
}
