"""Files about what compute capability 9.0 brought; called by generate.py."""

import random
import struct

from exact import BF16, F16

THREADS = 128
# Rows of permuted pieces, in bytes, and their number in a descriptor; 16 is no permutation.
MODES = {16: 0, 128: 1, 64: 2, 32: 3}


def barriers(write, ints):
    a = ints("u32") * 2
    note = ["block 64"]
    wait = """WAIT:
          mbarrier.try_wait.parity.shared::cta.b64 %p, [gate], 0;
          @!%p bra WAIT;"""
    write("mbarrier.arrive", [("a", "u32", a)], [("d", "u32", a[32:] * 2)],
          f"""mov.u32 %x, box;
          and.b32 %y, %t, 31;
          mad.lo.u32 %x, %y, 4, %x;
          setp.eq.u32 %p, %t, 0;
          @%p mbarrier.init.shared::cta.b64 [gate], 32;
          bar.sync 0;
          setp.lt.u32 %p, %t, 32;
          @%p bra WAIT;
          st.shared.u32 [%x], %a;
          mbarrier.arrive.shared::cta.b64 _, [gate];
          {wait}
          ld.shared.u32 %d, [%x];""", notes=note, target="sm_90",
          extra=".reg .b32 %x, %y;\n.reg .pred %p;\n.shared .align 8 .b8 gate[8];\n"
          ".shared .align 16 .b8 box[128];")
    write("mbarrier.test_wait", [("a", "u32", a)], [("d", "u32", [x ^ 1 for x in a])],
          """setp.eq.u32 %p, %t, 0;
          @%p mbarrier.init.shared::cta.b64 [gate], 64;
          bar.sync 0;
          mov.u32 %x, box;
          mad.lo.u32 %y, %t, 4, %x;
          st.shared.u32 [%y], %a;
          mbarrier.arrive.shared::cta.b64 %state, [gate];
          WAIT:
          mbarrier.test_wait.shared::cta.b64 %p, [gate], %state;
          @!%p bra WAIT;
          xor.b32 %y, %t, 63;
          mad.lo.u32 %y, %y, 4, %x;
          ld.shared.u32 %y, [%y];
          xor.b32 %d, %a, 1;
          setp.eq.u32 %p, %y, 0x12345678;
          @%p mov.u32 %d, %y;""", notes=note, target="sm_90",
          extra=".reg .b32 %x, %y;\n.reg .b64 %state;\n.reg .pred %p;\n"
          ".shared .align 8 .b8 gate[8];\n.shared .align 16 .b8 box[256];")
    write("cp.async.bulk.shared", [("a", "u32", a)], [("d", "u32", a[::-1])],
          f"""setp.ne.u32 %p, %t, 0;
          @%p bra READY;
          mbarrier.init.shared::cta.b64 [gate], 1;
          fence.mbarrier_init.release.cluster;
          mbarrier.arrive.expect_tx.shared::cta.b64 _, [gate], 256;
          ld.param.u64 %c, [p_a];
          mov.u32 %x, box;
          mov.u32 %y, gate;
          cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%x], [%c], 256, [%y];
          READY:
          bar.sync 0;
          {wait}
          sub.u32 %y, 63, %t;
          mov.u32 %x, box;
          mad.lo.u32 %x, %y, 4, %x;
          ld.shared.u32 %d, [%x];""", notes=note, target="sm_90",
          extra=".reg .b32 %x, %y;\n.reg .b64 %c;\n.reg .pred %p;\n"
          ".shared .align 8 .b8 gate[8];\n.shared .align 16 .b8 box[256];")
    more = [(x + 1) & 0xFFFFFFFF for x in a]
    write("cp.async.bulk.global", [("a", "u32", a)], [("d", "u32", more)],
          """mov.u32 %x, box;
          mad.lo.u32 %y, %t, 4, %x;
          add.u32 %a, %a, 1;
          st.shared.u32 [%y], %a;
          fence.proxy.async.shared::cta;
          bar.sync 0;
          ld.param.u64 %c, [p_d];
          setp.ne.u32 %p, %t, 0;
          @%p bra DONE;
          cp.async.bulk.global.shared::cta.bulk_group [%c], [%x], 256;
          cp.async.bulk.commit_group;
          cp.async.bulk.wait_group 0;
          DONE:
          bar.sync 0;
          mad.wide.u32 %c, %t, 4, %c;
          ld.global.u32 %d, [%c];""", notes=note, target="sm_90",
          extra=".reg .b32 %x, %y;\n.reg .b64 %c;\n.reg .pred %p;\n"
          ".shared .align 16 .b8 box[256];")


