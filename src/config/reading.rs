//! Several settings files being read, before it is known which of their settings count.

use std::path::{Path, PathBuf};

use super::file::{self, ConfigFile};
use super::mmrec::{self, MmrecKeys, Outcome};
use super::value::Value;
use super::{Axis, RunSettings, TrainConfig, TrainSettings, keys};
use crate::data;
use crate::{Error, Result};

/// Our name of γ.
const DECAY: &str = "learning_rate_decay";

/// The settings of the files so far, and problems that count only if nothing replaces them.
#[derive(Debug, Default)]
pub(super) struct Reading {
    config: ConfigFile,
    mmrec: MmrecKeys,
    lists: Vec<List>,
    /// Feature files that MMRec would read and this engine does not: the modality, and the error.
    features: Vec<(&'static str, Error)>,
    interactions: Option<Interactions>,
    /// The last file read.
    last: PathBuf,
}

/// A training setting with several values, and the error in case one is required.
#[derive(Debug)]
struct List {
    axis: Axis,
    error: Error,
}

/// MMRec's `inter_file_name`, and its place.
#[derive(Debug)]
struct Interactions {
    name: String,
    path: PathBuf,
    place: String,
}

impl Reading {
    pub fn of_files(paths: &[impl AsRef<Path>]) -> Result<Self> {
        let mut reading = Self::default();
        for path in paths {
            let path = path.as_ref();
            let text =
                std::fs::read_to_string(path).map_err(|error| Error::io(path, "read", error))?;
            reading.add(path, &text)?;
        }
        Ok(reading)
    }

    /// Takes the keys of one file.
    pub fn add(&mut self, path: &Path, text: &str) -> Result<()> {
        self.last = path.to_owned();
        let place = |written: &str| {
            let line = file::line_of(text, written);
            line.map_or(String::new(), |line| format!("line {line}: ")) + written
        };
        let at = |written: &str, problem: &str| {
            Error::run_file(path, format!("{}: {problem}", place(written)))
        };
        let mut ignored = Vec::new();
        // Canonical name and name as written, to notice a setting given under two names.
        let mut seen: Vec<(String, String)> = Vec::new();
        for (written, value) in file::parse(path, text)? {
            let key = file::canonical(&written);
            if let Some((_, other)) = seen.iter().find(|(earlier, _)| *earlier == key) {
                return Err(at(&written, &format!("is already given, as `{other}`")));
            }
            seen.push((key.clone(), written.clone()));
            // Null means not given, except for MMRec's keys, some of which are checked for it.
            if value == Value::Null && keys::KEYS.contains(&key.as_str()) {
                continue;
            }
            let list = list(&key, &value).map_err(|problem| at(&written, &problem))?;
            // The later file wins, whether it has one value or several.
            let name = if key == mmrec::DECAY { DECAY } else { &key };
            self.lists.retain(|earlier| earlier.axis.key != name);
            if let Some(axis) = list {
                let problem = format!(
                    "{value} found; a list means a sweep; give one value, or `bm3-engine sweep {}`",
                    axis.as_flags()
                );
                self.lists.push(List { axis, error: at(&written, &problem) });
                continue;
            }
            let own = keys::assign(&mut self.config.train, &mut self.config.run, &key, &value);
            if own.map_err(|problem| at(&written, &problem))? {
                continue;
            }
            let outcome = self.mmrec.assign(&mut self.config.train, &key, &value);
            match outcome.map_err(|problem| at(&written, &problem))? {
                Outcome::Assigned => {}
                Outcome::Ignored => ignored.push(written),
                Outcome::Interactions(name) => {
                    let (path, place) = (path.to_owned(), place(&written));
                    self.interactions = Some(Interactions { name, path, place });
                }
                Outcome::Features { modality, problem } => {
                    self.features.retain(|(earlier, _)| *earlier != modality);
                    if let Some(problem) = problem {
                        self.features.push((modality, at(&written, &problem)));
                    }
                }
                Outcome::Unknown => return Err(at(&written, &file::unknown(&key))),
            }
        }
        if !ignored.is_empty() {
            self.config.notices.push(format!(
                "{}: keys without an effect here: {}",
                path.display(),
                ignored.join(", ")
            ));
        }
        self.check_ranges(path, &seen, at)
    }

