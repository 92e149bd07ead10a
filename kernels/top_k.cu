// The K best items of each user (SPEC sections 2 (10), 9), without a matrix of scores.
//
//   score(u, i) = p(H_u)[u] . p(H_i)[i], items of u's training pairs left out; higher scores first,
//   ties by lower item id.
//
// Shapes: predicted N x d, ids n_u users, lists n_u x K; K at most 1024.
// Outputs: items and scores `=`; NO_ITEM where a list is short.
// Ownership: a block scores its users (16 up to K = 128) against all items, 128 at a time, in f32 by
// fused multiply-adds in the order of the columns: the CPU backend's bits. A score above the user's
// threshold (its K-th best so far) whose item is not masked is appended to the user's candidates in
// shared memory; when those may run over, they are sorted, cut to K and the threshold rises.
// Determinism: a candidate's key is (score descending, item ascending), unique and sorted, so the
// order of appending, an integer atomic, decides nothing. A later item with an equal score loses by
// its id: it need not pass the threshold.
// Bytes: I d 4 a block from L2, n_u d 4 + 8 n_u K from memory. Flops: 2 n_u I d.
// Bound: f32 multiply-adds.
#include "common.cuh"

namespace top_k_detail {

static const u32 THREADS = 128;
static const u32 USERS = 16;
static const u32 ITEMS = 128;
static const u32 DEPTH = 16;
// 20 words: eight lanes' 16-byte reads fall into 32 different banks.
static const u32 STRIDE = DEPTH + 4;
static const u32 KEYS = 4096;
static const u32 NO_ITEM = 0xffffffffu;
static const u64 NO_KEY = ~0ull;

struct alignas(16) Shared {
    float users[USERS * STRIDE];
    float items[ITEMS * STRIDE];
    u64 keys[KEYS];
    u32 counts[USERS];
    float thresholds[USERS];
};

// Ascending keys: descending scores, then ascending items. -0 counts as 0.
__device__ __forceinline__ u64 key_of(float score, u32 item) {
    u32 bits = __float_as_uint(score + 0.0f);
    u32 ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<u64>(~ascending) << 32 | item;
}

__device__ __forceinline__ float score_of(u64 key) {
    u32 ascending = ~static_cast<u32>(key >> 32);
    return __uint_as_float(ascending & 0x80000000u ? ascending & 0x7fffffffu : ~ascending);
}

// Whether `node` is among a row's neighbours, which ascend.
__device__ __forceinline__ bool is_neighbour(const u32* neighbours, u32 low, u32 high, u32 node) {
    u32 end = high;
    while (low < high) {
        u32 middle = low + (high - low) / 2;
        if (neighbours[middle] < node) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < end && neighbours[low] == node;
}

// Sorts every user's `capacity` keys (a power of two), cuts them to K, sets the thresholds.
__device__ __forceinline__ void compact(Shared& shared, u32 capacity, u32 users, u32 k) {
    for (u32 index = threadIdx.x; index < users * capacity; index += THREADS) {
        if (index % capacity >= shared.counts[index / capacity]) {
            shared.keys[index] = NO_KEY;
        }
    }
    __syncthreads();
    for (u32 size = 2; size <= capacity; size *= 2) {
        for (u32 distance = size / 2; distance > 0; distance /= 2) {
            for (u32 pair = threadIdx.x; pair < users * capacity / 2; pair += THREADS) {
                u32 left = pair / distance * 2 * distance + pair % distance;
                u32 right = left + distance;
                u64 a = shared.keys[left], b = shared.keys[right];
                // Runs of `size` ascend and descend in turn; a user's keys end ascending.
                bool descending = (left % capacity & size) != 0;
                if ((a > b) != descending) {
                    shared.keys[left] = b;
                    shared.keys[right] = a;
                }
            }
            __syncthreads();
        }
    }
    if (threadIdx.x < users && shared.counts[threadIdx.x] >= k) {
        shared.counts[threadIdx.x] = k;
        shared.thresholds[threadIdx.x] = score_of(shared.keys[threadIdx.x * capacity + k - 1]);
    }
    __syncthreads();
}

// The block's scores: thread (warp w, lane l) has users 4w .. 4w + 3 and items l + 32 j.
__device__ __forceinline__ void score_tile(Shared& shared, const float* predicted, const u32* ids,
                                           u32 first_user, u32 users, u32 all_users, u32 first_item,
                                           u32 items, u32 width, float (&scores)[4][4]) {
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (u32 column = 0; column < width; column += DEPTH) {
        for (u32 index = threadIdx.x; index < (USERS + ITEMS) * DEPTH / 4; index += THREADS) {
            u32 row = index / (DEPTH / 4);
            u32 k = 4 * (index % (DEPTH / 4));
            bool is_user = row < USERS;
            u32 item = first_item + row - USERS;
            bool exists = column + k < width && (is_user ? row < users : item < items);
            float4 value = zero4();
            if (exists) {
                u32 node = is_user ? ids[first_user + row] : all_users + item;
                value = load4(predicted + static_cast<u64>(node) * width + column + k);
            }
            float* target = is_user ? shared.users + row * STRIDE
                                    : shared.items + (row - USERS) * STRIDE;
            store4(target + k, value);
        }
        __syncthreads();
#pragma unroll
        for (u32 k = 0; k < DEPTH; k += 4) {
            float4 user[4], item[4];
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                user[i] = load4(shared.users + (4 * warp + i) * STRIDE + k);
                item[i] = load4(shared.items + (lane + 32 * i) * STRIDE + k);
            }
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
#pragma unroll
                for (u32 j = 0; j < 4; ++j) {
                    scores[i][j] = dot4(user[i], item[j], scores[i][j]);
                }
            }
        }
        __syncthreads();
    }
}

}  // namespace top_k_detail

