// Tiles of matrices in shared memory, without bank conflicts on the way in or out.
//
// A matrix has `lines` of `run` neighbours. A product's operand is `along` where its inner extent k
// is the run (x and w of a linear layer) and across where k counts lines.
#pragma once

#include "lib/copy.cuh"
#include "lib/packet.cuh"

// A source is what a tile is filled from, at a step along k. Each thread has a packet of
// Tile::WIDTH in every Tile::GAP-th line: `spot` says where after `at` that of pass i lies, asked
// in the order of passes, and whether it lies inside; where there are no `packets`, `single` says
// it of any element. `next` goes on by a tile.

// A source: a matrix from row `side` and inner index `k` on.
template <class Tile, class T>
struct MatrixSource {
    const T* at;
    unsigned lines, run;
    // Whether every line begins at a multiple of 16 bytes.
    bool packets;
    unsigned line0, run0;

    __device__ __forceinline__ MatrixSource(const T* at, unsigned lines, unsigned run,
                                            unsigned side, unsigned k)
        : at(at), lines(lines), run(run), packets(run % width<T> == 0 && aligned(at)),
          line0(Tile::IS_ALONG ? side : k), run0(Tile::IS_ALONG ? k : side) {}

    __device__ __forceinline__ unsigned spot(int i, bool& live) {
        return single(threadIdx.x / Tile::PACKETS + i * Tile::GAP,
                      threadIdx.x % Tile::PACKETS * Tile::WIDTH, live);
    }

    __device__ __forceinline__ unsigned single(unsigned line, unsigned r, bool& live) const {
        line += line0, r += run0;
        live = line < lines && r < run;
        return line * run + r;
    }

    __device__ __forceinline__ void next() { (Tile::IS_ALONG ? run0 : line0) += Tile::INNER; }
};

// SIDE rows (or columns) of an operand by DEPTH of k, in bf16, as `mma` wants them. Lines are cut
// into packets of 8; which of its places a packet takes depends on its line, so that 8 lines at one
// packet, or one line at 8 packets, lie in different banks.
template <bool ALONG, int SIDE, int DEPTH, int THREADS>
struct MmaTile {
    static constexpr bool IS_ALONG = ALONG;
    static constexpr int LINES = ALONG ? SIDE : DEPTH, RUN = ALONG ? DEPTH : SIDE, INNER = DEPTH;
    static constexpr int WIDTH = 8, PACKETS = RUN / WIDTH;
    static constexpr int GAP = THREADS / PACKETS, PASSES = LINES / GAP;
    // Lines that share 128 bytes, which is all banks.
    static constexpr int SHARE = PACKETS < 8 ? 8 / PACKETS : 1;
    static constexpr int TURNS = PACKETS < 8 ? PACKETS : 8;
    static constexpr int SIZE = SIDE * DEPTH;
    static_assert(THREADS % PACKETS == 0 && LINES * PACKETS % THREADS == 0, "whole passes");

    static __device__ __forceinline__ unsigned place(unsigned line, unsigned packet) {
        return line * RUN + (packet ^ line / SHARE % TURNS) * 8;
    }

    // Starts filling a tile, with zeros beyond the source. Single elements are written at once;
    // either way the tile is whole after a wait and a barrier.
    template <class Source>
    static __device__ __forceinline__ void fetch(bf16* to, Source& from) {
        if (from.packets) {
            const unsigned line = threadIdx.x / PACKETS, packet = threadIdx.x % PACKETS;
#pragma unroll
            for (int i = 0; i < PASSES; ++i) {
                bool live;
                const auto spot = from.spot(i, live);
                copy_packet(to + place(line + i * GAP, packet), from.at + (live ? spot : 0), live);
            }
        } else {
            singles(to, from);
        }
        from.next();
    }

    // Eight loads under way at a time.
    template <class Source>
    static __device__ __forceinline__ void singles(bf16* to, const Source& from) {
#pragma unroll 1
        for (int first = threadIdx.x; first < SIZE; first += 8 * THREADS) {
            bf16 held[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const unsigned own = first + i * THREADS;
                bool live;
                const auto spot = from.single(own / RUN, own % RUN, live);
                held[i] = live ? from.at[spot] : bf16{0};
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const unsigned at = first + i * THREADS, run = at % RUN;
                to[place(at / RUN, run / 8) + run % 8] = held[i];
            }
        }
    }

