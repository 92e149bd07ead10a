//! The errors of the library.
//!
//! Every message names the file, line, field or setting, what was found, what was expected and, if
//! there is one, the next step. Settings have the names of the program's flags there, `--batch-size`;
//! [`Error::in_code`] gives them the names that they have in code, `batch_size`.
//! [`Error::is_input`] tells bad input (exit code 2 of the program) from a failure of the machine or
//! of the engine (exit code 1).

use std::path::{Path, PathBuf};

use crate::cuda::Unusable;
use crate::data::DataError;
use crate::prepare::PrepareError;
use crate::wording::Caller;

/// Ways to lower a run's GPU memory, as a phrase that can be continued.
pub const SAVES_DEVICE_MEMORY: &str = "keep features as inputs with --freeze-features, then in \
                                       half the bytes with --feature-type f16 or in their files \
                                       with --feature-storage stream, lower --embedding-size or \
                                       --batch-size";

/// Any error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A data set or one of its files is invalid.
    #[error(transparent)]
    Data(#[from] DataError),

    /// Raw interactions, or features for them, are invalid.
    #[error(transparent)]
    Prepare(#[from] PrepareError),

    /// A setting (flag or configuration key) has an unusable value.
    #[error("{name}: {problem}")]
    Setting {
        /// The setting, by the name the user wrote.
        name: String,
        /// What was found, what was expected and what to do.
        problem: String,
    },

    /// A file of a run, a model, settings, a list of ids or a list of vectors is malformed or does
    /// not match what it is used with.
    #[error("{}: {problem}", path.display())]
    RunFile {
        /// The file.
        path: PathBuf,
        /// What was found, what was expected and what to do.
        problem: String,
    },

    /// The operating system refused an operation on a file.
    #[error("{}: cannot {action}: {source}{}", path.display(), next_step(action, source))]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was attempted, as a verb phrase: `read`, `create`, …
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },

    /// A GPU cannot be used.
    #[error("device {ordinal}: {reason}")]
    Gpu {
        /// Its number, as the user gave it.
        ordinal: usize,
        /// Why not, and what to do.
        reason: Unusable,
    },

    /// A device has too little memory.
    #[error(
        "{device}: no room for {what}: {}{} of {} free; {advice}end other programs on the device, or \
         compute with --device cpu",
        needed.map_or(String::new(), |needed| format!("{} needed, ", bytes(needed))),
        bytes(*free),
        bytes(*total)
    )]
    DeviceMemory {
        /// The device.
        device: String,
        /// What the memory is for.
        what: String,
        /// Bytes asked for; `None` if the driver needs memory of its own.
        needed: Option<u64>,
        /// Bytes free.
        free: u64,
        /// Bytes in all.
        total: u64,
        /// What else would help, as the beginning of a list.
        advice: String,
    },

    /// A device failed.
    #[error("{device}: {operation}: {problem}")]
    DeviceOperation {
        /// The device.
        device: String,
        /// What was attempted, with its sizes.
        operation: String,
        /// The device's reason.
        problem: String,
    },

    /// A loss term, a gradient or a parameter stopped being a finite number.
    #[error(transparent)]
    NonFinite(#[from] Box<NonFinite>),
}

impl Error {
    /// An [`Error::Io`] on `path` while attempting `action`.
    pub fn io(path: &Path, action: &'static str, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), action, source: without_temporary(source) }
    }

    /// An [`Error::Setting`] for the setting `name`.
    pub fn setting(name: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Setting { name: name.into(), problem: problem.into() }
    }

    /// An [`Error::RunFile`] for `path`.
    pub fn run_file(path: &Path, problem: impl Into<String>) -> Self {
        Self::RunFile { path: path.to_owned(), problem: problem.into() }
    }

    /// The message for callers in Rust: settings have their names in code, `batch_size`, instead of
    /// the program's flags, `--batch-size`. See [`Caller::words`].
    pub fn in_code(&self) -> String {
        Caller::Rust.words(&self.to_string())
    }

    /// For a device that does no training: removes the advice on training settings.
    pub(crate) fn without_advice(self) -> Self {
        match self {
            Self::DeviceMemory { device, what, needed, free, total, .. } => {
                Self::DeviceMemory { device, what, needed, free, total, advice: String::new() }
            }
            other => other,
        }
    }

    /// Whether it refuses a run before anything is trained: bad input, or too little device memory.
    pub fn is_refusal(&self) -> bool {
        self.is_input() || matches!(self, Self::DeviceMemory { .. })
    }

    /// Whether the cause is what the user gave (a file, a flag), rather than the machine.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Data(error) => error.is_input(),
            Self::Prepare(_) | Self::Setting { .. } | Self::RunFile { .. } | Self::Gpu { .. } => {
                true
            }
            Self::Io { action: "read" | "open", source, .. } => is_unreadable(source),
            Self::Io { source, .. } => is_missing(source),
            Self::DeviceMemory { .. } | Self::DeviceOperation { .. } | Self::NonFinite(_) => false,
        }
    }

    /// 2 if the user can fix the cause by giving other input or another place to write to, 1 if the
    /// machine or the engine failed: the program's exit code and C's status.
    pub fn exit_code(&self) -> u8 {
        if self.is_input() || self.is_unwritable() { 2 } else { 1 }
    }

    /// Whether the system refuses to put a file or folder where the user wants it.
    pub fn is_unwritable(&self) -> bool {
        matches!(self, Self::Io { source, action, .. } if is_refused(action, source))
    }
}

