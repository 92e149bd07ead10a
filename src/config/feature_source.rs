//! Feature files of a modality given by the user: `NAME=FILE,…`.

use std::cmp::Ordering;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::choices::check_modality_name;
use crate::data::FeatureFile;
use crate::{Error, Result};

/// A modality and its files, whose rows make one table in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureSource {
    /// The modality: `image`, `text`, `audio`, …
    pub name: String,
    /// Its files, at least one.
    pub files: Vec<FeatureFile>,
}

impl FeatureSource {
    /// Reads a modality's files from a text: one, or several separated by commas.
    ///
    /// # Errors
    /// A name that is not allowed, or a file without a name.
    pub(super) fn of_text(name: &str, files: &str) -> Result<Self, String> {
        Self::of_list(name, files.split(','))
    }

    /// [`FeatureSource::of_text`] for a list, whose elements may contain commas.
    ///
    /// # Errors
    /// The errors of [`FeatureSource::of_text`].
    pub(super) fn of_list<'a>(
        name: &str,
        files: impl Iterator<Item = &'a str>,
    ) -> Result<Self, String> {
        check_modality_name(name)?;
        let files: Vec<FeatureFile> = files.map(FeatureFile::parse).collect();
        if files.is_empty() || files.iter().any(|file| file.path.as_os_str().is_empty()) {
            return Err(format!(
                "`{name}` has a file without a name; FILE or FILE,FILE,… expected"
            ));
        }
        Ok(Self { name: name.to_owned(), files })
    }

    /// The message for a modality that is given a second time.
    pub fn given_twice(&self) -> String {
        let name = &self.name;
        format!(
            "the modality `{name}` is given twice; name its files at once, as in {name}=FILE,FILE"
        )
    }

    /// Replaces each pattern (`*`, `?`, `[…]`) by the files that it matches, with numbers in their
    /// names sorted as numbers, and makes paths absolute. If a file's own name looks like a
    /// pattern, the file is meant.
    ///
    /// # Errors
    /// [`Error::Setting`] for `flag` if a pattern is malformed or matches nothing, [`Error::Io`].
    pub fn resolve(&self, flag: &str) -> Result<Self> {
        let mut files = Vec::new();
        for FeatureFile { path, tensor } in &self.files {
            let text = path.to_str().unwrap_or_default();
            if !text.contains(['*', '?', '[']) || path.exists() {
                files.push(FeatureFile { path: absolute(path)?, tensor: tensor.clone() });
                continue;
            }
            let wrong = |problem: String| Error::setting(flag, format!("`{text}` {problem}"));
            if text.contains("**") {
                // It would walk all folders below.
                return Err(wrong("found, a pattern without `**` expected".to_owned()));
            }
            let mut matches = Vec::new();
            let found = glob::glob(text).map_err(|error| wrong(format!("found: {error}")))?;
            for path in found {
                let path = path.map_err(|error| {
                    let place = error.path().to_owned();
                    Error::io(&place, "read", error.into())
                })?;
                matches.push(path);
            }
            if matches.is_empty() {
                return Err(wrong("matches no file".to_owned()));
            }
            matches.sort_by(|left, right| {
                natural_order(&left.to_string_lossy(), &right.to_string_lossy())
            });
            for path in matches {
                files.push(FeatureFile { path: absolute(&path)?, tensor: tensor.clone() });
            }
        }
        Ok(Self { name: self.name.clone(), files })
    }
}

fn absolute(path: &Path) -> Result<std::path::PathBuf> {
    std::path::absolute(path).map_err(|error| Error::io(path, "find", error))
}

/// Compares runs of digits as numbers, so that `part-2` comes before `part-10`.
fn natural_order(left: &str, right: &str) -> Ordering {
    let (mut left_rest, mut right_rest) = (left, right);
    loop {
        let (left_run, right_run) = (first_run(left_rest), first_run(right_rest));
        if left_run.is_empty() || right_run.is_empty() {
            // Equal runs can differ only in leading zeros.
            return left_run.len().cmp(&right_run.len()).then_with(|| left.cmp(right));
        }
        let order = if is_number(left_run) && is_number(right_run) {
            let (left, right) =
                (left_run.trim_start_matches('0'), right_run.trim_start_matches('0'));
            left.len().cmp(&right.len()).then_with(|| left.cmp(right))
        } else {
            left_run.cmp(right_run)
        };
        if order != Ordering::Equal {
            return order;
        }
        (left_rest, right_rest) = (&left_rest[left_run.len()..], &right_rest[right_run.len()..]);
    }
}

