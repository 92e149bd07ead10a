//! Progress of a sweep: several runs at once.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bm3_engine::data::Dataset;
use bm3_engine::records::EpochRecord;
use bm3_engine::run::{StopReason, Summary};
use bm3_engine::sweep::{Event, PlannedRun, Results, Room, SweepDirectory, Watcher};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;

use super::lines::{duration, share};
use super::{Best, Face, STOPPING_LENGTH};
use crate::cli::output::{self, counted};
use crate::cli::sweep_table::{describe, results_table};

/// One line of `--json`; events of the whole sweep have no `run`.
#[derive(Serialize)]
struct Line<'a, T> {
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<&'a str>,
    #[serde(flatten)]
    fields: &'a T,
}

/// Shows what a sweep's runs do, and at the end how they compare.
pub struct SweepReporter {
    face: Face,
    state: Mutex<State>,
}

struct State {
    /// Standard output: data.
    data: Box<dyn Write + Send>,
    /// Standard error: talk.
    talk: Box<dyn Write + Send>,
    /// Runs that have ended, out of `all`.
    done: usize,
    all: usize,
    best: HashMap<String, Best>,
    bars: Option<Bars>,
    /// The first failure to write; nothing is written after it. Training goes on.
    failure: Option<io::Error>,
}

/// A bar for each run in progress, and one for the sweep.
struct Bars {
    all: MultiProgress,
    sweep: ProgressBar,
    runs: HashMap<String, ProgressBar>,
}

impl SweepReporter {
    /// A reporter on this process's standard output and error.
    pub fn new(face: Face) -> Self {
        Self::on(face, Box::new(io::stdout()), Box::new(io::stderr()))
    }

