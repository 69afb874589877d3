// Broadcasting: big operands [k0, r0, k1, r1, k2] against small ones [k0, k1, k2].
//
// The small one is repeated along r0 and r1. Neighbouring axes that are both kept or both repeated
// are one axis, so that five cover every pattern up to four axes; unused ones are 1.
#pragma once

#include "lib/packet.cuh"

struct Spread {
    unsigned k0, r0, k1, r1, k2;

    __device__ __forceinline__ unsigned size() const { return k0 * r0 * k1 * r1 * k2; }

    // Nothing is repeated: an element has one index in both.
    __device__ __forceinline__ bool flat() const { return r0 == 1 && r1 == 1; }

    // Index in the small operand of element i of the big one.
    __device__ __forceinline__ unsigned at(unsigned i) const {
        const unsigned column = i % k2;
        const unsigned row = i / (k2 * r1);
        const unsigned inner = row % k1;
        const unsigned outer = row / k1 / r0;
        return (outer * k1 + inner) * k2 + column;
    }
};

__device__ __forceinline__ Spread spread(int k0, int r0, int k1, int r1, int k2) {
    return {static_cast<unsigned>(k0), static_cast<unsigned>(r0), static_cast<unsigned>(k1),
            static_cast<unsigned>(r1), static_cast<unsigned>(k2)};
}

// N elements of a small operand from p on, or N times the one there.
template <int N, class T>
__device__ __forceinline__ Floats<N> load_spread(const T* p, bool one) {
    if (!one) return load<N>(p);
    const float x = to_float(*p);
    Floats<N> same;
#pragma unroll
    for (int k = 0; k < N; ++k) same.at[k] = x;
    return same;
}

// Calls f(i, j, one, Width<N>) for all elements: i in the big operands, j in the small ones, `one`
// where a packet meets a single small element. A packet never crosses a row of the small operand.
template <class T, class F>
__device__ __forceinline__ void each_spread(const Spread& s, bool aligned, F f) {
    const unsigned n = s.size();
    const bool flat = s.flat();
    const bool one = !flat && s.k2 == 1;
    const bool fits = flat || s.k2 % width<T> == 0 || (one && s.r1 % width<T> == 0);
    each<T>(n, aligned && fits,
            [&](unsigned i, auto w) { f(i, flat ? i : s.at(i), one, w); });
}
