//! Settings files: TOML and YAML, this program's own and MMRec's.

use std::path::Path;

use super::mmrec::{RENAMED, TRANSLATED};
use super::reading::Reading;
use super::value::Value;
use super::{Axis, RunSettings, TrainSettings, keys};
use crate::{Error, Result};

/// The contents of one or more settings files.
///
/// Keys are those of [`TrainConfig`](super::TrainConfig) and [`RunSettings`] in snake or kebab
/// case, in one flat table; `features` is a table of NAME = FILE, or of lists of files. Paths are
/// relative to the working directory, as in flags.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ConfigFile {
    /// The settings that decide the model.
    pub train: TrainSettings,
    /// Where the data is, where to compute and where to write.
    pub run: RunSettings,
    /// Notes for the user: MMRec keys without a meaning here.
    pub notices: Vec<String>,
}

impl ConfigFile {
    /// Reads a `.toml`, `.yaml` or `.yml` file.
    ///
    /// # Errors
    /// [`Error::RunFile`] with the file, the line and the key: not TOML or YAML, an unknown key
    /// (with the closest known one), a value of the wrong kind or out of range, or a value that
    /// MMRec would honour and this engine does not. [`Error::Io`] if the file cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_all(&[path])
    }

    /// Reads several files as one; if two set a key, the later file wins. MMRec spreads its
    /// settings over three: `overall.yaml`, one of the data set and `BM3.yaml`.
    ///
    /// # Errors
    /// The errors of [`ConfigFile::read`].
    pub fn read_all(paths: &[impl AsRef<Path>]) -> Result<Self> {
        Self::read_under(paths, &TrainSettings::default(), &RunSettings::default())
    }

    /// [`ConfigFile::read_all`] with settings that are given elsewhere, for example by flags. These
    /// win and are included in the result; the values that they replace need not be usable, such as
    /// MMRec's lists for a sweep.
    ///
    /// # Errors
    /// The errors of [`ConfigFile::read`].
    pub fn read_under(
        paths: &[impl AsRef<Path>],
        train: &TrainSettings,
        run: &RunSettings,
    ) -> Result<Self> {
        Reading::of_files(paths)?.single(train, run)
    }

    /// [`ConfigFile::read_under`] for a sweep: lists of values for training settings, including
    /// `seed`, as in MMRec's files, are returned separately.
    ///
    /// # Errors
    /// The errors of [`ConfigFile::read`].
    pub fn read_sweep(
        paths: &[impl AsRef<Path>],
        train: &TrainSettings,
        run: &RunSettings,
    ) -> Result<(Self, Vec<Axis>)> {
        Reading::of_files(paths)?.sweep(train, run)
    }

    /// Reads the text of a TOML file, for programs that keep settings elsewhere.
    ///
    /// # Errors
    /// [`Error::Setting`] for `settings`, otherwise as [`ConfigFile::read`].
    pub fn parse(text: &str) -> Result<Self> {
        let mut reading = Reading::default();
        let read = reading.add(Path::new("settings.toml"), text);
        read.and_then(|()| reading.single(&TrainSettings::default(), &RunSettings::default()))
            .map_err(|error| match error {
                Error::RunFile { problem, .. } => Error::setting("settings", problem),
                other => other,
            })
    }
}

/// The top-level keys and values of a file, in its order.
pub(super) fn parse(path: &Path, text: &str) -> Result<Vec<(String, Value)>> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let value: Value = match ending.to_ascii_lowercase().as_str() {
        "toml" => toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| line_at(text, span.start));
            syntax_error(path, line, error.message())
        })?,
        "yaml" | "yml" => {
            // A file of comments alone has no document, which is not an error.
            if text.lines().all(|line| line.trim().is_empty() || line.trim().starts_with('#')) {
                return Ok(Vec::new());
            }
            serde_saphyr::from_str_with_options(text, yaml_limits()).map_err(|error| {
                let line = error.location().map(|location| location.line());
                syntax_error(path, line, &yaml_problem(error.without_snippet()))
            })?
        }
        _ => {
            let problem = "a settings file is expected to end in .toml, .yaml or .yml";
            return Err(Error::run_file(path, problem));
        }
    };
    match value {
        Value::Table(entries) => Ok(entries),
        Value::Null => Ok(Vec::new()),
        other => Err(Error::run_file(path, format!("{other} found, a table of settings expected"))),
    }
}

/// Limits that no settings file needs to exceed: with aliases of aliases, a few lines could
/// otherwise expand to more than fits into memory.
fn yaml_limits() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 100_000,
            max_nodes: 50_000,
            max_aliases: 100,
            max_anchors: 100,
            max_recorded_anchor_events: 1_000,
            max_recorded_anchor_bytes: 1 << 20,
            max_total_scalar_bytes: 1 << 22,
            max_merge_keys: 100,
        },
    }
}

/// The parser's message without the place, since the line is reported separately.
fn yaml_problem(error: &serde_saphyr::Error) -> String {
    if let serde_saphyr::Error::DuplicateMappingKey { key, .. } = error {
        let key = key.as_deref().map_or("a key".to_owned(), |key| format!("`{key}`"));
        return format!("{key} is there twice; keep one of the two");
    }
    let message = error.to_string();
    let message = message.lines().next().unwrap_or_default();
    message.rsplit_once(" at line ").map_or(message, |(problem, _)| problem).to_owned()
}

fn syntax_error(path: &Path, line: Option<u64>, message: &str) -> Error {
    let line = line.map_or(String::new(), |line| format!("line {line}: "));
    Error::run_file(path, format!("{line}{message}"))
}

/// The line, from 1, that contains byte `offset`.
fn line_at(text: &str, offset: usize) -> u64 {
    let before = &text.as_bytes()[..offset.min(text.len())];
    1 + before.iter().filter(|&&byte| byte == b'\n').count() as u64
}

/// The line, from 1, that sets `key`. Neither parser reports it for a key of a generic table, but a
/// key stands at the start of its line.
pub(super) fn line_of(text: &str, key: &str) -> Option<usize> {
    let sets = |line: &str| {
        let line = line.trim_start().trim_start_matches(['"', '\'', '[']);
        line.strip_prefix(key).is_some_and(|rest| {
            rest.trim_start_matches(['"', '\'']).trim_start().starts_with(['=', ':', ']', '.'])
        })
    };
    text.lines().position(sets).map(|position| position + 1)
}

/// Our name of a key: in snake case, and translated if MMRec's name differs.
pub(super) fn canonical(written: &str) -> String {
    let key = written.to_lowercase().replace('-', "_");
    match RENAMED.iter().find(|(theirs, _)| *theirs == key) {
        Some((_, ours)) => (*ours).to_owned(),
        None => key,
    }
}

pub(super) fn unknown(key: &str) -> String {
    let renamed = RENAMED.iter().map(|(theirs, _)| theirs);
    let nearest = keys::KEYS
        .iter()
        .chain(renamed)
        .chain(TRANSLATED)
        .map(|known| (strsim::jaro_winkler(key, known), known))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((similarity, known)) if similarity > 0.8 => {
            format!("is not a setting; did you mean `{known}`?")
        }
        _ => format!("is not a setting; the settings are {}", keys::KEYS.join(", ")),
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
