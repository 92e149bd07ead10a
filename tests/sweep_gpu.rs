//! Sweeps on a GPU: runs side by side, each on a stream of its own, give the bits of runs alone;
//! what they share is on the GPU once; and if memory holds fewer runs, fewer run at once. On the
//! emulated driver (`tests/emulator`), or with `BM3_TEST_GPU=1` on GPU 0.

mod emulator;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use assert_cmd::cargo::cargo_bin_cmd;
use bm3_engine::backend::{Backend, BatchRooms, view, view_mut};
use bm3_engine::batch::Batch;
use bm3_engine::config::{
    Axis, FeatureStorage, RunConfig, RunSettings, TrainConfig, TrainSettings,
};
use bm3_engine::cpu::Cpu;
use bm3_engine::cuda::{Cuda, Kernels};
use bm3_engine::data::{Dataset, FeatureMatrix, Modality, Pairs};
use bm3_engine::philox::{Purpose, Stream};
use bm3_engine::run::{MODEL, RunDirectory, STATE};
use bm3_engine::sweep::{
    Event, Lanes, Outcome, Plan, PlannedRun, Results, Room, Sweep, SweepDirectory, Watcher, on_gpu,
};
use bm3_engine::train::{FitOptions, fit};
use bm3_engine::{Error, Result};
use predicates::str::contains;

/// Users who like a few of many items, whose features take most of the memory.
fn dataset() -> Arc<Dataset> {
    let (users, items) = (50u32, 600u32);
    let stream = Stream::new(8, Purpose::Initial, 0, 0);
    let [mut train, mut valid, mut test] = [(); 3].map(|()| Pairs::default());
    for user in 0..users {
        for round in 0..9 {
            let draw = stream.uniform(u64::from(user * 16 + round));
            let split = match round {
                7 => &mut valid,
                8 => &mut test,
                _ => &mut train,
            };
            split.users.push(user);
            split.items.push((draw * draw * f64::from(items)) as u32);
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
    let modalities = vec![modality("image", 300), modality("text", 12)];
    Dataset::from_parts("popular", train, &valid, &test, modalities).unwrap().into()
}

fn plan(grid: &[&str], seeds: &[u64], train: &TrainSettings) -> Plan {
    let run = RunSettings { data: Some("/d".into()), ..RunSettings::default() };
    let small = TrainSettings {
        embedding_size: Some(16),
        batch_size: Some(100),
        epochs: Some(2),
        ..TrainSettings::default()
    };
    Plan {
        grid: grid.iter().map(|text| Axis::parse(text).unwrap()).collect(),
        seeds: seeds.to_vec(),
        base: RunConfig::new(&train.clone().or(small), &run).unwrap(),
    }
}

fn frozen() -> TrainSettings {
    TrainSettings { freeze_features: Some(true), ..TrainSettings::default() }
}

/// Runs a sweep in `folder`.
fn sweep<B: Backend + Send>(
    plan: &Plan,
    dataset: &Arc<Dataset>,
    folder: &Path,
    lanes: Lanes,
    backend: &(dyn Fn() -> Result<B> + Sync),
    watcher: &dyn Watcher,
) -> Results {
    let directory = SweepDirectory::create(folder, plan, dataset).unwrap();
    let runs = plan.runs().unwrap();
    let dataset = |_: &PlannedRun| dataset.clone();
    let sweep = Sweep { plan, runs: &runs, directory: &directory, dataset: &dataset };
    let outcomes = sweep.outcomes().unwrap();
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Waiting));
    let stop = AtomicBool::new(false);
    sweep.train(outcomes, lanes, backend, watcher, &stop).unwrap()
}

fn train_alone<B: Backend>(backend: B, dataset: &Dataset, config: &TrainConfig, folder: &Path) {
    let directory = RunDirectory::open(folder, false).unwrap();
    let options =
        FitOptions { initial: None, resume: false, checkpoint_interval: Duration::from_secs(3600) };
    let stop = AtomicBool::new(false);
    fit(backend, dataset, config, &directory, &options, &mut (), &stop).unwrap();
}

/// Everything in a file of tensors but its header, which holds wall times.
fn numbers(run: &Path, name: &str) -> Vec<u8> {
    let bytes = std::fs::read(run.join(name)).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header..].to_vec()
}

fn room(
    cuda: Cuda,
    plan: &Plan,
    dataset: &Arc<Dataset>,
    storage: FeatureStorage,
    jobs: Option<usize>,
) -> (Room, Cuda) {
    let runs = plan.runs().unwrap();
    let runs: Vec<&PlannedRun> = runs.iter().collect();
    on_gpu(cuda, storage, &runs, &|_| dataset.clone(), jobs).unwrap()
}

