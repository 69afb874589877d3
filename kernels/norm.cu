// Norms over the last axis without an affine part, and their derivatives.
//
// Their Jacobians are symmetric, so one derivative entry serves both modes (src/ops/norm.rs).
// A warp takes a row (lib/rows.cuh).
#include "lib/ada.cuh"
#include "lib/math.cuh"
#include "lib/order.cuh"

// layer_norm_fwd: y = (x - mean) * rstd with rstd = 1 / sqrt(variance + eps), keeping rstd.
//   for    T: f32, bf16
//   floor  bytes = 2*rows*cols*s + 4*rows;  flops = 6*rows*cols + 480*rows
//   plan   one warp a row, 16-byte loads; blocks of whole warps, any number of them
//   code   16-byte loads
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
    await_previous();
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
//   code   16-byte loads
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
    await_previous();
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
//   code   16-byte loads
//   slack  1.4 for cols < 320 (lanes beyond the row's end compute, too); 1.05 for cols <= 1024;
//          1.55 beyond (read twice)
//   bits   fixed shuffle tree, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) l2_normalize_fwd(
    T*       __restrict__ y,        // [rows, cols]
    float*   __restrict__ length,   // [rows]
    const T* __restrict__ x,        // [rows, cols]
    int rows, int cols, float eps) {
    await_previous();
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
//   code   16-byte loads
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
    await_previous();
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
//   code   16-byte loads
//   slack  1.4 for cols < 320 (lanes beyond the row's end compute, too); 1.05 for cols <= 1024;
//          1.55 beyond (read twice)
//   bits   fixed shuffle tree, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) rms_norm_fwd(
    T*       __restrict__ y,      // [rows, cols]
    float*   __restrict__ rstd,   // [rows]
    const T* __restrict__ x,      // [rows, cols]
    int rows, int cols, float eps) {
    await_previous();
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
//   code   16-byte loads
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
    await_previous();
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

// ada_norm_fwd: y = h (1 + a) + b with h = (x - mean) * rstd, a row of a and b serving
// `rows/groups` rows that follow each other; keeping mean and rstd.
//   for    T: f32, bf16
//   floor  bytes = 2*rows*cols*s + 2*groups*cols*s + 8*rows;  flops = 9*rows*cols + 480*rows
//   plan   as layer_norm_fwd
//   code   16-byte loads
//   slack  2.4 for cols <= 1024 (a and b are read by every row, from a cache); 3.6 beyond (x is
//          read three times)
//   bits   fixed shuffle tree, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) ada_norm_fwd(
    T*       __restrict__ y,       // [rows, cols]
    float*   __restrict__ stats,   // [rows, 2]
    const T* __restrict__ x,       // [rows, cols]
    const T* __restrict__ a,       // [groups, cols]
    const T* __restrict__ b,       // [groups, cols]
    int rows, int cols, int groups, float eps) {
    await_previous();
    const unsigned each = groups > 0 ? rows / groups : 1;
    const bool packets = cols % width<T> == 0 && aligned(y, x, a, b);
    each_row<T>({x}, rows, cols, packets, [&](unsigned r, const auto& row) {
        const unsigned long long serving = row_at(r / each, cols);
        const Moments m = ada_row(row, cols, eps, a + serving, b + serving, y + row_at(r, cols));
        if (threadIdx.x % WARP == 0) {
            stats[2 * r] = m.mean;
            stats[2 * r + 1] = m.rstd;
        }
    });
}

