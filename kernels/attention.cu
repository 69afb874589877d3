// Attention: softmax(scale q k^T) v per head, its tangent and its gradients, scores never leaving
// the multiprocessor.
//
// q, y and their like are [batch, queries, heads, width], k, v and theirs [batch, keys, heads,
// width], statistics [batch, queries, heads]. A tile of queries never crosses a scale, so what its
// queries see is a prefix of the keys, and what they do not see is not loaded. D is the width
// rounded up; `work` counts the steps of a head, a tile of its queries by a tile of its keys each.
#include "lib/heads_mma.cuh"
#include "lib/math.cuh"
#include "lib/order.cuh"
#include "lib/reduce.cuh"

// Rows of a tile, and keys that it looks at in one go: what 48 KiB hold.
template <int D>
constexpr int QUERIES = D <= 64 ? 32 : 16;
template <int D>
constexpr int KEYS = D <= 64 ? 32 : 16;

// attention_fwd: y = softmax(scale q k^T) v and the log-sum-exp of the scaled scores. The first
// `seen` keys of a sample take part; what lies behind them is room in a cache.
//   for    T: f32, bf16; D: 32, 64, 128
//   floor  bytes = 2*batch*(queries + seen)*heads*width*s + 4*batch*queries*heads;
//          flops = batch*heads*work*32*(64 - D/128*32)*4*D
//   plan   a block for 32 queries of a head: 64 keys (32 for D = 128) at a time through shared
//          memory, softmax online in registers, 2 by 4 scores a thread; no bank conflicts
//   slack  3 for tiles <= 1 and width/4*4 >= width; 30 beyond (every tile of queries reads its
//          keys, odd widths come as single elements)
//   bits   fixed order of keys and fixed trees: repeatable, and the same alone and in a batch
template <class T, int D>
__global__ void __launch_bounds__(256, 2) attention_fwd(
    T*       __restrict__ y,     // [batch, queries, heads, width]
    float*   __restrict__ lse,   // [batch, queries, heads]
    const T* __restrict__ q,     // [batch, queries, heads, width]
    const T* __restrict__ k,     // [batch, keys, heads, width]
    const T* __restrict__ v,     // [batch, keys, heads, width]
    int batch, int queries, int keys, int seen, int heads, int width, int work, int tiles,
    float scale, unsigned long long ends0, unsigned long long ends1, unsigned long long ends2,
    unsigned long long ends3) {
    await_previous();
    constexpr int N = 32, M = D <= 64 ? 64 : 32;
    using Scores = Tile<N, M>;
    __shared__ Part<N, D> sq;
    __shared__ Part<M, D> sk;
    __shared__ Weights<N, M> sp;
    const Ends ends{{ends0, ends1, ends2, ends3}};
    each_tile(batch, heads, tiles, [&](unsigned sample, unsigned head, int tile) {
        const Stretch of = query_tile(tile, N, queries, seen, ends);
        const Head asks{unsigned(queries), unsigned(heads), unsigned(width), sample, head};
        const Head told{unsigned(keys), unsigned(heads), unsigned(width), sample, head};
        sq.fill(q, asks, of.first, of.end - of.first);
        Rows<N, D> sum;
        sum.zero();
        float top[Scores::R], total[Scores::R];
#pragma unroll
        for (int r = 0; r < Scores::R; ++r) top[r] = -infinite(), total[r] = 0.0f;
        for (int k0 = 0; k0 < of.seen; k0 += M) {
            const int count = min(M, of.seen - k0);
            __syncthreads();
            sk.fill(k, told, k0, count);
            __syncthreads();
            Scores p;
            p.zero();
            p.add(sq, sk);
#pragma unroll
            for (int r = 0; r < Scores::R; ++r) {
                float high = top[r];
#pragma unroll
                for (int c = 0; c < Scores::C; ++c) {
                    p.at[r][c] = Scores::col(c) < count ? scale * p.at[r][c] : -infinite();
                    high = fmaxf(high, p.at[r][c]);
                }
                high = row_max(high);
                // Where all scores so far are -inf, their weights are 0 until one is larger.
                const float shift = high == -infinite() ? 0.0f : high;
                const float old = exp_of(top[r] - shift);
                float added = 0.0f;
#pragma unroll
                for (int c = 0; c < Scores::C; ++c) {
                    p.at[r][c] = Scores::col(c) < count ? exp_of(p.at[r][c] - shift) : 0.0f;
                    added += p.at[r][c];
                }
                total[r] = fmaf(total[r], old, row_sum(added));
                top[r] = high;
#pragma unroll
                for (int i = 0; i < Rows<N, D>::V; ++i) sum.at[r][i] *= old;
            }
            p.put(sp);
            __syncthreads();
            sk.fill(v, told, k0, count);
            __syncthreads();
            sum.add(sp, sk);
        }
        const int rows = of.end - of.first;
        sum.put(y, asks, of.first, rows, [&](int r) { return 1.0f / total[r]; });
#pragma unroll
        for (int r = 0; r < Scores::R; ++r) {
            if (threadIdx.x % SIDE == 0 && Scores::row(r) < rows) {
                lse[(sample * queries + of.first + Scores::row(r)) * heads + head] =
                    log_sum(top[r], total[r]);
            }
        }
    });
}

