// One element's step of Adam (SPEC section 5), shared by the dense and the row-wise update so that
// both have the same bits:
//
//   m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//   p = p - step_size m / (sqrt(v) root_factor + epsilon)
#pragma once
#include "common.cuh"
#include "watch.cuh"

struct AdamStep {
    float step_size;    // lr / (1 - b1^t)
    float root_factor;  // 1 / sqrt(1 - b2^t)
};

__device__ __forceinline__ void adam_update(AdamStep step, float gradient, float& parameter,
                                            float& first, float& second) {
    const float beta1 = 0.9f, beta2 = 0.999f, epsilon = 1e-8f;
    // 1 - beta in double, then rounded: as the CPU backend and PyTorch have it.
    const float rest1 = static_cast<float>(1.0 - 0.9), rest2 = static_cast<float>(1.0 - 0.999);
    first = fmaf(beta1, first, rest1 * gradient);
    second = fmaf(beta2, second, rest2 * gradient * gradient);
    parameter -= step.step_size * first / fmaf(sqrtf(second), step.root_factor, epsilon);
}

// Whether an element is as it should be after its step. A gradient that is not finite, or whose
// square is not, shows in v; all else that can go wrong in p.
__device__ __forceinline__ bool adam_is_finite(float parameter, float second) {
    return is_finite(parameter) && is_finite(second);
}
