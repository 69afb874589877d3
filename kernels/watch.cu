// What lets a training step happen: one number that updates read, NaN for a step that must change
// nothing, and the choice between what was and what such a step would make of it.
#include "lib/order.cuh"
#include "lib/packet.cuh"

__device__ __forceinline__ bool finite(float x) { return fabsf(x) < __int_as_float(0x7f800000); }

// watch_fwd: gate = norm where every number is finite and norm is at most spike mean (spike > 0
// and mean > 0), else NaN; mean' follows the norm of a step that happens, beginning at its first,
// and is NaN for good after one that does not, where that ends the run.
//   for    T: f32
//   floor  bytes = 4*n + 16;  flops = 0
//   plan   one warp; its threads stride over the numbers, the first decides
//   bits   one thread: repeatable
template <class T>
__global__ void __launch_bounds__(32) watch_fwd(
    T*       __restrict__ gate,    // [1]
    T*       __restrict__ mean1,   // [1]
    const T* __restrict__ felt,    // [n]
    const T* __restrict__ norm,    // [1]
    const T* __restrict__ mean,    // [1]
    int n, float spike, float follow, int ends) {
    await_previous();
    bool well = true;
    for (int i = threadIdx.x; i < n; i += blockDim.x) well = well && finite(felt[i]);
    well = __all_sync(0xffffffffu, well);
    if (threadIdx.x > 0 || blockIdx.x > 0) return;
    const float nan = __int_as_float(0x7fc00000), x = *norm, m = *mean;
    const bool spikes = spike > 0.0f && m > 0.0f && x > spike * m;
    well = well && finite(x) && finite(m) && !spikes;
    *gate = well ? x : nan;
    *mean1 = well ? (m == 0.0f ? x : fmaf(follow, x - m, m)) : ends ? nan : m;
}

// commit_fwd: y = after where the gate is finite, else before.
//   for    T: f32
//   floor  bytes = 2*n*s + 4;  flops = 0
//   plan   the grid strides over 16-byte packets; single elements at the end and at odd addresses
//   code   16-byte loads
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) commit_fwd(
    T*           __restrict__ y,        // [n]
    const T*     __restrict__ before,   // [n]
    const T*     __restrict__ after,    // [n]
    const float* __restrict__ gate,     // [1]
    int n) {
    await_previous();
    const T* from = finite(*gate) ? after : before;
    each<T>(n, aligned(y, from), [&](unsigned i, auto w) {
        store(y + i, load<decltype(w)::value>(from + i));
    });
}
