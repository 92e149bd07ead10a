//! Faults in the writing of files, for tests: in debug builds only, where `BM3_TEST_FAULT` asks for
//! one.
//!
//! [`crate::files`] passes a point before and after everything it does. `BM3_TEST_FAULT=kill:12` ends
//! the process at the twelfth point, with nothing tidied up, as `kill -9` would; `full:12` has that
//! point and all after it fail as on a full disk. Release builds pass points without looking.

use std::io;

/// Passes a point.
///
/// # Errors
/// [`io::ErrorKind::StorageFull`], where that is asked for.
#[cfg(debug_assertions)]
pub fn point() -> io::Result<()> {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static PLAN: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let plan = PLAN.get_or_init(|| {
        let text = std::env::var("BM3_TEST_FAULT").ok()?;
        let (fault, number) = text.split_once(':')?;
        Some((fault.to_owned(), number.parse().ok()?))
    });
    let Some((fault, number)) = plan else { return Ok(()) };
    let passed = PASSED.fetch_add(1, Ordering::Relaxed) + 1;
    match fault.as_str() {
        "kill" if passed == *number => std::process::abort(),
        "full" if passed >= *number => Err(io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    }
}

/// Passes a point.
///
/// # Errors
/// None.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point() -> io::Result<()> {
    Ok(())
}
