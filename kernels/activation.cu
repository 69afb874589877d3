// Activations and other functions of one variable, and their derivatives.
//
// Forward and reverse mode are the same map, gx = gy f'(x), so one derivative entry serves both
// (src/ops/kinds.rs).
#include "lib/math.cuh"
#include "lib/order.cuh"
#include "lib/packet.cuh"

// y = f(x), element by element.
template <class T, class F>
__device__ __forceinline__ void map(T* y, const T* x, unsigned n, F f) {
    each<T>(n, aligned(y, x), [&](unsigned i, auto w) {
        constexpr int N = decltype(w)::value;
        Floats<N> u = load<N>(x + i);
#pragma unroll
        for (int k = 0; k < N; ++k) u.at[k] = f(u.at[k]);
        store(y + i, u);
    });
}

// gx = gy df(x), element by element.
template <class T, class F>
__device__ __forceinline__ void map_vjp(T* gx, const T* x, const T* gy, unsigned n, F df) {
    each<T>(n, aligned(gx, x, gy), [&](unsigned i, auto w) {
        constexpr int N = decltype(w)::value;
        const Floats<N> u = load<N>(x + i);
        Floats<N> g = load<N>(gy + i);
#pragma unroll
        for (int k = 0; k < N; ++k) g.at[k] *= df(u.at[k]);
        store(gx + i, g);
    });
}

// y = f(x) and dy = df(x) dx, element by element.
template <class T, class F, class D>
__device__ __forceinline__ void map_dual(T* y, T* dy, const T* x, const T* dx, unsigned n, F f,
                                         D df) {
    each<T>(n, aligned(y, dy, x, dx), [&](unsigned i, auto w) {
        constexpr int N = decltype(w)::value;
        Floats<N> u = load<N>(x + i), d = load<N>(dx + i);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            d.at[k] *= df(u.at[k]);
            u.at[k] = f(u.at[k]);
        }
        store(y + i, u);
        store(dy + i, d);
    });
}

// gelu_fwd: y = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
//   for    T: f32, bf16
//   floor  bytes = 2*n*s;  flops = 34*n
//   plan   the grid strides over 16-byte packets; single elements at the end and at odd addresses
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) gelu_fwd(
    T*       __restrict__ y,   // [n]
    const T* __restrict__ x,   // [n]
    int n) {
    await_previous();
    map(y, x, n, [](float v) { return gelu(v); });
}

// gelu_vjp: gx = gy f'(x) of gelu_fwd.
//   for    T: f32, bf16
//   floor  bytes = 3*n*s;  flops = 43*n
//   plan   as gelu_fwd
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) gelu_vjp(
    T*       __restrict__ gx,   // [n]
    const T* __restrict__ x,    // [n]
    const T* __restrict__ gy,   // [n]
    int n) {
    await_previous();
    map_vjp(gx, x, gy, n, [](float v) { return gelu_slope(v); });
}

// silu_fwd: y = x sigmoid(x).
//   for    T: f32, bf16
//   floor  bytes = 2*n*s;  flops = 24*n
//   plan   the grid strides over 16-byte packets; single elements at the end and at odd addresses
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) silu_fwd(
    T*       __restrict__ y,   // [n]
    const T* __restrict__ x,   // [n]
    int n) {
    await_previous();
    map(y, x, n, [](float v) { return silu(v); });
}

// silu_dual_fwd: silu_fwd and its tangent, dy = f'(x) dx.
//   for    T: f32, bf16
//   floor  bytes = 4*n*s;  flops = 28*n
//   plan   as gelu_fwd
//   code   16-byte loads
//   slack  1.9 (the sigmoid may be computed once or twice)
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) silu_dual_fwd(
    T*       __restrict__ y,    // [n]
    T*       __restrict__ dy,   // [n]
    const T* __restrict__ x,    // [n]
    const T* __restrict__ dx,   // [n]
    int n) {
    await_previous();
    map_dual(y, dy, x, dx, n, [](float v) { return silu(v); },
             [](float v) { return silu_slope(v); });
}

