// The order in which an epoch visits the training pairs (SPEC section 7): the pairs sorted by 64
// random bits each, drawn for (seed, epoch, pair); ties by position.
//
// A radix sort of (key, pair) by eight digits of eight bits, lowest first. Each pass is stable, so
// equal keys keep their order and the outcome is fully determined.
//
//   order_keys     keys and pairs 0 .. n - 1
//   radix_count    counts[digit][block]: how many of a block's 2048 keys have each digit
//   radix_offsets  turns counts into the places of their first keys: an exclusive sum over all
//   radix_move     moves every key to its place
//
// Outputs: `=`. Ownership: a block owns 2048 consecutive keys, a warp 256 of them, 32 at a time in
// order.
// Bytes: 8 passes, each 8 n read to count, then 12 n read and written to move. Flops: none. Bound:
// memory, or latency below a million pairs.
#include "philox.cuh"

namespace order_detail {

static const u32 WARPS = 8;
static const u32 DIGITS = 256;
static const u32 WARP_KEYS = 256;
static const u32 BLOCK_KEYS = WARPS * WARP_KEYS;

struct Counts {
    u32 of_warp[WARPS][DIGITS];
};

// Counts the digits of each warp's keys.
__device__ __forceinline__ void count_digits(const u64* keys, u32 count, u32 shift,
                                             Counts& counts) {
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (u32 digit = lane; digit < DIGITS; digit += 32) {
        counts.of_warp[warp][digit] = 0;
    }
    __syncwarp();
    u32 first = blockIdx.x * BLOCK_KEYS + warp * WARP_KEYS;
    for (u32 index = first + lane; index < first + WARP_KEYS && index < count; index += 32) {
        atomicAdd(&counts.of_warp[warp][keys[index] >> shift & (DIGITS - 1)], 1u);
    }
    __syncthreads();
}

}  // namespace order_detail

extern "C" __global__ void __launch_bounds__(256) order_keys(
    u64 seed, u32 epoch, u32 count, u64* __restrict__ keys, u32* __restrict__ pairs) {
    u32 pair = blockIdx.x * blockDim.x + threadIdx.x;
    if (pair < count) {
        Words words = Stream(seed, ORDER, epoch, 0).words(0, pair);
        keys[pair] = static_cast<u64>(words.word[0]) << 32 | words.word[1];
        pairs[pair] = pair;
    }
}

extern "C" __global__ void __launch_bounds__(256) radix_count(
    const u64* __restrict__ keys, u32 count, u32 shift, u32* __restrict__ counts) {
    using namespace order_detail;
    SHARED(Counts, shared);
    count_digits(keys, count, shift, shared);
    u32 sum = 0;
    for (u32 warp = 0; warp < WARPS; ++warp) {
        sum += shared.of_warp[warp][threadIdx.x];
    }
    counts[threadIdx.x * gridDim.x + blockIdx.x] = sum;
}

// One block of 256 threads over digits x blocks counts: each thread sums a run of them, the block
// scans the runs' sums, and each thread writes its run's places.
extern "C" __global__ void __launch_bounds__(256) radix_offsets(u32* __restrict__ counts,
                                                                u32 length) {
    using namespace order_detail;
    SHARED(u32[DIGITS], sums);
    u32 run = (length + DIGITS - 1) / DIGITS;
    u32 start = threadIdx.x * run < length ? threadIdx.x * run : length;
    u32 stop = start + run < length ? start + run : length;
    u32 sum = 0;
    for (u32 index = start; index < stop; ++index) {
        sum += counts[index];
    }
    sums[threadIdx.x] = sum;
    for (u32 distance = 1; distance < DIGITS; distance *= 2) {
        __syncthreads();
        u32 before = threadIdx.x >= distance ? sums[threadIdx.x - distance] : 0;
        __syncthreads();
        sums[threadIdx.x] += before;
    }
    u32 place = sums[threadIdx.x] - sum;
    for (u32 index = start; index < stop; ++index) {
        u32 here = counts[index];
        counts[index] = place;
        place += here;
    }
}

extern "C" __global__ void __launch_bounds__(256) radix_move(
    const u64* __restrict__ keys, const u32* __restrict__ pairs, u32 count, u32 shift,
    const u32* __restrict__ offsets, u64* __restrict__ sorted_keys, u32* __restrict__ sorted_pairs) {
    using namespace order_detail;
    SHARED(Counts, shared);
    count_digits(keys, count, shift, shared);
    // Turns counts into places: the block's, then each warp's after the warps before it.
    u32 place = offsets[threadIdx.x * gridDim.x + blockIdx.x];
    for (u32 warp = 0; warp < WARPS; ++warp) {
        u32 here = shared.of_warp[warp][threadIdx.x];
        shared.of_warp[warp][threadIdx.x] = place;
        place += here;
    }
    __syncthreads();
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 first = blockIdx.x * BLOCK_KEYS + warp * WARP_KEYS;
    for (u32 start = first; start < first + WARP_KEYS; start += 32) {
        u32 index = start + lane;
        bool exists = index < count;
        u64 key = exists ? keys[index] : 0;
        // Lanes without a key get digit 256, which no key has.
        u32 digit = exists ? static_cast<u32>(key >> shift) & (DIGITS - 1) : DIGITS;
        u32 peers = __match_any_sync(0xffffffffu, digit);
        u32 before = static_cast<u32>(__popc(peers & ((1u << lane) - 1)));
        u32 target = exists ? shared.of_warp[warp][digit] + before : 0;
        // All must read their digit's place before the first of them advances it.
        __syncwarp();
        if (exists) {
            if (before == 0) {
                shared.of_warp[warp][digit] += static_cast<u32>(__popc(peers));
            }
            sorted_keys[target] = key;
            sorted_pairs[target] = pairs[index];
        }
        __syncwarp();
    }
}
