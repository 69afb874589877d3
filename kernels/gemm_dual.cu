// A layer and its tangent in one pass: the rows of x and those of dx meet the weights together, and
// the epilogue has both sums at hand (src/ops/gemm/dual.rs).
//
// Of every 64 rows of a block's tile 32 are of x, and the next 32 the same rows of dx.
#include "lib/block.cuh"
#include "lib/order.cuh"

constexpr unsigned PAIRS = 32;

// A source of tiles (lib/tile.cuh): rows of two matrices in turns.
template <class Tile, class T>
struct PairSource {
    const T* at;
    // From an element of the first to that of the second.
    long long gap;
    unsigned lines, run;
    bool packets;
    unsigned line0, run0 = 0;

    __device__ __forceinline__ PairSource(const T* x, const T* dx, unsigned lines, unsigned run,
                                          unsigned first)
        : at(x),
          gap((reinterpret_cast<long long>(dx) - reinterpret_cast<long long>(x)) /
              static_cast<long long>(sizeof(T))),
          lines(lines), run(run), packets(run % width<T> == 0 && aligned(x, dx)), line0(first) {}

    __device__ __forceinline__ long long spot(int i, bool& live) const {
        return single(threadIdx.x / Tile::PACKETS + i * Tile::GAP,
                      threadIdx.x % Tile::PACKETS * Tile::WIDTH, live);
    }

    __device__ __forceinline__ long long single(unsigned line, unsigned r, bool& live) const {
        const unsigned own = line0 + line / (2 * PAIRS) * PAIRS + line % PAIRS;
        r += run0;
        live = own < lines && r < run;
        return (line % (2 * PAIRS) < PAIRS ? 0 : gap) + own * run + r;
    }

    __device__ __forceinline__ void next() { run0 += Tile::INNER; }
};

// What becomes of the sums h (the bias not yet added) and dh:
//   y = residual + gate act(h),  dy = dresidual + dgate act(h) + gate act'(h) dh.
template <class T>
struct PairFinish {
    T *y, *dy;
    // The argument of the activation, for the backward pass; null as the others where absent.
    T* kept;
    const T *bias, *residual, *dresidual, *gate, *dgate;
    // Rows that share a row of the gate, rows and columns of y.
    unsigned each, rows, cols;
    int act;
    // As of Finish.
    unsigned piece;

    __device__ __forceinline__ bool fours() const {
        return cols % 4 == 0 && piece % 4 == 0 &&
               aligned(y, dy, kept, bias, residual, dresidual, gate, dgate);
    }

    template <int N>
    __device__ __forceinline__ void operator()(unsigned row, unsigned col, Floats<N> v,
                                               Floats<N> d) const {
        const unsigned at = row * cols + col;
        if (bias != nullptr) add(v, load<N>(bias + col));
        if (kept != nullptr) store(kept + at, v);
        if (act != ACT_NONE) {
#pragma unroll
            for (int i = 0; i < N; ++i) {
                const float h = v.at[i];
                d.at[i] *= act == ACT_GELU ? gelu_slope(h) : silu_slope(h);
                v.at[i] = act == ACT_GELU ? gelu(h) : silu(h);
            }
        }
        if (gate != nullptr) {
            const unsigned own = row / each * cols + col;
            const Floats<N> g = load<N>(gate + own);
            Floats<N> moved = {};
            if (dgate != nullptr) moved = load<N>(dgate + own);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                d.at[i] *= g.at[i];
                if (dgate != nullptr) d.at[i] = fmaf(moved.at[i], v.at[i], d.at[i]);
                v.at[i] *= g.at[i];
            }
        }
        if (residual != nullptr) add(v, load<N>(residual + at));
        if (dresidual != nullptr) add(d, load<N>(dresidual + at));
        const unsigned to =
            piece == 0 ? at : (col / piece * rows + row) * piece + col % piece;
        store(y + to, v);
        store(dy + to, d);
    }

    template <int N>
    static __device__ __forceinline__ void add(Floats<N>& to, const Floats<N>& x) {
#pragma unroll
        for (int i = 0; i < N; ++i) to.at[i] += x.at[i];
    }
};

