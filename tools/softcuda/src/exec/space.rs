//! Loads and stores of every state space.

use super::code::Access;
use super::fault::FaultKind;
use super::lanes::lanes;
use super::warp::{Machine, Step, Warp, trouble_at};
use super::words;
use super::{FIRST_WINDOW, LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW_BYTES};
use crate::check::Stamp;
use crate::mem::{Alloc, MemError, lookup};
use crate::ptx::ast::Space;
use std::sync::atomic::Ordering::Relaxed;

/// Whether an access reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Read,
    Write,
}

/// The addresses of all lanes.
#[inline(always)]
pub(super) fn addresses(w: &Warp, access: &Access) -> [u64; 32] {
    let base = access.base as usize;
    let mut out = if access.narrow { w.r[base].map(u64::from) } else { w.w[base] };
    if access.offset != 0 {
        out = out.map(|a| a.wrapping_add(access.offset as u64));
    }
    out
}

/// The space and the address in it that a generic address means.
#[inline(always)]
pub(super) fn window(space: Space, address: u64) -> (Space, u64) {
    if space != Space::Generic || address < FIRST_WINDOW {
        return (if space == Space::Generic { Space::Global } else { space }, address);
    }
    let inside = |base: u64| address.wrapping_sub(base) < WINDOW_BYTES;
    if inside(SHARED_WINDOW) {
        (Space::Shared, address - SHARED_WINDOW)
    } else if inside(LOCAL_WINDOW) {
        (Space::Local, address - LOCAL_WINDOW)
    } else if inside(PARAM_WINDOW) {
        (Space::Param, address - PARAM_WINDOW)
    } else {
        (Space::Global, address)
    }
}

