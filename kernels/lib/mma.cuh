// The product of a warp's fragments on the tensor cores, accumulated in float.
#pragma once

// d += a b with a 16x16 and b 16x8 of bf16. With g = lane / 4 and q = lane % 4, a lane holds
//   a: rows g, g + 8, g, g + 8 at k = 2q, 2q, 2q + 8, 2q + 8 (two neighbours each)
//   b: column g at k = 2q and 2q + 8
//   d: row g at columns 2q and 2q + 1, then row g + 8.
// The order of k is free as long as a and b share it.
__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                    unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
