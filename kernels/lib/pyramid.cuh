// A tile of the residual pyramid on chip, forwards and back: a warp has every sixteenth pixel, a
// lane a channel; one map in shared memory carries what neighbours must see.
#pragma once

#include "lib/math.cuh"
#include "lib/packet.cuh"
#include "lib/reduce.cuh"
#include "lib/scales.cuh"

constexpr int MOST = 16;               // Most rows of a map.
constexpr int PIXELS = MOST * MOST;
constexpr int WARPS = 16;
constexpr int EACH = PIXELS / WARPS;   // Pixels of a thread.
constexpr int GROUP = 4;               // Of those, how many a filter's weight meets at a time.

// What all tiles share: scale k has side `sides.side(k)` and the convolution that digit k of `phis`
// says; what it takes from the rest is keep * up + share * (convolution of up).
struct Pyramid {
    unsigned side, width, scales, filters;
    Scales sides;
    unsigned long long phis;
    float keep, share;

    __device__ __forceinline__ unsigned pixels() const { return side * side; }
    __device__ __forceinline__ unsigned phi(unsigned k) const { return phis >> (4 * k) & 0xf; }
};

// Calls f(slot, pixel) for this warp's pixels below `count`.
template <class F>
__device__ __forceinline__ void each_pixel(unsigned count, F f) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const unsigned pixel = i * WARPS + threadIdx.x / WARP;
        if (pixel < count) f(i, pixel);
    }
}

// The cubic convolution kernel (A = -3/4) at a distance in [0, 2].
__device__ __forceinline__ double cubic(double x) {
    return x <= 1.0 ? (1.25 * x - 2.25) * x * x + 1.0 : ((-0.75 * x + 3.75) * x - 6.0) * x + 3.0;
}

// What makes a row (or column) of an enlarged map: so many cells from `first` on. Taps beyond the
// border are added to those at it.
struct Line {
    unsigned first, count;
    float weight[4];
};

// Fills the lines of a map [side] from cells [p], when nobody reads them any more; they are there
// after a barrier. In double, so that weights are what rounding makes of the exact ones.
__device__ __forceinline__ void rule(Line* lines, unsigned p, unsigned side) {
    if (threadIdx.x >= side) return;
    const double centre = (threadIdx.x + 0.5) * p / side - 0.5, below = floor(centre);
    const double t = centre - below, far[4] = {1.0 + t, t, 1.0 - t, 2.0 - t};
    const int end = static_cast<int>(p) - 1, from = static_cast<int>(below) - 1;
    const int first = min(max(from, 0), end);
    double sum[4] = {};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const int cell = min(max(from + k, 0), end) - first;
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[c] += c == cell ? cubic(far[k]) : 0.0;
    }
    Line& own = lines[threadIdx.x];
    own.first = first;
    own.count = min(max(from + 3, 0), end) - first + 1;
#pragma unroll
    for (int c = 0; c < 4; ++c) own.weight[c] = static_cast<float>(sum[c]);
}

// A pixel of the side x side map that the p x p map becomes.
__device__ __forceinline__ float enlarged(const float* map, const Line* lines, unsigned pixel,
                                          unsigned p, unsigned side, unsigned width,
                                          unsigned lane) {
    const Line &rows = lines[pixel / side], &cols = lines[pixel % side];
    float sum = 0.0f;
    for (unsigned r = 0; r < rows.count; ++r) {
        const float* own = map + ((rows.first + r) * p + cols.first) * width + lane;
        float line = 0.0f;
        for (unsigned c = 0; c < cols.count; ++c) {
            line = fmaf(cols.weight[c], own[c * width], line);
        }
        sum = fmaf(rows.weight[r], line, sum);
    }
    return sum;
}

// Puts this thread's numbers of `count` pixels into a map, when nobody reads it any more.
__device__ __forceinline__ void put(float* map, const float (&held)[EACH], unsigned count,
                                    unsigned width) {
    const unsigned lane = threadIdx.x % WARP;
    __syncthreads();
    each_pixel(count, [&](int i, unsigned at) {
        if (lane < width) map[at * width + lane] = held[i];
    });
    __syncthreads();
}

// The vectors of codes [p, p] as a map, enlarged to the side of the pyramid; NaN for no code.
__device__ __forceinline__ void raise(float (&held)[EACH], float* map, Line* lines,
                                      const int* codes, const float* book, const Pyramid& of,
                                      unsigned p) {
    const unsigned lane = threadIdx.x % WARP, wide = of.width, all = of.pixels();
    const bool live = lane < wide;
    rule(lines, p, of.side);
    each_pixel(p * p, [&](int i, unsigned cell) {
        const int code = codes[cell];
        if (live) held[i] = code < 0 ? not_a_number() : book[code * wide + lane];
    });
    put(map, held, p * p, wide);
    each_pixel(all, [&](int i, unsigned pixel) {
        if (live && p != of.side) {
            held[i] = enlarged(map, lines, pixel, p, of.side, wide, lane);
        }
    });
    put(map, held, all, wide);
}
