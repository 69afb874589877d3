// Batch norm in training mode: columns of [rows, cols] normalised over the rows, then scaled and
// shifted (src/ops/batch_norm.rs).
//
// Two ways. `strip`: a block has all rows of 32 columns (lib/strip.cuh), which suits the batches of
// training. `split`: chunks of the rows in blocks of their own, their moments merged in between,
// which suits many rows of few columns.
#include "lib/order.cuh"
#include "lib/strip.cuh"

// y = (x - mean) * scale + b.
template <class T, class Rows>
__device__ __forceinline__ void normalise(
    T* y, const Rows& strip, const Chunk& at, const float* mean, const float* scale,
    const float* b) {
    if (!strip.live) return;
    constexpr int N = Rows::N;
    const Floats<N> m = own_columns(strip, mean), a = own_columns(strip, scale);
    const Floats<N> shift = own_columns(strip, b);
    strip.each([&](const auto& x, unsigned r) {
        Floats<N> out;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            out.at[i] = fmaf(x[0].at[i] - m.at[i], a.at[i], shift.at[i]);
        }
        store(y + (at.first + r) * at.cols + strip.column, out);
    });
}

// gx = scale * (g - even - (x - mean) * tilt), x and g being the strip's matrices.
template <class T, class Rows>
__device__ __forceinline__ void pull_back(
    T* gx, const Rows& strip, const Chunk& at, const float* mean, const float* even,
    const float* tilt, const float* scale) {
    if (!strip.live) return;
    constexpr int N = Rows::N;
    const Floats<N> m = own_columns(strip, mean), a = own_columns(strip, scale);
    const Floats<N> e = own_columns(strip, even), t = own_columns(strip, tilt);
    strip.each([&](const auto& x, unsigned r) {
        Floats<N> out;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const float d = x[0].at[i] - m.at[i];
            out.at[i] = a.at[i] * fmaf(-d, t.at[i], x[1].at[i] - e.at[i]);
        }
        store(gx + (at.first + r) * at.cols + strip.column, out);
    });
}

// Fills `to` with a strip's columns of `from`, beyond the matrix with its last one; a barrier must
// follow.
template <class T>
__device__ __forceinline__ void fetch(float* to, const T* from, const Chunk& at) {
    const unsigned c = threadIdx.x;
    if (c < STRIP) to[c] = to_float(from[min(at.column(c), at.cols - 1)]);
}

// batch_norm_train_fwd: y = (x - mean) * rstd * w + b with statistics over the rows, keeping both.
//   for    T: f32, bf16
//   floor  bytes = 2*rows*cols*s + 2*cols*s + 8*cols;  flops = 7*rows*cols + 20*cols
//   plan   strips of 32 columns, a block each; at most 128 rows are read once
//   code   16-byte loads
//   slack  1.2 for rows >= 100 and rows <= 128 and cols >= 32; 2.1 for rows >= 100 and cols >= 32
//          (read three times); 90 beyond (threads left over
//          by few rows or columns sum nothing)
//   bits   fixed trees, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) batch_norm_train_fwd(
    T*       __restrict__ y,          // [rows, cols]
    float*   __restrict__ mean,       // [cols]
    float*   __restrict__ variance,   // [cols]
    const T* __restrict__ x,          // [rows, cols]
    const T* __restrict__ w,          // [cols]
    const T* __restrict__ b,          // [cols]
    int rows, int cols, float eps) {
    await_previous();
    __shared__ Meeting<1> first, second;
    __shared__ float shift[STRIP];
    const float inverse = 1.0f / rows;
    const bool packets = cols % width<T> == 0 && aligned(y, x);
    const Cut all = cut(1, rows, cols, rows);
    each_strip<T>({x}, all, packets, [&](const auto& strip, const Chunk& at) {
        column_sums(first, strip, [](auto& v, int i, float (&term)[1]) { term[0] = v[0].at[i]; },
                    [=](int, int, float sum) { return sum * inverse; });
        const auto m = own_columns(strip, first.total[0]);
        const auto square = [&](auto& v, int i, float (&term)[1]) {
            const float d = v[0].at[i] - m.at[i];
            term[0] = d * d;
        };
        column_sums(second, strip, square, [&](int, int c, float sum) {
            if (at.column(c) >= at.cols) return 0.0f;
            const float var = sum * inverse;
            mean[at.column(c)] = first.total[0][c];
            variance[at.column(c)] = var;
            shift[c] = to_float(b[at.column(c)]);
            return to_float(w[at.column(c)]) * (1.0f / sqrtf(var + eps));
        });
        normalise(y, strip, at, first.total[0], second.total[0], shift);
    });
}

