// Matrix products, plain and with a linear layer's bias, activation, gate and residual.
//
// y[m, n] = op(a) op(b) for each of `batch` pairs: a is [m, k], or [k, m] turned over (TA); b is
// [k, n], or [n, k] turned over (TB), as a layer's weights are. Tiles go through shared memory; few
// rows stream the other operand past them. src/ops/gemm says which shape takes which way, and
// gemm_wgmma.cu has another for Hopper.
#include "lib/block.cuh"
#include "lib/order.cuh"
#include "lib/thin.cuh"

// All tiles of a launch, a block one at a time.
template <class Block, class T>
__device__ __forceinline__ void tiles(void* shared, const T* a, const T* b, float* part,
                                      const Finish<T>& finish, const Sizes& s) {
    constexpr bool TA = Block::TURNED_A, TB = Block::TURNED_B;
    each_job<Block>(s, [&](const Job& job, unsigned first, unsigned steps) {
        Block block;
        add_folds(block, first, steps, s.folds, [&](Block& to, unsigned from, unsigned count) {
            const unsigned k = from * Block::DEPTH;
            MatrixSource<typename Block::A, T> left(a + job.batch * s.m * s.k, TA ? s.k : s.m,
                                                    TA ? s.m : s.k, job.row, k);
            MatrixSource<typename Block::B, T> right(b + job.batch * s.k * s.n, TB ? s.n : s.k,
                                                     TB ? s.k : s.n, job.col, k);
            to.add(static_cast<T*>(shared), left, right, count);
        });
        finish_job(block, shared, job, s, finish, part);
    });
}

// matmul_mma_fwd: y = residual + gate * act(op(a) op(b) + bias), kept = the argument of act; with
// splits > 1 sums over a part of k each go to `part`, for matmul_join_fwd; with folds > 1 a tile of
// 64 x 64 joins so many parts itself, with the same bits. With piece > 0 all rows of so many
// columns of y lie before those of the next ones.
//   for    T: bf16; S: 64, 128; TA: false, true; TB: false, true
//   floor  bytes = batch*(m*k + k*n)*s + (biased + gates)*n*max(2 - splits, 0)*s
//            + max(2 - splits, 0)*batch*m*n*(1 + keep + added)*s
//            + min(splits - 1, 1)*splits*batch*m*n*4;
//          flops = batch*ceil(m, S)*S*ceil(n, S)*S*(2*ceil(k, 4096/S)*4096/S
//            + min(folds - 1, 1)*(128/S - 1)*ceil(ceil(k, 64), ceil(ceil(k, 64), folds)))
//            + max(2 - splits, 0)*batch*m*n*(biased + min(gates, 1) + added
//            + 34*min(act, 1) - 10*max(act - 1, 0))
//   plan   blocks of 4 warps, a tile of S x S sums each, a quarter a warp by mma.sync m16n8k16. k
//          goes by in steps of 32 (S = 128) or 64 through three stages of cp.async; packets are
//          permuted: no bank conflicts. Lines that do not begin at multiples of 16 bytes come as
//          single elements.
//   code   tensor cores, 16-byte loads
//   slack  17 for piece/16*16 < piece and max(m, n) <= 2*S (pieces begin inside sectors);
//          2.1 for max(m, n) <= S (lines may begin inside sectors); 4.2 for max(m, n) <= 2*S;
//          300 beyond (an operand is read for every tile across it)
//   bits   fixed order of k, no atomics: repeatable
template <class T, int S, bool TA, bool TB>
__global__ void __launch_bounds__(128, 2) matmul_mma_fwd(
    T*       __restrict__ y,          // [batch*m*n]
    T*       __restrict__ kept,       // [keep*batch*m*n]
    float*   __restrict__ part,       // [min(splits - 1, 1)*splits*batch*m*n]
    const T* __restrict__ a,          // [batch*m*k]
    const T* __restrict__ b,          // [batch*k*n]
    const T* __restrict__ bias,       // [biased*n]
    const T* __restrict__ residual,   // [added*batch*m*n]
    const T* __restrict__ gate,       // [gates*n]
    int batch, int m, int n, int k, int splits, int folds, int keep, int biased, int added,
    int gates, int act, int piece) {
    using Block = MmaBlock<S, S, TA, TB>;
    __shared__ uint4 shared[Block::SHARED / sizeof(uint4)];
    const Sizes sizes(batch, m, n, k, splits, folds);
    ask_for_right<Block>(b, sizes);
    await_previous();
    const Finish<T> finish = finish_of(y, kept, bias, residual, gate, batch * m, n, keep, biased,
                                       added, gates, act, piece);
    tiles<Block, T>(shared, a, b, part, finish, sizes);
}

