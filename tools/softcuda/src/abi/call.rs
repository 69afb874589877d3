//! What every exported function shares: the macro that declares it, and what a call knows about its
//! thread.
//!
//! `abi!` makes of each body an `extern "C"` function that returns a `CUresult`, with panics caught
//! at the border, and adds the function to the module's `EXPORTS`, from which `table` is put
//! together. A second name after `also` is the variant whose default stream is the thread's own
//! (`_ptsz`, `_ptds`).

use super::code::{CUresult, Code, Result, SUCCESS};
use super::context::Context;
use super::driver::{Driver, driver};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A name of the interface and where its function is.
pub(super) type Export = (&'static str, *const ());

/// Declares exported functions; see the head of this file.
macro_rules! abi {
    ($($(#[$doc:meta])* fn $name:ident $arguments:tt $(also $alias:ident)? $body:block)*) => {
        $(
            $crate::abi::call::export! { false $(#[$doc])* $name $arguments $body }
            $($crate::abi::call::export! {
                true
                /// As the function without the suffix, with the thread's own default stream.
                $alias $arguments $body
            })?
        )*
        /// What this file adds to the table of the interface.
        pub(super) const EXPORTS: &[$crate::abi::call::Export] = &[
            $((stringify!($name), $name as *const ()),
            $((stringify!($alias), $alias as *const ()),)?)*
        ];
    };
}
pub(super) use abi;

/// One exported function; the first word says whether handle 0 means the thread's own stream.
macro_rules! export {
    (
        $own:literal $(#[$doc:meta])*
        $name:ident ($($argument:ident: $kind:ty),* $(,)?) $body:block
    ) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// As the CUDA driver's function of this name: pointers are null or valid for what it is
        /// documented to read and write.
        #[allow(non_snake_case)]
        // SAFETY: the name is the driver's own, and this library stands in for the driver.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $kind),*) -> $crate::abi::code::CUresult {
            $crate::abi::call::enter($own, move || $body)
        }
    };
}
pub(super) use export;

// Clients call the driver from destructors of their own thread-locals, so none of these may have
// one: what a thread leaves in them is leaked.
thread_local! {
    /// Whether handle 0 means the thread's own stream, during a call.
    static OWN_STREAM: Cell<bool> = const { Cell::new(false) };
    /// The thread's current contexts, innermost last.
    static CONTEXTS: RefCell<ManuallyDrop<Vec<usize>>> =
        const { RefCell::new(ManuallyDrop::new(Vec::new())) };
    /// The thread's own default stream in each context, by the context's generation.
    static OWN_LANES: RefCell<ManuallyDrop<BTreeMap<u64, u64>>> =
        const { RefCell::new(ManuallyDrop::new(BTreeMap::new())) };
    /// How this thread takes part in captures: 0 global, 1 thread local, 2 relaxed.
    static CAPTURE_MODE: Cell<u32> = const { Cell::new(0) };
}

/// Runs the body of an exported function; no panic crosses the C interface.
pub(super) fn enter(own_stream: bool, body: impl FnOnce() -> Result) -> CUresult {
    OWN_STREAM.set(own_stream);
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => SUCCESS,
        Ok(Err(code)) => code.0,
        Err(_) => Code::UNKNOWN.0,
    }
}

/// Whether the call under way is of the kind whose handle 0 is the thread's own stream.
pub(super) fn own_stream() -> bool {
    OWN_STREAM.get()
}

/// The thread's own stream in the context with this generation, made by `make` at first use.
pub(super) fn own_lane(generation: u64, make: impl FnOnce() -> u64) -> u64 {
    OWN_LANES.with_borrow_mut(|lanes| *lanes.entry(generation).or_insert_with(make))
}

/// Replaces the thread's way of taking part in captures and returns the old one.
pub(super) fn exchange_capture_mode(mode: u32) -> u32 {
    CAPTURE_MODE.replace(mode)
}

/// The thread's way of taking part in captures.
pub(super) fn capture_mode() -> u32 {
    CAPTURE_MODE.get()
}

/// The handle of the thread's current context, 0 for none.
pub(super) fn current_handle() -> usize {
    CONTEXTS.with_borrow(|stack| stack.last().copied().unwrap_or(0))
}

/// Replaces the top of the thread's contexts; 0 takes it off.
pub(super) fn set_current(handle: usize) {
    CONTEXTS.with_borrow_mut(|stack| {
        stack.pop();
        if handle != 0 {
            stack.push(handle);
        }
    });
}

/// Puts a context on top of the thread's contexts.
pub(super) fn push_current(handle: usize) {
    CONTEXTS.with_borrow_mut(|stack| stack.push(handle));
}

/// Takes the top of the thread's contexts off.
pub(super) fn pop_current() -> Result<usize> {
    CONTEXTS.with_borrow_mut(|stack| stack.pop()).ok_or(Code::INVALID_CONTEXT)
}

/// The driver and the thread's current context, which has to be alive; an earlier fault of it is
/// not looked at.
pub(super) fn bound() -> Result<(&'static Driver, Arc<Context>)> {
    let driver = driver()?;
    match current_handle() {
        0 => Err(Code::INVALID_CONTEXT),
        handle => {
            let context = driver.contexts.get(handle).map_err(|_| Code::CONTEXT_IS_DESTROYED)?;
            Ok((driver, context))
        }
    }
}

/// The driver and the thread's current context, or the error that an earlier kernel left in it.
pub(super) fn current() -> Result<(&'static Driver, Arc<Context>)> {
    let (driver, context) = bound()?;
    context.check()?;
    Ok((driver, context))
}

/// Locks; what a panicking thread left behind is used as it is.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
