// The gradient of a projection's weight (SPEC section 4): dW = dz^T E[items].
//
// Shapes: dz rows x d, whose first n rows are the batch's items; E rows x D_m in f32, f16 or bf16,
// by item or at `places`; dW d x D_m.
// Outputs: with one slice dW `=`; with more, slice s of `out` (d x D_m each) `=` the products of
// that slice's items, and sum_slices adds them in order.
// Ownership: a block owns a tile of 64 rows x 128 columns of dW (tile.cuh).
// Bytes: n D_m sizeof E once for each 64 rows of dW; from L2, n d 4 once for each 128 columns, and
// 4 d D_m written for each slice. Flops: 2 n D_m d, times 3 in TF32 for f32 features, 2 for f16 and
// bf16.
// Bound: memory and the tensor cores alike, for d = 64, as in project.cu.
#include "tile.cuh"

namespace project_backward_detail {

template <class Format>
__device__ __forceinline__ void project_backward(const Batch& batch, u32 rows,
                                                 const float* z_gradient, u32 width,
                                                 const typename Format::Stored* features,
                                                 const u32* places, u32 columns, float* out) {
    typedef tile::Product<tile::F32, false, tile::NARROW, Format, false, tile::WIDE> Product;
    SHARED(typename Product::Shared, shared);
    typename Product::A a(z_gradient, nullptr, width, width);
    const u32* ids = feature_rows(batch, places, rows);
    typename Product::B b(features, ids, columns, columns);
    tile::Place at = tile::place_in_grid<Product>(columns);
    tile::Depth depth = tile::slice_of(batch.item_count, at.slice, gridDim.y);
    tile::multiply_slice<Product>(a, b, depth, at, nullptr, out, width, shared);
}

}  // namespace project_backward_detail

extern "C" __global__ void __launch_bounds__(256) project_backward_f32(
    const Batch* __restrict__ batch, u32 rows, const float* __restrict__ z_gradient, u32 width,
    const float* __restrict__ features, const u32* __restrict__ places, u32 columns,
    float* __restrict__ out) {
    project_backward_detail::project_backward<tile::F32>(*batch, rows, z_gradient, width, features,
                                                         places, columns, out);
}

extern "C" __global__ void __launch_bounds__(256) project_backward_f16(
    const Batch* __restrict__ batch, u32 rows, const float* __restrict__ z_gradient, u32 width,
    const u16* __restrict__ features, const u32* __restrict__ places, u32 columns,
    float* __restrict__ out) {
    project_backward_detail::project_backward<tile::F16>(*batch, rows, z_gradient, width, features,
                                                         places, columns, out);
}

extern "C" __global__ void __launch_bounds__(256) project_backward_bf16(
    const Batch* __restrict__ batch, u32 rows, const float* __restrict__ z_gradient, u32 width,
    const u16* __restrict__ features, const u32* __restrict__ places, u32 columns,
    float* __restrict__ out) {
    project_backward_detail::project_backward<tile::Bf16>(*batch, rows, z_gradient, width, features,
                                                         places, columns, out);
}
