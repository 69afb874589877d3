// Cross-entropy of logits against integer targets, with label smoothing (src/ops/loss.rs).
//
// With p = softmax(x) and q = (1 - s) onehot(target) + s / cols: loss = lse(x) - sum(q x) and
// gx = g (p - q). Probabilities are never stored: the backward pass makes them again from lse.
// `peak` is 1 - s, `even` is s / cols, `smooth` whether s is not 0. A warp takes a row.
#include "lib/math.cuh"
#include "lib/order.cuh"
#include "lib/packet.cuh"
#include "lib/rows.cuh"

// Lane 0 finishes a row: its loss and lse, from the largest logit, sum(e^(x - top)) and sum(x).
template <class T>
__device__ __forceinline__ void finish(
    float* loss, float* lse, const T* row, int cols, int target, float top, float exps, float all,
    float peak, float even, bool smooth) {
    // Nothing above -infinity is no distribution.
    const float l = top == -infinity() ? not_a_number() : top + logf(exps);
    const bool known = static_cast<unsigned>(target) < static_cast<unsigned>(cols);
    const float own = known ? to_float(row[target]) : not_a_number();
    *loss = l - (smooth ? fmaf(peak, own, even * all) : own);
    *lse = l;
}

// cross_entropy_fwd: loss of each row and lse(x), in one pass over the row. A lane keeps the
// largest logit met so far and the sum of e^(x - that), which it rescales when a larger one comes.
//   for    T: f32, bf16
//   floor  bytes = rows*cols*s + 12*rows;  flops = 23*rows*cols + 923*rows
//   plan   one warp a row, 16-byte loads
//   code   16-byte loads
//   slack  2.1 (a lane may meet one larger logit after another)
//   bits   fixed shuffle tree, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) cross_entropy_fwd(
    float*     __restrict__ loss,      // [rows]
    float*     __restrict__ lse,       // [rows]
    const T*   __restrict__ x,         // [rows, cols]
    const int* __restrict__ targets,   // [rows]
    int rows, int cols, float peak, float even, bool smooth) {
    await_previous();
    const bool packets = cols % width<T> == 0 && aligned(x);
    each_row_read<T>({x}, rows, cols, packets, [&](unsigned r, const auto& row) {
        float top = -infinity(), exps = 0.0f, all = 0.0f;
        row.each([&](const auto& v, int) {
            constexpr int N = sizeof(v[0]) / sizeof(float);
            float next = top;
#pragma unroll
            for (int i = 0; i < N; ++i) next = fmaxf(next, v[0].at[i]);
            if (next > top && exps > 0.0f) exps *= exp_of(top - next);
            // As long as all is -infinity, differences from 0 count nothing.
            const float base = next == -infinity() ? 0.0f : next;
#pragma unroll
            for (int i = 0; i < N; ++i) exps += exp_of(v[0].at[i] - base);
            if (smooth) {
#pragma unroll
                for (int i = 0; i < N; ++i) all += v[0].at[i];
            }
            top = next;
        });
        const float best = warp_max(top);
        const float base = best == -infinity() ? 0.0f : best;
        exps = warp_sum(exps * exp_of(top - base));
        if (smooth) all = warp_sum(all);
        if (threadIdx.x % WARP == 0) {
            const T* own = x + row_at(r, cols);
            finish(loss + r, lse + r, own, cols, targets[r], best, exps, all, peak, even, smooth);
        }
    });
}

// cross_entropy_two_pass_fwd: the same, the largest logit first, then the sum. Without rescaling it
// does less, but a row that is too long to hold is read twice.
//   for    T: f32, bf16
//   floor  bytes = rows*cols*s + 12*rows;  flops = 23*rows*cols + 187*rows
//   plan   one warp a row, 16-byte loads
//   code   16-byte loads
//   slack  1.8 for cols < 320 (smoothing sums the logits); 1.1 for cols <= 1024; 2.1 beyond (read
//          twice)
//   bits   fixed shuffle tree, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) cross_entropy_two_pass_fwd(
    float*     __restrict__ loss,      // [rows]
    float*     __restrict__ lse,       // [rows]
    const T*   __restrict__ x,         // [rows, cols]
    const int* __restrict__ targets,   // [rows]
    int rows, int cols, float peak, float even, bool smooth) {
    await_previous();
    const bool packets = cols % width<T> == 0 && aligned(x);
    each_row<T>({x}, rows, cols, packets, [&](unsigned r, const auto& row) {
        float top = -infinity();
        row.each([&](const auto& v, int) {
#pragma unroll
            for (int i = 0; i < sizeof(v[0]) / sizeof(float); ++i) top = fmaxf(top, v[0].at[i]);
        });
        top = warp_max(top);
        float exps = 0.0f, all = 0.0f;
        row.each([&](const auto& v, int) {
            constexpr int N = sizeof(v[0]) / sizeof(float);
#pragma unroll
            for (int i = 0; i < N; ++i) exps += exp_of(v[0].at[i] - top);
            if (smooth) {
#pragma unroll
                for (int i = 0; i < N; ++i) all += v[0].at[i];
            }
        });
        exps = warp_sum(exps);
        if (smooth) all = warp_sum(all);
        if (threadIdx.x % WARP == 0) {
            const T* own = x + row_at(r, cols);
            finish(loss + r, lse + r, own, cols, targets[r], top, exps, all, peak, even, smooth);
        }
    });
}

// cross_entropy_vjp: gx = g (e^(x - lse) - q); NaN in a row whose target is no column.
//   for    T: f32, bf16
//   floor  bytes = 2*rows*cols*s + 12*rows;  flops = 24*rows*cols
//   plan   one warp a row, 16-byte loads and stores
//   code   16-byte loads
//   slack  1.3 (odd rows begin inside sectors)
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) cross_entropy_vjp(
    T*           __restrict__ gx,        // [rows, cols]
    const T*     __restrict__ x,         // [rows, cols]
    const int*   __restrict__ targets,   // [rows]
    const float* __restrict__ lse,       // [rows]
    const float* __restrict__ g,         // [rows]
    int rows, int cols, float peak, float even) {
    await_previous();
    const bool packets = cols % width<T> == 0 && aligned(gx, x);
    each_row_read<T>({x}, rows, cols, packets, [&](unsigned r, const auto& row) {
        const float l = lse[r], scale = g[r];
        const int target = targets[r];
        const bool known = static_cast<unsigned>(target) < static_cast<unsigned>(cols);
        row.each([&](const auto& v, int c) {
            constexpr int N = sizeof(v[0]) / sizeof(float);
            Floats<N> out;
#pragma unroll
            for (int i = 0; i < N; ++i) {
                float p = exp_of(v[0].at[i] - l) - even;
                if (c + i == target) p -= peak;
                out.at[i] = known ? scale * p : not_a_number();
            }
            store(gx + row_at(r, cols) + c, out);
        });
    });
}
