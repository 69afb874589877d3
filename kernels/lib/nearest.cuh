// The search for the nearest code: a warp ranks codes for a few rows by x e - |e|^2 / 2, or by
// x e / |e|; the table of all scores never exists.
#pragma once

#include "lib/math.cuh"
#include "lib/packet.cuh"
#include "lib/reduce.cuh"

constexpr int WARP_ROWS = 4;                           // Rows of x that a warp ranks codes for.
constexpr int CODES = 2 * WARP;                        // Codes of a tile, two a lane.
constexpr int DEPTH = 16;                              // Numbers of a row or code in a tile.
constexpr float SHORTEST = 1e-12f;                     // Below it a code has no direction.

// What a block of so many warps shares.
template <int WARPS>
struct Tiles {
    static constexpr int ROWS = WARPS * WARP_ROWS;     // Rows of x that it ranks codes for.

    // A row more, so that neither rows nor columns meet in a bank.
    float codes[DEPTH][CODES + 1];
    alignas(16) float rows[ROWS][DEPTH];
};

// Fills the tiles with numbers first..first + DEPTH of each row and code, zeros beyond the end.
template <class T, class X, int WARPS>
__device__ __forceinline__ void stage(
    Tiles<WARPS>& tiles, const X* x, const T* book, unsigned row, unsigned code, unsigned first,
    unsigned rows, unsigned codes, unsigned width) {
    const unsigned k = threadIdx.x % DEPTH, column = first + k;
    for (unsigned r = threadIdx.x / DEPTH; r < tiles.ROWS; r += blockDim.x / DEPTH) {
        const bool live = row + r < rows && column < width;
        tiles.rows[r][k] = live ? to_float(x[(row + r) * width + column]) : 0.0f;
    }
    for (unsigned c = threadIdx.x / DEPTH; c < CODES; c += blockDim.x / DEPTH) {
        const bool live = code + c < codes && column < width;
        tiles.codes[k][c] = live ? to_float(book[(code + c) * width + column]) : 0.0f;
    }
}

// Calls found(row, index) in each warp's first lane for its share of the block's rows of x
// [rows, width] from `row` on: the index of the nearest of `codes` codes, the lowest on a tie; -1
// where a score is not finite. All threads of the block must call.
template <class T, class X, int WARPS, class F>
__device__ __forceinline__ void nearest_rows(
    Tiles<WARPS>& tiles, const X* x, const T* book, unsigned row, unsigned all, unsigned known,
    unsigned wide, bool cosine, F found) {
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    // A warp without rows only helps to fill tiles.
    const bool busy = row + warp * WARP_ROWS < all;
    float best[WARP_ROWS];
    int index[WARP_ROWS];
    bool clean[WARP_ROWS];
#pragma unroll
    for (int r = 0; r < WARP_ROWS; ++r) {
        best[r] = -infinity();
        index[r] = 0x7fffffff;
        clean[r] = true;
    }
    for (unsigned code = 0; code < known; code += CODES) {
        float dot[WARP_ROWS][2] = {}, square[2] = {};
        for (unsigned first = 0; first < wide; first += DEPTH) {
            __syncthreads();
            stage(tiles, x, book, row, code, first, all, known, wide);
            __syncthreads();
            for (unsigned k = 0; busy && k < DEPTH && first + k < wide; k += 4) {
                float4 own[WARP_ROWS];
#pragma unroll
                for (int r = 0; r < WARP_ROWS; ++r) {
                    own[r] = *reinterpret_cast<const float4*>(
                        &tiles.rows[warp * WARP_ROWS + r][k]);
                }
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    if (code + j * WARP >= known) break;
                    float e[4];
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        e[i] = tiles.codes[k + i][lane + j * WARP];
                        square[j] = fmaf(e[i], e[i], square[j]);
                    }
#pragma unroll
                    for (int r = 0; r < WARP_ROWS; ++r) {
                        dot[r][j] = fmaf(own[r].x, e[0], dot[r][j]);
                        dot[r][j] = fmaf(own[r].y, e[1], dot[r][j]);
                        dot[r][j] = fmaf(own[r].z, e[2], dot[r][j]);
                        dot[r][j] = fmaf(own[r].w, e[3], dot[r][j]);
                    }
                }
            }
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            if (!busy || code + j * WARP >= known) break;
            const unsigned c = code + lane + j * WARP;
            const float length = sqrtf(square[j]);
            // A NaN length stays NaN.
            const float inverse = 1.0f / (length < SHORTEST ? SHORTEST : length);
#pragma unroll
            for (int r = 0; r < WARP_ROWS; ++r) {
                const float score =
                    cosine ? dot[r][j] * inverse : fmaf(-0.5f, square[j], dot[r][j]);
                if (c >= known) continue;
                clean[r] = clean[r] && fabsf(score) < infinity();
                if (score > best[r]) {
                    best[r] = score;
                    index[r] = c;
                }
            }
        }
    }
#pragma unroll
    for (int r = 0; r < WARP_ROWS; ++r) {
#pragma unroll
        for (int step = WARP / 2; step > 0; step /= 2) {
            const float other = __shfl_xor_sync(ALL_LANES, best[r], step);
            const int at = __shfl_xor_sync(ALL_LANES, index[r], step);
            if (other > best[r] || (other == best[r] && at < index[r])) {
                best[r] = other;
                index[r] = at;
            }
        }
        const bool finite = __all_sync(ALL_LANES, clean[r]);
        const unsigned own = row + warp * WARP_ROWS + r;
        if (lane == 0 && own < all) found(own, finite ? index[r] : -1);
    }
}
