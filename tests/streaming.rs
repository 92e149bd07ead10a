//! Frozen features streamed to a GPU give the bits of resident ones, in less memory.

mod emulator;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bm3_engine::Error;
use bm3_engine::config::{FeatureStorage, FeatureTypeChoice, Order, TrainConfig};
use bm3_engine::cuda::{Cuda, Device, Memory};
use bm3_engine::data::{Dataset, FeatureMatrix, Modality, Pairs};
use bm3_engine::memory::MemoryPlan;
use bm3_engine::philox::{Purpose, Stream};
use bm3_engine::records::{Observer, RunStart};
use bm3_engine::run::{self, RunDirectory};
use bm3_engine::train::{FitOptions, fit, graph};

/// Items of very different popularity, and two modalities.
fn dataset() -> Dataset {
    let (users, items) = (90u32, 2000u32);
    let stream = Stream::new(8, Purpose::Initial, 0, 0);
    let [mut train, mut valid, mut test] = [(); 3].map(|()| Pairs::default());
    for user in 0..users {
        for round in 0..9 {
            let draw = stream.uniform(u64::from(user * 16 + round));
            let item = (draw * draw * draw * f64::from(items)) as u32;
            let split = match round {
                7 => &mut valid,
                8 => &mut test,
                _ => &mut train,
            };
            split.users.push(user);
            split.items.push(item);
        }
    }
    train.users.push(0);
    train.items.push(items - 1);
    let modality = |name: &str, columns: u32| {
        let values = (0..items * columns)
            .map(|index| stream.normal(u64::from(index) + 1_000_000) as f32)
            .collect();
        let features = FeatureMatrix::from_f32(items as usize, columns as usize, values);
        Modality { name: name.to_owned(), features: features.unwrap().into() }
    };
    let modalities = vec![modality("image", 37), modality("text", 12)];
    Dataset::from_parts("popular", train, &valid, &test, modalities).unwrap()
}

fn config() -> TrainConfig {
    TrainConfig {
        embedding_size: 16,
        batch_size: 100,
        epochs: 2,
        freeze_features: true,
        ..TrainConfig::default()
    }
}

/// Stops after a number of steps, and keeps the message about the features.
struct Watch<'a> {
    stop: &'a AtomicBool,
    steps: u64,
    said: Option<String>,
}

