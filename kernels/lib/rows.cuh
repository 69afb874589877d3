// Rows of matrices, a warp each.
//
// Rows of at most 1024 columns (512 where two are worked on together) stay in registers between the
// passes; longer ones are read again, from a cache where they fit.
#pragma once

#include "lib/packet.cuh"
#include "lib/reduce.cuh"

// Elements that a lane holds of each of so many rows.
template <int ROWS>
constexpr int held = 32 / ROWS;

// Columns of up to two rows, N neighbours at a time, held in registers: lane l has packets l,
// l + 32, ...
template <class T, int N, int ROWS>
struct Held {
    Floats<N> part[held<ROWS> / N][ROWS];
    int cols;

    __device__ __forceinline__ Held(const T* const (&rows)[ROWS], int cols) : cols(cols) {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int k = 0; k < held<ROWS> / N; ++k) {
            if (k * WARP * N >= cols) break;
            const int c = (k * WARP + lane) * N;
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                if (c < cols) part[k][r] = load<N>(rows[r] + c);
            }
        }
    }

    // Calls f(packets of the rows, first column).
    template <class F>
    __device__ __forceinline__ void each(F f) const {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int k = 0; k < held<ROWS> / N; ++k) {
            // For the whole warp, so that short rows skip what they do not fill.
            if (k * WARP * N >= cols) break;
            const int c = (k * WARP + lane) * N;
            if (c < cols) f(part[k], c);
        }
    }
};

// The same columns in the same order, read at every pass.
template <class T, int N, int ROWS>
struct Reread {
    const T* rows[ROWS];
    int cols;

    __device__ __forceinline__ Reread(const T* const (&from)[ROWS], int cols) : cols(cols) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) rows[r] = from[r];
    }

    template <class F>
    __device__ __forceinline__ void each(F f) const {
        const int lane = threadIdx.x % WARP;
#pragma unroll 2
        for (int c = lane * N; c < cols; c += WARP * N) {
            Floats<N> part[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; ++r) part[r] = load<N>(rows[r] + c);
            f(part, c);
        }
    }
};

// The sum over a row of f(packets, place in a packet), the same in all lanes.
template <class Rows, class F>
__device__ __forceinline__ float row_sum(const Rows& rows, F f) {
    float sum = 0.0f;
    rows.each([&](const auto& x, int) {
#pragma unroll
        for (int i = 0; i < sizeof(x[0]) / sizeof(float); ++i) sum += f(x, i);
    });
    return warp_sum(sum);
}

// Writes f(packets, place in a packet) to a row.
template <class T, class Rows, class F>
__device__ __forceinline__ void row_store(T* y, const Rows& rows, F f) {
    rows.each([&](const auto& x, int c) {
        constexpr int N = sizeof(x[0]) / sizeof(float);
        Floats<N> out;
#pragma unroll
        for (int i = 0; i < N; ++i) out.at[i] = f(x, i);
        store(y + c, out);
    });
}

// Where row r begins.
__device__ __forceinline__ unsigned long long row_at(unsigned r, int cols) {
    return static_cast<unsigned long long>(r) * cols;
}

// Calls f(row number, Rows) for every row of a matrix of `cols` columns, a warp each.
template <class T, int ROWS, class F>
__device__ __forceinline__ void each_row(
    const T* const (&from)[ROWS], int count, int cols, bool packets, F f) {
    constexpr int N = width<T>;
    const unsigned warps = gridDim.x * (blockDim.x / WARP);
    unsigned r = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    for (; r < static_cast<unsigned>(count); r += warps) {
        const T* rows[ROWS];
#pragma unroll
        for (int k = 0; k < ROWS; ++k) rows[k] = from[k] + row_at(r, cols);
        const bool fits = cols <= held<ROWS> * WARP;
        if (fits && packets) {
            f(r, Held<T, N, ROWS>(rows, cols));
        } else if (fits) {
            f(r, Held<T, 1, ROWS>(rows, cols));
        } else if (packets) {
            f(r, Reread<T, N, ROWS>(rows, cols));
        } else {
            f(r, Reread<T, 1, ROWS>(rows, cols));
        }
    }
}

// The same without holding rows, for what reads each only once.
template <class T, int ROWS, class F>
__device__ __forceinline__ void each_row_read(
    const T* const (&from)[ROWS], int count, int cols, bool packets, F f) {
    constexpr int N = width<T>;
    const unsigned warps = gridDim.x * (blockDim.x / WARP);
    unsigned r = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    for (; r < static_cast<unsigned>(count); r += warps) {
        const T* rows[ROWS];
#pragma unroll
        for (int k = 0; k < ROWS; ++k) rows[k] = from[k] + row_at(r, cols);
        if (packets) {
            f(r, Reread<T, N, ROWS>(rows, cols));
        } else {
            f(r, Reread<T, 1, ROWS>(rows, cols));
        }
    }
}
