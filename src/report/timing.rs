//! Where the time of an epoch goes.

use std::fmt::Write;

use super::number::{duration, escaped, significant};
use super::read::ReportedRun;
use super::tables::run_heading;
use crate::profile::{Profile, ProfiledOperation};
use crate::text::grouped;

/// The operations of each run that timed them, or how to time them.
pub fn operations(runs: &[ReportedRun], colours: &[Option<usize>]) -> String {
    let profiles = |run: &usize| runs[*run].profile.is_some();
    let profiled: Vec<usize> = (0..runs.len()).filter(profiles).collect();
    let mut text = String::new();
    for (position, &index) in profiled.iter().enumerate() {
        let Some(profile) = &runs[index].profile else { continue };
        if runs.len() == 1 {
            text.push_str(&table(profile));
            continue;
        }
        let heading = run_heading(index, runs, colours);
        let open = if position == 0 { " open" } else { "" };
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "<details{open}><summary>{heading}</summary>\n{}</details>\n",
            table(profile)
        );
    }
    if profiled.len() < runs.len() {
        let who = match (runs.len(), profiled.len()) {
            (1, _) => "This run has not timed its operations".to_owned(),
            (_, 0) => "No run has timed its operations".to_owned(),
            (runs, timed) => match runs - timed {
                1 => "One run has not timed its operations".to_owned(),
                others => format!("{others} runs have not timed their operations"),
            },
        };
        let _ = writeln!(
            text,
            "<p class=\"quiet\">{who}: <code>bm3-engine train --profile</code> does, in one epoch.</p>"
        );
    }
    text
}

/// The operations of an epoch, slowest first.
fn table(profile: &Profile) -> String {
    let all: f64 = profile.operations.iter().map(|ranked| ranked.operation.seconds).sum();
    let mut text = format!(
        "<p class=\"quiet\">Epoch {}: {} steps and one evaluation on {}, each operation timed by itself: \
         {} in all, within {} of training and {} of evaluation. Bytes are the least that must \
         move, much of them from caches.</p>\n\
         <div class=\"scroll\"><table class=\"operations\"><thead><tr><th class=\"text\">operation</th>\
         <th>share</th><th></th><th>time</th><th>calls</th><th>a call</th><th>GB/s</th>\
         <th>GFLOP/s</th></tr></thead>\n<tbody>\n",
        profile.epoch,
        grouped(profile.steps),
        escaped(&profile.device),
        duration(all),
        duration(profile.train_seconds),
        duration(profile.evaluate_seconds),
    );
    let longest = profile.operations.iter().map(|ranked| ranked.share).fold(0.0, f64::max);
    for ProfiledOperation { operation, share } in &profile.operations {
        let per_second = |number: u64| match operation.seconds > 0.0 && number > 0 {
            true => significant(number as f64 / operation.seconds / 1e9),
            false => "–".to_owned(),
        };
        let width = if longest > 0.0 { (100.0 * share / longest).clamp(0.0, 100.0) } else { 0.0 };
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "<tr><th>{}</th><td>{:.1}%</td>\
             <td><span class=\"bar\"><i style=\"width:{width:.1}%\"></i></span></td>\
             <td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escaped(&operation.name),
            100.0 * share,
            duration(operation.seconds),
            grouped(operation.calls),
            duration(operation.seconds / operation.calls.max(1) as f64),
            per_second(operation.bytes),
            per_second(operation.flops),
        );
    }
    text.push_str("</tbody></table></div>\n");
    text
}
