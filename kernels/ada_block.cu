// A block of the transformer for few tokens in one launch, which streams the weights past them.
//
// Between its products the blocks of the launch wait for each other; what they then need of the
// weights is already on its way to the L2 cache. Everything else stays there: the tokens of a
// scale and their heads are few.
#include "lib/ada.cuh"
#include "lib/grid.cuh"
#include "lib/order.cuh"
#include "lib/thin.cuh"

// Rows that a product takes at a time, and columns of a job.
template <class T>
constexpr int TILE = sizeof(T) == 4 ? 8 : 32;
template <class T>
constexpr int WIDE = sizeof(T) == 4 ? 4 : 8;
// Numbers of a head, at most.
constexpr int MOST = 256;

// Room for the sums of a block's warps.
template <class T>
struct Hold {
    float at[WARPS][TILE<T> / 4][WARP];
};
template <>
struct Hold<float> {
    float at[WARPS][WARP];
};

// What a pointer points to, without const.
template <class P>
struct Plain;
template <class P>
struct Plain<const P*> {
    using type = P;
};

// One layer's weights [cols, k].
template <class T>
struct Layer {
    const T *w, *bias;
    unsigned cols, k;

    // Asks for the lines of all jobs of this block.
    __device__ __forceinline__ void ahead() const {
        constexpr unsigned LINE = 128 / sizeof(T);
        const unsigned jobs = over(cols, WIDE<T>), lines = over(WIDE<T> * k, LINE);
        for (unsigned job = blockIdx.x; job < jobs; job += gridDim.x) {
            for (unsigned i = threadIdx.x; i < lines; i += blockDim.x) {
                const unsigned at = job * WIDE<T> * k + i * LINE;
                if (at < cols * k) prefetch(w + at);
            }
        }
    }

    // Calls put(row, column, sum with bias) for x [rows, k] times the weights. A block has a few
    // columns at a time and all rows; its warps have a slice of k each.
    template <class Put>
    __device__ __forceinline__ void operator()(Hold<T>& hold, const T* x, unsigned rows,
                                               Put put) const {
        constexpr int R = TILE<T>, C = WIDE<T>;
        const unsigned jobs = over(cols, C), warp = threadIdx.x / WARP;
        for (unsigned job = blockIdx.x; job < jobs; job += gridDim.x) {
            for (unsigned row = 0; row < rows; row += R) {
                const unsigned own = min(R, rows - row);
                const Thin<T> thin(x + row * k, w, own, own, cols, k, true, false);
                const auto finish = [&](unsigned i, unsigned j, float sum) {
                    if (i < own && j < cols) put(row + i, j, sum + to_float(bias[j]));
                };
                if constexpr (sizeof(T) == 4) {
                    thin_sums<R, C>(hold.at, thin, thin.packets(), job * C, warp, WARPS, finish);
                } else {
                    thin_sums<R>(hold.at, thin, thin.packets(), job * C, warp, WARPS, finish);
                }
            }
        }
    }
};

// Sums over N neighbours of a head at a time: q k, and k k.
template <int N, class T>
__device__ __forceinline__ void add_key(const float* q, const T* key, unsigned cols, float& dot,
                                        float& square) {
    for (unsigned e = 0; e < cols; e += N) {
        const Floats<N> x = load<N>(key + e);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            dot = fmaf(q[e + i], x.at[i], dot);
            square = fmaf(x.at[i], x.at[i], square);
        }
    }
}

// Heads of the projection and of the positions before.
template <class T>
struct Heads {
    const float *qkv, *ln_scale;
    const T *past_k, *past_v;
    // Positions before, and those of a sample that lie in memory where they do; new keys and values
    // go to row `at` on of each sample's `room`.
    unsigned n, past, past_room, room, at, heads, cols;
    bool unit;
    float eps, most, scale;

    __device__ __forceinline__ unsigned wide() const { return heads * cols; }

    // What a vector of this squared length is multiplied by.
    __device__ __forceinline__ float factor(float square) const {
        const float norm = sqrtf(square);
        return unit ? 1.0f / (norm < eps ? eps : norm) : 1.0f;
    }

