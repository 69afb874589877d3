// Attention and its tangent in one pass over the keys, online: neither the scores nor their
// tangents leave the multiprocessor (src/ops/attention/dual.rs).
//
// With s' the scores' tangents and <> the mean under p = softmax(s):
//   y = <v>,  dy = <s' v + v'> - <s'> y
// so that all sums grow side by side, and are rescaled together when a larger score comes.
#include "lib/heads_mma.cuh"
#include "lib/math.cuh"
#include "lib/order.cuh"
#include "lib/reduce.cuh"

// Rows of a tile and keys that it looks at in one go: what 48 KiB hold.
template <int D>
constexpr int ROWS_AT_ONCE = D <= 64 ? 32 : 16;

// What online softmax knows of a query: the largest score, sums of e = e^(s - top) and of e s'.
struct Online {
    float top, total, moved;
};

// attention_dual_fwd: attention_fwd and attention_jvp: y, the log-sum-exp, and dy along those of
// dq, dk, dv that are given.
//   for    T: f32, bf16; D: 32, 64, 128
//   floor  bytes = batch*heads*width*s*(queries*(3 + dqs) + keys*(2 + dks + dvs))
//            + 4*batch*queries*heads;
//          flops = batch*heads*work*(32 - D/128*16)*(32 - D/128*16)
//            *2*D*(2 + dqs + dks + max(dqs, dks) + dvs)
//   plan   a block for 32 queries of a head (16 for D = 128), as many keys and their tangents at a
//          time through shared memory, softmax online in registers; no bank conflicts
//   slack  3 for tiles <= 1 and width/4*4 >= width; 30 beyond (every tile of queries reads its
//          keys, odd widths come as single elements)
//   bits   fixed order of keys and fixed trees: repeatable, and the same alone and in a batch
template <class T, int D>
__global__ void __launch_bounds__(256, 2) attention_dual_fwd(
    T*       __restrict__ y,     // [batch, queries, heads, width]
    float*   __restrict__ lse,   // [batch, queries, heads]
    T*       __restrict__ dy,    // [batch, queries, heads, width]
    const T* __restrict__ q,     // [batch, queries, heads, width]
    const T* __restrict__ k,     // [batch, keys, heads, width]
    const T* __restrict__ v,     // [batch, keys, heads, width]
    const T* __restrict__ dq,    // [batch, queries, heads, width]
    const T* __restrict__ dk,    // [batch, keys, heads, width]
    const T* __restrict__ dv,    // [batch, keys, heads, width]
    int batch, int queries, int keys, int heads, int width, int work, int tiles, float scale,
    int dqs, int dks, int dvs, unsigned long long ends0, unsigned long long ends1,
    unsigned long long ends2, unsigned long long ends3) {
    await_previous();
    constexpr int N = ROWS_AT_ONCE<D>, M = N;
    using Scores = Tile<N, M>;
    __shared__ Part<N, D> sq, sdq;
    // Keys and their tangents, then values and theirs.
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
        Rows<N, D> sum, dsum;
        sum.zero();
        dsum.zero();
        Online at[Scores::R];
#pragma unroll
        for (int r = 0; r < Scores::R; ++r) at[r] = {-infinite(), 0.0f, 0.0f};
        for (int k0 = 0; k0 < of.seen; k0 += M) {
            const int count = min(M, of.seen - k0);
            __syncthreads();
            sk.fill(k, told, k0, count);
            if (has_dk) sdk.fill(dk, told, k0, count);
            __syncthreads();
            Scores p, ds;
            p.zero();
            ds.zero();
            p.add(sq, sk);
            if (has_dq) ds.add(sdq, sk);
            if (has_dk) ds.add(sq, sdk);
#pragma unroll
            for (int r = 0; r < Scores::R; ++r) {
                float high = at[r].top;
#pragma unroll
                for (int c = 0; c < Scores::C; ++c) {
                    p.at[r][c] = Scores::col(c) < count ? scale * p.at[r][c] : -infinite();
                    high = fmaxf(high, p.at[r][c]);
                }
                high = row_max(high);
                // Where all scores so far are -inf, their weights are 0 until one is larger.
                const float shift = high == -infinite() ? 0.0f : high;
                const float old = exp_of(at[r].top - shift);
                float added = 0.0f, moved = 0.0f;
#pragma unroll
                for (int c = 0; c < Scores::C; ++c) {
                    const bool seen = Scores::col(c) < count;
                    p.at[r][c] = seen ? exp_of(p.at[r][c] - shift) : 0.0f;
                    ds.at[r][c] = seen ? p.at[r][c] * (scale * ds.at[r][c]) : 0.0f;
                    added += p.at[r][c];
                    moved += ds.at[r][c];
                }
                at[r].top = high;
                at[r].total = fmaf(at[r].total, old, row_sum(added));
                at[r].moved = fmaf(at[r].moved, old, row_sum(moved));
#pragma unroll
                for (int i = 0; i < Rows<N, D>::V; ++i) {
                    sum.at[r][i] *= old;
                    dsum.at[r][i] *= old;
                }
            }
            p.put(sp);
            __syncthreads();
            sk.fill(v, told, k0, count);
            if (has_dv) sdk.fill(dv, told, k0, count);
            __syncthreads();
            sum.add(sp, sk);
            if (has_dv) dsum.add(sp, sdk);
            if (moves) {
                __syncthreads();
                ds.put(sp);
                __syncthreads();
                dsum.add(sp, sk);
            }
        }
#pragma unroll
        for (int r = 0; r < Scores::R; ++r) {
            const float by = 1.0f / at[r].total, mean = at[r].moved * by;
#pragma unroll
            for (int i = 0; i < Rows<N, D>::V; ++i) {
                sum.at[r][i] *= by;
                dsum.at[r][i] *= by;
                if (moves) dsum.at[r][i] = fmaf(-mean, sum.at[r][i], dsum.at[r][i]);
            }
        }
        sum.put(y, asks, of.first, rows, [](int) { return 1.0f; });
        dsum.put(dy, asks, of.first, rows, [](int) { return 1.0f; });
#pragma unroll
        for (int r = 0; r < Scores::R; ++r) {
            if (threadIdx.x % SIDE == 0 && Scores::row(r) < rows) {
                lse[(sample * queries + of.first + Scores::row(r)) * heads + head] =
                    log_sum(at[r].top, at[r].total);
            }
        }
    });
}

