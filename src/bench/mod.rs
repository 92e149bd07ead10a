//! How fast a device trains and evaluates, and how close each operation comes to the device's
//! ceilings.

mod serving;

use std::time::Instant;

use serde::Serialize;
pub use serving::{BatchRate, CallerRate, Latency, Serving, measure_serving};

use crate::Result;
use crate::backend::{Backend, Dropout};
use crate::batch::EpochPlan;
use crate::config::TrainConfig;
use crate::data::{Dataset, Modality};
use crate::profile::{Ceilings, Operation};
use crate::step::{DeviceModel, RawFeatures, adam_step, learning_rate};
use crate::train::{self, Evaluation};

/// Steps whose operations are timed one by one.
const PROFILED_STEPS: u64 = 20;

/// How many times the features are copied.
const UPLOADS: usize = 3;

/// The median, the least and the most of several times, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    /// The spread of at least one time.
    ///
    /// # Panics
    /// If `times` is empty.
    #[must_use]
    pub fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        let middle = times.len() / 2;
        let median = match times.len() % 2 {
            0 => (times[middle - 1] + times[middle]) / 2.0,
            _ => times[middle],
        };
        Self { median, least: times[0], most: times[times.len() - 1] }
    }
}

/// Feature files converted and copied to a device, from the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Upload {
    /// Bytes of the files' rows.
    pub file_bytes: u64,
    /// Seconds of the fastest of several copies.
    pub seconds: f64,
}

/// The figures of one data set on one device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// The data set's name.
    pub dataset: String,
    /// U, the number of users.
    pub users: usize,
    /// I, the number of items.
    pub items: usize,
    /// Training pairs of an epoch.
    pub pairs: usize,
    /// Name and width D_m of each modality.
    pub modalities: Vec<(String, usize)>,
    /// The device, in words.
    pub device: String,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Seconds of an epoch: its order, its batches and its steps.
    pub epoch_seconds: Spread,
    /// Seconds of an evaluation: scoring the users of both splits, and both splits' metrics.
    pub evaluate_seconds: Spread,
    /// Steps per second in the median epoch.
    pub steps_per_second: f64,
    /// Training pairs per second in the median epoch.
    pub pairs_per_second: f64,
    /// The most bytes of the device's memory in use, if known; on the CPU, the process's.
    pub peak_memory: Option<u64>,
    /// The copy of all features to a device with memory of its own; `None` if they are streamed.
    pub upload: Option<Upload>,
    /// The most that the device can do.
    pub ceilings: Ceilings,
    /// How many steps `operations` covers.
    pub profiled_steps: u64,
    /// Each operation of these steps and of one evaluation, timed by itself.
    pub operations: Vec<Operation>,
}

/// Measures `repeats` (at least 1) epochs and evaluations, after one of each to warm up.
///
/// # Errors
/// [`crate::Error::Setting`] for settings out of range; [`crate::Error::DeviceMemory`] and
/// [`crate::Error::DeviceOperation`].
pub fn measure<B: Backend>(
    mut backend: B,
    dataset: &Dataset,
    config: &TrainConfig,
    repeats: usize,
) -> Result<Measured> {
    config.validate()?;
    let graph = train::graph(dataset, config);
    let streamed = backend.place_features(dataset, &graph, config)?.is_some();
    let upload = if streamed { None } else { upload(&backend, dataset)? };
    let features = dataset.modalities.iter().map(|modality| match config.freeze_features {
        true => RawFeatures::Frozen(modality.features.clone()),
        false => RawFeatures::Untrained(modality.features.clone()),
    });
    let layout = train::layout(dataset, config);
    let model = DeviceModel::fresh(backend, config, layout, graph, features.collect())?;
    let Dataset { users, items, train: pairs, .. } = dataset;
    let batches = model.backend().batches(pairs, *users, *items, config.batch_size)?;
    let steps_per_epoch = pairs.users.len().div_ceil(config.batch_size) as u64;
    let evaluation = Evaluation::new(model.backend(), dataset, &config.top_k)?;
    let mut bench = Bench { model, batches, config, evaluation, epoch: 0, steps_per_epoch };
    let mut epochs = Vec::new();
    let mut evaluations = Vec::new();
    for repeat in 0..=repeats.max(1) {
        let (epoch, evaluation) = (bench.epoch()?, bench.evaluate()?);
        if repeat > 0 {
            epochs.push(epoch);
            evaluations.push(evaluation);
        }
    }
    let operations = bench.operations()?;
    // Read the peak before the ceilings take memory.
    let peak_memory = bench.model.backend().peak_memory();
    let ceilings = bench.model.backend().ceilings()?;
    let upload = upload.filter(|_| ceilings.upload.is_some());
    let epoch_seconds = Spread::of(epochs);
    Ok(Measured {
        dataset: dataset.name.clone(),
        users: *users,
        items: *items,
        pairs: pairs.users.len(),
        modalities: train::widths(dataset),
        device: bench.model.backend().describe(),
        steps_per_epoch,
        epoch_seconds,
        evaluate_seconds: Spread::of(evaluations),
        steps_per_second: steps_per_epoch as f64 / epoch_seconds.median,
        pairs_per_second: pairs.users.len() as f64 / epoch_seconds.median,
        peak_memory,
        upload,
        ceilings,
        profiled_steps: PROFILED_STEPS.min(steps_per_epoch),
        operations,
    })
}

