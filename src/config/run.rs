//! The settings of a whole run, as kept in its directory.

use std::path::{Path, PathBuf};

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use super::feature_source::AsSetting;
use super::value::Value;
use super::{
    ByteSize, ConfigFile, DeviceChoice, FeatureSource, FeatureStorage, ModalityChoice, RunSettings,
    SplitRatio, TrainConfig, TrainSettings, keys, validate_threads,
};
use crate::data::{self, DatasetOptions, FeatureFile};
use crate::run::CONFIG;
use crate::{Error, Result, files};

/// Everything needed to repeat a run; kept in its directory as `config.toml`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunConfig {
    /// The data folder, an absolute path.
    pub data: PathBuf,
    /// Which modalities to use.
    pub modalities: ModalityChoice,
    /// How to split each user's interactions, instead of by the file's `x_label`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<SplitRatio>,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Where frozen features lie on a GPU.
    pub feature_storage: FeatureStorage,
    /// Limit on the GPU memory to take; `None` for what is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_memory: Option<ByteSize>,
    /// CPU threads; `None` for one per core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Seconds between checkpoints.
    pub checkpoint_seconds: u64,
    /// Initial tensors, instead of random ones; an absolute path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// The settings that decide the model.
    #[serde(flatten)]
    pub train: TrainConfig,
    /// Feature files besides the folder's; absolute paths. Last, because it is a table.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_table")]
    pub features: Vec<FeatureSource>,
}

impl RunConfig {
    /// The default time between checkpoints, in seconds.
    pub const DEFAULT_CHECKPOINT_SECONDS: u64 = 30;

    /// Completes given settings with the defaults and makes paths absolute.
    ///
    /// # Errors
    /// [`Error::Setting`] for the flag if `data` is not given, a feature's name is repeated, or a
    /// value is out of range.
    pub fn new(train: &TrainSettings, run: &RunSettings) -> Result<Self> {
        let mut config = TrainConfig::default();
        train.apply(&mut config);
        Self::of_training(config, run)
    }

    /// [`RunConfig::new`] for a training whose own settings are complete.
    ///
    /// # Errors
    /// The errors of [`RunConfig::new`].
    pub fn of_training(train: TrainConfig, run: &RunSettings) -> Result<Self> {
        let Some(data) = &run.data else {
            return Err(Error::setting(
                "--data",
                "not given; name the folder that has NAME.inter and the *_feat.npy files, here or \
                 as `data` in a --config file",
            ));
        };
        let mut features: Vec<FeatureSource> = Vec::new();
        for source in &run.features {
            if features.iter().any(|earlier| earlier.name == source.name) {
                return Err(Error::setting("--feature", source.given_twice()));
            }
            features.push(source.resolve("--feature")?);
        }
        validate_threads(run.threads)?;
        let config = Self {
            data: absolute(data)?,
            modalities: run.modalities.clone().unwrap_or_default(),
            split: run.split,
            device: run.device.unwrap_or_default(),
            feature_storage: run.feature_storage.unwrap_or_default(),
            device_memory: run.device_memory,
            threads: run.threads,
            checkpoint_seconds: run.checkpoint_seconds.unwrap_or(Self::DEFAULT_CHECKPOINT_SECONDS),
            init: run.init.as_deref().map(absolute).transpose()?,
            train,
            features,
        };
        config.validate()?;
        Ok(config)
    }

    /// [`RunConfig::of_training`] on what was read from `folder` with `options`, whose inverse is
    /// [`RunConfig::dataset_options`]; `None` if the folder was split by another seed than the run's,
    /// which settings cannot say.
    ///
    /// # Errors
    /// The errors of [`RunConfig::new`].
    pub fn of_folder(
        train: &TrainConfig,
        run: RunSettings,
        folder: &Path,
        options: &DatasetOptions,
    ) -> Result<Option<Self>> {
        if options.split.is_some_and(|split| split.seed != train.seed) {
            return Ok(None);
        }
        let source = |(name, files): &(String, Vec<FeatureFile>)| FeatureSource {
            name: name.clone(),
            files: files.clone(),
        };
        let shares =
            |data::SplitRatio { train, valid, test, .. }| SplitRatio { train, valid, test };
        let run = RunSettings {
            data: Some(folder.to_owned()),
            features: options.features.iter().map(source).collect(),
            modalities: options.modalities.clone().map(ModalityChoice::Only),
            split: options.split.map(shares),
            ..run
        };
        Self::of_training(train.clone(), &run).map(Some)
    }

