//! Whole training runs, on the CPU and through the CUDA kernels: against a trace recorded with
//! other software, interrupted, repeated, and on any number of threads.

mod common;
#[macro_use]
mod emulator;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bm3_engine::Trainer;
use bm3_engine::backend::{Backend, Dropout};
use bm3_engine::batch::{Batch, EpochPlan};
use bm3_engine::config::{Order, Propagation, TrainConfig};
use bm3_engine::cpu::Cpu;
use bm3_engine::data::{Dataset, DatasetOptions, IdMaps};
use bm3_engine::records::{EpochRecord, Observer};
use bm3_engine::run::{self, RunDirectory, StopReason, Summary};
use bm3_engine::step::adam_step;
use bm3_engine::train::{FitOptions, fit};
use common::{Problem, groups as dataset};
use proptest::prelude::*;

fn config() -> TrainConfig {
    TrainConfig {
        embedding_size: 16,
        layers: 2,
        dropout: 0.3,
        batch_size: 64,
        epochs: 6,
        learning_rate: 5e-3,
        learning_rate_decay: 0.9,
        ..TrainConfig::default()
    }
}

/// Asks to stop after a number of steps.
struct StopAfter<'a> {
    steps: u64,
    seen: u64,
    stop: &'a AtomicBool,
}

impl Observer for StopAfter<'_> {
    fn step(&mut self, _: u64, _: u64, _: u64) {
        self.seen += 1;
        if self.seen == self.steps {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

fn train<B: Backend>(
    backend: B,
    directory: &Path,
    config: &TrainConfig,
    resume: bool,
    stop_after: u64,
) -> Summary {
    let stop = AtomicBool::new(false);
    let directory = RunDirectory::open(directory, resume).unwrap();
    let options = FitOptions { initial: None, resume, checkpoint_interval: Duration::ZERO };
    let mut observer = StopAfter { steps: stop_after, seen: 0, stop: &stop };
    fit(backend, &dataset(), config, &directory, &options, &mut observer, &stop).unwrap()
}

/// An epoch's record without its wall times, which no two runs share.
fn untimed(directory: &Path) -> Vec<EpochRecord> {
    let mut records = run::read_records(directory, u64::MAX).unwrap();
    for record in &mut records {
        (record.train_seconds, record.evaluate_seconds) = (0.0, 0.0);
    }
    records
}

fn model_bytes(directory: &Path) -> Vec<u8> {
    std::fs::read(directory.join(run::MODEL)).unwrap()
}

/// The numbers of a state: everything after its header, which holds wall times.
fn state_numbers(directory: &Path) -> Vec<u8> {
    let bytes = std::fs::read(directory.join(run::STATE)).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header..].to_vec()
}

fn assert_same_run(left: &Path, right: &Path) {
    assert!(model_bytes(left) == model_bytes(right), "models differ");
    assert!(state_numbers(left) == state_numbers(right), "states differ");
    assert_eq!(untimed(left), untimed(right));
}

#[test]
fn a_run_learns_what_was_planted() {
    let config = TrainConfig { epochs: 60, learning_rate_decay: 1.0, ..config() };
    on_each_backend!(backend => {
        let directory = tempfile::tempdir().unwrap();
        let summary = train(backend(), directory.path(), &config, false, u64::MAX);
        let recall = summary.test.unwrap().recall_at(20).unwrap();
        // 20 of about 32 unmasked items at random would find 0.6 of the wanted items.
        assert!(recall > 0.85, "Recall@20 is {recall}");
    });
}

#[test]
fn a_run_has_the_same_bits_again_and_on_any_number_of_threads() {
    on_each_backend!(backend => {
        let runs = [1, 1, 3, 8].map(|threads| {
            let directory = tempfile::tempdir().unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| train(backend(), directory.path(), &config(), false, u64::MAX));
            directory
        });
        for run in &runs[1..] {
            assert_same_run(runs[0].path(), run.path());
        }
        let directory = tempfile::tempdir().unwrap();
        let config = TrainConfig { seed: 1, ..config() };
        train(backend(), directory.path(), &config, false, u64::MAX);
        assert!(model_bytes(runs[0].path()) != model_bytes(directory.path()), "seeds do not matter");
    });
}

