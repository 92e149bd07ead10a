// Keys of scored items, which sort in the order of lists (SPEC section 9).
//
// A key is 64 bits: the score, so that higher ones come first, then the item. A user's keys are all
// different, so sorted keys do not depend on the order in which they came.
#pragma once
#include "common.cuh"

namespace ranking {

// Pairs of keys that a lane reads before it exchanges the first.
static const u32 PAIRS = 4;
static const u32 NO_ITEM = 0xffffffffu;
static const u64 NO_KEY = ~0ull;

// The bits of a number, such that they sort like numbers; number_of is the inverse. -0 counts as 0.
__device__ __forceinline__ u32 ascending(float number) {
    u32 bits = __float_as_uint(number + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float number_of(u32 bits) {
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

// Ascending keys: descending scores, then ascending items.
__device__ __forceinline__ u64 key_of(float score, u32 item) {
    return static_cast<u64>(~ascending(score)) << 32 | item;
}

__device__ __forceinline__ float score_of(u64 key) {
    return number_of(~static_cast<u32>(key >> 32));
}

// The smaller or the larger of two keys.
__device__ __forceinline__ u64 of_two(u64 a, u64 b, bool smaller) {
    return (a < b) == smaller ? a : b;
}

// Keys that the warp sorts in registers: a lane holds places HELD lane to HELD lane + HELD - 1.
template <u32 HELD>
struct Held {
    u64 keys[HELD];

    // Sorts each pair of keys `distance` apart: ascending if `ascends` says so for the first one.
    template <class Ascends>
    __device__ __forceinline__ void order_pairs(u32 distance, Ascends ascends) {
#pragma unroll
        for (u32 n = 0; n < HELD; ++n) {
            if ((n & distance) == 0) {
                u64 a = keys[n], b = keys[n + distance];
                keys[n] = of_two(a, b, ascends(n));
                keys[n + distance] = of_two(a, b, !ascends(n));
            }
        }
    }

    // Runs ascend and descend in turn; the last one, of all keys, ascends. The outer loops are not
    // unrolled: their code would not fit into a multiprocessor's instruction cache.
    __device__ __forceinline__ void sort() {
        u32 lane = threadIdx.x % 32;
        // Runs within a lane except the last; their direction does not depend on the lane.
#pragma unroll
        for (u32 run = 2; run < HELD; run *= 2) {
#pragma unroll
            for (u32 distance = run / 2; distance > 0; distance /= 2) {
                order_pairs(distance, [=](u32 n) { return (n & run) == 0; });
            }
        }
#pragma unroll 1
        for (u32 run = 1; run <= 32; run *= 2) {
            // Runs of `run` lanes' keys.
            bool ascend = (lane & run) == 0;
#pragma unroll 1
            for (u32 lanes = run / 2; lanes > 0; lanes /= 2) {
                bool smaller = ((lane & lanes) == 0) == ascend;
#pragma unroll
                for (u32 first = 0; first < HELD; first += 4) {
                    u64 mine[4], theirs[4];
#pragma unroll
                    for (u32 n = 0; n < 4; ++n) {
                        mine[n] = keys[first + n];
                    }
                    exchange4(mine, lanes, theirs);
#pragma unroll
                    for (u32 n = 0; n < 4; ++n) {
                        keys[first + n] = of_two(mine[n], theirs[n], smaller);
                    }
                }
            }
#pragma unroll
            for (u32 distance = HELD / 2; distance > 0; distance /= 2) {
                order_pairs(distance, [=](u32) { return ascend; });
            }
        }
    }

    // The warp sorts `count` keys, at most 32 HELD, in place.
    static __device__ __forceinline__ void sort(u64* all, u32 count) {
        u32 lane = threadIdx.x % 32;
        Held held;
#pragma unroll
        for (u32 n = 0; n < HELD; ++n) {
            u32 place = lane + 32 * n;
            held.keys[n] = place < count ? all[place] : NO_KEY;
        }
        held.sort();
        // All have read theirs.
        __syncwarp();
#pragma unroll
        for (u32 n = 0; n < HELD; ++n) {
            u32 place = HELD * lane + n;
            if (place < count) {
                all[place] = held.keys[n];
            }
        }
        __syncwarp();
    }
};

// The warp sorts `count` keys that all lanes see, NO_KEY last: in registers or, if they are too
// many, in place, with room for a power of two. Not inlined, since most tiles skip it.
static __device__ __noinline__ void sort_keys(u64* keys, u32 count) {
    if (count <= 32 * 4) {
        Held<4>::sort(keys, count);
        return;
    }
    if (count <= 32 * 8) {
        Held<8>::sort(keys, count);
        return;
    }
    u32 lane = threadIdx.x % 32;
    u32 end = 1;
    while (end < count) {
        end *= 2;
    }
    for (u32 index = count + lane; index < end; index += 32) {
        keys[index] = NO_KEY;
    }
    __syncwarp();
    for (u32 size = 2; size <= end; size *= 2) {
        for (u32 distance = size / 2; distance > 0; distance /= 2) {
            for (u32 first = lane; first < end / 2; first += 32 * PAIRS) {
                u32 left[PAIRS];
                u64 a[PAIRS], b[PAIRS];
#pragma unroll
                for (u32 i = 0; i < PAIRS; ++i) {
                    u32 pair = first + 32 * i;
                    // Past the last pair the first one is exchanged again, with the same result.
                    pair = pair < end / 2 ? pair : first;
                    left[i] = 2 * pair - (pair & (distance - 1));
                    a[i] = keys[left[i]];
                    b[i] = keys[left[i] + distance];
                }
#pragma unroll
                for (u32 i = 0; i < PAIRS; ++i) {
                    // Runs of `size` ascend and descend in turn; the last one ascends.
                    bool descending = (left[i] & size) != 0;
                    if ((a[i] > b[i]) != descending) {
                        keys[left[i]] = b[i];
                        keys[left[i] + distance] = a[i];
                    }
                }
            }
            __syncwarp();
        }
    }
}

// The warp writes a user's list.
__device__ __forceinline__ void write_list(const u64* keys, u32 count, u32 k, u64 place,
                                           u32* list_items, float* list_scores) {
    for (u32 rank = threadIdx.x % 32; rank < k; rank += 32) {
        bool exists = rank < count;
        list_items[place + rank] = exists ? static_cast<u32>(keys[rank]) : NO_ITEM;
        list_scores[place + rank] = exists ? score_of(keys[rank]) : 0.0f;
    }
}

}  // namespace ranking
