//! The training loop (SPEC §5, §7, §9): epochs, evaluation, early stopping. `initial` begins a run,
//! `checkpoints` saves and resumes it.

mod checkpoints;
mod evaluation;
mod initial;
mod profiled;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use checkpoints::check_saved;
pub(crate) use evaluation::{Evaluation, measured_lengths};

use crate::backend::{Backend, Dropout};
use crate::batch::{EpochPlan, epoch_order};
use crate::checkpoint::{FORMAT_VERSION, Identity};
use crate::config::TrainConfig;
use crate::data::Dataset;
use crate::error::NonFinite;
use crate::graph::Graph;
use crate::model::Model;
use crate::parameters::Layout;
use crate::real::Real;
use crate::records::{EpochRecord, Observer, RunStart};
use crate::run::{self, RunDirectory, StopReason, Summary};
use crate::step::{
    DeviceModel, KeptParameters, RawFeatures, adam_step, learning_rate, loss_names, total_loss,
};
use crate::watch::{Failure, Place};
use crate::{Error, Result};

/// The list length whose recall decides which epoch is best.
pub const STOPPING_LENGTH: usize = 20;

/// `metrics.jsonl` is written at most this often during training.
const RECORDS_INTERVAL: Duration = Duration::from_secs(2);

/// How a run begins and is saved; no part of its settings.
#[derive(Debug, Clone)]
pub struct FitOptions<'a> {
    /// A safetensors file of initial values, named as in SPEC §1. It must hold all dense tensors
    /// and may hold raw features.
    pub initial: Option<&'a Path>,
    /// Continues from the directory's state, or starts afresh if there is no state or no directory.
    pub resume: bool,
    /// The least time between two checkpoints, within epochs too; zero: one after each epoch. An
    /// interval of a second or more grows so that saving takes at most a twentieth of the time.
    pub checkpoint_interval: Duration,
}

impl FitOptions<'_> {
    /// The longest interval that slow saving leads to: more must not be lost with a process.
    const LONGEST: Duration = Duration::from_secs(600);

    /// The time from a checkpoint that took `took` to the next one: saving a large model to a slow
    /// disk takes at most a twentieth of the time, as long as ten minutes between checkpoints are
    /// enough for that. An interval below a second is used as it is.
    fn interval_after(&self, took: Duration) -> Duration {
        match self.checkpoint_interval {
            interval if interval < Duration::from_secs(1) => interval,
            interval => interval.max(took.saturating_mul(20).min(Self::LONGEST)),
        }
    }
}

/// Trains a model on `dataset` and leaves it in `directory`.
///
/// Stops early when `stop` becomes true: the step in flight is finished, everything is saved, and
/// the summary says `interrupted`. Resuming is bit-identical to an unbroken run.
///
/// # Errors
/// [`Error::Setting`] for settings out of range, [`Error::Data`] for a data set that cannot be
/// used, [`Error::RunFile`] for a state or initial values that do not fit, [`Error::NonFinite`],
/// [`Error::DeviceMemory`], [`Error::DeviceOperation`], and [`Error::Io`] for failures to write.
pub fn fit<B: Backend>(
    backend: B,
    dataset: &Dataset,
    config: &TrainConfig,
    directory: &RunDirectory,
    options: &FitOptions<'_>,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Summary> {
    let keep = Some(directory);
    run(backend, dataset, config, keep, options, observer, stop).map(|(summary, _)| summary)
}

/// As [`fit`], but in memory if there is no directory; also returns the model and the records.
///
/// # Errors
/// As for [`fit`].
pub fn fit_model<B: Backend>(
    backend: B,
    dataset: &Dataset,
    config: &TrainConfig,
    directory: Option<&RunDirectory>,
    options: &FitOptions<'_>,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Trained> {
    let (summary, run) = run(backend, dataset, config, directory, options, observer, stop)?;
    run.into_trained(summary)
}

