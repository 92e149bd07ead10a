//! The curves of a report, for one run or several.

use super::chart::{Chart, Series};
use super::read::{ReportedRun, metric};
use super::thin::Points;
use crate::records::{EpochRecord, Metrics};
use crate::train::STOPPING_LENGTH;

/// How many curves colours can tell apart.
pub const COLOURS: usize = 8;

/// The metrics, by their names in records and on the page.
pub const METRICS: [(&str, &str); 4] =
    [("recall", "Recall"), ("ndcg", "NDCG"), ("precision", "Precision"), ("map", "MAP")];

/// Charts that belong together.
#[derive(Debug, Default)]
pub struct Section {
    /// What they show.
    pub title: &'static str,
    /// The charts.
    pub charts: Vec<Chart>,
    /// Whether to draw them larger than others.
    pub large: bool,
    /// A title and further charts, folded below.
    pub more: Option<(&'static str, Vec<Chart>)>,
}

/// The colour of each run. If there are more runs than colours, the best by validation Recall@20
/// get one and the others none.
pub fn colours(runs: &[ReportedRun]) -> Vec<Option<usize>> {
    if runs.len() <= COLOURS {
        return (0..runs.len()).map(Some).collect();
    }
    let recall = |run: &ReportedRun| {
        let best = run.best().and_then(|best| best.valid.as_ref());
        best.and_then(|valid| valid.recall_at(STOPPING_LENGTH)).unwrap_or(f64::NEG_INFINITY)
    };
    let mut order: Vec<usize> = (0..runs.len()).collect();
    order.sort_by(|&a, &b| recall(&runs[b]).total_cmp(&recall(&runs[a])));
    let mut colours = vec![None; runs.len()];
    // In the order of the runs, so that neighbours in a table differ.
    let mut best = order[..COLOURS].to_vec();
    best.sort_unstable();
    best.into_iter().enumerate().for_each(|(colour, run)| colours[run] = Some(colour));
    colours
}

/// The list lengths that any run measured, ascending.
pub fn lengths(runs: &[ReportedRun]) -> Vec<usize> {
    let measured = |record: &EpochRecord| {
        let of = |metrics: &Option<Metrics>| metrics.iter().flat_map(|m| m.top_k.clone()).collect();
        let [valid, test]: [Vec<usize>; 2] = [of(&record.valid), of(&record.test)];
        valid.into_iter().chain(test)
    };
    let mut lengths: Vec<usize> =
        runs.iter().flat_map(|run| run.records.first()).flat_map(measured).collect();
    lengths.sort_unstable();
    lengths.dedup();
    lengths
}

/// All charts of a report on `runs`.
pub fn sections(runs: &[ReportedRun]) -> Vec<Section> {
    let page = Page { runs, colours: colours(runs) };
    let mut sections = vec![page.metrics(), page.losses(), page.times()];
    sections.retain(|section| !section.charts.is_empty());
    sections
}

struct Page<'a> {
    runs: &'a [ReportedRun],
    colours: Vec<Option<usize>>,
}

