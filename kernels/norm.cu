// Norms over the last axis without an affine part, and their derivatives.
//
// Their Jacobians are symmetric, so one derivative entry serves both modes (src/ops/norm.rs).
// A warp takes a row. Rows of at most 1024 columns (512 where two are worked on together) stay in
// registers between the passes; longer ones are read again, from a cache where they fit.
#include "lib/packet.cuh"
#include "lib/reduce.cuh"

// Elements that a lane holds of each of so many rows.
template <int ROWS>
constexpr int held = 32 / ROWS;

// Columns of up to two rows, N neighbours at a time, held in registers: lane l has packets l,
// l + 32, ...
template <class T, int N, int ROWS>
struct Held {
    Floats<N> part[held<ROWS> / N][ROWS];
    int cols;

    __device__ __forceinline__ Held(const T* const (&rows)[ROWS], int cols) : cols(cols) {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int k = 0; k < held<ROWS> / N; ++k) {
            if (k * WARP * N >= cols) break;
            const int c = (k * WARP + lane) * N;
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                if (c < cols) part[k][r] = load<N>(rows[r] + c);
            }
        }
    }

    // Calls f(packets of the rows, first column).
    template <class F>
    __device__ __forceinline__ void each(F f) const {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int k = 0; k < held<ROWS> / N; ++k) {
            // For the whole warp, so that short rows skip what they do not fill.
            if (k * WARP * N >= cols) break;
            const int c = (k * WARP + lane) * N;
            if (c < cols) f(part[k], c);
        }
    }
};

// The same columns in the same order, read at every pass.
template <class T, int N, int ROWS>
struct Reread {
    const T* rows[ROWS];
    int cols;

    __device__ __forceinline__ Reread(const T* const (&from)[ROWS], int cols) : cols(cols) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) rows[r] = from[r];
    }

    template <class F>
    __device__ __forceinline__ void each(F f) const {
        const int lane = threadIdx.x % WARP;
#pragma unroll 2
        for (int c = lane * N; c < cols; c += WARP * N) {
            Floats<N> part[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; ++r) part[r] = load<N>(rows[r] + c);
            f(part, c);
        }
    }
};

// The sum over a row of f(packets, place in a packet), the same in all lanes.
template <class Rows, class F>
__device__ __forceinline__ float row_sum(const Rows& rows, F f) {
    float sum = 0.0f;
    rows.each([&](const auto& x, int) {
#pragma unroll
        for (int i = 0; i < sizeof(x[0]) / sizeof(float); ++i) sum += f(x, i);
    });
    return warp_sum(sum);
}

// Writes f(packets, place in a packet) to a row.
template <class T, class Rows, class F>
__device__ __forceinline__ void row_store(T* y, const Rows& rows, F f) {
    rows.each([&](const auto& x, int c) {
        constexpr int N = sizeof(x[0]) / sizeof(float);
        Floats<N> out;
#pragma unroll
        for (int i = 0; i < N; ++i) out.at[i] = f(x, i);
        store(y + c, out);
    });
}

// Where row r begins.
__device__ __forceinline__ unsigned long long row_at(unsigned r, int cols) {
    return static_cast<unsigned long long>(r) * cols;
}

// Calls f(row number, Rows) for every row of a matrix of `cols` columns, a warp each.
template <class T, int ROWS, class F>
__device__ __forceinline__ void each_row(
    const T* const (&from)[ROWS], int count, int cols, bool packets, F f) {
    constexpr int N = width<T>;
    const unsigned warps = gridDim.x * (blockDim.x / WARP);
    unsigned r = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    for (; r < static_cast<unsigned>(count); r += warps) {
        const T* rows[ROWS];
#pragma unroll
        for (int k = 0; k < ROWS; ++k) rows[k] = from[k] + row_at(r, cols);
        const bool fits = cols <= held<ROWS> * WARP;
        if (fits && packets) {
            f(r, Held<T, N, ROWS>(rows, cols));
        } else if (fits) {
            f(r, Held<T, 1, ROWS>(rows, cols));
        } else if (packets) {
            f(r, Reread<T, N, ROWS>(rows, cols));
        } else {
            f(r, Reread<T, 1, ROWS>(rows, cols));
        }
    }
}

