//! Dropout, cosines, loss terms and their gradients in one operation (SPEC §2 (4), §3, §4).
//!
//! With T the unit target rows and â a unit predictor row, the cosines of one online row with all
//! its paired targets need only their sum S: Σ cos = â·S, and the row's gradient is
//! −w/|B| · (S − (â·S) â) / ‖a‖. So each target row is dropped and normalised once, each online row
//! is read once, and no cosine is stored.
//!
//! Shapes: x, predicted R × d. Ownership: one task writes each output row; a row's targets are
//! added in the order of the pairs, and rows are summed in order, in f64.
//! Bytes: x once, predicted read and written once, |B| target rows twice from the caches.
//! Flops: about 2 d per pair and side, 12 d per row.

use rayon::prelude::*;

use super::CpuBatch;
use super::simd::{dot, multiply_add, vectorized};
use crate::backend::{COSINE_EPSILON, Dropout, LossShape};
use crate::batch::Batch;
use crate::philox::{Purpose, Stream, dropout_threshold};
use crate::real::Real;

/// Rows that one task handles.
const ROWS_PER_TASK: usize = 64;

/// Index of H_i among the bootstrap tensors, in the masks' order: H_u, H_i, then each modality.
const ITEM_TENSOR: usize = 1;

/// Where a row of the batch comes from: its tensor, its position in the batch and its row in the
/// tensor.
#[derive(Clone, Copy)]
struct Origin {
    tensor: usize,
    position: usize,
    row: u32,
}

/// The origin of row `row` of the batch's R rows.
fn origin(batch: &Batch, row: usize) -> Origin {
    let (users, items) = (batch.users.len(), batch.items.len());
    if row < users {
        return Origin { tensor: 0, position: row, row: batch.users[row] };
    }
    let (block, position) = ((row - users) / items, (row - users) % items);
    Origin { tensor: ITEM_TENSOR + block, position, row: batch.items[position] }
}

/// Adds the terms ui, iu, align and mask to `losses` and replaces `predicted` by its gradient.
pub fn bootstrap_loss<T: Real>(
    shape: LossShape,
    batch: &CpuBatch,
    cl_weight: f64,
    dropout: &Dropout,
    x: &[T],
    predicted: &mut [T],
    losses: &mut [f64],
) {
    let width = shape.embedding_size;
    let targets = unit_targets(batch, dropout, x, width);
    let batch = &batch.batch;
    let pairs = batch.pairs() as f64;
    let (users, items) = (batch.users.len(), batch.items.len());
    let target = |row: usize| &targets[row * width..(row + 1) * width];
    let sums: Vec<[f64; 2]> = predicted
        .par_chunks_mut(ROWS_PER_TASK * width)
        .enumerate()
        .flat_map_iter(|(task, predicted)| {
            let mut sum = vec![T::ZERO; width];
            let mut rows = Vec::with_capacity(ROWS_PER_TASK);
            for (row, predicted) in predicted.chunks_exact_mut(width).enumerate() {
                let origin = origin(batch, task * ROWS_PER_TASK + row);
                let position = origin.position;
                let bounds =
                    |offsets: &[u32]| offsets[position] as usize..offsets[position + 1] as usize;
                let (cosines, weight) = match origin.tensor {
                    0 => {
                        let paired = &batch.items_of_users[bounds(&batch.user_offsets)];
                        sum_rows(&targets[users * width..], paired, width, &mut sum);
                        ([cosine_sum(predicted, &sum), 0.0], 1.0)
                    }
                    ITEM_TENSOR => {
                        let paired = &batch.users_of_items[bounds(&batch.item_offsets)];
                        sum_rows(&targets, paired, width, &mut sum);
                        ([cosine_sum(predicted, &sum), 0.0], 1.0)
                    }
                    tensor => {
                        // All of the item's pairs have the same targets: multiply by their number.
                        let count = bounds(&batch.item_offsets).len();
                        let item = target(users + position);
                        let own = target(users + (tensor - ITEM_TENSOR) * items + position);
                        let counted = T::from_f64(count as f64);
                        for ((sum, &item), &own) in sum.iter_mut().zip(item).zip(own) {
                            *sum = counted * (item + own);
                        }
                        let cosines = [cosine_sum(predicted, item), cosine_sum(predicted, own)];
                        (cosines.map(|cosine| cosine * count as f64), cl_weight)
                    }
                };
                gradient_row(T::from_f64(-weight / pairs), &sum, predicted);
                rows.push(cosines);
            }
            rows
        })
        .collect();
    let total = |rows: std::ops::Range<usize>, term: usize| {
        1.0 - sums[rows].iter().map(|sums| sums[term]).sum::<f64>() / pairs
    };
    losses[0] += total(0..users, 0);
    losses[1] += total(users..users + items, 0);
    for modality in 0..shape.modalities {
        let start = users + (1 + modality) * items;
        losses[2 + 2 * modality] += total(start..start + items, 0);
        losses[3 + 2 * modality] += total(start..start + items, 1);
    }
}

