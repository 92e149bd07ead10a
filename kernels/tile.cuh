// A block's tile of a matrix product on the tensor cores, at the accuracy of f32.
//
//   c (lines of a x lines of b) = sum over k of a(line, k) b(line, k)
//
// Accuracy: an operand in f32 is split into two TF32 numbers, big + small, which hold 22 of its 24
// bits; big * big + big * small + small * big leaves out terms below 2^-22 of the product. f16 and
// bf16 operands are TF32 numbers already: no split, no loss. The tensor cores add less accurately
// than f32, so their sums run over DEPTH products only and are then added in f32.
// Determinism: a thread owns each element of c and adds its products in a fixed order.
// Mapping: a warp owns 32 x 32 elements. Steps of DEPTH pass through a ring of stages in shared
// memory: while one is multiplied, the next STAGES - 1 are in flight. One barrier per step tells
// that a stage has arrived and that the one before it may be refilled.
//
// There are two sizes of tile. 64 x 64, 4 warps, for small weights: several blocks share a
// multiprocessor. 128 x 64, 8 warps, for features: each line of weights serves 128 rows of
// features, which halves what else the L2 cache delivers. Four stages of 8 KB of f32 features and 4
// KB of weights take 48 KB. Three are in flight, 24 KB of features per multiprocessor; a latency of
// 700 ns needs 18 KB at 3.35 TB/s and 25 KB at 4.8 TB/s. Halves have six stages, with five times 4
// KB in flight.
// Per step, a block of 128 x 64 has 384 products of 16 x 8 x 8 for f32 features, 96 for each
// quarter of a multiprocessor, which take some 600 cycles at the 322 Tflop/s measured for mma.sync
// on an H200. The quarter's two warps issue 268 instructions each, 48 of them products, and take
// 1300 cycles: too few warps to hide the latency of instructions. That binds, not memory.
#pragma once
#include "operand.cuh"

namespace tile {

// Sides of a block's tile, and of a warp's.
static const u32 NARROW = 64;
static const u32 WIDE = FEATURE_LINES;
static const u32 WARP_LINES = 32;

// The operands of a tile of LINES_A x LINES_B, and its shared memory: 48 KB for 8 warps, half of
// that for 4.
template <class FormatA, bool ALONG_A, u32 LINES_A, class FormatB, bool ALONG_B, u32 LINES_B>
struct Product {
    static const u32 WARPS_B = LINES_B / WARP_LINES;
    static const u32 THREADS = LINES_A / WARP_LINES * WARPS_B * 32;
    typedef Operand<FormatA, ALONG_A, LINES_A, THREADS> A;
    typedef Operand<FormatB, ALONG_B, LINES_B, THREADS> B;
    static const u32 STAGES = THREADS * 192 / (A::BYTES + B::BYTES);
    // The stride of the finished tile's rows. Lanes that write together write to different banks,
    // except if the depth runs along neither operand's rows: then pairs share a bank (counted, not
    // measured).
    static const u32 OUT_ROW = LINES_B + (ALONG_B ? 8 : 4);

    struct alignas(16) Stage {
        u8 a[A::BYTES];
        u8 b[B::BYTES];
    };
    union alignas(16) Shared {
        Stage stages[STAGES];
        float out[LINES_A * OUT_ROW];
    };
};

// A number as one TF32 number, or as the sum of two: the nearest one and the upper 11 of the
// remaining 12 bits. The cores ignore the 13 bits that TF32 lacks. This takes three instructions;
// cvt.rna.tf32, which checks for infinities, takes four for each part. The addition may turn a NaN
// into a number, but `small` is still a NaN.
template <bool EXACT>
__device__ __forceinline__ void split(float value, u32& big, u32& small) {
    big = __float_as_uint(value);
    if (EXACT) {
        small = 0;
    } else {
        big += 0x1000;
        small = __float_as_uint(value - __uint_as_float(big & 0xffffe000u));
    }
}

// Adds the products of 32 x 8 and 8 x 32 numbers to `sums`.
__device__ __forceinline__ void multiply_all(float (&sums)[2][4][4], const u32 (&a)[2][4],
                                             const u32 (&b)[4][2]) {
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            multiply_tf32(sums[i][j], a[i], b[j]);
        }
    }
}

