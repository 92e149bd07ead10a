//! Runs whose numbers stop being finite, on the CPU and through the CUDA kernels. They end with an
//! error that names the step, the batch, the culprit and the last good checkpoint, and that
//! checkpoint is kept.

mod common;
#[macro_use]
mod emulator;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bm3_engine::Error;
use bm3_engine::backend::Backend;
use bm3_engine::batch::epoch_order;
use bm3_engine::checkpoint::TensorFile;
use bm3_engine::config::TrainConfig;
use bm3_engine::data::{Dataset, FeatureMatrix, Modality, Pairs};
use bm3_engine::error::NonFinite;
use bm3_engine::records::Observer;
use bm3_engine::run::{self, RunDirectory};
use bm3_engine::train::{FitOptions, fit};

const USERS: u32 = 20;
const ITEMS: u32 = 12;
const COLUMNS: u32 = 5;
/// An item of a single user, so that only one batch of an epoch has it.
const RARE: u32 = 11;

/// Pairs of all items but the rare one, then one pair with it; text features with `value` at one
/// place of its row.
fn dataset(value: f32) -> Dataset {
    let mut train = Pairs::default();
    for (user, item) in (0..USERS).flat_map(|user| (0..RARE).map(move |item| (user, item))) {
        if (user * 7 + item * 3) % 4 == 0 || user % RARE == item {
            train.users.push(user);
            train.items.push(item);
        }
    }
    train.users.push(4);
    train.items.push(RARE);
    let number = |index: u32| ((index * 37 + 11) % 64) as f32 / 32.0 - 1.0;
    let modality = |name: &str, value: f32| {
        let mut values: Vec<f32> = (0..ITEMS * COLUMNS).map(number).collect();
        values[(RARE * COLUMNS + 3) as usize] = value;
        let features = FeatureMatrix::from_f32(ITEMS as usize, COLUMNS as usize, values).unwrap();
        Modality { name: name.to_owned(), features: features.into() }
    };
    let modalities = vec![modality("image", 0.5), modality("text", value)];
    Dataset::from_parts("small", train, &Pairs::default(), &Pairs::default(), modalities).unwrap()
}

fn config() -> TrainConfig {
    TrainConfig {
        embedding_size: 8,
        dropout: 0.0,
        batch_size: 7,
        epochs: 30,
        ..TrainConfig::default()
    }
}

/// Asks to stop after a number of steps.
struct StopAfter<'a>(u64, &'a AtomicBool);

impl Observer for StopAfter<'_> {
    fn step(&mut self, _: u64, _: u64, _: u64) {
        self.0 -= 1;
        if self.0 == 0 {
            self.1.store(true, Ordering::Relaxed);
        }
    }
}

/// The error of a run that is asked to stop after `stop_after` steps.
fn failure<B: Backend>(
    backend: B,
    dataset: &Dataset,
    config: &TrainConfig,
    directory: &Path,
    stop_after: u64,
) -> NonFinite {
    let stop = AtomicBool::new(false);
    let directory = RunDirectory::open(directory, directory.join(run::STATE).exists()).unwrap();
    let options = FitOptions {
        initial: None,
        resume: directory.has_state(),
        checkpoint_interval: Duration::ZERO,
    };
    let mut observer = StopAfter(stop_after, &stop);
    match fit(backend, dataset, config, &directory, &options, &mut observer, &stop) {
        Err(Error::NonFinite(failure)) => *failure,
        other => panic!("{other:?}"),
    }
}

