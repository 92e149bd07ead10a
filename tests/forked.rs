//! Forked processes. A child whose parent trains on a GPU drops its inherited handles without
//! calling the driver, which it does not have: the emulator kills a child that calls it. A child
//! forked before any use of the GPU may use it, without its parent's threads.

#![cfg(unix)]

mod emulator;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bm3_engine::config::{FeatureStorage, TrainConfig};
use bm3_engine::cuda::Cuda;
use bm3_engine::data::Dataset;
use bm3_engine::records::{EpochRecord, Observer};
use bm3_engine::run::{MODEL, RunDirectory};
use bm3_engine::train::{FitOptions, fit};
use rayon::prelude::*;

/// The panic payload that unwinds the forked process, so that it drops the whole training.
struct Inherited;

/// Forks after the second epoch, when steps have been recorded, and waits for the child.
#[derive(Default)]
struct Forks {
    /// How the child ended, as `waitpid` reports it.
    ended: Option<i32>,
}

impl Observer for Forks {
    fn epoch(&mut self, record: &EpochRecord) {
        if record.epoch != 2 {
            return;
        }
        // SAFETY: the child continues in this thread alone, takes no lock that another thread may
        // hold, and ends by `_exit`.
        let child = unsafe { libc::fork() };
        assert!(child >= 0, "no process was forked");
        if child == 0 {
            resume_unwind(Box::new(Inherited));
        }
        self.ended = Some(end_of(child));
    }
}

fn dataset() -> Dataset {
    let (users, items) = (40u32, 30u32);
    let pairs: Vec<[u32; 2]> =
        (0..users * 6).map(|index| [index / 6, (index * 7 + index / 6) % items]).collect();
    let column = |side: usize| pairs.iter().map(|pair| pair[side]).collect::<Vec<u32>>();
    let features: Vec<f32> = (0..items * 12).map(|index| (index as f32 * 0.7).sin()).collect();
    let dataset = Dataset::builder("forked").train(&column(0), &column(1));
    dataset.valid(&[0, 1], &[2, 3]).features("text", 12, features).build().unwrap()
}

fn config(freeze_features: bool) -> TrainConfig {
    TrainConfig {
        embedding_size: 16,
        batch_size: 50,
        epochs: 4,
        freeze_features,
        ..TrainConfig::default()
    }
}

/// Trains in a directory.
fn train(cuda: Cuda, config: &TrainConfig, directory: &RunDirectory, observer: &mut dyn Observer) {
    let options =
        FitOptions { initial: None, resume: false, checkpoint_interval: Duration::from_secs(3600) };
    let stop = AtomicBool::new(false);
    fit(cuda, &dataset(), config, directory, &options, observer, &stop).unwrap();
}

fn open(folder: &Path, name: &str) -> RunDirectory {
    RunDirectory::open(&folder.join(name), false).unwrap()
}

fn model(directory: &RunDirectory) -> Vec<u8> {
    std::fs::read(directory.file(MODEL)).unwrap()
}

/// Streams features in so little memory, beside the margin left free, that no rows stay on the GPU:
/// each batch reads all of its rows.
fn streaming(cuda: Cuda) -> Cuda {
    cuda.keeping_features(FeatureStorage::Stream).limiting_memory(Some(60 << 20))
}

/// How a child ended, as `waitpid` reports it. A child still running after a minute is killed, and
/// its status says so.
fn end_of(child: libc::pid_t) -> i32 {
    let mut status = 0;
    for _ in 0..600 {
        // SAFETY: `status` is valid for writes.
        match unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } {
            0 => std::thread::sleep(Duration::from_millis(100)),
            ended => {
                assert_eq!(ended, child);
                return status;
            }
        }
    }
    // SAFETY: `child` is ours and still runs.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, &raw mut status, 0);
    }
    status
}

/// One test, because the first process must be forked before this one uses the GPU.
#[test]
fn forked_processes_train_or_leave_a_training_alone() {
    let folder = tempfile::tempdir().unwrap();
    // Compile the emulator here, so that the child's time is its own.
    if !emulator::on_gpu() && emulator::library::build().is_none() {
        return;
    }
    // Starts the threads that the child will not have.
    let started: usize = (0..1000usize).into_par_iter().sum();
    assert_eq!(started, 499_500);
    let forked = open(folder.path(), "forked");
    // SAFETY: the child continues in this thread alone, takes no lock that another thread may hold,
    // and ends by `_exit`.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "no process was forked");
    if child == 0 {
        let outcome = catch_unwind(|| {
            let Some(cuda) = emulator::cuda() else { return };
            let threads = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
            threads.install(|| train(streaming(cuda), &config(true), &forked, &mut ()));
        });
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(i32::from(outcome.is_err())) };
    }
    assert_eq!(end_of(child), 0, "a forked process that streams features did not come to its end");
    let Some(cuda) = emulator::cuda() else { return };
    let own = open(folder.path(), "own");
    train(streaming(cuda.clone()), &config(true), &own, &mut ());
    assert!(model(&forked) == model(&own), "the bits of a process that was not forked");
    drop(cuda);

    // Without that limit, features of the best epoch and rows of streamed ones stay on the device.
    let cuda = emulator::cuda().expect("a GPU");

    for (freeze_features, storage) in [
        (false, FeatureStorage::Auto),
        (true, FeatureStorage::Resident),
        (true, FeatureStorage::Stream),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let [alone, forking] = ["alone", "forking"].map(|name| open(folder.path(), name));
        let cuda = || cuda.clone().sharing().sibling().unwrap().keeping_features(storage);
        let config = config(freeze_features);
        train(cuda(), &config, &alone, &mut ());
        let mut forks = Forks::default();
        let outcome =
            catch_unwind(AssertUnwindSafe(|| train(cuda(), &config, &forking, &mut forks)));
        if outcome.as_ref().is_err_and(|thrown| thrown.is::<Inherited>()) {
            // SAFETY: ends the child at once, after it has dropped everything it can reach.
            unsafe { libc::_exit(0) };
        }
        outcome.expect("no panic");
        let ended = forks.ended.expect("the second epoch came");
        assert_eq!(ended, 0, "the child of a training with features {storage:?} was ended");
        assert!(model(&alone) == model(&forking), "the bits of a training that was never forked");
    }
}
