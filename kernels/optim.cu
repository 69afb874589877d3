// What an optimiser does: the norm of all gradients, AdamW, the running mean of weights; for all
// tensors of a model in one launch.
//
// Weights, moments and gradients of training are f32 whatever the activations are. The norm stays
// on the device: an update reads it there, clips by it, and changes nothing where it is not finite.
#include "lib/order.cuh"
#include "lib/packet.cuh"
#include "lib/reduce.cuh"

// Elements that a block takes at a time.
constexpr unsigned CHUNK = 8192;

// Many tensors, one after the other in chunks that no two share: a line for each says with which
// chunk it begins, how many elements it has and whether it decays; then come COUNT addresses.
template <int COUNT>
struct Lot {
    const int* lines;
    const unsigned long long* places;
    unsigned tensors;

    __device__ __forceinline__ unsigned begin(unsigned tensor) const { return lines[3 * tensor]; }
    __device__ __forceinline__ unsigned size(unsigned tensor) const {
        return lines[3 * tensor + 1];
    }
    __device__ __forceinline__ bool decays(unsigned tensor) const {
        return lines[3 * tensor + 2] != 0;
    }

    // Buffer `which` of a tensor, from an element on.
    template <class T>
    __device__ __forceinline__ T* buffer(unsigned tensor, int which, unsigned from) const {
        T* all = reinterpret_cast<T*>(places[COUNT * tensor + which]);
        __builtin_assume(__isGlobal(all));
        return all + from;
    }

    // Calls f(chunk, tensor, first element, elements) for the chunks of this block.
    template <class F>
    __device__ __forceinline__ void each_chunk(unsigned chunks, F f) const {
        for (unsigned chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
            unsigned low = 0, high = tensors;
            while (high - low > 1) {
                const unsigned middle = (low + high) / 2;
                (begin(middle) <= chunk ? low : high) = middle;
            }
            const unsigned first = (chunk - begin(low)) * CHUNK;
            f(chunk, low, first, min(size(low) - first, CHUNK));
        }
    }
};

// As `each` of packet.cuh, by this block alone.
template <class T, class F>
__device__ __forceinline__ void each_here(unsigned n, bool packets, F f) {
    constexpr int N = width<T>;
    const unsigned whole = packets ? n / N : 0;
    for (unsigned p = threadIdx.x; p < whole; p += blockDim.x) f(p * N, Width<N>());
    for (unsigned i = whole * N + threadIdx.x; i < n; i += blockDim.x) f(i, Width<1>());
}

// squares_fwd: part[c] is the sum of x^2 over chunk c.
//   for    T: f32, bf16
//   floor  bytes = total*s + 4*chunks + 20*tensors;  flops = 2*total + 2312*chunks
//   plan   a block a chunk, found among the lines; chunks lie in runs, read by 16-byte packets and
//          summed by one tree
//   code   16-byte loads
//   bits   fixed order, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) squares_fwd(
    float*                    __restrict__ part,    // [chunks]
    const int*                __restrict__ lines,   // [3*tensors]
    const unsigned long long* __restrict__ places,  // [tensors]
    int tensors, int chunks, int total) {
    await_previous();
    __shared__ float hold[WARP];
    const Lot<1> lot{lines, places, static_cast<unsigned>(tensors)};
    lot.each_chunk(chunks, [&](unsigned chunk, unsigned tensor, unsigned first, unsigned n) {
        const T* x = lot.template buffer<const T>(tensor, 0, first);
        float sum = 0.0f;
        each_here<T>(n, aligned(x), [&](unsigned i, auto w) {
            constexpr int N = decltype(w)::value;
            const Floats<N> v = load<N>(x + i);
#pragma unroll
            for (int k = 0; k < N; ++k) sum = fmaf(v.at[k], v.at[k], sum);
        });
        sum = block_sum(sum, hold);
        if (threadIdx.x == 0) part[chunk] = sum;
    });
}

// root_of_sum_fwd: norm = sqrt(sum of part), by one block.
//   floor  bytes = 4*parts + 4;  flops = parts + 2561
//   plan   one block; its threads stride over the parts, then one tree
//   bits   fixed order, no atomics: repeatable
__global__ void __launch_bounds__(256) root_of_sum_fwd(
    float*       __restrict__ norm,   // [1]
    const float* __restrict__ part,   // [parts]
    int parts) {
    await_previous();
    __shared__ float hold[WARP];
    float sum = 0.0f;
    for (int i = threadIdx.x; i < parts; i += blockDim.x) sum += part[i];
    sum = block_sum(sum, hold);
    if (threadIdx.x == 0) *norm = sqrtf(sum);
}

