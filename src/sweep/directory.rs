//! The directory of a sweep: `sweep.json`, the results, and the directories of its runs.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::plan::{Plan, PlannedRun};
use crate::config::{Axis, RunConfig};
use crate::data::Dataset;
use crate::run::{CONFIG, SUMMARY, StopReason, Summary};
use crate::{Error, Result, files};

/// The file with the plan, the settings and the data's fingerprints.
pub const SWEEP: &str = "sweep.json";
/// The file with a line for each run.
pub const RESULTS_TABLE: &str = "results.csv";
/// The file with the results by configuration, with means and deviations.
pub const RESULTS: &str = "results.json";

/// The version of `sweep.json`'s format.
const FORMAT_VERSION: u32 = 1;

/// The contents of `sweep.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    format_version: u32,
    /// The program's version.
    version: String,
    dataset: String,
    interactions_fingerprint: u64,
    features_fingerprints: Vec<u64>,
    grid: Vec<Axis>,
    seeds: Vec<u64>,
    /// As in `config.toml`.
    settings: serde_json::Value,
}

/// A sweep's directory, locked against other processes until dropped.
#[derive(Debug)]
pub struct SweepDirectory {
    path: PathBuf,
    /// Unlocked when closed, also by the system if the process dies.
    _lock: File,
}

impl SweepDirectory {
    /// Creates `path` for a new sweep of `plan` on `dataset`.
    ///
    /// # Errors
    /// [`Error::RunFile`] when `path` already has a sweep or a run, or another process works on it;
    /// [`Error::Io`].
    pub fn create(path: &Path, plan: &Plan, dataset: &Dataset) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(|error| Error::io(path, "create", error))?;
        let directory = Self::lock(path)?;
        if path.join(SWEEP).exists() {
            let problem = format!(
                "a sweep is already here; continue it with --resume {}, or give another --out",
                path.display()
            );
            return Err(Error::run_file(path, problem));
        }
        if path.join(CONFIG).exists() {
            let problem = "a run is already here; give another --out";
            return Err(Error::run_file(path, problem));
        }
        let file = path.join(SWEEP);
        let failed = |error: serde_json::Error| Error::io(&file, "write", error.into());
        let record = Record {
            format_version: FORMAT_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            dataset: dataset.name.clone(),
            interactions_fingerprint: dataset.interactions_fingerprint(),
            features_fingerprints: dataset.features_fingerprints(),
            grid: plan.grid.clone(),
            seeds: plan.seeds.clone(),
            settings: serde_json::to_value(&plan.base).map_err(failed)?,
        };
        let mut text = serde_json::to_string_pretty(&record).map_err(failed)?;
        text.push('\n');
        files::write_bytes_atomic(&file, text.as_bytes())?;
        Ok(directory)
    }

    /// Opens the directory of a sweep of `dataset`.
    ///
    /// # Errors
    /// As [`SweepDirectory::plan`], and [`Error::RunFile`] when another process works on the sweep
    /// or it was begun on other data.
    pub fn open(path: &Path, dataset: &Dataset) -> Result<Self> {
        let record = read(path)?;
        let directory = Self::lock(path)?;
        let prints = |interactions: u64, features: &[u64]| {
            let modalities = features.iter().map(|&print| ("features", print));
            std::iter::once(("interactions", interactions)).chain(modalities).collect::<Vec<_>>()
        };
        let found = prints(record.interactions_fingerprint, &record.features_fingerprints);
        let expected = prints(dataset.interactions_fingerprint(), &dataset.features_fingerprints());
        if found.len() != expected.len() {
            let problem = format!(
                "was begun with {} modalities; these are {}",
                found.len() - 1,
                expected.len() - 1
            );
            return Err(Error::run_file(&path.join(SWEEP), problem));
        }
        for ((what, found), (_, expected)) in found.into_iter().zip(expected) {
            if found != expected {
                let problem = format!(
                    "was begun on other {what} (data set {}, fingerprint {found:016x}; this one, \
                     {}, has {expected:016x}): give the folder it was begun on",
                    record.dataset, dataset.name
                );
                return Err(Error::run_file(&path.join(SWEEP), problem));
            }
        }
        Ok(directory)
    }

    /// The plan of the sweep in `path`.
    ///
    /// # Errors
    /// [`Error::RunFile`] when there is no sweep, or its file is not of this version's format.
    pub fn plan(path: &Path) -> Result<Plan> {
        let Record { grid, seeds, settings, .. } = read(path)?;
        let file = path.join(SWEEP);
        if seeds.is_empty() || grid.iter().any(|axis| axis.values.is_empty()) {
            return Err(Error::run_file(&file, "a setting without a value, or no seed found"));
        }
        let base = RunConfig::from_json(&file, &settings)?;
        Ok(Plan { grid, seeds, base })
    }

    fn lock(path: &Path) -> Result<Self> {
        let lock = files::lock(path, "another process works on this sweep")?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file of the sweep, or of the run of this name.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The summary of a run that has finished; `None` for others.
    ///
    /// # Errors
    /// [`Error::RunFile`] when its files are malformed or have other settings; [`Error::Io`].
    pub(super) fn finished(&self, run: &PlannedRun) -> Result<Option<Summary>> {
        let directory = self.file(&run.name);
        let path = directory.join(SUMMARY);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(&path, "read", error)),
        };
        let summary: Summary = serde_json::from_str(&text)
            .map_err(|error| Error::run_file(&path, format!("not a run's summary: {error}")))?;
        if summary.stopped_by == StopReason::Interrupted {
            return Ok(None);
        }
        let config = directory.join(CONFIG);
        let found = RunConfig::read(&config)?;
        if (found.train, found.modalities)
            != (run.config.train.clone(), run.config.modalities.clone())
        {
            let problem = format!(
                "has other settings than run {} of this sweep; put it back as it was, or remove \
                 the run's directory to train it again",
                run.name
            );
            return Err(Error::run_file(&config, problem));
        }
        Ok(Some(summary))
    }
}

fn read(path: &Path) -> Result<Record> {
    let file = path.join(SWEEP);
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if crate::error::is_missing(&error) => {
            let problem = format!("no sweep to continue: there is no {SWEEP} in it");
            return Err(Error::run_file(path, problem));
        }
        Err(error) => return Err(Error::io(&file, "read", error)),
    };
    let malformed =
        |error: serde_json::Error| Error::run_file(&file, format!("not a sweep: {error}"));
    let value: serde_json::Value = serde_json::from_str(&text).map_err(malformed)?;
    // Check the version first: another version may have other fields.
    let version = value["format_version"].as_u64();
    if version != Some(FORMAT_VERSION.into()) {
        let found = version.map_or("no number".to_owned(), |version| version.to_string());
        let problem = format!(
            "its format version is {found}; this program reads {FORMAT_VERSION}: use the program \
             that wrote it"
        );
        return Err(Error::run_file(&file, problem));
    }
    serde_json::from_value(value).map_err(malformed)
}
