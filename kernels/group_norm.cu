// Group norm over channels-last maps, with the SiLU that nearly always follows
// (src/ops/group_norm.rs).
//
// h = (x - mean) rstd within an image's group of channels, u = h w + b, y = u or silu(u). A map is
// images of rows of `channels` numbers; here several rows may count as one of `cols`, a multiple of
// `channels`, so that a strip of 32 columns (lib/strip.cuh) is full for few channels too. Sums are
// taken down the columns of chunks of rows and merged for each group. SILU is 0 or 1.
#include "lib/math.cuh"
#include "lib/order.cuh"
#include "lib/strip.cuh"

// The maps' extents, and how columns belong to channels and groups.
struct Groups {
    unsigned rows, channels, groups;

    __device__ __forceinline__ unsigned image(const Chunk& at) const { return at.first / rows; }
    __device__ __forceinline__ unsigned group(unsigned channel) const {
        return channel / (channels / groups);
    }
};

// A column's mean, rstd, weight and bias, and two more values, for the columns of a strip.
struct Columns {
    float mean[STRIP], rstd[STRIP], w[STRIP], b[STRIP], more[2][STRIP];
};

// Fills mean and rstd for a chunk; f(column in the strip, channel, index of its group's mean) adds
// what else is wanted. All threads must call.
template <class F>
__device__ __forceinline__ void fetch(
    Columns& to, const Chunk& at, const Groups& of, const float* stats, F f) {
    __syncthreads();
    const unsigned c = threadIdx.x;
    if (c < STRIP) {
        // Beyond the map its last column stands in.
        const unsigned channel = min(at.column(c), at.cols - 1) % of.channels;
        const unsigned own = 2 * of.groups * of.image(at) + of.group(channel);
        to.mean[c] = stats[own];
        to.rstd[c] = stats[own + of.groups];
        f(c, channel, own);
    }
    __syncthreads();
}

// Calls f(h, u, x's packets, place in a packet) for each element and stores what it returns.
template <class T, class Rows, class F>
__device__ __forceinline__ void map_strip(
    T* y, const Rows& strip, const Chunk& at, const Columns& own, F f) {
    if (!strip.live) return;
    constexpr int N = Rows::N;
    const auto m = own_columns(strip, own.mean), r = own_columns(strip, own.rstd);
    const auto w = own_columns(strip, own.w), b = own_columns(strip, own.b);
    strip.each([&](const auto& x, unsigned row) {
        Floats<N> out;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const float h = (x[0].at[i] - m.at[i]) * r.at[i];
            out.at[i] = f(h, fmaf(h, w.at[i], b.at[i]), x, i);
        }
        store(y + (at.first + row) * at.cols + strip.column, out);
    });
}

// group_norm_merge_fwd: mean and rstd of the groups from the chunks' column_moments_fwd.
//   floor  bytes = 8*images*ceil(rows, step)*cols + 8*images*groups;
//          flops = 7*images*ceil(rows, step)*cols + 356*images*groups
//   plan   a warp a group of an image
//   slack  1.6 for channels >= 8*groups (the sums are read twice); 13 beyond (a group's columns
//          may end inside sectors)
//   bits   fixed shuffle tree, no atomics: repeatable
__global__ void __launch_bounds__(256) group_norm_merge_fwd(
    float*       __restrict__ stats,     // [images, 2, groups]
    const float* __restrict__ sums,      // [images, ceil(rows, step), cols]
    const float* __restrict__ squares,   // [images, ceil(rows, step), cols]
    int images, int rows, int cols, int step, int channels, int groups, float eps) {
    await_previous();
    const unsigned lane = threadIdx.x % WARP, all = rows, chunks = (all + step - 1) / step;
    const unsigned wide = channels / groups, own = wide * (cols / channels);
    const float inverse = 1.0f / (static_cast<float>(rows) * own);
    const unsigned jobs = static_cast<unsigned>(images) * groups;
    unsigned job = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    for (; job < jobs; job += gridDim.x * (blockDim.x / WARP)) {
        const unsigned image = job / groups, group = job % groups;
        const auto place = [&](unsigned e) {
            const unsigned within = e % own;
            const unsigned column = within / wide * channels + group * wide + within % wide;
            return (image * chunks + e / own) * cols + column;
        };
        float sum = 0.0f;
        for (unsigned e = lane; e < chunks * own; e += WARP) sum += sums[place(e)];
        const float mean = warp_sum(sum) * inverse;
        float square = 0.0f;
        for (unsigned e = lane; e < chunks * own; e += WARP) {
            const unsigned left = all - e / own * step;
            const float n = left < step ? left : step;
            const float d = sums[place(e)] / n - mean;
            square += fmaf(n * d, d, squares[place(e)]);
        }
        const float rstd = 1.0f / sqrtf(fmaf(warp_sum(square), inverse, eps));
        if (lane == 0) {
            stats[2 * groups * image + group] = mean;
            stats[2 * groups * image + groups + group] = rstd;
        }
    }
}

