// What all kernels share: types, the few device functions that are not plain C++, small sums.
//
// nvcc compiles the sources for GPUs. For the tests a host compiler compiles the same sources
// against tests/emulator/emulator.h, which has a plain twin of each function below with inline PTX.
//
// All kernels are compiled without contraction of a * b + c (nvcc: -fmad=false, host:
// -ffp-contract=off): where one rounding is wanted, the source says fmaf. So a kernel's arithmetic
// is the same on every device, and the same as the CPU backend's wherever the order is.
#pragma once

#ifdef BM3_EMULATOR
#include "emulator.h"
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef BM3_EMULATOR
template <class T> struct identity {
    typedef T type;
};

// An object in the block's shared memory; the emulator poisons it before each block.
#define SHARED(object, name) __shared__ typename identity<object>::type name

// Shared memory of a size that the launch gives (src/cuda/kernels.rs), for kernels that need more
// than the 48 KB that a source may declare.
#define SHARED_AT_LAUNCH(object, name)        \
    extern __shared__ float4 shared_words[]; \
    identity<object>::type& name = *reinterpret_cast<identity<object>::type*>(shared_words)

// The exact value of a half-precision number.
__device__ __forceinline__ float half_to_float(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// The nearest number with TF32's 10 explicit bits of mantissa, as the bits of a float.
__device__ __forceinline__ u32 to_tf32(float value) {
    u32 bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
    return bits;
}

// The nearest half-precision numbers: the first in the lower two bytes.
__device__ __forceinline__ u32 to_halves(float first, float second) {
    u32 bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
    return bits;
}

// Approximations of 1 / x and 1 / sqrt(x) for a normal x: where nvcc's own division and root begin.
__device__ __forceinline__ float near_reciprocal(float x) {
    float value;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
    return value;
}

__device__ __forceinline__ float near_reciprocal_root(float x) {
    float value;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
    return value;
}

// d (16 x 8) += a (16 x 8) b (8 x 8) on the tensor cores. With g = lane / 4 and t = lane % 4, a
// lane holds a: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4); b: (t, g), (t + 4, g); d: (g, 2t),
// (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
__device__ __forceinline__ void multiply_tf32(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d (16 x 8) += a (16 x 16) b (16 x 8) on the tensor cores, with a and b in half precision, two
// numbers to a word. A lane holds, for k = 2t, 2t + 1, then 2t + 8, 2t + 9, a: rows g, g + 8; b:
// column g; and d as above.
__device__ __forceinline__ void multiply_halves(float (&d)[4], const u32 (&a)[4],
                                                const u32 (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Begins to copy BYTES bytes, 4 or 16, from device memory to shared memory, or zeros if `is_there`
// is false. Both addresses are multiples of BYTES. The copy is done after the wait_copies that
// covers its group, and visible to other threads after a barrier. A piece of 16 bytes prefetches
// the 128 around it into the L2 cache, since its neighbours are copied next.
template <u32 BYTES>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool is_there) {
    static_assert(BYTES == 4 || BYTES == 16, "see above");
    u32 address = static_cast<u32>(__cvta_generic_to_shared(to));
    if (BYTES == 16) {
        asm volatile("{ .reg .pred ignored; setp.eq.u32 ignored, %2, 0;"
                     "cp.async.cg.shared.global.L2::128B [%0], [%1], 16, ignored; }"
                     :: "r"(address), "l"(from), "r"(static_cast<u32>(is_there)) : "memory");
    } else {
        asm volatile("{ .reg .pred ignored; setp.eq.u32 ignored, %2, 0;"
                     "cp.async.ca.shared.global [%0], [%1], 4, ignored; }"
                     :: "r"(address), "l"(from), "r"(static_cast<u32>(is_there)) : "memory");
    }
}

// Makes a group of the copies begun since the last call, even of none.
__device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits for all groups but the last YOUNGEST.
template <u32 YOUNGEST>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" :: "n"(YOUNGEST) : "memory");
}

// Reads four numbers from the L2 cache, which all multiprocessors share: another one may have
// written them since the kernel began.
__device__ __forceinline__ float4 load4_shared(const float* address) {
    return __ldcg(reinterpret_cast<const float4*>(address));
}

// The four words of lane `lane ^ distance`; all lanes of a warp call it together.
__device__ __forceinline__ void exchange4(const u64 (&words)[4], u32 distance, u64 (&theirs)[4]) {
#pragma unroll
    for (u32 n = 0; n < 4; ++n) {
        theirs[n] = __shfl_xor_sync(0xffffffffu, words[n], distance);
    }
}
#endif

// Matrices of d columns are read and written 16 bytes at a time: d is a multiple of 4.
__device__ __forceinline__ float4 load4(const float* address) {
    return *reinterpret_cast<const float4*>(address);
}

__device__ __forceinline__ void store4(float* address, float4 value) {
    *reinterpret_cast<float4*>(address) = value;
}

// The address is a multiple of 8 bytes.
__device__ __forceinline__ void store2(float* address, float first, float second) {
    *reinterpret_cast<float2*>(address) = make_float2(first, second);
}

__device__ __forceinline__ void load4(const float* address, float (&numbers)[4]) {
    float4 quad = load4(address);
    numbers[0] = quad.x;
    numbers[1] = quad.y;
    numbers[2] = quad.z;
    numbers[3] = quad.w;
}

// Up to four numbers of a row of `columns`, from `column` on: read and written at once if all rows
// begin at multiples of 16 bytes.
struct Quad {
    bool at_once;
    u32 count;

    __device__ __forceinline__ Quad(u32 columns, u32 column)
        : at_once(columns % 4 == 0), count(columns - column < 4 ? columns - column : 4) {}

    // Numbers past the row's end read as `nothing`.
    __device__ __forceinline__ void read(const float* address, float (&numbers)[4],
                                         float nothing = 0.0f) const {
        if (at_once) {
            load4(address, numbers);
        } else {
#pragma unroll
            for (u32 n = 0; n < 4; ++n) {
                numbers[n] = n < count ? address[n] : nothing;
            }
        }
    }

    __device__ __forceinline__ void write(float* address, const float (&numbers)[4]) const {
        if (at_once) {
            store4(address, make_float4(numbers[0], numbers[1], numbers[2], numbers[3]));
        } else {
#pragma unroll
            for (u32 n = 0; n < 4; ++n) {
                if (n < count) {
                    address[n] = numbers[n];
                }
            }
        }
    }
};

static const u32 ALL_LANES = 0xffffffffu;

__device__ __forceinline__ float4 zero4() { return make_float4(0.0f, 0.0f, 0.0f, 0.0f); }

// a * b + c
__device__ __forceinline__ float4 fma4(float a, float4 b, float4 c) {
    return make_float4(fmaf(a, b.x, c.x), fmaf(a, b.y, c.y), fmaf(a, b.z, c.z), fmaf(a, b.w, c.w));
}

__device__ __forceinline__ float4 add4(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

__device__ __forceinline__ float4 scale4(float a, float4 b) {
    return make_float4(a * b.x, a * b.y, a * b.z, a * b.w);
}

// a . b + c
__device__ __forceinline__ float dot4(float4 a, float4 b, float c) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, c))));
}

