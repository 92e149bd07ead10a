// The first number of a run that is not finite (src/watch.rs), kept on the device and read when an
// epoch ends.
//
// watch: 3 + M words. [0]: step << 32 | loss term; [1]: the term's sum, a double's bits; [2]: step
// << 32 | element / 4 of the dense parameters; [3 + m]: step << 32 | item of modality m. All ones:
// nothing seen. The smallest key stays, in whatever order they come, so the outcome is determined.
#pragma once
#include "common.cuh"

static const u64 NOTHING_SEEN = ~0ull;

// NaN and infinities minus themselves are NaN.
template <class T> __device__ __forceinline__ bool is_finite(T value) {
    return value - value == static_cast<T>(0);
}

__device__ __forceinline__ void watch_sees(u64* place, u32 step, u32 number) {
    atomicMin(place, static_cast<u64>(step) << 32 | number);
}
