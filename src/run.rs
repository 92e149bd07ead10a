//! The directory a run leaves: names, lock, records.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::data::IdMaps;
use crate::profile::Profile;
use crate::records::{EpochRecord, Metrics};
use crate::{Error, Result, files};

/// Every setting, enough to repeat the run.
pub const CONFIG: &str = "config.toml";
/// One line for each epoch.
pub const METRICS: &str = "metrics.jsonl";
/// The model of the best validation epoch.
pub const MODEL: &str = "model.safetensors";
/// The last epoch with optimiser and counters.
pub const STATE: &str = "state.safetensors";
/// The next `model.safetensors`, until the state that it belongs to is written.
pub(crate) const NEXT_MODEL: &str = ".next-model.safetensors";
/// The operations of one epoch, timed one by one; where that was asked for.
pub const PROFILE: &str = "profile.json";
/// What came of it.
pub const SUMMARY: &str = "summary.json";

/// What a run leaves under names of its own, and does not find before it begins.
const OWN: [&str; 6] = [STATE, CONFIG, MODEL, METRICS, SUMMARY, PROFILE];

/// Why training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StopReason {
    /// Too many evaluations in a row have not beaten the best Recall@20.
    Patience,
    /// The last epoch was reached.
    Epochs,
    /// The caller asked for it; the run can be resumed.
    Interrupted,
}

/// What came of a run.
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
    /// The epoch that `model.safetensors` is from.
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
    /// Whether a run was here already, which goes on.
    had_run: bool,
    /// Whether original ids were here before, somebody else's or of the run that is continued.
    had_ids: bool,
    /// Unlocked when closed, by the system too when the process dies.
    _lock: File,
}

impl RunDirectory {
    /// Creates `path` if need be and locks it.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be created; [`Error::RunFile`] when another process trains in
    /// it, when `resume` is false and a run is already there, or a file that would be taken for a
    /// run's, and when it is true and there is none.
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

    /// [Opens](RunDirectory::open) a directory and has `prepare` write into it what a run begins with.
    /// One that was new is taken back where that fails.
    ///
    /// # Errors
    /// Those of [`RunDirectory::open`] and of `prepare`.
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

    /// Ends with how a run went; where it was refused, a directory that was new is taken back.
    ///
    /// # Errors
    /// That of `outcome`.
    pub fn end<T>(self, outcome: Result<T>) -> Result<T> {
        if outcome.as_ref().is_err_and(Error::is_refusal) {
            self.discard_unused();
        }
        outcome
    }

    /// Keeps the original ids of the data folder, where it has them, beside the model: its numbers
    /// mean nothing without them. What is wrong with the folder's, which training does not need.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::RunFile`] where the directory has ids of something else.
    pub fn keep_ids(&self, data: &Path) -> Result<Option<Error>> {
        let maps = match IdMaps::read(data) {
            Ok(Some(maps)) => maps,
            Ok(None) => return Ok(None),
            // A foreign folder may have other files of these names.
            Err(error) if error.is_input() => return Ok(Some(error)),
            Err(error) => return Err(error),
        };
        match IdMaps::read(&self.path) {
            // Those of the run that is continued, or the data folder is the directory itself.
            Ok(Some(_)) if self.has_state() => {}
            Ok(Some(kept)) if kept == maps => {}
            Ok(Some(_)) => {
                let problem = "has original ids that are not the data's; give another --out";
                return Err(Error::run_file(&self.path, problem.to_owned()));
            }
            Ok(None) => maps.write(&self.path)?,
            // A process was killed after it had written the first of the two.
            Err(_) if maps.are_begun(&self.path) => maps.write(&self.path)?,
            Err(error) => {
                let problem = format!("{error}; give another --out");
                return Err(Error::run_file(&self.path, problem));
            }
        }
        Ok(None)
    }

    /// Whether a directory has a run that can be resumed: one that was ended before its first checkpoint
    /// has left its settings alone.
    pub fn has_begun(path: &Path) -> bool {
        [STATE, CONFIG].iter().any(|name| path.join(name).is_file())
    }

    /// Whether a checkpoint is here.
    pub fn has_state(&self) -> bool {
        self.file(STATE).exists()
    }

    /// Takes back a new directory in which nothing was trained: its settings and the ids that were
    /// kept with them, its lock, and itself when there is nothing else in it.
    pub fn discard_unused(self) {
        if !self.had_run && !self.has_state() {
            // Best effort: what cannot be removed does no harm.
            let ids = IdMaps::paths(&self.path).into_iter().filter(|_| !self.had_ids);
            let settings = [CONFIG, METRICS, PROFILE].map(|name| self.file(name));
            // The lock goes last: from there on another process may have the directory.
            for path in settings.into_iter().chain(ids).chain([self.file(files::LOCK)]) {
                std::fs::remove_file(path).ok();
            }
            std::fs::remove_dir(&self.path).ok();
        }
    }

    /// Where a file of the run lies.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes all epochs' records, one JSON object a line.
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

/// Removes what processes that were killed in the middle of writing have left; the lock is held, so
/// nobody is writing now.
fn remove_unfinished(directory: &Path) {
    // Without a state it belongs to none; with one, that tells.
    if !directory.join(STATE).exists() {
        std::fs::remove_file(directory.join(NEXT_MODEL)).ok();
    }
    // Best effort: what cannot be listed or removed does no harm.
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if files::is_temporary(&entry.file_name().to_string_lossy()) {
            std::fs::remove_file(entry.path()).ok();
        }
    }
}

/// The records of a run's epochs up to `last_epoch`; later ones are of epochs that a process did and
/// did not live to save.
///
/// # Errors
/// [`Error::Io`] when `metrics.jsonl` cannot be read, [`Error::RunFile`] naming the line that is
/// not a record.
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
