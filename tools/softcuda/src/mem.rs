//! The device's global memory: allocations in a 48-bit address space that is never used twice.
//!
//! Bytes live in 32-bit atomic words, so that blocks on several threads may touch the same word
//! as on a card, in safe code. One shadow byte a word says which of its bytes were ever written;
//! race records of a launch are kept beside them when a launch asks for them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

/// Where device addresses begin: far from null and from the generic windows of [`crate::exec`].
const FIRST_ADDRESS: u64 = 0x7_0000_0000;
/// Alignment of every allocation, as the driver's.
const ALIGN: u64 = 256;
/// Bytes left unmapped after an allocation, so that running off its end is never a neighbour.
const GUARD: u64 = 4096;
/// How many freed allocations are remembered by name.
const FREED_KEPT: usize = 4096;

/// Why a memory call was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemError {
    /// The device has less free memory than was asked for.
    #[error("out of device memory: {asked} bytes asked for, {free} of {total} free")]
    OutOfMemory {
        /// Bytes asked for.
        asked: u64,
        /// Bytes free.
        free: u64,
        /// Bytes the device has.
        total: u64,
    },
    /// The range is not inside one allocation.
    #[error("{bytes} bytes at {address:#x} are not inside a device allocation{near}")]
    InvalidAddress {
        /// First byte of the range.
        address: u64,
        /// Length of the range.
        bytes: u64,
        /// The nearest allocation in words, or nothing.
        near: String,
    },
    /// The range belonged to an allocation that was freed.
    #[error("{bytes} bytes at {address:#x} lie in freed memory ({what})")]
    UseAfterFree {
        /// First byte of the range.
        address: u64,
        /// Length of the range.
        bytes: u64,
        /// The freed allocation in words.
        what: String,
    },
}

/// One allocation: its bytes and their shadow.
pub(crate) struct Alloc {
    pub(crate) base: u64,
    pub(crate) bytes: u64,
    pub(crate) name: Option<String>,
    pub(crate) words: Box<[AtomicU32]>,
    /// Four bits a word: which bytes were written.
    pub(crate) written: Box<[AtomicU8]>,
    /// Race records of the running launch, two a word (last write, last read).
    pub(crate) races: OnceLock<Box<[AtomicU64]>>,
    /// Number of this allocation in the life of the device.
    pub(crate) serial: u64,
}

/// The address space as a launch sees it: allocations sorted by address.
pub(crate) type Snapshot = Arc<Vec<Arc<Alloc>>>;

#[derive(Default)]
struct Book {
    next: u64,
    used: u64,
    serial: u64,
    freed: BTreeMap<u64, (u64, String)>,
}

/// The device's global address space. All methods take `&self`: host threads and running blocks
/// share it.
pub struct Memory {
    total: u64,
    book: Mutex<Book>,
    live: RwLock<Snapshot>,
    /// Allocations below this serial count as written: a launch without sanitizers ran over them.
    untracked_below: AtomicU64,
    /// Launches so far, modulo what a race mark can tell apart.
    launches: AtomicU64,
    /// Serialises 64-bit atomics, which straddle two words.
    wide: Mutex<()>,
}

impl Alloc {
    fn new(base: u64, bytes: u64, name: Option<&str>, serial: u64) -> Self {
        let words = usize::try_from(bytes.div_ceil(4)).unwrap_or(usize::MAX);
        Self {
            base,
            bytes,
            name: name.map(str::to_owned),
            words: bytemuck::allocation::zeroed_slice_box(words),
            written: bytemuck::allocation::zeroed_slice_box(words),
            races: OnceLock::new(),
            serial,
        }
    }

    /// The allocation in words, for reports.
    pub(crate) fn describe(&self) -> String {
        match &self.name {
            Some(name) => format!("`{name}`, {} bytes at {:#x}", self.bytes, self.base),
            None => format!("allocation of {} bytes at {:#x}", self.bytes, self.base),
        }
    }

