#!/usr/bin/env python3
"""Writes the .ptx files of this folder: one instruction and type each, with the bits it must give.

Expected values come from integers and exact rationals (exact.py), not from an interpreter. Run it
in this folder; files that it does not write are written by hand and stay.
"""

import random
from pathlib import Path

import exact
from exact import BF16, F16, F32, F64, TF32

HERE = Path(__file__).resolve().parent
FORMATS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}
LANES = 32
WRITTEN = []


def bits_of(ty):
    return int(ty.lstrip("usbf").replace("x2", "")) * (2 if ty.endswith("x2") else 1)


def register(ty):
    """Class and load type of a register that holds a type."""
    n = bits_of(ty)
    return ("b16", "b16" if n == 16 else "u8") if n <= 16 else (f"b{n}", f"b{n}")


def hexes(values, ty):
    n = bits_of(ty)
    return " ".join(f"0x{v & ((1 << n) - 1):0{n // 4}x}" for v in values)


def write(name, ins, outs, body, extra="", notes=(), before="", target="sm_80"):
    """A kernel that loads the inputs of its thread, runs `body` and stores the outputs.

    `ins` and `outs` are (register, type, values); values repeat over the lanes.
    """
    lines = [f"// {note}" for note in notes]
    lines += [f"// in {r} {t} {hexes(v, t)}" for r, t, v in ins]
    lines += [f"// out {r} {t} {hexes(v, t)}" for r, t, v in outs]
    params = ", ".join(f".param .u64 p_{r}" for r, _, _ in ins + outs)
    lines += [".version 9.0", f".target {target}", ".address_size 64"]
    lines += [before] if before else []
    lines += [f".visible .entry test({params})", "{", "    .reg .b32 %t;",
              "    .reg .b64 %at, %to;"]
    lines += [f"    .reg .{register(t)[0]} %{r};" for r, t, _ in ins + outs]
    lines += [f"    {line}" for line in extra.strip().splitlines()] if extra else []
    lines.append("    mov.u32 %t, %tid.x;")
    for r, t, _ in ins:
        lines += [f"    ld.param.u64 %at, [p_{r}];",
                  f"    mad.wide.u32 %at, %t, {bits_of(t) // 8}, %at;",
                  f"    ld.global.{register(t)[1]} %{r}, [%at];"]
    lines += [f"    {line.strip()}" for line in body.strip().splitlines()]
    for r, t, _ in outs:
        lines += [f"    ld.param.u64 %to, [p_{r}];",
                  f"    mad.wide.u32 %to, %t, {bits_of(t) // 8}, %to;",
                  f"    st.global.{register(t)[1]} [%to], %{r};"]
    lines += ["    ret;", "}", ""]
    path = HERE / f"{name.replace('.', '_').replace('::', '_')}.ptx"
    path.write_text("\n".join(lines))
    WRITTEN.append(path.name)


def signed(v, n):
    v &= (1 << n) - 1
    return v - (1 << n) if v >> (n - 1) else v