    /// Checks the range of every setting, and that the settings are compatible.
    ///
    /// # Errors
    /// [`Error::Setting`] with the flag's name, the value found and what is expected.
    pub fn validate(&self) -> Result<()> {
        self.train.validate()?;
        self.feature_storage.validate(&self.train)
    }

    /// What to read from the data folder, and how; the run's seed determines a split.
    pub fn dataset_options(&self) -> DatasetOptions {
        let features = self.features.iter();
        let split = |shares: SplitRatio| data::SplitRatio {
            train: shares.train,
            valid: shares.valid,
            test: shares.test,
            seed: self.train.seed,
        };
        DatasetOptions {
            features: features.map(|source| (source.name.clone(), source.files.clone())).collect(),
            modalities: self.modalities.names().map(<[String]>::to_vec),
            split: self.split.map(split),
        }
    }

    /// Reads a file written by [`RunConfig::write`].
    ///
    /// # Errors
    /// The errors of [`ConfigFile::read`], and [`Error::RunFile`] if the file does not name the
    /// data.
    pub fn read(path: &Path) -> Result<Self> {
        let ConfigFile { train, run, .. } = ConfigFile::read(path)?;
        Self::new(&train, &run).map_err(|error| Error::run_file(path, error.to_string()))
    }

    /// Reads a serialised [`RunConfig`] from a JSON object in the file `path`.
    ///
    /// # Errors
    /// [`Error::RunFile`] with the field that is not a setting, or whose value cannot be used.
    pub(crate) fn from_json(path: &Path, fields: &serde_json::Value) -> Result<Self> {
        let at = |key: &str, problem: &str| Error::run_file(path, format!("{key}: {problem}"));
        let (mut train, mut run) = (TrainSettings::default(), RunSettings::default());
        for (key, value) in fields.as_object().into_iter().flatten() {
            let value = Value::deserialize(value).map_err(|error| at(key, &error.to_string()))?;
            let known = keys::assign(&mut train, &mut run, key, &value);
            if !known.map_err(|problem| at(key, &problem))? {
                return Err(at(key, "is not a setting"));
            }
        }
        Self::new(&train, &run).map_err(|error| Error::run_file(path, error.to_string()))
    }

    /// Writes the file atomically.
    ///
    /// # Errors
    /// [`Error::Setting`] for a path that is not Unicode, which TOML cannot hold, and
    /// [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        files::write_bytes_atomic(path, self.to_toml()?.as_bytes())
    }

    /// The text of the file.
    ///
    /// # Errors
    /// [`Error::Setting`] for a path that is not Unicode, which TOML cannot hold.
    pub fn to_toml(&self) -> Result<String> {
        let table = toml::to_string(self).map_err(|error| {
            let init = self.init.as_deref().map(|path| ("--init", path));
            let files = self.features.iter().flat_map(|source| &source.files);
            let mut paths = [("--data", self.data.as_path())]
                .into_iter()
                .chain(init)
                .chain(files.map(|file| ("--feature", file.path.as_path())));
            match paths.find(|(_, path)| path.to_str().is_none()) {
                Some((flag, path)) => {
                    let problem = format!(
                        "{} is not UTF-8, as a run's {CONFIG} has to be; rename it, or give a \
                         symbolic link to it",
                        path.display()
                    );
                    Error::setting(flag, problem)
                }
                None => Error::setting("--data", format!("cannot be kept: {error}")),
            }
        })?;
        Ok(format!(
            "# The settings of a run of bm3-engine {}. To repeat it:\n\
             #     bm3-engine train --config {}\n\n{table}",
            env!("CARGO_PKG_VERSION"),
            CONFIG,
        ))
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Error::io(path, "find", error))
}

