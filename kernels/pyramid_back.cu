// The way back through the residual pyramid (src/ops/pyramid/rests.rs): gradients at codes, filters
// and biases of a tile by one block, from the last scale to the first.
#include "lib/order.cuh"
#include "lib/pyramid.cuh"

constexpr int BAND = 4;                  // Rows of a gradient that lie on chip beside a map.
constexpr int FILTERS = WARP / WARPS;    // Filters of a warp.

// What the way back holds of a tile.
struct ChipBack {
    alignas(16) float map[PIXELS * WARP];
    float band[BAND * MOST * WARP];
    Line lines[MOST];
};

// Calls f(slot, sum) for this thread's pixels: the transpose of `convolve`, the channel `lane` of
// the filters `w` [width, 9, width] over a map of gradients. N filters at a time.
template <int N, class F>
__device__ __forceinline__ void convolve_back(const float* map, const float* w, unsigned side,
                                              unsigned width, unsigned lane, F f) {
#pragma unroll
    for (int first = 0; first < EACH; first += GROUP) {
        unsigned row[GROUP], col[GROUP];
        float sum[GROUP] = {};
#pragma unroll
        for (int i = 0; i < GROUP; ++i) {
            const unsigned pixel = (first + i) * WARPS + threadIdx.x / WARP;
            row[i] = pixel / side;
            col[i] = pixel % side;
        }
        if (row[0] >= side) break;
#pragma unroll 1
        for (unsigned tap = 0; tap < 9; ++tap) {
            // Wraps round above and left of the map, which makes it too large as well.
            const unsigned down = 1 - tap / 3, across = 1 - tap % 3;
#pragma unroll 1
            for (unsigned o = 0; o < width; o += N) {
                float weight[N];
#pragma unroll
                for (int n = 0; n < N; ++n) weight[n] = w[((o + n) * 9 + tap) * width + lane];
#pragma unroll
                for (int i = 0; i < GROUP; ++i) {
                    const unsigned r = row[i] + down, q = col[i] + across;
                    if (row[i] < side && r < side && q < side) {
                        const Floats<N> g = load<N>(map + (r * side + q) * width + o);
#pragma unroll
                        for (int n = 0; n < N; ++n) sum[i] = fmaf(weight[n], g.at[n], sum[i]);
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

// Sums of a warp's filters: of gradients at the result times what each tap saw, and alone.
struct FilterSums {
    float w[FILTERS][9], b[FILTERS];

    // Adds the rows first .. first + BAND, whose gradients lie in `band`, over the map `up`.
    __device__ __forceinline__ void add(const float* up, const float* band, unsigned first,
                                        unsigned side, unsigned width, unsigned lane) {
        const auto at = [&](unsigned row, unsigned col) {
            return row < side && col < side ? up[(row * side + col) * width + lane] : 0.0f;
        };
#pragma unroll 1
        for (unsigned row = first; row < min(first + BAND, side); ++row) {
            // The columns before, at and after the pixel, of three rows.
            float seen[3][3];
#pragma unroll
            for (int i = 0; i < 3; ++i) {
                seen[i][1] = 0.0f;
                seen[i][2] = at(row + i - 1, 0);
            }
#pragma unroll 1
            for (unsigned col = 0; col < side; ++col) {
#pragma unroll
                for (int i = 0; i < 3; ++i) {
                    seen[i][0] = seen[i][1];
                    seen[i][1] = seen[i][2];
                    seen[i][2] = at(row + i - 1, col + 1);
                }
#pragma unroll
                for (int n = 0; n < FILTERS; ++n) {
                    const unsigned o = threadIdx.x / WARP + n * WARPS;
                    if (o >= width) break;
                    const float g = band[((row - first) * side + col) * width + o];
                    b[n] += g;
#pragma unroll
                    for (int t = 0; t < 9; ++t) w[n][t] = fmaf(g, seen[t / 3][t % 3], w[n][t]);
                }
            }
        }
    }
};

// The transpose of `enlarged`: what this thread's cells [p, p] get of the map of gradients, whose
// place it takes.
__device__ __forceinline__ void lower(float (&held)[EACH], ChipBack& chip, const Pyramid& of,
                                      unsigned p) {
    const unsigned lane = threadIdx.x % WARP, wide = of.width, side = of.side;
    __syncthreads();
    rule(chip.lines, p, side);
    put(chip.map, held, of.pixels(), wide);
    // Sums over the pixels that the cells' row or column `cell` is part of, one every `gap`.
    const auto sum = [&](const float* from, unsigned cell, unsigned gap) {
        float sum = 0.0f;
        for (unsigned i = 0; i < side; ++i, from += gap) {
            const Line& line = chip.lines[i];
            const unsigned own = cell - line.first;
            if (own < line.count) sum = fmaf(line.weight[own], *from, sum);
        }
        return sum;
    };
    const bool live = lane < wide;
    each_pixel(side * p, [&](int i, unsigned at) {
        if (live) held[i] = sum(chip.map + at / p * side * wide + lane, at % p, wide);
    });
    put(chip.map, held, side * p, wide);
    each_pixel(p * p, [&](int i, unsigned at) {
        if (live) held[i] = sum(chip.map + at % p * wide + lane, at / p, p * wide);
    });
}

// quantise_rests_vjp: from gradients at what each scale leaves: gradients at the vectors that were
// found, and of each map its share of those at filters and biases.
//   floor  bytes = 4*(batch*scales*side*side*width + batch*tokens*width + batch
//            + min(filters, 1)*(batch*tokens + 9*filters*width*width)
//            + batch*filters*width*(9*width + 1));
//          flops = batch*scales*width*(side*side
//            + 2*min(filters, 1)*width*(3*side - 2)*(3*side - 2))
//   plan   a block a map, from the last scale to the first: the gradient at the rest in registers,
//          one map in shared memory and a band of gradients beside it; a warp has two filters;
//          reads codes in runs
//   slack  400 (each warp reads the filters its own way, from a cache, and small scales have few
//          products to hide the rest behind)
//   bits   one thread, one element, scales and pixels in order: repeatable, the same alone and in a
//          batch
__global__ void __launch_bounds__(512, 1) quantise_rests_vjp(
    float*       __restrict__ gcode,   // [batch, tokens, width]
    float*       __restrict__ gw,      // [batch, filters*width, 9*width]
    float*       __restrict__ gbias,   // [batch, filters*width]
    const float* __restrict__ gy,      // [batch, scales, side*side, width]
    const int*   __restrict__ found,   // [batch, tokens]
    const float* __restrict__ book,    // [codes, width]
    const float* __restrict__ w,       // [filters*width, 9*width]
    const int*   __restrict__ kept,    // [batch]
    int batch, int side, int width, int codes, int tokens, int scales, int filters,
    unsigned long long sides0, unsigned long long sides1, unsigned long long phis, float keep,
    float share) {
    await_previous();
    __shared__ ChipBack chip;
    __shared__ int picked[PIXELS];
    const Pyramid of = {static_cast<unsigned>(side),   static_cast<unsigned>(width),
                        static_cast<unsigned>(scales), static_cast<unsigned>(filters),
                        {sides0, sides1}, phis, keep, share};
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, wide = of.width;
    const unsigned all = of.pixels(), known = codes;
    const bool live = lane < wide;
    for (unsigned b = blockIdx.x; b < static_cast<unsigned>(batch); b += gridDim.x) {
        float* own_w = gw + b * of.filters * wide * 9 * wide;
        float* own_b = gbias + b * of.filters * wide;
        // Calls f(place of tap t of filter n, or of its bias) for this thread's share of phi.
        const auto each_weight = [&](unsigned phi, auto weight, auto bias) {
#pragma unroll
            for (int n = 0; n < FILTERS; ++n) {
                const unsigned o = phi * wide + warp + n * WARPS;
                if (!live || warp + n * WARPS >= wide) break;
#pragma unroll
                for (int t = 0; t < 9; ++t) weight(own_w[(o * 9 + t) * wide + lane], n, t);
                if (lane == 0) bias(own_b[o], n);
            }
        };
        const auto flush = [&](unsigned phi, const FilterSums& sums) {
            each_weight(phi, [&](float& to, int n, int t) { to = share * sums.w[n][t]; },
                        [&](float& to, int n) { to = share * sums.b[n]; });
        };
        float g[EACH] = {};
        FilterSums sums = {};
        unsigned end = tokens;
        for (unsigned k = of.scales; k-- > 0;) {
            const unsigned p = of.sides.side(k), cells = p * p, phi = of.phi(k);
            const bool takes = static_cast<int>(k) < kept[b];
            const float* own = gy + (b * of.scales + k) * all * wide + lane;
            each_pixel(all, [&](int i, unsigned pixel) {
                if (live) g[i] -= own[pixel * wide];
            });
            end -= cells;
            float up[EACH] = {}, down[EACH] = {};
            each_pixel(all, [&](int i, unsigned) { down[i] = g[i]; });
            if (of.filters > 0) {
                put(chip.map, g, all, wide);
                const float* filter = w + phi * wide * 9 * wide;
                const auto mix = [&](int i, float sum) {
                    down[i] = fmaf(share, sum, keep * g[i]);
                };
                if (live && wide % 4 == 0) {
                    convolve_back<4>(chip.map, filter, of.side, wide, lane, mix);
                } else if (live) {
                    convolve_back<1>(chip.map, filter, of.side, wide, lane, mix);
                }
                if (threadIdx.x < cells) {
                    const int code = found[b * tokens + end + threadIdx.x];
                    picked[threadIdx.x] = static_cast<unsigned>(code) < known ? code : -1;
                }
                __syncthreads();
                raise(up, chip.map, chip.lines, picked, book, of, p);
                for (unsigned first = 0; takes && first < of.side; first += BAND) {
                    each_pixel(all, [&](int i, unsigned pixel) {
                        const unsigned at = pixel - first * of.side;
                        if (live && at < BAND * of.side) chip.band[at * wide + lane] = g[i];
                    });
                    __syncthreads();
                    if (live) sums.add(chip.map, chip.band, first, of.side, wide, lane);
                    __syncthreads();
                }
                // Scales that share a phi follow each other.
                if (k == 0 || of.phi(k - 1) != phi) {
                    flush(phi, sums);
                    sums = {};
                }
            }
            if (p != of.side) lower(down, chip, of, p);
            float* to = gcode + (b * tokens + end) * wide + lane;
            each_pixel(cells, [&](int i, unsigned cell) {
                if (live) to[cell * wide] = takes ? down[i] : 0.0f;
            });
        }
        for (unsigned phi = 0; phi < of.filters; ++phi) {
            bool used = false;
            for (unsigned k = 0; k < of.scales; ++k) used = used || of.phi(k) == phi;
            if (!used) flush(phi, {});
        }
    }
}