def ints(ty, seed=1):
    """Edge cases and random values of an integer type."""
    n, rng = bits_of(ty), random.Random(seed * 1000 + bits_of(ty))
    top = 1 << (n - 1)
    edge = [0, 1, (1 << n) - 1, top, top - 1, 2, 3, 0x55 * (((1 << n) - 1) // 255)]
    rng.shuffle(edge)
    small = [rng.randrange(100) for _ in range(6)]
    return (edge + small + [rng.randrange(1 << n) for _ in range(LANES)])[:LANES]


def unary(op, ty, f, to=None):
    a = ints(ty)
    write(op, [("a", ty, a)], [("d", to or ty, [f(x) for x in a])], f"{op} %d, %a;")


def binary(op, ty, f, to=None, b_type=None, b=None):
    a, b = ints(ty), b or ints(b_type or ty, 2)
    write(op, [("a", ty, a), ("b", b_type or ty, b)],
          [("d", to or ty, [f(x, y) for x, y in zip(a, b)])], f"{op} %d, %a, %b;")


def ternary(op, ty, f, to=None, types=None, b=None, c=None, name=None, body=None):
    types = types or (ty, ty, ty)
    a, b, c = ints(types[0]), b or ints(types[1], 2), c or ints(types[2], 3)
    write(name or op, list(zip("abc", types, (a, b, c))),
          [("d", to or ty, [f(*v) for v in zip(a, b, c)])], body or f"{op} %d, %a, %b, %c;")


def truncated(a, b):
    q = abs(a) // abs(b)
    return q if (a < 0) == (b < 0) else -q


def integer_arithmetic():
    for ty in ["u16", "s16", "u32", "s32", "u64", "s64"]:
        n = bits_of(ty)
        v = (lambda x: signed(x, n)) if ty[0] == "s" else (lambda x: x)
        nonzero = [x or 7 for x in ints(ty, 2)]
        binary(f"add.{ty}", ty, lambda x, y: x + y)
        binary(f"sub.{ty}", ty, lambda x, y: x - y)
        binary(f"mul.lo.{ty}", ty, lambda x, y: x * y)
        binary(f"mul.hi.{ty}", ty, lambda x, y: v(x) * v(y) >> n)
        binary(f"min.{ty}", ty, lambda x, y: min(v(x), v(y)))
        binary(f"max.{ty}", ty, lambda x, y: max(v(x), v(y)))
        binary(f"div.{ty}", ty, lambda x, y: truncated(v(x), v(y)), b=nonzero)
        binary(f"rem.{ty}", ty, lambda x, y: v(x) - v(y) * truncated(v(x), v(y)), b=nonzero)
        ternary(f"mad.lo.{ty}", ty, lambda x, y, z: x * y + z)
        ternary(f"mad.hi.{ty}", ty, lambda x, y, z: (v(x) * v(y) >> n) + z)
        counts = [0, 1, n - 1, n, n + 1, 100, 0xFFFFFFFF] + list(range(1, 26))
        binary(f"shr.{ty}", ty, lambda x, y: v(x) >> min(y, 64), b_type="u32", b=counts)
        if n < 64:
            wide = f"{ty[0]}{2 * n}"
            binary(f"mul.wide.{ty}", ty, lambda x, y: v(x) * v(y), to=wide)
            ternary(f"mad.wide.{ty}", ty, lambda x, y, z: v(x) * v(y) + z, to=wide,
                    types=(ty, ty, wide))
        if ty[0] == "s":
            unary(f"abs.{ty}", ty, lambda x: abs(v(x)))
            unary(f"neg.{ty}", ty, lambda x: -x)
        if n == 32:
            ternary(f"sad.{ty}", ty, lambda x, y, z: abs(v(x) - v(y)) + z)
    low, high = -(1 << 31), (1 << 31) - 1
    binary("add.sat.s32", "s32", lambda x, y: max(low, min(high, signed(x, 32) + signed(y, 32))))
    binary("sub.sat.s32", "s32", lambda x, y: max(low, min(high, signed(x, 32) - signed(y, 32))))
    cut = lambda x: signed(x & 0xFFFFFF, 24)
    binary("mul24.lo.s32", "s32", lambda x, y: cut(x) * cut(y))
    binary("mul24.hi.u32", "u32", lambda x, y: (x & 0xFFFFFF) * (y & 0xFFFFFF) >> 16)


def bits():
    for n in (16, 32, 64):
        ty = f"b{n}"
        binary(f"and.{ty}", ty, lambda x, y: x & y)
        binary(f"or.{ty}", ty, lambda x, y: x | y)
        binary(f"xor.{ty}", ty, lambda x, y: x ^ y)
        unary(f"not.{ty}", ty, lambda x: ~x)
        unary(f"cnot.{ty}", ty, lambda x: int(x == 0))
        counts = [0, 1, n - 1, n, n + 1, 100, 0xFFFFFFFF] + list(range(1, 26))
        binary(f"shl.{ty}", ty, lambda x, y: x << min(y, 64), b_type="u32", b=counts)
    for n in (32, 64):
        ty = f"b{n}"
        unary(f"brev.{ty}", ty, lambda x: int(f"{x:0{n}b}"[::-1], 2))
        unary(f"popc.{ty}", ty, lambda x: bin(x).count("1"), to="u32")
        unary(f"clz.{ty}", ty, lambda x: n - x.bit_length(), to="u32")
        for kind in "us":
            def find(x, shift=False):
                x = ~x & ((1 << n) - 1) if kind == "s" and x >> (n - 1) else x
                if x == 0:
                    return 0xFFFFFFFF
                return n - x.bit_length() if shift else x.bit_length() - 1
            unary(f"bfind.{kind}{n}", f"{kind}{n}", find, to="u32")
            unary(f"bfind.shiftamt.{kind}{n}", f"{kind}{n}", lambda x: find(x, True), to="u32")

            def field(x, at, length):
                out = (x >> at) & ((1 << length) - 1) if length else 0
                top = min(at + length, n) - 1
                if kind == "s" and length and x >> min(top, n - 1) & 1:
                    have = max(min(length, n - at), 0)
                    out |= -1 << have
                return out
            at = [0, 1, 5, n - 1, n, 31, 7, 16, 24, 3] + [i for i in range(22)]
            length = [0, 1, 8, n, 5, 31, 16, 2, 9, 12] + [22 - i for i in range(22)]
            ternary(f"bfe.{kind}{n}", f"{kind}{n}", field, types=(f"{kind}{n}", "u32", "u32"),
                    b=at, c=length)

        def insert(x, y, at):
            length = 9
            if at >= n:
                return y
            mask = ((1 << length) - 1) << at
            return (y & ~mask) | (x << at & mask)
        ternary(f"bfi.{ty}", ty, insert, types=(ty, ty, "u32"), c=[0, 1, 8, n - 3, n] + at[:27],
                body=f"bfi.{ty} %d, %a, %b, %c, 9;")
    for table in (0x96, 0xE8, 0xCA, 0x01, 0x7F):
        def lop(a, b, c):
            out = 0
            for i in range(32):
                k = (a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)
                out |= (table >> k & 1) << i
            return out
        ternary("lop3.b32", "b32", lop, name=f"lop3.b32.{table:02x}",
                body=f"lop3.b32 %d, %a, %b, %c, 0x{table:02x};")
    permutations()
    for way in "lr":
        for edge in ("wrap", "clamp"):
            def shift(a, b, c):
                c = c & 31 if edge == "wrap" else min(c, 32)
                both = b << 32 | a
                return (both << c) >> 32 if way == "l" else both >> c
            ternary(f"shf.{way}.{edge}.b32", "b32", shift, types=("b32", "b32", "u32"),
                    c=[0, 1, 31, 32, 33, 63, 64, 16] + list(range(24)))
    for sa in "us":
        for sb in "us":
            def dot(a, b, c):
                part = lambda x, i, s: signed(x >> 8 * i, 8) if s == "s" else x >> 8 * i & 255
                return c + sum(part(a, i, sa) * part(b, i, sb) for i in range(4))
            ternary(f"dp4a.{sa}32.{sb}32", "b32", dot)
    carries()


def permutations():
    def pick(a, b, nibbles):
        both, out = b << 32 | a, 0
        for i, s in enumerate(nibbles):
            byte = both >> 8 * (s & 7) & 255
            if s & 8:
                byte = 255 if byte & 128 else 0
            out |= byte << 8 * i
        return out
    ternary("prmt.b32", "b32", lambda a, b, c: pick(a, b, [c >> 4 * i & 15 for i in range(4)]))
    tables = {
        "f4e": [(0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (3, 4, 5, 6)],
        "b4e": [(0, 7, 6, 5), (1, 0, 7, 6), (2, 1, 0, 7), (3, 2, 1, 0)],
        "rc8": [(0,) * 4, (1,) * 4, (2,) * 4, (3,) * 4],
        "ecl": [(0, 1, 2, 3), (1, 1, 2, 3), (2, 2, 2, 3), (3, 3, 3, 3)],
        "ecr": [(0, 0, 0, 0), (0, 1, 1, 1), (0, 1, 2, 2), (0, 1, 2, 3)],
        "rc16": [(0, 1, 0, 1), (2, 3, 2, 3), (0, 1, 0, 1), (2, 3, 2, 3)],
    }
    for mode, table in tables.items():
        ternary(f"prmt.b32.{mode}", "b32", lambda a, b, c: pick(a, b, table[c & 3]))


def carries():
    for name, f in (("add", lambda a, b: a + b), ("sub", lambda a, b: a - b)):
        a, b = ints("u64"), ints("u64", 2)
        write(f"{name}.cc.u32", [("a", "u64", a), ("b", "u64", b)],
              [("d", "u64", [f(x, y) for x, y in zip(a, b)])], f"""
              mov.b64 {{%al, %ah}}, %a;
              mov.b64 {{%bl, %bh}}, %b;
              {name}.cc.u32 %al, %al, %bl;
              {name}c.u32 %ah, %ah, %bh;
              mov.b64 %d, {{%al, %ah}};""", extra=".reg .b32 %al, %ah, %bl, %bh;")
    # A 32 x 32 product added to 64 bits, through the carry.
    a, b, c = ints("u32"), ints("u32", 2), ints("u64", 3)
    write("mad.cc.u32", [("a", "u32", a), ("b", "u32", b), ("c", "u64", c)],
          [("d", "u64", [x * y + z for x, y, z in zip(a, b, c)])], """
          mov.b64 {%cl, %ch}, %c;
          mad.lo.cc.u32 %cl, %a, %b, %cl;
          madc.hi.u32 %ch, %a, %b, %ch;
          mov.b64 %d, {%cl, %ch};""", extra=".reg .b32 %cl, %ch;")


SPECIAL = {
    "f32": [0, 0x80000000, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 1,
            0x80000001, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x3FC00000, 0x33800000,
            0x4B800000],
    "f16": [0, 0x8000, 0x3C00, 0xBC00, 0x7C00, 0xFC00, 0x7E00, 1, 0x8001, 0x03FF, 0x0400, 0x7BFF,
            0xFBFF, 0x3E00, 0x1400, 0x6400],
    "bf16": [0, 0x8000, 0x3F80, 0xBF80, 0x7F80, 0xFF80, 0x7FC0, 1, 0x8001, 0x007F, 0x0080, 0x7F7F,
             0xFF7F, 0x3FC0, 0x3B80, 0x4380],
    "f64": [0, 1 << 63, 0x3FF << 52, 0xBFF << 52, 0x7FF << 52, 0xFFF << 52, 0x3FF8 << 48, 1,
            (1 << 63) | 1, (1 << 52) - 1, 1 << 52, (0x7FF << 52) - 1, 0x4008 << 48, 0x3CA << 52,
            0x433 << 52, 0x3FF0000000000001],
}


def floats(ty, seed, nan=True):
    """Special values against each other, then random ones of like size."""
    fmt, rng = FORMATS[ty], random.Random(seed)
    special = [x for x in SPECIAL[ty] if nan or fmt.value(x) not in ("nan", "inf", "-inf")]
    rng.shuffle(special)
    out = special[:]
    while len(out) < LANES:
        e = fmt.bias + rng.randrange(-6, 7)
        out.append(rng.randrange(2) << (fmt.bits - 1) | e << fmt.m | rng.randrange(1 << fmt.m))
    return out[:LANES]


def float_op(op, ty, f, arity, mode="rn", ftz=False, sat=False, nan=True):
    fmt = FORMATS[ty]
    ins = [floats(ty, 10 + i, nan) for i in range(arity)]
    out = []
    for v in zip(*ins):
        v = [fmt.flush(x) for x in v] if ftz else v
        bits = fmt.round(f(*[fmt.value(x) for x in v]), mode)
        bits = fmt.flush(bits) if ftz else bits
        if sat:
            x = fmt.value(bits)
            x = 0 if x == "nan" or exact.negative(x) else x
            bits = fmt.round(1 if x == "inf" or x > 1 else x)
        out.append(bits)
    names = "abc"[:arity]
    write(op, [(r, f"b{fmt.bits}", v) for r, v in zip(names, ins)],
          [("d", f"b{fmt.bits}", out)], f"{op} %d, {', '.join('%' + r for r in names)};")


def float_arithmetic():
    for mode in ("rn", "rz", "rm", "rp"):
        nan = {"f32": True, "f64": False}
        for ty in ("f32", "f64"):
            float_op(f"add.{mode}.{ty}", ty, lambda x, y: exact.add(x, y, mode), 2, mode,
                     nan=nan[ty])
            float_op(f"sub.{mode}.{ty}", ty, lambda x, y: exact.add(x, exact.minus(y), mode), 2,
                     mode, nan=nan[ty])
            float_op(f"mul.{mode}.{ty}", ty, exact.mul, 2, mode, nan=nan[ty])
            float_op(f"fma.{mode}.{ty}", ty, lambda x, y, z: exact.fma(x, y, z, mode), 3, mode,
                     nan=nan[ty])
        float_op(f"div.{mode}.f32", "f32", exact.div, 2, mode)
        float_op(f"sqrt.{mode}.f32", "f32", exact.sqrt, 1, mode)
        float_op(f"rcp.{mode}.f32", "f32", lambda x: exact.div(1, x), 1, mode)
    for op, f, n in (("add", exact.add, 2), ("mul", exact.mul, 2), ("fma.rn", exact.fma, 3)):
        float_op(f"{op}.ftz.f32", "f32", f, n, ftz=True)
        float_op(f"{op}.sat.f32", "f32", f, n, sat=True)
    for ty in ("f16", "bf16"):
        float_op(f"fma.rn.{ty}", ty, exact.fma, 3)
    for op, f in (("add", exact.add), ("sub", lambda x, y: exact.add(x, exact.minus(y))),
                  ("mul", exact.mul)):
        float_op(f"{op}.f16", "f16", f, 2)
    packed()
    selections()


def packed():
    """Two halves a register: the same values, the second in another order."""
    for ty, ops in (("f16", ("add", "mul", "fma.rn", "min", "max")),
                    ("bf16", ("fma.rn", "min", "max"))):
        fmt = FORMATS[ty]
        for op in ops:
            n = 3 if op == "fma.rn" else 2
            lows = [floats(ty, 20 + i) for i in range(n)]
            highs = [list(reversed(floats(ty, 30 + i))) for i in range(n)]
            f = {"add": exact.add, "mul": exact.mul, "fma.rn": exact.fma}.get(op)
            one = (lambda v: fmt.round(f(*map(fmt.value, v)))) if f else (
                lambda v: extreme(fmt, op == "min", *v))
            out = [one(lo) | one(hi) << 16 for lo, hi in zip(zip(*lows), zip(*highs))]
            ins = [("abc"[i], "b32", [x | y << 16 for x, y in zip(lows[i], highs[i])])
                   for i in range(n)]
            sources = ", ".join(f"%{r}" for r, _, _ in ins)
            write(f"{op}.{ty}x2", ins, [("d", "b32", out)], f"{op}.{ty}x2 %d, {sources};")


def extreme(fmt, smaller, a, b, nan=False):
    x, y = fmt.value(a), fmt.value(b)
    if "nan" in (x, y):
        if nan or x == y:
            return fmt.nan
        return b if x == "nan" else a
    if exact.number(x) == exact.number(y):
        return a if exact.negative(x) == smaller else b
    return a if exact.less(x, y) == smaller else b


def selections():
    for ty in ("f32", "f16", "bf16", "f64"):
        fmt = FORMATS[ty]
        for op in ("min", "max"):
            for nan in ((False, True) if ty != "f64" else (False,)):
                word = ".NaN" if nan else ""
                a, b = floats(ty, 41, ty != "f64"), floats(ty, 42, ty != "f64")
                out = [extreme(fmt, op == "min", x, y, nan) for x, y in zip(a, b)]
                kind = f"b{fmt.bits}"
                write(f"{op}{word}.{ty}", [("a", kind, a), ("b", kind, b)], [("d", kind, out)],
                      f"{op}{word}.{ty} %d, %a, %b;")
        top = 1 << (fmt.bits - 1)
        a = floats(ty, 43, False)
        kind = f"b{fmt.bits}"
        write(f"neg.{ty}", [("a", kind, a)], [("d", kind, [x ^ top for x in a])],
              f"neg.{ty} %d, %a;")
        write(f"abs.{ty}", [("a", kind, a)], [("d", kind, [x & ~top for x in a])],
              f"abs.{ty} %d, %a;")
    a, b = floats("f32", 44), floats("f32", 45)
    out = [(x & 1 << 31) | (y & 0x7FFFFFFF) for x, y in zip(a, b)]
    write("copysign.f32", [("a", "b32", a), ("b", "b32", b)], [("d", "b32", out)],
          "copysign.f32 %d, %a, %b;")


def comparisons():
    relation = {
        "eq": lambda x, y: x == y, "ne": lambda x, y: x != y, "lt": lambda x, y: x < y,
        "le": lambda x, y: x <= y, "gt": lambda x, y: x > y, "ge": lambda x, y: x >= y,
    }
    for ty in ("s32", "u32", "s16", "u64", "s64"):
        n = bits_of(ty)
        v = (lambda x: signed(x, n)) if ty[0] == "s" else (lambda x: x)
        a, b = ints(ty), ints(ty, 2)
        b = [x if i % 4 == 0 else y for i, (x, y) in enumerate(zip(a, b))]
        for op, f in relation.items():
            out = [int(f(v(x), v(y))) for x, y in zip(a, b)]
            write(f"setp.{op}.{ty}", [("a", ty, a), ("b", ty, b)], [("d", "u32", out)],
                  f"setp.{op}.{ty} %p, %a, %b;\nselp.u32 %d, 1, 0, %p;", extra=".reg .pred %p;")
    for ty in ("f32", "f64", "f16", "bf16"):
        fmt = FORMATS[ty]
        a, b = floats(ty, 50), floats(ty, 51)
        b = [x if i % 4 == 0 else y for i, (x, y) in enumerate(zip(a, b))]
        ops = list(relation) + [r + "u" for r in relation] + ["num", "nan"]
        for op in ops if ty == "f32" else ["lt", "neu", "nan", "ge"]:
            def holds(x, y):
                unordered = "nan" in (x, y)
                if op in ("num", "nan"):
                    return unordered == (op == "nan")
                if unordered:
                    return op.endswith("u")
                eq = x == y or exact.number(x) == exact.number(y)
                lt = not eq and exact.less(x, y)
                return {"eq": eq, "ne": not eq, "lt": lt, "le": lt or eq,
                        "gt": not (lt or eq), "ge": not lt}[op[:2]]
            out = [int(holds(fmt.value(x), fmt.value(y))) for x, y in zip(a, b)]
            kind = f"b{fmt.bits}"
            write(f"setp.{op}.{ty}", [("a", kind, a), ("b", kind, b)], [("d", "u32", out)],
                  f"setp.{op}.{ty} %p, %a, %b;\nselp.u32 %d, 1, 0, %p;", extra=".reg .pred %p;")
    a, b, c = ints("s32"), ints("s32", 2), ints("s32", 3)
    lt = [signed(x, 32) < signed(y, 32) for x, y in zip(a, b)]
    odd = [z & 1 for z in c]
    for op, f in (("and", lambda p, q: p & q), ("or", lambda p, q: p | q),
                  ("xor", lambda p, q: p ^ q)):
        out = [f(int(p), q) | f(int(not p), q) << 1 for p, q in zip(lt, odd)]
        write(f"setp.lt.{op}.s32", list(zip("abc", ["s32"] * 3, (a, b, c))), [("d", "u32", out)],
              f"""and.b32 %c, %c, 1;
              setp.eq.s32 %r, %c, 1;
              setp.lt.{op}.s32 %p|%q, %a, %b, %r;
              selp.u32 %d, 1, 0, %p;
              selp.u32 %c, 2, 0, %q;
              or.b32 %d, %d, %c;""", extra=".reg .pred %p, %q, %r;")
    write("set.lt.u32.s32", [("a", "s32", a), ("b", "s32", b)],
          [("d", "u32", [0xFFFFFFFF if p else 0 for p in lt])], "set.lt.u32.s32 %d, %a, %b;")
    write("set.lt.f32.s32", [("a", "s32", a), ("b", "s32", b)],
          [("d", "u32", [0x3F800000 if p else 0 for p in lt])], "set.lt.f32.s32 %d, %a, %b;")
    ternary("slct.u32.s32", "u32", lambda x, y, z: x if signed(z, 32) >= 0 else y)


def conversions():
    whole = ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64")
    for source in ("u16", "s16", "u32", "s32", "u64", "s64"):
        for to in whole:
            if source == to:
                continue
            v = (lambda x, n=bits_of(source): signed(x, n)) if source[0] == "s" else (lambda x: x)
            a, n = ints(source), bits_of(to)
            register_type = to if n > 8 else f"{to[0]}16"
            cut = lambda x: signed(x, n) if to[0] == "s" else x & ((1 << n) - 1)
            write(f"cvt.{to}.{source}", [("a", source, a)],
                  [("d", register_type, [cut(v(x)) for x in a])], f"cvt.{to}.{source} %d, %a;")
    for source, to in (("s32", "s16"), ("s32", "u8"), ("s32", "s8"), ("s64", "s32"),
                       ("s64", "u32"), ("u32", "s32"), ("s32", "u32")):
        v = (lambda x, n=bits_of(source): signed(x, n)) if source[0] == "s" else (lambda x: x)
        n = bits_of(to)
        low, high = (0, (1 << n) - 1) if to[0] == "u" else (-(1 << n - 1), (1 << n - 1) - 1)
        a = ints(source)
        register_type = to if n > 8 else f"{to[0]}16"
        write(f"cvt.sat.{to}.{source}", [("a", source, a)],
              [("d", register_type, [max(low, min(high, v(x))) for x in a])],
              f"cvt.sat.{to}.{source} %d, %a;")
    to_floats()
    from_floats()
    between_floats()


def to_floats():
    for source in ("u16", "s16", "u32", "s32", "u64", "s64"):
        v = (lambda x, n=bits_of(source): signed(x, n)) if source[0] == "s" else (lambda x: x)
        for to, fmt in FORMATS.items():
            if to == "bf16":
                continue
            for mode in ("rn", "rz", "rm", "rp") if bits_of(source) == 32 else ("rn",):
                a = ints(source)
                kind = f"b{fmt.bits}"
                write(f"cvt.{mode}.{to}.{source}", [("a", source, a)],
                      [("d", kind, [fmt.round(exact.Fraction(v(x)), mode) for x in a])],
                      f"cvt.{mode}.{to}.{source} %d, %a;")


def from_floats():
    for source in ("f32", "f64", "f16"):
        fmt = FORMATS[source]
        kind = f"b{fmt.bits}"
        a = floats(source, 60)
        ties = [0x4F000000, 0xCF000000, 0x3F000000, 0x40200000, 0xBFC00000]
        a = ties + a[:LANES - len(ties)] if source == "f32" else a
        for to in ("s32", "u32", "s64", "u64", "s16", "u8"):
            n = bits_of(to)
            low, high = (0, (1 << n) - 1) if to[0] == "u" else (-(1 << n - 1), (1 << n - 1) - 1)
            for mode in ("rni", "rzi", "rmi", "rpi") if to == "s32" else ("rzi",):
                def convert(x):
                    x = exact.integral(fmt.value(x), mode)
                    if x == "nan":
                        return 1 << 63 if n == 64 else 0
                    if x in ("inf", "-inf"):
                        return high if x == "inf" else low
                    return max(low, min(high, int(exact.number(x))))
                register_type = to if n > 8 else f"{to[0]}16"
                write(f"cvt.{mode}.{to}.{source}", [("a", kind, a)],
                      [("d", register_type, [convert(x) for x in a])],
                      f"cvt.{mode}.{to}.{source} %d, %a;")


def between_floats():
    for source, to, modes in (("f32", "f64", [""]), ("f64", "f32", ["rn", "rz", "rm", "rp"]),
                              ("f32", "f16", ["rn", "rz"]), ("f16", "f32", [""]),
                              ("f64", "f16", ["rn"]), ("f32", "bf16", ["rn", "rz"]),
                              ("f16", "f64", [""])):
        a_fmt, d_fmt = FORMATS[source], FORMATS[to]
        a = floats(source, 70, to != "f64")
        for mode in modes:
            op = ".".join(["cvt"] + ([mode] if mode else []) + [to, source])
            out = [d_fmt.round(a_fmt.value(x), mode or "rn") for x in a]
            write(op, [("a", f"b{a_fmt.bits}", a)], [("d", f"b{d_fmt.bits}", out)],
                  f"{op} %d, %a;")
    a, b = floats("f32", 71), floats("f32", 72)
    for to, fmt in (("f16", F16), ("bf16", BF16)):
        one = lambda x: fmt.round(F32.value(x))
        write(f"cvt.rn.{to}x2.f32", [("a", "b32", a), ("b", "b32", b)],
              [("d", "b32", [one(x) << 16 | one(y) for x, y in zip(a, b)])],
              f"cvt.rn.{to}x2.f32 %d, %a, %b;")
    # The lower 13 bits are unspecified by the ISA, so the file masks them.
    write("cvt.rna.tf32.f32", [("a", "b32", floats("f32", 73, False))],
          [("d", "b32", [TF32.round(F32.value(x), "rna") << 13 for x in floats("f32", 73, False)])],
          "cvt.rna.tf32.f32 %d, %a;\nand.b32 %d, %d, 0xffffe000;")
    for mode in ("rni", "rzi", "rmi", "rpi"):
        a = [0x3F000000, 0x3FC00000, 0xBFC00000, 0x40200000, 0x4B000001] + floats("f32", 74)[:27]
        out = [F32.round(exact.integral(F32.value(x), mode)) for x in a]
        write(f"cvt.{mode}.f32.f32", [("a", "b32", a)], [("d", "b32", out)],
              f"cvt.{mode}.f32.f32 %d, %a;")
    a = floats("f32", 75)

    def saturate(x):
        x = F32.value(x)
        if x == "nan" or exact.negative(x):
            return 0
        return F32.round(1 if x == "inf" or x > 1 else x)
    write("cvt.sat.f32.f32", [("a", "b32", a)], [("d", "b32", [saturate(x) for x in a])],
          "cvt.sat.f32.f32 %d, %a;")


if __name__ == "__main__":
    import hopper
    import warp

    integer_arithmetic()
    bits()
    float_arithmetic()
    comparisons()
    conversions()
    warp.files(write, ints, floats)
    hopper.files(write, ints)
    print(f"{len(WRITTEN)} files")
