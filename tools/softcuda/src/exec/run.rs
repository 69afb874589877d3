//! Launches: checks of the request, blocks handed to workers, counts and faults gathered.

use super::block::{Block, Dice, LONG_TURN};
use super::code::Op;
use super::fault::{Fault, FaultKind};
use super::program::{Kernel, Program};
use super::warp::Env;
use super::{Launch, Options};
use crate::count::{Counts, Footprint, Tally};
use crate::mem::Memory;
use pulp::{Arch, Simd, WithSimd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Most shared memory of a block, in bytes, as an H100's.
pub const MOST_SHARED: u32 = 227 * 1024;
/// Turns a block of a cooperative launch gets before the next one does, and the steps of a turn:
/// few, for it may be waiting for the others.
const COOPERATIVE_TURNS: u64 = 4;
const COOPERATIVE_STEPS: u64 = 500;

fn refuse<T>(launch: &Launch<'_>, what: String) -> Result<T, Fault> {
    Err(Fault::new(FaultKind::InvalidLaunch, launch.entry, what))
}

/// Refuses what the device would.
fn check(kernel: &Kernel, launch: &Launch<'_>) -> Result<(), Fault> {
    let [gx, gy, gz] = launch.grid;
    let [bx, by, bz] = launch.block.map(u64::from);
    if gx == 0 || gy == 0 || gz == 0 || gx > i32::MAX as u32 || gy > 65535 || gz > 65535 {
        return refuse(launch, format!("grid ({gx}, {gy}, {gz})"));
    }
    let threads = bx * by * bz;
    let most = u64::from(kernel.entry.max_threads);
    if threads == 0 || threads > most || bz > 64 {
        return refuse(launch, format!("block ({bx}, {by}, {bz}): at most {most} threads"));
    }
    let shared = u64::from(kernel.code.shared_bytes) + u64::from(launch.dynamic_shared);
    if shared > u64::from(MOST_SHARED) {
        return refuse(launch, format!("{shared} bytes of shared memory: at most {MOST_SHARED}"));
    }
    let (has, wants) = (launch.params.len(), kernel.entry.param_bytes as usize);
    if has < wants {
        return refuse(launch, format!("{has} bytes of parameters: {wants} are needed"));
    }
    Ok(())
}

/// The order in which blocks start: by number, or a walk with a stride that meets them all.
struct Order {
    blocks: u64,
    stride: u64,
    first: u64,
}

impl Order {
    fn new(blocks: u64, seed: u64) -> Self {
        if seed == 0 || blocks < 2 {
            return Self { blocks, stride: 1, first: 0 };
        }
        let mut dice = Dice::new(seed, blocks);
        let first = dice.next() % blocks;
        let gcd = |mut a: u64, mut b: u64| {
            while b != 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        let mut stride = 1 + dice.next() % blocks;
        while gcd(stride, blocks) != 1 {
            stride += 1;
        }
        Self { blocks, stride, first }
    }

    fn block(&self, k: u64) -> u64 {
        let walked = u128::from(k) * u128::from(self.stride) + u128::from(self.first);
        (walked % u128::from(self.blocks)) as u64
    }
}

/// One worker of a launch, on its way into vector code.
struct Worker<'e, 'a> {
    env: &'e Env<'a>,
    order: &'e Order,
    next: &'e AtomicU64,
    /// No block from this place in the order on need start: one before it has failed.
    stop: &'e AtomicU64,
}

type Done = (Tally, Option<(u64, Fault)>);

impl WithSimd for Worker<'_, '_> {
    type Output = Done;

    fn with_simd<S: Simd>(self, simd: S) -> Done {
        let mut block = Block::new(self.env);
        let mut failed = None;
        loop {
            let k = self.next.fetch_add(1, Relaxed);
            if k >= self.order.blocks || k >= self.stop.load(Relaxed) {
                break;
            }
            block.begin(self.order.block(k));
            if let Err(fault) = block.run(simd, u64::MAX, LONG_TURN) {
                self.stop.fetch_min(k, Relaxed);
                failed = Some((k, fault));
                break;
            }
        }
        (block.machine.tally, failed)
    }
}

/// All blocks of a cooperative launch in turn.
struct Together<'e, 'a> {
    env: &'e Env<'a>,
    order: &'e Order,
}

impl WithSimd for Together<'_, '_> {
    type Output = Done;

    fn with_simd<S: Simd>(self, simd: S) -> Done {
        let mut tally = Tally::new(self.env.code.insts.len());
        let mut blocks: Vec<(u64, Block<'_>)> = (0..self.order.blocks)
            .map(|k| {
                let mut block = Block::new(self.env);
                block.begin(self.order.block(k));
                (k, block)
            })
            .collect();
        let mut failed = None;
        while !blocks.is_empty() && failed.is_none() {
            blocks.retain_mut(|(k, block)| {
                match block.run(simd, COOPERATIVE_TURNS, COOPERATIVE_STEPS) {
                    Ok(done) => {
                        if done {
                            tally.merge(&block.machine.tally);
                        }
                        !done
                    }
                    Err(fault) => {
                        failed.get_or_insert((*k, fault));
                        true
                    }
                }
            });
        }
        (tally, failed)
    }
}

/// Runs a launch to its end.
///
/// # Errors
/// The fault of the first block, in the order of the schedule, that has one.
pub fn run(
    program: &Program,
    memory: &Memory,
    launch: &Launch<'_>,
    options: &Options,
) -> Result<Counts, Fault> {
    let Some(kernel) = program.kernel(launch.entry) else {
        let text = "the module has no such kernel";
        return Err(Fault::new(FaultKind::NotFound, launch.entry, text));
    };
    check(kernel, launch)?;
    if launch.overlaps && options.sanitize && !kernel.code.insts.iter().any(|i| i.op == Op::Await) {
        let text = "may begin before the launch before it has ended, and never waits for that";
        return Err(Fault::new(FaultKind::Race, launch.entry, text));
    }
    if !options.sanitize {
        memory.stop_tracking();
    }
    let table = memory.snapshot();
    let tag = memory.next_launch();
    let footprint = Footprint::new(table.len());
    let code = &kernel.code;
    let env = Env { code, launch, options, memory, table, footprint, tag, grid_id: tag };
    let blocks = launch.grid.iter().map(|&n| u64::from(n)).product();
    let order = Order::new(blocks, options.schedule_seed);
    let (tally, failed) = if launch.cooperative {
        Arch::new().dispatch(Together { env: &env, order: &order })
    } else {
        spread(&env, &order)
    };
    if let Some((_, mut fault)) = failed {
        program.locate(&mut fault);
        return Err(fault);
    }
    let [unique_read_sectors, unique_write_sectors] = env.footprint.unique();
    Ok(Counts {
        kernel: launch.entry.to_owned(),
        grid: launch.grid,
        block: launch.block,
        unique_read_sectors,
        unique_write_sectors,
        ..tally.counts(&kernel.classes)
    })
}

/// Shares the blocks among workers.
fn spread(env: &Env<'_>, order: &Order) -> Done {
    let threads = match env.options.threads {
        0 => rayon::current_num_threads(),
        n => n,
    };
    let workers = (threads as u64).min(order.blocks);
    let (next, stop) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let work = || Arch::new().dispatch(Worker { env, order, next: &next, stop: &stop });
    if workers <= 1 {
        return work();
    }
    let total = Mutex::new((Tally::new(env.code.insts.len()), None::<(u64, Fault)>));
    rayon::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|_| {
                let (tally, failed) = work();
                let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                total.0.merge(&tally);
                let earlier = |f: &(u64, Fault)| total.1.as_ref().is_none_or(|t| f.0 < t.0);
                if let Some(failed) = failed.filter(earlier) {
                    total.1 = Some(failed);
                }
            });
        }
    });
    total.into_inner().unwrap_or_else(PoisonError::into_inner)
}
