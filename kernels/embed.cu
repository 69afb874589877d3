// Embeddings: rows of a table by index, their adjoint, and the sinusoidal embedding of a time
// (src/ops/embed.rs).
//
// The adjoint sums rows of equal index in the order in which they stand, so that its bits do not
// depend on the order of threads: the indices are sorted first, stably, by counting.
#include "lib/math.cuh"
#include "lib/order.cuh"
#include "lib/packet.cuh"
#include "lib/reduce.cuh"

// gather_rows_fwd: y[j] = table[idx[j]]; NaN where the index is no row.
//   for    T: f32, bf16
//   floor  bytes = count*cols*s + 4*count;  flops = 0
//   plan   the grid strides over 16-byte packets of y, single elements where rows are odd; reads
//          the table in runs, equal ones at once
//   code   16-byte loads
//   slack  2.1 for cols >= 64; 10 beyond (a sector or two for each row)
//   bits   copies
template <class T>
__global__ void __launch_bounds__(256) gather_rows_fwd(
    T*         __restrict__ y,       // [count, cols]
    const T*   __restrict__ table,   // [rows, cols]
    const int* __restrict__ idx,     // [count]
    int rows, int cols, int count) {
    await_previous();
    const bool packets = cols % width<T> == 0 && aligned(y, table);
    const unsigned length = cols, known = rows;
    each<T>(static_cast<unsigned>(count) * length, packets, [&](unsigned i, auto w) {
        constexpr int N = decltype(w)::value;
        const unsigned row = idx[i / length], c = i % length;
        if (row < known) {
            move<N>(y + i, table + row * length + c);
        } else {
            Floats<N> none;
#pragma unroll
            for (int k = 0; k < N; ++k) none.at[k] = not_a_number();
            store(y + i, none);
        }
    });
}

// Indices that a block ranks among each other.
constexpr int RANKED = 256;

// scatter_rows_rank_fwd: for each chunk of 256 indices, how often each row is named in it, and for
// each index how many equal ones precede it there.
//   floor  bytes = 8*count + 4*ceil(count, 256)*rows;  flops = 0
//   plan   a block a chunk; a thread compares its index with those before it, in shared memory
//   slack  6 (counts are written where their rows are)
//   bits   whole numbers
__global__ void __launch_bounds__(256) scatter_rows_rank_fwd(
    int*       __restrict__ counts,   // [ceil(count, 256), rows]
    int*       __restrict__ ranks,    // [count]
    const int* __restrict__ idx,      // [count]
    int rows, int count) {
    await_previous();
    __shared__ int own[RANKED];
    const unsigned all = count, known = rows, chunks = (all + RANKED - 1) / RANKED;
    for (unsigned chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
        const unsigned j = chunk * RANKED + threadIdx.x;
        const int row = j < all ? idx[j] : -1;
        own[threadIdx.x] = row;
        for (unsigned r = threadIdx.x; r < known; r += RANKED) counts[chunk * known + r] = 0;
        __syncthreads();
        int before = 0, equal = 0;
        for (int k = 0; k < RANKED; ++k) {
            const int same = own[k] == row;
            equal += same;
            before += k < threadIdx.x ? same : 0;
        }
        if (j < all) ranks[j] = before;
        // The last of equal ones tells their number.
        const bool tells = static_cast<unsigned>(row) < known && before + 1 == equal;
        if (tells) counts[chunk * known + row] = equal;
        __syncthreads();
    }
}

// scatter_rows_begin_fwd: where each row's indices begin in their sorted order, and where each
// chunk's share of them does.
//   floor  bytes = 8*ceil(count, 256)*rows + 4*rows + 4;  flops = 0
//   plan   one block: a thread a row and a scan over the threads, 1024 rows after another
//   bits   whole numbers
__global__ void __launch_bounds__(1024) scatter_rows_begin_fwd(
    int*       __restrict__ places,   // [ceil(count, 256), rows]
    int*       __restrict__ begins,   // [rows + 1]
    const int* __restrict__ counts,   // [ceil(count, 256), rows]
    int rows, int count) {
    await_previous();
    __shared__ int sums[WARP];
    const unsigned known = rows, chunks = (static_cast<unsigned>(count) + RANKED - 1) / RANKED;
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int begin = 0;
    for (unsigned first = 0; first < known; first += blockDim.x) {
        const unsigned row = first + threadIdx.x;
        int own = 0;
        for (unsigned k = 0; row < known && k < chunks; ++k) {
            places[k * known + row] = own;
            own += counts[k * known + row];
        }
        int upto = own;
#pragma unroll
        for (int step = 1; step < WARP; step *= 2) {
            const int other = __shfl_up_sync(ALL_LANES, upto, step);
            upto += lane >= step ? other : 0;
        }
        if (lane == WARP - 1) sums[warp] = upto;
        __syncthreads();
        int before = 0, all = 0;
        for (unsigned k = 0; k < blockDim.x / WARP; ++k) {
            before += k < warp ? sums[k] : 0;
            all += sums[k];
        }
        if (row < known) begins[row] = begin + before + upto - own;
        begin += all;
        __syncthreads();
    }
    if (threadIdx.x == 0) begins[known] = begin;
}

