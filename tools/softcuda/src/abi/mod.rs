//! The CUDA driver API as `extern "C"` functions: the face that programs load as `libcuda.so`.
//!
//! `table` lists every exported name; a name without an implementation answers
//! CUDA_ERROR_NOT_SUPPORTED. `call` has the macro that declares a function. State lives in `driver`
//! (handles, memory) and `context` (the order of work); a call checks its arguments and puts an
//! `op` into a stream's queue, where a worker runs it. Handles are looked up and never followed, so
//! a stale one is an error and not a crash.
//!
//! This is the only unsafe code of the crate: reading and writing what callers point at (`raw`),
//! pinned host memory (`host`), and exporting names (`call`, `unsupported`, `watch`, `ranges`).
#![allow(unsafe_code)]

mod attribute;
mod call;
mod capture;
mod capturing;
mod code;
mod context;
mod copy;
mod device;
mod driver;
mod entry;
mod event;
mod fill;
mod function;
mod gate;
mod graph;
mod host;
mod jit;
mod launch;
mod library;
mod memory;
mod module;
mod nodes;
mod occupancy;
mod op;
mod order;
mod ordered;
mod pointer;
mod pool;
mod primary;
mod ranges;
mod raw;
mod report;
mod settings;
mod stream;
mod table;
mod tensor;
mod unsupported;
mod watch;

/// Every exported name, with whether more than CUDA_ERROR_NOT_SUPPORTED stands behind it.
pub fn names() -> impl Iterator<Item = (&'static str, bool)> {
    table::names()
}
