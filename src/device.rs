//! A device to compute on, opened by choice.

use crate::config::{DeviceChoice, FeatureStorage};
use crate::cpu::Cpu;
use crate::cuda::{self, Cuda, Kernels, Unusable};
use crate::{Error, Result};

/// A device to compute on.
#[derive(Clone)]
pub enum Device {
    /// The CPU.
    Cpu(Cpu<f32>),
    /// A GPU, opened, with the kernels on it.
    Gpu(Cuda),
}

/// Does some work with the [`Backend`](crate::backend::Backend) of a [`Device`]:
/// `with_backend!(device, backend => work)`. The work is compiled once for each kind of device.
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
    /// Opens the device asked for, and never another one in its place.
    ///
    /// `auto` leaves the choice: GPU 0 where it can be used, else the CPU. Where there is a GPU and it
    /// cannot be used, the reason comes with the device.
    ///
    /// # Errors
    /// [`Error::Gpu`] for a GPU that is not there or cannot be used, [`Error::DeviceOperation`] for
    /// one that fails.
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

    /// Has frozen features lie where a run asks for, which matters on a GPU alone.
    #[must_use]
    pub fn keeping_features(self, storage: FeatureStorage) -> Self {
        match self {
            Self::Gpu(gpu) => Self::Gpu(gpu.keeping_features(storage)),
            cpu @ Self::Cpu(_) => cpu,
        }
    }

    /// Has no more than `limit` bytes taken of a GPU's memory, see [`Cuda::limiting_memory`].
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
