//! Splitting interactions without labels.

use super::Interactions;
use crate::philox::{Purpose, Stream};

/// Shares of each user's interactions, and the seed of the draw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SplitRatio {
    /// Share of the training split.
    pub train: f64,
    /// Share of the validation split.
    pub valid: f64,
    /// Share of the test split.
    pub test: f64,
    /// The seed of the draw.
    pub seed: u64,
}

impl SplitRatio {
    /// Labels (0 train, 1 valid, 2 test) for all rows.
    ///
    /// Each user's rows are shuffled and cut: of n rows, ⌊n · valid⌉ go to validation and
    /// ⌊n · test⌉ to test, but at least one always stays for training.
    pub fn labels(&self, rows: &Interactions) -> Vec<u8> {
        let stream = Stream::new(self.seed, Purpose::Split, 0, 0);
        let mut order: Vec<(u32, u64, usize)> = rows
            .users
            .iter()
            .enumerate()
            .map(|(row, &user)| {
                let words = stream.words((row >> 32) as u32, row as u32);
                (user, u64::from(words[0]) << 32 | u64::from(words[1]), row)
            })
            .collect();
        order.sort_unstable();
        let mut labels = vec![0; rows.users.len()];
        let total = self.train + self.valid + self.test;
        for own in order.chunk_by(|left, right| left.0 == right.0) {
            let n = own.len();
            let share = |part: f64| (n as f64 * part / total).round() as usize;
            let test = share(self.test).min(n - 1);
            let valid = share(self.valid).min(n - 1 - test);
            for (position, &(_, _, row)) in own.iter().enumerate() {
                labels[row] = match position {
                    position if position < test => 2,
                    position if position < test + valid => 1,
                    _ => 0,
                };
            }
        }
        labels
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Every user keeps a training row, and the shares are met to within rounding.
        #[test]
        fn shares_are_met(users in prop::collection::vec(0u32..8, 1..120), seed: u64) {
            let rows = Interactions { items: vec![0; users.len()], users, labels: None };
            let ratio = SplitRatio { train: 0.8, valid: 0.1, test: 0.1, seed };
            let labels = ratio.labels(&rows);
            for user in 0..8 {
                let own: Vec<u8> = (0..labels.len())
                    .filter(|&row| rows.users[row] == user)
                    .map(|row| labels[row])
                    .collect();
                let count = |label| own.iter().filter(|&&other| other == label).count();
                if !own.is_empty() {
                    prop_assert!(count(0) >= 1);
                    for label in [1, 2] {
                        let share = own.len() as f64 * 0.1;
                        prop_assert!((count(label) as f64 - share).abs() <= 1.0);
                    }
                }
            }
            prop_assert_eq!(labels, ratio.labels(&rows));
        }
    }
}