// group_norm_apply_fwd: y = act(h w + b), from the statistics.
//   for    T: f32, bf16; SILU: 0, 1
//   floor  bytes = 2*images*rows*cols*s + 2*channels*s + 8*images*groups;
//          flops = (4 + 24*SILU)*images*rows*cols
//   plan   strips of 32 columns and `step` rows, a block each
//   code   16-byte loads
//   slack  1.2 for step <= rows; 4 beyond (a chunk reads its columns' own values)
//   bits   one element, one thread: repeatable
template <class T, int SILU>
__global__ void __launch_bounds__(256, 2) group_norm_apply_fwd(
    T*           __restrict__ y,       // [images, rows, cols]
    const T*     __restrict__ x,       // [images, rows, cols]
    const float* __restrict__ stats,   // [images, 2, groups]
    const T*     __restrict__ w,       // [channels]
    const T*     __restrict__ b,       // [channels]
    int images, int rows, int cols, int step, int channels, int groups) {
    await_previous();
    __shared__ Columns own;
    const bool packets = cols % width<T> == 0 && aligned(y, x);
    const Cut all = cut(images, rows, cols, step);
    const Groups of = {all.rows, static_cast<unsigned>(channels), static_cast<unsigned>(groups)};
    each_strip<T>({x}, all, packets, [&](const auto& strip, const Chunk& at) {
        fetch(own, at, of, stats, [&](unsigned c, unsigned channel, unsigned) {
            own.w[c] = to_float(w[channel]);
            own.b[c] = to_float(b[channel]);
        });
        map_strip(y, strip, at, own, [=](float, float u, auto&, int) {
            return SILU ? silu(u) : u;
        });
    });
}

