// Â times a dense matrix, with the readout mean and the residual fused (SPEC section 2, (2), (3)).
//
//   y_i = neighbours * s_i * sum_j s_j x_j + (base + [i >= U] item_base) * b_i
//
// spmm writes y. spmm_adam takes y for the gradient of the parameters and does their Adam step
// (adam.cuh) instead: y itself is never stored.
//
// Shapes: x, b, y, p, m, v are N x d; a launch computes the columns from `first_column` to
// `end_column`. Â is symmetric with value s_i s_j on an edge, so no value array exists, and the
// backward pass is this kernel applied to the gradient.
// Outputs: y `=`; or p, m, v, updated in place, and watch as in adam.cu.
// Ownership: the host cuts rows into segments of at most 32 neighbours or, in a longer row, of
// about as many as the row has segments (src/cuda/spmm.rs). So a hub with a third of all edges is
// work for many groups, and adding their sums takes no longer than each of them. A group of lanes
// owns a segment. A row of one segment is written at once. The segments of a longer row leave their
// sums in `partial`, and the last group to do so, which `arrived` tells, adds them. Longer rows'
// segments come first, so that other work is left while the last of them are added. `arrived` is
// zero before and after.
// Determinism: a row's sums are added in the order of its segments, whichever group does it.
// Bytes: E (4d + 8) gathered, mostly from L2, N (8d + 24) from memory, or N (28d + 24) with Adam,
// and 8d for each segment of a longer row. Flops: 2 E d + 2 N d, or some 18 N d with Adam.
// Bound: L2 bandwidth while x's columns fit there, HBM beyond, so the host computes the columns of
// wide or many rows in parts (src/cuda/spmm.rs).
// Mapping: lane q of a group holds columns 4q to 4q + 3, so a neighbour's row is one coalesced
// read. Each lane loads the id and the scale of one neighbour and passes them to the group: 16
// lanes wait two latencies for 16 neighbours, then for the rows, AT_ONCE at a time.
#include "adam.cuh"
#include "batch.cuh"

struct Segment {
    u32 row;
    u32 start;     // Into `neighbours`.
    u32 length;
    u32 slot;      // Row of `partial`, or NO_SLOT.
    u32 long_row;  // The row's index among the long ones.
};

struct LongRow {
    u32 row;
    u32 slot;
    u32 segments;
};

static const u32 NO_SLOT = 0xffffffffu;
// Rows in flight, of neighbours and of partial sums: nvcc 13.0 turns eight parts into twice four.
static const u32 AT_ONCE = 4;
static const u32 PARTS_AT_ONCE = 8;

namespace spmm_detail {

struct Product {
    const Segment* segments;
    u32 segment_count;
    const LongRow* long_rows;
    u32* arrived;
    const u32* neighbours;
    const float* scales;
    const float* x;
    const float* base;
    float* partial;
    u32 users;
    u32 first_column;
    u32 end_column;
    u32 width;
    u32 lanes;
    float neighbour_factor;
    float base_factor;
    float item_base_factor;

