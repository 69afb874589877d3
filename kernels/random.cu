// Random numbers of a named stream, bit-equal to src/tensor/philox.rs, whatever the launch.
//
// A stream is two words of key and three of tail (src/ops/random.rs). A block of Philox gives four
// numbers; a thread makes a packet.
#include "lib/order.cuh"
#include "lib/packet.cuh"
#include "lib/philox.cuh"

// Writes numbers 0..n of the stream, four at a time from f(words of their block).
template <class T, class F>
__device__ __forceinline__ void fill(T* y, unsigned n, const Stream& s, F f) {
    constexpr int N = width<T>;
    const bool packets = aligned(y);
    const unsigned step = gridDim.x * blockDim.x;
    for (unsigned p = blockIdx.x * blockDim.x + threadIdx.x; p < (n + N - 1) / N; p += step) {
        Floats<N> out;
#pragma unroll
        for (int k = 0; k < N / 4; ++k) {
            const Normals four = f(words(s, p * (N / 4) + k));
#pragma unroll
            for (int i = 0; i < 4; ++i) out.at[4 * k + i] = four.at[i];
        }
        if (packets && p < n / N) {
            store(y + p * N, out);
        } else {
#pragma unroll
            for (int i = 0; i < N; ++i) {
                if (p * N + i < n) y[p * N + i] = from_float<T>(out.at[i]);
            }
        }
    }
}

// random_uniform_fwd: uniforms in [0, 1), multiples of 2^-24.
//   for    T: f32, bf16
//   floor  bytes = n*s;  flops = n
//   plan   the grid strides over 16-byte packets
//   bits   a function of stream and place
template <class T>
__global__ void __launch_bounds__(256) random_uniform_fwd(
    T* __restrict__ y,   // [n]
    int n, unsigned key0, unsigned key1, unsigned tail0, unsigned tail1, unsigned tail2) {
    await_previous();
    fill(y, n, {{key0, key1}, {tail0, tail1, tail2}}, [](const Words& w) {
        return Normals{{unit(w.at[0]), unit(w.at[1]), unit(w.at[2]), unit(w.at[3])}};
    });
}

// random_normal_fwd: standard normals.
//   for    T: f32, bf16
//   floor  bytes = n*s;  flops = 22*n
//   plan   as random_uniform_fwd
//   bits   a function of stream and place
template <class T>
__global__ void __launch_bounds__(256) random_normal_fwd(
    T* __restrict__ y,   // [n]
    int n, unsigned key0, unsigned key1, unsigned tail0, unsigned tail1, unsigned tail2) {
    await_previous();
    fill(y, n, {{key0, key1}, {tail0, tail1, tail2}}, [](const Words& w) { return normals(w); });
}

// dropout_mask_fwd: 0 where the stream's uniform is below `rate`, else `kept`.
//   for    T: f32, bf16
//   floor  bytes = n*s;  flops = n
//   plan   as random_uniform_fwd
//   bits   a function of stream and place
template <class T>
__global__ void __launch_bounds__(256) dropout_mask_fwd(
    T* __restrict__ y,   // [n]
    int n, unsigned key0, unsigned key1, unsigned tail0, unsigned tail1, unsigned tail2,
    float rate, float kept) {
    await_previous();
    fill(y, n, {{key0, key1}, {tail0, tail1, tail2}}, [=](const Words& w) {
        Normals four;
#pragma unroll
        for (int i = 0; i < 4; ++i) four.at[i] = unit(w.at[i]) < rate ? 0.0f : kept;
        return four;
    });
}

// Writes rows of numbers, each from a stream of its own: 0.. of (the row's name, last).
template <class T, class F>
__device__ __forceinline__ void fill_rows(T* y, const int* names, unsigned rows, unsigned cols,
                                          unsigned last, F f) {
    constexpr unsigned N = width<T>;
    const bool packets = cols % N == 0 && aligned(y);
    const unsigned across = (cols + N - 1) / N, step = gridDim.x * blockDim.x;
    for (unsigned p = blockIdx.x * blockDim.x + threadIdx.x; p < rows * across; p += step) {
        const unsigned row = p / across, at = p % across;
        const Stream s = stream_of(names, row, last);
        Floats<N> out;
#pragma unroll
        for (int k = 0; k < N / 4; ++k) {
            const Normals four = f(words(s, at * (N / 4) + k));
#pragma unroll
            for (int i = 0; i < 4; ++i) out.at[4 * k + i] = four.at[i];
        }
        T* to = y + row * cols + at * N;
        if (packets) {
            store(to, out);
        } else {
#pragma unroll
            for (int i = 0; i < N; ++i) {
                if (at * N + i < cols) to[i] = from_float<T>(out.at[i]);
            }
        }
    }
}

// uniform_rows_fwd: uniforms in [0, 1), for each row those of its sample's stream.
//   for    T: f32, bf16
//   floor  bytes = rows*cols*s + 16*rows;  flops = rows*ceil(cols, 16/s)*16/s
//   plan   as random_uniform_fwd, packets of a row
//   slack  10 (rows that are no whole packets go out in single elements)
//   bits   a function of sample and place in the row: the other rows do not matter
template <class T>
__global__ void __launch_bounds__(256) uniform_rows_fwd(
    T*         __restrict__ y,       // [rows, cols]
    const int* __restrict__ names,   // [rows, 4]
    int rows, int cols, unsigned last) {
    await_previous();
    fill_rows(y, names, rows, cols, last, [](const Words& w) {
        return Normals{{unit(w.at[0]), unit(w.at[1]), unit(w.at[2]), unit(w.at[3])}};
    });
}

// normal_rows_fwd: standard normals, for each row those of its sample's stream.
//   for    T: f32, bf16
//   floor  bytes = rows*cols*s + 16*rows;  flops = 22*rows*ceil(cols, 16/s)*16/s
//   plan   as random_uniform_fwd, packets of a row
//   slack  10 (rows that are no whole packets go out in single elements)
//   bits   a function of sample and place in the row: the other rows do not matter
template <class T>
__global__ void __launch_bounds__(256) normal_rows_fwd(
    T*         __restrict__ y,       // [rows, cols]
    const int* __restrict__ names,   // [rows, 4]
    int rows, int cols, unsigned last) {
    await_previous();
    fill_rows(y, names, rows, cols, last, [](const Words& w) { return normals(w); });
}

// swap_tokens_fwd: x, but where uniform 2i of the stream is below `share`, in units of 2^-24, word
// 2i + 1 of it as an integer in 0..codes.
//   floor  bytes = 8*n;  flops = 0
//   plan   the grid strides over pairs, which share a block of words
//   slack  2.1 (a pair is 8 bytes)
//   bits   a function of stream and place
__global__ void __launch_bounds__(256) swap_tokens_fwd(
    int*       __restrict__ y,   // [n]
    const int* __restrict__ x,   // [n]
    int n, unsigned codes, unsigned key0, unsigned key1, unsigned tail0, unsigned tail1,
    unsigned tail2, unsigned share) {
    await_previous();
    const Stream s = {{key0, key1}, {tail0, tail1, tail2}};
    const unsigned all = n, step = gridDim.x * blockDim.x;
    for (unsigned p = blockIdx.x * blockDim.x + threadIdx.x; 2 * p < all; p += step) {
        const Words w = words(s, p);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const unsigned at = 2 * p + i;
            if (at >= all) break;
            const bool hit = w.at[2 * i] >> 8 < share;
            y[at] = hit ? static_cast<int>(below(w.at[2 * i + 1], codes)) : x[at];
        }
    }
}
