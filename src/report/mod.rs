//! A report on runs: one HTML file with their curves, metrics, settings and time by operation.
//!
//! [`read_runs`] reads run directories and [`render`] makes the page. It needs no other file and no
//! network, and a script only to read values out under the pointer. Its charts are SVG written
//! here: straight axes and lines are little work, and keep the file small enough to send around.

mod axes;
mod chart;
#[cfg(test)]
mod colours_tests;
mod curves;
mod number;
mod page;
mod read;
mod scale;
mod tables;
#[cfg(test)]
mod tests;
mod thin;
mod timing;

use std::path::Path;

pub use page::{MARKER, data_sets, render};
pub use read::{ReportedRun, read_runs};

use crate::{Error, Result, files};

/// The default file name of a report.
pub const REPORT: &str = "report.html";

/// Writes a report, atomically.
///
/// # Errors
/// [`Error::Setting`] for `--out` when a file other than a report is in the way, unless `replaced`;
/// [`Error::Io`].
pub fn write(path: &Path, report: &str, replaced: bool) -> Result<()> {
    let is_other = |start: Vec<u8>| start != MARKER.as_bytes();
    if !replaced && files::beginning(path, MARKER.len())?.is_some_and(is_other) {
        let problem = format!(
            "{} is no report; add --overwrite to write over it, or give another file",
            path.display()
        );
        return Err(Error::setting("--out", problem));
    }
    files::write_bytes_atomic(path, report.as_bytes())
}