/// Sweeps on a device and compares each run with the same run alone.
fn assert_bits(plan: &Plan, storage: FeatureStorage, jobs: usize) {
    let Some(cuda) = emulator::cuda() else { return };
    let dataset = dataset();
    let folder = tempfile::tempdir().unwrap();
    let (room, shared) = room(cuda, plan, &dataset, storage, Some(jobs));
    assert_eq!(room.lanes.jobs, jobs);
    let together = folder.path().join("together");
    let backend = || shared.sibling();
    let results = sweep(plan, &dataset, &together, room.lanes, &backend, &());
    assert_eq!(results.count("finished"), plan.runs().unwrap().len(), "{results:?}");
    for run in plan.runs().unwrap() {
        let alone = folder.path().join(&run.name);
        let cuda = emulator::cuda().unwrap().keeping_features(FeatureStorage::Resident);
        train_alone(cuda, &dataset, &run.config.train, &alone);
        for name in [MODEL, STATE] {
            let same = numbers(&alone, name) == numbers(&together.join(&run.name), name);
            assert!(same, "{} of {}", name, run.name);
        }
    }
}

#[test]
fn each_run_on_its_stream_is_that_run_alone() {
    let _alone = emulator::alone();
    let plan = plan(
        &["layers=1,2", "freeze-features=true,false", "self-loops=false,true"],
        &[3],
        &TrainSettings::default(),
    );
    assert_bits(&plan, FeatureStorage::Auto, 4);
}

#[test]
fn each_stored_type_is_shared_by_itself() {
    let _alone = emulator::alone();
    assert_bits(&plan(&["feature-type=f32,bf16"], &[3, 5], &frozen()), FeatureStorage::Auto, 3);
}

#[test]
fn runs_side_by_side_stream_their_features_each_for_itself() {
    let _alone = emulator::alone();
    assert_bits(&plan(&["dropout=0.3,0.5"], &[3], &frozen()), FeatureStorage::Stream, 2);
}

/// The most bytes in use after any step.
struct MostUsed(AtomicU64);

impl Watcher for MostUsed {
    fn event(&self, run: &PlannedRun, event: Event<'_>) {
        match event {
            Event::Step { .. } => {
                let used = emulator::emulator().expect("it is there").used();
                self.0.fetch_max(used, Ordering::Relaxed);
            }
            Event::Failed(error) | Event::Postponed(error) => panic!("{}: {error}", run.name),
            _ => {}
        }
    }
}

/// If the best epochs' features fit beside all runs that have room without them, they are kept on
/// the GPU. Otherwise none are, so that as many runs go on at once.
#[test]
fn runs_keep_their_best_features_where_that_leaves_no_run_out() {
    let _alone = emulator::alone();
    let Some(emulator) = emulator::changeable() else { return };
    let cuda = emulator::cuda().expect("the emulator's");
    let dataset = dataset();
    let plan = plan(&["dropout=0.3,0.5"], &[3, 5], &TrainSettings::default());
    let features = 4 * 600 * (300 + 12);
    let roomy = room(cuda, &plan, &dataset, FeatureStorage::Auto, None).0;
    let least = roomy.each - features;
    for each in [roomy.each, least] {
        let enough = (64 << 20) + roomy.shared + 4 * (each + each / 16);
        for memory in [enough, enough + features] {
            emulator.set("BM3_EMULATOR_MEMORY", &memory.to_string());
            let cuda = emulator::cuda().unwrap();
            let (room, shared) = room(cuda, &plan, &dataset, FeatureStorage::Auto, None);
            assert_eq!((room.lanes.jobs, room.each, room.wanted), (4, each, None));
            let folder = tempfile::tempdir().unwrap();
            let watch = MostUsed(AtomicU64::new(0));
            let backend = || shared.sibling();
            let results = sweep(&plan, &dataset, folder.path(), room.lanes, &backend, &watch);
            assert_eq!(results.count("finished"), 4);
            assert!(watch.0.into_inner() <= roomy.shared + 4 * each);
        }
    }
}