// The constants of a step.
struct Step {
    float limit, keep1, keep2, take1, take2, rate, root, eps, shrink;
};

// One packet of an update: weights a, moments b and c, gradients d times `clip`.
template <int N>
__device__ __forceinline__ void step(
    Floats<N>& a, Floats<N>& b, Floats<N>& c, const Floats<N>& d, float clip, const Step& s) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
        const float x = clip * d.at[k];
        b.at[k] = fmaf(s.keep1, b.at[k], s.take1 * x);
        c.at[k] = fmaf(s.keep2, c.at[k], s.take2 * x * x);
        const float move = s.rate * b.at[k] / (sqrtf(c.at[k] * s.root) + s.eps);
        a.at[k] = a.at[k] - s.shrink * a.at[k] - move;
    }
}

// The factor on gradients of this norm; a limit of 0 clips nothing.
__device__ __forceinline__ float clipped(float norm, float limit) {
    return limit > 0.0f && norm > limit ? limit / norm : 1.0f;
}

__device__ __forceinline__ bool is_finite(float x) { return fabsf(x) < __int_as_float(0x7f800000); }

// adamw_fwd: for each tensor m' = b1 m + (1 - b1) c g, v' = b2 v + (1 - b2) (c g)^2,
// p' = p - shrink p - rate m' / (sqrt(root v') + eps), c = min(1, limit / norm) being the clipping
// factor, and with a running mean (MEAN) e' = e + follow (p' - e); all as they were where the norm
// is not finite. Addresses are those of p', m', v', p, m, v, g, and with a mean e', e.
//   for    T: f32; MEAN: 0, 1
//   floor  bytes = (7 + 2*MEAN)*total*s + 4 + (68 + 16*MEAN)*tensors;
//          flops = (16 + 3*MEAN)*total
//   plan   a block a chunk, found among the lines; chunks lie in runs, taken by 16-byte packets,
//          single elements at their ends and at odd addresses
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T, int MEAN>
__global__ void __launch_bounds__(256) adamw_fwd(
    const int*                __restrict__ lines,   // [3*tensors]
    const unsigned long long* __restrict__ places,  // [(7 + 2*MEAN)*tensors]
    const float*              __restrict__ norm,    // [1]
    int tensors, int chunks, int total, float limit, float keep1, float keep2, float take1,
    float take2, float rate, float root, float eps, float shrink, float follow) {
    await_previous();
    const Lot<MEAN ? 9 : 7> lot{lines, places, static_cast<unsigned>(tensors)};
    const bool moves = is_finite(*norm);
    const float clip = clipped(*norm, limit);
    lot.each_chunk(chunks, [&](unsigned, unsigned tensor, unsigned first, unsigned n) {
        const auto to = [&](int which) { return lot.template buffer<T>(tensor, which, first); };
        const auto from = [&](int which) {
            return lot.template buffer<const T>(tensor, which, first);
        };
        T *p1 = to(0), *m1 = to(1), *v1 = to(2), *e1 = MEAN ? to(7) : p1;
        const T *p = from(3), *m = from(4), *v = from(5), *g = from(6), *e = MEAN ? from(8) : p;
        const float less = lot.decays(tensor) ? shrink : 0.0f;
        const Step s{limit, keep1, keep2, take1, take2, rate, root, eps, less};
        each_here<T>(n, aligned(p1, m1, v1, e1, p, m, v, g, e), [&](unsigned i, auto w) {
            constexpr int N = decltype(w)::value;
            Floats<N> a = load<N>(p + i), b = load<N>(m + i), c = load<N>(v + i), mean = {};
            const Floats<N> d = load<N>(g + i);
            if (MEAN) mean = load<N>(e + i);
            if (moves) {
                step(a, b, c, d, clip, s);
#pragma unroll
                for (int k = 0; k < N; ++k) {
                    if (MEAN) mean.at[k] = fmaf(follow, a.at[k] - mean.at[k], mean.at[k]);
                }
            }
            store(p1 + i, a);
            store(m1 + i, b);
            store(v1 + i, c);
            if (MEAN) store(e1 + i, mean);
        });
    });
}
