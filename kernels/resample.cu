// Resampling of channels-last maps, an axis at a time (src/ops/resample.rs): columns, then rows of
// what comes of them, which is kept in float.
//
// The matrix of an axis is banded: output j of it is a sum over neighbouring inputs from starts[j]
// on, with weights begins[j]..begins[j + 1] of the list.
#include "lib/order.cuh"
#include "lib/packet.cuh"

// y[o, j] = sum over k of weights[begins[j] + k] x[o, starts[j] + k].
template <class To, class From>
__device__ __forceinline__ void resample_axis(To* y, const From* x, const int* starts,
                                              const int* begins, const float* weights,
                                              unsigned outer, unsigned from, unsigned to,
                                              unsigned inner) {
    const bool packets = inner % 4 == 0 && aligned(y, x);
    each<float>(outer * to * inner, packets, [&](unsigned i, auto n) {
        constexpr int N = decltype(n)::value;
        const unsigned j = i / inner % to, o = i / inner / to;
        const From* own = x + (o * from + starts[j]) * inner + i % inner;
        Floats<N> sum = {};
        for (int k = begins[j]; k < begins[j + 1]; ++k, own += inner) {
            const float weight = weights[k];
            const Floats<N> v = load<N>(own);
#pragma unroll
            for (int e = 0; e < N; ++e) sum.at[e] = fmaf(weight, v.at[e], sum.at[e]);
        }
        store(y + i, sum);
    });
}

// resample_cols_fwd: the columns of maps, to float.
//   for    T: f32, bf16
//   floor  bytes = 4*outer*to*inner;  flops = 2*outer*taps*inner
//   plan   the grid strides over four neighbours of y, single elements where rows are odd; reads x
//          in runs of a position, once for each output it is in, from a cache
//   slack  14 for inner >= 32 and taps <= 11*to; 130 beyond (a sector for each tap)
//   bits   one element, one thread, taps in order: repeatable
template <class T>
__global__ void __launch_bounds__(256) resample_cols_fwd(
    float*       __restrict__ y,         // [outer, to, inner]
    const T*     __restrict__ x,         // [outer, from, inner]
    const int*   __restrict__ starts,    // [to]
    const int*   __restrict__ begins,    // [to + 1]
    const float* __restrict__ weights,   // [taps]
    int outer, int from, int to, int inner, int taps) {
    await_previous();
    resample_axis(y, x, starts, begins, weights, outer, from, to, inner);
}

// resample_rows_fwd: the rows of what resample_cols_fwd left.
//   for    T: f32, bf16
//   floor  bytes = outer*to*inner*s;  flops = 2*outer*taps*inner
//   plan   as resample_cols_fwd, in runs likewise
//   code   16-byte loads
//   slack  14 for inner >= 32 and taps <= 11*to and s >= 4; 28 for inner >= 32 and taps <= 11*to;
//          130 for s >= 4; 260 beyond (a sector for each tap, which are floats for y of any type)
//   bits   one element, one thread, taps in order: repeatable
template <class T>
__global__ void __launch_bounds__(256) resample_rows_fwd(
    T*           __restrict__ y,         // [outer, to, inner]
    const float* __restrict__ x,         // [outer, from, inner]
    const int*   __restrict__ starts,    // [to]
    const int*   __restrict__ begins,    // [to + 1]
    const float* __restrict__ weights,   // [taps]
    int outer, int from, int to, int inner, int taps) {
    await_previous();
    resample_axis(y, x, starts, begins, weights, outer, from, to, inner);
}
