//! The state of a warp and of the block it runs in.

use super::bulk::Load;
use super::code::{Code, NEVER};
use super::fault::FaultKind;
use super::lanes::{FULL, Row};
use super::phase::Clocks;
use super::{Launch, Options};
use crate::check::{SharedShadow, Stamp};
use crate::count::{Footprint, Tally};
use crate::mem::{Memory, Snapshot};
use std::collections::BTreeMap;

/// Lanes that wait for others at a reconvergence point.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting {
    pub(super) pc: u32,
    pub(super) join: u32,
    pub(super) mask: u32,
}

/// What a warp can do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    /// Waits at a barrier of that number.
    Waits(u32),
    /// Until a barrier in shared memory passes.
    Sleeps,
    Done,
}

/// A copy that is under way: bytes already read, not yet in shared memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flight {
    pub(super) lane: u8,
    pub(super) bytes: u8,
    pub(super) to: u32,
    pub(super) data: [u8; 16],
    /// The lane's group it belongs to.
    pub(super) group: u32,
}

/// 32 threads in lock-step.
pub(super) struct Warp {
    pub(super) r: Vec<Row<u32>>,
    pub(super) w: Vec<Row<u64>>,
    pub(super) p: Vec<u32>,
    pub(super) pc: u32,
    pub(super) join: u32,
    pub(super) mask: u32,
    pub(super) stack: Vec<Waiting>,
    /// Lanes that have not exited.
    pub(super) live: u32,
    pub(super) index: u32,
    pub(super) state: State,
    /// The instruction that runs now.
    pub(super) at: u32,
    pub(super) steps: u64,
    /// How often lanes stepped aside at the barrier that is next.
    pub(super) deferred: u32,
    /// Local variables and call parameters, lane after lane.
    pub(super) frame: Vec<u8>,
    pub(super) frame_written: Vec<bool>,
    pub(super) seen: [u32; 32],
    pub(super) turn: u64,
    pub(super) flights: Vec<Flight>,
    pub(super) groups: [u32; 32],
    /// Whether the next look at a barrier in shared memory must not put it to sleep.
    pub(super) hurried: bool,
    /// Lanes that have waited for the launches before.
    pub(super) awaited: u32,
}

impl Warp {
    pub(super) fn new(code: &Code, index: u32) -> Self {
        Self {
            r: vec![[0; 32]; code.slots32 as usize + 1],
            w: vec![[0; 32]; code.slots64 as usize + 1],
            p: vec![0; code.preds as usize + 1],
            pc: 0,
            join: NEVER,
            mask: 0,
            stack: Vec::new(),
            live: 0,
            index,
            state: State::Done,
            at: 0,
            steps: 0,
            deferred: 0,
            frame: Vec::new(),
            frame_written: Vec::new(),
            seen: [0; 32],
            turn: 0,
            flights: Vec::new(),
            groups: [0; 32],
            hurried: false,
            awaited: 0,
        }
    }

    /// Back to the first instruction with the lanes of `mask`.
    pub(super) fn reset(&mut self, mask: u32, frame_bytes: usize) {
        (self.pc, self.join, self.mask, self.live) = (0, NEVER, mask, mask);
        self.stack.clear();
        self.state = if mask == 0 { State::Done } else { State::Ready };
        (self.steps, self.turn, self.deferred) = (0, 0, 0);
        self.frame.clear();
        self.frame.resize(frame_bytes * 32, 0);
        self.frame_written.clear();
        self.frame_written.resize(frame_bytes * 32, false);
        self.seen = [0; 32];
        self.seen[self.index as usize & 31] = 1;
        self.flights.clear();
        self.groups = [0; 32];
        self.hurried = false;
        self.awaited = 0;
    }

    /// Goes on with the lanes that wait longest; says whether there are any.
    pub(super) fn pop(&mut self) -> bool {
        while let Some(top) = self.stack.pop() {
            let mask = top.mask & self.live;
            if mask != 0 {
                (self.pc, self.join, self.mask) = (top.pc, top.join, mask);
                return true;
            }
        }
        self.mask = 0;
        false
    }

