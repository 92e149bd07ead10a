//! Training several runs side by side.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::directory::{RESULTS, RESULTS_TABLE, SweepDirectory};
use super::plan::{Plan, PlannedRun};
use super::results::{Outcome, Results};
use crate::backend::Backend;
use crate::data::Dataset;
use crate::records::{EpochRecord, Observer, RunStart};
use crate::run::{CONFIG, RunDirectory, StopReason, Summary};
use crate::train::{FitOptions, fit};
use crate::{Error, Result};

/// How many runs train at once, and on how many threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lanes {
    /// Runs at once, at least 1.
    pub jobs: usize,
    /// CPU threads, shared among the runs; `None` if the CPU does not compute.
    pub threads: Option<usize>,
}

impl Lanes {
    /// The threads of run number `begun` (from 0), which starts when `waiting` runs, itself
    /// included, have not started.
    ///
    /// The first `jobs` runs share the threads evenly. Each later run takes the place of one that
    /// has ended; once fewer runs wait than there are places, each takes an even share among these.
    fn threads_of(self, begun: usize, waiting: usize) -> Option<usize> {
        let threads = self.threads?;
        let even =
            |places: usize, place: usize| threads / places + usize::from(place < threads % places);
        let share = match begun < self.jobs {
            true => even(self.jobs, begun),
            false => even(self.jobs.min(waiting).max(1), 0),
        };
        Some(share.max(1))
    }
}

/// What a run of a sweep reports.
#[derive(Debug)]
pub enum Event<'a> {
    /// It finished in an earlier process, and is kept.
    Kept(&'a Summary),
    /// It starts or continues.
    Start(&'a RunStart),
    /// A step of an epoch is done.
    Step {
        /// From 1.
        epoch: u64,
        /// From 1.
        step_in_epoch: u64,
        /// The number of the last one.
        steps_per_epoch: u64,
    },
    /// An epoch was trained and evaluated.
    Epoch(&'a EpochRecord),
    /// A checkpoint is safely on disk.
    Checkpoint(&'a Path),
    /// It ended or was interrupted.
    End(&'a Summary),
    /// It failed.
    Failed(&'a Error),
    /// Memory did not hold it beside the others: it starts again when one of them has ended.
    Postponed(&'a Error),
}

/// Receives the events of a sweep's runs, from several threads at once.
pub trait Watcher: Sync {
    /// Receives an event of `run`.
    fn event(&self, run: &PlannedRun, event: Event<'_>);
}

/// Ignores all events.
impl Watcher for () {
    fn event(&self, _: &PlannedRun, _: Event<'_>) {}
}

/// A sweep, ready to train.
pub struct Sweep<'a> {
    /// What it tries.
    pub plan: &'a Plan,
    /// Its runs, from [`Plan::runs`].
    pub runs: &'a [PlannedRun],
    /// Where its files and runs go.
    pub directory: &'a SweepDirectory,
    /// The data set of each run.
    pub dataset: &'a (dyn Fn(&PlannedRun) -> Arc<Dataset> + Sync),
}

impl Sweep<'_> {
    /// Which runs finished in an earlier process, and which wait.
    ///
    /// # Errors
    /// [`Error::RunFile`] for a run directory that is malformed or has other settings;
    /// [`Error::Io`].
    pub fn outcomes(&self) -> Result<Vec<Outcome>> {
        let outcome = |run| {
            let finished = self.directory.finished(run)?;
            Ok(finished.map_or(Outcome::Waiting, Outcome::Finished))
        };
        self.runs.iter().map(outcome).collect()
    }

    /// Trains the waiting runs of `outcomes` (from [`Sweep::outcomes`]), each on a backend made by
    /// `backend`, and writes the results whenever one ends.
    ///
    /// A run that fails does not stop the others. When `stop` becomes true, all runs are saved and
    /// no other starts.
    ///
    /// # Errors
    /// [`Error::Io`] when the results cannot be written.
    pub fn train<B: Backend + Send>(
        &self,
        mut outcomes: Vec<Outcome>,
        lanes: Lanes,
        backend: &(dyn Fn() -> Result<B> + Sync),
        watcher: &dyn Watcher,
        stop: &AtomicBool,
    ) -> Result<Results> {
        for (run, outcome) in self.runs.iter().zip(&outcomes) {
            if let Outcome::Finished(summary) = outcome {
                watcher.event(run, Event::Kept(summary));
            }
        }
        let waiting: VecDeque<usize> =
            (0..outcomes.len()).filter(|&at| outcomes[at] == Outcome::Waiting).collect();
        let jobs = lanes.jobs.clamp(1, waiting.len().max(1));
        let lanes = Lanes { jobs, ..lanes };
        let queue = Queue { waiting, begun: 0, running: 0 };
        let (queue, kept) = (Mutex::new(queue), Mutex::new(&mut outcomes));
        let written = Mutex::new(self.write(&lock(&kept)));
        thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    loop {
                        let next = lock(&queue).next(lanes, stop);
                        let Some((at, threads)) = next else { return };
                        let run = &self.runs[at];
                        let outcome = self.train_one(run, threads, backend, watcher, stop);
                        let mut queue = lock(&queue);
                        queue.running -= 1;
                        let outcome = match outcome {
                            Err(error @ Error::DeviceMemory { .. }) if queue.running > 0 => {
                                // Memory holds one run fewer than thought: end this thread.
                                queue.waiting.push_front(at);
                                watcher.event(run, Event::Postponed(&error));
                                return;
                            }
                            Ok(summary) => {
                                watcher.event(run, Event::End(&summary));
                                match summary.stopped_by {
                                    StopReason::Interrupted => Outcome::Interrupted(summary),
                                    _ => Outcome::Finished(summary),
                                }
                            }
                            Err(error) => {
                                watcher.event(run, Event::Failed(&error));
                                Outcome::Failed(error.to_string())
                            }
                        };
                        drop(queue);
                        let mut kept = lock(&kept);
                        kept[at] = outcome;
                        let result = self.write(&kept);
                        *lock(&written) = result;
                    }
                });
            }
        });
        // The last write covers every run, so only its result counts.
        written.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        Ok(Results::new(self.plan, self.runs, &outcomes))
    }

    fn write(&self, outcomes: &[Outcome]) -> Result<()> {
        let results = Results::new(self.plan, self.runs, outcomes);
        results.write_csv(&self.directory.file(RESULTS_TABLE))?;
        results.write_json(&self.directory.file(RESULTS))
    }

    /// Starts or continues a run.
    fn train_one<B: Backend + Send>(
        &self,
        run: &PlannedRun,
        threads: Option<usize>,
        backend: &(dyn Fn() -> Result<B> + Sync),
        watcher: &dyn Watcher,
        stop: &AtomicBool,
    ) -> Result<Summary> {
        let path = self.directory.file(&run.name);
        let (config, dataset) = (&run.config, (self.dataset)(run));
        let resume = RunDirectory::has_begun(&path);
        let (directory, problem) = RunDirectory::begin(&path, resume, |directory| {
            // First what may refuse: a run that is refused is left as it was.
            let problem = directory.keep_ids(Some(&config.data))?;
            config.write(&directory.file(CONFIG))?;
            Ok(problem)
        })?;
        if let Some(problem) = problem {
            tracing::warn!(%problem, run = run.name, "the original ids are not kept with the run");
        }
        let options = FitOptions {
            initial: config.init.as_deref(),
            resume,
            checkpoint_interval: Duration::from_secs(config.checkpoint_seconds),
        };
        let mut observer = Named { run, watcher };
        let mut train = || {
            let (train, observer) = (&config.train, &mut observer);
            fit(backend()?, &dataset, train, &directory, &options, observer, stop)
        };
        let result = match threads {
            None => train(),
            // A pool of its own: in a shared pool, a run that waits for its other threads would
            // take up work of other runs.
            Some(threads) => match rayon::ThreadPoolBuilder::new().num_threads(threads).build() {
                Ok(pool) => pool.install(train),
                Err(error) => Err(Error::setting("--threads", error.to_string())),
            },
        };
        directory.end(result)
    }
}

/// The runs that have not started, by position, and counts of those that have.
struct Queue {
    waiting: VecDeque<usize>,
    begun: usize,
    running: usize,
}

impl Queue {
    /// The next run and its threads; `None` if no run is left or all are to stop.
    fn next(&mut self, lanes: Lanes, stop: &AtomicBool) -> Option<(usize, Option<usize>)> {
        if stop.load(Ordering::Relaxed) {
            return None;
        }
        let waiting = self.waiting.len();
        let at = self.waiting.pop_front()?;
        let threads = lanes.threads_of(self.begun, waiting);
        self.begun += 1;
        self.running += 1;
        Some((at, threads))
    }
}

/// Ignores poisoning: a thread that panicked ends the sweep anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Passes a run's events on, with the run.
struct Named<'a> {
    run: &'a PlannedRun,
    watcher: &'a dyn Watcher,
}

