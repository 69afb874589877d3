// Convolutions over channels-last maps and their gradients, as matrix products (src/ops/conv.rs).
//
// Rows are windows, k their taps and channels, columns the results; the gradient to the weights
// sums over the windows. Tiles are gathered from the maps as they are multiplied
// (lib/windows.cuh). What lies outside of a map takes part as zeros.
#include "lib/block.cuh"
#include "lib/finish.cuh"
#include "lib/order.cuh"
#include "lib/windows.cuh"

// A convolution of maps [images, high, wide, ins] to [images, down, across, outs]; where `doubled`,
// each pixel in memory is 2 x 2 of such a map.
struct Extents {
    unsigned images, high, wide, ins, outs;
    uint2 kernel;
    unsigned down, across, stride, top, left, doubled;

    __device__ __forceinline__ Extents(int images, int high, int wide, int ins, int outs,
                                       int kernel_high, int kernel_wide, int down, int across,
                                       unsigned stride, unsigned top, unsigned left,
                                       unsigned doubled = 0)
        : images(images), high(high << doubled), wide(wide << doubled), ins(ins), outs(outs),
          kernel(make_uint2(kernel_high, kernel_wide)), down(down), across(across), stride(stride),
          top(top), left(left), doubled(doubled) {}
};

// How k is cut: into `parts`, each by a block of its own (`splits` is `parts`), or one after the
// other (`splits` is 1). Either way parts are summed apart and joined in order: the same bits.
struct Cut {
    unsigned parts, splits;

    __device__ __forceinline__ Cut(int parts, int splits) : parts(parts), splits(splits) {}
};

// Adds step `first` and `count` more to a block's sums, of an operand's windows by the weights.
template <bool GRADIENT, class Block, class T>
__device__ __forceinline__ void add_windows(Block& block, void* shared, const Map<T>& map,
                                            const T* w, const Extents& e, const Axis& down,
                                            const Axis& across, const Job& job, unsigned rows,
                                            uint2 range) {
    // Also keeps sources away from extents of zero.
    if (range.y == 0) return;
    const unsigned k0 = range.x * Block::DEPTH;
    WindowLines<typename Block::A, T> left(map, down, across, job.row, rows, k0);
    if constexpr (GRADIENT) {
        TapLines<typename Block::B, T> right(w, down, across, e.kernel, e.ins, e.outs, job.col, k0);
        block.add(static_cast<T*>(shared), left, right, range.y);
    } else {
        const unsigned k = e.kernel.x * e.kernel.y * e.ins;
        MatrixSource<typename Block::B, T> right(w, e.outs, k, job.col, k0);
        block.add(static_cast<T*>(shared), left, right, range.y);
    }
}

