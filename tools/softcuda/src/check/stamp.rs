//! Who touched a word when, in 64 bits, and whether two such accesses are ordered.

/// One access: launch 12 bits, block 20, warp 5, lane 5, clock 9, turn 8, strong 1, bytes 4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark(pub(crate) u64);

/// Clocks stop here; what bears the last one counts as ordered.
const LAST_CLOCK: u64 = 511;
/// So do turns.
const LAST_TURN: u64 = 255;

impl Mark {
    pub(crate) const NONE: Self = Self(0);

    fn launch(self) -> u64 {
        self.0 >> 52
    }

    /// The block's number, its lower 20 bits.
    pub(crate) fn block(self) -> u64 {
        self.0 >> 32 & 0xf_ffff
    }

    fn warp(self) -> u64 {
        self.0 >> 27 & 31
    }

    /// The thread's number in its block.
    pub(crate) fn thread(self) -> u32 {
        (self.0 >> 22 & 0x3ff) as u32
    }

    fn lane(self) -> u64 {
        self.0 >> 22 & 31
    }

    fn clock(self) -> u64 {
        self.0 >> 13 & LAST_CLOCK
    }

    fn turn(self) -> u64 {
        self.0 >> 5 & LAST_TURN
    }

    fn strong(self) -> bool {
        self.0 >> 4 & 1 == 1
    }

    fn bytes(self) -> u64 {
        self.0 & 15
    }
}

/// A warp's view of time during one instruction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp<'a> {
    pub(crate) launch: u64,
    pub(crate) block: u64,
    pub(crate) warp: u64,
    pub(crate) turn: u64,
    /// The latest clock of each warp that this one is ordered after; its own is its own.
    pub(crate) seen: &'a [u32; 32],
    pub(crate) strong: bool,
    /// The block is ordered after the others' fences.
    pub(crate) acquired: bool,
}

impl Stamp<'_> {
    /// The mark of a lane's access to some bytes of a word.
    pub(crate) fn mark(&self, lane: usize, bytes: u64) -> Mark {
        let clock = u64::from(self.seen[self.warp as usize & 31]).min(LAST_CLOCK);
        Mark(
            (self.launch & 0xfff) << 52
                | (self.block & 0xf_ffff) << 32
                | (self.warp & 31) << 27
                | (lane as u64 & 31) << 22
                | clock << 13
                | self.turn.min(LAST_TURN) << 5
                | u64::from(self.strong) << 4
                | bytes,
        )
    }

    /// Whether an earlier access and this one are unordered.
    pub(crate) fn clashes(&self, old: Mark, lane: usize, bytes: u64) -> bool {
        if old == Mark::NONE
            || old.launch() != self.launch & 0xfff
            || old.bytes() & bytes == 0
            || (old.strong() && self.strong)
        {
            return false;
        }
        if old.block() != self.block & 0xf_ffff {
            return !self.acquired;
        }
        if old.warp() == self.warp {
            let same_turn = old.turn() == self.turn.min(LAST_TURN);
            return old.lane() != lane as u64 && same_turn && old.turn() < LAST_TURN;
        }
        old.clock() < LAST_CLOCK && u64::from(self.seen[old.warp() as usize]) < old.clock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_what_barriers_make() {
        let seen = [1; 32];
        let mut other = [0; 32];
        other[1] = 1;
        let a = Stamp {
            launch: 3,
            block: 7,
            warp: 0,
            turn: 0,
            seen: &seen,
            strong: false,
            acquired: false,
        };
        let b = Stamp { warp: 1, seen: &other, ..a };
        let mark = a.mark(4, 0b1111);
        assert_eq!((mark.thread(), mark.block()), (4, 7));
        assert!(b.clashes(mark, 0, 0b0011), "no barrier lies between");
        assert!(!Stamp { seen: &seen, ..b }.clashes(mark, 0, 15), "warp 1 has seen warp 0's clock");
        assert!(!b.clashes(a.mark(4, 0b1100), 0, 0b0011), "other bytes");
        assert!(!b.clashes(Stamp { launch: 2, ..a }.mark(4, 15), 0, 15), "another launch");
        assert!(a.clashes(mark, 5, 15) && !a.clashes(mark, 4, 15), "lanes of one warp");
        assert!(!Stamp { turn: 1, ..a }.clashes(mark, 5, 15), "after bar.warp.sync");
        assert!(Stamp { block: 8, ..a }.clashes(mark, 4, 15), "another block");
        assert!(!Stamp { block: 8, acquired: true, ..a }.clashes(mark, 4, 15));
    }
}