// attention_mma_fwd: attention_fwd on the tensor cores, in bf16.
//   for    T: bf16; D: 32, 64, 128
//   floor  bytes = 2*batch*(queries + seen)*heads*width*s + 4*batch*queries*heads;
//          flops = batch*heads*work*64*(64 - D/128*32)*6*D
//   plan   a block of 4 warps for 64 queries of a head, 16 a warp: 64 keys (32 for D = 128) at a
//          time, the next ones on their way by cp.async, scores and sums in registers. Weights are
//          multiplied as two bf16, 16 digits of them, so the sums are as good as float's;
//          no bank conflicts
//   code   tensor cores, 16-byte loads
//   slack  3 for tiles <= 1 and width/8*8 >= width; 30 beyond (every tile of queries reads its
//          keys, odd widths come as single elements)
//   bits   fixed order of keys and fixed trees: repeatable, and the same alone and in a batch
//   tried  weights as one bf16: sums that cancel lose more than their own rounding
template <class T, int D>
__global__ void __launch_bounds__(128, 2) attention_mma_fwd(
    T*       __restrict__ y,     // [batch, queries, heads, width]
    float*   __restrict__ lse,   // [batch, queries, heads]
    const T* __restrict__ q,     // [batch, queries, heads, width]
    const T* __restrict__ k,     // [batch, keys, heads, width]
    const T* __restrict__ v,     // [batch, keys, heads, width]
    int batch, int queries, int keys, int seen, int heads, int width, int work, int tiles,
    float scale, unsigned long long ends0, unsigned long long ends1, unsigned long long ends2,
    unsigned long long ends3) {
    await_previous();
    constexpr int N = MMA_QUERIES, M = D <= 64 ? 64 : 32;
    using Asked = HeadTile<N, D>;
    __shared__ uint4 space[(sizeof(Asked) + 4 * sizeof(HeadTile<M, D>)) / sizeof(uint4)];
    Asked& sq = *reinterpret_cast<Asked*>(space);
    // Keys and values of this step, then those of the next.
    HeadTile<M, D>* skv = reinterpret_cast<HeadTile<M, D>*>(&sq + 1);
    const Ends ends{{ends0, ends1, ends2, ends3}};
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    each_tile(batch, heads, tiles, [&](unsigned sample, unsigned head, int tile) {
        const Stretch of = query_tile(tile, N, queries, seen, ends);
        const Head asks{unsigned(queries), unsigned(heads), unsigned(width), sample, head};
        const Head told{unsigned(keys), unsigned(heads), unsigned(width), sample, head};
        auto fetch = [&](int k0, int stage) {
            if (k0 < of.seen) {
                skv[2 * stage].fetch(k, told, k0, min(M, of.seen - k0));
                skv[2 * stage + 1].fetch(v, told, k0, min(M, of.seen - k0));
            }
            copy_commit();
        };
        sq.fetch(q, asks, of.first, of.end - of.first);
        fetch(0, 0);
        copy_wait<0>();
        __syncthreads();
        unsigned own[D / 16][4];
#pragma unroll
        for (int d = 0; d < D; d += 16) {
            Asked::Lines::template fragment<true>(own[d / 16], sq.at, warp * 16, d);
        }
        WarpRows<D> sum = {};
        float top[2] = {-infinite(), -infinite()}, total[2] = {};
        for (int k0 = 0, stage = 0; k0 < of.seen; k0 += M, stage ^= 1) {
            copy_wait<0>();
            __syncthreads();
            fetch(k0 + M, stage ^ 1);
            WarpScores<M> p;
            p.template multiply<D>(own, skv[2 * stage]);
#pragma unroll
            for (int i = 0; i < 4; i += 2) {
                const int r = i / 2;
                float high = top[r];
#pragma unroll
                for (int n = 0; n < M / 8; ++n) {
#pragma unroll
                    for (int j = i; j < i + 2; ++j) {
                        const bool seen = k0 + WarpScores<M>::col(n, j) < of.seen;
                        p.at[n][j] = seen ? scale * p.at[n][j] : -infinite();
                        high = fmaxf(high, p.at[n][j]);
                    }
                }
                high = quad_max(high);
                const float shift = high == -infinite() ? 0.0f : high;
                const float old = exp_of(top[r] - shift);
                float added = 0.0f;
#pragma unroll
                for (int n = 0; n < M / 8; ++n) {
#pragma unroll
                    for (int j = i; j < i + 2; ++j) {
                        const bool seen = k0 + WarpScores<M>::col(n, j) < of.seen;
                        p.at[n][j] = seen ? exp_of(p.at[n][j] - shift) : 0.0f;
                        added += p.at[n][j];
                    }
                }
                total[r] = fmaf(total[r], old, quad_sum(added));
                top[r] = high;
#pragma unroll
                for (int n = 0; n < D / 8; ++n) {
                    sum.at[n][i] *= old;
                    sum.at[n][i + 1] *= old;
                }
            }
            sum.add(p, skv[2 * stage + 1]);
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int row = of.first + warp * 16 + lane / 4 + 8 * r;
            if (row >= of.end) continue;
            sum.put(y + asks.at(row), width, width % 2 == 0 && aligned(y), 2 * r, 1.0f / total[r]);
            if (lane % 4 == 0) {
                lse[(sample * queries + row) * heads + head] = log_sum(top[r], total[r]);
            }
        }
    });
}

