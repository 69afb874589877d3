//! Sanitizers: which accesses of a launch are ordered, and which bytes were ever written.
//!
//! Each 32-bit word remembers its last write and its last read as a mark. Two accesses of a
//! word by different threads, one of them a plain write or read against a write, are a race
//! unless a barrier lies between them. Warps keep vector clocks, so barriers of a part of a block
//! order that part alone; lanes of one warp are ordered by `bar.warp.sync` and by barriers. What
//! a block reads after a fence and an atomic of its own counts as ordered after other blocks.

mod stamp;

pub(crate) use stamp::{Mark, Stamp};

/// Shadow of a block's shared memory.
#[derive(Default)]
pub(crate) struct SharedShadow {
    /// Whether each byte was written.
    pub(crate) written: Vec<bool>,
    /// Last write and last read of each word.
    pub(crate) marks: Vec<[Mark; 2]>,
}

impl SharedShadow {
    /// Forgets everything, for a block with `bytes` of shared memory.
    pub(crate) fn reset(&mut self, bytes: usize) {
        self.written.clear();
        self.written.resize(bytes, false);
        self.marks.clear();
        self.marks.resize(bytes.div_ceil(4), [Mark::NONE; 2]);
    }
}