    // Attention of one query, a warp: to o, and its key and value to k and v.
    __device__ __forceinline__ void operator()(unsigned job, float* q, T* o, T* k, T* v) const {
        const unsigned lane = threadIdx.x % WARP, head = job / n % heads, b = job / n / heads;
        const unsigned row = b * n + job % n, to = row * wide() + head * cols;
        const unsigned into = (b * room + at + job % n) * wide() + head * cols;
        const float* own = qkv + row * 3 * wide() + head * cols;
        float qq = 0.0f, kk = 0.0f;
        for (unsigned e = lane; e < cols; e += WARP) {
            qq = fmaf(own[e], own[e], qq);
            kk = fmaf(own[wide() + e], own[wide() + e], kk);
        }
        // NaN is not above the most, and stays.
        const float heat = unit ? ln_scale[head] : 0.0f;
        const float warmth = unit ? exp_of(most < heat ? most : heat) : scale;
        const float of_q = warmth * factor(warp_sum(qq)), of_k = factor(warp_sum(kk));
        for (unsigned e = lane; e < cols; e += WARP) {
            q[e] = own[e] * of_q;
            k[into + e] = from_float<T>(own[wide() + e] * of_k);
            v[into + e] = from_float<T>(own[2 * wide() + e]);
        }
        __syncwarp();
        float top = -infinity(), sum = 0.0f, mean[MOST / WARP] = {};
        for (unsigned first = 0; first < past + n; first += WARP) {
            const float s = first + lane < past + n ? score(q, b, head, first + lane) : -infinity();
            const float above = fmaxf(top, warp_max(s));
            const float old = exp_of(top - above), p = exp_of(s - above);
            sum = fmaf(sum, old, warp_sum(p));
            add_values(mean, old, p, b, head, first);
            top = above;
        }
#pragma unroll
        for (int i = 0; i < MOST / WARP; ++i) {
            const unsigned e = i * WARP + lane;
            if (e < cols) o[to + e] = from_float<T>(mean[i] / sum);
        }
    }

    // The score of position `key`.
    __device__ __forceinline__ float score(const float* q, unsigned b, unsigned head,
                                           unsigned key) const {
        float dot = 0.0f, square = 0.0f;
        const auto add = [&](const auto* x, bool packets) {
            if (packets) {
                add_key<4>(q, x, cols, dot, square);
            } else {
                add_key<1>(q, x, cols, dot, square);
            }
        };
        if (key < past) {
            add(past_k + (b * past_room + key) * wide() + head * cols,
                cols % 4 == 0 && aligned(past_k));
            return dot;
        }
        add(qkv + ((b * n + key - past) * 3 + 1) * wide() + head * cols, cols % 4 == 0);
        return dot * factor(square);
    }

    // mean = mean old + what 32 positions from `first` on add.
    __device__ __forceinline__ void add_values(float (&mean)[MOST / WARP], float old, float p,
                                               unsigned b, unsigned head, unsigned first) const {
        const unsigned lane = threadIdx.x % WARP, end = min(past + n - first, WARP);
#pragma unroll
        for (int i = 0; i < MOST / WARP; ++i) mean[i] *= old;
        for (unsigned l = 0; l < end; ++l) {
            const float weight = __shfl_sync(ALL_LANES, p, l);
            const unsigned key = first + l;
            const T* old_v = past_v + (b * past_room + key) * wide() + head * cols;
            const float* new_v = qkv + ((b * n + key - past) * 3 + 2) * wide() + head * cols;
#pragma unroll
            for (int i = 0; i < MOST / WARP; ++i) {
                const unsigned e = i * WARP + lane;
                if (e >= cols) continue;
                mean[i] = fmaf(weight, key < past ? to_float(old_v[e]) : new_v[e], mean[i]);
            }
        }
    }
};

