// The K best items of each user (SPEC sections 2 (10), 9), without a matrix of scores.
//
//   score(u, i) = p(H_u)[u] . p(H_i)[i], items of u's training pairs left out; higher scores first,
//   ties by lower item id.
//
// Shapes: predicted N x d, ids n_u users, lists n_u x K; K at most 1024; keys of slices n_u x slices
// x K.
// Outputs: items and scores `=`; NO_ITEM where a list is short. Of few users each has the items cut
// into slices, for more blocks: top_k then leaves each slice's best keys, and top_k_merge lists them.
// Ownership: a block scores its users (16 up to K = 128) against a slice's items, 128 at a time, in
// f32 by fused multiply-adds in the order of the columns: the CPU backend's bits. A user is one
// warp's. A score above the user's threshold (its K-th best so far) is appended to the user's
// candidates in shared memory; when those may run over, the warp drops those that are masked, all at
// once, sorts the others, cuts them to K and the threshold rises. No other warp waits for that. In
// top_k_merge a block is a warp and has one user.
// Determinism: a candidate's key is (score descending, item ascending), unique and sorted, so how
// the items are cut decides nothing. A later item with an equal score loses by its id: it need not
// pass the threshold.
// Bytes: I d 4 a block from L2, n_u d 4 + 8 n_u K from memory, and 16 n_u K for each of several
// slices. Flops: 2 n_u I d.
// Bound: f32 multiply-adds; of few users latency, of a tile's rows and of the merge.
#include "common.cuh"

namespace top_k_detail {

static const u32 THREADS = 64;
static const u32 WARPS = THREADS / 32;
static const u32 USERS = 16;
// Users of a warp. For four columns of eight users and of a lane's four items shared memory is read
// in 8 + 16 cycles, in which a multiprocessor makes three quarters of their multiply-adds.
static const u32 OWN = USERS / WARPS;
static const u32 ITEMS = 128;
static const u32 DEPTH = 16;
// Rows that the block brings at a time, 16 bytes a thread.
static const u32 ROWS = THREADS / (DEPTH / 4);
// 20 words: eight lanes' 16-byte reads fall into 32 different banks.
static const u32 STRIDE = DEPTH + 4;
static const u32 KEYS = 4096;
// Of one user, at the longest lists.
static const u32 MOST_KEYS = 2048;
// Pairs of keys that a lane has read before it exchanges the first.
static const u32 PAIRS = 4;
// Keys that a lane looks for among masked items at a time.
static const u32 CHECKED = 4;
// Keys that a lane has when a warp sorts them in registers, two times four, and all that a warp has.
static const u32 HELD = 8;
static const u32 SORTED = 32 * HELD;
static const u32 NO_ITEM = 0xffffffffu;
static const u64 NO_KEY = ~0ull;

struct alignas(16) Shared {
    float users[USERS * STRIDE];
    float items[ITEMS * STRIDE];
    u64 keys[KEYS];
    float thresholds[USERS];
    u32 counts[USERS];
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

// The neighbours of a row, which ascend: what its list leaves out.
struct Masked {
    const u32* neighbours;
    u32 low;
    u32 high;
    // The node of item 0.
    u32 first_node;

