//! The memory plan of a run on a GPU against what the run allocates, on the emulated driver: its
//! memory can be made as small as one likes and is counted to the byte.
//!
//! A plan is honest if the run succeeds with exactly that many bytes, and tight if it fails with a
//! little less.

mod emulator;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bm3_engine::backend::Backend;
use bm3_engine::config::{FeatureStorage, FeatureTypeChoice, Order, Propagation, TrainConfig};
use bm3_engine::cuda::{Cuda, Device};
use bm3_engine::data::{Dataset, DatasetOptions, Pairs};
use bm3_engine::memory::MemoryPlan;
use bm3_engine::records::{EpochRecord, Observer};
use bm3_engine::run::{MODEL, RunDirectory};
use bm3_engine::synth::{self, Shape, SynthOptions};
use bm3_engine::train::{FitOptions, fit, graph, layout};
use bm3_engine::{Error, Result};
use emulator::Emulator;

/// With this fraction less than planned, the run must fail. The fraction covers the largest
/// possible batch, and the growth of the memory for intermediate numbers, which may stop short of
/// the plan.
const SLACK: f64 = 0.05;

/// Watches a run's use of the device's memory.
struct Watch {
    emulator: &'static Emulator,
    /// The most bytes in use after a step or an epoch.
    most: u64,
    /// Bytes copied to the host by the end of each epoch, with its evaluation.
    read: Vec<u64>,
    /// From an epoch's first step to its end, others leave only this much beside what is in use.
    left: Option<u64>,
    /// Bytes of the device's memory.
    memory: u64,
    /// Whether the second epoch is timed by operation.
    profiles: bool,
}

impl Observer for Watch {
    fn wants_profile(&self, epoch: u64) -> bool {
        self.profiles && epoch == 2
    }

    fn step(&mut self, _: u64, step_in_epoch: u64, _: u64) {
        let used = self.emulator.used();
        self.most = self.most.max(used);
        if let (Some(left), 1) = (self.left, step_in_epoch) {
            self.emulator.set("BM3_EMULATOR_MEMORY", &(used + left).to_string());
        }
    }

    fn epoch(&mut self, _: &EpochRecord) {
        self.most = self.most.max(self.emulator.used());
        self.read.push(self.emulator.read());
        self.emulator.set("BM3_EMULATOR_MEMORY", &self.memory.to_string());
    }
}

/// What a run used, and its model.
struct Taken {
    /// The most bytes in use after a step or an epoch.
    most: u64,
    /// The most bytes copied to the host in an epoch after the first.
    read: u64,
    model: Vec<u8>,
}

/// The memory available to a run.
#[derive(Debug, Clone, Copy)]
enum Room {
    /// A GPU with this many bytes.
    Memory(u64),
    /// A limit of this many bytes on a larger GPU.
    Limit(u64),
}

/// What happens in a run.
#[derive(Debug, Clone, Copy, Default)]
struct Course {
    /// The bytes that others leave meanwhile, see [`Watch::left`].
    left: Option<u64>,
    /// Whether an epoch is timed by operation.
    profiles: bool,
    /// Whether the run ends after its first epoch, and another one goes on with it.
    resumes: bool,
}

/// Trains on a GPU of the given size, or on a large one with a limit.
fn train(
    emulator: &'static Emulator,
    dataset: &Dataset,
    config: &TrainConfig,
    room: Room,
    Course { left, profiles, resumes }: Course,
) -> Result<Taken> {
    let (memory, limit) = match room {
        Room::Memory(memory) => (memory, None),
        Room::Limit(limit) => (1 << 40, Some(limit)),
    };
    emulator.set("BM3_EMULATOR_MEMORY", &memory.to_string());
    let directory = tempfile::tempdir().unwrap();
    let directory = RunDirectory::open(directory.path(), false).unwrap();
    let mut watch = Watch { emulator, most: 0, read: Vec::new(), left, memory, profiles };
    let stop = AtomicBool::new(false);
    let first = TrainConfig { epochs: 1, ..config.clone() };
    let runs = if resumes { vec![(&first, false), (config, true)] } else { vec![(config, false)] };
    for (config, resume) in runs {
        let checkpoint_interval = Duration::from_secs(3600);
        let options = FitOptions { initial: None, resume, checkpoint_interval };
        let device = Device::open(0, Some(&emulator::kernels())).expect("the emulator");
        let cuda = Cuda::new(device).keeping_features(FeatureStorage::Resident);
        let cuda = cuda.limiting_memory(limit);
        let outcome = fit(cuda, dataset, config, &directory, &options, &mut watch, &stop);
        assert_eq!(emulator.used(), 0, "a run leaves nothing behind");
        outcome?;
    }
    let read = watch.read.windows(2).map(|two| two[1] - two[0]).max();
    let model = std::fs::read(directory.file(MODEL)).expect("a run's model");
    Ok(Taken { most: watch.most, read: read.expect("two epochs"), model })
}

