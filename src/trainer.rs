//! Training from another program: settings, a data set, and a callback after each epoch.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::backend::Backend;
use crate::config::{
    ByteSize, ConfigFile, DeviceChoice, FeatureStorage, RunConfig, RunSettings, TrainConfig,
    check_threads,
};
use crate::data::Dataset;
use crate::device::Device;
use crate::records::{EpochRecord, Observer, RunStart};
use crate::run::{CONFIG, RunDirectory};
use crate::train::{FitOptions, Trained, check_saved, fit_model};
use crate::{Error, Result, files, with_backend};

/// Trains models with given settings.
///
/// ```
/// use bm3_engine::{Dataset, TrainConfig, Trainer};
///
/// let dataset = Dataset::builder("tiny")
///     .train(&[0, 0, 1, 1, 2], &[0, 1, 1, 2, 3])
///     .valid(&[0, 1], &[2, 3])
///     .features("text", 2, vec![0.1, 0.2, 0.3, 0.1, 0.5, 0.4, 0.2, 0.9])
///     .build()?;
/// let config = TrainConfig { embedding_size: 8, epochs: 3, ..TrainConfig::default() };
/// let trained = Trainer::new(config).fit(&dataset)?;
/// assert_eq!(trained.records.len(), 3);
/// # Ok::<(), bm3_engine::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Trainer {
    config: TrainConfig,
    device: DeviceChoice,
    feature_storage: FeatureStorage,
    device_memory: Option<u64>,
    threads: Option<usize>,
    directory: Option<PathBuf>,
    resume: bool,
    checkpoint_interval: Duration,
    initial: Option<PathBuf>,
    stop: Arc<AtomicBool>,
}

impl Trainer {
    /// A trainer for `config` that runs on the CPU, on all threads of the rayon pool it is called
    /// from, and keeps everything in memory.
    pub fn new(config: TrainConfig) -> Self {
        Self {
            config,
            device: DeviceChoice::Cpu,
            feature_storage: FeatureStorage::default(),
            device_memory: None,
            threads: None,
            directory: None,
            resume: false,
            checkpoint_interval: Duration::from_secs(30),
            initial: None,
            stop: Arc::default(),
        }
    }

    /// Sets the device to compute on.
    #[must_use]
    pub fn device(self, device: DeviceChoice) -> Self {
        Self { device, ..self }
    }

    /// Sets where frozen features lie on a GPU.
    #[must_use]
    pub fn feature_storage(self, feature_storage: FeatureStorage) -> Self {
        Self { feature_storage, ..self }
    }

    /// Takes at most `bytes` of a GPU's memory: what does not fit is streamed or kept by the host. No
    /// result depends on it.
    #[must_use]
    pub fn device_memory(self, bytes: u64) -> Self {
        Self { device_memory: Some(bytes), ..self }
    }

    /// Trains on this many CPU threads of its own, at least 1. No result depends on it.
    #[must_use]
    pub fn threads(self, threads: usize) -> Self {
        Self { threads: Some(threads), ..self }
    }

    /// Keeps the run in a directory, as the program does: settings, metrics, the best model and
    /// checkpoints. A directory that already has a run is refused.
    #[must_use]
    pub fn directory(self, path: impl Into<PathBuf>) -> Self {
        Self { directory: Some(path.into()), resume: false, ..self }
    }

    /// Continues the run in a directory, bit-identical to one that was never stopped, or begins one
    /// if there is none.
    #[must_use]
    pub fn resume(self, path: impl Into<PathBuf>) -> Self {
        Self { directory: Some(path.into()), resume: true, ..self }
    }

    /// Sets the least time between two checkpoints, 30 seconds by default; it grows if saving takes
    /// more than a twentieth of it.
    #[must_use]
    pub fn checkpoint_interval(self, interval: Duration) -> Self {
        Self { checkpoint_interval: interval, ..self }
    }

    /// Starts from the tensors of a safetensors file, named as in SPEC §1, instead of random ones.
    #[must_use]
    pub fn initial(self, path: impl Into<PathBuf>) -> Self {
        Self { initial: Some(path.into()), ..self }
    }

    /// Sets a flag that any thread may raise: training then finishes the step in flight, saves, and
    /// ends.
    #[must_use]
    pub fn stop_when(self, stop: Arc<AtomicBool>) -> Self {
        Self { stop, ..self }
    }

    /// Trains a model on `dataset`.
    ///
    /// # Errors
    /// [`Error::Setting`] for settings out of range, [`Error::Data`] for a data set that cannot be
    /// used, [`Error::RunFile`] for a directory that does not suit, [`Error::NonFinite`],
    /// [`Error::Io`] for failures to write, and [`Error::Gpu`], [`Error::DeviceMemory`] and
    /// [`Error::DeviceOperation`] from the device.
    pub fn fit(&self, dataset: &Dataset) -> Result<Trained> {
        self.fit_with(dataset, |_| ControlFlow::Continue(()))
    }

    /// Trains, and calls `after_epoch` after each epoch. If it breaks, training ends with
    /// everything saved, as by [`Trainer::stop_when`].
    ///
    /// # Errors
    /// As for [`Trainer::fit`].
    pub fn fit_with(
        &self,
        dataset: &Dataset,
        after_epoch: impl FnMut(&EpochRecord) -> ControlFlow<()> + Send,
    ) -> Result<Trained> {
        let stopped = Arc::new(AtomicBool::new(false));
        let observer = AfterEpoch { after_epoch, stopped: stopped.clone(), stop: &self.stop };
        self.observed(dataset, observer, &stopped)
    }