    // The warp makes keys of masked items NO_KEY; how many of them there are. CHECKED keys of a
    // lane are looked up side by side: each look depends on the one before.
    __device__ __forceinline__ u32 drop(u64* keys, u32 count) const {
        u32 dropped = 0;
        if (low == high) {
            return dropped;
        }
        for (u32 first = threadIdx.x % 32; first - threadIdx.x % 32 < count;
             first += 32 * CHECKED) {
            u32 node[CHECKED], below[CHECKED];
#pragma unroll
            for (u32 i = 0; i < CHECKED; ++i) {
                u32 index = first + 32 * i;
                node[i] = index < count ? first_node + static_cast<u32>(keys[index]) : 0;
                below[i] = low;
            }
            // The last neighbour that is not above the node, or the first one.
            u32 step = 1;
            while (2 * step < high - low) {
                step *= 2;
            }
            for (; step > 0; step /= 2) {
#pragma unroll
                for (u32 i = 0; i < CHECKED; ++i) {
                    u32 next = below[i] + step;
                    if (next < high && neighbours[next] <= node[i]) {
                        below[i] = next;
                    }
                }
            }
#pragma unroll
            for (u32 i = 0; i < CHECKED; ++i) {
                u32 index = first + 32 * i;
                bool is_masked = index < count && neighbours[below[i]] == node[i];
                if (is_masked) {
                    keys[index] = NO_KEY;
                }
                dropped += __popc(__ballot_sync(ALL_LANES, is_masked));
            }
        }
        return dropped;
    }
};

// Appends the keys of those of the warp's lanes that have one.
__device__ __forceinline__ void append(u64* keys, u32& count, bool has_key, u64 key) {
    u32 lanes = __ballot_sync(ALL_LANES, has_key);
    if (has_key) {
        keys[count + __popc(lanes & ((1u << threadIdx.x % 32) - 1))] = key;
    }
    count += __popc(lanes);
}

// The smaller or the larger of two keys.
__device__ __forceinline__ u64 of_two(u64 a, u64 b, bool smaller) {
    return (a < b) == smaller ? a : b;
}

// A lane's keys that are `distance` apart become sorted, pair by pair: ascending where `ascends` says
// so of the first one.
template <class Ascends>
__device__ __forceinline__ void order_pairs(u64 (&keys)[HELD], u32 distance, Ascends ascends) {
#pragma unroll
    for (u32 n = 0; n < HELD; ++n) {
        if ((n & distance) == 0) {
            u64 a = keys[n], b = keys[n + distance];
            keys[n] = of_two(a, b, ascends(n));
            keys[n + distance] = of_two(a, b, !ascends(n));
        }
    }
}

// The warp sorts SORTED keys in registers; lane l has those of places HELD l to HELD l + HELD - 1.
// Runs ascend and descend in turn; the last one, of all, ascends. The loops stay loops: unrolled,
// their instructions would not fit into what a multiprocessor keeps of them.
__device__ __forceinline__ void sort_held(u64 (&keys)[HELD]) {
    u32 lane = threadIdx.x % 32;
    // Runs of two and of four, which do not depend on the lane.
    order_pairs(keys, 1, [](u32 n) { return (n & 2) == 0; });
    order_pairs(keys, 2, [](u32 n) { return (n & 4) == 0; });
    order_pairs(keys, 1, [](u32 n) { return (n & 4) == 0; });
#pragma unroll 1
    for (u32 run = 1; run <= 32; run *= 2) {
        // Runs of so many lanes' keys.
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
        auto all_alike = [=](u32) { return ascend; };
        order_pairs(keys, 4, all_alike);
        order_pairs(keys, 2, all_alike);
        order_pairs(keys, 1, all_alike);
    }
}

// The warp drops those of a user's `count` keys that are masked, sorts the others and cuts them to
// K; how many are left. Up to SORTED of them are sorted in registers, more in their room, a power
// of two. Not inlined: most tiles pass it by.
__device__ __noinline__ u32 compact(u64* keys, u32 count, u32 k, Masked masked) {
    u32 lane = threadIdx.x % 32;
    // All lanes have appended their keys.
    __syncwarp();
    u32 dropped = masked.drop(keys, count);
    u32 kept = count - dropped < k ? count - dropped : k;
    __syncwarp();
    if (count <= SORTED) {
        u64 held[HELD];
#pragma unroll
        for (u32 n = 0; n < HELD; ++n) {
            u32 place = lane + 32 * n;
            held[n] = place < count ? keys[place] : NO_KEY;
        }
        sort_held(held);
        // All have read theirs.
        __syncwarp();
#pragma unroll
        for (u32 n = 0; n < HELD; ++n) {
            u32 place = HELD * lane + n;
            if (place < kept) {
                keys[place] = held[n];
            }
        }
        __syncwarp();
        return kept;
    }
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
                    // Instead of pairs beyond the last one, the first is exchanged again: alike.
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
    return kept;
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

// Columns of the block's items and users on their way from memory to shared memory: a thread brings
// four columns of one user, if any, and of every ROWS-th item.
struct Columns {
    float4 items[ITEMS / ROWS];
    float4 user;

    __device__ __forceinline__ void bring(const float* predicted, const float* own, u32 all_users,
                                          u32 first_item, u32 end, u32 width, u32 first_column) {
        u32 row = threadIdx.x / (DEPTH / 4);
        u32 column = first_column + 4 * (threadIdx.x % (DEPTH / 4));
        bool has_columns = column < width;
        u32 item = first_item + row;
        const float* place = predicted + static_cast<u64>(all_users + item) * width + column;
        u64 apart = static_cast<u64>(ROWS) * width;
#pragma unroll
        for (u32 i = 0; i < ITEMS / ROWS; ++i) {
            items[i] = has_columns && item + ROWS * i < end ? load4(place) : zero4();
            place += apart;
        }
        user = has_columns && own != nullptr ? load4(own + column) : zero4();
    }

    __device__ __forceinline__ void put(Shared& shared) const {
        u32 row = threadIdx.x / (DEPTH / 4), in_row = 4 * (threadIdx.x % (DEPTH / 4));
        if (row < USERS) {
            store4(shared.users + row * STRIDE + in_row, user);
        }
#pragma unroll
        for (u32 i = 0; i < ITEMS / ROWS; ++i) {
            store4(shared.items + (row + ROWS * i) * STRIDE + in_row, items[i]);
        }
    }
};

// The products of the columns in shared memory, added: thread (warp w, lane l) has users
// w + WARPS i and items l + 32 j.
__device__ __forceinline__ void score_columns(const Shared& shared, float (&scores)[OWN][4]) {
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (u32 k = 0; k < DEPTH; k += 4) {
        float4 item[4];
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            item[j] = load4(shared.items + (lane + 32 * j) * STRIDE + k);
        }
#pragma unroll
        for (u32 i = 0; i < OWN; ++i) {
            float4 user = load4(shared.users + (warp + WARPS * i) * STRIDE + k);
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                scores[i][j] = dot4(user, item[j], scores[i][j]);
            }
        }
    }
}

}  // namespace top_k_detail

