// Products of tiles in shared memory by groups of four warps (compute capability 9.0): the tensor
// cores read both operands there themselves, and add while the warps do something else.
#pragma once

#include "lib/block.cuh"
#include "lib/bulk.cuh"

// Sides of the boxes that operands come in: 64 lines of 64 neighbours, which are 128 bytes.
constexpr int BOX = 64;

// Begins what the group's products read and write: nothing before is later than they.
__device__ __forceinline__ void wgmma_begin() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Ends a batch of products.
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits for all batches but the newest PENDING.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// How the tensor cores find 16 of k of an operand in its boxes, one after the other. Where k is
// the run of a line, 16 of k are 32 bytes further on; where lines count k (TURNED), 16 lines.
template <bool TURNED>
__device__ __forceinline__ unsigned long long described(const bf16* boxes, int k) {
    // From eight lines to the next eight, and from 64 neighbours to the next; in units of 16 bytes.
    constexpr unsigned long long EIGHT_LINES = 8 * 128 / 16, NEXT_BOX = BOX * 128 / 16;
    constexpr unsigned long long IN_128 = 1ull << 62;
    const unsigned at = shared_at(boxes + (TURNED ? k * BOX : k));
    return IN_128 | EIGHT_LINES << 32 | (TURNED ? NEXT_BOX : 1) << 16 | (at & 0x3ffff) >> 4;
}

// d += a b with a 64x16 and b 16x128 of bf16 where descriptors say, A and B if their lines count
// k. A warp has 16 rows; with g = lane / 4 and q = lane % 4 a lane's four of each 8 columns are row
// g at columns 2q and 2q + 1, then row g + 8.
template <bool A, bool B>
__device__ __forceinline__ void wgmma(float (&d)[64], unsigned long long a, unsigned long long b) {
    asm volatile(
        "{ .reg .pred more; setp.ne.b32 more, 1, 0;"
        " wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, "
        "%8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, "
        "%24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, "
        "%40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, "
        "%56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, more, 1, 1, %66, %67; }"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]),
          "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
          "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),
          "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
          "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
          "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
          "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
          "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]),
          "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
          "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]),
          "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
          "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]),
          "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
        : "l"(a), "l"(b), "n"(A ? 1 : 0), "n"(B ? 1 : 0));
}

// A block's tile of 128 x 128 sums: two groups of four warps with 64 rows each, bf16 operands in
// boxes.
template <bool TA, bool TB>
struct GroupBlock {
    static constexpr int ROWS = 128, COLS = 128, DEPTH = BOX, THREADS = 256;
    static constexpr int A_SIZE = ROWS * DEPTH, STAGE = A_SIZE + COLS * DEPTH;
    using Out = Slab<COLS, 8, 4, ROWS>;

    float sums[64];
    unsigned row;

    __device__ __forceinline__ GroupBlock() : sums(), row(threadIdx.x / WARP * 16) {}

    // The warps with sums, alone: another one copies.
    static __device__ __forceinline__ void meet() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

    // Starts adding the product of a stage's tiles, A's boxes before B's.
    __device__ __forceinline__ void start(const bf16* tiles) {
        wgmma_begin();
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            const bf16* own = tiles + row / BOX * (BOX * DEPTH);
            wgmma<TA, !TB>(sums, described<TA>(own, k), described<!TB>(tiles + A_SIZE, k));
        }
        wgmma_commit();
    }

    // Waits for all that was started; the sums are in their registers then.
    __device__ __forceinline__ void settle() {
        wgmma_wait<0>();
#pragma unroll
        for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(sums[i])::"memory");
    }

    // Calls f(place in the slab, two neighbouring sums) for all sums of this thread.
    template <class F>
    __device__ __forceinline__ void each_pair(float* slab, F f) {
        const unsigned lane = threadIdx.x % WARP, r = row + lane / 4;
#pragma unroll
        for (int j = 0; j < COLS / 8; ++j) {
            float* at = slab + r * Out::STRIDE + 8 * j + lane % 4 * 2;
            f(*reinterpret_cast<float2*>(at), sums + 4 * j);
            f(*reinterpret_cast<float2*>(at + 8 * Out::STRIDE), sums + 4 * j + 2);
        }
    }

    // Writes the tile to the slab.
    __device__ __forceinline__ void put(float* slab, unsigned) {
        each_pair(slab, [](float2& to, const float* from) { to = make_float2(from[0], from[1]); });
    }

    // Adds what this thread has put there.
    __device__ __forceinline__ void add(float* slab) {
        each_pair(slab, [](const float2& from, float* to) { to[0] += from.x, to[1] += from.y; });
    }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < 64; ++i) sums[i] = 0.0f;
    }
};
