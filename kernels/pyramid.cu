// The residual pyramid of the quantiser (src/ops/pyramid.rs): all scales of a tile by one block,
// what is left to quantise never leaving its registers.
//
// Scale after scale: pool the rest, find codes, enlarge them, convolve, subtract.
#include "lib/nearest.cuh"
#include "lib/order.cuh"
#include "lib/pyramid.cuh"

struct Chip {
    alignas(16) float map[PIXELS * WARP];
    Tiles<WARPS> tiles;
    int codes[PIXELS];
    Line lines[MOST];
};

// The mean over a cell of the side x side map: cell (row, col) of p x p.
__device__ __forceinline__ float pooled(
    const float* map, unsigned cell, unsigned p, unsigned side, unsigned width, unsigned lane) {
    const unsigned row = cell / p, col = cell % p;
    const unsigned top = row * side / p, bottom = ((row + 1) * side + p - 1) / p;
    const unsigned left = col * side / p, right = ((col + 1) * side + p - 1) / p;
    float sum = 0.0f;
    for (unsigned r = top; r < bottom; ++r) {
        for (unsigned c = left; c < right; ++c) sum += map[(r * side + c) * width + lane];
    }
    return sum / static_cast<float>((bottom - top) * (right - left));
}

// Calls f(slot, convolution) for this thread's pixels: the lane's filter `w` [9, width] over the
// map, zero outside of it, plus `bias`. N channels at a time.
template <int N, class F>
__device__ __forceinline__ void convolve(
    const float* map, const float* w, float bias, unsigned side, unsigned width, F f) {
#pragma unroll
    for (int first = 0; first < EACH; first += GROUP) {
        unsigned row[GROUP], col[GROUP];
        float sum[GROUP];
#pragma unroll
        for (int i = 0; i < GROUP; ++i) {
            const unsigned pixel = (first + i) * WARPS + threadIdx.x / WARP;
            row[i] = pixel / side;
            col[i] = pixel % side;
            sum[i] = bias;
        }
        if (row[0] >= side) break;
#pragma unroll 1
        for (unsigned tap = 0; tap < 9; ++tap) {
            // Wraps round above and left of the map, which makes it too large as well.
            const unsigned down = tap / 3 - 1, across = tap % 3 - 1;
#pragma unroll 1
            for (unsigned c = 0; c < width; c += N) {
                const Floats<N> weight = load<N>(w + tap * width + c);
#pragma unroll
                for (int i = 0; i < GROUP; ++i) {
                    const unsigned r = row[i] + down, q = col[i] + across;
                    // Whole pixels beyond the map have rows beyond it.
                    if (row[i] < side && r < side && q < side) {
                        const Floats<N> h = load<N>(map + (r * side + q) * width + c);
#pragma unroll
                        for (int n = 0; n < N; ++n) {
                            sum[i] = fmaf(weight.at[n], h.at[n], sum[i]);
                        }
                    }
                }
            }
        }
#pragma unroll
        for (int i = 0; i < GROUP; ++i) {
            if (row[i] < side) f(first + i, sum[i]);
        }
    }
}

// Walks through the scales of the map f, writes its codes to `own`, takes the first `kept` scales
// from the rest and calls left(scale, slot, pixel, rest) after each scale.
template <class F>
__device__ __forceinline__ void walk(Chip& chip, const Pyramid& of, int* own, const float* f,
                                     const float* book, const float* w, const float* bias,
                                     unsigned codes, unsigned kept, bool cosine, F left) {
    const unsigned lane = threadIdx.x % WARP, wide = of.width, all = of.pixels();
    const bool live = lane < wide;
    float rest[EACH] = {};
    each_pixel(all, [&](int i, unsigned pixel) {
        if (live) rest[i] = f[pixel * wide + lane];
    });
    for (unsigned k = 0; k < of.scales; ++k) {
        const unsigned p = of.sides.side(k), cells = p * p;
        float held[EACH] = {};
        put(chip.map, rest, all, wide);
        each_pixel(all, [&](int i, unsigned) { held[i] = rest[i]; });
        each_pixel(cells, [&](int i, unsigned cell) {
            if (live && p != of.side) held[i] = pooled(chip.map, cell, p, of.side, wide, lane);
        });
        put(chip.map, held, cells, wide);
        for (unsigned row = 0; row < cells; row += chip.tiles.ROWS) {
            nearest_rows(chip.tiles, chip.map, book, row, cells, codes, wide, cosine,
                         [&](unsigned at, int code) { chip.codes[at] = own[at] = code; });
        }
        __syncthreads();
        raise(held, chip.map, chip.lines, chip.codes, book, of, p);
        if (of.filters == 0) {
            each_pixel(all, [&](int i, unsigned) {
                if (k < kept) rest[i] -= held[i];
            });
        } else if (live) {
            const unsigned filter = of.phi(k) * wide + lane;
            const float* own_w = w + filter * 9 * wide;
            const auto take = [&](int i, float sum) {
                const float h = fmaf(of.share, sum, of.keep * held[i]);
                if (k < kept) rest[i] -= h;
            };
            if (wide % 4 == 0 && aligned(w)) {
                convolve<4>(chip.map, own_w, bias[filter], of.side, wide, take);
            } else {
                convolve<1>(chip.map, own_w, bias[filter], of.side, wide, take);
            }
        }
        each_pixel(all, [&](int i, unsigned pixel) {
            if (live) left(k, pixel, rest[i]);
        });
        own += cells;
    }
}

