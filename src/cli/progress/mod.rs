//! Progress of training: on a terminal, in a log, for a program, or not shown.

mod lines;
mod sweep;
mod terminal;

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use bm3_engine::records::{EpochRecord, Observer, RunStart};
use bm3_engine::run::{Summary, read_records};
use bm3_engine::train::STOPPING_LENGTH;
use serde::Serialize;

use super::output;
use super::table::metrics_table;
pub use sweep::SweepReporter;
use terminal::Terminal;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// Two lines on standard error that change in place.
    Terminal,
    /// One line per epoch on standard error.
    Plain,
    /// One JSON object per event on standard output, and nothing else there.
    Json,
    /// Nothing.
    Quiet,
}

impl Face {
    /// Chooses by the flags and by whether standard error is a terminal.
    pub fn choose(json: bool, quiet: bool) -> Self {
        match (json, quiet) {
            (true, _) => Self::Json,
            (_, true) => Self::Quiet,
            _ if io::stderr().is_terminal() => Self::Terminal,
            _ => Self::Plain,
        }
    }
}

/// The epoch whose model is kept.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Best {
    epoch: u64,
    recall: f64,
}

impl Best {
    fn of(record: &EpochRecord) -> Option<Self> {
        let recall = record.valid.as_ref()?.recall_at(STOPPING_LENGTH)?;
        record.best.then_some(Self { epoch: record.epoch, recall })
    }
}

/// One line of `--json`.
#[derive(Serialize)]
struct Event<'a, T> {
    event: &'static str,
    #[serde(flatten)]
    fields: &'a T,
}

#[derive(Serialize)]
struct Checkpoint<'a> {
    path: &'a Path,
}

/// Shows a run's records, and at the end its metrics.
pub struct Reporter {
    face: Face,
    /// Standard output: data.
    data: Box<dyn Write>,
    /// Standard error: talk.
    talk: Box<dyn Write>,
    terminal: Option<Terminal>,
    best: Option<Best>,
    /// Epochs trained before the run was continued.
    earlier: u64,
    /// The first failure to write; nothing is written after it. Training goes on: the run's own
    /// files do not depend on this reporter.
    failure: Option<io::Error>,
}

impl Reporter {
    /// A reporter on this process's standard output and error.
    pub fn new(face: Face) -> Self {
        Self::on(face, Box::new(io::stdout()), Box::new(io::stderr()))
    }

    fn on(face: Face, data: Box<dyn Write>, talk: Box<dyn Write>) -> Self {
        Self { face, data, talk, terminal: None, best: None, earlier: 0, failure: None }
    }

    /// Says how the run ended, and prints its metrics on standard output.
    ///
    /// # Errors
    /// The first failure to write that this reporter met.
    pub fn finish(mut self, summary: &Summary) -> anyhow::Result<()> {
        if let Some(terminal) = self.terminal.take() {
            terminal.clear();
        }
        match self.face {
            Face::Json => self.event("end", summary),
            face => {
                if face != Face::Quiet {
                    self.say(&lines::end(summary));
                    if let Some(advice) = lines::nothing_left(summary, self.earlier) {
                        self.say(&advice);
                    }
                }
                let splits = [("valid", &summary.valid), ("test", &summary.test)];
                let measured: Vec<_> = splits
                    .into_iter()
                    .filter_map(|(name, metrics)| Some((name, metrics.as_ref()?)))
                    .collect();
                let table = metrics_table(&measured);
                let written = self.data.write_all(table.as_bytes());
                self.keep_failure(written);
            }
        }
        let flushed = self.data.flush();
        self.keep_failure(flushed);
        self.failure.map_or(Ok(()), |error| Err(output::unwritten(error).into()))
    }

    fn event<T: Serialize>(&mut self, event: &'static str, fields: &T) {
        if self.failure.is_some() {
            return;
        }
        let written = serde_json::to_string(&Event { event, fields })
            .map_err(io::Error::from)
            .and_then(|line| writeln!(self.data, "{line}"))
            .and_then(|()| self.data.flush());
        self.keep_failure(written);
    }

    /// Prints a line of talk; a failure to print it does not fail the run.
    fn say(&mut self, line: &str) {
        let _ = writeln!(self.talk, "{line}");
    }

    fn keep_failure(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            self.failure.get_or_insert(error);
        }
    }
}

impl Observer for Reporter {
    fn start(&mut self, run: &RunStart) {
        self.earlier = run.first_epoch.saturating_sub(1);
        if let Some(directory) = run.directory.as_ref().filter(|_| run.first_epoch > 1) {
            // For display only: without them, the best epoch is the best of this process.
            let earlier = read_records(directory, run.first_epoch - 1).unwrap_or_default();
            self.best = earlier.iter().rev().find_map(Best::of);
        }
        match self.face {
            Face::Json => self.event("start", run),
            Face::Quiet => {}
            face => {
                for line in lines::start(run) {
                    self.say(&line);
                }
                if face == Face::Terminal {
                    self.terminal = Some(Terminal::new(run, self.best));
                }
            }
        }
    }

    fn step(&mut self, epoch: u64, step_in_epoch: u64, steps_per_epoch: u64) {
        if let Some(terminal) = &mut self.terminal {
            terminal.step(epoch, step_in_epoch, steps_per_epoch);
        }
    }

    fn epoch(&mut self, record: &EpochRecord) {
        self.best = Best::of(record).or(self.best);
        match self.face {
            Face::Json => self.event("epoch", record),
            Face::Plain => self.say(&lines::epoch(record, self.best)),
            Face::Terminal => {
                if let Some(terminal) = &mut self.terminal {
                    terminal.epoch(record, self.best);
                }
            }
            Face::Quiet => {}
        }
    }

    fn checkpoint(&mut self, path: &Path) {
        if self.face == Face::Json {
            self.event("checkpoint", &Checkpoint { path });
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
