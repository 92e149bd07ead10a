// The device's maximum rates, to compare kernels with: a copy, fused multiply-adds in f32, and TF32
// products on the tensor cores.
//
//   copy_ceiling      to_i = from_i
//   multiply_ceiling  chains of x = a x + b in registers
//   tensor_ceiling    chains of d = d + a b on the tensor cores, see multiply_tf32
//
// Outputs: `to` `=`; of the others, one number per thread `=`, so that no work can be optimised
// away.
// Bytes: 8 n. Flops: 2 CHAINS rounds per thread; 16 * 8 * 8 * 2 TILES rounds per warp.
#include "common.cuh"

namespace ceilings_detail {
static const u32 CHAINS = 8;
static const u32 TILES = 4;
}  // namespace ceilings_detail

extern "C" __global__ void __launch_bounds__(256) copy_ceiling(
    const float* __restrict__ from, u64 elements, float* __restrict__ to) {
    u64 index = 4 * (static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x);
    if (index < elements) {
        store4(to + index, load4(from + index));
    }
}

extern "C" __global__ void __launch_bounds__(256) multiply_ceiling(
    u32 rounds, float factor, float addend, float* __restrict__ out) {
    using namespace ceilings_detail;
    float chains[CHAINS];
#pragma unroll
    for (u32 i = 0; i < CHAINS; ++i) {
        chains[i] = static_cast<float>(threadIdx.x + i);
    }
    for (u32 round = 0; round < rounds; ++round) {
#pragma unroll
        for (u32 i = 0; i < CHAINS; ++i) {
            chains[i] = fmaf(chains[i], factor, addend);
        }
    }
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < CHAINS; ++i) {
        sum += chains[i];
    }
    out[static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(256) tensor_ceiling(u32 rounds, float value,
                                                                 float* __restrict__ out) {
    using namespace ceilings_detail;
    float tiles[TILES][4] = {};
    u32 bits = to_tf32(value);
    u32 a[4] = {bits, bits, bits, bits}, b[2] = {bits, bits};
    for (u32 round = 0; round < rounds; ++round) {
#pragma unroll
        for (u32 i = 0; i < TILES; ++i) {
            multiply_tf32(tiles[i], a, b);
        }
    }
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < TILES; ++i) {
        sum += tiles[i][0] + tiles[i][1] + tiles[i][2] + tiles[i][3];
    }
    out[static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x] = sum;
}
