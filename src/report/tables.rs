//! The tables of a report: runs, metrics, settings.

use std::fmt::Write;

use super::curves::{self, METRICS};
use super::number::{duration, escaped, significant};
use super::read::{ReportedRun, metric};
use crate::records::{EpochRecord, Metrics};
use crate::run::StopReason;
use crate::text::grouped;

/// The heading of a row: a run's colour, number and name; if there is only one run, its name.
pub fn run_heading(run: usize, runs: &[ReportedRun], colours: &[Option<usize>]) -> String {
    // Let long names break after a setting or a directory.
    let name = escaped(&runs[run].name).replace(',', ",<wbr>").replace('/', "/<wbr>");
    if runs.len() == 1 {
        return name;
    }
    let colour = colours[run].map_or("other".to_owned(), |colour| format!("c{colour}"));
    format!("<i class=\"swatch {colour}\"></i>{} {name}", run + 1)
}

/// What each run is, and how it ended.
pub fn overview(runs: &[ReportedRun], colours: &[Option<usize>]) -> String {
    let mut text = "<div class=\"scroll\"><table><thead><tr><th class=\"text\">run</th>\
                    <th class=\"text\">data set</th><th class=\"text\">device</th>\
                    <th class=\"text\">stopped by</th><th>epochs</th><th>best epoch</th>\
                    <th>training</th><th>evaluation</th></tr></thead>\n<tbody>\n"
        .to_owned();
    for (index, run) in runs.iter().enumerate() {
        let seconds = |part: fn(&EpochRecord) -> f64| {
            duration(run.records.iter().map(part).fold(0.0, |all, seconds| all + seconds))
        };
        let epochs = run.records.last().map_or(0, |record| record.epoch);
        let best = run.best().map_or("–".to_owned(), |best| grouped(best.epoch));
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "<tr><th class=\"name\">{}</th><td class=\"text\">{}</td><td class=\"text\">{}</td>\
             <td class=\"text\">{}</td><td>{}</td><td>{best}</td><td>{}</td><td>{}</td></tr>",
            run_heading(index, runs, colours),
            escaped(run.dataset().unwrap_or("–")),
            escaped(run.device().unwrap_or("–")),
            stopped_by(run),
            grouped(epochs),
            seconds(|record| record.train_seconds),
            seconds(|record| record.evaluate_seconds),
        );
    }
    text.push_str("</tbody></table></div>\n");
    text
}

fn stopped_by(run: &ReportedRun) -> &'static str {
    match run.summary.as_ref().map(|summary| summary.stopped_by) {
        Some(StopReason::Patience) => "patience",
        Some(StopReason::Epochs) => "epochs",
        Some(StopReason::Interrupted) => "interrupted; --resume goes on",
        None => "not ended yet, or killed",
    }
}

/// The metrics of both splits at each run's best epoch; with several runs, the best value of each
/// column is marked.
pub fn metrics(runs: &[ReportedRun], colours: &[Option<usize>]) -> String {
    let lengths = curves::lengths(runs);
    if lengths.is_empty() {
        return "<p>Neither split has users: there are no metrics.</p>\n".to_owned();
    }
    let columns: Vec<(&str, usize)> =
        METRICS.iter().flat_map(|&(name, _)| lengths.iter().map(move |&k| (name, k))).collect();
    // Set metrics apart from each other.
    let class = |column: usize, best: bool| match (column % lengths.len(), best) {
        (0, true) => " class=\"first best\"",
        (0, false) => " class=\"first\"",
        (_, true) => " class=\"best\"",
        (_, false) => "",
    };
    let mut text = "<div class=\"scroll\"><table class=\"metrics\"><thead><tr><th></th>".to_owned();
    for (_, title) in METRICS {
        let _ = write!(text, "<th class=\"group\" colspan=\"{}\">{title}</th>", lengths.len());
    }
    text.push_str("</tr>\n<tr><th></th>");
    for (column, (_, k)) in columns.iter().enumerate() {
        let _ = write!(text, "<th{}>@{k}</th>", class(column, false));
    }
    text.push_str("</tr></thead>\n");
    let of_valid: fn(&EpochRecord) -> Option<&Metrics> = |record| record.valid.as_ref();
    let of_test: fn(&EpochRecord) -> Option<&Metrics> = |record| record.test.as_ref();
    for (split, of) in [("Validation", of_valid), ("Test", of_test)] {
        let value = |run: &ReportedRun, (name, k)| metric(run.best().and_then(of), name, k);
        let span = columns.len() + 1;
        let _ =
            writeln!(text, "<tbody><tr><th class=\"split\" colspan=\"{span}\">{split}</th></tr>");
        let highest = columns.iter().map(|&column| {
            let values = runs.iter().filter_map(|run| value(run, column));
            significant(values.fold(f64::NEG_INFINITY, f64::max))
        });
        let highest: Vec<String> = highest.collect();
        for (index, run) in runs.iter().enumerate() {
            let heading = run_heading(index, runs, colours);
            let _ = write!(text, "<tr><th class=\"name\">{heading}</th>");
            for (column, highest) in highest.iter().enumerate() {
                let shown = value(run, columns[column]).map(significant);
                // Values that look the same are equally good.
                let best = runs.len() > 1 && shown.as_ref() == Some(highest);
                let shown = shown.as_deref().unwrap_or("–");
                let _ = write!(text, "<td{}>{shown}</td>", class(column, best));
            }
            text.push_str("</tr>\n");
        }
        text.push_str("</tbody>\n");
    }
    text.push_str("</table></div>\n");
    text
}

/// Settings: those that differ, run by run, then those that all runs share.
pub fn settings(runs: &[ReportedRun], colours: &[Option<usize>]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in runs.iter().flat_map(|run| &run.settings) {
        if !names.contains(&&**name) {
            names.push(name);
        }
    }
    if names.is_empty() {
        return "<p>There is no config.toml.</p>\n".to_owned();
    }
    let differs = |name: &&str| runs.iter().any(|run| run.setting(name) != runs[0].setting(name));
    let (differ, same): (Vec<&str>, Vec<&str>) = names.into_iter().partition(differs);
    let mut text = String::new();
    if !differ.is_empty() {
        text.push_str("<h3>Different between the runs</h3>\n<div class=\"scroll\"><table><thead><tr><th></th>");
        for name in &differ {
            let _ = write!(text, "<th class=\"text\">{}</th>", escaped(name));
        }
        text.push_str("</tr></thead>\n<tbody>\n");
        for (index, run) in runs.iter().enumerate() {
            let heading = run_heading(index, runs, colours);
            let _ = write!(text, "<tr><th class=\"name\">{heading}</th>");
            for name in &differ {
                let value = escaped(run.setting(name).unwrap_or("–"));
                let _ = write!(text, "<td class=\"text\">{value}</td>");
            }
            text.push_str("</tr>\n");
        }
        text.push_str("</tbody></table></div>\n<h3>The same in all</h3>\n");
    }
    text.push_str("<dl class=\"columns\">\n");
    for name in same {
        let value = runs[0].setting(name).unwrap_or("–");
        let _ = writeln!(text, "<div><dt>{}</dt><dd>{}</dd></div>", escaped(name), escaped(value));
    }
    text.push_str("</dl>\n");
    text
}
