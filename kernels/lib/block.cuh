// What a block does with a tile of sums: it adds products of tiles of the operands
// (lib/tile.cuh), on the tensor cores or in float, and lays the sums out for whole rows to be
// stored.
#pragma once

#include "lib/finish.cuh"
#include "lib/mma.cuh"
#include "lib/order.cuh"
#include "lib/reduce.cuh"
#include "lib/tile.cuh"

__device__ __forceinline__ constexpr unsigned over(unsigned a, unsigned b) {
    return (a + b - 1) / b;
}

// One tile of one product, or of a part of its k.
struct Job {
    unsigned batch, split, row, col;
};

// Tiles go down eight rows of tiles before they go on to the right, so that blocks that run
// together share operands in the cache; then come the parts of k, then the batch.
template <int ROWS, int COLS>
__device__ __forceinline__ Job job_at(unsigned at, unsigned m, unsigned n, unsigned splits) {
    const unsigned down = over(m, ROWS), across = over(n, COLS), tiles = down * across;
    const unsigned tile = at % tiles, rest = at / tiles;
    const unsigned strip = tile / (8 * across) * 8, height = min(down - strip, 8u);
    const unsigned inside = tile % (8 * across);
    return {rest / splits, rest % splits, (strip + inside % height) * ROWS,
            inside / height * COLS};
}

// A launch's sizes; into how many parts k is cut among blocks, or by each tile for itself. Either
// way parts are summed apart and joined in order: the same bits.
struct Sizes {
    unsigned batch, m, n, k, splits, folds;

    __device__ __forceinline__ Sizes(int batch, int m, int n, int k, int splits, int folds = 1)
        : batch(batch), m(m), n(n), k(k), splits(splits), folds(folds) {}
};

// How many tiles, or parts of them, a launch has.
template <class Block>
__device__ __forceinline__ unsigned jobs_of(const Sizes& s) {
    return over(s.m, Block::ROWS) * over(s.n, Block::COLS) * s.splits * s.batch;
}

// Gives `each` job `at`, its first step along k and how many there are.
template <class Block, class Each>
__device__ __forceinline__ void with_job(const Sizes& s, unsigned at, const Each& each) {
    const unsigned steps = over(s.k, Block::DEPTH), share = over(steps, s.splits);
    const Job job = job_at<Block::ROWS, Block::COLS>(at, s.m, s.n, s.splits);
    const unsigned first = min(job.split * share, steps);
    each(job, first, min(share, steps - first));
}

// All tiles of a launch that are this block's, one after the other, as with_job gives them.
template <class Block, class Each>
__device__ __forceinline__ void each_job(const Sizes& s, const Each& each) {
    const unsigned jobs = jobs_of<Block>(s);
    for (unsigned at = blockIdx.x; at < jobs; at += gridDim.x) with_job<Block>(s, at, each);
}

// The first of them, if there is one.
template <class Block, class Each>
__device__ __forceinline__ void first_job(const Sizes& s, const Each& each) {
    if (blockIdx.x < jobs_of<Block>(s)) with_job<Block>(s, blockIdx.x, each);
}

// Asks for what this block's first job reads of the right operand, a layer's weights as a rule.
template <class Block, class T>
__device__ __forceinline__ void ask_for_right(const T* b, const Sizes& s) {
    first_job<Block>(s, [&](const Job& job, unsigned first, unsigned steps) {
        const T* own = b + job.batch * s.k * s.n;
        const unsigned k = min(first * Block::DEPTH, s.k);
        const unsigned deep = min(steps * Block::DEPTH, s.k - k);
        const unsigned wide = min(static_cast<unsigned>(Block::COLS), s.n - job.col);
        if constexpr (Block::TURNED_B) {
            ask_for_lines(own + job.col * s.k + k, wide, deep, s.k);
        } else {
            ask_for_lines(own + k * s.n + job.col, deep, wide, s.n);
        }
    });
}

