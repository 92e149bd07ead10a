//! Device memory as the driver hands it out, and a limit on how much of it is in use.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::CudaSlice;

use super::process::OfThisProcess;

/// How many bytes a device and its siblings may use at a time, and how many they use.
#[derive(Debug)]
pub(super) struct Allowance {
    most: AtomicU64,
    in_use: AtomicU64,
}

impl Default for Allowance {
    /// No limit.
    fn default() -> Self {
        Self { most: AtomicU64::new(u64::MAX), in_use: AtomicU64::new(0) }
    }
}

impl Allowance {
    /// Allows no more than `most` bytes from now on.
    pub fn limit(&self, most: u64) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// The limit, and how many of its bytes are left.
    pub fn most_and_left(&self) -> (u64, u64) {
        let most = self.most.load(Ordering::Relaxed);
        (most, most.saturating_sub(self.in_use.load(Ordering::Relaxed)))
    }

    /// Counts `bytes` more as in use, or returns `None` if fewer are left.
    pub fn take(self: &Arc<Self>, bytes: u64) -> Option<Allowed> {
        let most = self.most.load(Ordering::Relaxed);
        let more = |in_use: u64| in_use.checked_add(bytes).filter(|&sum| sum <= most);
        self.in_use.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Allowed { allowance: self.clone(), bytes })
    }
}

/// Bytes that count as in use until this is dropped.
#[derive(Debug)]
pub(super) struct Allowed {
    allowance: Arc<Allowance>,
    bytes: u64,
}

impl Drop for Allowed {
    fn drop(&mut self) {
        self.allowance.in_use.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Memory that counts as in use; freed when dropped, after the work in flight.
pub(super) struct Allocation {
    slice: OfThisProcess<CudaSlice<u8>>,
    _allowed: Allowed,
}

impl Allocation {
    pub fn new(slice: CudaSlice<u8>, allowed: Allowed) -> Self {
        Self { slice: OfThisProcess::new(slice), _allowed: allowed }
    }
}

impl Deref for Allocation {
    type Target = CudaSlice<u8>;

    fn deref(&self) -> &CudaSlice<u8> {
        &self.slice
    }
}

impl DerefMut for Allocation {
    fn deref_mut(&mut self) -> &mut CudaSlice<u8> {
        &mut self.slice
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_bytes_are_in_use_than_are_allowed() {
        let allowance = Arc::new(Allowance::default());
        let half = allowance.take(1 << 63).unwrap();
        assert!(allowance.take(1 << 63).is_none(), "more than can be counted");
        drop(half);
        allowance.limit(100);
        let most = allowance.take(60).unwrap();
        assert_eq!(allowance.most_and_left(), (100, 40));
        assert!(allowance.take(41).is_none());
        let rest = allowance.take(40).unwrap();
        allowance.limit(50);
        assert_eq!(allowance.most_and_left(), (50, 0));
        drop(most);
        assert_eq!(allowance.most_and_left(), (50, 10));
        drop(rest);
        assert_eq!(allowance.most_and_left(), (50, 50));
    }
}
