// CUDA's language for a host compiler, so that tests run the very sources of kernels/.
//
// A block's threads are fibers of one host thread. Each runs until a meeting point (a barrier, a
// shuffle, a vote, a matrix product) and waits there for the others; scheduler.cpp resumes them,
// and driver.cpp talks to programs as the CUDA driver does. Between meeting points a thread runs
// alone, so the emulator chooses the order of threads. Tests run kernels in several orders: a
// result that depends on the order betrays a missing barrier. Shared and device memory start as NaN
// patterns, which reveal reads of unwritten numbers. Device memory is plain memory between guard
// words; builds with AddressSanitizer and UBSan find out-of-bounds accesses and undefined
// behaviour.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __restrict__

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct uint3 {
    unsigned x, y, z;
};
typedef uint3 dim3;

inline float2 make_float2(float x, float y) { return float2{x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return float4{x, y, z, w}; }

namespace emulator {

// Why threads meet. Lanes of a warp must give the same reason.
enum class Meeting : uint32_t {
    None,
    Block,
    Warp,
    Shuffle,
    Ballot,
    Match,
    Product,
    HalfProduct,
};

// The most words that a thread brings to a meeting of its warp: a matrix product's fragments of a,
// b and d.
const unsigned WORDS = 10;

// A thread's place in its block, and a block's in its grid.
struct ThreadPlace {
    uint3 index;
    unsigned number;
};
struct BlockPlace {
    uint3 index;
    dim3 size, grid;
};

// The places of the thread that runs on this host thread. Kernels ask for them at every step: plain
// pointers need neither a call nor a check that they are initialised.
extern __thread const ThreadPlace* this_thread;
extern __thread const BlockPlace* this_block;

inline const uint3& thread_index() { return this_thread->index; }
inline const uint3& block_index() { return this_block->index; }
inline const dim3& block_size() { return this_block->size; }
inline const dim3& grid_size() { return this_block->grid; }
inline unsigned lane() { return this_thread->number % 32; }

// Waits for all live threads of the block.
void meet_block();
// Brings `count` words to a meeting of the lanes of `mask`; returns what each lane of the warp
// brought to its last meeting.
typedef uint32_t Brought[WORDS];
const Brought* meet_warp(Meeting meeting, unsigned mask, const uint32_t* words, unsigned count);

// Asynchronous copies to shared memory: a thread begins them, groups them and waits for them. `to`
// is poisoned at once and filled only by the wait, so a thread that reads a copy too early, or
// still needs what it overwrites, reads poison.
void begin_copy(void* to, const void* from, unsigned bytes, bool is_there);
void commit_copies();
void wait_copies(unsigned youngest);

// The block's shared object of a place in the source, created and poisoned on first use.
void* shared_object(const void* place, size_t bytes, size_t alignment);
// The same for memory of a size that the launch gives, which must be `bytes`.
void* shared_at_launch(const void* place, size_t bytes, size_t alignment);

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Kernels by name, registered when the library is loaded, with the sizes of their parameters.
typedef void (*Entry)(void** arguments);
struct Register {
    Register(const char* name, Entry entry, std::vector<size_t> sizes);
};

template <auto Kernel>
struct Invoke;

template <class... Parameters, void (*Kernel)(Parameters...)>
struct Invoke<Kernel> {
    static std::vector<size_t> sizes() { return {sizeof(Parameters)...}; }

    template <size_t... Index>
    static void call(void** arguments, std::integer_sequence<size_t, Index...>) {
        Kernel(*static_cast<std::remove_reference_t<Parameters>*>(arguments[Index])...);
    }

    static void entry(void** arguments) {
        call(arguments, std::index_sequence_for<Parameters...>());
    }
};

inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

}  // namespace emulator

#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_size())
#define gridDim (emulator::grid_size())

template <class T>
struct identity {
    typedef T type;
};

#define SHARED(object, name)                                                           \
    static const char name##_place = 0;                                                \
    typedef typename identity<object>::type name##_type;                               \
    name##_type& name = *static_cast<name##_type*>(                                    \
        emulator::shared_object(&name##_place, sizeof(name##_type), alignof(name##_type)))

#define SHARED_AT_LAUNCH(object, name)                                                    \
    static const char name##_place = 0;                                                   \
    typedef typename identity<object>::type name##_type;                                  \
    name##_type& name = *static_cast<name##_type*>(                                       \
        emulator::shared_at_launch(&name##_place, sizeof(name##_type), alignof(name##_type)))

inline void __syncthreads() { emulator::meet_block(); }

inline void __syncwarp(unsigned mask = 0xffffffffu) {
    emulator::meet_warp(emulator::Meeting::Warp, mask, nullptr, 0);
}

inline uint32_t shuffle_word(unsigned mask, uint32_t word, unsigned source) {
    const emulator::Brought* brought =
        emulator::meet_warp(emulator::Meeting::Shuffle, mask, &word, 1);
    if (source >= 32 || (mask >> source & 1) == 0) {
        emulator::fail("lane %u reads the word of lane %u, which is not in the mask %08x",
                       emulator::lane(), source, mask);
    }
    return brought[source][0];
}

inline float __shfl_xor_sync(unsigned mask, float value, unsigned distance) {
    unsigned source = emulator::lane() ^ distance;
    return emulator::float_of(shuffle_word(mask, emulator::bits_of(value), source));
}

inline unsigned __shfl_sync(unsigned mask, unsigned value, unsigned source) {
    return shuffle_word(mask, value, source);
}

// The lanes of a mask whose word is `wanted`.
inline unsigned lanes_with(const emulator::Brought* brought, unsigned mask, uint32_t wanted) {
    unsigned lanes = 0;
    for (unsigned lane = 0; lane < 32; ++lane) {
        lanes |= (mask >> lane & 1) != 0 && brought[lane][0] == wanted ? 1u << lane : 0;
    }
    return lanes;
}

inline unsigned __ballot_sync(unsigned mask, bool predicate) {
    uint32_t word = predicate;
    return lanes_with(emulator::meet_warp(emulator::Meeting::Ballot, mask, &word, 1), mask, 1);
}

inline unsigned __match_any_sync(unsigned mask, unsigned value) {
    return lanes_with(emulator::meet_warp(emulator::Meeting::Match, mask, &value, 1), mask, value);
}

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(unsigned value) { return __builtin_ffs(static_cast<int>(value)); }
inline unsigned __float_as_uint(float value) { return emulator::bits_of(value); }
inline float __uint_as_float(unsigned value) { return emulator::float_of(value); }

inline long long __double_as_longlong(double value) {
    long long bits;
    memcpy(&bits, &value, 8);
    return bits;
}

inline double __longlong_as_double(long long bits) {
    double value;
    memcpy(&value, &bits, 8);
    return value;
}

// Blocks run in parallel.
inline unsigned atomicAdd(unsigned* address, unsigned value) {
    return __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST);
}

inline unsigned atomicMax(unsigned* address, unsigned value) {
    unsigned old = __atomic_load_n(address, __ATOMIC_RELAXED);
    while (value > old
           && !__atomic_compare_exchange_n(address, &old, value, true, __ATOMIC_RELAXED,
                                           __ATOMIC_RELAXED)) {
    }
    return old;
}

inline unsigned long long atomicMin(unsigned long long* address, unsigned long long value) {
    unsigned long long old = __atomic_load_n(address, __ATOMIC_RELAXED);
    while (value < old
           && !__atomic_compare_exchange_n(address, &old, value, true, __ATOMIC_RELAXED,
                                           __ATOMIC_RELAXED)) {
    }
    return old;
}

inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

// Twins of the functions in common.cuh that only a GPU has or that hold inline PTX.

inline float4 load4_shared(const float* address) {
    return *reinterpret_cast<const float4*>(address);
}

inline void exchange4(const unsigned long long (&words)[4], unsigned distance,
                      unsigned long long (&theirs)[4]) {
    uint32_t brought[8];
    memcpy(brought, words, sizeof words);
    const emulator::Brought* all =
        emulator::meet_warp(emulator::Meeting::Shuffle, 0xffffffffu, brought, 8);
    memcpy(theirs, all[emulator::lane() ^ distance], sizeof words);
}

inline float half_to_float(unsigned short half) {
    uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    uint32_t exponent = half >> 10 & 0x1f;
    uint32_t mantissa = half & 0x3ff;
    if (exponent == 0x1f) {
        return emulator::float_of(sign | 0x7f800000 | mantissa << 13);
    }
    if (exponent == 0) {
        float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
        return sign != 0 ? -magnitude : magnitude;
    }
    return emulator::float_of(sign | (exponent + 112) << 23 | mantissa << 13);
}

// Rounds to 10 bits of mantissa, ties away from zero; NaN and infinities stay.
inline uint32_t to_tf32(float value) {
    uint32_t bits = emulator::bits_of(value);
    return (bits & 0x7f800000) == 0x7f800000 ? bits : (bits + 0x1000) & ~0x1fffu;
}

// Rounds to the nearest half, ties to even; numbers that are too large become infinite.
inline uint32_t to_half(float value) {
    uint32_t sign = emulator::bits_of(value) >> 16 & 0x8000;
    float magnitude = std::fabs(value);
    if (std::isnan(value)) {
        return 0x7fff;
    }
    if (magnitude >= 65520.0f) {
        return sign | 0x7c00;
    }
    if (magnitude < 0x1p-14f) {
        return sign | static_cast<uint32_t>(std::nearbyint(magnitude * 0x1p24f));
    }
    // A carry goes into the exponent, as it should.
    uint32_t bits = emulator::bits_of(magnitude) - (112u << 23);
    return sign | (bits + 0xfff + (bits >> 13 & 1)) >> 13;
}

inline uint32_t to_halves(float first, float second) {
    return to_half(second) << 16 | to_half(first);
}

inline float near_reciprocal(float x) { return 1.0f / x; }

inline float near_reciprocal_root(float x) {
    return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x)));
}

inline void multiply(emulator::Meeting meeting, float (&d)[4], const uint32_t (&a)[4],
                     const uint32_t (&b)[2]) {
    uint32_t words[emulator::WORDS] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    memcpy(words + 6, d, sizeof d);
    // The warp's product is computed once, when all its lanes have come: see multiply in
    // scheduler.cpp.
    const emulator::Brought* brought =
        emulator::meet_warp(meeting, 0xffffffffu, words, emulator::WORDS);
    memcpy(d, brought[emulator::lane()] + 6, sizeof d);
}

inline void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply(emulator::Meeting::Product, d, a, b);
}

inline void multiply_halves(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply(emulator::Meeting::HalfProduct, d, a, b);
}

template <unsigned BYTES>
inline void copy_async(void* to, const void* from, bool is_there) {
    emulator::begin_copy(to, from, BYTES, is_there);
}

inline void commit_copies() { emulator::commit_copies(); }

template <unsigned YOUNGEST>
inline void wait_copies() {
    emulator::wait_copies(YOUNGEST);
}