/// The outcome of training.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The model of the best validation epoch, or of the last epoch without a validation split;
    /// `None` if training was stopped before the end of its first epoch.
    pub model: Option<Model>,
    /// The summary that a run's directory gets.
    pub summary: Summary,
    /// One record per epoch.
    pub records: Vec<EpochRecord>,
}

fn run<'a, B: Backend>(
    backend: B,
    dataset: &'a Dataset,
    config: &TrainConfig,
    directory: Option<&'a RunDirectory>,
    options: &FitOptions<'_>,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<(Summary, Run<'a, B>)> {
    config.validate()?;
    dataset.check()?;
    let identity = identity(dataset, config);
    let layout = layout(dataset, config);
    let mut run = match directory {
        Some(directory) if options.resume && directory.has_state() => {
            Run::resume(backend, dataset, config, layout, identity, directory)?
        }
        _ => Run::begin(backend, dataset, config, layout, identity, directory, options.initial)?,
    };
    observer.start(&run.start(config));
    let result = run.train(config, options, observer, stop);
    // The last checkpoint remains; keep the records of later epochs as well.
    if let (Err(_), Some(directory)) = (&result, directory) {
        directory.write_records(&run.records).ok();
    }
    result.map(|summary| (summary, run))
}

/// The identity of a model trained on `dataset` with `config`.
pub fn identity(dataset: &Dataset, config: &TrainConfig) -> Identity {
    Identity {
        format_version: FORMAT_VERSION,
        dataset: dataset.name.clone(),
        interactions_fingerprint: dataset.interactions_fingerprint(),
        features_fingerprints: dataset.features_fingerprints(),
        users: dataset.users,
        items: dataset.items,
        modalities: widths(dataset),
        config: config.clone(),
    }
}

/// The layout of a model for `dataset`.
pub fn layout(dataset: &Dataset, config: &TrainConfig) -> Layout {
    layout_of(config, dataset, &widths(dataset))
}

/// The layout of a model for `dataset`'s users and items, with modalities of the given names and
/// widths.
pub fn layout_of(config: &TrainConfig, dataset: &Dataset, widths: &[(String, usize)]) -> Layout {
    Layout::new(config, dataset.users, dataset.items, widths)
}

/// The names and widths D_m of a data set's modalities.
pub fn widths(dataset: &Dataset) -> Vec<(String, usize)> {
    let width = |modality: &crate::data::Modality| modality.features.columns();
    dataset.modalities.iter().map(|modality| (modality.name.clone(), width(modality))).collect()
}

/// The best epoch so far.
struct Best<B: Backend> {
    record: EpochRecord,
    /// Its parameters, while `model.safetensors` does not hold them.
    unsaved: Option<KeptParameters<B>>,
}

struct Run<'a, B: Backend> {
    model: DeviceModel<B>,
    batches: B::Batches,
    /// Where the device keeps the features, in words.
    features: Option<String>,
    dataset: &'a Dataset,
    /// The run's directory, if it has one.
    directory: Option<&'a RunDirectory>,
    identity: Identity,
    evaluation: Evaluation<B>,
    records: Vec<EpochRecord>,
    best: Option<Best<B>>,
    evaluations_since_best: u64,
    batch_size: usize,
    /// The step of the last checkpoint, if there is one.
    saved: Option<u64>,
    /// Epochs completed, steps done in the next epoch, steps in all.
    epoch: u64,
    step_in_epoch: u64,
    step: u64,
    /// Seconds that this process has spent on the steps of that epoch.
    epoch_seconds: f64,
}

/// The reasons for an epoch to pause before its end.
#[derive(Clone, Copy)]
struct Pause<'a> {
    /// Asks training to stop.
    stop: &'a AtomicBool,
    /// When the last checkpoint was made.
    saved: Instant,
    /// How long after that the next one is due; `None` if not within an epoch.
    interval: Option<Duration>,
}

impl Pause<'_> {
    /// Whether to pause after `steps` steps; a pause for a checkpoint needs at least one.
    fn is_due(&self, steps: u64) -> bool {
        let due = |interval| steps > 0 && self.saved.elapsed() >= interval;
        self.stop.load(Ordering::Relaxed) || self.interval.is_some_and(due)
    }
}

