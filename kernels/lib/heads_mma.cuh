// Attention's rows on the tensor cores: parts of a head as bf16 tiles in shared memory, and a
// warp's 16 queries by a tile of keys in registers.
#pragma once

#include "lib/heads.cuh"
#include "lib/mma.cuh"
#include "lib/tile.cuh"

// Threads of a block: four warps with 16 queries each.
constexpr int MMA_THREADS = 128, MMA_QUERIES = 64;

// ROWS rows of D of a head, permuted as lib/tile.cuh permutes a matrix's lines. Its rows are a
// product's rows (queries, keys), or its inner extent (values).
template <int ROWS, int D>
struct HeadTile {
    using Lines = MmaTile<true, ROWS, D, MMA_THREADS>;
    using Inner = MmaTile<false, D, ROWS, MMA_THREADS>;
    static constexpr int PACKETS = D / 8;
    bf16 at[ROWS * D];

    // Starts to fill it with `count` rows from `first` on, with zeros beyond them.
    __device__ __forceinline__ void fetch(const bf16* from, const Head& h, int first, int count) {
        const bool packets = h.width % 8 == 0 && aligned(from);
        const unsigned live = static_cast<unsigned>(count);
        if (packets) {
#pragma unroll
            for (int i = threadIdx.x; i < ROWS * PACKETS; i += MMA_THREADS) {
                const unsigned row = i / PACKETS, packet = i % PACKETS;
                const bool has = row < live && packet * 8 < h.width;
                const bf16* p = from + (has ? h.at(first + row) + packet * 8 : 0);
                copy_packet(at + Lines::place(row, packet), p, has);
            }
            return;
        }
        for (int i = threadIdx.x; i < ROWS * D; i += MMA_THREADS) {
            const unsigned row = i / D, col = i % D;
            const bool has = row < live && col < h.width;
            at[Lines::place(row, col / 8) + col % 8] =
                has ? from[h.at(first + row) + col] : bf16{0};
        }
    }
};

// 16 queries of a warp by KEYS keys: of 8 columns at a time a lane has row lane / 4 at columns
// 2 (lane % 4) and the next, then row lane / 4 + 8.
template <int KEYS>
struct WarpScores {
    float at[KEYS / 8][4];

    static __device__ __forceinline__ int col(int n, int i) {
        return 8 * n + threadIdx.x % 4 * 2 + i % 2;
    }

    __device__ __forceinline__ void zero() {
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) at[n][i] = 0.0f;
        }
    }

    // Adds the part of q k^T that 16 of the width make, from d on.
    template <int D>
    __device__ __forceinline__ void add_part(const unsigned (&q)[4], const HeadTile<KEYS, D>& k,
                                             int d) {
#pragma unroll
        for (int n = 0; n < KEYS; n += 16) {
            unsigned b[4];
            HeadTile<KEYS, D>::Lines::template fragment<false>(b, k.at, n, d);
            mma(at[n / 8], q, b[0], b[1]);
            mma(at[n / 8 + 1], q, b[2], b[3]);
        }
    }

    // Adds q k^T, q held in fragments, or its warp's rows taken out of a tile as they are wanted.
    template <int D>
    __device__ __forceinline__ void add(const unsigned (&q)[D / 16][4],
                                        const HeadTile<KEYS, D>& k) {
#pragma unroll
        for (int d = 0; d < D; d += 16) add_part(q[d / 16], k, d);
    }

    template <int D>
    __device__ __forceinline__ void add(const HeadTile<MMA_QUERIES, D>& q,
                                        const HeadTile<KEYS, D>& k) {
#pragma unroll
        for (int d = 0; d < D; d += 16) {
            unsigned own[4];
            HeadTile<MMA_QUERIES, D>::Lines::template fragment<true>(
                own, q.at, threadIdx.x / 32 * 16, d);
            add_part(own, k, d);
        }
    }

    // q k^T.
    template <int D>
    __device__ __forceinline__ void multiply(const unsigned (&q)[D / 16][4],
                                             const HeadTile<KEYS, D>& k) {
        zero();
        add(q, k);
    }
};

// The sum and the largest over the four lanes of a row.
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// What the upper digits of a weight leave of it. It keeps the weight's sign, so that weights that
// are exact, or infinite, still meet an infinite value with one.
template <bool SIGNED>
__device__ __forceinline__ float rest_of(float weight, float rest) {
    const float least = 1.1754944e-38f;
    if constexpr (SIGNED) {
        return weight == 0.0f ? 0.0f : copysignf(fmaxf(fabsf(rest), least), weight);
    } else {
        return weight > 0.0f ? fmaxf(rest, least) : rest;
    }
}

// Two weights in two words of bf16: the upper 8 digits of each, cut, and the next 8, rounded.
template <bool SIGNED>
__device__ __forceinline__ void split(float a, float b, unsigned& upper, unsigned& lower) {
    const unsigned high_a = __float_as_uint(a) & 0xffff0000u;
    const unsigned high_b = __float_as_uint(b) & 0xffff0000u;
    upper = high_a >> 16 | high_b;
    const float rest_a = a - __uint_as_float(high_a), rest_b = b - __uint_as_float(high_b);
    lower = to_bf16x2(rest_of<SIGNED>(a, rest_a), rest_of<SIGNED>(b, rest_b));
}

// 16 queries of a warp by D of their sums, laid out as WarpScores.
template <int D>
struct WarpRows {
    float at[D / 8][4];

    // Adds p v, p in two words; SIGNED where p may be negative, or more than finite.
    template <int KEYS, bool SIGNED = false>
    __device__ __forceinline__ void add(const WarpScores<KEYS>& p, const HeadTile<KEYS, D>& v) {
#pragma unroll
        for (int k = 0; k < KEYS; k += 16) {
            unsigned upper[4], lower[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float* pair = &p.at[k / 8 + i / 2][i % 2 * 2];
                split<SIGNED>(pair[0], pair[1], upper[i], lower[i]);
            }
#pragma unroll
            for (int d = 0; d < D; d += 16) {
                unsigned b[4];
                HeadTile<KEYS, D>::Inner::template fragment<false>(b, v.at, d, k);
                mma(at[d / 8], lower, b[0], b[1]);
                mma(at[d / 8], upper, b[0], b[1]);
                mma(at[d / 8 + 1], lower, b[2], b[3]);
                mma(at[d / 8 + 1], upper, b[2], b[3]);
            }
        }
    }

    // Writes a row's part times a factor; i is 0 for row lane / 4, 2 for row lane / 4 + 8.
    __device__ __forceinline__ void put(bf16* row, unsigned width, bool pairs, int i,
                                        float factor) const {
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            const unsigned c = 8 * n + threadIdx.x % 4 * 2;
            const float a = at[n][i] * factor, b = at[n][i + 1] * factor;
            if (pairs && c < width) {
                *reinterpret_cast<unsigned*>(row + c) = to_bf16x2(a, b);
            } else {
                if (c < width) row[c] = to_bf16(a);
                if (c + 1 < width) row[c + 1] = to_bf16(b);
            }
        }
    }
};
