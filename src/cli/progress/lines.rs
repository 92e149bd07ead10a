//! What a run reports, line by line.

use std::fmt::Write;

use bm3_engine::records::{EpochRecord, RunStart};
use bm3_engine::run::{StopReason, Summary};
use bm3_engine::text::grouped;

use super::{Best, STOPPING_LENGTH};
use crate::cli::output::counted;

/// The data set, the number of parameters, the device and the run's directory.
pub fn start(run: &RunStart) -> Vec<String> {
    let modalities: Vec<String> =
        run.modalities.iter().map(|(name, width)| format!("{name} ({width})")).collect();
    let modalities =
        if modalities.is_empty() { "no modalities".to_owned() } else { modalities.join(", ") };
    let mut lines = vec![
        format!(
            "{}: {}, {}, {} training, {} validation, {} test pairs; {modalities}",
            run.dataset,
            counted(run.users as u64, "user"),
            counted(run.items as u64, "item"),
            grouped(run.train_pairs as u64),
            grouped(run.valid_pairs as u64),
            grouped(run.test_pairs as u64),
        ),
        format!("{} parameters, on {}", grouped(run.parameters as u64), run.device),
    ];
    if let Some(directory) = &run.directory {
        lines.push(format!("run {}", directory.display()));
    }
    if let Some(features) = &run.features {
        lines.insert(2, features.clone());
    }
    if run.first_epoch > 1 {
        lines.push(format!("continuing after epoch {}", run.first_epoch - 1));
    }
    lines
}

/// One epoch on one line.
pub fn epoch(record: &EpochRecord, best: Option<Best>) -> String {
    let mut line = format!("epoch {:>4}", record.epoch);
    // Writing to a string does not fail.
    if let Some(total) = record.loss_term("total") {
        let _ = write!(line, "  loss {total:.4}");
    }
    let terms: Vec<String> = record
        .loss
        .iter()
        .filter(|(name, _)| name != "total")
        .map(|(name, value)| format!("{name} {value:.4}"))
        .collect();
    if !terms.is_empty() {
        let _ = write!(line, " ({})", terms.join(" "));
    }
    if let Some(recall) = record.valid.as_ref().and_then(|valid| valid.recall_at(STOPPING_LENGTH)) {
        let _ = write!(line, "  valid R@{STOPPING_LENGTH} {}", share(recall));
    }
    if let Some(best) = best {
        let _ = write!(line, " best {}@{}", share(best.recall), best.epoch);
    }
    let _ = write!(line, "  {:.2} s", record.train_seconds + record.evaluate_seconds);
    line
}

/// Why the run ended, and after how much work.
pub fn end(summary: &Summary) -> String {
    let why = match summary.stopped_by {
        StopReason::Patience => "stopped early",
        StopReason::Epochs => "all epochs trained",
        StopReason::Interrupted => "interrupted, to be continued with --resume",
    };
    let best = summary.best_epoch.map_or(String::new(), |epoch| format!(", best epoch {epoch}"));
    format!(
        "{why}: {}, {}{best}; {} training, {} evaluating",
        counted(summary.epochs, "epoch"),
        counted(summary.steps, "step"),
        duration(summary.train_seconds),
        duration(summary.evaluate_seconds),
    )
}

/// Advice for a continued run that had `earlier` epochs and trained no more.
pub fn nothing_left(summary: &Summary, earlier: u64) -> Option<String> {
    if earlier == 0 || summary.epochs > earlier {
        return None;
    }
    let flag = match summary.stopped_by {
        StopReason::Patience => "--patience",
        StopReason::Epochs => "--epochs",
        StopReason::Interrupted => return None,
    };
    Some(format!("note: the run was over, and nothing was trained; go on with a larger {flag}"))
}

/// A number between 0 and 1 in five characters.
pub fn share(value: f64) -> String {
    let text = format!("{value:.4}");
    match text.strip_prefix("0.") {
        Some(decimals) => format!(".{decimals}"),
        None => text,
    }
}

/// A duration for people, as in `1 min 1 s`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
pub fn duration(seconds: f64) -> String {
    if seconds < 10.0 {
        return format!("{seconds:.1} s");
    }
    match seconds.round() as u64 {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_people_read_them() {
        assert_eq!(counted(0, "epoch"), "0 epochs");
        assert_eq!(counted(1, "epoch"), "1 epoch");
        assert_eq!(counted(999, "item"), "999 items");
        assert_eq!(grouped(1_254_441), "1,254,441");
        assert_eq!(share(0.0812), ".0812");
        assert_eq!(share(1.0), "1.0000");
        assert_eq!(duration(0.53), "0.5 s");
        assert_eq!(duration(59.4), "59 s");
        assert_eq!(duration(61.0), "1 min 1 s");
        assert_eq!(duration(7260.0), "2 h 1 min");
        assert_eq!(duration(f64::NAN), "0 s");
    }
}