#[test]
fn what_is_shared_lies_there_once_and_memory_decides_how_many_run() {
    let _alone = emulator::alone();
    let Some(emulator) = emulator::changeable() else { return };
    let cuda = emulator::cuda().expect("the emulator's");
    let dataset = dataset();
    let features = 4 * 600 * (300 + 12);

    // Two runs share one copy of features and graphs.
    let shared = cuda.sharing();
    let before = emulator.used();
    let siblings = [shared.sibling().unwrap(), shared.sibling().unwrap()];
    let held: Vec<_> = siblings
        .iter()
        .map(|sibling| {
            let features = dataset.modalities.iter().map(|modality| {
                sibling.frozen_features(modality.features.clone(), dataset.items).unwrap()
            });
            (features.collect::<Vec<_>>(), sibling.upload_graph(dataset.graph(false)).unwrap())
        })
        .collect();
    let graph = emulator.used() - before - features;
    assert!((1..features / 10).contains(&graph), "{graph} bytes beside the features");
    drop((held, siblings, shared));
    assert_eq!(emulator.used(), before);

    // As many at once as are wanted, then as many as memory allows.
    let plan = plan(&["dropout=0.3,0.5"], &[3, 5], &frozen());
    let count = |memory: u64, storage| {
        emulator.set("BM3_EMULATOR_MEMORY", &memory.to_string());
        room(emulator::cuda().unwrap(), &plan, &dataset, storage, None).0
    };
    let auto = FeatureStorage::Auto;
    let all = count(1 << 40, auto);
    assert_eq!((all.lanes, all.wanted), (Lanes { jobs: 4, threads: None }, None));
    assert_eq!(all.shared, features + graph);
    let margin = 64 << 20;
    let each = all.each + all.each / 16;
    let two = count(margin + all.shared + 2 * each, auto);
    assert_eq!((two.lanes.jobs, two.wanted), (2, Some(4)));
    assert_eq!(count(margin + all.shared + 2 * each - 1, auto).lanes.jobs, 1);
    let streamed = count(margin + all.shared + 2 * each, FeatureStorage::Stream);
    assert_eq!(streamed.shared, graph);
    assert!(streamed.each > all.each);

    // The counted memory is enough, to the byte.
    for jobs in [2, 4] {
        let memory = all.shared + jobs as u64 * all.each;
        emulator.set("BM3_EMULATOR_MEMORY", &memory.to_string());
        let shared = emulator::cuda().unwrap().sharing();
        let shared = shared.keeping_features(FeatureStorage::Resident);
        let watch = MostUsed(AtomicU64::new(0));
        let folder = tempfile::tempdir().unwrap();
        let lanes = Lanes { jobs, threads: None };
        let backend = || shared.sibling();
        let results = sweep(&plan, &dataset, folder.path(), lanes, &backend, &watch);
        assert_eq!(results.count("finished"), 4);
        let most = watch.0.into_inner();
        println!("{jobs} at once: {most} bytes in use of {memory} counted");
        drop(shared);
        assert_eq!(emulator.used(), before, "a sweep leaves nothing behind");
    }
}

/// Streams do not wait for each other: shared data must not be freed while a run's unfinished work
/// still reads it.
#[test]
fn what_is_shared_stays_until_the_work_with_it_is_done() {
    let _alone = emulator::alone();
    let Some(cuda) = emulator::cuda() else { return };
    let (dataset, d, items) = (dataset(), 16, [0u32, 5, 599]);
    let matrix = &dataset.modalities[0].features;
    let columns = matrix.columns();
    let stream = Stream::new(4, Purpose::Initial, 0, 0);
    let weight: Vec<f32> = (0..d * columns).map(|at| stream.normal(at as u64) as f32).collect();
    // The projection's output, which its reader has to wait for.
    let projected = |cuda: &Cuda| {
        let features = cuda.frozen_features(matrix.clone(), dataset.items).unwrap();
        let batch = cuda.upload_batch(Batch::new(&[0; 3], &items), 1).unwrap();
        let (weight, bias) = (cuda.upload(&weight).unwrap(), cuda.zeros(d).unwrap());
        let elements = batch.rooms().items * d;
        let mut z = cuda.zeros(elements).unwrap();
        let (w, b) = (view(&weight, 0..d * columns), view(&bias, 0..d));
        cuda.project(&batch, &features, w, b, view_mut(&mut z, 0..elements)).unwrap();
        z
    };
    let expected = projected(&cuda).read(0..items.len() * d).unwrap();
    let shared = cuda.sharing();
    let sibling = shared.sibling().unwrap();
    let z = projected(&sibling);
    drop((sibling, shared));
    let found = z.read(0..items.len() * d).unwrap();
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    assert_eq!(bits(found), bits(expected));
}

/// Records what happens to runs, and wakes those who wait for it.
#[derive(Default)]
struct Postponed {
    seen: Mutex<Vec<String>>,
    changed: Condvar,
}

impl Watcher for Postponed {
    fn event(&self, run: &PlannedRun, event: Event<'_>) {
        let what = match event {
            Event::Start(_) => "start",
            Event::End(_) => "end",
            Event::Postponed(_) => "postponed",
            Event::Failed(_) => "failed",
            _ => return,
        };
        self.seen.lock().unwrap().push(format!("{what} {}", run.name));
        self.changed.notify_all();
    }
}