    /// Whether `bytes` at `address` lie inside.
    #[inline(always)]
    pub(crate) fn holds(&self, address: u64, bytes: u64) -> bool {
        address >= self.base && address.wrapping_sub(self.base).saturating_add(bytes) <= self.bytes
    }

    /// One byte at an offset that the caller has checked; zero outside.
    fn byte(&self, offset: u64) -> u8 {
        let word = self.words.get((offset / 4) as usize).map_or(0, |w| w.load(Relaxed));
        (word >> (offset % 4 * 8)) as u8
    }

    /// The race records, made at their first use.
    pub(crate) fn marks(&self) -> &[AtomicU64] {
        self.races.get_or_init(|| bytemuck::allocation::zeroed_slice_box(self.words.len() * 2))
    }

    /// Replaces the bits of `mask` in one word, whatever other threads do to its other bits.
    #[inline]
    pub(crate) fn put(&self, index: usize, mask: u32, value: u32) {
        let Some(word) = self.words.get(index) else { return };
        if mask == u32::MAX {
            word.store(value, Relaxed);
            return;
        }
        let mut old = word.load(Relaxed);
        let merge = |old: u32| (old & !mask) | (value & mask);
        while let Err(now) = word.compare_exchange_weak(old, merge(old), Relaxed, Relaxed) {
            old = now;
        }
    }

