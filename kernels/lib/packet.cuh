// Packets: N neighbouring elements moved by one 16-byte access, worked on as floats.
//
// N is width<T> where the address is a multiple of 16 bytes, and 1 anywhere; 4 of bf16 are half a
// packet, at multiples of 8 bytes.
#pragma once

#include "lib/bf16.cuh"

// Elements of T in 16 bytes.
template <class T>
constexpr int width = 16 / sizeof(T);

template <int N>
struct Floats {
    float at[N];
};

// A number as a type, so that a lambda can take it.
template <int N>
struct Width {
    static constexpr int value = N;
};

template <class... P>
__device__ __forceinline__ bool aligned(const P*... p) {
    return (((reinterpret_cast<unsigned long long>(p) & 15) == 0) && ...);
}

template <int N>
__device__ __forceinline__ Floats<N> load(const float* p) {
    static_assert(N == 1 || N == 4, "1 or 4 floats");
    if constexpr (N == 1) {
        return {{*p}};
    } else {
        const float4 v = *reinterpret_cast<const float4*>(p);
        return {{v.x, v.y, v.z, v.w}};
    }
}

template <int N>
__device__ __forceinline__ Floats<N> load(const bf16* p) {
    static_assert(N == 1 || N == 4 || N == 8, "1, 4 or 8 bf16");
    if constexpr (N == 1) {
        return {{to_float(*p)}};
    } else if constexpr (N == 4) {
        const uint2 v = *reinterpret_cast<const uint2*>(p);
        return {{__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u),
                 __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xffff0000u)}};
    } else {
        const uint4 v = *reinterpret_cast<const uint4*>(p);
        const unsigned words[4] = {v.x, v.y, v.z, v.w};
        Floats<8> x;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            x.at[2 * i] = __uint_as_float(words[i] << 16);
            x.at[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
        }
        return x;
    }
}

template <int N>
__device__ __forceinline__ void store(float* p, const Floats<N>& x) {
    static_assert(N == 1 || N == 4, "1 or 4 floats");
    if constexpr (N == 1) {
        *p = x.at[0];
    } else {
        *reinterpret_cast<float4*>(p) = make_float4(x.at[0], x.at[1], x.at[2], x.at[3]);
    }
}

template <int N>
__device__ __forceinline__ void store(bf16* p, const Floats<N>& x) {
    static_assert(N == 1 || N == 4 || N == 8, "1, 4 or 8 bf16");
    if constexpr (N == 1) {
        *p = to_bf16(x.at[0]);
    } else if constexpr (N == 4) {
        *reinterpret_cast<uint2*>(p) =
            make_uint2(to_bf16x2(x.at[0], x.at[1]), to_bf16x2(x.at[2], x.at[3]));
    } else {
        *reinterpret_cast<uint4*>(p) = make_uint4(
            to_bf16x2(x.at[0], x.at[1]), to_bf16x2(x.at[2], x.at[3]),
            to_bf16x2(x.at[4], x.at[5]), to_bf16x2(x.at[6], x.at[7]));
    }
}

// Copies N elements as they are, NaN and all.
template <int N, class T>
__device__ __forceinline__ void move(T* to, const T* from) {
    static_assert(N == 1 || N == width<T>, "one element or 16 bytes");
    if constexpr (N == 1) {
        *to = *from;
    } else {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    }
}

// Calls f(i, Width<N>) so that 0..n is covered: packets as far as they go where `packets`, single
// elements for the rest. The whole grid takes part, whatever its size.
template <class T, class F>
__device__ __forceinline__ void each(unsigned n, bool packets, F f) {
    constexpr int N = width<T>;
    const unsigned first = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned step = gridDim.x * blockDim.x;
    const unsigned whole = packets ? n / N : 0;
    for (unsigned p = first; p < whole; p += step) f(p * N, Width<N>());
    for (unsigned i = whole * N + first; i < n; i += step) f(i, Width<1>());
}
