//! Settings files: TOML and YAML, this program's own and MMRec's.

use std::path::Path;

use super::mmrec::{MmrecKeys, Outcome, RENAMED, TRANSLATED};
use super::value::Value;
use super::{RunSettings, TrainConfig, TrainSettings, keys};
use crate::{Error, Result};

/// What one or more settings files say.
///
/// Keys are those of [`TrainConfig`] and [`RunSettings`] in snake or kebab case, in one flat table;
/// `features` is a table of NAME = FILE, or of lists of files. Paths are taken as if they were given as flags: relative
/// to the working directory.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ConfigFile {
    /// What decides the model.
    pub train: TrainSettings,
    /// Where the data is, where to compute and where to write.
    pub run: RunSettings,
    /// What the user should know about the files: keys of MMRec without a meaning here.
    pub notices: Vec<String>,
}

impl ConfigFile {
    /// Reads a `.toml`, `.yaml` or `.yml` file.
    ///
    /// # Errors
    /// [`Error::RunFile`] with the file, the line and the key: not TOML or YAML, a key that is none
    /// (and which one may have been meant), a value of the wrong kind or out of range, or one that
    /// MMRec would honour and this engine does not. [`Error::Io`] when it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_all(&[path])
    }

    /// Reads several files as one; where two set a key, the later file wins. MMRec's settings are
    /// spread over three: `overall.yaml`, one of the data set and `BM3.yaml`.
    ///
    /// # Errors
    /// As [`ConfigFile::read`].
    pub fn read_all(paths: &[impl AsRef<Path>]) -> Result<Self> {
        let mut config = Self::default();
        let mut mmrec = MmrecKeys::default();
        for path in paths {
            let path = path.as_ref();
            let text =
                std::fs::read_to_string(path).map_err(|error| Error::io(path, "read", error))?;
            config.add(path, &text, &mut mmrec)?;
        }
        let finished = mmrec.finish(&config.train, &mut config.run, &mut config.notices);
        if let Err((key, problem)) = finished {
            let path = paths.last().map_or(Path::new(""), AsRef::as_ref);
            return Err(Error::run_file(path, format!("{key}: {problem}")));
        }
        Ok(config)
    }

    /// Reads the text of a TOML file, for programs that have settings elsewhere.
    ///
    /// # Errors
    /// [`Error::Setting`] named `settings`, otherwise as [`ConfigFile::read`].
    pub fn parse(text: &str) -> Result<Self> {
        let (mut config, mut mmrec) = (Self::default(), MmrecKeys::default());
        let as_setting = |error| match error {
            Error::RunFile { problem, .. } => Error::setting("settings", problem),
            other => other,
        };
        config.add(Path::new("settings.toml"), text, &mut mmrec).map_err(as_setting)?;
        mmrec
            .finish(&config.train, &mut config.run, &mut config.notices)
            .map_err(|(key, problem)| Error::setting("settings", format!("{key}: {problem}")))?;
        Ok(config)
    }

    /// Takes the keys of one file.
    fn add(&mut self, path: &Path, text: &str, mmrec: &mut MmrecKeys) -> Result<()> {
        let at = |written: &str, problem: &str| {
            let line =
                line_of(text, written).map_or(String::new(), |line| format!("line {line}: "));
            Error::run_file(path, format!("{line}{written}: {problem}"))
        };
        let mut ignored = Vec::new();
        // Canonical name and name as written, to notice a setting given under two names.
        let mut seen: Vec<(String, String)> = Vec::new();
        for (written, value) in parse(path, text)? {
            let key = canonical(&written);
            if let Some((_, other)) = seen.iter().find(|(earlier, _)| *earlier == key) {
                return Err(at(&written, &format!("is already given, as `{other}`")));
            }
            seen.push((key.clone(), written.clone()));
            // As when the key is not there. A few of MMRec's are checked for just that.
            if value == Value::Null && keys::KEYS.contains(&key.as_str()) {
                continue;
            }
            let own = keys::assign(&mut self.train, &mut self.run, &key, &value)
                .map_err(|problem| at(&written, &problem))?;
            if own {
                continue;
            }
            let outcome = mmrec.assign(&mut self.train, &key, &value);
            match outcome.map_err(|problem| at(&written, &problem))? {
                Outcome::Assigned => {}
                Outcome::Ignored => ignored.push(written),
                Outcome::Unknown => return Err(at(&written, &unknown(&key))),
            }
        }
        if !ignored.is_empty() {
            self.notices.push(format!(
                "{}: keys without an effect here: {}",
                path.display(),
                ignored.join(", ")
            ));
        }
        self.check_ranges(path, &seen, at)
    }

    /// Reports a value that is out of range by the file and line it is written in, while those are
    /// known; the flags have their own check.
    fn check_ranges(
        &self,
        path: &Path,
        seen: &[(String, String)],
        at: impl Fn(&str, &str) -> Error,
    ) -> Result<()> {
        let mut config = TrainConfig::default();
        self.train.apply(&mut config);
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
    }
}

/// The top-level keys and values of a file, in its order.
fn parse(path: &Path, text: &str) -> Result<Vec<(String, Value)>> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let value: Value = match ending.to_ascii_lowercase().as_str() {
        "toml" => toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| line_at(text, span.start));
            syntax_error(path, line, error.message())
        })?,
        "yaml" | "yml" => {
            // Empty apart from comments: no document at all, which is no error.
            if text.lines().all(|line| line.trim().is_empty() || line.trim().starts_with('#')) {
                return Ok(Vec::new());
            }
            serde_saphyr::from_str_with_options(text, yaml_limits()).map_err(|error| {
                let line = error.location().map(|location| location.line());
                let message = error.without_snippet().to_string();
                syntax_error(path, line, message.lines().next().unwrap_or_default())
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

/// What a settings file may need, and no more: with aliases of aliases, a few lines could otherwise
/// stand for more than fits into memory.
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

fn syntax_error(path: &Path, line: Option<u64>, message: &str) -> Error {
    let line = line.map_or(String::new(), |line| format!("line {line}: "));
    Error::run_file(path, format!("{line}{message}"))
}

/// The line, from 1, in which byte `offset` lies.
fn line_at(text: &str, offset: usize) -> u64 {
    let before = &text.as_bytes()[..offset.min(text.len())];
    1 + before.iter().filter(|&&byte| byte == b'\n').count() as u64
}

/// The line, from 1, on which `key` is set. Neither parser says it for a key of a generic table,
/// but a key stands at the start of its line.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let sets = |line: &str| {
        let line = line.trim_start().trim_start_matches(['"', '\'', '[']);
        line.strip_prefix(key).is_some_and(|rest| {
            rest.trim_start_matches(['"', '\'']).trim_start().starts_with(['=', ':', ']', '.'])
        })
    };
    text.lines().position(sets).map(|position| position + 1)
}

/// Our name of a key: snake case, and not MMRec's where ours differs.
fn canonical(written: &str) -> String {
    let key = written.to_lowercase().replace('-', "_");
    match RENAMED.iter().find(|(theirs, _)| *theirs == key) {
        Some((_, ours)) => (*ours).to_owned(),
        None => key,
    }
}

fn unknown(key: &str) -> String {
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