impl Page<'_> {
    fn is_one(&self) -> bool {
        self.runs.len() == 1
    }

    /// A chart of `value` over each run's epochs; a run without values is left out.
    fn chart(&self, title: &str, note: &str, value: impl Fn(&EpochRecord) -> Option<f64>) -> Chart {
        let mut series: Vec<Series> = (0..self.runs.len())
            .map(|run| {
                let name = if self.is_one() { title.to_owned() } else { self.run_name(run) };
                let colour = self.colours[run];
                let label = colour.filter(|_| !self.is_one()).map(|_| (run + 1).to_string());
                self.series(run, name, label, colour, &value)
            })
            .collect();
        lift(&mut series);
        self.framed(title, note, series)
    }

    /// A chart without the curves that have no point.
    fn framed(&self, title: &str, note: &str, mut series: Vec<Series>) -> Chart {
        series.retain(|series| !series.points.is_empty());
        let best = self.runs.first().filter(|_| self.is_one()).and_then(ReportedRun::best);
        Chart {
            title: title.to_owned(),
            note: note.to_owned(),
            best_epoch: best.map(|best| best.epoch),
            series,
            ..Chart::default()
        }
    }

    fn run_name(&self, run: usize) -> String {
        format!("{} {}", run + 1, self.runs[run].name)
    }

    fn series(
        &self,
        run: usize,
        name: String,
        label: Option<String>,
        colour: Option<usize>,
        value: &impl Fn(&EpochRecord) -> Option<f64>,
    ) -> Series {
        let point = |record: &EpochRecord| Some((record.epoch, value(record)?));
        let points: Points = self.runs[run].records.iter().filter_map(point).collect();
        let best = self.runs[run].best().and_then(point).filter(|_| colour.is_some());
        Series { run, name, label, colour, points, best, ..Series::default() }
    }

    /// A chart for each loss term, the total first: their magnitudes differ.
    fn losses(&self) -> Section {
        let mut names: Vec<&str> = Vec::new();
        let records = self.runs.iter().filter_map(|run| run.records.first());
        for (name, _) in records.flat_map(|record| &record.loss) {
            if !names.contains(&&**name) {
                names.push(name);
            }
        }
        let chart = |name: &&str| self.chart(name, meaning(name), |record| record.loss_term(name));
        let charts = names.iter().map(chart).collect();
        Section { title: "Loss", charts, ..Section::default() }
    }

    /// Metrics. For one run, each at all list lengths; for several, at the deciding length, with
    /// the others folded below.
    fn metrics(&self) -> Section {
        let lengths = lengths(self.runs);
        let title = "Metrics";
        if self.is_one() {
            let chart = |(name, title)| self.at_all_lengths(name, title, &lengths);
            let charts = METRICS.into_iter().map(chart);
            let charts = charts.filter(|chart| !chart.series.is_empty()).collect();
            return Section { title, charts, large: true, more: None };
        }
        let decides = match lengths.contains(&STOPPING_LENGTH) {
            true => Some(STOPPING_LENGTH),
            false => lengths.last().copied(),
        };
        let at = |k: usize| METRICS.map(|(name, title)| self.at_length(name, title, k));
        let charts = decides.into_iter().flat_map(at).collect();
        let others: Vec<Chart> =
            lengths.into_iter().filter(|&k| Some(k) != decides).flat_map(at).collect();
        let more = (!others.is_empty()).then_some(("At other list lengths", others));
        Section { title, charts, large: true, more }
    }

    /// One run: a colour per list length.
    fn at_all_lengths(&self, name: &str, title: &str, lengths: &[usize]) -> Chart {
        let mut series = Vec::new();
        for (position, &k) in lengths.iter().enumerate() {
            let colour = Some(position % COLOURS);
            let label = |split: &str| format!("@{k}, {split}");
            let valid = |record: &EpochRecord| metric(record.valid.as_ref(), name, k);
            let test = |record: &EpochRecord| metric(record.test.as_ref(), name, k);
            let end = Some(format!("@{k}"));
            let valid = self.series(0, label("valid"), end.clone(), colour, &valid);
            let test = self.series(0, label("test"), None, colour, &test);
            let only_test = valid.points.is_empty();
            series.push(Series { dashed: true, label: end.filter(|_| only_test), ..test });
            series.push(valid);
        }
        self.framed(title, "at each list length K", series)
    }

    /// Several runs: a colour per run.
    fn at_length(&self, name: &str, title: &str, k: usize) -> Chart {
        let mut series = Vec::new();
        for run in 0..self.runs.len() {
            let colour = self.colours[run];
            let label = |split: &str| format!("{}, {split}", self.run_name(run));
            let end = colour.map(|_| (run + 1).to_string());
            let valid = |record: &EpochRecord| metric(record.valid.as_ref(), name, k);
            let test = |record: &EpochRecord| metric(record.test.as_ref(), name, k);
            let valid = self.series(run, label("valid"), end.clone(), colour, &valid);
            let only_test = valid.points.is_empty();
            if colour.is_some() || only_test {
                let test = self.series(run, label("test"), None, colour, &test);
                series.push(Series { dashed: true, label: end.filter(|_| only_test), ..test });
            }
            series.push(valid);
        }
        lift(&mut series);
        self.framed(&format!("{title}@{k}"), "", series)
    }

    /// Seconds per epoch, and the learning rate if it changes.
    fn times(&self) -> Section {
        let train = |record: &EpochRecord| Some(record.train_seconds);
        let evaluate = |record: &EpochRecord| Some(record.evaluate_seconds);
        let mut charts = match self.is_one() {
            true => {
                let part = |name: &str, colour, value: fn(&EpochRecord) -> Option<f64>| {
                    let label = Some(name.to_owned());
                    self.series(0, format!("{name}, s"), label, Some(colour), &value)
                };
                let series = vec![part("train", 0, train), part("eval", 1, evaluate)];
                vec![self.framed("Seconds per epoch", "steps, and evaluation", series)]
            }
            false => vec![
                self.chart("Seconds per epoch, training", "its steps", train),
                self.chart("Seconds per epoch, evaluation", "both splits", evaluate),
            ],
        };
        for chart in &mut charts {
            chart.from_zero = true;
            chart.best_epoch = None;
            for series in &mut chart.series {
                series.best = None;
                series.rings = self.profiled(series);
                if !series.rings.is_empty() {
                    chart.note = "○ operations timed one by one".to_owned();
                }
            }
        }
        let changes = |run: &ReportedRun| {
            run.records.windows(2).any(|pair| pair[0].learning_rate != pair[1].learning_rate)
        };
        if self.runs.iter().any(changes) {
            let rate = |record: &EpochRecord| Some(record.learning_rate);
            charts.push(self.chart("Learning rate", "", rate));
        }
        Section { title: "Time and learning rate", charts, ..Section::default() }
    }

    /// The points of epochs whose operations were timed.
    fn profiled(&self, series: &Series) -> Points {
        let records = &self.runs[series.run].records;
        let profiled = |epoch: u64| {
            let position = records.binary_search_by_key(&epoch, |record| record.epoch);
            position.is_ok_and(|position| records[position].profiled)
        };
        let points = series.points.iter().copied().filter(|_| series.colour.is_some());
        points.filter(|&(epoch, _)| profiled(epoch)).collect()
    }
}

/// Draws curves with a colour above those without.
fn lift(series: &mut [Series]) {
    series.sort_by_key(|series| series.colour.is_some());
}

/// A loss term in a few words.
fn meaning(term: &str) -> &'static str {
    match term.split_once('.').map_or(term, |(kind, _)| kind) {
        "total" => "the terms, weighted",
        "ui" => "user to item",
        "iu" => "item to user",
        "align" => "between modality and embedding",
        "mask" => "within the modality",
        "reg" => "norms of the embeddings",
        _ => "",
    }
}
