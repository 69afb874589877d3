//! Whole 32-bit words, the common case of loads and stores: the place is found once for all lanes
//! of a warp, and what the sanitizers compare is put together once. What is out of the ordinary,
//! faults above all, is left to `space`, which looks lane by lane.

use super::code::Access;
use super::lanes::lanes;
use super::space::{Way, window};
use super::warp::{Machine, Step, Warp};
use crate::check::Mark;
use crate::mem::Alloc;
use crate::ptx::ast::Space;
use std::sync::atomic::Ordering::Relaxed;

/// All bytes of a word.
const WHOLE: u64 = 15;

/// Byte offsets of all lanes from `base`; none unless those of `mask` are aligned and inside
/// `bytes`.
#[inline(always)]
fn offsets(at: &[u64; 32], mask: u32, base: u64, (bytes, width): (u64, u64)) -> Option<[u64; 32]> {
    let most = bytes.checked_sub(width)?;
    let mut out = [0; 32];
    let mut wrong = 0;
    for lane in 0..32 {
        let offset = at[lane].wrapping_sub(base);
        let odd = (offset & (width - 1)) | u64::from(offset > most);
        wrong |= odd & 0u64.wrapping_sub(u64::from(mask >> lane & 1));
        out[lane] = offset;
    }
    (wrong == 0).then_some(out)
}

/// Whether an earlier access may clash: it is of another thread of this launch.
#[inline(always)]
fn is_foreign(old: u64, mine: u64) -> bool {
    old >> 52 == mine >> 52 && (old ^ mine) >> 22 != 0
}

