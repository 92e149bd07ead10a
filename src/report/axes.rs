//! Draws a chart as SVG: a frame, curves, and labels beside them.
//!
//! Writing to a string does not fail.

use std::fmt::Write;

use super::chart::Series;
use super::number::escaped;
use super::scale::{self, Scale};

/// The picture's width in its own units, about pixels.
pub const WIDTH: f64 = 440.0;
/// The picture's height.
pub const HEIGHT: f64 = 236.0;
/// The plot's left edge in the picture; value labels are left of it.
pub const LEFT: f64 = 54.0;
/// The plot's right edge; curve labels are right of it.
pub const RIGHT: f64 = 396.0;
/// The plot's upper edge; the best epoch's label is above it.
pub const TOP: f64 = 20.0;
/// The plot's lower edge; epoch labels are below it.
pub const BOTTOM: f64 = 212.0;
/// The approximate width of a digit.
const LETTER: f64 = 6.5;
/// The least distance between two labels at the curves' ends.
const LABEL_GAP: f64 = 11.0;

/// Maps epochs and values to positions, and draws there.
pub struct Axes {
    /// Positions of epochs.
    pub x: Scale,
    /// Positions of values.
    pub y: Scale,
}

impl Axes {
    /// Grid, ticks and their labels.
    pub fn frame(
        &self,
        text: &mut String,
        across: (f64, f64),
        upright: (f64, f64),
    ) -> std::fmt::Result {
        let ticks = scale::ticks(upright, 5, false);
        for (tick, label) in ticks.iter().zip(scale::labels(&ticks)) {
            let y = tenths(self.y.at(*tick));
            write!(text, "<path class=\"grid\" d=\"M{LEFT} {y}H{RIGHT}\"/>")?;
            let (x, y) = (LEFT - 6.0, tenths(self.y.at(*tick) + 3.5));
            write!(text, "<text class=\"y\" x=\"{x}\" y=\"{y}\">{label}</text>")?;
        }
        // There may be nearly twice as many as wanted.
        let letters = format!("{:.0}", across.1).len() as f64;
        let room = (RIGHT - LEFT) / (LETTER * letters + LETTER);
        let wanted = ((room / 1.75) as usize).clamp(2, 6);
        let ticks = scale::ticks(across, wanted, true);
        for (tick, label) in ticks.iter().zip(scale::labels(&ticks)) {
            let x = tenths(self.x.at(*tick));
            write!(text, "<path class=\"tick\" d=\"M{x} {BOTTOM}v4\"/>")?;
            let y = BOTTOM + 15.0;
            write!(text, "<text class=\"x\" x=\"{x}\" y=\"{y}\">{label}</text>")?;
        }
        let (x, y) = (LEFT - 12.0, BOTTOM + 15.0);
        writeln!(
            text,
            "<path class=\"axis\" d=\"M{LEFT} {BOTTOM}H{RIGHT}\"/>\
             <text class=\"unit\" x=\"{x}\" y=\"{y}\">epoch</text>"
        )
    }

    /// A line at the best epoch, and its label.
    pub fn best_epoch(&self, text: &mut String, epoch: u64) -> std::fmt::Result {
        let place = self.x.at(epoch as f64);
        // Keep the words within the plot's width.
        let (x, words) = (tenths(place), tenths(place.clamp(LEFT + 42.0, RIGHT - 42.0)));
        writeln!(
            text,
            "<path class=\"best\" d=\"M{x} {TOP}V{BOTTOM}\"/>\
             <text class=\"best\" x=\"{words}\" y=\"{}\">best epoch {epoch}</text>",
            TOP - 6.0
        )
    }

    /// A curve, or a dot if it has one point, with its marks.
    pub fn curve(&self, text: &mut String, series: &Series) -> std::fmt::Result {
        let class = class(series);
        write!(text, "<g class=\"series {class}\" data-run=\"{}\">", series.run)?;
        let place = |&(epoch, value): &(u64, f64)| (self.x.at(epoch as f64), self.y.at(value));
        let mut at: Option<(i64, i64)> = None;
        let mut path = String::new();
        for (x, y) in series.points.iter().map(place) {
            let (x, y) = ((10.0 * x).round() as i64, (10.0 * y).round() as i64);
            match at {
                None => write!(path, "M{} {}", tenth(x), tenth(y))?,
                Some((a, b)) => write!(path, "l{} {}", tenth(x - a), tenth(y - b))?,
            }
            at = Some((x, y));
        }
        if series.points.len() > 1 {
            write!(text, "<path class=\"curve\" d=\"{path}\"/>")?;
        } else if let Some((x, y)) = series.points.first().map(place) {
            write!(
                text,
                "<circle class=\"dot\" cx=\"{}\" cy=\"{}\" r=\"2.5\"/>",
                tenths(x),
                tenths(y)
            )?;
        }
        if let Some((x, y)) = series.best.as_ref().map(place) {
            write!(
                text,
                "<circle class=\"mark\" cx=\"{}\" cy=\"{}\" r=\"3.5\"/>",
                tenths(x),
                tenths(y)
            )?;
        }
        for (x, y) in series.rings.iter().map(place) {
            write!(
                text,
                "<circle class=\"ring\" cx=\"{}\" cy=\"{}\" r=\"4\"/>",
                tenths(x),
                tenths(y)
            )?;
        }
        text.push_str("</g>\n");
        Ok(())
    }