/// Both backends draw the same numbers and differ by roundings only: whatever is trained, an
/// epoch's losses agree to what roundings can grow to in its steps.
#[test]
fn the_backends_agree() {
    let Some(cuda) = emulator::cuda() else { return };
    for config in [
        config(),
        TrainConfig { freeze_features: true, layers: 1, ..config() },
        TrainConfig { propagation: Propagation::Gcn, self_loops: true, ..config() },
    ] {
        let config = TrainConfig { epochs: 2, ..config };
        let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        train(Cpu::<f32>::new(), directories[0].path(), &config, false, u64::MAX);
        train(cuda.clone(), directories[1].path(), &config, false, u64::MAX);
        let [expected, found] = directories.map(|directory| untimed(directory.path()));
        assert_eq!((expected.len(), found.len()), (2, 2));
        for (expected, found) in expected.iter().zip(&found) {
            let epoch = expected.epoch;
            assert_eq!(epoch, found.epoch);
            assert_eq!(expected.loss.len(), found.loss.len(), "epoch {epoch}");
            for ((term, expected), (same, found)) in expected.loss.iter().zip(&found.loss) {
                let off = (expected - found).abs();
                assert_eq!(term, same, "epoch {epoch}");
                assert!(off < 1e-4, "epoch {epoch}: {term} is off by {off:e}");
            }
            let recall =
                |record: &EpochRecord| record.test.as_ref().unwrap().recall_at(20).unwrap();
            assert!((recall(expected) - recall(found)).abs() < 0.01);
        }
    }
}

/// Parts of a step that a GPU runs at the same time are independent. A run has the same bits if all
/// launches are made one after the other (as when they are timed), and if the work of branches is
/// done as late or as early as its dependencies allow, launch by launch and in graphs.
#[test]
fn the_branches_of_a_step_wait_for_what_they_need() {
    let small = TrainConfig { epochs: 2, ..config() };
    for config in [
        TrainConfig { layers: 0, ..small.clone() },
        // More steps than a graph has.
        TrainConfig { layers: 1, freeze_features: true, batch_size: 16, ..small.clone() },
        small.clone(),
        TrainConfig { propagation: Propagation::Gcn, ..small },
    ] {
        let Some(cuda) = emulator::cuda() else { return };
        let in_turn = tempfile::tempdir().unwrap();
        let mut run = || {
            train(cuda.clone(), in_turn.path(), &config, false, u64::MAX);
            Ok(())
        };
        assert!(!cuda.profile(&mut run).unwrap().is_empty());
        for streams in ["late", "early"] {
            let cuda = emulator::cuda().expect("as before");
            let set = |streams: &str| {
                if !emulator::on_gpu() {
                    emulator::emulator().expect("it").set("BM3_EMULATOR_STREAMS", streams);
                }
            };
            // The setting applies to the branches' streams, which are made on first use; the
            // device's own stream is late.
            set(streams);
            let beside = tempfile::tempdir().unwrap();
            train(cuda, beside.path(), &config, false, u64::MAX);
            set("");
            assert_same_run(in_turn.path(), beside.path());
        }
    }
}

#[test]
fn a_run_stopped_anywhere_resumes_to_the_same_bits() {
    on_each_backend!(backend => for config in
        [config(), TrainConfig { freeze_features: true, propagation: Propagation::Gcn, ..config() }]
    {
        let whole = tempfile::tempdir().unwrap();
        let summary = train(backend(), whole.path(), &config, false, u64::MAX);
        assert_eq!(summary.stopped_by, StopReason::Epochs);
        let steps_per_epoch = summary.steps / summary.epochs;
        // Stops in the first epoch, at the end of one, and within a later one; then in small
        // pieces.
        for pieces in [vec![2], vec![steps_per_epoch], vec![2 * steps_per_epoch + 1], vec![3; 5]] {
            let broken = tempfile::tempdir().unwrap();
            let mut resume = false;
            for piece in pieces {
                let summary = train(backend(), broken.path(), &config, resume, piece);
                assert_eq!(summary.stopped_by, StopReason::Interrupted);
                resume = true;
            }
            train(backend(), broken.path(), &config, true, u64::MAX);
            assert_same_run(whole.path(), broken.path());
        }
    });
}

