//! Ranking metrics (SPEC §9).

use std::collections::HashMap;

use rayon::prelude::*;

use crate::backend::TopK;
use crate::data::Split;
use crate::records::Metrics;

/// The metrics of one user at each list length.
#[derive(Clone)]
struct UserMetrics {
    recall: Vec<f64>,
    ndcg: Vec<f64>,
    precision: Vec<f64>,
    map: Vec<f64>,
}

/// Averages the metrics of `split` over its users.
///
/// `lists` holds the best items of `users`, which contain every user of the split, each once and in
/// any order. Lists are at least as long as the longest of `top_k`, if that many items are
/// unmasked. A split without users gives zeros.
pub fn metrics(split: &Split, users: &[u32], lists: &TopK, top_k: &[usize]) -> Metrics {
    let positions: HashMap<u32, usize> =
        users.iter().enumerate().map(|(position, &user)| (user, position)).collect();
    let per_user: Vec<UserMetrics> = split
        .users
        .par_iter()
        .enumerate()
        .filter_map(|(position, user)| {
            let wanted = &split.items[split.offsets[position]..split.offsets[position + 1]];
            let list = lists.list(*positions.get(user)?);
            Some(user_metrics(wanted, list, top_k))
        })
        .collect();
    let mean = |values: fn(&UserMetrics) -> &Vec<f64>| -> Vec<f64> {
        (0..top_k.len())
            .map(|k| {
                let sum: f64 = per_user.iter().map(|user| values(user)[k]).sum();
                sum / per_user.len().max(1) as f64
            })
            .collect()
    };
    Metrics {
        top_k: top_k.to_vec(),
        recall: mean(|user| &user.recall),
        ndcg: mean(|user| &user.ndcg),
        precision: mean(|user| &user.precision),
        map: mean(|user| &user.map),
    }
}

/// The metrics of a list against the wanted items; repeats count in n, not in hits.
fn user_metrics(wanted: &[u32], list: &[u32], top_k: &[usize]) -> UserMetrics {
    let n = wanted.len();
    let longest = top_k.iter().copied().max().unwrap_or(0);
    let mut distinct = wanted.to_vec();
    distinct.sort_unstable();
    // Sums over the first k entries, for k = 0, 1, …: hits, hit gains, hit precisions, ideal gains.
    let mut sums = vec![[0.0f64; 4]; longest + 1];
    for rank in 1..=longest {
        let mut sum = sums[rank - 1];
        let gain = gain(rank);
        if list.get(rank - 1).is_some_and(|item| distinct.binary_search(item).is_ok()) {
            sum[0] += 1.0;
            sum[1] += gain;
            sum[2] += sum[0] / rank as f64;
        }
        if rank <= n {
            sum[3] += gain;
        }
        sums[rank] = sum;
    }
    let at = |value: fn(&[f64; 4], f64, usize) -> f64| -> Vec<f64> {
        top_k.iter().map(|&k| value(&sums[k], n as f64, k)).collect()
    };
    UserMetrics {
        recall: at(|sum, n, _| sum[0] / n),
        ndcg: at(|sum, _, _| sum[1] / sum[3]),
        precision: at(|sum, _, k| sum[0] / k as f64),
        map: at(|sum, n, k| sum[2] / n.min(k as f64)),
    }
}

/// The worth of a hit at a rank (from 1) in NDCG: 1 / log₂(rank + 1).
pub fn gain(rank: usize) -> f64 {
    1.0 / ((rank + 1) as f64).log2()
}

/// The users of several splits, each once, in order of first appearance.
pub fn users_of(splits: &[&Split]) -> Vec<u32> {
    let mut seen = std::collections::HashSet::new();
    splits
        .iter()
        .flat_map(|split| &split.users)
        .copied()
        .filter(|&user| seen.insert(user))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One user worked out by hand: wanted {3, 5, 9} with 5 repeated, found at ranks 2 and 4.
    #[test]
    fn follows_the_definitions() {
        let split = Split { users: vec![7], offsets: vec![0, 4], items: vec![3, 5, 9, 5] };
        let lists = TopK { k: 5, items: vec![1, 5, 2, 3, 4], scores: vec![0.0; 5] };
        let metrics = metrics(&split, &[7], &lists, &[1, 2, 5]);
        let gain = |rank: f64| 1.0 / (rank + 1.0).log2();
        assert_eq!(metrics.recall, [0.0, 0.25, 0.5]);
        assert_eq!(metrics.precision, [0.0, 0.5, 0.4]);
        let ideal = |n: usize| (1..=n).map(|rank| gain(rank as f64)).sum::<f64>();
        let expected = [0.0, gain(2.0) / ideal(2), (gain(2.0) + gain(4.0)) / ideal(4)];
        for (found, expected) in metrics.ndcg.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-15);
        }
        for (found, expected) in metrics.map.iter().zip([0.0, 0.25, (0.5 + 0.5) / 4.0]) {
            assert!((found - expected).abs() < 1e-15);
        }
    }

    /// A list padded with [`TopK::NO_ITEM`] counts as empty from there on.
    #[test]
    fn short_lists_end_early() {
        let split = Split { users: vec![0], offsets: vec![0, 1], items: vec![2] };
        let none = TopK::NO_ITEM;
        let lists = TopK { k: 3, items: vec![2, none, none], scores: vec![0.0; 3] };
        let metrics = metrics(&split, &[0], &lists, &[3]);
        assert_eq!(metrics.recall, [1.0]);
        assert!((metrics.precision[0] - 1.0 / 3.0).abs() < 1e-15);
        assert_eq!(metrics.ndcg, [1.0]);
    }
}