// batch_norm_merge_fwd: mean and variance of the columns from the chunks' of column_moments_fwd
// (reduce.cu), and scale = w * rstd.
//   for    T: f32, bf16
//   floor  bytes = 8*ceil(rows, step)*cols + 12*cols + cols*s;
//          flops = 7*ceil(rows, step)*cols + 6*cols
//   plan   a thread a column, chunk after chunk
//   slack  1.55 (the sums are read twice)
//   bits   fixed order, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) batch_norm_merge_fwd(
    float*       __restrict__ mean,       // [cols]
    float*       __restrict__ variance,   // [cols]
    float*       __restrict__ scale,      // [cols]
    const float* __restrict__ sums,       // [ceil(rows, step), cols]
    const float* __restrict__ squares,    // [ceil(rows, step), cols]
    const T*     __restrict__ w,          // [cols]
    int rows, int cols, int step, float eps) {
    await_previous();
    const float inverse = 1.0f / rows;
    const unsigned all = cols, chunks = (rows + step - 1u) / step;
    unsigned c = blockIdx.x * blockDim.x + threadIdx.x;
    for (; c < all; c += gridDim.x * blockDim.x) {
        float sum = 0.0f, square = 0.0f;
        for (unsigned k = 0; k < chunks; ++k) sum += sums[k * all + c];
        const float m = sum * inverse;
        for (unsigned k = 0; k < chunks; ++k) {
            const unsigned left = rows - k * step;
            const float n = left < step ? left : step;
            const float d = sums[k * all + c] / n - m;
            square += fmaf(n * d, d, squares[k * all + c]);
        }
        const float var = square * inverse;
        mean[c] = m;
        variance[c] = var;
        scale[c] = to_float(w[c]) * (1.0f / sqrtf(var + eps));
    }
}

// batch_norm_apply_fwd: y = (x - mean) * scale + b.
//   for    T: f32, bf16
//   floor  bytes = 2*rows*cols*s + cols*s + 8*cols;  flops = 3*rows*cols
//   plan   strips of 32 columns and `step` rows, a block each
//   code   16-byte loads
//   slack  1.15 for step <= rows; 3 beyond (a chunk reads its columns' own values)
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256, 2) batch_norm_apply_fwd(
    T*           __restrict__ y,       // [rows, cols]
    const T*     __restrict__ x,       // [rows, cols]
    const float* __restrict__ mean,    // [cols]
    const float* __restrict__ scale,   // [cols]
    const T*     __restrict__ b,       // [cols]
    int rows, int cols, int step) {
    await_previous();
    __shared__ float own[3][STRIP];
    const bool packets = cols % width<T> == 0 && aligned(y, x);
    const Cut all = cut(1, rows, cols, step);
    each_strip<T>({x}, all, packets, [&](const auto& strip, const Chunk& at) {
        __syncthreads();
        fetch(own[0], mean, at);
        fetch(own[1], scale, at);
        fetch(own[2], b, at);
        __syncthreads();
        normalise(y, strip, at, own[0], own[1], own[2]);
    });
}

// batch_norm_train_vjp: gradients of batch_norm_train_fwd. With h = (x - mean) * rstd,
// gx = w * rstd * (g - mean(g) - h * mean(h g)), gw = sum(h g), gb = sum(g).
//   for    T: f32, bf16
//   floor  bytes = 3*rows*cols*s + 3*cols*s + 8*cols;  flops = 9*rows*cols + 22*cols
//   plan   strips of 32 columns, a block each; at most 128 rows are read once
//   code   16-byte loads
//   slack  1.2 for rows >= 100 and rows <= 128 and cols >= 32; 1.75 for rows >= 100 and cols >= 32
//          (read twice); 90 beyond (threads left over
//          by few rows or columns sum nothing)
//   bits   fixed trees, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) batch_norm_train_vjp(
    T*           __restrict__ gx,         // [rows, cols]
    T*           __restrict__ gw,         // [cols]
    T*           __restrict__ gb,         // [cols]
    const T*     __restrict__ x,          // [rows, cols]
    const T*     __restrict__ w,          // [cols]
    const float* __restrict__ mean,       // [cols]
    const float* __restrict__ variance,   // [cols]
    const T*     __restrict__ g,          // [rows, cols]
    int rows, int cols, float eps) {
    await_previous();
    __shared__ Meeting<2> sums;
    __shared__ float centre[STRIP], scale[STRIP];
    const float inverse = 1.0f / rows;
    const bool packets = cols % width<T> == 0 && aligned(gx, x, g);
    const Cut all = cut(1, rows, cols, rows);
    each_strip<T>({x, g}, all, packets, [&](const auto& strip, const Chunk& at) {
        __syncthreads();
        fetch(centre, mean, at);
        __syncthreads();
        const auto m = own_columns(strip, centre);
        const auto terms = [&](auto& v, int i, float (&term)[2]) {
            term[0] = v[1].at[i] * (v[0].at[i] - m.at[i]);
            term[1] = v[1].at[i];
        };
        column_sums(sums, strip, terms, [&](int k, int c, float sum) {
            const unsigned column = at.column(c);
            if (column >= at.cols) return 0.0f;
            if (k == 1) {
                gb[column] = from_float<T>(sum);
                return sum * inverse;
            }
            const float rstd = 1.0f / sqrtf(variance[column] + eps);
            gw[column] = from_float<T>(sum * rstd);
            scale[c] = to_float(w[column]) * rstd;
            return sum * rstd * inverse * rstd;
        });
        pull_back(gx, strip, at, centre, sums.total[1], sums.total[0], scale);
    });
}

