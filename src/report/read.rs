//! Reads the directories of runs for a report.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::profile::Profile;
use crate::records::{EpochRecord, Metrics};
use crate::run::{CONFIG, METRICS, PROFILE, SUMMARY, Summary, read_records};
use crate::sweep::{SWEEP, SweepDirectory};
use crate::{Error, Result};

/// A run, finished or not, with at least one epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct ReportedRun {
    /// Its name: the shortest end of its directory's path that no other run shares.
    pub name: String,
    /// Its directory.
    pub directory: PathBuf,
    /// Its settings by flag name, from `config.toml`; empty if there is no such file.
    pub settings: Vec<(String, String)>,
    /// Its epochs, ascending.
    pub records: Vec<EpochRecord>,
    /// Its summary, if it has ended.
    pub summary: Option<Summary>,
    /// The operations of one epoch, if they were timed.
    pub profile: Option<Profile>,
}

impl ReportedRun {
    /// Reads the directory of a run.
    ///
    /// # Errors
    /// [`Error::Io`] when the directory or a file in it cannot be read; [`Error::RunFile`] for a
    /// malformed file, naming its line, or when there is no epoch.
    pub fn read(directory: &Path) -> Result<Self> {
        match Found::read(directory)? {
            Found::Run(run) => Ok(*run),
            Found::Nothing(reason) => Err(reason),
        }
    }

    /// Makes a run of at least one epoch.
    fn of(directory: &Path, records: Vec<EpochRecord>, last_epoch: u64) -> Result<Self> {
        let path = directory.join(METRICS);
        let ascends = |pair: &[EpochRecord]| pair[0].epoch < pair[1].epoch;
        if let Some(index) = records.windows(2).position(|pair| !ascends(pair)) {
            let (before, after) = (records[index].epoch, records[index + 1].epoch);
            let line = index + 2;
            let problem = format!("line {line}: epoch {after} found after epoch {before}");
            return Err(Error::run_file(&path, problem));
        }
        // A summary with fewer epochs is an earlier process's, and the run has gone on since.
        let summary: Option<Summary> = json(&directory.join(SUMMARY), "a run's summary")?;
        let summary = summary.filter(|summary| summary.epochs >= last_epoch);
        Ok(Self {
            name: String::new(),
            directory: directory.to_owned(),
            settings: settings(&directory.join(CONFIG))?,
            records,
            summary,
            profile: json(&directory.join(PROFILE), "the profile of an epoch")?,
        })
    }

    /// The best epoch by validation Recall@20; the last one if there is no validation split.
    pub fn best(&self) -> Option<&EpochRecord> {
        self.records.iter().rev().find(|record| record.best)
    }

    /// The data set's name: the summary's, else the data folder's.
    pub fn dataset(&self) -> Option<&str> {
        let folder = || Path::new(self.setting("data")?).file_name()?.to_str();
        self.summary.as_ref().map(|summary| &*summary.dataset).or_else(folder)
    }

    /// The device in words, if known.
    pub fn device(&self) -> Option<&str> {
        let profiled = || self.profile.as_ref().map(|profile| &*profile.device);
        self.summary.as_ref().map(|summary| &*summary.device).or_else(profiled)
    }

    /// A setting by flag name.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }
}

/// A metric at a list length, if it was measured.
pub fn metric(metrics: Option<&Metrics>, name: &str, k: usize) -> Option<f64> {
    let metrics = metrics?;
    let position = metrics.top_k.iter().position(|&length| length == k)?;
    let (_, values) = metrics.by_name().into_iter().find(|(known, _)| *known == name)?;
    values.get(position).copied()
}

/// What a path holds.
enum Found {
    Run(Box<ReportedRun>),
    /// No run, or one without an epoch: the reason there is nothing to report on.
    Nothing(Error),
}

impl Found {
    /// Reads what the path holds.
    ///
    /// # Errors
    /// As [`ReportedRun::read`], for files that a run cannot have written.
    fn read(directory: &Path) -> Result<Self> {
        let found = std::fs::metadata(directory);
        let found = found.map_err(|error| Error::io(directory, "read", error))?;
        let nothing = |path: &Path, reason: &str| Ok(Self::Nothing(Error::run_file(path, reason)));
        if !found.is_dir() {
            return nothing(directory, "a file found, the directory of a run expected");
        }
        let path = directory.join(METRICS);
        if !path.exists() && directory.join(CONFIG).is_file() {
            let reason = format!(
                "no {METRICS} yet: a run writes it with its first checkpoint, after \
                 --checkpoint-seconds"
            );
            return nothing(directory, &reason);
        }
        if !path.exists() {
            let reason = format!(
                "no run to report on: there is no {METRICS} in it; give the directory of a run \
                 that has trained an epoch"
            );
            return nothing(directory, &reason);
        }
        let records = read_records(directory, u64::MAX)?;
        match records.last().map(|last| last.epoch) {
            None => nothing(&path, "no epoch yet: nothing to report on"),
            Some(last) => {
                ReportedRun::of(directory, records, last).map(|run| Self::Run(Box::new(run)))
            }
        }
    }
}

