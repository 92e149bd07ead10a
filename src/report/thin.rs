//! Reduces curves to as many points as can be seen.

/// Values at ascending epochs.
pub type Points = Vec<(u64, f64)>;

/// Reduces a curve that is drawn `columns` columns wide from epoch `from` to epoch `to` to its
/// first and last point and the lowest and highest point of each column. A curve of at most 2 ×
/// `columns` points is kept whole.
///
/// All points left are points of the curve, and cover the same heights in each column.
pub fn thin(points: &[(u64, f64)], (from, to): (u64, u64), columns: usize) -> Points {
    let columns = columns.max(1);
    if points.len() <= 2 * columns {
        return points.to_vec();
    }
    let width = u128::from(to.saturating_sub(from)) + 1;
    let column =
        |&(epoch, _): &(u64, f64)| u128::from(epoch.saturating_sub(from)) * columns as u128 / width;
    let mut thinned = Vec::with_capacity(2 * columns + 2);
    thinned.push(points[0]);
    for part in points.chunk_by(|left, right| column(left) == column(right)) {
        let by_value = |left: &&(u64, f64), right: &&(u64, f64)| left.1.total_cmp(&right.1);
        let ends = [part.iter().min_by(by_value), part.iter().max_by(by_value)];
        let mut ends: Vec<_> = ends.into_iter().flatten().copied().collect();
        ends.sort_by_key(|&(epoch, _)| epoch);
        thinned.extend(ends);
    }
    thinned.push(points[points.len() - 1]);
    thinned.dedup_by_key(|&mut (epoch, _)| epoch);
    thinned
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn curve(values: &[f64], from: u64, every: u64) -> Points {
        let epochs = (0..).map(|index| from + every * index);
        epochs.zip(values.iter().copied()).collect()
    }

    #[test]
    fn a_short_curve_is_left_as_it_is() {
        let points = curve(&[3.0, 1.0, 2.0], 1, 1);
        assert_eq!(thin(&points, (1, 3), 2), points);
        assert_eq!(thin(&[], (1, 1), 2), []);
    }

    #[test]
    fn a_lone_peak_is_kept() {
        let mut values = vec![0.0; 100_000];
        values[54_321] = 1.0;
        let thinned = thin(&curve(&values, 1, 1), (1, 100_000), 300);
        assert!(thinned.contains(&(54_322, 1.0)) && thinned.len() <= 602, "{}", thinned.len());
    }

    proptest! {
        #[test]
        fn what_is_left_covers_the_same_heights(
            values in prop::collection::vec(-1e3f64..1e3, 0..400),
            columns in 0usize..50,
            from in 1u64..1000,
            every in 1u64..5,
            later in 0u64..100,
        ) {
            let points = curve(&values, from, every);
            let to = points.last().map_or(from, |&(epoch, _)| epoch) + later;
            let thinned = thin(&points, (from, to), columns);
            prop_assert!(thinned.len() <= 2 * columns.max(1) + 2);
            prop_assert!(thinned.windows(2).all(|pair| pair[0].0 < pair[1].0));
            prop_assert!(thinned.iter().all(|point| points.contains(point)));
            prop_assert_eq!(thinned.first(), points.first());
            prop_assert_eq!(thinned.last(), points.last());
            let heights = |points: &[(u64, f64)]| {
                let mut heights = vec![(f64::INFINITY, f64::NEG_INFINITY); columns.max(1)];
                for &(epoch, value) in points {
                    let column = (epoch - from) as usize * columns.max(1) / (to - from + 1) as usize;
                    let (low, high) = &mut heights[column];
                    (*low, *high) = (low.min(value), high.max(value));
                }
                heights
            };
            prop_assert_eq!(heights(&points), heights(&thinned));
        }
    }
}
