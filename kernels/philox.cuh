// Philox4x32-10, draw for draw as in src/philox.rs (SPEC sections 6 and 7).
#pragma once
#include "common.cuh"

struct Words {
    u32 word[4];
};

// What a draw is for.
enum Purpose : u32 { INITIAL = 1, ORDER = 2, DROPOUT = 3 };

// The stream of (seed, variable, tensor) for a purpose; see Stream in src/philox.rs.
struct Stream {
    u32 key[2];
    u32 tensor_and_purpose;
    u32 seed_high;

    __device__ __forceinline__ Stream(u64 seed, Purpose purpose, u32 variable, u32 tensor)
        : key{static_cast<u32>(seed), variable},
          tensor_and_purpose((tensor & 0x00ffffffu) | static_cast<u32>(purpose) << 24),
          seed_high(static_cast<u32>(seed >> 32)) {}

    __device__ __forceinline__ Words words(u32 row, u32 block) const {
        u32 c0 = block, c1 = row, c2 = tensor_and_purpose, c3 = seed_high;
        u32 k0 = key[0], k1 = key[1];
#pragma unroll
        for (int round = 0; round < 10; ++round) {
            u64 first = static_cast<u64>(0xd2511f53u) * c0;
            u64 second = static_cast<u64>(0xcd9e8d57u) * c2;
            c0 = static_cast<u32>(second >> 32) ^ c1 ^ k0;
            c1 = static_cast<u32>(second);
            c2 = static_cast<u32>(first >> 32) ^ c3 ^ k1;
            c3 = static_cast<u32>(first);
            k0 += 0x9e3779b9u;
            k1 += 0xbb67ae85u;
        }
        return Words{{c0, c1, c2, c3}};
    }
};