// ada_norm_jvp: dy = h' (1 + a) + h da + db, h' being layer norm's tangent; what is not given is 0.
//   for    T: f32, bf16
//   floor  bytes = rows*cols*s*(2 + of_x) + groups*cols*s*(of_x + of_a + of_b) + 8*rows;
//          flops = rows*(cols*(2 + 9*of_x + 2*of_a) + 320*of_x)
//   plan   as layer_norm_vjp
//   code   16-byte loads
//   slack  3.4 for cols <= 512 (a and its like are read by every row, from a cache); 4.6 beyond
//   bits   fixed shuffle tree, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) ada_norm_jvp(
    T*           __restrict__ dy,      // [rows, cols]
    const T*     __restrict__ x,       // [rows, cols]
    const float* __restrict__ stats,   // [rows, 2]
    const T*     __restrict__ a,       // [groups, cols]
    const T*     __restrict__ dx,      // [of_x*rows, cols]
    const T*     __restrict__ da,      // [of_a*groups, cols]
    const T*     __restrict__ db,      // [of_b*groups, cols]
    int rows, int cols, int groups, int of_x, int of_a, int of_b) {
    await_previous();
    const float inverse = 1.0f / cols;
    const unsigned each = groups > 0 ? rows / groups : 1;
    const bool packets = cols % width<T> == 0 && aligned(dy, x, a) && (!of_x || aligned(dx)) &&
                         (!of_a || aligned(da)) && (!of_b || aligned(db));
    // Without a tangent of x its row stands in, unused.
    const T* moves = of_x ? dx : x;
    each_row<T>({x, moves}, rows, cols, packets, [&](unsigned r, const auto& row) {
        const float mean = stats[2 * r], factor = stats[2 * r + 1];
        float m = 0.0f, mh = 0.0f;
        if (of_x) {
            m = row_sum(row, [](auto& v, int i) { return v[1].at[i]; }) * inverse;
            mh = inverse * row_sum(row, [=](auto& v, int i) {
                return (v[0].at[i] - mean) * factor * v[1].at[i];
            });
        }
        const unsigned long long group = row_at(r / each, cols);
        row.each([&](const auto& v, int c) {
            constexpr int N = sizeof(v[0]) / sizeof(float);
            Floats<N> h, out = of_b ? load<N>(db + group + c) : Floats<N>{};
#pragma unroll
            for (int i = 0; i < N; ++i) h.at[i] = (v[0].at[i] - mean) * factor;
            if (of_a) {
                const Floats<N> d = load<N>(da + group + c);
#pragma unroll
                for (int i = 0; i < N; ++i) out.at[i] = fmaf(h.at[i], d.at[i], out.at[i]);
            }
            if (of_x) {
                const Floats<N> s = load<N>(a + group + c);
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    const float moved = factor * (v[1].at[i] - m - h.at[i] * mh);
                    out.at[i] = fmaf(moved, 1.0f + s.at[i], out.at[i]);
                }
            }
            store(dy + row_at(r, cols) + c, out);
        });
    });
}