/// Copies the run's files at every checkpoint: what would be left after a kill.
struct Copies<'a> {
    run: &'a Path,
    /// For each copy: finished epochs, steps of the next one, and its folder.
    made: Vec<(u64, u64, tempfile::TempDir)>,
    place: (u64, u64),
}

impl Observer for Copies<'_> {
    fn step(&mut self, epoch: u64, step: u64, _: u64) {
        self.place = (epoch - 1, step);
    }

    fn epoch(&mut self, record: &EpochRecord) {
        self.place = (record.epoch, 0);
    }

    fn checkpoint(&mut self, _: &Path) {
        assert!(!self.run.join(run::SUMMARY).exists(), "a summary of an earlier end");
        let copy = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(self.run).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
        self.made.push((self.place.0, self.place.1, copy));
    }
}

/// Checkpoints are made within epochs, after any step. A killed run continues from the last one to
/// the same bits. Once a finished run continues, nothing shows its earlier end.
#[test]
fn a_run_killed_within_an_epoch_goes_on_from_its_last_checkpoint() {
    on_each_backend!(backend => {
        let config = TrainConfig { epochs: 3, ..config() };
        let whole = tempfile::tempdir().unwrap();
        let summary = train(backend(), whole.path(), &config, false, u64::MAX);
        let steps = summary.steps / summary.epochs;
        let broken = tempfile::tempdir().unwrap();
        train(backend(), broken.path(), &config, false, steps);
        assert!(broken.path().join(run::SUMMARY).exists());

        let mut copies = Copies { run: broken.path(), made: Vec::new(), place: (1, 0) };
        let directory = RunDirectory::open(broken.path(), true).unwrap();
        let interval = Duration::from_nanos(1);
        let options = FitOptions { initial: None, resume: true, checkpoint_interval: interval };
        let stop = AtomicBool::new(false);
        fit(backend(), &dataset(), &config, &directory, &options, &mut copies, &stop).unwrap();
        drop(directory);
        assert_same_run(whole.path(), broken.path());

        let within: Vec<_> = copies.made.iter().filter(|(_, step, _)| *step > 0).collect();
        // A GPU runs several steps before it is asked again.
        let places: Vec<(u64, u64)> = within.iter().map(|copy| (copy.0, copy.1)).collect();
        assert!(within.len() > 1 || steps < 17, "{places:?} of {steps} steps");
        for (epoch, step, copy) in within.into_iter().step_by(3) {
            assert!((1..3).contains(epoch) && *step < steps, "epoch {epoch}, step {step}");
            train(backend(), copy.path(), &config, true, u64::MAX);
            assert_same_run(whole.path(), copy.path());
        }
    });
}

/// An interval may be longer than a clock can tell.
#[test]
fn a_run_may_never_be_saved_before_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let run = RunDirectory::open(directory.path(), false).unwrap();
    let mut copies = Copies { run: directory.path(), made: Vec::new(), place: (0, 0) };
    let options = FitOptions { initial: None, resume: false, checkpoint_interval: Duration::MAX };
    let (backend, stop) = (Cpu::<f32>::new(), AtomicBool::new(false));
    fit(backend, &dataset(), &config(), &run, &options, &mut copies, &stop).unwrap();
    let places: Vec<(u64, u64)> = copies.made.iter().map(|copy| (copy.0, copy.1)).collect();
    assert_eq!(places, [(config().epochs, 0)]);
}

