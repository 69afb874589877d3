//! Tensor maps: what `cuTensorMapEncodeTiled` writes and `cp.async.bulk.tensor` reads. The format
//! is softcuda's own, as the driver's is its own.

use super::bulk::{Load, tally};
use super::code::{Bulk, BulkKind};
use super::fault::FaultKind;
use super::lanes::lanes;
use super::space::{Way, addresses, window};
use super::warp::{Machine, Step, Warp, trouble_at};
use crate::ptx::ast::Space;

/// Axes of a tensor, at most.
pub(crate) const AXES: usize = 5;
/// What a map begins with.
const SIGN: u64 = 0x736f_6674_6d61_7031;

/// A tensor in global memory and the box that a copy moves; axis 0 is contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Map {
    pub(crate) address: u64,
    /// Elements along each axis; 1 for axes that are not there.
    pub(crate) extents: [u64; AXES],
    /// Bytes from one element to the next along each axis.
    pub(crate) strides: [u64; AXES],
    /// Elements of the box.
    pub(crate) part: [u64; AXES],
    pub(crate) axes: u64,
    /// Bytes of an element.
    pub(crate) element: u64,
    /// Bytes over which 16-byte pieces are permuted; 16 for none.
    pub(crate) row: u64,
}

impl Map {
    /// The words of the map.
    pub(crate) fn pack(&self) -> [u64; 16] {
        let mut words = [0; 16];
        (words[0], words[1]) = (SIGN, self.address);
        words[2] = self.axes | self.element << 8 | self.row << 16;
        for axis in 0..AXES {
            words[3 + axis] = self.extents[axis] | self.part[axis] << 40;
            words[8 + axis] = self.strides[axis];
        }
        words
    }

    fn unpack(words: &[u64; 16]) -> Option<Self> {
        let axis = |from: usize| -> [u64; AXES] { std::array::from_fn(|a| words[from + a]) };
        (words[0] == SIGN).then(|| Self {
            address: words[1],
            axes: words[2] & 0xff,
            element: words[2] >> 8 & 0xff,
            row: words[2] >> 16 & 0xff,
            extents: axis(3).map(|w| w & ((1 << 40) - 1)),
            part: axis(3).map(|w| w >> 40),
            strides: axis(8),
        })
    }

    /// Bytes of the box.
    fn bytes(&self) -> u64 {
        self.part.iter().product::<u64>() * self.element
    }

    /// Where each element of the box lies: offset in shared memory before it is permuted, and
    /// address in global memory where the tensor has it.
    fn elements(&self, first: [i64; AXES]) -> impl Iterator<Item = (u64, Option<u64>)> + use<> {
        let map = *self;
        (0..self.part.iter().product::<u64>()).map(move |number| {
            let (mut rest, mut address) = (number, Some(map.address));
            for (axis, first) in first.iter().enumerate() {
                let at = first + (rest % map.part[axis]) as i64;
                rest /= map.part[axis];
                let inside = (0..map.extents[axis] as i64).contains(&at);
                let add = at.cast_unsigned().wrapping_mul(map.strides[axis]);
                address = address.filter(|_| inside).map(|a| a.wrapping_add(add));
            }
            (number * map.element, address)
        })
    }
}

/// The address after the permutation of 16-byte pieces.
pub(super) fn permuted(at: u64, row: u64) -> u64 {
    at ^ ((at >> 7 & (row / 16 - 1)) << 4)
}

fn map(m: &mut Machine<'_>, w: &Warp, lane: usize, at: u64) -> Step<Map> {
    m.aligned(lane, at, 64)?;
    let mut words = [0; 16];
    for (i, word) in (0..).zip(words.iter_mut()) {
        let from = window(Space::Generic, at + 8 * i);
        *word = m.read(w, lane, from, 8, false)?;
    }
    match Map::unpack(&words) {
        Some(map) => Ok(map),
        None => {
            let text = "this is no tensor map of cuTensorMapEncodeTiled";
            trouble_at(FaultKind::IllegalInstruction, lane, at, None, text)
        }
    }
}

