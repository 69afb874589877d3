// Attention of heads wider than 128: products, with scores and weights in memory
// (src/ops/attention/wide.rs).
//
// Where a tile of rows and its sums leave a multiprocessor no room, each score would be computed
// again for every part of the width; as products, all are computed once. Scores and weights are
// [batch, heads, queries, pitch]. A launch is for queries first .. end, which see the same keys: up
// to `seen`. Weights that the tensor cores multiply are two bf16, 16 digits with their sign
// (lib/heads_mma.cuh), so that sums are as good as float's: a plane of upper digits, then one of
// lower ones.
#include "lib/block.cuh"
#include "lib/heads_mma.cuh"
#include "lib/math.cuh"
#include "lib/order.cuh"
#include "lib/reduce.cuh"

// A source of tiles: lines of `run` neighbours, each `pitch` after the one before.
template <class Tile, class T>
struct PitchedSource {
    const T* at;
    unsigned lines, run, pitch;
    bool packets;
    unsigned line0, run0;

    __device__ __forceinline__ PitchedSource(const T* at, unsigned lines, unsigned run,
                                             unsigned pitch, bool packets, unsigned side)
        : at(at), lines(lines), run(run), pitch(pitch), packets(packets),
          line0(Tile::IS_ALONG ? side : 0), run0(Tile::IS_ALONG ? 0 : side) {}

    __device__ __forceinline__ unsigned spot(int i, bool& live) const {
        return single(threadIdx.x / Tile::PACKETS + i * Tile::GAP,
                      threadIdx.x % Tile::PACKETS * Tile::WIDTH, live);
    }

    __device__ __forceinline__ unsigned single(unsigned line, unsigned r, bool& live) const {
        line += line0, r += run0;
        live = line < lines && r < run;
        return line * pitch + r;
    }

    __device__ __forceinline__ void next() { (Tile::IS_ALONG ? run0 : line0) += Tile::INNER; }
};

// `count` rows of a head from row `first` on.
template <class Tile, class T>
__device__ __forceinline__ PitchedSource<Tile, T> rows_of(const T* x, const Head& h,
                                                          unsigned first, unsigned count,
                                                          unsigned side) {
    return {x + h.at(first), count, h.width, h.heads * h.width,
            h.width % width<T> == 0 && aligned(x), side};
}

// Where a tile's rows go, each `pitch` after the one before.
template <class T>
struct PitchedRows {
    T* line;
    unsigned pitch;
    bool packets;

    template <int N>
    struct Beside {};

    __device__ __forceinline__ bool fours() const { return packets; }

    template <int N>
    __device__ __forceinline__ Beside<N> read(unsigned, unsigned) const {
        return {};
    }

    template <int N>
    __device__ __forceinline__ void write(unsigned row, unsigned col, const Floats<N>& v,
                                          Beside<N>) const {
        store(line + row * pitch + col, v);
    }
};

// Extents of all, and what a launch is for: rows first .. end of the result, and from .. to of what
// its sums go over, or of the other side's rows.
struct Extents {
    unsigned batch, queries, keys, heads, width, pitch, first, end, from, to;

    __device__ __forceinline__ Head asks(unsigned batch) const {
        return {queries, heads, width, batch / heads, batch % heads};
    }
    __device__ __forceinline__ Head told(unsigned batch) const {
        return {keys, heads, width, batch / heads, batch % heads};
    }
};

// y = a b^T, or a b^T + c d^T where there are two pairs.
template <class Block, class T>
__device__ __forceinline__ void scores(void* shared, float* y, const T* a, const T* b, const T* c,
                                       const T* d, const Extents& e, int pairs) {
    const unsigned rows = e.end - e.first;
    const Sizes sizes(e.batch * e.heads, rows, e.to, e.width, 1);
    each_job<Block>(sizes, [&](const Job& job, unsigned, unsigned steps) {
        Block block;
#pragma unroll 1
        for (int i = 0; i < pairs; ++i) {
            auto left = rows_of<typename Block::A>(i == 0 ? a : c, e.asks(job.batch), e.first,
                                                   rows, job.row);
            auto right = rows_of<typename Block::B>(i == 0 ? b : d, e.told(job.batch), 0, e.to,
                                                    job.col);
            block.add(static_cast<T*>(shared), left, right, steps);
        }
        float* line = y + (job.batch * e.queries + e.first) * e.pitch;
        pour(block, shared, make_uint2(job.row, job.col), make_uint2(rows, e.to),
             PitchedRows<float>{line, e.pitch, true});
    });
}

