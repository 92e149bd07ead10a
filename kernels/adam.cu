// One Adam step on n dense parameters (SPEC section 5): elements `begin` to `end` (multiples of 4)
// of their arenas. `gradients` begins with the gradient of element `begin`.
//
// `schedule` holds the constants of every step; this kernel uses those of the batch's step.
// Outputs: parameters, first and second moments, updated in place; watch: the step and element / 4
// of a p or v that is not finite (watch.cuh; v is not where g is not). Ownership: one thread, four
// elements.
// Bytes: 28 n (p, m, v read and written, g read). Flops: about 18 n. Bound: memory.
#include "adam.cuh"
#include "batch.cuh"

extern "C" __global__ void __launch_bounds__(256) adam(
    const Batch* __restrict__ batch, const AdamStep* __restrict__ schedule,
    const float* __restrict__ gradients,
    float* __restrict__ parameters, float* __restrict__ firsts, float* __restrict__ seconds,
    u64 begin, u64 end, u64* watch) {
    u64 index = begin + 4 * (static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x);
    if (index >= end) {
        return;
    }
    AdamStep step = schedule[batch->step - 1];
    float4 gradient = load4(gradients + index - begin);
    adam_quad(step, gradient, parameters, firsts, seconds, index, batch->step, watch);
}
