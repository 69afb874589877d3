//! A block: its warps, its shared memory and the seeded order in which warps take turns.

use super::barrier;
use super::code::{Code, Init};
use super::fault::Fault;
use super::fault::FaultKind;
use super::lanes::{LANES, Row};
use super::phase;
use super::step;
use super::warp::{Env, Gate, Machine, State, Trouble, Warp, lanes_of};
use crate::check::SharedShadow;
use crate::count::Tally;
use crate::ptx::ast::Special;
use pulp::Simd;
use std::collections::BTreeMap;

/// Instructions of a turn when no seed asks for shorter ones.
pub(super) const LONG_TURN: u64 = 20_000;
/// Longest turn of a seeded schedule.
const SHORT_TURN: u64 = 200;
/// Times that sleepers are woken although nothing has happened before that is a deadlock.
pub(super) const MOST_IDLE: u32 = 1000;

/// A small generator for schedules: a Weyl sequence with its bits mixed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ stream.wrapping_mul(0xd1b5_4a32_d192_ed03))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

/// A block with the worker's state around it.
pub(super) struct Block<'a> {
    pub(super) machine: Machine<'a>,
    warps: Vec<Warp>,
    dice: Dice,
}

impl Env<'_> {
    /// The place in its block of a thread's number.
    pub(super) fn thread(&self, number: u32) -> [u32; 3] {
        let [x, y, _] = self.launch.block;
        [number % x, number / x % y, number / (x * y)]
    }

    fn special(&self, special: Special, warp: u32, block: [u32; 3]) -> Row<u32> {
        let lane = |f: fn(u32) -> u32| std::array::from_fn(|l| f(l as u32));
        let same = |value: u32| [value; LANES];
        let axis = |v: [u32; 3], a: u8| same(v.get(a as usize).copied().unwrap_or(1));
        let threads: u32 = self.launch.block.iter().product();
        match special {
            Special::Tid(a) => std::array::from_fn(|l| {
                let at = self.thread(warp * 32 + l as u32);
                at.get(a as usize).copied().unwrap_or(0)
            }),
            Special::Ntid(a) => axis(self.launch.block, a),
            Special::Ctaid(a) => axis(block, a),
            Special::Nctaid(a) => axis(self.launch.grid, a),
            Special::LaneId => lane(|l| l),
            Special::WarpId => same(warp),
            Special::NWarpId => same(threads.div_ceil(32)),
            Special::SmId => same(0),
            Special::NSmId => same(1),
            Special::GridId => same(self.grid_id as u32),
            Special::MaskEq => lane(|l| 1 << l),
            Special::MaskLe => lane(|l| u32::MAX >> (31 - l)),
            Special::MaskLt => lane(|l| (1 << l) - 1),
            Special::MaskGe => lane(|l| u32::MAX << l),
            Special::MaskGt => lane(|l| (u32::MAX << l) & !(1 << l)),
            Special::DynamicShared => same(self.launch.dynamic_shared),
            Special::TotalShared => same(self.code.shared_bytes + self.launch.dynamic_shared),
            // These change while a kernel runs and are instructions.
            _ => same(0),
        }
    }
}

/// Fills the slots of constants.
fn constants(code: &Code, w: &mut Warp) {
    for (slot, init) in &code.init32 {
        if let Init::Value(value) = init {
            w.r[*slot as usize] = [*value as u32; LANES];
        }
    }
    for (slot, init) in &code.init64 {
        if let Init::Value(value) = init {
            w.w[*slot as usize] = [*value; LANES];
        }
    }
}

impl<'a> Block<'a> {
    /// The state for running any block of a launch.
    pub(super) fn new(env: &'a Env<'a>) -> Self {
        let threads: u32 = env.launch.block.iter().product();
        let warps = (0..threads.div_ceil(32)).map(|index| {
            let mut warp = Warp::new(env.code, index);
            constants(env.code, &mut warp);
            warp
        });
        Self {
            warps: warps.collect(),
            dice: Dice::new(0, 0),
            machine: Machine {
                env,
                tally: Tally::new(env.code.insts.len()),
                shared: Vec::new(),
                shadow: SharedShadow::default(),
                gates: vec![Gate::default(); 16],
                block: [0; 3],
                block_number: 0,
                threads,
                fenced: false,
                acquired: false,
                hot: 0,
                early: 0,
                phases: BTreeMap::new(),
                loads: Vec::new(),
                stirred: false,
                idle: 0,
            },
        }
    }