// attention_dual_mma_fwd: attention_dual_fwd on the tensor cores, in bf16, heads up to 64 wide.
//   for    T: bf16; D: 32, 64
//   floor  bytes = batch*heads*width*s*(queries*(3 + dqs) + keys*(2 + dks + dvs))
//            + 4*batch*queries*heads;
//          flops = batch*heads*work*64*64*2*D
//            *(3 + dqs + dks + 2*max(dqs, dks) + 2*dvs)
//   plan   a block of 4 warps for 64 queries of a head, 16 a warp: 64 keys at a time by cp.async,
//          values on their way beside the scores and the next keys beside the sums, which stay in
//          registers. Weights, and weights times s', are multiplied as two bf16; tangents of the
//          queries stay in shared memory; no bank conflicts
//   code   tensor cores, 16-byte loads
//   slack  3 for tiles <= 1 and width/8*8 >= width; 30 beyond (every tile of queries reads its
//          keys, odd widths come as single elements)
//   bits   fixed order of keys and fixed trees: repeatable, and the same alone and in a batch
template <class T, int D>
__global__ void __launch_bounds__(128, 2) attention_dual_mma_fwd(
    T*       __restrict__ y,     // [batch, queries, heads, width]
    float*   __restrict__ lse,   // [batch, queries, heads]
    T*       __restrict__ dy,    // [batch, queries, heads, width]
    const T* __restrict__ q,     // [batch, queries, heads, width]
    const T* __restrict__ k,     // [batch, keys, heads, width]
    const T* __restrict__ v,     // [batch, keys, heads, width]
    const T* __restrict__ dq,    // [batch, queries, heads, width]
    const T* __restrict__ dk,    // [batch, keys, heads, width]
    const T* __restrict__ dv,    // [batch, keys, heads, width]
    int batch, int queries, int keys, int heads, int width, int work, int tiles, float scale,
    int dqs, int dks, int dvs, unsigned long long ends0, unsigned long long ends1,
    unsigned long long ends2, unsigned long long ends3) {
    await_previous();
    constexpr int M = 64;
    using Told = HeadTile<M, D>;
    using Asked = HeadTile<MMA_QUERIES, D>;
    using Wide = WarpScores<M>;
    __shared__ uint4 space[(4 * sizeof(Told) + sizeof(Asked)) / sizeof(uint4)];
    Told* at = reinterpret_cast<Told*>(space);
    // Queries, then their tangents, which registers have no room for.
    Asked& asked = *reinterpret_cast<Asked*>(at + 4);
    const Ends ends{{ends0, ends1, ends2, ends3}};
    const bool has_dq = dqs != 0, has_dk = dks != 0, has_dv = dvs != 0;
    const bool moves = has_dq || has_dk;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    each_tile(batch, heads, tiles, [&](unsigned sample, unsigned head, int tile) {
        const Stretch of = query_tile(tile, MMA_QUERIES, queries, keys, ends);
        const Head asks{unsigned(queries), unsigned(heads), unsigned(width), sample, head};
        const Head told{unsigned(keys), unsigned(heads), unsigned(width), sample, head};
        // Fetches keys, or values, and their tangents.
        auto fetch = [&](Told* to, const T* rows, const T* moved, bool moving, int k0) {
            const int count = min(M, of.seen - k0);
            if (count > 0) to[0].fetch(rows, told, k0, count);
            if (moving && count > 0) to[1].fetch(moved, told, k0, count);
            copy_commit();
        };
        asked.fetch(q, asks, of.first, of.end - of.first);
        copy_commit();
        copy_wait<0>();
        __syncthreads();
        unsigned own[D / 16][4];
#pragma unroll
        for (int d = 0; d < D; d += 16) {
            Asked::Lines::template fragment<true>(own[d / 16], asked.at, warp * 16, d);
        }
        __syncthreads();
        if (has_dq) asked.fetch(dq, asks, of.first, of.end - of.first);
        fetch(at, k, dk, has_dk, 0);
        WarpRows<D> sum = {}, dsum = {};
        Online row[2] = {{-infinite(), 0.0f, 0.0f}, {-infinite(), 0.0f, 0.0f}};
        for (int k0 = 0; k0 < of.seen; k0 += M) {
            fetch(at + 2, v, dv, has_dv, k0);
            copy_wait<1>();
            __syncthreads();
            Wide p, ds;
            p.zero();
            ds.zero();
            p.template add<D>(own, at[0]);
            if (has_dq) ds.add(asked, at[0]);
            if (has_dk) ds.template add<D>(own, at[1]);
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float high = row[r].top;
#pragma unroll
                for (int n = 0; n < M / 8; ++n) {
#pragma unroll
                    for (int j = 2 * r; j < 2 * r + 2; ++j) {
                        const bool seen = k0 + Wide::col(n, j) < of.seen;
                        p.at[n][j] = seen ? scale * p.at[n][j] : -infinite();
                        high = fmaxf(high, p.at[n][j]);
                    }
                }
                high = quad_max(high);
                const float shift = high == -infinite() ? 0.0f : high;
                const float old = exp_of(row[r].top - shift);
                float added = 0.0f, moved = 0.0f;
#pragma unroll
                for (int n = 0; n < M / 8; ++n) {
#pragma unroll
                    for (int j = 2 * r; j < 2 * r + 2; ++j) {
                        const bool seen = k0 + Wide::col(n, j) < of.seen;
                        p.at[n][j] = seen ? exp_of(p.at[n][j] - shift) : 0.0f;
                        ds.at[n][j] = seen ? p.at[n][j] * (scale * ds.at[n][j]) : 0.0f;
                        added += p.at[n][j];
                        moved += ds.at[n][j];
                    }
                }
                row[r].top = high;
                row[r].total = fmaf(row[r].total, old, quad_sum(added));
                row[r].moved = fmaf(row[r].moved, old, quad_sum(moved));
#pragma unroll
                for (int n = 0; n < D / 8; ++n) {
#pragma unroll
                    for (int j = 2 * r; j < 2 * r + 2; ++j) {
                        sum.at[n][j] *= old;
                        dsum.at[n][j] *= old;
                    }
                }
            }
            copy_wait<0>();
            __syncthreads();
            fetch(at, k, dk, has_dk, k0 + M);
            sum.add(p, at[2]);
            if (has_dv) dsum.add(p, at[3]);
            if (moves) dsum.template add<M, true>(ds, at[2]);
            __syncthreads();
        }
        copy_wait<0>();
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int query = of.first + warp * 16 + lane / 4 + 8 * r;
            const float by = 1.0f / row[r].total, mean = row[r].moved * by;
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
#pragma unroll
                for (int j = 2 * r; j < 2 * r + 2; ++j) {
                    sum.at[n][j] *= by;
                    dsum.at[n][j] *= by;
                    if (moves) dsum.at[n][j] = fmaf(-mean, sum.at[n][j], dsum.at[n][j]);
                }
            }
            if (query >= of.end) continue;
            const unsigned to = asks.at(query);
            sum.put(y + to, width, width % 2 == 0 && aligned(y), 2 * r, 1.0f);
            dsum.put(dy + to, width, width % 2 == 0 && aligned(dy), 2 * r, 1.0f);
            if (lane % 4 == 0) {
                lse[(sample * queries + query) * heads + head] =
                    log_sum(row[r].top, row[r].total);
            }
        }
    });
}