// group_norm_fwd: the whole, where a group is small.
//   for    T: f32, bf16; SILU: 0, 1
//   floor  bytes = 2*images*rows*channels*s + 2*channels*s + 8*images*groups;
//          flops = (8 + 24*SILU)*images*rows*channels + 6400*images*groups
//   plan   a block a group of an image; packets where a group's channels fill them
//   code   16-byte loads
//   slack  3.1 for channels >= 16*groups (read three times, and weights with each packet);
//          25 beyond (a group's channels may end inside sectors)
//   bits   fixed trees, no atomics: repeatable
template <class T, int SILU>
__global__ void __launch_bounds__(256, 2) group_norm_fwd(
    T*       __restrict__ y,       // [images, rows, channels]
    float*   __restrict__ stats,   // [images, 2, groups]
    const T* __restrict__ x,       // [images, rows, channels]
    const T* __restrict__ w,       // [channels]
    const T* __restrict__ b,       // [channels]
    int images, int rows, int channels, int groups, float eps) {
    await_previous();
    __shared__ float hold[WARP];
    const unsigned wide = channels / groups;
    const float inverse = 1.0f / (static_cast<float>(rows) * wide);
    const bool packets = wide % width<T> == 0 && aligned(y, x, w, b);
    const unsigned jobs = static_cast<unsigned>(images) * groups;
    for (unsigned job = blockIdx.x; job < jobs; job += gridDim.x) {
        const unsigned image = job / groups, group = job % groups;
        // Calls f(index in the map, channel, Width<N>) for the group's elements.
        const auto each_own = [&](auto f) {
            const auto run = [&](auto n) {
                constexpr int N = decltype(n)::value;
                const unsigned parts = wide / N;
                for (unsigned e = threadIdx.x; e < rows * parts; e += blockDim.x) {
                    const unsigned channel = group * wide + e % parts * N;
                    f((image * rows + e / parts) * channels + channel, channel, n);
                }
            };
            if (packets) {
                run(Width<width<T>>());
            } else {
                run(Width<1>());
            }
        };
        float sum = 0.0f;
        each_own([&](unsigned i, unsigned, auto n) {
            const auto v = load<decltype(n)::value>(x + i);
#pragma unroll
            for (int k = 0; k < decltype(n)::value; ++k) sum += v.at[k];
        });
        const float mean = block_sum(sum, hold) * inverse;
        float square = 0.0f;
        each_own([&](unsigned i, unsigned, auto n) {
            const auto v = load<decltype(n)::value>(x + i);
#pragma unroll
            for (int k = 0; k < decltype(n)::value; ++k) {
                square = fmaf(v.at[k] - mean, v.at[k] - mean, square);
            }
        });
        const float rstd = 1.0f / sqrtf(fmaf(block_sum(square, hold), inverse, eps));
        each_own([&](unsigned i, unsigned channel, auto n) {
            constexpr int N = decltype(n)::value;
            auto v = load<N>(x + i);
            const auto scale = load<N>(w + channel), shift = load<N>(b + channel);
#pragma unroll
            for (int k = 0; k < N; ++k) {
                const float u = fmaf((v.at[k] - mean) * rstd, scale.at[k], shift.at[k]);
                v.at[k] = SILU ? silu(u) : u;
            }
            store(y + i, v);
        });
        if (threadIdx.x == 0) {
            stats[2 * groups * image + group] = mean;
            stats[2 * groups * image + groups + group] = rstd;
        }
    }
}

// group_norm_sums_vjp: for each chunk of rows, the sums of w v, w h v, v and h v of each column, v
// being the gradient g behind the activation, a(u) g. The first two are no products of w and the
// others where w is infinite.
//   for    T: f32, bf16; SILU: 0, 1
//   floor  bytes = 2*images*rows*cols*s + 16*images*ceil(rows, step)*cols + 2*channels*s
//                + 8*images*groups;
//          flops = (9 + 30*SILU)*images*rows*cols + 28*images*ceil(rows, step)*cols
//   plan   strips of 32 columns and `step` rows, a block each
//   code   16-byte loads
//   slack  2.3 for step <= rows and cols >= 32 (trees); 90 beyond (threads left over
//          by few rows or columns sum nothing)
//   bits   fixed trees, no atomics: repeatable
template <class T, int SILU>
__global__ void __launch_bounds__(256) group_norm_sums_vjp(
    float*       __restrict__ sums,    // [4, images, ceil(rows, step), cols]
    const T*     __restrict__ x,       // [images, rows, cols]
    const T*     __restrict__ g,       // [images, rows, cols]
    const float* __restrict__ stats,   // [images, 2, groups]
    const T*     __restrict__ w,       // [channels]
    const T*     __restrict__ b,       // [channels]
    int images, int rows, int cols, int step, int channels, int groups) {
    await_previous();
    __shared__ Meeting<4> meet;
    __shared__ Columns own;
    const bool packets = cols % width<T> == 0 && aligned(x, g);
    const Cut all = cut(images, rows, cols, step);
    const Groups of = {all.rows, static_cast<unsigned>(channels), static_cast<unsigned>(groups)};
    each_strip<T>({x, g}, all, packets, [&](const auto& strip, const Chunk& at) {
        fetch(own, at, of, stats, [&](unsigned c, unsigned channel, unsigned) {
            own.w[c] = to_float(w[channel]);
            own.b[c] = to_float(b[channel]);
        });
        const auto m = own_columns(strip, own.mean), r = own_columns(strip, own.rstd);
        const auto scale = own_columns(strip, own.w), shift = own_columns(strip, own.b);
        const auto terms = [&](auto& v, int i, float (&term)[4]) {
            const float h = (v[0].at[i] - m.at[i]) * r.at[i];
            const float u = fmaf(h, scale.at[i], shift.at[i]);
            term[2] = SILU ? v[1].at[i] * silu_slope(u) : v[1].at[i];
            term[3] = h * term[2];
            term[0] = scale.at[i] * term[2];
            term[1] = h * term[0];
        };
        column_sums(meet, strip, terms, [&](int k, int c, float sum) {
            const unsigned row = k * all.images * all.chunks() + at.number;
            if (at.column(c) < at.cols) sums[row * at.cols + at.column(c)] = sum;
            return sum;
        });
    });
}

