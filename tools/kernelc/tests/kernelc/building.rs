//! Builds through NVRTC: caching, messages, the resource lock, and what happens without it.

use std::fs;

use crate::support::{Scratch, has_nvrtc};

const ADD: &str = r#"#include "lib/twice.cuh"

// add_fwd: y = x + 2 x.
//   for    T: f32, f64
//   floor  bytes = 2*n*s;  flops = 2*n
//   plan   one element a thread
//   bits   one rounding: repeatable
template <class T>
__global__ void __launch_bounds__(128) add_fwd(
    T*       __restrict__ y,   // [n]
    const T* __restrict__ x,   // [n]
    int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] + twice(x[i]);
}
"#;

const FILL: &str = r#"// fill_fwd: y = value.
//   floor  bytes = 4*n;  flops = 0*n
//   plan   one element a thread
//   bits   exact
__global__ void fill_fwd(
    float* __restrict__ y,   // [n]
    float value, int n) {
    if (threadIdx.x < n) y[threadIdx.x] = value;
}
"#;

/// Goes before `if` in FILL.
const SHARED: &str = "    __shared__ float hold[64];
    hold[threadIdx.x & 63] = value;
    __syncthreads();
    value = hold[(threadIdx.x + 1) & 63];
    if (t";

const TWICE: &str = "template <class T> __device__ T twice(T x) { return 2 * x; }\n";

fn scratch() -> Scratch {
    Scratch::new(&[("add.cu", ADD), ("fill.cu", FILL), ("lib/twice.cuh", TWICE)])
}

#[test]
fn only_what_changed_is_compiled_again() {
    if !has_nvrtc("only_what_changed_is_compiled_again") {
        return;
    }
    let s = scratch();
    let first = kernelc::run(&s.config).unwrap();
    assert_eq!(first.compiled.len(), 8, "{:?}", first.compiled);
    let written = fs::metadata(&first.written).unwrap().modified().unwrap();
    let second = kernelc::run(&s.config).unwrap();
    assert_eq!((second.compiled.len(), second.reused), (0, 8));
    assert_eq!(second.usage, first.usage);
    assert_eq!(fs::metadata(&second.written).unwrap().modified().unwrap(), written);

    s.write("lib/twice.cuh", &format!("// Changed.\n{TWICE}"));
    let third = kernelc::run(&s.config).unwrap();
    let users = kernelc::ARCHS.map(|a| format!("kernels/add.cu for {a}"));
    assert_eq!(third.compiled, users);
    s.write("lib/twice.cuh", TWICE);
    assert_eq!(kernelc::run(&s.config).unwrap().compiled.len(), 0, "old images are kept");
}

#[test]
fn images_name_no_folder_of_this_machine() {
    if !has_nvrtc("images_name_no_folder_of_this_machine") {
        return;
    }
    let s = scratch();
    kernelc::run(&s.config).unwrap();
    let ptx = fs::read_to_string(s.config.out.join("add.compute_80.ptx")).unwrap();
    let files: Vec<&str> = ptx.lines().filter(|l| l.trim_start().starts_with(".file")).collect();
    assert!(files.iter().any(|l| l.ends_with("\"kernels/add.cu\"")), "{files:?}");
    assert!(files.iter().all(|l| l.contains("\"kernels/")), "{files:?}");
    let here = std::env::current_dir().unwrap();
    let cubin = fs::read(s.config.out.join("add.sm_80.cubin")).unwrap();
    let needle = here.to_str().unwrap().as_bytes();
    assert!(!cubin.windows(needle.len()).any(|w| w == needle));
}

#[test]
fn messages_of_the_compiler_name_file_and_line() {
    if !has_nvrtc("messages_of_the_compiler_name_file_and_line") {
        return;
    }
    let s = scratch();
    s.write("fill.cu", &FILL.replace("    if (t", "    int idle = 4;\n    if (t"));
    let told = kernelc::run(&s.config).unwrap();
    assert!(told.warnings[0].starts_with("kernels/fill.cu:8: warning #177-D"), "{told:?}");
    let again = kernelc::run(&s.config).unwrap();
    assert_eq!((again.compiled.len(), again.warnings), (0, told.warnings), "warnings stay");

    s.write("lib/twice.cuh", "\ntemplate <class T> __device__ T twice(T x) { return 2 * z; }\n");
    let told = kernelc::run(&s.config).unwrap_err().to_string();
    assert!(told.starts_with("kernels/add.cu does not compile for sm_80:"), "{told}");
    assert!(told.contains("kernels/lib/twice.cuh:2: error: identifier \"z\""), "{told}");
}

#[test]
fn the_lock_is_written_on_request_and_compared() {
    if !has_nvrtc("the_lock_is_written_on_request_and_compared") {
        return;
    }
    let mut s = scratch();
    let told = kernelc::run(&s.config).unwrap().changes;
    assert!(told[0].starts_with("not compared: the lock is of NVRTC nothing"), "{told:?}");
    s.config.bless = true;
    kernelc::run(&s.config).unwrap();
    s.config.bless = false;
    let path = s.config.kernels.join("RESOURCES.lock");
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().filter(|l| l.contains(" registers=")).count(), 6, "{text}");
    let report = kernelc::run(&s.config).unwrap();
    assert_eq!(report.changes, Vec::<String>::new());
    assert!(report.usage.iter().all(|u| u.resources.registers > 0), "{:?}", report.usage);

    s.write("fill.cu", &FILL.replace("    if (t", SHARED));
    let told = kernelc::run(&s.config).unwrap().changes;
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("fill fill_fwd sm_80: "), "{told:?}");
    assert!(told[0].contains("shared 0 -> 256"), "{told:?}");
}

