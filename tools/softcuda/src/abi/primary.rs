//! The device's primary context, which callers share by counting references to it.

use super::call::{abi, lock};
use super::code::{Code, Result};
use super::context::{Context, FLAGS, destroy};
use super::device::known;
use super::driver::{Driver, driver};
use super::raw::Out;
use std::sync::Arc;

fn retain(driver: &Driver) -> usize {
    let mut primary = lock(&driver.primary);
    if primary.references == 0 {
        let context = Context::new(primary.handle, primary.flags);
        driver.contexts.put(primary.handle, Arc::new(context));
    }
    primary.references += 1;
    primary.handle
}

/// Gives one reference to the primary context back, or all of them.
fn give_up(driver: &'static Driver, all: bool) -> Result {
    let mut primary = lock(&driver.primary);
    if primary.references == 0 {
        return if all { Ok(()) } else { Err(Code::INVALID_CONTEXT) };
    }
    if all {
        // A reset keeps the references but begins a new life, without the old one's fault.
        let old = driver.contexts.remove(primary.handle)?;
        destroy(driver, &old);
        let fresh = Arc::new(Context::new(primary.handle, primary.flags));
        driver.contexts.put(primary.handle, fresh);
        return Ok(());
    }
    primary.references -= 1;
    if primary.references == 0 {
        let gone = driver.contexts.remove(primary.handle)?;
        destroy(driver, &gone);
    }
    Ok(())
}

abi! {
    /// Makes the primary context or adds a reference to it.
    fn cuDevicePrimaryCtxRetain(context: Out<usize>, device: i32) {
        known(device)?;
        if context.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        context.set(retain(driver()?))
    }

    /// Gives a reference to the primary context back; the last one ends it.
    fn cuDevicePrimaryCtxRelease_v2(device: i32) {
        known(device)?;
        give_up(driver()?, false)
    }

    /// Ends everything in the primary context, and its fault with it.
    fn cuDevicePrimaryCtxReset_v2(device: i32) {
        known(device)?;
        give_up(driver()?, true)
    }

    /// Sets the flags of the primary context.
    fn cuDevicePrimaryCtxSetFlags_v2(device: i32, flags: u32) {
        known(device)?;
        if flags & !FLAGS != 0 {
            return Err(Code::INVALID_VALUE);
        }
        lock(&driver()?.primary).flags = flags;
        Ok(())
    }

    /// Flags of the primary context, and whether it is alive.
    fn cuDevicePrimaryCtxGetState(device: i32, flags: Out<u32>, active: Out<i32>) {
        known(device)?;
        let primary = lock(&driver()?.primary);
        flags.set(primary.flags)?;
        active.set(i32::from(primary.references > 0))
    }
}
