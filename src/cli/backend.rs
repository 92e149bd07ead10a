//! From what was asked for to a device and a data set.

use bm3_engine::config::{DeviceChoice, RunConfig};
use bm3_engine::cpu::Cpu;
use bm3_engine::data::{Dataset, DatasetOptions, SplitRatio};
use bm3_engine::{Error, Result};

/// The device to compute on.
///
/// # Errors
/// [`Error::Device`] for a GPU, which this build cannot use: never another device in its place.
pub fn open(device: DeviceChoice) -> Result<Cpu<f32>> {
    match device {
        DeviceChoice::Cpu | DeviceChoice::Auto => Ok(Cpu::new()),
        DeviceChoice::Gpu(number) => Err(Error::Device {
            device: number.to_string(),
            problem: "this build of bm3-engine has no CUDA kernels; compute with --device cpu (or \
                      auto)"
                .to_owned(),
        }),
    }
}

/// The data set of a run, with its modalities.
///
/// # Errors
/// What is wrong with the folder.
pub fn dataset(config: &RunConfig) -> Result<Dataset> {
    let modalities = config.modalities.names().map(<[String]>::to_vec);
    read(config, modalities)
}

/// The interactions of a run's data set alone: all that scoring needs.
///
/// # Errors
/// What is wrong with the folder.
pub fn interactions(config: &RunConfig) -> Result<Dataset> {
    read(config, Some(Vec::new()))
}

fn read(config: &RunConfig, modalities: Option<Vec<String>>) -> Result<Dataset> {
    let features =
        config.features.iter().map(|source| (source.name.clone(), source.path.clone())).collect();
    let split = config.split.map(|shares| SplitRatio {
        train: shares.train,
        valid: shares.valid,
        test: shares.test,
        seed: config.train.seed,
    });
    Ok(Dataset::open(&config.data, &DatasetOptions { features, modalities, split })?)
}

/// Says on standard error what is remarkable about a data set.
pub fn warn(dataset: &Dataset) {
    for warning in &dataset.warnings {
        eprintln!("warning: {warning}");
    }
}
