// Products whose one side has few rows: the other side's lines stream past them, read once each.
//
// A line's sum is cut along k into slices, one a warp; a block's slices are joined in their order.
#pragma once

#include "lib/block.cuh"
#include "lib/finish.cuh"

// A product whose one side has few rows: row i of `few` and column j of `many`, both along k. The
// result is [cols, rows] where swapped. In groups of rows each group has its own `many`, or all
// share one; then the last group may have fewer rows.
template <class T>
struct Thin {
    const T *few, *many;
    unsigned rows, each, total, cols, k;
    bool shared, swapped;

    __device__ __forceinline__ Thin(const T* few, const T* many, int rows, int total, int cols,
                                    int k, bool shared, bool swapped)
        : few(few), many(many), rows(rows), each(rows), total(total), cols(cols), k(k),
          shared(shared), swapped(swapped) {}

    // The same of group b.
    __device__ __forceinline__ Thin group(unsigned b) const {
        Thin other = *this;
        other.few += b * each * k;
        other.many += shared ? 0 : b * cols * k;
        other.rows = min(each, total - b * each);
        return other;
    }

    // Asks for `count` columns of group b from `col` on: weights as a rule.
    __device__ __forceinline__ void ask(unsigned b, unsigned col, unsigned count) const {
        const T* own = many + (shared ? 0 : b * cols * k);
        if (col < cols) ask_for_lines(own + col * k, min(count, cols - col), k, k);
    }

    // Whether every line begins at a multiple of 16 bytes.
    __device__ __forceinline__ bool packets() const {
        return k % width<T> == 0 && aligned(few, many);
    }

    // Stores sum (i, j) of group b, if there is one.
    __device__ __forceinline__ void put(const Finish<T>& finish, unsigned b, unsigned i, unsigned j,
                                        float sum) const {
        if (i >= rows || j >= cols) return;
        if (swapped) {
            finish(b * cols + j, i, Floats<1>{{sum}});
        } else {
            finish(b * each + i, j, Floats<1>{{sum}});
        }
    }
};

constexpr unsigned WARPS = 8;

// Adds what the slices of a sum hold in `hold`, slice by slice; STEP floats lie between them.
__device__ __forceinline__ float in_order(const float* hold, unsigned slices, unsigned step) {
    float sum = hold[0];
    for (unsigned s = 1; s < slices; ++s) sum += hold[s * step];
    return sum;
}

// Adds to sums[r * C + c] a lane's part of row r by column col + c: packets `first`, `first + step`
// and so on of N neighbours along k.
template <int N, int R, int C, class T>
__device__ __forceinline__ void add_dots(float (&sums)[R * C], const Thin<T>& thin, unsigned col,
                                         unsigned first, unsigned step) {
    if (col >= thin.cols) return;
    constexpr int AHEAD = R > 8 ? 1 : 2;
#pragma unroll AHEAD
    for (unsigned l = first * N; l < thin.k; l += step * N) {
        Floats<N> w[C];
#pragma unroll
        for (int c = 0; c < C; ++c) {
            // Beyond the last column its sum is made again, and not stored.
            w[c] = load<N>(thin.many + min(col + c, thin.cols - 1) * thin.k + l);
        }
#pragma unroll
        for (int r = 0; r < R; ++r) {
            Floats<N> x = {};
            if (r < thin.rows) x = load<N>(thin.few + r * thin.k + l);
#pragma unroll
            for (int c = 0; c < C; ++c) {
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    sums[r * C + c] = fmaf(x.at[i], w[c].at[i], sums[r * C + c]);
                }
            }
        }
    }
}

// Eight neighbours along k of line i of `lines`, as four words; zeros beyond k and the last line.
template <bool PACKETS>
__device__ __forceinline__ uint4 line_part(const bf16* at, unsigned i, unsigned lines, unsigned l,
                                           unsigned k) {
    const bf16* line = at + i * k;
    unsigned word[4] = {};
    if (i >= lines) return {};
    if constexpr (PACKETS) {
        return l < k ? *reinterpret_cast<const uint4*>(line + l) : uint4{};
    } else {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            if (l + j < k) word[j / 2] |= static_cast<unsigned>(line[l + j].bits) << 16 * (j % 2);
        }
        return {word[0], word[1], word[2], word[3]};
    }
}