impl Observer for Named<'_> {
    fn start(&mut self, run: &RunStart) {
        self.watcher.event(self.run, Event::Start(run));
    }

    fn step(&mut self, epoch: u64, step_in_epoch: u64, steps_per_epoch: u64) {
        self.watcher.event(self.run, Event::Step { epoch, step_in_epoch, steps_per_epoch });
    }

    fn epoch(&mut self, record: &EpochRecord) {
        self.watcher.event(self.run, Event::Epoch(record));
    }

    fn checkpoint(&mut self, path: &Path) {
        self.watcher.event(self.run, Event::Checkpoint(path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The threads of runs that start one after the other.
    fn shares(jobs: usize, threads: usize, runs: usize) -> Vec<usize> {
        let lanes = Lanes { jobs, threads: Some(threads) };
        (0..runs).map(|begun| lanes.threads_of(begun, runs - begun).unwrap()).collect()
    }

    #[test]
    fn threads_are_shared_out_and_the_last_runs_take_what_is_left() {
        assert_eq!(shares(2, 2, 2), [1, 1]);
        assert_eq!(shares(2, 2, 3), [1, 1, 2]);
        assert_eq!(shares(2, 2, 4), [1, 1, 1, 2]);
        assert_eq!(shares(3, 8, 3), [3, 3, 2]);
        assert_eq!(shares(4, 8, 6), [2, 2, 2, 2, 4, 8]);
        assert_eq!(shares(1, 8, 3), [8, 8, 8]);
        assert_eq!(shares(8, 2, 8), [1; 8]);
        assert_eq!(Lanes { jobs: 4, threads: None }.threads_of(0, 4), None);
    }
}