#[test]
fn patience_ends_a_run_and_the_best_epoch_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let config = TrainConfig { epochs: 500, patience: 3, learning_rate: 0.05, ..config() };
    let summary = train(Cpu::<f32>::new(), directory.path(), &config, false, u64::MAX);
    assert_eq!(summary.stopped_by, StopReason::Patience);
    let records = untimed(directory.path());
    let recall = |record: &EpochRecord| record.valid.as_ref().unwrap().recall_at(20).unwrap();
    let best = summary.best_epoch.unwrap();
    assert_eq!(records.len() as u64, summary.epochs);
    // Stopped at the fourth evaluation in a row that did not beat the best.
    assert_eq!(summary.epochs, best + 4);
    let highest = records.iter().map(recall).fold(0.0, f64::max);
    let first = records.iter().find(|record| recall(record) == highest).unwrap();
    assert_eq!(first.epoch, best);
    assert_eq!(summary.test, records[best as usize - 1].test);
}

#[test]
fn a_state_of_something_else_is_refused_with_the_difference_named() {
    let directory = tempfile::tempdir().unwrap();
    train(Cpu::<f32>::new(), directory.path(), &config(), false, 3);
    let stop = AtomicBool::new(false);
    let options = FitOptions { initial: None, resume: true, checkpoint_interval: Duration::ZERO };
    let attempt = |config: &TrainConfig, dataset: &Dataset| {
        let directory = RunDirectory::open(directory.path(), true).unwrap();
        let backend = Cpu::<f32>::new();
        fit(backend, dataset, config, &directory, &options, &mut (), &stop).unwrap_err().to_string()
    };
    let error = attempt(&TrainConfig { dropout: 0.4, ..config() }, &dataset());
    assert!(error.contains("its setting dropout is 0.3; expected 0.4"), "{error}");
    let mut other = dataset();
    other.train.items.swap(0, 1);
    let error = attempt(&config(), &other);
    assert!(error.contains("trained on other interactions"), "{error}");
    other.modalities.pop();
    let error = attempt(&config(), &other);
    assert!(
        error.contains(
            "its list of modalities is image (24 wide), text (10 wide); expected image (24 wide)"
        ),
        "{error}"
    );
}

#[test]
fn a_directory_serves_one_run_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let first = RunDirectory::open(directory.path(), false).unwrap();
    let error = RunDirectory::open(directory.path(), false).unwrap_err().to_string();
    assert!(error.contains("another process is training"), "{error}");
    drop(first);
    let error = RunDirectory::open(directory.path(), true).unwrap_err().to_string();
    assert!(error.contains("neither state.safetensors nor config.toml here to resume"), "{error}");
    train(Cpu::<f32>::new(), directory.path(), &config(), false, 2);
    let error = RunDirectory::open(directory.path(), false).unwrap_err().to_string();
    assert!(error.contains("--resume"), "{error}");
}

/// A new run never replaces files with the names of a run's files, whoever wrote them.
#[test]
fn a_directory_with_files_of_a_runs_names_is_refused() {
    for name in [run::CONFIG, run::MODEL, run::METRICS, run::SUMMARY, run::PROFILE] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(name);
        std::fs::write(&file, "mine").unwrap();
        let error = RunDirectory::open(directory.path(), false).unwrap_err().to_string();
        assert!(error.contains(&format!("or its {name}; continue it with --resume")), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    }
    // A model without its state is not continued, either.
    let directory = tempfile::tempdir().unwrap();
    train(Cpu::<f32>::new(), directory.path(), &TrainConfig { epochs: 1, ..config() }, false, 99);
    std::fs::write(directory.path().join(run::CONFIG), "").unwrap();
    std::fs::remove_file(directory.path().join(run::STATE)).unwrap();
    let error = RunDirectory::open(directory.path(), true).unwrap_err().to_string();
    assert!(error.contains("has a model.safetensors but no state.safetensors"), "{error}");
}

