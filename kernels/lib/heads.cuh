// Attention's rows: parts of a head in shared memory, products of such parts, and which keys a
// query sees.
//
// 256 threads stand as 16 by 16. Of a tile of ROWS by COLS a thread has the rows threadIdx.x / 16 *
// ROWS / 16 .. and every 16th column from threadIdx.x % 16 on.
#pragma once

#include "lib/packet.cuh"

constexpr int SIDE = 16;

__device__ __forceinline__ float infinite() { return __int_as_float(0x7f800000); }

// The logarithm of a sum of e^(s - top). The sum is 0 where all scores are -inf: then it is NaN, as
// the softmax is.
__device__ __forceinline__ float log_sum(float top, float total) {
    return total == 0.0f ? __int_as_float(0x7fc00000) : top + logf(total);
}

// Calls f(sample, head, tile) for all tiles of all heads.
template <class F>
__device__ __forceinline__ void each_tile(int batch, int heads, int tiles, F f) {
    for (int job = blockIdx.x; job < batch * heads * tiles; job += gridDim.x) {
        f(static_cast<unsigned>(job / tiles / heads), static_cast<unsigned>(job / tiles % heads),
          job % tiles);
        // The next tile overwrites what slower threads still read.
        __syncthreads();
    }
}

// Ends of the scales among the queries, 16 bits each, ascending; the first 0 ends the list. An
// empty list is one scale. A query sees all keys up to the end of its own scale.
struct Ends {
    unsigned long long at[4];
};

// Rows first..end of queries that see `seen` keys, or keys that the queries from `from` on see.
struct Stretch {
    int first, end, seen, from;
};

// Calls f(from, to) for each scale's queries, once also where there are none.
template <class F>
__device__ __forceinline__ void each_scale(const Ends& ends, int queries, F f) {
    int from = 0;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        int to = static_cast<int>(ends.at[i / 4] >> (16 * (i % 4)) & 0xffff);
        if (i == 0 && to == 0) to = queries;
        if (to > from || i == 0) {
            f(from, to);
            from = to;
        }
    }
}

// Tile number `tile` of queries: at most `rows` of one scale.
__device__ __forceinline__ Stretch query_tile(int tile, int rows, int queries, int keys,
                                              const Ends& ends) {
    Stretch found{0, 0, 0, 0};
    each_scale(ends, queries, [&](int from, int to) {
        const int count = (to - from + rows - 1) / rows;
        if (tile >= 0 && tile < count) {
            const int first = from + tile * rows;
            found = {first, min(to, first + rows), to + keys - queries, 0};
        }
        tile -= count;
    });
    return found;
}

// Tile number `tile` of keys: at most `rows` of one scale, the first having all keys before it.
__device__ __forceinline__ Stretch key_tile(int tile, int rows, int queries, int keys,
                                            const Ends& ends) {
    Stretch found{0, 0, 0, 0};
    each_scale(ends, queries, [&](int from, int to) {
        const int begin = from == 0 ? 0 : from + keys - queries, end = to + keys - queries;
        const int count = (end - begin + rows - 1) / rows;
        if (tile >= 0 && tile < count) {
            const int first = begin + tile * rows;
            found = {first, min(end, first + rows), 0, from};
        }
        tile -= count;
    });
    return found;
}

// Extents of queries or keys [batch, rows, heads, width], and one head of one sample.
struct Head {
    unsigned rows, heads, width, sample, head;
    __device__ __forceinline__ unsigned at(unsigned row) const {
        return ((sample * rows + row) * heads + head) * width;
    }
};

// A part of a head: ROWS rows of D floats, zeros beyond what there is.
template <int ROWS, int D>
struct Part {
    // 4 more: rows lie 4 banks apart, so that 8 threads on 8 rows read 16 bytes without conflict.
    float at[ROWS][D + 4];

    // `count` rows from `first` on.
    template <class T>
    __device__ __forceinline__ void fill(const T* from, const Head& h, int first, int count) {
        const bool packets = h.width % 4 == 0 && aligned(from);
        for (int i = threadIdx.x; i < ROWS * (D / 4); i += SIDE * SIDE) {
            const int row = i / (D / 4), col = i % (D / 4) * 4;
            const T* p = from + h.at(first + row) + col;
            float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (row < count && packets && col < static_cast<int>(h.width)) {
                v = four(p);
            } else if (row < count) {
                const int left = static_cast<int>(h.width) - col;
                if (left > 0) v.x = to_float(p[0]);
                if (left > 1) v.y = to_float(p[1]);
                if (left > 2) v.z = to_float(p[2]);
                if (left > 3) v.w = to_float(p[3]);
            }
            *reinterpret_cast<float4*>(&at[row][col]) = v;
        }
    }

    static __device__ __forceinline__ float4 four(const float* p) {
        return *reinterpret_cast<const float4*>(p);
    }
    static __device__ __forceinline__ float4 four(const bf16* p) {
        const uint2 v = *reinterpret_cast<const uint2*>(p);
        return make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u),
                           __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xffff0000u));
    }
};

// A tile of weights between two products.
template <int ROWS, int COLS>
struct Weights {
    // What two neighbouring threads of a column write lies 16 banks apart.
    static constexpr int STRIDE = ROWS == SIDE ? (COLS + 16) / 32 * 32 + 16 : COLS + 8;
    float at[ROWS][STRIDE];
};

// A thread's elements of a tile of ROWS by COLS.
template <int ROWS, int COLS>
struct Tile {
    static constexpr int R = ROWS / SIDE, C = COLS / SIDE;
    float at[R][C];

    static __device__ __forceinline__ int row(int r) { return threadIdx.x / SIDE * R + r; }
    static __device__ __forceinline__ int col(int c) { return threadIdx.x % SIDE + c * SIDE; }

