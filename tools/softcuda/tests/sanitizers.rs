//! One planted bug for each sanitizer: the report names kernel, source line, block, thread,
//! address and buffer. Beside each stands the same kernel without the bug, which must run.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

use softcuda::exec::{Fault, FaultKind, Launch, Options, Program, run};
use softcuda::mem::Memory;
use softcuda::ptx::Module;

/// Runs a body with buffers `x` (64 words, written) and `y` (64 words, never written) as %x and %y.
fn launch(body: &str, options: &Options) -> Result<(), Fault> {
    launch_beside(body, options, false)
}

/// The same, begun before the launch before has ended where it `overlaps`.
fn launch_beside(body: &str, options: &Options, overlaps: bool) -> Result<(), Fault> {
    let text = format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n\
         .visible .entry planted(.param .u64 px, .param .u64 py, .param .u64 pz)\n{{\n\
         .reg .pred %p<5>; .reg .b32 %t, %r<9>; .reg .b64 %x, %y, %z, %a, %b;\n\
         .shared .align 16 .b8 box[256]; .local .align 8 .b8 own[16];\n\
         ld.param.u64 %x, [px]; ld.param.u64 %y, [py]; ld.param.u64 %z, [pz];\n\
         mov.u32 %t, %tid.x; mad.wide.u32 %a, %t, 4, %x; mad.wide.u32 %b, %t, 4, %y;\n\
         mov.u32 %r8, box; mad.lo.u32 %r7, %t, 4, %r8;\n\
         {body}\nret;\n}}\n.file 1 \"kernels/planted.cu\"\n"
    );
    let memory = Memory::new(1 << 20);
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let program = Program::load(&module, &memory).unwrap();
    let x = memory.alloc(256, Some("x")).unwrap();
    let y = memory.alloc(256, Some("y")).unwrap();
    let z = memory.alloc(256, Some("z")).unwrap();
    memory.free(z).unwrap();
    memory.fill(x, &[1], 256).unwrap();
    let params: Vec<u8> = [x, y, z].iter().flat_map(|a| a.to_le_bytes()).collect();
    let launch = Launch {
        entry: "planted",
        grid: [2, 1, 1],
        block: [32, 2, 1],
        dynamic_shared: 0,
        params: &params,
        cooperative: false,
        overlaps,
    };
    run(&program, &memory, &launch, options).map(|_| ())
}

fn options(seed: u64) -> Options {
    Options { sanitize: true, schedule_seed: seed, count: false, threads: 1 }
}

/// The bug is found at line 42 under every schedule, and the repaired body runs.
fn planted(kind: FaultKind, bug: &str, repaired: &str, words: &[&str]) {
    for seed in [0, 1, 7] {
        let fault = launch(&bug.replace("HERE", ".loc 1 42 5\n"), &options(seed)).unwrap_err();
        let report = fault.to_string();
        assert_eq!(fault.kind, kind, "{report}");
        assert_eq!(fault.source.as_deref(), Some("kernels/planted.cu:42"), "{report}");
        assert!(fault.block.is_some() && fault.thread.is_some(), "{report}");
        for word in ["planted", "kernels/planted.cu:42", "block (", "thread ("] {
            assert!(report.contains(word), "no {word} in {report}");
        }
        for word in words {
            assert!(report.contains(word), "no {word} in {report}");
        }
        launch(repaired, &options(seed)).unwrap_or_else(|e| panic!("without the bug: {e}"));
    }
}

#[test]
fn memory_touched_before_the_launch_before_is_waited_for() {
    let load = "prefetch.global.L2 [%a]; .loc 1 42 5\n ld.global.u32 %r1, [%a];";
    let wait = "griddepcontrol.wait; griddepcontrol.launch_dependents;";
    for seed in [0, 1, 7] {
        let run = |body: &str, overlaps| launch_beside(body, &options(seed), overlaps);
        for bug in
            [load.to_owned(), load.replace("ld.global.u32 %r1, [%a]", "st.global.u32 [%a], %t")]
        {
            let fault = run(&format!("{bug} {wait}"), true).unwrap_err();
            assert_eq!(fault.kind, FaultKind::Race);
            let report = fault.to_string();
            for word in ["kernels/planted.cu:42", "before griddepcontrol.wait", "`x`, 256 bytes"] {
                assert!(report.contains(word), "no {word} in {report}");
            }
            run(&format!("{bug} {wait}"), false).expect("it begins after the launch before");
            run(&format!("{wait} {bug}"), true).expect("it waits");
        }
        // Half of the threads wait, the others do not.
        let some = format!("setp.lt.u32 %p1, %t, 16; @%p1 griddepcontrol.wait; {load}");
        assert_eq!(run(&some, true).unwrap_err().thread, Some([16, 0, 0]));
        let fault = run(load, true).unwrap_err();
        assert!(fault.to_string().contains("never waits"), "{fault}");
    }
}

