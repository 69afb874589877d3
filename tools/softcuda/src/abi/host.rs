//! Pinned host memory: allocated here, or the caller's own and registered.

use super::call::{abi, current, lock};
use super::capture::prohibited;
use super::code::{Code, Result};
use super::driver::Driver;
use super::raw::{Host, Out};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::c_void;

/// Host allocations begin at multiples of a page.
const PAGE: usize = 4096;
/// Flags of `cuMemHostAlloc`: portable, mapped, write-combined.
const FLAGS: u32 = 7;

/// A pinned range of host memory.
pub(super) struct HostBlock {
    pub(super) bytes: usize,
    flags: u32,
    /// How it was allocated; none if the caller registered memory of its own.
    layout: Option<Layout>,
    pub(super) serial: u64,
    pub(super) context: usize,
}

/// Whether the whole range is pinned, so that a copy may run while the caller goes on.
pub(super) fn is_pinned(driver: &Driver, host: Host, bytes: u64) -> bool {
    around(driver, host.address()).is_some_and(|(base, size)| {
        let offset = (host.address() - base) as u64;
        offset.checked_add(bytes).is_some_and(|end| end <= size as u64)
    })
}

/// First byte and size of the pinned range around an address.
pub(super) fn around(driver: &Driver, address: usize) -> Option<(usize, usize)> {
    let blocks = lock(&driver.host);
    let (base, block) = blocks.range(..=address).next_back()?;
    (address - base < block.bytes).then_some((*base, block.bytes))
}

fn allocate(out: Out<*mut c_void>, bytes: usize, flags: u32) -> Result {
    let (driver, context) = current()?;
    if bytes == 0 || flags & !FLAGS != 0 || out.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    prohibited(driver)?;
    let layout = Layout::from_size_align(bytes, PAGE).map_err(|_| Code::OUT_OF_MEMORY)?;
    // SAFETY: the layout is not empty.
    let block = unsafe { alloc_zeroed(layout) };
    if block.is_null() {
        return Err(Code::OUT_OF_MEMORY);
    }
    let entry = HostBlock {
        bytes,
        flags,
        layout: Some(layout),
        serial: super::driver::new_serial(),
        context: context.handle,
    };
    lock(&driver.host).insert(block.expose_provenance(), entry);
    out.set(block.cast())
}

fn take(driver: &Driver, host: Host, allocated: bool, missing: Code) -> Result<HostBlock> {
    let mut blocks = lock(&driver.host);
    match blocks.get(&host.address()) {
        Some(block) if block.layout.is_some() == allocated => {
            blocks.remove(&host.address()).ok_or(missing)
        }
        _ => Err(missing),
    }
}

abi! {
    /// Takes pinned host memory.
    fn cuMemHostAlloc(host: Out<*mut c_void>, bytes: usize, flags: u32) {
        allocate(host, bytes, flags)
    }

    /// Takes pinned host memory.
    fn cuMemAllocHost_v2(host: Out<*mut c_void>, bytes: usize) {
        allocate(host, bytes, 0)
    }

    /// Gives pinned host memory back, after all work of the context.
    fn cuMemFreeHost(host: Host) {
        let (driver, context) = super::call::bound()?;
        prohibited(driver)?;
        context.drain();
        let block = take(driver, host, true, Code::INVALID_VALUE)?;
        if let Some(layout) = block.layout {
            let start = std::ptr::with_exposed_provenance_mut::<u8>(host.address());
            // SAFETY: `take` found the address in the table, so `alloc_zeroed` returned it with
            // this layout, and taking it out means that nobody frees it twice.
            unsafe { dealloc(start, layout) };
        }
        context.check()
    }

    /// Pins memory of the caller.
    fn cuMemHostRegister_v2(host: Host, bytes: usize, flags: u32) {
        let (driver, context) = current()?;
        if host.is_null() || bytes == 0 || flags & !0xf != 0 {
            return Err(Code::INVALID_VALUE);
        }
        prohibited(driver)?;
        let last = host.offset(bytes - 1).address();
        if around(driver, host.address()).is_some() || around(driver, last).is_some() {
            return Err(Code::HOST_MEMORY_ALREADY_REGISTERED);
        }
        let entry = HostBlock {
            bytes,
            flags,
            layout: None,
            serial: super::driver::new_serial(),
            context: context.handle,
        };
        lock(&driver.host).insert(host.address(), entry);
        Ok(())
    }

    /// Ends the pinning of memory of the caller, after all work of the context.
    fn cuMemHostUnregister(host: Host) {
        let (driver, context) = super::call::bound()?;
        prohibited(driver)?;
        context.drain();
        take(driver, host, false, Code::HOST_MEMORY_NOT_REGISTERED)?;
        context.check()
    }

    /// The flags that pinned memory was taken with.
    fn cuMemHostGetFlags(flags: Out<u32>, host: Host) {
        let (driver, _context) = current()?;
        let base = around(driver, host.address()).ok_or(Code::INVALID_VALUE)?.0;
        let known = lock(&driver.host).get(&base).map(|block| block.flags);
        flags.set(known.ok_or(Code::INVALID_VALUE)?)
    }
}
