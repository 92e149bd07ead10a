//! One chart: curves over epochs as SVG that needs no script, with their values for a script.

use serde::Serialize;

use super::axes::{Axes, BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH};
use super::number::{escaped, significant};
use super::scale::{self, Scale};
use super::thin::{Points, thin};

/// A curve.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// The position of its run on the page.
    pub run: usize,
    /// Its name in the read-out.
    pub name: String,
    /// The label at its end, if there are other curves to tell it from.
    pub label: Option<String>,
    /// The number of its colour; `None` for one among many.
    pub colour: Option<usize>,
    /// Whether it shows the test split.
    pub dashed: bool,
    /// Its values.
    pub points: Points,
    /// The best epoch's point, which is marked.
    pub best: Option<(u64, f64)>,
    /// Points marked as unlike the others.
    pub rings: Points,
}

/// Curves on common axes.
#[derive(Debug, Clone, Default)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// An explanation of the title.
    pub note: String,
    /// Whether the value axis includes 0.
    pub from_zero: bool,
    /// The best epoch, if all curves are of one run.
    pub best_epoch: Option<u64>,
    /// The curves; later ones are drawn on top.
    pub series: Vec<Series>,
}

/// The values of a chart, for the script.
#[derive(Serialize)]
struct Values<'a> {
    /// The first and the last epoch of the axis, and their positions as shares of the width.
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
    /// Consecutive epochs from this one on.
    From(u64),
    All(Vec<u64>),
}

impl Chart {
    /// The chart as an HTML `figure`; `id` must be unique on the page.
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
        // A single epoch lies in the middle.
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

    /// The curves in words, for readers who cannot see them.
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

/// JSON in an element that does not run as a script; nothing in it can end the element.
fn script_data(values: &Values<'_>) -> String {
    // Only numbers and texts, which can always be serialised.
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
    // Only as many digits as are shown.
    let number = |&(_, value): &(u64, f64)| {
        serde_json::Number::from_f64(significant(value).parse().unwrap_or(value))
    };
    Some(SeriesValues {
        name: &series.name,
        run: series.run,
        // Curves without a colour are not read out.
        colour: series.colour?,
        dashed: series.dashed,
        epochs,
        values: series.points.iter().filter_map(number).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Points) -> Chart {
        let best = points.last().copied();
        let series =
            Series { name: "a".into(), colour: Some(0), points, best, ..Series::default() };
        Chart { title: "<Recall>".into(), series: vec![series], ..Chart::default() }
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
        // Also with nothing to draw.
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
}
