//! Control flow that splits warps: nested and irregular branches, loops with different trip
//! counts, early exits, partial masks, barriers in uniform branches, calls and jump tables.
//!
//! Each body computes %d from the thread's number %t; the same is computed here in Rust. Every
//! case runs under several schedules, which must agree.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

use softcuda::exec::{Launch, Options, Program, run};
use softcuda::mem::Memory;
use softcuda::ptx::Module;

const HEAD: &str = "
.version 9.0
.target sm_80
.address_size 64
";

const OPEN: &str = "
.visible .entry test(.param .u64 out)
{
    .reg .pred %p<9>;
    .reg .b32 %d, %t, %n, %r<20>;
    .reg .b64 %rd<9>;
    .shared .align 4 .b8 box[4096];
    mov.u32 %t, %tid.x;
    mov.u32 %d, 0;
";

const CLOSE: &str = "
STORE:
    ld.param.u64 %rd1, [out];
    mov.u32 %r19, %ctaid.x;
    mov.u32 %r18, %ntid.x;
    mad.lo.u32 %r19, %r19, %r18, %t;
    mad.wide.u32 %rd1, %r19, 4, %rd1;
    st.global.u32 [%rd1], %d;
    ret;
}
";

/// What each thread of a launch stores; threads that exit early leave their own bits.
fn launch(functions: &str, body: &str, [blocks, threads]: [u32; 2], seed: u64) -> Vec<u32> {
    let text = format!("{HEAD}{functions}{OPEN}{body}{CLOSE}");
    let memory = Memory::new(1 << 28);
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let program = Program::load(&module, &memory).unwrap();
    let count = u64::from(blocks * threads);
    let out = memory.alloc(count * 4, Some("out")).unwrap();
    memory.fill(out, &[0xee], count * 4).unwrap();
    let launch = Launch {
        entry: "test",
        grid: [blocks, 1, 1],
        block: [threads, 1, 1],
        dynamic_shared: 0,
        params: &out.to_le_bytes(),
        cooperative: seed == 99,
        overlaps: false,
    };
    let options = Options { sanitize: true, schedule_seed: seed % 99, count: true, threads: 2 };
    let counts = run(&program, &memory, &launch, &options).unwrap_or_else(|e| panic!("{e}"));
    assert!(counts.lane_instructions() > 0);
    let mut bytes = vec![0; count as usize * 4];
    memory.read(out, &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn check(functions: &str, body: &str, threads: u32, want: impl Fn(u32) -> u32) {
    let expected: Vec<u32> = (0..3 * threads).map(|i| want(i % threads)).collect();
    for seed in [0, 1, 2, 12345, 99] {
        assert_eq!(launch(functions, body, [3, threads], seed), expected, "seed {seed}");
    }
}

#[test]
fn nested_branches() {
    let body = "
    setp.lt.u32 %p1, %t, 20;
    @!%p1 bra ELSE;
    and.b32 %r1, %t, 1;
    setp.eq.u32 %p2, %r1, 0;
    @%p2 bra EVEN;
    add.u32 %d, %d, 1;
    bra INNER;
EVEN:
    add.u32 %d, %d, 10;
INNER:
    add.u32 %d, %d, 100;
    bra END;
ELSE:
    setp.gt.u32 %p3, %t, 25;
    @%p3 add.u32 %d, %d, 1000;
    add.u32 %d, %d, 10000;
END:
    activemask.b32 %r2;
    popc.b32 %r2, %r2;
    mad.lo.u32 %d, %r2, 1000000, %d;";
    check("", body, 32, |t| {
        let inner = if t < 20 {
            100 + if t % 2 == 0 { 10 } else { 1 }
        } else {
            10000 + if t > 25 { 1000 } else { 0 }
        };
        inner + 32_000_000
    });
}

#[test]
fn loops_with_different_trip_counts() {
    let body = "
    mov.u32 %n, 0;
OUTER:
    setp.gt.u32 %p1, %n, %t;
    @%p1 bra DONE;
    mov.u32 %r1, 0;
INNER:
    add.u32 %d, %d, %r1;
    add.u32 %r1, %r1, 1;
    setp.le.u32 %p2, %r1, %n;
    @%p2 bra INNER;
    add.u32 %n, %n, 1;
    bra OUTER;
DONE:
    activemask.b32 %r2;
    popc.b32 %r2, %r2;
    mad.lo.u32 %d, %r2, 65536, %d;";
    check("", body, 32, |t| (0..=t).map(|n| n * (n + 1) / 2).sum::<u32>() + 32 * 65536);
}

#[test]
fn breaks_and_continues_into_other_loops() {
    let body = "
    mov.u32 %n, 0;
TOP:
    add.u32 %n, %n, 1;
    setp.gt.u32 %p1, %n, 40;
    @%p1 bra OUT;
    rem.u32 %r1, %n, 3;
    setp.eq.u32 %p2, %r1, 0;
    @%p2 bra TOP;
    add.u32 %d, %d, %n;
    setp.gt.u32 %p3, %d, %t;
    @%p3 bra BREAK;
    bra TOP;
BREAK:
    add.u32 %d, %d, 5000;
    and.b32 %r1, %t, 3;
    setp.eq.u32 %p4, %r1, 2;
    @%p4 bra TOP;
OUT:
    add.u32 %d, %d, 7;";
    check("", body, 64, |t| {
        let (mut n, mut d) = (0u32, 0u32);
        loop {
            n += 1;
            if n > 40 {
                break;
            }
            if n % 3 == 0 {
                continue;
            }
            d += n;
            if d > t {
                d += 5000;
                if t & 3 != 2 {
                    break;
                }
            }
        }
        d + 7
    });
}

#[test]
fn early_exits_do_not_hold_up_the_rest() {
    let body = "
    rem.u32 %r1, %t, 5;
    setp.eq.u32 %p1, %r1, 3;
    @%p1 exit;
    setp.gt.u32 %p2, %t, 90;
    @%p2 bra GONE;
    bar.sync 0;
    add.u32 %d, %t, 1;
    bra STORE;
GONE:
    ret;";
    check("", body, 128, |t| if t % 5 == 3 || t > 90 { 0xeeee_eeee } else { t + 1 });
}

#[test]
fn lanes_at_a_barrier_wait_for_those_that_are_about_to_exit() {
    let body = "
    setp.lt.u32 %p1, %t, 20;
    @%p1 bra WORK;
    ret;
WORK:
    bar.sync 0;
    add.u32 %d, %t, 1;";
    check("", body, 64, |t| if t < 20 { t + 1 } else { 0xeeee_eeee });
}

#[test]
fn partial_masks_exchange_among_themselves() {
    let body = "
    setp.lt.u32 %p1, %t, 8;
    @!%p1 bra OTHERS;
    mov.u32 %d, %t;
    shfl.sync.bfly.b32 %r1, %d, 4, 31, 0xff;
    add.u32 %d, %d, %r1;
    shfl.sync.bfly.b32 %r1, %d, 2, 31, 0xff;
    add.u32 %d, %d, %r1;
    shfl.sync.bfly.b32 %r1, %d, 1, 31, 0xff;
    add.u32 %d, %d, %r1;
    bra MEET;
OTHERS:
    redux.sync.max.u32 %d, %t, 0xffffff00;
MEET:
    vote.sync.ballot.b32 %r2, %p1, -1;
    add.u32 %d, %d, %r2;";
    check("", body, 32, |t| 255 + if t < 8 { 28 } else { 31 });
}

#[test]
fn barriers_in_uniform_branches_and_of_parts_of_a_block() {
    let body = "
    mov.u32 %r1, box;
    mad.lo.u32 %r2, %t, 4, %r1;
    setp.lt.u32 %p1, %t, 64;
    @!%p1 bra UPPER;
    st.shared.u32 [%r2], %t;
    bar.sync 1, 64;
    xor.b32 %r3, %t, 63;
    mad.lo.u32 %r3, %r3, 4, %r1;
    ld.shared.u32 %d, [%r3];
    bra MEET;
UPPER:
    add.u32 %r4, %t, 1000;
    st.shared.u32 [%r2], %r4;
MEET:
    bar.sync 0;
    xor.b32 %r3, %t, 64;
    mad.lo.u32 %r3, %r3, 4, %r1;
    ld.shared.u32 %r5, [%r3];
    mad.lo.u32 %d, %d, 65536, %r5;";
    check("", body, 128, |t| {
        let first = if t < 64 { t ^ 63 } else { 0 };
        let other = t ^ 64;
        first * 65536 + other + if other >= 64 { 1000 } else { 0 }
    });
}

#[test]
fn reducing_barriers() {
    let body = "
    and.b32 %r1, %t, 3;
    setp.eq.u32 %p1, %r1, 0;
    bar.red.popc.u32 %r2, 0, %p1;
    bar.red.and.pred %p2, 0, %p1;
    bar.red.or.pred %p3, 0, !%p1;
    selp.u32 %r3, 100, 200, %p2;
    selp.u32 %r4, 1000, 2000, %p3;
    add.u32 %d, %r2, %r3;
    add.u32 %d, %d, %r4;";
    check("", body, 96, |_| 24 + 200 + 1000);
}

#[test]
fn diverged_calls_return_together() {
    let function = "
.func (.param .b32 result) sum(.param .b32 n)
{
    .reg .pred %p<3>;
    .reg .b32 %r<5>;
    ld.param.u32 %r1, [n];
    mov.u32 %r2, 0;
    setp.gt.u32 %p2, %r1, 28;
    @%p2 bra EARLY;
LOOP:
    setp.eq.u32 %p1, %r1, 0;
    @%p1 bra END;
    add.u32 %r2, %r2, %r1;
    sub.u32 %r1, %r1, 1;
    bra LOOP;
END:
    st.param.b32 [result], %r2;
    ret;
EARLY:
    st.param.b32 [result], 7;
    ret;
}
";
    let body = "
    setp.lt.u32 %p1, %t, 3;
    @%p1 bra SKIP;
    {
    .param .b32 arg;
    .param .b32 back;
    st.param.b32 [arg+0], %t;
    call.uni (back), sum, (arg);
    ld.param.b32 %d, [back+0];
    }
SKIP:
    activemask.b32 %r2;
    popc.b32 %r2, %r2;
    mad.lo.u32 %d, %r2, 65536, %d;";
    check(function, body, 32, |t| {
        32 * 65536
            + if t < 3 {
                0
            } else if t > 28 {
                7
            } else {
                t * (t + 1) / 2
            }
    });
}

#[test]
fn jump_tables() {
    let body = "
    and.b32 %r1, %t, 3;
TABLE: .branchtargets A, B, C, B;
    brx.idx %r1, TABLE;
A:
    add.u32 %d, %d, 1;
B:
    add.u32 %d, %d, 10;
    bra END;
C:
    add.u32 %d, %d, 100;
END:
    activemask.b32 %r2;
    popc.b32 %r2, %r2;
    mad.lo.u32 %d, %r2, 65536, %d;";
    check("", body, 32, |t| 32 * 65536 + [11, 10, 100, 10][t as usize % 4]);
}

#[test]
fn blocks_of_a_cooperative_launch_wait_for_each_other() {
    // Each block adds one and waits until all three have.
    let global = ".global .align 4 .u32 arrived;\n";
    let body = "
    setp.ne.u32 %p1, %t, 0;
    @%p1 bra WAITED;
    membar.gl;
    mov.u64 %rd2, arrived;
    atom.global.add.u32 %r1, [%rd2], 1;
SPIN:
    ld.volatile.global.u32 %r1, [%rd2];
    setp.lt.u32 %p2, %r1, 3;
    @%p2 bra SPIN;
    membar.gl;
WAITED:
    bar.sync 0;
    mov.u32 %d, 5;";
    assert_eq!(launch(global, body, [3, 64], 99), vec![5; 192]);
}
