//! Kernels as NVRTC compiles them: parsed, run under two schedules with all sanitizers, and
//! compared with what `nvrtc/kernels.cu` computes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

use softcuda::count::Counts;
use softcuda::exec::{Launch, Options, Program, run};
use softcuda::mem::Memory;
use softcuda::ptx::Module;

const TEXT: &str = include_str!("nvrtc/kernels.ptx");

struct Card {
    memory: Memory,
    program: Program,
    seed: u64,
}

impl Card {
    fn new(seed: u64) -> Self {
        let memory = Memory::new(1 << 28);
        let module = Module::parse(TEXT).unwrap_or_else(|e| panic!("{e}"));
        let program = Program::load(&module, &memory).unwrap();
        Self { memory, program, seed }
    }

    fn put<T: Copy, const N: usize>(&self, data: &[T], bytes: impl Fn(T) -> [u8; N]) -> u64 {
        let bytes: Vec<u8> = data.iter().flat_map(|v| bytes(*v)).collect();
        let at = self.memory.alloc(bytes.len() as u64, None).unwrap();
        self.memory.write(at, &bytes).unwrap();
        at
    }

    fn floats(&self, data: &[f32]) -> u64 {
        self.put(data, f32::to_le_bytes)
    }

    fn room(&self, bytes: u64) -> u64 {
        self.memory.alloc(bytes, None).unwrap()
    }

    fn words(&self, at: u64, count: usize) -> Vec<u32> {
        let mut bytes = vec![0; count * 4];
        self.memory.read(at, &mut bytes).unwrap();
        bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn launch(&self, entry: &str, [grid, block, shared]: [u32; 3], params: &[u8]) -> Counts {
        let launch = Launch {
            entry,
            grid: [grid, 1, 1],
            block: [block, 1, 1],
            dynamic_shared: shared,
            params,
            cooperative: false,
            overlaps: false,
        };
        let options = Options { sanitize: true, schedule_seed: self.seed, count: true, threads: 1 };
        run(&self.program, &self.memory, &launch, &options).unwrap_or_else(|e| panic!("{e}"))
    }
}

fn params(pointers: &[u64], words: &[u32]) -> Vec<u8> {
    let mut out: Vec<u8> = pointers.iter().flat_map(|p| p.to_le_bytes()).collect();
    out.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    out
}

/// Runs a test under two schedules; both must give the same bits.
fn both(test: impl Fn(&Card) -> Vec<u32>) {
    assert_eq!(test(&Card::new(0)), test(&Card::new(3)), "the schedules disagree");
}

fn close(got: &[u32], want: &[f64], tolerance: f64) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let got = f64::from(f32::from_bits(*got));
        assert!((got - want).abs() <= tolerance * want.abs().max(1e-3), "[{i}] {got} {want}");
    }
}

#[test]
fn sum_with_shuffles() {
    both(|card| {
        let x: Vec<f32> = (0..1000).map(|i| (i % 17) as f32 - 3.0).collect();
        let (out, at) = (card.room(4), card.floats(&x));
        let counts = card.launch("sum", [1, 256, 0], &params(&[out, at], &[1000]));
        let got = card.words(out, 1);
        assert_eq!(f32::from_bits(got[0]), x.iter().sum::<f32>());
        assert_eq!((counts.global_read_bytes, counts.global_write_bytes), (4000, 4));
        assert_eq!((counts.global_read_sectors, counts.unique_read_sectors), (125, 125));
        assert_eq!(counts.shared_bank_conflicts, 0);
        got
    });
}

#[test]
fn softmax_by_rows() {
    both(|card| {
        let (rows, cols) = (3, 77);
        let x: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin() * 9.0).collect();
        let (out, at) = (card.room(4 * x.len() as u64), card.floats(&x));
        card.launch("softmax", [3, 32, 4 * 77], &params(&[out, at], &[77]));
        let got = card.words(out, x.len());
        for (row, got) in x.chunks(cols).zip(got.chunks(cols)) {
            let sum: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
            let want: Vec<f64> = row.iter().map(|v| f64::from(*v).exp() / sum).collect();
            close(got, &want, 2e-6);
        }
        got
    });
}

#[test]
fn philox_bits() {
    both(|card| {
        let out = card.room(64 * 16);
        card.launch("philox", [2, 32, 0], &params(&[out], &[0x1234_5678, 0x9abc_def0]));
        let got = card.words(out, 256);
        for (i, got) in got.chunks(4).enumerate() {
            let (mut c, mut k) = ([i as u32, 0, 7, 0], [0x1234_5678u32, 0x9abc_def0]);
            for _ in 0..10 {
                let p = u64::from(c[0]) * 0xD251_1F53;
                let q = u64::from(c[2]) * 0xCD9E_8D57;
                let high = |x: u64| (x >> 32) as u32;
                c = [high(q) ^ c[1] ^ k[0], q as u32, high(p) ^ c[3] ^ k[1], p as u32];
                k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
            }
            assert_eq!(got, c);
        }
        got
    });
}

