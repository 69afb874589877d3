// The loss of Causal MeanFlow (src/ops/flow.rs): targets, bracket and weight in two passes over a
// sample, and its gradient in one.
//
// A sample is `cols` numbers of each map. Counterfactuals n0 ... n3 are absent from `count` on.
#include "lib/math.cuh"
#include "lib/order.cuh"
#include "lib/packet.cuh"
#include "lib/reduce.cuh"

constexpr int MOST = 4;            // Counterfactuals of a sample.
constexpr float TINY = 1e-20f;     // Under square roots of lengths.

// The maps of a batch.
template <class T>
struct Maps {
    const T *u, *f, *eps, *dudt;
    const T* negatives[MOST];
    unsigned count;

    __device__ __forceinline__ bool aligned() const {
        bool all = ::aligned(u, f, eps, dudt);
#pragma unroll
        for (unsigned n = 0; n < MOST; ++n) all = all && (n >= count || ::aligned(negatives[n]));
        return all;
    }
};

// N neighbouring elements of a sample: u, eps, and a = sign (eps - f) - span du/dt.
template <int N>
struct Point {
    Floats<N> u, eps, a;

    template <class T>
    __device__ __forceinline__ Point(const Maps<T>& m, unsigned i, float sign, float span) {
        u = load<N>(m.u + i);
        eps = load<N>(m.eps + i);
        a = load<N>(m.f + i);
        const Floats<N> slope = load<N>(m.dudt + i);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            a.at[k] = fmaf(-span, slope.at[k], sign * (eps.at[k] - a.at[k]));
        }
    }

    // Calls f(n, eps - f_n) for each counterfactual.
    template <class T, class F>
    __device__ __forceinline__ void each(const Maps<T>& m, unsigned i, F f) const {
#pragma unroll
        for (unsigned n = 0; n < MOST; ++n) {
            if (n >= m.count) break;
            Floats<N> to = load<N>(m.negatives[n] + i);
#pragma unroll
            for (int k = 0; k < N; ++k) to.at[k] = eps.at[k] - to.at[k];
            f(n, to);
        }
    }
};

// Calls f(Point) for what this thread has of a sample that begins at `begin`.
template <class T, class F>
__device__ __forceinline__ void each_point(
    const Maps<T>& m, unsigned begin, unsigned cols, bool packets, float sign, float span, F f) {
    if (packets) {
        constexpr int N = width<T>;
        for (unsigned c = threadIdx.x * N; c < cols; c += blockDim.x * N) {
            f(Point<N>(m, begin + c, sign, span), begin + c);
        }
    } else {
        for (unsigned c = threadIdx.x; c < cols; c += blockDim.x) {
            f(Point<1>(m, begin + c, sign, span), begin + c);
        }
    }
}

// What a counterfactual adds to the bracket, and its derivatives to S and to d.
struct Push {
    float term, of_s, of_d;
};

// `clamp` is Clamp::number in src/ops/flow.rs.
__device__ __forceinline__ Push push_of(int clamp, float kappa, float s, float d, float reach) {
    if (clamp == 3) {
        const float tau = reach + TINY, x = (s - d) / tau, slope = sigmoid(x);
        const float soft = (x > 0.0f ? x : 0.0f) + logf(1.0f + exp_of(-fabsf(x)));
        // NaN is not above 0; the logarithm has it.
        return {tau * soft, slope, -slope};
    }
    if (clamp == 0) return {-d, 0.0f, -1.0f};
    const float limit = clamp == 1 ? kappa * reach : reach;
    const bool below = d < limit;
    const float near = below ? d : limit;
    return {clamp == 1 ? -near : reach - near, 0.0f, below ? -1.0f : 0.0f};
}

