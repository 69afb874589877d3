// A launch beside the one before it: on Hopper and later its blocks may come early, and use the
// time to have weights brought nearer.
#pragma once

// Waits until the launches before are done and what they wrote is seen; then the next launch's
// blocks may come to do the same. Every entry calls it before it touches memory; all that may
// stand before is asking for lines that no launch writes to be brought nearer. Elsewhere a launch
// begins when the one before has ended, and there is nothing to wait for.
__device__ __forceinline__ void await_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Asks for the 128-byte line of an address to be brought into the L2 cache.
__device__ __forceinline__ void prefetch(const void* at) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}

// Asks for `run` neighbours in each of `lines` lines that begin `stride` apart, where a block may
// be early: the threads of the block call together.
template <class T>
__device__ __forceinline__ void ask_for_lines(const T* at, unsigned lines, unsigned run,
                                              unsigned stride) {
#if __CUDA_ARCH__ >= 900
    constexpr unsigned EACH = 128 / sizeof(T);
    const unsigned across = (run + EACH - 1) / EACH;
    for (unsigned i = threadIdx.x; i < lines * across; i += blockDim.x) {
        prefetch(at + i / across * stride + i % across * EACH);
    }
#endif
}
