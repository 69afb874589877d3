//! The generated code compiles without a warning against a mock runtime, and its launchers check
//! what they launch.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{Scratch, has_nvrtc};

/// The runtime model lies beside the other support; it is compiled into the program under test.
const RUNTIME: &str = include_str!("rt.rs");
/// What the program under test does.
const PROGRAM: &str = include_str!("program.rs");

const KERNELS: &str = r#"// norm_fwd: y = x / |x| [row by row].
//   for    T: f32, bf16
//   floor  bytes = 2*rows*cols*s + 4*rows;  flops = 3*rows*cols
//   plan   one warp a row
//   slack  1.02 for cols <= 4096; 1.5 beyond (second read)
//   bits   fixed tree
template <class T>
__global__ void __launch_bounds__(256) norm_fwd(
    T*       __restrict__ y,      // [rows, cols]
    float*   __restrict__ length, // [rows]
    const T* __restrict__ x,      // [rows, cols]
    int rows, int cols, float eps) {
    if (threadIdx.x < rows * cols) y[threadIdx.x] = x[threadIdx.x];
    length[0] = eps;
}

// tile_fwd: no class, only numbers; B picks a branch.
//   for    N: 4, 8; B: false, true
//   floor  bytes = 4*ceil(n, N);  flops = n - n
//   plan   none
//   bits   exact
template <int N, bool B>
__global__ void tile_fwd(
    float* __restrict__ y,   // [ceil(n, N), 2]
    long long n, bool flag) {
    y[0] = flag && B ? n : N;
}

// cast_fwd: two classes.
//   for    T: f32, bf16; U: u8
//   floor  bytes = n*s;  flops = 0
//   plan   none
//   bits   exact
template <class T, class U>
__global__ void cast_fwd(
    T* __restrict__ y,         // [n]
    const U* __restrict__ x,   // [n]
    unsigned n) {
    if (n > 5) y[0] = x[0];
}

// seed_fwd: no sizes at all.
//   floor  bytes = 8;  flops = 0
//   plan   none
//   bits   exact
__global__ void seed_fwd(
    int* __restrict__ y,   // [2]
    double value) {
    y[0] = value;
}
"#;

const BF16: &str = "struct bf16 { unsigned short bits; };\n";

/// Compiles and runs the program over the generated code of `scratch`.
fn run_program(scratch: &Scratch, compiled: bool) {
    let dir = scratch.path();
    let plain = |text: &str| -> String {
        let inner = |l: &&str| !l.starts_with("//!");
        text.lines().filter(inner).fold(String::new(), |all, l| all + l + "\n")
    };
    let generated = scratch.config.out.join("kernels.rs");
    let main = format!(
        "//! A program.\n#![deny(warnings, missing_docs)]\n\
         /// The runtime.\npub mod runtime {{\n{}}}\n\
         /// The launchers.\npub mod launch {{\n    include!({generated:?});\n}}\n\
         const COMPILED: bool = {compiled};\n{}",
        plain(RUNTIME),
        plain(PROGRAM)
    );
    fs::write(dir.join("main.rs"), main).unwrap();
    let rustc = option_env!("RUSTC").unwrap_or("rustc");
    let flags = ["--edition=2024", "--crate-name=program", "-Copt-level=0", "-Cdebuginfo=0"];
    let told = command(rustc, dir).args(flags).arg("main.rs").output().unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let told = command(dir.join("program").to_str().unwrap(), dir).output().unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    assert_eq!(String::from_utf8_lossy(&told.stdout), "all well\n");
}

fn command(program: &str, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(dir);
    command
}

#[test]
fn generated_code_compiles_and_checks() {
    let mut kernels = KERNELS.to_string();
    kernels.insert_str(0, "#include \"lib/bf16.cuh\"\n");
    let header = ("lib/bf16.cuh", BF16);
    let mut scratch = Scratch::new(&[("first.cu", &kernels), header]);
    // The code is the same with images and without; without, the test needs no NVRTC.
    scratch.config.fetched = scratch.path().join("nothing");
    let report = kernelc::run(&scratch.config).unwrap();
    run_program(&scratch, report.nvrtc.is_some());
}

#[test]
fn generated_code_holds_its_images() {
    if !has_nvrtc("generated_code_holds_its_images") {
        return;
    }
    let kernels =
        format!("#include \"lib/bf16.cuh\"\n{KERNELS}").replace("y[0] = x[0];", "y[0] = T{};");
    let scratch = Scratch::new(&[("first.cu", &kernels), ("lib/bf16.cuh", BF16)]);
    let report = kernelc::run(&scratch.config).unwrap();
    assert_eq!(report.warnings, Vec::<String>::new());
    run_program(&scratch, true);
}
