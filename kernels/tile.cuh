// A block's tile of a matrix product on the tensor cores, at the accuracy of f32.
//
//   c (lines of a x lines of b) = sum over k of a(line, k) b(line, k)
//
// Accuracy: an operand in f32 is split into two TF32 numbers, big + small, which hold 22 of its 24
// bits; big * big + big * small + small * big leaves out terms below 2^-22 of the product. f16 and
// bf16 operands are TF32 numbers already: no split, no loss. The tensor cores add with less than
// f32's rounding, so their sums run over DEPTH products only and are then added in f32.
// Determinism: each element of c is one thread's, its products added in the order of k.
// Mapping: 4 warps of 32 x 32 elements each; the next tile's operands are on their way from memory
// while this one is multiplied. Shared strides of 36 and 72 words keep fragment reads free of bank
// conflicts: in both layouts a warp's 32 words lie in 32 banks.
#pragma once
#include "batch.cuh"

namespace tile {

static const u32 LINES = 64;
static const u32 DEPTH = 32;
static const u32 THREADS = 128;
static const u32 FETCHES = LINES * DEPTH / (4 * THREADS);
// Words of an operand's tile in shared memory: 64 x 36 or 32 x 72, both 2304.
static const u32 WORDS = LINES * (DEPTH + 4);

struct F32 {
    typedef float Stored;
    static const bool EXACT = false;
    static __device__ __forceinline__ float load(const float* address) { return *address; }
    static __device__ __forceinline__ float4 load_quad(const float* address) {
        return load4(address);
    }
};

struct F16 {
    typedef u16 Stored;
    static const bool EXACT = true;
    static __device__ __forceinline__ float load(const u16* address) {
        return half_to_float(*address);
    }
    static __device__ __forceinline__ float4 load_quad(const u16* address) {
        u64 bits = *reinterpret_cast<const u64*>(address);
        return make_float4(half_to_float(static_cast<u16>(bits)),
                           half_to_float(static_cast<u16>(bits >> 16)),
                           half_to_float(static_cast<u16>(bits >> 32)),
                           half_to_float(static_cast<u16>(bits >> 48)));
    }
};

struct Bf16 {
    typedef u16 Stored;
    static const bool EXACT = true;
    static __device__ __forceinline__ float load(const u16* address) {
        return __uint_as_float(static_cast<u32>(*address) << 16);
    }
    static __device__ __forceinline__ float4 load_quad(const u16* address) {
        u64 bits = *reinterpret_cast<const u64*>(address);
        return make_float4(__uint_as_float(static_cast<u32>(bits) << 16),
                           __uint_as_float(static_cast<u32>(bits) & 0xffff0000u),
                           __uint_as_float(static_cast<u32>(bits >> 16) & 0xffff0000u),
                           __uint_as_float(static_cast<u32>(bits >> 32) & 0xffff0000u));
    }
};

// An operand: `lines` x `depth` numbers in rows of `columns`. ALONG: the depth runs along a row,
// so (line, k) is values[id(line)][k]; otherwise it is values[id(k)][line]. `ids` gathers rows.
template <class Format, bool ALONG>
struct Operand {
    static const bool EXACT = Format::EXACT;
    const typename Format::Stored* values;
    const u32* ids;
    u32 lines;
    u32 columns;
    float4 quads[FETCHES];

    __device__ __forceinline__ Operand(const typename Format::Stored* values, const u32* ids,
                                       u32 lines, u32 columns)
        : values(values), ids(ids), lines(lines), columns(columns) {}

    static __device__ __forceinline__ u32 place(u32 line, u32 k) {
        return ALONG ? line * (DEPTH + 4) + k : k * (LINES + 8) + line;
    }

    // Reads the tile's numbers from (first_line, first_k) on, zeros where there are none.
    __device__ __forceinline__ void fetch(u32 first_line, u32 first_k, u32 end_k) {
#pragma unroll
        for (u32 i = 0; i < FETCHES; ++i) {
            u32 index = threadIdx.x + i * THREADS;
            u32 line = first_line + (ALONG ? index / (DEPTH / 4) : 4 * (index % (LINES / 4)));
            u32 k = first_k + (ALONG ? 4 * (index % (DEPTH / 4)) : index / (LINES / 4));
            quads[i] = zero4();
            if (line >= lines || k >= end_k) {
                continue;
            }
            u32 row = ALONG ? line : k;
            u32 column = ALONG ? k : line;
            u32 end_column = ALONG ? end_k : lines;
            const typename Format::Stored* start =
                values + static_cast<u64>(ids == nullptr ? row : ids[row]) * columns;
            if (columns % 4 == 0) {
                quads[i] = Format::load_quad(start + column);
            } else {
                quads[i].x = Format::load(start + column);
                quads[i].y = column + 1 < end_column ? Format::load(start + column + 1) : 0.0f;
                quads[i].z = column + 2 < end_column ? Format::load(start + column + 2) : 0.0f;
                quads[i].w = column + 3 < end_column ? Format::load(start + column + 3) : 0.0f;
            }
        }
    }