fn as_table<S: Serializer>(features: &[FeatureSource], serializer: S) -> Result<S::Ok, S::Error> {
    let mut table = serializer.serialize_map(Some(features.len()))?;
    for FeatureSource { name, files } in features {
        table.serialize_entry(name, &AsSetting(files))?;
    }
    table.end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{FeatureTypeChoice, Order, Propagation};
    use crate::data::FeatureFile;

    fn round_trip(config: &RunConfig) -> RunConfig {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(CONFIG);
        config.write(&path).unwrap();
        let json = serde_json::to_string(config).unwrap();
        let fields = serde_json::from_str(&json).unwrap();
        assert_eq!(RunConfig::from_json(&path, &fields).unwrap(), *config);
        RunConfig::read(&path).unwrap()
    }

    #[test]
    fn the_defaults_survive_the_file() {
        let run = RunSettings { data: Some("data/lfm2k".into()), ..RunSettings::default() };
        let config = RunConfig::new(&TrainSettings::default(), &run).unwrap();
        assert!(config.data.is_absolute());
        assert_eq!(config.train, TrainConfig::default());
        assert_eq!(config.checkpoint_seconds, 30);
        assert_eq!(round_trip(&config), config);
    }

    #[test]
    fn every_setting_survives_the_file_to_the_last_bit() {
        let config = RunConfig {
            data: "/data/with \"quotes\"".into(),
            modalities: ModalityChoice::Only(vec!["image".into()]),
            split: Some(SplitRatio { train: 0.7, valid: 0.1, test: 0.2 }),
            device: DeviceChoice::Gpu(1),
            feature_storage: FeatureStorage::Resident,
            device_memory: Some(ByteSize(1_234_567_891)),
            threads: Some(3),
            checkpoint_seconds: 7,
            init: Some("/start.safetensors".into()),
            train: TrainConfig {
                embedding_size: 128,
                layers: 2,
                propagation: Propagation::Gcn,
                self_loops: true,
                dropout: 0.1 + 0.2,
                reg_weight: 5e-324,
                cl_weight: 1.0 / 3.0,
                freeze_features: true,
                feature_type: FeatureTypeChoice::Bf16,
                learning_rate: 1e-3,
                learning_rate_decay: 0.96,
                batch_size: 1,
                epochs: 7,
                patience: 0,
                top_k: vec![1, 20],
                seed: i64::MAX as u64,
                order: Order::File,
            },
            features: vec![
                "text=/t.npy".parse().unwrap(),
                "image=/i-0.npy,/i-1.safetensors:image".parse().unwrap(),
                FeatureSource { name: "audio".into(), files: vec![FeatureFile::new("/a,b.npy")] },
            ],
        };
        assert_eq!(round_trip(&config), config);
        let none = RunConfig { modalities: ModalityChoice::Only(vec![]), ..config };
        assert_eq!(round_trip(&none), none);
    }

    #[test]
    fn the_settings_of_an_open_folder_read_it_again() {
        let train = TrainConfig { seed: 7, ..TrainConfig::default() };
        let options = DatasetOptions {
            features: vec![("text".to_owned(), vec![FeatureFile::new("/t.npy")])],
            modalities: Some(vec!["text".to_owned()]),
            split: Some(data::SplitRatio { train: 0.5, valid: 0.25, test: 0.25, seed: 7 }),
        };
        let of_folder = |train: &TrainConfig, options: &DatasetOptions| {
            RunConfig::of_folder(train, RunSettings::default(), Path::new("/d"), options).unwrap()
        };
        for options in [options.clone(), DatasetOptions::default()] {
            let config = of_folder(&train, &options).unwrap();
            assert_eq!((config.dataset_options(), &*config.data), (options, Path::new("/d")));
            assert_eq!(config.train, train);
        }
        let other = TrainConfig { seed: 8, ..train };
        assert_eq!(of_folder(&other, &options), None);
    }

    #[test]
    fn what_is_missing_or_doubled_names_its_flag() {
        let new = |run: RunSettings| {
            RunConfig::new(&TrainSettings::default(), &run).unwrap_err().to_string()
        };
        assert!(new(RunSettings::default()).starts_with("--data: not given"));
        let data = || RunSettings { data: Some("d".into()), ..RunSettings::default() };
        let twice = vec!["a=1.npy".parse().unwrap(), "a=2.npy".parse().unwrap()];
        assert_eq!(
            new(RunSettings { features: twice, ..data() }),
            "--feature: the modality `a` is given twice; name its files at once, as in a=FILE,FILE"
        );
        assert!(new(RunSettings { threads: Some(0), ..data() }).starts_with("--threads: 0 found"));
    }
}
