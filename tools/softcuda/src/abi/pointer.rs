//! What the driver knows about an address.

use super::call::{abi, current, lock};
use super::code::{Code, Result};
use super::driver::{Driver, driver};
use super::host::around as host_around;
use super::memory::around;
use super::raw::{Host, In, Out};

/// One address, as the driver sees it.
#[derive(Default)]
struct Known {
    context: usize,
    on_device: bool,
    base: u64,
    bytes: u64,
    serial: u64,
    pool: usize,
}

fn look(driver: &Driver, address: u64) -> Option<Known> {
    if let Some((base, owned)) = around(driver, address) {
        return Some(Known {
            context: owned.context,
            on_device: true,
            base,
            bytes: owned.bytes,
            serial: owned.serial,
            pool: owned.pool.map_or(0, |pool| pool.handle),
        });
    }
    // A module's variables are nobody's allocation.
    if let Some((base, bytes)) = driver.memory.find(address) {
        let doomed = lock(&driver.owned).contains_key(&base);
        return (!doomed).then(|| Known { on_device: true, base, bytes, ..Known::default() });
    }
    let (base, bytes) = host_around(driver, address as usize)?;
    let blocks = lock(&driver.host);
    let block = blocks.get(&base)?;
    Some(Known {
        context: block.context,
        base: base as u64,
        bytes: bytes as u64,
        serial: block.serial,
        ..Known::default()
    })
}

/// Writes attribute `CU_POINTER_ATTRIBUTE_...`; each has a width of its own.
fn put(known: &Known, attribute: u32, address: u64, out: Host) -> Result {
    let wide: Out<u64> = out.places();
    let narrow: Out<u32> = out.places();
    match attribute {
        1 => wide.set(known.context as u64),
        2 => narrow.set(if known.on_device { 2 } else { 1 }),
        3 if known.on_device => wide.set(address),
        4 if !known.on_device => wide.set(address),
        7 => wide.set(known.serial),
        11 => wide.set(known.base),
        12 => wide.set(known.bytes),
        13 => narrow.set(1),
        16 => narrow.set(3),
        17 => wide.set(known.pool as u64),
        9 => narrow.set(0),
        14 => wide.set(0),
        // Synchronous copies, managed, shared between processes, seen by other hardware: none of
        // it.
        6 | 8 | 10 | 15 => narrow.set(0),
        3 | 4 => Err(Code::INVALID_VALUE),
        5 | 18..=21 => Err(Code::NOT_SUPPORTED),
        _ => Err(Code::INVALID_VALUE),
    }
}

/// What stands for an attribute of an address that the driver does not know.
fn put_unknown(attribute: u32, out: Host) -> Result {
    match attribute {
        9 => out.places::<i32>().set(-2),
        1 | 3..=4 | 7 | 11 | 12 | 14 | 17 => out.places::<u64>().set(0),
        _ => out.places::<u32>().set(0),
    }
}

abi! {
    /// One attribute of an address that the driver knows.
    fn cuPointerGetAttribute(out: Host, attribute: u32, address: u64) {
        let (driver, _context) = current()?;
        let known = look(driver, address).ok_or(Code::INVALID_VALUE)?;
        put(&known, attribute, address, out)
    }

    /// Several attributes of any address; what is not known is zero.
    fn cuPointerGetAttributes(count: u32, attributes: In<u32>, out: In<Host>, address: u64) {
        let driver = driver()?;
        let known = look(driver, address);
        for index in 0..count as usize {
            let (attribute, out) = (attributes.at(index)?, out.at(index)?);
            let done = known.as_ref().map(|known| put(known, attribute, address, out));
            if done.is_none_or(|done| done.is_err()) {
                put_unknown(attribute, out)?;
            }
        }
        Ok(())
    }
}