/// Reads the runs in these directories, in order; a sweep's directory stands for its runs that have
/// trained an epoch. Also returns the reason for each path that has no such run.
///
/// # Errors
/// As [`ReportedRun::read`] and [`SweepDirectory::plan`]; [`Error::RunFile`], the first of the
/// reasons, when no path has a run that has trained an epoch.
pub fn read_runs<P: AsRef<Path>>(directories: &[P]) -> Result<(Vec<ReportedRun>, Vec<Error>)> {
    let (mut runs, mut reasons) = (Vec::new(), Vec::new());
    for directory in directories {
        let directory = directory.as_ref();
        if !directory.join(SWEEP).is_file() {
            match Found::read(directory)? {
                Found::Run(run) => runs.push(*run),
                Found::Nothing(reason) => reasons.push(reason),
            }
            continue;
        }
        let before = runs.len();
        for planned in SweepDirectory::plan(directory)?.runs()? {
            let run = directory.join(planned.name);
            // A run that failed or was interrupted in its first epoch has an empty file.
            if run.join(METRICS).is_file()
                && let Found::Run(run) = Found::read(&run)?
            {
                runs.push(*run);
            }
        }
        if runs.len() == before {
            let problem = "no run of this sweep has trained an epoch yet: nothing to report on";
            reasons.push(Error::run_file(directory, problem));
        }
    }
    if runs.is_empty() && !reasons.is_empty() {
        return Err(reasons.swap_remove(0));
    }
    name(&mut runs);
    Ok((runs, reasons))
}

/// Names each run by the shortest end of its path that no other shares.
fn name(runs: &mut [ReportedRun]) {
    let absolute =
        |run: &ReportedRun| run.directory.canonicalize().unwrap_or_else(|_| run.directory.clone());
    let paths: Vec<PathBuf> = runs.iter().map(absolute).collect();
    let most = paths.iter().map(|path| path.iter().count()).max().unwrap_or(0);
    for parts in 1..=most {
        let names: Vec<String> = paths.iter().map(|path| end(path, parts)).collect();
        let mut times: HashMap<&str, usize> = HashMap::new();
        names.iter().for_each(|name| *times.entry(name).or_default() += 1);
        for (run, name) in runs.iter_mut().zip(&names) {
            // A directory given twice ends up with its whole path.
            if run.name.is_empty() && (times[&**name] == 1 || parts == most) {
                run.name.clone_from(name);
            }
        }
    }
}

/// The last `parts` parts of a path.
fn end(path: &Path, parts: usize) -> String {
    let all: Vec<_> = path.iter().collect();
    all[all.len().saturating_sub(parts)..].iter().collect::<PathBuf>().display().to_string()
}

/// The text of a file, if there is one.
fn text(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path, "read", error)),
    }
}

/// The contents of a JSON file, if there is one.
fn json<T: serde::de::DeserializeOwned>(path: &Path, what: &str) -> Result<Option<T>> {
    let Some(text) = text(path)? else { return Ok(None) };
    // The parser's message ends with line and column.
    let parsed = serde_json::from_str(&text);
    parsed.map_err(|error| Error::run_file(path, format!("not {what}: {error}"))).map(Some)
}

/// The keys and values of a `config.toml`. They are only shown, so settings of another version of
/// this program, or of data that is gone, do no harm.
fn settings(path: &Path) -> Result<Vec<(String, String)>> {
    let Some(text) = text(path)? else { return Ok(Vec::new()) };
    let table: toml::Table = toml::from_str(&text).map_err(|error| {
        let before = error.span().map_or("", |span| text.get(..span.start).unwrap_or(""));
        let line = before.matches('\n').count() + 1;
        Error::run_file(path, format!("line {line}: {}", error.message()))
    })?;
    let mut settings = Vec::new();
    for (key, value) in table {
        match value {
            toml::Value::Table(table) => {
                let inner = table.into_iter().map(|(name, value)| (format!("{key}.{name}"), value));
                settings.extend(inner.map(|(name, value)| (name, word(&value))));
            }
            value => settings.push((key.replace('_', "-"), word(&value))),
        }
    }
    Ok(settings)
}

fn word(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(list) => list.iter().map(word).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(paths: &[&str]) -> Vec<String> {
        let run = |path: &&str| ReportedRun {
            name: String::new(),
            directory: path.into(),
            settings: Vec::new(),
            records: Vec::new(),
            summary: None,
            profile: None,
        };
        let mut runs: Vec<ReportedRun> = paths.iter().map(run).collect();
        name(&mut runs);
        runs.into_iter().map(|run| run.name).collect()
    }

    #[test]
    fn runs_have_the_shortest_names_that_tell_them_apart() {
        assert_eq!(named(&["/none/runs/a", "/none/runs/b"]), ["a", "b"]);
        assert_eq!(named(&["/none/x/a", "/none/y/a", "/none/y/b"]), ["x/a", "y/a", "b"]);
        assert_eq!(named(&["/none/a", "/none/a"]), ["/none/a", "/none/a"]);
    }

    #[test]
    fn settings_are_shown_as_they_stand() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(CONFIG);
        assert_eq!(settings(&path).unwrap(), []);
        let text = "data = '/d'\ntop_k = [5, 20]\ndropout = 0.5\n\n[features]\na_b = ['x', 'y']\n";
        std::fs::write(&path, text).unwrap();
        let found = settings(&path).unwrap();
        let expected =
            [("data", "/d"), ("top-k", "5, 20"), ("dropout", "0.5"), ("features.a_b", "x, y")];
        assert_eq!(found, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
        std::fs::write(&path, "a = 1\nb = \n").unwrap();
        let error = settings(&path).unwrap_err().to_string();
        assert!(error.contains("config.toml: line 2: "), "{error}");
    }
}
