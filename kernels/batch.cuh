// The batch of the current step, in device memory, so that launches captured once serve every step
// of an epoch.
#pragma once
#include "common.cuh"

// `Batch` of src/batch.rs: each distinct user and item of the pairs once, ascending, with its
// partners in the order of the pairs; and the items of the next batch.
struct Batch {
    const u32* users;
    const u32* items;
    const u32* user_offsets;    // n_u + 1 bounds into items_of_users
    const u32* items_of_users;  // positions in `items`
    const u32* item_offsets;    // n_i + 1 bounds into users_of_items
    const u32* users_of_items;  // positions in `users`
    u32 user_count;             // n_u
    u32 item_count;             // n_i
    u32 pairs;                  // |B|
    u32 step;                   // the optimiser's step, from 1
    u32 number;                 // the batch's number in the epoch, from 0
    u32 next_item_count;        // of the next batch; 0 if none is known
    const u32* next_items;      // its distinct items, ascending

    __device__ __forceinline__ bool has_item(u32 item) const {
        u32 low = 0, high = item_count;
        while (low < high) {
            u32 middle = low + (high - low) / 2;
            if (items[middle] < item) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low < item_count && items[low] == item;
    }
};

// Batches whose streamed raw features may be on the device at once.
static const u32 FEATURE_SLOTS = 3;

// The table rows that hold the batch's raw features: its items' rows or, if features are streamed,
// the rows where the host put them, `room` places per slot.
__device__ __forceinline__ const u32* feature_rows(const Batch& batch, const u32* places,
                                                   u32 room) {
    return places == nullptr ? batch.items : places + batch.number % FEATURE_SLOTS * room;
}

// Lines of features in a tile of a product (tile.cuh).
static const u32 FEATURE_LINES = 128;
// Blocks of a projection, one for each multiprocessor of a large GPU. A constant, so that sums have
// the same order on every GPU.
static const u32 PROJECTION_BLOCKS = 132;

// Tiles of the projection of the batch's items, `column_tiles` of them side by side.
__device__ __forceinline__ u32 projection_tiles(const Batch& batch, u32 column_tiles) {
    return column_tiles * ((batch.item_count + FEATURE_LINES - 1) / FEATURE_LINES);
}

// Slices that this projection is cut into, at most `most`.
__device__ __forceinline__ u32 projection_slices(const Batch& batch, u32 column_tiles, u32 most) {
    u32 tiles = projection_tiles(batch, column_tiles);
    u32 wanted = PROJECTION_BLOCKS / (tiles > 0 ? tiles : 1);
    return wanted < 1 ? 1 : wanted < most ? wanted : most;
}

// A batch computes rows in blocks: users, items, then the items in each modality. A block has room
// for as many rows as any batch of the run may need; a batch fills its beginning. Both rooms are
// multiples of a tile's lines.
struct Rooms {
    u32 users;
    u32 items;

    // 0: users; 1: items; 2 + m: modality m.
    __device__ __forceinline__ u32 block(u32 row) const {
        return row < users ? 0 : 1 + (row - users) / items;
    }

    // A row's position within its block.
    __device__ __forceinline__ u32 position(u32 row) const {
        return row < users ? row : (row - users) % items;
    }

    // Whether the batch fills a row.
    __device__ __forceinline__ bool filled(const Batch& batch, u32 row) const {
        return position(row) < (row < users ? batch.user_count : batch.item_count);
    }

    // The first row of the block after the one with `row`.
    __device__ __forceinline__ u32 next_block(u32 row) const {
        return row < users ? users : row - position(row) + items;
    }
};
