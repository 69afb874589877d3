// What an optimiser does on flat buffers: the norm of all gradients, AdamW, the running mean of
// weights.
//
// Weights, moments and gradients of training are f32 whatever the activations are. The norm stays
// on the device: an update reads it there, clips by it, and changes nothing where it is not finite.
#include "lib/packet.cuh"
#include "lib/reduce.cuh"

// squares_fwd: part[b] is the sum of x^2 over the stretches of x that block b strides over.
//   for    T: f32, bf16
//   floor  bytes = n*s + 4*parts;  flops = 2*n + 2312*parts
//   plan   `parts` blocks stride over 16-byte packets; a block sums by one tree
//   code   16-byte loads
//   bits   fixed order for a number of blocks, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) squares_fwd(
    float*   __restrict__ part,   // [parts]
    const T* __restrict__ x,      // [n]
    int n, int parts) {
    __shared__ float hold[WARP];
    float sum = 0.0f;
    each<T>(n, aligned(x), [&](unsigned i, auto w) {
        constexpr int N = decltype(w)::value;
        const Floats<N> v = load<N>(x + i);
#pragma unroll
        for (int k = 0; k < N; ++k) sum = fmaf(v.at[k], v.at[k], sum);
    });
    sum = block_sum(sum, hold);
    if (threadIdx.x == 0 && blockIdx.x < static_cast<unsigned>(parts)) part[blockIdx.x] = sum;
}

// root_of_sum_fwd: norm = sqrt(sum of part), by one block.
//   floor  bytes = 4*parts + 4;  flops = parts + 2561
//   plan   one block; its threads stride over the parts, then one tree
//   bits   fixed order, no atomics: repeatable
__global__ void __launch_bounds__(256) root_of_sum_fwd(
    float*       __restrict__ norm,   // [1]
    const float* __restrict__ part,   // [parts]
    int parts) {
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

// adamw_fwd: m' = b1 m + (1 - b1) c g, v' = b2 v + (1 - b2) (c g)^2,
// p' = p - shrink p - rate m' / (sqrt(root v') + eps), c = min(1, limit / norm) being the clipping
// factor; all as they were where the norm is not finite.
//   for    T: f32
//   floor  bytes = 7*n*s + 4;  flops = 16*n
//   plan   the grid strides over 16-byte packets; single elements at the end and at odd addresses
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) adamw_fwd(
    T*           __restrict__ p1,     // [n]
    T*           __restrict__ m1,     // [n]
    T*           __restrict__ v1,     // [n]
    const T*     __restrict__ p,      // [n]
    const T*     __restrict__ m,      // [n]
    const T*     __restrict__ v,      // [n]
    const T*     __restrict__ g,      // [n]
    const float* __restrict__ norm,   // [1]
    int n, float limit, float keep1, float keep2, float take1, float take2,
    float rate, float root, float eps, float shrink) {
    const Step s{limit, keep1, keep2, take1, take2, rate, root, eps, shrink};
    const bool moves = is_finite(*norm);
    const float clip = clipped(*norm, limit);
    each<T>(n, aligned(p1, m1, v1, p, m, v, g), [&](unsigned i, auto w) {
        constexpr int N = decltype(w)::value;
        Floats<N> a = load<N>(p + i), b = load<N>(m + i), c = load<N>(v + i);
        const Floats<N> d = load<N>(g + i);
        if (moves) step(a, b, c, d, clip, s);
        store(p1 + i, a);
        store(m1 + i, b);
        store(v1 + i, c);
    });
}

// adamw_mean_fwd: adamw_fwd, and e' = e + follow (p' - e), the running mean of the weights.
//   for    T: f32
//   floor  bytes = 9*n*s + 4;  flops = 19*n
//   plan   as adamw_fwd
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) adamw_mean_fwd(
    T*           __restrict__ p1,     // [n]
    T*           __restrict__ m1,     // [n]
    T*           __restrict__ v1,     // [n]
    T*           __restrict__ e1,     // [n]
    const T*     __restrict__ p,      // [n]
    const T*     __restrict__ m,      // [n]
    const T*     __restrict__ v,      // [n]
    const T*     __restrict__ g,      // [n]
    const float* __restrict__ norm,   // [1]
    const T*     __restrict__ e,      // [n]
    int n, float limit, float keep1, float keep2, float take1, float take2,
    float rate, float root, float eps, float shrink, float follow) {
    const Step s{limit, keep1, keep2, take1, take2, rate, root, eps, shrink};
    const bool moves = is_finite(*norm);
    const float clip = clipped(*norm, limit);
    each<T>(n, aligned(p1, m1, v1, e1, p, m, v, g, e), [&](unsigned i, auto w) {
        constexpr int N = decltype(w)::value;
        Floats<N> a = load<N>(p + i), b = load<N>(m + i), c = load<N>(v + i);
        Floats<N> mean = load<N>(e + i);
        const Floats<N> d = load<N>(g + i);
        if (moves) {
            step(a, b, c, d, clip, s);
#pragma unroll
            for (int k = 0; k < N; ++k) {
                mean.at[k] = fmaf(follow, a.at[k] - mean.at[k], mean.at[k]);
            }
        }
        store(p1 + i, a);
        store(m1 + i, b);
        store(v1 + i, c);
        store(e1 + i, mean);
    });
}
