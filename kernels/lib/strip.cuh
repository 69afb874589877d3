// Columns of matrices: a block of 256 threads takes a strip of 32 of them and a chunk of the rows.
//
// Threads side by side have packets of N neighbouring columns of a row, the others the rows below.
// A strip of at most 128 rows is read once and kept in registers; a longer one is read again at
// every pass.
#pragma once

#include "lib/packet.cuh"
#include "lib/reduce.cuh"

constexpr int STRIP = 32;
constexpr int STRIP_WARPS = 8;
constexpr int STRIP_FLOATS = 16;  // Elements that a thread holds of a matrix.

// Which columns and rows a block works on: the strip, the number of the chunk over all images, its
// first row, and how many.
struct Chunk {
    unsigned strip, number, first, rows, cols;

    // The matrix's column that is column c of the strip.
    __device__ __forceinline__ unsigned column(unsigned c) const { return strip * STRIP + c; }
};

// N columns of a thread in M matrices, kept in registers.
template <class T, int WIDTH, int M>
struct HeldStrip {
    static constexpr int N = WIDTH;
    static constexpr int across = STRIP / N;
    static constexpr int down = WARP * STRIP_WARPS / across;
    static constexpr int steps = STRIP_FLOATS / N;
    static constexpr unsigned most = steps * down;
    Floats<N> part[steps][M];
    unsigned column, row, rows;
    bool live;

    __device__ __forceinline__ HeldStrip(const T* const (&from)[M], const Chunk& at)
        : column(at.strip * STRIP + threadIdx.x % across * N),
          row(threadIdx.x / across), rows(at.rows), live(column < at.cols) {
#pragma unroll
        for (int k = 0; k < steps; ++k) {
            if (k * down >= rows) break;
            const unsigned r = row + k * down;
            const unsigned i = (at.first + r) * at.cols + column;
#pragma unroll
            for (int m = 0; m < M; ++m) {
                if (live && r < rows) part[k][m] = load<N>(from[m] + i);
            }
        }
    }

    // Calls f(packets of the matrices, row in the chunk).
    template <class F>
    __device__ __forceinline__ void each(F f) const {
#pragma unroll
        for (int k = 0; k < steps; ++k) {
            // For the whole block, so that short chunks skip what they do not fill.
            if (k * down >= rows) break;
            const unsigned r = row + k * down;
            if (live && r < rows) f(part[k], r);
        }
    }
};

// The same, read at every pass.
template <class T, int WIDTH, int M>
struct ReadStrip {
    static constexpr int N = WIDTH;
    static constexpr int across = STRIP / N;
    static constexpr int down = WARP * STRIP_WARPS / across;
    const T* from[M];
    unsigned column, row, rows, first, cols;
    bool live;

    __device__ __forceinline__ ReadStrip(const T* const (&matrices)[M], const Chunk& at)
        : column(at.strip * STRIP + threadIdx.x % across * N), row(threadIdx.x / across),
          rows(at.rows), first(at.first), cols(at.cols), live(column < at.cols) {
#pragma unroll
        for (int m = 0; m < M; ++m) from[m] = matrices[m];
    }

    template <class F>
    __device__ __forceinline__ void each(F f) const {
        if (!live) return;
#pragma unroll 2
        for (unsigned r = row; r < rows; r += down) {
            Floats<N> part[M];
#pragma unroll
            for (int m = 0; m < M; ++m) part[m] = load<N>(from[m] + (first + r) * cols + column);
            f(part, r);
        }
    }
};

// Where sums of a strip meet: K sums a column.
template <int K>
struct Meeting {
    float part[K][STRIP_WARPS][STRIP];
    float total[K][STRIP];
};

// Sums K terms over the rows for each column: f(packets, place in a packet, terms) sets the terms
// of an element, and meet.total holds what g(which sum, column in the strip, sum) makes of the
// sums. All threads must call, and may read the totals until the next call on the same Meeting.
template <int K, class Rows, class F, class G>
__device__ __forceinline__ void column_sums(Meeting<K>& meet, const Rows& strip, F f, G g) {
    constexpr int N = Rows::N;
    Floats<N> own[K] = {};
    strip.each([&](const auto& x, unsigned) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            float term[K];
            f(x, i, term);
#pragma unroll
            for (int k = 0; k < K; ++k) own[k].at[i] += term[k];
        }
    });
    // A warp's N rows are added up: at each step a lane hands half of its columns to another, until
    // each has one column, of which it then has the sum.
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int row = lane / Rows::across, column = lane % Rows::across * N + row;
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
        for (int half = N / 2; half > 0; half /= 2) {
            const bool upper = row & half;
#pragma unroll
            for (int i = 0; i < half; ++i) {
                const float keep = upper ? own[k].at[i + half] : own[k].at[i];
                const float give = upper ? own[k].at[i] : own[k].at[i + half];
                own[k].at[i] = keep + __shfl_xor_sync(ALL_LANES, give, half * Rows::across);
            }
        }
        meet.part[k][warp][column] = own[k].at[0];
    }
    __syncthreads();
    // A warp a sum; nobody writes `part` again before all have passed the next barrier.
    if (warp < K) {
        float all = meet.part[warp][0][lane];
#pragma unroll
        for (int w = 1; w < STRIP_WARPS; ++w) all += meet.part[warp][w][lane];
        meet.total[warp][lane] = g(warp, lane, all);
    }
    __syncthreads();
}

// Images [images, rows, cols] and how their rows are cut into chunks of `step`.
struct Cut {
    unsigned images, rows, cols, step;

    __device__ __forceinline__ unsigned chunks() const { return (rows + step - 1) / step; }
    __device__ __forceinline__ unsigned strips() const { return (cols + STRIP - 1) / STRIP; }
};

__device__ __forceinline__ Cut cut(int images, int rows, int cols, int step) {
    return {static_cast<unsigned>(images), static_cast<unsigned>(rows),
            static_cast<unsigned>(cols), static_cast<unsigned>(step)};
}

// N values of a strip's columns that are this thread's.
template <class Rows>
__device__ __forceinline__ Floats<Rows::N> own_columns(const Rows&, const float* of_strip) {
    Floats<Rows::N> own;
#pragma unroll
    for (int i = 0; i < Rows::N; ++i) {
        own.at[i] = of_strip[threadIdx.x % Rows::across * Rows::N + i];
    }
    return own;
}

// Calls f(HeldStrip or ReadStrip, Chunk) for every strip of every chunk of every image, a block
// each.
template <class T, int M, class F>
__device__ __forceinline__ void each_strip(
    const T* const (&from)[M], const Cut& cut, bool packets, F f) {
    constexpr int N = width<T>;
    const unsigned strips = cut.strips(), chunks = cut.chunks();
    for (unsigned job = blockIdx.x; job < strips * chunks * cut.images; job += gridDim.x) {
        const unsigned number = job / strips, image = number / chunks;
        const unsigned skipped = number % chunks * cut.step, left = cut.rows - skipped;
        const Chunk at = {job % strips, number, image * cut.rows + skipped,
                          left < cut.step ? left : cut.step, cut.cols};
        const bool fits = at.rows <= HeldStrip<T, N, M>::most;
        if (fits && packets) {
            f(HeldStrip<T, N, M>(from, at), at);
        } else if (fits) {
            f(HeldStrip<T, 1, M>(from, at), at);
        } else if (packets) {
            f(ReadStrip<T, N, M>(from, at), at);
        } else {
            f(ReadStrip<T, 1, M>(from, at), at);
        }
    }
}
