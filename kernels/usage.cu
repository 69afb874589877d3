// The life of a code book in training (src/ops/usage.rs): how often codes are drawn, which of them
// are moved and where to, and what is told of them.
#include "lib/math.cuh"
#include "lib/order.cuh"
#include "lib/packet.cuh"
#include "lib/philox.cuh"
#include "lib/reduce.cuh"
#include "lib/scales.cuh"

constexpr int COUNTED = 1024;   // Codes that a block counts at a time.

// How often a code is drawn, over all scales.
__device__ __forceinline__ float drawn(const float* usage, unsigned scales, unsigned codes,
                                       unsigned code) {
    float sum = 0.0f;
    for (unsigned k = 0; k < scales; ++k) sum += usage[k * codes + code];
    return sum;
}

// The mean of that over the codes, the same in all threads of a block.
__device__ __forceinline__ float even_draw(const float* usage, unsigned scales, unsigned codes,
                                           float* hold) {
    float sum = 0.0f;
    for (unsigned v = threadIdx.x; v < codes; v += blockDim.x) {
        sum += drawn(usage, scales, codes, v);
    }
    return block_sum(sum, hold) / static_cast<float>(codes);
}

// code_usage_fwd: keep * usage + gain * how often each code is among the tokens of each scale.
//   floor  bytes = 8*scales*codes + 4*rows*length;  flops = 3*scales*codes
//   plan   a block for 1024 codes of a scale, which counts them in shared memory
//   slack  14 (a block looks at all tokens of its scale, and scale 1 has one a row)
//   bits   counts are whole numbers: the order of adding does not matter
__global__ void __launch_bounds__(256) code_usage_fwd(
    float*       __restrict__ y,        // [scales, codes]
    const float* __restrict__ usage,    // [scales, codes]
    const int*   __restrict__ tokens,   // [rows, length]
    int scales, int codes, int rows, int length,
    unsigned long long sides0, unsigned long long sides1, float keep, float gain) {
    await_previous();
    __shared__ int counts[COUNTED];
    const Scales all = {sides0, sides1};
    const unsigned known = codes, tiles = (known + COUNTED - 1) / COUNTED;
    for (unsigned job = blockIdx.x; job < scales * tiles; job += gridDim.x) {
        const unsigned k = job / tiles, first = job % tiles * COUNTED;
        const unsigned begin = all.begin(k), cells = all.side(k) * all.side(k);
        for (unsigned c = threadIdx.x; c < COUNTED; c += blockDim.x) counts[c] = 0;
        __syncthreads();
        for (unsigned i = threadIdx.x; i < rows * cells; i += blockDim.x) {
            const unsigned code = tokens[i / cells * length + begin + i % cells] - first;
            if (code < COUNTED) atomicAdd(&counts[code], 1);
        }
        __syncthreads();
        for (unsigned c = threadIdx.x; c < COUNTED && first + c < known; c += blockDim.x) {
            const unsigned at = k * known + first + c;
            y[at] = fmaf(keep, usage[at], gain * static_cast<float>(counts[c]));
        }
        __syncthreads();
    }
}

// revive_codes_fwd: for each code that is drawn less often than `below` of an even draw a row of
// `rows`, else -1; and the usage, where such a code begins with an even draw at the scale of its
// row. Nothing is moved while `pulse` is not finite.
//   floor  bytes = 8*scales*codes + 4*codes;  flops = 2*scales*codes + 10240
//   plan   one block, which looks at the usage three times: this runs once in many steps
//   slack  2.2
//   bits   a fixed tree; draws are a function of stream and code
__global__ void __launch_bounds__(1024) revive_codes_fwd(
    float*       __restrict__ y,       // [scales, codes]
    int*         __restrict__ pick,    // [codes]
    const float* __restrict__ usage,   // [scales, codes]
    const float* __restrict__ pulse,   // [1]
    int scales, int codes, unsigned rows, unsigned length,
    unsigned long long sides0, unsigned long long sides1,
    unsigned key0, unsigned key1, unsigned tail0, unsigned tail1, unsigned tail2,
    float below_even) {
    await_previous();
    __shared__ float hold[WARP];
    const Scales all = {sides0, sides1};
    const Stream stream = {{key0, key1}, {tail0, tail1, tail2}};
    const unsigned known = codes, deep = scales;
    const float even = even_draw(usage, deep, known, hold);
    const bool moves = rows > 0 && fabsf(*pulse) < infinity();
    for (unsigned v = threadIdx.x; v < known; v += blockDim.x) {
        const bool dead = moves && drawn(usage, deep, known, v) < even * below_even;
        const Words w = words(stream, v / 4);
        const unsigned half = v & 2 ? 2 : 0;
        const unsigned word = v & 1 ? (half ? w.at[3] : w.at[1]) : (half ? w.at[2] : w.at[0]);
        const unsigned row = below(word, rows), place = row % length;
        pick[v] = dead ? static_cast<int>(row) : -1;
        unsigned begin = 0;
        for (unsigned k = 0; k < deep; ++k) {
            const unsigned end = begin + all.side(k) * all.side(k);
            const bool own = begin <= place && place < end;
            const unsigned at = k * known + v;
            y[at] = dead ? (own ? even : 0.0f) : usage[at];
            begin = end;
        }
    }
}