// group_norm_merge_vjp: means over each group from two sums of each column.
//   floor  bytes = 8*images*ceil(rows, step)*cols + 8*images*groups;
//          flops = 2*images*ceil(rows, step)*cols + 322*images*groups
//   plan   a warp a group of an image
//   slack  1.1 for channels >= 8*groups; 9 beyond (a group's columns may end inside sectors)
//   bits   fixed shuffle tree, no atomics: repeatable
__global__ void __launch_bounds__(256) group_norm_merge_vjp(
    float*       __restrict__ means,   // [images, 2, groups]
    const float* __restrict__ sums,    // [2, images, ceil(rows, step), cols]
    int images, int rows, int cols, int step, int channels, int groups) {
    await_previous();
    const unsigned lane = threadIdx.x % WARP, chunks = (rows + step - 1u) / step;
    const unsigned wide = channels / groups, own = wide * (cols / channels);
    const unsigned second = images * chunks * cols;
    const float inverse = 1.0f / (static_cast<float>(rows) * own);
    const unsigned jobs = static_cast<unsigned>(images) * groups;
    unsigned job = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    for (; job < jobs; job += gridDim.x * (blockDim.x / WARP)) {
        const unsigned image = job / groups, group = job % groups;
        float even = 0.0f, tilt = 0.0f;
        for (unsigned e = lane; e < chunks * own; e += WARP) {
            const unsigned within = e % own, channel = group * wide + within % wide;
            const unsigned at =
                (image * chunks + e / own) * cols + within / wide * channels + channel;
            even += sums[at];
            tilt += sums[second + at];
        }
        even = warp_sum(even) * inverse;
        tilt = warp_sum(tilt) * inverse;
        if (lane == 0) {
            means[2 * groups * image + group] = even;
            means[2 * groups * image + groups + group] = tilt;
        }
    }
}

// group_norm_params_vjp: gw = sum(h v) and gb = sum(v) of each channel over all images, from
// group_norm_sums_vjp's sums as `terms` rows of `channels`.
//   for    T: f32, bf16
//   floor  bytes = 8*terms*channels + 2*channels*s;  flops = 2*terms*channels + 14*channels
//   plan   a block for 32 channels: a lane a channel, 8 warps over the terms, then the 8 sums in
//          order
//   bits   fixed order, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) group_norm_params_vjp(
    T*           __restrict__ gw,     // [channels]
    T*           __restrict__ gb,     // [channels]
    const float* __restrict__ sums,   // [4, terms, channels]
    int terms, int channels) {
    await_previous();
    __shared__ float part[2][STRIP_WARPS][STRIP];
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, all = terms;
    const unsigned strips = (channels + STRIP - 1) / STRIP;
    for (unsigned strip = blockIdx.x; strip < strips; strip += gridDim.x) {
        const unsigned channel = strip * STRIP + lane;
        const bool live = channel < static_cast<unsigned>(channels);
        float even = 0.0f, tilt = 0.0f;
        for (unsigned t = warp; live && t < all; t += STRIP_WARPS) {
            even += sums[(2 * all + t) * channels + channel];
            tilt += sums[(3 * all + t) * channels + channel];
        }
        part[0][warp][lane] = even;
        part[1][warp][lane] = tilt;
        __syncthreads();
        if (warp < 2 && live) {
            float sum = part[warp][0][lane];
#pragma unroll
            for (int k = 1; k < STRIP_WARPS; ++k) sum += part[warp][k][lane];
            (warp == 0 ? gb : gw)[channel] = from_float<T>(sum);
        }
        __syncthreads();
    }
}