// Calls add(sums, first, steps) for the steps of a job, and joins what it cuts for itself.
template <class Block, class Add>
__device__ __forceinline__ void add_folds(Block& block, unsigned first, unsigned steps,
                                          unsigned folds, const Add& add) {
    if constexpr (Block::FOLDS) {
        if (folds > 1) {
            const unsigned share = over(steps, folds);
#pragma unroll 1
            for (unsigned at = 0; at < steps; at += share) {
                Block own;
                add(own, first + at, min(share, steps - at));
                block.merge(own);
            }
            return;
        }
    }
    add(block, first, steps);
}

// A tile of sums goes to memory through shared memory, HEIGHT rows at a time: whole rows are
// stored, whatever the layout of the threads that made them. PAD keeps their writes in different
// banks. With AHEAD > 1 what a sink reads for so many packets is under way before the first is
// written.
template <int COLS, int PAD, int AHEAD, int HEIGHT = 64>
struct Slab {
    static constexpr int ROWS = HEIGHT, STRIDE = COLS + PAD, SIZE = ROWS * STRIDE;

    // Gives all of the slab, which begins at `first`, that lies inside `size` to a sink.
    template <int N, int THREADS, class Sink>
    static __device__ __forceinline__ void each(const float* slab, uint2 first, uint2 size,
                                                const Sink& sink) {
        static_assert(ROWS * COLS % (N * THREADS * AHEAD) == 0, "whole passes");
#pragma unroll 1
        for (unsigned i = threadIdx.x; i < ROWS * COLS / N; i += THREADS * AHEAD) {
            Floats<N> v[AHEAD];
            typename Sink::template Beside<N> beside[AHEAD];
            unsigned row[AHEAD], col[AHEAD];
#pragma unroll
            for (int j = 0; j < AHEAD; ++j) {
                const unsigned r = (i + j * THREADS) / (COLS / N);
                const unsigned c = (i + j * THREADS) % (COLS / N) * N;
                v[j] = load<N>(slab + r * STRIDE + c);
                row[j] = first.x + r, col[j] = first.y + c;
                const bool live = row[j] < size.x && col[j] < size.y;
                if (AHEAD > 1 && live) beside[j] = sink.template read<N>(row[j], col[j]);
            }
            // Nothing above may sink below, where a part of the warp would read the slab.
            asm volatile("" ::: "memory");
#pragma unroll
            for (int j = 0; j < AHEAD; ++j) {
                if (row[j] >= size.x || col[j] >= size.y) continue;
                if (AHEAD == 1) beside[j] = sink.template read<N>(row[j], col[j]);
                sink.write(row[j], col[j], v[j], beside[j]);
            }
        }
    }

    template <int THREADS, class Sink>
    static __device__ __forceinline__ void pour(const float* slab, uint2 first, uint2 size,
                                                const Sink& sink) {
        if (sink.fours()) {
            each<4, THREADS>(slab, first, size, sink);
        } else {
            each<1, THREADS>(slab, first, size, sink);
        }
    }
};

// Gives a block's tile of sums, from row and column `first` on, to a sink; all threads that have
// sums are through with `shared` before and after.
template <class Block, class Sink>
__device__ __forceinline__ void pour(Block& block, void* shared, uint2 first, uint2 size,
                                     const Sink& sink) {
    float* slab = static_cast<float*>(shared);
    for (int row = 0; row < Block::ROWS; row += Block::Out::ROWS) {
        block.put(slab, row);
        Block::meet();
        const uint2 at = make_uint2(first.x + row, first.y);
        Block::Out::template pour<Block::THREADS>(slab, at, size, sink);
        Block::meet();
    }
}

// Gives a job's tile to the epilogue, or a part of its sums to `part`.
template <class Block, class T>
__device__ __forceinline__ void finish_job(Block& block, void* shared, const Job& job,
                                           const Sizes& s, const Finish<T>& finish, float* part) {
    const uint2 from = make_uint2(job.row, job.col), size = make_uint2(s.m, s.n);
    if (s.splits > 1) {
        const Parts parts = {part + (job.split * s.batch + job.batch) * s.m * s.n, s.n};
        pour(block, shared, from, size, parts);
    } else {
        pour(block, shared, from, size, finish.from_row(job.batch * s.m));
    }
}