impl<'a, B: Backend> Run<'a, B> {
    fn with_model(
        model: DeviceModel<B>,
        dataset: &'a Dataset,
        config: &TrainConfig,
        identity: Identity,
        directory: Option<&'a RunDirectory>,
        features: Option<String>,
    ) -> Result<Self> {
        // Trained features have been read, and are not read again.
        dataset.check_unchanged()?;
        let Dataset { users, items, ref train, .. } = *dataset;
        let batches = model.backend().batches(train, users, items, config.batch_size)?;
        let evaluation = Evaluation::new(model.backend(), dataset, &measured_lengths(config))?;
        Ok(Self {
            model,
            batches,
            features,
            dataset,
            directory,
            identity,
            evaluation,
            records: Vec::new(),
            best: None,
            evaluations_since_best: 0,
            batch_size: config.batch_size,
            saved: None,
            epoch: 0,
            step_in_epoch: 0,
            step: 0,
            epoch_seconds: 0.0,
        })
    }

    fn start(&self, config: &TrainConfig) -> RunStart {
        let dataset = self.dataset;
        let trained = |modality: &crate::data::Modality| {
            if config.freeze_features { 0 } else { dataset.items * modality.features.columns() }
        };
        RunStart {
            dataset: dataset.name.clone(),
            users: dataset.users,
            items: dataset.items,
            train_pairs: dataset.train.users.len(),
            valid_pairs: dataset.valid.items.len(),
            test_pairs: dataset.test.items.len(),
            modalities: widths(dataset),
            parameters: self.model.layout().len()
                + dataset.modalities.iter().map(trained).sum::<usize>(),
            device: self.model.backend().describe(),
            features: self.features.clone(),
            first_epoch: self.epoch + 1,
            epochs: config.epochs,
            patience: config.patience,
            directory: self.directory.map(|directory| directory.path().to_owned()),
        }
    }

    fn steps_per_epoch(&self, config: &TrainConfig) -> u64 {
        self.dataset.train.users.len().div_ceil(config.batch_size) as u64
    }

    fn train(
        &mut self,
        config: &TrainConfig,
        options: &FitOptions<'_>,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Summary> {
        // The times of the last writes; the next ones may lie beyond what an `Instant` can hold.
        let (mut saved, mut recorded) = (Instant::now(), Instant::now());
        let mut interval = options.checkpoint_interval;
        let stopped_by = loop {
            if self.out_of_patience(config) {
                break StopReason::Patience;
            }
            if self.epoch >= config.epochs {
                break StopReason::Epochs;
            }
            let within = self.directory.is_some() && !interval.is_zero();
            let pause = Pause { stop, saved, interval: within.then_some(interval) };
            match self.observed_epoch(config, observer, &pause)? {
                Some(record) => {
                    observer.epoch(&record);
                    self.records.push(record);
                }
                None if stop.load(Ordering::Relaxed) => break StopReason::Interrupted,
                None => {}
            }
            if saved.elapsed() >= interval {
                interval = options.interval_after(self.checkpoint(observer)?);
                (saved, recorded) = (Instant::now(), Instant::now());
            } else if recorded.elapsed() >= RECORDS_INTERVAL {
                self.write_records()?;
                recorded = Instant::now();
            }
        };
        self.checkpoint(observer)?;
        let summary = self.summary(stopped_by);
        if let Some(directory) = self.directory {
            directory.write_summary(&summary)?;
        }
        Ok(summary)
    }

    fn out_of_patience(&self, config: &TrainConfig) -> bool {
        !self.dataset.valid.users.is_empty() && self.evaluations_since_best > config.patience
    }

