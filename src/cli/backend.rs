//! Opens the device and the data set that a command asks for.

use bm3_engine::Result;
use bm3_engine::config::{DeviceChoice, RunConfig};
use bm3_engine::data::{Dataset, DatasetOptions};
use bm3_engine::device::Device;

use super::loading::Loading;

/// Opens the device asked for, as [`Device::open`]. If `talks`, warns on standard error about a GPU
/// that cannot be used.
///
/// # Errors
/// As [`Device::open`].
pub fn open(choice: DeviceChoice, talks: bool) -> Result<Device> {
    let (device, passed_over) = Device::open(choice)?;
    if let Some(reason) = passed_over.filter(|_| talks) {
        eprintln!("warning: computing on the CPU because GPU 0 cannot be used: {reason}");
    }
    Ok(device)
}

/// Opens a run's device, as [`open`], with the run's storage of frozen features and its limit on
/// device memory.
///
/// # Errors
/// As [`open`].
pub fn open_for(config: &RunConfig, talks: bool) -> Result<Device> {
    Ok(match open(config.device, talks)? {
        Device::Gpu(gpu) => Device::Gpu(gpu.reporting(Loading::new(talks).copying())),
        cpu @ Device::Cpu(_) => cpu,
    }
    .keeping_features(config.feature_storage)
    .limiting_memory(config.device_memory.map(|size| size.0)))
}

/// Reads a run's data set with its modalities; if `talks`, shows progress through large files.
///
/// # Errors
/// As [`Dataset::open_with`].
pub fn dataset(config: &RunConfig, talks: bool) -> Result<Dataset> {
    read(config, config.dataset_options(), talks)
}

/// Reads only the interactions of a run's data set: all that scoring needs.
///
/// # Errors
/// As [`Dataset::open_with`].
pub fn interactions(config: &RunConfig) -> Result<Dataset> {
    let options = DatasetOptions { modalities: Some(Vec::new()), ..config.dataset_options() };
    read(config, options, false)
}

fn read(config: &RunConfig, options: DatasetOptions, talks: bool) -> Result<Dataset> {
    Ok(Dataset::open_with(&config.data, &options, &mut Loading::new(talks).reading())?)
}

/// Prints a data set's warnings on standard error.
pub fn warn(dataset: &Dataset) {
    for warning in &dataset.warnings {
        eprintln!("warning: {warning}");
    }
}
