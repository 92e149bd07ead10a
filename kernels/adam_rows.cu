// Adam on trained raw features, exactly and by rows (SPEC section 5).
//
// Under dense Adam a row of E with a zero gradient still moves, by a function of its own (m, v, t)
// alone. So a row is left alone until a batch needs it. Then adam_replay applies to each element
// the very function that a dense sweep would have applied at each missed step, with g = 0, and
// adam_rows applies the step with gradient dE = dz W. touched[i] is the step up to which row i is
// current; 0: never moved.
//
// Shapes: E, m, v rows x D_m; touched rows x parts; the batch's n items; dz n x d; W d x D_m;
// schedule: the constants of every step.
// Rows that adam_replay brings up to date: without a batch, all, to step `last`; with one, its
// rows, to the step before it; if `ahead`, the next batch's rows that are not in this one, to this
// batch's step, where their gradient is zero too.
// Outputs: E, m, v, touched of those rows, in place; watch of the modality: the step and row of an
// element that is not finite (watch.cuh).
// Ownership: adam_replay: a block owns a part of a row, a thread four elements, with 48 bytes in
// flight. Parts are short so that a row that missed hundreds of steps holds the others up less;
// each has its own number in `touched`. adam_rows: a block owns a tile of 64 rows x 64 columns,
// whose gradient never leaves the multiprocessor (tile.cuh); a thread has four times as much in
// flight.
// Bytes: 24 n D_m each; adam_replay none where no step was missed. Flops: 14 n D_m for each missed
// step; 6 n D_m d in TF32. Bound: memory.
#include "adam.cuh"
#include "tile.cuh"

// Columns of a part: four for each thread of a block.
static const u32 PART = 512;
// Steps replayed between two checks that all numbers are plain: adam_stays_large vouches for no
// more.
static const u32 REPLAYED_AT_ONCE = 64;

static __device__ __forceinline__ u32 part_of(u32 row, u32 columns, u32 column) {
    return row * ((columns + PART - 1) / PART) + column / PART;
}

// Replays four elements' steps without a gradient and returns true, if all numbers are plain from
// the first step to the last; otherwise changes nothing.
static __device__ __forceinline__ bool replay_plain(const AdamStep* schedule, u32 step, u32 end,
                                                    float (&value)[4], float (&first)[4],
                                                    float (&second)[4]) {
    bool plain = true;
    float value_then[4], first_then[4], second_then[4];
#pragma unroll
    for (u32 n = 0; n < 4; ++n) {
        plain = plain && adam_is_small(first[n], second[n]) && adam_stays_large(first[n], second[n]);
        value_then[n] = value[n];
        first_then[n] = first[n];
        second_then[n] = second[n];
    }
    if (!plain) {
        return false;
    }
#pragma unroll 1
    for (; step < end; ++step) {
        AdamStep constants = schedule[step];
        plain = plain && adam_is_plain(constants);
#pragma unroll
        for (u32 n = 0; n < 4; ++n) {
            adam_moments(0.0f, first_then[n], second_then[n]);
            value_then[n] -= adam_move_plain(constants, first_then[n], second_then[n]);
        }
    }
    if (plain) {
#pragma unroll
        for (u32 n = 0; n < 4; ++n) {
            value[n] = value_then[n];
            first[n] = first_then[n];
            second[n] = second_then[n];
        }
    }
    return plain;
}

// More blocks would leave fewer registers, and nvcc would reuse the same ones for the four elements
// in turn.
static const u32 REPLAY_BLOCKS = 8;

