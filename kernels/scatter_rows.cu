// The batch's gradient rows, added to their nodes: nodes_{node(r)} += rows_r (SPEC section 4).
//
// Shapes: rows (n_u + n_i) x d, nodes N x d. Outputs: nodes `+=`.
// Determinism: the batch holds every user and item once (src/batch.rs), and bootstrap_loss summed
// the pairs of each in order, so each row of `nodes` has one owner and no order is left to decide.
// Ownership: one thread, four columns. Bytes: 12 d (n_u + n_i). Bound: latency.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) scatter_rows(
    const u32* __restrict__ users, u32 user_count, const u32* __restrict__ items, u32 item_count,
    u32 all_users, u32 width, const float* __restrict__ rows, float* __restrict__ nodes) {
    u32 quads = width / 4;
    u64 index = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    u32 row = static_cast<u32>(index / quads);
    if (row >= user_count + item_count) {
        return;
    }
    u32 column = 4 * static_cast<u32>(index % quads);
    u32 node = row < user_count ? users[row] : all_users + items[row - user_count];
    float* target = nodes + static_cast<u64>(node) * width + column;
    store4(target, add4(load4(target), load4(rows + static_cast<u64>(row) * width + column)));
}