// scatter_rows_order_fwd: the indices' positions, sorted by row and then as they stand; those that
// name no row are left out.
//   floor  bytes = 12*count;  flops = 0
//   plan   a thread an index, which reads and writes in runs of one
//   slack  9 (begins, places and the order are met where the indices' rows are)
//   bits   whole numbers
__global__ void __launch_bounds__(256) scatter_rows_order_fwd(
    int*       __restrict__ order,    // [count]
    const int* __restrict__ places,   // [ceil(count, 256), rows]
    const int* __restrict__ begins,   // [rows + 1]
    const int* __restrict__ ranks,    // [count]
    const int* __restrict__ idx,      // [count]
    int rows, int count) {
    await_previous();
    const unsigned all = count, known = rows;
    unsigned j = blockIdx.x * blockDim.x + threadIdx.x;
    for (; j < all; j += gridDim.x * blockDim.x) {
        const unsigned row = idx[j];
        if (row < known) order[begins[row] + places[j / RANKED * known + row] + ranks[j]] = j;
    }
}

// Warps that share a row's terms.
constexpr int SUMMING = 8;

// scatter_rows_sum_fwd: y[row] = sum of g over the positions that scatter_rows_order_fwd put there.
//   for    T: f32, bf16
//   floor  bytes = (count + rows)*cols*s + 4*count*ceil(cols*s, 512) + 8*rows*ceil(cols*s, 512);
//          flops = count*cols + 7*rows*cols
//   plan   a block for a row and 32 packets of its columns; each of 8 warps takes every 8th term,
//          then the 8 sums in order
//   code   16-byte loads
//   bits   fixed order, no atomics: repeatable
template <class T>
__global__ void __launch_bounds__(256) scatter_rows_sum_fwd(
    T*         __restrict__ y,        // [rows, cols]
    const T*   __restrict__ g,        // [count, cols]
    const int* __restrict__ order,    // [count]
    const int* __restrict__ begins,   // [rows + 1]
    int rows, int cols, int count) {
    await_previous();
    constexpr int N = width<T>;
    __shared__ float part[SUMMING][WARP * N];
    const bool packets = cols % N == 0 && aligned(y, g);
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, length = cols;
    const unsigned strips = (length + WARP * N - 1) / (WARP * N);
    for (unsigned job = blockIdx.x; job < rows * strips; job += gridDim.x) {
        const unsigned row = job / strips, first = job % strips * (WARP * N);
        const unsigned begin = begins[row], end = begins[row + 1];
        const auto sum = [&](auto w) {
            constexpr int M = decltype(w)::value;
#pragma unroll
            for (int k = 0; k < N / M; ++k) {
                const unsigned c = (k * WARP + lane) * M;
                Floats<M> own = {};
                for (unsigned t = begin + warp; first + c < length && t < end; t += SUMMING) {
                    const Floats<M> x = load<M>(g + order[t] * length + first + c);
#pragma unroll
                    for (int i = 0; i < M; ++i) own.at[i] += x.at[i];
                }
#pragma unroll
                for (int i = 0; i < M; ++i) part[warp][c + i] = own.at[i];
            }
        };
        if (packets) {
            sum(Width<N>());
        } else {
            sum(Width<1>());
        }
        __syncthreads();
        for (unsigned c = threadIdx.x; c < WARP * N && first + c < length; c += blockDim.x) {
            float all = part[0][c];
#pragma unroll
            for (int k = 1; k < SUMMING; ++k) all += part[k][c];
            y[row * length + first + c] = from_float<T>(all);
        }
        __syncthreads();
    }
}

