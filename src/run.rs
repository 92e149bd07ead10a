//! The directory of a run: file names, lock, records.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::data::IdMaps;
use crate::profile::Profile;
use crate::records::{EpochRecord, Metrics};
use crate::sweep::SWEEP;
use crate::{Error, Result, files};

/// All settings, enough to repeat the run.
pub const CONFIG: &str = "config.toml";
/// One line per epoch.
pub const METRICS: &str = "metrics.jsonl";
/// The model of the best validation epoch.
pub const MODEL: &str = "model.safetensors";
/// The state after the last epoch, with optimiser and counters.
pub const STATE: &str = "state.safetensors";
/// The next `model.safetensors`, until its state is written.
pub(crate) const NEXT_MODEL: &str = ".next-model.safetensors";
/// The operations of one epoch, timed individually, if requested.
pub const PROFILE: &str = "profile.json";
/// The outcome of the run.
pub const SUMMARY: &str = "summary.json";

/// Files that a run creates; a new run refuses a directory that has one of them.
const OWN: [&str; 6] = [STATE, CONFIG, MODEL, METRICS, SUMMARY, PROFILE];

/// Why training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StopReason {
    /// Too many evaluations in a row failed to beat the best Recall@20.
    Patience,
    /// The last epoch was reached.
    Epochs,
    /// The caller asked to stop; the run can be resumed.
    Interrupted,
}

/// The outcome of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The program's version.
    pub version: String,
    /// The data set's name.
    pub dataset: String,
    /// The device, in words.
    pub device: String,
    /// Why training ended.
    pub stopped_by: StopReason,
    /// Epochs trained in all.
    pub epochs: u64,
    /// Steps taken in all.
    pub steps: u64,
    /// The epoch of `model.safetensors`.
    pub best_epoch: Option<u64>,
    /// The best epoch's metrics on the validation split.
    pub valid: Option<Metrics>,
    /// The best epoch's metrics on the test split.
    pub test: Option<Metrics>,
    /// Seconds in training steps, over all processes of the run.
    pub train_seconds: f64,
    /// Seconds in evaluation, over all processes of the run.
    pub evaluate_seconds: f64,
}

/// A run's directory, locked against other processes until dropped.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    /// Whether the directory holds a run, which is being resumed.
    had_run: bool,
    /// Whether original ids were here before, from the resumed run or from elsewhere.
    had_ids: bool,
    /// Unlocked when closed, by the system too when the process dies.
    _lock: File,
}

impl RunDirectory {
    /// Creates `path` if need be and locks it.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be created; [`Error::RunFile`] if another process trains in it,
    /// if `resume` is false and the directory has a run or a file that would be taken for a run's,
    /// or if `resume` is true and there is no run to resume.
    pub fn open(path: &Path, resume: bool) -> Result<Self> {
        if resume && !Self::has_begun(path) {
            let problem = format!(
                "there is neither {STATE} nor {CONFIG} here to resume from; give the directory of \
                 a run, or start again without --resume"
            );
            return Err(Error::run_file(path, problem));
        }
        std::fs::create_dir_all(path).map_err(|error| Error::io(path, "create", error))?;
        let lock = files::lock(path, "another process is training in this directory")?;
        let found = OWN.into_iter().find(|name| path.join(name).exists());
        if let (false, Some(found)) = (resume, found) {
            let or = if found == STATE { String::new() } else { format!(", or its {found}") };
            let problem = format!(
                "a run is already here{or}; continue it with --resume {}, or give another --out",
                path.display()
            );
            return Err(Error::run_file(path, problem));
        }
        if !resume && path.join(SWEEP).exists() {
            return Err(Error::run_file(path, "a sweep is already here; give another --out"));
        }
        if path.join(MODEL).exists() && !path.join(STATE).exists() {
            let problem = format!(
                "has a {MODEL} but no {STATE} to go on from; give the directory as the run left \
                 it, or start again in another --out"
            );
            return Err(Error::run_file(path, problem));
        }
        remove_unfinished(path);
        let had_ids = IdMaps::paths(path).iter().any(|path| path.exists());
        Ok(Self { path: path.to_owned(), had_run: resume, had_ids, _lock: lock })
    }