// A block's tile of R x C sums by the tensor cores: four warps with a quarter each.
template <int R, int C, bool TA, bool TB>
struct MmaBlock {
    static constexpr int ROWS = R, COLS = C, THREADS = 128, DEPTH = R == 128 ? 32 : 64, STAGES = 3;
    // Warps side by side, and what each has.
    static constexpr int ABREAST = C == 32 ? 1 : 2;
    static constexpr int OWN_ROWS = R * ABREAST / 4, OWN_COLS = C / ABREAST;
    static constexpr bool TURNED_A = TA, TURNED_B = TB;
    // Whether a second tile of sums fits into the registers.
    static constexpr bool FOLDS = R == 64;
    using A = MmaTile<!TA, R, DEPTH, THREADS>;
    using B = MmaTile<TB, C, DEPTH, THREADS>;
    using Out = Slab<C, 8, 4>;
    static __device__ __forceinline__ void meet() { __syncthreads(); }
    static constexpr int STAGE = A::SIZE + B::SIZE;
    static constexpr int SHARED = STAGES * STAGE * sizeof(bf16);
    static_assert(SHARED >= Out::SIZE * sizeof(float), "the slab fits");

    float sums[OWN_ROWS / 16][OWN_COLS / 8][4];
    unsigned row, col;

    __device__ __forceinline__ MmaBlock() : sums(), row(), col() {
        row = threadIdx.x / (32 * ABREAST) * OWN_ROWS;
        col = threadIdx.x / 32 % ABREAST * OWN_COLS;
    }

    // Adds the products of so many steps of two sources, with STAGES - 1 steps on their way.
    template <class Left, class Right>
    __device__ __forceinline__ void add(bf16* tiles, Left& a, Right& b, unsigned steps) {
        auto fetch = [&](unsigned step) {
            if (step < steps) {
                bf16* to = tiles + step % STAGES * STAGE;
                A::fetch(to, a);
                B::fetch(to + A::SIZE, b);
            }
            copy_commit();
        };
#pragma unroll
        for (int step = 0; step < STAGES - 1; ++step) fetch(step);
        for (unsigned step = 0; step < steps; ++step) {
            copy_wait<STAGES - 2>();
            __syncthreads();
            fetch(step + STAGES - 1);
            multiply(tiles + step % STAGES * STAGE);
        }
        copy_wait<0>();
        __syncthreads();
    }

    // Adds another block's sums.
    __device__ __forceinline__ void merge(const MmaBlock& other) {
#pragma unroll
        for (int i = 0; i < OWN_ROWS / 16; ++i) {
#pragma unroll
            for (int j = 0; j < OWN_COLS / 8; ++j) {
#pragma unroll
                for (int l = 0; l < 4; ++l) sums[i][j][l] += other.sums[i][j][l];
            }
        }
    }

    __device__ __forceinline__ void multiply(const bf16* tile) {
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            unsigned a[OWN_ROWS / 16][4], b[OWN_COLS / 16][4];
#pragma unroll
            for (int i = 0; i < OWN_ROWS / 16; ++i) {
                A::template fragment<true>(a[i], tile, row + 16 * i, k);
            }
#pragma unroll
            for (int i = 0; i < OWN_COLS / 16; ++i) {
                B::template fragment<false>(b[i], tile + A::SIZE, col + 16 * i, k);
            }
#pragma unroll
            for (int i = 0; i < OWN_ROWS / 16; ++i) {
#pragma unroll
                for (int j = 0; j < OWN_COLS / 8; ++j) {
                    mma(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
                }
            }
        }
    }

    // Writes rows first .. first + 64 of the tile to the slab.
    __device__ __forceinline__ void put(float* slab, unsigned first) const {
        if (row < first || row >= first + Out::ROWS) return;
        const unsigned lane = threadIdx.x % WARP;
#pragma unroll
        for (int i = 0; i < OWN_ROWS / 16; ++i) {
#pragma unroll
            for (int j = 0; j < OWN_COLS / 8; ++j) {
                const unsigned r = row - first + 16 * i + lane / 4, c = col + 8 * j + lane % 4 * 2;
                const float(&d)[4] = sums[i][j];
                *reinterpret_cast<float2*>(slab + r * Out::STRIDE + c) = make_float2(d[0], d[1]);
                *reinterpret_cast<float2*>(slab + (r + 8) * Out::STRIDE + c) =
                    make_float2(d[2], d[3]);
            }
        }
    }
};

