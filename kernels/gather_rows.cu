// Gathers the batch's rows of the node matrix: rows_r = nodes_{node(r)}, where node(r) = users[r]
// in the users' block and U + items[r - room] in the items'.
//
// Shapes: nodes N x d, rows (users' and items' room) x d. Outputs: the rows that the batch fills
// `=`.
// Ownership: one thread, four columns. Bytes: 8 d (n_u + n_i). Bound: latency; a few hundred KB per
// batch.
#include "batch.cuh"

extern "C" __global__ void __launch_bounds__(256) gather_rows(
    const Batch* __restrict__ batch, u32 user_room, u32 item_room, u32 all_users, u32 width,
    const float* __restrict__ nodes, float* __restrict__ rows) {
    u32 quads = width / 4;
    u64 index = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    u32 row = static_cast<u32>(index / quads);
    if (row >= user_room + item_room || !Rooms{user_room, item_room}.filled(*batch, row)) {
        return;
    }
    u32 column = 4 * static_cast<u32>(index % quads);
    u32 node = row < user_room ? batch->users[row] : all_users + batch->items[row - user_room];
    store4(rows + static_cast<u64>(row) * width + column,
           load4(nodes + static_cast<u64>(node) * width + column));
}
