// The operands of a product on the tensor cores: their tiles are copied from device memory to
// shared memory, where each lane reads the numbers that it multiplies.
//
// A tile is LINES lines of DEPTH numbers or, if rows run along the lines, DEPTH rows of LINES
// numbers. Its layout in shared memory is that of device memory: halves as halves, rows without
// gaps.
//
// A lane may multiply any numbers, as long as both operands agree on k. The choice makes reads
// wide: a lane takes four of a warp's 32 lines, and of DEPTH the four k from 4 t on, with t = lane
// % 4. If the depth runs along a row, these are 16 bytes of each of four rows, and eight lanes,
// which are served together, read 128 bytes side by side. If not, they are again 16 bytes of each
// of four rows, now with the four lines side by side. There the pieces of a row are permuted by an
// exclusive or with 2 t, so that eight lanes, in four rows, read from all 32 banks. For halves: 8
// bytes, 16 lanes.
#pragma once
#include "batch.cuh"

namespace tile {

// The depth of a step: two products of the tensor cores. Each step costs a barrier and the addition
// of its sums.
static const u32 DEPTH = 16;

struct F32 {
    typedef float Stored;
    static const bool EXACT = false;
    static __device__ __forceinline__ void read4(const void* address, float (&numbers)[4]) {
        load4(static_cast<const float*>(address), numbers);
    }
};

// Numbers of two bytes; Half::to_float makes a float of its argument's lower two.
template <class Half>
struct Halves {
    typedef u16 Stored;
    static const bool EXACT = true;
    static __device__ __forceinline__ void read4(const void* address, float (&numbers)[4]) {
        u64 bits = *static_cast<const u64*>(address);
#pragma unroll
        for (u32 n = 0; n < 4; ++n) {
            numbers[n] = Half::to_float(static_cast<u32>(bits >> 16 * n));
        }
    }
};

struct F16 : Halves<F16> {
    static __device__ __forceinline__ float to_float(u32 bits) {
        return half_to_float(static_cast<u16>(bits));
    }
};

struct Bf16 : Halves<Bf16> {
    static __device__ __forceinline__ float to_float(u32 bits) {
        return __uint_as_float(bits << 16);
    }
};

// An operand: `lines` x `depth` numbers in rows of `columns`. ALONG: the depth runs along a row,
// so (line, k) is values[id(line)][k]; otherwise it is values[id(k)][line]. `ids` gathers rows.
template <class FORMAT, bool ALONG, u32 TILE_LINES, u32 THREADS>
struct Operand {
    typedef FORMAT Format;
    typedef typename Format::Stored Stored;
    static const bool EXACT = Format::EXACT;
    static const bool DEPTH_ALONG = ALONG;
    static const u32 LINES = TILE_LINES;
    static const u32 SIZE = sizeof(Stored);
    static const u32 BYTES = LINES * DEPTH * SIZE;
    // A tile is copied in pieces of 16 bytes.
    static const u32 PIECE = 16 / SIZE;
    static const u32 ROW = ALONG ? DEPTH : LINES;
    static const u32 PIECES = BYTES / (16 * THREADS);

    const Stored* values;
    const u32* ids;
    u32 lines;
    u32 columns;
    // The rows that this thread copies next and where their columns end: 0 if there is no row. Of
    // rows along the depth only `numbers` is used: a number requested in one step has arrived by
    // the next, whereas computing an address would wait for it at once.
    const Stored* rows[PIECES];
    u32 numbers[PIECES];
    u32 ends[PIECES];

    __device__ __forceinline__ Operand(const Stored* values, const u32* ids, u32 lines, u32 columns)
        : values(values), ids(ids), lines(lines), columns(columns) {}

    // The place of a number in a tile, in bytes.
    static __device__ __forceinline__ u32 place(u32 row, u32 column) {
        u32 bytes = column * SIZE;
        return row * ROW * SIZE + (ALONG ? bytes : bytes ^ row / 4 % 4 * 32);
    }

    __device__ __forceinline__ void find_rows(u32 first, u32 end, u32 end_column) {
#pragma unroll
        for (u32 i = 0; i < PIECES; ++i) {
            u32 row = first + (threadIdx.x + i * THREADS) / (ROW / PIECE);
            bool is_there = row < end;
            numbers[i] = is_there && ids != nullptr ? ids[row] : row;
            ends[i] = is_there ? end_column : 0;
        }
    }

    // Where a row begins; any valid address if there is no row.
    __device__ __forceinline__ const Stored* begin(u32 i) const {
        return values + (ends[i] == 0 ? 0 : static_cast<u64>(numbers[i]) * columns);
    }

    // Called before the first step: rows along the lines are the same in all steps.
    __device__ __forceinline__ void find_lines(u32 first_line, u32 end_k) {
        if (ALONG) {
            find_rows(first_line, lines, end_k);
#pragma unroll
            for (u32 i = 0; i < PIECES; ++i) {
                rows[i] = begin(i);
            }
        }
    }

    // Called ahead of each step, so that the numbers of its rows have arrived when its copies
    // begin.
    __device__ __forceinline__ void find_depth(u32 first_k, u32 end_k) {
        if (!ALONG) {
            find_rows(first_k, end_k, lines);
        }
    }

    // Begins to copy the tile of the rows that were found, with zeros past their ends.
    __device__ __forceinline__ void copy(u8* tile, u32 first_line, u32 first_k) const {
#pragma unroll
        for (u32 i = 0; i < PIECES; ++i) {
            u32 index = threadIdx.x + i * THREADS;
            u32 in_row = index % (ROW / PIECE) * PIECE;
            copy_piece(tile + place(index / (ROW / PIECE), in_row), ALONG ? rows[i] : begin(i),
                       (ALONG ? first_k : first_line) + in_row, ends[i]);
        }
    }

    // Copies in the widest pieces to which all rows, and parts of rows, are aligned.
    __device__ __forceinline__ void copy_piece(u8* to, const Stored* row, u32 column,
                                               u32 end) const {
        if (columns % PIECE == 0) {
            copy_async<16>(to, row + column, column < end);
        } else if (columns % (4 / SIZE) == 0) {
#pragma unroll
            for (u32 n = 0; n < PIECE; n += 4 / SIZE) {
                copy_async<4>(to + n * SIZE, row + column + n, column + n < end);
            }
        } else {
#pragma unroll
            for (u32 n = 0; n < PIECE; ++n) {
                reinterpret_cast<Stored*>(to)[n] = column + n < end ? row[column + n] : Stored(0);
            }
        }
    }

    // The line, among a warp's 32, of the q-th of the four numbers that `group` = lane / 4
    // multiplies.
    static __device__ __forceinline__ u32 line(u32 q, u32 group) {
        return ALONG ? 8 * q + group : 4 * group + q;
    }

    // numbers[q][e] is the number of the warp's line(q, group) at k = 4 in_group + e.
    static __device__ __forceinline__ void read(const u8* tile, u32 first_line, u32 group,
                                                u32 in_group, float (&numbers)[4][4]) {
#pragma unroll
        for (u32 n = 0; n < 4; ++n) {
            if (ALONG) {
                Format::read4(tile + place(first_line + line(n, group), 4 * in_group), numbers[n]);
            } else {
                float quad[4];
                Format::read4(tile + place(4 * in_group + n, first_line + line(0, group)), quad);
#pragma unroll
                for (u32 q = 0; q < 4; ++q) {
                    numbers[q][n] = quad[q];
                }
            }
        }
    }
};

}  // namespace tile
