// Sums and maxima over a warp by a fixed tree: the same bits at every run, and in every lane.
#pragma once

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// A butterfly. Each step adds the same two numbers in both lanes, so all lanes agree.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

// Sums of V values over a warp by V - 1 shuffles and a few more: lane l gets the sum of value
// l / (32 / V). V is a power of two, at most 32. Only the first HALF * 2 values count any more.
template <int STEP = WARP / 2, int V, int HALF = V / 2>
__device__ __forceinline__ float scatter_sum(float (&x)[V]) {
    if constexpr (STEP == 0) {
        return x[0];
    } else if constexpr (HALF == 0) {
        x[0] += __shfl_xor_sync(ALL_LANES, x[0], STEP);
        return scatter_sum<STEP / 2, V, 0>(x);
    } else {
        // Half of the lanes go on with the upper values and give away the lower ones.
        const bool upper = threadIdx.x & STEP;
#pragma unroll
        for (int i = 0; i < HALF; ++i) {
            const float given = upper ? x[i] : x[i + HALF];
            x[i] = (upper ? x[i + HALF] : x[i]) + __shfl_xor_sync(ALL_LANES, given, STEP);
        }
        return scatter_sum<STEP / 2, V, HALF / 2>(x);
    }
}

// NaN is passed over; the sums that follow meet it.
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    }
    return x;
}

// The sum over a block of at most 1024 threads, the same in all of them. `hold` is WARP floats of
// shared memory; every thread of the block must call.
__device__ __forceinline__ float block_sum(float x, float* hold) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int warps = (blockDim.x + WARP - 1) / WARP;
    x = warp_sum(x);
    if (lane == 0) hold[warp] = x;
    __syncthreads();
    x = warp_sum(lane < warps ? hold[lane] : 0.0f);
    // Nobody may write `hold` again before all have read it.
    __syncthreads();
    return x;
}
