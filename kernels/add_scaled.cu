// y += factor * x, over n elements (a multiple of 4): the readout mean of the paper's form (3).
//
// Outputs: y `+=`. Ownership: one thread, four elements. Bytes: 12 n. Flops: 2 n. Bound: memory.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) add_scaled(
    float factor, const float* __restrict__ x, float* __restrict__ y, u64 elements) {
    u64 index = 4 * (static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x);
    if (index < elements) {
        store4(y + index, fma4(factor, load4(x + index), load4(y + index)));
    }
}
