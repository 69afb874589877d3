//! Launches: the checks a driver makes, the parameters a kernel gets, and what its faults become.

use super::attribute::{MAX_BLOCK, MAX_GRID, model};
use super::call::{abi, current};
use super::code::{Code, Result};
use super::driver::Driver;
use super::function::Function;
use super::occupancy::resident_blocks;
use super::op::{Failure, Op};
use super::order::Line;
use super::raw::{Host, In};
use super::report::say;
use super::watch::Watch;
use crate::count::Counts;
use crate::exec::{FaultKind, Launch, run};
use std::fs::OpenOptions;
use std::io::Write;
use std::sync::Arc;

/// A launch, with everything copied that the caller may change after the call.
pub(super) struct KernelCall {
    function: Arc<Function>,
    shape: Shape,
    params: Vec<u8>,
    watch: Watch,
}

/// Grid, block and what else a launch is made of.
#[derive(Clone, Copy)]
struct Shape {
    grid: [u32; 3],
    block: [u32; 3],
    dynamic: u32,
    cooperative: bool,
    /// Whether it may begin before the launch before has ended.
    overlaps: bool,
}

impl Shape {
    fn plain(grid: [u32; 3], block: [u32; 3], dynamic: u32) -> Self {
        Self { grid, block, dynamic, cooperative: false, overlaps: false }
    }
}

impl KernelCall {
    /// Runs the kernel; counts go where `SOFTCUDA_COUNTS` says and to the thread that wants them.
    pub(super) fn run(&self, driver: &Driver) -> std::result::Result<(), Failure> {
        let name = &self.function.entry.name;
        let Some(program) = self.function.module.program() else {
            return Err((Code::NOT_FOUND, format!("the module of {name} is unloaded")));
        };
        let launch = Launch {
            entry: name,
            grid: self.shape.grid,
            block: self.shape.block,
            dynamic_shared: self.shape.dynamic,
            params: &self.params,
            cooperative: self.shape.cooperative,
            overlaps: self.shape.overlaps,
        };
        match run(program, &driver.memory, &launch, &self.watch.options()) {
            Ok(counts) => {
                keep(&counts);
                self.watch.keep(&counts);
                Ok(())
            }
            Err(fault) => Err((code_of(fault.kind), fault.to_string())),
        }
    }
}

/// Appends a launch's counts to the file that `SOFTCUDA_COUNTS` names, one line of JSON each.
fn keep(counts: &Counts) {
    let path = std::env::var_os("SOFTCUDA_COUNTS").filter(|path| !path.is_empty());
    let Some(path) = path else { return };
    let line = format!("{}\n", counts.to_json());
    let file = OpenOptions::new().create(true).append(true).open(&path);
    if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
        say(&format!("cannot write counts to {}: {error}", path.display()));
    }
}

/// The driver's code for what stopped a kernel. What only a sanitizer finds is an unspecified
/// failure.
fn code_of(kind: FaultKind) -> Code {
    match kind {
        FaultKind::IllegalAddress | FaultKind::UseAfterFree => Code::ILLEGAL_ADDRESS,
        FaultKind::MisalignedAddress => Code::MISALIGNED_ADDRESS,
        FaultKind::IllegalInstruction => Code::ILLEGAL_INSTRUCTION,
        FaultKind::Assert => Code::ASSERT,
        FaultKind::Deadlock | FaultKind::Timeout => Code::LAUNCH_TIMEOUT,
        FaultKind::Uninitialised
        | FaultKind::Race
        | FaultKind::BarrierDivergence
        | FaultKind::InvalidShuffle
        | FaultKind::LaunchFailure
        | FaultKind::InvalidLaunch
        | FaultKind::NotFound => Code::LAUNCH_FAILED,
    }
}

/// What is wrong with the shape of a launch, with the driver's code for it.
fn refused(function: &Function, shape: &Shape) -> Option<(Code, String)> {
    let Shape { grid, block, dynamic, .. } = *shape;
    let outside = |size: [u32; 3], most: [u32; 3]| {
        size.iter().zip(most).any(|(size, most)| *size == 0 || *size > most)
    };
    let threads = block.iter().map(|size| u64::from(*size)).product::<u64>();
    if outside(grid, MAX_GRID) {
        return Some((Code::INVALID_VALUE, format!("grid {grid:?} is outside 1 to {MAX_GRID:?}")));
    }
    if outside(block, MAX_BLOCK) {
        return Some((
            Code::INVALID_VALUE,
            format!("block {block:?} is outside 1 to {MAX_BLOCK:?}"),
        ));
    }
    if threads > u64::from(function.max_threads()) {
        let most = function.max_threads();
        return Some((Code::INVALID_VALUE, format!("{threads} threads a block, at most {most}")));
    }
    if dynamic > function.max_dynamic() {
        let most = function.max_dynamic();
        let hint = "raise CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES for more";
        let text = format!("{dynamic} bytes of dynamic shared memory, at most {most}; {hint}");
        return Some((Code::INVALID_VALUE, text));
    }
    if shape.cooperative {
        let blocks = grid.iter().map(|size| u64::from(*size)).product::<u64>();
        let each = resident_blocks(function, threads as u32, dynamic);
        let most = u64::from(each) * u64::from(model().multiprocessors);
        if blocks > most {
            let text = format!("{blocks} blocks in a cooperative launch, at most {most}");
            return Some((Code::COOPERATIVE_LAUNCH_TOO_LARGE, text));
        }
    }
    None
}