    /// Prepares for a block of that number.
    pub(super) fn begin(&mut self, number: u64) {
        let m = &mut self.machine;
        let env = m.env;
        let [x, y, _] = env.launch.grid.map(u64::from);
        m.block = [number % x, number / x % y, number / (x * y)].map(|v| v as u32);
        m.block_number = number;
        (m.fenced, m.acquired) = (false, false);
        m.phases.clear();
        m.loads.clear();
        (m.stirred, m.idle) = (false, 0);
        let bytes = (env.code.shared_bytes + env.launch.dynamic_shared) as usize;
        m.shared.clear();
        m.shared.resize(bytes, 0);
        if env.options.sanitize {
            m.shadow.reset(bytes);
        }
        m.gates.fill(Gate::default());
        for w in &mut self.warps {
            w.reset(lanes_of(m.threads, w.index), env.code.frame_bytes as usize);
            for (slot, init) in &env.code.init32 {
                if let Init::Special(special) = init {
                    w.r[*slot as usize] = env.special(*special, w.index, m.block);
                }
            }
        }
        self.dice = Dice::new(env.options.schedule_seed, number);
    }

    /// Gives warps at most `turns` turns, each of `steps` steps unless the dice say; says whether
    /// the block has ended.
    pub(super) fn run<S: Simd>(&mut self, simd: S, turns: u64, steps: u64) -> Result<bool, Fault> {
        for _ in 0..turns {
            let Some(index) = self.pick() else {
                if self.warps.iter().all(|w| w.state == State::Done) {
                    return Ok(true);
                }
                if barrier::open(&mut self.machine, &mut self.warps) || self.wake(true)? {
                    continue;
                }
                return Err(self.deadlock());
            };
            let budget = match self.machine.env.options.schedule_seed {
                0 => steps,
                _ => 1 + self.dice.next() % SHORT_TURN,
            };
            let Some(warp) = self.warps.get_mut(index) else { continue };
            if let Err(trouble) = step::run(simd, &mut self.machine, warp, budget) {
                return Err(self.fault(index, &trouble));
            }
            // A barrier may open while other warps still run: a named one for a part of the block.
            if self.warps[index].state != State::Ready {
                barrier::open(&mut self.machine, &mut self.warps);
            }
            if self.machine.stirred {
                self.wake(false)?;
            }
        }
        Ok(false)
    }

    /// Wakes warps that sleep at barriers in shared memory.
    fn wake(&mut self, stuck: bool) -> Result<bool, Fault> {
        let woken = phase::wake(&mut self.machine, &mut self.warps, stuck);
        woken.map_err(|trouble| self.fault(0, &trouble))
    }

    /// The warp whose turn it is: round robin, or by the dice.
    fn pick(&mut self) -> Option<usize> {
        let ready = |w: &Warp| w.state == State::Ready;
        if self.machine.env.options.schedule_seed == 0 {
            let least = self.warps.iter().enumerate().filter(|(_, w)| ready(w));
            return least.min_by_key(|(_, w)| w.steps / LONG_TURN).map(|(i, _)| i);
        }
        let count = self.warps.iter().filter(|w| ready(w)).count();
        let nth = (self.dice.next() as usize).checked_rem(count)?;
        self.warps.iter().enumerate().filter(|(_, w)| ready(w)).nth(nth).map(|(i, _)| i)
    }

    fn deadlock(&self) -> Fault {
        let waits: Vec<String> = self
            .warps
            .iter()
            .filter_map(|w| match w.state {
                State::Waits(id) => Some(format!("warp {} at barrier {id}", w.index)),
                State::Sleeps => Some(format!("warp {} at an mbarrier", w.index)),
                _ => None,
            })
            .collect();
        let text = format!("no warp can go on: {}", waits.join(", "));
        let index =
            self.warps.iter().position(|w| matches!(w.state, State::Waits(_) | State::Sleeps));
        let index = index.unwrap_or(0);
        let trouble = Trouble {
            kind: FaultKind::Deadlock,
            lane: self.warps.get(index).map_or(0, |w| w.live.trailing_zeros() & 31),
            what: text,
            address: None,
            buffer: None,
        };
        self.fault(index, &trouble)
    }

    /// A lane's trouble with all that is known about where.
    fn fault(&self, warp: usize, trouble: &Trouble) -> Fault {
        let env = self.machine.env;
        let mut fault = Fault::new(trouble.kind, env.launch.entry, trouble.what.clone());
        let at = self.warps.get(warp).map_or(0, |w| w.at) as usize;
        let place = env.code.places.get(at).copied().unwrap_or_default();
        fault.place = place;
        fault.ptx_line = place.line;
        fault.block = Some(self.machine.block);
        fault.thread = Some(env.thread(warp as u32 * 32 + trouble.lane));
        fault.address = trouble.address;
        fault.buffer.clone_from(&trouble.buffer);
        fault
    }
}
