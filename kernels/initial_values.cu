// Initial values of a tensor, drawn by Philox for (seed, tensor, element) (SPEC section 6).
//
//   uniform: bound (2 u - 1)
//   normal:  deviation sqrt(-2 ln(1 - u)) cos(2 pi v), Box and Muller
//
// Outputs: values (n) `=`. Ownership: one thread, one element. Bytes: 4 n. Flops: about 60 n in
// f64.
// Bound: f64 arithmetic; once a run.
// The logarithm and the cosine are series in plain f64 additions, multiplications and divisions,
// operation for operation those of src/philox.rs, so a run starts from the same bits on every
// device. Their error, some 1e-16, is far below the rounding to f32.
#include "philox.cuh"

namespace initial_detail {

// 53 of 64 random bits as a number in [0, 1).
__device__ __forceinline__ double unit(u32 high, u32 low) {
    u64 bits = (static_cast<u64>(high) << 32 | low) >> 11;
    return static_cast<double>(bits) * (1.0 / 9007199254740992.0);
}

// ln x of a positive normal number: x = 2^e m, ln m = 2 artanh((m - 1) / (m + 1)).
__device__ __forceinline__ double logarithm(double x) {
    u64 bits = static_cast<u64>(__double_as_longlong(x));
    double exponent = static_cast<double>(static_cast<int>(bits >> 52) - 1023);
    double mantissa = __longlong_as_double(
        static_cast<long long>((bits & 0x000fffffffffffffull) | 0x3ff0000000000000ull));
    if (mantissa > 1.4142135623730951) {
        mantissa *= 0.5;
        exponent += 1.0;
    }
    double s = (mantissa - 1.0) / (mantissa + 1.0);
    double square = s * s;
    double sum = 1.0 / 21.0;
#pragma unroll
    for (int term = 19; term >= 1; term -= 2) {
        sum = sum * square + 1.0 / term;
    }
    return exponent * 0.6931471805599453 + 2.0 * s * sum;
}

// cos(2 pi u), u in [0, 1): a Taylor series within pi / 4, after the nearest quarter turn is taken
// off.
__device__ __forceinline__ double cosine_of_turn(double u) {
    double quarters = floor(4.0 * u + 0.5);
    double x = (4.0 * u - quarters) * 1.5707963267948966;
    double square = x * x;
    int quadrant = static_cast<int>(quarters) & 3;
    // 1 - x^2 / (1 * 2) (1 - x^2 / (3 * 4) (1 - ...)), or from 2 * 3 on for the sine.
    double first = quadrant % 2 == 0 ? 1.0 : 2.0;
    double sum = 1.0;
#pragma unroll
    for (int term = 16; term >= 0; term -= 2) {
        sum = 1.0 - square / ((first + term) * (first + term + 1.0)) * sum;
    }
    double magnitude = quadrant % 2 == 0 ? sum : x * sum;
    return quadrant == 1 || quadrant == 2 ? -magnitude : magnitude;
}

}  // namespace initial_detail

extern "C" __global__ void __launch_bounds__(256) initial_values(
    u64 seed, u32 tensor, u32 is_normal, double scale, u64 elements, float* __restrict__ values) {
    u64 index = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (index >= elements) {
        return;
    }
    Words words = Stream(seed, INITIAL, 0, tensor)
                      .words(static_cast<u32>(index >> 32), static_cast<u32>(index));
    double first = initial_detail::unit(words.word[0], words.word[1]);
    double drawn;
    if (is_normal) {
        double second = initial_detail::unit(words.word[2], words.word[3]);
        double radius = sqrt(-2.0 * initial_detail::logarithm(1.0 - first));
        drawn = radius * initial_detail::cosine_of_turn(second);
    } else {
        drawn = 2.0 * first - 1.0;
    }
    values[index] = static_cast<float>(scale * drawn);
}