// matmul_fma_fwd: matmul_mma_fwd in float.
//   for    T: f32; S: 64, 128; TA: false, true; TB: false, true
//   floor  bytes = batch*(m*k + k*n)*s + (biased + gates)*n*max(2 - splits, 0)*s
//            + max(2 - splits, 0)*batch*m*n*(1 + keep + added)*s
//            + min(splits - 1, 1)*splits*batch*m*n*4;
//          flops = batch*ceil(m, S)*S*ceil(n, S)*S*(2*ceil(k, 16)*16
//            + min(folds - 1, 1)*(128/S - 1)*ceil(ceil(k, 16), ceil(ceil(k, 16), folds)))
//            + max(2 - splits, 0)*batch*m*n*(biased + min(gates, 1) + added
//            + 34*min(act, 1) - 10*max(act - 1, 0))
//   plan   blocks of 8 warps, a tile of S x S sums each, a thread's 8 x 8 (S = 128) or 4 x 4 in
//          registers. k goes by in steps of 16 through two stages; the next one's loads wait in
//          registers. Turned over or not, no bank conflicts.
//   code   16-byte loads
//   slack  17 for piece/16*16 < piece and max(m, n) <= 2*S (pieces begin inside sectors);
//          2.1 for max(m, n) <= S (lines may begin inside sectors); 4.2 for max(m, n) <= 2*S;
//          300 beyond (an operand is read for every tile across it)
//   bits   fixed order of k, no atomics: repeatable
template <class T, int S, bool TA, bool TB>
__global__ void __launch_bounds__(256, 2) matmul_fma_fwd(
    T*       __restrict__ y,          // [batch*m*n]
    T*       __restrict__ kept,       // [keep*batch*m*n]
    float*   __restrict__ part,       // [min(splits - 1, 1)*splits*batch*m*n]
    const T* __restrict__ a,          // [batch*m*k]
    const T* __restrict__ b,          // [batch*k*n]
    const T* __restrict__ bias,       // [biased*n]
    const T* __restrict__ residual,   // [added*batch*m*n]
    const T* __restrict__ gate,       // [gates*n]
    int batch, int m, int n, int k, int splits, int folds, int keep, int biased, int added,
    int gates, int act, int piece) {
    await_previous();
    using Block = FmaBlock<S, TA, TB>;
    __shared__ uint4 shared[Block::SHARED / sizeof(uint4)];
    const Sizes sizes(batch, m, n, k, splits, folds);
    const Finish<T> finish = finish_of(y, kept, bias, residual, gate, batch * m, n, keep, biased,
                                       added, gates, act, piece);
    tiles<Block, T>(shared, a, b, part, finish, sizes);
}

