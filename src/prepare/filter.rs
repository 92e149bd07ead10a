//! Filters interactions and splits them.

use std::collections::HashMap;

use super::{Interaction, SplitMethod};
use crate::data::{Interactions, SplitRatio};

/// Keeps the earliest interaction of each user and item (by time if known, else the first), in the
/// place of the first.
pub fn collapse_duplicates(rows: &mut Vec<Interaction>) {
    let mut places: HashMap<(u32, u32), usize> = HashMap::with_capacity(rows.len());
    let mut kept: Vec<Interaction> = Vec::with_capacity(rows.len());
    for &row in &*rows {
        match places.entry((row.user, row.item)) {
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(kept.len());
                kept.push(row);
            }
            std::collections::hash_map::Entry::Occupied(entry) => {
                let earlier = &mut kept[*entry.get()];
                if let (Some(time), Some(known)) = (row.time, earlier.time)
                    && time < known
                {
                    *earlier = row;
                }
            }
        }
    }
    *rows = kept;
}

/// Repeatedly removes users and items with fewer than `k` interactions.
///
/// Each interaction is removed at most once and visited a constant number of times.
pub fn reduce_to_core(rows: &mut Vec<Interaction>, k: usize) {
    let size = |id: fn(&Interaction) -> u32| {
        rows.iter().map(id).max().map_or(0, |largest| largest as usize + 1)
    };
    let users = size(|row| row.user);
    let nodes = users + size(|row| row.item);
    let ends = |row: &Interaction| [row.user as usize, users + row.item as usize];
    let mut of_node: Vec<Vec<usize>> = vec![Vec::new(); nodes];
    for (position, row) in rows.iter().enumerate() {
        for node in ends(row) {
            of_node[node].push(position);
        }
    }
    let mut degrees: Vec<usize> = of_node.iter().map(Vec::len).collect();
    let mut removed = vec![false; rows.len()];
    let mut below: Vec<usize> =
        (0..nodes).filter(|&node| degrees[node] > 0 && degrees[node] < k).collect();
    while let Some(node) = below.pop() {
        for &position in &of_node[node] {
            if std::mem::replace(&mut removed[position], true) {
                continue;
            }
            for end in ends(&rows[position]) {
                degrees[end] -= 1;
                // It fell below `k` just now, so it is not waiting yet.
                if end != node && degrees[end] + 1 == k {
                    below.push(end);
                }
            }
        }
    }
    let mut position = 0;
    rows.retain(|_| {
        position += 1;
        !removed[position - 1]
    });
}

/// The split of each row: 0 train, 1 valid, 2 test. Every user keeps a training row.
pub fn split(rows: &[Interaction], method: SplitMethod, shares: [f64; 3]) -> Vec<u8> {
    if let SplitMethod::Random { seed } = method {
        let interactions = Interactions {
            users: rows.iter().map(|row| row.user).collect(),
            items: rows.iter().map(|row| row.item).collect(),
            labels: None,
        };
        let [train, valid, test] = shares;
        return SplitRatio { train, valid, test, seed }.labels(&interactions);
    }
    if method == SplitMethod::Given {
        return rows.iter().map(|row| row.split).collect();
    }
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by(|&left, &right| {
        let key = |position: usize| (rows[position].user, rows[position].time.unwrap_or(0.0));
        let ((left_user, left_time), (right_user, right_time)) = (key(left), key(right));
        left_user.cmp(&right_user).then(left_time.total_cmp(&right_time)).then(left.cmp(&right))
    });
    let mut labels = vec![0; rows.len()];
    for own in order.chunk_by(|&left, &right| rows[left].user == rows[right].user) {
        let n = own.len();
        let (valid, test) = match method {
            SplitMethod::LeaveOneOut => (usize::from(n > 2), usize::from(n > 1)),
            _ => {
                let share =
                    |part: f64| (n as f64 * part / shares.iter().sum::<f64>()).round() as usize;
                let test = share(shares[2]).min(n - 1);
                (share(shares[1]).min(n - 1 - test), test)
            }
        };
        for (position, &row) in own.iter().enumerate() {
            labels[row] = match n - position {
                from_end if from_end <= test => 2,
                from_end if from_end <= test + valid => 1,
                _ => 0,
            };
        }
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rows(pairs: &[(u32, u32)]) -> Vec<Interaction> {
        pairs
            .iter()
            .enumerate()
            .map(|(position, &(user, item))| Interaction {
                user,
                item,
                rating: None,
                time: Some((position as f64 * 7.0) % 11.0),
                split: 0,
            })
            .collect()
    }

    fn naive_core(mut rows: Vec<Interaction>, k: usize) -> Vec<Interaction> {
        loop {
            let all = rows.clone();
            let count = |matches: &dyn Fn(&Interaction) -> bool| {
                all.iter().filter(|row| matches(row)).count()
            };
            rows.retain(|row| {
                count(&|other| other.user == row.user) >= k
                    && count(&|other| other.item == row.item) >= k
            });
            if rows.len() == all.len() {
                return rows;
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn the_core_is_the_largest_one(
            pairs in prop::collection::vec((0u32..12, 0u32..12), 0..90), k in 1usize..6
        ) {
            let mut found = rows(&pairs);
            collapse_duplicates(&mut found);
            let expected = naive_core(found.clone(), k);
            reduce_to_core(&mut found, k);
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn time_decides_and_everybody_keeps_training(
            pairs in prop::collection::vec((0u32..5, 0u32..30), 1..80), leave_one_out: bool
        ) {
            let mut rows = rows(&pairs);
            collapse_duplicates(&mut rows);
            let method =
                if leave_one_out { SplitMethod::LeaveOneOut } else { SplitMethod::Time };
            let labels = split(&rows, method, [0.7, 0.1, 0.2]);
            for user in 0..5 {
                let own: Vec<(f64, u8)> = rows
                    .iter()
                    .zip(&labels)
                    .filter(|(row, _)| row.user == user)
                    .map(|(row, &label)| (row.time.unwrap(), label))
                    .collect();
                if own.is_empty() {
                    continue;
                }
                let count = |label| own.iter().filter(|(_, other)| *other == label).count();
                prop_assert!(count(0) > 0);
                if leave_one_out {
                    prop_assert_eq!(count(2), usize::from(own.len() > 1));
                    prop_assert_eq!(count(1), usize::from(own.len() > 2));
                }
                for (time, label) in &own {
                    for (other_time, other_label) in &own {
                        prop_assert!(time >= other_time || label <= other_label);
                    }
                }
            }
        }
    }

    #[test]
    fn the_earliest_of_repeated_interactions_stays() {
        let row = |user, time, rating| Interaction { user, item: 0, time, rating, split: 0 };
        let mut rows = vec![
            row(0, Some(5.0), Some(1.0)),
            row(1, None, Some(2.0)),
            row(0, Some(3.0), Some(3.0)),
            row(1, None, Some(4.0)),
        ];
        collapse_duplicates(&mut rows);
        let ratings: Vec<f64> = rows.iter().map(|row| row.rating.unwrap()).collect();
        assert_eq!(ratings, [3.0, 2.0]);
    }
}