#[test]
fn out_of_bounds_of_global_memory() {
    planted(
        FaultKind::IllegalAddress,
        "HERE ld.global.u32 %r1, [%a+132];",
        "ld.global.u32 %r1, [%a+128];",
        &["address 0x", "`x`, 256 bytes", "past the end"],
    );
}

#[test]
fn out_of_bounds_of_shared_memory() {
    let body = "setp.eq.u32 %p1, %t, 31; mov.u32 %r1, %tid.y; setp.eq.and.u32 %p1, %r1, 0, %p1;";
    planted(
        FaultKind::IllegalAddress,
        &format!("{body} HERE @%p1 st.shared.u32 [%r7+132], %t;"),
        &format!("{body} @%p1 st.shared.u32 [%r7+128], %t;"),
        &["shared memory", "thread (31, 0, 0)"],
    );
}

#[test]
fn out_of_bounds_of_local_memory() {
    planted(
        FaultKind::IllegalAddress,
        "HERE st.local.u32 [own+16], %t;",
        "st.local.u32 [own+12], %t;",
        &["local memory", "thread (0, 0, 0)"],
    );
}

#[test]
fn use_after_free() {
    planted(
        FaultKind::UseAfterFree,
        "HERE ld.global.u32 %r1, [%z];",
        "ld.global.u32 %r1, [%x];",
        &["`z`, 256 bytes", "freed"],
    );
}

#[test]
fn misaligned_vectors() {
    planted(
        FaultKind::MisalignedAddress,
        "HERE ld.global.v2.u32 {%r1, %r2}, [%x+4];",
        "ld.global.v2.u32 {%r1, %r2}, [%x+8];",
        &["8 bytes"],
    );
}

#[test]
fn uninitialised_global_memory() {
    planted(
        FaultKind::Uninitialised,
        "HERE ld.global.u32 %r1, [%b];",
        "mov.u32 %r2, %ctaid.x; mov.u32 %r3, %tid.y; or.b32 %r2, %r2, %r3;
         setp.eq.u32 %p1, %r2, 0; @%p1 st.global.u32 [%b], %t; @%p1 ld.global.u32 %r1, [%b];",
        &["`y`, 256 bytes", "nothing has written"],
    );
}

#[test]
fn uninitialised_shared_memory_and_a_forgotten_wait() {
    planted(
        FaultKind::Uninitialised,
        "cp.async.ca.shared.global [%r7], [%x], 4; cp.async.commit_group;
         HERE ld.shared.u32 %r1, [%r7];",
        "mov.u32 %r2, %tid.y; setp.eq.u32 %p1, %r2, 0;
         @%p1 cp.async.ca.shared.global [%r7], [%x], 4; cp.async.commit_group;
         cp.async.wait_group 0; @%p1 ld.shared.u32 %r1, [%r7];",
        &["shared memory", "nothing has written"],
    );
}

#[test]
fn uninitialised_local_memory() {
    planted(
        FaultKind::Uninitialised,
        "HERE ld.local.u32 %r1, [own+8];",
        "st.local.u32 [own+8], %t; ld.local.u32 %r1, [own+8];",
        &["local memory"],
    );
}

#[test]
fn a_race_in_shared_memory_between_warps() {
    // Row y of threads writes its half; then each reads the other's.
    let write = "mov.u32 %r1, %tid.y; mad.lo.u32 %r2, %r1, 128, %r7; xor.b32 %r3, %r1, 1;
                 mad.lo.u32 %r4, %r3, 128, %r7; st.shared.u32 [%r2], %t; bar.sync 0;
                 ld.shared.u32 %r5, [%r4]; add.u32 %r6, %r5, 100;";
    planted(
        FaultKind::Race,
        &format!("{} st.shared.u32 [%r2], %r6;", write.replace("bar.sync 0;", "bar.sync 0; HERE")),
        &format!("{write} bar.sync 0; st.shared.u32 [%r2], %r6;"),
        &["shared memory", "no barrier between"],
    );
}

#[test]
fn a_race_in_shared_memory_within_a_warp() {
    let write = "mov.u32 %r1, %tid.y; setp.eq.u32 %p1, %r1, 0; @!%p1 bra END;
                 st.shared.u32 [%r7], %t; xor.b32 %r2, %r7, 4;";
    planted(
        FaultKind::Race,
        &format!("{write} HERE ld.shared.u32 %r3, [%r2]; END:"),
        &format!("{write} bar.warp.sync -1; ld.shared.u32 %r3, [%r2]; END:"),
        &["shared memory"],
    );
}

#[test]
fn a_race_in_global_memory_between_blocks() {
    let head = "mov.u32 %r1, %ctaid.x; mov.u32 %r2, %tid.y; mad.lo.u32 %r3, %r1, 2, %r2;
                mad.lo.u32 %r3, %r3, 32, %t;";
    planted(
        FaultKind::Race,
        &format!("{head} HERE st.global.u32 [%a], %r3;"),
        "red.global.add.u32 [%a], %t;",
        &["`x`, 256 bytes", "writes what thread"],
    );
}

