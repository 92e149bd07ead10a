// Sums over slices and rows, in a fixed order.
//
//   sum_slices     out_e = sum_s slices_{s, e} (+ bias_{e mod width})
//   column_slices  slice_c = sum over rows [c, c + 1) * ROWS of x, a bias gradient's first half
//
// Shapes: slices n_s x elements; for a projection (column_tiles > 0) as many slices as it was cut
// into, and the rows of the batch's items (the others stay as they are); x rows x width or, with a
// batch, as many rows as it has items.
// Outputs: `=`. Ownership: `lanes` neighbouring lanes own an element, each lane every lanes-th
// slice; in column_slices a thread owns a column.
// Bytes: 4 (n_s + 1) elements; 4 rows width. Bound: memory, or latency where elements are few: a
// thread has SLICES_AT_ONCE slices in flight, and several share an element if slices are many.
#include "batch.cuh"

namespace sum_detail {
static const u32 SLICES_AT_ONCE = 8;
}  // namespace sum_detail

extern "C" __global__ void __launch_bounds__(256) sum_slices(
    const Batch* __restrict__ batch, const float* __restrict__ slices, u32 slice_count,
    u32 column_tiles, u64 elements, u32 lanes, const float* __restrict__ bias, u32 width,
    float* __restrict__ out) {
    using namespace sum_detail;
    Group group(lanes);
    u64 index = (static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x) / lanes;
    u64 end = elements;
    if (column_tiles > 0) {
        slice_count = projection_slices(*batch, column_tiles, slice_count);
        end = static_cast<u64>(batch->item_count) * width;
    }
    bool is_there = index < end;
    const float* own = slices + (is_there ? index : 0);
    float added = bias != nullptr && is_there ? bias[index % width] : 0.0f;
    float sum = 0.0f;
    for (u32 first = group.lane; first < slice_count; first += SLICES_AT_ONCE * lanes) {
        float part[SLICES_AT_ONCE];
#pragma unroll
        for (u32 j = 0; j < SLICES_AT_ONCE; ++j) {
            u32 slice = first + j * lanes;
            part[j] = slice < slice_count ? own[slice * elements] : 0.0f;
        }
#pragma unroll
        for (u32 j = 0; j < SLICES_AT_ONCE; ++j) {
            sum += part[j];
        }
    }
    sum = group.sum(sum);
    if (is_there && group.lane == 0) {
        out[index] = sum + added;
    }
}

namespace column_detail {
static const u32 ROWS = 32;
}  // namespace column_detail

extern "C" __global__ void __launch_bounds__(128) column_slices(
    const Batch* __restrict__ batch, const float* __restrict__ x, u32 rows, u32 width,
    float* __restrict__ slices) {
    rows = batch == nullptr ? rows : batch->item_count;
    u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= width) {
        return;
    }
    u32 start = blockIdx.x * column_detail::ROWS;
    u32 stop = start + column_detail::ROWS < rows ? start + column_detail::ROWS : rows;
    float sum = 0.0f;
#pragma unroll 8
    for (u32 row = start; row < stop; ++row) {
        sum += x[static_cast<u64>(row) * width + column];
    }
    slices[static_cast<u64>(blockIdx.x) * width + column] = sum;
}
