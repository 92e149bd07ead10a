// Â times a dense matrix, with the readout mean and the residual fused (SPEC section 2, (2), (3)).
//
//   y_i = neighbours * s_i * sum_j s_j x_j + (base + [i >= U] item_base) * b_i
//
// Shapes: x, b, y are N x d, of which a launch has `columns` columns from the addresses on. Â is
// symmetric and its value on an edge is s_i s_j, so no value array exists, and the backward pass is
// this kernel applied to the gradient.
// Outputs: y `=`.
// Ownership: the host cuts the rows into segments of at most 32 neighbours, or of as many as there
// are segments (src/cuda/spmm.rs), so that a hub with a third of all edges is work for many groups,
// and adding their sums is not the longer work. A group of lanes owns a segment; a row of one
// segment is written at once. The segments of a longer row leave their sums in `partial`, and the
// group that does so last, which `arrived` tells, adds them in the order of the segments: whoever
// adds them, their sum has the same bits. Longer rows' segments come first, so that much is left to
// do beside when the last of them are added. `arrived` is zero before and after.
// Bytes: E (4d + 8) gathered, mostly from L2, N (8d + 24) from memory, and 8d for each segment of a
// longer row. Flops: 2 E d + 2 N d.
// Bound: L2 bandwidth while x's columns fit there, HBM beyond: so the host has wide or many rows'
// columns done in parts (src/cuda/spmm.rs).
// Mapping: lane q of a group holds columns 4q to 4q + 3, so a neighbour's row is one coalesced
// read. Each lane brings the id and the scale of a neighbour of its own, and the group hears of
// them: for 16 lanes two latencies in 16 neighbours; then their rows, AT_ONCE at a time.
#include "common.cuh"

struct Segment {
    u32 row;
    u32 start;     // Into `neighbours`.
    u32 length;
    u32 slot;      // Row of `partial`, or NO_SLOT.
    u32 long_row;  // Its row among the long ones.
};

struct LongRow {
    u32 row;
    u32 slot;
    u32 segments;
};

static const u32 NO_SLOT = 0xffffffffu;
// Rows in flight, of neighbours and of partial sums: nvcc 13.0 makes of eight parts twice four.
static const u32 AT_ONCE = 4;
static const u32 PARTS_AT_ONCE = 8;

namespace spmm_detail {

// A row's scaled sum, and what it takes from the base.
__device__ __forceinline__ float4 add_base(
    float4 sum, const float* base, float base_factor, float item_base_factor, u32 row, u32 users,
    u64 place) {
    if (base == nullptr) {
        return sum;
    }
    float factor = row < users ? base_factor : base_factor + item_base_factor;
    return fma4(factor, load4(base + place), sum);
}

// The sum of `count` rows of `width` numbers that follow each other, in their order; other
// multiprocessors wrote them.
__device__ __forceinline__ float4 sum_parts(const float* parts, u32 count, u32 width) {
    float4 sum = zero4();
    for (u32 first = 0; first < count; first += PARTS_AT_ONCE) {
        float4 part[PARTS_AT_ONCE];
#pragma unroll
        for (u32 j = 0; j < PARTS_AT_ONCE; ++j) {
            bool is_there = first + j < count;
            part[j] = is_there ? load4_shared(parts + static_cast<u64>(first + j) * width) : zero4();
        }
#pragma unroll
        for (u32 j = 0; j < PARTS_AT_ONCE; ++j) {
            sum = add4(sum, part[j]);
        }
    }
    return sum;
}

}  // namespace spmm_detail

extern "C" __global__ void __launch_bounds__(256, 5) spmm(
    const Segment* __restrict__ segments, u32 segment_count, const LongRow* __restrict__ long_rows,
    u32* arrived, const u32* __restrict__ neighbours, const float* __restrict__ scales,
    const float* __restrict__ x, const float* __restrict__ base, float* __restrict__ y,
    float* partial, u32 users, u32 columns, u32 width, u32 lanes, float neighbour_factor,
    float base_factor, float item_base_factor) {
    Group group(lanes);
    u32 index = group.index();
    // A group without a segment goes along with its warp.
    bool is_there = index < segment_count;
    Segment segment = segments[is_there ? index : 0];
    const u32* ids = neighbours + segment.start;
    u32 length = x == nullptr || !is_there ? 0 : segment.length;
    u32 longest = group.most(length);
    bool is_part = is_there && segment.slot != NO_SLOT;
    auto write = [&](u64 place, float4 sum) {
        sum = scale4(neighbour_factor * scales[segment.row], sum);
        store4(y + place, spmm_detail::add_base(sum, base, base_factor, item_base_factor,
                                                segment.row, users, place));
    };
    for (u32 first_column = 0; first_column < columns; first_column += 4 * lanes) {
        u32 column = first_column + 4 * group.lane;
        bool has_columns = column < columns;
        const float* x_column = x + (has_columns ? column : 0);
        float4 sum = zero4();
        for (u32 first = 0; first < longest; first += lanes) {
            // Where there is no neighbour, the first row is read and not added: a read that depends
            // on it would have to be waited for before the next.
            u32 id = 0;
            float scale = 0.0f;
            if (first + group.lane < length) {
                id = ids[first + group.lane];
                scale = scales[id];
            }
            for (u32 k = 0; k < lanes && first + k < longest; k += AT_ONCE) {
                float4 row[AT_ONCE];
#pragma unroll
                for (u32 j = 0; j < AT_ONCE; ++j) {
                    row[j] = load4(x_column + static_cast<u64>(group.from(id, k + j)) * width);
                }
#pragma unroll
                for (u32 j = 0; j < AT_ONCE; ++j) {
                    float factor = __uint_as_float(group.from(__float_as_uint(scale), k + j));
                    if (k + j < lanes && first + k + j < length) {
                        sum = fma4(factor, row[j], sum);
                    }
                }
            }
        }
        if (!is_there || !has_columns) {
            continue;
        }
        u64 place = static_cast<u64>(segment.row) * width + column;
        if (is_part) {
            store4(partial + static_cast<u64>(segment.slot) * width + column, sum);
        } else {
            write(place, sum);
        }
    }

    // Groups of a warp ask together.
    if (__ballot_sync(ALL_LANES, is_part) == 0) {
        return;
    }
    LongRow row = long_rows[is_part ? segment.long_row : 0];
    // What all lanes wrote is there for the first one, and with its fence for the device, before it
    // says so; what others wrote before they said so is there for it, and then for all lanes. A
    // shuffle orders no memory.
    __syncwarp();
    u32 before = 0;
    if (is_part && group.lane == 0) {
        __threadfence();
        before = atomicAdd(arrived + segment.long_row, 1u);
        __threadfence();
    }
    before = group.from(before, 0);
    __syncwarp();
    if (!is_part || before + 1 != row.segments) {
        return;
    }
    if (group.lane == 0) {
        arrived[segment.long_row] = 0;
    }
    for (u32 column = 4 * group.lane; column < columns; column += 4 * lanes) {
        u64 place = static_cast<u64>(segment.row) * width + column;
        const float* parts = partial + static_cast<u64>(row.slot) * width + column;
        write(place, spmm_detail::sum_parts(parts, row.segments, width));
    }
}