// attention_jvp: dy = (p (s' - <s'>)) v + p dv, with s' = scale (dq k^T + q dk^T), <> the mean
// under p = e^(scale q k^T - lse), and without the terms of tangents that are not given.
//   for    T: f32, bf16; D: 32, 64, 128
//   floor  bytes = batch*heads*width*s*(queries*(2 + dqs) + keys*(1 + max(dqs, dks) + dks + dvs))
//            + 4*batch*queries*heads;
//          flops = batch*heads*work*(32 - D/128*16)*(32 - D/128*16)
//            *2*D*((1 + dqs + dks)*(1 + max(dqs, dks)) + max(dqs, dks) + dvs)
//   plan   a block for 32 queries of a head (16 for D = 128): keys pass once for <s'>, once more
//          for the sums; no bank conflicts
//   slack  3 for tiles <= 1 and width/4*4 >= width; 30 beyond (keys are read twice, by every tile
//          of queries, odd widths come as single elements)
//   bits   fixed order of keys and fixed trees: repeatable, and the same alone and in a batch
//   tried  one pass with <s'> taken off the sums: an infinite v gives NaN where it must not
template <class T, int D>
__global__ void __launch_bounds__(256, 2) attention_jvp(
    T*           __restrict__ dy,    // [batch, queries, heads, width]
    const T*     __restrict__ q,     // [batch, queries, heads, width]
    const T*     __restrict__ k,     // [batch, keys, heads, width]
    const T*     __restrict__ v,     // [batch, keys, heads, width]
    const float* __restrict__ lse,   // [batch, queries, heads]
    const T*     __restrict__ dq,    // [batch, queries, heads, width]
    const T*     __restrict__ dk,    // [batch, keys, heads, width]
    const T*     __restrict__ dv,    // [batch, keys, heads, width]
    int batch, int queries, int keys, int heads, int width, int work, int tiles, float scale,
    int dqs, int dks, int dvs, unsigned long long ends0, unsigned long long ends1,
    unsigned long long ends2, unsigned long long ends3) {
    await_previous();
    constexpr int N = QUERIES<D>, M = KEYS<D>;
    using Scores = Tile<N, M>;
    __shared__ Part<N, D> sq, sdq;
    __shared__ Part<M, D> sk, sdk;
    __shared__ Weights<N, M> sp;
    const Ends ends{{ends0, ends1, ends2, ends3}};
    const bool has_dq = dqs != 0, has_dk = dks != 0, has_dv = dvs != 0;
    const bool moves = has_dq || has_dk;
    each_tile(batch, heads, tiles, [&](unsigned sample, unsigned head, int tile) {
        const Stretch of = query_tile(tile, N, queries, keys, ends);
        const int rows = of.end - of.first;
        const Head asks{unsigned(queries), unsigned(heads), unsigned(width), sample, head};
        const Head told{unsigned(keys), unsigned(heads), unsigned(width), sample, head};
        sq.fill(q, asks, of.first, rows);
        if (has_dq) sdq.fill(dq, asks, of.first, rows);
        float log[Scores::R], mean[Scores::R];
#pragma unroll
        for (int r = 0; r < Scores::R; ++r) {
            const int row = of.first + min(Scores::row(r), rows - 1);
            log[r] = lse[(sample * queries + row) * heads + head];
            mean[r] = 0.0f;
        }
        // Weights p and tangents ds of the scores with the keys from k0 on.
        auto look = [&](Scores& p, Scores& ds, int k0, int count) {
            __syncthreads();
            sk.fill(k, told, k0, count);
            if (has_dk) sdk.fill(dk, told, k0, count);
            __syncthreads();
            p.zero();
            ds.zero();
            p.add(sq, sk);
            if (has_dq) ds.add(sdq, sk);
            if (has_dk) ds.add(sq, sdk);
#pragma unroll
            for (int r = 0; r < Scores::R; ++r) {
#pragma unroll
                for (int c = 0; c < Scores::C; ++c) {
                    const bool seen = Scores::col(c) < count;
                    p.at[r][c] = seen ? exp_of(fmaf(scale, p.at[r][c], -log[r])) : 0.0f;
                    ds.at[r][c] = seen ? scale * ds.at[r][c] : 0.0f;
                }
            }
        };
        Scores p, ds;
        for (int k0 = 0; moves && k0 < of.seen; k0 += M) {
            look(p, ds, k0, min(M, of.seen - k0));
#pragma unroll
            for (int r = 0; r < Scores::R; ++r) {
                float part = 0.0f;
#pragma unroll
                for (int c = 0; c < Scores::C; ++c) part = fmaf(p.at[r][c], ds.at[r][c], part);
                mean[r] += row_sum(part);
            }
        }
        Rows<N, D> sum;
        sum.zero();
        for (int k0 = 0; k0 < of.seen; k0 += M) {
            const int count = min(M, of.seen - k0);
            look(p, ds, k0, count);
            if (has_dv) {
                p.put(sp);
                __syncthreads();
                sk.fill(dv, told, k0, count);
                __syncthreads();
                sum.add(sp, sk);
                __syncthreads();
            }
            if (moves) {
#pragma unroll
                for (int r = 0; r < Scores::R; ++r) {
#pragma unroll
                    for (int c = 0; c < Scores::C; ++c) {
                        const bool seen = Scores::col(c) < count;
                        ds.at[r][c] = seen ? p.at[r][c] * (ds.at[r][c] - mean[r]) : 0.0f;
                    }
                }
                ds.put(sp);
                __syncthreads();
                sk.fill(v, told, k0, count);
                __syncthreads();
                sum.add(sp, sk);
            }
        }
        sum.put(dy, asks, of.first, rows, [](int) { return 1.0f; });
    });
}

