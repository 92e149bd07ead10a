// The projection of the batch's items (SPEC section 2, (1)): z = E[items] W^T + b.
//
// Shapes: E rows x D_m in f32, f16 or bf16, by item or at `places`; n items in room for `rows`; W d
// x D_m, b d, z rows x d.
// Outputs: with one slice, the first n rows of z `=`; with more, the first n rows of slice s of
// `out` (rows x d each) `=` the products of that slice's columns, and sum_slices adds them in
// order, with the bias.
// Ownership: a block owns a tile of 128 items x 64 columns of z (tile.cuh).
// Bytes: n D_m sizeof E once for each 64 columns of z; from L2, d D_m 4 once for each 128 items,
// and 4 n d written for each slice. Flops: 2 n D_m d, times 3 in TF32 for f32 features, 2 for f16
// and bf16.
// Bound: memory and the tensor cores alike, for d = 64: 1500 f32 rows of 4096 numbers are 24.6 MB,
// 7.3 us at 3.35 TB/s, and 2.4 Gflop in TF32, 7.8 us at the 322 Tflop/s measured for mma.sync; for
// halves 3.7 us and 5.2 us. Measured on an H200: 22.7 us, a third of that rate
// (benches/RESULTS.md); instructions bind, see tile.cuh.
// Why slices: a batch has some 12 tiles, too few blocks for a GPU, and D_m = 4096 columns. So the
// depth is cut into as many slices as give each multiprocessor one block of 8 warps
// (projection_slices); more would write more. The host knows only the room for items; their number
// is in the batch.
#include "tile.cuh"

namespace project_detail {

template <class Format>
__device__ __forceinline__ void project(const Batch& batch, u32 rows,
                                        const typename Format::Stored* features,
                                        const u32* places, u32 columns, const float* weight,
                                        u32 width, const float* bias, u32 most_slices,
                                        float* out) {
    typedef tile::Product<Format, true, tile::WIDE, tile::F32, true, tile::NARROW> Product;
    SHARED(typename Product::Shared, shared);
    // Blocks with work come first, so that each multiprocessor gets one of them.
    u32 tiles_b = (width + tile::NARROW - 1) / tile::NARROW;
    u32 tiles = projection_tiles(batch, tiles_b);
    u32 slices = projection_slices(batch, tiles_b, most_slices);
    if (blockIdx.x >= tiles * slices) {
        return;
    }
    tile::Place at{blockIdx.x % tiles / tiles_b, blockIdx.x % tiles_b, blockIdx.x / tiles};
    const u32* ids = feature_rows(batch, places, rows);
    typename Product::A a(features, ids, batch.item_count, columns);
    typename Product::B b(weight, nullptr, width, columns);
    tile::Depth depth = tile::slice_of(columns, at.slice, slices);
    tile::multiply_slice<Product>(a, b, depth, at, bias, out, rows, shared);
}

}  // namespace project_detail

extern "C" __global__ void __launch_bounds__(256) project_f32(
    const Batch* __restrict__ batch, u32 rows, const float* __restrict__ features,
    const u32* __restrict__ places, u32 columns, const float* __restrict__ weight, u32 width,
    const float* __restrict__ bias, u32 most_slices, float* __restrict__ out) {
    project_detail::project<tile::F32>(*batch, rows, features, places, columns, weight, width,
                                       bias, most_slices, out);
}

extern "C" __global__ void __launch_bounds__(256) project_f16(
    const Batch* __restrict__ batch, u32 rows, const u16* __restrict__ features,
    const u32* __restrict__ places, u32 columns, const float* __restrict__ weight, u32 width,
    const float* __restrict__ bias, u32 most_slices, float* __restrict__ out) {
    project_detail::project<tile::F16>(*batch, rows, features, places, columns, weight, width,
                                       bias, most_slices, out);
}

extern "C" __global__ void __launch_bounds__(256) project_bf16(
    const Batch* __restrict__ batch, u32 rows, const u16* __restrict__ features,
    const u32* __restrict__ places, u32 columns, const float* __restrict__ weight, u32 width,
    const float* __restrict__ bias, u32 most_slices, float* __restrict__ out) {
    project_detail::project<tile::Bf16>(*batch, rows, features, places, columns, weight, width,
                                       bias, most_slices, out);
}
