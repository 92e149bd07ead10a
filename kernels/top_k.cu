// The K best items of each user (SPEC sections 2 (10), 9), without a matrix of scores.
//
//   score(u, i) = p(H_u)[u] . p(H_i)[i], without the items of u's training pairs; higher scores
//   first, ties by lower item id.
//
// Shapes: predicted N x d, ids n_u users, lists n_u x K; K at most 1024; largest and item_halves as
// half_rows.cu leaves them for the items; keys of slices n_u x slices x K.
// Outputs: items and scores `=`; NO_ITEM where a list is short. If users are few, the items are cut
// into slices, for more blocks: top_k then leaves each slice's best keys to top_k_merge.
//
// Lists hold scores in f32, summed by fused multiply-adds in the order of the columns: the CPU
// backend's bits. The tensor cores only tell which items can have a place in a list, from halves of
// both rows. Their sum s' is near the score s:
//
//   |s' - s| <= e = (2^-10 (1 + 2^-7) + 2^-22 d) |p(H_u)[u]| max over i of |p(H_i)[i]|
//
// A half is within 2^-11 of its number, so a product of two is within 2^-10 + 2^-22 of the exact
// one, and the magnitudes of the products add up to at most the product of the norms (Cauchy and
// Schwarz). The cores add sixteen products to a sum in steps of four or more, and may cut each
// number of a step at 2^-23 of the largest: 24 of them, 1.5 2^-23 d in all. The sum that the list
// holds rounds d times, 2^-24 d: together 2^-22 d. The rest of 2^-17 covers further cuts in a step
// of few columns, numbers so small that a half is within 2^-25 of them (halves.cuh scales the norms
// to at least 1: 2^-25 4 sqrt(d), d at most 512), and the roundings of the norms, of e and of the
// cuts.
// One item with a norm far above all others makes e large and the lists slow. If norms are so far
// from 1 that products might overflow or vanish, e is infinite, and every item is a candidate.
//
// A block passes over its slice's items twice. First it notes the largest s' of each of several
// groups of items; the K-th largest of these gives a first cut (candidates.cuh), unless there would
// be too few groups. Then it appends the items that pass the cut to their users' candidates in
// shared memory: some 60 for a list of 50. Candidates that may overflow their room are compacted,
// and the cut rises. In the end their scores decide.
//
// Ownership: a block scores WARPS users_per_warp users against ITEMS items at a time; a warp owns
// its users, and no other warp waits while it compacts their candidates.
// Determinism: lanes append candidates in no fixed order, but keys are unique and sorted, and
// nothing else depends on that order: not even which items are candidates.
// Bytes: 4 I d per block from L2, n_u d 4 + 8 n_u K from memory, and 16 n_u K for each of several
// slices. Flops: 4 n_u I d on the tensor cores, and some 2.5 n_u K d in f32.
// Bound: what a multiprocessor issues, with eight warps: the tensor cores would need a quarter of
// it.
#include "candidates.cuh"

namespace top_k_detail {

using namespace ranking;

static const u32 WARPS = 4;
static const u32 THREADS = 32 * WARPS;
// The most users of a warp: the lines of a tensor-core product.
static const u32 OWN = 16;
static const u32 ITEMS = 64;
// Columns that pass through shared memory at a time, in parts of 32: two products of the cores.
static const u32 DEPTH = 64;
static const u32 PARTS = DEPTH / 32;
static const u32 STAGES = 2;
// Items between two checks that a user's candidates have room for as many more.
static const u32 ARRIVALS = 32;
// Candidates of a warp's users.
static const u32 KEYS = 2048;

struct alignas(16) Shared {
    // Eight lanes, which are served together, read 16 bytes each of two items, from all banks.
    u16 items[STAGES][PARTS][ITEMS][32];
    // Candidates or, in the first pass over the items, the largest s' of a user's groups.
    u64 keys[WARPS][KEYS];
    // For each user: the cut, the factor that scales it and s' back, e, and the number of
    // candidates.
    float cuts[WARPS][OWN];
    float scales[WARPS][OWN];
    float errors[WARPS][OWN];
    u32 counts[WARPS][OWN];
};
static_assert(sizeof(Shared) == 82944, "src/cuda/ranking.rs asks for as much at a launch");

// The copies of the slice's items to shared memory, DEPTH columns at a time.
struct Copies {
    const u16* items;
    u32 width;
    // Where the next copy begins.
    u32 item;
    u32 column;
    u32 end;