// y = w x, w in so many planes, or w x + v z where there are two pairs. Rows of y are queries
// and inner ones keys; the other way round where weights are TURNED.
template <class Block, bool TURNED, int PLANES, class T>
__device__ __forceinline__ void sums(void* shared, T* y, const T* w, const T* x, const T* v,
                                     const T* z, const Extents& e, int pairs) {
    const unsigned rows = e.end - e.first, inner = e.to - e.from;
    const unsigned line = TURNED ? e.from : e.first, col = TURNED ? e.first : e.from;
    const unsigned plane = e.batch * e.heads * e.queries * e.pitch;
    const Sizes sizes(e.batch * e.heads, rows, e.width, inner, 1);
    each_job<Block>(sizes, [&](const Job& job, unsigned, unsigned steps) {
        const Head asks = e.asks(job.batch), told = e.told(job.batch);
        const Head &own = TURNED ? told : asks, &other = TURNED ? asks : told;
        Block block;
        // Lower digits first: what is small is added before it could be lost.
#pragma unroll 1
        for (int i = 0; i < pairs * PLANES; ++i) {
            const T* from = (i < PLANES ? w : v) + (PLANES - 1 - i % PLANES) * plane +
                            (job.batch * e.queries + line) * e.pitch + col;
            PitchedSource<typename Block::A, T> left(from, TURNED ? inner : rows,
                                                     TURNED ? rows : inner, e.pitch,
                                                     col % width<T> == 0, job.row);
            auto right = rows_of<typename Block::B>(i < PLANES ? x : z, other, e.from, inner,
                                                    job.col);
            block.add(static_cast<T*>(shared), left, right, steps);
        }
        const bool packets = e.width % 4 == 0 && aligned(y);
        pour(block, shared, make_uint2(job.row, job.col), make_uint2(rows, e.width),
             PitchedRows<T>{y + own.at(e.first), own.heads * own.width, packets});
    });
}

// attention_scores_mma_fwd: y = a b^T of every head, or a b^T + c d^T, as they are.
//   for    T: bf16
//   floor  bytes = batch*heads*(pairs*width*s*(end - first + seen)
//            + (end - first)*ceil(seen, 8)*32);
//          flops = 2*pairs*batch*heads*ceil(end - first, 64)*64*ceil(seen, 64)*64
//            *ceil(width, 64)*64
//   plan   the blocks of matmul_mma_fwd with tiles of 64 x 64, rows of heads in runs; no bank
//          conflicts
//   code   tensor cores, 16-byte loads
//   slack  3 for max(end - first, seen) <= 64; 300 beyond (an operand is read for every tile
//          across it)
//   bits   fixed order of the width: repeatable, and the same alone and in a batch
template <class T>
__global__ void __launch_bounds__(128, 2) attention_scores_mma_fwd(
    float*   __restrict__ y,   // [batch, heads, queries, pitch]
    const T* __restrict__ a,   // [batch, queries, heads, width]
    const T* __restrict__ b,   // [batch, keys, heads, width]
    const T* __restrict__ c,   // [batch, queries, heads, width]
    const T* __restrict__ d,   // [batch, keys, heads, width]
    int batch, int queries, int keys, int heads, int width, int pitch, int first, int end,
    int seen, int pairs) {
    await_previous();
    using Block = MmaBlock<64, 64, false, true>;
    __shared__ uint4 shared[Block::SHARED / sizeof(uint4)];
    const Extents e = {unsigned(batch), unsigned(queries), unsigned(keys), unsigned(heads),
                       unsigned(width), unsigned(pitch), unsigned(first), unsigned(end), 0,
                       unsigned(seen)};
    scores<Block>(shared, y, a, b, c, d, e, pairs);
}