    /// [Opens](RunDirectory::open) a directory and lets `prepare` write the first files of a run
    /// into it. If that fails, a new directory is removed again.
    ///
    /// # Errors
    /// The errors of [`RunDirectory::open`] and of `prepare`.
    pub fn begin<T>(
        path: &Path,
        resume: bool,
        prepare: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<(Self, T)> {
        let directory = Self::open(path, resume)?;
        match prepare(&directory) {
            Ok(prepared) => Ok((directory, prepared)),
            Err(error) => {
                directory.discard_unused();
                Err(error)
            }
        }
    }

    /// Closes the directory and returns `outcome`; if the run was refused, a new directory is
    /// removed.
    ///
    /// # Errors
    /// The error of `outcome`.
    pub fn end<T>(self, outcome: Result<T>) -> Result<T> {
        if outcome.as_ref().is_err_and(Error::is_refusal) {
            self.discard_unused();
        }
        outcome
    }

    /// Copies the data folder's original ids, if it has any, beside the model, whose numbers mean
    /// nothing without them; `None` is for data in memory. Returns the problem with the folder's ids,
    /// if any: training does not need them.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::RunFile`] if the directory has ids of something else.
    pub fn keep_ids(&self, data: Option<&Path>) -> Result<Option<Error>> {
        let maps = match data.map_or(Ok(None), IdMaps::read) {
            Ok(Some(maps)) => maps,
            // Lists would be written with ids that are not the data's.
            Ok(None) if self.had_ids && !self.has_state() => {
                let problem = "has original ids, and the data has none; give another --out";
                return Err(Error::run_file(&self.path, problem.to_owned()));
            }
            Ok(None) => return Ok(None),
            // A folder from elsewhere may have other files of these names.
            Err(error) if error.is_input() => return Ok(Some(error)),
            Err(error) => return Err(error),
        };
        match IdMaps::read(&self.path) {
            // A resumed run keeps its own ids, and the data folder may be this directory.
            Ok(Some(_)) if self.has_state() => {}
            Ok(Some(kept)) if kept == maps => {}
            Ok(Some(_)) => {
                let problem = "has original ids that are not the data's; give another --out";
                return Err(Error::run_file(&self.path, problem.to_owned()));
            }
            Ok(None) => maps.write(&self.path)?,
            // A process was killed after writing the first of the two.
            Err(_) if maps.are_begun(&self.path) => maps.write(&self.path)?,
            // The run goes on without them, as it did.
            Err(error) if error.is_input() && self.has_state() => return Ok(Some(error)),
            Err(error) if error.is_input() => {
                let problem = format!("{error}; give another --out");
                return Err(Error::run_file(&self.path, problem));
            }
            Err(error) => return Err(error),
        }
        Ok(None)
    }

    /// Whether a directory has a run that can be resumed. A run that ended before its first
    /// checkpoint has only its settings.
    pub fn has_begun(path: &Path) -> bool {
        [STATE, CONFIG].iter().any(|name| path.join(name).is_file())
    }

    /// Whether the directory has a checkpoint.
    pub fn has_state(&self) -> bool {
        self.file(STATE).exists()
    }

    /// Removes what a new run has written if nothing was trained: its settings, the ids copied with
    /// them, the lock, and the directory if it is then empty.
    pub fn discard_unused(self) {
        if !self.had_run && !self.has_state() {
            // Best effort: files that cannot be removed do no harm.
            let ids = IdMaps::paths(&self.path).into_iter().filter(|_| !self.had_ids);
            let settings = [CONFIG, METRICS, PROFILE].map(|name| self.file(name));
            // The lock goes last: after that another process may take the directory.
            for path in settings.into_iter().chain(ids).chain([self.file(files::LOCK)]) {
                std::fs::remove_file(path).ok();
            }
            std::fs::remove_dir(&self.path).ok();
        }
    }

    /// The path of a file of the run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes all epochs' records, one JSON object per line.
    pub fn write_records(&self, records: &[EpochRecord]) -> Result<()> {
        let path = self.file(METRICS);
        files::write_atomic(&path, |writer| {
            for record in records {
                serde_json::to_writer(&mut *writer, record)
                    .map_err(|error| Error::io(&path, "write", error.into()))?;
                writer.write_all(b"\n").map_err(|error| Error::io(&path, "write", error))?;
            }
            Ok(())
        })
    }

    /// Writes the summary.
    pub fn write_summary(&self, summary: &Summary) -> Result<()> {
        self.write_json(SUMMARY, summary)
    }

    /// Writes the operations of an epoch.
    pub fn write_profile(&self, profile: &Profile) -> Result<()> {
        self.write_json(PROFILE, profile)
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let path = self.file(name);
        let mut text = serde_json::to_string_pretty(value)
            .map_err(|error| Error::io(&path, "write", error.into()))?;
        text.push('\n');
        files::write_bytes_atomic(&path, text.as_bytes())
    }
}

/// Removes the remains of processes killed while writing. The lock is held, so nobody is writing
/// now.
fn remove_unfinished(directory: &Path) {
    // Without a state it belongs to none; with one, the state tells whether it does.
    if !directory.join(STATE).exists() {
        std::fs::remove_file(directory.join(NEXT_MODEL)).ok();
    }
    // Best effort: files that cannot be listed or removed do no harm.
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if files::is_temporary(&entry.file_name().to_string_lossy()) {
            std::fs::remove_file(entry.path()).ok();
        }
    }
}

/// The records of a run's epochs up to `last_epoch`. Later ones are of epochs that a process
/// finished but did not live to save.
///
/// # Errors
/// [`Error::Io`] if `metrics.jsonl` cannot be read, [`Error::RunFile`] with the number of the line
/// that is not a record.
pub fn read_records(directory: &Path, last_epoch: u64) -> Result<Vec<EpochRecord>> {
    let path = directory.join(METRICS);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && last_epoch == 0 => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(Error::io(&path, "read", error)),
    };
    let mut records = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let record: EpochRecord = serde_json::from_str(line).map_err(|error| {
            Error::run_file(&path, format!("line {}: not an epoch's record: {error}", number + 1))
        })?;
        if record.epoch <= last_epoch {
            records.push(record);
        }
    }
    Ok(records)
}
