"""Files about memory, lanes and matrices; called by generate.py."""

import random
import struct

from exact import BF16, F16

LANES = 32


def memory(write, ints):
    a = ints("u32")
    for space, declare, base in (
            ("shared", ".shared .align 16 .b8 box[1024];", "box"),
            ("local", ".local .align 16 .b8 box[16];", "box")):
        step = "mad.lo.u32 %x, %t, 16, %x;" if space == "shared" else ""
        for n in (8, 16, 32, 64):
            ty = f"u{n}"
            v = ints(ty if n > 8 else "u16")
            kind = ty if n > 8 else "u16"
            out = [x & ((1 << n) - 1) for x in v]
            write(f"ld.{space}.{ty}", [("a", kind, v)], [("d", kind, out)],
                  f"mov.u32 %x, {base};\n{step}\nst.{space}.{ty} [%x], %a;\n"
                  f"ld.{space}.{ty} %d, [%x];", extra=f".reg .b32 %x;\n{declare}")
        write(f"ld.{space}.v4.u32", [("a", "u32", a)], [("d", "u32", [4 * x + 6 for x in a])],
              f"""mov.u32 %x, {base};
              {step}
              add.u32 %y1, %a, 1; add.u32 %y2, %a, 2; add.u32 %y3, %a, 3;
              st.{space}.v4.u32 [%x], {{%a, %y1, %y2, %y3}};
              ld.{space}.v4.u32 {{%y0, %y1, %y2, %y3}}, [%x];
              add.u32 %d, %y0, %y1; add.u32 %d, %d, %y2; add.u32 %d, %d, %y3;""",
              extra=f".reg .b32 %x, %y<4>;\n{declare}")
    v = ints("s16")
    sign = lambda x, n: (x & ((1 << n) - 1)) - ((x >> (n - 1) & 1) << n)
    for n in (8, 16):
        write(f"ld.shared.s{n}", [("a", "s16", v)], [("d", "s32", [sign(x, n) for x in v])],
              f"mov.u32 %x, box;\nmad.lo.u32 %x, %t, 16, %x;\nst.shared.u{n} [%x], %a;\n"
              f"ld.shared.s{n} %d, [%x];", extra=".reg .b32 %x;\n.shared .align 16 .b8 box[512];")
    write("ld.const.u32", [("a", "u32", a)], [("d", "u32", [x + 11 * (1 + i % 3)
                                                            for i, x in enumerate(a)])],
          """rem.u32 %x, %t, 3;
          mov.u64 %c, table;
          mad.wide.u32 %c, %x, 4, %c;
          ld.const.u32 %x, [%c];
          add.u32 %d, %a, %x;""", extra=".reg .b32 %x;\n.reg .b64 %c;",
          before=".const .align 4 .u32 table[3] = {11, 22, 33};")
    write("cvta.shared.u64", [("a", "u32", a)], [("d", "u32", a)],
          """mov.u64 %c, box;
          cvta.shared.u64 %c, %c;
          mad.wide.u32 %c, %t, 4, %c;
          st.u32 [%c], %a;
          ld.u32 %d, [%c];""", extra=".reg .b64 %c;\n.shared .align 4 .b8 box[128];")
    write("cvta.local.u64", [("a", "u32", a)], [("d", "u32", a)],
          """mov.u64 %c, box;
          cvta.local.u64 %c, %c;
          st.u32 [%c+4], %a;
          ld.u32 %d, [%c+4];""", extra=".reg .b64 %c;\n.local .align 4 .b8 box[8];")
    fours = [a[i // 4 * 4] for i in range(LANES)]
    write("cp.async.ca.16", [("a", "u32", a)], [("d", "u32", fours)],
          """ld.param.u64 %c, [p_a];
          and.b32 %x, %t, 0xfffffffc;
          mad.wide.u32 %c, %x, 4, %c;
          mov.u32 %y, box;
          mad.lo.u32 %y, %t, 16, %y;
          cp.async.ca.shared.global [%y], [%c], 16;
          cp.async.commit_group;
          cp.async.wait_group 0;
          ld.shared.u32 %d, [%y];""", extra=".reg .b32 %x, %y;\n.reg .b64 %c;\n"
          ".shared .align 16 .b8 box[512];")
    write("cp.async.zfill", [("a", "u32", a)], [("d", "u32", [0] * LANES)],
          """ld.param.u64 %c, [p_a];
          mad.wide.u32 %c, %t, 4, %c;
          mov.u32 %y, box;
          mad.lo.u32 %y, %t, 4, %y;
          cp.async.ca.shared.global [%y], [%c], 4, 0;
          cp.async.wait_all;
          ld.shared.u32 %d, [%y];""", extra=".reg .b32 %y;\n.reg .b64 %c;\n"
          ".shared .align 16 .b8 box[128];")


def atomics(write, ints):
    """Thirty-two lanes meet at one word of shared memory; the result has no order to depend on."""
    a = ints("u32")
    m = (1 << 32) - 1
    signed = lambda x: x - (1 << 32) if x >> 31 else x

    def fold(f, start):
        out = start
        for x in a:
            out = f(out, x)
        return out & m
    for op, ty, start, f in (
            ("add", "u32", 5, lambda x, y: x + y), ("and", "b32", m, lambda x, y: x & (y | 0xF0F)),
            ("or", "b32", 0, lambda x, y: x | y), ("xor", "b32", 9, lambda x, y: x ^ y),
            ("min", "u32", m, min), ("max", "u32", 0, max),
            ("min", "s32", 0x7FFFFFFF, lambda x, y: min(signed(x & m), signed(y))),
            ("max", "s32", 0x80000000, lambda x, y: max(signed(x & m), signed(y)))):
        before = "or.b32 %a, %a, 0xf0f;" if op == "and" else ""
        for form in ("atom", "red"):
            d = "%x, " if form == "atom" else ""
            write(f"{form}.shared.{op}.{ty}", [("a", "u32", a)],
                  [("d", "u32", [fold(f, start)] * LANES)],
                  f"""mov.u32 %x, {start};
                  setp.eq.u32 %p, %t, 0;
                  @%p st.shared.u32 [box], %x;
                  bar.sync 0;
                  {before}
                  {form}.shared.{op}.{ty} {d}[box], %a;
                  bar.sync 0;
                  ld.shared.u32 %d, [box];""",
                  extra=".reg .b32 %x;\n.reg .pred %p;\n.shared .align 4 .b8 box[4];")
    write("atom.shared.inc.u32", [("a", "u32", a)], [("d", "u32", [32 % 8] * LANES)],
          """setp.eq.u32 %p, %t, 0;
          @%p st.shared.u32 [box], 0;
          bar.sync 0;
          atom.shared.inc.u32 %x, [box], 7;
          bar.sync 0;
          ld.shared.u32 %d, [box];""",
          extra=".reg .b32 %x;\n.reg .pred %p;\n.shared .align 4 .b8 box[4];")
    write("atom.shared.cas.b32", [("a", "u32", a)], [("d", "u32", [x ^ 1 for x in a])],
          """mov.u32 %x, box;
          mad.lo.u32 %x, %t, 4, %x;
          st.shared.u32 [%x], %a;
          xor.b32 %y, %a, 1;
          atom.shared.cas.b32 %z, [%x], %a, %y;
          atom.shared.cas.b32 %z, [%x], %a, %a;
          ld.shared.u32 %d, [%x];""",
          extra=".reg .b32 %x, %y, %z;\n.shared .align 4 .b8 box[128];")
    for ty, kind in (("u32", "b32"), ("u64", "b64")):
        v = ints(ty)
        write(f"atom.global.exch.{kind}", [("a", ty, v), ("b", ty, list(reversed(v)))],
              [("d", ty, v)],
              f"""ld.param.u64 %c, [p_a];
              mad.wide.u32 %c, %t, {int(ty[1:]) // 8}, %c;
              atom.global.exch.{kind} %d, [%c], %b;""", extra=".reg .b64 %c;")
        write(f"atom.global.add.{ty}", [("a", ty, v), ("b", ty, list(reversed(v)))],
              [("d", ty, [x + y for x, y in zip(v, reversed(v))])],
              f"""ld.param.u64 %c, [p_a];
              mad.wide.u32 %c, %t, {int(ty[1:]) // 8}, %c;
              atom.global.add.{ty} %a, [%c], %b;
              ld.global.{ty} %d, [%c];""", extra=".reg .b64 %c;")
    small = [struct.unpack("<I", struct.pack("<f", i - 7.5))[0] for i in range(LANES)]
    total = struct.unpack("<I", struct.pack("<f", sum(i - 7.5 for i in range(LANES))))[0]
    write("atom.shared.add.f32", [("a", "b32", small)], [("d", "b32", [total] * LANES)],
          """setp.eq.u32 %p, %t, 0;
          @%p st.shared.u32 [box], 0;
          bar.sync 0;
          atom.shared.add.f32 %x, [box], %a;
          bar.sync 0;
          ld.shared.u32 %d, [box];""",
          extra=".reg .b32 %x;\n.reg .pred %p;\n.shared .align 4 .b8 box[4];")


def lanes(write, ints):
    a = ints("u32")
    for mode, f, clamp in (
            ("up", lambda i, b, s: i - b if i - b >= i // s * s else i, 0),
            ("down", lambda i, b, s: i + b if i + b < i // s * s + s else i, 31),
            ("bfly", lambda i, b, s: i ^ b if (i ^ b) <= i // s * s + s - 1 else i, 31),
            ("idx", lambda i, b, s: i // s * s + b % s, 31)):
        for size in (32, 8):
            c = (32 - size) << 8 | clamp
            for b in (1, 5):
                source = [f(i, b, size) for i in range(LANES)]
                moved = [a[s] for s in source]
                write(f"shfl.sync.{mode}.{size}.{b}", [("a", "u32", a)], [("d", "u32", moved)],
                      f"shfl.sync.{mode}.b32 %d|%p, %a, {b}, {c}, -1;", extra=".reg .pred %p;")
    odd = [x & 1 for x in a]
    ballot = sum(o << i for i, o in enumerate(odd))
    test = "and.b32 %x, %a, 1;\nsetp.eq.u32 %p, %x, 1;\n"
    extra = ".reg .b32 %x;\n.reg .pred %p, %q;"
    write("vote.sync.ballot.b32", [("a", "u32", a)], [("d", "u32", [ballot] * LANES)],
          test + "vote.sync.ballot.b32 %d, %p, -1;", extra=extra)
    for mode, holds in (("all", all(odd)), ("any", any(odd)), ("uni", len(set(odd)) == 1)):
        write(f"vote.sync.{mode}.pred", [("a", "u32", a)], [("d", "u32", [int(holds)] * LANES)],
              test + f"vote.sync.{mode}.pred %q, %p, -1;\nselp.u32 %d, 1, 0, %q;", extra=extra)
    few = [x % 5 for x in a]
    same = [sum(1 << j for j in range(LANES) if few[j] == x) for x in few]
    write("match.any.sync.b32", [("a", "u32", few)], [("d", "u32", same)],
          "match.any.sync.b32 %d, %a, -1;")
    write("match.all.sync.b32", [("a", "u32", [9])], [("d", "u32", [0xFFFFFFFF])],
          "match.all.sync.b32 %d|%p, %a, -1;", extra=".reg .pred %p;")
    signed = [x - (1 << 32) if x >> 31 else x for x in a]
    both = lambda f: __import__("functools").reduce(f, a)
    for op, ty, value in (("add", "u32", sum(a)), ("min", "u32", min(a)), ("max", "u32", max(a)),
                          ("min", "s32", min(signed)), ("max", "s32", max(signed)),
                          ("and", "b32", both(lambda x, y: x & y)),
                          ("or", "b32", both(lambda x, y: x | y)),
                          ("xor", "b32", both(lambda x, y: x ^ y))):
        write(f"redux.sync.{op}.{ty}", [("a", "u32", a)], [("d", "u32", [value] * LANES)],
              f"redux.sync.{op}.{ty} %d, %a, -1;")
    write("activemask.b32", [("a", "u32", a)],
          [("d", "u32", [0xFFFF if i < 16 else 0 for i in range(LANES)])],
          """mov.u32 %d, 0;
          setp.lt.u32 %p, %t, 16;
          @%p activemask.b32 %d;""", extra=".reg .pred %p;")
    for name, value in (("laneid", lambda i: i), ("lanemask_eq", lambda i: 1 << i),
                        ("lanemask_lt", lambda i: (1 << i) - 1),
                        ("lanemask_le", lambda i: (2 << i) - 1),
                        ("lanemask_gt", lambda i: 0xFFFFFFFF & ~((2 << i) - 1)),
                        ("lanemask_ge", lambda i: 0xFFFFFFFF & ~((1 << i) - 1)),
                        ("ntid.x", lambda i: 32), ("nctaid.y", lambda i: 1)):
        write(f"special.{name}", [("a", "u32", a)],
              [("d", "u32", [value(i) for i in range(LANES)])], f"mov.u32 %d, %{name};")


def matrices(write):
    rng = random.Random(5)
    for ty, fmt in (("f16", F16), ("bf16", BF16)):
        for k in (8, 16):
            A = [[rng.randrange(-8, 9) for _ in range(k)] for _ in range(16)]
            B = [[rng.randrange(-8, 9) for _ in range(8)] for _ in range(k)]
            C = [[rng.randrange(-99, 99) for _ in range(8)] for _ in range(16)]
            half = lambda x: fmt.round(x)
            pair = lambda x, y: half(x) | half(y) << 16
            a = [[pair(*[A[i // 4 + 8 * (r % 2)][i % 4 * 2 + e + 8 * (r // 2)] for e in (0, 1)])
                  for i in range(LANES)] for r in range(k // 4)]
            b = [[pair(*[B[i % 4 * 2 + e + 8 * r][i // 4] for e in (0, 1)]) for i in range(LANES)]
                 for r in range(k // 8)]
            single = lambda x: struct.unpack("<I", struct.pack("<f", x))[0]
            at = lambda M, i, r: M[i // 4 + r // 2 * 8][i % 4 * 2 + r % 2]
            D = [[C[i][j] + sum(A[i][q] * B[q][j] for q in range(k)) for j in range(8)]
                 for i in range(16)]
            ins = [(f"a{r}", "b32", v) for r, v in enumerate(a)]
            ins += [(f"b{r}", "b32", v) for r, v in enumerate(b)]
            ins += [(f"c{r}", "b32", [single(at(C, i, r)) for i in range(LANES)]) for r in range(4)]
            outs = [(f"d{r}", "b32", [single(at(D, i, r)) for i in range(LANES)]) for r in range(4)]
            group = lambda p, n: "{" + ", ".join(f"%{p}{r}" for r in range(n)) + "}"
            op = f"mma.sync.aligned.m16n8k{k}.row.col.f32.{ty}.{ty}.f32"
            write(f"mma.m16n8k{k}.{ty}", ins, outs,
                  f"{op} {group('d', 4)}, {group('a', k // 4)}, {group('b', k // 8)}, "
                  f"{group('c', 4)};")
    words = [rng.randrange(1 << 32) for _ in range(LANES)]
    cells = [h for w in words for h in (w & 0xFFFF, w >> 16)]
    for trans in (False, True):
        pick = lambda r, c: cells[c * 8 + r] if trans else cells[r * 8 + c]
        out = [pick(i // 4, i % 4 * 2) | pick(i // 4, i % 4 * 2 + 1) << 16 for i in range(LANES)]
        word = ".trans" if trans else ""
        write(f"ldmatrix.x1{word}", [("a", "b32", words)], [("d", "b32", out)],
              f"""mov.u32 %x, box;
              mad.lo.u32 %y, %t, 4, %x;
              st.shared.u32 [%y], %a;
              bar.sync 0;
              and.b32 %y, %t, 7;
              mad.lo.u32 %y, %y, 16, %x;
              ldmatrix.sync.aligned.m8n8.x1{word}.shared.b16 {{%d}}, [%y];""",
              extra=".reg .b32 %x, %y;\n.shared .align 16 .b8 box[128];")


def files(write, ints, floats):
    """Writes all files of this module."""
    memory(write, ints)
    atomics(write, ints)
    lanes(write, ints)
    matrices(write)
