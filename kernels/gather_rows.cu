// The batch's rows of the node matrix: rows_r = nodes_{node(r)}, node(r) = users[r], then
// U + items[r - n_u].
//
// Shapes: nodes N x d, rows (n_u + n_i) x d. Outputs: rows `=`. Ownership: one thread, four columns.
// Bytes: 8 d (n_u + n_i). Bound: latency; a few hundred KB a batch.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) gather_rows(
    const u32* __restrict__ users, u32 user_count, const u32* __restrict__ items, u32 item_count,
    u32 all_users, u32 width, const float* __restrict__ nodes, float* __restrict__ rows) {
    u32 quads = width / 4;
    u64 index = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    u32 row = static_cast<u32>(index / quads);
    if (row >= user_count + item_count) {
        return;
    }
    u32 column = 4 * static_cast<u32>(index % quads);
    u32 node = row < user_count ? users[row] : all_users + items[row - user_count];
    store4(rows + static_cast<u64>(row) * width + column,
           load4(nodes + static_cast<u64>(node) * width + column));
}
