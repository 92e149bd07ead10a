// Item rows in half precision, which the tensor cores read when they score (top_k.cu).
//
//   largest = max over rows of |row|;   halves = f16(row scale(largest)), see halves.cuh
//
// Shapes: rows n x d; halves n x d', d' the next multiple of 8, with zeros past d: rows are copied
// in pieces of 16 bytes.
// Outputs: largest, a maximum that begins as 0; halves `=`.
// Ownership: largest_norm: 16 lanes own a row, and blocks take rows in turn; half_rows: a thread
// owns 8 columns.
// Determinism: a maximum does not depend on the order of its operands.
// Bytes: 4 n d; 4 n d + 2 n d'. Flops: 2 n d; n d.
// Bound: memory, and the launches themselves.
#include "halves.cuh"

// A NaN counts as infinite. Norms sort the same as bits and as numbers.
extern "C" __global__ void __launch_bounds__(256) largest_norm(const float* __restrict__ rows,
                                                               u32 count, u32 width,
                                                               u32* __restrict__ largest) {
    using halves::INFINITE;
    u32 most = 0;
    u32 at_once = gridDim.x * blockDim.x / 16;
    for (u32 first = blockIdx.x * blockDim.x / 16; first < count; first += at_once) {
        u32 row = first + threadIdx.x / 16;
        const float* begin = row < count ? rows + static_cast<u64>(row) * width : nullptr;
        float norm = sqrtf(halves::square_of(begin, width));
        u32 bits = __float_as_uint(norm < INFINITE ? norm : INFINITE);
        most = bits > most ? bits : most;
    }
    most = Group(16).most(most);
    if (threadIdx.x % 32 == 0) {
        atomicMax(largest, most);
    }
}

extern "C" __global__ void __launch_bounds__(256) half_rows(const float* __restrict__ rows, u32 count,
                                                            u32 width,
                                                            const float* __restrict__ largest,
                                                            u16* __restrict__ halves) {
    u32 pieces = (width + 7) / 8;
    u64 index = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (index >= static_cast<u64>(count) * pieces) {
        return;
    }
    float scale, back;
    halves::scale_of(*largest, scale, back);
    u32 column = index % pieces * 8;
    const float* row = rows + index / pieces * width + column;
    float4 first = load4(row);
    float4 second = column + 4 < width ? load4(row + 4) : zero4();
    uint4 eight = {to_halves(first.x * scale, first.y * scale),
                   to_halves(first.z * scale, first.w * scale),
                   to_halves(second.x * scale, second.y * scale),
                   to_halves(second.z * scale, second.w * scale)};
    *reinterpret_cast<uint4*>(halves + index * 8) = eight;
}
