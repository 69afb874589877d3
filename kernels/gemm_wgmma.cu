// The matrix products of gemm.cu for Hopper: the copy engine brings operands, tensor cores multiply
// them where they land, and the warps that ask for either meet at gates only.
#include "lib/order.cuh"
#include "lib/wgmma.cuh"

// Stages of operands on their way.
constexpr int STAGES = 4;

// A block's shared memory.
template <class Block>
struct Space {
    bf16 tiles[STAGES][Block::STAGE];
    float slab[Block::Out::SIZE];
    // Open when a stage has come, and when all warps with sums are through with it.
    Gate full[STAGES], empty[STAGES];
};

// Asks for what the first job of this block reads of b, a layer's weights as a rule.
template <class Block, bool TB, class T>
__device__ __forceinline__ void ask_for_boxes(const TensorMap<T>& b, const Sizes& s) {
    first_job<Block>(s, [&](const Job& job, unsigned first, unsigned steps) {
        for (unsigned step = first; step < first + steps; ++step) {
            const int k = step * Block::DEPTH;
#pragma unroll
            for (int c = 0; c < Block::COLS; c += BOX) {
                const int line = job.col + c;
                ask_for_box(b, TB ? k : line, TB ? line : k, job.batch);
            }
        }
    });
}

// What one thread does: it asks for every step of every tile, as far ahead as there is room.
template <class Block, bool TA, bool TB, class T>
__device__ __forceinline__ void fetch_all(Space<Block>& space, const TensorMap<T>& a,
                                          const TensorMap<T>& b, const Sizes& s) {
    unsigned turn = 0;
    each_job<Block>(s, [&](const Job& job, unsigned first, unsigned steps) {
        for (unsigned step = first; step < first + steps; ++step, ++turn) {
            const unsigned stage = turn % STAGES;
            Gate& full = space.full[stage];
            space.empty[stage].pass(turn / STAGES % 2 ^ 1);
            full.announce(Block::STAGE * sizeof(bf16));
            bf16* to = space.tiles[stage];
            const int k = step * Block::DEPTH;
            auto box = [&](const TensorMap<T>& map, bool turned, int line) {
                copy_box(to, map, full, turned ? line : k, turned ? k : line, job.batch);
                to += BOX * Block::DEPTH;
            };
#pragma unroll
            for (int r = 0; r < Block::ROWS; r += BOX) box(a, TA, job.row + r);
#pragma unroll
            for (int c = 0; c < Block::COLS; c += BOX) box(b, !TB, job.col + c);
        }
    });
}

// What the warps with sums do.
template <class Block, class T>
__device__ __forceinline__ void multiply_all(Space<Block>& space, const Finish<T>& finish,
                                             float* part, const Sizes& s) {
    unsigned turn = 0;
    const bool tells = threadIdx.x % WARP == 0;
    each_job<Block>(s, [&](const Job& job, unsigned, unsigned steps) {
        const unsigned share = over(steps, s.folds);
        Block block;
        for (unsigned first = 0; first < steps; first += share) {
            const unsigned end = min(first + share, steps);
            for (unsigned step = first; step < end; ++step, ++turn) {
                const unsigned stage = turn % STAGES;
                space.full[stage].pass(turn / STAGES % 2);
                block.start(space.tiles[stage]);
                // The products of the step before are done: its stage may be filled again.
                wgmma_wait<1>();
                if (step > first && tells) space.empty[(turn - 1) % STAGES].arrive();
            }
            block.settle();
            if (tells) space.empty[(turn - 1) % STAGES].arrive();
            // Parts before this one wait in the slab, where their threads alone look.
            if (first > 0) block.add(space.slab);
            if (end < steps) {
                block.put(space.slab, 0);
                block.clear();
            }
        }
        finish_job(block, space.slab, job, s, finish, part);
    });
}

// matmul_wgmma_fwd: matmul_mma_fwd of gemm.cu by wgmma, where lines of operands begin at multiples
// of 16 bytes.
//   for    T: bf16; TA: false, true; TB: false, true
//   arch   sm_90a
//   shared 201792
//   floor  bytes = batch*(m*k + k*n)*s + (biased + gates)*n*max(2 - splits, 0)*s
//            + max(2 - splits, 0)*batch*m*n*(1 + keep + added)*s
//            + min(splits - 1, 1)*splits*batch*m*n*4;
//          flops = batch*ceil(m, 128)*128*ceil(n, 128)*128*(2*ceil(k, 64)*64
//            + ceil(ceil(k, 64), ceil(ceil(k, 64), folds)) - min(k, 1))
//            + max(2 - splits, 0)*batch*m*n*(biased + min(gates, 1) + added
//            + 34*min(act, 1) - 10*max(act - 1, 0))
//   plan   a block a multiprocessor, which goes from tile to tile of 128 x 128 sums. One thread has
//          64 of k of both operands copied at a time, four stages ahead, in boxes whose packets are
//          permuted; two groups of four warps multiply a stage while the one before is let go, by
//          m64n128k16. The next tile's operands come while this one's sums are stored, through a
//          slab of their own, where parts that are summed apart meet too; no bank conflicts.
//   code   tensor cores, 16-byte loads
//   slack  17 for piece/16*16 < piece and max(m, n) <= 256 (pieces begin inside sectors);
//          2.1 for max(m, n) <= 128 (lines may begin inside sectors); 4.2 for max(m, n) <= 256;
//          300 beyond (an operand is read for every tile across it)
//   bits   fixed order of k, no atomics: repeatable
template <class T, bool TA, bool TB>
__global__ void __launch_bounds__(288, 1) matmul_wgmma_fwd(
    T*       __restrict__ y,          // [batch*m*n]
    T*       __restrict__ kept,       // [keep*batch*m*n]
    float*   __restrict__ part,       // [min(splits - 1, 1)*splits*batch*m*n]
    const __grid_constant__ TensorMap<T> a,   // [batch, m + TA*(k-m), k + TA*(m-k)] in [1, 64, 64]
    const __grid_constant__ TensorMap<T> b,   // [batch, k + TB*(n-k), n + TB*(k-n)] in [1, 64, 64]
    const T* __restrict__ bias,       // [biased*n]
    const T* __restrict__ residual,   // [added*batch*m*n]
    const T* __restrict__ gate,       // [gates*n]
    int batch, int m, int n, int k, int splits, int folds, int keep, int biased, int added,
    int gates, int act, int piece) {
    using Block = GroupBlock<TA, TB>;
    extern __shared__ uint4 shared[];
    // Boxes are permuted by address: they begin at multiples of 1024.
    static_assert(sizeof(Space<Block>) + 1024 <= 201792, "the card says what a block has");
    const unsigned begin = shared_at(shared), past = (1024 - begin % 1024) % 1024;
    auto& space = *reinterpret_cast<Space<Block>*>(reinterpret_cast<char*>(shared) + past);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; ++i) {
            space.full[i].wait_for(1);
            space.empty[i].wait_for(Block::THREADS / WARP);
        }
        gates_ready();
    }
    const Sizes sizes(batch, m, n, k, splits, folds);
    if (threadIdx.x == Block::THREADS) ask_for_boxes<Block, TB>(b, sizes);
    await_previous();
    __syncthreads();
    if (threadIdx.x == Block::THREADS) {
        fetch_all<Block, TA, TB>(space, a, b, sizes);
    } else if (threadIdx.x < Block::THREADS) {
        const Finish<T> finish = finish_of(y, kept, bias, residual, gate, batch * m, n, keep,
                                           biased, added, gates, act, piece);
        multiply_all(space, finish, part, sizes);
    }
}
