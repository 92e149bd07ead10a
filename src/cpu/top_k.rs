//! The best items of each user (SPEC §2 (10), §9).
//!
//! score(u, i) = p(H_u)\[u\] · p(H_i)\[i\] is computed for a few users and a block of items at a
//! time. Each block is masked and its best items kept before the next is scored, so memory is
//! O(users in flight · (block + K)) and the U × I scores are never stored. Each user belongs to one
//! task. Flops: 2 · users · I · d. Bytes: the packed item rows once per task, from the caches.

use std::cmp::Ordering;
use std::ops::Range;

use rayon::prelude::*;

use super::matrix::{Matrix, Packed, Rows, multiply_block};
use super::simd::{multiply_add, vectorized};
use crate::backend::TopK;
use crate::graph::Graph;
use crate::real::Real;

/// Users that one task scores together.
const USERS_PER_TASK: usize = 16;

/// Items scored at a time: 32 KiB of scores in f32 with 16 users.
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
    /// A score must exceed this: the K-th best score once there are K. A later item with an equal
    /// score loses, since its id is higher.
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

/// The `k` best items of each of `users`, excluding their training items; `predicted` is N × d.
pub fn top_k<T: Real>(graph: &Graph, predicted: &[T], users: &[u32], k: usize) -> TopK {
    let width = predicted.len() / graph.nodes().max(1);
    if width == 0 {
        return TopK::empty(users.len(), k);
    }
    let index = ItemIndex::new(&predicted[graph.users() * width..], width);
    let rows = UserRows { predicted: Matrix::new(predicted, width), users };
    index.search_rows(&rows, users.len(), |query| graph.items_of(users[query] as usize), k)
}

/// The rows of all items, packed once for many searches.
pub struct ItemIndex<T> {
    packed: Packed<T>,
    width: usize,
}

impl<T: Real> ItemIndex<T> {
    /// The most queries that are answered on the calling thread.
    pub const TASK: usize = USERS_PER_TASK;

    /// Packs I × d rows of `width` d, at least 1.
    pub fn new(items: &[T], width: usize) -> Self {
        let rows = Matrix::new(items, width);
        Self { packed: Packed::from_transposed(&rows, items.len() / width, width), width }
    }

    /// The `k` best items for each row q of `queries` (q × d), excluding the ascending items of
    /// `masked(q)`.
    ///
    /// Up to [`Self::TASK`] queries are answered on the calling thread, more in its rayon pool; the
    /// bits are the same.
    pub fn search<I: Iterator<Item = u32>>(
        &self,
        queries: &[T],
        masked: impl Fn(usize) -> I + Sync,
        k: usize,
    ) -> TopK {
        let rows = Matrix::new(queries, self.width);
        self.search_rows(&rows, queries.len() / self.width, masked, k)
    }

    fn search_rows<I: Iterator<Item = u32>>(
        &self,
        rows: &impl Rows<T>,
        queries: usize,
        masked: impl Fn(usize) -> I + Sync,
        k: usize,
    ) -> TopK {
        let mut best = TopK::empty(queries, k);
        let items = self.packed.columns();
        if queries == 0 || items == 0 {
            return best;
        }
        let tile = || vec![T::ZERO; USERS_PER_TASK.min(queries) * ITEM_BLOCK.min(items)];
        let answer = |tile: &mut Vec<T>, task: usize, items: &mut [u32], scores: &mut [f64]| {
            let first = task * USERS_PER_TASK;
            let queries = first..(first + USERS_PER_TASK).min(queries);
            let lists = best_of_queries(rows, queries, &self.packed, &masked, k, tile);
            for ((list, items), scores) in
                lists.into_iter().zip(items.chunks_mut(k)).zip(scores.chunks_mut(k))
            {
                for ((entry, item), score) in list.into_iter().zip(items).zip(scores) {
                    *item = entry.1;
                    *score = entry.0.to_f64();
                }
            }
        };
        if queries <= USERS_PER_TASK {
            // Waking another thread takes longer than most searches this small.
            answer(&mut tile(), 0, &mut best.items, &mut best.scores);
            return best;
        }
        best.items
            .par_chunks_mut(USERS_PER_TASK * k)
            .zip(best.scores.par_chunks_mut(USERS_PER_TASK * k))
            .enumerate()
            .for_each_init(tile, |tile, (task, (items, scores))| answer(tile, task, items, scores));
        best
    }
}

/// The lists of one task's queries.
fn best_of_queries<T: Real, I: Iterator<Item = u32>>(
    rows: &impl Rows<T>,
    queries: Range<usize>,
    packed: &Packed<T>,
    masked: &impl Fn(usize) -> I,
    k: usize,
    tile: &mut [T],
) -> Vec<Vec<(T, u32)>> {
    let left_out = T::from_f64(f64::NEG_INFINITY);
    let mut masks: Vec<_> = queries.clone().map(|query| masked(query).peekable()).collect();
    let mut best: Vec<Best<T>> = queries.clone().map(|_| Best::new(k)).collect();
    for start in (0..packed.columns()).step_by(ITEM_BLOCK) {
        let block = start..(start + ITEM_BLOCK).min(packed.columns());
        let tile = &mut tile[..queries.len() * block.len()];
        tile.fill(T::ZERO);
        multiply_block(rows, queries.start, packed, block.clone(), tile);
        for ((scores, mask), best) in
            tile.chunks_exact_mut(block.len()).zip(&mut masks).zip(&mut best)
        {
            while let Some(item) = mask.next_if(|&item| (item as usize) < block.end) {
                scores[item as usize - block.start] = left_out;
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

vectorized! {
    fn dot<T: Real>(query: &[T], item: &[T], product: &mut T) {
        let mut sum = T::ZERO;
        for (&left, &right) in query.iter().zip(item) {
            sum = multiply_add::<T, FUSED>(left, right, sum);
        }
        // A search adds the product to a score of 0, which turns −0 into 0.
        *product = T::ZERO + sum;
    }
}

/// The product of a query's row and an item's row, with the same bits as [`ItemIndex::search`].
pub fn product<T: Real>(query: &[T], item: &[T]) -> T {
    let mut product = T::ZERO;
    dot(query, item, &mut product);
    product
}
