// A 3 x 3 convolution of what group norm and SiLU make of its map (src/ops/conv/normed.rs): no such
// map is written.
//
// A window shares its elements with eight others. So a block takes a tile of pixels, brings the
// pixels round it with them, some channels at a time, through norm and SiLU into shared memory,
// once each, and takes all nine taps from there.
#include "lib/block.cuh"
#include "lib/finish.cuh"
#include "lib/order.cuh"

// A map [images, high, wide, ins], its norm's groups, and results [images, high, wide, outs].
struct Extents {
    unsigned images, high, wide, ins, outs, groups;
};

// What so many channels go through before SiLU.
template <int DEPTH>
struct Channels {
    alignas(16) float mean[DEPTH], rstd[DEPTH], w[DEPTH], b[DEPTH];
};

// N neighbours of shared memory.
template <int N>
__device__ __forceinline__ Floats<N> some(const float* from) {
    Floats<N> all;
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        const Floats<4> four = load<4>(from + i);
#pragma unroll
        for (int j = 0; j < 4; ++j) all.at[i + j] = four.at[j];
    }
    return all;
}

// A block's tile: HIGH x WIDE pixels, and those round them, seen row by row.
template <int HIGH, int WIDE>
struct Place {
    static constexpr int PIXELS = HIGH * WIDE, ROW = WIDE + 2, SEEN = (HIGH + 2) * ROW;
    unsigned image, row, col, out;

    __device__ __forceinline__ Place(unsigned job, const Extents& e, unsigned cols) {
        const unsigned across = over(e.wide, WIDE), down = over(e.high, HIGH);
        const unsigned strips = over(e.outs, cols), tile = job / strips;
        out = job % strips * cols;
        col = tile % across * WIDE;
        row = tile / across % down * HIGH;
        image = tile / across / down;
    }

    static __device__ __forceinline__ unsigned jobs(const Extents& e, unsigned cols) {
        return e.images * over(e.high, HIGH) * over(e.wide, WIDE) * over(e.outs, cols);
    }

    // Where a seen pixel lies in the map; whether it does.
    __device__ __forceinline__ unsigned seen(unsigned pixel, const Extents& e, bool& live) const {
        const unsigned r = row + pixel / ROW - 1, c = col + pixel % ROW - 1;
        live = pixel < SEEN && r < e.high && c < e.wide;
        return (image * e.high + r) * e.wide + c;
    }
};

// Fetches what the channels first .. first + DEPTH of an image go through; beyond the last, zeros.
template <int DEPTH, class T>
__device__ __forceinline__ void fetch(Channels<DEPTH>& to, const Extents& e, unsigned image,
                                      unsigned first, const float* stats, const T* w, const T* b) {
    const unsigned own = threadIdx.x, c = first + own;
    if (own >= DEPTH) return;
    const bool live = c < e.ins;
    const float* at = stats + 2 * image * e.groups + (live ? c / (e.ins / e.groups) : 0);
    to.mean[own] = live ? at[0] : 0.0f;
    to.rstd[own] = live ? at[e.groups] : 0.0f;
    to.w[own] = live ? to_float(w[c]) : 0.0f;
    to.b[own] = live ? to_float(b[c]) : 0.0f;
}

// Calls f(seen pixel, packet, N channels of it, activated) for all seen pixels and the channels
// first .. first + DEPTH; zeros outside of the map.
template <int DEPTH, class Place, class T, class F>
__device__ __forceinline__ void activate(const T* x, const Channels<DEPTH>& channels,
                                         const Place& place, const Extents& e, unsigned first,
                                         F f) {
    constexpr int N = width<T>, PACKETS = DEPTH / N;
    const bool packets = e.ins % N == 0 && aligned(x);
    const unsigned own = threadIdx.x % PACKETS, c = first + own * N;
    const Floats<N> mean = some<N>(channels.mean + own * N), w = some<N>(channels.w + own * N);
    const Floats<N> rstd = some<N>(channels.rstd + own * N), b = some<N>(channels.b + own * N);
    for (unsigned p = threadIdx.x / PACKETS; p < Place::SEEN; p += blockDim.x / PACKETS) {
        bool live;
        const T* from = x + place.seen(p, e, live) * e.ins + c;
        Floats<N> v = {};
        if (live && packets && c < e.ins) v = load<N>(from);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const bool inside = live && c + i < e.ins;
            if (inside && !packets) v.at[i] = to_float(from[i]);
            const float h = (v.at[i] - mean.at[i]) * rstd.at[i];
            v.at[i] = inside ? silu(fmaf(h, w.at[i], b.at[i])) : 0.0f;
        }
        f(p, own, v);
    }
}