/// A small data set with everything that a large one has.
fn tiny(folder: &Path) -> PathBuf {
    let data = folder.join("tiny");
    let feature_type = bm3_engine::data::FeatureType::F16;
    let options = SynthOptions { feature_type, ..SynthOptions::new(Shape::Tiny, 1) };
    synth::generate(&options, &data, &mut |_, _, _| ()).unwrap();
    data
}

#[test]
fn a_plan_is_what_a_run_takes() {
    let Some(emulator) = emulator::changeable() else { return };
    let _alone = emulator::alone();
    let folder = tempfile::tempdir().unwrap();
    let data = tiny(folder.path());
    let dataset = Dataset::open(&data, &DatasetOptions::default()).unwrap();
    let none = DatasetOptions { modalities: Some(vec![]), ..DatasetOptions::default() };
    let bare = Dataset::open(&data, &none).unwrap();
    let wide = folder.path().join("wide");
    let mut options = SynthOptions::new(Shape::Tiny, 1);
    options.sizes.image = 1024;
    synth::generate(&options, &wide, &mut |_, _, _| ()).unwrap();
    let wide = Dataset::open(&wide, &DatasetOptions::default()).unwrap();

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
        // A projection's slices take more than other intermediate numbers, and many short steps
        // make the constants count.
        ("wide features", &wide, TrainConfig { batch_size: 128, ..frozen.clone() }),
        ("short steps", &bare, TrainConfig { batch_size: 8, embedding_size: 4, ..frozen.clone() }),
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
        let plan = MemoryPlan::on_gpu(dataset, &graph, &config, FeatureStorage::Resident, 0, None);
        let plan = plan.device_total();
        let less = plan - (SLACK * plan as f64) as u64;
        for (enough, too_little, raise) in [
            (Room::Memory(plan), Room::Memory(less), false),
            (Room::Limit(plan), Room::Limit(less), true),
        ] {
            let course = Course::default();
            let profiled = Course { profiles: true, ..course };
            let resumed = Course { resumes: true, ..course };
            // What may be taken is counted in the same way, so one of the two is enough for these.
            let courses = if raise { vec![course, profiled, resumed] } else { vec![course] };
            for course in courses {
                let used = train(emulator, dataset, &config, enough, course)
                    .unwrap_or_else(|error| panic!("{what}: {enough:?}, {course:?}: {error}"))
                    .most;
                assert!(used <= plan, "{what}: {used} bytes of {plan} planned, {course:?}");
                println!("{what}: planned {plan} bytes, {used} in use, {less} do not suffice");
            }
            let error = train(emulator, dataset, &config, too_little, course).err().expect(what);
            assert!(matches!(error, Error::DeviceMemory { .. }), "{what}: {error}");
            assert_eq!(error.to_string().contains("raise --device-memory"), raise, "{error}");
        }
    }
}

