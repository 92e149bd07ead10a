//! The errors of the library.
//!
//! Every message names the file, line, field or setting, what was found, what was expected and,
//! where there is one, the next step. [`Error::is_input`] tells bad input (exit code 2 of the
//! program) from a failure of the machine or of the engine (exit code 1).

use std::path::{Path, PathBuf};

use crate::cuda::Unusable;
use crate::data::DataError;
use crate::prepare::PrepareError;

/// What lowers the memory that a run takes of a GPU, as a phrase that can be continued.
pub const SAVES_DEVICE_MEMORY: &str = "keep features as inputs with --freeze-features, then in \
                                       half the bytes with --feature-type f16 or in their files \
                                       with --feature-storage stream, lower --embedding-size or \
                                       --batch-size";

/// Anything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A data set, or a file of one, is not what it should be.
    #[error(transparent)]
    Data(#[from] DataError),

    /// Raw interactions, or features for them, are not what they should be.
    #[error(transparent)]
    Prepare(#[from] PrepareError),

    /// A setting (flag or configuration key) has a value that cannot be used.
    #[error("{name}: {problem}")]
    Setting {
        /// The setting, by the name the user wrote.
        name: String,
        /// What was found, what was expected and what to do.
        problem: String,
    },

    /// A file of a run or a model is malformed or does not belong to what it is used with.
    #[error("{}: {problem}", path.display())]
    RunFile {
        /// The file.
        path: PathBuf,
        /// What was found, what was expected and what to do.
        problem: String,
    },

    /// The operating system refused an operation on a file.
    #[error("{}: cannot {action}: {source}", path.display())]
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
        "{device}: no room for {what}: {} needed, {} of {} free; {advice}end other programs on the \
         device, or compute with --device cpu",
        bytes(*needed), bytes(*free), bytes(*total)
    )]
    DeviceMemory {
        /// The device.
        device: String,
        /// What the memory was for.
        what: String,
        /// Bytes asked for.
        needed: u64,
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
        Self::Io { path: path.to_owned(), action, source }
    }

    /// An [`Error::Setting`] for the setting `name`.
    pub fn setting(name: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Setting { name: name.into(), problem: problem.into() }
    }

    /// An [`Error::RunFile`] for `path`.
    pub fn run_file(path: &Path, problem: impl Into<String>) -> Self {
        Self::RunFile { path: path.to_owned(), problem: problem.into() }
    }

    /// The error of a device on which nothing is trained: settings of a training are no help.
    pub(crate) fn without_advice(self) -> Self {
        match self {
            Self::DeviceMemory { device, what, needed, free, total, .. } => {
                Self::DeviceMemory { device, what, needed, free, total, advice: String::new() }
            }
            other => other,
        }
    }

    /// Whether it comes before anything is trained: for what was given, or for want of a device's memory.
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
            Self::Io { source, .. } => is_missing(source),
            Self::DeviceMemory { .. } | Self::DeviceOperation { .. } | Self::NonFinite(_) => false,
        }
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
    /// User and item of the first of them.
    pub first_pairs: Vec<(u32, u32)>,
    /// What was not finite: a loss term or a tensor, by the name it has in the files of a run.
    pub what: String,
    /// The state that was saved last, and the steps up to it.
    pub checkpoint: Option<(PathBuf, u64)>,
}

/// The first pairs of a batch, as words.
fn pairs_in_words(first: &[(u32, u32)], all: usize) -> String {
    let first: Vec<String> =
        first.iter().map(|(user, item)| format!("user {user} and item {item}")).collect();
    let more = all.saturating_sub(first.len());
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{rest}", first.join(", "))
}

/// A number of bytes as people read it.
fn bytes(count: u64) -> String {
    let count = count as f64;
    match count {
        1e9.. => format!("{:.2} GB", count / 1e9),
        1e6.. => format!("{:.1} MB", count / 1e6),
        _ => format!("{count} bytes"),
    }
}

/// Whether the system says that the path the user gave does not lead to a file of the right kind:
/// there is none, it could be nobody's name, or it is not text where text is read.
pub(crate) fn is_missing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{
        InvalidData, InvalidFilename, InvalidInput, IsADirectory, NotADirectory, NotFound,
    };
    matches!(
        error.kind(),
        NotFound | NotADirectory | IsADirectory | InvalidData | InvalidFilename | InvalidInput
    )
}