// All tiles of a convolution, or of its gradient to the map, a block one at a time. The gradient's
// pixels fall into phases, by the taps that meet them; each is a convolution of its own.
template <bool GRADIENT, class Block, class T>
__device__ __forceinline__ void convolve(void* shared, const T* from, const T* w, float* part,
                                         const Finish<T>& finish, const Extents& e, Cut cut) {
    const Map<T> map = GRADIENT ? Map<T>{from, e.down, e.across, e.outs, 0}
                                : Map<T>{from, e.high, e.wide, e.ins, e.doubled};
    const unsigned cols = GRADIENT ? e.ins : e.outs;
    const unsigned wide = GRADIENT ? min(e.stride, e.wide) : 1;
    const unsigned phases = GRADIENT ? min(e.stride, e.high) * wide : 1;
    const unsigned most = e.images * (GRADIENT ? over(e.high, e.stride) * over(e.wide, e.stride)
                                               : e.down * e.across);
    const unsigned jobs = over(most, Block::ROWS) * over(cols, Block::COLS) * cut.splits * phases;
    for (unsigned at = blockIdx.x; at < jobs; at += gridDim.x) {
        const Job job = job_at<Block::ROWS, Block::COLS>(at, most, cols, cut.splits);
        const unsigned phase = GRADIENT ? job.batch : 0;
        const Axis down =
            GRADIENT ? axis_of_gradient(phase / wide, e.high, e.stride, e.top, e.kernel.x)
                     : axis_of_map(e.down, e.stride, e.top, e.kernel.x);
        const Axis across =
            GRADIENT ? axis_of_gradient(phase % wide, e.wide, e.stride, e.left, e.kernel.y)
                     : axis_of_map(e.across, e.stride, e.left, e.kernel.y);
        const unsigned rows = e.images * down.windows * across.windows;
        if (job.row >= rows) continue;
        const unsigned steps = over(down.taps * across.taps * map.depth, Block::DEPTH);
        const unsigned share = over(steps, cut.parts);
        auto add = [&](Block& block, unsigned p) {
            const unsigned first = min(p * share, steps);
            add_windows<GRADIENT>(block, shared, map, w, e, down, across, job, rows,
                                  make_uint2(first, min(share, steps - first)));
        };
        Block block;
        if constexpr (Block::FOLDS) {
            const unsigned end = cut.splits > 1 ? job.split + 1 : cut.parts;
#pragma unroll 1
            for (unsigned p = job.split; p < end; ++p) {
                Block own;
                add(own, p);
                block.merge(own);
            }
        } else {
            add(block, job.split);
        }
        const uint2 first = make_uint2(job.row, job.col), size = make_uint2(rows, cols);
        auto put = [&](auto sink) {
            if constexpr (GRADIENT) {
                const ToPixels<decltype(sink)> pixels = {sink, down, across, e.high, e.wide};
                pour(block, shared, first, size, pixels);
            } else {
                pour(block, shared, first, size, sink);
            }
        };
        if (cut.splits > 1) {
            const unsigned all = e.images * (GRADIENT ? e.high * e.wide : e.down * e.across);
            put(Parts{part + job.split * all * cols, cols});
        } else {
            put(finish);
        }
    }
}

// All tiles of the gradient to the weights: [outs, kernel, ins] sums over windows.
template <class Block, class T>
__device__ __forceinline__ void outer(void* shared, const T* gy, const T* x, float* part,
                                      const Finish<T>& finish, const Extents& e, unsigned splits) {
    const Map<T> map = {x, e.high, e.wide, e.ins, 0};
    const Axis down = axis_of_map(e.down, e.stride, e.top, e.kernel.x);
    const Axis across = axis_of_map(e.across, e.stride, e.left, e.kernel.y);
    const unsigned windows = e.images * e.down * e.across, m = e.outs;
    const unsigned n = e.kernel.x * e.kernel.y * e.ins;
    const unsigned steps = over(windows, Block::DEPTH), share = over(steps, splits);
    const unsigned jobs = over(m, Block::ROWS) * over(n, Block::COLS) * splits;
    for (unsigned at = blockIdx.x; at < jobs; at += gridDim.x) {
        const Job job = job_at<Block::ROWS, Block::COLS>(at, m, n, splits);
        const unsigned first = min(job.split * share, steps), k0 = first * Block::DEPTH;
        Block block;
        if (first < steps) {
            MatrixSource<typename Block::A, T> left(gy, windows, m, job.row, k0);
            WindowColumns<typename Block::B, T> right(map, down, across, windows, job.col, k0);
            block.add(static_cast<T*>(shared), left, right, min(share, steps - first));
        }
        const uint2 corner = make_uint2(job.row, job.col), size = make_uint2(m, n);
        if (splits > 1) {
            pour(block, shared, corner, size, Parts{part + job.split * m * n, n});
        } else {
            pour(block, shared, corner, size, finish);
        }
    }
}

// A result with a bias and a residual, null where there are none.
template <class T>
__device__ __forceinline__ Finish<T> finish_of(T* y, const T* bias, const T* residual, int cols) {
    return {y, nullptr, bias, residual, nullptr, 1, static_cast<unsigned>(cols), ACT_NONE, 0};
}