/// The little-endian value of up to eight bytes.
#[inline(always)]
pub(super) fn value_of(bytes: &[u8]) -> u64 {
    let mut out = [0; 8];
    out[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(out)
}

/// `bytes` bytes at an offset inside an allocation; they do not straddle words needlessly.
#[inline(always)]
pub(super) fn peek(alloc: &Alloc, offset: u64, bytes: u64) -> u64 {
    let word = |i: usize| alloc.words.get(i).map_or(0, |w| w.load(Relaxed));
    let at = (offset / 4) as usize;
    match bytes {
        4 => u64::from(word(at)),
        8 => u64::from(word(at)) | u64::from(word(at + 1)) << 32,
        _ => u64::from(word(at) >> (offset % 4 * 8)) & ((1 << (bytes * 8)) - 1),
    }
}

#[inline(always)]
pub(super) fn poke(alloc: &Alloc, offset: u64, bytes: u64, value: u64) {
    let at = (offset / 4) as usize;
    match bytes {
        4 => alloc.put(at, u32::MAX, value as u32),
        8 => {
            alloc.put(at, u32::MAX, value as u32);
            alloc.put(at + 1, u32::MAX, (value >> 32) as u32);
        }
        _ => {
            let shift = offset % 4 * 8;
            alloc.put(at, (((1u64 << (bytes * 8)) - 1) << shift) as u32, (value << shift) as u32);
        }
    }
}

/// The bits of the bytes of each word that an access touches: word, byte mask.
pub(super) fn words(offset: u64, bytes: u64) -> impl Iterator<Item = (usize, u64)> {
    let (first, last) = (offset / 4, (offset + bytes - 1) / 4);
    (first..=last).map(move |word| {
        let from = offset.max(word * 4) - word * 4;
        let to = (offset + bytes).min(word * 4 + 4) - word * 4;
        (word as usize, ((1 << to) - 1) & !((1u64 << from) - 1))
    })
}

impl<'a> Machine<'a> {
    /// The allocation that holds a lane's range.
    #[inline(always)]
    pub(super) fn locate(&mut self, lane: usize, address: u64, bytes: u64) -> Step<&'a Alloc> {
        if self.early == 0
            && let Some(alloc) = self.env.table.get(self.hot)
            && alloc.holds(address, bytes)
        {
            return Ok(alloc);
        }
        self.search(lane, address, bytes)
    }

    #[cold]
    fn search(&mut self, lane: usize, address: u64, bytes: u64) -> Step<&'a Alloc> {
        let env = self.env;
        if (self.early >> lane) & 1 == 1 {
            let text = format!("access of {bytes} bytes before griddepcontrol.wait: too early");
            let buffer = lookup(&env.table, address).map(|a| a.describe());
            return trouble_at(FaultKind::Race, lane, address, buffer, text);
        }
        if let Some(found) = lookup(&env.table, address).filter(|a| a.holds(address, bytes)) {
            self.hot = env.table.partition_point(|a| a.base <= address) - 1;
            return Ok(found);
        }
        let near = lookup(&env.table, address).map(|a| a.describe());
        match env.memory.fault(address, bytes) {
            MemError::UseAfterFree { what, .. } => {
                let text = format!("access of {bytes} bytes to freed memory");
                trouble_at(FaultKind::UseAfterFree, lane, address, Some(what), text)
            }
            other => trouble_at(FaultKind::IllegalAddress, lane, address, near, other.to_string()),
        }
    }

    /// Refuses an address that is not a multiple of the width.
    #[inline(always)]
    pub(super) fn aligned(&self, lane: usize, address: u64, bytes: u64) -> Step {
        if address & (bytes - 1) == 0 {
            return Ok(());
        }
        let text = format!("access of {bytes} bytes at an address that is not a multiple of it");
        trouble_at(FaultKind::MisalignedAddress, lane, address, None, text)
    }

    /// The bytes of a lane's range in shared memory.
    #[inline(always)]
    pub(super) fn shared_range(&self, lane: usize, address: u64, bytes: u64) -> Step<usize> {
        if address.saturating_add(bytes) <= self.shared.len() as u64 {
            return Ok(address as usize);
        }
        let text =
            format!("{bytes} bytes outside the block's {} of shared memory", self.shared.len());
        trouble_at(FaultKind::IllegalAddress, lane, address, Some("shared memory".into()), text)
    }

    /// Where a lane's range lies in the warp's frames.
    #[inline(always)]
    fn frame_range(&self, w: &Warp, lane: usize, address: u64, bytes: u64) -> Step<usize> {
        let size = self.env.code.frame_bytes as u64;
        if address.saturating_add(bytes) <= size {
            return Ok(lane * size as usize + address as usize);
        }
        let _ = w;
        let text = format!("{bytes} bytes outside the thread's {size} of local memory");
        trouble_at(FaultKind::IllegalAddress, lane, address, Some("local memory".into()), text)
    }

    /// Checks a read or write of global memory against what is known of its words.
    pub(super) fn check_global(
        &self,
        stamp: &Stamp<'_>,
        way: Way,
        lane: usize,
        (alloc, address): (&Alloc, u64),
        (bytes, same): (u64, bool),
    ) -> Step {
        let marks = alloc.marks();
        let tracked = self.env.memory.is_tracked(alloc);
        for (word, mask) in words(address - alloc.base, bytes) {
            if let Some(shadow) = alloc.written.get(word) {
                if way == Way::Write {
                    shadow.fetch_or(mask as u8, Relaxed);
                } else if tracked && u64::from(shadow.load(Relaxed)) & mask != mask {
                    let text = format!("read of {bytes} bytes that nothing has written");
                    let buffer = Some(alloc.describe());
                    return trouble_at(FaultKind::Uninitialised, lane, address, buffer, text);
                }
            }
            let (Some(write), Some(read)) = (marks.get(word * 2), marks.get(word * 2 + 1)) else {
                continue;
            };
            let mark = stamp.mark(lane, mask);
            let (last_write, last_read) = match way {
                Way::Write => (write.swap(mark.0, Relaxed), read.load(Relaxed)),
                Way::Read => {
                    read.store(mark.0, Relaxed);
                    (write.load(Relaxed), 0)
                }
            };
            let clash = |old: u64| stamp.clashes(crate::check::Mark(old), lane, mask);
            let other = match (clash(last_write) && !same, clash(last_read)) {
                (true, _) => last_write,
                (_, true) => last_read,
                _ => continue,
            };
            let buffer = Some(alloc.describe());
            return self.race(lane, (address, buffer), (way, other == last_read), other);
        }
        Ok(())
    }

    #[cold]
    pub(super) fn race(
        &self,
        lane: usize,
        (address, buffer): (u64, Option<String>),
        (way, was_read): (Way, bool),
        other: u64,
    ) -> Step {
        let other = crate::check::Mark(other);
        let here = if way == Way::Write { "writes" } else { "reads" };
        let there = if was_read { "read" } else { "wrote" };
        let [x, y, z] = self.env.thread(other.thread());
        let block = if other.block() == self.block_number & 0xf_ffff {
            String::new()
        } else {
            format!(" of block number {}", other.block())
        };
        let text =
            format!("{here} what thread ({x}, {y}, {z}){block} {there}, with no barrier between");
        trouble_at(FaultKind::Race, lane, address, buffer, text)
    }

    /// The same for shared memory.
    pub(super) fn check_shared(
        &mut self,
        stamp: &Stamp<'_>,
        way: Way,
        lane: usize,
        address: usize,
        (bytes, same): (usize, bool),
    ) -> Step {
        let buffer = || Some("shared memory".to_owned());
        match way {
            Way::Write => self.shadow.written[address..address + bytes].fill(true),
            Way::Read if !self.shadow.written[address..address + bytes].iter().all(|w| *w) => {
                let text =
                    format!("read of {bytes} bytes of shared memory that nothing has written");
                let at = address as u64;
                return trouble_at(FaultKind::Uninitialised, lane, at, buffer(), text);
            }
            Way::Read => {}
        }
        for (word, mask) in words(address as u64, bytes as u64) {
            let mark = stamp.mark(lane, mask);
            let [write, read] = &mut self.shadow.marks[word];
            let (last_write, last_read) = (*write, *read);
            match way {
                Way::Write => *write = mark,
                Way::Read => *read = mark,
            }
            let clash = |old| stamp.clashes(old, lane, mask);
            let other = if clash(last_write) && !same {
                last_write
            } else if way == Way::Write && clash(last_read) {
                last_read
            } else {
                continue;
            };
            let at = (address as u64, buffer());
            return self.race(lane, at, (way, other == last_read), other.0);
        }
        Ok(())
    }

    /// Reads one element of a lane.
    #[inline(always)]
    pub(super) fn read(
        &mut self,
        w: &Warp,
        lane: usize,
        (space, address): (Space, u64),
        bytes: u64,
        strong: bool,
    ) -> Step<u64> {
        match space {
            Space::Global | Space::Const | Space::Generic => {
                let alloc = self.locate(lane, address, bytes)?;
                if self.sanitize() {
                    let stamp = self.stamp(w, strong);
                    self.check_global(&stamp, Way::Read, lane, (alloc, address), (bytes, false))?;
                }
                Ok(peek(alloc, address - alloc.base, bytes))
            }
            Space::Shared => {
                let at = self.shared_range(lane, address, bytes)?;
                if self.sanitize() {
                    let stamp = self.stamp(w, strong);
                    self.check_shared(&stamp, Way::Read, lane, at, (bytes as usize, false))?;
                }
                Ok(value_of(&self.shared[at..at + bytes as usize]))
            }
            Space::Local | Space::Frame => {
                let at = self.frame_range(w, lane, address, bytes)?;
                let range = at..at + bytes as usize;
                let known = || w.frame_written[range.clone()].iter().any(|w| *w);
                if self.sanitize() && space == Space::Local && !known() {
                    let text = format!("read of {bytes} bytes of local memory that nothing wrote");
                    let buffer = Some("local memory".to_owned());
                    return trouble_at(FaultKind::Uninitialised, lane, address, buffer, text);
                }
                Ok(value_of(&w.frame[range]))
            }
            Space::Param => {
                let from = address as usize;
                match self.env.launch.params.get(from..from.saturating_add(bytes as usize)) {
                    Some(found) => Ok(value_of(found)),
                    None => {
                        let buffer = Some("the kernel's parameters".to_owned());
                        let text = format!("{bytes} bytes outside the kernel's parameters");
                        trouble_at(FaultKind::IllegalAddress, lane, address, buffer, text)
                    }
                }
            }
        }
    }

    /// Writes one element of a lane.
    #[inline(always)]
    pub(super) fn write(
        &mut self,
        w: &mut Warp,
        lane: usize,
        (space, address): (Space, u64),
        (bytes, value): (u64, u64),
        strong: bool,
    ) -> Step {
        match space {
            Space::Global | Space::Generic => {
                let alloc = self.locate(lane, address, bytes)?;
                if self.sanitize() {
                    let cut = if bytes == 8 { value } else { value & ((1 << (bytes * 8)) - 1) };
                    let same = peek(alloc, address - alloc.base, bytes) == cut;
                    let stamp = self.stamp(w, strong);
                    self.check_global(&stamp, Way::Write, lane, (alloc, address), (bytes, same))?;
                }
                poke(alloc, address - alloc.base, bytes, value);
            }
            Space::Shared => {
                let at = self.shared_range(lane, address, bytes)?;
                let new = &value.to_le_bytes()[..bytes as usize];
                if self.sanitize() {
                    let stamp = self.stamp(w, strong);
                    let same = self.shared[at..at + bytes as usize] == *new;
                    self.check_shared(&stamp, Way::Write, lane, at, (bytes as usize, same))?;
                }
                self.shared[at..at + bytes as usize].copy_from_slice(new);
            }
            Space::Local | Space::Frame => {
                let at = self.frame_range(w, lane, address, bytes)?;
                let range = at..at + bytes as usize;
                w.frame[range.clone()].copy_from_slice(&value.to_le_bytes()[..bytes as usize]);
                w.frame_written[range].fill(true);
            }
            Space::Const | Space::Param => {
                let text = "constants and kernel parameters cannot be written";
                return trouble_at(FaultKind::IllegalAddress, lane, address, None, text);
            }
        }
        Ok(())
    }
}

