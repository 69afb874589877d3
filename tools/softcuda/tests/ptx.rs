//! Runs every file of `ptx/` in the interpreter: one instruction each, with the bits it must give.
//! `tests/card.rs` runs the same files through the driver's interface.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

mod fixture;

use fixture::{Fixture, Param, files};
use libtest_mimic::{Arguments, Failed, Trial};
use softcuda::exec::{Launch, Options, Program, run};
use softcuda::mem::Memory;
use softcuda::ptx::Module;

/// The parameter buffer: every value at a multiple of its size.
fn pack(all: &Fixture, addresses: &[u64]) -> Vec<u8> {
    let mut packed: Vec<u8> = Vec::new();
    for param in &all.params {
        let bytes = match param {
            Param::Buffer(i) => addresses[*i].to_le_bytes().to_vec(),
            Param::Scalar(bytes) => bytes.clone(),
        };
        packed.resize(packed.len().next_multiple_of(bytes.len()), 0);
        packed.extend(bytes);
    }
    packed
}

/// Runs a file under one schedule.
fn once(text: &str, seed: u64) -> Result<(), Failed> {
    let memory = Memory::new(1 << 30);
    let module = Module::parse(text).map_err(|e| e.to_string())?;
    let program = Program::load(&module, &memory).map_err(|e| e.to_string())?;
    let all = Fixture::read(text);
    let mut addresses = Vec::new();
    for buffer in &all.buffers {
        let address = memory.alloc(buffer.bytes.len() as u64, Some(&buffer.name)).unwrap();
        if !buffer.is_out {
            memory.write(address, &buffer.bytes).unwrap();
        }
        addresses.push(address);
    }
    let entry = module.entries().next().ok_or("no kernel")?.name.clone();
    let launch = Launch {
        entry: &entry,
        grid: all.grid,
        block: all.block,
        dynamic_shared: all.shared,
        params: &pack(&all, &addresses),
        cooperative: false,
        overlaps: false,
    };
    let options = Options { sanitize: true, schedule_seed: seed, count: true, threads: 1 };
    match (run(&program, &memory, &launch, &options), &all.fault) {
        (Err(fault), Some(want)) if fault.to_string().starts_with(want) => return Ok(()),
        (Err(fault), _) => return Err(fault.to_string().into()),
        (Ok(_), Some(want)) => return Err(format!("nothing stopped it, not even {want}").into()),
        (Ok(_), None) => {}
    }
    for (out, address) in all.buffers.iter().zip(addresses).filter(|(b, _)| b.is_out) {
        let mut got = vec![0; out.bytes.len()];
        memory.read(address, &mut got).map_err(|e| e.to_string())?;
        out.judge(&got, true)?;
    }
    Ok(())
}

fn main() {
    let trial = |(name, path)| {
        Trial::test(name, move || {
            let text = std::fs::read_to_string(&path)?;
            once(&text, 0).and_then(|()| once(&text, 7))
        })
    };
    let trials = files().into_iter().map(trial).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
