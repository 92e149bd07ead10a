// The products of small dense weights: the predictor (SPEC section 2, (5)), the layers of the
// paper's form of propagation, and their gradients (section 4).
//
//   multiply_transposed   c (n x m) = x (n x k) w^T (w: m x k) + bias   p(x); a layer's dx = dt W^T
//   multiply_plain        c (n x m) = x (n x k) w (k x m)               dx = da W_p; a layer's x W
//   multiply_gradient     c (m x k) = y^T (y: n x m) x (n x k)          dW_p = da^T x; dW = x^T dt
//
// The n rows are all rows or, with a batch, those that it fills in its rooms; in the others y is
// zero and x is finite.
// Outputs: c `=`; if multiply_gradient cuts the n rows into several slices, slice s of `out` (m x k
// each) `=`, and sum_slices adds them in order.
// Ownership: a block owns a tile of 64 x 64 elements of c (tile.cuh).
// Bytes: each operand once for each 64 lines of the other one, c once. Flops: 2 n m k, times 3 in
// TF32.
// Bound: memory for m = k = 64.
#include "tile.cuh"

namespace multiply_detail {

// Whether there is a batch and it fills no row of this block's tile: a batch fills the beginnings
// of rooms, which are multiples of a tile.
__device__ __forceinline__ bool is_unfilled(const Batch* batch, Rooms rooms, tile::Place at) {
    return batch != nullptr && !rooms.filled(*batch, at.tile_a * tile::NARROW);
}

template <bool ALONG_A, bool ALONG_B>
using Product = tile::Product<tile::F32, ALONG_A, tile::NARROW, tile::F32, ALONG_B, tile::NARROW>;

}  // namespace multiply_detail

extern "C" __global__ void __launch_bounds__(128) multiply_transposed(
    const Batch* __restrict__ batch, u32 user_room, u32 item_room, const float* __restrict__ x,
    u32 rows, u32 depth, const float* __restrict__ weight, u32 width,
    const float* __restrict__ bias, float* __restrict__ out) {
    typedef multiply_detail::Product<true, true> Product;
    SHARED(Product::Shared, shared);
    tile::Place at = tile::place_in_grid<Product>(width);
    if (multiply_detail::is_unfilled(batch, Rooms{user_room, item_room}, at)) {
        return;
    }
    Product::A a(x, nullptr, rows, depth);
    Product::B b(weight, nullptr, width, depth);
    tile::Depth all{0, depth};
    tile::multiply_slice<Product>(a, b, all, at, bias, out, rows, shared);
}

extern "C" __global__ void __launch_bounds__(128) multiply_plain(
    const Batch* __restrict__ batch, u32 user_room, u32 item_room, const float* __restrict__ x,
    u32 rows, u32 depth, const float* __restrict__ weight, u32 width, float* __restrict__ out) {
    typedef multiply_detail::Product<true, false> Product;
    SHARED(Product::Shared, shared);
    tile::Place at = tile::place_in_grid<Product>(width);
    if (multiply_detail::is_unfilled(batch, Rooms{user_room, item_room}, at)) {
        return;
    }
    Product::A a(x, nullptr, rows, depth);
    Product::B b(weight, nullptr, width, width);
    tile::Depth all{0, depth};
    tile::multiply_slice<Product>(a, b, all, at, nullptr, out, rows, shared);
}

extern "C" __global__ void __launch_bounds__(128) multiply_gradient(
    const Batch* __restrict__ batch, u32 user_room, u32 item_room, const float* __restrict__ y,
    u32 width, const float* __restrict__ x, u32 depth, u32 rows, float* __restrict__ out) {
    typedef multiply_detail::Product<false, false> Product;
    SHARED(Product::Shared, shared);
    Product::A a(y, nullptr, width, width);
    Product::B b(x, nullptr, depth, depth);
    tile::Place at = tile::place_in_grid<Product>(depth);
    tile::Depth all = tile::slice_of(rows, at.slice, gridDim.y);
    if (batch == nullptr) {
        tile::multiply_slice<Product>(a, b, all, at, nullptr, out, width, shared);
    } else {
        tile::FilledDepth filled{*batch, Rooms{user_room, item_room}, all.start, all.end};
        tile::multiply_slice<Product>(a, b, filled, at, nullptr, out, width, shared);
    }
}
