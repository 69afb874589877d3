// The nearest code of a codebook (src/ops/quantize.rs).
#include "lib/nearest.cuh"
#include "lib/order.cuh"

// nearest_code_fwd: the index of the code nearest to each row of x, the lowest on a tie; -1 where a
// score is not finite.
//   for    T: f32, bf16
//   floor  bytes = (rows + codes)*width*s + 4*rows;
//          flops = (1280*ceil(width, 4) + 128)*ceil(rows, 4)*ceil(codes, 32)
//   plan   a block for 32 rows, 4 a warp; tiles of 64 codes and 16 numbers in shared memory, two
//          codes a lane, whose length each warp sums anew
//   slack  14 for rows <= 512 and codes <= 512; 200 beyond (each tile of rows meets each tile of
//          codes, in a cache)
//   bits   each row and code in the order of its numbers: repeatable
template <class T>
__global__ void __launch_bounds__(256, 2) nearest_code_fwd(
    int*     __restrict__ y,      // [rows]
    const T* __restrict__ x,      // [rows, width]
    const T* __restrict__ book,   // [codes, width]
    int rows, int codes, int width, bool cosine) {
    await_previous();
    __shared__ Tiles<8> tiles;
    const unsigned all = rows;
    for (unsigned row = blockIdx.x * tiles.ROWS; row < all; row += gridDim.x * tiles.ROWS) {
        nearest_rows(tiles, x, book, row, all, codes, width, cosine,
                     [&](unsigned own, int index) { y[own] = index; });
    }
}
