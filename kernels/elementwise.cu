// Elementwise ops with broadcasting: sums and products, adaLN's modulation and the gated residual.
//
// Their derivatives are compositions of the same ops (src/ops/elementwise.rs), so there is nothing
// but forward entries here. Big operands are [k0, r0, k1, r1, k2], small ones [k0, k1, k2]
// (lib/broadcast.cuh).
#include "lib/broadcast.cuh"
#include "lib/order.cuh"

// axpy_fwd: y = a + alpha b, with b broadcast to a.
//   for    T: f32, bf16
//   floor  bytes = (2*k0*r0*k1*r1*k2 + k0*k1*k2)*s;  flops = 2*k0*r0*k1*r1*k2
//   plan   the grid strides over 16-byte packets; single elements where rows or addresses are odd
//   code   16-byte loads
//   slack  1.05 for r0*r1 <= 1; 1.55 beyond (b is read again where it repeats)
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) axpy_fwd(
    T*       __restrict__ y,   // [k0, r0, k1, r1, k2]
    const T* __restrict__ a,   // [k0, r0, k1, r1, k2]
    const T* __restrict__ b,   // [k0, k1, k2]
    int k0, int r0, int k1, int r1, int k2, float alpha) {
    await_previous();
    const Spread s = spread(k0, r0, k1, r1, k2);
    each_spread<T>(s, aligned(y, a, b), [&](unsigned i, unsigned j, bool one, auto w) {
        constexpr int N = decltype(w)::value;
        Floats<N> u = load<N>(a + i);
        const Floats<N> v = load_spread<N>(b + j, one);
#pragma unroll
        for (int k = 0; k < N; ++k) u.at[k] = fmaf(alpha, v.at[k], u.at[k]);
        store(y + i, u);
    });
}

// mul_fwd: y = a b, with b broadcast to a.
//   for    T: f32, bf16
//   floor  bytes = (2*k0*r0*k1*r1*k2 + k0*k1*k2)*s;  flops = k0*r0*k1*r1*k2
//   plan   as axpy_fwd
//   code   16-byte loads
//   slack  1.05 for r0*r1 <= 1; 1.55 beyond (b is read again where it repeats)
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) mul_fwd(
    T*       __restrict__ y,   // [k0, r0, k1, r1, k2]
    const T* __restrict__ a,   // [k0, r0, k1, r1, k2]
    const T* __restrict__ b,   // [k0, k1, k2]
    int k0, int r0, int k1, int r1, int k2) {
    await_previous();
    const Spread s = spread(k0, r0, k1, r1, k2);
    each_spread<T>(s, aligned(y, a, b), [&](unsigned i, unsigned j, bool one, auto w) {
        constexpr int N = decltype(w)::value;
        Floats<N> u = load<N>(a + i);
        const Floats<N> v = load_spread<N>(b + j, one);
#pragma unroll
        for (int k = 0; k < N; ++k) u.at[k] *= v.at[k];
        store(y + i, u);
    });
}

// affine_fwd: y = scale x + shift, with constants.
//   for    T: f32, bf16
//   floor  bytes = 2*n*s;  flops = 2*n
//   plan   the grid strides over 16-byte packets; single elements at the end and at odd addresses
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) affine_fwd(
    T*       __restrict__ y,   // [n]
    const T* __restrict__ x,   // [n]
    int n, float scale, float shift) {
    await_previous();
    each<T>(n, aligned(y, x), [&](unsigned i, auto w) {
        constexpr int N = decltype(w)::value;
        Floats<N> u = load<N>(x + i);
#pragma unroll
        for (int k = 0; k < N; ++k) u.at[k] = fmaf(scale, u.at[k], shift);
        store(y + i, u);
    });
}

// modulate_fwd: y = x (1 + a) + b, with a and b broadcast to x.
//   for    T: f32, bf16
//   floor  bytes = 2*(k0*r0*k1*r1*k2 + k0*k1*k2)*s;  flops = 3*k0*r0*k1*r1*k2
//   plan   as axpy_fwd
//   code   16-byte loads
//   slack  1.05 for r0*r1 <= 1; 2.05 beyond (a and b are read again where they repeat)
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) modulate_fwd(
    T*       __restrict__ y,   // [k0, r0, k1, r1, k2]
    const T* __restrict__ x,   // [k0, r0, k1, r1, k2]
    const T* __restrict__ a,   // [k0, k1, k2]
    const T* __restrict__ b,   // [k0, k1, k2]
    int k0, int r0, int k1, int r1, int k2) {
    await_previous();
    const Spread s = spread(k0, r0, k1, r1, k2);
    each_spread<T>(s, aligned(y, x, a, b), [&](unsigned i, unsigned j, bool one, auto w) {
        constexpr int N = decltype(w)::value;
        Floats<N> u = load<N>(x + i);
        const Floats<N> v = load_spread<N>(a + j, one), z = load_spread<N>(b + j, one);
#pragma unroll
        for (int k = 0; k < N; ++k) u.at[k] = fmaf(u.at[k], 1.0f + v.at[k], z.at[k]);
        store(y + i, u);
    });
}

// gated_add_fwd: z = x + g y, with g broadcast to x and y.
//   for    T: f32, bf16
//   floor  bytes = (3*k0*r0*k1*r1*k2 + k0*k1*k2)*s;  flops = 2*k0*r0*k1*r1*k2
//   plan   as axpy_fwd
//   code   16-byte loads
//   slack  1.05 for r0*r1 <= 1; 1.4 beyond (g is read again where it repeats)
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) gated_add_fwd(
    T*       __restrict__ z,   // [k0, r0, k1, r1, k2]
    const T* __restrict__ x,   // [k0, r0, k1, r1, k2]
    const T* __restrict__ g,   // [k0, k1, k2]
    const T* __restrict__ y,   // [k0, r0, k1, r1, k2]
    int k0, int r0, int k1, int r1, int k2) {
    await_previous();
    const Spread s = spread(k0, r0, k1, r1, k2);
    each_spread<T>(s, aligned(z, x, g, y), [&](unsigned i, unsigned j, bool one, auto w) {
        constexpr int N = decltype(w)::value;
        Floats<N> u = load<N>(x + i);
        const Floats<N> v = load_spread<N>(g + j, one), t = load<N>(y + i);
#pragma unroll
        for (int k = 0; k < N; ++k) u.at[k] = fmaf(v.at[k], t.at[k], u.at[k]);
        store(z + i, u);
    });
}
