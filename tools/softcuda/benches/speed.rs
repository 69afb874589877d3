//! How fast the interpreter is: lane-instructions a second of plain arithmetic, of loads and
//! stores, and floating-point operations a second of `mma.sync`, with and without sanitizers.
//!
//! Under `cargo test` it runs one short round, so that it keeps building and running.
//! GENEVAR_LEDGER=1 adds the rows to benches/LEDGER.md. Each is the best of some rounds, since
//! other programs can only slow it down.

#[path = "../../../benches/support/ledger.rs"]
mod ledger;

use softcuda::exec::{Launch, Options, Program, run};
use softcuda::mem::Memory;
use softcuda::ptx::Module;
use std::error::Error;
use std::fmt::Write;
use std::time::Instant;

/// A kernel whose loop body is repeated `rounds` times.
fn kernel(body: &str) -> String {
    format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n\
         .visible .entry k(.param .u64 px, .param .u32 rounds) {{\n\
         .reg .pred %p; .reg .b32 %t, %n, %i, %r<32>; .reg .f32 %f<32>; .reg .b64 %x, %a;\n\
         .shared .align 16 .b8 box[8192];\n\
         ld.param.u64 %x, [px]; ld.param.u32 %n, [rounds]; mov.u32 %t, %tid.x;\n\
         mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mad.lo.u32 %r1, %r1, %r2, %t;\n\
         mad.wide.u32 %a, %r1, 4, %x;\n\
         mov.u32 %r1, 3; mov.u32 %r2, 5; mov.u32 %r3, 7; mov.u32 %r4, 9;\n\
         mov.u32 %r5, 0; mov.u32 %r6, 0; mov.u32 %r7, 0; mov.u32 %r8, 0;\n\
         mov.f32 %f1, 0f3F800000; mov.f32 %f2, 0f3F000000; mov.f32 %f3, 0f3E800000;\n\
         mov.f32 %f4, %f1; mov.f32 %f5, 0f00000000; mov.f32 %f6, %f5; mov.f32 %f7, %f5;\n\
         mov.f32 %f8, %f5; mov.u32 %r9, box; mad.lo.u32 %r9, %t, 4, %r9;\n\
         st.shared.u32 [%r9], %t; mov.u32 %i, 0;\n\
         LOOP:\n{body}\n\
         add.u32 %i, %i, 1; setp.lt.u32 %p, %i, %n; @%p bra LOOP;\n\
         st.global.u32 [%a], %r5;\nret;\n}}\n"
    )
}

const ALU: &str = "
add.u32 %r1, %r1, %r2; xor.b32 %r2, %r2, %r3; mad.lo.u32 %r3, %r3, %r4, %r1; shl.b32 %r4, %r2, 3;
fma.rn.f32 %f1, %f1, %f2, %f3; add.f32 %f2, %f2, %f3; mul.f32 %f4, %f1, %f2;
fma.rn.f32 %f3, %f3, %f2, %f3; lop3.b32 %r5, %r1, %r2, %r3, 0x96; sub.u32 %r6, %r5, %r1;
max.f32 %f5, %f1, %f4; min.s32 %r7, %r6, %r5; shr.u32 %r8, %r7, 5; and.b32 %r5, %r8, %r6;
add.f32 %f6, %f5, %f4; mul.f32 %f7, %f6, %f2; or.b32 %r6, %r5, 1; add.s32 %r5, %r5, %r6;";

const MEMORY: &str = "
ld.global.u32 %r1, [%a]; add.u32 %r1, %r1, 1; st.global.u32 [%a], %r1;
ld.shared.u32 %r2, [%r9]; add.u32 %r2, %r2, %r1; st.shared.u32 [%r9], %r2;";

const MMA: &str = "
mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f5,%f6,%f7,%f8}, {%r1,%r2,%r3,%r4},
{%r5,%r6}, {%f5,%f6,%f7,%f8};
mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2,%r3,%r4},
{%r7,%r8}, {%f1,%f2,%f3,%f4};";

/// Lane-instructions and floating-point operations of `mma.sync` a second, in one round.
fn measure(body: &str, rounds: u32, sanitize: bool) -> Result<[f64; 2], Box<dyn Error>> {
    let memory = Memory::new(1 << 30);
    let module = Module::parse(&kernel(body))?;
    let program = Program::load(&module, &memory)?;
    let (grid, block) = (16u32, 256u32);
    let x = memory.alloc(u64::from(grid * block) * 4, Some("x"))?;
    memory.fill(x, &[0], u64::from(grid * block) * 4)?;
    let mut params = x.to_le_bytes().to_vec();
    params.extend(rounds.to_le_bytes());
    let launch = Launch {
        entry: "k",
        grid: [grid, 1, 1],
        block: [block, 1, 1],
        dynamic_shared: 0,
        params: &params,
        cooperative: false,
        overlaps: false,
    };
    let options = Options { sanitize, ..Options::default() };
    let start = Instant::now();
    let counts = run(&program, &memory, &launch, &options)?;
    let seconds = start.elapsed().as_secs_f64();
    Ok([counts.lane_instructions(), counts.tensor_flops].map(|n| n as f64 / seconds))
}

fn main() -> Result<(), Box<dyn Error>> {
    let short = !std::env::args().any(|a| a == "--bench");
    let (scale, rounds) = if short { (1, 1) } else { (100, 5) };
    let mut table = String::from(
        "| kernel | sanitizers | lane-instructions/s | GFLOP/s of mma.sync |\n\
         | --- | --- | --- | --- |\n",
    );
    let kernels = [("arithmetic", ALU, 100), ("loads and stores", MEMORY, 30), ("mma", MMA, 10)];
    for (name, body, repeats) in kernels {
        for sanitize in [false, true] {
            let mut best = [0.0f64; 2];
            for _ in 0..rounds {
                let got = measure(body, repeats * scale, sanitize)?;
                best = [best[0].max(got[0]), best[1].max(got[1])];
            }
            let checks = if sanitize { "on" } else { "off" };
            let [lanes, flops] = [format!("{:.2e}", best[0]), format!("{:.1}", best[1] / 1e9)];
            writeln!(table, "| {name} | {checks} | {lanes} | {flops} |")?;
        }
    }
    println!("{} threads\n{table}", rayon::current_num_threads());
    if ledger::wanted() {
        let command = "GENEVAR_LEDGER=1 cargo bench -p softcuda --bench speed";
        ledger::append("softcuda", command, &table)?;
    }
    Ok(())
}
