//! The status of a call, and its error message.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use rayon::ThreadPool;

use crate::data::DataError;
use crate::wording::Caller;
use crate::{Error, pool};

/// The status of a call; the numbers are the exit codes of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum bm3_status {
    /// Done.
    BM3_OK = 0,
    /// The machine or the library failed.
    BM3_FAILURE = 1,
    /// Something is wrong with what was given: an argument, a setting, a file.
    BM3_BAD_INPUT = 2,
    /// Training was stopped by its callback.
    BM3_INTERRUPTED = 130,
}

/// Why a call does not return BM3_OK.
#[derive(Debug)]
pub(super) enum Failure {
    /// The library's error.
    Error(Error),
    /// Training was stopped; says where.
    Interrupted(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        Self::Error(error.into())
    }
}

impl Failure {
    /// An argument that cannot be used.
    pub fn argument(name: &str, problem: impl Into<String>) -> Self {
        Self::Error(Error::setting(name, problem))
    }
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Runs a call: its failure, or panic, becomes a status and this thread's last error.
pub(super) fn call(work: impl FnOnce() -> Result<(), Failure>) -> bm3_status {
    call_on(pool::shared, work)
}

/// As [`call`], for a training, which takes long.
pub(super) fn call_alone(work: impl FnOnce() -> Result<(), Failure>) -> bm3_status {
    call_on(pool::alone, work)
}

fn call_on(
    threads: fn() -> crate::Result<Arc<ThreadPool>>,
    work: impl FnOnce() -> Result<(), Failure>,
) -> bm3_status {
    // A panic can leave a handle half-changed, and `handle::change` then refuses it for good.
    let (status, message) = match catch_unwind(AssertUnwindSafe(|| in_process(threads, work))) {
        Ok(Ok(())) => return bm3_status::BM3_OK,
        Ok(Err(Failure::Interrupted(message))) => (bm3_status::BM3_INTERRUPTED, message),
        Ok(Err(Failure::Error(error))) => {
            let status = match error.exit_code() {
                2 => bm3_status::BM3_BAD_INPUT,
                _ => bm3_status::BM3_FAILURE,
            };
            (status, Caller::C.words(&error.to_string()))
        }
        Err(panic) => {
            let text = match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
                (Some(text), _) => text,
                (None, Some(text)) => *text,
                (None, None) => "no reason given",
            };
            (bm3_status::BM3_FAILURE, format!("a fault of bm3-engine, please report it: {text}"))
        }
    };
    let message = text(&message);
    // On a thread that is ending, nobody can ask any more.
    LAST_ERROR.try_with(|last| last.replace(message)).ok();
    status
}

/// A text for the caller.
pub(super) fn text(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}

/// Runs `work` on this thread, or, in a process that was forked after the library's first call, on
/// `threads` that it has: parallel work would wait for its parent's for ever.
fn in_process(
    threads: fn() -> crate::Result<Arc<ThreadPool>>,
    work: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    static FIRST: OnceLock<u32> = OnceLock::new();
    let process = std::process::id();
    if *FIRST.get_or_init(|| process) == process {
        return work();
    }
    let work = Sent(work);
    threads()?.install(move || work.run())
}

/// Work that another thread does while this one waits.
struct Sent<W>(W);

// SAFETY: one thread at a time uses what the work refers to, as the one that called waits for its end;
// and the work uses no data of its thread.
unsafe impl<W> Send for Sent<W> {}

impl<W: FnOnce() -> Result<(), Failure>> Sent<W> {
    fn run(self) -> Result<(), Failure> {
        (self.0)()
    }
}

/// Describes this thread's last failed call in one sentence, with what was found and what was
/// expected; an empty text if none has failed.
///
/// The text is the library's, and valid until the thread's next call that fails.
#[unsafe(no_mangle)]
pub extern "C" fn bm3_last_error() -> *const c_char {
    LAST_ERROR.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// The library's version, such as "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn bm3_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("a version has no NUL"),
        };
    VERSION.as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last_error() -> String {
        // SAFETY: the text is valid until the next call that fails, and none fails here.
        unsafe { CStr::from_ptr(bm3_last_error()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_call_ends_with_a_status_and_a_text() {
        assert_eq!(last_error(), "");
        let wrong = || Err(Failure::argument("k", "0\0 found"));
        assert_eq!(call(wrong), bm3_status::BM3_BAD_INPUT);
        assert_eq!(last_error(), "k: 0\u{fffd} found");
        assert_eq!(call(|| Ok(())), bm3_status::BM3_OK);
        assert_eq!(last_error(), "k: 0\u{fffd} found", "what went well changes no text");
        let full = std::io::ErrorKind::StorageFull.into();
        let failed = || Err(Error::io("x".as_ref(), "write", full).into());
        assert_eq!(call(failed), bm3_status::BM3_FAILURE);
        assert!(last_error().starts_with("x: cannot write"));
        let of_another_thread = std::thread::spawn(last_error).join().unwrap();
        assert_eq!(of_another_thread, "");
    }

    #[test]
    fn a_panic_ends_at_the_boundary() {
        assert_eq!(call(|| panic!("at {}", 7)), bm3_status::BM3_FAILURE);
        assert!(last_error().ends_with("please report it: at 7"), "{}", last_error());
        assert_eq!(call(|| panic!("plain")), bm3_status::BM3_FAILURE);
        assert!(last_error().ends_with("plain"));
        assert_eq!(call(|| std::panic::panic_any(7)), bm3_status::BM3_FAILURE);
        assert!(last_error().ends_with("no reason given"));
    }
}