// Adds to the sums of R rows by 8 columns from `col` on: 32 of k every STEP from l to `end`.
template <bool PACKETS, int R>
__device__ __forceinline__ void add_dots_mma(float (&sums)[over(R, 16)][4], const Thin<bf16>& thin,
                                             unsigned col, unsigned l, unsigned end,
                                             unsigned step) {
    const unsigned line = threadIdx.x % WARP / 4;
    constexpr int AHEAD = PACKETS ? 2 : 1;
#pragma unroll AHEAD
    for (l += threadIdx.x % 4 * 8; l < end; l += step) {
        const uint4 w = line_part<PACKETS>(thin.many, col + line, thin.cols, l, thin.k);
        uint4 x[R / 8];
#pragma unroll
        for (int i = 0; i < R / 8; ++i) {
            x[i] = line_part<PACKETS>(thin.few, 8 * i + line, thin.rows, l, thin.k);
        }
#pragma unroll
        for (int i = 0; i < R / 8; i += 2) {
            const uint4 up = x[i], down = R > 8 ? x[(i + 1) % (R / 8)] : uint4{};
            mma(sums[i / 2], {up.x, down.x, up.y, down.y}, w.x, w.y);
            mma(sums[i / 2], {up.z, down.z, up.w, down.w}, w.z, w.w);
        }
    }
}

// The sums of R rows by C columns from `col` on, a warp a slice of k; `slices` neighbouring warps
// have the same columns. Calls put(row, column, sum) once for each, also beyond the last ones.
// Every thread of the block must call.
template <int R, int C, class Put>
__device__ __forceinline__ void thin_sums(float (&hold)[WARPS][WARP], const Thin<float>& thin,
                                          bool packets, unsigned col, unsigned slice,
                                          unsigned slices, Put put) {
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float sums[R * C] = {};
    if (packets) {
        add_dots<width<float>, R, C>(sums, thin, col, slice * WARP + lane, slices * WARP);
    } else {
        add_dots<1, R, C>(sums, thin, col, slice * WARP + lane, slices * WARP);
    }
    hold[warp][lane] = scatter_sum(sums);
    __syncthreads();
    // Lanes in groups hold the same sum.
    constexpr int GROUP = WARP / (R * C);
    if (slice == 0 && lane % GROUP == 0) {
        const float sum = in_order(&hold[warp][lane], slices, WARP);
        const unsigned at = lane / GROUP;
        put(at / C, col + at % C, sum);
    }
    __syncthreads();
}

// The same on the tensor cores: 8 columns.
template <int R, class Put>
__device__ __forceinline__ void thin_sums(float (&hold)[WARPS][R / 4][WARP],
                                          const Thin<bf16>& thin, bool packets, unsigned col,
                                          unsigned slice, unsigned slices, Put put) {
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    // A warp goes on together, to the end of the last 32; one without columns not at all.
    const unsigned end = col < thin.cols ? over(thin.k, 32) * 32 : 0;
    float sums[over(R, 16)][4] = {};
    if (packets) {
        add_dots_mma<true, R>(sums, thin, col, slice * 32, end, slices * 32);
    } else {
        add_dots_mma<false, R>(sums, thin, col, slice * 32, end, slices * 32);
    }
#pragma unroll
    for (int i = 0; i < R / 4; ++i) hold[warp][i][lane] = sums[i / 4][i % 4];
    __syncthreads();
    // Each warp of a slice joins a part of what the slices hold.
    for (unsigned i = slice; i < R / 4; i += slices) {
        const float sum = in_order(&hold[warp - slice][i][lane], slices, R / 4 * WARP);
        put(i / 2 * 8 + lane / 4, col + lane % 4 * 2 + i % 2, sum);
    }
    __syncthreads();
}
