//! From what was asked for to a device and a data set.

use bm3_engine::config::{DeviceChoice, RunConfig};
use bm3_engine::cpu::Cpu;
use bm3_engine::cuda::{self, Cuda, Kernels, Unusable};
use bm3_engine::data::{Dataset, DatasetOptions, SplitRatio};
use bm3_engine::{Error, Result};

use super::loading::Loading;

/// A device to compute on.
pub enum Device {
    /// The CPU.
    Cpu(Cpu<f32>),
    /// A GPU, opened, with the kernels on it.
    Gpu(Cuda),
}

/// Does some work with the backend of a device: `with_backend!(device, backend => work)`. The work
/// is compiled once for each kind of device.
macro_rules! with_backend {
    ($device:expr, $backend:ident => $work:expr) => {
        match $device {
            $crate::cli::backend::Device::Cpu($backend) => $work,
            $crate::cli::backend::Device::Gpu($backend) => $work,
        }
    };
}
pub(super) use with_backend;

/// Opens the device asked for, and never another one in its place.
///
/// `auto` leaves the choice: GPU 0 where it can be used, else the CPU. That there is a GPU and it
/// cannot be used is said on standard error, if `talks`.
///
/// # Errors
/// [`Error::Gpu`] for a GPU that is not there or cannot be used, [`Error::DeviceOperation`] for one
/// that fails.
pub fn open(choice: DeviceChoice, talks: bool) -> Result<Device> {
    let gpu = |number| {
        let kernels = Kernels::embedded();
        let device = cuda::Device::open(number, kernels.as_ref())?;
        Ok(Device::Gpu(Cuda::new(device)))
    };
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu(Cpu::new())),
        DeviceChoice::Gpu(number) => gpu(number),
        DeviceChoice::Auto => match gpu(0) {
            Err(Error::Gpu { reason, .. }) => {
                let is_there = !matches!(reason, Unusable::NoDriver | Unusable::NoSuchGpu { .. });
                if is_there && talks {
                    eprintln!(
                        "warning: computing on the CPU because GPU 0 cannot be used: {reason}"
                    );
                }
                Ok(Device::Cpu(Cpu::new()))
            }
            opened => opened,
        },
    }
}

/// Opens the device of a run, as [`open`], with frozen features where the run wants them.
///
/// # Errors
/// Those of [`open`].
pub fn open_for(config: &RunConfig, talks: bool) -> Result<Device> {
    Ok(match open(config.device, talks)? {
        Device::Gpu(gpu) => {
            let gpu = gpu.reporting(Loading::new(talks).copying());
            Device::Gpu(gpu.keeping_features(config.feature_storage))
        }
        cpu @ Device::Cpu(_) => cpu,
    })
}

/// The data set of a run, with its modalities; how far large files are read is shown, if `talks`.
///
/// # Errors
/// What is wrong with the folder.
pub fn dataset(config: &RunConfig, talks: bool) -> Result<Dataset> {
    let modalities = config.modalities.names().map(<[String]>::to_vec);
    read(config, modalities, talks)
}

/// The interactions of a run's data set alone: all that scoring needs.
///
/// # Errors
/// What is wrong with the folder.
pub fn interactions(config: &RunConfig) -> Result<Dataset> {
    read(config, Some(Vec::new()), false)
}

fn read(config: &RunConfig, modalities: Option<Vec<String>>, talks: bool) -> Result<Dataset> {
    let features =
        config.features.iter().map(|source| (source.name.clone(), source.files.clone())).collect();
    let split = config.split.map(|shares| SplitRatio {
        train: shares.train,
        valid: shares.valid,
        test: shares.test,
        seed: config.train.seed,
    });
    let options = DatasetOptions { features, modalities, split };
    Ok(Dataset::open_with(&config.data, &options, &mut Loading::new(talks).reading())?)
}

/// Says on standard error what is remarkable about a data set.
pub fn warn(dataset: &Dataset) {
    for warning in &dataset.warnings {
        eprintln!("warning: {warning}");
    }
}
