// The sides of a pyramid's scales, at most 16 of at most 255, a byte each.
#pragma once

struct Scales {
    unsigned long long low, high;

    // The side of scale k.
    __device__ __forceinline__ unsigned side(unsigned k) const {
        return (k < 8 ? low : high) >> (8 * (k % 8)) & 0xff;
    }

    // Where scale k begins in a row of tokens.
    __device__ __forceinline__ unsigned begin(unsigned k) const {
        unsigned sum = 0;
        for (unsigned j = 0; j < k; ++j) sum += side(j) * side(j);
        return sum;
    }
};