    // The fragment of 16 rows by 16 of k that `mma` takes as a; as b it is two: the first pair of
    // registers is rows 0 to 7, the second rows 8 to 15.
    template <bool AS_A>
    static __device__ __forceinline__ void fragment(unsigned (&to)[4], const bf16* tile,
                                                    unsigned side, unsigned k) {
        const unsigned lane = threadIdx.x % 32;
        // The four 8x8 tiles count rows first for a, k first for b.
        constexpr bool LINES_FIRST = ALONG == AS_A;
        const unsigned line = LINES_FIRST ? lane % 16 : lane % 8 + lane / 16 * 8;
        const unsigned packet = LINES_FIRST ? lane / 16 : lane / 8 % 2;
        const unsigned line0 = ALONG ? side : k, packet0 = (ALONG ? k : side) / 8;
        load_tiles<!ALONG>(to, tile + place(line0 + line, packet0 + packet));
    }
};

// SIDE rows (or columns) of an operand by 16 of k, in float, laid out k by k: a thread holds its
// part in registers while the block works on the tile before.
template <bool ALONG, int SIDE, int THREADS>
struct FmaTile {
    static constexpr bool IS_ALONG = ALONG;
    static constexpr int DEPTH = 16, STRIDE = SIDE + 4, SIZE = DEPTH * STRIDE, INNER = DEPTH;
    static constexpr int WIDTH = 4, PACKETS = (ALONG ? DEPTH : SIDE) / WIDTH;
    static constexpr int GAP = THREADS / PACKETS, HELD = SIDE * DEPTH / THREADS;
    static constexpr int PASSES = HELD / WIDTH;
    static_assert(HELD % 4 == 0, "whole packets");
    float held[HELD];

    // Where element `side` of k lies. The upper half of k has its packets swapped in pairs: that
    // keeps four lines of an operand along k, turned over on their way in, in different banks.
    static __device__ __forceinline__ unsigned place(unsigned side, unsigned k) {
        return k * STRIDE + (side ^ k / 8 * 8);
    }

    // Side and k of the first element of packet i.
    static __device__ __forceinline__ void packet(int i, unsigned& side, unsigned& k) {
        const unsigned at = i * THREADS + threadIdx.x;
        side = ALONG ? at / (DEPTH / 4) : at % (SIDE / 4) * 4;
        k = ALONG ? at % (DEPTH / 4) * 4 : at / (SIDE / 4);
    }

    // Side and k of single element i: a warp takes 8 of k from 4 lines, or 32 neighbours.
    static __device__ __forceinline__ void single(int i, unsigned& side, unsigned& k) {
        const unsigned at = i * THREADS + threadIdx.x;
        side = ALONG ? threadIdx.x / 8 + i / 2 * (THREADS / 8) : at % SIDE;
        k = ALONG ? threadIdx.x % 8 + i % 2 * 8 : at / SIDE;
    }

    template <class Source>
    __device__ __forceinline__ void fetch(Source& from) {
        bool live;
        if (from.packets) {
#pragma unroll
            for (int i = 0; i < PASSES; ++i) {
                const auto spot = from.spot(i, live);
                Floats<4> x = {};
                if (live) x = load<4>(from.at + spot);
#pragma unroll
                for (int j = 0; j < 4; ++j) held[4 * i + j] = x.at[j];
            }
        } else {
#pragma unroll
            for (int i = 0; i < HELD; ++i) {
                unsigned side, k;
                single(i, side, k);
                const auto spot = from.single(ALONG ? side : k, ALONG ? k : side, live);
                held[i] = live ? from.at[spot] : 0.0f;
            }
        }
        from.next();
    }

    __device__ __forceinline__ void put(float* to, bool packets) const {
        unsigned side, k;
        if (!packets) {
#pragma unroll
            for (int i = 0; i < HELD; ++i) {
                single(i, side, k);
                to[place(side, k)] = held[i];
            }
            return;
        }
#pragma unroll
        for (int i = 0; i < HELD / 4; ++i) {
            packet(i, side, k);
            const float* x = held + 4 * i;
            if (ALONG) {
#pragma unroll
                for (int j = 0; j < 4; ++j) to[place(side, k + j)] = x[j];
            } else {
                store(to + place(side, k), Floats<4>{{x[0], x[1], x[2], x[3]}});
            }
        }
    }
};
