//! The errors of data sets.

use std::fmt::Write;
use std::path::{Path, PathBuf};

/// A problem of a data set. Every message names the file and the line or field, what was found,
/// what was expected, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum DataError {
    #[error("{}: cannot read: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },

    #[error("{}: {problem}", path.display())]
    Folder { path: PathBuf, problem: String },

    #[error("{}: is empty; expected a header line and tab-separated interactions", path.display())]
    NoHeader { path: PathBuf },

    #[error(
        "{}: no column `{column}` in the header; found {found}; rename the column, or add it",
        path.display()
    )]
    MissingColumn { path: PathBuf, column: &'static str, found: String },

    #[error(
        "{}: the header \"{found}\" has no tab; the columns of an .inter file are separated by tabs: \
         replace what separates them here, or make a folder of the file with `bm3-engine prepare`",
        path.display()
    )]
    NoTabs { path: PathBuf, found: String },

    #[error(
        "{}: line {line}: has {found} tab-separated fields; expected at least {expected}",
        path.display()
    )]
    ShortLine { path: PathBuf, line: usize, found: usize, expected: usize },

    #[error(
        "{}: line {line}: {column} is \"{found}\"; expected an integer from 0 to {}",
        path.display(),
        super::inter::LARGEST_ID
    )]
    BadId { path: PathBuf, line: usize, column: &'static str, found: String },

    #[error(
        "{}: line {line}: {column} is {found}, far beyond what {lines} interactions can need; ids \
         must count up from 0 (`bm3-engine prepare` renumbers them)",
        path.display()
    )]
    AbsurdId { path: PathBuf, line: usize, column: &'static str, found: u32, lines: usize },

    #[error(
        "{}: line {line}: x_label is \"{found}\"; expected 0 (train), 1 (valid) or 2 (test)",
        path.display()
    )]
    BadLabel { path: PathBuf, line: usize, found: String },

    #[error(
        "{}: has no column `x_label`; add --split 0.8,0.1,0.1 to split each user's interactions",
        path.display()
    )]
    NoSplit { path: PathBuf },

    #[error("{}: no training interaction; expected lines with x_label 0", path.display())]
    EmptyTraining { path: PathBuf },

    #[error("modality `{name}`: {problem}")]
    Modality { name: String, problem: String },

    #[error(
        "{place}: has {rows} rows; the interactions have {items} items, and row i must be item i's \
         features"
    )]
    TooFewRows { place: String, rows: usize, items: usize },

    #[error(
        "{file}: has {found}; {first}, whose table it goes on with, has {expected}; write the files \
         of a modality alike"
    )]
    FilesDiffer { file: String, found: String, first: String, expected: String },

    #[error("{}: not a whole safetensors file ({problem}); write it again", path.display())]
    Safetensors { path: PathBuf, problem: String },

    #[error(
        "{}: has no tensor `{wanted}`; it has {found}; name one after a colon, as in \
         file.safetensors:NAME",
        path.display()
    )]
    NoTensor { path: PathBuf, wanted: String, found: String },

    #[error(
        "{}: has no tensor of two dimensions, items × width; its tensors: {found}",
        path.display()
    )]
    NoTable { path: PathBuf, found: String },

    #[error(
        "{}: has several tensors of two dimensions ({found}); name one after a colon, as in \
         file.safetensors:NAME",
        path.display()
    )]
    SeveralTables { path: PathBuf, found: String },

    #[error("{}: tensor `{name}` is of {found}; expected {expected}", path.display())]
    Tensor { path: PathBuf, name: String, found: String, expected: &'static str },

    #[error("{}: not a .npy file: {problem}", path.display())]
    NpyHeader { path: PathBuf, problem: String },

    #[error(
        "{}: the array is of type \"{found}\"; expected float16, float32 or float64 (save it with \
         .astype(numpy.float32))",
        path.display()
    )]
    NpyType { path: PathBuf, found: String },

    #[error(
        "{}: the array has {} dimension{} {found:?}; expected 2, items × width",
        path.display(),
        found.len(),
        if found.len() == 1 { "" } else { "s" }
    )]
    NpyRank { path: PathBuf, found: Vec<u64> },

    #[error(
        "{}: is {}: {found} bytes after the header; a {rows} × {columns} array of {element} bytes \
         each needs {expected}; write the file again",
        path.display(),
        if (*found as u128) < *expected { "truncated" } else { "too long" }
    )]
    NpyLength { path: PathBuf, found: u64, expected: u128, rows: u64, columns: u64, element: usize },

    #[error("{place}: row {row}, column {column} is {}", unusable(*value))]
    NonFinite { place: String, row: usize, column: usize, value: f64 },

    #[error("{}: was changed while it was in use; put it back as it was, or start anew", path.display())]
    Changed { path: PathBuf },

    #[error("{0}")]
    Parts(String),
}

impl DataError {
    /// Whether the cause is what the user gave, rather than the machine.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Read { source, .. } => crate::error::is_unreadable(source),
            Self::Changed { .. } => false,
            _ => true,
        }
    }

    /// Adds the name of the modality that the features belong to.
    pub(super) fn of_modality(mut self, name: &str) -> Self {
        if let Self::TooFewRows { place, .. } | Self::NonFinite { place, .. } = &mut self {
            *place = format!("modality `{name}`: {place}");
        }
        self
    }

    pub(super) fn read(path: &Path, source: std::io::Error) -> Self {
        Self::Read { path: path.to_owned(), source }
    }
}

/// Describes a feature that is not a finite f32.
fn unusable(value: f64) -> String {
    match value.is_finite() {
        true => format!(
            "{value:e}, beyond the largest f32 ({:e}), in which features are computed; scale them",
            f32::MAX
        ),
        false => format!("{value}; features must be finite numbers (the row is the item's id)"),
    }
}

/// A field of a file for use in a message: short, and without control characters.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    const LONGEST: usize = 40;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * LONGEST)]);
    let mut shown = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == LONGEST {
            shown.push('…');
            break;
        }
        if character.is_control() {
            // Writing to a string cannot fail.
            let _ = write!(shown, "{}", character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}
