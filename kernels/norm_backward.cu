// The Frobenius norms of the users' and the items' halves of H, and their gradient (SPEC sections
// 3, 4):
//
//   gradient = factor * H_half / ||H_half||_F   (0 where the half is all zero)
//   losses[last] += loss_factor * (||H_u||_F + ||H_i||_F)
//
// Shapes: nodes and gradient N x d, the first U rows the users'. Outputs: gradient `=`, one loss
// `+=`.
// Determinism: whatever the grid, block b of norm_squares owns elements [b, b + 1) * CHUNK of one
// half and sums in f64 by a fixed tree; norm_scales adds the blocks' sums in a fixed order.
// Bytes: N d (4 + 4 + 4). Flops: 3 N d. Bound: memory (L2 for the second read).
#include "common.cuh"

namespace norm_detail {
static const u32 THREADS = 256;
static const u32 CHUNK = 8192;
}  // namespace norm_detail

// One block: the sum of squares of a chunk. Blocks below `user_blocks` take the users' chunks.
extern "C" __global__ void __launch_bounds__(256) norm_squares(
    const float* __restrict__ nodes, u64 user_elements, u64 elements, u32 user_blocks,
    double* __restrict__ sums) {
    SHARED(double[norm_detail::THREADS], scratch);
    bool of_users = blockIdx.x < user_blocks;
    u64 first = of_users ? 0 : user_elements;
    u64 end = of_users ? user_elements : elements;
    u64 start = first + static_cast<u64>(of_users ? blockIdx.x : blockIdx.x - user_blocks)
                            * norm_detail::CHUNK;
    u64 stop = start + norm_detail::CHUNK < end ? start + norm_detail::CHUNK : end;
    double sum = 0.0;
    for (u64 index = start + 4 * threadIdx.x; index < stop; index += 4 * norm_detail::THREADS) {
        float4 value = load4(nodes + index);
        sum += static_cast<double>(dot4(value, value, 0.0f));
    }
    sum = block_sum<norm_detail::THREADS>(sum, scratch);
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = sum;
    }
}

// One block: both norms, from the chunks' sums; scales[half] = factor / norm.
extern "C" __global__ void __launch_bounds__(256) norm_scales(
    const double* __restrict__ sums, u32 user_blocks, u32 blocks, double factor,
    double loss_factor, float* __restrict__ scales, double* __restrict__ loss) {
    SHARED(double[norm_detail::THREADS], scratch);
    double norms[2];
    for (u32 half = 0; half < 2; ++half) {
        u32 start = half == 0 ? 0 : user_blocks;
        u32 stop = half == 0 ? user_blocks : blocks;
        double sum = 0.0;
        for (u32 block = start + threadIdx.x; block < stop; block += norm_detail::THREADS) {
            sum += sums[block];
        }
        // All must read the first half's scratch before the second half overwrites it.
        __syncthreads();
        norms[half] = sqrt(block_sum<norm_detail::THREADS>(sum, scratch));
        if (threadIdx.x == 0) {
            scales[half] = static_cast<float>(norms[half] > 0.0 ? factor / norms[half] : 0.0);
        }
    }
    if (threadIdx.x == 0) {
        *loss += loss_factor * (norms[0] + norms[1]);
    }
}

extern "C" __global__ void __launch_bounds__(256) norm_gradient(
    const float* __restrict__ nodes, u64 user_elements, u64 elements,
    const float* __restrict__ scales, float* __restrict__ gradient) {
    u64 index = 4 * (static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x);
    if (index < elements) {
        float scale = scales[index < user_elements ? 0 : 1];
        store4(gradient + index, scale4(scale, load4(nodes + index)));
    }
}
