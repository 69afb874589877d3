// Depthwise convolution over channels-last maps: each channel has its own small filter
// (src/ops/depthwise.rs).
#include "lib/order.cuh"
#include "lib/packet.cuh"

// depthwise_conv_fwd: y[n, i, j] = b + sum of x[n, stride i + p - before, stride j + q - before]
// w[p, q] over the taps that lie inside x, for each channel.
//   for    T: f32, bf16
//   floor  bytes = (images*out_high*out_wide + 1)*channels*s;
//          flops = 2*images*row_taps*col_taps*channels
//   plan   a thread a 16-byte packet of the channels of an output; reads x in runs of a pixel, once
//          for each window it is in, from a cache; row_taps and col_taps, the pairs of window and
//          tap that lie inside x, are for this card
//   code   16-byte loads
//   slack  60 (as many taps as an output has)
//   bits   one element, one thread, taps in order: repeatable
template <class T>
__global__ void __launch_bounds__(256) depthwise_conv_fwd(
    T*       __restrict__ y,   // [images, out_high, out_wide, channels]
    const T* __restrict__ x,   // [images, high, wide, channels]
    const T* __restrict__ w,   // [taps, taps, channels]
    const T* __restrict__ b,   // [channels]
    int images, int high, int wide, int channels, int taps, int out_high, int out_wide,
    unsigned stride, unsigned before, int row_taps, int col_taps) {
    await_previous();
    const bool packets = channels % width<T> == 0 && aligned(y, x, w, b);
    const unsigned depth = channels, rows = high, cols = wide, k = taps;
    const unsigned all = static_cast<unsigned>(images) * out_high * out_wide * depth;
    each<T>(all, packets, [&](unsigned at, auto n) {
        constexpr int N = decltype(n)::value;
        const unsigned c = at % depth, pixel = at / depth;
        const unsigned j = pixel % out_wide, i = pixel / out_wide % out_high;
        const unsigned image = pixel / out_wide / out_high;
        Floats<N> sum = load<N>(b + c);
        for (unsigned p = 0; p < k; ++p) {
            // Wraps round in the padding before the map, which makes it too large as well.
            const unsigned row = i * stride + p - before;
            if (row >= rows) continue;
            for (unsigned q = 0; q < k; ++q) {
                const unsigned col = j * stride + q - before;
                if (col >= cols) continue;
                const auto own = load<N>(x + ((image * rows + row) * cols + col) * depth + c);
                const auto tap = load<N>(w + (p * k + q) * depth + c);
#pragma unroll
                for (int e = 0; e < N; ++e) sum.at[e] = fmaf(own.at[e], tap.at[e], sum.at[e]);
            }
        }
        store(y + at, sum);
    });
}