#[test]
fn a_barrier_that_half_a_warp_reaches() {
    planted(
        FaultKind::BarrierDivergence,
        "setp.lt.u32 %p1, %t, 16; @%p1 bra IN; bra END; IN: HERE bar.sync 0; END:",
        "setp.lt.u32 %p1, %t, 16; @%p1 bra IN; bra END; IN: END: bar.sync 0;",
        &["0x0000ffff"],
    );
}

#[test]
fn shuffles_from_lanes_that_are_elsewhere() {
    planted(
        FaultKind::InvalidShuffle,
        "setp.lt.u32 %p1, %t, 16; @!%p1 bra END;
         HERE shfl.sync.bfly.b32 %r1, %t, 16, 31, 0xffffffff; END:",
        "setp.lt.u32 %p1, %t, 16; @!%p1 bra END;
         shfl.sync.bfly.b32 %r1, %t, 8, 31, 0xffff; END:",
        &["0xffff0000"],
    );
}

#[test]
fn warps_that_wait_for_ever() {
    planted(
        FaultKind::Deadlock,
        "mov.u32 %r1, %tid.y; setp.eq.u32 %p1, %r1, 0; @%p1 bra END; HERE bar.sync 1, 64; END:",
        "bar.sync 1, 64;",
        &["warp 1 at barrier 1"],
    );
}

#[test]
fn asserts_and_traps() {
    planted(FaultKind::LaunchFailure, "HERE trap;", "", &["trap"]);
}

#[test]
fn without_sanitizers_only_hard_faults_stop_a_launch() {
    let quiet = Options { sanitize: false, ..options(0) };
    assert!(launch("ld.global.u32 %r1, [%b];", &quiet).is_ok());
    assert!(launch("st.global.u32 [%x], %t;", &quiet).is_ok());
    let fault = launch("ld.global.u32 %r1, [%a+1024];", &quiet).unwrap_err();
    assert_eq!(fault.kind, FaultKind::IllegalAddress);
}

#[test]
fn a_module_with_an_unknown_instruction_is_refused_with_its_line() {
    let text = ".version 9.0\n.target sm_80\n.address_size 64\n.file 1 \"kernels/a.cu\"\n\
                .visible .entry k() {\n.reg .b32 %r<3>;\n.loc 1 9 1\n\
                frobnicate.u32 %r1, %r2;\nret;\n}";
    let error = Module::parse(text).unwrap_err();
    assert_eq!((error.line, error.source.as_deref()), (8, Some("kernels/a.cu:9")));
    assert!(error.to_string().contains("frobnicate.u32 %r1, %r2;"), "{error}");
    let modifier = text.replace("frobnicate.u32 %r1, %r2", "add.weird.u32 %r1, %r2, %r2");
    assert!(Module::parse(&modifier).unwrap_err().what.contains(".weird"));
}

/// One thread copies `x` to the first half of `box`; the barrier stands at its middle.
const COPIES: &str = "
    mov.u32 %r6, box; add.u32 %r6, %r6, 128; mov.u32 %r1, %tid.y; or.b32 %r1, %r1, %t;
    setp.ne.u32 %p1, %r1, 0; @%p1 bra READY;
    mbarrier.init.shared::cta.b64 [%r6], 1;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r6], 128;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r8], [%x], 128, [%r6];
    READY: bar.sync 0;";

const WAIT: &str = "
    WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r6], 0; @!%p2 bra WAIT;";

#[test]
fn a_bulk_copy_that_nobody_waits_for() {
    planted(
        FaultKind::Uninitialised,
        &format!("{COPIES} HERE ld.shared.u32 %r1, [%r7];"),
        &format!("{COPIES} {WAIT} ld.shared.u32 %r1, [%r7];"),
        &["shared memory", "nothing has written"],
    );
}

#[test]
fn a_bulk_copy_over_what_others_still_read() {
    let reads = "st.shared.u32 [%r7], %t; bar.sync 0; ld.shared.u32 %r1, [%r7];";
    planted(
        FaultKind::Race,
        &format!("{reads} {COPIES} HERE {WAIT}"),
        &format!("{reads} bar.sync 0; {COPIES} {WAIT}"),
        &["shared memory", "no barrier between"],
    );
}

#[test]
fn an_mbarrier_that_waits_for_more_threads_than_there_are() {
    let gate = |count: u32| {
        format!(
            "mov.u32 %r1, %tid.y; or.b32 %r1, %r1, %t; setp.eq.u32 %p1, %r1, 0;
             @%p1 mbarrier.init.shared::cta.b64 [box], {count}; bar.sync 0;
             mbarrier.arrive.shared::cta.b64 _, [box];"
        )
    };
    let wait = "WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p2, [box], 0; @!%p2 bra WAIT;";
    planted(
        FaultKind::Deadlock,
        &format!("{} HERE {wait}", gate(65)),
        &format!("{} {wait}", gate(64)),
        &["at an mbarrier"],
    );
}
