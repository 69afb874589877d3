// The residual pyramid of the quantiser (src/ops/pyramid.rs): all scales of a tile by one block,
// what is left to quantise never leaving its registers.
//
// A warp has every sixteenth pixel, a lane a channel. Scale after scale: pool the rest, find codes,
// enlarge them, convolve, subtract; one map in shared memory carries what neighbours must see.
#include "lib/nearest.cuh"

constexpr int PIXELS = 256;
constexpr int WARPS = 16;
constexpr int EACH = PIXELS / WARPS;   // Pixels of a thread.
constexpr int GROUP = 4;               // Of those, how many a filter's weight meets at a time.

struct Chip {
    alignas(16) float map[PIXELS * WARP];
    Tiles<WARPS> tiles;
    int codes[PIXELS];
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
__device__ __forceinline__ float cubic(float x) {
    return x <= 1.0f ? fmaf(fmaf(1.25f, x, -2.25f) * x, x, 1.0f)
                     : fmaf(fmaf(fmaf(-0.75f, x, 3.75f), x, -6.0f), x, 3.0f);
}

// Four taps of an axis: their places, clamped to the border, and weights.
struct Taps {
    unsigned at[4];
    float weight[4];

    __device__ __forceinline__ Taps(unsigned i, unsigned from, unsigned to) {
        const float centre = (i + 0.5f) * from / to - 0.5f, below = floorf(centre);
        const float t = centre - below;
        const float far[4] = {1.0f + t, t, 1.0f - t, 2.0f - t};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const int place = static_cast<int>(below) + k - 1;
            at[k] = min(max(place, 0), static_cast<int>(from) - 1);
            weight[k] = cubic(far[k]);
        }
    }
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

// A pixel of the side x side map that the p x p map becomes.
__device__ __forceinline__ float enlarged(
    const float* map, unsigned pixel, unsigned p, unsigned side, unsigned width, unsigned lane) {
    const Taps rows(pixel / side, p, side), cols(pixel % side, p, side);
    float sum = 0.0f;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        float line = 0.0f;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            const float v = map[(rows.at[r] * p + cols.at[c]) * width + lane];
            line = fmaf(cols.weight[c], v, line);
        }
        sum = fmaf(rows.weight[r], line, sum);
    }
    return sum;
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

// quantise_pyramid_fwd: the codes of all scales of each map, -1 where a vector has no nearest code.
// Scale k has the side that byte k of `sides` says, and the convolution that digit k of `phis`
// does; what it takes from the rest is keep * up + share * (convolution of up).
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
    __shared__ Chip chip;
    const unsigned lane = threadIdx.x % WARP, across = side, wide = width, all = across * across;
    const bool live = lane < wide;
    for (unsigned b = blockIdx.x; b < static_cast<unsigned>(batch); b += gridDim.x) {
        float rest[EACH] = {};
        each_pixel(all, [&](int i, unsigned pixel) {
            if (live) rest[i] = f[(b * all + pixel) * wide + lane];
        });
        int* own = y + b * tokens;
        for (int k = 0; k < scales; ++k) {
            const unsigned long long sides = k < 8 ? sides0 : sides1;
            const unsigned p = sides >> (8 * (k % 8)) & 0xff, cells = p * p;
            const unsigned phi = phis >> (4 * k) & 0xf;
            float held[EACH] = {};
            const auto put = [&](unsigned count) {
                __syncthreads();
                each_pixel(count, [&](int i, unsigned at) {
                    if (live) chip.map[at * wide + lane] = held[i];
                });
                __syncthreads();
            };
            each_pixel(all, [&](int i, unsigned) { held[i] = rest[i]; });
            put(all);
            each_pixel(cells, [&](int i, unsigned cell) {
                if (live && p != across) held[i] = pooled(chip.map, cell, p, across, wide, lane);
            });
            put(cells);
            for (unsigned row = 0; row < cells; row += chip.tiles.ROWS) {
                nearest_rows(chip.tiles, chip.map, book, row, cells, codes, wide, cosine,
                             [&](unsigned at, int code) { chip.codes[at] = own[at] = code; });
            }
            __syncthreads();
            each_pixel(cells, [&](int i, unsigned cell) {
                const int code = chip.codes[cell];
                if (live) held[i] = code < 0 ? not_a_number() : book[code * wide + lane];
            });
            put(cells);
            each_pixel(all, [&](int i, unsigned pixel) {
                if (live && p != across) held[i] = enlarged(chip.map, pixel, p, across, wide, lane);
            });
            put(all);
            if (filters == 0) {
                each_pixel(all, [&](int i, unsigned) { rest[i] -= held[i]; });
            } else if (live) {
                const unsigned filter = phi * wide + lane;
                const float* filter_w = w + filter * 9 * wide;
                const auto take = [&](int i, float sum) {
                    rest[i] -= fmaf(share, sum, keep * held[i]);
                };
                if (wide % 4 == 0 && aligned(w)) {
                    convolve<4>(chip.map, filter_w, bias[filter], across, wide, take);
                } else {
                    convolve<1>(chip.map, filter_w, bias[filter], across, wide, take);
                }
            }
            own += cells;
        }
    }
}
