//! The engine's errors as Python exceptions.

use std::io;
use std::path::Path;

use pyo3::PyErr;
use pyo3::exceptions::{
    PyFileNotFoundError, PyMemoryError, PyOSError, PyPermissionError, PyRuntimeError, PyValueError,
};

use crate::Error;
use crate::data::DataError;

pyo3::create_exception!(
    bm3_engine,
    EngineError,
    PyRuntimeError,
    "A failure of a device or of training itself, not of what was given."
);

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match &error {
            Error::Io { path, action, source } => system(&error, path, action, source),
            Error::Data(DataError::Read { path, source }) => system(&error, path, "read", source),
            _ => plain(&error),
        }
    }
}

impl From<DataError> for PyErr {
    fn from(error: DataError) -> Self {
        Error::from(error).into()
    }
}

fn plain(error: &Error) -> PyErr {
    let message = in_python(&error.to_string());
    match error {
        _ if error.is_input() => PyValueError::new_err(message),
        Error::DeviceMemory { .. } => PyMemoryError::new_err(message),
        _ => EngineError::new_err(message),
    }
}

/// An error of the system. Python picks the class by its number, such as `FileNotFoundError`.
fn system(error: &Error, path: &Path, action: &str, source: &io::Error) -> PyErr {
    if let Some(number) = source.raw_os_error() {
        let reason = source.to_string();
        let reason = reason.split(" (os error").next().unwrap_or_default();
        let path = path.as_os_str().to_owned();
        return PyOSError::new_err((number, format!("cannot {action}: {reason}"), path));
    }
    // An error without a number was wrapped to add its context.
    let message = error.to_string();
    match source.kind() {
        io::ErrorKind::NotFound => PyFileNotFoundError::new_err(message),
        io::ErrorKind::PermissionDenied => PyPermissionError::new_err(message),
        _ if error.is_input() => PyValueError::new_err(message),
        _ => PyOSError::new_err(message),
    }
}

/// Replaces the program's flags in a message with Python's parameters: `--batch-size` becomes
/// `batch_size`. A command line of the program, between backquotes, stays as it is.
fn in_python(message: &str) -> String {
    let parts = message.split('`').enumerate().map(|(index, part)| {
        let is_command = index % 2 == 1 && part.starts_with("bm3-engine ");
        if is_command { part.to_owned() } else { with_parameters(part) }
    });
    parts.collect::<Vec<_>>().join("`")
}

/// A text with its flags replaced by parameters.
fn with_parameters(message: &str) -> String {
    let mut shown = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(start) = rest.find("--") {
        let (before, flag) = (&rest[..start], &rest[start + 2..]);
        let end = flag
            .find(|character: char| character != '-' && !character.is_ascii_lowercase())
            .unwrap_or(flag.len());
        let begins = before.is_empty() || before.ends_with([' ', '(']);
        shown.push_str(before);
        match &flag[..end] {
            name if begins && name.starts_with(|first: char| first.is_ascii_lowercase()) => {
                shown.push_str(&match name {
                    "out" => "directory".to_owned(),
                    "resume" => "resume=True and directory".to_owned(),
                    name => name.replace('-', "_"),
                });
            }
            other => {
                shown.push_str("--");
                shown.push_str(other);
            }
        }
        rest = &flag[end..];
    }
    shown + rest
}
