// Attention's tangent and gradients on the tensor cores, in bf16 (src/ops/attention).
//
// Tiles are those of attention_mma_fwd: four warps with 16 rows each, scores and sums in registers,
// the other side's rows in shared memory. What multiplies values is split into two bf16, 16 digits,
// with its sign (lib/heads_mma.cuh), so that sums are as good as float's.
#include "lib/heads_mma.cuh"
#include "lib/math.cuh"
#include "lib/order.cuh"
#include "lib/reduce.cuh"

// Rows of the other side that 48 KiB hold four times, and those that its gradients look at.
template <int D>
constexpr int AT_ONCE = D <= 64 ? 64 : 32;
template <int D>
constexpr int AT_ONCE_BACK = D <= 64 ? 32 : 16;

// A warp's 16 rows of a head by D, as fragments.
template <int D>
struct WarpPart {
    unsigned at[D / 16][4];

    // From a tile of all four warps' rows.
    __device__ __forceinline__ void take(const HeadTile<MMA_QUERIES, D>& rows) {
#pragma unroll
        for (int d = 0; d < D; d += 16) {
            HeadTile<MMA_QUERIES, D>::Lines::template fragment<true>(
                at[d / 16], rows.at, threadIdx.x / WARP * 16, d);
        }
    }
};

// The two rows that a lane has of its warp's, counted in the sample; the last of `of` stands in for
// those beyond it.
__device__ __forceinline__ int lane_row(const Stretch& of, int r) {
    return of.first + threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4 + 8 * r;
}

// What statistics [batch, queries, heads] hold for a query.
__device__ __forceinline__ float stat(const float* all, const Head& h, int query) {
    return all[(h.sample * h.rows + query) * h.heads + h.head];
}

// Writes a warp's rows to a result [batch, rows, heads, width].
template <int D>
__device__ __forceinline__ void put_rows(const WarpRows<D>& sum, bf16* y, const Head& h,
                                         const Stretch& of) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int row = lane_row(of, r);
        if (row >= of.end) continue;
        sum.put(y + h.at(row), h.width, h.width % 2 == 0 && aligned(y), 2 * r, 1.0f);
    }
}

// attention_mma_jvp: attention_jvp on the tensor cores.
//   for    T: bf16; D: 32, 64, 128
//   floor  bytes = batch*heads*width*s*(queries*(2 + dqs) + keys*(1 + max(dqs, dks) + dks + dvs))
//            + 4*batch*queries*heads;
//          flops = batch*heads*work*64*(64 - D/128*32)*2*D
//            *((1 + dqs + dks)*(1 + max(dqs, dks)) + 2*max(dqs, dks) + 2*dvs)
//   plan   a block of 4 warps for 64 queries of a head, 64 keys (32 for D = 128) at a time by
//          cp.async: once for <s'>, the next ones on their way, once more for the sums, values on
//          their way beside the scores and keys beside the sums. Tangents of the queries stay in
//          shared memory; no bank conflicts
//   code   tensor cores, 16-byte loads
//   slack  3 for tiles <= 1 and width/8*8 >= width; 30 beyond (keys are read twice, by every tile
//          of queries, odd widths come as single elements)
//   bits   fixed order of keys and fixed trees: repeatable, and the same alone and in a batch
template <class T, int D>
__global__ void __launch_bounds__(128, 2) attention_mma_jvp(
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
    constexpr int M = AT_ONCE<D>;
    using Told = HeadTile<M, D>;
    using Asked = HeadTile<MMA_QUERIES, D>;
    __shared__ uint4 space[(4 * sizeof(Told) + sizeof(Asked)) / sizeof(uint4)];
    Told* at = reinterpret_cast<Told*>(space);
    // Queries, then their tangents, which registers have no room for.
    Asked& asked = *reinterpret_cast<Asked*>(at + 4);
    const Ends ends{{ends0, ends1, ends2, ends3}};
    const bool has_dq = dqs != 0, has_dk = dks != 0, has_dv = dvs != 0;
    const bool moves = has_dq || has_dk;
    each_tile(batch, heads, tiles, [&](unsigned sample, unsigned head, int tile) {
        const Stretch of = query_tile(tile, MMA_QUERIES, queries, keys, ends);
        const Head asks{unsigned(queries), unsigned(heads), unsigned(width), sample, head};
        const Head told{unsigned(keys), unsigned(heads), unsigned(width), sample, head};
        // Fetches keys, or values, and their tangents.
        auto fetch = [&](Told* to, const T* rows, bool wanted, const T* moved, bool moving,
                         int k0) {
            const int count = min(M, of.seen - k0);
            if (wanted && count > 0) to[0].fetch(rows, told, k0, count);
            if (moving && count > 0) to[1].fetch(moved, told, k0, count);
            copy_commit();
        };
        WarpPart<D> own;
        asked.fetch(q, asks, of.first, of.end - of.first);
        copy_commit();
        copy_wait<0>();
        __syncthreads();
        own.take(asked);
        __syncthreads();
        if (has_dq) asked.fetch(dq, asks, of.first, of.end - of.first);
        copy_commit();
        float log[2], mean[2] = {};
#pragma unroll
        for (int r = 0; r < 2; ++r) log[r] = stat(lse, asks, min(lane_row(of, r), of.end - 1));
        // Weights p and tangents ds of the scores with the keys from k0 on.
        auto look = [&](WarpScores<M>& p, WarpScores<M>& ds, const Told* keys, int k0) {
            p.zero();
            ds.zero();
            p.template add<D>(own.at, keys[0]);
            if (has_dq) ds.add(asked, keys[0]);
            if (has_dk) ds.template add<D>(own.at, keys[1]);
#pragma unroll
            for (int n = 0; n < M / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const bool seen = k0 + WarpScores<M>::col(n, i) < of.seen;
                    p.at[n][i] = seen ? exp_of(fmaf(scale, p.at[n][i], -log[i / 2])) : 0.0f;
                    ds.at[n][i] = seen ? scale * ds.at[n][i] : 0.0f;
                }
            }
        };
        WarpScores<M> p, ds;
        if (moves) {
            fetch(at, k, true, dk, has_dk, 0);
            for (int k0 = 0, stage = 0; k0 < of.seen; k0 += M, stage ^= 2) {
                copy_wait<0>();
                __syncthreads();
                fetch(at + (stage ^ 2), k, true, dk, has_dk, k0 + M);
                look(p, ds, at + stage, k0);
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    float part = 0.0f;
#pragma unroll
                    for (int n = 0; n < M / 8; ++n) {
                        part = fmaf(p.at[n][2 * r], ds.at[n][2 * r], part);
                        part = fmaf(p.at[n][2 * r + 1], ds.at[n][2 * r + 1], part);
                    }
                    mean[r] += quad_sum(part);
                }
            }
            copy_wait<0>();
            __syncthreads();
        }
        WarpRows<D> sum = {};
        fetch(at, k, true, dk, has_dk, 0);
        for (int k0 = 0; k0 < of.seen; k0 += M) {
            fetch(at + 2, v, moves, dv, has_dv, k0);
            copy_wait<1>();
            __syncthreads();
            look(p, ds, at, k0);
            copy_wait<0>();
            __syncthreads();
            fetch(at, k, true, dk, has_dk, k0 + M);
            if (has_dv) sum.template add<M, true>(p, at[3]);
            if (moves) {
#pragma unroll
                for (int n = 0; n < M / 8; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const bool seen = k0 + WarpScores<M>::col(n, i) < of.seen;
                        const float by = p.at[n][i] * (ds.at[n][i] - mean[i / 2]);
                        ds.at[n][i] = seen ? by : 0.0f;
                    }
                }
                sum.template add<M, true>(ds, at[2]);
            }
            __syncthreads();
        }
        copy_wait<0>();
        put_rows(sum, dy, asks, of);
    });
}