    __device__ __forceinline__ void zero() {
#pragma unroll
        for (int r = 0; r < R; ++r) {
#pragma unroll
            for (int c = 0; c < C; ++c) at[r][c] = 0.0f;
        }
    }

    // Adds a b^T.
    template <int D>
    __device__ __forceinline__ void add(const Part<ROWS, D>& a, const Part<COLS, D>& b) {
#pragma unroll 4
        for (int k = 0; k < D; k += 4) {
            float4 x[R];
#pragma unroll
            for (int r = 0; r < R; ++r) {
                x[r] = *reinterpret_cast<const float4*>(&a.at[row(r)][k]);
            }
#pragma unroll
            for (int c = 0; c < C; ++c) {
                const float4 y = *reinterpret_cast<const float4*>(&b.at[col(c)][k]);
#pragma unroll
                for (int r = 0; r < R; ++r) {
                    float sum = at[r][c];
                    sum = fmaf(x[r].x, y.x, sum);
                    sum = fmaf(x[r].y, y.y, sum);
                    sum = fmaf(x[r].z, y.z, sum);
                    at[r][c] = fmaf(x[r].w, y.w, sum);
                }
            }
        }
    }

    __device__ __forceinline__ void put(Weights<ROWS, COLS>& to) const {
#pragma unroll
        for (int r = 0; r < R; ++r) {
#pragma unroll
            for (int c = 0; c < C; ++c) to.at[row(r)][col(c)] = at[r][c];
        }
    }
};

// The sum over the 16 threads of a row, in all of them.
__device__ __forceinline__ float row_sum(float x) {
#pragma unroll
    for (int step = SIDE / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

// The largest over the 16 threads of a row; NaN is passed over.
__device__ __forceinline__ float row_max(float x) {
#pragma unroll
    for (int step = SIDE / 2; step > 0; step /= 2) {
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    }
    return x;
}

// A thread's part of ROWS rows of D results: neighbouring columns in runs of W.
template <int ROWS, int D>
struct Rows {
    static constexpr int R = ROWS / SIDE, V = D / SIDE, W = V < 4 ? V : 4;
    float at[R][V];

    static __device__ __forceinline__ int row(int r) { return threadIdx.x / SIDE * R + r; }
    static __device__ __forceinline__ int col(int run) {
        return run * SIDE * W + threadIdx.x % SIDE * W;
    }

    __device__ __forceinline__ void zero() {
#pragma unroll
        for (int r = 0; r < R; ++r) {
#pragma unroll
            for (int i = 0; i < V; ++i) at[r][i] = 0.0f;
        }
    }

    // Adds w b.
    template <int COLS>
    __device__ __forceinline__ void add(const Weights<ROWS, COLS>& w, const Part<COLS, D>& b) {
#pragma unroll 2
        for (int k = 0; k < COLS; k += 4) {
            float x[R][4];
#pragma unroll
            for (int r = 0; r < R; ++r) {
                const float4 v = *reinterpret_cast<const float4*>(&w.at[row(r)][k]);
                x[r][0] = v.x, x[r][1] = v.y, x[r][2] = v.z, x[r][3] = v.w;
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
#pragma unroll
                for (int i = 0; i < V; i += W) {
                    float y[W];
                    take_run(&b.at[k + j][col(i / W)], y);
#pragma unroll
                    for (int r = 0; r < R; ++r) {
#pragma unroll
                        for (int l = 0; l < W; ++l) {
                            at[r][i + l] = fmaf(x[r][j], y[l], at[r][i + l]);
                        }
                    }
                }
            }
        }
    }

    // Writes rows 0..count times factor(r) to rows `first` .. of a head.
    template <class T, class F>
    __device__ __forceinline__ void put(T* to, const Head& h, int first, int count,
                                        F factor) const {
        const bool packets = h.width % 4 == 0 && aligned(to);
#pragma unroll
        for (int r = 0; r < R; ++r) {
            if (row(r) >= count) continue;
            const float by = factor(r);
            T* out = to + h.at(first + row(r));
#pragma unroll
            for (int i = 0; i < V; i += W) {
                const int c = col(i / W);
                float v[W];
#pragma unroll
                for (int j = 0; j < W; ++j) v[j] = at[r][i + j] * by;
                if (packets && c < static_cast<int>(h.width)) {
                    put_run(out + c, v);
                    continue;
                }
#pragma unroll
                for (int j = 0; j < W; ++j) {
                    if (c + j < static_cast<int>(h.width)) out[c + j] = from_float<T>(v[j]);
                }
            }
        }
    }

    // A run in one load: in single ones every fourth bank would be met twice.
    static __device__ __forceinline__ void take_run(const float* from, float (&v)[W]) {
        if constexpr (W == 4) {
            const float4 x = *reinterpret_cast<const float4*>(from);
            v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
        } else {
            const float2 x = *reinterpret_cast<const float2*>(from);
            v[0] = x.x, v[1] = x.y;
        }
    }

    static __device__ __forceinline__ void put_run(float* to, const float (&v)[W]) {
        if constexpr (W == 4) {
            *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
        } else {
            *reinterpret_cast<float2*>(to) = make_float2(v[0], v[1]);
        }
    }
    static __device__ __forceinline__ void put_run(bf16* to, const float (&v)[W]) {
        if constexpr (W == 4) {
            *reinterpret_cast<uint2*>(to) =
                make_uint2(to_bf16x2(v[0], v[1]), to_bf16x2(v[2], v[3]));
        } else {
            *reinterpret_cast<unsigned*>(to) = to_bf16x2(v[0], v[1]);
        }
    }
};