// Gives both halves of a slab, whose first row and column are (row, col), to the epilogue.
template <int N, class Block, class T>
__device__ __forceinline__ void finish_pairs(const float* slab, unsigned row, unsigned col,
                                             const PairFinish<T>& finish) {
    using Out = typename Block::Out;
    constexpr unsigned ACROSS = Block::COLS / N;
    static_assert(Out::ROWS == 2 * PAIRS, "a slab holds rows and their tangents");
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < PAIRS * ACROSS; i += Block::THREADS) {
        const unsigned r = i / ACROSS, c = i % ACROSS * N;
        const float* own = slab + r * Out::STRIDE + c;
        const Floats<N> v = load<N>(own), d = load<N>(own + PAIRS * Out::STRIDE);
        // Nothing above may sink below, where a part of the warp would read the slab.
        asm volatile("" ::: "memory");
        if (row + r >= finish.rows || col + c >= finish.cols) continue;
        finish(row + r, col + c, v, d);
    }
}

// All tiles of a launch, a block one at a time.
template <class Block, class T>
__device__ __forceinline__ void pair_tiles(void* shared, const T* x, const T* dx, const T* w,
                                           unsigned k, const PairFinish<T>& finish) {
    float* slab = static_cast<float*>(shared);
    const bool fours = finish.fours();
    const Sizes sizes(1, over(finish.rows, PAIRS) * 2 * PAIRS, finish.cols, k, 1);
    each_job<Block>(sizes, [&](const Job& job, unsigned, unsigned steps) {
        PairSource<typename Block::A, T> left(x, dx, finish.rows, k, job.row / 2);
        MatrixSource<typename Block::B, T> right(w, finish.cols, k, job.col, 0);
        Block block;
        block.add(static_cast<T*>(shared), left, right, steps);
        for (int row = 0; row < Block::ROWS; row += Block::Out::ROWS) {
            block.put(slab, row);
            Block::meet();
            if (fours) {
                finish_pairs<4, Block>(slab, (job.row + row) / 2, job.col, finish);
            } else {
                finish_pairs<1, Block>(slab, (job.row + row) / 2, job.col, finish);
            }
            Block::meet();
        }
    });
}

// The parts of a launch's epilogue that are there.
template <class T>
__device__ __forceinline__ PairFinish<T> pair_finish_of(
    T* y, T* dy, T* kept, const T* bias, const T* residual, const T* dresidual, const T* gate,
    const T* dgate, int rows, int cols, int keep, int biased, int added, int dadded, int gates,
    int dgates, int act, int piece) {
    return {y,
            dy,
            keep ? kept : nullptr,
            biased ? bias : nullptr,
            added ? residual : nullptr,
            dadded ? dresidual : nullptr,
            gates ? gate : nullptr,
            dgates ? dgate : nullptr,
            gates ? static_cast<unsigned>(rows) / gates : 1,
            static_cast<unsigned>(rows),
            static_cast<unsigned>(cols),
            act,
            static_cast<unsigned>(piece)};
}