// attention_queries_mma_vjp: attention_queries_vjp on the tensor cores.
//   for    T: bf16; D: 32, 64, 128
//   floor  bytes = (3*queries + 2*keys)*batch*heads*width*s + 8*batch*queries*heads;
//          flops = batch*heads*work*64*(64 - D/128*32)*8*D
//   plan   a block of 4 warps for 64 queries of a head, 64 keys (32 for D = 128) at a time, the
//          next ones on their way by cp.async; no bank conflicts
//   code   tensor cores, 16-byte loads
//   slack  3 for tiles <= 1 and width/8*8 >= width; 30 beyond (every tile of queries reads its
//          keys, odd widths come as single elements)
//   bits   fixed order of keys: repeatable, and the same alone and in a batch
template <class T, int D>
__global__ void __launch_bounds__(128, 2) attention_queries_mma_vjp(
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
    constexpr int M = AT_ONCE<D>;
    using Told = HeadTile<M, D>;
    __shared__ uint4 space[4 * sizeof(Told) / sizeof(uint4)];
    // Keys and values of this step, then those of the next.
    Told* at = reinterpret_cast<Told*>(space);
    const Ends ends{{ends0, ends1, ends2, ends3}};
    each_tile(batch, heads, tiles, [&](unsigned sample, unsigned head, int tile) {
        const Stretch of = query_tile(tile, MMA_QUERIES, queries, keys, ends);
        const Head asks{unsigned(queries), unsigned(heads), unsigned(width), sample, head};
        const Head told{unsigned(keys), unsigned(heads), unsigned(width), sample, head};
        auto fetch = [&](int k0, int stage) {
            if (k0 < of.seen) {
                at[stage].fetch(k, told, k0, min(M, of.seen - k0));
                at[stage + 1].fetch(v, told, k0, min(M, of.seen - k0));
            }
            copy_commit();
        };
        WarpPart<D> own, back;
        HeadTile<MMA_QUERIES, D>& all = *reinterpret_cast<HeadTile<MMA_QUERIES, D>*>(space);
        auto take = [&](WarpPart<D>& to, const T* from) {
            all.fetch(from, asks, of.first, of.end - of.first);
            copy_commit();
            copy_wait<0>();
            __syncthreads();
            to.take(all);
            __syncthreads();
        };
        take(own, q);
        take(back, gy);
        fetch(0, 0);
        float log[2], centre[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int row = min(lane_row(of, r), of.end - 1);
            log[r] = stat(lse, asks, row);
            centre[r] = stat(mean, asks, row);
        }
        WarpRows<D> sum = {};
        for (int k0 = 0, stage = 0; k0 < of.seen; k0 += M, stage ^= 2) {
            copy_wait<0>();
            __syncthreads();
            fetch(k0 + M, stage ^ 2);
            WarpScores<M> p, gp;
            p.template multiply<D>(own.at, at[stage]);
            gp.template multiply<D>(back.at, at[stage + 1]);
#pragma unroll
            for (int n = 0; n < M / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float weight = scale * exp_of(fmaf(scale, p.at[n][i], -log[i / 2]));
                    const bool seen = k0 + WarpScores<M>::col(n, i) < of.seen;
                    p.at[n][i] = seen ? weight * (gp.at[n][i] - centre[i / 2]) : 0.0f;
                }
            }
            sum.template add<M, true>(p, at[stage]);
        }
        copy_wait<0>();
        put_rows(sum, gq, asks, of);
    });
}