// ada_norm_dual_fwd: ada_norm_fwd and ada_norm_jvp in one pass; da and db are 0 if not given.
//   for    T: f32, bf16
//   floor  bytes = 4*rows*cols*s + groups*cols*s*(2 + of_a + of_b) + 8*rows;
//          flops = rows*(cols*(17 + 2*of_a) + 800)
//   plan   one warp a row, 16-byte loads; x and dx held between their passes
//   code   16-byte loads
//   slack  3.4 for cols <= 512 (a and its like are read by every row, from a cache); 5.6 beyond (x
//          is read five times, dx three times)
//   bits   fixed shuffle tree, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256, 1) ada_norm_dual_fwd(
    T*       __restrict__ y,       // [rows, cols]
    float*   __restrict__ stats,   // [rows, 2]
    T*       __restrict__ dy,      // [rows, cols]
    const T* __restrict__ x,       // [rows, cols]
    const T* __restrict__ a,       // [groups, cols]
    const T* __restrict__ b,       // [groups, cols]
    const T* __restrict__ dx,      // [rows, cols]
    const T* __restrict__ da,      // [of_a*groups, cols]
    const T* __restrict__ db,      // [of_b*groups, cols]
    int rows, int cols, int groups, int of_a, int of_b, float eps) {
    await_previous();
    const float inverse = 1.0f / cols;
    const unsigned each = groups > 0 ? rows / groups : 1;
    const bool packets = cols % width<T> == 0 && aligned(y, dy, x, a, b, dx) &&
                         (!of_a || aligned(da)) && (!of_b || aligned(db));
    each_row<T>({x, dx}, rows, cols, packets, [&](unsigned r, const auto& row) {
        const float mean = row_sum(row, [](auto& v, int i) { return v[0].at[i]; }) * inverse;
        const float variance = inverse * row_sum(row, [=](auto& v, int i) {
            const float d = v[0].at[i] - mean;
            return d * d;
        });
        const float factor = 1.0f / sqrtf(variance + eps);
        const float m = row_sum(row, [](auto& v, int i) { return v[1].at[i]; }) * inverse;
        const float mh = inverse * row_sum(row, [=](auto& v, int i) {
            return (v[0].at[i] - mean) * factor * v[1].at[i];
        });
        const unsigned long long group = row_at(r / each, cols);
        row.each([&](const auto& v, int c) {
            constexpr int N = sizeof(v[0]) / sizeof(float);
            const Floats<N> scale = load<N>(a + group + c);
            Floats<N> h, out = load<N>(b + group + c);
            Floats<N> along = of_b ? load<N>(db + group + c) : Floats<N>{};
#pragma unroll
            for (int i = 0; i < N; ++i) {
                h.at[i] = (v[0].at[i] - mean) * factor;
                out.at[i] = fmaf(h.at[i], 1.0f + scale.at[i], out.at[i]);
                const float moved = factor * (v[1].at[i] - m - h.at[i] * mh);
                along.at[i] = fmaf(moved, 1.0f + scale.at[i], along.at[i]);
            }
            if (of_a) {
                const Floats<N> d = load<N>(da + group + c);
#pragma unroll
                for (int i = 0; i < N; ++i) along.at[i] = fmaf(h.at[i], d.at[i], along.at[i]);
            }
            store(y + row_at(r, cols) + c, out);
            store(dy + row_at(r, cols) + c, along);
        });
        if (threadIdx.x % WARP == 0) {
            stats[2 * r] = mean;
            stats[2 * r + 1] = factor;
        }
    });
}

// ada_norm_vjp: gx, layer norm's gradient for gy (1 + a), and, where asked for, gy h, whose sums
// over a group are the gradient to a.
//   for    T: f32, bf16
//   floor  bytes = (3 + scaled)*rows*cols*s + groups*cols*s + 8*rows;
//          flops = rows*(cols*(11 + scaled) + 320)
//   plan   as layer_norm_vjp
//   code   16-byte loads
//   slack  2.4 for cols <= 512 (a is read twice by every row, from a cache); 3.6 beyond
//   bits   fixed shuffle tree, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) ada_norm_vjp(
    T*           __restrict__ gx,      // [rows, cols]
    T*           __restrict__ gs,      // [scaled*rows, cols]
    const T*     __restrict__ x,       // [rows, cols]
    const float* __restrict__ stats,   // [rows, 2]
    const T*     __restrict__ a,       // [groups, cols]
    const T*     __restrict__ gy,      // [rows, cols]
    int rows, int cols, int groups, int scaled) {
    await_previous();
    const float inverse = 1.0f / cols;
    const unsigned each = groups > 0 ? rows / groups : 1;
    const bool packets =
        cols % width<T> == 0 && aligned(gx, x, a, gy) && (!scaled || aligned(gs));
    each_row<T>({x, gy}, rows, cols, packets, [&](unsigned r, const auto& row) {
        const float mean = stats[2 * r], factor = stats[2 * r + 1];
        const T* scale = a + row_at(r / each, cols);
        float mg = 0.0f, mhg = 0.0f;
        row.each([&](const auto& v, int c) {
            constexpr int N = sizeof(v[0]) / sizeof(float);
            const Floats<N> s = load<N>(scale + c);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                const float g = v[1].at[i] * (1.0f + s.at[i]);
                mg += g;
                mhg = fmaf((v[0].at[i] - mean) * factor, g, mhg);
            }
        });
        mg = warp_sum(mg) * inverse;
        mhg = warp_sum(mhg) * inverse;
        row.each([&](const auto& v, int c) {
            constexpr int N = sizeof(v[0]) / sizeof(float);
            Floats<N> s = load<N>(scale + c), out;
#pragma unroll
            for (int i = 0; i < N; ++i) {
                const float h = (v[0].at[i] - mean) * factor, g = v[1].at[i] * (1.0f + s.at[i]);
                out.at[i] = factor * (g - mg - h * mhg);
                s.at[i] = v[1].at[i] * h;
            }
            store(gx + row_at(r, cols) + c, out);
            if (scaled) store(gs + row_at(r, cols) + c, s);
        });
    });
}