// silu_vjp: gx = gy f'(x) of silu_fwd.
//   for    T: f32, bf16
//   floor  bytes = 3*n*s;  flops = 28*n
//   plan   as silu_fwd
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) silu_vjp(
    T*       __restrict__ gx,   // [n]
    const T* __restrict__ x,    // [n]
    const T* __restrict__ gy,   // [n]
    int n) {
    await_previous();
    map_vjp(gx, x, gy, n, [](float v) { return silu_slope(v); });
}

// leaky_relu_fwd: y = x for x > 0, else slope x; slope 0 is ReLU.
//   for    T: f32, bf16
//   floor  bytes = 2*n*s;  flops = n
//   plan   the grid strides over 16-byte packets; single elements at the end and at odd addresses
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) leaky_relu_fwd(
    T*       __restrict__ y,   // [n]
    const T* __restrict__ x,   // [n]
    int n, float slope) {
    await_previous();
    map(y, x, n, [=](float v) { return v > 0.0f ? v : slope * v; });
}

// leaky_relu_vjp: gx = gy f'(x) of leaky_relu_fwd.
//   for    T: f32, bf16
//   floor  bytes = 3*n*s;  flops = n
//   plan   as leaky_relu_fwd
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) leaky_relu_vjp(
    T*       __restrict__ gx,   // [n]
    const T* __restrict__ x,    // [n]
    const T* __restrict__ gy,   // [n]
    int n, float slope) {
    await_previous();
    map_vjp(gx, x, gy, n, [=](float v) { return v > 0.0f ? 1.0f : slope; });
}

// tanh_fwd: y = tanh(x).
//   for    T: f32, bf16
//   floor  bytes = 2*n*s;  flops = 25*n
//   plan   the grid strides over 16-byte packets; single elements at the end and at odd addresses
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) tanh_fwd(
    T*       __restrict__ y,   // [n]
    const T* __restrict__ x,   // [n]
    int n) {
    await_previous();
    map(y, x, n, [](float v) { return tanh_of(v); });
}

// tanh_vjp: gx = gy f'(x) of tanh_fwd.
//   for    T: f32, bf16
//   floor  bytes = 3*n*s;  flops = 28*n
//   plan   as tanh_fwd
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) tanh_vjp(
    T*       __restrict__ gx,   // [n]
    const T* __restrict__ x,    // [n]
    const T* __restrict__ gy,   // [n]
    int n) {
    await_previous();
    map_vjp(gx, x, gy, n, [](float v) {
        const float t = tanh_of(v);
        return 1.0f - t * t;
    });
}

// exp_fwd: y = e^x.
//   for    T: f32, bf16
//   floor  bytes = 2*n*s;  flops = 21*n
//   plan   the grid strides over 16-byte packets; single elements at the end and at odd addresses
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) exp_fwd(
    T*       __restrict__ y,   // [n]
    const T* __restrict__ x,   // [n]
    int n) {
    await_previous();
    map(y, x, n, [](float v) { return exp_of(v); });
}

// exp_vjp: gx = gy f'(x) of exp_fwd.
//   for    T: f32, bf16
//   floor  bytes = 3*n*s;  flops = 22*n
//   plan   as exp_fwd
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) exp_vjp(
    T*       __restrict__ gx,   // [n]
    const T* __restrict__ x,    // [n]
    const T* __restrict__ gy,   // [n]
    int n) {
    await_previous();
    map_vjp(gx, x, gy, n, [](float v) { return exp_of(v); });
}

// softplus_fwd: y = ln(1 + e^x), without overflow.
//   for    T: f32, bf16
//   floor  bytes = 2*n*s;  flops = 48*n
//   plan   the grid strides over 16-byte packets; single elements at the end and at odd addresses
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) softplus_fwd(
    T*       __restrict__ y,   // [n]
    const T* __restrict__ x,   // [n]
    int n) {
    await_previous();
    map(y, x, n, [](float v) { return softplus(v); });
}

// softplus_vjp: gx = gy f'(x) of softplus_fwd.
//   for    T: f32, bf16
//   floor  bytes = 3*n*s;  flops = 24*n
//   plan   as softplus_fwd
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) softplus_vjp(
    T*       __restrict__ gx,   // [n]
    const T* __restrict__ x,    // [n]
    const T* __restrict__ gy,   // [n]
    int n) {
    await_previous();
    map_vjp(gx, x, gy, n, [](float v) { return sigmoid(v); });
}

