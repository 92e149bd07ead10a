// Dropout, cosines, every loss term and all gradients in one pass (SPEC sections 2 (4), 3, 4).
//
// For each online row a (a predictor output) with targets t_1 .. t_n (rows of x after dropout):
//
//   cosines: sum_j a.t_j / (max(|a|, e) max(|t_j|, e))
//   gradient = -w / |B| (S - (a.S / |a|^2) a) / |a|,  S = sum_j t_j / max(|t_j|, e)
//
// An online row's cosines need only S. A user's targets are its items' rows and vice versa, in the
// order of the pairs; a modality row's targets are its item's row of H_i (align) and itself (mask),
// counted once for each pair of the item.
//
// Shapes: x and predicted R x d, in blocks: users, items, the items in each modality (batch.cuh).
// Outputs: predicted `=` its gradient, zero in rows that the batch does not fill; cosines (R x 2)
// `=` in rows that it fills; loss_terms: losses `+=`.
// Ownership: a group of lanes owns an online row. It holds that row, S, up to three current targets
// and the next ones in registers. Every reader of a target draws its mask anew (Philox of seed,
// step, tensor, row, column / 4), so memory holds no mask, no dropped row and no cosine matrix.
// Determinism: targets are added in the order of the pairs; loss_terms sums in f64 by a fixed tree.
// Bytes: R d (4 + 4 + 4), and 4 d per pair and side, from L2. Flops: about 6 d per pair and side,
// 12 d per row, a quarter of a Philox (10 rounds) per target element. Bound: integer arithmetic of
// the draws with dropout, L2 without.
#include "batch.cuh"
#include "philox.cuh"
#include "watch.cuh"

namespace loss_detail {

static const float COSINE_EPSILON = 1e-8f;
static const u32 LOSS_THREADS = 256;

// Which elements of a target are kept.
struct Mask {
    u32 mode;  // 0: all; 1: as drawn; 2: as given.
    u64 seed;
    u32 threshold;    // A word below it drops its element.
    float scale;      // 1 / (1 - p)
    const u8* given;  // A byte per element of H_u, H_i and each Z_m: 0 drops it.
    u32 users;
    u32 items;

    // Columns column .. column + 3 of a row of tensor 0 (H_u), 1 (H_i) or 2 + m (Z_m) under a drawn
    // mask.
    __device__ __forceinline__ float4 drawn(float4 value, u32 step, u32 tensor, u32 row,
                                            u32 column) const {
        Words words = Stream(seed, DROPOUT, step, tensor).words(row, column / 4);
        return make_float4(words.word[0] < threshold ? 0.0f : scale * value.x,
                           words.word[1] < threshold ? 0.0f : scale * value.y,
                           words.word[2] < threshold ? 0.0f : scale * value.z,
                           words.word[3] < threshold ? 0.0f : scale * value.w);
    }

    // The same under the given mask.
    __device__ __forceinline__ float4 as_given(float4 value, u32 tensor, u32 row, u32 column,
                                               u32 width) const {
        u64 first = tensor == 0 ? row : users + static_cast<u64>(items) * (tensor - 1) + row;
        const u8* kept = given + first * width + column;
        return make_float4(kept[0] ? scale * value.x : 0.0f, kept[1] ? scale * value.y : 0.0f,
                           kept[2] ? scale * value.z : 0.0f, kept[3] ? scale * value.w : 0.0f);
    }
};

// A row of d columns over a group's lanes: lane q has QUADS quads, at columns 4 (q + i lanes).
template <u32 QUADS>
struct Row {
    float4 quads[QUADS];

    __device__ __forceinline__ void load(const float* start, const Group& group, u32 width) {
#pragma unroll
        for (u32 i = 0; i < QUADS; ++i) {
            u32 column = 4 * (group.lane + i * group.lanes);
            quads[i] = column < width ? load4(start + column) : zero4();
        }
    }

    __device__ __forceinline__ void store(float* start, const Group& group, u32 width) const {
#pragma unroll
        for (u32 i = 0; i < QUADS; ++i) {
            u32 column = 4 * (group.lane + i * group.lanes);
            if (column < width) {
                store4(start + column, quads[i]);
            }
        }
    }

