// Â times a dense matrix, with the readout mean and the residual fused (SPEC section 2, (2), (3)).
//
//   y_i = neighbours * s_i * sum_j s_j x_j + (base + [i >= U] item_base) * b_i
//
// Shapes: x, b, y are N x d. Â is symmetric and its value on an edge is s_i s_j, so no value array
// exists, and the backward pass is this kernel applied to the gradient.
// Outputs: y `=`.
// Ownership: the host cuts the rows into segments of at most SEGMENT neighbours (src/cuda/graph.rs),
// so that a hub with a third of all edges is work for many groups. A group of lanes owns a segment;
// a row of one segment is written at once, the segments of a longer row leave their sums in
// `partial`, and spmm_join adds those in the order of the segments. No atomics: one fixed order.
// Bytes: E (4d + 8) gathered, mostly from L2, N (8d + 16) from memory. Flops: 2 E d + 2 N d.
// Bound: L2 bandwidth while x fits there (25 MB up to d = 64, N = 10^5), HBM beyond.
// Mapping: lane q of a group holds columns 4q to 4q + 3, so a neighbour's row is one coalesced
// read; four neighbours are in flight at a time.
#include "common.cuh"

struct Segment {
    u32 row;
    u32 start;   // Into `neighbours`.
    u32 length;
    u32 slot;    // Row of `partial`, or NO_SLOT.
};

struct LongRow {
    u32 row;
    u32 slot;
    u32 segments;
};

static const u32 NO_SLOT = 0xffffffffu;

namespace spmm_detail {

__device__ __forceinline__ float4 add_base(
    float4 sum, const float* base, float base_factor, float item_base_factor, u32 row, u32 users,
    u64 place) {
    if (base == nullptr) {
        return sum;
    }
    float factor = row < users ? base_factor : base_factor + item_base_factor;
    return fma4(factor, load4(base + place), sum);
}

}  // namespace spmm_detail

extern "C" __global__ void __launch_bounds__(256) spmm(
    const Segment* __restrict__ segments, u32 segment_count, const u32* __restrict__ neighbours,
    const float* __restrict__ scales, const float* __restrict__ x, const float* __restrict__ base,
    float* __restrict__ y, float* __restrict__ partial, u32 users, u32 width, u32 lanes,
    float neighbour_factor, float base_factor, float item_base_factor) {
    Group group(lanes);
    u32 index = group.index();
    if (index >= segment_count) {
        return;
    }
    Segment segment = segments[index];
    const u32* ids = neighbours + segment.start;
    u32 length = x == nullptr ? 0 : segment.length;
    float factor = neighbour_factor * scales[segment.row];
    for (u32 column = 4 * group.lane; column < width; column += 4 * lanes) {
        float4 sum = zero4();
        u32 k = 0;
        for (; k + 4 <= length; k += 4) {
            u32 id[4];
            float scale[4];
            float4 row[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                id[j] = ids[k + j];
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                scale[j] = scales[id[j]];
                row[j] = load4(x + static_cast<u64>(id[j]) * width + column);
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                sum = fma4(scale[j], row[j], sum);
            }
        }
        for (; k < length; ++k) {
            u32 id = ids[k];
            sum = fma4(scales[id], load4(x + static_cast<u64>(id) * width + column), sum);
        }
        u64 place = static_cast<u64>(segment.row) * width + column;
        if (segment.slot == NO_SLOT) {
            sum = spmm_detail::add_base(scale4(factor, sum), base, base_factor, item_base_factor,
                                        segment.row, users, place);
            store4(y + place, sum);
        } else {
            store4(partial + static_cast<u64>(segment.slot) * width + column, sum);
        }
    }
}

// The rows of more than one segment: one group a row.
extern "C" __global__ void __launch_bounds__(256) spmm_join(
    const LongRow* __restrict__ rows, u32 row_count, const float* __restrict__ partial,
    const float* __restrict__ scales, const float* __restrict__ base, float* __restrict__ y,
    u32 users, u32 width, u32 lanes, float neighbour_factor, float base_factor,
    float item_base_factor) {
    Group group(lanes);
    u32 index = group.index();
    if (index >= row_count) {
        return;
    }
    LongRow row = rows[index];
    float factor = neighbour_factor * scales[row.row];
    for (u32 column = 4 * group.lane; column < width; column += 4 * lanes) {
        float4 sum = zero4();
        for (u32 segment = 0; segment < row.segments; ++segment) {
            u64 place = static_cast<u64>(row.slot + segment) * width + column;
            sum = add4(sum, load4(partial + place));
        }
        u64 place = static_cast<u64>(row.row) * width + column;
        sum = spmm_detail::add_base(scale4(factor, sum), base, base_factor, item_base_factor,
                                    row.row, users, place);
        store4(y + place, sum);
    }
}