/// Times the copy of all features, a few times.
fn upload<B: Backend>(backend: &B, dataset: &Dataset) -> Result<Option<Upload>> {
    let bytes =
        |modality: &Modality| modality.features.columns() * modality.features.dtype().size();
    let file_bytes = dataset.modalities.iter().map(bytes).sum::<usize>() * dataset.items;
    let mut least = f64::INFINITY;
    for _ in 0..UPLOADS {
        backend.synchronize()?;
        let begun = Instant::now();
        let features = dataset
            .modalities
            .iter()
            .map(|modality| backend.frozen_features(modality.features.clone(), dataset.items));
        let features = features.collect::<Result<Vec<_>>>()?;
        backend.synchronize()?;
        least = least.min(begun.elapsed().as_secs_f64());
        drop(features);
    }
    let file_bytes = file_bytes as u64;
    Ok((file_bytes > 0).then_some(Upload { file_bytes, seconds: least }))
}

struct Bench<'a, B: Backend> {
    model: DeviceModel<B>,
    batches: B::Batches,
    config: &'a TrainConfig,
    evaluation: Evaluation<B>,
    epoch: u64,
    steps_per_epoch: u64,
}

impl<B: Backend> Bench<'_, B> {
    /// Arranges the next epoch.
    fn arrange(&mut self) -> Result<()> {
        let done = self.epoch * self.steps_per_epoch;
        let plan = EpochPlan {
            order: self.config.order,
            seed: self.config.seed,
            epoch: self.epoch,
            first_step: done as u32 + 1,
        };
        self.model.backend().arrange(&mut self.batches, plan)?;
        let rate = learning_rate(self.config, self.epoch);
        let steps = (1..=self.steps_per_epoch).map(|step| adam_step(done + step, rate));
        self.epoch += 1;
        self.model.plan(&steps.collect::<Vec<_>>())
    }

    fn dropout(&self) -> Dropout {
        match self.config.dropout {
            0.0 => Dropout::None,
            probability => Dropout::Random { probability, seed: self.config.seed },
        }
    }

    /// Trains an epoch; returns its seconds.
    fn epoch(&mut self) -> Result<f64> {
        let begun = Instant::now();
        self.arrange()?;
        let (numbers, dropout) = (0..self.steps_per_epoch, self.dropout());
        self.model.train(&mut self.batches, numbers, &dropout, &mut || true)?;
        self.model.losses()?;
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Evaluates; returns the seconds.
    fn evaluate(&mut self) -> Result<f64> {
        let begun = Instant::now();
        self.evaluation.measure(&mut self.model)?;
        self.model.backend().synchronize()?;
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Profiles some steps and an evaluation; operations that take longest come first.
    fn operations(&mut self) -> Result<Vec<Operation>> {
        self.arrange()?;
        let backend = self.model.backend().clone();
        let dropout = self.dropout();
        let mut operations = backend.profile(&mut || {
            for number in 0..PROFILED_STEPS.min(self.steps_per_epoch) {
                // One step at a time: steps that a device records as one are not timed.
                let numbers = number..number + 1;
                self.model.train(&mut self.batches, numbers, &dropout, &mut || true)?;
            }
            self.evaluate().map(|_| ())
        })?;
        operations.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        Ok(operations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_times_lies_in_their_middle() {
        let spread = |times: &[f64]| Spread::of(times.to_vec());
        assert_eq!(spread(&[3.0]), Spread { median: 3.0, least: 3.0, most: 3.0 });
        assert_eq!(spread(&[4.0, 1.0, 2.0]), Spread { median: 2.0, least: 1.0, most: 4.0 });
        assert_eq!(spread(&[4.0, 1.0, 3.0, 2.0]).median, 2.5);
    }
}