    __device__ __forceinline__ float dot(const Row& other, const Group& group) const {
        float sum = 0.0f;
#pragma unroll
        for (u32 i = 0; i < QUADS; ++i) {
            sum = dot4(quads[i], other.quads[i], sum);
        }
        return group.sum(sum);
    }

    __device__ __forceinline__ void add(float factor, const Row& other) {
#pragma unroll
        for (u32 i = 0; i < QUADS; ++i) {
            quads[i] = fma4(factor, other.quads[i], quads[i]);
        }
    }
};

// Turns targets into their unit rows after dropout, or into zeros where everything was dropped.
// Several at a time, since each is a chain of dependent instructions.
template <u32 QUADS, u32 COUNT>
__device__ __forceinline__ void make_units(Row<QUADS> (&targets)[COUNT], const Mask& mask, u32 step,
                                           const u32 (&tensors)[COUNT], const u32 (&rows)[COUNT],
                                           const Group& group, u32 width) {
    // Zeros past the last column are still zeros after dropout.
    auto each_quad = [&](auto apply) {
#pragma unroll
        for (u32 n = 0; n < COUNT; ++n) {
#pragma unroll
            for (u32 i = 0; i < QUADS; ++i) {
                u32 column = 4 * (group.lane + i * group.lanes);
                float4& quad = targets[n].quads[i];
                quad = apply(quad, tensors[n], rows[n], column < width ? column : 0);
            }
        }
    };
    if (mask.mode == 1) {
        each_quad([&](float4 quad, u32 tensor, u32 row, u32 column) {
            return mask.drawn(quad, step, tensor, row, column);
        });
    } else if (mask.mode == 2) {
        each_quad([&](float4 quad, u32 tensor, u32 row, u32 column) {
            return mask.as_given(quad, tensor, row, column, width);
        });
    }
    float norms[COUNT];
#pragma unroll
    for (u32 n = 0; n < COUNT; ++n) {
        norms[n] = sqrtf(targets[n].dot(targets[n], group));
    }
#pragma unroll
    for (u32 n = 0; n < COUNT; ++n) {
        float scale = 1.0f / (norms[n] < COSINE_EPSILON ? COSINE_EPSILON : norms[n]);
#pragma unroll
        for (u32 i = 0; i < QUADS; ++i) {
            targets[n].quads[i] = scale4(scale, targets[n].quads[i]);
        }
    }
}

// The targets of a user or an item: the rows of its partners, in the order of the pairs.
template <u32 QUADS>
struct Targets {
    // Targets turned into unit rows at the same time: more would spill many registers.
    static const u32 AT_ONCE = QUADS == 1 ? 3 : 4 / QUADS;

    const u32* paired;
    const u32* ids;
    const float* rows;
    u32 count;
    u32 tensor;

    // The targets' positions from `first` on; past the last target 0, which is safe to read.
    template <u32 COUNT>
    __device__ __forceinline__ void find(u32 first, u32 (&position)[COUNT]) const {
#pragma unroll
        for (u32 n = 0; n < COUNT; ++n) {
            position[n] = first + n < count ? paired[first + n] : 0;
        }
    }

    // Loads the targets' rows, and their ids for the mask.
    template <u32 COUNT>
    __device__ __forceinline__ void bring(const u32 (&position)[COUNT],
                                          Row<QUADS> (&targets)[COUNT], u32 (&id)[COUNT],
                                          const Group& group, u32 width) const {
#pragma unroll
        for (u32 n = 0; n < COUNT; ++n) {
            id[n] = ids[position[n]];
            targets[n].load(rows + static_cast<u64>(position[n]) * width, group, width);
        }
    }

    template <u32 COUNT>
    __device__ __forceinline__ void add(u32 first, Row<QUADS> (&targets)[COUNT],
                                        const u32 (&id)[COUNT], const Mask& mask, u32 step,
                                        const Group& group, u32 width, Row<QUADS>& sum) const {
        u32 tensors[COUNT];
#pragma unroll
        for (u32 n = 0; n < COUNT; ++n) {
            tensors[n] = tensor;
        }
        make_units(targets, mask, step, tensors, id, group, width);
#pragma unroll
        for (u32 n = 0; n < COUNT; ++n) {
            if (first + n < count) {
                sum.add(1.0f, targets[n]);
            }
        }
    }