// unit_heads_fwd: the rows [q, k, v] of self-attention's projection as heads, with q and k of unit
// length (times the head's temperature for q) where `unit` says so. Of k and v each sample has
// `room` rows, of which these are written from row `at` on: a cache takes them where they belong.
//   for    T: f32, bf16
//   floor  bytes = 6*batch*n*heads*cols*s + 4*unit*heads;
//          flops = unit*batch*n*heads*(6*cols + 400)
//   plan   one warp a head of a row, 16-byte loads; q and k held between their passes
//   code   16-byte loads
//   slack  1.5 for cols >= 256; 9 beyond (lanes beyond a head's end, a temperature for few numbers)
//   bits   fixed shuffle tree, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) unit_heads_fwd(
    T*           __restrict__ q,          // [batch*n, heads*cols]
    T*           __restrict__ k,          // [batch, max(room, at + n), heads*cols]
    T*           __restrict__ v,          // [batch, max(room, at + n), heads*cols]
    const T*     __restrict__ x,          // [batch*n, 3*heads*cols]
    const float* __restrict__ ln_scale,   // [unit*heads]
    int batch, int n, int heads, int cols, int room, int at, int unit, float eps, float most) {
    await_previous();
    const unsigned wide = heads * cols, jobs = batch * n * heads, own_rows = n;
    const unsigned warps = gridDim.x * (blockDim.x / WARP);
    const bool packets = cols % width<T> == 0 && aligned(q, k, v, x);
    unsigned job = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    for (; job < jobs; job += warps) {
        const unsigned row = job / heads, head = job % heads;
        const unsigned kept = row / own_rows * room + at + row % own_rows;
        const unsigned long long to = row_at(row, wide) + head * cols;
        const unsigned long long into = row_at(kept, wide) + head * cols;
        const T* from = x + row_at(row, 3 * wide) + head * cols;
        const auto move_row = [&](T* y, const T* x, auto n, bool normal, float scale) {
            constexpr int N = decltype(n)::value;
            const T* const one[1] = {x};
            const auto work = [&](const auto& held) {
                float factor = scale;
                if (normal) {
                    const float norm = sqrtf(
                        row_sum(held, [](auto& v, int i) { return v[0].at[i] * v[0].at[i]; }));
                    factor *= 1.0f / (norm < eps ? eps : norm);
                }
                row_store(y, held, [=](auto& v, int i) {
                    return normal ? v[0].at[i] * factor : v[0].at[i];
                });
            };
            if (cols <= held<1> * WARP) {
                work(Held<T, N, 1>(one, cols));
            } else {
                work(Reread<T, N, 1>(one, cols));
            }
        };
        const auto all = [&](auto n) {
            // NaN is not above the most, and stays.
            const float own = unit ? ln_scale[head] : 0.0f;
            const float scale = unit ? exp_of(most < own ? most : own) : 1.0f;
            move_row(q + to, from, n, unit, scale);
            move_row(k + into, from + wide, n, unit, 1.0f);
            move_row(v + into, from + 2 * wide, n, false, 1.0f);
        };
        if (packets) {
            all(Width<width<T>>());
        } else {
            all(Width<1>());
        }
    }
}