    /// Writes host bytes and marks them written.
    fn write(&self, offset: u64, data: &[u8]) {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let lane = (at % 4) as usize;
            let take = rest.len().min(4 - lane);
            let (head, tail) = rest.split_at(take);
            let (mut value, mut mask, mut bits) = (0u32, 0u32, 0u8);
            for (i, &byte) in head.iter().enumerate() {
                value |= u32::from(byte) << ((lane + i) * 8);
                mask |= 0xff << ((lane + i) * 8);
                bits |= 1 << (lane + i);
            }
            let index = (at / 4) as usize;
            self.put(index, mask, value);
            if let Some(shadow) = self.written.get(index) {
                shadow.fetch_or(bits, Relaxed);
            }
            at += take as u64;
            rest = tail;
        }
    }

    /// Reads bytes out.
    fn read(&self, offset: u64, out: &mut [u8]) {
        let mut at = offset;
        let mut rest = out;
        while !rest.is_empty() {
            if at.is_multiple_of(4) && rest.len() >= 4 {
                let (head, tail) = rest.split_at_mut(4);
                let word = self.words.get((at / 4) as usize).map_or(0, |w| w.load(Relaxed));
                head.copy_from_slice(&word.to_le_bytes());
                at += 4;
                rest = tail;
            } else {
                let (head, tail) = rest.split_at_mut(1);
                head[0] = self.byte(at);
                at += 1;
                rest = tail;
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The allocation of a sorted table that could hold `address`.
pub(crate) fn lookup(table: &[Arc<Alloc>], address: u64) -> Option<&Arc<Alloc>> {
    let after = table.partition_point(|a| a.base <= address);
    table.get(after.checked_sub(1)?)
}

impl Memory {
    /// A device with `bytes_total` bytes of memory.
    pub fn new(bytes_total: u64) -> Self {
        Self {
            total: bytes_total,
            book: Mutex::new(Book { next: FIRST_ADDRESS, ..Book::default() }),
            live: RwLock::new(Arc::new(Vec::new())),
            untracked_below: AtomicU64::new(0),
            launches: AtomicU64::new(0),
            wide: Mutex::new(()),
        }
    }

    /// Takes `bytes` of memory (at least one byte is accounted for) and returns its address,
    /// 256-byte aligned and never one that was handed out before. `name` appears in reports.
    ///
    /// # Errors
    /// [`MemError::OutOfMemory`].
    pub fn alloc(&self, bytes: u64, name: Option<&str>) -> Result<u64, MemError> {
        let mut book = lock(&self.book);
        let free = self.total - book.used;
        let size = bytes.max(1);
        if size > free {
            return Err(MemError::OutOfMemory { asked: bytes, free, total: self.total });
        }
        let base = book.next;
        book.next += size.div_ceil(ALIGN) * ALIGN + GUARD;
        book.used += size;
        book.serial += 1;
        let alloc = Arc::new(Alloc::new(base, size, name, book.serial));
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut live).push(alloc);
        Ok(base)
    }

    /// Gives an allocation back. The address must be one that [`Memory::alloc`] returned.
    ///
    /// # Errors
    /// [`MemError::UseAfterFree`] for a second free, [`MemError::InvalidAddress`] otherwise.
    pub fn free(&self, address: u64) -> Result<(), MemError> {
        let mut book = lock(&self.book);
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        let Ok(at) = live.binary_search_by_key(&address, |a| a.base) else {
            drop(live);
            drop(book);
            return Err(self.fault(address, 0));
        };
        let gone = Arc::make_mut(&mut live).remove(at);
        book.used -= gone.bytes;
        book.freed.insert(gone.base, (gone.bytes, gone.describe()));
        if book.freed.len() > FREED_KEPT {
            book.freed.pop_first();
        }
        Ok(())
    }

    /// Copies host bytes to the device.
    ///
    /// # Errors
    /// The range must lie inside one allocation.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), MemError> {
        let Some(alloc) = self.range(address, data.len() as u64)? else { return Ok(()) };
        alloc.write(address - alloc.base, data);
        Ok(())
    }

    /// Copies device bytes to the host.
    ///
    /// # Errors
    /// The range must lie inside one allocation.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<(), MemError> {
        let Some(alloc) = self.range(address, out.len() as u64)? else { return Ok(()) };
        alloc.read(address - alloc.base, out);
        Ok(())
    }

    /// Writes `pattern` `count` times from `address` on.
    ///
    /// # Errors
    /// The range must lie inside one allocation.
    pub fn fill(&self, address: u64, pattern: &[u8], count: u64) -> Result<(), MemError> {
        let bytes = (pattern.len() as u64).saturating_mul(count);
        let Some(alloc) = self.range(address, bytes)? else { return Ok(()) };
        let repeats = (4096 / pattern.len().max(1)).max(1);
        let chunk = pattern.repeat(repeats);
        let (mut at, mut left) = (address - alloc.base, bytes as usize);
        while left > 0 {
            let take = left.min(chunk.len());
            alloc.write(at, &chunk[..take]);
            at += take as u64;
            left -= take;
        }
        Ok(())
    }

    /// Copies within the device, correctly when the ranges overlap. Bytes never written stay so.
    ///
    /// # Errors
    /// Both ranges must lie inside one allocation each.
    pub fn copy(&self, dst: u64, src: u64, bytes: u64) -> Result<(), MemError> {
        let (Some(to), Some(from)) = (self.range(dst, bytes)?, self.range(src, bytes)?) else {
            return Ok(());
        };
        let mut data = vec![0; usize::try_from(bytes).unwrap_or(0)];
        from.read(src - from.base, &mut data);
        let known: Vec<bool> = (0..bytes).map(|i| self.is_written(&from, src + i)).collect();
        to.write(dst - to.base, &data);
        for (i, _) in known.iter().enumerate().filter(|(_, known)| !**known) {
            let offset = dst - to.base + i as u64;
            if let Some(shadow) = to.written.get((offset / 4) as usize) {
                shadow.fetch_and(!(1 << (offset % 4)), Relaxed);
            }
        }
        Ok(())
    }

    /// Free and total bytes.
    pub fn info(&self) -> (u64, u64) {
        (self.total - lock(&self.book).used, self.total)
    }

    /// The live allocation around an address: its first byte and its size.
    pub fn find(&self, address: u64) -> Option<(u64, u64)> {
        let live = self.snapshot();
        let alloc = lookup(&live, address).filter(|a| a.holds(address, 1))?;
        Some((alloc.base, alloc.bytes))
    }

    /// The allocations as they are now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Arc::clone(&self.live.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on every byte counts as written: a launch that does not track writes may run.
    pub(crate) fn stop_tracking(&self) {
        let serial = lock(&self.book).serial;
        self.untracked_below.store(serial + 1, Relaxed);
    }

    /// A number for a launch. When numbers begin again, old race marks are forgotten.
    pub(crate) fn next_launch(&self) -> u64 {
        let number = self.launches.fetch_add(1, Relaxed) % 4095 + 1;
        if number == 1 {
            for alloc in self.snapshot().iter() {
                alloc.races.get().into_iter().flatten().for_each(|mark| mark.store(0, Relaxed));
            }
        }
        number
    }

    /// Whether the bytes of this allocation are known one by one.
    pub(crate) fn is_tracked(&self, alloc: &Alloc) -> bool {
        alloc.serial >= self.untracked_below.load(Relaxed)
    }

    fn is_written(&self, alloc: &Alloc, address: u64) -> bool {
        let offset = address - alloc.base;
        let shadow = alloc.written.get((offset / 4) as usize).map_or(0, |w| w.load(Relaxed));
        !self.is_tracked(alloc) || shadow >> (offset % 4) & 1 == 1
    }

    /// Runs `f` alone among the 64-bit atomics of this device.
    pub(crate) fn exclusive<T>(&self, f: impl FnOnce() -> T) -> T {
        let _guard = lock(&self.wide);
        f()
    }

    fn range(&self, address: u64, bytes: u64) -> Result<Option<Arc<Alloc>>, MemError> {
        if bytes == 0 {
            return Ok(None);
        }
        let live = self.snapshot();
        match lookup(&live, address).filter(|a| a.holds(address, bytes)) {
            Some(alloc) => Ok(Some(Arc::clone(alloc))),
            None => Err(self.fault(address, bytes)),
        }
    }

    /// What is wrong with a range that no live allocation holds.
    pub(crate) fn fault(&self, address: u64, bytes: u64) -> MemError {
        let book = lock(&self.book);
        if let Some((base, (size, what))) = book.freed.range(..=address).next_back()
            && address < base + size
        {
            return MemError::UseAfterFree { address, bytes, what: what.clone() };
        }
        drop(book);
        let live = self.snapshot();
        let near = lookup(&live, address).map_or_else(String::new, |a| {
            let past = address.saturating_add(bytes).saturating_sub(a.base + a.bytes);
            format!("; the range ends {past} bytes past the end of {}", a.describe())
        });
        MemError::InvalidAddress { address, bytes, near }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_at_any_alignment() {
        let mem = Memory::new(1 << 20);
        let at = mem.alloc(64, None).unwrap();
        assert_eq!(at % 256, 0);
        mem.write(at + 3, &[1, 2, 3, 4, 5, 6, 7]).unwrap();
        let mut out = [0; 9];
        mem.read(at + 2, &mut out).unwrap();
        assert_eq!(out, [0, 1, 2, 3, 4, 5, 6, 7, 0]);
        mem.copy(at + 5, at + 3, 7).unwrap();
        mem.read(at + 5, &mut out[..7]).unwrap();
        assert_eq!(out[..7], [1, 2, 3, 4, 5, 6, 7]);
        mem.fill(at, &[9, 8], 4).unwrap();
        mem.read(at, &mut out[..8]).unwrap();
        assert_eq!(out[..8], [9, 8, 9, 8, 9, 8, 9, 8]);
    }

    #[test]
    fn errors_say_which() {
        let mem = Memory::new(1000);
        let at = mem.alloc(600, Some("weights")).unwrap();
        assert!(matches!(mem.alloc(500, None), Err(MemError::OutOfMemory { free: 400, .. })));
        assert_eq!(mem.find(at + 599), Some((at, 600)));
        assert_eq!(mem.find(at + 600), None);
        let past = mem.write(at + 598, &[0; 4]).unwrap_err();
        assert!(past.to_string().contains("2 bytes past the end of `weights`"), "{past}");
        mem.free(at).unwrap();
        assert!(matches!(mem.free(at), Err(MemError::UseAfterFree { .. })));
        assert!(matches!(mem.read(at, &mut [0]), Err(MemError::UseAfterFree { .. })));
        assert_ne!(mem.alloc(600, None).unwrap(), at);
        assert_eq!(mem.info(), (400, 1000));
    }
}