// attention_keys_mma_vjp: attention_keys_vjp on the tensor cores.
//   for    T: bf16; D: 32, 64, 128
//   floor  bytes = (2*queries + 4*keys)*batch*heads*width*s + 8*batch*queries*heads;
//          flops = batch*heads*work*64*(32 - D/128*16)*12*D
//   plan   a block of 4 warps for 64 keys of a head of one scale, the queries that see them 32 at a
//          time (16 for D = 128), the next ones on their way by cp.async; keys and values stay in
//          shared memory; no bank conflicts
//   code   tensor cores, 16-byte loads
//   slack  3 for tiles <= 1 and width/8*8 >= width; 30 beyond (every tile of keys reads its
//          queries, odd widths come as single elements)
//   bits   fixed order of queries: repeatable, and the same alone and in a batch
template <class T, int D>
__global__ void __launch_bounds__(128, 2) attention_keys_mma_vjp(
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
    constexpr int M = AT_ONCE_BACK<D>;
    using Own = HeadTile<MMA_QUERIES, D>;
    using Asking = HeadTile<M, D>;
    __shared__ uint4 space[(2 * sizeof(Own) + 4 * sizeof(Asking)) / sizeof(uint4)];
    Own* own = reinterpret_cast<Own*>(space);
    // Queries and gradients of this step, then those of the next.
    Asking* at = reinterpret_cast<Asking*>(own + 2);
    const Ends ends{{ends0, ends1, ends2, ends3}};
    each_tile(batch, heads, tiles, [&](unsigned sample, unsigned head, int tile) {
        const Stretch of = key_tile(tile, MMA_QUERIES, queries, keys, ends);
        const Head asks{unsigned(queries), unsigned(heads), unsigned(width), sample, head};
        const Head told{unsigned(keys), unsigned(heads), unsigned(width), sample, head};
        auto fetch = [&](int q0, int stage) {
            if (q0 < queries) {
                at[stage].fetch(q, asks, q0, min(M, queries - q0));
                at[stage + 1].fetch(gy, asks, q0, min(M, queries - q0));
            }
            copy_commit();
        };
        own[0].fetch(k, told, of.first, of.end - of.first);
        own[1].fetch(v, told, of.first, of.end - of.first);
        fetch(of.from, 0);
        WarpRows<D> by_k = {}, by_v = {};
        for (int q0 = of.from, stage = 0; q0 < queries; q0 += M, stage ^= 2) {
            copy_wait<0>();
            __syncthreads();
            fetch(q0 + M, stage ^ 2);
            WarpScores<M> p, gp;
            p.zero();
            gp.zero();
            p.add(own[0], at[stage]);
            gp.add(own[1], at[stage + 1]);
            // A lane has a query's statistics; those of its columns come from other lanes.
            const int lane = threadIdx.x % WARP;
            const bool has = lane < M && q0 + lane < queries;
            const float logs = has ? stat(lse, asks, q0 + lane) : 0.0f;
            const float centres = has ? stat(mean, asks, q0 + lane) : 0.0f;
#pragma unroll
            for (int n = 0; n < M / 8; ++n) {
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const int column = WarpScores<M>::col(n, j);
                    const float log = __shfl_sync(0xffffffffu, logs, column);
                    const float centre = __shfl_sync(0xffffffffu, centres, column);
                    const bool live = q0 + column < queries;
#pragma unroll
                    for (int i = j; i < 4; i += 2) {
                        const float weight = live ? exp_of(fmaf(scale, p.at[n][i], -log)) : 0.0f;
                        p.at[n][i] = weight;
                        gp.at[n][i] = live ? scale * weight * (gp.at[n][i] - centre) : 0.0f;
                    }
                }
            }
            by_v.template add<M, true>(p, at[stage + 1]);
            by_k.template add<M, true>(gp, at[stage]);
        }
        copy_wait<0>();
        put_rows(by_k, gk, told, of);
        put_rows(by_v, gv, told, of);
    });
}