/// If the device has room, the best epoch's parameters stay there until they are saved. With a byte
/// less, those of trained features are read each time that an epoch is the best so far; with still
/// less, the dense ones too. All give the same model.
#[test]
fn the_best_epoch_stays_on_the_device_where_there_is_room() {
    let Some(emulator) = emulator::changeable() else { return };
    let _alone = emulator::alone();
    let folder = tempfile::tempdir().unwrap();
    // Without a validation split each epoch is the best one so far.
    let dataset = Dataset::open(&tiny(folder.path()), &DatasetOptions::default()).unwrap();
    let (train_pairs, none) = (dataset.train.clone(), Pairs::default());
    let modalities = dataset.modalities.clone();
    let dataset = Dataset::from_parts("tiny", train_pairs, &none, &none, modalities).unwrap();
    let config = TrainConfig { embedding_size: 16, epochs: 3, ..TrainConfig::default() };
    for room in [Room::Memory, Room::Limit] {
        keeps_the_best_where_there_is_room(emulator, &dataset, &config, room);
    }
}

fn keeps_the_best_where_there_is_room(
    emulator: &'static Emulator,
    dataset: &Dataset,
    config: &TrainConfig,
    room: fn(u64) -> Room,
) {
    let graph = graph(dataset, config);
    let planned = |bytes| {
        let (free, limit) = match room(bytes) {
            Room::Memory(free) => (free, None),
            Room::Limit(limit) => (1 << 40, Some(limit)),
        };
        let storage = FeatureStorage::Resident;
        MemoryPlan::on_gpu(dataset, &graph, config, storage, free, limit).device_total()
    };
    let columns: usize = dataset.modalities.iter().map(|m| m.features.columns()).sum();
    let features = (4 * dataset.items * columns) as u64;
    let dense = 4 * layout(dataset, config).len() as u64;
    let (least, most) = (planned(0), planned(1 << 40));
    assert_eq!(most, least + features + dense);

    // The least memory for which so much is planned.
    let enough_for = |bytes: u64| {
        let (mut too_little, mut enough) = (0, 1 << 40);
        while enough - too_little > 1 {
            let middle = u64::midpoint(too_little, enough);
            *if planned(middle) >= bytes { &mut enough } else { &mut too_little } = middle;
        }
        enough
    };
    let (for_all, for_dense) = (enough_for(most), enough_for(least + dense));
    // Within a limit, nothing is left over.
    if let Room::Limit(limit) = room(for_all) {
        assert_eq!((limit, for_dense), (most, least + dense));
    }
    let train = |bytes, left| {
        let course = Course { left, ..Course::default() };
        train(emulator, dataset, config, room(bytes), course).unwrap()
    };
    let kept = train(for_all, None);
    let [dense_kept, also_dense_kept] = [for_all - 1, for_dense].map(|memory| train(memory, None));
    let read = train(for_dense - 1, None);
    assert!(kept.most <= most, "{} bytes of {most} planned", kept.most);
    assert_eq!(kept.most - dense_kept.most, features, "a copy of the features, and no more");
    assert_eq!(dense_kept.most - read.most, dense, "a copy of the dense parameters, and no more");
    assert_eq!(dense_kept.read - kept.read, features, "which is not read each time");
    assert_eq!(read.read - dense_kept.read, dense, "which is not read each time");
    assert_eq!(also_dense_kept.read, dense_kept.read);
    assert!(kept.read < features / 4, "{} bytes read in an epoch", kept.read);

    // Others take the planned memory before it is needed.
    let late = train(for_all, Some(1000));
    assert_eq!(late.read, read.read, "read as where there was no room from the beginning");
    for other in [dense_kept, also_dense_kept, read, late] {
        assert!(other.model == kept.model, "the same model");
    }
}

/// The driver keeps freed memory for this process: a second run finds as much memory as the first.
#[test]
fn freed_memory_is_free() {
    if emulator::on_gpu() {
        println!("skipped: others may use a GPU's memory meanwhile");
        return;
    }
    let _alone = emulator::alone();
    let Some(cuda) = emulator::cuda() else { return };
    let (before, total) = cuda.device().memory().unwrap();
    let buffer = cuda.zeros(10_000_000).unwrap();
    assert_eq!(cuda.device().memory().unwrap(), (before - 40_000_000, total));
    drop(buffer);
    cuda.synchronize().unwrap();
    assert_eq!(cuda.device().memory().unwrap(), (before, total));
}
