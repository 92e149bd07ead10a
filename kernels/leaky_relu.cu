// LeakyReLU of slope 0.2, the activation of the paper's form of propagation (SPEC section 2, (2)).
//
//   leaky_relu           y = y < 0 ? 0.2 y : y, in place
//   leaky_relu_backward  dt = y <= 0 ? 0.2 dy : dy, over dy; the activation keeps the sign, so y
//                        tells the slope at its argument
//
// Outputs: y, dt `=`. Ownership: one thread, four elements of n (a multiple of 4). Bytes: 8 n and
// 12 n. Bound: memory.
#include "common.cuh"

namespace leaky_detail {

static const float SLOPE = 0.2f;

__device__ __forceinline__ float activate(float value) {
    return value < 0.0f ? SLOPE * value : value;
}

__device__ __forceinline__ float slope(float y, float gradient) {
    return y <= 0.0f ? SLOPE * gradient : gradient;
}

}  // namespace leaky_detail

extern "C" __global__ void __launch_bounds__(256) leaky_relu(float* __restrict__ y, u64 elements) {
    u64 index = 4 * (static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x);
    if (index < elements) {
        float4 value = load4(y + index);
        store4(y + index,
               make_float4(leaky_detail::activate(value.x), leaky_detail::activate(value.y),
                           leaky_detail::activate(value.z), leaky_detail::activate(value.w)));
    }
}

extern "C" __global__ void __launch_bounds__(256) leaky_relu_backward(
    const float* __restrict__ y, float* __restrict__ y_gradient, u64 elements) {
    u64 index = 4 * (static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x);
    if (index < elements) {
        float4 value = load4(y + index);
        float4 gradient = load4(y_gradient + index);
        store4(y_gradient + index,
               make_float4(leaky_detail::slope(value.x, gradient.x),
                           leaky_detail::slope(value.y, gradient.y),
                           leaky_detail::slope(value.z, gradient.z),
                           leaky_detail::slope(value.w, gradient.w)));
    }
}
