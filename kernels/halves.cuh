// Half-precision rows, for the tensor cores to score items with (top_k.cu).
//
// Rows are scaled by a power of two, one for each user's row and one for all item rows, so that the
// largest norm is at least 1 and less than 2. Then no half overflows, and small numbers lose at
// most 2^-25.
#pragma once
#include "common.cuh"

namespace halves {

static const float INFINITE = __builtin_huge_valf();

// The scale of rows whose largest norm is `norm`, and `back`, which undoes it. Returns whether the
// products of two scales are far from overflow; if not, the scale is 1 and halves mean nothing.
__device__ __forceinline__ bool scale_of(float norm, float& scale, float& back) {
    u32 exponent = __float_as_uint(norm) >> 23;
    bool is_near = exponent > 127 - 60 && exponent < 127 + 60;
    exponent = is_near ? exponent : 127;
    back = __uint_as_float(exponent << 23);
    scale = __uint_as_float((254 - exponent) << 23);
    return is_near;
}

// The sum of a row's squares, by 16 lanes; 0 for a null row.
__device__ __forceinline__ float square_of(const float* row, u32 width) {
    Group lanes(16);
    float square = 0.0f;
    for (u32 column = 4 * lanes.lane; row != nullptr && column < width; column += 64) {
        float4 four = load4(row + column);
        square = dot4(four, four, square);
    }
    return lanes.sum(square);
}

}  // namespace halves