// linear_dual_mma_fwd: a layer, y = residual + gate act(x w^T + bias), and its tangent
// along dx and those of residual and gate; kept = the argument of act; piece as of matmul_mma_fwd.
//   for    T: bf16; S: 64, 128
//   floor  bytes = (2*rows + cols)*k*s + biased*cols*s + (gates + dgates)*cols*s
//            + rows*cols*s*(2 + keep + added + dadded);
//          flops = 2*ceil(2*rows, S)*S*ceil(cols, S)*S*ceil(k, 4096/S)*4096/S
//            + rows*cols*(biased + min(gates, 1) + added + dadded
//            + 34*min(act, 1) - 10*max(act - 1, 0))
//   plan   as matmul_mma_fwd of gemm.cu, S/2 rows of x and as many of dx to a tile, so that both
//          share one read of the weights; no bank conflicts
//   code   tensor cores, 16-byte loads
//   slack  17 for piece/16*16 < piece and max(2*rows, cols) <= 2*S (pieces begin inside
//          sectors); 2.6 for max(2*rows, cols) <= S (lines may begin inside sectors); 5.2 for
//          max(2*rows, cols) <= 2*S; 300 beyond (an operand is read for every tile across it)
//   bits   fixed order of k, no atomics: repeatable
template <class T, int S>
__global__ void __launch_bounds__(128, 2) linear_dual_mma_fwd(
    T*       __restrict__ y,           // [rows*cols]
    T*       __restrict__ dy,          // [rows*cols]
    T*       __restrict__ kept,        // [keep*rows*cols]
    const T* __restrict__ x,           // [rows*k]
    const T* __restrict__ dx,          // [rows*k]
    const T* __restrict__ w,           // [cols*k]
    const T* __restrict__ bias,        // [biased*cols]
    const T* __restrict__ residual,    // [added*rows*cols]
    const T* __restrict__ dresidual,   // [dadded*rows*cols]
    const T* __restrict__ gate,        // [gates*cols]
    const T* __restrict__ dgate,       // [dgates*cols]
    int rows, int cols, int k, int keep, int biased, int added, int dadded, int gates, int dgates,
    int act, int piece) {
    await_previous();
    using Block = MmaBlock<S, S, false, true>;
    __shared__ uint4 shared[Block::SHARED / sizeof(uint4)];
    const PairFinish<T> finish =
        pair_finish_of(y, dy, kept, bias, residual, dresidual, gate, dgate, rows, cols, keep,
                       biased, added, dadded, gates, dgates, act, piece);
    pair_tiles<Block>(shared, x, dx, w, k, finish);
}

// linear_dual_fma_fwd: linear_dual_mma_fwd in float.
//   for    T: f32; S: 64, 128
//   floor  bytes = (2*rows + cols)*k*s + biased*cols*s + (gates + dgates)*cols*s
//            + rows*cols*s*(2 + keep + added + dadded);
//          flops = 2*ceil(2*rows, S)*S*ceil(cols, S)*S*ceil(k, 16)*16
//            + rows*cols*(biased + min(gates, 1) + added + dadded
//            + 34*min(act, 1) - 10*max(act - 1, 0))
//   plan   as matmul_fma_fwd of gemm.cu, S/2 rows of x and as many of dx to a tile;
//          no bank conflicts
//   code   16-byte loads
//   slack  17 for piece/16*16 < piece and max(2*rows, cols) <= 2*S (pieces begin inside
//          sectors); 2.6 for max(2*rows, cols) <= S (lines may begin inside sectors); 5.2 for
//          max(2*rows, cols) <= 2*S; 300 beyond (an operand is read for every tile across it)
//   bits   fixed order of k, no atomics: repeatable
template <class T, int S>
__global__ void __launch_bounds__(256, S < 128 ? 2 : 1) linear_dual_fma_fwd(
    T*       __restrict__ y,           // [rows*cols]
    T*       __restrict__ dy,          // [rows*cols]
    T*       __restrict__ kept,        // [keep*rows*cols]
    const T* __restrict__ x,           // [rows*k]
    const T* __restrict__ dx,          // [rows*k]
    const T* __restrict__ w,           // [cols*k]
    const T* __restrict__ bias,        // [biased*cols]
    const T* __restrict__ residual,    // [added*rows*cols]
    const T* __restrict__ dresidual,   // [dadded*rows*cols]
    const T* __restrict__ gate,        // [gates*cols]
    const T* __restrict__ dgate,       // [dgates*cols]
    int rows, int cols, int k, int keep, int biased, int added, int dadded, int gates, int dgates,
    int act, int piece) {
    await_previous();
    using Block = FmaBlock<S, false, true>;
    __shared__ uint4 shared[Block::SHARED / sizeof(uint4)];
    const PairFinish<T> finish =
        pair_finish_of(y, dy, kept, bias, residual, dresidual, gate, dgate, rows, cols, keep,
                       biased, added, dadded, gates, dgates, act, piece);
    pair_tiles<Block>(shared, x, dx, w, k, finish);
}
