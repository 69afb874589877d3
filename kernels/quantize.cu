// The nearest code of a codebook (src/ops/quantize.rs).
//
// Codes are ranked by x e - |e|^2 / 2, or by x e / |e|; the table of all scores never exists.
#include "lib/math.cuh"
#include "lib/packet.cuh"
#include "lib/reduce.cuh"

constexpr int BLOCK_WARPS = 8;
constexpr int WARP_ROWS = 4;                           // Rows of x that a warp ranks codes for.
constexpr int BLOCK_ROWS = BLOCK_WARPS * WARP_ROWS;
constexpr int CODES = 2 * WARP;                        // Codes of a tile, two a lane.
constexpr int DEPTH = 16;                              // Numbers of a row or code in a tile.
constexpr float SHORTEST = 1e-12f;                     // Below it a code has no direction.

struct Tiles {
    // A row more, so that neither rows nor columns meet in a bank.
    float codes[DEPTH][CODES + 1];
    alignas(16) float rows[BLOCK_ROWS][DEPTH];
};

// Fills the tiles with numbers first..first + DEPTH of each row and code, zeros beyond the end.
template <class T>
__device__ __forceinline__ void stage(
    Tiles& tiles, const T* x, const T* book, unsigned row, unsigned code, unsigned first,
    unsigned rows, unsigned codes, unsigned width) {
    const unsigned k = threadIdx.x % DEPTH, column = first + k;
    for (unsigned r = threadIdx.x / DEPTH; r < BLOCK_ROWS; r += blockDim.x / DEPTH) {
        const bool live = row + r < rows && column < width;
        tiles.rows[r][k] = live ? to_float(x[(row + r) * width + column]) : 0.0f;
    }
    for (unsigned c = threadIdx.x / DEPTH; c < CODES; c += blockDim.x / DEPTH) {
        const bool live = code + c < codes && column < width;
        tiles.codes[k][c] = live ? to_float(book[(code + c) * width + column]) : 0.0f;
    }
}

// nearest_code_fwd: the index of the code nearest to each row of x, the lowest on a tie; -1 where a
// score is not finite.
//   for    T: f32, bf16
//   floor  bytes = (rows + codes)*width*s + 4*rows;
//          flops = (1280*ceil(width, 4) + 128)*ceil(rows, 4)*ceil(codes, 32)
//   plan   a block for 32 rows, 4 a warp; tiles of 64 codes and 16 numbers in shared memory, two
//          codes a lane, whose length each warp sums anew
//   slack  14 for rows <= 512 and codes <= 512; 200 beyond (each tile of rows meets each tile of
//          codes, in a cache)
//   bits   each row and code in the order of its numbers: repeatable
template <class T>
__global__ void __launch_bounds__(256, 2) nearest_code_fwd(
    int*     __restrict__ y,      // [rows]
    const T* __restrict__ x,      // [rows, width]
    const T* __restrict__ book,   // [codes, width]
    int rows, int codes, int width, bool cosine) {
    __shared__ Tiles tiles;
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const unsigned all = rows, known = codes, wide = width;
    for (unsigned row = blockIdx.x * BLOCK_ROWS; row < all; row += gridDim.x * BLOCK_ROWS) {
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
            if (lane == 0 && own < all) y[own] = finite ? index[r] : -1;
        }
    }
}