def place(extent, row, transposed):
    """PTX that turns the number %q of a pair of elements into its offset %o, with the strides.

    Pairs are numbered along what is contiguous: k for rows of k, else the other axis."""
    pairs = 8 if not transposed else extent // 2
    code = [f"rem.u32 %u, %q, {pairs};", f"div.u32 %v, %q, {pairs};"]

    def add(times, shift, mask, register):
        code.extend([f"shr.u32 %x, {register}, {shift};", f"and.b32 %x, %x, {mask};",
                     f"mad.lo.u32 %o, %x, {times}, %o;"])
    code.append("mov.u32 %o, 0;")
    if not transposed:
        stride, lead = 8 * row * (2 if row == 16 else 1), 128
        add(stride, 3, 0xFFFF, "%v")
        add(row, 0, 7, "%v")
        if row == 16:
            add(lead, 2, 0xFFFF, "%u")
            add(4, 0, 3, "%u")
        else:
            add(4, 0, 0xFFFF, "%u")
    else:
        # %v is k, %u a pair along the other axis.
        if row == 16:
            lead, stride = 128, 256
            add(stride, 2, 0xFFFF, "%u")
            add(4, 0, 3, "%u")
            add(lead, 3, 0xFFFF, "%v")
            add(16, 0, 7, "%v")
        else:
            shift = (row // 4).bit_length() - 1
            lead, stride = 16 * row, 8 * row
            add(lead, shift, 0xFFFF, "%u")
            add(4, 0, row // 4 - 1, "%u")
            add(stride, 3, 0xFFFF, "%v")
            add(row, 0, 7, "%v")
    if row > 16:
        code += ["shr.u32 %x, %o, 7;", f"and.b32 %x, %x, {row // 16 - 1};", "shl.b32 %x, %x, 4;",
                 "xor.b32 %o, %o, %x;"]
    return code, (lead, stride)


def product(write, name, fmt, n, sides, keeps=True, sign=1, registers=False):
    """One product; `sides` are row bytes and transposition of A and B."""
    rng = random.Random(name)
    A = [[rng.randrange(-8, 9) for _ in range(16)] for _ in range(64)]
    B = [[rng.randrange(-8, 9) for _ in range(n)] for _ in range(16)]
    C = [[rng.randrange(-99, 99) for _ in range(n)] for _ in range(64)]
    D = [[(C[i][j] if keeps else 0) + sign * sum(A[i][q] * B[q][j] for q in range(16))
          for j in range(n)] for i in range(64)]
    pair = lambda x, y: fmt.round(x) | fmt.round(y) << 16
    single = lambda x: struct.unpack("<I", struct.pack("<f", x))[0]
    flat = lambda rows: [pair(*two) for row in rows for two in zip(row[::2], row[1::2])]
    columns = [list(c) for c in zip(*B)]
    words = [flat(list(zip(*A)) if sides[0][1] else A), flat(B if sides[1][1] else columns)]
    row = lambda t, r: t // 32 * 16 + t % 32 // 4 + r // 2 % 2 * 8
    at = lambda M, t, r: M[row(t, r)][r // 4 * 8 + t % 4 * 2 + r % 2]
    ins, body = [], []
    if registers:
        cell = lambda t, r, e: A[t // 32 * 16 + t % 32 // 4 + 8 * (r % 2)][
            t % 4 * 2 + e + 8 * (r // 2)]
        ins += [(f"a{r}", "b32", [pair(cell(t, r, 0), cell(t, r, 1)) for t in range(THREADS)])
                for r in range(4)]
    descriptors = []
    for side, (letter, extent) in enumerate((("a", 64), ("b", n))):
        if registers and letter == "a":
            continue
        code, (lead, stride) = place(extent, *sides[side])
        image = words[side]
        for r in range(-(-len(image) // THREADS)):
            part = image[r * THREADS:(r + 1) * THREADS]
            ins.append((f"{letter}{r}", "b32", part + [0] * (THREADS - len(part))))
            body += [f"add.u32 %q, %t, {r * THREADS};", *code, f"mov.u32 %x, box{letter};",
                     "add.u32 %o, %o, %x;", f"setp.lt.u32 %p, %q, {len(image)};",
                     f"@%p st.shared.u32 [%o], %{letter}{r};"]
        bits = MODES[sides[side][0]] << 62 | stride >> 4 << 32 | lead >> 4 << 16
        descriptors += [f"mov.u32 %x, box{letter};", "shr.u32 %x, %x, 4;",
                        f"cvt.u64.u32 %desc{letter}, %x;",
                        f"or.b64 %desc{letter}, %desc{letter}, {bits:#x};"]
    outs = [(f"d{r}", "b32", [single(at(D, t, r)) for t in range(THREADS)]) for r in range(n // 2)]
    ins += [(f"c{r}", "b32", [single(at(C, t, r)) for t in range(THREADS)]) for r in range(n // 2)]
    group = lambda p, m: "{" + ", ".join(f"%{p}{r}" for r in range(m)) + "}"
    body += ["fence.proxy.async.shared::cta;", "bar.sync 0;", *descriptors,
             f"setp.{'eq' if keeps else 'ne'}.u32 %p, %t, %t;"]
    body += [f"mov.b32 %d{r}, %c{r};" for r in range(n // 2)]
    ty = "bf16" if fmt is BF16 else "f16"
    flip = [str(int(t)) for _, t in (sides[1:] if registers else sides)]
    body += ["wgmma.fence.sync.aligned;",
             f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{ty}.{ty} {group('d', n // 2)}, "
             f"{group('a', 4) if registers else '%desca'}, %descb, %p, {sign}, 1, "
             f"{', '.join(flip)};",
             "wgmma.commit_group.sync.aligned;", "wgmma.wait_group.sync.aligned 0;"]
    write(f"wgmma.{name}", ins, outs, "\n".join(body), notes=["block 128"], target="sm_90a",
          extra=".reg .b32 %q, %u, %v, %o, %x;\n.reg .b64 %desca, %descb;\n.reg .pred %p;\n"
          ".shared .align 1024 .b8 boxa[8192];\n.shared .align 1024 .b8 boxb[8192];")


def files(write, ints):
    """Writes all files of this module."""
    barriers(write, ints)
    rows = lambda row: (row, False)
    columns = lambda row: (row, True)
    product(write, "m64n8k16.bf16", BF16, 8, (rows(16), rows(16)))
    product(write, "m64n8k16.f16", F16, 8, (rows(16), rows(16)), keeps=False, sign=-1)
    product(write, "m64n16k16.registers", BF16, 16, (rows(16), rows(32)), registers=True)
    product(write, "m64n16k16.rows128", BF16, 16, (rows(128), rows(128)))
    product(write, "m64n16k16.rows64", BF16, 16, (rows(64), rows(32)))
    product(write, "m64n16k16.columns", BF16, 16, (columns(16), columns(16)))
    product(write, "m64n16k16.columns128", BF16, 16, (columns(128), columns(32)))
