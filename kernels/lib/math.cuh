// Functions of one variable and their slopes, as src/ops/activation.rs states them.
//
// The exponential is a polynomial of fused multiply-adds like the CPU's, without approximate
// instructions, so it has the same bits on every device. Operations are counted as cards count.
#pragma once

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fc00000u); }

// e^x to 2 units in the last place; infinity above 89, subnormals and zero below -87; NaN stays.
// 21 operations.
__device__ __forceinline__ float exp_of(float x) {
    const float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number.
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    const float k = fmaf(x, 1.44269504f, round);
    const float n = k - round;
    const float r = fmaf(n, 2.1219444e-4f, fmaf(n, -0.6933594f, x));
    float p = fmaf(1.0f / 720.0f, r, 1.0f / 120.0f);
    p = fmaf(p, r, 1.0f / 24.0f);
    p = fmaf(p, r, 1.0f / 6.0f);
    p = fmaf(p, r, 0.5f);
    p = 1.0f + fmaf(p, r * r, r);
    // 2^n in two halves, so that neither leaves the normal range.
    const int e = __float_as_int(k) - __float_as_int(round);
    const int a = e >> 1, b = e - a;
    return p * __int_as_float((a + 127) << 23) * __int_as_float((b + 127) << 23);
}

// 23 operations.
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + exp_of(-x)); }

// Exact to a few units of 1, as the CPU's. 25 operations.
__device__ __forceinline__ float tanh_of(float x) {
    return 1.0f - 2.0f / (exp_of(2.0f * x) + 1.0f);
}

constexpr float GELU_C = 0.7978845608028654f;  // sqrt(2 / pi)
constexpr float GELU_A = 0.044715f;

// GELU, tanh form. 34 operations.
__device__ __forceinline__ float gelu(float x) {
    const float t = tanh_of(GELU_C * fmaf(GELU_A * x, x * x, x));
    return 0.5f * x * (1.0f + t);
}

// 42 operations.
__device__ __forceinline__ float gelu_slope(float x) {
    const float q = x * x;
    const float t = tanh_of(GELU_C * fmaf(GELU_A * x, q, x));
    const float dt = (1.0f - t * t) * (GELU_C * fmaf(3.0f * GELU_A, q, 1.0f));
    return fmaf(0.5f * x, dt, 0.5f * (1.0f + t));
}

// 24 operations.
__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

// 27 operations.
__device__ __forceinline__ float silu_slope(float x) {
    const float s = sigmoid(x);
    return fmaf(x * s, 1.0f - s, s);
}

// ln(1 + e^x) without overflow. 48 operations, of which the logarithm has 25.
__device__ __forceinline__ float softplus(float x) {
    const float tail = logf(1.0f + exp_of(-fabsf(x)));
    return x > 0.0f ? x + tail : tail;
}