    fn on(face: Face, data: Box<dyn Write + Send>, talk: Box<dyn Write + Send>) -> Self {
        let state =
            State { data, talk, done: 0, all: 0, best: HashMap::new(), bars: None, failure: None };
        Self { face, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces the sweep: `waiting` of `all` runs are still to train.
    pub fn begin(
        &self,
        directory: &SweepDirectory,
        dataset: &Dataset,
        all: usize,
        waiting: usize,
        room: &Room,
    ) {
        let mut state = self.state();
        state.all = all;
        let path = directory.path().display();
        match self.face {
            Face::Json => state.line(
                "sweep",
                None,
                &serde_json::json!({
                    "directory": path.to_string(),
                    "dataset": dataset.name,
                    "runs": all,
                    "waiting": waiting,
                    "jobs": room.lanes.jobs,
                    "shared_bytes": room.shared,
                    "bytes_each": room.each,
                    "free_bytes": room.free,
                }),
            ),
            Face::Quiet => {}
            Face::Plain | Face::Terminal => {
                let name = &dataset.name;
                state.say(&match all - waiting {
                    0 => format!("{name}: {all} runs; {}", describe(room)),
                    kept if kept == all => format!("{name}: {all} runs, all finished before"),
                    kept => {
                        format!(
                            "{name}: {all} runs, {kept} of them finished before; {}",
                            describe(room)
                        )
                    }
                });
                state.say(&format!("sweep {path}"));
                if self.face == Face::Terminal {
                    state.bars = Some(Bars::new(all));
                }
            }
        }
    }

    /// Prints a comparison of the runs on standard output.
    ///
    /// # Errors
    /// The first failure to write that this reporter met.
    pub fn finish(self, results: &Results, directory: &SweepDirectory) -> anyhow::Result<()> {
        let mut state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(bars) = state.bars.take() {
            // If the bars cannot be cleared, they stay.
            let _ = bars.all.clear();
        }
        let open = results.count("interrupted") + results.count("waiting");
        match self.face {
            Face::Json => state.line("results", None, results),
            face => {
                if face != Face::Quiet && open > 0 {
                    let path = directory.path().display();
                    state.say(&format!(
                        "interrupted: {open} of {} runs are left, to be continued with `bm3-engine \
                         sweep --resume {path}`",
                        state.all
                    ));
                }
                let written = state.data.write_all(results_table(results).as_bytes());
                state.keep_failure(written);
            }
        }
        let flushed = state.data.flush();
        state.keep_failure(flushed);
        state.failure.map_or(Ok(()), |error| Err(output::unwritten(error).into()))
    }
}

impl State {
    fn line<T: Serialize>(&mut self, event: &'static str, run: Option<&str>, fields: &T) {
        if self.failure.is_some() {
            return;
        }
        let written = serde_json::to_string(&Line { event, run, fields })
            .map_err(io::Error::from)
            .and_then(|line| writeln!(self.data, "{line}"))
            .and_then(|()| self.data.flush());
        self.keep_failure(written);
    }

    /// Prints a line of talk; a failure to print it is ignored.
    fn say(&mut self, line: &str) {
        match &self.bars {
            Some(bars) => {
                let _ = bars.all.println(line);
            }
            None => {
                let _ = writeln!(self.talk, "{line}");
            }
        }
    }

    fn keep_failure(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            self.failure.get_or_insert(error);
        }
    }

    /// Counts a run as ended and reports it in these words.
    fn ended(&mut self, run: &str, words: &str) {
        self.done += 1;
        let count = format!("{:>width$}", self.done, width = self.all.to_string().len());
        if let Some(bars) = &mut self.bars {
            bars.end(run);
        }
        self.say(&format!("{count}/{} {run}: {words}", self.all));
    }
}

impl Watcher for SweepReporter {
    fn event(&self, run: &PlannedRun, event: Event<'_>) {
        let mut state = self.state();
        let name = run.name.as_str();
        match self.face {
            Face::Quiet => {}
            Face::Json => {
                let name = Some(name);
                let problem = |error: &dyn std::error::Error| serde_json::json!({ "problem": error.to_string() });
                match event {
                    Event::Kept(summary) => state.line("kept", name, summary),
                    Event::Start(start) => state.line("start", name, start),
                    Event::Step { .. } => {}
                    Event::Epoch(record) => state.line("epoch", name, record),
                    Event::Checkpoint(path) => {
                        state.line("checkpoint", name, &serde_json::json!({ "path": path }));
                    }
                    Event::End(summary) => state.line("end", name, summary),
                    Event::Failed(error) => state.line("failed", name, &problem(error)),
                    Event::Postponed(error) => state.line("postponed", name, &problem(error)),
                }
            }
            Face::Plain | Face::Terminal => match event {
                Event::Kept(_) => {
                    state.done += 1;
                    if let Some(bars) = &state.bars {
                        bars.sweep.inc(1);
                    }
                }
                Event::Start(start) => {
                    if let Some(bars) = &mut state.bars {
                        bars.begin(name, start.first_epoch, start.epochs);
                    } else {
                        let after = match start.first_epoch {
                            1 => String::new(),
                            epoch => format!(", after epoch {}", epoch - 1),
                        };
                        state.say(&format!("{name}: training on {}{after}", start.device));
                    }
                }
                Event::Step { .. } => {}
                Event::Epoch(record) => {
                    if let Some(best) = Best::of(record) {
                        state.best.insert(name.to_owned(), best);
                    }
                    let best = state.best.get(name).copied();
                    if let Some(bars) = &state.bars {
                        bars.epoch(name, record, best);
                    }
                }
                Event::Checkpoint(_) => {}
                Event::End(summary) => state.ended(name, &end(summary)),
                Event::Failed(error) => state.ended(name, &format!("failed: {error}")),
                Event::Postponed(error) => {
                    if let Some(bars) = &mut state.bars {
                        bars.drop_run(name);
                    }
                    state.say(&format!("{name}: waits until another run has ended: {error}"));
                }
            },
        }
    }
}

/// How a run ended, on one line.
fn end(summary: &Summary) -> String {
    let why = match summary.stopped_by {
        StopReason::Patience => "stopped early",
        StopReason::Epochs => "all epochs trained",
        StopReason::Interrupted => "interrupted and saved",
    };
    let recall = |metrics: &Option<bm3_engine::records::Metrics>, split: &str| {
        let recall = metrics.as_ref().and_then(|metrics| metrics.recall_at(STOPPING_LENGTH));
        recall.map_or(String::new(), |recall| {
            format!(", {split} R@{STOPPING_LENGTH} {}", share(recall))
        })
    };
    let best = summary.best_epoch.map_or(String::new(), |epoch| format!(", best epoch {epoch}"));
    format!(
        "{why}: {}{best}{}{}; {}",
        counted(summary.epochs, "epoch"),
        recall(&summary.valid, "valid"),
        recall(&summary.test, "test"),
        duration(summary.train_seconds + summary.evaluate_seconds),
    )
}

impl Bars {
    fn new(runs: usize) -> Self {
        let all = MultiProgress::new();
        let sweep = all.add(ProgressBar::new(runs as u64));
        // The template is a constant; if indicatif ever refuses it, its default bar is shown.
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} runs") {
            sweep.set_style(style.progress_chars("━╸─"));
        }
        sweep.tick();
        Self { all, sweep, runs: HashMap::new() }
    }

    fn begin(&mut self, run: &str, first_epoch: u64, epochs: u64) {
        let bar = self.all.insert_before(&self.sweep, ProgressBar::new(epochs));
        bar.set_position(first_epoch.saturating_sub(1));
        if let Ok(style) = ProgressStyle::with_template("{prefix}  epoch {pos}/{len}  {wide_msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(run.to_owned());
        self.runs.insert(run.to_owned(), bar);
    }

    fn epoch(&self, run: &str, record: &EpochRecord, best: Option<Best>) {
        let Some(bar) = self.runs.get(run) else { return };
        bar.set_position(record.epoch);
        let mut parts = Vec::new();
        if let Some(total) = record.loss_term("total") {
            parts.push(format!("loss {total:.4}"));
        }
        if let Some(best) = best {
            parts.push(format!("best {} at epoch {}", share(best.recall), best.epoch));
        }
        bar.set_message(parts.join("  "));
    }

    fn end(&mut self, run: &str) {
        self.drop_run(run);
        self.sweep.inc(1);
    }

    fn drop_run(&mut self, run: &str) {
        if let Some(bar) = self.runs.remove(run) {
            bar.finish_and_clear();
            self.all.remove(&bar);
        }
    }
}
