//! The flags of every command that uses a trained model.

use std::path::{Path, PathBuf};

use bm3_engine::config::{ConfigFile, DeviceChoice, RunConfig, RunSettings};
use bm3_engine::data::{DataError, Dataset, IdMaps};
use bm3_engine::model::Model;
use bm3_engine::recommender::Recommender;
use bm3_engine::run::{CONFIG, MODEL};
use bm3_engine::sweep::SWEEP;
use bm3_engine::{Error, Result};

use super::backend;

/// Which model to use, on which data and device.
#[derive(Debug, clap::Args)]
pub struct ModelArguments {
    /// The model: a run's directory, or a model.safetensors
    #[arg(long, value_name = "RUNDIR|FILE")]
    model: PathBuf,
    /// The data it was trained on, if that has moved, or newer interactions of the same users and
    /// items, matched by their original ids if both have some
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where to compute: `cpu`, a GPU's number (`0` or `cuda:0`), or `auto`: GPU 0 if it can be
    /// used, else the CPU
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceChoice,
    /// CPU threads; results do not depend on it [default: one per core]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    threads: Option<usize>,
}

/// A model's file, and what the command line says about its data and device.
#[derive(Debug, PartialEq)]
pub struct ModelRequest {
    /// The `model.safetensors`.
    pub file: PathBuf,
    /// The data folder, if one was given.
    pub data: Option<PathBuf>,
    /// Where to compute.
    pub device: DeviceChoice,
    /// CPU threads.
    pub threads: Option<usize>,
}

impl ModelArguments {
    /// Finds the model.
    ///
    /// # Errors
    /// [`Error::RunFile`] when there is none.
    pub fn request(&self) -> Result<ModelRequest> {
        let file = if self.model.is_dir() { self.model.join(MODEL) } else { self.model.clone() };
        if !file.is_file() {
            let holds = |name: &str| self.model.join(name).is_file();
            let sweep = match (holds(SWEEP), holds(CONFIG)) {
                (true, _) => "; this is a sweep: name one of its runs, a directory in it",
                (_, true) => {
                    "; this run has not saved one yet: it does so with its first checkpoint after \
                     an epoch (--checkpoint-seconds), and at its end"
                }
                _ => "",
            };
            let problem = format!(
                "there is no such model; --model takes the directory of a run, or the {MODEL} in \
                 it{sweep}"
            );
            return Err(Error::run_file(&file, problem));
        }
        let (device, threads) = (self.device, self.threads);
        Ok(ModelRequest { file, data: self.data.clone(), device, threads })
    }
}

impl ModelRequest {
    /// Loads the model, with the interactions of the data folder if one was given.
    ///
    /// # Errors
    /// [`Error`] when the model or the data cannot be read, or do not belong together.
    pub fn model(&self) -> Result<Model> {
        let model = Model::load(&self.file)?;
        if self.data.is_none() {
            return Ok(model);
        }
        Ok(self.with_its_interactions(model)?.0)
    }

    /// Loads the model and the interactions of its data set: the folder given, else the run's.
    ///
    /// # Errors
    /// As [`ModelRequest::model`], and [`Error::Setting`] when nothing names the data.
    pub fn model_and_interactions(&self) -> Result<(Model, Dataset)> {
        self.with_its_interactions(Model::load(&self.file)?)
    }

    /// Loads the model and makes it ready to answer; with `by_features`, items without interactions
    /// are scored from their features.
    ///
    /// # Errors
    /// As [`ModelRequest::model`]; [`Error`] also when the device or the features cannot be used.
    pub fn recommender(&self, by_features: bool) -> Result<Recommender> {
        let model = self.model()?;
        let mut frozen = Vec::new();
        if by_features && model.config().freeze_features {
            let config = self.settings(&model)?;
            if IdMaps::differing(self.directory(), &config.data)?.is_some() {
                let problem = format!(
                    "{} numbers items otherwise than the model, and so are its features; with \
                     --cold-items name the folder that the model was trained on",
                    config.data.display()
                );
                return Err(Error::setting("--data", problem));
            }
            frozen = backend::dataset(&config, true)?.modalities;
        }
        let mut recommender = Recommender::on_device(model, backend::open(self.device, true)?)?;
        if by_features {
            recommender.score_cold_items(&frozen)?;
        }
        Ok(recommender)
    }

    /// The data folder: the one given, else the run's, if it names one.
    pub fn data_folder(&self) -> Option<PathBuf> {
        let run = || RunConfig::read(&self.run_settings()).ok().map(|config| config.data);
        self.data.clone().or_else(run)
    }

    fn run_settings(&self) -> PathBuf {
        self.file.with_file_name(CONFIG)
    }

