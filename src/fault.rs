//! Injected faults in file writes, for tests: debug builds only, requested by `BM3_TEST_FAULT`.
//!
//! [`crate::files`] calls [`point`] before and after everything it does. `BM3_TEST_FAULT=kill:12`
//! ends the process at the twelfth call with nothing tidied up, as `kill -9` would; `full:12` makes
//! that call and all later ones fail as on a full disk. In release builds the calls do nothing.

use std::io;

/// Marks a point where a test may inject a fault.
///
/// # Errors
/// [`io::ErrorKind::StorageFull`] if the test asks for it.
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

/// Does nothing.
///
/// # Errors
/// None.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point() -> io::Result<()> {
    Ok(())
}