    // The sum of the unit rows, in their order. While some targets are masked, the next ones are in
    // flight, and so are the positions of the ones after those.
    __device__ __forceinline__ Row<QUADS> sum(const Mask& mask, u32 step, const Group& group,
                                              u32 width) const {
        Row<QUADS> sum = {};
        u32 most = group.most(count);
        u32 k = 0;
        if (most >= AT_ONCE) {
            Row<QUADS> next[AT_ONCE];
            u32 next_id[AT_ONCE], after[AT_ONCE];
            find(0, after);
            bring(after, next, next_id, group, width);
            find(AT_ONCE, after);
#pragma unroll 1
            for (; k + AT_ONCE <= most; k += AT_ONCE) {
                Row<QUADS> targets[AT_ONCE];
                u32 id[AT_ONCE];
#pragma unroll
                for (u32 n = 0; n < AT_ONCE; ++n) {
                    targets[n] = next[n];
                    id[n] = next_id[n];
                }
                bring(after, next, next_id, group, width);
                find(k + 2 * AT_ONCE, after);
                add(k, targets, id, mask, step, group, width, sum);
            }
        }
#pragma unroll 1
        for (; k < most; ++k) {
            Row<QUADS> target[1];
            u32 position[1], id[1];
            find(k, position);
            bring(position, target, id, group, width);
            add(k, target, id, mask, step, group, width, sum);
        }
        return sum;
    }
};

template <u32 QUADS>
__device__ __forceinline__ void bootstrap_loss(const Batch& batch, Rooms rooms, u32 rows,
                                               u32 width, const Group& group, float cl_weight,
                                               const Mask& mask, const float* x, float* predicted,
                                               double* cosines) {
    // Rooms are multiples of a warp's groups, so a warp's groups all return or all take the same
    // branch below. An unfilled row is treated as the block's first row, without targets.
    u32 index = group.index();
    if (index >= rows) {
        return;
    }
    float* place = predicted + static_cast<u64>(index) * width;
    bool is_filled = rooms.filled(batch, index);
    if (__ballot_sync(ALL_LANES, is_filled) == 0) {
        Row<QUADS> zeros = {};
        zeros.store(place, group, width);
        return;
    }
    u32 block = rooms.block(index), position = is_filled ? rooms.position(index) : 0;
    Row<QUADS> online = {};
    if (is_filled) {
        online.load(place, group, width);
    }
    float norm = sqrtf(online.dot(online, group));
    float clamped = norm < COSINE_EPSILON ? COSINE_EPSILON : norm;

    Row<QUADS> sum;
    float factor = -1.0f / static_cast<float>(batch.pairs);
    float along;
    auto write = [&](double first, double second) {
        if (is_filled && group.lane == 0) {
            cosines[2 * static_cast<u64>(index)] = first;
            cosines[2 * static_cast<u64>(index) + 1] = second;
        }
    };
    if (block < 2) {
        bool is_user = block == 0;
        const u32* offsets = is_user ? batch.user_offsets : batch.item_offsets;
        u32 start = offsets[position];
        Targets<QUADS> targets{(is_user ? batch.items_of_users : batch.users_of_items) + start,
                               is_user ? batch.items : batch.users,
                               is_user ? x + static_cast<u64>(rooms.users) * width : x,
                               is_filled ? offsets[position + 1] - start : 0,
                               is_user ? 1u : 0u};
        sum = targets.sum(mask, batch.step, group, width);
        along = online.dot(sum, group);
        write(static_cast<double>(along / clamped), 0.0);
    } else {
        u32 row = batch.items[position];
        float count =
            static_cast<float>(batch.item_offsets[position + 1] - batch.item_offsets[position]);
        Row<QUADS> targets[2];
        targets[0].load(x + static_cast<u64>(rooms.users + position) * width, group, width);
        targets[1].load(x + static_cast<u64>(index) * width, group, width);
        const u32 tensors[2] = {1, block}, ids[2] = {row, row};
        make_units(targets, mask, batch.step, tensors, ids, group, width);
        const Row<QUADS>&item = targets[0], &own = targets[1];
        double item_cosine = static_cast<double>(online.dot(item, group) / clamped);
        double own_cosine = static_cast<double>(online.dot(own, group) / clamped);
        write(static_cast<double>(count) * item_cosine, static_cast<double>(count) * own_cosine);
        sum = {};
        sum.add(count, item);
        sum.add(count, own);
        along = online.dot(sum, group);
        factor *= cl_weight;
    }

    if (norm < COSINE_EPSILON) {
        // Here the cosine divides by epsilon: a linear function.
        factor /= COSINE_EPSILON;
    } else {
        float inverse = 1.0f / norm;
        sum.add(-(along * inverse * inverse), online);
        factor *= inverse;
    }
    Row<QUADS> gradient = {};
    if (is_filled) {
        gradient.add(factor, sum);
    }
    gradient.store(place, group, width);
}

}  // namespace loss_detail

