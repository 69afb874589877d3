//! What one launch did, counted exactly: the same on every run, machine and schedule.

use std::collections::BTreeMap;

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