    /// Trains, and tells `observer` of the start and of every step, epoch and checkpoint. To end
    /// training, it sets the flag of [`Trainer::stop_when`].
    ///
    /// # Errors
    /// As for [`Trainer::fit`].
    pub fn fit_observed(
        &self,
        dataset: &Dataset,
        observer: impl Observer + Send,
    ) -> Result<Trained> {
        self.observed(dataset, observer, &self.stop)
    }

    fn observed(
        &self,
        dataset: &Dataset,
        mut observer: impl Observer + Send,
        stop: &AtomicBool,
    ) -> Result<Trained> {
        let mut train = || self.train(dataset, &mut observer, stop);
        let Some(threads) = self.threads else { return train() };
        check_threads(threads).map_err(|problem| Error::setting("threads", problem))?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.map_err(|error| Error::setting("threads", format!("{threads}: {error}")))?
            .install(train)
    }

    fn train(
        &self,
        dataset: &Dataset,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Trained> {
        self.config.validate()?;
        self.feature_storage.validate(&self.config)?;
        let (device, passed_over) = Device::open(self.device)?;
        if let Some(reason) = passed_over {
            tracing::warn!(%reason, "computing on the CPU because GPU 0 cannot be used");
        }
        let opened = self.open_directory(dataset)?;
        let (directory, resume) = match &opened {
            Some((directory, goes_on)) => (Some(directory), *goes_on),
            None => (None, false),
        };
        let options = FitOptions {
            initial: self.initial.as_deref(),
            resume,
            checkpoint_interval: self.checkpoint_interval,
        };
        let device =
            device.keeping_features(self.feature_storage).limiting_memory(self.device_memory);
        let result = with_backend!(device, backend => {
            tracing::info!(device = backend.describe(), dataset = dataset.name, "training");
            fit_model(
                backend, dataset, &self.config, directory, &options, observer, stop,
            )
        });
        match opened {
            Some((directory, _)) => directory.end(result),
            None => result,
        }
    }

    /// Opens the directory and writes the settings to it; also returns whether it has a run to
    /// continue.
    fn open_directory(&self, dataset: &Dataset) -> Result<Option<(RunDirectory, bool)>> {
        let Some(path) = &self.directory else { return Ok(None) };
        let goes_on = self.resume && RunDirectory::has_begun(path);
        let (directory, ()) = RunDirectory::begin(path, goes_on, |directory| {
            let settings = directory.file(CONFIG);
            let mut run = RunSettings::default();
            if goes_on {
                // Check before writing anything, so that a refused run is left unchanged.
                check_saved(dataset, &self.config, directory)?;
                if settings.is_file() {
                    run = ConfigFile::read(&settings)?.run;
                }
            }
            if let Some(problem) = directory.keep_ids(dataset.folder())? {
                tracing::warn!(%problem, "the original ids are not kept with the run");
            }
            if run.data.is_some() {
                // Keep the data folder, and how the program that began this run computes.
                return RunConfig::of_training(self.config.clone(), &run)?.write(&settings);
            }
            files::write_bytes_atomic(&settings, self.settings_text(dataset)?.as_bytes())
        })?;
        Ok(Some((directory, goes_on)))
    }

    /// The settings with which the program repeats the run; those of the model alone if they cannot
    /// name the data.
    fn settings_text(&self, dataset: &Dataset) -> Result<String> {
        if let Some((folder, options)) = dataset.source() {
            let run = RunSettings {
                device: Some(self.device),
                feature_storage: Some(self.feature_storage),
                device_memory: self.device_memory.map(ByteSize),
                threads: self.threads,
                checkpoint_seconds: Some(self.checkpoint_interval.as_secs()),
                init: self.initial.clone(),
                ..RunSettings::default()
            };
            let config = RunConfig::of_folder(&self.config, run, folder, options)?;
            // A path that is not UTF-8 has no place in a file of settings.
            if let Some(text) = config.and_then(|config| config.to_toml().ok()) {
                return Ok(text);
            }
        }
        let table = toml::to_string(&self.config)
            .map_err(|error| Error::setting("config", format!("cannot be kept: {error}")))?;
        Ok(format!(
            "# The settings of a run of bm3-engine {}. Its data are in no folder that settings can \
             name.\n\n{table}",
            env!("CARGO_PKG_VERSION")
        ))
    }
}

/// Calls back after each epoch, and forwards the caller's stop flag.
struct AfterEpoch<'a, F> {
    after_epoch: F,
    stopped: Arc<AtomicBool>,
    stop: &'a AtomicBool,
}

impl<F: FnMut(&EpochRecord) -> ControlFlow<()>> Observer for AfterEpoch<'_, F> {
    fn start(&mut self, _: &RunStart) {
        self.step(0, 0, 0);
    }

    fn step(&mut self, _: u64, _: u64, _: u64) {
        if self.stop.load(Ordering::Relaxed) {
            self.stopped.store(true, Ordering::Relaxed);
        }
    }

    fn epoch(&mut self, record: &EpochRecord) {
        tracing::info!(epoch = record.epoch, best = record.best, "epoch");
        if (self.after_epoch)(record).is_break() {
            self.stopped.store(true, Ordering::Relaxed);
        }
    }
}
