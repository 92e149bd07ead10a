//! The best items of each user (SPEC §2 (10), §9).
//!
//! score(u, i) = p(H_u)\[u\] · p(H_i)\[i\] for a few users and a block of items at a time; the block
//! is masked and its best are kept before the next one is scored, so memory is O(users in flight ·
//! (block + K)) and the U × I scores never exist. Flops: 2 · users · I · d. Bytes: the packed item
//! rows once per task, from the caches. Each user belongs to one task.

use std::cmp::Ordering;
use std::ops::Range;

use rayon::prelude::*;

use super::matrix::{Matrix, Packed, Rows, multiply_block};
use super::simd::vectorized;
use crate::backend::TopK;
use crate::graph::Graph;
use crate::real::Real;

/// Users that one task scores together.
const USERS_PER_TASK: usize = 16;

/// Items scored at a time: with 16 users 32 KiB of scores in f32.
const ITEM_BLOCK: usize = 512;

/// Scores compared with the threshold at a time.
const SCAN_BLOCK: usize = 16;

/// The predicted rows of some users.
struct UserRows<'a, T> {
    predicted: Matrix<'a, T>,
    users: &'a [u32],
}

impl<T: Real> Rows<T> for UserRows<'_, T> {
    fn row<'a>(&'a self, row: usize, columns: Range<usize>, scratch: &'a mut [T]) -> &'a [T] {
        self.predicted.row(self.users[row] as usize, columns, scratch)
    }
}

/// The best entries seen so far; items arrive in ascending order.
struct Best<T> {
    k: usize,
    entries: Vec<(T, u32)>,
    /// What a score must exceed: that of the K-th best once there are K. An equal score of a later
    /// item loses by its higher id.
    threshold: T,
}

impl<T: Real> Best<T> {
    fn new(k: usize) -> Self {
        Self { k, entries: Vec::with_capacity(2 * k), threshold: T::from_f64(f64::NEG_INFINITY) }
    }

    #[inline(always)]
    fn push(&mut self, score: T, item: u32) {
        self.entries.push((score, item));
        if self.entries.len() >= 2 * self.k {
            self.shrink();
        }
    }

    #[cold]
    fn shrink(&mut self) {
        if self.entries.len() >= self.k {
            self.entries.select_nth_unstable_by(self.k - 1, better_first);
            self.entries.truncate(self.k);
            self.threshold = self.entries[self.k - 1].0;
        }
    }

    fn into_sorted(mut self) -> Vec<(T, u32)> {
        self.entries.sort_unstable_by(better_first);
        self.entries.truncate(self.k);
        self.entries
    }
}

/// Higher scores first, then lower ids.
fn better_first<T: Real>(left: &(T, u32), right: &(T, u32)) -> Ordering {
    right.0.partial_cmp(&left.0).unwrap_or(Ordering::Equal).then(left.1.cmp(&right.1))
}

/// The `k` best items of each of `users`, their training items left out; `predicted` is N × d.
pub fn top_k<T: Real>(graph: &Graph, predicted: &[T], users: &[u32], k: usize) -> TopK {
    let items = graph.items();
    let width = predicted.len() / graph.nodes().max(1);
    let mut best =
        TopK { k, items: vec![TopK::NO_ITEM; users.len() * k], scores: vec![0.0; users.len() * k] };
    if users.is_empty() || items == 0 || width == 0 {
        return best;
    }
    let item_rows = Matrix::new(&predicted[graph.users() * width..], width);
    let packed = Packed::from_transposed(&item_rows, items, width);
    let rows = UserRows { predicted: Matrix::new(predicted, width), users };
    best.items
        .par_chunks_mut(USERS_PER_TASK * k)
        .zip(best.scores.par_chunks_mut(USERS_PER_TASK * k))
        .enumerate()
        .for_each_init(
            || vec![T::ZERO; USERS_PER_TASK * ITEM_BLOCK.min(items)],
            |tile, (task, (out_items, out_scores))| {
                let first = task * USERS_PER_TASK;
                let users = &users[first..(first + USERS_PER_TASK).min(users.len())];
                let lists = best_of_users(graph, &rows, first, users, &packed, k, tile);
                for ((list, items), scores) in
                    lists.into_iter().zip(out_items.chunks_mut(k)).zip(out_scores.chunks_mut(k))
                {
                    for ((entry, item), score) in list.into_iter().zip(items).zip(scores) {
                        *item = entry.1;
                        *score = entry.0.to_f64();
                    }
                }
            },
        );
    best
}

/// The lists of the users of one task.
fn best_of_users<T: Real>(
    graph: &Graph,
    rows: &UserRows<'_, T>,
    first: usize,
    users: &[u32],
    packed: &Packed<T>,
    k: usize,
    tile: &mut [T],
) -> Vec<Vec<(T, u32)>> {
    let masked = T::from_f64(f64::NEG_INFINITY);
    let mut masks: Vec<_> =
        users.iter().map(|&user| graph.items_of(user as usize).peekable()).collect();
    let mut best: Vec<Best<T>> = users.iter().map(|_| Best::new(k)).collect();
    for start in (0..packed.columns()).step_by(ITEM_BLOCK) {
        let block = start..(start + ITEM_BLOCK).min(packed.columns());
        let tile = &mut tile[..users.len() * block.len()];
        tile.fill(T::ZERO);
        multiply_block(rows, first, packed, block.clone(), tile);
        for ((scores, mask), best) in
            tile.chunks_exact_mut(block.len()).zip(&mut masks).zip(&mut best)
        {
            while let Some(item) = mask.next_if(|&item| (item as usize) < block.end) {
                scores[item as usize - block.start] = masked;
            }
            keep_best(scores, block.start as u32, best);
        }
    }
    best.into_iter().map(Best::into_sorted).collect()
}

vectorized! {
    fn keep_best<T: Real>(scores: &[T], first_item: u32, best: &mut Best<T>) {
        for (block, scores) in scores.chunks(SCAN_BLOCK).enumerate() {
            let threshold = best.threshold;
            let mut any = false;
            for &score in scores {
                any |= score > threshold;
            }
            if any {
                for (lane, &score) in scores.iter().enumerate() {
                    if score > best.threshold {
                        best.push(score, first_item + (block * SCAN_BLOCK + lane) as u32);
                    }
                }
            }
        }
    }
}
