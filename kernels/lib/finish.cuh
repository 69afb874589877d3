// What becomes of a sum: y = residual + gate * act(sum + bias), any part absent; and of a sum over
// a part.
#pragma once

#include "lib/math.cuh"
#include "lib/packet.cuh"

// Activations by number, as src/ops/gemm counts them.
constexpr int ACT_NONE = 0, ACT_GELU = 1, ACT_SILU = 2;

template <class T>
struct Finish {
    T* y;
    // The argument of the activation, for the backward pass; null as the others where not wanted.
    T* kept;
    const T* bias;
    const T* residual;
    const T* gate;
    // Rows that share a row of the gate, columns of y.
    unsigned each, cols;
    int act;
    // What rows are counted from.
    unsigned row0;
    // Columns of y that lie together, all rows of them before those of the next ones; 0: all.
    unsigned piece = 0, rows = 0;

    // Whether four neighbours can be moved at once.
    __device__ __forceinline__ bool fours() const {
        return cols % 4 == 0 && piece % 4 == 0 && aligned(y, kept, bias, residual, gate);
    }

    // Where a sum lies in y.
    __device__ __forceinline__ unsigned place(unsigned row, unsigned col) const {
        if (piece == 0) return (row0 + row) * cols + col;
        return (col / piece * rows + row0 + row) * piece + col % piece;
    }

    // The same for rows counted from row `first`.
    __device__ __forceinline__ Finish from_row(unsigned first) const {
        Finish other = *this;
        other.row0 = row0 + first;
        return other;
    }

    // What the epilogue reads beside N neighbours of a row.
    template <int N>
    struct Beside {
        Floats<N> bias, gate, residual;
    };

    template <int N>
    __device__ __forceinline__ Beside<N> read(unsigned row, unsigned col) const {
        Beside<N> b = {};
        if (bias != nullptr) b.bias = load<N>(bias + col);
        if (gate != nullptr) b.gate = load<N>(gate + (row0 + row) / each * cols + col);
        if (residual != nullptr) b.residual = load<N>(residual + (row0 + row) * cols + col);
        return b;
    }

    template <int N>
    __device__ __forceinline__ void write(unsigned row, unsigned col, Floats<N> v,
                                          const Beside<N>& b) const {
        const unsigned at = (row0 + row) * cols + col;
        if (bias != nullptr) {
#pragma unroll
            for (int i = 0; i < N; ++i) v.at[i] += b.bias.at[i];
        }
        if (kept != nullptr) store(kept + at, v);
        if (act != ACT_NONE) {
#pragma unroll
            for (int i = 0; i < N; ++i) {
                v.at[i] = act == ACT_GELU ? gelu(v.at[i]) : silu(v.at[i]);
            }
        }
        if (gate != nullptr) {
#pragma unroll
            for (int i = 0; i < N; ++i) v.at[i] *= b.gate.at[i];
        }
        if (residual != nullptr) {
#pragma unroll
            for (int i = 0; i < N; ++i) v.at[i] += b.residual.at[i];
        }
        store(y + place(row, col), v);
    }

    template <int N>
    __device__ __forceinline__ void operator()(unsigned row, unsigned col, Floats<N> v) const {
        write(row, col, v, read<N>(row, col));
    }
};

// The parts of a launch's epilogue that are there.
template <class T>
__device__ __forceinline__ Finish<T> finish_of(
    T* y, T* kept, const T* bias, const T* residual, const T* gate, int rows, int cols, int keep,
    int biased, int added, int gates, int act, int piece) {
    return {y,
            keep ? kept : nullptr,
            biased ? bias : nullptr,
            added ? residual : nullptr,
            gates ? gate : nullptr,
            gates ? static_cast<unsigned>(rows) / gates : 1,
            static_cast<unsigned>(cols),
            act,
            0,
            static_cast<unsigned>(piece),
            static_cast<unsigned>(rows)};
}

// Where the sums over a part of k go: as they are to lines of `cols`.
struct Parts {
    float* line;
    unsigned cols;

    template <int N>
    struct Beside {};

    __device__ __forceinline__ bool fours() const { return cols % 4 == 0 && aligned(line); }

    template <int N>
    __device__ __forceinline__ Beside<N> read(unsigned, unsigned) const {
        return {};
    }

    template <int N>
    __device__ __forceinline__ void write(unsigned row, unsigned col, const Floats<N>& v,
                                          Beside<N>) const {
        store(line + row * cols + col, v);
    }
};