// ada_block_fwd: tokens through self-attention and the network behind it, both under adaptive layer
// norm: m = x + gate1 proj(attention(qkv(ada(x)))), y = m + gate2 down(gelu(up(ada(m)))). Keys and
// values go to row `at` on of each sample's `room`; where that is not 0, those before are the past.
//   for    T: f32, bf16
//   floor  bytes = (4*c*c + 2*c*hidden + 5*c + hidden + 6*batch*c)*s
//            + batch*n*(6*c + 2*hidden)*s + 32*batch*n*c + 2*batch*(past + at)*c*s + 4*unit*heads;
//          flops = batch*n*(8*c*c + 4*c*hidden + 44*hidden + 4*(past + at + n)*c)
//   plan   all blocks stay to the end and wait for each other six times. Products: a block has 8
//          columns (4 of f32) and all rows, 32 (8) at a time, its warps slices of k; the weights
//          of what comes next are asked for before they are waited for. Attention: a warp a query
//          and head, a lane a key.
//   code   16-byte loads
//   slack  400 (tokens are read for every few columns and keys by every query, from caches, and
//          tiles of rows and columns are filled up)
//   bits   fixed order of k, slices in order, fixed shuffle trees; the one atomic counts blocks:
//          repeatable, and a sample's do not depend on those beside it
template <class T>
__global__ void __launch_bounds__(256, 1) ada_block_fwd(
    T*           __restrict__ y,          // [batch*n*c]
    T*           __restrict__ k,          // [batch*max(room, at + n)*c]
    T*           __restrict__ v,          // [batch*max(room, at + n)*c]
    T*           __restrict__ h,          // [batch*n*c]
    float*       __restrict__ qkv,        // [batch*n*3*c]
    float*       __restrict__ middle,     // [batch*n*c]
    T*           __restrict__ wide,       // [batch*n*hidden]
    int*         __restrict__ gate,       // [1]
    const T*     __restrict__ x,          // [batch*n*c]
    const T*     __restrict__ gate1,      // [batch*c]
    const T*     __restrict__ gate2,      // [batch*c]
    const T*     __restrict__ scale1,     // [batch*c]
    const T*     __restrict__ scale2,     // [batch*c]
    const T*     __restrict__ shift1,     // [batch*c]
    const T*     __restrict__ shift2,     // [batch*c]
    const T*     __restrict__ w_qkv,      // [3*c*c]
    const T*     __restrict__ b_qkv,      // [3*c]
    const float* __restrict__ ln_scale,   // [unit*heads]
    const T*     __restrict__ past_k,     // [batch*past*c]
    const T*     __restrict__ past_v,     // [batch*past*c]
    const T*     __restrict__ w_proj,     // [c*c]
    const T*     __restrict__ b_proj,     // [c]
    const T*     __restrict__ w_up,       // [hidden*c]
    const T*     __restrict__ b_up,       // [hidden]
    const T*     __restrict__ w_down,     // [c*hidden]
    const T*     __restrict__ b_down,     // [c]
    int batch, int n, int past, int room, int at, int c, int heads, int hidden, int unit,
    float ln_eps, float unit_eps, float most, float scale) {
    await_previous();
    __shared__ Hold<T> hold;
    __shared__ float query[WARPS][MOST];
    const unsigned rows = batch * n, wide_c = c;
    const Layer<T> project = {w_qkv, b_qkv, 3 * wide_c, wide_c};
    const Layer<T> out = {w_proj, b_proj, wide_c, wide_c};
    const Layer<T> up = {w_up, b_up, static_cast<unsigned>(hidden), wide_c};
    const Layer<T> down = {w_down, b_down, wide_c, static_cast<unsigned>(hidden)};
    const auto normalise = [&](const auto* from, const T* scale, const T* shift) {
        using From = typename Plain<decltype(from)>::type;
        const bool packets = c % width<T> == 0 && aligned(from, scale, shift);
        each_row<From>({from}, rows, c, packets, [&](unsigned r, const auto& row) {
            const unsigned long long own = row_at(r / n, c);
            ada_row(row, c, ln_eps, scale + own, shift + own, h + row_at(r, c));
        });
    };
    project.ahead();
    normalise(x, scale1, shift1);
    out.ahead();
    grid_barrier(gate, 1);
    project(hold, h, rows, [&](unsigned r, unsigned j, float sum) { qkv[r * 3 * c + j] = sum; });
    up.ahead();
    grid_barrier(gate, 2);
    const auto count = [](int n) { return static_cast<unsigned>(n); };
    const Heads<T> attend = {qkv, ln_scale, at > 0 ? k : past_k, at > 0 ? v : past_v, count(n),
                             count(at > 0 ? at : past), count(at > 0 ? room : past), count(room),
                             count(at), count(heads), wide_c / heads, unit != 0, unit_eps, most,
                             scale};
    const unsigned warp = threadIdx.x / WARP;
    for (unsigned job = blockIdx.x * WARPS + warp; job < rows * heads; job += gridDim.x * WARPS) {
        attend(job, query[warp], h, k, v);
        __syncwarp();
    }
    grid_barrier(gate, 3);
    out(hold, h, rows, [&](unsigned r, unsigned j, float sum) {
        const unsigned at = r * c + j;
        middle[at] = fmaf(to_float(gate1[r / n * c + j]), sum, to_float(x[at]));
    });
    down.ahead();
    grid_barrier(gate, 4);
    normalise(static_cast<const float*>(middle), scale2, shift2);
    grid_barrier(gate, 5);
    up(hold, h, rows, [&](unsigned r, unsigned j, float sum) {
        wide[r * hidden + j] = from_float<T>(gelu(sum));
    });
    grid_barrier_last(gate, 6);
    down(hold, wide, rows, [&](unsigned r, unsigned j, float sum) {
        const unsigned at = r * c + j;
        y[at] = from_float<T>(fmaf(to_float(gate2[r / n * c + j]), sum, middle[at]));
    });
}
