//! The GPUs of this machine, and the reasons why one cannot be used.

use std::ffi::c_int;
use std::fmt;

use cudarc::driver::{DriverError, result, sys};

use super::kernels::{Capability, CudaVersion, Kernels};
use crate::{Error, Result};

/// The first driver that reports the sizes of kernels' parameters, which launches check.
const OLDEST_DRIVER: CudaVersion = CudaVersion { major: 12, minor: 4 };

/// Why a GPU cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unusable {
    /// The driver's library is missing.
    #[error(
        "there is no NVIDIA driver on this machine (its library, libcuda.so, was not found); \
         install the driver, or compute with --device cpu"
    )]
    NoDriver,

    /// The driver does not answer.
    #[error("the NVIDIA driver does not work: {0}; see `nvidia-smi`, or compute with --device cpu")]
    BrokenDriver(String),

    /// No GPU has this number.
    #[error(
        "there is no such GPU: the driver shows {}; `bm3-engine devices` lists them",
        numbered(*count)
    )]
    NoSuchGpu {
        /// The number of GPUs.
        count: usize,
    },

    /// The build has no kernels.
    #[error(
        "the GPU is there, but this build of bm3-engine has no CUDA kernels: nvcc was not found \
         when it was built; get nvcc (README, GPU), build again, or compute with --device cpu"
    )]
    NoKernels,

    /// The driver cannot load this build's kernels.
    #[error(
        "the driver supports CUDA {found}, and this build's kernels need {needed} or newer; update \
         the driver, build with an older nvcc, or compute with --device cpu"
    )]
    OldDriver {
        /// The newest CUDA version that the driver supports.
        found: CudaVersion,
        /// The version of the toolkit that compiled the kernels.
        needed: CudaVersion,
    },

    /// The GPU is older than the kernels.
    #[error(
        "its compute capability is {found}, and this build's kernels need {needed} or newer; \
         compute with --device cpu"
    )]
    OldGpu {
        /// The GPU's capability.
        found: Capability,
        /// The lowest capability that the kernels were compiled for.
        needed: Capability,
    },
}

fn numbered(count: usize) -> String {
    match count {
        0 => "none".to_owned(),
        1 => "one, number 0".to_owned(),
        _ => format!("{count}, numbers 0 to {}", count - 1),
    }
}

/// A GPU, as the driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its number, from 0.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Its compute capability.
    pub capability: Capability,
    /// Its memory in bytes.
    pub memory: u64,
    /// The number of its multiprocessors.
    pub multiprocessors: u32,
    /// The newest CUDA version that the driver supports.
    pub driver: CudaVersion,
}

impl fmt::Display for Gpu {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "GPU {} ({})", self.ordinal, self.name)
    }
}

/// The driver's version, and the number of GPUs it shows.
fn ask() -> Result<(CudaVersion, usize), Unusable> {
    // SAFETY: loads the driver's library, if there is one, as every driver call does.
    if !unsafe { sys::is_culib_present() } {
        return Err(Unusable::NoDriver);
    }
    let broken = |error| Unusable::BrokenDriver(problem_of(error));
    let mut version: c_int = 0;
    // SAFETY: the variable outlives the call.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(broken)?;
    let version = version.unsigned_abs();
    let version = CudaVersion { major: version / 1000, minor: version % 1000 / 10 };
    match result::init().and_then(|()| result::device::get_count()) {
        Ok(count) => Ok((version, count.unsigned_abs() as usize)),
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Ok((version, 0)),
        Err(error) => Err(broken(error)),
    }
}

/// All GPUs of this machine.
///
/// # Errors
/// [`Unusable::NoDriver`] and [`Unusable::BrokenDriver`].
pub fn gpus() -> Result<Vec<Gpu>, Unusable> {
    let (driver, count) = ask()?;
    (0..count).map(|ordinal| describe(ordinal, driver)).collect()
}

/// The GPU `ordinal`.
pub(super) fn find(ordinal: usize) -> Result<Gpu> {
    let found = ask().and_then(|(driver, count)| match ordinal < count {
        true => describe(ordinal, driver),
        false => Err(Unusable::NoSuchGpu { count }),
    });
    found.map_err(|reason| unusable(ordinal, reason))
}

fn describe(ordinal: usize, driver: CudaVersion) -> Result<Gpu, Unusable> {
    use sys::CUdevice_attribute as Attribute;
    let gpu = || -> Result<Gpu, DriverError> {
        let device = result::device::get(ordinal as c_int)?;
        // SAFETY: the driver has just named the device.
        let attribute = |attribute| unsafe { result::device::get_attribute(device, attribute) };
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        Ok(Gpu {
            ordinal,
            name: result::device::get_name(device)?,
            capability: Capability(10 * major.unsigned_abs() + minor.unsigned_abs()),
            // SAFETY: as above.
            memory: unsafe { result::device::total_mem(device) }? as u64,
            multiprocessors: multiprocessors.unsigned_abs(),
            driver,
        })
    };
    gpu().map_err(|error| Unusable::BrokenDriver(problem_of(error)))
}

/// Whether a GPU and its driver can run `kernels`.
///
/// # Errors
/// The reason, if they cannot.
pub fn can_run(gpu: &Gpu, kernels: Option<&Kernels>) -> Result<(), Unusable> {
    let kernels = kernels.ok_or(Unusable::NoKernels)?;
    // A driver loads code from any toolkit of its own or an older major version.
    let oldest = CudaVersion { minor: 0, ..kernels.toolkit }.max(OLDEST_DRIVER);
    if gpu.driver < oldest {
        return Err(Unusable::OldDriver { found: gpu.driver, needed: oldest });
    }
    if !kernels.serve(gpu.capability) {
        let needed = kernels.machine_code.first().copied().unwrap_or(kernels.ptx);
        return Err(Unusable::OldGpu { found: gpu.capability, needed });
    }
    Ok(())
}

/// The kernels, if the GPU can run them.
pub(super) fn serve<'a>(gpu: &Gpu, kernels: Option<&'a Kernels>) -> Result<&'a Kernels> {
    can_run(gpu, kernels)
        .and_then(|()| kernels.ok_or(Unusable::NoKernels))
        .map_err(|reason| unusable(gpu.ordinal, reason))
}

fn unusable(ordinal: usize, reason: Unusable) -> Error {
    Error::Gpu { ordinal, reason }
}

/// An error in the driver's words.
pub(super) fn problem_of(error: DriverError) -> String {
    let name = error.error_name().map(|text| text.to_string_lossy().into_owned());
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    match (name, text) {
        (Ok(name), Ok(text)) => format!("{text} ({name})"),
        _ => format!("error {}", error.0 as u32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_counted_from_zero() {
        let message = |count| Unusable::NoSuchGpu { count }.to_string();
        assert!(message(0).contains("the driver shows none;"));
        assert!(message(1).contains("the driver shows one, number 0;"));
        assert!(message(4).contains("the driver shows 4, numbers 0 to 3;"));
    }
}