// batch_norm_sums_vjp: for each chunk of `step` rows, sum(g (x - mean)) and sum(g) of each column.
//   for    T: f32, bf16
//   floor  bytes = 2*rows*cols*s + 8*ceil(rows, step)*cols + 4*cols;
//          flops = 4*rows*cols + 14*ceil(rows, step)*cols
//   plan   strips of 32 columns and `step` rows, a block each
//   code   16-byte loads
//   slack  2.2 for step <= rows and cols >= 32 (trees); 90 beyond (threads left over
//          by few rows or columns sum nothing)
//   bits   fixed trees, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) batch_norm_sums_vjp(
    float*       __restrict__ sums,   // [2, ceil(rows, step), cols]
    const T*     __restrict__ x,      // [rows, cols]
    const T*     __restrict__ g,      // [rows, cols]
    const float* __restrict__ mean,   // [cols]
    int rows, int cols, int step) {
    await_previous();
    __shared__ Meeting<2> meet;
    __shared__ float centre[STRIP];
    const bool packets = cols % width<T> == 0 && aligned(x, g);
    const Cut all = cut(1, rows, cols, step);
    each_strip<T>({x, g}, all, packets, [&](const auto& strip, const Chunk& at) {
        __syncthreads();
        fetch(centre, mean, at);
        __syncthreads();
        const auto m = own_columns(strip, centre);
        const auto terms = [&](auto& v, int i, float (&term)[2]) {
            term[0] = v[1].at[i] * (v[0].at[i] - m.at[i]);
            term[1] = v[1].at[i];
        };
        column_sums(meet, strip, terms, [&](int k, int c, float sum) {
            const unsigned row = k * all.chunks() + at.number;
            if (at.column(c) < at.cols) sums[row * at.cols + at.column(c)] = sum;
            return sum;
        });
    });
}

// batch_norm_merge_vjp: gw and gb from batch_norm_sums_vjp's sums, and what batch_norm_apply_vjp
// needs of each column: `even`, `tilt` and `scale`.
//   for    T: f32, bf16
//   floor  bytes = 8*ceil(rows, step)*cols + 16*cols + 3*cols*s;
//          flops = 2*ceil(rows, step)*cols + 8*cols
//   plan   a thread a column, chunk after chunk
//   bits   fixed order, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) batch_norm_merge_vjp(
    T*           __restrict__ gw,         // [cols]
    T*           __restrict__ gb,         // [cols]
    float*       __restrict__ even,       // [cols]
    float*       __restrict__ tilt,       // [cols]
    float*       __restrict__ scale,      // [cols]
    const float* __restrict__ sums,       // [2, ceil(rows, step), cols]
    const T*     __restrict__ w,          // [cols]
    const float* __restrict__ variance,   // [cols]
    int rows, int cols, int step, float eps) {
    await_previous();
    const float inverse = 1.0f / rows;
    const unsigned all = cols, chunks = (rows + step - 1u) / step;
    unsigned c = blockIdx.x * blockDim.x + threadIdx.x;
    for (; c < all; c += gridDim.x * blockDim.x) {
        float gh = 0.0f, g = 0.0f;
        for (unsigned k = 0; k < chunks; ++k) {
            gh += sums[k * all + c];
            g += sums[(chunks + k) * all + c];
        }
        const float rstd = 1.0f / sqrtf(variance[c] + eps);
        gw[c] = from_float<T>(gh * rstd);
        gb[c] = from_float<T>(g);
        even[c] = g * inverse;
        tilt[c] = gh * rstd * inverse * rstd;
        scale[c] = to_float(w[c]) * rstd;
    }
}

// batch_norm_apply_vjp: gx = scale * (g - even - (x - mean) * tilt).
//   for    T: f32, bf16
//   floor  bytes = 3*rows*cols*s + 16*cols;  flops = 5*rows*cols
//   plan   strips of 32 columns and `step` rows, a block each
//   code   16-byte loads
//   slack  1.15 for step <= rows; 3 beyond (a chunk reads its columns' own values)
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) batch_norm_apply_vjp(
    T*           __restrict__ gx,      // [rows, cols]
    const T*     __restrict__ x,       // [rows, cols]
    const T*     __restrict__ g,       // [rows, cols]
    const float* __restrict__ mean,    // [cols]
    const float* __restrict__ even,    // [cols]
    const float* __restrict__ tilt,    // [cols]
    const float* __restrict__ scale,   // [cols]
    int rows, int cols, int step) {
    await_previous();
    __shared__ float own[4][STRIP];
    const bool packets = cols % width<T> == 0 && aligned(gx, x, g);
    const Cut all = cut(1, rows, cols, step);
    each_strip<T>({x, g}, all, packets, [&](const auto& strip, const Chunk& at) {
        __syncthreads();
        fetch(own[0], mean, at);
        fetch(own[1], even, at);
        fetch(own[2], tilt, at);
        fetch(own[3], scale, at);
        __syncthreads();
        pull_back(gx, strip, at, own[0], own[1], own[2], own[3]);
    });
}
