//! Who interacts with what: exact numbers of users, items and pairs.

use std::collections::HashSet;

use super::{LEAST_TRAINING, Sizes, stream};
use crate::philox::Stream;

/// The share of a user's picks that comes from each of the topics the user likes.
const LIKED: [f64; 3] = [0.55, 0.25, 0.12];

/// Tries at picking an unused item by popularity before any unused one is taken.
const TRIES: usize = 50;

/// The most training pairs of a user, out of this many items.
pub fn most_training(items: usize) -> usize {
    (items / 4).max(LEAST_TRAINING + 2)
}

/// A row of the `.inter` file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Row {
    pub user: usize,
    pub item: usize,
    /// 0 train, 1 valid, 2 test.
    pub label: u8,
}

/// Items to pick from, by popularity.
struct Pool {
    items: Vec<usize>,
    /// Cumulative popularity, up to and including each item.
    sums: Vec<f64>,
}

impl Pool {
    fn new(items: Vec<usize>, popularity: &[f64]) -> Self {
        let mut sum = 0.0;
        let sums = items
            .iter()
            .map(|&item| {
                sum += popularity[item];
                sum
            })
            .collect();
        Self { items, sums }
    }

    fn pick(&self, uniform: f64) -> Option<usize> {
        let target = uniform * self.sums.last()?;
        let position = self.sums.partition_point(|&sum| sum <= target);
        self.items.get(position.min(self.items.len() - 1)).copied()
    }
}

/// Draws the rows of a data set, grouped by user.
///
/// Each user's number of pairs comes from a heavy-tailed distribution, adjusted to the exact
/// totals; validation and test pairs come from users who keep enough for training. Every item is in
/// training at least once, and no pair occurs twice.
pub fn draw(seed: u64, sizes: &Sizes, topics: &[usize]) -> Vec<Row> {
    let popularity = popularity(&stream(seed, 4), sizes.items);
    let everything = Pool::new((0..sizes.items).collect(), &popularity);
    let by_topic: Vec<Pool> = (0..super::topics(sizes.items))
        .map(|topic| {
            let own = (0..sizes.items).filter(|&item| topics[item] == topic).collect();
            Pool::new(own, &popularity)
        })
        .collect();
    let counts = counts(seed, sizes);
    let mut picker = Picker { draws: stream(seed, 6), next: 0 };
    let mut taken = orphans(sizes, &counts, &mut picker);
    let mut rows = Vec::with_capacity(sizes.pairs.iter().sum());
    for (user, [train, valid, test]) in counts.into_iter().enumerate() {
        let liked: [usize; LIKED.len()] = std::array::from_fn(|_| picker.below(by_topic.len()));
        let mut chosen: Vec<usize> = std::mem::take(&mut taken[user]);
        let mut seen: HashSet<usize> = chosen.iter().copied().collect();
        while chosen.len() < train + valid + test {
            let item = picker.fresh_item(&everything, &by_topic, liked, &seen, sizes.items);
            seen.insert(item);
            chosen.push(item);
        }
        // Items dealt for coverage come first, and so stay in training.
        for (position, item) in chosen.into_iter().enumerate() {
            let label = match position {
                position if position < train => 0,
                position if position < train + valid => 1,
                _ => 2,
            };
            rows.push(Row { user, item, label });
        }
    }
    rows
}

/// A stream of draws, taken one after the other.
struct Picker {
    draws: Stream,
    next: u64,
}

impl Picker {
    fn uniform(&mut self) -> f64 {
        self.next += 1;
        self.draws.uniform(self.next)
    }

    fn below(&mut self, bound: usize) -> usize {
        ((self.uniform() * bound as f64) as usize).min(bound - 1)
    }

    /// An item that the user does not have yet: by popularity within a liked topic, or among all.
    fn fresh_item(
        &mut self,
        everything: &Pool,
        by_topic: &[Pool],
        liked: [usize; LIKED.len()],
        seen: &HashSet<usize>,
        items: usize,
    ) -> usize {
        for _ in 0..TRIES {
            let mut choice = self.uniform();
            let mut pool = everything;
            for (topic, share) in liked.into_iter().zip(LIKED) {
                if choice < share {
                    pool = &by_topic[topic];
                    break;
                }
                choice -= share;
            }
            let uniform = self.uniform();
            if let Some(item) = pool.pick(uniform)
                && !seen.contains(&item)
            {
                return item;
            }
        }
        let start = self.below(items);
        // A user has fewer pairs than there are items, so one is free.
        (0..items).map(|step| (start + step) % items).find(|item| !seen.contains(item)).unwrap_or(0)
    }
}

/// Zipf's law over a random order of the items, flattened at the head so that no item is in every
/// user's list.
fn popularity(stream: &Stream, items: usize) -> Vec<f64> {
    let mut order: Vec<usize> = (0..items).collect();
    let keys: Vec<f64> = (0..items as u64).map(|item| stream.uniform(item)).collect();
    order.sort_by(|&left, &right| keys[left].total_cmp(&keys[right]));
    let mut popularity = vec![0.0; items];
    for (rank, item) in order.into_iter().enumerate() {
        popularity[item] = 1.0 / (rank as f64 + 12.0).powf(0.8);
    }
    popularity
}

