// Philox4x32-10, bit-equal to src/tensor/philox.rs: words, uniforms and normals of a named stream.
//
// Every rounding is spelled out (__fmul_rn and its like are never fused), so that contraction by
// the compiler cannot change a bit.
#pragma once

struct Words {
    unsigned at[4];
};

struct Normals {
    float at[4];
};

// A stream is named by key and tail; Stream::new in Rust makes them of (seed, sample, scale,
// purpose). Words 4i..4i+4 are block i.
struct Stream {
    unsigned key[2];
    unsigned tail[3];
};

// The stream of row `row`, whose name [rows, 4] is the number of its sample and the seed, low words
// first; `last` holds scale and purpose.
__device__ __forceinline__ Stream stream_of(const int* names, unsigned row, unsigned last) {
    const int* name = names + 4 * row;
    return {{unsigned(name[2]), unsigned(name[3])}, {unsigned(name[0]), unsigned(name[1]), last}};
}

__device__ __forceinline__ Words philox4x32(Words c, unsigned key0, unsigned key1) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned hi0 = __umulhi(0xD2511F53u, c.at[0]), lo0 = 0xD2511F53u * c.at[0];
        const unsigned hi1 = __umulhi(0xCD9E8D57u, c.at[2]), lo1 = 0xCD9E8D57u * c.at[2];
        c = {{hi1 ^ c.at[1] ^ key0, lo1, hi0 ^ c.at[3] ^ key1, lo0}};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return c;
}

// Block i of a stream.
__device__ __forceinline__ Words words(const Stream& s, unsigned i) {
    return philox4x32({{i, s.tail[0], s.tail[1], s.tail[2]}}, s.key[0], s.key[1]);
}

// In [0, 1), a multiple of 2^-24.
__device__ __forceinline__ float unit(unsigned word) {
    return __fmul_rn(__uint2float_rn(word >> 8), 1.0f / 16777216.0f);
}

// Integer in 0..n, without bias worth naming.
__device__ __forceinline__ unsigned below(unsigned word, unsigned n) { return __umulhi(word, n); }

// a + b * c, rounded twice.
__device__ __forceinline__ float add_mul(float a, float b, float c) {
    return __fadd_rn(a, __fmul_rn(b, c));
}

// ln x for x in (0, 1].
__device__ __forceinline__ float ln_unit(float x) {
    const unsigned bits = __float_as_uint(x) - 0x3F3504F3u;
    const int e = static_cast<int>(bits) >> 23;
    const float m = __uint_as_float((bits & 0x007FFFFFu) + 0x3F3504F3u);
    const float s = __fdiv_rn(__fadd_rn(m, -1.0f), __fadd_rn(m, 1.0f));
    const float q = __fmul_rn(s, s);
    float p = add_mul(0.2857143f, q, 0.22222222f);
    p = add_mul(0.4f, q, p);
    p = add_mul(0.6666667f, q, p);
    p = add_mul(2.0f, q, p);
    return __fadd_rn(__fmul_rn(__int2float_rn(e), 0.6931472f), __fmul_rn(s, p));
}

// cos and sin of 2 pi u for u in [0, 1).
__device__ __forceinline__ float2 cos_sin_turn(float u) {
    const int octant = __float2int_rz(add_mul(0.5f, u, 4.0f));
    const float folded = __fsub_rn(u, __fmul_rn(__int2float_rn(octant), 0.25f));
    const float x = __fmul_rn(folded, 6.2831855f);
    const float q = __fmul_rn(x, x);
    float s = __fsub_rn(1.0f / 5040.0f, __fdiv_rn(q, 362880.0f));
    s = __fsub_rn(1.0f / 120.0f, __fmul_rn(q, s));
    s = __fsub_rn(1.0f / 6.0f, __fmul_rn(q, s));
    s = __fmul_rn(x, __fsub_rn(1.0f, __fmul_rn(q, s)));
    float c = __fsub_rn(1.0f / 720.0f, __fdiv_rn(q, 40320.0f));
    c = __fsub_rn(1.0f / 24.0f, __fmul_rn(q, c));
    c = __fsub_rn(0.5f, __fmul_rn(q, c));
    c = __fsub_rn(1.0f, __fmul_rn(q, c));
    switch (octant & 3) {
        case 0: return make_float2(c, s);
        case 1: return make_float2(-s, c);
        case 2: return make_float2(-c, -s);
        default: return make_float2(s, -c);
    }
}

__device__ __forceinline__ float2 box_muller(unsigned w0, unsigned w1) {
    // (0, 1]: the logarithm is finite.
    const float u = __fmul_rn(__uint2float_rn((w0 >> 8) + 1), 1.0f / 16777216.0f);
    const float radius = __fsqrt_rn(__fmul_rn(-2.0f, ln_unit(u)));
    const float2 turn = cos_sin_turn(unit(w1));
    return make_float2(__fmul_rn(radius, turn.x), __fmul_rn(radius, turn.y));
}

// Standard normals 4i..4i+4 from block i.
__device__ __forceinline__ Normals normals(const Words& w) {
    const float2 a = box_muller(w.at[0], w.at[1]), b = box_muller(w.at[2], w.at[3]);
    return {{a.x, a.y, b.x, b.y}};
}