// A block's tile of S x S sums in float: eight warps in 4 x 2, a thread's sums in 4 x 4 of them.
template <int S, bool TA, bool TB>
struct FmaBlock {
    static constexpr int ROWS = S, COLS = S, THREADS = 256, EACH = S / 16;
    static constexpr bool TURNED_A = TA, TURNED_B = TB, FOLDS = S == 64;
    using A = FmaTile<!TA, S, THREADS>;
    using B = FmaTile<TB, S, THREADS>;
    // More warps than registers: no reading ahead.
    using Out = Slab<S, 4, 1>;
    static __device__ __forceinline__ void meet() { __syncthreads(); }
    static constexpr int DEPTH = A::DEPTH, STAGE = A::SIZE + B::SIZE;
    static constexpr int SHARED = (2 * STAGE > Out::SIZE ? 2 * STAGE : Out::SIZE) * sizeof(float);

    float sums[EACH][EACH];
    unsigned row, col;

    __device__ __forceinline__ FmaBlock() : sums(), row(), col() {
        const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
        row = warp / 2 * (S / 4) + lane / 8 * 4;
        col = warp % 2 * (S / 2) + lane % 8 * 4;
    }

    // Adds the products of so many steps of two sources; the next step's loads run beside the sums.
    template <class Left, class Right>
    __device__ __forceinline__ void add(float* tiles, Left& a, Right& b, unsigned steps) {
        A left;
        B right;
        if (steps > 0) {
            left.fetch(a);
            right.fetch(b);
        }
        for (unsigned step = 0; step < steps; ++step) {
            float* tile = tiles + step % 2 * STAGE;
            left.put(tile, a.packets);
            right.put(tile + A::SIZE, b.packets);
            __syncthreads();
            if (step + 1 < steps) {
                left.fetch(a);
                right.fetch(b);
            }
            multiply(tile);
        }
        __syncthreads();
    }

    // Adds another block's sums.
    __device__ __forceinline__ void merge(const FmaBlock& other) {
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
#pragma unroll
            for (int j = 0; j < EACH; ++j) sums[i][j] += other.sums[i][j];
        }
    }

    // Places of EACH rows or columns, four neighbours every STEP.
    template <int STEP, class Tile>
    static __device__ __forceinline__ void gather(float (&to)[EACH], const float* tile,
                                                  unsigned side, unsigned k) {
#pragma unroll
        for (int i = 0; i < EACH; i += 4) {
            const Floats<4> x = load<4>(tile + Tile::place(side + i / 4 * STEP, k));
#pragma unroll
            for (int j = 0; j < 4; ++j) to[i + j] = x.at[j];
        }
    }

    __device__ __forceinline__ void multiply(const float* tile) {
#pragma unroll
        for (int k = 0; k < DEPTH; ++k) {
            float a[EACH], b[EACH];
            gather<16, A>(a, tile, row, k);
            gather<32, B>(b, tile + A::SIZE, col, k);
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
#pragma unroll
                for (int j = 0; j < EACH; ++j) sums[i][j] = fmaf(a[i], b[j], sums[i][j]);
            }
        }
    }

    // Writes rows first .. first + 64 of the tile to the slab.
    __device__ __forceinline__ void put(float* slab, unsigned first) const {
        if (row < first || row >= first + Out::ROWS) return;
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const unsigned r = row - first + i / 4 * 16 + i % 4;
#pragma unroll
            for (int j = 0; j < EACH; j += 4) {
                const float* x = sums[i] + j;
                store(slab + r * Out::STRIDE + col + j / 4 * 32,
                      Floats<4>{{x[0], x[1], x[2], x[3]}});
            }
        }
    }
};