// conv2d_mma_fwd: y[b, i, j] = residual + bias + sum of x[b, i stride + p - top,
// j stride + q - left] w[p, q]; where doubled, of x with 2 x 2 copies of each pixel.
//   for    T: bf16; C: 32, 64, 128
//   floor  bytes = images*read_rows*read_cols*ins*s + outs*kernel_high*kernel_wide*ins*s
//            + max(2 - splits, 0)*(images*down*across*(1 + added) + biased)*outs*s
//            + min(splits - 1, 1)*splits*images*down*across*outs*4;
//          flops = 8192*C*chunks + 4096*merges
//            + max(2 - splits, 0)*(biased + added)*images*down*across*outs
//   plan   blocks of 4 warps, a tile of 128 windows by C results, or 64 by 64, by mma.sync
//          m16n8k16, through three stages of cp.async; packets are permuted: no bank conflicts. A
//          packet is 8 channels of a tap, in runs; where there are no eights, single elements.
//          chunks, the tiles times their steps, merges, the parts that tiles join themselves, and
//          the rows and columns of x that windows meet are for this card.
//   code   tensor cores, 16-byte loads
//   slack  400 (a window shares its pixels with its neighbours, and w is read for every tile down)
//   bits   fixed order of k, parts of it by one sample's extents, no atomics: repeatable, and the
//          same whatever else is in the batch
template <class T, int C>
__global__ void __launch_bounds__(128, 2) conv2d_mma_fwd(
    T*       __restrict__ y,          // [images, down, across, outs]
    float*   __restrict__ part,       // [min(splits - 1, 1)*splits*images*down*across*outs]
    const T* __restrict__ x,          // [images, high, wide, ins]
    const T* __restrict__ w,          // [outs, kernel_high, kernel_wide, ins]
    const T* __restrict__ bias,       // [biased*outs]
    const T* __restrict__ residual,   // [added*images*down*across*outs]
    int images, int high, int wide, int ins, int outs, int kernel_high, int kernel_wide, int down,
    int across, unsigned stride, unsigned top, unsigned left, unsigned doubled, int parts,
    int splits, int biased, int added, int read_rows, int read_cols, int chunks, int merges) {
    await_previous();
    using Block = MmaBlock<C == 64 ? 64 : 128, C, false, true>;
    __shared__ uint4 shared[Block::SHARED / sizeof(uint4)];
    const Extents e(images, high, wide, ins, outs, kernel_high, kernel_wide, down, across, stride,
                    top, left, doubled);
    const Finish<T> finish =
        finish_of(y, biased ? bias : nullptr, added ? residual : nullptr, outs);
    convolve<false, Block>(shared, x, w, part, finish, e, {parts, splits});
}

// conv2d_fma_fwd: conv2d_mma_fwd in float.
//   for    T: f32; C: 64, 128
//   floor  bytes = images*read_rows*read_cols*ins*s + outs*kernel_high*kernel_wide*ins*s
//            + max(2 - splits, 0)*(images*down*across*(1 + added) + biased)*outs*s
//            + min(splits - 1, 1)*splits*images*down*across*outs*4;
//          flops = 32*C*C*chunks + 4096*merges
//            + max(2 - splits, 0)*(biased + added)*images*down*across*outs
//   plan   blocks of 8 warps, a tile of C x C sums, through two stages; no bank conflicts. x is
//          read in runs of 4 channels of a tap.
//   code   16-byte loads
//   slack  400 (a window shares its pixels with its neighbours, and w is read for every tile down)
//   bits   fixed order of k, parts of it by one sample's extents, no atomics: repeatable, and the
//          same whatever else is in the batch
template <class T, int C>
__global__ void __launch_bounds__(256, C == 128 ? 1 : 2) conv2d_fma_fwd(
    T*       __restrict__ y,          // [images, down, across, outs]
    float*   __restrict__ part,       // [min(splits - 1, 1)*splits*images*down*across*outs]
    const T* __restrict__ x,          // [images, high, wide, ins]
    const T* __restrict__ w,          // [outs, kernel_high, kernel_wide, ins]
    const T* __restrict__ bias,       // [biased*outs]
    const T* __restrict__ residual,   // [added*images*down*across*outs]
    int images, int high, int wide, int ins, int outs, int kernel_high, int kernel_wide, int down,
    int across, unsigned stride, unsigned top, unsigned left, unsigned doubled, int parts,
    int splits, int biased, int added, int read_rows, int read_cols, int chunks, int merges) {
    await_previous();
    using Block = FmaBlock<C, false, true>;
    __shared__ uint4 shared[Block::SHARED / sizeof(uint4)];
    const Extents e(images, high, wide, ins, outs, kernel_high, kernel_wide, down, across, stride,
                    top, left, doubled);
    const Finish<T> finish =
        finish_of(y, biased ? bias : nullptr, added ? residual : nullptr, outs);
    convolve<false, Block>(shared, x, w, part, finish, e, {parts, splits});
}

