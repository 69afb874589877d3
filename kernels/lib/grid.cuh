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

// The last barrier of a launch: as grid_barrier, and leaves `gate` 0 as it was found.
__device__ __forceinline__ void grid_barrier_last(int* gate, int turn) {
    grid_barrier(gate, turn);
    // Who comes here as the last one knows that nobody waits any more.
    if (threadIdx.x == 0 && atomicAdd(gate, 1) == (turn + 1) * static_cast<int>(gridDim.x) - 1) {
        *gate = 0;
    }
}