    __device__ __forceinline__ void begin(Shared& shared, u32 stage) {
        if (item < end) {
            u32 row = threadIdx.x / 4, in_row = 8 * (threadIdx.x % 4);
#pragma unroll
            for (u32 part = 0; part < PARTS; ++part) {
                u32 from = column + 32 * part + in_row;
#pragma unroll
                for (u32 i = row; i < row + ITEMS; i += THREADS / 4) {
                    copy_async<16>(shared.items[stage][part][i] + in_row,
                                   items + static_cast<u64>(item + i) * width + from,
                                   item + i < end && from < width);
                }
            }
            column += DEPTH;
            if (column >= width) {
                column = 0;
                item += ITEMS;
            }
        }
        // Every step commits a group, even an empty one, so that all can wait for the same number.
        commit_copies();
    }
};

// The two users that a lane multiplies: its warp's lane / 4 and lane / 4 + 8.
struct Users {
    // Null if there is no such user.
    const float* rows[2];
    float scales[2];
    // The columns of a step: for each part, the words of two products.
    u32 words[PARTS][2][4];

    __device__ __forceinline__ void bring(u32 first, u32 width) {
#pragma unroll
        for (u32 part = 0; part < PARTS; ++part) {
            u32 column = first + 32 * part + 8 * (threadIdx.x % 4);
#pragma unroll
            for (u32 i = 0; i < 2; ++i) {
#pragma unroll
                for (u32 n = 0; n < 2; ++n) {
                    bool is_there = rows[i] != nullptr && column + 4 * n < width;
                    float4 four = is_there ? load4(rows[i] + column + 4 * n) : zero4();
                    words[part][n][i] = to_halves(four.x * scales[i], four.y * scales[i]);
                    words[part][n][i + 2] = to_halves(four.z * scales[i], four.w * scales[i]);
                }
            }
        }
    }

    // Adds the products of a stage's columns to s' of the two users and of items 8 j + 2 (lane % 4)
    // and the next one. Any columns may meet in a product: a lane multiplies the eight from 8 (lane
    // % 4) on.
    __device__ __forceinline__ void multiply(const u16 (&items)[PARTS][ITEMS][32],
                                             float (&scores)[ITEMS / 8][4]) const {
        u32 lane = threadIdx.x % 32;
#pragma unroll
        for (u32 part = 0; part < PARTS; ++part) {
            uint4 item[ITEMS / 8];
#pragma unroll
            for (u32 j = 0; j < ITEMS / 8; ++j) {
                const u16* eight = items[part][8 * j + lane / 4] + 8 * (lane % 4);
                item[j] = *reinterpret_cast<const uint4*>(eight);
            }
            // Eight products lie between two of the same sums, so that the second need not wait.
#pragma unroll
            for (u32 j = 0; j < ITEMS / 8; ++j) {
                multiply_halves(scores[j], words[part][0], {item[j].x, item[j].y});
            }
#pragma unroll
            for (u32 j = 0; j < ITEMS / 8; ++j) {
                multiply_halves(scores[j], words[part][1], {item[j].z, item[j].w});
            }
        }
    }
};

// Updates the largest s' of two users with those of `count` times eight items.
__device__ __forceinline__ void largest_of(const float (&scores)[ITEMS / 8][4], u32 first, u32 count,
                                           float (&largest)[2]) {
#pragma unroll
    for (u32 j = first; j < first + count; ++j) {
#pragma unroll
        for (u32 n = 0; n < 4; ++n) {
            largest[n / 2] = fmaxf(largest[n / 2], scores[j][n]);
        }
    }
}

}  // namespace top_k_detail