#define BOOTSTRAP_LOSS(QUADS, BLOCKS)                                                             \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS) bootstrap_loss_##QUADS(             \
        const Batch* __restrict__ batch, u32 user_room, u32 item_room, u32 rows, u32 width,       \
        u32 lanes, float cl_weight, u32 mode, u64 seed, u32 threshold, float scale,               \
        const u8* __restrict__ given, u32 users, u32 items, const float* __restrict__ x,          \
        float* __restrict__ predicted, double* __restrict__ cosines) {                            \
        loss_detail::Mask mask{mode, seed, threshold, scale, given, users, items};                \
        loss_detail::bootstrap_loss<QUADS>(*batch, Rooms{user_room, item_room}, rows, width,      \
                                           Group(lanes), cl_weight, mask, x, predicted, cosines); \
    }

// Up to 128, 256 and 512 columns. With 64 columns, a batch of 2048 pairs and two modalities has up
// to 512 blocks and fills some three quarters of them: all run at once on 132 multiprocessors with
// three blocks each.
BOOTSTRAP_LOSS(1, 3)
BOOTSTRAP_LOSS(2, 2)
BOOTSTRAP_LOSS(4, 1)

// losses[term] += 1 - (sum of the term's cosines) / |B|; one block per term: ui, iu, then align and
// mask of each modality.
extern "C" __global__ void __launch_bounds__(256) loss_terms(
    const Batch* __restrict__ batch, u32 user_room, u32 item_room,
    const double* __restrict__ cosines, double* __restrict__ losses) {
    SHARED(double[loss_detail::LOSS_THREADS], scratch);
    u32 term = blockIdx.x;
    u32 block = term < 2 ? term : 2 + (term - 2) / 2;
    u32 start = block == 0 ? 0 : user_room + (block - 1) * item_room;
    u32 count = block == 0 ? batch->user_count : batch->item_count;
    u32 side = term < 2 ? 0 : term % 2;
    double sum = 0.0;
    for (u32 row = threadIdx.x; row < count; row += loss_detail::LOSS_THREADS) {
        sum += cosines[2 * static_cast<u64>(start + row) + side];
    }
    sum = block_sum<loss_detail::LOSS_THREADS>(sum, scratch);
    if (threadIdx.x == 0) {
        losses[term] += 1.0 - sum / batch->pairs;
    }
}

// Notes the first loss term that is not finite (watch.cuh), once a step's terms were added. A sum
// that is not finite stays so: the first step that sees one is the step that caused it. One thread;
// 8 bytes per term.
extern "C" __global__ void __launch_bounds__(32) watch_losses(
    const Batch* __restrict__ batch, const double* __restrict__ losses, u32 terms, u64* watch) {
    if (threadIdx.x > 0) {
        return;
    }
    for (u32 term = 0; term < terms && watch[0] == NOTHING_SEEN; ++term) {
        if (!is_finite(losses[term])) {
            watch[0] = static_cast<u64>(batch->step) << 32 | term;
            watch[1] = static_cast<u64>(__double_as_longlong(losses[term]));
        }
    }
}
