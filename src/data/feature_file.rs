//! The location of a table of features: a `.npy` file, or a tensor of a `.safetensors` file.

use std::fmt;
use std::path::{Path, PathBuf};

use super::error::DataError;
use super::features::Form;
use super::{npy, safetensors};
use crate::mapped::MappedFile;

/// A file of features and, in a safetensors file, the name of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureFile {
    /// The file, read as safetensors if it ends in `.safetensors`, else as `.npy`.
    pub path: PathBuf,
    /// The name of the tensor in a `.safetensors` file; optional if only one can be meant.
    pub tensor: Option<String>,
}

const SAFETENSORS: &str = "safetensors";

impl FeatureFile {
    /// The file at `path`, without the name of a tensor.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), tensor: None }
    }

    /// Parses `PATH` or `PATH.safetensors:TENSOR`; a tensor's name may contain colons.
    pub fn parse(text: &str) -> Self {
        const SEPARATOR: &str = ".safetensors:";
        match text.split_once(SEPARATOR) {
            Some((stem, tensor)) if !tensor.is_empty() => Self {
                path: format!("{stem}.{SAFETENSORS}").into(),
                tensor: Some(tensor.to_owned()),
            },
            _ => Self::new(text),
        }
    }

    fn is_safetensors(&self) -> bool {
        is_safetensors(&self.path)
    }
}

fn is_safetensors(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case(SAFETENSORS))
}

/// The form that [`FeatureFile::parse`] reads.
impl fmt::Display for FeatureFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.path.display())?;
        match &self.tensor {
            Some(tensor) => write!(formatter, ":{tensor}"),
            None => Ok(()),
        }
    }
}

/// Maps a file and finds the table in it.
pub(super) fn map(file: &FeatureFile) -> Result<(Form, MappedFile), DataError> {
    let path = &file.path;
    let map = MappedFile::open(path).map_err(|error| DataError::read(path, error))?;
    let form = if file.is_safetensors() {
        safetensors::find(&map, path, file.tensor.as_deref())?
    } else {
        npy::parse(&map, path)?
    };
    Ok((form, map))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_is_named_after_a_colon() {
        let file = FeatureFile::parse("/a:b/x.safetensors:text:0");
        assert_eq!(file.path, Path::new("/a:b/x.safetensors"));
        assert_eq!(file.tensor.as_deref(), Some("text:0"));
        for text in ["a.npy", "a.npy:b", "a.safetensors", "c:\\a.npy", "a.safetensors:"] {
            let file = FeatureFile::parse(text);
            assert_eq!((file.path.to_str(), &file.tensor), (Some(text), &None));
            assert_eq!(file.to_string(), text);
        }
        assert_eq!(file.to_string(), "/a:b/x.safetensors:text:0");
    }
}