impl Observer for Watch<'_> {
    fn start(&mut self, run: &RunStart) {
        self.said = run.features.clone();
    }

    fn step(&mut self, _: u64, _: u64, _: u64) {
        self.steps -= 1;
        if self.steps == 0 {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// Trains for this many steps; returns the message about the features.
fn train(
    storage: FeatureStorage,
    config: &TrainConfig,
    directory: &Path,
    resume: bool,
    steps: u64,
) -> bm3_engine::Result<Option<String>> {
    train_within(None, storage, config, directory, resume, steps)
}

/// The same, within a limit on the GPU's memory.
fn train_within(
    limit: Option<u64>,
    storage: FeatureStorage,
    config: &TrainConfig,
    directory: &Path,
    resume: bool,
    steps: u64,
) -> bm3_engine::Result<Option<String>> {
    let device = match emulator::on_gpu() {
        true => emulator::device().expect("a GPU"),
        false => Device::open(0, Some(&emulator::kernels()))?,
    };
    let stop = AtomicBool::new(false);
    let directory = RunDirectory::open(directory, resume)?;
    let options = FitOptions { initial: None, resume, checkpoint_interval: Duration::ZERO };
    let mut watch = Watch { stop: &stop, steps, said: None };
    let cuda = Cuda::new(device).keeping_features(storage).limiting_memory(limit);
    fit(cuda, &dataset(), config, &directory, &options, &mut watch, &stop)?;
    Ok(watch.said)
}

fn model(directory: &Path) -> Vec<u8> {
    std::fs::read(directory.join(run::MODEL)).unwrap()
}

/// The number of rows that stay on the GPU, according to the message.
fn rows_that_stay(said: &str) -> usize {
    let number = said.split("those of the ").nth(1).and_then(|rest| rest.split(' ').next());
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{said}"))
}

/// The memory of a GPU that has room, beside everything else, to keep the streamed features of this
/// many items.
fn memory_for(config: &TrainConfig, rows: u64) -> u64 {
    bytes_for(config, rows, |bytes| (bytes, None))
}

/// The same for a limit on a large GPU.
fn limit_for(config: &TrainConfig, rows: u64) -> u64 {
    bytes_for(config, rows, |bytes| (1 << 40, Some(bytes)))
}

/// The least bytes with which this many rows stay, if `room` makes a GPU's free memory and a limit
/// of them.
fn bytes_for(config: &TrainConfig, rows: u64, room: fn(u64) -> (u64, Option<u64>)) -> u64 {
    let dataset = dataset();
    let graph = graph(&dataset, config);
    // For any memory, a plan says how many rows it would keep.
    let kept = |bytes: u64| {
        let (free, limit) = room(bytes);
        let storage = FeatureStorage::Auto;
        let lines = MemoryPlan::on_gpu(&dataset, &graph, config, storage, free, limit).device;
        let line = lines.iter().find(|line| line.what.starts_with("streamed features: "));
        line.map_or(u64::MAX, |line| {
            line.what.split(' ').nth(2).and_then(|word| word.parse().ok()).expect("a number")
        })
    };
    if rows == 0 {
        // With one byte more, a row would fit.
        return bytes_for(config, 1, room) - 1;
    }
    let (mut low, mut high) = (0, 1 << 40);
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        if kept(middle) < rows { low = middle } else { high = middle }
    }
    high
}

/// On a GPU where others leave no room for features, they are streamed, to the bits of resident
/// ones.
fn a_full_gpu_streams(device: Arc<Device>) {
    let config = TrainConfig { batch_size: 64, ..config() };
    let [resident, streamed] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let said = train(FeatureStorage::Auto, &config, resident.path(), false, u64::MAX).unwrap();
    assert_eq!(said, None, "there is room");
    let (free, _) = device.memory().unwrap();
    let others = usize::try_from(free - memory_for(&config, 0)).unwrap();
    let others = Memory::<u8>::new(&device, others, "what others hold").unwrap();
    device.synchronize().unwrap();
    let said = train(FeatureStorage::Auto, &config, streamed.path(), false, u64::MAX).unwrap();
    drop(others);
    assert_eq!(rows_that_stay(&said.expect("there is no room")), 0);
    assert!(model(resident.path()) == model(streamed.path()), "bits differ");
}

/// One test, because a GPU has one memory, and so has the emulator.
#[test]
fn streamed_features_give_the_bits_of_resident_ones() {
    if emulator::on_gpu() {
        // A real GPU's memory comes in pages larger than these features: it cannot be filled to a
        // row.
        for config in [config(), TrainConfig { batch_size: 300, ..config() }] {
            let [resident, streamed] = [(); 2].map(|()| tempfile::tempdir().unwrap());
            train(FeatureStorage::Resident, &config, resident.path(), false, u64::MAX).unwrap();
            train(FeatureStorage::Stream, &config, streamed.path(), false, u64::MAX).unwrap();
            assert!(model(resident.path()) == model(streamed.path()), "{config:?}: bits differ");
        }
        return;
    }
    let Some(emulator) = emulator::emulator() else { return };
    emulator.set("BM3_EMULATOR_MEMORY", "200000000");
    a_full_gpu_streams(emulator::device().expect("the emulator"));
    for config in [
        config(),
        TrainConfig { order: Order::File, ..config() },
        TrainConfig { feature_type: FeatureTypeChoice::F16, batch_size: 300, ..config() },
        TrainConfig { feature_type: FeatureTypeChoice::Bf16, batch_size: 40, ..config() },
    ] {
        let resident = tempfile::tempdir().unwrap();
        emulator.set("BM3_EMULATOR_MEMORY", "");
        let said = train(FeatureStorage::Auto, &config, resident.path(), false, u64::MAX).unwrap();
        assert_eq!(said, None, "there is room");
        // No row stays, or some do, or as many as streaming takes by itself.
        let mut seen = Vec::new();
        for (storage, rows) in [
            (FeatureStorage::Auto, 0),
            (FeatureStorage::Auto, 40),
            (FeatureStorage::Auto, 70),
            (FeatureStorage::Stream, 70),
        ] {
            emulator.set("BM3_EMULATOR_MEMORY", &memory_for(&config, rows).to_string());
            let streamed = tempfile::tempdir().unwrap();
            let said = train(storage, &config, streamed.path(), false, u64::MAX).unwrap();
            seen.push(rows_that_stay(&said.expect("there is no room for all")));
            assert!(model(resident.path()) == model(streamed.path()), "{rows} rows: bits differ");
            assert_eq!(emulator.used(), 0);
        }
        println!("rows that stayed: {seen:?}");
        assert_eq!(seen[..3], [0, 40, 70]);
        assert!(seen[3] < 40, "a quarter of the room is taken where no amount was asked for");

        // Within a limit too, whose last byte is used: it counts bytes as they are asked for.
        emulator.set("BM3_EMULATOR_MEMORY", "");
        let limit = limit_for(&config, 40);
        assert!(limit < memory_for(&config, 40) - (64 << 20));
        for storage in [FeatureStorage::Auto, FeatureStorage::Stream] {
            let streamed = tempfile::tempdir().unwrap();
            let said =
                train_within(Some(limit), storage, &config, streamed.path(), false, u64::MAX);
            assert_eq!(rows_that_stay(&said.unwrap().expect("the limit leaves no room")), 40);
            assert!(model(resident.path()) == model(streamed.path()), "in a limit: bits differ");
        }

        // Interrupted and resumed, with another choice in between.
        emulator.set("BM3_EMULATOR_MEMORY", &memory_for(&config, 40).to_string());
        let broken = tempfile::tempdir().unwrap();
        train(FeatureStorage::Stream, &config, broken.path(), false, 2).unwrap();
        train(FeatureStorage::Auto, &config, broken.path(), true, 1).unwrap();
        emulator.set("BM3_EMULATOR_MEMORY", "");
        train(FeatureStorage::Resident, &config, broken.path(), true, u64::MAX).unwrap();
        assert!(model(resident.path()) == model(broken.path()), "bits differ after resuming");
    }

    // Features asked to be resident without room for them are not quietly streamed.
    let config = config();
    emulator.set("BM3_EMULATOR_MEMORY", &memory_for(&config, 40).to_string());
    let refused = tempfile::tempdir().unwrap();
    let small = TrainConfig { embedding_size: 4, ..config.clone() };
    emulator.set("BM3_EMULATOR_MEMORY", "60000");
    let error = train(FeatureStorage::Resident, &small, refused.path(), false, u64::MAX);
    let error = error.expect_err("no room");
    assert!(matches!(error, Error::DeviceMemory { .. }), "{error}");
    assert!(error.to_string().contains("--feature-storage"), "{error}");

    // A driver that fails in any call of the stream causes an error, and nothing is left.
    emulator.set("BM3_EMULATOR_MEMORY", "");
    for function in ["cuStreamWaitEvent", "cuEventRecord", "cuMemcpyHtoDAsync_v2", "cuMemHostAlloc"]
    {
        for call in [1, 2, 3, 5, 8, 13, 21] {
            emulator.set("BM3_EMULATOR_FAIL", function);
            emulator.set("BM3_EMULATOR_FAIL_AT", &call.to_string());
            let directory = tempfile::tempdir().unwrap();
            let outcome = train(FeatureStorage::Stream, &config, directory.path(), false, 5);
            emulator.set("BM3_EMULATOR_FAIL", "");
            emulator.recover();
            assert_eq!(emulator.used(), 0, "{function} {call}");
            if let Err(error) = outcome {
                assert!(!error.is_input(), "{function} {call}: {error}");
            }
        }
    }
}
