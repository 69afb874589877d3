// Layout: runs of elements moved from one place to another, and from one type to another; nothing
// is computed.
//
// An axis splits a shape into (outer, extent, inner), so that an op moves for each of `outer` rows
// one run of extent * inner elements (src/ops/layout.rs).
#include "lib/order.cuh"
#include "lib/packet.cuh"

// copy_runs_fwd: y[o, put + i] = x[o, take + i] for i in 0..run; the rest of y is left alone.
//   for    T: f32, bf16
//   floor  bytes = 2*rows*run*s;  flops = 0
//   plan   in runs: the grid strides over 16-byte packets; single elements where a run begins or
//          ends in one
//   code   16-byte loads
//   slack  1.3 for run >= 256; 3 for run >= 16; 17 beyond (a sector for each run)
//   bits   copies
template <class T>
__global__ void __launch_bounds__(256) copy_runs_fwd(
    T*       __restrict__ y,   // [rows, max(to, put + run)]
    const T* __restrict__ x,   // [rows, max(from, take + run)]
    int rows, int run, int to, int put, int from, int take) {
    await_previous();
    constexpr int N = width<T>;
    const bool fits = (run | to | put | from | take) % N == 0;
    const unsigned length = run;
    each<T>(static_cast<unsigned>(rows) * length, fits && aligned(y, x), [&](unsigned i, auto w) {
        const unsigned o = i / length, c = i % length;
        move<decltype(w)::value>(y + o * to + put + c, x + o * from + take + c);
    });
}

// concat_fwd: y[o, put ..] = a[o], b[o], c[o] and d[o], one behind the other; the rest of y is left
// alone.
//   for    T: f32, bf16
//   floor  bytes = 2*rows*(of_a + of_b + of_c + of_d)*s;  flops = 0
//   plan   as copy_runs_fwd, over the runs of all four; absent ones have no elements
//   code   16-byte loads
//   slack  1.3 for of_a >= 256 and of_b*(of_b - 256) >= 0 and of_c*(of_c - 256) >= 0
//          and of_d*(of_d - 256) >= 0; 3 for of_a >= 16 and of_b*(of_b - 16) >= 0
//          and of_c*(of_c - 16) >= 0 and of_d*(of_d - 16) >= 0; 17 beyond (a sector for each run)
//   bits   copies
template <class T>
__global__ void __launch_bounds__(256) concat_fwd(
    T*       __restrict__ y,   // [rows, max(to, put + of_a + of_b + of_c + of_d)]
    const T* __restrict__ a,   // [rows, of_a]
    const T* __restrict__ b,   // [rows, of_b]
    const T* __restrict__ c,   // [rows, of_c]
    const T* __restrict__ d,   // [rows, of_d]
    int rows, int of_a, int of_b, int of_c, int of_d, int to, int put) {
    await_previous();
    constexpr int N = width<T>;
    const bool fits = (of_a | of_b | of_c | of_d | to | put) % N == 0;
    const unsigned two = of_a + of_b, three = two + of_c, all = three + of_d;
    each<T>(rows * all, fits && aligned(y, a, b, c, d), [&](unsigned i, auto w) {
        const unsigned o = i / all, at = i % all;
        const T* from = at < static_cast<unsigned>(of_a) ? a + o * of_a + at
                        : at < two                       ? b + o * of_b + (at - of_a)
                        : at < three                     ? c + o * of_c + (at - two)
                                                         : d + o * of_d + (at - three);
        move<decltype(w)::value>(y + o * to + put + at, from);
    });
}

// place_fwd: y[o, put + i] = x[o, i] for i in 0..run, zero in the rest of a row.
//   for    T: f32, bf16
//   floor  bytes = rows*(run + to)*s;  flops = 0
//   plan   as copy_runs_fwd
//   code   16-byte loads
//   bits   copies
template <class T>
__global__ void __launch_bounds__(256) place_fwd(
    T*       __restrict__ y,   // [rows, max(to, put + run)]
    const T* __restrict__ x,   // [rows, run]
    int rows, int run, int to, int put) {
    await_previous();
    constexpr int N = width<T>;
    const bool fits = (run | to | put) % N == 0;
    const unsigned length = to, own = run;
    each<T>(static_cast<unsigned>(rows) * length, fits && aligned(y, x), [&](unsigned i, auto w) {
        constexpr int M = decltype(w)::value;
        const unsigned o = i / length;
        // Wraps round before the run, which makes it too large as well.
        const unsigned c = i % length - put;
        if (c < own) {
            move<M>(y + i, x + o * own + c);
        } else {
            store(y + i, Floats<M>{});
        }
    });
}

// round_fwd: y = x, rounded to T.
//   for    T: f32, bf16
//   floor  bytes = n*(4 + s);  flops = 0
//   plan   the grid strides over four elements at a time; single elements at the end
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) round_fwd(
    T*           __restrict__ y,   // [n]
    const float* __restrict__ x,   // [n]
    int n) {
    await_previous();
    each<float>(n, aligned(y, x), [&](unsigned i, auto w) {
        store(y + i, load<decltype(w)::value>(x + i));
    });
}

// widen_fwd: y = x, in f32.
//   for    T: f32, bf16
//   floor  bytes = n*(4 + s);  flops = 0
//   plan   as round_fwd
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) widen_fwd(
    float*   __restrict__ y,   // [n]
    const T* __restrict__ x,   // [n]
    int n) {
    await_previous();
    each<float>(n, aligned(y, x), [&](unsigned i, auto w) {
        store(y + i, load<decltype(w)::value>(x + i));
    });
}