// square_fwd: y = x^2.
//   for    T: f32, bf16
//   floor  bytes = 2*n*s;  flops = n
//   plan   the grid strides over 16-byte packets; single elements at the end and at odd addresses
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) square_fwd(
    T*       __restrict__ y,   // [n]
    const T* __restrict__ x,   // [n]
    int n) {
    await_previous();
    map(y, x, n, [](float v) { return v * v; });
}

// square_vjp: gx = gy f'(x) of square_fwd.
//   for    T: f32, bf16
//   floor  bytes = 3*n*s;  flops = 2*n
//   plan   as square_fwd
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) square_vjp(
    T*       __restrict__ gx,   // [n]
    const T* __restrict__ x,    // [n]
    const T* __restrict__ gy,   // [n]
    int n) {
    await_previous();
    map_vjp(gx, x, gy, n, [](float v) { return 2.0f * v; });
}

// abs_fwd: y = |x|, with slope 0 at 0.
//   for    T: f32, bf16
//   floor  bytes = 2*n*s;  flops = 0
//   plan   the grid strides over 16-byte packets; single elements at the end and at odd addresses
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) abs_fwd(
    T*       __restrict__ y,   // [n]
    const T* __restrict__ x,   // [n]
    int n) {
    await_previous();
    map(y, x, n, [](float v) { return fabsf(v); });
}

// abs_vjp: gx = gy f'(x) of abs_fwd.
//   for    T: f32, bf16
//   floor  bytes = 3*n*s;  flops = n
//   plan   as abs_fwd
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) abs_vjp(
    T*       __restrict__ gx,   // [n]
    const T* __restrict__ x,    // [n]
    const T* __restrict__ gy,   // [n]
    int n) {
    await_previous();
    map_vjp(gx, x, gy, n, [](float v) { return v > 0.0f ? 1.0f : v < 0.0f ? -1.0f : 0.0f; });
}

// clamp_fwd: y = x limited to lo..=hi; NaN stays NaN, the slope outside is 0.
//   for    T: f32, bf16
//   floor  bytes = 2*n*s;  flops = 0
//   plan   the grid strides over 16-byte packets; single elements at the end and at odd addresses
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) clamp_fwd(
    T*       __restrict__ y,   // [n]
    const T* __restrict__ x,   // [n]
    int n, float lo, float hi) {
    await_previous();
    map(y, x, n, [=](float v) {
        v = v < lo ? lo : v;
        return v > hi ? hi : v;
    });
}

// clamp_vjp: gx = gy f'(x) of clamp_fwd.
//   for    T: f32, bf16
//   floor  bytes = 3*n*s;  flops = n
//   plan   as clamp_fwd
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) clamp_vjp(
    T*       __restrict__ gx,   // [n]
    const T* __restrict__ x,    // [n]
    const T* __restrict__ gy,   // [n]
    int n, float lo, float hi) {
    await_previous();
    map_vjp(gx, x, gy, n, [=](float v) { return v < lo || v > hi ? 0.0f : 1.0f; });
}

// power_fwd: y = x^p for x > 0, as e^(p ln x).
//   for    T: f32, bf16
//   floor  bytes = 2*n*s;  flops = 47*n
//   plan   the grid strides over 16-byte packets; single elements at the end and at odd addresses
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) power_fwd(
    T*       __restrict__ y,   // [n]
    const T* __restrict__ x,   // [n]
    int n, float p) {
    await_previous();
    map(y, x, n, [=](float v) { return exp_of(p * logf(v)); });
}

// power_vjp: gx = gy f'(x) of power_fwd.
//   for    T: f32, bf16
//   floor  bytes = 3*n*s;  flops = 49*n
//   plan   as power_fwd
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) power_vjp(
    T*       __restrict__ gx,   // [n]
    const T* __restrict__ x,    // [n]
    const T* __restrict__ gy,   // [n]
    int n, float p) {
    await_previous();
    map_vjp(gx, x, gy, n, [=](float v) { return p * exp_of((p - 1.0f) * logf(v)); });
}