// attention_means_vjp: mean = sum over the width of gy y, the mean of gy v^T under the weights.
//   for    T: f32, bf16
//   floor  bytes = 2*rows*width*s + 4*rows;  flops = 2*rows*width + 160*rows
//   plan   one warp a row
//   slack  9 (rows may begin inside a sector)
//   bits   fixed shuffle tree: repeatable
template <class T>
__global__ void __launch_bounds__(256) attention_means_vjp(
    float*   __restrict__ mean,   // [rows]
    const T* __restrict__ gy,     // [rows, width]
    const T* __restrict__ y,      // [rows, width]
    int rows, int width) {
    await_previous();
    const int lane = threadIdx.x % WARP, warps = gridDim.x * (blockDim.x / WARP);
    for (int row = (blockIdx.x * blockDim.x + threadIdx.x) / WARP; row < rows; row += warps) {
        float sum = 0.0f;
        for (int c = lane; c < width; c += WARP) {
            const unsigned at = static_cast<unsigned>(row) * width + c;
            sum = fmaf(to_float(gy[at]), to_float(y[at]), sum);
        }
        sum = warp_sum(sum);
        if (lane == 0) mean[row] = sum;
    }
}

// attention_queries_vjp: gq = gs k with gs = scale p (gy v^T - mean).
//   for    T: f32, bf16; D: 32, 64, 128
//   floor  bytes = (3*queries + 2*keys)*batch*heads*width*s + 8*batch*queries*heads;
//          flops = batch*heads*work*(32 - D/128*16)*(32 - D/128*16)*6*D
//   plan   a block for 32 queries of a head (16 for D = 128), keys pass once; no bank conflicts
//   slack  3 for tiles <= 1 and width/4*4 >= width; 30 beyond (every tile of queries reads its
//          keys, odd widths come as single elements)
//   bits   fixed order of keys: repeatable, and the same alone and in a batch
template <class T, int D>
__global__ void __launch_bounds__(256, 2) attention_queries_vjp(
    T*           __restrict__ gq,     // [batch, queries, heads, width]
    const T*     __restrict__ q,      // [batch, queries, heads, width]
    const T*     __restrict__ k,      // [batch, keys, heads, width]
    const T*     __restrict__ v,      // [batch, keys, heads, width]
    const float* __restrict__ lse,    // [batch, queries, heads]
    const float* __restrict__ mean,   // [batch, queries, heads]
    const T*     __restrict__ gy,     // [batch, queries, heads, width]
    int batch, int queries, int keys, int heads, int width, int work, int tiles, float scale,
    unsigned long long ends0, unsigned long long ends1, unsigned long long ends2,
    unsigned long long ends3) {
    await_previous();
    constexpr int N = QUERIES<D>, M = KEYS<D>;
    using Scores = Tile<N, M>;
    __shared__ Part<N, D> sq, sg;
    __shared__ Part<M, D> sk, sv;
    __shared__ Weights<N, M> sw;
    const Ends ends{{ends0, ends1, ends2, ends3}};
    each_tile(batch, heads, tiles, [&](unsigned sample, unsigned head, int tile) {
        const Stretch of = query_tile(tile, N, queries, keys, ends);
        const int rows = of.end - of.first;
        const Head asks{unsigned(queries), unsigned(heads), unsigned(width), sample, head};
        const Head told{unsigned(keys), unsigned(heads), unsigned(width), sample, head};
        sq.fill(q, asks, of.first, rows);
        sg.fill(gy, asks, of.first, rows);
        float log[Scores::R], centre[Scores::R];
#pragma unroll
        for (int r = 0; r < Scores::R; ++r) {
            const int row = of.first + min(Scores::row(r), rows - 1);
            log[r] = lse[(sample * queries + row) * heads + head];
            centre[r] = mean[(sample * queries + row) * heads + head];
        }
        Rows<N, D> sum;
        sum.zero();
        for (int k0 = 0; k0 < of.seen; k0 += M) {
            const int count = min(M, of.seen - k0);
            __syncthreads();
            sk.fill(k, told, k0, count);
            sv.fill(v, told, k0, count);
            __syncthreads();
            Scores p, gp;
            p.zero();
            gp.zero();
            p.add(sq, sk);
            gp.add(sg, sv);
#pragma unroll
            for (int r = 0; r < Scores::R; ++r) {
#pragma unroll
                for (int c = 0; c < Scores::C; ++c) {
                    const float weight = scale * exp_of(fmaf(scale, p.at[r][c], -log[r]));
                    const bool seen = Scores::col(c) < count;
                    p.at[r][c] = seen ? weight * (gp.at[r][c] - centre[r]) : 0.0f;
                }
            }
            p.put(sw);
            __syncthreads();
            sum.add(sw, sk);
        }
        sum.put(gq, asks, of.first, rows, [](int) { return 1.0f; });
    });
}

