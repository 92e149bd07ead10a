//! Ctrl-C and termination: the first signal asks the program to stop, the second ends it.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bm3_engine::files;

use super::signals;

/// The exit code that a shell reports for a program ended by SIGINT.
pub const EXIT_CODE: u8 = 130;

/// Work was cut short on request, with everything saved.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Ends the process at once, without leaving parts of files.
fn end() -> ! {
    files::abandon_unfinished();
    process::exit(EXIT_CODE.into());
}

/// Lets SIGINT, SIGTERM and SIGHUP end the process at once. Signals ignored at start-up stay ignored.
///
/// # Errors
/// When the system refuses the handler.
pub fn ends_at_once() -> anyhow::Result<()> {
    let ignored = signals::ignored();
    ctrlc::set_handler(|| end())?;
    signals::ignore(&ignored);
    Ok(())
}

/// Turns SIGINT, SIGTERM and SIGHUP into a flag that long work polls. A second signal ends the
/// process at once; files are written atomically, so even that leaves the last checkpoint intact.
/// Signals ignored at start-up (SIGHUP under `nohup`) stay ignored.
///
/// # Errors
/// When the system refuses the handler.
pub fn install() -> anyhow::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    let ignored = signals::ignored();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            end();
        }
        eprintln!("\ninterrupted: saving; once more to end at once");
    })?;
    signals::ignore(&ignored);
    Ok(interrupted)
}