// A source: the weights [outs, 9, ins] of some channels and one tap after another, then the next
// channels.
template <class Tile, class T>
struct TapSource {
    const T* at;
    unsigned outs, ins, out, step;
    bool packets;

    __device__ __forceinline__ TapSource(const T* at, const Extents& e, unsigned out)
        : at(at), outs(e.outs), ins(e.ins), out(out), step(0),
          packets(e.ins % Tile::WIDTH == 0 && aligned(at)) {}

    __device__ __forceinline__ unsigned single(unsigned line, unsigned run, bool& live) const {
        const unsigned o = out + line, c = step / 9 * Tile::INNER + run;
        live = o < outs && c < ins;
        return (o * 9 + step % 9) * ins + c;
    }

    __device__ __forceinline__ unsigned spot(int i, bool& live) {
        return single(threadIdx.x / Tile::PACKETS + i * Tile::GAP,
                      threadIdx.x % Tile::PACKETS * Tile::WIDTH, live);
    }

    __device__ __forceinline__ void next() { ++step; }
};

// A sink for rows that count the pixels of a tile.
template <class Place, int WIDE, class Sink>
struct ToTile {
    Sink sink;
    Place place;
    unsigned high, wide;

    template <int N>
    using Beside = typename Sink::template Beside<N>;

    __device__ __forceinline__ bool fours() const { return sink.fours(); }

    __device__ __forceinline__ unsigned pixel(unsigned at, bool& live) const {
        const unsigned r = place.row + at / WIDE, c = place.col + at % WIDE;
        live = r < high && c < wide;
        return (place.image * high + r) * wide + c;
    }

    template <int N>
    __device__ __forceinline__ Beside<N> read(unsigned row, unsigned col) const {
        bool live;
        const unsigned at = pixel(row, live);
        if (!live) return {};
        return sink.template read<N>(at, col);
    }

    template <int N>
    __device__ __forceinline__ void write(unsigned row, unsigned col, const Floats<N>& v,
                                          const Beside<N>& beside) const {
        bool live;
        const unsigned at = pixel(row, live);
        if (live) sink.template write<N>(at, col, v, beside);
    }
};