/// A run that finds no memory beside another one starts again when that one has ended. A run that
/// finds none alone fails.
#[test]
fn a_run_that_finds_no_memory_waits_for_the_others() {
    let (dataset, watch) = (dataset(), Postponed::default());
    let plan = plan(&[], &[3, 4], &frozen());
    let calls = AtomicUsize::new(0);
    let no_room = || {
        let (device, what) = ("GPU 0".to_owned(), "rows".to_owned());
        Err(Error::DeviceMemory {
            device,
            what,
            needed: Some(2),
            free: 1,
            total: 9,
            advice: String::new(),
        })
    };
    let backend = || match calls.fetch_add(1, Ordering::SeqCst) {
        0 => {
            // Waits until the other run has been refused.
            let seen = watch.seen.lock().unwrap();
            drop(watch.changed.wait_while(seen, |seen| seen.is_empty()).unwrap());
            Ok(Cpu::<f32>::new())
        }
        1 => no_room(),
        _ => Ok(Cpu::new()),
    };
    let folder = tempfile::tempdir().unwrap();
    let lanes = Lanes { jobs: 2, threads: Some(1) };
    let results = sweep(&plan, &dataset, folder.path(), lanes, &backend, &watch);
    assert_eq!(results.count("finished"), 2);
    let seen = watch.seen.lock().unwrap().clone();
    let first = seen[0].strip_prefix("postponed ").unwrap();
    let other = if first == "seed=3" { "seed=4" } else { "seed=3" };
    let expected = [
        format!("postponed {first}"),
        format!("start {other}"),
        format!("end {other}"),
        format!("start {first}"),
        format!("end {first}"),
    ];
    assert_eq!(seen, expected);

    let watch = Postponed::default();
    let folder = tempfile::tempdir().unwrap();
    let lanes = Lanes { jobs: 1, ..lanes };
    let backend = || -> Result<Cpu<f32>> { no_room() };
    let results = sweep(&plan, &dataset, folder.path(), lanes, &backend, &watch);
    assert_eq!(results.count("failed"), 2);
    assert_eq!(*watch.seen.lock().unwrap(), ["failed seed=3", "failed seed=4"]);
}

#[test]
fn the_program_sweeps_on_a_gpu() {
    let _alone = emulator::alone();
    let driver = match emulator::on_gpu() {
        true => None,
        false => match emulator::library::build() {
            None => return,
            Some(library) => Some(library.parent().expect("a folder").to_owned()),
        },
    };
    let folder = tempfile::tempdir().unwrap();
    let text = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (data, out) = (text("tiny"), text("sweep"));
    let program = |arguments: &[&str]| {
        let mut command = cargo_bin_cmd!("bm3-engine");
        command.args(arguments).env_remove("RUST_LOG");
        if let Some(driver) = &driver {
            command.env("LD_LIBRARY_PATH", driver);
        }
        command
    };
    program(&["synth", "--shape", "tiny", "--out", &data]).assert().success();
    let common = ["--data", &data, "--device", "0", "--epochs", "1", "--embedding-size", "16"];
    let grid = ["--grid", "freeze-features=true,false", "--seeds", "2"];
    let arguments = [&["sweep", "--out", &out][..], &common, &grid].concat();
    if Kernels::embedded().is_none() {
        println!("skipped: the program was built without CUDA kernels");
        program(&arguments).assert().code(2).stderr(contains("no CUDA kernels"));
        return;
    }
    let done = program(&arguments).assert().success();
    done.stderr(contains("tiny: 4 runs; 4 at a time; GPU memory: up to "))
        .stderr(contains("freeze-features=false,seed=1000: training on GPU 0 ("));
    let alone = text("alone");
    let frozen = ["--freeze-features", "--seed", "1000", "--out", &alone];
    program(&[&["train"][..], &common, &frozen].concat()).assert().success();
    let run = folder.path().join("sweep/freeze-features=true,seed=1000");
    for name in [MODEL, STATE] {
        assert!(numbers(&run, name) == numbers(Path::new(&alone), name), "{name}");
    }
    // Runs of other modalities share the tables that they have in common.
    let (out, alone) = (text("modalities"), text("alone text"));
    let ablation = ["--grid", "modalities=text,image+text", "--freeze-features"];
    program(&[&["sweep", "--out", &out][..], &common, &ablation].concat()).assert().success();
    let own = ["--modalities", "text", "--freeze-features", "--out", &alone];
    program(&[&["train"][..], &common, &own].concat()).assert().success();
    let run = folder.path().join("modalities/modalities=text,seed=999");
    for name in [MODEL, STATE] {
        assert!(numbers(&run, name) == numbers(Path::new(&alone), name), "{name}");
    }
    if driver.is_some() {
        // Too little for two runs, because a margin is left free.
        for (name, memory, limit) in
            [("few", "8000000", &[][..]), ("limited", "1000000000", &["--device-memory", "8MB"])]
        {
            let out = text(name);
            let arguments = [&["sweep", "--out", &out][..], &common, &grid, limit].concat();
            program(&arguments).env("BM3_EMULATOR_MEMORY", memory).assert().success().stderr(
                contains("tiny: 4 runs; one at a time (GPU memory does not hold 4, which need "),
            );
        }
    }
}