// flow_path_fwd: y = f + t (eps - f) and v = eps - f.
//   for    T: f32, bf16
//   floor  bytes = 4*rows*cols*s + 4*rows;  flops = 3*rows*cols
//   plan   the grid strides over 16-byte packets
//   code   16-byte loads
//   slack  2.6 for cols < 64 (a time for few elements); 1.1 beyond
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) flow_path_fwd(
    T*           __restrict__ y,     // [rows, cols]
    T*           __restrict__ v,     // [rows, cols]
    const T*     __restrict__ f,     // [rows, cols]
    const T*     __restrict__ eps,   // [rows, cols]
    const float* __restrict__ t,     // [rows]
    int rows, int cols) {
    await_previous();
    const unsigned length = cols;
    const bool packets = cols % width<T> == 0 && aligned(y, v, f, eps);
    each<T>(static_cast<unsigned>(rows) * length, packets, [&](unsigned i, auto w) {
        constexpr int N = decltype(w)::value;
        const float at = t[i / length];
        const Floats<N> from = load<N>(f + i);
        Floats<N> to = load<N>(eps + i), point;
#pragma unroll
        for (int k = 0; k < N; ++k) {
            to.at[k] -= from.at[k];
            point.at[k] = fmaf(at, to.at[k], from.at[k]);
        }
        store(y + i, point);
        store(v + i, to);
    });
}

// flow_loss_fwd: the loss of each sample, what is worth knowing of it, and the factors that the
// gradient needs.
//   for    T: f32, bf16
//   floor  bytes = (4 + count)*rows*cols*s + rows*(24 + 12*count);
//          flops = rows*(cols*(11 + 11*count) + 7680*(1 + count))
//   plan   a block a sample, 16-byte loads; lengths first, distances in a second pass, which reads
//          from a cache
//   code   16-byte loads
//   slack  2.1 (the second pass)
//   bits   fixed trees, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256, 2) flow_loss_fwd(
    float*       __restrict__ loss,      // [rows]
    float*       __restrict__ seen,      // [rows, 3]
    float*       __restrict__ factors,   // [rows, 1 + 2*count]
    const T*     __restrict__ u,         // [rows, cols]
    const T*     __restrict__ f,         // [rows, cols]
    const T*     __restrict__ eps,       // [rows, cols]
    const T*     __restrict__ dudt,      // [rows, cols]
    const float* __restrict__ span,      // [rows]
    const float* __restrict__ lambda,    // [rows, count]
    const T*     __restrict__ n0,        // [min(1, count)*rows, cols]
    const T*     __restrict__ n1,        // [min(1, max(count - 1, 0))*rows, cols]
    const T*     __restrict__ n2,        // [min(1, max(count - 2, 0))*rows, cols]
    const T*     __restrict__ n3,        // [min(1, max(count - 3, 0))*rows, cols]
    int rows, int cols, int count, int clamp, float sign, float share, float kappa, float power,
    float floor) {
    await_previous();
    __shared__ float hold[WARP];
    const Maps<T> maps = {u, f, eps, dudt, {n0, n1, n2, n3}, static_cast<unsigned>(count)};
    const bool packets = cols % width<T> == 0 && maps.aligned();
    for (unsigned b = blockIdx.x; b < static_cast<unsigned>(rows); b += gridDim.x) {
        const float time = span[b];
        const unsigned begin = b * cols;
        float u2 = 0.0f, a2 = 0.0f, s = 0.0f, far[MOST] = {};
        each_point(maps, begin, cols, packets, sign, time, [&](const auto& p, unsigned i) {
            constexpr int N = sizeof(p.u) / sizeof(float);
#pragma unroll
            for (int k = 0; k < N; ++k) {
                const float gap = p.u.at[k] - p.a.at[k];
                u2 = fmaf(p.u.at[k], p.u.at[k], u2);
                a2 = fmaf(p.a.at[k], p.a.at[k], a2);
                s = fmaf(gap, gap, s);
            }
            p.each(maps, i, [&](unsigned n, const Floats<N>& to) {
#pragma unroll
                for (int k = 0; k < N; ++k) far[n] = fmaf(to.at[k], to.at[k], far[n]);
            });
        });
        u2 = block_sum(u2, hold);
        a2 = block_sum(a2, hold);
        s = block_sum(s, hold);
        float scale[MOST], d[MOST] = {}, reach[MOST] = {};
#pragma unroll
        for (int n = 0; n < MOST; ++n) {
            if (n >= count) break;
            const float length = sqrtf(block_sum(far[n], hold) + TINY);
            scale[n] = sign * lambda[b * count + n] * sqrtf(a2 + TINY) / length;
        }
        if (count > 0) {
            each_point(maps, begin, cols, packets, sign, time, [&](const auto& p, unsigned i) {
                constexpr int N = sizeof(p.u) / sizeof(float);
                p.each(maps, i, [&](unsigned n, const Floats<N>& to) {
#pragma unroll
                    for (int k = 0; k < N; ++k) {
                        const float c = scale[n] * to.at[k];
                        const float gap = p.u.at[k] - c, room = p.a.at[k] - c;
                        d[n] = fmaf(gap, gap, d[n]);
                        reach[n] = fmaf(room, room, reach[n]);
                    }
                });
            });
        }
#pragma unroll
        for (int n = 0; n < MOST; ++n) {
            if (n >= count) break;
            d[n] = block_sum(d[n], hold);
            reach[n] = block_sum(reach[n], hold);
        }
        if (threadIdx.x > 0) continue;
        const float shifted = s + floor;
        const float weight = power == 0.0f   ? 1.0f
                             : power == 1.0f ? 1.0f / shifted
                                             : exp_of(-power * logf(shifted));
        float bracket = s, pull = 1.0f;
        float* own = factors + b * (1 + 2 * count);
#pragma unroll
        for (int n = 0; n < MOST; ++n) {
            if (n >= count) break;
            const Push push = push_of(clamp, kappa, s, d[n], reach[n]);
            bracket = fmaf(share, push.term, bracket);
            pull = fmaf(share, push.of_s, pull);
            own[1 + n] = 2.0f * weight * (share * push.of_d);
            own[1 + count + n] = scale[n];
        }
        own[0] = 2.0f * weight * pull;
        loss[b] = bracket * weight;
        seen[3 * b] = s;
        seen[3 * b + 1] = sqrtf(u2);
        seen[3 * b + 2] = sqrtf(a2);
    }
}

