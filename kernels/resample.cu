// Resampling of channels-last maps, an axis at a time (src/ops/resample.rs).
//
// The matrix of an axis is banded: output j of it is a sum over neighbouring inputs from starts[j]
// on, with weights begins[j]..begins[j + 1] of the list.
#include "lib/packet.cuh"

// resample_axis_fwd: y[o, j] = sum over k of weights[begins[j] + k] x[o, starts[j] + k].
//   for    T: f32
//   floor  bytes = outer*to*inner*s;  flops = 2*outer*taps*inner
//   plan   the grid strides over 16-byte packets of y, single elements where rows are odd; reads x
//          in runs of a position, once for each output it is in, from a cache
//   code   16-byte loads
//   slack  14 for inner >= 32 and taps <= 11*to; 130 beyond (a sector for each tap)
//   bits   one element, one thread, taps in order: repeatable
template <class T>
__global__ void __launch_bounds__(256) resample_axis_fwd(
    T*           __restrict__ y,         // [outer, to, inner]
    const T*     __restrict__ x,         // [outer, from, inner]
    const int*   __restrict__ starts,    // [to]
    const int*   __restrict__ begins,    // [to + 1]
    const float* __restrict__ weights,   // [taps]
    int outer, int from, int to, int inner, int taps) {
    const bool packets = inner % width<T> == 0 && aligned(y, x);
    const unsigned depth = inner, count = to;
    each<T>(static_cast<unsigned>(outer) * count * depth, packets, [&](unsigned i, auto n) {
        constexpr int N = decltype(n)::value;
        const unsigned j = i / depth % count, o = i / depth / count;
        const T* own = x + (o * from + starts[j]) * depth + i % depth;
        Floats<N> sum = {};
        for (int k = begins[j]; k < begins[j + 1]; ++k, own += depth) {
            const float weight = weights[k];
            const Floats<N> v = load<N>(own);
#pragma unroll
            for (int e = 0; e < N; ++e) sum.at[e] = fmaf(weight, v.at[e], sum.at[e]);
        }
        store(y + i, sum);
    });
}
