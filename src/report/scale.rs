//! Maps values to positions on the page, and chooses the values that an axis names.

/// A linear map from values to positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    low: f64,
    high: f64,
    start: f64,
    end: f64,
}

impl Scale {
    /// Maps `low` to `start` and `high` (above it) to `end`.
    pub fn new((low, high): (f64, f64), start: f64, end: f64) -> Self {
        Self { low, high, start, end }
    }

    /// The position of a value.
    pub fn at(&self, value: f64) -> f64 {
        // Halve first: the width of a range of large numbers may overflow.
        let part = (value / 2.0 - self.low / 2.0) / (self.high / 2.0 - self.low / 2.0);
        self.start + part * (self.end - self.start)
    }
}

/// A range that holds the finite `values`, or 0 and 1 if there are none, with a margin; with
/// `from_zero` it includes 0.
pub fn range(values: impl IntoIterator<Item = f64>, from_zero: bool) -> (f64, f64) {
    let bounds =
        values.into_iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
    let (mut low, mut high) = if bounds.0 <= bounds.1 { bounds } else { (0.0, 1.0) };
    if from_zero {
        (low, high) = (low.min(0.0), high.max(0.0));
    }
    let largest = low.abs().max(high.abs());
    // Values that differ by less than their rounding error are a flat line.
    let flat = high / 2.0 - low / 2.0 <= 1e-12 * largest;
    let air = match (flat, largest) {
        (true, 0.0) => 1.0,
        (true, _) => (largest * 0.05).max(f64::MIN_POSITIVE),
        (false, _) => (high / 2.0 - low / 2.0) * 0.08,
    };
    if !(from_zero && low == 0.0) {
        low -= air;
    }
    high += air;
    (low.max(f64::MIN), high.min(f64::MAX))
}

/// About `wanted` round values from `low` to `high`, ascending: multiples of 1, 2 or 5 times a
/// power of ten; only whole numbers if `whole`.
pub fn ticks((low, high): (f64, f64), wanted: usize, whole: bool) -> Vec<f64> {
    let step = step((low, high), wanted, whole);
    if !(step.is_finite() && step > 0.0) {
        return Vec::new();
    }
    let first = (low / step).ceil();
    let mut ticks: Vec<f64> = Vec::new();
    for index in 0..=3 * wanted {
        let tick = (first + index as f64) * step;
        // Also stop where a number is so large that the next tick equals it.
        if tick > high || ticks.last().is_some_and(|&last| tick <= last) {
            break;
        }
        if tick >= low {
            ticks.push(tick + 0.0);
        }
    }
    ticks
}

/// The distance between two ticks.
fn step((low, high): (f64, f64), wanted: usize, whole: bool) -> f64 {
    let wanted = wanted.max(1) as f64;
    let rough = high / wanted - low / wanted;
    let power = 10f64.powf(rough.log10().floor());
    let step = match rough / power {
        ..1.5 => 1.0,
        ..3.5 => 2.0,
        ..7.5 => 5.0,
        _ => 10.0,
    } * power;
    if whole { step.max(1.0) } else { step }
}

/// Labels for ticks, with just enough digits to tell them apart.
pub fn labels(ticks: &[f64]) -> Vec<String> {
    let distances = ticks.windows(2).map(|pair| pair[1] - pair[0]);
    let step = distances.fold(f64::INFINITY, f64::min);
    let step = if step.is_finite() { step } else { ticks.first().map_or(1.0, |tick| tick.abs()) };
    let largest = ticks.iter().fold(0.0f64, |most, tick| most.max(tick.abs()));
    if step == 0.0 {
        return ticks.iter().map(f64::to_string).collect();
    }
    // In binary, a step of 0.2 is a little less.
    let exponent = (step.log10() + 1e-9).floor();
    if largest >= 1e6 || exponent < -6.0 {
        let digits = (largest.log10().floor() - exponent).clamp(0.0, 6.0) as usize;
        let tidy =
            |tick: &f64| if *tick == 0.0 { "0".to_owned() } else { format!("{tick:.digits$e}") };
        return ticks.iter().map(tidy).collect();
    }
    let places = (-exponent).max(0.0) as usize;
    ticks.iter().map(|tick| format!("{tick:.places$}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::num::f64::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ticks_are_round() {
        let named = |range, whole| labels(&ticks(range, 5, whole));
        assert_eq!(named((0.0, 1.0), false), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(named((0.013, 0.334), false), ["0.05", "0.10", "0.15", "0.20", "0.25", "0.30"]);
        assert_eq!(named((-3.0, 8.4), false), ["-2", "0", "2", "4", "6", "8"]);
        assert_eq!(named((1.0, 3.0), true), ["1", "2", "3"]);
        assert_eq!(named((1.0, 1000.0), true), ["200", "400", "600", "800", "1000"]);
        assert_eq!(named((0.0, 4e-8), false), ["0", "1e-8", "2e-8", "3e-8", "4e-8"]);
        assert_eq!(named((0.0, 4e9), false), ["0", "1e9", "2e9", "3e9", "4e9"]);
    }

    #[test]
    fn a_flat_line_has_room() {
        for value in [0.0, 1.0, -3e-7, f64::MAX, f64::MIN, f64::MIN_POSITIVE, 5e-324] {
            let (low, high) = range([value], false);
            assert!(low < high && low <= value && value <= high, "{value:e}: {low:e} {high:e}");
        }
        assert_eq!(range([], false).0, -0.04);
        assert_eq!(range([2.0, 4.0], true).0, 0.0);
    }

    fn finite() -> impl Strategy<Value = f64> {
        POSITIVE | NEGATIVE | NORMAL | SUBNORMAL | ZERO
    }

    proptest! {
        #[test]
        fn every_value_lies_within_its_axis(values in prop::collection::vec(finite(), 1..20), zero: bool) {
            let range = range(values.iter().copied(), zero);
            prop_assert!(range.0 < range.1 && range.0.is_finite() && range.1.is_finite());
            let scale = Scale::new(range, 200.0, 10.0);
            for value in values {
                let place = scale.at(value);
                prop_assert!((9.999..=200.001).contains(&place), "{value:e} at {place} of {range:?}");
            }
        }

        #[test]
        fn ticks_ascend_within_the_axis(a in finite(), b in finite(), wanted in 1usize..12, whole: bool) {
            let range = range([a, b], false);
            let ticks = ticks(range, wanted, whole);
            prop_assert!(ticks.iter().all(|tick| (range.0..=range.1).contains(tick)));
            prop_assert!(ticks.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(ticks.len() <= 2 * wanted + 1, "{} of {wanted}", ticks.len());
            prop_assert_eq!(labels(&ticks).len(), ticks.len());
        }

        #[test]
        fn an_ordinary_axis_has_about_as_many_ticks_as_wanted(
            low in -1e4f64..1e4, width in 1e-3f64..1e4, wanted in 3usize..8,
        ) {
            let ticks = ticks((low, low + width), wanted, false);
            prop_assert!(ticks.len() + 1 >= wanted.div_ceil(2), "{ticks:?}");
            let names = labels(&ticks);
            prop_assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
            for (tick, name) in ticks.iter().zip(&names) {
                let error = (name.parse::<f64>().unwrap() - tick).abs();
                prop_assert!(error <= 1e-6 * width, "{name} for {tick}");
            }
        }
    }
}