// group_norm_apply_vjp: gx = rstd (w v - mean(w v) - h mean(w h v)), v = a(u) g.
//   for    T: f32, bf16; SILU: 0, 1
//   floor  bytes = 3*images*rows*cols*s + 2*channels*s + 16*images*groups;
//          flops = (7 + 30*SILU)*images*rows*cols
//   plan   strips of 32 columns and `step` rows, a block each
//   code   16-byte loads
//   slack  1.2 for step <= rows; 4 beyond (a chunk reads its columns' own values)
//   bits   one element, one thread: repeatable
template <class T, int SILU>
__global__ void __launch_bounds__(256) group_norm_apply_vjp(
    T*           __restrict__ gx,      // [images, rows, cols]
    const T*     __restrict__ x,       // [images, rows, cols]
    const T*     __restrict__ g,       // [images, rows, cols]
    const float* __restrict__ stats,   // [images, 2, groups]
    const float* __restrict__ means,   // [images, 2, groups]
    const T*     __restrict__ w,       // [channels]
    const T*     __restrict__ b,       // [channels]
    int images, int rows, int cols, int step, int channels, int groups) {
    await_previous();
    __shared__ Columns own;
    const bool packets = cols % width<T> == 0 && aligned(gx, x, g);
    const Cut all = cut(images, rows, cols, step);
    const Groups of = {all.rows, static_cast<unsigned>(channels), static_cast<unsigned>(groups)};
    each_strip<T>({x, g}, all, packets, [&](const auto& strip, const Chunk& at) {
        fetch(own, at, of, stats, [&](unsigned c, unsigned channel, unsigned i) {
            own.w[c] = to_float(w[channel]);
            own.b[c] = to_float(b[channel]);
            own.more[0][c] = means[i];
            own.more[1][c] = means[i + groups];
        });
        const auto scale = own_columns(strip, own.w), rstd = own_columns(strip, own.rstd);
        const auto even = own_columns(strip, own.more[0]), tilt = own_columns(strip, own.more[1]);
        map_strip(gx, strip, at, own, [&](float h, float u, auto& v, int i) {
            const float own = SILU ? v[1].at[i] * silu_slope(u) : v[1].at[i];
            return rstd.at[i] * (scale.at[i] * own - even.at[i] - h * tilt.at[i]);
        });
    });
}