// Adds the products of one DEPTH of the operands in shared memory to `totals`, for the lines of a
// and b from `first_a` and `first_b` on.
template <class A, class B>
__device__ __forceinline__ void multiply_step(const u8* tile_a, const u8* tile_b, u32 first_a,
                                              u32 first_b, float (&totals)[2][4][4]) {
    u32 group = threadIdx.x % 32 / 4;
    u32 in_group = threadIdx.x % 4;
    float a[4][4], b[4][4], sums[2][4][4] = {};
    B::read(tile_b, first_b, group, in_group, b);
    A::read(tile_a, first_a, group, in_group, a);
#pragma unroll
    for (u32 k = 0; k < 4; k += 2) {
        u32 big_a[2][4], small_a[2][4], big_b[4][2], small_b[4][2];
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
#pragma unroll
            for (u32 part = 0; part < 2; ++part) {
                split<B::EXACT>(b[j][k + part], big_b[j][part], small_b[j][part]);
            }
        }
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
#pragma unroll
            for (u32 part = 0; part < 4; ++part) {
                split<A::EXACT>(a[2 * i + part % 2][k + part / 2], big_a[i][part],
                                small_a[i][part]);
            }
        }
        // Eight products lie between two of the same sums, so that the second need not wait.
        if (!A::EXACT) {
            multiply_all(sums, small_a, big_b);
        }
        if (!B::EXACT) {
            multiply_all(sums, big_a, small_b);
        }
        multiply_all(sums, big_a, big_b);
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

// The same over the rows of a batch, without the steps that it leaves unfilled. In the last filled
// step, rows past the last filled one are read too: finite numbers times zeros.
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

// Parts of a finished tile that a thread has: for each, a line of a, the first of four lines of b,
// whether these lines exist, and the four sums.
template <u32 COUNT>
struct Out {
    u32 rows[COUNT];
    u32 columns[COUNT];
    bool is_there[COUNT];
    float sums[COUNT][4];
};

// A block's tile and slice of the depth.
struct Place {
    u32 tile_a;
    u32 tile_b;
    u32 slice;
};

// Grid: x over tiles, those of b's lines side by side; y over slices. Only x is large enough for as
// many lines as a model may have nodes.
template <class Product>
__device__ __forceinline__ Place place_in_grid(u32 lines_b) {
    u32 side_by_side = (lines_b + Product::B::LINES - 1) / Product::B::LINES;
    return Place{blockIdx.x / side_by_side, blockIdx.x % side_by_side, blockIdx.y};
}

