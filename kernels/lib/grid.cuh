// A barrier of all blocks of a launch, which must all be on the card at once.
#pragma once

// Waits until every block has come here for the `turn`-th time, counted from 1; `gate` is 0 when
// the launch begins. What any of them wrote before is seen by all after.
__device__ __forceinline__ void grid_barrier(int* gate, int turn) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(gate, 1);
        const volatile int* seen = gate;
        while (*seen < turn * static_cast<int>(gridDim.x)) {
        }
        __threadfence();
    }
    __syncthreads();
}

// Asks for the 128-byte line of an address to be brought into the L2 cache.
__device__ __forceinline__ void prefetch(const void* at) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}
