// Adam on trained raw features, exactly and by rows (SPEC section 5).
//
// A row of E whose gradient is zero still moves under dense Adam, by a function of its own (m, v,
// t) alone. So a row is left alone until a batch needs it; then adam_replay applies, to each
// element, the very function that a dense sweep would have applied at each missed step, with g = 0
// (touched[i] is the step up to which row i is current, 0: never moved), and adam_rows the step
// with gradient dE = dz W.
//
// Shapes: E, m, v rows x D_m; the batch's n items; dz n x d; W d x D_m; schedule: the constants of
// every step. Without a batch adam_replay brings all rows up to step `last`, with one its rows up to
// the step before the batch's.
// Outputs: E, m, v, touched of those rows, in place; watch of the modality: step and row, where an
// element of them is not finite (watch.cuh).
// Ownership: adam_replay, one block a row, four elements a thread at a time: 48 bytes on their way
// for each thread. adam_rows, a block a tile of 64 rows x 64 columns, whose gradient never leaves
// its registers (tile.cuh).
// Bytes: 24 n D_m each; adam_replay nothing where no step was missed. Flops: 14 n D_m for each
// missed step; 6 n D_m d in TF32. Bound: memory.
#include "adam.cuh"
#include "tile.cuh"

extern "C" __global__ void __launch_bounds__(256, 4) adam_replay(
    const Batch* __restrict__ batch, const AdamStep* __restrict__ schedule, u32 last, u32 columns,
    float* __restrict__ values, float* __restrict__ firsts, float* __restrict__ seconds,
    u32* __restrict__ touched) {
    if (batch != nullptr && blockIdx.x >= batch->item_count) {
        return;
    }
    u32 row = batch == nullptr ? blockIdx.x : batch->items[blockIdx.x];
    last = batch == nullptr ? last : batch->step - 1;
    u32 current = touched[row];
    // Every thread has read the row's step before one of them moves it on.
    __syncthreads();
    if (current == 0 || current >= last) {
        return;
    }
    for (u32 column = 4 * threadIdx.x; column < columns; column += 4 * blockDim.x) {
        u64 place = static_cast<u64>(row) * columns + column;
        Quad quad(columns, column);
        float value[4], first[4], second[4];
        quad.read(values + place, value);
        quad.read(firsts + place, first);
        quad.read(seconds + place, second);
        for (u32 step = current; step < last; ++step) {
            AdamStep constants = schedule[step];
#pragma unroll
            for (u32 n = 0; n < 4; ++n) {
                adam_update(constants, 0.0f, value[n], first[n], second[n]);
            }
        }
        quad.write(values + place, value);
        quad.write(firsts + place, first);
        quad.write(seconds + place, second);
    }
    if (threadIdx.x == 0) {
        touched[row] = last;
    }
}

extern "C" __global__ void __launch_bounds__(128) adam_rows(
    const Batch* __restrict__ batch, const AdamStep* __restrict__ schedule,
    const float* __restrict__ z_gradient, u32 width, const float* __restrict__ weight, u32 columns,
    float* __restrict__ values, float* __restrict__ firsts, float* __restrict__ seconds,
    u32* __restrict__ touched, u64* watch) {
    typedef tile::Product<tile::F32, true, tile::NARROW, tile::F32, false, tile::NARROW> Product;
    SHARED(Product::Shared, shared);
    if (blockIdx.y * tile::NARROW >= batch->item_count) {
        return;
    }
    Product::A a(z_gradient, nullptr, batch->item_count, width);
    Product::B b(weight, nullptr, columns, columns);
    u32 step = batch->step;
    AdamStep constants = schedule[step - 1];
    const u32* items = batch->items;
    tile::Depth depth{0, width};
    tile::multiply<Product>(a, b, depth, shared, [=](u32 row, u32 column, float (&gradients)[4]) {
        u64 place = static_cast<u64>(items[row]) * columns + column;
        Quad quad(columns, column);
        float value[4], first[4], second[4];
        quad.read(values + place, value);
        quad.read(firsts + place, first);
        quad.read(seconds + place, second);
        bool finite = true;
#pragma unroll
        for (u32 n = 0; n < 4; ++n) {
            // Behind the row's end all are zeros, and stay.
            adam_update(constants, gradients[n], value[n], first[n], second[n]);
            finite = finite && adam_is_finite(value[n], second[n]);
        }
        quad.write(values + place, value);
        quad.write(firsts + place, first);
        quad.write(seconds + place, second);
        if (!finite) {
            watch_sees(watch, step, items[row]);
        }
        if (column == 0) {
            touched[items[row]] = step;
        }
    });
}