#[inline(always)]
fn extend(value: u64, access: &Access) -> u64 {
    if access.extend == 0 {
        return value;
    }
    let up = 64 - u32::from(access.bytes) * 8;
    let value = ((value << up) as i64 >> up) as u64;
    if access.extend >= 64 { value } else { value & ((1 << access.extend) - 1) }
}

/// Runs a load.
pub(super) fn load(m: &mut Machine<'_>, w: &mut Warp, access: &Access, mask: u32) -> Step {
    let at = addresses(w, access);
    let width = u64::from(access.bytes) * u64::from(access.count);
    if !words::load(m, w, access, &at, mask)? {
        load_by_lane(m, w, access, (&at, mask))?;
    }
    if access.strong && m.fenced {
        m.acquired = true;
    }
    if m.env.options.count {
        super::tally::access(m, access.space, &at, mask, (width, Way::Read));
    }
    Ok(())
}

fn load_by_lane(
    m: &mut Machine<'_>,
    w: &mut Warp,
    access: &Access,
    (at, mask): (&[u64; 32], u32),
) -> Step {
    let bytes = u64::from(access.bytes);
    for lane in lanes(mask) {
        let (space, address) = window(access.space, at[lane]);
        m.aligned(lane, address, bytes * u64::from(access.count))?;
        for (k, &reg) in access.regs.iter().enumerate().take(access.count as usize) {
            let from = (space, address + k as u64 * bytes);
            let value = extend(m.read(w, lane, from, bytes, access.strong)?, access);
            if access.wide {
                w.w[reg as usize][lane] = value;
            } else {
                w.r[reg as usize][lane] = value as u32;
            }
        }
    }
    Ok(())
}

/// Runs a store.
pub(super) fn store(m: &mut Machine<'_>, w: &mut Warp, access: &Access, mask: u32) -> Step {
    let at = addresses(w, access);
    let width = u64::from(access.bytes) * u64::from(access.count);
    if !words::store(m, w, access, &at, mask)? {
        store_by_lane(m, w, access, (&at, mask))?;
    }
    if m.env.options.count {
        super::tally::access(m, access.space, &at, mask, (width, Way::Write));
    }
    Ok(())
}

fn store_by_lane(
    m: &mut Machine<'_>,
    w: &mut Warp,
    access: &Access,
    (at, mask): (&[u64; 32], u32),
) -> Step {
    let bytes = u64::from(access.bytes);
    for lane in lanes(mask) {
        let (space, address) = window(access.space, at[lane]);
        m.aligned(lane, address, bytes * u64::from(access.count))?;
        for (k, &reg) in access.regs.iter().enumerate().take(access.count as usize) {
            let value = if access.wide {
                w.w[reg as usize][lane]
            } else {
                u64::from(w.r[reg as usize][lane])
            };
            let to = (space, address + k as u64 * bytes);
            m.write(w, lane, to, (bytes, value), access.strong)?;
        }
    }
    Ok(())
}