/// What stopped being a finite number, and when.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "step {step} (epoch {epoch}, batch {batch} of {batches}: {}): {what}; lower --learning-rate, or \
     check the scale of the features; {}",
    pairs_in_words(first_pairs, *pairs),
    match checkpoint {
        Some((path, step)) => format!("the last good checkpoint is {}, after step {step}", path.display()),
        None => "there is no checkpoint from before".to_owned(),
    }
)]
pub struct NonFinite {
    /// The optimiser step, from 1.
    pub step: u64,
    /// The epoch, from 1.
    pub epoch: u64,
    /// The batch's number in its epoch, from 1.
    pub batch: u64,
    /// The epoch's batches.
    pub batches: u64,
    /// How many pairs the batch has.
    pub pairs: usize,
    /// User and item of the batch's first pairs.
    pub first_pairs: Vec<(u32, u32)>,
    /// What was not finite: a loss term, or a tensor by its name in the files of a run.
    pub what: String,
    /// The last saved state, and the step after which it was saved.
    pub checkpoint: Option<(PathBuf, u64)>,
}

/// The first pairs of a batch, in words.
fn pairs_in_words(first: &[(u32, u32)], all: usize) -> String {
    let first: Vec<String> =
        first.iter().map(|(user, item)| format!("user {user} and item {item}")).collect();
    let more = all.saturating_sub(first.len());
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{rest}", first.join(", "))
}

/// A number of bytes for people to read.
fn bytes(count: u64) -> String {
    let count = count as f64;
    match count {
        1e9.. => format!("{:.2} GB", count / 1e9),
        1e6.. => format!("{:.1} MB", count / 1e6),
        _ => format!("{count} bytes"),
    }
}

/// Whether the system says that the user's path leads to no file of the right kind: nothing is
/// there, the name is invalid, or it is not text where text is read.
pub(crate) fn is_missing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{
        InvalidData, InvalidFilename, InvalidInput, IsADirectory, NotADirectory, NotFound,
    };
    matches!(
        error.kind(),
        NotFound | NotADirectory | IsADirectory | InvalidData | InvalidFilename | InvalidInput
    )
}

/// Whether the user must give another path to read from: this one [is missing](is_missing) or may
/// not be read. A refusal to write says nothing about the input: a run that was able to write
/// before can go on once it is able to again.
pub(crate) fn is_unreadable(error: &std::io::Error) -> bool {
    is_missing(error) || error.kind() == std::io::ErrorKind::PermissionDenied
}

/// Whether the system refuses to put anything where the user wants it.
fn is_refused(action: &str, error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{AlreadyExists, PermissionDenied};
    matches!(action, "create" | "write" | "write to" | "rename into")
        && matches!(error.kind(), AlreadyExists | PermissionDenied)
}

/// What to do if a file or folder cannot be put in its place.
fn next_step(action: &str, error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
    match (action, error.kind()) {
        ("create", NotFound) => "; make the folder, or give another path",
        ("create" | "rename into", IsADirectory | NotADirectory) => "; give another path",
        _ if is_refused(action, error) => "; give another path",
        _ => "",
    }
}

/// The system's reason alone, without the temporary file's name that the tempfile crate adds: the
/// user never gave that name.
fn without_temporary(error: std::io::Error) -> std::io::Error {
    let text = error.to_string();
    match text.split_once(" at path \"") {
        Some((reason, _)) => std::io::Error::new(error.kind(), reason),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_cannot_be_written_is_bad_input_with_a_next_step() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nowhere/lists.csv");
        let error = crate::files::write_bytes_atomic(&path, b"").unwrap_err();
        let expected = format!(
            "{}: cannot create: {}; make the folder, or give another path",
            path.display(),
            std::fs::File::open(&path).unwrap_err()
        );
        assert!(error.is_input() && error.to_string() == expected, "{error}");
        let folder = directory.path().join("folder");
        std::fs::create_dir(&folder).unwrap();
        let error = crate::files::write_bytes_atomic(&folder, b"").unwrap_err();
        assert!(error.is_input() && error.to_string().ends_with("; give another path"), "{error}");
        let io = |action, kind: std::io::ErrorKind| Error::io(&path, action, kind.into());
        for kind in [std::io::ErrorKind::PermissionDenied, std::io::ErrorKind::AlreadyExists] {
            let error = io("create", kind);
            assert!(error.is_unwritable() && error.to_string().ends_with("; give another path"));
            assert!(!io("read", kind).is_unwritable() && !io("sync", kind).is_unwritable());
        }
        assert!(!io("write", std::io::ErrorKind::StorageFull).is_unwritable());
    }
}
