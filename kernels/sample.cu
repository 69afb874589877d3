// Drawing tokens: top-k, top-p, then the inverse of the cumulative distribution in index order
// (src/ops/sample.rs), without a sort.
//
// Logits are ranked by an integer that orders like them, so that the k-th largest is found digit by
// digit. Weights e^(x - max) are whole multiples of 2^-40: their sums are exact, so no order of
// additions, and no histogram made by atomics on whole numbers, can change a bit.
#include "lib/bf16.cuh"
#include "lib/math.cuh"
#include "lib/order.cuh"
#include "lib/reduce.cuh"

typedef unsigned long long u64;

constexpr int SAMPLERS = 256;           // Threads of a block.
constexpr int DIGITS = 256;             // Values of a digit of a rank; a thread each.
constexpr int PARTS = SAMPLERS / WARP;  // A row's parts, a warp each.

// A row of logits, mixed with the null stream's where that is there: own + tau (own - null),
// rounded operation by operation as src/ops/sample.rs does, so that both rank alike.
template <class T>
struct Logits {
    const T *own, *null;
    float tau;

    __device__ __forceinline__ float operator[](int i) const {
        const float x = to_float(own[i]);
        if (null == nullptr) return x;
        return __fadd_rn(x, __fmul_rn(tau, __fsub_rn(x, to_float(null[i]))));
    }
};

// Rises with x.
__device__ __forceinline__ unsigned rank_of(float x) {
    const unsigned bits = __float_as_uint(x);
    // Zeros are equal, whatever their sign.
    if (bits << 1 == 0) return 0x80000000u;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ u64 weight_of(float x, float top) {
    return static_cast<u64>(static_cast<double>(exp_of(x - top)) * 1099511627776.0 + 0.5);
}

__device__ __forceinline__ bool is_finite(float x) { return fabsf(x) < infinity(); }

struct Sampler {
    u64 bins[DIGITS];
    u64 sums[PARTS];
    unsigned found;
    u64 before;
    float tops[PARTS];
    int flags[PARTS];
};

// The inclusive sum over the block's threads up to this one. All must call.
__device__ __forceinline__ u64 block_scan(Sampler& s, u64 x) {
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) {
        const u64 other = __shfl_up_sync(ALL_LANES, x, step);
        x += lane >= step ? other : 0;
    }
    if (lane == WARP - 1) s.sums[warp] = x;
    __syncthreads();
    for (unsigned k = 0; k < warp; ++k) x += s.sums[k];
    __syncthreads();
    return x;
}

// The rank r such that f's weights of ranks below r sum to at most `limit`, those up to r to more;
// false if all do not exceed it. `below` becomes the sum below r. f(x) is a weight for each logit;
// what has weight 0 is ignored.
template <class T, class F>
__device__ __forceinline__ bool find_rank(
    Sampler& s, const Logits<T>& x, int cols, u64 limit, unsigned& rank, u64& below, F f) {
    rank = 0;
    below = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        s.bins[threadIdx.x] = 0;
        if (threadIdx.x == 0) s.found = DIGITS;
        __syncthreads();
        for (int i = threadIdx.x; i < cols; i += SAMPLERS) {
            const unsigned own = rank_of(x[i]);
            // Shifts by 32 are undefined: the first digit has nothing above it.
            const bool same = shift == 24 || (own ^ rank) >> (shift + 8) == 0;
            const u64 weight = same ? f(x[i]) : 0;
            if (weight > 0) atomicAdd(&s.bins[own >> shift & (DIGITS - 1)], weight);
        }
        __syncthreads();
        const u64 mine = s.bins[threadIdx.x], upto = below + block_scan(s, mine);
        // One thread alone crosses the limit.
        if (upto > limit && upto - mine <= limit) {
            s.found = threadIdx.x;
            s.before = upto - mine;
        }
        __syncthreads();
        if (s.found == DIGITS) return false;
        rank |= s.found << shift;
        below = s.before;
        __syncthreads();
    }
    return true;
}

// What a row keeps: ranks above `rank`, and the first `ties` of those equal to it.
struct Kept {
    unsigned rank;
    u64 ties;
};