    /// The rest of an epoch and its evaluation; `None` if it paused before its end.
    fn train_epoch(
        &mut self,
        config: &TrainConfig,
        observer: &mut dyn Observer,
        pause: &Pause<'_>,
    ) -> Result<Option<EpochRecord>> {
        let start = Instant::now();
        let steps = self.steps_per_epoch(config);
        if self.step - self.step_in_epoch + steps > u64::from(u32::MAX) {
            let problem = format!(
                "{} is too many: an epoch has {steps} steps, and a run {} at most; give {}",
                config.epochs,
                u32::MAX,
                u64::from(u32::MAX) / steps
            );
            return Err(Error::setting("--epochs", problem));
        }
        let rate = learning_rate(config, self.epoch);
        let first = self.step_in_epoch;
        let plan = EpochPlan {
            order: config.order,
            seed: config.seed,
            epoch: self.epoch,
            // The check above keeps step numbers within 32 bits.
            first_step: (self.step - first) as u32 + 1,
        };
        self.model.backend().arrange(&mut self.batches, plan)?;
        let constants = (1..=steps - first).map(|step| adam_step(self.step + step, rate));
        self.model.plan(&constants.collect::<Vec<_>>())?;
        let dropout = match config.dropout {
            0.0 => Dropout::None,
            probability => Dropout::Random { probability, seed: config.seed },
        };
        let (epoch, mut begun) = (self.epoch + 1, first);
        let mut proceed = || {
            if begun > first {
                observer.step(epoch, begun, steps);
            }
            let proceeds = !pause.is_due(begun - first);
            begun += u64::from(proceeds);
            proceeds
        };
        let done = self.model.train(&mut self.batches, first..steps, &dropout, &mut proceed)?;
        if let Some(failure) = self.model.failure()? {
            return Err(self.non_finite(failure, plan).into());
        }
        self.step += done;
        self.step_in_epoch += done;
        if self.step_in_epoch < steps {
            self.epoch_seconds += start.elapsed().as_secs_f64();
            return Ok(None);
        }
        observer.step(epoch, steps, steps);
        let loss = self.mean_losses(config, steps)?;
        self.epoch += 1;
        self.step_in_epoch = 0;
        let train_seconds = std::mem::take(&mut self.epoch_seconds) + start.elapsed().as_secs_f64();

        let start = Instant::now();
        let (valid, test) = self.evaluation.measure(&mut self.model)?;
        let recall = valid.as_ref().and_then(|valid| valid.recall_at(STOPPING_LENGTH));
        // Without a validation split, the last epoch counts as the best.
        let best = match (recall, self.best.as_ref().and_then(|best| best.record.valid.as_ref())) {
            (Some(recall), Some(best)) => Some(recall) > best.recall_at(STOPPING_LENGTH),
            _ => true,
        };
        let mut record = EpochRecord {
            epoch: self.epoch,
            step: self.step,
            learning_rate: rate,
            loss,
            valid,
            test,
            train_seconds,
            evaluate_seconds: 0.0,
            best,
            profiled: false,
        };
        if best {
            // Drop the old snapshot first, so that two are never kept at once.
            self.best = None;
            let unsaved = Some(self.model.keep()?);
            self.best = Some(Best { record: record.clone(), unsaved });
            self.evaluations_since_best = 0;
        } else {
            self.evaluations_since_best += 1;
        }
        record.evaluate_seconds = start.elapsed().as_secs_f64();
        Ok(Some(record))
    }

    /// Means of the loss terms over the epoch's batches, by name; resets the sums.
    fn mean_losses(&mut self, config: &TrainConfig, steps: u64) -> Result<Vec<(String, f64)>> {
        let sums = self.model.losses()?;
        self.model.set_losses(&vec![0.0; sums.len()])?;
        let means: Vec<f64> = sums.iter().map(|sum| sum / steps as f64).collect();
        let names: Vec<String> =
            self.dataset.modalities.iter().map(|modality| modality.name.clone()).collect();
        let total = ("total".to_owned(), total_loss(config, &means));
        let terms = loss_names(&names).into_iter().zip(means);
        Ok(std::iter::once(total).chain(terms).collect())
    }