// A group of `lanes` neighbouring lanes of a warp (a power of two up to 32) that share work.
//
// A whole warp exchanges together: its groups take the same branches, and a group with nothing left
// to do goes along. A mask of the group's lanes alone would let groups part, but the compiler
// cannot know that mask, and has the warp compare masks before each exchange, which takes several
// times as long as the exchange.
struct Group {
    u32 lanes;
    // This thread's place among them.
    u32 lane;

    __device__ __forceinline__ explicit Group(u32 lanes)
        : lanes(lanes), lane(threadIdx.x % lanes) {}

    // This thread's group, counted over the whole grid.
    __device__ __forceinline__ u32 index() const {
        return (blockIdx.x * blockDim.x + threadIdx.x) / lanes;
    }

    // The sum over the group's lanes, with the same bits in each: x + y is commutative, so both
    // partners of an exchange round alike.
    __device__ __forceinline__ float sum(float value) const {
#pragma unroll
        for (u32 distance = 16; distance > 0; distance /= 2) {
            if (distance < lanes) {
                value += __shfl_xor_sync(ALL_LANES, value, distance);
            }
        }
        return value;
    }

    // The value of one of the group's lanes or, past the last, of another lane of the warp.
    __device__ __forceinline__ u32 from(u32 value, u32 lane_of_group) const {
        return __shfl_sync(ALL_LANES, value, (threadIdx.x - lane + lane_of_group) % 32);
    }

    // The largest of the warp's groups' values; a group's lanes all have its value.
    __device__ __forceinline__ u32 most(u32 value) const {
#pragma unroll
        for (u32 distance = 1; distance < 32; distance *= 2) {
            if (distance >= lanes) {
                u32 other = __shfl_sync(ALL_LANES, value, threadIdx.x % 32 ^ distance);
                value = other > value ? other : value;
            }
        }
        return value;
    }
};

// The sum over a block of THREADS threads, in a fixed order, returned to thread 0 (others get 0).
// `scratch` may be used again after the next barrier.
template <u32 THREADS>
__device__ __forceinline__ double block_sum(double value, double (&scratch)[THREADS]) {
    scratch[threadIdx.x] = value;
    for (u32 half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            value += scratch[threadIdx.x + half];
            scratch[threadIdx.x] = value;
        }
    }
    return threadIdx.x == 0 ? value : 0.0;
}