extern "C" __global__ void __launch_bounds__(128) top_k(
    const float* __restrict__ predicted, const u32* __restrict__ ids, u32 id_count, u32 all_users,
    u32 items, u32 width, const u32* __restrict__ offsets, const u32* __restrict__ neighbours,
    u32 k, u32 capacity, u32 users_per_block, u32* __restrict__ list_items,
    float* __restrict__ list_scores) {
    using namespace top_k_detail;
    SHARED(Shared, shared);
    u32 first_user = blockIdx.x * users_per_block;
    u32 users = first_user + users_per_block < id_count ? users_per_block : id_count - first_user;
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x < USERS) {
        shared.counts[threadIdx.x] = 0;
        shared.thresholds[threadIdx.x] = __uint_as_float(0xff800000u);  // Minus infinity.
    }
    __syncthreads();
    for (u32 first_item = 0; first_item < items; first_item += ITEMS) {
        float scores[4][4] = {};
        score_tile(shared, predicted, ids, first_user, users, all_users, first_item, items, width,
                   scores);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            u32 user = 4 * warp + i;
            if (user >= users) {
                continue;
            }
            u32 id = ids[first_user + user];
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                u32 item = first_item + lane + 32 * j;
                if (item < items && scores[i][j] > shared.thresholds[user]
                    && !is_neighbour(neighbours, offsets[id], offsets[id + 1], all_users + item)) {
                    u32 slot = atomicAdd(&shared.counts[user], 1u);
                    shared.keys[user * capacity + slot] = key_of(scores[i][j], item);
                }
            }
        }
        __syncthreads();
        bool full = false;
        for (u32 user = 0; user < users; ++user) {
            full = full || shared.counts[user] + ITEMS > capacity;
        }
        // Every thread has counted before one of them appends again.
        __syncthreads();
        if (full) {
            compact(shared, capacity, users, k);
        }
    }
    compact(shared, capacity, users, k);
    for (u32 index = threadIdx.x; index < users * k; index += THREADS) {
        u32 user = index / k, rank = index % k;
        bool exists = rank < shared.counts[user];
        u64 key = exists ? shared.keys[user * capacity + rank] : NO_KEY;
        u64 place = static_cast<u64>(first_user + user) * k + rank;
        list_items[place] = exists ? static_cast<u32>(key) : NO_ITEM;
        list_scores[place] = exists ? score_of(key) : 0.0f;
    }
}
