// One Adam step of one element (SPEC section 5). The dense and the row-wise update share it, so
// both have the same bits:
//
//   m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//   p = p - step_size m / (sqrt(v) root_factor + epsilon)
//
// nvcc's root and division branch for rare operands, which keeps a thread's elements from
// overlapping. For plain operands, within the bounds below, the same steps without branches have
// the same bits and let elements overlap.
#pragma once
#include "common.cuh"
#include "watch.cuh"

struct AdamStep {
    float step_size;    // lr / (1 - b1^t)
    float root_factor;  // 1 / sqrt(1 - b2^t)
};

static const float ADAM_EPSILON = 1e-8f;

__device__ __forceinline__ void adam_moments(float gradient, float& first, float& second) {
    const float beta1 = 0.9f, beta2 = 0.999f;
    // 1 - beta in double, then rounded, as in the CPU backend and PyTorch.
    const float rest1 = static_cast<float>(1.0 - 0.9), rest2 = static_cast<float>(1.0 - 0.999);
    first = fmaf(beta1, first, rest1 * gradient);
    second = fmaf(beta2, second, rest2 * gradient * gradient);
}

// The bounds of adam_move_plain on the moments: |m| from 2^-83 to 2^40, v from 2^-100 to 2^30.
__device__ __forceinline__ bool adam_is_small(float first, float second) {
    return fabsf(first) <= 0x1p40f && second <= 0x1p30f;
}

__device__ __forceinline__ bool adam_is_large(float first, float second) {
    return fabsf(first) >= 0x1p-83f && second >= 0x1p-100f;
}

// Whether the moments stay large for up to 64 steps without a gradient: b1^64 is 2^-9.73 and b2^64
// is 2^-0.1. They stay small in any case.
__device__ __forceinline__ bool adam_stays_large(float first, float second) {
    return fabsf(first) >= 0x1p-73f && second >= 0x1p-99f;
}

// The bounds of adam_move_plain on the constants.
__device__ __forceinline__ bool adam_is_plain(AdamStep step) {
    return step.step_size >= 0x1p-17f && step.step_size <= 0x1p20f && step.root_factor >= 0.0f
        && step.root_factor <= 32.0f;
}

// The amount to subtract from p.
__device__ __forceinline__ float adam_move(AdamStep step, float first, float second) {
    return step.step_size * first / fmaf(sqrtf(second), step.root_factor, ADAM_EPSILON);
}

// The same within the bounds above. The numerator is then between 2^-100 and 2^60 and the
// denominator between 1e-8 and 2^21. Remainders are at least some 2^-48 of the numerator, so they
// are multiples of 2^-149: exact.
__device__ __forceinline__ float adam_move_plain(AdamStep step, float first, float second) {
    float near = near_reciprocal_root(second);
    float root = second * near, half = 0.5f * near;
    root = fmaf(fmaf(-root, root, second), half, root);
    float numerator = step.step_size * first;
    float denominator = fmaf(root, step.root_factor, ADAM_EPSILON);
    float reciprocal = near_reciprocal(denominator);
    reciprocal = fmaf(reciprocal, fmaf(-denominator, reciprocal, 1.0f), reciprocal);
    float quotient = numerator * reciprocal;
    return fmaf(reciprocal, fmaf(-denominator, quotient, numerator), quotient);
}

__device__ __forceinline__ void adam_update(AdamStep step, float gradient, float& parameter,
                                            float& first, float& second) {
    adam_moments(gradient, first, second);
    parameter -= adam_move(step, first, second);
}

// Whether an element is finite after its step. v shows a gradient that is not finite, or whose
// square is not; p shows everything else that can go wrong.
__device__ __forceinline__ bool adam_is_finite(float parameter, float second) {
    return is_finite(parameter) && is_finite(second);
}

// A step of the four elements at `index` of their arenas. watch: see adam.cu; `number` is the
// step's.
__device__ __forceinline__ void adam_quad(AdamStep step, float4 gradient, float* parameters,
                                          float* firsts, float* seconds, u64 index, u32 number,
                                          u64* watch) {
    float4 parameter = load4(parameters + index);
    float4 first = load4(firsts + index);
    float4 second = load4(seconds + index);
    adam_update(step, gradient.x, parameter.x, first.x, second.x);
    adam_update(step, gradient.y, parameter.y, first.y, second.y);
    adam_update(step, gradient.z, parameter.z, first.z, second.z);
    adam_update(step, gradient.w, parameter.w, first.w, second.w);
    store4(parameters + index, parameter);
    store4(firsts + index, first);
    store4(seconds + index, second);
    if (!adam_is_finite(parameter.x, second.x) || !adam_is_finite(parameter.y, second.y)
        || !adam_is_finite(parameter.z, second.z) || !adam_is_finite(parameter.w, second.w)) {
        watch_sees(watch + 2, number, static_cast<u32>(index / 4));
    }
}

// Steps of four elements.
__device__ __forceinline__ void adam_update4(AdamStep step, const float (&gradient)[4],
                                             float (&parameter)[4], float (&first)[4],
                                             float (&second)[4]) {
    bool plain = adam_is_plain(step);
#pragma unroll
    for (u32 n = 0; n < 4; ++n) {
        adam_moments(gradient[n], first[n], second[n]);
        plain = plain && adam_is_small(first[n], second[n]) && adam_is_large(first[n], second[n]);
    }
    if (plain) {
#pragma unroll
        for (u32 n = 0; n < 4; ++n) {
            parameter[n] -= adam_move_plain(step, first[n], second[n]);
        }
    } else {
#pragma unroll
        for (u32 n = 0; n < 4; ++n) {
            parameter[n] -= adam_move(step, first[n], second[n]);
        }
    }
}
