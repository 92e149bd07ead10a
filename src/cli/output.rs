//! Writing to standard output without panicking when its reader has gone.

use std::io::{self, Write};
use std::path::Path;

use bm3_engine::Error;
use bm3_engine::text::grouped;

/// The name of standard output in messages.
pub const STANDARD_OUTPUT: &str = "standard output";

/// Prints `text` as it is, and flushes.
///
/// # Errors
/// [`Error::Io`] naming standard output, also for a closed pipe.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    Ok(written.map_err(unwritten)?)
}

/// The error that standard output, or standard error beside it, could not be written.
pub fn unwritten(error: io::Error) -> Error {
    Error::io(Path::new(STANDARD_OUTPUT), "write", error)
}

/// Prints one JSON value on a line of its own.
///
/// # Errors
/// As [`print`].
pub fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_string(value)?;
    line.push('\n');
    print(&line)
}

/// A byte count for people, as in `12.3 MB`.
pub fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            let digits = usize::from(unit != "B" && value < 99.95);
            return format!("{value:.digits$} {unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

/// A number of things, as in `1 epoch` and `1,425 items`.
pub fn counted(number: u64, thing: &str) -> String {
    format!("{} {thing}{}", grouped(number), if number == 1 { "" } else { "s" })
}

/// Whether an error comes from a pipe whose reader is gone.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}