// group_norm_sums_jvp: for each chunk of rows, sum(dx) and sum(h dx) of each column.
//   for    T: f32, bf16
//   floor  bytes = 2*images*rows*joined*channels*s + 8*images*ceil(rows, step)*joined*channels
//                + 8*images*groups;
//          flops = 5*images*rows*joined*channels
//                + 14*images*ceil(rows, step)*joined*channels
//   plan   strips of 32 columns and `step` rows, a block each
//   code   16-byte loads
//   slack  2.3 for step <= rows and joined*channels >= 32 (trees); 90 beyond (threads left over
//          by few rows or columns sum nothing)
//   bits   fixed trees, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) group_norm_sums_jvp(
    float*       __restrict__ sums,    // [2, images, ceil(rows, step), joined*channels]
    const T*     __restrict__ x,       // [images, rows, joined*channels]
    const T*     __restrict__ dx,      // [images, rows, joined*channels]
    const float* __restrict__ stats,   // [images, 2, groups]
    int images, int rows, int joined, int step, int channels, int groups) {
    await_previous();
    const int cols = joined * channels;
    __shared__ Meeting<2> meet;
    __shared__ Columns own;
    const bool packets = cols % width<T> == 0 && aligned(x, dx);
    const Cut all = cut(images, rows, cols, step);
    const Groups of = {all.rows, static_cast<unsigned>(channels), static_cast<unsigned>(groups)};
    each_strip<T>({x, dx}, all, packets, [&](const auto& strip, const Chunk& at) {
        fetch(own, at, of, stats, [](unsigned, unsigned, unsigned) {});
        const auto m = own_columns(strip, own.mean), r = own_columns(strip, own.rstd);
        const auto terms = [&](auto& v, int i, float (&term)[2]) {
            term[0] = v[1].at[i];
            term[1] = (v[0].at[i] - m.at[i]) * r.at[i] * v[1].at[i];
        };
        column_sums(meet, strip, terms, [&](int k, int c, float sum) {
            const unsigned row = k * all.images * all.chunks() + at.number;
            if (at.column(c) < at.cols) sums[row * at.cols + at.column(c)] = sum;
            return sum;
        });
    });
}

// group_norm_apply_jvp: dy = a(u) (w rstd (dx - mean(dx) - h mean(h dx)) + h dw + db).
//   for    T: f32, bf16; SILU: 0, 1
//   floor  bytes = 3*images*rows*cols*s + 4*channels*s + 16*images*groups;
//          flops = (10 + 30*SILU)*images*rows*cols
//   plan   strips of 32 columns and `step` rows, a block each
//   code   16-byte loads
//   slack  1.2 for step <= rows; 4 beyond (a chunk reads its columns' own values)
//   bits   one element, one thread: repeatable
template <class T, int SILU>
__global__ void __launch_bounds__(256) group_norm_apply_jvp(
    T*           __restrict__ dy,      // [images, rows, cols]
    const T*     __restrict__ x,       // [images, rows, cols]
    const T*     __restrict__ dx,      // [images, rows, cols]
    const float* __restrict__ stats,   // [images, 2, groups]
    const float* __restrict__ means,   // [images, 2, groups]
    const T*     __restrict__ w,       // [channels]
    const T*     __restrict__ b,       // [channels]
    const T*     __restrict__ dw,      // [channels]
    const T*     __restrict__ db,      // [channels]
    int images, int rows, int cols, int step, int channels, int groups) {
    await_previous();
    __shared__ Columns own;
    __shared__ float turn[STRIP], lift[STRIP];
    const bool packets = cols % width<T> == 0 && aligned(dy, x, dx);
    const Cut all = cut(images, rows, cols, step);
    const Groups of = {all.rows, static_cast<unsigned>(channels), static_cast<unsigned>(groups)};
    each_strip<T>({x, dx}, all, packets, [&](const auto& strip, const Chunk& at) {
        fetch(own, at, of, stats, [&](unsigned c, unsigned channel, unsigned i) {
            own.w[c] = to_float(w[channel]);
            own.b[c] = to_float(b[channel]);
            own.more[0][c] = means[i];
            own.more[1][c] = means[i + groups];
            turn[c] = to_float(dw[channel]);
            lift[c] = to_float(db[channel]);
        });
        const auto scale = own_columns(strip, own.w), rstd = own_columns(strip, own.rstd);
        const auto even = own_columns(strip, own.more[0]), tilt = own_columns(strip, own.more[1]);
        const auto slope = own_columns(strip, turn), shift = own_columns(strip, lift);
        map_strip(dy, strip, at, own, [&](float h, float u, auto& v, int i) {
            const float dh = rstd.at[i] * (v[1].at[i] - even.at[i] - h * tilt.at[i]);
            const float du = fmaf(scale.at[i], dh, fmaf(h, slope.at[i], shift.at[i]));
            return SILU ? silu_slope(u) * du : du;
        });
    });
}
