// The projection of the batch's items (SPEC section 2, (1)): z = E[items] W^T + b.
//
// Shapes: E rows x D_m in f32, f16 or bf16, by item or at `places`; n items in room for `rows`; W
// d x D_m, b d, z rows x d.
// Outputs: with one slice z `=`, its first n rows; with more, those of slice s of `out` (rows x d
// each) `=` the products of columns [s, s + 1) * slice_depth, which sum_slices adds in order, with
// the bias.
// Ownership: a block, a tile of 64 items x 64 columns of z (tile.cuh).
// Bytes: n D_m sizeof E once for each 64 columns of z, d D_m 4 from L2. Flops: 2 n D_m d, times 3
// in TF32 for f32 features, 2 for f16 and bf16. Bound: memory, for d = 64.
// Why: a batch has some 20 tiles and D_m = 4096 columns, too few blocks for a GPU: the depth is
// cut into slices.
#include "tile.cuh"

namespace project_detail {

template <class Format>
__device__ __forceinline__ void project(const Batch& batch, u32 rows,
                                        const typename Format::Stored* features,
                                        const u32* places, u32 columns, const float* weight,
                                        u32 width, const float* bias, u32 slice_depth,
                                        float* out) {
    SHARED(tile::Shared, shared);
    if (blockIdx.y * tile::LINES >= batch.item_count) {
        return;
    }
    const u32* ids = feature_rows(batch, places, rows);
    tile::Operand<Format, true> a(features, ids, batch.item_count, columns);
    tile::Operand<tile::F32, true> b(weight, nullptr, width, columns);
    tile::multiply_slice(a, b, tile::slice_of(columns, slice_depth), bias, out, rows, shared);
}

}  // namespace project_detail

extern "C" __global__ void __launch_bounds__(128) project_f32(
    const Batch* __restrict__ batch, u32 rows, const float* __restrict__ features,
    const u32* __restrict__ places, u32 columns, const float* __restrict__ weight, u32 width,
    const float* __restrict__ bias, u32 slice_depth, float* __restrict__ out) {
    project_detail::project<tile::F32>(*batch, rows, features, places, columns, weight, width,
                                       bias, slice_depth, out);
}

extern "C" __global__ void __launch_bounds__(128) project_f16(
    const Batch* __restrict__ batch, u32 rows, const u16* __restrict__ features,
    const u32* __restrict__ places, u32 columns, const float* __restrict__ weight, u32 width,
    const float* __restrict__ bias, u32 slice_depth, float* __restrict__ out) {
    project_detail::project<tile::F16>(*batch, rows, features, places, columns, weight, width,
                                       bias, slice_depth, out);
}

extern "C" __global__ void __launch_bounds__(128) project_bf16(
    const Batch* __restrict__ batch, u32 rows, const u16* __restrict__ features,
    const u32* __restrict__ places, u32 columns, const float* __restrict__ weight, u32 width,
    const float* __restrict__ bias, u32 slice_depth, float* __restrict__ out) {
    project_detail::project<tile::Bf16>(*batch, rows, features, places, columns, weight, width,
                                       bias, slice_depth, out);
}