// Computes the block's tile over a depth and passes all of it to take(Out<AT_ONCE>), piece by
// piece.
template <class Product, u32 AT_ONCE, class Over, class Take>
__device__ __forceinline__ void multiply(typename Product::A& a, typename Product::B& b,
                                         const Over& depth, const Place& at,
                                         typename Product::Shared& shared, Take take) {
    typedef typename Product::A A;
    typedef typename Product::B B;
    u32 first_a = at.tile_a * A::LINES;
    u32 first_b = at.tile_b * B::LINES;
    u32 warp = threadIdx.x / 32;
    u32 warp_a = warp / Product::WARPS_B * WARP_LINES;
    u32 warp_b = warp % Product::WARPS_B * WARP_LINES;
    float totals[2][4][4] = {};

    u32 ahead = depth.first();
    u32 on_their_way = 0;
    a.find_lines(first_a, depth.end);
    b.find_lines(first_b, depth.end);
    a.find_depth(ahead, depth.end);
    b.find_depth(ahead, depth.end);
    auto copy_step = [&](u32 stage) {
        if (ahead < depth.end) {
            a.copy(shared.stages[stage].a, first_a, ahead);
            b.copy(shared.stages[stage].b, first_b, ahead);
            ahead = depth.after(ahead);
            a.find_depth(ahead, depth.end);
            b.find_depth(ahead, depth.end);
            ++on_their_way;
        }
        // A group a step, be it empty, so that the groups to wait for are the same in each.
        commit_copies();
    };
    for (u32 stage = 0; stage + 1 < Product::STAGES; ++stage) {
        copy_step(stage);
    }
    u32 stage = 0;
    u32 free_stage = Product::STAGES - 1;
    for (; on_their_way > 0; --on_their_way) {
        wait_copies<Product::STAGES - 2>();
        // All threads' copies to this stage are done, and all have read the one before it.
        __syncthreads();
        copy_step(free_stage);
        multiply_step<A, B>(shared.stages[stage].a, shared.stages[stage].b, warp_a, warp_b, totals);
        free_stage = stage;
        stage = stage + 1 == Product::STAGES ? 0 : stage + 1;
    }

    // Sums pass through shared memory, so that neighbouring threads write neighbouring numbers.
    __syncthreads();
    u32 group = threadIdx.x % 32 / 4;
    u32 in_group = threadIdx.x % 4;
#pragma unroll
    for (u32 q = 0; q < 4; ++q) {
        float* row = shared.out + (warp_a + A::line(q, group)) * Product::OUT_ROW + warp_b;
        const float(&sums)[4][4] = totals[q / 2];
        u32 left = q % 2 * 2;
        if (B::DEPTH_ALONG) {
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                store2(row + B::line(j, 2 * in_group), sums[j][left], sums[j][left + 1]);
            }
        } else {
#pragma unroll
            for (u32 n = 0; n < 2; ++n) {
                u32 part = left + n;
                store4(row + B::line(0, 2 * in_group + n),
                       make_float4(sums[0][part], sums[1][part], sums[2][part], sums[3][part]));
            }
        }
    }
    __syncthreads();
    const u32 COUNT = A::LINES * B::LINES / (4 * Product::THREADS);
    static_assert(COUNT % AT_ONCE == 0, "a thread's parts are as many");
#pragma unroll
    for (u32 first = 0; first < COUNT; first += AT_ONCE) {
        Out<AT_ONCE> out;
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; ++i) {
            u32 index = threadIdx.x + (first + i) * Product::THREADS;
            u32 row = index / (B::LINES / 4);
            u32 column = index % (B::LINES / 4) * 4;
            out.rows[i] = first_a + row;
            out.columns[i] = first_b + column;
            out.is_there[i] = out.rows[i] < a.lines && out.columns[i] < b.lines;
            load4(shared.out + row * Product::OUT_ROW + column, out.sums[i]);
        }
        take(out);
    }
}

// Writes the tile of a slice to its place in that slice of `out`, plus the bias of each column if
// there is one. A slice of `out` has room for `rows` rows.
template <class Product, class Over>
__device__ __forceinline__ void multiply_slice(typename Product::A& a, typename Product::B& b,
                                               const Over& depth, const Place& at,
                                               const float* bias, float* out, u32 rows,
                                               typename Product::Shared& shared) {
    float* slice = out + static_cast<u64>(at.slice) * rows * b.lines;
    u32 columns = b.lines;
    multiply<Product, 1>(a, b, depth, at, shared, [=](Out<1>& part) {
        if (!part.is_there[0]) {
            return;
        }
        u32 column = part.columns[0];
        float(&sums)[4] = part.sums[0];
        Quad quad(columns, column);
        if (bias != nullptr) {
            float added[4];
            quad.read(bias + column, added);
#pragma unroll
            for (u32 n = 0; n < 4; ++n) {
                sums[n] += added[n];
            }
        }
        quad.write(slice + static_cast<u64>(part.rows[0]) * columns + column, sums);
    });
}

// The part of a depth that belongs to one of `slices` slices, in whole steps.
__device__ __forceinline__ Depth slice_of(u32 depth, u32 slice, u32 slices) {
    u32 slice_depth = ((depth + slices - 1) / slices + DEPTH - 1) / DEPTH * DEPTH;
    u32 start = slice * slice_depth;
    return Depth{start, start + slice_depth < depth ? start + slice_depth : depth};
}

}  // namespace tile