// attention_scores_fma_fwd: attention_scores_mma_fwd in float.
//   for    T: f32
//   floor  bytes = batch*heads*(pairs*width*s*(end - first + seen)
//            + (end - first)*ceil(seen, 8)*32);
//          flops = 2*pairs*batch*heads*ceil(end - first, 64)*64*ceil(seen, 64)*64
//            *ceil(width, 16)*16
//   plan   the blocks of matmul_fma_fwd with tiles of 64 x 64, rows of heads in runs; no bank
//          conflicts
//   code   16-byte loads
//   slack  3 for max(end - first, seen) <= 64; 300 beyond (an operand is read for every tile
//          across it)
//   bits   fixed order of the width: repeatable, and the same alone and in a batch
template <class T>
__global__ void __launch_bounds__(256, 2) attention_scores_fma_fwd(
    float*   __restrict__ y,   // [batch, heads, queries, pitch]
    const T* __restrict__ a,   // [batch, queries, heads, width]
    const T* __restrict__ b,   // [batch, keys, heads, width]
    const T* __restrict__ c,   // [batch, queries, heads, width]
    const T* __restrict__ d,   // [batch, keys, heads, width]
    int batch, int queries, int keys, int heads, int width, int pitch, int first, int end,
    int seen, int pairs) {
    await_previous();
    using Block = FmaBlock<64, false, true>;
    __shared__ uint4 shared[Block::SHARED / sizeof(uint4)];
    const Extents e = {unsigned(batch), unsigned(queries), unsigned(keys), unsigned(heads),
                       unsigned(width), unsigned(pitch), unsigned(first), unsigned(end), 0,
                       unsigned(seen)};
    scores<Block>(shared, y, a, b, c, d, e, pairs);
}

// attention_sums_mma_fwd: y = w x of every head, or w x + v z, w and v in two planes. Rows first ..
// end of y are queries and x has keys from .. to; the other way round where TA.
//   for    T: bf16; TA: false, true
//   floor  bytes = batch*heads*(width*s*(end - first + pairs*(to - from))
//            + 4*pairs*(end - first)*(to - from));
//          flops = 4*pairs*batch*heads*ceil(end - first, 64)*64*ceil(width, 64)*64
//            *ceil(to - from, 64)*64
//   plan   the blocks of matmul_mma_fwd with tiles of 64 x 64, rows of heads in runs, a pass for
//          each plane; no bank conflicts
//   code   tensor cores, 16-byte loads
//   slack  12 for max(end - first, to - from) <= 64 and width <= 256; 300 beyond (an operand is
//          read for every tile across)
//   bits   fixed order of the inner rows: repeatable, and the same alone and in a batch
template <class T, bool TA>
__global__ void __launch_bounds__(128, 2) attention_sums_mma_fwd(
    T*       __restrict__ y,   // [batch, rows, heads, width]
    const T* __restrict__ w,   // [2, batch, heads, queries, pitch]
    const T* __restrict__ x,   // [batch, inner, heads, width]
    const T* __restrict__ v,   // [2, batch, heads, queries, pitch]
    const T* __restrict__ z,   // [batch, inner, heads, width]
    int batch, int queries, int rows, int inner, int heads, int width, int pitch, int first,
    int end, int from, int to, int pairs) {
    await_previous();
    using Block = MmaBlock<64, 64, TA, false>;
    __shared__ uint4 shared[Block::SHARED / sizeof(uint4)];
    const Extents e = {unsigned(batch), unsigned(queries), unsigned(TA ? rows : inner),
                       unsigned(heads), unsigned(width), unsigned(pitch), unsigned(first),
                       unsigned(end), unsigned(from), unsigned(to)};
    sums<Block, TA, 2>(shared, y, w, x, v, z, e, pairs);
}

