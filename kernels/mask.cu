// Which positions the transformer sees, and what it reads at the others (src/ops/mask.rs).
#include "lib/math.cuh"
#include "lib/order.cuh"
#include "lib/philox.cuh"
#include "lib/rows.cuh"

constexpr float ROOM = 1e-6f;   // Added to the deviation before dividing by it.

// The l2 norm of a row of `cols` numbers, in all lanes.
template <class T>
__device__ __forceinline__ float row_norm(const T* x, int cols, bool packets) {
    const T* const rows[1] = {x};
    const auto square = [](auto& v, int i) { return v[0].at[i] * v[0].at[i]; };
    const float sum = packets ? row_sum(Reread<T, width<T>, 1>(rows, cols), square)
                              : row_sum(Reread<T, 1, 1>(rows, cols), square);
    return sqrtf(sum);
}

// keep_mask_fwd: 1 where a position's normalised saliency exceeds its threshold, else 0. Saliency
// is the l2 norm of its `cols` numbers; `normalise` is 0 for z-scores over a sample's n positions,
// 1 for the share of the root mean square, 2 for none; thresholds are normals of each sample's
// stream, or 0.
//   for    T: f32, bf16
//   floor  bytes = rows*(n*cols*s + 12*n + 16);  flops = rows*(5120 + n*(2*cols + 160))
//   plan   a block a sample: a warp a position for the norms, then mean, deviation and thresholds
//          over the norms, which a cache holds
//   code   16-byte loads
//   slack  1.6 for cols >= 8; 8 beyond (a position is a part of a sector)
//   bits   fixed trees; thresholds are a function of sample and position
template <class T>
__global__ void __launch_bounds__(256, 2) keep_mask_fwd(
    float*     __restrict__ keep,       // [rows, n]
    float*     __restrict__ saliency,   // [rows, n]
    const T*   __restrict__ g,          // [rows*n, cols]
    const int* __restrict__ names,      // [rows, 4]
    int rows, int n, int cols, unsigned last, int normalise, bool sampled) {
    await_previous();
    __shared__ float hold[WARP];
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const unsigned warps = blockDim.x / WARP, positions = n;
    const bool packets = cols % width<T> == 0 && aligned(g);
    const float inverse = 1.0f / n;
    for (unsigned b = blockIdx.x; b < static_cast<unsigned>(rows); b += gridDim.x) {
        float* own = saliency + b * positions;
        for (unsigned p = warp; p < positions; p += warps) {
            const float norm = row_norm(g + row_at(b * positions + p, cols), cols, packets);
            if (lane == 0) own[p] = norm;
        }
        __syncthreads();
        // About the first, so that equal saliencies have no deviation at all.
        const float first = n > 0 ? own[0] : 0.0f;
        float sum = 0.0f, squares = 0.0f;
        for (unsigned p = threadIdx.x; p < positions; p += blockDim.x) sum += own[p] - first;
        const float mean = fmaf(block_sum(sum, hold), inverse, first);
        for (unsigned p = threadIdx.x; p < positions; p += blockDim.x) {
            const float gap = own[p] - mean;
            squares = fmaf(gap, gap, squares);
        }
        const float variance = block_sum(squares, hold) * inverse;
        const float spread = normalise == 0 ? variance : fmaf(mean, mean, variance);
        const float middle = normalise == 0 ? mean : 0.0f;
        const float factor = normalise == 2 ? 1.0f : 1.0f / (sqrtf(spread) + ROOM);
        const Stream stream = stream_of(names, b, last);
        for (unsigned p = 4 * threadIdx.x; p < positions; p += 4 * blockDim.x) {
            const Normals gamma = sampled ? normals(words(stream, p / 4)) : Normals{};
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                if (p + k >= positions) break;
                const float level = (own[p + k] - middle) * factor;
                keep[b * positions + p + k] = level > gamma.at[k] ? 1.0f : 0.0f;
            }
        }
    }
}