/// The unit rows of drop(x); zero where everything was dropped.
fn unit_targets<T: Real>(batch: &CpuBatch, dropout: &Dropout, x: &[T], width: usize) -> Vec<T> {
    let CpuBatch { batch, step } = batch;
    let mut targets = x.to_vec();
    targets.par_chunks_mut(ROWS_PER_TASK * width).enumerate().for_each(|(task, targets)| {
        for (row, target) in targets.chunks_exact_mut(width).enumerate() {
            let origin = origin(batch, task * ROWS_PER_TASK + row);
            match dropout {
                Dropout::None => {}
                Dropout::Random { probability, seed } => {
                    let stream = Stream::new(*seed, Purpose::Dropout, *step, origin.tensor as u32);
                    let scale = T::from_f64(1.0 / (1.0 - probability));
                    drop_row(&stream, origin.row, dropout_threshold(*probability), scale, target);
                }
                Dropout::Given { probability, kept } => {
                    let scale = T::from_f64(1.0 / (1.0 - probability));
                    let kept = &kept[origin.tensor][origin.row as usize * width..];
                    for (value, &kept) in target.iter_mut().zip(kept) {
                        *value = if kept { *value * scale } else { T::ZERO };
                    }
                }
            }
            normalize(target);
        }
    });
    targets
}

vectorized! {
    /// Drops elements of a row, taking one word per column from block (row, column / 4) of the
    /// stream.
    fn drop_row<T: Real>(stream: &Stream, row: u32, threshold: u32, scale: T, target: &mut [T]) {
        for (block, values) in target.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let words = stream.words(row, block as u32);
            for lane in 0..4 {
                let kept = if words[lane] < threshold { T::ZERO } else { scale };
                values[lane] *= kept;
            }
        }
    }
}

vectorized! {
    /// row `=` row / max(‖row‖, ε).
    fn normalize<T: Real>(row: &mut [T]) {
        let scale = T::ONE / clamped_norm::<T, FUSED>(row);
        for value in row {
            *value *= scale;
        }
    }
}

vectorized! {
    /// sum `=` Σ rows\[ids\].
    fn sum_rows<T: Real>(rows: &[T], ids: &[u32], width: usize, sum: &mut [T]) {
        sum.fill(T::ZERO);
        for &id in ids {
            let row = &rows[id as usize * width..(id as usize + 1) * width];
            for (sum, &value) in sum.iter_mut().zip(row) {
                *sum += value;
            }
        }
    }
}

vectorized! {
    /// â · sum.
    fn cosine_sum<T: Real>(online: &[T], sum: &[T]) -> f64 {
        (dot::<T, FUSED>(online, sum) / clamped_norm::<T, FUSED>(online)).to_f64()
    }
}

vectorized! {
    /// online `=` factor · (sum − (â·sum) â) / ‖a‖, or factor · sum / ε where ‖a‖ < ε.
    fn gradient_row<T: Real>(factor: T, sum: &[T], online: &mut [T]) {
        let norm = dot::<T, FUSED>(online, online).sqrt();
        let epsilon = T::from_f64(COSINE_EPSILON);
        if norm < epsilon {
            for (online, &sum) in online.iter_mut().zip(sum) {
                *online = factor * sum / epsilon;
            }
            return;
        }
        let inverse = T::ONE / norm;
        let along = dot::<T, FUSED>(online, sum) * inverse * inverse;
        let scale = factor * inverse;
        for (online, &sum) in online.iter_mut().zip(sum) {
            *online = scale * multiply_add::<T, FUSED>(-along, *online, sum);
        }
    }
}

/// max(‖row‖, ε).
#[inline(always)]
fn clamped_norm<T: Real, const FUSED: bool>(row: &[T]) -> T {
    let norm = dot::<T, FUSED>(row, row).sqrt();
    let epsilon = T::from_f64(COSINE_EPSILON);
    if norm < epsilon { epsilon } else { norm }
}
