"""The random numbers of src/tensor/philox.rs, bit for bit: Philox4x32-10 and its normals.

A stream is named by (seed, sample, scale, purpose); numpy's float32 arithmetic is what the Rust
code does, operation by operation.
"""

import numpy as np

NOISE, MASK, TOKEN = 5, 7, 8
F = np.float32


def words(seed, sample, scale, purpose, n):
    """Words 0..n of a stream."""
    blocks = -(-n // 4)
    low = np.uint64(0xFFFFFFFF)
    c = [np.arange(blocks, dtype=np.uint64)]
    for word in (sample & 0xFFFFFFFF, sample >> 32, scale << 16 | purpose):
        c.append(np.full(blocks, word, dtype=np.uint64))
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for turn in range(10):
        if turn:
            key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(key[0]), p1 & low,
             (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(key[1]), p0 & low]
    return np.stack(c, axis=1).reshape(-1)[:n].astype(np.uint32)


def uniforms(seed, sample, scale, purpose, n):
    """Uniforms 0..n of a stream, in [0, 1)."""
    return (words(seed, sample, scale, purpose, n) >> np.uint32(8)).astype(F) * F(2.0 ** -24)


def log(x):
    """ln x of x in (0, 1]."""
    bits = x.view(np.uint32) - np.uint32(0x3F3504F3)
    e = bits.view(np.int32) >> 23
    m = ((bits & np.uint32(0x7FFFFF)) + np.uint32(0x3F3504F3)).view(F)
    s = (m - F(1)) / (m + F(1))
    q = s * s
    p = F(2) + q * (F(0.6666667) + q * (F(0.4) + q * (F(0.2857143) + q * F(0.22222222))))
    return e.astype(F) * F(0.6931472) + s * p


def cos_sin(u):
    """cos and sin of u turns."""
    octant = (u * F(4) + F(0.5)).astype(np.int32)
    x = (u - octant.astype(F) * F(0.25)) * F(2 * np.pi)
    q = x * x
    s = x * (F(1) - q * (F(1 / 6) - q * (F(1 / 120) - q * (F(1 / 5040) - q / F(362880)))))
    c = F(1) - q * (F(0.5) - q * (F(1 / 24) - q * (F(1 / 720) - q / F(40320))))
    which = octant & 3
    cos = np.choose(which, [c, -s, -c, s])
    return cos, np.choose(which, [s, c, -s, -c])


def normals(seed, sample, scale, purpose, n):
    """Standard normals 0..n of a stream."""
    w = words(seed, sample, scale, purpose, -(-n // 4) * 4).reshape(-1, 2)
    u = ((w[:, 0] >> np.uint32(8)) + np.uint32(1)).astype(F) * F(2.0 ** -24)
    radius = np.sqrt(F(-2) * log(u))
    cos, sin = cos_sin((w[:, 1] >> np.uint32(8)).astype(F) * F(2.0 ** -24))
    return np.stack([radius * cos, radius * sin], axis=1).reshape(-1)[:n]
