// Adds the batch's gradient rows to their nodes: nodes_{node(r)} += rows_r (SPEC section 4).
//
// Shapes: rows (users' and items' room) x d, read where the batch fills them; nodes N x d. Outputs:
// nodes `+=`.
// Determinism: the batch holds every user and item once (src/batch.rs), and bootstrap_loss summed
// the pairs of each in order, so each row of `nodes` has one owner and one addition.
// Ownership: one thread, four columns. Bytes: 12 d (n_u + n_i). Bound: latency.
#include "batch.cuh"

extern "C" __global__ void __launch_bounds__(256) scatter_rows(
    const Batch* __restrict__ batch, u32 user_room, u32 item_room, u32 all_users, u32 width,
    const float* __restrict__ rows, float* __restrict__ nodes) {
    u32 quads = width / 4;
    u64 index = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    u32 row = static_cast<u32>(index / quads);
    if (row >= user_room + item_room || !Rooms{user_room, item_room}.filled(*batch, row)) {
        return;
    }
    u32 column = 4 * static_cast<u32>(index % quads);
    u32 node = row < user_room ? batch->users[row] : all_users + batch->items[row - user_room];
    float* target = nodes + static_cast<u64>(node) * width + column;
    store4(target, add4(load4(target), load4(rows + static_cast<u64>(row) * width + column)));
}