    __device__ __forceinline__ void store(float* tile) const {
#pragma unroll
        for (u32 i = 0; i < FETCHES; ++i) {
            u32 index = threadIdx.x + i * THREADS;
            u32 line = ALONG ? index / (DEPTH / 4) : 4 * (index % (LINES / 4));
            u32 k = ALONG ? 4 * (index % (DEPTH / 4)) : index / (LINES / 4);
            store4(tile + place(line, k), quads[i]);
        }
    }
};

// A number as one TF32 number, or as the sum of two.
template <bool EXACT>
__device__ __forceinline__ void split(float value, u32& big, u32& small) {
    if (EXACT) {
        big = __float_as_uint(value);
        small = 0;
    } else {
        big = to_tf32(value);
        small = to_tf32(value - __uint_as_float(big));
    }
}

// Read and written 16 bytes at a time.
struct alignas(16) Shared {
    float a[WORDS];
    float b[WORDS];
};

// The products of one DEPTH of the operands in shared memory, added to `totals`.
template <class A, class B>
__device__ __forceinline__ void multiply_step(const Shared& shared, float (&totals)[2][4][4]) {
    u32 lane = threadIdx.x % 32;
    u32 group = lane / 4;
    u32 in_group = lane % 4;
    u32 first_a = threadIdx.x / 64 * 32;
    u32 first_b = threadIdx.x / 32 % 2 * 32;
    float sums[2][4][4] = {};
#pragma unroll
    for (u32 k = 0; k < DEPTH; k += 8) {
        u32 big_b[4][2], small_b[4][2];
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
#pragma unroll
            for (u32 part = 0; part < 2; ++part) {
                u32 place = B::place(first_b + 8 * j + group, k + 4 * part + in_group);
                split<B::EXACT>(shared.b[place], big_b[j][part], small_b[j][part]);
            }
        }
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            u32 big_a[4], small_a[4];
#pragma unroll
            for (u32 part = 0; part < 4; ++part) {
                u32 place = A::place(first_a + 16 * i + 8 * (part % 2) + group,
                                     k + 4 * (part / 2) + in_group);
                split<A::EXACT>(shared.a[place], big_a[part], small_a[part]);
            }
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                if (!A::EXACT) {
                    multiply_tf32(sums[i][j], small_a, big_b[j]);
                }
                if (!B::EXACT) {
                    multiply_tf32(sums[i][j], big_a, small_b[j]);
                }
                multiply_tf32(sums[i][j], big_a, big_b[j]);
            }
        }
    }
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
#pragma unroll
            for (u32 part = 0; part < 4; ++part) {
                totals[i][j][part] += sums[i][j][part];
            }
        }
    }
}

// The depth of a slice: every k of [start, end).
struct Depth {
    u32 start;
    u32 end;

    __device__ __forceinline__ u32 first() const { return start; }
    __device__ __forceinline__ u32 after(u32 k) const { return k + DEPTH; }
};

// The same over the rows of a batch, without the steps that it leaves unfilled. Rows beyond the
// last one that is filled, in its step, are read: they hold numbers times zeros.
struct FilledDepth {
    const Batch& batch;
    Rooms rooms;
    u32 start;
    u32 end;

    __device__ __forceinline__ u32 from(u32 k) const {
        while (k < end && !rooms.filled(batch, k)) {
            k = rooms.next_block(k);
        }
        return k;
    }
    __device__ __forceinline__ u32 first() const { return from(start); }
    __device__ __forceinline__ u32 after(u32 k) const { return from(k + DEPTH); }
};

// The block's tile over a depth, given element by element to out(line a, line b, value).
// Grid: x over tiles of b's lines, y over tiles of a's lines.
template <class A, class B, class Over, class Out>
__device__ __forceinline__ void multiply(A& a, B& b, const Over& depth, Shared& shared, Out out) {
    u32 first_a = blockIdx.y * LINES;
    u32 first_b = blockIdx.x * LINES;
    float totals[2][4][4] = {};
    u32 k = depth.first();
    a.fetch(first_a, k, depth.end);
    b.fetch(first_b, k, depth.end);
    while (k < depth.end) {
        a.store(shared.a);
        b.store(shared.b);
        __syncthreads();
        k = depth.after(k);
        if (k < depth.end) {
            a.fetch(first_a, k, depth.end);
            b.fetch(first_b, k, depth.end);
        }
        multiply_step<A, B>(shared, totals);
        __syncthreads();
    }
    u32 lane = threadIdx.x % 32;
    u32 line_a = first_a + threadIdx.x / 64 * 32 + lane / 4;
    u32 line_b = first_b + threadIdx.x / 32 % 2 * 32 + 2 * (lane % 4);
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
#pragma unroll
            for (u32 part = 0; part < 4; ++part) {
                u32 row = line_a + 16 * i + 8 * (part / 2);
                u32 column = line_b + 8 * j + part % 2;
                if (row < a.lines && column < b.lines) {
                    out(row, column, totals[i][j][part]);
                }
            }
        }
    }
}

// The tile of slice blockIdx.z, at its place in that slice of `out`, plus the bias of each column
// where there is one. A slice of `out` has room for `rows` rows.
template <class A, class B, class Over>
__device__ __forceinline__ void multiply_slice(A& a, B& b, const Over& depth, const float* bias,
                                               float* out, u32 rows, Shared& shared) {
    float* slice = out + static_cast<u64>(blockIdx.z) * rows * b.lines;
    u32 columns = b.lines;
    multiply(a, b, depth, shared, [=](u32 row, u32 column, float value) {
        float sum = bias == nullptr ? value : value + bias[column];
        slice[static_cast<u64>(row) * columns + column] = sum;
    });
}

// The part of a depth that slice blockIdx.z has.
__device__ __forceinline__ Depth slice_of(u32 depth, u32 slice_depth) {
    u32 start = blockIdx.z * slice_depth;
    return Depth{start, start + slice_depth < depth ? start + slice_depth : depth};
}

}  // namespace tile