/// A refused run removes what it wrote, and nothing else.
#[test]
fn a_refused_run_leaves_what_it_found() {
    let data = tempfile::tempdir().unwrap();
    let ids = |users: &[&str]| IdMaps {
        users: users.iter().map(|&user| user.to_owned()).collect(),
        items: vec!["thing".to_owned()],
    };
    ids(&["me", "you"]).write(data.path()).unwrap();
    std::fs::write(data.path().join(".tmp_notes"), "mine").unwrap();
    let names = |directory: &Path| {
        let names = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let begin = |directory: &Path| {
        let run = RunDirectory::open(directory, false).unwrap();
        std::fs::write(run.file(run::CONFIG), "settings").unwrap();
        run
    };
    // In the data's own folder, whose id files serve as the run's.
    let before = names(data.path());
    let run = begin(data.path());
    assert!(run.keep_ids(Some(data.path())).unwrap().is_none());
    run.discard_unused();
    assert_eq!(names(data.path()), before);
    assert_eq!(IdMaps::read(data.path()).unwrap(), Some(ids(&["me", "you"])));

    // In a directory that did not exist.
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("run");
    let run = begin(&directory);
    assert!(run.keep_ids(Some(data.path())).unwrap().is_none());
    assert_eq!(IdMaps::read(&directory).unwrap(), Some(ids(&["me", "you"])));
    run.discard_unused();
    assert!(!directory.exists());

    // In a directory with other ids.
    std::fs::create_dir(&directory).unwrap();
    ids(&["them"]).write(&directory).unwrap();
    let run = begin(&directory);
    let error = run.keep_ids(Some(data.path())).unwrap_err().to_string();
    assert!(error.contains("has original ids that are not the data's"), "{error}");
    run.discard_unused();
    // Nor are they those of data that have none.
    let run = begin(&directory);
    for data in [None, Some(parent.path())] {
        let error = run.keep_ids(data).unwrap_err().to_string();
        assert!(error.contains("has original ids, and the data has none"), "{error}");
    }
    run.discard_unused();
    assert_eq!(IdMaps::read(&directory).unwrap(), Some(ids(&["them"])));

    // Data with unreadable ids is still accepted.
    std::fs::remove_file(&IdMaps::paths(data.path())[0]).unwrap();
    let run = RunDirectory::open(&parent.path().join("other"), false).unwrap();
    let problem = run.keep_ids(Some(data.path())).unwrap().expect("one file of two");
    assert!(problem.to_string().contains("is missing beside it"), "{problem}");
}

/// Compares late replays of trained feature rows with a sweep over the table at each step.
fn check_lazy<B: Backend>(
    problem: &Problem,
    backend: impl Fn() -> B,
    steps: usize,
) -> Result<(), TestCaseError> {
    let mut lazy = problem.try_model(backend()).unwrap();
    let mut dense = problem.try_model(backend()).unwrap();
    for step in 0..steps {
        let pair = problem.pairs[(problem.batch[0] + step * 7) % problem.pairs.len()];
        let batch = || Batch::new(&[pair.0], &[pair.1]);
        let rate = 1e-3 / (1 + step) as f64;
        lazy.step(batch(), &Dropout::None, rate).unwrap();
        dense.step(batch(), &Dropout::None, rate).unwrap();
        // Keeping the table brings every row up to this step, as a sweep would.
        dense.keep().unwrap();
    }
    prop_assert_eq!(lazy.feature_states().unwrap(), dense.feature_states().unwrap());
    prop_assert_eq!(lazy.dense_state().unwrap(), dense.dense_state().unwrap());
    Ok(())
}

/// Compares epochs one after the other with a table that is brought up to date between them. A
/// device that prepares rows for the next step cannot do so for an epoch's first one.
fn check_epochs<B: Backend>(
    problem: &Problem,
    backend: impl Fn() -> B,
    batch_size: usize,
) -> Result<(), TestCaseError> {
    let pairs = problem.train_pairs();
    let steps = pairs.users.len().div_ceil(batch_size) as u32;
    let train = |is_swept: bool| -> bm3_engine::Result<_> {
        let mut model = problem.try_model(backend())?;
        let backend = model.backend().clone();
        let (users, items) = (problem.users, problem.items);
        let mut batches = backend.batches(&pairs, users, items, batch_size)?;
        for epoch in 0..3 {
            let first_step = epoch * steps + 1;
            let (order, seed) = (Order::Random, problem.seed);
            backend.arrange(
                &mut batches,
                EpochPlan { order, seed, epoch: epoch.into(), first_step },
            )?;
            let constants = (0..steps).map(|step| adam_step((first_step + step).into(), 1e-3));
            model.plan(&constants.collect::<Vec<_>>())?;
            model.train(&mut batches, 0..steps.into(), &Dropout::None, &mut || true)?;
            if is_swept {
                model.keep()?;
            }
        }
        let features = model.feature_states()?.into_iter().map(|state| state.map(Cow::into_owned));
        Ok((features.collect::<Vec<_>>(), model.dense_state()?))
    };
    prop_assert_eq!(train(false).unwrap(), train(true).unwrap());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() })]
    /// Trained feature rows replayed late have the bits of a sweep over the table at each step.
    #[test]
    fn lazy_adam_is_dense_adam(problem in Problem::random(), steps in 2usize..12) {
        on_each_backend!(backend => check_lazy(&problem, backend, steps)?);
    }

    /// The same for rows that epochs touch in one go.
    #[test]
    fn lazy_adam_is_dense_adam_from_epoch_to_epoch(problem in Problem::random(), size in 1usize..5) {
        on_each_backend!(backend => check_epochs(&problem, backend, size)?);
    }
}

fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(path);
    path.exists().then_some(path)
}

/// From equal initial values, in file order and without dropout, every step's loss follows a trace
/// recorded in float64 with other software, and so do the metrics after three epochs. The emulator
/// takes a minute for that, so it follows the first epoch only, unless `BM3_TEST_LONG=1`.
#[test]
fn the_loss_follows_a_recorded_trace() {
    let (Some(data), Some(trace)) = (shared("data/lfm2k"), shared("golden/lfm2k_trace")) else {
        eprintln!("skipped: ../shared is not here");
        return;
    };
    let dataset = Dataset::open(&data, &DatasetOptions::default()).unwrap();
    follow(Cpu::<f32>::new, &dataset, &trace, true);
    let long = emulator::on_gpu() || std::env::var_os("BM3_TEST_LONG").is_some_and(|on| on == "1");
    if let Some(cuda) = emulator::cuda() {
        follow(|| cuda.clone(), &dataset, &trace, long);
    }
}

fn follow<B: Backend<Real = f32>>(
    backend: impl Fn() -> B,
    dataset: &Dataset,
    trace: &Path,
    to_the_end: bool,
) {
    let text = std::fs::read_to_string(trace.join("trace.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
    let config = TrainConfig {
        dropout: 0.0,
        order: Order::File,
        freeze_features: true,
        epochs: 3,
        ..TrainConfig::default()
    };
    let steps = expected["steps"].as_array().unwrap();

    // Every step's terms, through the functions that the training loop uses.
    let directory = tempfile::tempdir().unwrap();
    let file = bm3_engine::checkpoint::TensorFile::open(&trace.join("init.safetensors")).unwrap();
    let layout = bm3_engine::train::layout(dataset, &config);
    let mut parameters = vec![0.0f32; layout.len()];
    for tensor in &layout.tensors {
        let values: Vec<f32> = file.reals(&tensor.name, &tensor.shape).unwrap();
        parameters[tensor.range.clone()].copy_from_slice(&values);
    }
    let zeros = vec![0.0; parameters.len()];
    let dense = bm3_engine::step::DenseState { parameters, first: zeros.clone(), second: zeros };
    let features = dataset
        .modalities
        .iter()
        .map(|modality| bm3_engine::step::RawFeatures::Frozen(modality.features.clone()))
        .collect();
    let graph = bm3_engine::train::graph(dataset, &config);
    let mut model =
        bm3_engine::step::DeviceModel::new(backend(), &config, layout, graph, &dense, features)
            .unwrap();
    let names: Vec<String> =
        dataset.modalities.iter().map(|modality| modality.name.clone()).collect();
    let names = bm3_engine::step::loss_names(&names);
    let order: Vec<u32> = (0..dataset.train.users.len() as u32).collect();
    let batches = (0..3).flat_map(|_| order.chunks(config.batch_size));
    let mut largest = 0.0f64;
    let mut count = 0;
    let count_wanted = if to_the_end { steps.len() } else { steps.len() / 3 };
    for (positions, expected) in batches.zip(steps).take(count_wanted) {
        model.step(Batch::of_pairs(&dataset.train, positions), &Dropout::None, 1e-3).unwrap();
        let losses = model.losses().unwrap();
        model.set_losses(&vec![0.0; losses.len()]).unwrap();
        for (name, loss) in names.iter().zip(&losses) {
            largest = largest.max((loss - expected[name].as_f64().unwrap()).abs());
        }
        let total = bm3_engine::step::total_loss(&config, &losses);
        largest = largest.max((total - expected["total"].as_f64().unwrap()).abs());
        count += 1;
    }
    assert_eq!(count, count_wanted);
    println!("{count} steps: the largest deviation of a loss term is {largest:.1e}");
    assert!(largest < 1e-4, "a loss term is off by {largest:e}");

    if !to_the_end {
        return;
    }
    // The training loop itself, starting from the file.
    let directory = RunDirectory::open(directory.path(), false).unwrap();
    let initial = trace.join("init.safetensors");
    let options = FitOptions {
        initial: Some(&initial),
        resume: false,
        checkpoint_interval: Duration::from_secs(60),
    };
    let stop = AtomicBool::new(false);
    fit(backend(), dataset, &config, &directory, &options, &mut (), &stop).unwrap();
    let last = run::read_records(directory.path(), 3).unwrap().pop().unwrap();
    for (name, metrics) in [("valid", last.valid.unwrap()), ("test", last.test.unwrap())] {
        let found = serde_json::to_value(metrics).unwrap();
        for (metric, value) in expected[name].as_object().unwrap() {
            let deviation = (found[metric].as_f64().unwrap() - value.as_f64().unwrap()).abs();
            assert!(deviation < 2e-4, "{name} {metric} is off by {deviation:e}");
        }
    }
}

/// A data set changed after training is trained like one that was so from the start.
#[test]
fn a_changed_data_set_is_trained_as_it_is() {
    let config = TrainConfig { epochs: 2, ..config() };
    let fit = |dataset: &Dataset| Trainer::new(config.clone()).fit(dataset);
    let change = |dataset: &mut Dataset| {
        for user in 0..20 {
            dataset.train.users.push(user);
            dataset.train.items.push(39 - user);
        }
    };
    let first = dataset();
    fit(&first).unwrap();
    let (mut changed, mut fresh) = (first.clone(), dataset());
    change(&mut changed);
    change(&mut fresh);
    let models = [&changed, &fresh].map(|dataset| fit(dataset).unwrap().model.unwrap());
    assert_eq!(models[0].graph(), models[1].graph());
    let directory = tempfile::tempdir().unwrap();
    let [left, right] = models.map(|model| {
        let path = directory.path().join("model.safetensors");
        model.save(&path).unwrap();
        // Compares the tensors; the header holds two epochs' metrics, which do not matter here.
        let file = std::fs::read(&path).unwrap();
        let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        file[8 + header..].to_vec()
    });
    assert!(left == right);

    changed.train.items[0] = 40;
    let error = fit(&changed).unwrap_err();
    assert!(error.is_input());
    assert!(error.to_string().starts_with("training item 40 found, items from 0 to 39"), "{error}");
}
