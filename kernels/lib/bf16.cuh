// bf16: the upper half of a binary32, as storage. Arithmetic happens in float.
//
// NVRTC comes without cuda_bf16.h, so this is ours.
#pragma once

struct bf16 {
    unsigned short bits;
};

__device__ __forceinline__ float to_float(float x) { return x; }

__device__ __forceinline__ float to_float(bf16 x) {
    return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}

// Rounds to nearest, ties to even, in one instruction; NaN stays NaN.
__device__ __forceinline__ bf16 to_bf16(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// Two at once: `low` in the lower half of the word, which is the element that lies first.
__device__ __forceinline__ unsigned to_bf16x2(float low, float high) {
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

template <class T>
__device__ __forceinline__ T from_float(float x);

template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}

template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
    return to_bf16(x);
}