#[test]
fn what_a_card_claims_of_the_code_is_looked_for_there() {
    if !has_nvrtc("what_a_card_claims_of_the_code_is_looked_for_there") {
        return;
    }
    let narrow = "// copy_fwd: y = x.
//   floor  bytes = 32*n;  flops = 0*n
//   plan   four elements a thread
//   code   16-byte loads
//   bits   exact
__global__ void copy_fwd(
    float*       __restrict__ y,   // [4*n]
    const float* __restrict__ x,   // [4*n]
    int n) {
    if (threadIdx.x < n) y[threadIdx.x] = x[threadIdx.x];
}
";
    let cast = |p: &str| format!("reinterpret_cast<{p}float4*>");
    let body = format!("{}(y)[threadIdx.x] = {}(x)[threadIdx.x]", cast(""), cast("const "));
    let s = Scratch::new(&[("copy.cu", &narrow.replace("y[threadIdx.x] = x[threadIdx.x]", &body))]);
    let usage = kernelc::run(&s.config).unwrap().usage;
    assert!(usage.iter().all(|u| u.resources.code.wide == 1), "{usage:?}");

    s.write("copy.cu", narrow);
    let told = kernelc::run(&s.config).unwrap_err().to_string();
    let want = "kernels/copy.cu:6: its card claims 16-byte loads, but `copy_fwd` has none on sm_80";
    assert!(told.starts_with(want), "{told}");
}

#[test]
fn without_nvrtc_launchers_are_written_and_a_way_out_is_told() {
    // The variable would be an answer, a toolkit too; then there is nothing to show.
    let mut s = scratch();
    s.config.fetched = s.path().join("nothing");
    if kernelc::find(&s.config.fetched).unwrap().0.is_some() {
        eprintln!("without_nvrtc: left out, this machine has a toolkit");
        return;
    }
    let report = kernelc::run(&s.config).unwrap();
    assert_eq!(report.warnings.len(), 1);
    assert!(report.warnings[0].contains("run tools/setup"), "{}", report.warnings[0]);
    assert_eq!(report.compiled.len(), 0);
    let rust = fs::read_to_string(&report.written).unwrap();
    assert!(rust.contains("pub fn add_fwd<T: add_fwd::Instance>("), "{rust}");
    assert!(rust.contains("pub const NVRTC: Option<&str> = None;"));
    s.config.require = true;
    let told = kernelc::run(&s.config).unwrap_err().to_string();
    assert!(told.contains("NVRTC was not found") && told.contains("run tools/setup"), "{told}");
}

