//! One chart: curves over epochs, as SVG that needs no script, with its values beside it for one.

use std::fmt::Write;

use serde::Serialize;

use super::number::{escaped, significant};
use super::scale::{self, Scale};
use super::thin::{Points, thin};

/// The sizes of the picture, in its own units: about pixels.
const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 236.0;
const LEFT: f64 = 54.0;
const RIGHT: f64 = 396.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 212.0;
/// About the width of a digit.
const LETTER: f64 = 6.5;
/// The least distance of two labels at the curves' ends.
const LABEL_GAP: f64 = 11.0;

/// A curve.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// The run it is of, by its position on the page.
    pub run: usize,
    /// What it is called where its values are read.
    pub name: String,
    /// What stands at its end, where there is something to tell it from.
    pub label: Option<String>,
    /// Its colour by number; `None` of one among many.
    pub colour: Option<usize>,
    /// Whether it is of the test split.
    pub dashed: bool,
    /// Its values.
    pub points: Points,
    /// Points to be marked: the best epoch's.
    pub best: Option<(u64, f64)>,
    /// Points to be marked as unlike the others.
    pub rings: Points,
}

/// Curves on common axes.
#[derive(Debug, Clone, Default)]
pub struct Chart {
    /// What is drawn.
    pub title: String,
    /// The same in other words.
    pub note: String,
    /// Whether the axis begins at 0.
    pub from_zero: bool,
    /// The best epoch, where all curves are of one run.
    pub best_epoch: Option<u64>,
    /// The curves; those that come later lie above.
    pub series: Vec<Series>,
}

/// The values of a chart, for the script.
#[derive(Serialize)]
struct Values<'a> {
    /// The first and the last epoch of the axis, and their places.
    epochs: [f64; 2],
    places: [f64; 2],
    series: Vec<SeriesValues<'a>>,
}

#[derive(Serialize)]
struct SeriesValues<'a> {
    name: &'a str,
    run: usize,
    colour: usize,
    dashed: bool,
    epochs: Epochs,
    values: Vec<serde_json::Number>,
}

/// The epochs of values.
#[derive(Serialize)]
#[serde(untagged)]
enum Epochs {
    /// The first; the others follow it one by one.
    From(u64),
    All(Vec<u64>),
}

impl Chart {
    /// The chart as an HTML `figure`; `id` is one that no other chart of the page has.
    pub fn figure(&self, id: usize) -> String {
        let epochs = self.series.iter().flat_map(|series| &series.points).map(|&(epoch, _)| epoch);
        let (first, last) =
            epochs.fold((u64::MAX, 0), |(a, b), epoch| (a.min(epoch), b.max(epoch)));
        let first = first.min(last);
        let thinned = |series: &Series| Series {
            points: thin(&series.points, (first, last), (RIGHT - LEFT) as usize),
            ..series.clone()
        };
        let series: Vec<Series> = self.series.iter().map(thinned).collect();
        // An only epoch lies in the middle.
        let air = if first == last { 0.5 } else { 0.0 };
        let across = (first as f64 - air, last as f64 + air);
        let values = series.iter().flat_map(|series| series.points.iter().chain(&series.best));
        let upright = scale::range(values.map(|&(_, value)| value), self.from_zero);
        let axes = Axes { x: Scale::new(across, LEFT, RIGHT), y: Scale::new(upright, BOTTOM, TOP) };
        let mut text = format!(
            "<figure class=\"chart\"><figcaption><b>{}</b> <span>{}</span></figcaption>\n\
             <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"t{id} d{id}\">\
             <title id=\"t{id}\">{}</title><desc id=\"d{id}\">{}</desc>\n",
            escaped(&self.title),
            escaped(&self.note),
            escaped(&self.title),
            escaped(&self.description()),
        );
        // Writing to a string does not fail.
        let _ = axes.frame(&mut text, across, upright);
        if let Some(epoch) = self.best_epoch {
            let _ = axes.best_epoch(&mut text, epoch);
        }
        for series in &series {
            let _ = axes.curve(&mut text, series);
        }
        let _ = axes.labels(&mut text, &series);
        text.push_str("<line class=\"cursor\" hidden></line></svg>\n");
        text.push_str(&script_data(&Values {
            epochs: [across.0, across.1],
            places: [LEFT / WIDTH, RIGHT / WIDTH],
            series: series.iter().filter_map(values_of).collect(),
        }));
        text.push_str("</figure>\n");
        text
    }

    /// The curves in words, for who does not see them.
    fn description(&self) -> String {
        let said = |series: &Series| {
            let (first, last) = (series.points.first()?, series.points.last()?);
            let at =
                |&(epoch, value): &(u64, f64)| format!("{} at epoch {epoch}", significant(value));
            Some(format!("{}: {} to {}", series.name, at(first), at(last)))
        };
        let coloured = self.series.iter().filter(|series| series.colour.is_some());
        let parts: Vec<String> = coloured.filter_map(said).collect();
        format!("Over epochs. {}.", parts.join("; "))
    }
}

/// JSON in an element that no script runs; nothing in it ends the element.
fn script_data(values: &Values<'_>) -> String {
    // Numbers and texts alone, which can always be written.
    let json = serde_json::to_string(values).unwrap_or_default().replace('<', "\\u003c");
    format!("<script type=\"application/json\">{json}</script>")
}