// Shared memory limits a multiprocessor to two blocks, so registers need not be saved.
extern "C" __global__ void __launch_bounds__(128, 2) top_k(
    const float* __restrict__ predicted, const u32* __restrict__ ids, u32 id_count, u32 all_users,
    u32 items, u32 slice_items, u32 width, const u32* __restrict__ offsets,
    const u32* __restrict__ neighbours, u32 k, u32 capacity, u32 users_per_warp,
    const float* __restrict__ largest, const u16* __restrict__ item_halves,
    u64* __restrict__ slice_keys, u32* __restrict__ list_items, float* __restrict__ list_scores) {
    using namespace top_k_detail;
    SHARED_AT_LAUNCH(Shared, shared);
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 first_user = (blockIdx.x * WARPS + warp) * users_per_warp;
    u32 left = first_user < id_count ? id_count - first_user : 0;
    u32 users = left < users_per_warp ? left : users_per_warp;
    u32 start = blockIdx.y * slice_items;
    u32 end = start + slice_items < items ? start + slice_items : items;
    u64(&keys)[KEYS] = shared.keys[warp];
    float(&cuts)[OWN] = shared.cuts[warp];
    u32(&counts)[OWN] = shared.counts[warp];
    auto row_of = [&](u32 user) {
        return user < users ? predicted + static_cast<u64>(ids[first_user + user]) * width : nullptr;
    };
    auto masked_of = [&](u32 user) {
        u32 id = ids[first_user + user];
        return Masked{neighbours, offsets[id], offsets[id + 1], all_users};
    };

    float item_scale, item_back;
    bool are_near = halves::scale_of(*largest, item_scale, item_back);
    for (u32 user = lane / 16; user < OWN; user += 2) {
        float norm = sqrtf(halves::square_of(row_of(user), width));
        float scale, back;
        bool is_near = halves::scale_of(norm, scale, back) && are_near;
        if (lane % 16 == 0) {
            float error = (0x1.02p-10f + 0x1p-22f * static_cast<float>(width)) * norm * *largest;
            shared.errors[warp][user] = is_near ? error : INFINITE;
            shared.scales[warp][user] = back * item_back;
            // Nothing passes the cut of a user that does not exist.
            cuts[user] = user < users ? -INFINITE : INFINITE;
            counts[user] = 0;
        }
    }
    __syncwarp();
    Users own;
    float scales[2];
    // Set if e is infinite: s' then means nothing, and may be a NaN.
    bool takes_all[2];
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        scales[i] = shared.scales[warp][lane / 4 + 8 * i];
        own.rows[i] = row_of(lane / 4 + 8 * i);
        takes_all[i] = own.rows[i] != nullptr && shared.errors[warp][lane / 4 + 8 * i] == INFINITE;
        own.scales[i] = item_back / scales[i];
    }

    // Scores the tiles of items [first, last) one after the other.
    auto score_tiles = [&](u32 first, u32 last, auto take) {
        Copies copies{item_halves, (width + 7) / 8 * 8, first, 0, last};
#pragma unroll
        for (u32 stage = 0; stage + 1 < STAGES; ++stage) {
            copies.begin(shared, stage);
        }
        own.bring(0, width);
        u32 stage = 0;
#pragma unroll 1
        for (u32 first_item = first; first_item < last; first_item += ITEMS) {
            float scores[ITEMS / 8][4] = {};
            for (u32 column = 0; column < width; column += DEPTH) {
                wait_copies<STAGES - 2>();
                // All threads' copies to this stage are done, and all have read the one before it.
                __syncthreads();
                copies.begin(shared, stage == 0 ? STAGES - 1 : stage - 1);
                own.multiply(shared.items[stage], scores);
                if (width > DEPTH) {
                    own.bring(column + DEPTH < width ? column + DEPTH : 0, width);
                }
                stage = stage + 1 == STAGES ? 0 : stage + 1;
            }
            take(first_item, scores);
        }
        // Everyone has read all stages.
        __syncthreads();
    };

    Groups groups((end - start) / ITEMS, k, 2 * capacity);
    auto maxima_of = [&](u32 user) { return reinterpret_cast<float*>(keys + user * capacity); };
    if (groups.count > 0) {
        float most[2] = {-INFINITE, -INFINITE};
        u32 whole = start + (end - start) / ITEMS * ITEMS;
        score_tiles(start, whole, [&](u32 first_item, const float(&scores)[ITEMS / 8][4]) {
            largest_of(scores, 0, ITEMS / 8, most);
            u32 tile = (first_item - start) / ITEMS;
            if ((tile + 1) % groups.tiles != 0 && first_item + ITEMS < whole) {
                return;
            }
#pragma unroll
            for (u32 i = 0; i < 2; ++i) {
                if (own.rows[i] != nullptr) {
                    maxima_of(lane / 4 + 8 * i)[4 * (tile / groups.tiles) + lane % 4] = most[i];
                }
                most[i] = -INFINITE;
            }
        });
#pragma unroll 1
        for (u32 user = 0; user < users; ++user) {
            float* maxima = maxima_of(user);
            Masked masked = masked_of(user);
            for (u32 index = masked.low + lane; index < masked.high; index += 32) {
                u32 item = neighbours[index] - all_users;
                u32 group = groups.of(item - start, ITEMS);
                if (item >= start && group < groups.count) {
                    maxima[group] = -INFINITE;
                }
            }
            __syncwarp();
            float best = groups.kth_largest(maxima, k);
            if (lane == 0) {
                float cut = best - 2.0f * (shared.errors[warp][user] / shared.scales[warp][user]);
                cuts[user] = cut > -INFINITE ? cut : -INFINITE;
            }
        }
    }

    auto compact_user = [&](u32 user, u32 most) {
        Query query{row_of(user), predicted + static_cast<u64>(all_users) * width, width, k,
                    shared.errors[warp][user], masked_of(user)};
        float scale = shared.scales[warp][user];
        float cut = cuts[user] * scale;
        u32 count = compact(keys + user * capacity, counts[user], most, query, cut);
        if (lane == 0) {
            cuts[user] = cut / scale;
            counts[user] = count;
        }
        return count;
    };
    score_tiles(start, end, [&](u32 first_item, const float(&scores)[ITEMS / 8][4]) {
#pragma unroll
        for (u32 part = 0; part < ITEMS; part += ARRIVALS) {
            float cut[2] = {cuts[lane / 4], cuts[lane / 4 + 8]};
            float most[2] = {-INFINITE, -INFINITE};
            largest_of(scores, part / 8, ARRIVALS / 8, most);
            bool enters =
                most[0] >= cut[0] || most[1] >= cut[1] || takes_all[0] || takes_all[1];
            if (__ballot_sync(ALL_LANES, enters) == 0) {
                continue;
            }
#pragma unroll
            for (u32 j = part / 8; j < (part + ARRIVALS) / 8; ++j) {
#pragma unroll
                for (u32 n = 0; n < 4; ++n) {
                    u32 item = first_item + 8 * j + 2 * (lane % 4) + n % 2;
                    u32 user = lane / 4 + n / 2 * 8;
                    if ((scores[j][n] >= cut[n / 2] || takes_all[n / 2]) && item < end) {
                        u32 place = user * capacity + atomicAdd(&counts[user], 1);
                        keys[place] = key_of(scores[j][n] * scales[n / 2], item);
                    }
                }
            }
            __syncwarp();
            u32 full = __ballot_sync(ALL_LANES, lane < users && counts[lane] + ARRIVALS > capacity);
            while (full != 0) {
                compact_user(__ffs(static_cast<int>(full)) - 1, (k + capacity - ARRIVALS) / 2);
                full &= full - 1;
            }
            __syncwarp();
        }
    });
#pragma unroll 1
    for (u32 user = 0; user < users; ++user) {
        u32 count = compact_user(user, 0);
        const u64* best = keys + user * capacity;
        u64 place = static_cast<u64>(first_user + user);
        if (slice_keys == nullptr) {
            write_list(best, count, k, place * k, list_items, list_scores);
        } else {
            u64* slice = slice_keys + (place * gridDim.y + blockIdx.y) * k;
            for (u32 rank = lane; rank < k; rank += 32) {
                slice[rank] = rank < count ? best[rank] : NO_KEY;
            }
        }
    }
}
