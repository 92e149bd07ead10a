//! The training pairs of each step (SPEC §7).

use std::ops::Range;

use rayon::prelude::*;

use crate::config::Order;
use crate::data::Pairs;
use crate::philox::{Purpose, Stream};

/// Which epoch's batches to arrange, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochPlan {
    /// How the pairs are ordered.
    pub order: Order,
    /// The seed of the run.
    pub seed: u64,
    /// The epoch, from 0.
    pub epoch: u64,
    /// The optimiser's step (from 1) of the epoch's first batch.
    pub first_step: u32,
}

/// The order in which epoch `epoch` (from 0) visits `pairs` training pairs.
///
/// A random order sorts the pairs by 64 random bits each, keyed by (seed, epoch, pair), and so is
/// the same on every device. Ties, which hardly ever occur, are broken by position.
pub fn epoch_order(order: Order, seed: u64, epoch: u64, pairs: usize) -> Vec<u32> {
    match order {
        Order::File => (0..pairs as u32).collect(),
        Order::Random => {
            let stream = Stream::new(seed, Purpose::Order, epoch as u32, 0);
            let mut keyed: Vec<(u64, u32)> = (0..pairs as u32)
                .into_par_iter()
                .map(|pair| {
                    let words = stream.words(0, pair);
                    (u64::from(words[0]) << 32 | u64::from(words[1]), pair)
                })
                .collect();
            keyed.par_sort_unstable();
            keyed.into_iter().map(|(_, pair)| pair).collect()
        }
    }
}

/// The positions of batch `number` (from 0) in an epoch's order; the last batch may be short.
pub(crate) fn positions(number: u64, batch_size: usize, pairs: usize) -> Range<usize> {
    let start = number as usize * batch_size;
    start..(start + batch_size).min(pairs)
}

/// A batch of training pairs, arranged for the step: every distinct user and item once.
///
/// Predictor outputs, targets and gradients belong to nodes, so a node is computed once per batch
/// however many of its pairs it is in. The pairs are stored twice: by user and by item.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Distinct users, ascending.
    pub users: Vec<u32>,
    /// Distinct items, ascending.
    pub items: Vec<u32>,
    /// `users.len() + 1` bounds into `items_of_users`.
    pub user_offsets: Vec<u32>,
    /// For each distinct user, the positions in `items` it is paired with, in the order of the
    /// pairs.
    pub items_of_users: Vec<u32>,
    /// `items.len() + 1` bounds into `users_of_items`.
    pub item_offsets: Vec<u32>,
    /// For each distinct item, the positions in `users` it is paired with, in the order of the
    /// pairs.
    pub users_of_items: Vec<u32>,
}

impl Batch {
    /// Arranges the pairs (`users[k]`, `items[k]`); both slices have the same length, below 2³².
    pub fn new(users: &[u32], items: &[u32]) -> Self {
        debug_assert_eq!(users.len(), items.len());
        let (distinct_users, user_of_pair, pairs_by_user, user_offsets) = group(users);
        let (distinct_items, item_of_pair, pairs_by_item, item_offsets) = group(items);
        let pick = |of_pair: &[u32], pairs: &[u32]| {
            pairs.iter().map(|&pair| of_pair[pair as usize]).collect()
        };
        Self {
            users: distinct_users,
            items: distinct_items,
            user_offsets,
            items_of_users: pick(&item_of_pair, &pairs_by_user),
            item_offsets,
            users_of_items: pick(&user_of_pair, &pairs_by_item),
        }
    }

    /// The batch of the pairs at `positions`.
    pub fn of_pairs(pairs: &Pairs, positions: &[u32]) -> Self {
        let pick = |ids: &[u32]| -> Vec<u32> {
            positions.iter().map(|&position| ids[position as usize]).collect()
        };
        Self::new(&pick(&pairs.users), &pick(&pairs.items))
    }

    /// |B|, the number of pairs.
    pub fn pairs(&self) -> usize {
        self.items_of_users.len()
    }
}

/// Groups pairs by id: the distinct ids, ascending; each pair's position among them; the pairs
/// ordered by (id, position); and the bounds of each id's pairs in that order.
fn group(ids: &[u32]) -> (Vec<u32>, Vec<u32>, Vec<u32>, Vec<u32>) {
    let mut keyed: Vec<u64> =
        ids.iter().enumerate().map(|(pair, &id)| u64::from(id) << 32 | pair as u64).collect();
    keyed.sort_unstable();
    let mut distinct = Vec::new();
    let mut position_of_pair = vec![0; ids.len()];
    let mut pairs = Vec::with_capacity(ids.len());
    let mut offsets = Vec::new();
    for key in keyed {
        let (id, pair) = ((key >> 32) as u32, key as u32);
        if distinct.last() != Some(&id) {
            offsets.push(pairs.len() as u32);
            distinct.push(id);
        }
        position_of_pair[pair as usize] = distinct.len() as u32 - 1;
        pairs.push(pair);
    }
    offsets.push(pairs.len() as u32);
    (distinct, position_of_pair, pairs, offsets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Read back by user or by item, a batch gives the pairs it was made from.
        #[test]
        fn keeps_every_pair(pairs in prop::collection::vec((0u32..20, 0u32..20), 0..80)) {
            let (users, items): (Vec<u32>, Vec<u32>) = pairs.iter().copied().unzip();
            let batch = Batch::new(&users, &items);
            let mut by_user = Vec::new();
            for (position, &user) in batch.users.iter().enumerate() {
                let range =
                    batch.user_offsets[position] as usize..batch.user_offsets[position + 1] as usize;
                for &item in &batch.items_of_users[range] {
                    by_user.push((user, batch.items[item as usize]));
                }
            }
            let mut by_item = Vec::new();
            for (position, &item) in batch.items.iter().enumerate() {
                let range =
                    batch.item_offsets[position] as usize..batch.item_offsets[position + 1] as usize;
                for &user in &batch.users_of_items[range] {
                    by_item.push((batch.users[user as usize], item));
                }
            }
            // The sort is stable, as pairs keep their order within a user and within an item.
            let mut expected = pairs.clone();
            expected.sort_by_key(|&(user, _)| user);
            prop_assert_eq!(by_user, expected);
            let mut expected = pairs.clone();
            expected.sort_by_key(|&(_, item)| item);
            prop_assert_eq!(by_item, expected);
            prop_assert_eq!(batch.pairs(), pairs.len());
        }

        /// An epoch's order is a permutation, different for each epoch and each seed.
        #[test]
        fn orders_are_permutations(seed: u64, epoch in 0u64..1000) {
            let order = epoch_order(Order::Random, seed, epoch, 200);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..200).collect::<Vec<u32>>());
            prop_assert_ne!(&order, &epoch_order(Order::Random, seed, epoch + 1, 200));
            prop_assert_ne!(&order, &epoch_order(Order::Random, seed ^ 1, epoch, 200));
            prop_assert_ne!(&order, &epoch_order(Order::File, seed, epoch, 200));
        }
    }
}