// quantise_pyramid_fwd: the codes of all scales of each map, -1 where a vector has no nearest code.
//   floor  bytes = 4*(batch*side*side*width + codes*width + filters*width*(9*width + 1)
//            + batch*tokens);
//          flops = batch*(max(2*tokens*codes*width, 1280*scales*ceil(width, 4)*ceil(codes, 32))
//            + 2*min(filters, 1)*scales*width*width*(3*side - 2)*(3*side - 2))
//   plan   a block a map: the rest in registers, one map in shared memory, codes as
//          nearest_code_fwd has them
//   code   16-byte loads
//   slack  200 for width/4*4 >= width; 700 beyond (each scale reads codes and filters again, each
//          warp its own way, from a cache, and a scale of few vectors works on as many as a warp
//          has)
//   bits   one thread, one element; codes in order: repeatable, the same alone and in a batch
//   tried  256 threads, 32 pixels each: spills
__global__ void __launch_bounds__(512, 1) quantise_pyramid_fwd(
    int*         __restrict__ y,      // [batch, tokens]
    const float* __restrict__ f,      // [batch, side*side, width]
    const float* __restrict__ book,   // [codes, width]
    const float* __restrict__ w,      // [filters*width, 9*width]
    const float* __restrict__ bias,   // [filters*width]
    int batch, int side, int width, int codes, int tokens, int scales, int filters,
    unsigned long long sides0, unsigned long long sides1, unsigned long long phis, float keep,
    float share, bool cosine) {
    await_previous();
    __shared__ Chip chip;
    const Pyramid of = {static_cast<unsigned>(side),   static_cast<unsigned>(width),
                        static_cast<unsigned>(scales), static_cast<unsigned>(filters),
                        {sides0, sides1}, phis, keep, share};
    for (unsigned b = blockIdx.x; b < static_cast<unsigned>(batch); b += gridDim.x) {
        walk(chip, of, y + b * tokens, f + b * of.pixels() * of.width, book, w, bias, codes,
             of.scales, cosine, [](unsigned, unsigned, float) {});
    }
}

// quantise_rests_fwd: what each scale leaves of each map, and the codes of all scales, -1 where a
// vector has no nearest code. A map keeps its first `kept` scales; later ones take nothing away.
//   floor  bytes = 4*(batch*side*side*width*(1 + scales) + codes*width
//            + filters*width*(9*width + 1) + batch*tokens + batch);
//          flops = batch*(max(2*tokens*codes*width, 1280*scales*ceil(width, 4)*ceil(codes, 32))
//            + 2*min(filters, 1)*scales*width*width*(3*side - 2)*(3*side - 2))
//   plan   as quantise_pyramid_fwd, the rest written after each scale
//   slack  200 for width/4*4 >= width; 700 beyond (as quantise_pyramid_fwd)
//   bits   as quantise_pyramid_fwd
__global__ void __launch_bounds__(512, 1) quantise_rests_fwd(
    float*       __restrict__ y,       // [batch, scales, side*side, width]
    int*         __restrict__ found,   // [batch, tokens]
    const float* __restrict__ f,       // [batch, side*side, width]
    const float* __restrict__ book,    // [codes, width]
    const float* __restrict__ w,       // [filters*width, 9*width]
    const float* __restrict__ bias,    // [filters*width]
    const int*   __restrict__ kept,    // [batch]
    int batch, int side, int width, int codes, int tokens, int scales, int filters,
    unsigned long long sides0, unsigned long long sides1, unsigned long long phis, float keep,
    float share, bool cosine) {
    await_previous();
    __shared__ Chip chip;
    const Pyramid of = {static_cast<unsigned>(side),   static_cast<unsigned>(width),
                        static_cast<unsigned>(scales), static_cast<unsigned>(filters),
                        {sides0, sides1}, phis, keep, share};
    const unsigned map = of.pixels() * of.width, lane = threadIdx.x % WARP;
    for (unsigned b = blockIdx.x; b < static_cast<unsigned>(batch); b += gridDim.x) {
        float* own = y + b * of.scales * map;
        walk(chip, of, found + b * tokens, f + b * map, book, w, bias, codes, max(kept[b], 0),
             cosine, [&](unsigned k, unsigned pixel, float rest) {
                 own[k * map + pixel * of.width + lane] = rest;
             });
    }
}