// conv2d_dx_mma_fwd: gx[b, h, v] = sum of gy[b, i, j] w[p, q] where i stride + p - top = h and
// j stride + q - left = v.
//   for    T: bf16; C: 32, 64, 128
//   floor  bytes = images*read_rows*read_cols*outs*s + outs*taps_read*ins*s
//            + max(2 - splits, 0)*images*high*wide*ins*s
//            + min(splits - 1, 1)*splits*images*high*wide*ins*4;
//          flops = 8192*C*chunks + 4096*merges
//   plan   conv2d_mma_fwd over gy, with the taps turned round. Pixels fall into stride^2 phases,
//          each with the taps that meet it: no product is with a zero between rows of gy. w lies
//          across k, no bank conflicts either; gy is read in runs.
//   code   tensor cores, 16-byte loads
//   slack  400 (a window shares its pixels with its neighbours, and w is read for every tile down)
//   bits   fixed order of k, parts of it by one sample's extents, no atomics: repeatable, and the
//          same whatever else is in the batch
template <class T, int C>
__global__ void __launch_bounds__(128, 2) conv2d_dx_mma_fwd(
    T*       __restrict__ gx,     // [images, high, wide, ins]
    float*   __restrict__ part,   // [min(splits - 1, 1)*splits*images*high*wide*ins]
    const T* __restrict__ gy,     // [images, down, across, outs]
    const T* __restrict__ w,      // [outs, kernel_high, kernel_wide, ins]
    int images, int high, int wide, int ins, int outs, int kernel_high, int kernel_wide, int down,
    int across, unsigned stride, unsigned top, unsigned left, int parts, int splits, int taps_read,
    int read_rows, int read_cols, int chunks, int merges) {
    await_previous();
    using Block = MmaBlock<C == 64 ? 64 : 128, C, false, false>;
    __shared__ uint4 shared[Block::SHARED / sizeof(uint4)];
    const Extents e(images, high, wide, ins, outs, kernel_high, kernel_wide, down, across, stride,
                    top, left);
    convolve<true, Block>(shared, gy, w, part, finish_of<T>(gx, nullptr, nullptr, ins), e,
                          {parts, splits});
}

// conv2d_dx_fma_fwd: conv2d_dx_mma_fwd in float.
//   for    T: f32; C: 64, 128
//   floor  bytes = images*read_rows*read_cols*outs*s + outs*taps_read*ins*s
//            + max(2 - splits, 0)*images*high*wide*ins*s
//            + min(splits - 1, 1)*splits*images*high*wide*ins*4;
//          flops = 32*C*C*chunks + 4096*merges
//   plan   conv2d_fma_fwd over gy, with the taps turned round, phase by phase; no bank conflicts,
//          gy in runs
//   code   16-byte loads
//   slack  400 (a window shares its pixels with its neighbours, and w is read for every tile down)
//   bits   fixed order of k, parts of it by one sample's extents, no atomics: repeatable, and the
//          same whatever else is in the batch
template <class T, int C>
__global__ void __launch_bounds__(256, C == 128 ? 1 : 2) conv2d_dx_fma_fwd(
    T*       __restrict__ gx,     // [images, high, wide, ins]
    float*   __restrict__ part,   // [min(splits - 1, 1)*splits*images*high*wide*ins]
    const T* __restrict__ gy,     // [images, down, across, outs]
    const T* __restrict__ w,      // [outs, kernel_high, kernel_wide, ins]
    int images, int high, int wide, int ins, int outs, int kernel_high, int kernel_wide, int down,
    int across, unsigned stride, unsigned top, unsigned left, int parts, int splits, int taps_read,
    int read_rows, int read_cols, int chunks, int merges) {
    await_previous();
    using Block = FmaBlock<C, false, false>;
    __shared__ uint4 shared[Block::SHARED / sizeof(uint4)];
    const Extents e(images, high, wide, ins, outs, kernel_high, kernel_wide, down, across, stride,
                    top, left);
    convolve<true, Block>(shared, gy, w, part, finish_of<T>(gx, nullptr, nullptr, ins), e,
                          {parts, splits});
}