    /// A failure in the run's terms: tensor, epoch, batch and pairs.
    fn non_finite(&self, failure: Failure, plan: EpochPlan) -> Box<NonFinite> {
        let (batch_size, pairs) = (self.batch_size, &self.dataset.train);
        let batch = failure.step.saturating_sub(plan.first_step) as usize;
        let order = epoch_order(plan.order, plan.seed, plan.epoch, pairs.users.len());
        let batches = order.len().div_ceil(batch_size);
        let positions = order.chunks(batch_size).nth(batch).unwrap_or_default();
        let pair = |&pair: &u32| (pairs.users[pair as usize], pairs.items[pair as usize]);
        let modalities = &self.model.layout().modalities;
        let names: Vec<String> =
            self.dataset.modalities.iter().map(|modality| modality.name.clone()).collect();
        let what = match failure.place {
            Place::Loss { term, value } => {
                format!("loss term `{}` is {value}", loss_names(&names)[term])
            }
            Place::Dense { element } => {
                let tensors = &self.model.layout().tensors;
                let tensor = tensors.iter().find(|tensor| tensor.range.contains(&element));
                let name = tensor.map_or("a parameter", |tensor| &tensor.name);
                format!("the gradient of `{name}`, or what it was moved to, is not finite")
            }
            Place::Features { modality, item } => format!(
                "the gradient of `{}`, row {item}, or what it was moved to, is not finite",
                modalities[modality].features_name()
            ),
        };
        Box::new(NonFinite {
            step: failure.step.into(),
            epoch: self.epoch + 1,
            batch: batch as u64 + 1,
            batches: batches as u64,
            pairs: positions.len(),
            first_pairs: positions.iter().take(3).map(pair).collect(),
            what,
            checkpoint: self.saved.and_then(|step| Some((self.directory?.file(run::STATE), step))),
        })
    }

    fn summary(&self, stopped_by: StopReason) -> Summary {
        let best = self.best.as_ref().map(|best| &best.record);
        let seconds =
            |part: fn(&EpochRecord) -> f64| self.records.iter().map(part).fold(0.0, |a, b| a + b);
        Summary {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            dataset: self.dataset.name.clone(),
            device: self.model.backend().describe(),
            stopped_by,
            epochs: self.epoch,
            steps: self.step,
            best_epoch: best.map(|best| best.epoch),
            valid: best.and_then(|best| best.valid.clone()),
            test: best.and_then(|best| best.test.clone()),
            train_seconds: seconds(|record| record.train_seconds),
            evaluate_seconds: seconds(|record| record.evaluate_seconds),
        }
    }
}

/// The training graph of a data set.
pub fn graph(dataset: &Dataset, config: &TrainConfig) -> Arc<Graph> {
    dataset.graph(config.self_loops)
}

fn feature_sources<T: Real>(
    dataset: &Dataset,
    config: &TrainConfig,
    mut trained: impl FnMut(usize, &crate::data::Modality) -> Result<RawFeatures<T>>,
) -> Result<Vec<RawFeatures<T>>> {
    let source = |(index, modality): (usize, &crate::data::Modality)| match config.freeze_features {
        true => Ok(RawFeatures::Frozen(modality.features.clone())),
        false => trained(index, modality),
    };
    dataset.modalities.iter().enumerate().map(source).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saving_takes_a_twentieth_of_the_time_at_most() {
        let after = |interval: f64, took: f64| {
            let checkpoint_interval = Duration::from_secs_f64(interval);
            let options = FitOptions { initial: None, resume: false, checkpoint_interval };
            options.interval_after(Duration::from_secs_f64(took)).as_secs_f64()
        };
        assert_eq!(after(30.0, 1.0), 30.0);
        assert_eq!(after(30.0, 3.0), 60.0);
        // Intervals below a second stay as they are.
        assert_eq!((after(0.0, 3.0), after(0.5, 3.0)), (0.0, 0.5));
        // Ten minutes at most, unless more were asked for.
        assert_eq!((after(30.0, 100.0), after(1000.0, 100.0)), (600.0, 1000.0));
    }
}