#[test]
fn adamw_step() {
    both(|card| {
        let n = 70;
        let make = |f: fn(f32) -> f32| (0..n).map(|i| f(i as f32)).collect::<Vec<f32>>();
        let (w, g) = (make(|i| i * 0.1 - 2.0), make(|i| (i * 1.7).cos()));
        let (m, v) = (make(|i| i * 0.01), make(|i| i * 0.001));
        let at = [&w, &m, &v, &g].map(|x| card.floats(x));
        let tail = [n as u32, 0.01f32.to_bits(), 3f32.to_bits()];
        let counts = card.launch("adamw", [3, 32, 0], &params(&at, &tail));
        assert_eq!(counts.unique_write_sectors, 3 * 9);
        let got = card.words(at[0], n as usize);
        let want: Vec<f64> = (0..n as usize)
            .map(|i| {
                let [w, m, v, g] = [w[i], m[i], v[i], g[i]].map(f64::from);
                let (a, b) = (0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g);
                let (a, b) = (a / (1.0 - 0.9f64.powi(3)), b / (1.0 - 0.99f64.powi(3)));
                w - 0.01 * (a / (b.sqrt() + 1e-8) + 0.01 * w)
            })
            .collect();
        close(&got, &want, 1e-4);
        got
    });
}

#[test]
fn gemm_through_the_tensor_cores() {
    both(|card| {
        let k = 64;
        let bf16 = |v: i32| ((v as f32).to_bits() >> 16) as u16;
        let a: Vec<i32> = (0..16 * k).map(|i| i * 7 % 13 - 6).collect();
        let b: Vec<i32> = (0..8 * k).map(|i| i * 5 % 11 - 5).collect();
        let put = |x: &[i32]| card.put(x, |v| bf16(v).to_le_bytes());
        let (out, at, bt) = (card.room(16 * 8 * 4), put(&a), put(&b));
        let counts = card.launch("gemm", [1, 32, 0], &params(&[out, at, bt], &[k as u32]));
        assert_eq!(counts.tensor_flops, 2 * 16 * 8 * 64);
        assert_eq!(counts.global_read_bytes, (16 + 8) * 64 * 2);
        let got = card.words(out, 128);
        for (i, got) in got.iter().enumerate() {
            let (row, column) = (i as i32 / 8, i as i32 % 8);
            let want: i32 =
                (0..k).map(|q| a[(row * k + q) as usize] * b[(column * k + q) as usize]).sum();
            assert_eq!(f32::from_bits(*got), want as f32, "[{row}, {column}]");
        }
        got
    });
}

#[test]
fn calls_switches_and_local_arrays() {
    both(|card| {
        let n = 50u32;
        let input: Vec<u32> = (0..n).map(|i| i.wrapping_mul(2_654_435_761) >> 20).collect();
        let (out, at) = (card.room(64 * 4), card.put(&input, u32::to_le_bytes));
        card.launch("mixed", [1, 64, 0], &params(&[out, at], &[n]));
        let got = card.words(out, 64);
        for (i, got) in (0u32..).zip(&got) {
            let input = |j: u32| input[((i + j) % n) as usize];
            let mut a: Vec<u32> = (0..8).map(input).collect();
            let mut s = 0u32;
            for j in 0..12 {
                let k = (input(j) & 7) as usize;
                s = s.wrapping_add(a[k]);
                a[k] = s;
            }
            s = match i & 7 {
                0 => s.wrapping_add(1),
                1 => s.wrapping_mul(3),
                2 => s ^ 7,
                3 => s / 9,
                4 => s.wrapping_sub(2),
                5 => s | 77,
                6 => !s,
                _ => s.rotate_left(3),
            };
            let wide = (u64::from(s) << 20 | u64::from(i)) / u64::from(i + 3);
            let horner = (0..i & 3).fold(0f32, |h, j| h * 0.5 + j as f32);
            assert_eq!(*got, wide as u32 ^ (wide >> 32) as u32 ^ horner as u32, "thread {i}");
        }
        got
    });
}

#[test]
fn entries_say_what_a_driver_asks() {
    let module = Module::parse(TEXT).unwrap();
    let names: Vec<&str> = module.entries().map(|e| e.name.as_str()).collect();
    assert_eq!(names, ["sum", "softmax", "philox", "adamw", "gemm", "mixed"]);
    let sum = module.entry("sum").unwrap();
    assert_eq!((sum.max_threads, sum.static_shared_bytes, sum.param_bytes), (256, 32, 20));
    let offsets: Vec<u32> =
        module.entry("adamw").unwrap().params.iter().map(|p| p.offset).collect();
    assert_eq!(offsets, [0, 8, 16, 24, 32, 36, 40]);
    assert!(module.entry("mixed").unwrap().local_bytes >= 32);
}
