// Sums over slices and rows, in a fixed order.
//
//   sum_slices     out_e = sum_s slices_{s, e} (+ bias_{e mod width})
//   column_slices  slice_c = sum over rows [c, c + 1) * ROWS of x, the bias gradients' first half
//
// Shapes: slices n_s x elements, of which, with a batch, the rows of its items count (the others
// stay as they are); x rows x width, of which, with a batch, its items' count too.
// Outputs: `=`. Ownership: one thread an element.
// Bytes: 4 (n_s + 1) elements; 4 rows width. Bound: memory, or latency where few.
#include "batch.cuh"

extern "C" __global__ void __launch_bounds__(256) sum_slices(
    const Batch* __restrict__ batch, const float* __restrict__ slices, u32 slice_count,
    u64 elements, const float* __restrict__ bias, u32 width, float* __restrict__ out) {
    u64 index = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (index >= (batch == nullptr ? elements : static_cast<u64>(batch->item_count) * width)) {
        return;
    }
    float sum = slices[index];
    for (u32 slice = 1; slice < slice_count; ++slice) {
        sum += slices[slice * elements + index];
    }
    out[index] = bias == nullptr ? sum : sum + bias[index % width];
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
    for (u32 row = start; row < stop; ++row) {
        sum += x[static_cast<u64>(row) * width + column];
    }
    slices[static_cast<u64>(blockIdx.x) * width + column] = sum;
}
