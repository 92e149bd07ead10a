//! The memory plan of a run on a GPU against what the run allocates: on the emulated driver, whose
//! memory can be made as small as one likes and is counted to the byte.
//!
//! A plan is honest when the run succeeds with just as many bytes, and tight when it fails with
//! a little less.

mod emulator;

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bm3_engine::config::{FeatureStorage, FeatureTypeChoice, Order, Propagation, TrainConfig};
use bm3_engine::cuda::{Cuda, Device};
use bm3_engine::data::{Dataset, DatasetOptions};
use bm3_engine::memory::MemoryPlan;
use bm3_engine::records::{EpochRecord, Observer};
use bm3_engine::run::RunDirectory;
use bm3_engine::synth::{self, Shape, SynthOptions};
use bm3_engine::train::{FitOptions, fit, graph};
use bm3_engine::{Error, Result};
use emulator::Emulator;

/// This share less than planned is too little. The rest is the largest batch that could be, and the
/// growth of the memory for intermediate numbers, which may stop short of what is planned.
const SLACK: f64 = 0.05;

/// The most bytes in use after a step or an epoch.
struct Watch {
    emulator: &'static Emulator,
    most: u64,
}

impl Observer for Watch {
    fn step(&mut self, _: u64, _: u64, _: u64) {
        self.most = self.most.max(self.emulator.used());
    }

    fn epoch(&mut self, _: &EpochRecord) {
        self.most = self.most.max(self.emulator.used());
    }
}

/// Trains on a GPU of so many bytes; the most that was seen in use.
fn train(
    emulator: &'static Emulator,
    dataset: &Dataset,
    config: &TrainConfig,
    memory: u64,
) -> Result<u64> {
    emulator.set("BM3_EMULATOR_MEMORY", &memory.to_string());
    let directory = tempfile::tempdir().unwrap();
    let directory = RunDirectory::open(directory.path(), false).unwrap();
    let options =
        FitOptions { initial: None, resume: false, checkpoint_interval: Duration::from_secs(3600) };
    let mut watch = Watch { emulator, most: 0 };
    let stop = AtomicBool::new(false);
    let device = Device::open(0, Some(&emulator::kernels())).expect("the emulator");
    let cuda = Cuda::new(device).keeping_features(FeatureStorage::Resident);
    let outcome = fit(cuda, dataset, config, &directory, &options, &mut watch, &stop);
    assert_eq!(emulator.used(), 0, "a run leaves nothing behind");
    outcome.map(|_| watch.most)
}

#[test]
fn a_plan_is_what_a_run_takes() {
    if emulator::on_gpu() {
        println!("skipped: what a GPU has cannot be changed");
        return;
    }
    let Some(emulator) = emulator::emulator() else { return };
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("tiny");
    let feature_type = bm3_engine::data::FeatureType::F16;
    let options = SynthOptions { feature_type, ..SynthOptions::new(Shape::Tiny, 1) };
    synth::generate(&options, &data, &mut |_, _, _| ()).unwrap();
    let dataset = Dataset::open(&data, &DatasetOptions::default()).unwrap();
    let none = DatasetOptions { modalities: Some(vec![]), ..DatasetOptions::default() };
    let bare = Dataset::open(&data, &none).unwrap();

    let small = TrainConfig { embedding_size: 16, epochs: 2, ..TrainConfig::default() };
    let frozen = TrainConfig { freeze_features: true, ..small.clone() };
    let cases = [
        ("trained features", &dataset, small.clone()),
        ("f16 as the file has it", &dataset, frozen.clone()),
        ("f32", &dataset, TrainConfig { feature_type: FeatureTypeChoice::F32, ..frozen.clone() }),
        ("the layers between", &dataset, TrainConfig { layers: 3, ..frozen.clone() }),
        (
            "the paper's form",
            &dataset,
            TrainConfig { propagation: Propagation::Gcn, layers: 2, ..frozen.clone() },
        ),
        (
            "no modality",
            &bare,
            TrainConfig { order: Order::File, top_k: vec![200], ..small.clone() },
        ),
        (
            "an order longer than the rest",
            &bare,
            TrainConfig { batch_size: 64, embedding_size: 4, ..small },
        ),
    ];
    for (what, dataset, config) in cases {
        let graph = graph(dataset, &config);
        let plan =
            MemoryPlan::on_gpu(dataset, &graph, &config, FeatureStorage::Resident, 0).unwrap();
        let plan = plan.device_total();
        let used = train(emulator, dataset, &config, plan)
            .unwrap_or_else(|error| panic!("{what}: {plan} bytes are not enough: {error}"));
        assert!(used <= plan, "{what}: {used} bytes of {plan} planned");
        let less = plan - (SLACK * plan as f64) as u64;
        let error = train(emulator, dataset, &config, less).expect_err(what);
        assert!(matches!(error, Error::DeviceMemory { .. }), "{what}: {error}");
        println!("{what}: planned {plan} bytes, {used} in use after a step, {less} do not suffice");
    }
}
