// Maps seen through sliding windows: the sources of a convolution's tiles (lib/tile.cuh). Nothing
// is unrolled into columns; indices go on by steps, so that what is divided is divided once a tile.
//
// A map is channels-last, [images, high, wide, depth]; outside of it is nothing, which tiles hold
// as zeros. A window's inner index counts its taps down, then across, then the channels.
#pragma once

#include "lib/tile.cuh"

// The images are seen as high x wide; where `doubled` is 1, each pixel in memory is 2 x 2 of them.
template <class T>
struct Map {
    const T* at;
    unsigned high, wide, depth, doubled;

    // The first row of an image in memory, counted over all images.
    __device__ __forceinline__ unsigned first(unsigned image) const {
        return image * (high >> doubled);
    }

    // The pixel at a row and a column of the image whose first row this is.
    __device__ __forceinline__ unsigned pixel(unsigned first, unsigned row, unsigned col) const {
        return (first + (row >> doubled)) * (wide >> doubled) + (col >> doubled);
    }
};

// One axis of windows over a map. Window n begins at row `step * n + origin`, its tap i lies
// `way * i` further, and is tap `tap + every * i` of the kernel. Window n makes row
// `out + every * n` of the result.
struct Axis {
    unsigned windows, step, origin, taps, way, tap, every, out;
};

// A convolution's windows; what lies before the map wraps round to large numbers.
__device__ __forceinline__ Axis axis_of_map(unsigned windows, unsigned stride, unsigned pad,
                                            unsigned taps) {
    return {windows, stride, 0 - pad, taps, 1, 0, 1, 0};
}

// Those of its gradient, for rows `out`, `out + stride`, .. of `size`: the taps that meet them,
// turned round.
__device__ __forceinline__ Axis axis_of_gradient(unsigned out, unsigned size, unsigned stride,
                                                 unsigned pad, unsigned kernel) {
    const unsigned tap = (out + pad) % stride;
    const unsigned taps = tap < kernel ? (kernel - tap - 1) / stride + 1 : 0;
    return {(size - out - 1) / stride + 1, 1, (out + pad) / stride, taps, 0u - 1, tap, stride, out};
}

// Three indices that count as one, the last the fastest.
struct Cursor {
    unsigned slow, mid, fast, mids, fasts;

    __device__ __forceinline__ Cursor(unsigned at, unsigned mids, unsigned fasts)
        : slow(at / fasts / mids), mid(at / fasts % mids), fast(at % fasts), mids(mids),
          fasts(fasts) {}

    __device__ __forceinline__ void go(unsigned n) {
        fast += n;
        while (fast >= fasts) {
            fast -= fasts;
            if (++mid == mids) {
                mid = 0;
                ++slow;
            }
        }
    }
};

// Where a window begins: a row and column of a map, and the first row of its image.
struct Corner {
    unsigned row, col, first;

    template <class T>
    __device__ __forceinline__ Corner(const Map<T>& map, const Axis& down, const Axis& across,
                                      const Cursor& window)
        : row(window.mid * down.step + down.origin),
          col(window.fast * across.step + across.origin),
          first(map.first(window.slow)) {}

    __device__ __forceinline__ Corner() : row(), col(), first() {}
};

// Lines are windows, along their taps and channels.
template <class Tile, class T>
struct WindowLines {
    // Beyond every map, and a window further still.
    static constexpr unsigned FAR = 0xc0000000;
    Map<T> map;
    const T* at;
    Axis down, across;
    bool packets;
    unsigned line0, lines, k0;
    Cursor k;
    Corner corner[Tile::PASSES];

    __device__ __forceinline__ WindowLines(const Map<T>& map, const Axis& down, const Axis& across,
                                           unsigned line0, unsigned lines, unsigned k0)
        : map(map), at(map.at), down(down), across(across),
          packets(map.depth % width<T> == 0 && aligned(map.at)), line0(line0), lines(lines), k0(k0),
          k(k0 + threadIdx.x % Tile::PACKETS * Tile::WIDTH, across.taps, map.depth) {
        if (!packets) return;
#pragma unroll
        for (int i = 0; i < Tile::PASSES; ++i) {
            const unsigned line = line0 + threadIdx.x / Tile::PACKETS + i * Tile::GAP;
            corner[i] = {map, down, across, Cursor(line, down.windows, across.windows)};
            if (line >= lines) corner[i].row = FAR;
        }
    }

    __device__ __forceinline__ unsigned place(const Corner& from, const Cursor& k,
                                              bool& live) const {
        const unsigned row = from.row + down.way * k.slow, col = from.col + across.way * k.mid;
        live = k.slow < down.taps && row < map.high && col < map.wide;
        return map.pixel(from.first, row, col) * map.depth + k.fast;
    }

    __device__ __forceinline__ unsigned spot(int i, bool& live) {
        return place(corner[i], k, live);
    }

