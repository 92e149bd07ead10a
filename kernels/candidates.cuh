// The candidates for a user's list in top_k.cu, and how items without a place in it are ruled out.
//
// The tensor cores compute s', near the score s: |s' - s| <= e (top_k.cu). Let b be the K-th best
// s' so far. K items have s' >= b and so scores of at least b - e; an item with s' < b - 2 e has no
// place in the list. Neither has one with s' < s_K - e, where s_K is the K-th best score. Such
// items are dropped; `cut` is the largest of these bounds so far. Keys of s may mix with keys of
// s', since both are within e of the score.
#pragma once
#include "halves.cuh"
#include "keys.cuh"

namespace ranking {

using halves::INFINITE;

// Keys that a lane looks up among the masked items at a time.
static const u32 CHECKED = 4;
// Quads of a row that a lane has in flight, and group maxima that it counts at a time.
static const u32 AT_ONCE = 8;

// A row's neighbours, ascending: the items that its list leaves out.
struct Masked {
    const u32* neighbours;
    u32 low;
    u32 high;
    // The node of item 0.
    u32 first_node;

    // The warp replaces the keys of masked items with NO_KEY and returns their number. A lane looks
    // up CHECKED keys side by side, since each step of a search depends on the one before.
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

// A user's row, and the parameters of its search.
struct Query {
    const float* row;
    // The rows of all items.
    const float* items;
    u32 width;
    u32 k;
    float error;
    Masked masked;

    // The score in lists: a sum in the order of the columns.
    __device__ __forceinline__ float score(u32 item) const {
        const float* other = items + static_cast<u64>(item) * width;
        float score = 0.0f;
        u32 column = 0;
        for (; column + 4 * AT_ONCE <= width; column += 4 * AT_ONCE) {
            float4 mine[AT_ONCE], its[AT_ONCE];
#pragma unroll
            for (u32 n = 0; n < AT_ONCE; ++n) {
                its[n] = load4(other + column + 4 * n);
                mine[n] = load4(row + column + 4 * n);
            }
#pragma unroll
            for (u32 n = 0; n < AT_ONCE; ++n) {
                score = dot4(mine[n], its[n], score);
            }
        }
        for (; column < width; column += 4) {
            score = dot4(load4(row + column), load4(other + column), score);
        }
        return score;
    }

    // The warp turns `count` keys of s' into keys of scores, sorts them, keeps the K best and
    // returns their number. As in the CPU backend, NaN and minus infinity are not scores.
    __device__ __forceinline__ u32 score_all(u64* keys, u32 count) const {
        u32 lane = threadIdx.x % 32;
        u32 scores = 0;
        for (u32 first = 0; first < count; first += 32) {
            u32 index = first + lane;
            bool is_score = false;
            if (index < count && keys[index] != NO_KEY) {
                u32 item = static_cast<u32>(keys[index]);
                float exact = score(item);
                is_score = exact > -INFINITE;
                keys[index] = is_score ? key_of(exact, item) : NO_KEY;
            }
            scores += __popc(__ballot_sync(ALL_LANES, is_score));
        }
        __syncwarp();
        sort_keys(keys, count);
        return scores < k ? scores : k;
    }
};

// The warp drops those of a user's `count` candidates that are masked or have no place in the list,
// raises `cut` and returns the number left, sorted. If that would exceed `most`, only the K best
// are left, with their scores.
static __device__ __noinline__ u32 compact(u64* keys, u32 count, u32 most, const Query& query,
                                    float& cut) {
    u32 lane = threadIdx.x % 32;
    u32 k = query.k;
    // All lanes have appended their keys.
    __syncwarp();
    u32 kept = count - query.masked.drop(keys, count);
    __syncwarp();
    if (most == 0 && count <= 2 * k + 128) {
        // Scoring these takes no longer than sorting them once more.
        return query.score_all(keys, count);
    }
    sort_keys(keys, count);
    auto raise = [&](float least) { cut = least > cut ? least : cut; };
    if (kept >= k) {
        raise(score_of(keys[k - 1]) - 2.0f * query.error);
        u32 end = kept;
        kept = k;
        for (u32 first = k; first < end; first += 32) {
            u32 index = first + lane;
            bool stays = index < end && !(score_of(keys[index]) < cut);
            kept += __popc(__ballot_sync(ALL_LANES, stays));
        }
    }
    if (kept > most) {
        // Keys are scored where other lanes have just read them.
        __syncwarp();
        kept = query.score_all(keys, kept);
        if (kept == k) {
            raise(score_of(keys[k - 1]) - query.error);
        }
    }
    return kept;
}

// Groups of a slice's items, for a first cut: if K groups without a masked item each have an s' of
// at least b, so do K items. The groups are so many that two of the K best items seldom share one.
struct Groups {
    // 0 if there would be too few.
    u32 count;
    // A group has every fourth pair of the items of this many tiles.
    u32 tiles;

    __device__ __forceinline__ Groups(u32 all_tiles, u32 k, u32 most) {
        tiles = (all_tiles + most / 4 - 1) / (most / 4);
        count = all_tiles == 0 ? 0 : 4 * ((all_tiles + tiles - 1) / tiles);
        count = count < 2 * k ? 0 : count;
    }

    // The group of the slice's n-th item.
    __device__ __forceinline__ u32 of(u32 item, u32 tile_items) const {
        return 4 * (item / tile_items / tiles) + item % 8 / 2;
    }

    // The warp finds the K-th largest of the groups' maxima, or a bound that at most K / 16 more
    // groups reach. A group with a masked item has minus infinity, which all groups reach.
    __device__ __forceinline__ float kth_largest(const float* maxima, u32 k) const {
        u32 lane = threadIdx.x % 32;
        // At least K maxima are not below `reached`, and fewer than K are not below `missed`.
        u32 reached = ascending(-INFINITE), missed = ascending(INFINITE) + 1;
        while (missed - reached > 1) {
            u32 middle = reached + (missed - reached) / 2;
            float least = number_of(middle);
            u32 found = 0;
            for (u32 first = lane; first - lane < count; first += 32 * AT_ONCE) {
#pragma unroll
                for (u32 n = 0; n < AT_ONCE; ++n) {
                    u32 index = first + 32 * n;
                    bool is_there = index < count && maxima[index] >= least;
                    found += __popc(__ballot_sync(ALL_LANES, is_there));
                }
            }
            if (found < k) {
                missed = middle;
            } else {
                reached = middle;
                if (found <= k + k / 16) {
                    break;
                }
            }
        }
        return number_of(reached);
    }
};

}  // namespace ranking