    pub(super) fn pred(&self, slot: u32) -> u32 {
        self.p[slot as usize]
    }
}

/// Everything about a launch that does not change while it runs.
pub(super) struct Env<'a> {
    pub(super) code: &'a Code,
    pub(super) launch: &'a Launch<'a>,
    pub(super) options: &'a Options,
    pub(super) memory: &'a Memory,
    pub(super) table: Snapshot,
    pub(super) footprint: Footprint,
    /// Number of the launch, for race marks.
    pub(super) tag: u64,
    pub(super) grid_id: u64,
}

/// A barrier of a block.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate {
    /// Threads that are there.
    pub(super) arrived: u32,
    pub(super) needed: u32,
    pub(super) waiting: Vec<u32>,
    /// Every clock that those who arrived have seen.
    pub(super) seen: [u32; 32],
    pub(super) count: u32,
    pub(super) all: bool,
    pub(super) any: bool,
}

/// What a worker needs to run a block, besides its warps.
pub(super) struct Machine<'a> {
    pub(super) env: &'a Env<'a>,
    pub(super) tally: Tally,
    pub(super) shared: Vec<u8>,
    pub(super) shadow: SharedShadow,
    pub(super) gates: Vec<Gate>,
    pub(super) block: [u32; 3],
    pub(super) block_number: u64,
    pub(super) threads: u32,
    pub(super) fenced: bool,
    pub(super) acquired: bool,
    /// The allocation that the last access hit.
    pub(super) hot: usize,
    /// Lanes of the warp that runs which may not touch memory yet: they have not waited for the
    /// launches before, and those may still run.
    pub(super) early: u32,
    /// Barriers in shared memory, by address.
    pub(super) phases: BTreeMap<u64, Clocks>,
    /// Bulk copies that have not landed.
    pub(super) loads: Vec<Load>,
    /// Whether a barrier in shared memory has passed since sleepers were woken.
    pub(super) stirred: bool,
    /// How often sleepers were woken for nothing.
    pub(super) idle: u32,
}

impl Machine<'_> {
    pub(super) fn sanitize(&self) -> bool {
        self.env.options.sanitize
    }

    /// Sets what lanes of a warp are too early.
    pub(super) fn set_early(&mut self, w: &Warp) {
        let watched = self.env.launch.overlaps && self.env.options.sanitize;
        self.early = if watched { !w.awaited } else { 0 };
    }

    pub(super) fn stamp<'w>(&self, w: &'w Warp, strong: bool) -> Stamp<'w> {
        Stamp {
            launch: self.env.tag,
            block: self.block_number,
            warp: u64::from(w.index),
            turn: w.turn,
            seen: &w.seen,
            strong,
            acquired: self.acquired,
        }
    }
}

/// What went wrong in a lane; where is added by those who know.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) kind: FaultKind,
    pub(super) lane: u32,
    pub(super) what: String,
    pub(super) address: Option<u64>,
    pub(super) buffer: Option<String>,
}

pub(super) type Step<T = ()> = Result<T, Box<Trouble>>;

/// A fault of a lane.
#[cold]
pub(super) fn trouble<T>(kind: FaultKind, lane: usize, what: impl Into<String>) -> Step<T> {
    let (what, lane) = (what.into(), lane as u32);
    Err(Box::new(Trouble { kind, lane, what, address: None, buffer: None }))
}

/// A fault of a lane at an address.
#[cold]
pub(super) fn trouble_at<T>(
    kind: FaultKind,
    lane: usize,
    address: u64,
    buffer: Option<String>,
    what: impl Into<String>,
) -> Step<T> {
    let (what, lane) = (what.into(), lane as u32);
    Err(Box::new(Trouble { kind, lane, what, address: Some(address), buffer }))
}

/// The lanes of a warp that hold threads.
pub(super) fn lanes_of(threads: u32, warp: u32) -> u32 {
    match threads.saturating_sub(warp * 32) {
        0 => 0,
        n if n >= 32 => FULL,
        n => (1 << n) - 1,
    }
}
