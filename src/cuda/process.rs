//! Objects of the driver, which a forked process must leave alone.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::process;

/// An object that the driver made for this process. A process forked from it has the same bytes but
/// no driver: it must not call the driver, not even to free the object, and so drops nothing.
pub(super) struct OfThisProcess<T> {
    value: ManuallyDrop<T>,
    process: u32,
}

impl<T> OfThisProcess<T> {
    /// An object of the calling process.
    pub fn new(value: T) -> Self {
        Self { value: ManuallyDrop::new(value), process: process::id() }
    }

    /// Whether it was inherited through a fork.
    pub fn is_inherited(&self) -> bool {
        self.process != process::id()
    }
}

impl<T> Deref for OfThisProcess<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for OfThisProcess<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Drop for OfThisProcess<T> {
    fn drop(&mut self) {
        if !self.is_inherited() {
            // SAFETY: dropped only here, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.value) };
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for OfThisProcess<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(formatter)
    }
}
