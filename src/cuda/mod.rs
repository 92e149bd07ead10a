//! The CUDA backend: launch geometry and memory around the kernels of `kernels/`.
//!
//! There is no mathematics here. Each operation of a [backend](crate::backend::Backend) becomes one
//! or a few launches, whose wrappers (a file for every few kernels) state grid, block, bytes moved
//! and operations. A [`Device`] wraps the CUDA driver. Tests replace the driver by an emulator that
//! runs the same kernel sources on the CPU (`tests/emulator`); nothing here knows of it.

mod allocation;
mod backend;
mod batches;
mod dense;
mod device;
mod driver;
mod features;
mod kept;
mod kernels;
mod launch;
mod loss;
mod memory;
mod plan;
mod pool;
mod process;
mod profile;
mod random;
mod ranking;
mod recording;
mod rows;
mod schedule;
mod search;
mod shared;
mod spmm;
mod staging;
mod stored;
mod stream;
mod upload;

use std::sync::Arc;

pub use batches::{CudaBatch, CudaBatches};
pub use device::Device;
pub use driver::{Gpu, Unusable, can_run, gpus};
pub use features::CudaFeatures;
pub use kept::CudaKept;
pub use kernels::{Capability, CudaVersion, Kernels, NAMES as KERNEL_NAMES};
pub use loss::CudaLosses;
pub use memory::Memory;
pub(crate) use plan::{
    FeaturePlacement, MARGIN, Placement, SPARE_SHARE, Shares, training as training_memory,
};
pub use ranking::{CudaLists, CudaWanted, LONGEST_LIST};
pub use schedule::CudaSchedule;
pub(crate) use search::CudaIndex;
use shared::Pool;
pub use shared::Shared;
pub use spmm::{CudaGraph, RunGraph};
pub(crate) use staging::staging_bytes;
pub use stored::StoredType;
use stream::FeatureStream;
pub use upload::UploadProgress;

use crate::Result;
use crate::config::FeatureStorage;

/// The backend of a GPU: runs our kernels, in f32.
#[derive(Clone)]
pub struct Cuda {
    device: Arc<Device>,
    stored: Option<StoredType>,
    storage: FeatureStorage,
    /// The most bytes that a run plans with, even if more are free.
    budget: Option<u64>,
    /// Data shared with the runs of siblings.
    pool: Option<Arc<Pool>>,
    /// The stream of frozen features, if not all of them are on the device.
    stream: Option<Arc<FeatureStream>>,
    /// Whether memory has been set aside for the best epoch's dense parameters.
    has_room_for_dense: bool,
    /// Whether the best epoch's dense parameters stay on the GPU, and its trained features.
    keeps_dense: bool,
    keeps_features: bool,
    progress: Arc<UploadProgress>,
}

impl Cuda {
    /// The backend of a device.
    pub fn new(device: Arc<Device>) -> Self {
        Self {
            device,
            stored: None,
            storage: FeatureStorage::Auto,
            budget: None,
            pool: None,
            stream: None,
            has_room_for_dense: false,
            keeps_dense: false,
            keeps_features: false,
            progress: Arc::new(|_: &str, _, _| ()),
        }
    }

    /// Makes the runs of [`Cuda::sibling`]s share one copy of each graph and of frozen features.
    pub fn sharing(self) -> Self {
        let pool = Some(Arc::new(Pool::new(self.device.clone())));
        Self { pool, ..self }
    }

    /// A backend for another run at the same time, on a stream of its own.
    ///
    /// # Errors
    /// [`crate::Error::DeviceOperation`].
    pub fn sibling(&self) -> Result<Self> {
        let device = self.device.sibling()?;
        Ok(Self { device, stream: None, keeps_dense: false, keeps_features: false, ..self.clone() })
    }

    /// Limits the bytes that a run plans with when it decides where its features lie.
    pub(crate) fn within(self, budget: u64) -> Self {
        Self { budget: Some(budget), ..self }
    }

    /// Keeps the best epoch's dense parameters on the GPU, because memory has been set aside for
    /// them.
    pub(crate) fn keeping_dense(self) -> Self {
        Self { has_room_for_dense: true, ..self }
    }

    /// Limits the GPU memory of this device, and so of all clones and siblings of this backend, to
    /// `limit` bytes, or not at all for `None`. What does not fit is streamed, or kept by the host.
    pub fn limiting_memory(self, limit: Option<u64>) -> Self {
        self.device.limit_memory(limit.unwrap_or(u64::MAX));
        self
    }

    /// Places frozen features as `storage` says, instead of where there is room.
    pub fn keeping_features(self, storage: FeatureStorage) -> Self {
        Self { storage, ..self }
    }

    /// Stores frozen features in this type instead of their file's.
    pub fn storing(self, stored: StoredType) -> Self {
        Self { stored: Some(stored), ..self }
    }

    /// Reports the progress of copying features to the device.
    pub fn reporting(self, progress: Arc<UploadProgress>) -> Self {
        Self { progress, ..self }
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }
}
