// Sums over broadcast axes and their transpose, and moments of columns.
//
// Large operands are [k0, r0, k1, r1, k2], small ones [k0, k1, k2] (lib/broadcast.cuh).
#include "lib/broadcast.cuh"
#include "lib/order.cuh"
#include "lib/reduce.cuh"
#include "lib/strip.cuh"

// broadcast_to_fwd: y repeats x along r0 and r1.
//   for    T: f32, bf16
//   floor  bytes = (k0*r0*k1*r1*k2 + k0*k1*k2)*s;  flops = 0
//   plan   the grid strides over 16-byte packets; single elements where rows or addresses are odd
//   code   16-byte loads
//   slack  1.05 for r0*r1 <= 1; 2.05 beyond (x is read again where it repeats)
//   bits   copies
template <class T>
__global__ void __launch_bounds__(256) broadcast_to_fwd(
    T*       __restrict__ y,   // [k0, r0, k1, r1, k2]
    const T* __restrict__ x,   // [k0, k1, k2]
    int k0, int r0, int k1, int r1, int k2) {
    await_previous();
    const Spread s = spread(k0, r0, k1, r1, k2);
    each_spread<T>(s, aligned(y, x), [&](unsigned i, unsigned j, bool one, auto w) {
        constexpr int N = decltype(w)::value;
        store(y + i, load_spread<N>(x + j, one));
    });
}

// Sums of one block of terms: each of the 8 warps takes every 8th row of terms.
constexpr int SUM_WARPS = 8;

// sum_columns_fwd: y = sum of x over r0 and r1, for k2 > 1.
//   for    T: f32, bf16
//   floor  bytes = (k0*r0*k1*r1*k2 + k0*k1*k2)*s;  flops = k0*r0*k1*r1*k2 + 7*k0*k1*k2
//   plan   a block for 32 columns of one (k0, k1): a lane a column, 8 warps over the terms, then
//          the 8 partial sums in order
//   bits   fixed order, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) sum_columns_fwd(
    T*       __restrict__ y,   // [k0, k1, k2]
    const T* __restrict__ x,   // [k0, r0, k1, r1, k2]
    int k0, int r0, int k1, int r1, int k2) {
    await_previous();
    __shared__ float part[SUM_WARPS][32];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned strips = (static_cast<unsigned>(k2) + 31) / 32;
    const unsigned jobs = static_cast<unsigned>(k0) * k1 * strips;
    for (unsigned job = blockIdx.x; job < jobs; job += gridDim.x) {
        const unsigned column = job % strips * 32 + lane;
        const unsigned inner = job / strips % k1, outer = job / strips / k1;
        const bool live = column < static_cast<unsigned>(k2);
        float sum = 0.0f;
        for (unsigned t = warp; live && t < static_cast<unsigned>(r0) * r1; t += SUM_WARPS) {
            const unsigned a = t / r1, b = t % r1;
            const unsigned row = ((outer * r0 + a) * k1 + inner) * r1 + b;
            sum += to_float(x[row * k2 + column]);
        }
        part[warp][lane] = sum;
        __syncthreads();
        if (warp == 0 && live) {
            float all = part[0][lane];
#pragma unroll
            for (int i = 1; i < SUM_WARPS; ++i) all += part[i][lane];
            y[(outer * k1 + inner) * k2 + column] = from_float<T>(all);
        }
        __syncthreads();
    }
}

// sum_rows_fwd: y = sum of x over r0 and r1, for k2 = 1.
//   for    T: f32, bf16
//   floor  bytes = (k0*r0*k1*r1 + k0*k1)*s;  flops = k0*r0*k1*r1 + 160*k0*k1
//   plan   a warp for one (k0, k1): lanes over the terms, then a shuffle tree
//   slack  1.05 for k1 <= 1; 9 beyond (runs of r1 begin and end inside sectors)
//   bits   fixed order, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) sum_rows_fwd(
    T*       __restrict__ y,   // [k0, k1]
    const T* __restrict__ x,   // [k0, r0, k1, r1]
    int k0, int r0, int k1, int r1) {
    await_previous();
    const unsigned lane = threadIdx.x % 32;
    const unsigned warps = gridDim.x * (blockDim.x / 32);
    unsigned job = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    for (; job < static_cast<unsigned>(k0) * k1; job += warps) {
        const unsigned inner = job % k1, outer = job / k1;
        float sum = 0.0f;
        for (unsigned t = lane; t < static_cast<unsigned>(r0) * r1; t += 32) {
            const unsigned a = t / r1, b = t % r1;
            sum += to_float(x[((outer * r0 + a) * k1 + inner) * r1 + b]);
        }
        sum = warp_sum(sum);
        if (lane == 0) y[job] = from_float<T>(sum);
    }
}

// column_moments_fwd: for each chunk of `step` rows of an image, the sum of each column and its sum
// of squared deviations from the chunk's mean.
//   for    T: f32, bf16
//   floor  bytes = images*rows*cols*s + 8*images*ceil(rows, step)*cols;
//          flops = 4*images*rows*cols + 15*images*ceil(rows, step)*cols
//   plan   strips of 32 columns and `step` rows, a block each; at most 128 rows are read once
//   code   16-byte loads
//   slack  2.2 for step <= rows and cols >= 32 (trees, or read twice); 90 beyond (threads left over
//          by few rows or columns sum nothing)
//   bits   fixed trees, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) column_moments_fwd(
    float*   __restrict__ sums,      // [images, ceil(rows, step), cols]
    float*   __restrict__ squares,   // [images, ceil(rows, step), cols]
    const T* __restrict__ x,         // [images, rows, cols]
    int images, int rows, int cols, int step) {
    await_previous();
    __shared__ Meeting<1> first, second;
    const bool packets = cols % width<T> == 0 && aligned(x);
    const Cut all = cut(images, rows, cols, step);
    each_strip<T>({x}, all, packets, [&](const auto& strip, const Chunk& at) {
        const float inverse = 1.0f / at.rows;
        column_sums(first, strip, [](auto& v, int i, float (&term)[1]) { term[0] = v[0].at[i]; },
                    [&](int, int c, float sum) {
                        if (at.column(c) < at.cols) sums[at.number * at.cols + at.column(c)] = sum;
                        return sum * inverse;
                    });
        const auto m = own_columns(strip, first.total[0]);
        const auto square = [&](auto& v, int i, float (&term)[1]) {
            const float d = v[0].at[i] - m.at[i];
            term[0] = d * d;
        };
        column_sums(second, strip, square, [&](int, int c, float sum) {
            if (at.column(c) < at.cols) squares[at.number * at.cols + at.column(c)] = sum;
            return sum;
        });
    });
}