/// The kernel's parameter buffer, from an array of pointers to values or from one buffer.
fn parameters(function: &Function, values: In<Host>, extra: In<Host>) -> Result<Vec<u8>> {
    let entry = &function.entry;
    let mut buffer = vec![0; entry.param_bytes as usize];
    if !extra.is_null() {
        if !values.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let (mut from, mut bytes) = (None, 0);
        for index in (0..).step_by(2) {
            match extra.at(index)?.address() {
                0 => break,
                1 => from = Some(extra.at(index + 1)?),
                2 => bytes = extra.at(index + 1)?.values::<usize>().get()?,
                _ => return Err(Code::INVALID_VALUE),
            }
        }
        let room = buffer.get_mut(..bytes).ok_or(Code::INVALID_VALUE)?;
        return match from {
            Some(from) => from.read_into(room).map(|()| buffer),
            None if buffer.is_empty() => Ok(buffer),
            None => Err(Code::INVALID_VALUE),
        };
    }
    for (index, parameter) in entry.params.iter().enumerate() {
        let start = parameter.offset as usize;
        let slot = buffer.get_mut(start..start + parameter.bytes as usize);
        values.at(index)?.read_into(slot.ok_or(Code::INVALID_VALUE)?)?;
    }
    Ok(buffer)
}

fn launch(
    function: usize,
    shape: Shape,
    stream: usize,
    values: In<Host>,
    extra: In<Host>,
) -> Result {
    let (driver, context) = current()?;
    let function = driver.functions.get(function)?;
    let line = Line::of(driver, &context, stream)?;
    if function.module.context != line.context.handle {
        return Err(Code::INVALID_HANDLE);
    }
    if let Some((code, text)) = refused(&function, &shape) {
        say(&format!("launch of {} refused: {text}", function.entry.name));
        return Err(code);
    }
    let params = parameters(&function, values, extra)?;
    super::ranges::note(&format!("launch {}", function.entry.name));
    line.submit(Op::Kernel(KernelCall { function, shape, params, watch: Watch::here() })).map(drop)
}

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Config {
    grid: [u32; 3],
    block: [u32; 3],
    dynamic: u32,
    stream: usize,
    attributes: In<[u32; 18]>,
    count: u32,
}

impl Config {
    /// The shape of the launch. Attributes that only steer speed are passed over.
    fn shape(&self) -> Result<Shape> {
        let (grid, block, dynamic) = (self.grid, self.block, self.dynamic);
        let mut shape = Shape::plain(grid, block, dynamic);
        for index in 0..self.count as usize {
            // An attribute is its id, four bytes of nothing and its value.
            let [id, _, value @ ..] = self.attributes.at(index)?;
            match id {
                2 => shape.cooperative = value[0] != 0,
                6 if model().capability[0] < 9 => return Err(Code::NOT_SUPPORTED),
                6 => shape.overlaps = value[0] != 0,
                4 if value[..3] != [1, 1, 1] => return Err(Code::INVALID_CLUSTER_SIZE),
                7 | 12 | 13 => return Err(Code::NOT_SUPPORTED),
                0..=16 => {}
                _ => return Err(Code::INVALID_VALUE),
            }
        }
        Ok(shape)
    }
}

abi! {
    /// Puts a launch into a stream.
    fn cuLaunchKernel(
        kernel: usize,
        gx: u32,
        gy: u32,
        gz: u32,
        bx: u32,
        by: u32,
        bz: u32,
        dynamic: u32,
        stream: usize,
        values: In<Host>,
        extra: In<Host>,
    ) also cuLaunchKernel_ptsz {
        let (grid, block) = ([gx, gy, gz], [bx, by, bz]);
        launch(kernel, Shape::plain(grid, block, dynamic), stream, values, extra)
    }

    /// Puts a launch with attributes into a stream.
    fn cuLaunchKernelEx(
        config: In<Config>,
        kernel: usize,
        values: In<Host>,
        extra: In<Host>,
    ) also cuLaunchKernelEx_ptsz {
        let config = config.get()?;
        launch(kernel, config.shape()?, config.stream, values, extra)
    }

    /// Puts a launch into a stream whose blocks may wait for each other.
    fn cuLaunchCooperativeKernel(
        kernel: usize,
        gx: u32,
        gy: u32,
        gz: u32,
        bx: u32,
        by: u32,
        bz: u32,
        dynamic: u32,
        stream: usize,
        values: In<Host>,
    ) also cuLaunchCooperativeKernel_ptsz {
        let (grid, block) = ([gx, gy, gz], [bx, by, bz]);
        let shape = Shape { cooperative: true, ..Shape::plain(grid, block, dynamic) };
        launch(kernel, shape, stream, values, In::none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_of_a_kernel_is_sticky() {
        for kind in [FaultKind::IllegalAddress, FaultKind::MisalignedAddress, FaultKind::Assert] {
            assert!(code_of(kind).is_sticky(), "{kind:?}");
        }
        for kind in [FaultKind::Race, FaultKind::Deadlock, FaultKind::IllegalInstruction] {
            assert!(code_of(kind).is_sticky(), "{kind:?}");
        }
    }

    #[test]
    fn the_config_is_laid_out_as_in_the_headers() {
        assert_eq!(std::mem::size_of::<Config>(), 56);
        assert_eq!(std::mem::offset_of!(Config, stream), 32);
    }
}