// matmul_join_fwd: y = residual + gate * act(sum of parts + bias), kept = the argument of act.
//   for    T: f32, bf16
//   floor  bytes = splits*rows*cols*4 + rows*cols*(1 + keep + added)*s + (biased + gates)*cols*s;
//          flops = rows*cols*(splits + biased + min(gates, 1) + added
//            + 34*min(act, 1) - 10*max(act - 1, 0))
//   plan   the grid strides over four neighbours at a time; single elements where rows or
//          addresses are odd
//   code   16-byte loads
//   slack  17 for piece/16*16 < piece (pieces begin inside sectors); 3 beyond (absent
//          parts of the epilogue are computed too, bias and gate are read by every row)
//   bits   parts are added in their order: repeatable
template <class T>
__global__ void __launch_bounds__(256) matmul_join_fwd(
    T*           __restrict__ y,          // [rows*cols]
    T*           __restrict__ kept,       // [keep*rows*cols]
    const float* __restrict__ part,       // [splits, rows, cols]
    const T*     __restrict__ bias,       // [biased*cols]
    const T*     __restrict__ residual,   // [added*rows*cols]
    const T*     __restrict__ gate,       // [gates*cols]
    int rows, int cols, int splits, int keep, int biased, int added, int gates, int act,
    int piece) {
    await_previous();
    const Finish<T> finish = finish_of(y, kept, bias, residual, gate, rows, cols, keep, biased,
                                       added, gates, act, piece);
    const unsigned size = static_cast<unsigned>(rows) * cols;
    auto each = [&](auto w) {
        constexpr int N = decltype(w)::value;
        for (unsigned i = (blockIdx.x * blockDim.x + threadIdx.x) * N; i < size;
             i += gridDim.x * blockDim.x * N) {
            Floats<N> sum = {};
            for (int s = 0; s < splits; ++s) {
                const Floats<N> x = load<N>(part + s * size + i);
#pragma unroll
                for (int j = 0; j < N; ++j) sum.at[j] += x.at[j];
            }
            finish(i / cols, i % cols, sum);
        }
    };
    if (finish.fours() && aligned(part)) {
        each(Width<4>());
    } else {
        each(Width<1>());
    }
}

// matmul_dot_fwd: few rows by columns that lie along k, as a layer's weights do.
//   for    T: f32; R: 1, 4, 8, 16
//   floor  bytes = (total + (groups - shared*(groups - 1))*cols)*k*s
//            + total*cols*(1 + keep + added)*s
//            + (biased + gates)*(cols + swapped*(rows - cols))*s;
//          flops = 2*groups*R*(4 - R/16*2)*ceil(cols, 4 - R/16*2)*k
//            + 256*groups*ceil(cols, (4 - R/16*2)*8/slices)*(R*(4 - R/16*2) - 1 + 4/R - 1/R)
//            + total*cols*(biased + min(gates, 1) + added
//            + 34*min(act, 1) - 10*max(act - 1, 0))
//   plan   a warp takes 4 columns (2 for 16 rows) and a slice of k, 16 bytes a lane at a time, for
//          all rows at once: every weight is read once. Then a shuffle tree over the lanes and the
//          slices of the block in their order; no bank conflicts
//   code   16-byte loads
//   slack  17 for piece/16*16 < piece and R*groups <= 16 (pieces begin inside sectors);
//          2.1 for R*groups <= 4; 3.1 for R*groups <= 8; 9.1 for R*groups <= 16; 300 beyond (few
//          is read by every warp, a shared `many` for every group)
//   bits   fixed shuffle tree, slices in order, no atomics: repeatable, and a row's do not depend
//          on the rows beside it
template <class T, int R>
__global__ void __launch_bounds__(256, R < 8 ? 3 : 2) matmul_dot_fwd(
    T*       __restrict__ y,          // [total*cols]
    T*       __restrict__ kept,       // [keep*total*cols]
    const T* __restrict__ few,        // [total*k]
    const T* __restrict__ many,       // [(groups - shared*(groups - 1))*cols*k]
    const T* __restrict__ bias,       // [biased*(cols + swapped*(rows - cols))]
    const T* __restrict__ residual,   // [added*total*cols]
    const T* __restrict__ gate,       // [gates*(cols + swapped*(rows - cols))]
    int groups, int rows, int total, int cols, int k, int slices, int shared, int swapped,
    int keep, int biased, int added, int gates, int act, int piece) {
    constexpr int C = R < 16 ? 4 : 2;
    __shared__ float hold[WARPS][WARP];
    const Thin<T> all(few, many, rows, total, cols, k, shared, swapped);
    const bool packets = all.packets();
    const unsigned warp = threadIdx.x / WARP;
    const unsigned slice = warp % slices, slots = WARPS / slices;
    const unsigned across = over(cols, C * slots), jobs = across * groups;
    if (blockIdx.x < jobs) {
        all.ask(blockIdx.x / across, blockIdx.x % across * C * slots, C * slots);
    }
    await_previous();
    const Finish<T> finish =
        finish_of(y, kept, bias, residual, gate, swapped ? groups * cols : total,
                  swapped ? rows : cols, keep, biased, added, gates, act, piece);
    for (unsigned job = blockIdx.x; job < jobs; job += gridDim.x) {
        const Thin<T> thin = all.group(job / across);
        const unsigned col = (job % across * slots + warp / slices) * C;
        thin_sums<R, C>(hold, thin, packets, col, slice, slices,
                        [&](unsigned i, unsigned j, float sum) {
                            thin.put(finish, job / across, i, j, sum);
                        });
    }
}