// The place of the first kept logit whose weight makes the sum over those up to it exceed u times
// the sum of all; else the last that has any weight.
template <class T>
__device__ __forceinline__ int draw(
    Sampler& s, const Logits<T>& x, int cols, float top, float u, const Kept& kept) {
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int part = (cols + SAMPLERS - 1) / SAMPLERS * WARP;
    const int begin = min(cols, static_cast<int>(warp) * part), end = min(cols, begin + part);
    // How many ties the parts before hold.
    u64 own = 0;
    for (int i = begin + lane; i < end; i += WARP) own += rank_of(x[i]) == kept.rank;
    u64 ties = block_scan(s, own);
    // The warp's first lane is preceded by the parts before.
    ties = __shfl_sync(ALL_LANES, ties - own, 0);
    // The weight of each tile of 32, then of the part, then up to the part.
    const auto tile = [&](int first, u64& seen) {
        const int i = first + lane;
        const float v = i < end ? x[i] : -infinity();
        const unsigned rank = rank_of(v);
        const unsigned equal = __ballot_sync(ALL_LANES, i < end && rank == kept.rank);
        const u64 place = seen + __popc(equal & ((1u << lane) - 1));
        seen += __popc(equal);
        const bool in = rank > kept.rank || (rank == kept.rank && place < kept.ties);
        return i < end && in && is_finite(v) ? weight_of(v, top) : 0;
    };
    u64 mine = 0, seen = ties;
    for (int first = begin; first < end; first += WARP) mine += tile(first, seen);
    const u64 upto = block_scan(s, mine);
    if (threadIdx.x == SAMPLERS - 1) s.before = upto;
    if (threadIdx.x == 0) s.found = ~0u;
    __syncthreads();
    const double target = static_cast<double>(u) * static_cast<double>(s.before);
    const u64 total = s.before;
    // Sum before this part.
    u64 sum = __shfl_sync(ALL_LANES, upto - mine, 0);
    const u64 whole = __shfl_sync(ALL_LANES, upto, WARP - 1);
    seen = ties;
    // The part where the sum first exceeds the target, or, where none does, the last with a weight.
    const auto exceeds = [=](u64 sum) { return static_cast<double>(sum) > target; };
    const bool crosses = exceeds(whole) && !exceeds(sum);
    const bool never = !exceeds(total);
    const bool last = never && sum < total && whole == total;
    for (int first = begin; (crosses || last) && first < end; first += WARP) {
        u64 x = tile(first, seen);
        const u64 weight = x;
#pragma unroll
        for (int step = 1; step < WARP; step *= 2) {
            const u64 other = __shfl_up_sync(ALL_LANES, x, step);
            x += lane >= step ? other : 0;
        }
        const u64 up = sum + x;
        const bool here = crosses ? exceeds(up) : up == total && weight > 0;
        const unsigned hit = __ballot_sync(ALL_LANES, here);
        if (hit != 0) {
            if (lane == 0) s.found = first + __ffs(hit) - 1;
            break;
        }
        sum = __shfl_sync(ALL_LANES, up, WARP - 1);
    }
    __syncthreads();
    const int token = s.found;
    __syncthreads();
    return token;
}

// sample_token_fwd: a token for each row of logits x and number u in [0, 1), of the `keep` largest
// logits and without those at the end that have the share `dropped` of the probability. A guided
// row has its null logits `rows` rows below.
//   for    T: f32, bf16
//   floor  bytes = (1 + guided)*rows*cols*s + 8*rows;  flops = 24*rows*keep
//   plan   a block a row: its largest logit, the least that top-k keeps, digit by digit, the least
//          that top-p keeps, likewise, then the token
//   slack  15 (a row is read up to 14 times, from a cache)
//   bits   sums of whole numbers: repeatable in any order
template <class T>
__global__ void __launch_bounds__(256, 2) sample_token_fwd(
    int*         __restrict__ y,   // [rows]
    const T*     __restrict__ x,   // [(1 + guided)*rows, cols]
    const float* __restrict__ u,   // [rows]
    int rows, int cols, int keep, int guided, float dropped, float tau) {
    await_previous();
    __shared__ Sampler s;
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (int r = blockIdx.x; r < rows; r += gridDim.x) {
        const T* first = x + static_cast<unsigned>(r) * cols;
        const T* null = guided ? first + static_cast<unsigned>(rows) * cols : nullptr;
        const Logits<T> own = {first, null, tau};
        float top = -infinity();
        bool clean = true;
        u64 count = 0;
        for (int i = threadIdx.x; i < cols; i += SAMPLERS) {
            const float v = own[i];
            top = fmaxf(top, v);
            clean = clean && v < infinity();
            count += is_finite(v);
        }
        top = warp_max(top);
        clean = __all_sync(ALL_LANES, clean);
        if (lane == 0) {
            s.tops[warp] = top;
            s.flags[warp] = clean;
        }
        count = block_scan(s, count);
        if (threadIdx.x == SAMPLERS - 1) s.before = count;
        __syncthreads();
        for (int k = 0; k < PARTS; ++k) {
            top = fmaxf(top, s.tops[k]);
            clean = clean && s.flags[k];
        }
        const u64 finite = s.before;
        __syncthreads();
        if (!clean || finite == 0) {
            if (threadIdx.x == 0) y[r] = -1;
            continue;
        }
        const auto one = [](float v) { return static_cast<u64>(is_finite(v)); };
        Kept kept = {0, ~0ull};
        unsigned rank;
        u64 below;
        // The least that top-k keeps: at most finite - k are smaller.
        const u64 most = keep < finite ? finite - keep : finite;
        if (keep < finite && find_rank(s, own, cols, most, rank, below, one)) kept.rank = rank;
        if (dropped > 0.0f) {
            const auto weight = [&](float v) {
                const bool in = is_finite(v) && rank_of(v) >= kept.rank;
                return in ? weight_of(v, top) : 0;
            };
            u64 all = 0;
            for (int i = threadIdx.x; i < cols; i += SAMPLERS) all += weight(own[i]);
            all = block_scan(s, all);
            if (threadIdx.x == SAMPLERS - 1) {
                const double limit = static_cast<double>(dropped) * static_cast<double>(all);
                s.before = static_cast<u64>(limit);
            }
            __syncthreads();
            const u64 spare = s.before;
            __syncthreads();
            if (find_rank(s, own, cols, spare, rank, below, weight)) {
                u64 ties = 0;
                for (int i = threadIdx.x; i < cols; i += SAMPLERS) ties += rank_of(own[i]) == rank;
                ties = block_scan(s, ties);
                if (threadIdx.x == SAMPLERS - 1) {
                    // Of equal logits those of higher index go first.
                    const unsigned bits = rank & 0x80000000u ? rank & 0x7fffffffu : ~rank;
                    s.before = ties - (spare - below) / weight_of(__uint_as_float(bits), top);
                }
                __syncthreads();
                kept = {rank, s.before};
                __syncthreads();
            } else {
                kept = {rank_of(top), 1};
            }
        }
        const int token = draw(s, own, cols, top, u[r], kept);
        if (threadIdx.x == 0) y[r] = token;
    }
}
