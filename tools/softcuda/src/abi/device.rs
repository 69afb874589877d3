//! Initialisation and the one device: `cuInit`, `cuDriverGetVersion`, `cuDevice*`.

use super::attribute;
use super::call::abi;
use super::code::{Code, Result};
use super::driver::{driver, init};
use super::raw::{Host, Out, Text};

/// The device's place on a bus that does not exist.
const BUS_ID: &str = "0000:00:00.0";
/// The device's identity: the name in ASCII, so that a log tells what ran.
const UUID: [u8; 16] = *b"softcuda-sm80-00";

/// Checks that the number is the one device.
pub(super) fn known(device: i32) -> Result {
    driver()?;
    if device == 0 { Ok(()) } else { Err(Code::INVALID_DEVICE) }
}

/// Writes as much of the text as fits, with a closing zero.
fn put_text(text: &str, out: Host, len: i32) -> Result {
    let room = usize::try_from(len).ok().and_then(|len| len.checked_sub(1));
    let room = room.ok_or(Code::INVALID_VALUE)?;
    let mut bytes = text.as_bytes()[..text.len().min(room)].to_vec();
    bytes.push(0);
    out.write(&bytes)
}

abi! {
    /// Makes the driver ready; every other call but a few needs it.
    fn cuInit(flags: u32) {
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        init();
        Ok(())
    }

    /// The CUDA version that the driver speaks.
    fn cuDriverGetVersion(version: Out<i32>) {
        version.set(attribute::VERSION)
    }

    /// How many devices there are: one.
    fn cuDeviceGetCount(count: Out<i32>) {
        driver()?;
        count.set(1)
    }

    /// The device of an ordinal.
    fn cuDeviceGet(device: Out<i32>, ordinal: i32) {
        known(ordinal)?;
        device.set(ordinal)
    }

    /// The device's name.
    fn cuDeviceGetName(name: Host, len: i32, device: i32) {
        known(device)?;
        put_text(attribute::NAME, name, len)
    }

    /// The device's identity.
    fn cuDeviceGetUuid(uuid: Out<[u8; 16]>, device: i32) {
        known(device)?;
        uuid.set(UUID)
    }

    /// The device's identity.
    fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: i32) {
        known(device)?;
        uuid.set(UUID)
    }

    /// The size of the device's memory.
    fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: i32) {
        known(device)?;
        bytes.set(driver()?.total as usize)
    }

    /// One attribute of the device.
    fn cuDeviceGetAttribute(value: Out<i32>, attribute: u32, device: i32) {
        known(device)?;
        value.set(attribute::value(attribute)?)
    }

    /// The device's compute capability.
    fn cuDeviceComputeCapability(major: Out<i32>, minor: Out<i32>, device: i32) {
        known(device)?;
        major.set(attribute::value(75)?)?;
        minor.set(attribute::value(76)?)
    }

    /// The device's place on its bus.
    fn cuDeviceGetPCIBusId(text: Host, len: i32, device: i32) {
        known(device)?;
        put_text(BUS_ID, text, len)
    }

    /// The device at a place on the bus.
    fn cuDeviceGetByPCIBusId(device: Out<i32>, text: Text) {
        driver()?;
        if text.get()? == BUS_ID { device.set(0) } else { Err(Code::INVALID_DEVICE) }
    }

    /// Whether one device can read another's memory; there is only one.
    fn cuDeviceCanAccessPeer(can: Out<i32>, device: i32, peer: i32) {
        known(device)?;
        known(peer)?;
        can.set(0)
    }

    /// Whether contexts can be confined to some multiprocessors: no.
    fn cuDeviceGetExecAffinitySupport(value: Out<i32>, _kind: u32, device: i32) {
        known(device)?;
        value.set(0)
    }

    /// Starts a profiler's collection: there is none, so nothing happens.
    fn cuProfilerStart() {
        super::call::current().map(drop)
    }

    /// Stops a profiler's collection.
    fn cuProfilerStop() {
        super::call::current().map(drop)
    }
}