/// Runs a load of words; false if the plain way must.
#[inline(always)]
pub(super) fn load(
    m: &mut Machine<'_>,
    w: &mut Warp,
    access: &Access,
    at: &[u64; 32],
    mask: u32,
) -> Step<bool> {
    let count = access.count as usize;
    if access.bytes != 4 || access.wide || access.extend != 0 || mask == 0 || m.early & mask != 0 {
        return Ok(false);
    }
    let (space, address) = window(access.space, at[mask.trailing_zeros() as usize]);
    let width = 4 * count as u64;
    match space {
        Space::Global => {
            let Some(alloc) = m.near(address, width) else { return Ok(false) };
            let place = (alloc.bytes, width);
            let Some(offsets) = offsets(at, mask, alloc.base, place) else { return Ok(false) };
            if m.sanitize() {
                m.read_global(w, access, alloc, (&offsets, mask))?;
            }
            for (k, &reg) in access.regs.iter().enumerate().take(count) {
                let row = &mut w.r[reg as usize];
                for lane in lanes(mask) {
                    let word = alloc.words.get((offsets[lane] / 4) as usize + k);
                    row[lane] = word.map_or(0, |word| word.load(Relaxed));
                }
            }
        }
        Space::Shared => {
            let base = at[mask.trailing_zeros() as usize] - address;
            let place = (m.shared.len() as u64, width);
            let Some(offsets) = offsets(at, mask, base, place) else { return Ok(false) };
            if m.sanitize() {
                m.read_shared(w, access, &offsets, mask)?;
            }
            for (k, &reg) in access.regs.iter().enumerate().take(count) {
                let row = &mut w.r[reg as usize];
                for lane in lanes(mask) {
                    let from = offsets[lane] as usize + 4 * k;
                    let word = m.shared.get(from..from + 4).and_then(|b| b.try_into().ok());
                    row[lane] = word.map_or(0, u32::from_le_bytes);
                }
            }
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Runs a store of words; false if the plain way must.
#[inline(always)]
pub(super) fn store(
    m: &mut Machine<'_>,
    w: &Warp,
    access: &Access,
    at: &[u64; 32],
    mask: u32,
) -> Step<bool> {
    let count = access.count as usize;
    if access.bytes != 4 || access.wide || mask == 0 || m.early & mask != 0 {
        return Ok(false);
    }
    let (space, address) = window(access.space, at[mask.trailing_zeros() as usize]);
    let width = 4 * count as u64;
    match space {
        Space::Global => {
            let Some(alloc) = m.near(address, width) else { return Ok(false) };
            let place = (alloc.bytes, width);
            let Some(offsets) = offsets(at, mask, alloc.base, place) else { return Ok(false) };
            if m.sanitize() {
                m.write_global(w, access, alloc, (&offsets, mask))?;
                return Ok(true);
            }
            for (k, &reg) in access.regs.iter().enumerate().take(count) {
                let row = &w.r[reg as usize];
                for lane in lanes(mask) {
                    if let Some(word) = alloc.words.get((offsets[lane] / 4) as usize + k) {
                        word.store(row[lane], Relaxed);
                    }
                }
            }
        }
        Space::Shared => {
            let base = at[mask.trailing_zeros() as usize] - address;
            let place = (m.shared.len() as u64, width);
            let Some(offsets) = offsets(at, mask, base, place) else { return Ok(false) };
            if m.sanitize() {
                m.write_shared(w, access, &offsets, mask)?;
                return Ok(true);
            }
            for (k, &reg) in access.regs.iter().enumerate().take(count) {
                let row = &w.r[reg as usize];
                for lane in lanes(mask) {
                    let from = offsets[lane] as usize + 4 * k;
                    if let Some(to) = m.shared.get_mut(from..from + 4) {
                        to.copy_from_slice(&row[lane].to_le_bytes());
                    }
                }
            }
        }
        _ => return Ok(false),
    }
    Ok(true)
}

impl<'a> Machine<'a> {
    /// The allocation around an address, if it is the one of the last access or easy to find.
    #[inline(always)]
    fn near(&mut self, address: u64, bytes: u64) -> Option<&'a Alloc> {
        let holds = |alloc: &&Alloc| alloc.holds(address, bytes);
        let table = &self.env.table;
        if let Some(alloc) = table.get(self.hot).map(|a| &**a).filter(holds) {
            return Some(alloc);
        }
        self.hot = table.partition_point(|a| a.base <= address).checked_sub(1)?;
        table.get(self.hot).map(|a| &**a).filter(holds)
    }

    /// The sanitizers' look at a read of global words.
    #[inline(always)]
    fn read_global(
        &self,
        w: &Warp,
        access: &Access,
        alloc: &Alloc,
        (offsets, mask): (&[u64; 32], u32),
    ) -> Step {
        let stamp = self.stamp(w, access.strong);
        let (first, marks) = (stamp.mark(0, WHOLE).0, alloc.marks());
        let tracked = self.env.memory.is_tracked(alloc);
        for lane in lanes(mask) {
            let mine = first | (lane as u64) << 22;
            for k in 0..access.count as usize {
                let word = (offsets[lane] / 4) as usize + k;
                let whole = alloc.written.get(word).is_none_or(|s| s.load(Relaxed) & 15 == 15);
                let [write, read] = pair(marks, word);
                let last = write.map_or(0, |mark| mark.load(Relaxed));
                if let Some(read) = read.filter(|mark| mark.load(Relaxed) != mine) {
                    read.store(mine, Relaxed);
                }
                let clash = is_foreign(last, mine) && stamp.clashes(Mark(last), lane, WHOLE);
                if clash || (tracked && !whole) {
                    // It says what is wrong, from the same records.
                    let address = alloc.base + word as u64 * 4;
                    self.check_global(&stamp, Way::Read, lane, (alloc, address), (4, false))?;
                }
            }
        }
        Ok(())
    }

    /// The same for a write, with the write itself.
    #[inline(always)]
    fn write_global(
        &self,
        w: &Warp,
        access: &Access,
        alloc: &Alloc,
        (offsets, mask): (&[u64; 32], u32),
    ) -> Step {
        let stamp = self.stamp(w, access.strong);
        let (first, marks) = (stamp.mark(0, WHOLE).0, alloc.marks());
        for lane in lanes(mask) {
            let mine = first | (lane as u64) << 22;
            for (k, &reg) in access.regs.iter().enumerate().take(access.count as usize) {
                let at = (offsets[lane] / 4) as usize + k;
                let (Some(word), [Some(write), Some(read)]) =
                    (alloc.words.get(at), pair(marks, at))
                else {
                    continue;
                };
                if let Some(shadow) = alloc.written.get(at).filter(|s| s.load(Relaxed) & 15 != 15) {
                    shadow.fetch_or(15, Relaxed);
                }
                let (last, seen) = (write.swap(mine, Relaxed), read.load(Relaxed));
                let value = w.r[reg as usize][lane];
                let clash = |old| is_foreign(old, mine) && stamp.clashes(Mark(old), lane, WHOLE);
                let was_read = clash(seen);
                if was_read || (clash(last) && word.load(Relaxed) != value) {
                    let place = (alloc.base + at as u64 * 4, Some(alloc.describe()));
                    let other = if was_read { seen } else { last };
                    return self.race(lane, place, (Way::Write, was_read), other);
                }
                word.store(value, Relaxed);
            }
        }
        Ok(())
    }
}

impl Machine<'_> {
    /// The sanitizers' look at a read of shared words.
    #[inline(always)]
    fn read_shared(&mut self, w: &Warp, access: &Access, offsets: &[u64; 32], mask: u32) -> Step {
        let stamp = self.stamp(w, access.strong);
        let first = stamp.mark(0, WHOLE).0;
        for lane in lanes(mask) {
            let mine = first | (lane as u64) << 22;
            for k in 0..access.count as usize {
                let at = offsets[lane] as usize + 4 * k;
                let whole = self.shadow.written.get(at..at + 4) == Some(&[true; 4]);
                let clash = |old: Mark| is_foreign(old.0, mine) && stamp.clashes(old, lane, WHOLE);
                match self.shadow.marks.get_mut(at / 4) {
                    Some([write, read]) if whole && !clash(*write) => *read = Mark(mine),
                    // It says what is wrong, from the same records.
                    _ => self.check_shared(&stamp, Way::Read, lane, at, (4, false))?,
                }
            }
        }
        Ok(())
    }

    /// The same for a write, with the write itself.
    #[inline(always)]
    fn write_shared(&mut self, w: &Warp, access: &Access, offsets: &[u64; 32], mask: u32) -> Step {
        let stamp = self.stamp(w, access.strong);
        let first = stamp.mark(0, WHOLE).0;
        for lane in lanes(mask) {
            let mine = first | (lane as u64) << 22;
            for (k, &reg) in access.regs.iter().enumerate().take(access.count as usize) {
                let at = offsets[lane] as usize + 4 * k;
                let value = w.r[reg as usize][lane].to_le_bytes();
                let clash = |old: Mark| is_foreign(old.0, mine) && stamp.clashes(old, lane, WHOLE);
                match self.shadow.marks.get_mut(at / 4) {
                    Some([write, read]) if !clash(*write) && !clash(*read) => {
                        *write = Mark(mine);
                        if let Some(written) = self.shadow.written.get_mut(at..at + 4) {
                            written.copy_from_slice(&[true; 4]);
                        }
                    }
                    _ => {
                        let same = self.shared.get(at..at + 4) == Some(&value);
                        self.check_shared(&stamp, Way::Write, lane, at, (4, same))?;
                    }
                }
                if let Some(to) = self.shared.get_mut(at..at + 4) {
                    to.copy_from_slice(&value);
                }
            }
        }
        Ok(())
    }
}

/// The records of a word: last write, last read.
#[inline(always)]
fn pair<T>(marks: &[T], word: usize) -> [Option<&T>; 2] {
    match marks.get(word * 2..word * 2 + 2) {
        Some([write, read]) => [Some(write), Some(read)],
        _ => [None, None],
    }
}