extern "C" __global__ void __launch_bounds__(64) top_k(
    const float* __restrict__ predicted, const u32* __restrict__ ids, u32 id_count, u32 all_users,
    u32 items, u32 slice_items, u32 width, const u32* __restrict__ offsets,
    const u32* __restrict__ neighbours, u32 k, u32 capacity, u32 users_per_block,
    u64* __restrict__ slice_keys, u32* __restrict__ list_items, float* __restrict__ list_scores) {
    using namespace top_k_detail;
    SHARED(Shared, shared);
    u32 first_user = blockIdx.x * users_per_block;
    u32 users = first_user + users_per_block < id_count ? users_per_block : id_count - first_user;
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x < USERS) {
        shared.counts[threadIdx.x] = 0;
        shared.thresholds[threadIdx.x] = __uint_as_float(0xff800000u);  // Minus infinity.
    }
    u32 start = blockIdx.y * slice_items;
    items = start + slice_items < items ? start + slice_items : items;
    u32 row = threadIdx.x / (DEPTH / 4);
    const float* own =
        row < users ? predicted + static_cast<u64>(ids[first_user + row]) * width : nullptr;
    auto masked = [&](u32 user) {
        u32 id = ids[first_user + user];
        return Masked{neighbours, offsets[id], offsets[id + 1], all_users};
    };
    Columns columns;
    columns.bring(predicted, own, all_users, start, items, width, 0);
    for (u32 first_item = start; first_item < items; first_item += ITEMS) {
        float scores[OWN][4] = {};
        for (u32 column = 0; column < width; column += DEPTH) {
            columns.put(shared);
            __syncthreads();
            // The next ones are on their way meanwhile, be they of the next items.
            bool is_last = column + DEPTH >= width;
            columns.bring(predicted, own, all_users, is_last ? first_item + ITEMS : first_item,
                          items, width, is_last ? 0 : column + DEPTH);
            score_columns(shared, scores);
            __syncthreads();
        }
#pragma unroll
        for (u32 i = 0; i < OWN; ++i) {
            u32 user = warp + WARPS * i;
            if (user >= users) {
                continue;
            }
            u64* keys = shared.keys + user * capacity;
            float threshold = shared.thresholds[user];
            u32 count = shared.counts[user];
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                u32 item = first_item + lane + 32 * j;
                bool is_better = item < items && scores[i][j] > threshold;
                append(keys, count, is_better, key_of(scores[i][j], item));
            }
            if (count + ITEMS > capacity) {
                count = compact(keys, count, k, masked(user));
                if (lane == 0 && count == k) {
                    shared.thresholds[user] = score_of(keys[k - 1]);
                }
            }
            if (lane == 0) {
                shared.counts[user] = count;
            }
        }
    }
    __syncthreads();
#pragma unroll 1
    for (u32 user = warp; user < users; user += WARPS) {
        u64* keys = shared.keys + user * capacity;
        u32 count = compact(keys, shared.counts[user], k, masked(user));
        u64 place = static_cast<u64>(first_user + user);
        if (slice_keys == nullptr) {
            write_list(keys, count, k, place * k, list_items, list_scores);
        } else {
            u64* slice = slice_keys + (place * gridDim.y + blockIdx.y) * k;
            for (u32 rank = lane; rank < k; rank += 32) {
                slice[rank] = rank < count ? keys[rank] : NO_KEY;
            }
        }
    }
}

// The best of the `count` keys that the slices left of each user, a multiple of K.
extern "C" __global__ void __launch_bounds__(32) top_k_merge(
    const u64* __restrict__ slice_keys, u32 count, u32 k, u32 capacity,
    u32* __restrict__ list_items, float* __restrict__ list_scores) {
    using namespace top_k_detail;
    SHARED(u64[MOST_KEYS], keys);
    const u64* own = slice_keys + static_cast<u64>(blockIdx.x) * count;
    u32 kept = 0;
    u64 threshold = NO_KEY;
    for (u32 first = 0; first < count; first += ITEMS) {
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
        if (kept + ITEMS > capacity) {
            kept = compact(keys, kept, k, Masked{nullptr, 0, 0, 0});
            threshold = kept == k ? keys[k - 1] : threshold;
        }
    }
    kept = compact(keys, kept, k, Masked{nullptr, 0, 0, 0});
    write_list(keys, kept, k, static_cast<u64>(blockIdx.x) * k, list_items, list_scores);
}
