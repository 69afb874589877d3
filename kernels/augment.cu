// Image operators that make counterfactuals (src/ops/augment.rs): [batch, pixels, 3] in [-1, 1].
//
// A thread takes four pixels, three packets, where they are whole and aligned, else one.
#include "lib/math.cuh"
#include "lib/order.cuh"
#include "lib/packet.cuh"
#include "lib/reduce.cuh"

constexpr float HALF_RANGE = 127.5f;   // 8-bit steps in 1.

// N pixels with their channels.
template <int N>
struct Pixels {
    float at[N][3];

    template <class T>
    __device__ __forceinline__ explicit Pixels(const T* p) {
#pragma unroll
        for (int k = 0; k < 3; ++k) {
            const Floats<N> part = load<N>(p + k * N);
#pragma unroll
            for (int i = 0; i < N; ++i) at[(k * N + i) / 3][(k * N + i) % 3] = part.at[i];
        }
    }

    template <class T>
    __device__ __forceinline__ void put(T* p) const {
#pragma unroll
        for (int k = 0; k < 3; ++k) {
            Floats<N> part;
#pragma unroll
            for (int i = 0; i < N; ++i) part.at[i] = at[(k * N + i) / 3][(k * N + i) % 3];
            store(p + k * N, part);
        }
    }
};

// Calls f(first element, Width<pixels>) for this thread's share of `count` pixels, of which
// `packets` says whether fours begin at multiples of a packet.
template <class F>
__device__ __forceinline__ void each_pixels(
    unsigned count, bool packets, unsigned thread, unsigned threads, F f) {
    if (packets) {
        for (unsigned p = 4 * thread; p < count; p += 4 * threads) f(3 * p, Width<4>());
    } else {
        for (unsigned p = thread; p < count; p += threads) f(3 * p, Width<1>());
    }
}

// NaN stays.
__device__ __forceinline__ float clipped(float v, float low, float high) {
    return v < low ? low : v > high ? high : v;
}

// Row vector times a matrix [3, 3].
__device__ __forceinline__ void times(float (&v)[3], const float* m) {
    const float x = v[0], y = v[1], z = v[2];
#pragma unroll
    for (int c = 0; c < 3; ++c) v[c] = fmaf(z, m[6 + c], fmaf(y, m[3 + c], x * m[c]));
}

// stain_hue_fwd: a linear map and a shift of optical densities, which is what scaled stains are,
// then a linear map of the colours, which is what a turn of the hue is. `how` is [3, 3], [3] and
// [3, 3].
//   for    T: f32, bf16
//   floor  bytes = 6*rows*pixels*s + 84*rows;  flops = 195*rows*pixels
//   plan   the grid strides over four pixels a thread
//   slack  30 for pixels < 64 (maps for few pixels); 4 beyond (pixels that are no whole fours come
//          number by number, and each reads its maps from a cache)
//   bits   one pixel, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256, 2) stain_hue_fwd(
    T*           __restrict__ y,     // [rows, 3*pixels]
    const T*     __restrict__ x,     // [rows, 3*pixels]
    const float* __restrict__ how,   // [rows, 21]
    int rows, int pixels) {
    await_previous();
    const bool packets = pixels % 4 == 0 && aligned(y, x);
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned all = static_cast<unsigned>(rows) * pixels;
    each_pixels(all, packets, thread, gridDim.x * blockDim.x, [&](unsigned i, auto w) {
        constexpr int N = decltype(w)::value;
        const float* own = how + 21 * (i / 3 / pixels);
        Pixels<N> p(x + i);
#pragma unroll
        for (int n = 0; n < N; ++n) {
            float (&v)[3] = p.at[n];
#pragma unroll
            for (int c = 0; c < 3; ++c) {
                v[c] = -logf((fmaf(v[c], HALF_RANGE, HALF_RANGE) + 1.0f) / 256.0f);
            }
            times(v, own);
#pragma unroll
            for (int c = 0; c < 3; ++c) {
                const float light = fmaf(256.0f, exp_of(-(v[c] + own[9 + c])), -1.0f);
                v[c] = clipped(light, 0.0f, 255.0f);
            }
            times(v, own + 12);
#pragma unroll
            for (int c = 0; c < 3; ++c) {
                v[c] = clipped(fmaf(v[c], 1.0f / HALF_RANGE, -1.0f), -1.0f, 1.0f);
            }
        }
        p.put(y + i);
    });
}