fn values_of(series: &Series) -> Option<SeriesValues<'_>> {
    let (first, last) = (series.points.first()?.0, series.points.last()?.0);
    let follow = last - first == series.points.len() as u64 - 1;
    let epochs = match follow {
        true => Epochs::From(first),
        false => Epochs::All(series.points.iter().map(|&(epoch, _)| epoch).collect()),
    };
    // As many digits as are shown.
    let number = |&(_, value): &(u64, f64)| {
        serde_json::Number::from_f64(significant(value).parse().unwrap_or(value))
    };
    Some(SeriesValues {
        name: &series.name,
        run: series.run,
        // Curves among many are only looked at.
        colour: series.colour?,
        dashed: series.dashed,
        epochs,
        values: series.points.iter().filter_map(number).collect(),
    })
}

struct Axes {
    x: Scale,
    y: Scale,
}

impl Axes {
    /// Grid, ticks and their labels.
    fn frame(
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
        // There may be nearly twice as many as are asked for.
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

    fn best_epoch(&self, text: &mut String, epoch: u64) -> std::fmt::Result {
        let place = self.x.at(epoch as f64);
        // The words stay above the plot.
        let (x, words) = (tenths(place), tenths(place.clamp(LEFT + 42.0, RIGHT - 42.0)));
        writeln!(
            text,
            "<path class=\"best\" d=\"M{x} {TOP}V{BOTTOM}\"/>\
             <text class=\"best\" x=\"{words}\" y=\"{}\">best epoch {epoch}</text>",
            TOP - 6.0
        )
    }

    fn curve(&self, text: &mut String, series: &Series) -> std::fmt::Result {
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

    /// Names at the curves' ends, beside the plot and beside each other.
    fn labels(&self, text: &mut String, series: &[Series]) -> std::fmt::Result {
        let end = |series: &Series| {
            let &(epoch, value) = series.points.last()?;
            let label = series.label.clone()?;
            Some((series.run, class(series), label, self.x.at(epoch as f64), self.y.at(value)))
        };
        let ends: Vec<_> = series.iter().filter_map(end).collect();
        // Names over each other name nothing; the read-out has them all.
        if LABEL_GAP * ends.len() as f64 > BOTTOM - TOP {
            return Ok(());
        }
        let places: Vec<f64> = ends.iter().map(|&(.., y)| y).collect();
        let places = spread(&places, LABEL_GAP, (TOP, BOTTOM));
        for ((run, class, label, x, from), to) in ends.iter().zip(places) {
            // Level while it is in the plot, where a slope would mean something.
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

/// Moves places apart until each two are `gap` apart, within bounds where there is room, without
/// changing their order.
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

/// A number with one place, which is a tenth of a pixel.
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

    fn chart(points: Points) -> Chart {
        let best = points.last().copied();
        let series =
            Series { name: "a".into(), colour: Some(0), points, best, ..Series::default() };
        Chart { title: "<Recall>".into(), series: vec![series], ..Chart::default() }
    }

    #[test]
    fn places_are_written_briefly() {
        assert_eq!(
            [0.0, 1.0, -0.04, 0.5, -0.5, 12.34, -3.96].map(tenths),
            ["0", "1", "0", ".5", "-.5", "12.3", "-4"]
        );
    }

    #[test]
    fn a_chart_is_drawn_in_words_and_lines() {
        let text = chart(vec![(1, 0.5), (2, 1.0), (4, 0.75)]).figure(7);
        assert!(text.contains("<title id=\"t7\">&lt;Recall&gt;</title>"), "{text}");
        assert!(text.contains("a: 0.5000 at epoch 1 to 0.7500 at epoch 4."), "{text}");
        assert!(text.contains("\"epochs\":[1,2,4],\"values\":[0.5,1.0,0.75]"), "{text}");
        assert!(text.contains("<path class=\"curve\" d=\"M54 "), "{text}");
        let one = chart(vec![(3, 0.5)]).figure(0);
        assert!(
            one.contains("class=\"dot\" cx=\"225\"") && !one.contains("class=\"curve\""),
            "{one}"
        );
        assert!(one.contains("\"epochs\":3,\"values\":[0.5]"), "{one}");
        // Also where there is nothing to draw.
        assert!(chart(Vec::new()).figure(0).ends_with("</figure>\n"));
    }

    #[test]
    fn data_for_the_script_cannot_end_it() {
        let mut chart = chart(vec![(1, 1.0)]);
        chart.series[0].name = "</script><script>alert(1)</script>".into();
        let text = chart.figure(0);
        assert_eq!(text.matches("<script").count(), 1, "{text}");
        assert_eq!(text.matches("</script").count(), 1, "{text}");
    }

    #[test]
    fn many_epochs_take_no_more_room_than_can_be_seen() {
        let wave = |epochs: u64| chart((1..=epochs).map(|e| (e, (e as f64).sin())).collect());
        let (some, many) = (wave(2_000).figure(0).len(), wave(200_000).figure(0).len());
        assert!(some < 24_000 && many < some + 4_000, "{some} {many}");
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