// conv2d_dw_mma_fwd: gw[p, q] = sum of gy[b, i, j] x[b, i stride + p - top, j stride + q - left].
//   for    T: bf16; C: 64, 128
//   floor  bytes = images*down*across*outs*s + images*read_rows*read_cols*ins*s
//            + max(2 - splits, 0)*outs*kernel_high*kernel_wide*ins*s
//            + min(splits - 1, 1)*splits*outs*kernel_high*kernel_wide*ins*4;
//          flops = 8192*C*chunks
//   plan   gy turned over by the windows of x, k counting windows; tiles of C x C sums by mma.sync
//          as matmul_mma_fwd has them, no bank conflicts; x is read in runs
//   code   tensor cores, 16-byte loads
//   slack  400 (a pixel of x is in many windows, gy is read for every tile across)
//   bits   fixed order of windows, fixed parts of them joined in order, no atomics: repeatable
template <class T, int C>
__global__ void __launch_bounds__(128, 2) conv2d_dw_mma_fwd(
    T*       __restrict__ gw,     // [outs, kernel_high, kernel_wide, ins]
    float*   __restrict__ part,   // [min(splits - 1, 1)*splits*outs*kernel_high*kernel_wide*ins]
    const T* __restrict__ gy,     // [images, down, across, outs]
    const T* __restrict__ x,      // [images, high, wide, ins]
    int images, int high, int wide, int ins, int outs, int kernel_high, int kernel_wide, int down,
    int across, unsigned stride, unsigned top, unsigned left, int splits, int read_rows,
    int read_cols, int chunks) {
    await_previous();
    using Block = MmaBlock<C, C, true, false>;
    __shared__ uint4 shared[Block::SHARED / sizeof(uint4)];
    const Extents e(images, high, wide, ins, outs, kernel_high, kernel_wide, down, across, stride,
                    top, left);
    const int cols = kernel_high * kernel_wide * ins;
    outer<Block>(shared, gy, x, part, finish_of<T>(gw, nullptr, nullptr, cols), e, splits);
}

// conv2d_dw_fma_fwd: conv2d_dw_mma_fwd in float.
//   for    T: f32; C: 64, 128
//   floor  bytes = images*down*across*outs*s + images*read_rows*read_cols*ins*s
//            + max(2 - splits, 0)*outs*kernel_high*kernel_wide*ins*s
//            + min(splits - 1, 1)*splits*outs*kernel_high*kernel_wide*ins*4;
//          flops = 32*C*C*chunks
//   plan   gy turned over by the windows of x, k counting windows; tiles of C x C sums as
//          matmul_fma_fwd has them, no bank conflicts; x is read in runs
//   code   16-byte loads
//   slack  400 (a pixel of x is in many windows, gy is read for every tile across)
//   bits   fixed order of windows, fixed parts of them joined in order, no atomics: repeatable
template <class T, int C>
__global__ void __launch_bounds__(256, C == 128 ? 1 : 2) conv2d_dw_fma_fwd(
    T*       __restrict__ gw,     // [outs, kernel_high, kernel_wide, ins]
    float*   __restrict__ part,   // [min(splits - 1, 1)*splits*outs*kernel_high*kernel_wide*ins]
    const T* __restrict__ gy,     // [images, down, across, outs]
    const T* __restrict__ x,      // [images, high, wide, ins]
    int images, int high, int wide, int ins, int outs, int kernel_high, int kernel_wide, int down,
    int across, unsigned stride, unsigned top, unsigned left, int splits, int read_rows,
    int read_cols, int chunks) {
    await_previous();
    using Block = FmaBlock<C, true, false>;
    __shared__ uint4 shared[Block::SHARED / sizeof(uint4)];
    const Extents e(images, high, wide, ins, outs, kernel_high, kernel_wide, down, across, stride,
                    top, left);
    const int cols = kernel_high * kernel_wide * ins;
    outer<Block>(shared, gy, x, part, finish_of<T>(gw, nullptr, nullptr, cols), e, splits);
}