// matmul_dot_mma_fwd: matmul_dot_fwd on the tensor cores.
//   for    T: bf16; R: 8, 16, 32
//   floor  bytes = (total + (groups - shared*(groups - 1))*cols)*k*s
//            + total*cols*(1 + keep + added)*s
//            + (biased + gates)*(cols + swapped*(rows - cols))*s;
//          flops = 2*groups*ceil(R, 16)*16*ceil(cols, 8)*8*ceil(k, 32)*32
//            + 64*groups*ceil(cols, 64/slices)*R*(slices - 1)/slices
//            + total*cols*(biased + min(gates, 1) + added
//            + 34*min(act, 1) - 10*max(act - 1, 0))
//   plan   a warp takes 8 columns and a slice of k. A lane's 16 bytes are fragments of two mma
//          as they come, since the order of k is free: no shared memory, every weight read once.
//          Then the slices of the block in their order; no bank conflicts
//   code   tensor cores, 16-byte loads
//   slack  17 for piece/16*16 < piece and R*groups <= 32 (pieces begin inside sectors);
//          2.1 for R*groups <= 8; 3.1 for R*groups <= 16; 5.1 for R*groups <= 32; 300 beyond (few
//          is read by every warp, a shared `many` for every group)
//   bits   fixed order of k, slices in order, no atomics: repeatable, and a row's do not depend on
//          the rows beside it
template <class T, int R>
__global__ void __launch_bounds__(256, R < 32 ? 3 : 2) matmul_dot_mma_fwd(
    T*       __restrict__ y,          // [total*cols]
    T*       __restrict__ kept,       // [keep*total*cols]
    const T* __restrict__ few,        // [total*k]
    const T* __restrict__ many,       // [(groups - shared*(groups - 1))*cols*k]
    const T* __restrict__ bias,       // [biased*(cols + swapped*(rows - cols))]
    const T* __restrict__ residual,   // [added*total*cols]
    const T* __restrict__ gate,       // [gates*(cols + swapped*(rows - cols))]
    int groups, int rows, int total, int cols, int k, int slices, int shared, int swapped,
    int keep, int biased, int added, int gates, int act, int piece) {
    __shared__ float hold[WARPS][R / 4][WARP];
    const Thin<T> all(few, many, rows, total, cols, k, shared, swapped);
    const bool packets = all.packets();
    const unsigned warp = threadIdx.x / WARP;
    const unsigned slice = warp % slices, slots = WARPS / slices;
    const unsigned across = over(cols, 8 * slots), jobs = across * groups;
    if (blockIdx.x < jobs) {
        all.ask(blockIdx.x / across, blockIdx.x % across * 8 * slots, 8 * slots);
    }
    await_previous();
    const Finish<T> finish =
        finish_of(y, kept, bias, residual, gate, swapped ? groups * cols : total,
                  swapped ? rows : cols, keep, biased, added, gates, act, piece);
    for (unsigned job = blockIdx.x; job < jobs; job += gridDim.x) {
        const Thin<T> thin = all.group(job / across);
        const unsigned col = (job % across * slots + warp / slices) * 8;
        thin_sums<R>(hold, thin, packets, col, slice, slices,
                     [&](unsigned i, unsigned j, float sum) {
                         thin.put(finish, job / across, i, j, sum);
                     });
    }
}
