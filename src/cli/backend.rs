//! From what was asked for to a device and a data set.

use bm3_engine::Result;
use bm3_engine::config::{DeviceChoice, RunConfig};
use bm3_engine::data::{Dataset, DatasetOptions};
use bm3_engine::device::Device;

use super::loading::Loading;

/// Opens the device asked for, as [`Device::open`]. That there is a GPU and it cannot be used is said
/// on standard error, if `talks`.
///
/// # Errors
/// Those of [`Device::open`].
pub fn open(choice: DeviceChoice, talks: bool) -> Result<Device> {
    let (device, passed_over) = Device::open(choice)?;
    if let Some(reason) = passed_over.filter(|_| talks) {
        eprintln!("warning: computing on the CPU because GPU 0 cannot be used: {reason}");
    }
    Ok(device)
}

/// Opens the device of a run, as [`open`], with frozen features where the run wants them, and no more
/// of its memory than the run may have.
///
/// # Errors
/// Those of [`open`].
pub fn open_for(config: &RunConfig, talks: bool) -> Result<Device> {
    Ok(match open(config.device, talks)? {
        Device::Gpu(gpu) => Device::Gpu(gpu.reporting(Loading::new(talks).copying())),
        cpu @ Device::Cpu(_) => cpu,
    }
    .keeping_features(config.feature_storage)
    .limiting_memory(config.device_memory.map(|size| size.0)))
}

/// The data set of a run, with its modalities; how far large files are read is shown, if `talks`.
///
/// # Errors
/// What is wrong with the folder.
pub fn dataset(config: &RunConfig, talks: bool) -> Result<Dataset> {
    read(config, config.dataset_options(), talks)
}

/// The interactions of a run's data set alone: all that scoring needs.
///
/// # Errors
/// What is wrong with the folder.
pub fn interactions(config: &RunConfig) -> Result<Dataset> {
    let options = DatasetOptions { modalities: Some(Vec::new()), ..config.dataset_options() };
    read(config, options, false)
}

fn read(config: &RunConfig, options: DatasetOptions, talks: bool) -> Result<Dataset> {
    Ok(Dataset::open_with(&config.data, &options, &mut Loading::new(talks).reading())?)
}

/// Says on standard error what is remarkable about a data set.
pub fn warn(dataset: &Dataset) {
    for warning in &dataset.warnings {
        eprintln!("warning: {warning}");
    }
}
