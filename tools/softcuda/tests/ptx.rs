//! Runs every file of `ptx/`: one instruction each, with the bits it must give.
//!
//! The comments at the top of a file say what goes in and what comes out. `in NAME TYPE VALUES`
//! and `out NAME TYPE VALUES` are buffers in the order of the kernel's parameters, one element a
//! thread, the values repeated as often as needed; `scalar TYPE VALUE` is a parameter by value;
//! `block X Y Z`, `grid X Y Z` and `shared BYTES` set the launch; `fault WORD` says that the launch
//! must stop and how its report begins. The same files can run on a card.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

use libtest_mimic::{Arguments, Failed, Trial};
use softcuda::exec::{Launch, Options, Program, run};
use softcuda::mem::Memory;
use softcuda::ptx::Module;
use std::path::Path;

struct Buffer {
    name: String,
    ty: String,
    bytes: Vec<u8>,
    address: u64,
}

struct Case {
    /// Outputs have their expected bytes.
    inputs: Vec<Buffer>,
    outputs: Vec<Buffer>,
    params: Vec<u8>,
    block: [u32; 3],
    grid: [u32; 3],
    shared: u32,
    fault: Option<String>,
}

fn size(ty: &str) -> usize {
    ty[1..].trim_end_matches("x2").parse::<usize>().map_or(4, |bits| bits / 8)
}

/// One value as little-endian bytes: an integer, `0x` bits, or a decimal of a float type.
fn value(ty: &str, text: &str) -> Vec<u8> {
    let wide = if let Some(hex) = text.strip_prefix("0x") {
        u64::from_str_radix(hex, 16).unwrap_or_else(|_| panic!("bad value {text}"))
    } else {
        match ty {
            "f32" => u64::from(text.parse::<f32>().expect("an f32").to_bits()),
            "f64" => text.parse::<f64>().expect("an f64").to_bits(),
            _ => text.parse::<i128>().unwrap_or_else(|_| panic!("bad value {text}")) as u64,
        }
    };
    wide.to_le_bytes()[..size(ty)].to_vec()
}

fn read(text: &str, memory: &Memory) -> Case {
    let mut case = Case {
        inputs: Vec::new(),
        outputs: Vec::new(),
        params: Vec::new(),
        block: [32, 1, 1],
        grid: [1, 1, 1],
        shared: 0,
        fault: None,
    };
    let three = |w: &[&str]| {
        std::array::from_fn(|i| w.get(i).map_or(1, |n| n.parse::<u32>().expect("a size")))
    };
    for line in text.lines().filter_map(|l| l.strip_prefix("// ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["block", rest @ ..] => case.block = three(rest),
            ["grid", rest @ ..] => case.grid = three(rest),
            ["shared", bytes] => case.shared = bytes.parse().expect("bytes"),
            ["fault", rest @ ..] => case.fault = Some(rest.join(" ")),
            ["scalar", ty, v] => {
                let bytes = value(ty, v);
                case.params.resize(case.params.len().next_multiple_of(bytes.len()), 0);
                case.params.extend(bytes);
            }
            [way @ ("in" | "out"), name, ty, values @ ..] => {
                let threads: u32 = case.block.iter().chain(&case.grid).product();
                let values = values.iter().cycle().take(threads as usize);
                let bytes: Vec<u8> = values.flat_map(|v| value(ty, v)).collect();
                let address = memory.alloc(bytes.len() as u64, Some(name)).unwrap();
                case.params.resize(case.params.len().next_multiple_of(8), 0);
                case.params.extend(address.to_le_bytes());
                let (name, ty) = ((*name).to_owned(), (*ty).to_owned());
                let buffer = Buffer { name, ty, bytes, address };
                if *way == "in" {
                    memory.write(address, &buffer.bytes).unwrap();
                    case.inputs.push(buffer);
                } else {
                    case.outputs.push(buffer);
                }
            }
            _ => {}
        }
    }
    case
}

fn hex(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().rev().map(|b| format!("{b:02x}")).collect();
    format!("0x{digits}")
}

/// Runs a file under one schedule.
fn once(text: &str, seed: u64) -> Result<(), Failed> {
    let memory = Memory::new(1 << 30);
    let module = Module::parse(text).map_err(|e| e.to_string())?;
    let program = Program::load(&module, &memory).map_err(|e| e.to_string())?;
    let case = read(text, &memory);
    let entry = module.entries().next().ok_or("no kernel")?.name.clone();
    let launch = Launch {
        entry: &entry,
        grid: case.grid,
        block: case.block,
        dynamic_shared: case.shared,
        params: &case.params,
        cooperative: false,
    };
    let options = Options { sanitize: true, schedule_seed: seed, count: true, threads: 1 };
    match (run(&program, &memory, &launch, &options), &case.fault) {
        (Err(fault), Some(want)) if fault.to_string().starts_with(want) => return Ok(()),
        (Err(fault), _) => return Err(fault.to_string().into()),
        (Ok(_), Some(want)) => return Err(format!("nothing stopped it, not even {want}").into()),
        (Ok(_), None) => {}
    }
    for out in &case.outputs {
        let mut got = vec![0; out.bytes.len()];
        memory.read(out.address, &mut got).map_err(|e| e.to_string())?;
        let width = size(&out.ty);
        let pairs = got.chunks(width).zip(out.bytes.chunks(width)).enumerate();
        let wrong: Vec<String> = pairs
            .filter(|(_, (got, want))| got != want)
            .map(|(i, (got, want))| format!("{}[{i}] = {}, not {}", out.name, hex(got), hex(want)))
            .collect();
        if let Some(first) = wrong.first() {
            return Err(format!("{first} ({} of {} wrong)", wrong.len(), case.block[0]).into());
        }
    }
    Ok(())
}

fn main() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("ptx");
    let mut trials: Vec<Trial> = std::fs::read_dir(dir)
        .expect("ptx/ is there")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "ptx"))
        .map(|path| {
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            Trial::test(name, move || {
                let text = std::fs::read_to_string(&path)?;
                once(&text, 0).and_then(|()| once(&text, 7))
            })
        })
        .collect();
    trials.sort_by(|a, b| a.name().cmp(b.name()));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