fn is_number(run: &str) -> bool {
    run.starts_with(|character: char| character.is_ascii_digit())
}

/// The digits, or the other characters, at the start of `text`.
fn first_run(text: &str) -> &str {
    let number = is_number(text);
    let end = text.find(|character: char| character.is_ascii_digit() != number);
    &text[..end.unwrap_or(text.len())]
}

impl FromStr for FeatureSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, files)) if !files.is_empty() => Self::of_text(name, files),
            _ => Err(format!("`{text}` found, NAME=FILE expected, as in image=image_feat.npy")),
        }
    }
}

impl fmt::Display for FeatureSource {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "{}=", self.name)?;
        for (position, file) in self.files.iter().enumerate() {
            write!(formatter, "{}{file}", if position == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// The files in the form of a settings file: a text, or a list of texts if there are several or a
/// name has a comma.
pub(super) struct AsSetting<'a>(pub &'a [FeatureFile]);

impl Serialize for AsSetting<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Some(file) = self.0.iter().find(|file| file.path.to_str().is_none()) {
            let problem = format!("the path {file} is not Unicode");
            return Err(serde::ser::Error::custom(problem));
        }
        let texts: Vec<String> = self.0.iter().map(FeatureFile::to_string).collect();
        match texts.as_slice() {
            [only] if !only.contains(',') => only.serialize(serializer),
            _ => texts.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_source_is_a_name_and_files() {
        let source: FeatureSource = "image=a=b.npy".parse().unwrap();
        assert_eq!((source.name.as_str(), source.files.len()), ("image", 1));
        assert_eq!(source.files[0], FeatureFile::new("a=b.npy"));
        assert_eq!(source.to_string(), "image=a=b.npy");
        let text = "image=a.npy,b.safetensors:image,c.npy";
        let source: FeatureSource = text.parse().unwrap();
        assert_eq!((source.files.len(), source.to_string().as_str()), (3, text));
        assert_eq!(source.files[1].tensor.as_deref(), Some("image"));
        for text in ["image", "image=", "=a.npy", "a.b=c.npy", "a b=c.npy", "a=b,,c", "a=b,"] {
            text.parse::<FeatureSource>().unwrap_err();
        }
    }

    #[test]
    fn numbers_in_names_are_numbers() {
        let ordered = ["a", "a-1.npy", "a-2.npy", "a-02b", "a-10.npy", "a-010.npz", "b-1", "b-1-0"];
        let mut names = ordered;
        names.reverse();
        names.sort_by(|left, right| natural_order(left, right));
        assert_eq!(names, ordered);
    }

    #[test]
    fn a_pattern_becomes_its_files_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["part-10.npy", "part-9.npy", "other.npy", "part-1.npy", "odd[1].npy"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let resolve = |files: &str| {
            let files = format!("{}/{files}", folder.path().display());
            FeatureSource::of_text("image", &files).unwrap().resolve("--feature")
        };
        let names = |source: FeatureSource| -> Vec<String> {
            let name = |file: &FeatureFile| file.path.file_name().unwrap().to_str().unwrap().into();
            source.files.iter().map(name).collect()
        };
        let parts = names(resolve("part-*.npy").unwrap());
        assert_eq!(parts, ["part-1.npy", "part-9.npy", "part-10.npy"]);
        assert_eq!(names(resolve("odd[1].npy").unwrap()), ["odd[1].npy"]);
        let none = resolve("nothing-*.npy").unwrap_err();
        assert!(none.is_input() && none.to_string().starts_with("--feature: `"), "{none}");
        assert!(none.to_string().ends_with("nothing-*.npy` matches no file"), "{none}");
        let deep = resolve("**/a.npy").unwrap_err().to_string();
        assert!(deep.contains("a pattern without `**` expected"), "{deep}");
        let broken = resolve("a[.npy").unwrap_err().to_string();
        assert!(broken.contains("a[.npy` found"), "{broken}");
    }
}
