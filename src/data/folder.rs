//! The files of a data folder: which are read, and which a new data set replaces.

use std::fs;
use std::path::{Path, PathBuf};

use super::{DataError, DatasetOptions, FeatureFile, IdMaps};
use crate::files::{self, Together};
use crate::{Error, Result};

const INTERACTIONS: &str = "inter";
const FEATURES: &str = "_feat.npy";

/// The only `.inter` file of a folder, or the one named like the folder, and its name without the
/// ending.
pub(crate) fn interactions_file(directory: &Path) -> Result<(PathBuf, String), DataError> {
    let folder = |problem: String| DataError::Folder { path: directory.to_owned(), problem };
    if directory.is_file() {
        return Err(folder(
            "is a file; expected a folder: `bm3-engine prepare --interactions FILE --out DIR` \
             makes one of a table"
                .to_owned(),
        ));
    }
    let mut found: Vec<(PathBuf, String)> = entries(directory)?
        .into_iter()
        .filter(|path| is_interactions(path))
        .filter_map(|path| {
            let name = path.file_stem()?.to_string_lossy().into_owned();
            Some((path, name))
        })
        .collect();
    if found.len() > 1 {
        let own_name = directory.file_name().map(|name| name.to_string_lossy().into_owned());
        if let Some(position) = found.iter().position(|(_, name)| Some(name) == own_name.as_ref()) {
            return Ok(found.swap_remove(position));
        }
        let names: Vec<String> =
            found.into_iter().map(|(_, name)| format!("{name}.inter")).collect();
        return Err(folder(format!(
            "has several .inter files ({}); keep one, or name the folder like one of them",
            names.join(", ")
        )));
    }
    found.pop().ok_or_else(|| {
        folder(
            "has no .inter file; expected NAME.inter with columns userID, itemID, x_label".into(),
        )
    })
}

/// The features to read: names and files, sorted by name.
pub(super) fn feature_files(
    directory: &Path,
    options: &DatasetOptions,
) -> Result<Vec<(String, Vec<FeatureFile>)>, DataError> {
    let mut files: Vec<(String, Vec<FeatureFile>)> = Vec::new();
    for path in entries(directory)? {
        if let Some(name) = modality_of(&path) {
            files.push((name, vec![FeatureFile::new(path)]));
        }
    }
    let mut given: Vec<&str> = Vec::new();
    for (name, own) in &options.features {
        check_name(name)?;
        if given.contains(&name.as_str()) {
            let problem = "--feature gives it twice; give all its files at once".to_owned();
            return Err(DataError::Modality { name: name.clone(), problem });
        }
        given.push(name);
        files.retain(|(found, _)| found != name);
        files.push((name.clone(), own.clone()));
    }
    files.sort_by(|left, right| left.0.cmp(&right.0));
    if let Some(wanted) = &options.modalities {
        for (position, name) in wanted.iter().enumerate() {
            if wanted[..position].contains(name) {
                let problem = "--modalities names it twice".to_owned();
                return Err(DataError::Modality { name: name.clone(), problem });
            }
            if !files.iter().any(|(found, _)| found == name) {
                let found: Vec<&str> = files.iter().map(|(found, _)| found.as_str()).collect();
                let problem = format!(
                    "there is no {} and no --feature {name}=FILE; found {}",
                    directory.join(format!("{name}{FEATURES}")).display(),
                    if found.is_empty() { "no features".to_owned() } else { found.join(", ") }
                );
                return Err(DataError::Modality { name: name.clone(), problem });
            }
        }
        files.retain(|(found, _)| wanted.contains(found));
    }
    Ok(files)
}

/// The warning that a folder has no features, with the files that might have been meant.
pub(super) fn without_features(directory: &Path) -> Result<String, DataError> {
    let is_table = |path: &PathBuf| {
        let ending = path.extension().unwrap_or_default();
        ["npy", "npz", "safetensors"].iter().any(|known| ending.eq_ignore_ascii_case(known))
    };
    let mut found: Vec<String> = entries(directory)?
        .into_iter()
        .filter(is_table)
        .map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned())
        .collect();
    found.sort();
    let found = match found.is_empty() {
        true => String::new(),
        false => format!(" (found {}, by other names)", found.join(", ")),
    };
    Ok(format!(
        "{}: has no features, NAME{FEATURES} for each modality{found}; the model learns from \
         interactions alone",
        directory.display()
    ))
}