#[test]
fn faults_between_files_are_told_with_their_place() {
    let s = Scratch::new(&[("a.cu", FILL), ("b.cu", FILL)]);
    let told = || kernelc::run(&s.config).unwrap_err().to_string();
    assert!(told().starts_with("kernels/b.cu:5: `fill_fwd` stands in kernels/a.cu already"));
    s.write("b.cu", "// nothing\n");
    assert!(told().starts_with("kernels/b.cu:1: it has no kernel"));
    s.write("b.cu", "\n#include \"lib/no.cuh\"\n");
    assert!(told().starts_with("kernels/b.cu:2: there is no header kernels/lib/no.cuh"));
    s.write("b.cu", "\n#include \"../secret\"\n");
    assert!(told().starts_with("kernels/b.cu:2: there is no header kernels/../secret"));
}

#[test]
fn lists_of_architectures_are_checked() {
    assert_eq!(kernelc::archs(None).unwrap(), ["compute_80", "compute_90a", "sm_80", "sm_90a"]);
    assert_eq!(kernelc::archs(Some("sm_90a, compute_80")).unwrap(), ["sm_90a", "compute_80"]);
    let told = kernelc::archs(Some("sm_80,ampere")).unwrap_err().to_string();
    assert!(told.starts_with("GENEVAR_ARCHS: `ampere` is no architecture"), "{told}");
}

/// As kernels/lib/order.cuh has it.
const ORDER: &str = "__device__ __forceinline__ void await_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile(\"griddepcontrol.wait;\" ::: \"memory\");
#endif
}
";

#[test]
fn an_entry_that_touches_memory_before_it_waits_is_refused() {
    if !has_nvrtc("an_entry_that_touches_memory_before_it_waits_is_refused") {
        return;
    }
    let add = |body: &str| {
        let entry = ADD.replace("    int i = ", &format!("{body}    int i = "));
        format!("#include \"lib/order.cuh\"\n{entry}")
    };
    let (good, early) =
        (add("    await_previous();\n"), add("    y[0] = x[1];\n    await_previous();\n"));
    let s = Scratch::new(&[("add.cu", &good), ("lib/twice.cuh", TWICE), ("lib/order.cuh", ORDER)]);
    let report = kernelc::run(&s.config).unwrap();
    assert!(report.kernels[0].awaits);
    let rust = fs::read_to_string(&report.written).unwrap();
    assert!(rust.contains("awaits: true,") && !rust.contains("awaits: false,"));
    // Without __restrict__ where launches overlap, a load stays behind the wait and in the caches
    // that see writes.
    let ptx = |arch| fs::read_to_string(s.config.out.join(format!("add.{arch}.ptx"))).unwrap();
    assert!(ptx("compute_80").contains("ld.global.nc"));
    assert!(!ptx("compute_90a").contains("ld.global.nc"));
    s.write("add.cu", &early);
    let told = kernelc::run(&s.config).unwrap_err().to_string();
    let want =
        "kernels/add.cu:10: `add_fwd<float>` touches memory before await_previous() on sm_90a";
    assert!(told.starts_with(want), "{told}");
    s.write("add.cu", ADD);
    assert!(!kernelc::run(&s.config).unwrap().kernels[0].awaits);
}

/// What one architecture has is compiled for that alone, and as PTX for it.
#[test]
fn a_file_for_one_architecture_is_compiled_for_no_other() {
    if !has_nvrtc("a_file_for_one_architecture_is_compiled_for_no_other") {
        return;
    }
    let plan = "//   plan   one";
    let own = FILL.replace(plan, &format!("//   arch   sm_90a\n{plan}"));
    let mut s = Scratch::new(&[("fill.cu", &own)]);
    let compiled = kernelc::run(&s.config).unwrap().compiled;
    assert_eq!(compiled, ["kernels/fill.cu for compute_90a", "kernels/fill.cu for sm_90a"]);
    s.config.archs = kernelc::archs(Some("compute_80,sm_80")).unwrap();
    assert_eq!(kernelc::run(&s.config).unwrap().compiled, Vec::<String>::new());
    s.write("fill.cu", &format!("{own}\n{}", FILL.replace("fill_fwd", "plain_fwd")));
    let told = kernelc::run(&s.config).unwrap_err().to_string();
    assert!(told.contains("`fill_fwd` and `plain_fwd` are for other GPUs; a file is"), "{told}");
}