extern "C" __global__ void __launch_bounds__(PART / 4, REPLAY_BLOCKS) adam_replay(
    const Batch* __restrict__ batch, u32 ahead, const AdamStep* __restrict__ schedule, u32 last,
    u32 columns, float* __restrict__ values, float* __restrict__ firsts,
    float* __restrict__ seconds, u32* __restrict__ touched) {
    u32 row = blockIdx.x;
    if (batch != nullptr) {
        if (row >= (ahead ? batch->next_item_count : batch->item_count)) {
            return;
        }
        row = ahead ? batch->next_items[row] : batch->items[row];
        last = ahead ? batch->step : batch->step - 1;
        if (ahead && batch->has_item(row)) {
            return;
        }
    }
    u32 column = PART * blockIdx.y + 4 * threadIdx.x;
    u32* part = touched + part_of(row, columns, column);
    u32 current = *part;
    // Every thread must read the part's step before one of them updates it.
    __syncthreads();
    if (current == 0 || current >= last) {
        return;
    }
    if (threadIdx.x == 0) {
        *part = last;
    }
    if (column >= columns) {
        return;
    }
    u64 place = static_cast<u64>(row) * columns + column;
    Quad quad(columns, column);
    float value[4], first[4], second[4];
    quad.read(values + place, value);
    // Past the row's end they are 1, which is plain.
    quad.read(firsts + place, first, 1.0f);
    quad.read(seconds + place, second, 1.0f);
    while (current < last) {
        u32 end = last - current < REPLAYED_AT_ONCE ? last : current + REPLAYED_AT_ONCE;
        if (!replay_plain(schedule, current, end, value, first, second)) {
#pragma unroll 1
            for (u32 step = current; step < end; ++step) {
                AdamStep constants = schedule[step];
#pragma unroll
                for (u32 n = 0; n < 4; ++n) {
                    adam_update(constants, 0.0f, value[n], first[n], second[n]);
                }
            }
        }
        current = end;
    }
    quad.write(values + place, value);
    quad.write(firsts + place, first);
    quad.write(seconds + place, second);
}

// Quads that a thread of adam_rows has in flight.
static const u32 ADAM_AT_ONCE = 4;

extern "C" __global__ void __launch_bounds__(128) adam_rows(
    const Batch* __restrict__ batch, const AdamStep* __restrict__ schedule,
    const float* __restrict__ z_gradient, u32 width, const float* __restrict__ weight, u32 columns,
    float* __restrict__ values, float* __restrict__ firsts, float* __restrict__ seconds,
    u32* __restrict__ touched, u64* watch) {
    typedef tile::Product<tile::F32, true, tile::NARROW, tile::F32, false, tile::NARROW> Product;
    SHARED(Product::Shared, shared);
    tile::Place at = tile::place_in_grid<Product>(columns);
    if (at.tile_a * tile::NARROW >= batch->item_count) {
        return;
    }
    Product::A a(z_gradient, nullptr, batch->item_count, width);
    Product::B b(weight, nullptr, columns, columns);
    u32 step = batch->step;
    AdamStep constants = schedule[step - 1];
    const u32* items = batch->items;
    tile::Depth depth{0, width};
    auto update = [=](const tile::Out<ADAM_AT_ONCE>& out) {
        float value[ADAM_AT_ONCE][4], first[ADAM_AT_ONCE][4], second[ADAM_AT_ONCE][4];
        u32 item[ADAM_AT_ONCE];
#pragma unroll
        for (u32 i = 0; i < ADAM_AT_ONCE; ++i) {
            item[i] = out.is_there[i] ? items[out.rows[i]] : 0;
        }
#pragma unroll
        for (u32 i = 0; i < ADAM_AT_ONCE; ++i) {
            u64 place = static_cast<u64>(item[i]) * columns + out.columns[i];
            if (out.is_there[i]) {
                Quad quad(columns, out.columns[i]);
                quad.read(values + place, value[i]);
                quad.read(firsts + place, first[i]);
                quad.read(seconds + place, second[i]);
            }
        }
#pragma unroll
        for (u32 i = 0; i < ADAM_AT_ONCE; ++i) {
            if (!out.is_there[i]) {
                continue;
            }
            // Past the row's end all numbers are zeros and stay zeros.
            adam_update4(constants, out.sums[i], value[i], first[i], second[i]);
            bool finite = true;
#pragma unroll
            for (u32 n = 0; n < 4; ++n) {
                finite = finite && adam_is_finite(value[i][n], second[i][n]);
            }
            u64 place = static_cast<u64>(item[i]) * columns + out.columns[i];
            Quad quad(columns, out.columns[i]);
            quad.write(values + place, value[i]);
            quad.write(firsts + place, first[i]);
            quad.write(seconds + place, second[i]);
            if (!finite) {
                watch_sees(watch, step, item[i]);
            }
            if (out.columns[i] % PART == 0) {
                touched[part_of(item[i], columns, out.columns[i])] = step;
            }
        }
    };
    tile::multiply<Product, ADAM_AT_ONCE>(a, b, depth, at, shared, update);
}
