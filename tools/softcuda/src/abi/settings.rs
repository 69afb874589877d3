//! Settings of contexts: flags, limits, caches, and what else can be asked about one.

use super::call::{abi, bound, current, lock};
use super::code::Code;
use super::context::FLAGS;
use super::driver::driver;
use super::raw::Out;
use super::stream::{LEAST_URGENT, MOST_URGENT};
use std::sync::atomic::Ordering;

abi! {
    /// The device of the current context.
    fn cuCtxGetDevice(device: Out<i32>) {
        bound()?;
        device.set(0)
    }

    /// The device of a context.
    fn cuCtxGetDevice_v2(device: Out<i32>, context: usize) {
        if context == 0 { bound().map(drop)? } else { driver()?.contexts.get(context).map(drop)? }
        device.set(0)
    }

    /// A number that no other context of the process has or had.
    fn cuCtxGetId(context: usize, id: Out<u64>) {
        let context =
            if context == 0 { bound()?.1 } else { driver()?.contexts.get(context)? };
        id.set(context.generation)
    }

    /// The version of the interface that a context was made for.
    fn cuCtxGetApiVersion(context: usize, version: Out<u32>) {
        if context == 0 { bound().map(drop)? } else { driver()?.contexts.get(context).map(drop)? }
        version.set(3020)
    }

    /// The flags of the current context.
    fn cuCtxGetFlags(flags: Out<u32>) {
        flags.set(bound()?.1.flags.load(Ordering::Relaxed))
    }

    /// Sets the flags of the current context.
    fn cuCtxSetFlags(flags: u32) {
        if flags & !FLAGS != 0 {
            return Err(Code::INVALID_VALUE);
        }
        current()?.1.flags.store(flags, Ordering::Relaxed);
        Ok(())
    }

    /// A limit of the current context.
    fn cuCtxGetLimit(value: Out<usize>, limit: u32) {
        let (_, context) = current()?;
        let known = lock(&context.limits).get(&limit).copied();
        value.set(known.ok_or(Code::UNSUPPORTED_LIMIT)?)
    }

    /// Sets a limit; it is kept and shown, and nothing here runs out of what it limits.
    fn cuCtxSetLimit(limit: u32, value: usize) {
        let (_, context) = current()?;
        let mut limits = lock(&context.limits);
        *limits.get_mut(&limit).ok_or(Code::UNSUPPORTED_LIMIT)? = value;
        Ok(())
    }

    /// How caches are divided: there are none.
    fn cuCtxGetCacheConfig(config: Out<u32>) {
        current()?;
        config.set(0)
    }

    /// How caches are divided: there are none, so nothing changes.
    fn cuCtxSetCacheConfig(config: u32) {
        current()?;
        if config > 3 { Err(Code::INVALID_VALUE) } else { Ok(()) }
    }

    /// The range of stream priorities: lower numbers are more urgent.
    fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) {
        current()?;
        least.offer(LEAST_URGENT);
        greatest.offer(MOST_URGENT);
        Ok(())
    }

    /// Forgets what a cache keeps: there is none.
    fn cuCtxResetPersistingL2Cache() {
        current().map(drop)
    }
}
