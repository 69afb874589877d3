"""Binary floating-point formats in exact rational arithmetic: what an instruction must give."""

from fractions import Fraction
from math import isqrt


class Format:
    """An IEEE-like format; values are Fractions, or the strings nan, inf, -inf, -0."""

    def __init__(self, exponent, mantissa, nan):
        self.e, self.m, self.nan = exponent, mantissa, nan
        self.bits = 1 + exponent + mantissa
        self.bias = (1 << (exponent - 1)) - 1
        self.infinity = ((1 << exponent) - 1) << mantissa

    def value(self, bits):
        sign, rest = bits >> (self.bits - 1), bits & ((1 << (self.bits - 1)) - 1)
        if rest > self.infinity:
            return "nan"
        if rest == self.infinity:
            return "-inf" if sign else "inf"
        if rest == 0:
            return "-0" if sign else Fraction(0)
        e, f = rest >> self.m, rest & ((1 << self.m) - 1)
        if e == 0:
            x = Fraction(f) * Fraction(2) ** (1 - self.bias - self.m)
        else:
            x = Fraction(f + (1 << self.m)) * Fraction(2) ** (e - self.bias - self.m)
        return -x if sign else x

    def round(self, x, mode="rn", zero_sign=0):
        """The bits of a value."""
        top = 1 << (self.bits - 1)
        if x == "nan":
            return self.nan
        if x == "inf":
            return self.infinity
        if x == "-inf":
            return self.infinity | top
        if x == "-0":
            return top
        if x == 0:
            return top if zero_sign else 0
        sign = top if x < 0 else 0
        a = abs(x)
        e = 1 - self.bias
        while a >= Fraction(2) ** (e + 1):
            e += 1
        unit = Fraction(2) ** (e - self.m)
        q, r = divmod(a, unit)
        half = unit / 2
        up = {
            "rn": r > half or (r == half and q % 2 == 1),
            "rna": r >= half,
            "rz": False,
            "rm": sign != 0 and r > 0,
            "rp": sign == 0 and r > 0,
        }[mode]
        q += up
        bits = ((e + self.bias - 1) << self.m) + int(q)
        if bits >= self.infinity:
            stops = mode == "rz" or (mode == "rm" and not sign) or (mode == "rp" and sign)
            bits = self.infinity - 1 if stops else self.infinity
        return sign | bits

    def flush(self, bits):
        """Subnormals become zero with their sign."""
        if bits & self.infinity == 0:
            return bits & (1 << (self.bits - 1))
        return bits


F16 = Format(5, 10, 0x7FFF)
BF16 = Format(8, 7, 0x7FFF)
F32 = Format(8, 23, 0x7FFFFFFF)
F64 = Format(11, 52, 0xFFF8000000000000)
TF32 = Format(8, 10, 0x3FFFF)


def negative(x):
    return x in ("-0", "-inf") or (not isinstance(x, str) and x < 0)


def number(x):
    return Fraction(0) if x == "-0" else x


def minus(x):
    return {"nan": "nan", "inf": "-inf", "-inf": "inf", "-0": Fraction(0)}.get(x) if isinstance(
        x, str) else ("-0" if x == 0 else -x)


def add(x, y, mode="rn"):
    if "nan" in (x, y) or {x, y} == {"inf", "-inf"}:
        return "nan"
    for v in (x, y):
        if v in ("inf", "-inf"):
            return v
    s = number(x) + number(y)
    if s == 0:
        both = negative(x) and negative(y)
        apart = negative(x) != negative(y)
        exact = number(x) == 0 and number(y) == 0
        if both or (mode == "rm" and (apart or not exact)):
            return "-0"
    return s


def mul(x, y):
    if "nan" in (x, y):
        return "nan"
    sign = negative(x) != negative(y)
    if x in ("inf", "-inf") or y in ("inf", "-inf"):
        if number(x) == 0 or number(y) == 0:
            return "nan"
        return "-inf" if sign else "inf"
    p = number(x) * number(y)
    return "-0" if p == 0 and sign else p


def fma(x, y, z, mode="rn"):
    return add(mul(x, y), z, mode)


def div(x, y):
    if "nan" in (x, y):
        return "nan"
    sign = negative(x) != negative(y)
    big = ("inf", "-inf")
    if x in big:
        return "nan" if y in big else ("-inf" if sign else "inf")
    if y in big:
        return "-0" if sign else Fraction(0)
    if number(y) == 0:
        return "nan" if number(x) == 0 else ("-inf" if sign else "inf")
    q = number(x) / number(y)
    return "-0" if q == 0 and sign else q


def sqrt(x):
    if x in ("nan", "inf", "-0") or x == 0:
        return x
    if negative(x):
        return "nan"
    k = 400
    scaled = x.numerator * (1 << (2 * k)) * x.denominator
    root = isqrt(scaled)
    out = Fraction(root, x.denominator << k)
    if root * root != scaled:
        out += Fraction(1, 1 << 1200)
    return out


def integral(x, mode):
    if isinstance(x, str):
        return x
    down = x.numerator // x.denominator
    rest = x - down
    if mode == "rni":
        n = down + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and down % 2 == 1))
    elif mode == "rzi":
        n = down + (x < 0 and rest > 0)
    elif mode == "rmi":
        n = down
    else:
        n = down + (rest > 0)
    return "-0" if n == 0 and x < 0 else Fraction(n)


def less(x, y):
    order = {"-inf": -(1 << 5000), "inf": 1 << 5000, "-0": 0}
    a, b = (order.get(v, v) if isinstance(v, str) else v for v in (x, y))
    return a < b
