//! The whole page, as one text.

use std::fmt::Write;

use super::chart::Chart;
use super::curves::{self, Section};
use super::number::{escaped, significant};
use super::read::{ReportedRun, metric};
use super::tables::{self, run_heading};
use super::timing;
use crate::text::grouped;
use crate::train::STOPPING_LENGTH;

/// The first lines of every report.
pub const MARKER: &str = "<!doctype html>\n<!-- bm3-engine report -->\n";

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// The page needs nothing from elsewhere, and may not load it.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                      base-uri 'none'; form-action 'none'";

/// Renders a report on runs as a self-contained HTML file; `title` replaces a default that names
/// the run or counts the runs. The same runs give the same text.
///
/// Text from files is escaped: the name of a run, a data set or a setting cannot become markup.
pub fn render(runs: &[ReportedRun], title: Option<&str>) -> String {
    let colours = curves::colours(runs);
    let title = escaped(title.unwrap_or(&default_title(runs)));
    let mut text = format!(
        "{MARKER}<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <header>\n<h1>{title}</h1>\n{}</header>\n<main>\n",
        lead(runs),
    );
    text.push_str(&tables::overview(runs, &colours));
    text.push_str(&legend(runs, &colours));
    let best = "<h2>At the best epoch</h2>\n<p class=\"quiet\">The epoch with the highest validation \
                Recall@20, in which the test split has no say.</p>\n";
    text.push_str(best);
    text.push_str(&tables::metrics(runs, &colours));
    let mut id = 0;
    for section in curves::sections(runs) {
        push_section(&mut text, &section, runs.len(), &mut id);
    }
    text.push_str("<h2>Time by operation</h2>\n");
    text.push_str(&timing::operations(runs, &colours));
    text.push_str("<h2>Settings</h2>\n");
    text.push_str(&tables::settings(runs, &colours));
    // Writing to a string does not fail.
    let _ = write!(
        text,
        "</main>\n<footer>Written by bm3-engine {} report.</footer>\n\
         <script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    );
    text
}

/// The names of the runs' data sets, if there is more than one.
pub fn data_sets(runs: &[ReportedRun]) -> Option<Vec<&str>> {
    let mut names: Vec<&str> = runs.iter().filter_map(ReportedRun::dataset).collect();
    names.sort_unstable();
    names.dedup();
    (names.len() > 1).then_some(names)
}

fn default_title(runs: &[ReportedRun]) -> String {
    match runs {
        [run] => run.name.clone(),
        runs => {
            let first = runs.first().and_then(ReportedRun::dataset);
            let same = first.filter(|_| runs.iter().all(|run| run.dataset() == first));
            let on = same.map_or(String::new(), |dataset| format!(" on {dataset}"));
            format!("{} runs{on}", runs.len())
        }
    }
}

/// The main result, in one sentence; if the runs are of several data sets, that there is none.
fn lead(runs: &[ReportedRun]) -> String {
    if let Some(names) = data_sets(runs) {
        let names: Vec<String> = names.into_iter().map(escaped).collect();
        return format!(
            "<p>Runs on {}: metrics on different data sets do not compare.</p>\n",
            names.join(", ")
        );
    }
    let recall = |run: &&ReportedRun| {
        let best = run.best()?;
        metric(best.valid.as_ref().or(best.test.as_ref()), "recall", STOPPING_LENGTH)
    };
    let measured = runs.iter().filter_map(|run| Some((recall(&run)?, run)));
    // Ties go to the first.
    let best = measured.reduce(|best, next| if next.0 > best.0 { next } else { best });
    let Some((_, run)) = best else { return String::new() };
    let Some(record) = run.best() else { return String::new() };
    let epochs = run.records.last().map_or(0, |record| record.epoch);
    let at = format!("epoch {} of {}", grouped(record.epoch), grouped(epochs));
    let value = |name, title| {
        let (split, metrics) = match &record.test {
            Some(test) => ("test", Some(test)),
            None => ("validation", record.valid.as_ref()),
        };
        let value = metric(metrics, name, STOPPING_LENGTH)?;
        Some(format!("{split} {title}@{STOPPING_LENGTH} {}", significant(value)))
    };
    let values: Vec<String> =
        [value("recall", "Recall"), value("ndcg", "NDCG")].into_iter().flatten().collect();
    let which = match (runs.len(), &record.valid) {
        (1, _) => format!("Best at {at}"),
        (_, Some(_)) => {
            format!("Highest validation Recall@20: {}, at {at}", escaped(&run.name))
        }
        (_, None) => format!("Highest test Recall@20: {}, at {at}", escaped(&run.name)),
    };
    format!("<p>{which}: {}.</p>\n", values.join(", "))
}

/// The runs with their colours, as buttons that hide them.
fn legend(runs: &[ReportedRun], colours: &[Option<usize>]) -> String {
    if runs.len() == 1 {
        return String::new();
    }
    let mut text = "<div class=\"legend\" role=\"group\" aria-label=\"Runs\">\n".to_owned();
    for run in (0..runs.len()).filter(|&run| colours[run].is_some()) {
        let heading = run_heading(run, runs, colours);
        let _ = writeln!(text, "<button type=\"button\" data-run=\"{run}\">{heading}</button>");
    }
    let others = colours.iter().filter(|colour| colour.is_none()).count();
    if others > 0 {
        let _ = writeln!(
            text,
            "<span><i class=\"swatch other\"></i>{others} other{}, lower in validation Recall@20</span>",
            if others == 1 { "" } else { "s" }
        );
    }
    text.push_str("</div>\n");
    text
}

fn push_section(text: &mut String, section: &Section, runs: usize, id: &mut usize) {
    let _ = writeln!(text, "<section>\n<h2>{}</h2>", section.title);
    let all = || section.charts.iter().chain(section.more.iter().flat_map(|(_, charts)| charts));
    let has =
        |dashed: bool| all().flat_map(|chart| &chart.series).any(|series| series.dashed == dashed);
    if has(true) {
        let sample = |class: &str, shape: &str, name: &str| {
            format!(
                "<span><svg viewBox=\"0 0 30 10\" class=\"c5 {class}\" aria-hidden=\"true\">{shape}</svg>{name}</span>\n"
            )
        };
        let line = "<path class=\"curve\" d=\"M1 5H29\"/>";
        let mark = "<circle class=\"mark\" cx=\"15\" cy=\"5\" r=\"3.5\"/>";
        text.push_str("<div class=\"key\">");
        if has(false) {
            text.push_str(&sample("", line, "validation"));
        }
        text.push_str(&sample("test", line, "test"));
        if runs > 1 {
            text.push_str(&sample("", mark, "best epoch"));
        }
        text.push_str("</div>\n");
    }
    let mut push = |text: &mut String, charts: &[Chart], large: bool| {
        let class = if large { "charts large" } else { "charts" };
        let _ = writeln!(text, "<div class=\"{class}\">");
        for chart in charts {
            *id += 1;
            text.push_str(&chart.figure(*id));
        }
        text.push_str("</div>\n");
    };
    push(text, &section.charts, section.large);
    if let Some((title, charts)) = &section.more {
        let _ = writeln!(text, "<details><summary>{title}</summary>");
        push(text, charts, false);
        text.push_str("</details>\n");
    }
    text.push_str("</section>\n");
}
