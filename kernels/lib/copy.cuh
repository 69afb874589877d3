// Copies from global to shared memory that pass by the registers and run while a block computes,
// and the 8x8 tiles of bf16 that a warp takes out of shared memory at once.
#pragma once

__device__ __forceinline__ unsigned shared_at(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// Starts copying 16 bytes, or writing 16 zero bytes where not `live`: then nothing is read. Both
// addresses are multiples of 16.
__device__ __forceinline__ void copy_packet(void* to, const void* from, bool live) {
    const int bytes = live ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_at(to)), "l"(from), "r"(bytes)
                 : "memory");
}

// Ends a group of copies, which may be empty.
__device__ __forceinline__ void copy_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits for this thread's copies but those of its newest PENDING groups. Those of other threads
// are there after a barrier.
template <int PENDING>
__device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four tiles of 8x8: lane l names row l % 8 of tile l / 8, 16 bytes. Each lane gets two neighbours
// of row l / 4 of every tile, or of column l / 4 where TRANSPOSED.
template <bool TRANSPOSED>
__device__ __forceinline__ void load_tiles(unsigned (&to)[4], const void* row) {
    if constexpr (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(shared_at(row))
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(shared_at(row))
                     : "memory");
    }
}
