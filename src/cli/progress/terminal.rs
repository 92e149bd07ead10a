//! Two lines that change in place.
//!
//! ```text
//! epoch 12/1000 ━━━━━━━━━━━━━━━━━━╸━━━━━━━━━ 31/58  109 steps/s
//! loss 1.2345  Recall@20 .0807  best .0812 at epoch 9  until epoch 30 at least, 10 s
//! ```

use bm3_engine::records::{EpochRecord, RunStart};
use indicatif::{ProgressBar, ProgressStyle};

use super::lines::{duration, share};
use super::{Best, STOPPING_LENGTH};

const TEMPLATE: &str = "{prefix} {wide_bar} {pos}/{len}  {msg}";

/// The progress of a run on a terminal; indicatif draws it on standard error, at most 20 times a
/// second, and without colours if NO_COLOR is set.
pub struct Terminal {
    bar: ProgressBar,
    epochs: u64,
    patience: u64,
    best: Option<Best>,
    /// The epoch from which patience is counted while there is no best epoch.
    first_epoch: u64,
    /// The epoch whose steps the bar shows.
    shown: u64,
    /// The line below the bar.
    state: String,
    /// Steps taken when the last epoch ended.
    steps: Option<u64>,
    rate: String,
}

impl Terminal {
    pub fn new(run: &RunStart, best: Option<Best>) -> Self {
        let bar = ProgressBar::new(0);
        // The template is a constant; if indicatif ever refuses it, its default bar is shown.
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        Self {
            bar,
            epochs: run.epochs,
            patience: run.patience,
            best,
            first_epoch: run.first_epoch,
            shown: 0,
            state: String::new(),
            steps: None,
            rate: String::new(),
        }
    }

    pub fn step(&mut self, epoch: u64, step_in_epoch: u64, steps_per_epoch: u64) {
        if self.shown != epoch {
            self.shown = epoch;
            self.bar.set_prefix(format!("epoch {epoch}/{}", self.epochs));
            self.bar.set_length(steps_per_epoch);
        }
        self.bar.set_position(step_in_epoch);
    }

    #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    pub fn epoch(&mut self, record: &EpochRecord, best: Option<Best>) {
        self.best = best;
        if let Some(steps) = self.steps
            && record.train_seconds > 0.0
        {
            let rate = record.step.saturating_sub(steps) as f64 / record.train_seconds;
            self.rate = format!("{rate:.0} steps/s");
        }
        self.steps = Some(record.step);
        self.state = self.describe(record);
        self.bar.set_message(format!("{}\n{}", self.rate, self.state));
    }

    /// The line below the bar after an epoch.
    #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    fn describe(&self, record: &EpochRecord) -> String {
        let mut parts = Vec::new();
        if let Some(total) = record.loss_term("total") {
            parts.push(format!("loss {total:.4}"));
        }
        let recall = record.valid.as_ref().and_then(|valid| valid.recall_at(STOPPING_LENGTH));
        if let Some(recall) = recall {
            parts.push(format!("Recall@{STOPPING_LENGTH} {}", share(recall)));
        }
        if let Some(best) = self.best {
            parts.push(format!("best {} at epoch {}", share(best.recall), best.epoch));
        }
        let last = self.last_epoch();
        let seconds = record.train_seconds + record.evaluate_seconds;
        let left = last.saturating_sub(record.epoch) as f64 * seconds;
        // A later epoch may be the best, and training then goes on.
        let at_least = if last < self.epochs { " at least" } else { "" };
        parts.push(format!("until epoch {last}{at_least}, {}", duration(left)));
        parts.join("  ")
    }

    /// The last epoch to be trained, unless a later one becomes the best.
    fn last_epoch(&self) -> u64 {
        let counted_from = self.best.map_or(self.first_epoch.saturating_sub(1), |best| best.epoch);
        counted_from.saturating_add(self.patience).saturating_add(1).min(self.epochs)
    }

    /// Clears the lines for what is printed next.
    pub fn clear(self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_in_sight_is_that_of_an_unlucky_run() {
        let run = RunStart { epochs: 100, patience: 20, first_epoch: 1, ..RunStart::default() };
        let mut terminal = Terminal::new(&run, None);
        assert_eq!(terminal.last_epoch(), 21);
        terminal.best = Some(Best { epoch: 9, recall: 0.0812 });
        assert_eq!(terminal.last_epoch(), 30);
        let record = EpochRecord {
            epoch: 12,
            loss: vec![("total".into(), 1.23454)],
            train_seconds: 0.5,
            evaluate_seconds: 0.25,
            ..EpochRecord::default()
        };
        assert_eq!(
            terminal.describe(&record),
            "loss 1.2345  best .0812 at epoch 9  until epoch 30 at least, 14 s"
        );
        terminal.best = Some(Best { epoch: 90, recall: 0.1 });
        assert_eq!(terminal.last_epoch(), 100);
        terminal.patience = u64::MAX;
        assert_eq!(terminal.last_epoch(), 100);
    }
}
