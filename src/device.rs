//! The device to compute on, and how it is opened.

use crate::config::{DeviceChoice, FeatureStorage};
use crate::cpu::Cpu;
use crate::cuda::{self, Cuda, Kernels, Unusable};
use crate::{Error, Result};

/// A device to compute on.
#[derive(Clone)]
pub enum Device {
    /// The CPU.
    Cpu(Cpu<f32>),
    /// An open GPU, with the kernels loaded.
    Gpu(Cuda),
}

/// Evaluates `work` with the [`Backend`](crate::backend::Backend) of a [`Device`]:
/// `with_backend!(device, backend => work)`. It is compiled once for each kind of device.
#[macro_export]
macro_rules! with_backend {
    ($device:expr, $backend:ident => $work:expr) => {
        match $device {
            $crate::device::Device::Cpu($backend) => $work,
            $crate::device::Device::Gpu($backend) => $work,
        }
    };
}

impl Device {
    /// Opens the chosen device, never another in its place.
    ///
    /// `auto` opens GPU 0 if it can be used, else the CPU. If there is a GPU but it cannot be used,
    /// the reason is returned as well.
    ///
    /// # Errors
    /// [`Error::Gpu`] for a GPU that does not exist or cannot be used, [`Error::DeviceOperation`]
    /// for one that fails.
    pub fn open(choice: DeviceChoice) -> Result<(Self, Option<Unusable>)> {
        let gpu = |number| {
            let kernels = Kernels::embedded();
            let device = cuda::Device::open(number, kernels.as_ref())?;
            Ok(Self::Gpu(Cuda::new(device)))
        };
        match choice {
            DeviceChoice::Cpu => Ok((Self::Cpu(Cpu::new()), None)),
            DeviceChoice::Gpu(number) => Ok((gpu(number)?, None)),
            DeviceChoice::Auto => match gpu(0) {
                Err(Error::Gpu { reason, .. }) => {
                    let is_there =
                        !matches!(reason, Unusable::NoDriver | Unusable::NoSuchGpu { .. });
                    Ok((Self::Cpu(Cpu::new()), is_there.then_some(reason)))
                }
                opened => Ok((opened?, None)),
            },
        }
    }

    /// Sets where a run keeps its frozen features; this matters only on a GPU.
    #[must_use]
    pub fn keeping_features(self, storage: FeatureStorage) -> Self {
        match self {
            Self::Gpu(gpu) => Self::Gpu(gpu.keeping_features(storage)),
            cpu @ Self::Cpu(_) => cpu,
        }
    }

    /// Limits the memory taken of a GPU to `limit` bytes, see [`Cuda::limiting_memory`].
    #[must_use]
    pub fn limiting_memory(self, limit: Option<u64>) -> Self {
        match self {
            Self::Gpu(gpu) => Self::Gpu(gpu.limiting_memory(limit)),
            cpu @ Self::Cpu(_) => cpu,
        }
    }

    /// One line that names the device.
    pub fn describe(&self) -> String {
        with_backend!(self, backend => crate::backend::Backend::describe(backend))
    }
}
