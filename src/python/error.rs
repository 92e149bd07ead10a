//! The engine's errors as Python exceptions.

use std::io;
use std::path::Path;

use pyo3::PyErr;
use pyo3::exceptions::{
    PyFileNotFoundError, PyMemoryError, PyOSError, PyPermissionError, PyRuntimeError, PyValueError,
};

use crate::Error;
use crate::data::DataError;
use crate::wording::Caller;

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
    let message = Caller::Python.words(&error.to_string());
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
