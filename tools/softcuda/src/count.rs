//! What one launch did, counted exactly: the same on every run, machine and schedule.

use crate::exec::Classified;
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Counts of one launch. Instructions are counted per active lane.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// The kernel.
    pub kernel: String,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Lane-instructions by class.
    pub instructions: BTreeMap<String, u64>,
    /// Instructions issued by warps.
    pub warp_instructions: u64,
    /// Bytes that lanes asked of global memory.
    pub global_read_bytes: u64,
    /// Bytes that lanes wrote to global memory.
    pub global_write_bytes: u64,
    /// Warp-wide accesses that read global memory.
    pub global_reads: u64,
    /// Warp-wide accesses that write global memory.
    pub global_writes: u64,
    /// 32-byte sectors of all warp-wide global reads.
    pub global_read_sectors: u64,
    /// 32-byte sectors of all warp-wide global writes.
    pub global_write_sectors: u64,
    /// Distinct 32-byte sectors read by the launch: what any cache must fetch at least once.
    pub unique_read_sectors: u64,
    /// Distinct 32-byte sectors written by the launch.
    pub unique_write_sectors: u64,
    /// Bytes that lanes read from shared memory.
    pub shared_read_bytes: u64,
    /// Bytes that lanes wrote to shared memory.
    pub shared_write_bytes: u64,
    /// Extra passes over the 32 banks beyond what the widths of the accesses need.
    pub shared_bank_conflicts: u64,
    /// Floating-point operations of scalar instructions; an fma is two.
    pub scalar_flops: u64,
    /// Floating-point operations of matrix instructions.
    pub tensor_flops: u64,
    /// Atomic operations, per lane.
    pub atomics: u64,
}

impl Counts {
    /// One line of JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// All lane-instructions.
    pub fn lane_instructions(&self) -> u64 {
        self.instructions.values().sum()
    }
}

/// What one worker has counted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// Lanes that ran each instruction.
    pub(crate) lanes: Vec<u64>,
    /// Warps that ran each instruction.
    pub(crate) warps: Vec<u64>,
    pub(crate) global_read_bytes: u64,
    pub(crate) global_write_bytes: u64,
    pub(crate) global_reads: u64,
    pub(crate) global_writes: u64,
    pub(crate) global_read_sectors: u64,
    pub(crate) global_write_sectors: u64,
    pub(crate) shared_read_bytes: u64,
    pub(crate) shared_write_bytes: u64,
    pub(crate) bank_conflicts: u64,
}

impl Tally {
    /// A tally of a kernel of that many instructions.
    pub(crate) fn new(instructions: usize) -> Self {
        Self { lanes: vec![0; instructions], warps: vec![0; instructions], ..Self::default() }
    }

    /// Adds another worker's counts.
    pub(crate) fn merge(&mut self, other: &Self) {
        let add = |to: &mut Vec<u64>, from: &Vec<u64>| {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        };
        add(&mut self.lanes, &other.lanes);
        add(&mut self.warps, &other.warps);
        self.global_read_bytes += other.global_read_bytes;
        self.global_write_bytes += other.global_write_bytes;
        self.global_reads += other.global_reads;
        self.global_writes += other.global_writes;
        self.global_read_sectors += other.global_read_sectors;
        self.global_write_sectors += other.global_write_sectors;
        self.shared_read_bytes += other.shared_read_bytes;
        self.shared_write_bytes += other.shared_write_bytes;
        self.bank_conflicts += other.bank_conflicts;
    }

    /// The counts of a launch whose instructions are of these classes.
    pub(crate) fn counts(&self, classes: &[Classified]) -> Counts {
        let mut out = Counts {
            global_read_bytes: self.global_read_bytes,
            global_write_bytes: self.global_write_bytes,
            global_reads: self.global_reads,
            global_writes: self.global_writes,
            global_read_sectors: self.global_read_sectors,
            global_write_sectors: self.global_write_sectors,
            shared_read_bytes: self.shared_read_bytes,
            shared_write_bytes: self.shared_write_bytes,
            shared_bank_conflicts: self.bank_conflicts,
            ..Counts::default()
        };
        for (class, (&lanes, &warps)) in classes.iter().zip(self.lanes.iter().zip(&self.warps)) {
            out.scalar_flops += lanes * class.lane_flops;
            out.tensor_flops += warps * class.warp_flops;
            if class.name == "atomic" {
                out.atomics += lanes;
            }
            if class.counts && lanes > 0 {
                *out.instructions.entry(class.name.to_owned()).or_default() += lanes;
                out.warp_instructions += warps;
            }
        }
        out
    }
}

/// Which sectors of each allocation a launch touched.
#[derive(Debug, Default)]
pub(crate) struct Footprint {
    maps: Vec<[OnceLock<Box<[AtomicU32]>>; 2]>,
}

impl Footprint {
    /// For a table of that many allocations.
    pub(crate) fn new(allocations: usize) -> Self {
        Self { maps: (0..allocations).map(|_| Default::default()).collect() }
    }

    /// Notes one sector of an allocation.
    pub(crate) fn touch(&self, allocation: usize, bytes: u64, sector: u64, write: bool) {
        let Some(maps) = self.maps.get(allocation) else { return };
        let words = bytes.div_ceil(32 * 32) as usize;
        let make = || bytemuck::allocation::zeroed_slice_box(words);
        let map = maps[usize::from(write)].get_or_init(make);
        if let Some(word) = map.get((sector / 32) as usize) {
            word.fetch_or(1 << (sector % 32), Relaxed);
        }
    }

    /// Distinct sectors read and written.
    pub(crate) fn unique(&self) -> [u64; 2] {
        [0, 1].map(|way: usize| {
            let maps = self.maps.iter().filter_map(|maps| maps[way].get());
            maps.flat_map(|map| map.iter()).map(|w| u64::from(w.load(Relaxed).count_ones())).sum()
        })
    }
}