    /// Labels at the curves' ends, beside the plot and clear of each other.
    pub fn labels(&self, text: &mut String, series: &[Series]) -> std::fmt::Result {
        let end = |series: &Series| {
            let &(epoch, value) = series.points.last()?;
            let label = series.label.clone()?;
            Some((series.run, class(series), label, self.x.at(epoch as f64), self.y.at(value)))
        };
        let ends: Vec<_> = series.iter().filter_map(end).collect();
        // Overlapping labels would name nothing; the read-out names every curve.
        if LABEL_GAP * ends.len() as f64 > BOTTOM - TOP {
            return Ok(());
        }
        let places: Vec<f64> = ends.iter().map(|&(.., y)| y).collect();
        let places = spread(&places, LABEL_GAP, (TOP, BOTTOM));
        for ((run, class, label, x, from), to) in ends.iter().zip(places) {
            // Keep leaders level inside the plot, where a slope would look like data.
            let (x, from) = (tenths((x + 4.0).min(RIGHT)), tenths(*from));
            writeln!(
                text,
                "<g class=\"end {class}\" data-run=\"{run}\">\
                 <path class=\"leader\" d=\"M{x} {from}H{RIGHT}L{} {}\"/>\
                 <text class=\"label\" x=\"{}\" y=\"{}\">{}</text></g>",
                RIGHT + 8.0,
                tenths(to),
                RIGHT + 10.0,
                tenths(to + 3.5),
                escaped(label)
            )?;
        }
        Ok(())
    }
}

fn class(series: &Series) -> String {
    let colour = series.colour.map_or("other".to_owned(), |colour| format!("c{colour}"));
    if series.dashed { format!("{colour} test") } else { colour }
}

/// Moves positions apart until every two are `gap` apart, keeping their order, and within bounds if
/// there is room.
fn spread(places: &[f64], gap: f64, (low, high): (f64, f64)) -> Vec<f64> {
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by(|&a, &b| places[a].total_cmp(&places[b]));
    let mut moved = places.to_vec();
    let mut least = low;
    for &index in &order {
        moved[index] = moved[index].max(least);
        least = moved[index] + gap;
    }
    let mut most = high;
    for &index in order.iter().rev() {
        moved[index] = moved[index].min(most);
        most = moved[index] - gap;
    }
    moved
}

/// A number with one decimal, a tenth of a pixel.
fn tenths(value: f64) -> String {
    tenth((10.0 * value).round() as i64)
}

fn tenth(tenths: i64) -> String {
    let sign = if tenths < 0 { "-" } else { "" };
    match (tenths.unsigned_abs() / 10, tenths.unsigned_abs() % 10) {
        (whole, 0) => format!("{sign}{whole}"),
        (0, part) => format!("{sign}.{part}"),
        (whole, part) => format!("{sign}{whole}.{part}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places_are_written_briefly() {
        assert_eq!(
            [0.0, 1.0, -0.04, 0.5, -0.5, 12.34, -3.96].map(tenths),
            ["0", "1", "0", ".5", "-.5", "12.3", "-4"]
        );
    }

    proptest! {
        #[test]
        fn labels_are_moved_apart_in_their_order(
            places in prop::collection::vec(0.0f64..190.0, 0..17),
        ) {
            let moved = spread(&places, 11.0, (0.0, 190.0));
            for (a, from) in moved.iter().zip(&places) {
                prop_assert!((-1e-9..=190.0 + 1e-9).contains(a));
                for (b, other) in moved.iter().zip(&places) {
                    prop_assert!(from == other || (from < other) == (a < b));
                    prop_assert!(std::ptr::eq(a, b) || (a - b).abs() > 11.0 - 1e-9);
                }
            }
        }
    }
}
