// The lists of few users, merged from what top_k left of each slice of the items.
//
//   list(u) = the K smallest of the keys of u's slices
//
// Shapes: slice_keys n_u x slices x K, ascending within a slice, NO_KEY where it had no more items;
// `count` = slices K; lists n_u x K.
// Outputs: items and scores `=`; NO_ITEM where a list is short.
// Ownership: a block is one warp and owns one user. It appends keys below the K-th best so far to
// the candidates, which have room for `capacity`, a power of two and at least K + 128; before they
// may overflow they are sorted and cut to K.
// Bytes: 8 n_u count and 8 n_u K. Bound: latency, of the sorts.
#include "keys.cuh"

namespace top_k_merge_detail {

// Keys that a warp reads at a time.
static const u32 MERGED = 128;
// The capacity for lists of 1024.
static const u32 ROOM = 2048;

// Appends the keys of the lanes that have one.
__device__ __forceinline__ void append(u64* keys, u32& count, bool has_key, u64 key) {
    u32 lanes = __ballot_sync(ALL_LANES, has_key);
    if (has_key) {
        keys[count + __popc(lanes & ((1u << threadIdx.x % 32) - 1))] = key;
    }
    count += __popc(lanes);
}

}  // namespace top_k_merge_detail

extern "C" __global__ void __launch_bounds__(32) top_k_merge(
    const u64* __restrict__ slice_keys, u32 count, u32 k, u32 capacity,
    u32* __restrict__ list_items, float* __restrict__ list_scores) {
    using namespace ranking;
    using namespace top_k_merge_detail;
    SHARED(u64[ROOM], keys);
    const u64* own = slice_keys + static_cast<u64>(blockIdx.x) * count;
    u32 kept = 0;
    u64 threshold = NO_KEY;
    auto cut = [&](u32& count) {
        // All lanes have appended their keys.
        __syncwarp();
        sort_keys(keys, count);
        count = count < k ? count : k;
    };
    for (u32 first = 0; first < count; first += MERGED) {
        u64 key[4];
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            u32 index = first + threadIdx.x + 32 * j;
            key[j] = index < count ? own[index] : NO_KEY;
        }
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            append(keys, kept, key[j] < threshold, key[j]);
        }
        if (kept + MERGED > capacity) {
            cut(kept);
            threshold = kept == k ? keys[k - 1] : threshold;
        }
    }
    cut(kept);
    write_list(keys, kept, k, static_cast<u64>(blockIdx.x) * k, list_items, list_scores);
}