    __device__ __forceinline__ unsigned single(unsigned line, unsigned run, bool& live) const {
        Corner from(map, down, across, Cursor(line0 + line, down.windows, across.windows));
        if (line0 + line >= lines) from.row = FAR;
        return place(from, Cursor(k0 + run, across.taps, map.depth), live);
    }

    __device__ __forceinline__ void next() {
        k0 += Tile::INNER;
        if (packets) k.go(Tile::INNER);
    }
};

// Lines are taps and channels, along the windows that begin at `side`: what the gradient to the
// weights sums over is the windows, one line each.
template <class Tile, class T>
struct WindowColumns {
    Map<T> map;
    const T* at;
    Axis down, across;
    bool packets;
    // Windows in all, the tile's first, the first of its columns, and how many columns there are.
    unsigned windows, k0, side, columns;
    Cursor window, column;

    __device__ __forceinline__ WindowColumns(const Map<T>& map, const Axis& down,
                                             const Axis& across, unsigned windows, unsigned side,
                                             unsigned k0)
        : map(map), at(map.at), down(down), across(across),
          packets(map.depth % width<T> == 0 && aligned(map.at)), windows(windows), k0(k0),
          side(side), columns(down.taps * across.taps * map.depth),
          window(k0 + threadIdx.x / Tile::PACKETS, down.windows, across.windows),
          column(side + threadIdx.x % Tile::PACKETS * Tile::WIDTH, across.taps, map.depth) {}

    __device__ __forceinline__ unsigned place(const Cursor& window, const Cursor& column,
                                              unsigned line, bool& live) const {
        const Corner from(map, down, across, window);
        const unsigned row = from.row + column.slow, col = from.col + column.mid;
        live = line < windows && column.slow < down.taps && row < map.high && col < map.wide;
        return map.pixel(from.first, row, col) * map.depth + column.fast;
    }

    __device__ __forceinline__ unsigned spot(int i, bool& live) {
        const unsigned line = k0 + threadIdx.x / Tile::PACKETS + i * Tile::GAP;
        const unsigned spot = place(window, column, line, live);
        window.go(Tile::GAP);
        return spot;
    }

    __device__ __forceinline__ unsigned single(unsigned line, unsigned run, bool& live) const {
        return place(Cursor(k0 + line, down.windows, across.windows),
                  Cursor(side + run, across.taps, map.depth), k0 + line, live);
    }

    __device__ __forceinline__ void next() { k0 += Tile::INNER; }
};

// Lines are a kernel's taps and results, along its inputs: weights [outs, high, wide, ins] as the
// gradient to the map takes them.
template <class Tile, class T>
struct TapLines {
    const T* at;
    Axis down, across;
    unsigned high, wide, ins;
    bool packets;
    unsigned side, k0;
    Cursor k;

    __device__ __forceinline__ TapLines(const T* at, const Axis& down, const Axis& across,
                                        uint2 kernel, unsigned ins, unsigned outs, unsigned side,
                                        unsigned k0)
        : at(at), down(down), across(across), high(kernel.x), wide(kernel.y), ins(ins),
          packets(ins % width<T> == 0 && aligned(at)), side(side), k0(k0),
          k(k0 + threadIdx.x / Tile::PACKETS, across.taps, outs) {}

    __device__ __forceinline__ unsigned place(const Cursor& k, unsigned in, bool& live) const {
        live = k.slow < down.taps && in < ins;
        const unsigned row = down.tap + down.every * k.slow;
        const unsigned col = across.tap + across.every * k.mid;
        return ((k.fast * high + row) * wide + col) * ins + in;
    }

    __device__ __forceinline__ unsigned spot(int, bool& live) {
        const unsigned in = side + threadIdx.x % Tile::PACKETS * Tile::WIDTH;
        const unsigned spot = place(k, in, live);
        k.go(Tile::GAP);
        return spot;
    }

    __device__ __forceinline__ unsigned single(unsigned line, unsigned run, bool& live) const {
        return place(Cursor(k0 + line, across.taps, k.fasts), side + run, live);
    }

    __device__ __forceinline__ void next() { k0 += Tile::INNER; }
};

// A sink for rows that count windows: they go to the pixels [.., high, wide] that these make.
template <class Sink>
struct ToPixels {
    Sink sink;
    Axis down, across;
    unsigned high, wide;

    template <int N>
    using Beside = typename Sink::template Beside<N>;

    __device__ __forceinline__ bool fours() const { return sink.fours(); }

    __device__ __forceinline__ unsigned pixel(unsigned row) const {
        // Where every pixel is made, they are made in their order.
        if (down.every == 1) return row;
        const Cursor at(row, down.windows, across.windows);
        return (at.slow * high + down.out + down.every * at.mid) * wide + across.out +
               across.every * at.fast;
    }

    template <int N>
    __device__ __forceinline__ Beside<N> read(unsigned row, unsigned col) const {
        return sink.template read<N>(pixel(row), col);
    }

    template <int N>
    __device__ __forceinline__ void write(unsigned row, unsigned col, const Floats<N>& v,
                                          const Beside<N>& beside) const {
        sink.template write<N>(pixel(row), col, v, beside);
    }
};