// attention_sums_fma_fwd: attention_sums_mma_fwd in float, weights as they are.
//   for    T: f32; TA: false, true
//   floor  bytes = batch*heads*(width*s*(end - first + pairs*(to - from))
//            + 4*pairs*(end - first)*(to - from));
//          flops = 2*pairs*batch*heads*ceil(end - first, 64)*64*ceil(width, 64)*64
//            *ceil(to - from, 16)*16
//   plan   the blocks of matmul_fma_fwd with tiles of 64 x 64, rows of heads in runs; no bank
//          conflicts
//   code   16-byte loads
//   slack  12 for max(end - first, to - from) <= 64 and width <= 256; 300 beyond (an operand is
//          read for every tile across)
//   bits   fixed order of the inner rows: repeatable, and the same alone and in a batch
template <class T, bool TA>
__global__ void __launch_bounds__(256, 2) attention_sums_fma_fwd(
    T*       __restrict__ y,   // [batch, rows, heads, width]
    const T* __restrict__ w,   // [batch, heads, queries, pitch]
    const T* __restrict__ x,   // [batch, inner, heads, width]
    const T* __restrict__ v,   // [batch, heads, queries, pitch]
    const T* __restrict__ z,   // [batch, inner, heads, width]
    int batch, int queries, int rows, int inner, int heads, int width, int pitch, int first,
    int end, int from, int to, int pairs) {
    await_previous();
    using Block = FmaBlock<64, TA, false>;
    __shared__ uint4 shared[Block::SHARED / sizeof(uint4)];
    const Extents e = {unsigned(batch), unsigned(queries), unsigned(TA ? rows : inner),
                       unsigned(heads), unsigned(width), unsigned(pitch), unsigned(first),
                       unsigned(end), unsigned(from), unsigned(to)};
    sums<Block, TA, 1>(shared, y, w, x, v, z, e, pairs);
}

// Calls f(place of its statistics, place of its scores) for queries first .. end of every head, a
// warp each.
template <class F>
__device__ __forceinline__ void each_query(int batch, int heads, int queries, int pitch, int first,
                                           int end, F f) {
    const unsigned rows = end - first, all = batch * heads * rows;
    const unsigned warps = gridDim.x * (blockDim.x / WARP);
    for (unsigned r = (blockIdx.x * blockDim.x + threadIdx.x) / WARP; r < all; r += warps) {
        const unsigned query = r % rows + first, job = r / rows;
        f((job / heads * queries + query) * heads + job % heads, (job * queries + query) * pitch);
    }
}

// Calls f(key, score, tangent of the score) for the keys that a query sees, the lanes of its warp
// four neighbours at a time.
template <class F>
__device__ __forceinline__ void each_score(const float* s, const float* ds, int seen, F f) {
#pragma unroll 2
    for (int c = threadIdx.x % WARP * 4; c < seen; c += WARP * 4) {
        const Floats<4> x = load<4>(s + c), dx = load<4>(ds + c);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (c + i < seen) f(x.at[i], dx.at[i]);
        }
    }
}

__device__ __forceinline__ void put_weights(float* w, unsigned, const Floats<4>& x) {
    store(w, x);
}

__device__ __forceinline__ void put_weights(bf16* w, unsigned plane, const Floats<4>& x) {
    uint2 upper, lower;
    split<true>(x.at[0], x.at[1], upper.x, lower.x);
    split<true>(x.at[2], x.at[3], upper.y, lower.y);
    *reinterpret_cast<uint2*>(w) = upper;
    *reinterpret_cast<uint2*>(w + plane) = lower;
}

// Writes f(score, tangent of the score) for the keys that a query sees, and zeros up to a multiple
// of 16.
template <class T, class F>
__device__ __forceinline__ void put_row(T* w, unsigned plane, const float* s, const float* ds,
                                        int seen, F f) {
#pragma unroll 2
    for (int c = threadIdx.x % WARP * 4; c < (seen + 15) / 16 * 16; c += WARP * 4) {
        Floats<4> out = {};
        if (c < seen) {
            const Floats<4> x = load<4>(s + c), dx = load<4>(ds + c);
#pragma unroll
            for (int i = 0; i < 4; ++i) out.at[i] = c + i < seen ? f(x.at[i], dx.at[i]) : 0.0f;
        }
        put_weights(w + c, plane, out);
    }
}

// attention_weights_fwd: w = softmax(scale x) of a query's scores x, and the log-sum-exp.
//   for    T: f32, bf16
//   floor  bytes = batch*heads*(end - first)*(32*ceil(seen, 8) + 64*ceil(seen, 16) + 4);
//          flops = batch*heads*(end - first)*(46*seen + 160)
//   plan   a warp a query: its row is read for the largest, for the sum and for the weights
//   code   16-byte loads
//   slack  3 (the row is read three times, from a cache)
//   bits   fixed shuffle trees: repeatable, and the same alone and in a batch
template <class T>
__global__ void __launch_bounds__(256) attention_weights_fwd(
    T*           __restrict__ w,     // [weights]
    float*       __restrict__ lse,   // [batch, queries, heads]
    const float* __restrict__ x,     // [batch, heads, queries, pitch]
    int weights, int batch, int queries, int heads, int pitch, int first, int end, int seen,
    float scale) {
    await_previous();
    each_query(batch, heads, queries, pitch, first, end, [&](unsigned stat, unsigned at) {
        const float* row = x + at;
        float top = -infinite();
        each_score(row, row, seen, [&](float s, float) { top = fmaxf(top, scale * s); });
        top = warp_max(top);
        // Where all scores are -inf, the sum is 0 and all weights are NaN.
        const float shift = top == -infinite() ? 0.0f : top;
        float total = 0.0f;
        each_score(row, row, seen, [&](float s, float) { total += exp_of(scale * s - shift); });
        total = warp_sum(total);
        const float by = 1.0f / total;
        put_row(w + at, weights / 2, row, row, seen,
                [&](float s, float) { return exp_of(scale * s - shift) * by; });
        if (threadIdx.x % WARP == 0) lse[stat] = log_sum(top, total);
    });
}