// layer_norm_fwd: y = (x - mean) * rstd with rstd = 1 / sqrt(variance + eps), keeping rstd.
//   for    T: f32, bf16
//   floor  bytes = 2*rows*cols*s + 4*rows;  flops = 6*rows*cols + 480*rows
//   plan   one warp a row, 16-byte loads; blocks of whole warps, any number of them
//   slack  1.4 for cols < 320 (lanes beyond the row's end compute, too); 1.05 for cols <= 1024;
//          2.05 beyond (read three times)
//   bits   fixed shuffle tree, no atomics: repeatable
//   tried  three blocks a multiprocessor (80 registers): spills
template <class T>
__global__ void __launch_bounds__(256) layer_norm_fwd(
    T*       __restrict__ y,      // [rows, cols]
    float*   __restrict__ rstd,   // [rows]
    const T* __restrict__ x,      // [rows, cols]
    int rows, int cols, float eps) {
    const float inverse = 1.0f / cols;
    const bool packets = cols % width<T> == 0 && aligned(y, x);
    each_row<T>({x}, rows, cols, packets, [&](unsigned r, const auto& row) {
        const float mean = row_sum(row, [](auto& v, int i) { return v[0].at[i]; }) * inverse;
        const float variance = inverse * row_sum(row, [=](auto& v, int i) {
            const float d = v[0].at[i] - mean;
            return d * d;
        });
        const float factor = 1.0f / sqrtf(variance + eps);
        row_store(y + row_at(r, cols), row,
                  [=](auto& v, int i) { return (v[0].at[i] - mean) * factor; });
        if (threadIdx.x % WARP == 0) rstd[r] = factor;
    });
}

// layer_norm_vjp: gx = rstd * (g - mean(g) - y * mean(y g)), from layer_norm_fwd's outputs.
//   for    T: f32, bf16
//   floor  bytes = 3*rows*cols*s + 4*rows;  flops = 7*rows*cols + 384*rows
//   plan   as layer_norm_fwd, two rows held
//   slack  1.4 for cols < 320 (lanes beyond the row's end compute, too); 1.05 for cols <= 512;
//          1.7 beyond (read twice)
//   bits   fixed shuffle tree, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) layer_norm_vjp(
    T*           __restrict__ gx,     // [rows, cols]
    const T*     __restrict__ y,      // [rows, cols]
    const float* __restrict__ rstd,   // [rows]
    const T*     __restrict__ g,      // [rows, cols]
    int rows, int cols) {
    const float inverse = 1.0f / cols;
    const bool packets = cols % width<T> == 0 && aligned(gx, y, g);
    each_row<T>({y, g}, rows, cols, packets, [&](unsigned r, const auto& row) {
        const float mg = row_sum(row, [](auto& v, int i) { return v[1].at[i]; }) * inverse;
        const float mhg =
            row_sum(row, [](auto& v, int i) { return v[0].at[i] * v[1].at[i]; }) * inverse;
        const float factor = rstd[r];
        row_store(gx + row_at(r, cols), row, [=](auto& v, int i) {
            return factor * (v[1].at[i] - mg - v[0].at[i] * mhg);
        });
    });
}

// l2_normalize_fwd: y = x / max(|x|, eps), keeping |x|; a NaN length stays NaN.
//   for    T: f32, bf16
//   floor  bytes = 2*rows*cols*s + 4*rows;  flops = 3*rows*cols + 224*rows
//   plan   as layer_norm_fwd
//   slack  1.4 for cols < 320 (lanes beyond the row's end compute, too); 1.05 for cols <= 1024;
//          1.55 beyond (read twice)
//   bits   fixed shuffle tree, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) l2_normalize_fwd(
    T*       __restrict__ y,        // [rows, cols]
    float*   __restrict__ length,   // [rows]
    const T* __restrict__ x,        // [rows, cols]
    int rows, int cols, float eps) {
    const bool packets = cols % width<T> == 0 && aligned(y, x);
    each_row<T>({x}, rows, cols, packets, [&](unsigned r, const auto& row) {
        const float norm =
            sqrtf(row_sum(row, [](auto& v, int i) { return v[0].at[i] * v[0].at[i]; }));
        const float factor = 1.0f / (norm < eps ? eps : norm);
        row_store(y + row_at(r, cols), row,
                  [=](auto& v, int i) { return v[0].at[i] * factor; });
        if (threadIdx.x % WARP == 0) length[r] = norm;
    });
}

// l2_normalize_vjp: gx = (g - y * sum(y g)) / |x|, or g / eps where the length was below eps.
//   for    T: f32, bf16
//   floor  bytes = 3*rows*cols*s + 4*rows;  flops = 5*rows*cols + 192*rows
//   plan   as layer_norm_vjp
//   slack  1.4 for cols < 320 (lanes beyond the row's end compute, too); 1.05 for cols <= 512;
//          1.7 beyond (read twice)
//   bits   fixed shuffle tree, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) l2_normalize_vjp(
    T*           __restrict__ gx,       // [rows, cols]
    const T*     __restrict__ y,        // [rows, cols]
    const float* __restrict__ length,   // [rows]
    const T*     __restrict__ g,        // [rows, cols]
    int rows, int cols, float eps) {
    const bool packets = cols % width<T> == 0 && aligned(gx, y, g);
    each_row<T>({y, g}, rows, cols, packets, [&](unsigned r, const auto& row) {
        const float norm = length[r];
        const bool clamped = norm < eps;
        const float factor = 1.0f / (clamped ? eps : norm);
        const float dot = row_sum(row, [](auto& v, int i) { return v[0].at[i] * v[1].at[i]; });
        const float along = clamped ? 0.0f : dot;
        row_store(gx + row_at(r, cols), row, [=](auto& v, int i) {
            return factor * (v[1].at[i] - v[0].at[i] * along);
        });
    });
}
