// Adaptive layer norm of a row that a warp holds.
#pragma once

#include "lib/rows.cuh"

// The mean of a row and the inverse of its deviation.
struct Moments {
    float mean, rstd;
};

// y = (x - mean) rstd (1 + scale) + shift.
template <class T, class Row>
__device__ __forceinline__ Moments ada_row(const Row& row, int cols, float eps, const T* scale,
                                           const T* shift, T* y) {
    const float inverse = 1.0f / cols;
    const float mean = row_sum(row, [](auto& v, int i) { return v[0].at[i]; }) * inverse;
    const float variance = inverse * row_sum(row, [=](auto& v, int i) {
        const float d = v[0].at[i] - mean;
        return d * d;
    });
    const float rstd = 1.0f / sqrtf(variance + eps);
    row.each([&](const auto& v, int c) {
        constexpr int N = sizeof(v[0]) / sizeof(float);
        const Floats<N> s = load<N>(scale + c);
        Floats<N> out = load<N>(shift + c);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            out.at[i] = fmaf((v[0].at[i] - mean) * rstd, 1.0f + s.at[i], out.at[i]);
        }
        store(y + c, out);
    });
    return {mean, rstd};
}
