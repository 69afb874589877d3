// Optimiser updates on flat buffers: AdamW and the running mean of weights.
//
// Weights, moments and gradients of training are f32 whatever the activations are.
#include "lib/packet.cuh"

// adamw_fwd: m' = b1 m + (1 - b1) c g, v' = b2 v + (1 - b2) (c g)^2,
// p' = p - shrink p - rate m' / (sqrt(root v') + eps), c being the clipping factor.
//   for    T: f32
//   floor  bytes = 7*n*s;  flops = 18*n
//   plan   the grid strides over 16-byte packets; single elements at the end and at odd addresses
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) adamw_fwd(
    T*       __restrict__ p1,   // [n]
    T*       __restrict__ m1,   // [n]
    T*       __restrict__ v1,   // [n]
    const T* __restrict__ p,    // [n]
    const T* __restrict__ m,    // [n]
    const T* __restrict__ v,    // [n]
    const T* __restrict__ g,    // [n]
    int n, float clip, float keep1, float keep2, float take1, float take2,
    float rate, float root, float eps, float shrink) {
    each<T>(n, aligned(p1, m1, v1, p, m, v, g), [&](unsigned i, auto w) {
        constexpr int N = decltype(w)::value;
        Floats<N> a = load<N>(p + i), b = load<N>(m + i), c = load<N>(v + i);
        const Floats<N> d = load<N>(g + i);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            const float x = clip * d.at[k];
            b.at[k] = fmaf(keep1, b.at[k], take1 * x);
            c.at[k] = fmaf(keep2, c.at[k], take2 * x * x);
            const float step = rate * b.at[k] / (sqrtf(c.at[k] * root) + eps);
            a.at[k] = a.at[k] - shrink * a.at[k] - step;
        }
        store(p1 + i, a);
        store(m1 + i, b);
        store(v1 + i, c);
    });
}

// ema_fwd: y = a + take (p - a), the running mean a of weights p.
//   for    T: f32
//   floor  bytes = 3*n*s;  flops = 3*n
//   plan   as adamw_fwd
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) ema_fwd(
    T*       __restrict__ y,   // [n]
    const T* __restrict__ a,   // [n]
    const T* __restrict__ p,   // [n]
    int n, float take) {
    each<T>(n, aligned(y, a, p), [&](unsigned i, auto w) {
        constexpr int N = decltype(w)::value;
        Floats<N> u = load<N>(a + i);
        const Floats<N> v = load<N>(p + i);
#pragma unroll
        for (int k = 0; k < N; ++k) u.at[k] = fmaf(take, v.at[k] - u.at[k], u.at[k]);
        store(y + i, u);
    });
}