/// The characters that [`is_modality_name`] allows.
pub(crate) const MODALITY_NAMES: &str = "ASCII letters, digits, `_` and `-`";

/// Whether a modality can have this name, which becomes part of tensor names and flags.
pub(crate) fn is_modality_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    !name.is_empty() && name.bytes().all(allowed)
}

pub(super) fn check_name(name: &str) -> Result<(), DataError> {
    if !is_modality_name(name) {
        let problem = format!("a modality's name is made of {MODALITY_NAMES}");
        let name = super::excerpt(name.as_bytes());
        return Err(DataError::Modality { name, problem });
    }
    Ok(())
}

/// Files of an earlier data set in a folder, before a new one is written there.
///
/// Files that the new data set does not replace would be taken for its own: features in another
/// order of items, other interactions, other users' ids.
#[derive(Debug)]
pub(crate) struct Earlier {
    /// Every `.inter` file.
    interactions: Vec<PathBuf>,
    /// Features and original ids that the new data set does not replace.
    others: Vec<PathBuf>,
}

impl Earlier {
    /// Finds them. `written` are the files of the new data set; `read` are its inputs, none of
    /// which may be removed.
    ///
    /// # Errors
    /// [`Error::Setting`] for `--out`, naming a file that would be replaced or removed without
    /// `overwrite`, or an input that would be removed; [`Error::Data`] for a folder that cannot be
    /// read.
    pub fn find(
        directory: &Path,
        written: &[&Path],
        read: &[&Path],
        overwrite: bool,
    ) -> Result<Self> {
        let there = match directory.is_dir() {
            true => entries(directory)?,
            false => Vec::new(),
        };
        let (interactions, others): (Vec<_>, Vec<_>) = there
            .into_iter()
            .filter(|path| {
                is_interactions(path)
                    || modality_of(path).is_some()
                    || IdMaps::paths(directory).contains(path)
            })
            .partition(|path| is_interactions(path));
        let others = others.into_iter().filter(|path| !written.contains(&&**path)).collect();
        let earlier = Self { interactions, others };
        if !overwrite {
            files::refuse_existing(written)?;
        }
        let same = |path: &&Path| {
            let path = path.canonicalize().ok();
            path.is_some() && read.iter().any(|read| read.canonicalize().ok() == path)
        };
        let left = earlier.files().find(|path| !written.contains(path));
        if let Some(left) = left.filter(|_| !overwrite) {
            let problem = format!(
                "{} exists, and would be taken for a part of the new data set; add --overwrite, \
                 which removes it, or give another folder",
                left.display()
            );
            return Err(Error::setting("--out", problem));
        }
        if let Some(input) = earlier.files().chain(written.iter().copied()).find(same) {
            let problem = format!(
                "{} is to be read, and a data set in this folder would replace it or have it for a \
                 part; give another folder",
                input.display()
            );
            return Err(Error::setting("--out", problem));
        }
        Ok(earlier)
    }

    fn files(&self) -> impl Iterator<Item = &Path> {
        self.interactions.iter().chain(&self.others).map(|path| &**path)
    }

    /// Puts the new data set in their place, whose files have these names, interactions last: they
    /// are removed only now that it is written, interactions first, so that a process killed from
    /// here on leaves a folder that is recognisably unfinished, not a mixture.
    ///
    /// # Errors
    /// [`Error::Io`] with the file.
    pub fn replace(&self, new: Together, written: &[&Path]) -> Result<()> {
        self.files().try_for_each(files::remove)?;
        new.finish(written.iter().filter_map(|path| path.file_name()))
    }
}

fn is_interactions(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == INTERACTIONS)
}

/// The modality of a feature file.
fn modality_of(path: &Path) -> Option<String> {
    path.file_name()?.to_string_lossy().strip_suffix(FEATURES).map(str::to_owned)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, DataError> {
    let read = |error| DataError::read(directory, error);
    let mut paths = fs::read_dir(directory)
        .map_err(read)?
        .map(|entry| entry.map(|entry| entry.path()).map_err(read))
        .collect::<Result<Vec<_>, _>>()?;
    // Archives from macOS have `._NAME` beside each file.
    let is_hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b".");
    paths.retain(|path| !path.file_name().is_some_and(is_hidden));
    paths.sort();
    Ok(paths)
}