/// Each user's training, validation and test pairs, with exact totals.
fn counts(seed: u64, sizes: &Sizes) -> Vec<[usize; 3]> {
    let draws = stream(seed, 5);
    let users = sizes.users;
    let most = most_training(sizes.items);
    let spare = sizes.pairs[0] - LEAST_TRAINING * users;
    // Pareto weights of tail 1.7: most users have few pairs, some very many.
    let weights: Vec<f64> =
        (0..users as u64).map(|user| (1.0 - draws.uniform(user)).powf(-1.0 / 1.7) - 0.9).collect();
    let total: f64 = weights.iter().sum();
    let mut counts: Vec<[usize; 3]> = weights
        .iter()
        .map(|weight| {
            let extra = (weight / total * spare as f64) as usize;
            [(LEAST_TRAINING + extra).min(most), 0, 0]
        })
        .collect();
    let mut missing = sizes.pairs[0] - counts.iter().map(|count| count[0]).sum::<usize>();
    for user in (0..users).cycle() {
        if missing == 0 {
            break;
        }
        if counts[user][0] < most {
            counts[user][0] += 1;
            missing -= 1;
        }
    }
    // Held-out pairs are dealt in rounds, in proportion to the user's training pairs.
    for split in [1, 2] {
        let mut missing = sizes.pairs[split];
        for round in 1.. {
            for count in &mut counts {
                if missing > 0 && count[0] * round >= 6 * (count[split] + 1) {
                    count[split] += 1;
                    missing -= 1;
                }
            }
            if missing == 0 {
                break;
            }
        }
    }
    counts
}

/// Deals every item once, to users with room for it in training; returns each user's items.
fn orphans(sizes: &Sizes, counts: &[[usize; 3]], picker: &mut Picker) -> Vec<Vec<usize>> {
    let mut taken: Vec<Vec<usize>> = vec![Vec::new(); sizes.users];
    for item in 0..sizes.items {
        loop {
            let user = picker.below(sizes.users);
            // At most half of a user's list, so that the rest follows the user's taste. There is
            // room: training pairs are at least twice the items.
            if taken[user].len() < counts[user][0].div_ceil(2) {
                taken[user].push(item);
                break;
            }
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::Shape;
    use crate::synth::features::ItemLatents;

    #[test]
    fn counts_are_exact_and_nobody_is_left_out() {
        for shape in [Shape::Tiny, Shape::Baby] {
            let sizes = shape.sizes();
            let items = ItemLatents::new(1, sizes.items);
            let rows = draw(1, &sizes, items.topics());
            for (label, &expected) in sizes.pairs.iter().enumerate() {
                let found = rows.iter().filter(|row| usize::from(row.label) == label).count();
                assert_eq!(found, expected, "{shape} label {label}");
            }
            let pairs: HashSet<(usize, usize)> =
                rows.iter().map(|row| (row.user, row.item)).collect();
            assert_eq!(pairs.len(), rows.len(), "a pair is there twice");
            let (mut users, mut items) = (vec![0; sizes.users], vec![0; sizes.items]);
            for row in rows.iter().filter(|row| row.label == 0) {
                users[row.user] += 1;
                items[row.item] += 1;
            }
            assert!(users.iter().all(|&count| count >= LEAST_TRAINING));
            assert!(items.iter().all(|&count| count >= 1));
            // Heavy tails on both sides; 300 users cannot make much of a hub.
            let mean = sizes.pairs[0] / sizes.items;
            let hub = if shape == Shape::Tiny { 2 } else { 10 };
            assert!(*items.iter().max().unwrap() > hub * mean);
            let mean = sizes.pairs[0] / sizes.users;
            assert!(*users.iter().max().unwrap() >= 2 * mean);
        }
    }

    /// Users keep to their topics: the three most frequent ones hold far more of a user's pairs
    /// than the three largest topics hold of all pairs.
    #[test]
    fn taste_is_visible() {
        let sizes = Shape::Baby.sizes();
        let items = ItemLatents::new(2, sizes.items);
        let rows = draw(2, &sizes, items.topics());
        let count = crate::synth::topics(sizes.items);
        let mut of_user = vec![vec![0usize; count]; sizes.users];
        let mut of_all = vec![0usize; count];
        for row in &rows {
            of_user[row.user][items.topics()[row.item]] += 1;
            of_all[items.topics()[row.item]] += 1;
        }
        let share = |mut counts: Vec<usize>| {
            counts.sort_unstable();
            let top: usize = counts[count - 3..].iter().sum();
            top as f64 / counts.iter().sum::<usize>() as f64
        };
        let active: Vec<f64> = of_user
            .into_iter()
            .filter(|counts| counts.iter().sum::<usize>() >= 20)
            .map(share)
            .collect();
        let mean = active.iter().sum::<f64>() / active.len() as f64;
        assert!(mean > 2.0 * share(of_all.clone()), "{mean} against {}", share(of_all));
    }
}