// attention_keys_vjp: gk = gs^T q and gv = p^T gy with gs = scale p (gy v^T - mean).
//   for    T: f32, bf16; D: 32, 64, 128
//   floor  bytes = (2*queries + 4*keys)*batch*heads*width*s + 8*batch*queries*heads;
//          flops = batch*heads*work*(32 - D/128*16)*(32 - D/128*16)*8*D
//   plan   a block for 32 keys of a head (16 for D = 128) of one scale, the queries that see them
//          pass once; no bank conflicts
//   slack  3 for tiles <= 1 and width/4*4 >= width; 30 beyond (every tile of keys reads its
//          queries, odd widths come as single elements)
//   bits   fixed order of queries: repeatable, and the same alone and in a batch
template <class T, int D>
__global__ void __launch_bounds__(256, 2) attention_keys_vjp(
    T*           __restrict__ gk,     // [batch, keys, heads, width]
    T*           __restrict__ gv,     // [batch, keys, heads, width]
    const T*     __restrict__ q,      // [batch, queries, heads, width]
    const T*     __restrict__ k,      // [batch, keys, heads, width]
    const T*     __restrict__ v,      // [batch, keys, heads, width]
    const float* __restrict__ lse,    // [batch, queries, heads]
    const float* __restrict__ mean,   // [batch, queries, heads]
    const T*     __restrict__ gy,     // [batch, queries, heads, width]
    int batch, int queries, int keys, int heads, int width, int work, int tiles, float scale,
    unsigned long long ends0, unsigned long long ends1, unsigned long long ends2,
    unsigned long long ends3) {
    await_previous();
    constexpr int N = KEYS<D>, M = QUERIES<D>;
    using Scores = Tile<N, M>;
    __shared__ Part<N, D> sk, sv;
    __shared__ Part<M, D> sq, sg;
    __shared__ Weights<N, M> sp, sw;
    const Ends ends{{ends0, ends1, ends2, ends3}};
    each_tile(batch, heads, tiles, [&](unsigned sample, unsigned head, int tile) {
        const Stretch of = key_tile(tile, N, queries, keys, ends);
        const int rows = of.end - of.first;
        const Head asks{unsigned(queries), unsigned(heads), unsigned(width), sample, head};
        const Head told{unsigned(keys), unsigned(heads), unsigned(width), sample, head};
        sk.fill(k, told, of.first, rows);
        sv.fill(v, told, of.first, rows);
        Rows<N, D> by_k, by_v;
        by_k.zero();
        by_v.zero();
        for (int q0 = of.from; q0 < queries; q0 += M) {
            const int count = min(M, queries - q0);
            __syncthreads();
            sq.fill(q, asks, q0, count);
            sg.fill(gy, asks, q0, count);
            __syncthreads();
            Scores p, gp;
            p.zero();
            gp.zero();
            p.add(sk, sq);
            gp.add(sv, sg);
#pragma unroll
            for (int c = 0; c < Scores::C; ++c) {
                const bool live = Scores::col(c) < count;
                const unsigned at =
                    (sample * queries + q0 + (live ? Scores::col(c) : 0)) * heads + head;
                const float log = lse[at], centre = mean[at];
#pragma unroll
                for (int r = 0; r < Scores::R; ++r) {
                    const float weight = live ? exp_of(fmaf(scale, p.at[r][c], -log)) : 0.0f;
                    p.at[r][c] = weight;
                    gp.at[r][c] = live ? scale * weight * (gp.at[r][c] - centre) : 0.0f;
                }
            }
            p.put(sp);
            gp.put(sw);
            __syncthreads();
            by_v.add(sp, sg);
            by_k.add(sw, sq);
        }
        by_k.put(gk, told, of.first, rows, [](int) { return 1.0f; });
        by_v.put(gv, told, of.first, rows, [](int) { return 1.0f; });
    });
}