// normed_conv_mma_fwd: y = residual + bias + the 3 x 3 convolution, zeros round it, of
// silu(group norm of x), which is rounded to bf16.
//   for    T: bf16; C: 32, 64
//   floor  bytes = images*high*wide*(ins + outs*(1 + added))*s + 9*outs*ins*s + 2*ins*s + outs*s
//            + 8*images*groups;
//          flops = 73728*C*images*ceil(high, 8)*ceil(wide, 16)*ceil(outs, C)*ceil(ins, 32)
//   plan   blocks of 4 warps, 8 x 16 pixels by C results, by mma.sync m16n8k16; 32 channels of the
//          pixels lie in shared memory, read in runs, a tap's weights come through three stages of
//          cp.async; packets are permuted: no bank conflicts
//   code   tensor cores, 16-byte loads
//   slack  400 (tiles share the pixels round them, and w is read for every tile down)
//   bits   fixed order of k, no atomics: repeatable, and the same whatever else is in the batch
template <class T, int C>
__global__ void __launch_bounds__(128, 2) normed_conv_mma_fwd(
    T*           __restrict__ y,          // [images, high, wide, outs]
    const T*     __restrict__ x,          // [images, high, wide, ins]
    const float* __restrict__ stats,      // [images, 2, groups]
    const T*     __restrict__ gamma,      // [ins]
    const T*     __restrict__ beta,       // [ins]
    const T*     __restrict__ w,          // [outs, 9, ins]
    const T*     __restrict__ bias,       // [outs]
    const T*     __restrict__ residual,   // [added*images*high*wide*outs]
    int images, int high, int wide, int ins, int outs, int groups, int added) {
    await_previous();
    using Block = MmaBlock<128, C, false, true>;
    using At = Place<8, 16>;
    using B = typename Block::B;
    constexpr int DEPTH = Block::DEPTH, STAGES = Block::STAGES, PACKETS = DEPTH / 8;
    constexpr int TILES = STAGES * B::SIZE * sizeof(bf16), MAP = At::SEEN * DEPTH * sizeof(bf16);
    constexpr int SLAB = Block::Out::SIZE * sizeof(float);
    __shared__ uint4 shared[(TILES + MAP > SLAB ? TILES + MAP : SLAB) / sizeof(uint4)];
    __shared__ Channels<DEPTH> channels;
    bf16 *tiles = reinterpret_cast<bf16*>(shared), *map = tiles + STAGES * B::SIZE;
    const Extents e = {static_cast<unsigned>(images), static_cast<unsigned>(high),
                       static_cast<unsigned>(wide),   static_cast<unsigned>(ins),
                       static_cast<unsigned>(outs),   static_cast<unsigned>(groups)};
    const Finish<T> finish = {y, nullptr, bias, added ? residual : nullptr, nullptr, 1, e.outs,
                              ACT_NONE, 0};
    // Eight neighbouring pixels at one packet, or two at all four, lie in different banks.
    const auto spot = [&](unsigned pixel, unsigned packet) {
        return map + pixel * DEPTH + (packet ^ pixel / 2 % PACKETS) * 8;
    };
    const unsigned lane = threadIdx.x % WARP, steps = 9 * over(e.ins, DEPTH);
    for (unsigned job = blockIdx.x; job < At::jobs(e, C); job += gridDim.x) {
        const At place(job, e, C);
        TapSource<B, T> weights(w, e, place.out);
        const auto fetch_tile = [&](unsigned step) {
            if (step < steps) B::fetch(tiles + step % STAGES * B::SIZE, weights);
            copy_commit();
        };
        Block block;
#pragma unroll
        for (int step = 0; step < STAGES - 1; ++step) fetch_tile(step);
        for (unsigned step = 0; step < steps; ++step) {
            const unsigned tap = step % 9, first = step / 9 * DEPTH;
            if (tap == 0) {
                __syncthreads();
                fetch<DEPTH>(channels, e, place.image, first, stats, gamma, beta);
                __syncthreads();
                activate<DEPTH>(x, channels, place, e, first,
                                [&](unsigned pixel, unsigned packet, const Floats<8>& v) {
                                    store(spot(pixel, packet), v);
                                });
            }
            copy_wait<STAGES - 2>();
            __syncthreads();
            fetch_tile(step + STAGES - 1);
            const bf16* tile = tiles + step % STAGES * B::SIZE;
#pragma unroll
            for (int k = 0; k < DEPTH; k += 16) {
                unsigned a[Block::OWN_ROWS / 16][4], b[Block::OWN_COLS / 16][4];
#pragma unroll
                for (int i = 0; i < Block::OWN_ROWS / 16; ++i) {
                    // Sixteen rows are a row of pixels.
                    const unsigned row = block.row / 16 + i + tap / 3;
                    const unsigned pixel = row * At::ROW + tap % 3 + lane % 16;
                    load_tiles<false>(a[i], spot(pixel, k / 8 + lane / 16));
                }
#pragma unroll
                for (int i = 0; i < Block::OWN_COLS / 16; ++i) {
                    B::template fragment<false>(b[i], tile, block.col + 16 * i, k);
                }
#pragma unroll
                for (int i = 0; i < Block::OWN_ROWS / 16; ++i) {
#pragma unroll
                    for (int j = 0; j < Block::OWN_COLS / 8; ++j) {
                        mma(block.sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
                    }
                }
            }
        }
        copy_wait<0>();
        __syncthreads();
        pour(block, shared, make_uint2(0, place.out), make_uint2(At::PIXELS, e.outs),
             ToTile<At, 16, Finish<T>>{finish, place, e.high, e.wide});
    }
}

// normed_conv_fma_fwd: normed_conv_mma_fwd in float, nothing rounded in between.
//   for    T: f32
//   floor  bytes = images*high*wide*(ins + outs*(1 + added))*s + 9*outs*ins*s + 2*ins*s + outs*s
//            + 8*images*groups;
//          flops = 1179648*images*ceil(high, 8)*ceil(wide, 8)*ceil(outs, 64)*ceil(ins, 16)
//   plan   blocks of 8 warps, 8 x 8 pixels by 64 results; 16 channels of the pixels lie in shared
//          memory, read in runs, the next tap's weights are under way beside the sums;
//          no bank conflicts
//   code   16-byte loads
//   slack  400 (tiles share the pixels round them, and w is read for every tile down)
//   bits   fixed order of k, no atomics: repeatable, and the same whatever else is in the batch
template <class T>
__global__ void __launch_bounds__(256, 2) normed_conv_fma_fwd(
    T*           __restrict__ y,          // [images, high, wide, outs]
    const T*     __restrict__ x,          // [images, high, wide, ins]
    const float* __restrict__ stats,      // [images, 2, groups]
    const T*     __restrict__ gamma,      // [ins]
    const T*     __restrict__ beta,       // [ins]
    const T*     __restrict__ w,          // [outs, 9, ins]
    const T*     __restrict__ bias,       // [outs]
    const T*     __restrict__ residual,   // [added*images*high*wide*outs]
    int images, int high, int wide, int ins, int outs, int groups, int added) {
    await_previous();
    using Block = FmaBlock<64, false, true>;
    using At = Place<8, 8>;
    using B = typename Block::B;
    // Four times the stride is 24 banks: four channels of eight pixels lie in different ones.
    constexpr int DEPTH = Block::DEPTH, STRIDE = At::SEEN + 2;
    constexpr int TILES = 2 * B::SIZE, SUM = TILES + DEPTH * STRIDE;
    constexpr int SIZE = SUM > Block::Out::SIZE ? SUM : Block::Out::SIZE;
    __shared__ uint4 shared[(SIZE + 3) / 4];
    __shared__ Channels<DEPTH> channels;
    float *tiles = reinterpret_cast<float*>(shared), *map = tiles + TILES;
    const Extents e = {static_cast<unsigned>(images), static_cast<unsigned>(high),
                       static_cast<unsigned>(wide),   static_cast<unsigned>(ins),
                       static_cast<unsigned>(outs),   static_cast<unsigned>(groups)};
    const Finish<T> finish = {y, nullptr, bias, added ? residual : nullptr, nullptr, 1, e.outs,
                              ACT_NONE, 0};
    const unsigned steps = 9 * over(e.ins, DEPTH);
    for (unsigned job = blockIdx.x; job < At::jobs(e, Block::COLS); job += gridDim.x) {
        const At place(job, e, Block::COLS);
        TapSource<B, T> weights(w, e, place.out);
        Block block;
        B held;
        if (steps > 0) held.fetch(weights);
        for (unsigned step = 0; step < steps; ++step) {
            const unsigned tap = step % 9, first = step / 9 * DEPTH;
            if (tap == 0) {
                __syncthreads();
                fetch<DEPTH>(channels, e, place.image, first, stats, gamma, beta);
                __syncthreads();
                activate<DEPTH>(x, channels, place, e, first,
                                [&](unsigned pixel, unsigned packet, const Floats<4>& v) {
#pragma unroll
                                    for (int i = 0; i < 4; ++i) {
                                        map[(packet * 4 + i) * STRIDE + pixel] = v.at[i];
                                    }
                                });
            }
            float* tile = tiles + step % 2 * B::SIZE;
            held.put(tile, weights.packets);
            __syncthreads();
            if (step + 1 < steps) held.fetch(weights);
            // Four rows are neighbours in a row of pixels.
            const unsigned row = block.row / 8 + tap / 3, col = block.row % 8 + tap % 3;
            const float* own = map + row * At::ROW + col;
#pragma unroll
            for (int k = 0; k < DEPTH; ++k) {
                float b[Block::EACH];
                Block::template gather<32, B>(b, tile, block.col, k);
#pragma unroll
                for (int i = 0; i < Block::EACH; ++i) {
                    const float a = own[k * STRIDE + i];
#pragma unroll
                    for (int j = 0; j < Block::EACH; ++j) {
                        block.sums[i][j] = fmaf(a, b[j], block.sums[i][j]);
                    }
                }
            }
        }
        __syncthreads();
        pour(block, shared, make_uint2(0, place.out), make_uint2(At::PIXELS, e.outs),
             ToTile<At, 8, Finish<T>>{finish, place, e.high, e.wide});
    }
}
