// Norms over the last axis without an affine part, and their derivatives.
//
// Their Jacobians are symmetric, so one derivative entry serves both modes (src/ops/norm.rs).
// A warp takes a row (lib/rows.cuh).
#include "lib/rows.cuh"

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

// rms_norm_fwd: y = x * rstd with rstd = 1 / sqrt(mean(x^2) + eps), keeping rstd.
//   for    T: f32, bf16
//   floor  bytes = 2*rows*cols*s + 4*rows;  flops = 3*rows*cols + 288*rows
//   plan   as layer_norm_fwd
//   slack  1.4 for cols < 320 (lanes beyond the row's end compute, too); 1.05 for cols <= 1024;
//          1.55 beyond (read twice)
//   bits   fixed shuffle tree, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) rms_norm_fwd(
    T*       __restrict__ y,      // [rows, cols]
    float*   __restrict__ rstd,   // [rows]
    const T* __restrict__ x,      // [rows, cols]
    int rows, int cols, float eps) {
    const float inverse = 1.0f / cols;
    const bool packets = cols % width<T> == 0 && aligned(y, x);
    each_row<T>({x}, rows, cols, packets, [&](unsigned r, const auto& row) {
        const float square =
            row_sum(row, [](auto& v, int i) { return v[0].at[i] * v[0].at[i]; });
        const float factor = 1.0f / sqrtf(fmaf(square, inverse, eps));
        row_store(y + row_at(r, cols), row, [=](auto& v, int i) { return v[0].at[i] * factor; });
        if (threadIdx.x % WARP == 0) rstd[r] = factor;
    });
}

// rms_norm_vjp: gx = rstd * (g - y * mean(y g)), from rms_norm_fwd's outputs.
//   for    T: f32, bf16
//   floor  bytes = 3*rows*cols*s + 4*rows;  flops = 5*rows*cols + 192*rows
//   plan   as layer_norm_vjp
//   slack  1.4 for cols < 320 (lanes beyond the row's end compute, too); 1.05 for cols <= 512;
//          1.7 beyond (read twice)
//   bits   fixed shuffle tree, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) rms_norm_vjp(
    T*           __restrict__ gx,     // [rows, cols]
    const T*     __restrict__ y,      // [rows, cols]
    const float* __restrict__ rstd,   // [rows]
    const T*     __restrict__ g,      // [rows, cols]
    int rows, int cols) {
    const float inverse = 1.0f / cols;
    const bool packets = cols % width<T> == 0 && aligned(gx, y, g);
    each_row<T>({y, g}, rows, cols, packets, [&](unsigned r, const auto& row) {
        const float mhg =
            row_sum(row, [](auto& v, int i) { return v[0].at[i] * v[1].at[i]; }) * inverse;
        const float factor = rstd[r];
        row_store(gx + row_at(r, cols), row,
                  [=](auto& v, int i) { return factor * (v[1].at[i] - v[0].at[i] * mhg); });
    });
}