/// Features so large that the item's row is not finite once projected. The reported step is that of
/// the item's batch, whatever the device does until the epoch's end, and nothing is saved.
#[test]
fn the_step_is_that_of_the_batch_that_spoils_the_numbers() {
    let dataset = dataset(3e38);
    let place = dataset.train.items.iter().position(|&item| item == RARE).unwrap() as u32;
    for freeze_features in [false, true] {
        for seed in [1, 2, 3] {
            let config = TrainConfig { seed, freeze_features, ..config() };
            let order = epoch_order(config.order, seed, 0, dataset.train.users.len());
            let position = order.iter().position(|&pair| pair == place).unwrap();
            let batch = position / config.batch_size;
            let pair = |&pair: &u32| {
                (dataset.train.users[pair as usize], dataset.train.items[pair as usize])
            };
            let pairs = order.chunks(config.batch_size).nth(batch).unwrap();
            on_each_backend!(backend => {
                let directory = tempfile::tempdir().unwrap();
                let found = failure(backend(), &dataset, &config, directory.path(), u64::MAX);
                let steps = order.len().div_ceil(config.batch_size) as u64;
                assert_eq!((found.step, found.epoch), (batch as u64 + 1, 1));
                assert_eq!((found.batch, found.batches), (batch as u64 + 1, steps));
                let first: Vec<(u32, u32)> = pairs.iter().take(3).map(pair).collect();
                assert_eq!((found.first_pairs.clone(), found.pairs), (first, pairs.len()));
                assert!(found.what.contains("loss term `align.text` is "), "{found}");
                assert_eq!(found.checkpoint, None);
                assert!(found.to_string().ends_with("there is no checkpoint from before"));
                assert!(!directory.path().join(run::STATE).exists());

                // Asked to stop in that epoch, after the failure, the run reports it and saves
                // nothing.
                let directory = tempfile::tempdir().unwrap();
                let asked = failure(backend(), &dataset, &config, directory.path(), found.step);
                assert_eq!(asked, found);
                assert!(!directory.path().join(run::STATE).exists());
            });
        }
    }
}

/// If the loss is finite but a gradient is not, the error names the tensor.
#[test]
fn a_gradient_that_is_not_finite_is_named_by_its_tensor() {
    on_each_backend!(backend => {
        for (config, what) in [
            (TrainConfig { reg_weight: 1e300, ..config() }, "`user_embedding`"),
            // This step overflows the parameters.
            (TrainConfig { learning_rate: 1e300, ..config() }, "`user_embedding`"),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let found = failure(backend(), &dataset(0.5), &config, directory.path(), u64::MAX);
            assert_eq!((found.step, found.batch), (1, 1));
            assert!(found.what.contains("gradient of") && found.what.contains(what), "{found}");
        }
    });
}

/// A run fails in its third epoch, because the square of a number in the second epoch's state is
/// not finite. The error names that state, which stays as it is, and resuming it fails the same
/// way.
#[test]
fn the_checkpoint_before_is_named_and_kept() {
    let dataset = dataset(0.5);
    let config = config();
    let steps = dataset.train.users.len().div_ceil(config.batch_size) as u64;
    on_each_backend!(backend => {
        let directory = tempfile::tempdir().unwrap();
        let stop = AtomicBool::new(false);
        let options =
            FitOptions { initial: None, resume: false, checkpoint_interval: Duration::ZERO };
        let two = TrainConfig { epochs: 2, ..config.clone() };
        let run = RunDirectory::open(directory.path(), false).unwrap();
        fit(backend(), &dataset, &two, &run, &options, &mut (), &stop).unwrap();
        drop(run);
        let state = directory.path().join(run::STATE);
        poke(&state, "user_embedding", 17, 3e38);

        let before = std::fs::read(&state).unwrap();
        for _ in 0..2 {
            let found = failure(backend(), &dataset, &config, directory.path(), u64::MAX);
            assert_eq!((found.epoch, found.batch, found.step), (3, 1, 2 * steps + 1));
            assert_eq!(found.what, "loss term `reg` is inf");
            assert_eq!(found.checkpoint, Some((state.clone(), 2 * steps)));
            let end = format!("{}, after step {}", state.display(), 2 * steps);
            assert!(found.to_string().ends_with(&end), "{found}");
            assert!(std::fs::read(&state).unwrap() == before, "the state is another one");
            assert_eq!(run::read_records(directory.path(), u64::MAX).unwrap().len(), 2);
        }
    });
}

/// Changes one element of a tensor in a file.
fn poke(path: &Path, tensor: &str, element: usize, value: f32) {
    let start = TensorFile::open(path).unwrap().info(tensor).unwrap().data_offsets.0;
    let mut bytes = std::fs::read(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let place = 8 + header + start + 4 * element;
    bytes[place..place + 4].copy_from_slice(&value.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}