// flow_loss_vjp: gu = gy (k_0 (u - a) + sum_n k_n (u - scale_n (eps - f_n))), the factors being k
// and then the scales.
//   for    T: f32, bf16
//   floor  bytes = (5 + count)*rows*cols*s + rows*(12 + 8*count);
//          flops = rows*cols*(7 + 5*count)
//   plan   the grid strides over 16-byte packets
//   code   16-byte loads
//   slack  6 for cols < 64 (factors for few elements); 1.6 beyond (factors are read again by each
//          packet, from a cache)
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) flow_loss_vjp(
    T*           __restrict__ gu,        // [rows, cols]
    const T*     __restrict__ u,         // [rows, cols]
    const T*     __restrict__ f,         // [rows, cols]
    const T*     __restrict__ eps,       // [rows, cols]
    const T*     __restrict__ dudt,      // [rows, cols]
    const float* __restrict__ span,      // [rows]
    const float* __restrict__ factors,   // [rows, 1 + 2*count]
    const float* __restrict__ gy,        // [rows]
    const T*     __restrict__ n0,        // [min(1, count)*rows, cols]
    const T*     __restrict__ n1,        // [min(1, max(count - 1, 0))*rows, cols]
    const T*     __restrict__ n2,        // [min(1, max(count - 2, 0))*rows, cols]
    const T*     __restrict__ n3,        // [min(1, max(count - 3, 0))*rows, cols]
    int rows, int cols, int count, float sign) {
    await_previous();
    const Maps<T> maps = {u, f, eps, dudt, {n0, n1, n2, n3}, static_cast<unsigned>(count)};
    const bool packets = cols % width<T> == 0 && aligned(gu) && maps.aligned();
    const unsigned length = cols;
    each<T>(static_cast<unsigned>(rows) * length, packets, [&](unsigned i, auto w) {
        constexpr int N = decltype(w)::value;
        const unsigned b = i / length;
        const float* own = factors + b * (1 + 2 * count);
        const float g = gy[b], pull = own[0];
        const Point<N> p(maps, i, sign, span[b]);
        Floats<N> out;
#pragma unroll
        for (int k = 0; k < N; ++k) out.at[k] = pull * (p.u.at[k] - p.a.at[k]);
        p.each(maps, i, [&](unsigned n, const Floats<N>& to) {
            const float push = own[1 + n], scale = own[1 + count + n];
#pragma unroll
            for (int k = 0; k < N; ++k) {
                out.at[k] = fmaf(push, fmaf(-scale, to.at[k], p.u.at[k]), out.at[k]);
            }
        });
#pragma unroll
        for (int k = 0; k < N; ++k) out.at[k] *= g;
        store(gu + i, out);
    });
}