    /// The settings of the model's run, with the data folder that was given. For a model outside a
    /// run directory, all but its own settings are the defaults.
    ///
    /// # Errors
    /// [`Error::Setting`] when nothing names a folder, or only the run does and it is missing.
    fn settings(&self, model: &Model) -> Result<RunConfig> {
        let path = self.run_settings();
        let file = if path.is_file() { ConfigFile::read(&path)? } else { ConfigFile::default() };
        let given = RunSettings { data: self.data.clone(), ..RunSettings::default() };
        let problem = match (&self.data, &file.run.data) {
            (Some(_), _) => None,
            (None, None) if path.is_file() => Some(format!(
                "not given, and {} names no data folder, as the run's data were in memory, or split \
                 by another seed than the run's; name a folder that has the same NAME.inter and \
                 *_feat.npy files",
                path.display()
            )),
            (None, None) => Some(format!(
                "not given, and {} is in no run's directory, whose settings would name it; name the \
                 folder that has NAME.inter and the *_feat.npy files",
                self.file.display()
            )),
            (None, Some(folder)) => (!folder.is_dir()).then(|| {
                format!(
                    "not given, and {}, which the settings of the run name, is not there; name the \
                     folder that it has become",
                    folder.display()
                )
            }),
        };
        if let Some(problem) = problem {
            return Err(Error::setting("--data", problem));
        }
        RunConfig::of_training(model.config().clone(), &given.or(file.run))
    }

    /// The directory that the model is in, which keeps the original ids too.
    pub fn directory(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new(""))
    }

    /// The interactions of the data folder, under the model's numbers.
    fn interactions(&self, model: &Model, config: &RunConfig) -> Result<Dataset> {
        let dataset = backend::interactions(config).map_err(|error| match error {
            Error::Data(DataError::NoSplit { path }) => {
                let problem = "has no column `x_label`, and no settings of a run beside the model say \
                               how to split; give the directory of a run whose settings do as \
                               --model, or prepare the data with a split";
                Error::run_file(&path, problem)
            }
            other => other,
        })?;
        let differing = IdMaps::differing(self.directory(), &config.data)?;
        let Some([mut kept, given]) = differing else { return Ok(dataset) };
        kept.users.truncate(model.users());
        kept.items.truncate(model.items());
        let renumbered = dataset.renumbered(&given, &kept).map_err(|_| {
            let problem = format!(
                "{} has no training interaction of users and items that the model knows by their \
                 ids; name the data that it was trained on, or newer data of the same users and items",
                config.data.display()
            );
            Error::setting("--data", problem)
        });
        let (dataset, left_out) = renumbered?;
        eprintln!(
            "warning: {} numbers users and items otherwise than the model, so they are matched by \
             their ids; {left_out} interactions, of others than the model knows, are left out",
            config.data.display()
        );
        Ok(dataset)
    }

    fn with_its_interactions(&self, model: Model) -> Result<(Model, Dataset)> {
        let config = self.settings(&model)?;
        let dataset = self.interactions(&model, &config)?;
        if model.fits(&dataset) {
            return Ok((model, dataset));
        }
        let model = model.with_interactions(&dataset)?;
        eprintln!(
            "warning: {} has other interactions than the model was trained on; its scores come from \
             these",
            config.data.display()
        );
        Ok((model, dataset))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        model: ModelArguments,
    }

    fn request(arguments: &[&str]) -> Result<ModelRequest> {
        Command::try_parse_from(["test"].iter().chain(arguments)).unwrap().model.request()
    }

    #[test]
    fn a_run_names_its_data_and_a_flag_another() {
        let directory = tempfile::tempdir().unwrap();
        let (model, settings) = (directory.path().join(MODEL), directory.path().join(CONFIG));
        std::fs::write(&model, "").unwrap();
        let run = directory.path().to_str().unwrap();
        assert_eq!(request(&["--model", run]).unwrap().data_folder(), None);
        std::fs::write(settings, "data = '/there'\nlayers = 2\nthreads = 8\n").unwrap();
        for path in [run, model.to_str().unwrap()] {
            let found = request(&["--model", path]).unwrap();
            assert_eq!(found.data_folder(), Some("/there".into()));
            // How the run was computed does not decide how its model is used.
            assert_eq!((found.file, found.data, found.threads), (model.clone(), None, None));
        }
        let moved = request(&["--model", run, "--data", "/here", "--device", "cpu"]).unwrap();
        assert_eq!(moved.data_folder(), Some("/here".into()));
        assert_eq!(moved.device, DeviceChoice::Cpu);
    }

    #[test]
    fn a_run_of_data_in_memory_needs_a_folder() {
        let directory = tempfile::tempdir().unwrap();
        let (model, settings) = (directory.path().join(MODEL), directory.path().join(CONFIG));
        std::fs::write(&model, "").unwrap();
        std::fs::write(&settings, "layers = 2\n").unwrap();
        let builder = bm3_engine::Dataset::builder("x").train(&[0], &[0]).features("t", 1, [1.0]);
        let config = bm3_engine::TrainConfig::builder().epochs(1).build().unwrap();
        let trained = bm3_engine::Trainer::new(config).fit(&builder.build().unwrap()).unwrap();
        let found = request(&["--model", directory.path().to_str().unwrap()]).unwrap();
        let error = found.settings(&trained.model.unwrap()).unwrap_err();
        let expected = format!("--data: not given, and {} names no data", settings.display());
        assert!(error.is_input() && error.to_string().starts_with(&expected), "{error}");
    }

    #[test]
    fn a_model_that_is_not_there_is_bad_input() {
        let error = request(&["--model", "does/not/exist"]).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("no such model"), "{error}");
    }
}
