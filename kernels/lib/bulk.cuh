// Boxes of tensors that the copy engine of compute capability 9.0 brings to shared memory, and the
// gates there that count what has come. kernelc's launchers make the maps.
#pragma once

#include "lib/copy.cuh"

// What the engine is told of a tensor of T's: a parameter of an entry, opaque to it.
template <class T>
struct alignas(128) TensorMap {
    unsigned long long words[16];
};

// A barrier in shared memory that opens when so many have arrived, and what they announced has
// come. It then waits for the next ones: openings alternate between parities 0 and 1.
struct Gate {
    unsigned long long word;

    // By one thread, before all others may use it: see `gates_ready`.
    __device__ __forceinline__ void wait_for(unsigned count) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
                     :
                     : "r"(shared_at(this)), "r"(count)
                     : "memory");
    }

    __device__ __forceinline__ void arrive() {
        asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }"
                     :
                     : "r"(shared_at(this))
                     : "memory");
    }

    // Arrives, and announces bytes that copies will bring.
    __device__ __forceinline__ void announce(unsigned bytes) {
        asm volatile("{ .reg .b64 state;"
                     " mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }"
                     :
                     : "r"(shared_at(this)), "r"(bytes)
                     : "memory");
    }

    // Waits for the opening of this parity. That before the first one has parity 1.
    __device__ __forceinline__ void pass(unsigned parity) {
        unsigned open = 0;
        while (open == 0) {
            asm volatile("{ .reg .pred p;"
                         " mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;"
                         " selp.u32 %0, 1, 0, p; }"
                         : "=r"(open)
                         : "r"(shared_at(this)), "r"(parity)
                         : "memory");
        }
    }
};

// By the thread that has set up gates, before a barrier of the block: the engine sees them too.
__device__ __forceinline__ void gates_ready() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Asks for the box at (x, y, z) to be brought into the L2 cache.
template <class T>
__device__ __forceinline__ void ask_for_box(const TensorMap<T>& map, int x, int y, int z) {
    asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];"
                 :
                 : "l"(&map), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

// Starts copying the box at (x, y, z), x along the contiguous axis, to a multiple of 1024 bytes;
// the gate counts its bytes. Beyond the tensor there are zeros. Rows of 128 bytes have their
// packets of 16 permuted by row, as `wgmma` reads them without bank conflicts.
template <class T>
__device__ __forceinline__ void copy_box(void* to, const TensorMap<T>& map, Gate& gate, int x,
                                         int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%2, %3, %4}], [%5];"
                 :
                 : "r"(shared_at(to)), "l"(&map), "r"(x), "r"(y), "r"(z), "r"(shared_at(&gate))
                 : "memory");
}
