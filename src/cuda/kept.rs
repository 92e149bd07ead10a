//! Snapshots of parameters, on the device or on the host.

use super::memory::Memory;
use crate::{Error, Result};

/// A snapshot of a buffer.
#[derive(Debug)]
pub enum CudaKept {
    /// On the device, where copying is fast.
    Device(Memory<u8>),
    /// In the host's memory.
    Host(Vec<f32>),
}

impl CudaKept {
    /// Takes the copy on the device; if other programs have taken the memory that was counted on,
    /// reads the values by `read` instead.
    ///
    /// # Errors
    /// [`Error::DeviceOperation`].
    pub(super) fn new(
        copy: Result<Memory<u8>>,
        read: impl FnOnce() -> Result<Vec<f32>>,
    ) -> Result<Self> {
        match copy {
            Err(error @ Error::DeviceMemory { .. }) => {
                tracing::warn!(%error, "the best epoch's model is kept in the host's memory");
                read().map(Self::Host)
            }
            copy => copy.map(Self::Device),
        }
    }

    /// Reads the snapshot.
    pub(super) fn read(self) -> Result<Vec<f32>> {
        match self {
            Self::Device(memory) => memory.read_as(),
            Self::Host(values) => Ok(values),
        }
    }
}