// contrast_fwd: y = mean + factor (x - mean), with the mean of each channel over a tile.
//   for    T: f32, bf16
//   floor  bytes = 6*rows*pixels*s + 4*rows;  flops = rows*(9*pixels + 7680)
//   plan   a block a tile: sums, then the tile again, from a cache
//   slack  5 (read twice, and pixels that are no whole fours come number by number)
//   bits   fixed trees, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256, 2) contrast_fwd(
    T*           __restrict__ y,        // [rows, 3*pixels]
    const T*     __restrict__ x,        // [rows, 3*pixels]
    const float* __restrict__ factor,   // [rows]
    int rows, int pixels) {
    await_previous();
    __shared__ float hold[WARP];
    const bool packets = pixels % 4 == 0 && aligned(y, x);
    for (unsigned b = blockIdx.x; b < static_cast<unsigned>(rows); b += gridDim.x) {
        const T* from = x + 3 * b * static_cast<unsigned>(pixels);
        T* to = y + 3 * b * static_cast<unsigned>(pixels);
        float mean[3] = {};
        each_pixels(pixels, packets, threadIdx.x, blockDim.x, [&](unsigned i, auto w) {
            constexpr int N = decltype(w)::value;
            const Pixels<N> p(from + i);
#pragma unroll
            for (int n = 0; n < N; ++n) {
#pragma unroll
                for (int c = 0; c < 3; ++c) mean[c] += p.at[n][c];
            }
        });
        const float scale = factor[b], inverse = 1.0f / pixels;
#pragma unroll
        for (int c = 0; c < 3; ++c) mean[c] = block_sum(mean[c], hold) * inverse;
        each_pixels(pixels, packets, threadIdx.x, blockDim.x, [&](unsigned i, auto w) {
            constexpr int N = decltype(w)::value;
            Pixels<N> p(from + i);
#pragma unroll
            for (int n = 0; n < N; ++n) {
#pragma unroll
                for (int c = 0; c < 3; ++c) {
                    const float v = fmaf(scale, p.at[n][c] - mean[c], mean[c]);
                    p.at[n][c] = clipped(v, -1.0f, 1.0f);
                }
            }
            p.put(to + i);
        });
    }
}

// Half of a symmetric window of 11 taps.
struct Bell {
    float at[6];
};

// The window round element i of a line of `length` elements `step` apart, the ends repeated.
template <class T>
__device__ __forceinline__ float blurred(
    const T* line, unsigned i, unsigned length, unsigned step, const Bell& bell) {
    float sum = bell.at[0] * to_float(line[i * step]);
#pragma unroll
    for (unsigned k = 1; k < 6; ++k) {
        const unsigned before = i < k ? 0 : i - k, after = min(i + k, length - 1);
        sum = fmaf(bell.at[k], to_float(line[before * step]) + to_float(line[after * step]), sum);
    }
    return sum;
}

// blur_across_fwd: a blur along each line of pixels.
//   for    T: f32, bf16
//   floor  bytes = 3*rows*cols*(s + 4);  flops = 48*rows*cols
//   plan   the grid strides over numbers; neighbours come from a cache
//   slack  12 (eleven taps)
//   bits   one number, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) blur_across_fwd(
    float*   __restrict__ y,   // [rows, 3*cols]
    const T* __restrict__ x,   // [rows, 3*cols]
    int rows, int cols, float b0, float b1, float b2, float b3, float b4, float b5) {
    await_previous();
    const Bell bell = {{b0, b1, b2, b3, b4, b5}};
    const unsigned length = cols, all = 3 * length * rows, step = gridDim.x * blockDim.x;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < all; i += step) {
        const unsigned c = i % 3, col = i / 3 % length;
        y[i] = blurred(x + (i - 3 * col - c) + c, col, length, 3, bell);
    }
}

// unsharp_fwd: y = x + amount (x - blur), the blur along columns of what is blurred along lines.
//   for    T: f32, bf16
//   floor  bytes = 3*batch*rows*cols*(2*s + 4) + 4*batch;  flops = 57*batch*rows*cols
//   plan   the grid strides over numbers; neighbours come from a cache
//   slack  12 (eleven taps)
//   bits   one number, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) unsharp_fwd(
    T*           __restrict__ y,        // [batch, rows, 3*cols]
    const T*     __restrict__ x,        // [batch, rows, 3*cols]
    const float* __restrict__ across,   // [batch, rows, 3*cols]
    const float* __restrict__ amount,   // [batch]
    int batch, int rows, int cols, float b0, float b1, float b2, float b3, float b4, float b5) {
    await_previous();
    const Bell bell = {{b0, b1, b2, b3, b4, b5}};
    const unsigned line = 3 * cols, down = rows, all = line * down * batch;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < all; i += gridDim.x * blockDim.x) {
        const unsigned row = i / line % down;
        const float soft = blurred(across + (i - row * line), row, down, line, bell);
        const float v = to_float(x[i]);
        const float sharp = fmaf(amount[i / line / down], v - soft, v);
        y[i] = from_float<T>(clipped(sharp, -1.0f, 1.0f));
    }
}
