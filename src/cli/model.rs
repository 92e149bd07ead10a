//! The flags of every command that uses a trained model.

use std::path::{Path, PathBuf};

use bm3_engine::backend::Backend;
use bm3_engine::config::{DeviceChoice, RunConfig, RunSettings, TrainSettings};
use bm3_engine::data::Dataset;
use bm3_engine::run::{CONFIG, MODEL};
use bm3_engine::saved::SavedModel;
use bm3_engine::step::Model;
use bm3_engine::{Error, Result};

use super::backend::interactions;

/// Which model, on which data, computed where.
#[derive(Debug, clap::Args)]
pub struct ModelArguments {
    /// The model: a run's directory, or a model.safetensors
    #[arg(long, value_name = "RUNDIR|FILE")]
    model: PathBuf,
    /// The data it was trained on, if that has moved [default: where the run found it]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where to compute: `cpu`, a GPU's number, or `auto`: GPU 0 if it can be used, else the CPU
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceChoice,
    /// CPU threads; results do not depend on it [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

/// A model's file and what is needed to read its data.
#[derive(Debug, PartialEq)]
pub struct ModelRequest {
    /// The `model.safetensors`.
    pub file: PathBuf,
    /// The run's settings, with `data`, `device` and `threads` of this command. Of a file that is
    /// not in a run's directory, `train` and `modalities` are the defaults: the file's own record
    /// has the model's.
    pub config: RunConfig,
    /// Whether `config` is the model's run's, rather than defaults.
    pub has_run: bool,
}

impl ModelArguments {
    /// Finds the model and its settings.
    ///
    /// # Errors
    /// [`Error::RunFile`] when there is no model, [`Error::Setting`] when nothing names the data,
    /// and errors of the run's settings file.
    pub fn request(&self) -> Result<ModelRequest> {
        let file = if self.model.is_dir() { self.model.join(MODEL) } else { self.model.clone() };
        if !file.is_file() {
            let problem = format!(
                "there is no such model; --model takes the directory of a run, or the {MODEL} in it"
            );
            return Err(Error::run_file(&file, problem));
        }
        let settings = file.parent().unwrap_or(Path::new("")).join(CONFIG);
        let has_run = settings.is_file();
        let mut config = if has_run {
            RunConfig::read(&settings)?
        } else {
            let run = RunSettings { data: self.data.clone(), ..RunSettings::default() };
            RunConfig::new(&TrainSettings::default(), &run)?
        };
        if let Some(data) = &self.data {
            config.data =
                std::path::absolute(data).map_err(|error| Error::io(data, "find", error))?;
        }
        config.device = self.device;
        config.threads = self.threads;
        Ok(ModelRequest { file, config, has_run })
    }
}

impl ModelRequest {
    /// The model's file, the interactions of its data set, and the model on a device.
    ///
    /// # Errors
    /// What is wrong with the model or the data, or that they do not belong together; those of the
    /// device.
    pub fn load<B: Backend>(&self, backend: B) -> Result<(SavedModel, Dataset, Model<B>)> {
        let saved = SavedModel::open(&self.file)?;
        let mut config = self.config.clone();
        if !self.has_run {
            config.train = saved.record.identity.config.clone();
        }
        let dataset = interactions(&config)?;
        let model = saved.load(backend, &dataset)?;
        if !saved.fits(&dataset) {
            eprintln!(
                "warning: {} has other interactions than the model was trained on; its scores \
                 come from these",
                config.data.display()
            );
        }
        Ok((saved, dataset, model))
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

        let error = request(&["--model", run]).unwrap_err();
        assert!(error.to_string().starts_with("--data: not given"), "{error}");
        assert!(!request(&["--model", run, "--data", "/d"]).unwrap().has_run);

        std::fs::write(settings, "data = '/there'\nlayers = 2\nthreads = 8\n").unwrap();
        for path in [run, model.to_str().unwrap()] {
            let found = request(&["--model", path]).unwrap();
            assert_eq!((found.file, found.has_run), (model.clone(), true));
            assert_eq!(found.config.data, Path::new("/there"));
            assert_eq!((found.config.train.layers, found.config.threads), (2, None));
        }
        let moved = request(&["--model", run, "--data", "/here", "--device", "cpu"]).unwrap();
        assert_eq!(moved.config.data, Path::new("/here"));
        assert_eq!(moved.config.device, DeviceChoice::Cpu);
    }

    #[test]
    fn a_model_that_is_not_there_is_bad_input() {
        let error = request(&["--model", "does/not/exist"]).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("no such model"), "{error}");
    }
}