/// Starts a copy of a box for each lane of `mask`.
pub(super) fn start(m: &mut Machine<'_>, w: &mut Warp, bulk: &Bulk, mask: u32) -> Step {
    let loads = bulk.kind == BulkKind::TensorToShared;
    let (maps, shared) = match loads {
        true => (addresses(w, &bulk.from), addresses(w, &bulk.to)),
        false => (addresses(w, &bulk.to), addresses(w, &bulk.from)),
    };
    let barrier = addresses(w, &bulk.barrier);
    for lane in lanes(mask) {
        let map = map(m, w, lane, maps[lane])?;
        let mut first = [0; AXES];
        for (at, &slot) in first.iter_mut().zip(&bulk.coordinates[..bulk.axes as usize]) {
            *at = i64::from(w.r[slot as usize][lane] as i32);
        }
        if u64::from(bulk.axes) != map.axes {
            let text = format!("{} coordinates for a tensor of {} axes", bulk.axes, map.axes);
            return trouble_at(FaultKind::IllegalInstruction, lane, maps[lane], None, text);
        }
        m.aligned(lane, shared[lane], 128)?;
        m.shared_range(lane, shared[lane], map.bytes())?;
        match loads {
            true => load(m, w, lane, (&map, first), [shared[lane], barrier[lane]])?,
            false => store(m, w, lane, (&map, first), shared[lane])?,
        }
    }
    Ok(())
}

/// Counts the runs of neighbours in the box.
fn count(m: &mut Machine<'_>, map: &Map, first: [i64; AXES], way: Way) {
    let mut run = 0..0;
    for (_, at) in map.elements(first) {
        let Some(at) = at else { continue };
        if at != run.end {
            tally(m, run.start, run.end - run.start, way);
            run = at..at;
        }
        run.end += map.element;
    }
    tally(m, run.start, run.end - run.start, way);
}

fn load(
    m: &mut Machine<'_>,
    w: &Warp,
    lane: usize,
    (map, first): (&Map, [i64; AXES]),
    [to, barrier]: [u64; 2],
) -> Step {
    let mut data = vec![0; map.bytes() as usize];
    let width = map.element as usize;
    for (offset, from) in map.elements(first) {
        let Some(from) = from else { continue };
        let value = m.read(w, lane, (Space::Global, from), map.element, false)?;
        let at = (permuted(to + offset, map.row) - to) as usize;
        if let Some(room) = data.get_mut(at..at + width) {
            room.copy_from_slice(&value.to_le_bytes()[..width]);
        }
    }
    count(m, map, first, Way::Read);
    let (warp, turn) = (u64::from(w.index), w.turn);
    let (seen, acquired) = (w.seen, m.acquired);
    m.loads.push(Load { barrier, to, data, lane, warp, turn, seen, acquired });
    Ok(())
}

fn store(
    m: &mut Machine<'_>,
    w: &mut Warp,
    lane: usize,
    (map, first): (&Map, [i64; AXES]),
    from: u64,
) -> Step {
    for (offset, to) in map.elements(first) {
        let Some(to) = to else { continue };
        let at = (Space::Shared, permuted(from + offset, map.row));
        let value = m.read(w, lane, at, map.element, false)?;
        m.write(w, lane, (Space::Global, to), (map.element, value), false)?;
    }
    count(m, map, first, Way::Write);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_keeps_what_it_is_given() {
        let map = Map {
            address: 0x7_0000_0100,
            extents: [1 << 32, 3, 1, 1, 1],
            strides: [2, 1 << 39, 0, 0, 0],
            part: [64, 256, 1, 1, 1],
            axes: 2,
            element: 2,
            row: 128,
        };
        assert_eq!(Map::unpack(&map.pack()), Some(map));
        assert_eq!(Map::unpack(&[0; 16]), None);
    }
}