    /// Reports a value out of range by its file and line while these are known; the flags have
    /// their own check.
    fn check_ranges(
        &self,
        path: &Path,
        seen: &[(String, String)],
        at: impl Fn(&str, &str) -> Error,
    ) -> Result<()> {
        let check = |settings: &TrainSettings| {
            let mut config = TrainConfig::default();
            settings.apply(&mut config);
            match config.validate_ranges() {
                Err(Error::Setting { name, problem }) => {
                    let key = name.trim_start_matches('-').replace('-', "_");
                    match seen.iter().find(|(canonical, _)| *canonical == key) {
                        Some((_, written)) => Err(at(written, &problem)),
                        None => Err(Error::run_file(path, format!("{key}: {problem}"))),
                    }
                }
                other => other,
            }
        };
        check(&self.config.train)?;
        self.lists.iter().try_for_each(|List { axis, .. }| {
            (0..axis.values.len())
                .try_for_each(|index| check(&axis.value(index)?.0.or(self.config.train.clone())))
        })
    }

    /// The settings of one run: `train` and `run`, completed from the files.
    pub fn single(mut self, train: &TrainSettings, run: &RunSettings) -> Result<ConfigFile> {
        for List { axis, error } in std::mem::take(&mut self.lists) {
            if !axis.is_given_by(train, run)? {
                return Err(error);
            }
        }
        self.finish(train, run)
    }

    /// The settings of many runs, and the axes that `train` leaves open.
    pub fn sweep(
        mut self,
        train: &TrainSettings,
        run: &RunSettings,
    ) -> Result<(ConfigFile, Vec<Axis>)> {
        let mut axes = Vec::new();
        for List { axis, .. } in std::mem::take(&mut self.lists) {
            if !axis.is_given_by(train, run)? {
                axes.push(axis);
            }
        }
        Ok((self.finish(train, run)?, axes))
    }

    fn finish(self, train: &TrainSettings, run: &RunSettings) -> Result<ConfigFile> {
        let Self { config, mmrec, features, interactions, last, .. } = self;
        let ConfigFile { train: own, run: own_run, mut notices } = config;
        let mut run = run.clone().or(own_run);
        mmrec
            .finish(&own, &mut run, &mut notices)
            .map_err(|(key, problem)| Error::run_file(&last, format!("{key}: {problem}")))?;
        for (modality, error) in features {
            let names = run.modalities.as_ref().and_then(|choice| choice.names());
            let is_used = names.is_none_or(|names| names.iter().any(|name| name == modality));
            if is_used && !run.features.iter().any(|source| source.name == modality) {
                return Err(error);
            }
        }
        if let (Some(interactions), Some(data)) = (interactions, &run.data) {
            interactions.check(data)?;
        }
        Ok(ConfigFile { train: train.clone().or(own), run, notices })
    }
}

impl Interactions {
    /// Refuses a name other than that of the file that is read from the folder. Other problems of
    /// the folder are reported when it is opened.
    fn check(&self, data: &Path) -> Result<()> {
        let Ok((read, _)) = data::interactions_file(data) else { return Ok(()) };
        let read = read.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        if read == *self.name {
            return Ok(());
        }
        let problem = format!(
            "{}: {:?} found; {read} is read of {}: leave the key out, or keep the one that is meant \
             as the only .inter file there",
            self.place,
            self.name,
            data.display()
        );
        Err(Error::run_file(&self.path, problem))
    }
}

/// The axis of a training setting that has several values.
fn list(key: &str, value: &Value) -> Result<Option<Axis>, String> {
    if key == mmrec::DECAY {
        let decays = mmrec::decays(value).transpose()?;
        let axis = decays.and_then(|decays| Axis::of_list(DECAY, &decays));
        return axis.transpose();
    }
    match value {
        Value::List(values) if values.len() > 1 => Axis::of_list(key, values).transpose(),
        _ => Ok(None),
    }
}
