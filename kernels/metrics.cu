// Ranking metrics from lists (SPEC section 9), in f64: recall, NDCG, precision and MAP of each user
// at each list length, and their sums over the users.
//
// Shapes: lists n_l x K; a split of n users with list rows `positions` and sorted wanted items at
// `offsets` (a repeat counts as wanted, not as a hit); lengths n_k; gains[r] = 1 / log2(r + 2) of
// rank r from 0; ideals[n] = the sum of the first n gains.
// Outputs: user_metrics: values n x n_k x 4 `=`; sum_metrics: sums n_k x 4 `=`.
// Ownership: a warp owns a user: its lanes look the ranks up together, then each lane adds up one
// length, hit by hit in the order of the ranks. sum_metrics: a block sums a column by a fixed tree.
// Bytes: n (4 K + 4 wanted + 32 n_k). Flops: few. Bound: latency.
#include "common.cuh"

namespace metrics_detail {

static const u32 WARPS = 8;
static const u32 THREADS = 256;
static const u32 WORDS = 32;  // K is at most 1024.

__device__ __forceinline__ bool contains(const u32* wanted, u32 count, u32 item) {
    u32 low = 0, high = count;
    while (low < high) {
        u32 middle = (low + high) / 2;
        if (wanted[middle] < item) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < count && wanted[low] == item;
}

}  // namespace metrics_detail

extern "C" __global__ void __launch_bounds__(256) user_metrics(
    const u32* __restrict__ lists, u32 k, const u32* __restrict__ positions, u32 users,
    const u32* __restrict__ offsets, const u32* __restrict__ wanted,
    const u32* __restrict__ lengths, u32 length_count, const double* __restrict__ gains,
    const double* __restrict__ ideals, double* __restrict__ values) {
    using namespace metrics_detail;
    SHARED(u32[WARPS][WORDS], hits);
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 user = blockIdx.x * WARPS + warp;
    if (user >= users) {
        return;
    }
    const u32* list = lists + static_cast<u64>(positions[user]) * k;
    u32 n = offsets[user + 1] - offsets[user];
    for (u32 word = 0; word * 32 < k; ++word) {
        u32 rank = word * 32 + lane;
        bool hit = rank < k && contains(wanted + offsets[user], n, list[rank]);
        u32 ballot = __ballot_sync(0xffffffffu, hit);
        if (lane == 0) {
            hits[warp][word] = ballot;
        }
    }
    __syncwarp();
    for (u32 index = lane; index < length_count; index += 32) {
        u32 length = lengths[index];
        double count = 0.0, gain = 0.0, precision = 0.0;
        for (u32 word = 0; word * 32 < length && word * 32 < k; ++word) {
            u32 bits = hits[warp][word];
            while (bits != 0) {
                u32 rank = word * 32 + static_cast<u32>(__ffs(bits)) - 1;
                bits &= bits - 1;
                if (rank < length) {
                    count += 1.0;
                    gain += gains[rank];
                    precision += count / (rank + 1);
                }
            }
        }
        u32 best = n < length ? n : length;
        double* out = values + (static_cast<u64>(user) * length_count + index) * 4;
        out[0] = count / n;
        out[1] = gain / ideals[best];
        out[2] = count / length;
        out[3] = precision / best;
    }
}

extern "C" __global__ void __launch_bounds__(256) sum_metrics(
    const double* __restrict__ values, u32 users, u32 columns, double* __restrict__ sums) {
    SHARED(double[metrics_detail::THREADS], scratch);
    double sum = 0.0;
    for (u32 user = threadIdx.x; user < users; user += metrics_detail::THREADS) {
        sum += values[static_cast<u64>(user) * columns + blockIdx.x];
    }
    sum = block_sum<metrics_detail::THREADS>(sum, scratch);
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = sum;
    }
}
