// Adam on trained raw features, exactly and by rows (SPEC section 5).
//
// A row of E whose gradient is zero still moves under dense Adam, by a function of its own (m, v,
// t) alone. So a row is left alone until a batch needs it; then adam_replay applies, to each
// element, the very function that a dense sweep would have applied at each missed step, with g = 0
// (touched[i] is the step up to which row i is current, 0: never moved), and adam_rows the step
// with gradient dE = dz W.
//
// Shapes: E, m, v rows x D_m; items n, distinct (null: all rows, n of them); dz n x d; W d x D_m;
// steps: the constants of every step so far.
// Outputs: E, m, v, touched of those rows, in place.
// Ownership: adam_replay, one block a row; adam_rows, a block a tile of 64 rows x 64 columns, whose
// gradient never leaves its registers (tile.cuh).
// Bytes: 24 n D_m each; adam_replay nothing where no step was missed. Flops: 14 n D_m for each
// missed step; 6 n D_m d in TF32. Bound: memory.
#include "adam.cuh"
#include "tile.cuh"

extern "C" __global__ void __launch_bounds__(256) adam_replay(
    const u32* __restrict__ items, const AdamStep* __restrict__ steps, u32 step_count,
    u32 columns, float* __restrict__ values, float* __restrict__ firsts,
    float* __restrict__ seconds, u32* __restrict__ touched) {
    u32 row = items == nullptr ? blockIdx.x : items[blockIdx.x];
    u32 current = touched[row];
    // Every thread has read the row's step before one of them moves it on.
    __syncthreads();
    if (current == 0 || current >= step_count) {
        return;
    }
    for (u32 column = threadIdx.x; column < columns; column += blockDim.x) {
        u64 place = static_cast<u64>(row) * columns + column;
        float value = values[place], first = firsts[place], second = seconds[place];
        for (u32 step = current; step < step_count; ++step) {
            adam_update(steps[step], 0.0f, value, first, second);
        }
        values[place] = value;
        firsts[place] = first;
        seconds[place] = second;
    }
    if (threadIdx.x == 0) {
        touched[row] = step_count;
    }
}

extern "C" __global__ void __launch_bounds__(128) adam_rows(
    const float* __restrict__ z_gradient, u32 width, const float* __restrict__ weight,
    const u32* __restrict__ items, u32 item_count, u32 columns, float step_size, float root_factor,
    u32 step, float* __restrict__ values, float* __restrict__ firsts, float* __restrict__ seconds,
    u32* __restrict__ touched) {
    SHARED(tile::Shared, shared);
    tile::Operand<tile::F32, true> a(z_gradient, nullptr, item_count, width);
    tile::Operand<tile::F32, false> b(weight, nullptr, columns, columns);
    AdamStep constants{step_size, root_factor};
    tile::multiply(a, b, 0, width, shared, [=](u32 row, u32 column, float gradient) {
        u64 place = static_cast<u64>(items[row]) * columns + column;
        adam_update(constants, gradient, values[place], firsts[place], seconds[place]);
        if (column == 0) {
            touched[items[row]] = step;
        }
    });
}