// code_health_fwd: of each scale e^(entropy of its codes); how many codes are drawn at least
// `below` times as often as an even draw; how many of `pick` are rows.
//   floor  bytes = 4*scales*codes + 4*codes + 4*scales + 8;
//          flops = 28*scales*codes
//            + 5120*scales + 7680
//   plan   a block a scale and one for the rest
//   slack  4.5
//   bits   a fixed tree
__global__ void __launch_bounds__(256) code_health_fwd(
    float*       __restrict__ y,       // [scales + 2]
    const float* __restrict__ usage,   // [scales, codes]
    const int*   __restrict__ pick,    // [codes]
    int scales, int codes, float below_even) {
    await_previous();
    __shared__ float hold[WARP];
    const unsigned known = codes, deep = scales;
    for (unsigned job = blockIdx.x; job <= deep; job += gridDim.x) {
        if (job < deep) {
            const float* own = usage + job * known;
            float sum = 0.0f;
            for (unsigned v = threadIdx.x; v < known; v += blockDim.x) sum += own[v];
            const float total = block_sum(sum, hold);
            sum = 0.0f;
            for (unsigned v = threadIdx.x; v < known; v += blockDim.x) {
                const float share = own[v] / total;
                // Of what is not drawn x ln x is 0.
                const float x = share > 0.0f ? share : 1.0f;
                sum = fmaf(x, logf(x), sum);
            }
            const float order = block_sum(sum, hold);
            if (threadIdx.x == 0) y[job] = total <= 0.0f ? 0.0f : exp_of(-order);
        } else {
            const float even = even_draw(usage, deep, known, hold);
            float live = 0.0f, moved = 0.0f;
            for (unsigned v = threadIdx.x; v < known; v += blockDim.x) {
                live += drawn(usage, deep, known, v) < even * below_even ? 0.0f : 1.0f;
                moved += pick[v] < 0 ? 0.0f : 1.0f;
            }
            live = block_sum(live, hold);
            moved = block_sum(moved, hold);
            if (threadIdx.x == 0) {
                y[deep] = live;
                y[deep + 1] = moved;
            }
        }
    }
}

// replace_rows_fwd: y[r] = from[pick[r]], or x[r] where that is no row.
//   for    T: f32, bf16
//   floor  bytes = rows*cols*s + 4*rows;  flops = 0
//   plan   the grid strides over 16-byte packets of y, single elements where rows are odd; reads
//          rows of x or `from` in runs, equal ones at once
//   slack  2.1 for cols >= 64; 10 beyond (a sector or two for each row)
//   bits   copies
template <class T>
__global__ void __launch_bounds__(256) replace_rows_fwd(
    T*         __restrict__ y,      // [rows, cols]
    const T*   __restrict__ x,      // [rows, cols]
    const T*   __restrict__ from,   // [count, cols]
    const int* __restrict__ pick,   // [rows]
    int rows, int cols, int count) {
    await_previous();
    const bool packets = cols % width<T> == 0 && aligned(y, x, from);
    const unsigned length = cols, known = count;
    each<T>(static_cast<unsigned>(rows) * length, packets, [&](unsigned i, auto w) {
        const unsigned row = pick[i / length];
        const T* source = row < known ? from + row * length + i % length : x + i;
        move<decltype(w)::value>(y + i, source);
    });
}