// attention_weights_jvp: p = e^(scale x - lse) where `carried`, and where `moved` w = p (s' - <s'>)
// with s' = scale dx and <> the mean under p.
//   for    T: f32, bf16
//   floor  bytes = batch*heads*(end - first)*(32*(1 + moved)*ceil(seen, 8)
//            + 64*(moved + carried)*ceil(seen, 16) + 4);
//          flops = batch*heads*(end - first)*(moved + carried)*23*seen
//   plan   a warp a query: its rows are read for <s'>, and for either weights
//   code   16-byte loads
//   slack  5 (rows are read twice, from a cache)
//   bits   fixed shuffle trees: repeatable, and the same alone and in a batch
template <class T>
__global__ void __launch_bounds__(256) attention_weights_jvp(
    T*           __restrict__ p,     // [carried*weights]
    T*           __restrict__ w,     // [moved*weights]
    const float* __restrict__ x,     // [batch, heads, queries, pitch]
    const float* __restrict__ dx,    // [moved*batch*heads*queries*pitch]
    const float* __restrict__ lse,   // [batch, queries, heads]
    int weights, int batch, int queries, int heads, int pitch, int first, int end, int seen,
    int moved, int carried, float scale) {
    await_previous();
    each_query(batch, heads, queries, pitch, first, end, [&](unsigned stat, unsigned at) {
        const float* row = x + at;
        const float log = lse[stat];
        auto weight = [&](float s, float) { return exp_of(fmaf(scale, s, -log)); };
        if (carried) put_row(p + at, weights / 2, row, row, seen, weight);
        if (!moved) return;
        float mean = 0.0f;
        each_score(row, dx + at, seen, [&](float s, float ds) {
            mean = fmaf(weight(s, ds), scale * ds, mean);
        });
        mean = warp_sum(mean);
        put_row(w + at, weights / 2, row, dx + at, seen,
                [&](float s, float ds) { return weight(s, ds) * (scale * ds - mean); });
    });
}

// attention_weights_vjp: p = e^(scale x - lse) and w = scale p (gp - mean), gp being p's gradients.
//   for    T: f32, bf16
//   floor  bytes = batch*heads*(end - first)*(64*ceil(seen, 8) + 128*ceil(seen, 16) + 8);
//          flops = batch*heads*(end - first)*48*seen
//   plan   a warp a query
//   code   16-byte loads
//   slack  3 (scores are read for either weights)
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) attention_weights_vjp(
    T*           __restrict__ p,      // [weights]
    T*           __restrict__ w,      // [weights]
    const float* __restrict__ x,      // [batch, heads, queries, pitch]
    const float* __restrict__ gp,     // [batch, heads, queries, pitch]
    const float* __restrict__ lse,    // [batch, queries, heads]
    const float* __restrict__ mean,   // [batch, queries, heads]
    int weights, int batch, int queries, int heads, int pitch, int first, int end, int seen,
    float scale) {
    await_previous();
    each_query(batch, heads, queries, pitch, first, end, [&](unsigned stat, unsigned at) {
        const float log = lse[stat], centre = mean[stat];
        auto weight = [&](float s, float) { return exp_of(fmaf(scale, s, -log)); };
        put_row(p + at, weights / 2, x + at, x + at, seen, weight);
        put_row(w + at, weights / 2, x + at, gp + at, seen, [&](float s, float g) {
            return scale * weight(s, g) * (g - centre);
        });
    });
}
