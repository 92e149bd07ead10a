// All batches of an epoch at once (SPEC section 7): consecutive pairs of the epoch's order, |B| at
// a time, each batch arranged as in src/batch.rs.
//
//   batch_keys      for each position p of the order: the key (batch, user or item), and p
//   (a stable sort by key follows, see epoch_order.cu: batches keep their places, since all but
//   the last have |B| pairs; in a batch equal ids come together, in the order of the pairs)
//   batch_lists     the distinct ids of each batch, ascending, the bounds of their pairs, and each
//                   position's place among the ids
//   batch_partners  for each pair, in one side's order: the place of its other side
//   next_batch      the batch of the next step: where its lists lie and how long they are, and
//                   the items of the batch after it
//
// Shapes: P pairs; ids P; bounds P / |B| (|B| + 1); places and partners P; counts P / |B|.
// Outputs: `=`. Ownership: a thread owns a pair; in batch_lists a block owns a batch, 256 pairs at
// a time.
// Determinism: a pair's place is a count of the ids before it. Bytes: 60 P for both sides, plus the
// sorts. Flops: none. Bound: memory, or latency below a million pairs.
#include "batch.cuh"

namespace batches_detail {
static const u32 THREADS = 256;
static const u32 WARPS = THREADS / 32;
}  // namespace batches_detail

extern "C" __global__ void __launch_bounds__(256) batch_keys(
    const u32* __restrict__ order, const u32* __restrict__ ids, u32 pairs, u32 batch_size,
    u64* __restrict__ keys, u32* __restrict__ positions) {
    u32 position = blockIdx.x * blockDim.x + threadIdx.x;
    if (position < pairs) {
        u32 pair = order == nullptr ? position : order[position];
        keys[position] = static_cast<u64>(position / batch_size) << 32 | ids[pair];
        positions[position] = position;
    }
}

extern "C" __global__ void __launch_bounds__(256) batch_lists(
    const u64* __restrict__ keys, const u32* __restrict__ positions, u32 pairs, u32 batch_size,
    u32* __restrict__ ids, u32* __restrict__ bounds, u32* __restrict__ places,
    u32* __restrict__ counts) {
    using namespace batches_detail;
    SHARED(u32[WARPS], first_ids);
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 start = blockIdx.x * batch_size;
    u32 stop = start + batch_size < pairs ? start + batch_size : pairs;
    u32* own_bounds = bounds + static_cast<u64>(blockIdx.x) * (batch_size + 1);
    // Ids before this round's pairs.
    u32 before = 0;
    for (u32 first = start; first < stop; first += THREADS) {
        u32 index = first + threadIdx.x;
        bool is_first = index < stop && (index == start || keys[index] != keys[index - 1]);
        u32 firsts = __ballot_sync(0xffffffffu, is_first);
        if (lane == 0) {
            first_ids[warp] = static_cast<u32>(__popc(firsts));
        }
        __syncthreads();
        u32 place = before + static_cast<u32>(__popc(firsts & ((2u << lane) - 1))) - 1;
        for (u32 other = 0; other < WARPS; ++other) {
            place += other < warp ? first_ids[other] : 0;
            before += first_ids[other];
        }
        if (index < stop) {
            places[positions[index]] = place;
            if (is_first) {
                ids[start + place] = static_cast<u32>(keys[index]);
                own_bounds[place] = index - start;
            }
        }
        // All must read the warps' counts before the next round writes them.
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        counts[blockIdx.x] = before;
        own_bounds[before] = stop - start;
    }
}

extern "C" __global__ void __launch_bounds__(256) batch_partners(
    const u32* __restrict__ positions, const u32* __restrict__ other_places, u32 pairs,
    u32* __restrict__ partners) {
    u32 index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index < pairs) {
        partners[index] = other_places[positions[index]];
    }
}

// One thread. cursor: the next batch's number in the epoch, and the last step's number.
extern "C" __global__ void __launch_bounds__(32) next_batch(
    const u32* __restrict__ users, const u32* __restrict__ items,
    const u32* __restrict__ user_offsets, const u32* __restrict__ items_of_users,
    const u32* __restrict__ item_offsets, const u32* __restrict__ users_of_items,
    const u32* __restrict__ user_counts, const u32* __restrict__ item_counts, u32 pairs,
    u32 batch_size, u32* __restrict__ cursor, Batch* __restrict__ batch) {
    if (threadIdx.x > 0) {
        return;
    }
    u32 number = cursor[0];
    u32 start = number * batch_size;
    u64 bounds = static_cast<u64>(number) * (batch_size + 1);
    bool has_next = pairs - start > batch_size;
    *batch = Batch{users + start,
                   items + start,
                   user_offsets + bounds,
                   items_of_users + start,
                   item_offsets + bounds,
                   users_of_items + start,
                   user_counts[number],
                   item_counts[number],
                   pairs - start < batch_size ? pairs - start : batch_size,
                   cursor[1] + 1,
                   number,
                   has_next ? item_counts[number + 1] : 0,
                   has_next ? items + start + batch_size : nullptr};
    cursor[0] = number + 1;
    cursor[1] += 1;
}