    // Four columns of y, from the sum of the row's neighbours.
    __device__ __forceinline__ float4 finish(u32 row, u64 place, float4 sum) const {
        sum = scale4(neighbour_factor * scales[row], sum);
        if (base == nullptr) {
            return sum;
        }
        float factor = row < users ? base_factor : base_factor + item_base_factor;
        return fma4(factor, load4(base + place), sum);
    }
};

// The sum of `count` consecutive rows of `width` numbers, in their order; other multiprocessors
// wrote them.
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

// Computes a product; `use(place, y)` takes four columns of y, at `place` of its arena.
template <class Use> __device__ __forceinline__ void multiply(const Product& product, Use use) {
    u32 lanes = product.lanes, width = product.width, end_column = product.end_column;
    Group group(lanes);
    u32 index = group.index();
    // A group without a segment stays with its warp.
    bool is_there = index < product.segment_count;
    Segment segment = product.segments[is_there ? index : 0];
    const u32* ids = product.neighbours + segment.start;
    u32 length = product.x == nullptr || !is_there ? 0 : segment.length;
    u32 longest = group.most(length);
    bool is_part = is_there && segment.slot != NO_SLOT;
    for (u32 first_column = product.first_column; first_column < end_column;
         first_column += 4 * lanes) {
        u32 column = first_column + 4 * group.lane;
        bool has_columns = column < end_column;
        const float* x_column = product.x + (has_columns ? column : 0);
        float4 sum = zero4();
        for (u32 first = 0; first < longest; first += lanes) {
            // Without a neighbour, row 0 is read but not added: a conditional read would have to
            // finish before the next one.
            u32 id = 0;
            float scale = 0.0f;
            if (first + group.lane < length) {
                id = ids[first + group.lane];
                scale = product.scales[id];
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
        if (is_part) {
            store4(product.partial + static_cast<u64>(segment.slot) * width + column, sum);
        } else {
            u64 place = static_cast<u64>(segment.row) * width + column;
            use(place, product.finish(segment.row, place, sum));
        }
    }

    // All groups of a warp vote together.
    if (__ballot_sync(ALL_LANES, is_part) == 0) {
        return;
    }
    LongRow row = product.long_rows[is_part ? segment.long_row : 0];
    // The barrier makes all lanes' writes visible to the first lane, whose fence makes them visible
    // to the device before it counts them. The second fence and barrier make other groups' counted
    // writes visible to that lane, then to all lanes. A shuffle orders no memory.
    __syncwarp();
    u32 before = 0;
    if (is_part && group.lane == 0) {
        __threadfence();
        before = atomicAdd(product.arrived + segment.long_row, 1u);
        __threadfence();
    }
    before = group.from(before, 0);
    __syncwarp();
    if (!is_part || before + 1 != row.segments) {
        return;
    }
    if (group.lane == 0) {
        product.arrived[segment.long_row] = 0;
    }
    for (u32 column = product.first_column + 4 * group.lane; column < end_column;
         column += 4 * lanes) {
        u64 place = static_cast<u64>(segment.row) * width + column;
        const float* parts = product.partial + static_cast<u64>(row.slot) * width + column;
        use(place, product.finish(segment.row, place, sum_parts(parts, row.segments, width)));
    }
}

}  // namespace spmm_detail

extern "C" __global__ void __launch_bounds__(256, 5) spmm(
    const Segment* __restrict__ segments, u32 segment_count, const LongRow* __restrict__ long_rows,
    u32* arrived, const u32* __restrict__ neighbours, const float* __restrict__ scales,
    const float* __restrict__ x, const float* __restrict__ base, float* partial, u32 users,
    u32 first_column, u32 end_column, u32 width, u32 lanes, float neighbour_factor,
    float base_factor, float item_base_factor, float* __restrict__ y) {
    spmm_detail::Product product = {
        segments, segment_count, long_rows,  arrived,    neighbours, scales,
        x,        base,          partial,    users,      first_column, end_column,
        width,    lanes,         neighbour_factor, base_factor, item_base_factor};
    spmm_detail::multiply(product, [&](u64 place, float4 sum) { store4(y + place, sum); });
}

extern "C" __global__ void __launch_bounds__(256, 5) spmm_adam(
    const Segment* __restrict__ segments, u32 segment_count, const LongRow* __restrict__ long_rows,
    u32* arrived, const u32* __restrict__ neighbours, const float* __restrict__ scales,
    const float* __restrict__ x, const float* __restrict__ base, float* partial, u32 users,
    u32 first_column, u32 end_column, u32 width, u32 lanes, float neighbour_factor,
    float base_factor, float item_base_factor, const Batch* __restrict__ batch,
    const AdamStep* __restrict__ schedule, float* __restrict__ parameters,
    float* __restrict__ firsts, float* __restrict__ seconds, u64 begin, u64* watch) {
    spmm_detail::Product product = {
        segments, segment_count, long_rows,  arrived,    neighbours, scales,
        x,        base,          partial,    users,      first_column, end_column,
        width,    lanes,         neighbour_factor, base_factor, item_base_factor};
    // The step's constants are read anew for each row: kept, they would take a block's registers.
    spmm_detail::multiply(product, [&](u64 place, float4 gradient) {
        u32 number = batch->step;
        AdamStep step = schedule[number - 1];
        adam_quad(step, gradient, parameters, firsts, seconds, begin + place, number, watch);
    });
}
