//! Contexts, each with its order of work and its first fault.

use super::call::{abi, current, current_handle, lock, pop_current, push_current, set_current};
use super::capture::prohibited;
use super::code::{Code, Result};
use super::device::known;
use super::driver::{Driver, driver, new_serial};
use super::memory::release;
use super::order::Order;
use super::raw::{In, Out};
use super::report::say;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// Flags of `cuCtxCreate` that mean something or can be ignored in software.
pub(super) const FLAGS: u32 = 0xff;
/// The limits of a context before anything is set: stack, printf, heap, sync depth, launches, L2
/// fetch, L2 kept.
const LIMITS: [(u32, usize); 7] =
    [(0, 1024), (1, 1 << 20), (2, 8 << 20), (3, 2), (4, 2048), (5, 64), (6, 0)];

/// A context.
pub(super) struct Context {
    pub(super) handle: usize,
    /// Tells one life of the primary context from the next.
    pub(super) generation: u64,
    pub(super) order: Mutex<Order>,
    pub(super) flags: AtomicU32,
    /// The code of the first fault, 0 for none.
    fault: AtomicU32,
    pub(super) limits: Mutex<HashMap<u32, usize>>,
}

impl Context {
    pub(super) fn new(handle: usize, flags: u32) -> Self {
        Self {
            handle,
            generation: new_serial(),
            order: Mutex::default(),
            flags: AtomicU32::new(flags),
            fault: AtomicU32::new(0),
            limits: Mutex::new(HashMap::from(LIMITS)),
        }
    }

    /// The error that an earlier kernel left, for every later call.
    pub(super) fn check(&self) -> Result {
        match self.fault.load(Ordering::Acquire) {
            0 => Ok(()),
            code => Err(Code(code)),
        }
    }

    /// Remembers the first fault and says what happened.
    pub(super) fn fail(&self, code: Code, text: &str) {
        // Work that failed is lost whatever the reason, so the context is, too.
        let code = if code.is_sticky() { code } else { Code::LAUNCH_FAILED };
        let first = self.fault.compare_exchange(0, code.0, Ordering::AcqRel, Ordering::Acquire);
        if first.is_ok() {
            say(&format!("{text}\n  {}: the context's later calls fail with it", code.name()));
        }
    }

    /// Waits for all work of the context.
    pub(super) fn drain(&self) {
        let tails = lock(&self.order).tails();
        for gate in tails {
            gate.wait();
        }
    }
}

/// Waits for a context's work and forgets everything that belongs to it.
pub(super) fn destroy(driver: &'static Driver, context: &Context) {
    context.drain();
    lock(&context.order).lanes.clear();
    lock(&driver.captures).retain(|_, capture| capture.context != context.handle);
    driver.streams.retain(|stream| stream.context != context.handle);
    driver.events.retain(|event| event.context != context.handle);
    driver.executables.retain(|executable| executable.context != context.handle);
    driver.graphs.retain(|graph| graph.context != context.handle);
    driver.functions.retain(|function| function.module.context != context.handle);
    driver.modules.retain(|module| module.context != context.handle);
    let mut addresses = Vec::new();
    for (address, owned) in lock(&driver.owned).iter() {
        // Memory of a pool outlives the context, unless work that would free it was given up.
        let lost = owned.doomed || context.check().is_err();
        if owned.context == context.handle && (owned.pool.is_none() || lost) {
            addresses.push(*address);
        }
    }
    for address in addresses {
        // What a stream still had to free is gone by now, and that is fine.
        let _ = release(driver, address);
    }
}

fn create(out: Out<usize>, flags: u32, device: i32) -> Result {
    let driver = driver()?;
    known(device)?;
    if flags & !FLAGS != 0 {
        return Err(Code::INVALID_VALUE);
    }
    let (handle, _) = driver.contexts.insert(|handle| Context::new(handle, flags));
    push_current(handle);
    out.set(handle)
}

fn synchronize(driver: &Driver, context: &Context) -> Result {
    prohibited(driver)?;
    if lock(&context.order).lanes.values().any(|lane| lane.joined.is_some()) {
        return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
    }
    context.drain();
    super::pool::settle(driver);
    context.check()
}

abi! {
    /// Makes a context and puts it on top of the thread's.
    fn cuCtxCreate_v2(context: Out<usize>, flags: u32, device: i32) {
        create(context, flags, device)
    }

    /// Makes a context; affinities are not supported.
    fn cuCtxCreate_v3(
        context: Out<usize>,
        affinities: In<u64>,
        count: i32,
        flags: u32,
        device: i32,
    ) {
        if count != 0 && !affinities.is_null() {
            return Err(Code::UNSUPPORTED_EXEC_AFFINITY);
        }
        create(context, flags, device)
    }

    /// Makes a context; parameters ask for affinities or graphics, and neither is supported.
    fn cuCtxCreate_v4(context: Out<usize>, parameters: In<u64>, flags: u32, device: i32) {
        if !parameters.is_null() {
            return Err(Code::NOT_SUPPORTED);
        }
        create(context, flags, device)
    }

    /// Ends a context that the caller made.
    fn cuCtxDestroy_v2(context: usize) {
        let driver = driver()?;
        if lock(&driver.primary).handle == context {
            return Err(Code::INVALID_CONTEXT);
        }
        let gone = driver.contexts.remove(context).map_err(|_| Code::INVALID_CONTEXT)?;
        if current_handle() == context {
            pop_current()?;
        }
        destroy(driver, &gone);
        Ok(())
    }

    /// The thread's current context, null for none.
    fn cuCtxGetCurrent(context: Out<usize>) {
        driver()?;
        context.set(current_handle())
    }

    /// Replaces the thread's current context; null takes it off.
    fn cuCtxSetCurrent(context: usize) {
        let driver = driver()?;
        if context != 0 {
            driver.contexts.get(context).map_err(|_| Code::INVALID_CONTEXT)?;
        }
        set_current(context);
        Ok(())
    }

    /// Puts a context on top of the thread's.
    fn cuCtxPushCurrent_v2(context: usize) {
        driver()?.contexts.get(context).map_err(|_| Code::INVALID_CONTEXT)?;
        push_current(context);
        Ok(())
    }

    /// Takes the top of the thread's contexts off.
    fn cuCtxPopCurrent_v2(context: Out<usize>) {
        driver()?;
        context.offer(pop_current()?);
        Ok(())
    }

    /// Waits for all work of the current context.
    fn cuCtxSynchronize() {
        let (driver, context) = current()?;
        synchronize(driver, &context)
    }

    /// Waits for all work of a context.
    fn cuCtxSynchronize_v2(context: usize) {
        let (driver, now) = current()?;
        if context == 0 {
            return synchronize(driver, &now);
        }
        let context = driver.contexts.get(context)?;
        synchronize(driver, &context)
    }
}