// keep_coins_fwd: 1 where the uniform of a sample's stream is below `rate`, else 0.
//   floor  bytes = 4*rows*n + 16*rows;  flops = rows*n
//   plan   a thread a block of Philox: four positions
//   slack  5.5 (samples that are no whole packets go out in single elements)
//   bits   a function of sample and position
__global__ void __launch_bounds__(256) keep_coins_fwd(
    float*     __restrict__ keep,    // [rows, n]
    const int* __restrict__ names,   // [rows, 4]
    int rows, int n, unsigned last, double rate) {
    await_previous();
    const unsigned positions = n, across = (positions + 3) / 4, step = gridDim.x * blockDim.x;
    const unsigned all = rows * across;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < all; i += step) {
        const unsigned b = i / across, p = i % across;
        const Words w = words(stream_of(names, b, last), p);
        Floats<4> coins;
#pragma unroll
        for (int k = 0; k < 4; ++k) coins.at[k] = unit(w.at[k]) < rate ? 1.0f : 0.0f;
        float* own = keep + b * positions + 4 * p;
        if (positions % 4 == 0 && aligned(keep)) {
            store(own, coins);
        } else {
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                if (4 * p + k < positions) own[k] = coins.at[k];
            }
        }
    }
}

// select_rows_fwd: y = (keep ? x : e) + table, the table's rows serving one batch after another.
//   for    T: f32, bf16
//   floor  bytes = rows*cols*s + 4*rows + cols*s*tabled*min(rows, period);
//          flops = tabled*rows*cols
//   plan   one warp a row, in runs: 16-byte loads; a row that is not kept is not read
//   code   16-byte loads
//   slack  4 for cols >= 8; 12 beyond (e and the table are read by every row, from a cache)
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) select_rows_fwd(
    T*           __restrict__ y,       // [rows, cols]
    const T*     __restrict__ x,       // [rows, cols]
    const float* __restrict__ keep,    // [rows]
    const T*     __restrict__ e,       // [cols]
    const T*     __restrict__ table,   // [tabled*period, cols]
    int rows, int cols, int period, int tabled) {
    await_previous();
    const bool packets =
        cols % width<T> == 0 && aligned(y, x, e) && (tabled == 0 || aligned(table));
    const unsigned warps = gridDim.x * (blockDim.x / WARP);
    unsigned r = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    for (; r < static_cast<unsigned>(rows); r += warps) {
        const T* from = keep[r] != 0.0f ? x + row_at(r, cols) : e;
        const T* more = table + row_at(r % static_cast<unsigned>(period), cols);
        const auto put = [&](unsigned c, auto w) {
            constexpr int N = decltype(w)::value;
            Floats<N> v = load<N>(from + c);
            if (tabled != 0) {
                const Floats<N> t = load<N>(more + c);
#pragma unroll
                for (int k = 0; k < N; ++k) v.at[k] += t.at[k];
            }
            store(y + row_at(r, cols) + c, v);
        };
        const unsigned length = cols, lane = threadIdx.x % WARP;
        constexpr int N = width<T>;
        if (packets) {
            for (unsigned c = lane * N; c < length; c += WARP * N) put(c, Width<N>());
        } else {
            for (unsigned c = lane; c < length; c += WARP) put(c, Width<1>());
        }
    }
}

// mask_rows_fwd: y = x in the rows where `keep` is not 0, or, with `rest`, in the others; 0
// elsewhere.
//   for    T: f32, bf16
//   floor  bytes = rows*cols*s + 4*rows;  flops = 0
//   plan   one warp a row, in runs: 16-byte loads; a row that is not taken is not read
//   code   16-byte loads
//   slack  2.1 for cols >= 8; 6 beyond
//   bits   copies
template <class T>
__global__ void __launch_bounds__(256) mask_rows_fwd(
    T*           __restrict__ y,      // [rows, cols]
    const T*     __restrict__ x,      // [rows, cols]
    const float* __restrict__ keep,   // [rows]
    int rows, int cols, bool rest) {
    await_previous();
    const bool packets = cols % width<T> == 0 && aligned(y, x);
    const unsigned warps = gridDim.x * (blockDim.x / WARP);
    unsigned r = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    for (; r < static_cast<unsigned>(rows); r += warps) {
        const bool taken = (keep[r] != 0.0f) != rest;
        const unsigned long long begin = row_at(r, cols);
        const auto put = [&](unsigned c, auto w) {
            constexpr int N = decltype(w)::value;
            store(y + begin + c, taken ? load<N>(x + begin + c) : Floats<N>{});
        };
        const unsigned length = cols, lane = threadIdx.x % WARP;
        constexpr int N = width<T>;
        if (packets) {
            for (unsigned c = lane * N; c < length; c += WARP * N) put(c, Width<N>());
        } else {
            for (unsigned c = lane; c < length; c += WARP) put(c, Width<1>());
        }
    }
}