// Cosine and sine, rounded once. In double, for a factor of the angle is rounded nowhere then;
// beyond 2^30 turns the angle has no digits left and any point of the circle will do.
__device__ __forceinline__ float2 cos_sin(double angle) {
    const double turns = rint(angle * 0.6366197723675814);
    double x = fma(-turns, 1.5707963267948966, angle);
    x = fma(-turns, 6.123233995736766e-17, x);
    x = x > 0.7853981633974484 ? 0.7853981633974484 : x;
    x = x < -0.7853981633974484 ? -0.7853981633974484 : x;
    const double q = x * x;
    double s = fma(q, -2.5050747e-8, 2.75573136e-6);
    s = fma(q, s, -1.98412698e-4);
    s = fma(q, s, 8.3333333333e-3);
    s = fma(q, s, -0.16666666666666666);
    s = fma(q * x, s, x);
    double c = fma(q, 2.0875723e-9, -2.75573144e-7);
    c = fma(q, c, 2.48015873e-5);
    c = fma(q, c, -1.38888888888e-3);
    c = fma(q, c, 4.1666666666666664e-2);
    c = fma(q, c, -0.5);
    c = fma(q, c, 1.0);
    const long long quarter = static_cast<long long>(turns) & 3;
    const double a = quarter & 1 ? s : c, b = quarter & 1 ? c : s;
    return make_float2(quarter == 1 || quarter == 2 ? -a : a, quarter & 2 ? -b : b);
}

// Calls f(place of the left half's element, cos, sin, frequency) for every time and frequency
// e^(-fall i) with i in 0..half.
template <class T, class F>
__device__ __forceinline__ void each_angle(const T* t, int count, int half, double fall, F f) {
    const unsigned all = static_cast<unsigned>(count) * half;
    unsigned j = blockIdx.x * blockDim.x + threadIdx.x;
    for (; j < all; j += gridDim.x * blockDim.x) {
        const unsigned row = j / half, i = j % half;
        const double frequency = exp(-fall * i);
        const float2 turn = cos_sin(to_float(t[row]) * frequency);
        f(2 * row * half + i, turn.x, turn.y, static_cast<float>(frequency));
    }
}

// time_embed_fwd: y = cos(t f_i) | sin(t f_i) with f_i = e^(-fall i) for i in 0..half.
//   for    T: f32, bf16
//   floor  bytes = 2*count*half*s + count*s;  flops = 60*count*half
//   plan   a thread a frequency of a time; frequencies and angles in double
//   slack  1.3 for half >= 32; 9 beyond (halves begin inside a sector)
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) time_embed_fwd(
    T*       __restrict__ y,   // [count, 2, half]
    const T* __restrict__ t,   // [count]
    int count, int half, double fall) {
    await_previous();
    each_angle(t, count, half, fall, [&](unsigned at, float c, float s, float) {
        y[at] = from_float<T>(c);
        y[at + half] = from_float<T>(s);
    });
}

// time_embed_slope_fwd: the derivative of time_embed_fwd by t: -sin(t f_i) f_i | cos(t f_i) f_i.
//   for    T: f32, bf16
//   floor  bytes = 2*count*half*s + count*s;  flops = 62*count*half
//   plan   as time_embed_fwd
//   slack  1.3 for half >= 32; 9 beyond (halves begin inside a sector)
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) time_embed_slope_fwd(
    T*       __restrict__ y,   // [count, 2, half]
    const T* __restrict__ t,   // [count]
    int count, int half, double fall) {
    await_previous();
    each_angle(t, count, half, fall, [&](unsigned at, float c, float s, float f) {
        y[at] = from_float<T>(-(s * f));
        y[at + half] = from_float<T>(c * f);
    });
}

// time_embed_dual_fwd: time_embed_fwd and its tangent, dy = -sin(t f_i) f_i dt | cos(t f_i) f_i dt.
//   for    T: f32, bf16
//   floor  bytes = 4*count*half*s + 2*count*s;  flops = 64*count*half
//   plan   as time_embed_fwd; one sine and one cosine for both
//   slack  1.5 for half >= 32; 9 beyond (halves begin inside a sector)
//   bits   one element, one thread: repeatable
template <class T>
__global__ void __launch_bounds__(256) time_embed_dual_fwd(
    T*       __restrict__ y,    // [count, 2, half]
    T*       __restrict__ dy,   // [count, 2, half]
    const T* __restrict__ t,    // [count]
    const T* __restrict__ dt,   // [count]
    int count, int half, double fall) {
    await_previous();
    each_angle(t, count, half, fall, [&](unsigned at, float c, float s, float f) {
        const float d = to_float(dt[at / (2 * half)]);
        y[at] = from_float<T>(c);
        y[at + half] = from_float<T>(s);
        dy[at] = from_float<T>(-(s * f) * d);
        dy[at + half] = from_float<T>(c * f * d);
    });
}
