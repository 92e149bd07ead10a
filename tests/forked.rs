//! A process that is forked from one that trains on a GPU drops what it inherited without a call of the
//! driver, which it does not have: the emulator ends a process that calls it nonetheless.

#![cfg(unix)]

mod emulator;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bm3_engine::config::{FeatureStorage, TrainConfig};
use bm3_engine::data::Dataset;
use bm3_engine::records::{EpochRecord, Observer};
use bm3_engine::run::{MODEL, RunDirectory};
use bm3_engine::train::{FitOptions, fit};

/// What the forked process throws to drop all of a training on its way out.
struct Inherited;

/// Forks after the second epoch, when steps have been recorded, and waits for the child.
#[derive(Default)]
struct Forks {
    /// How the child ended, as `waitpid` tells.
    ended: Option<i32>,
}

impl Observer for Forks {
    fn epoch(&mut self, record: &EpochRecord) {
        if record.epoch != 2 {
            return;
        }
        // SAFETY: the child goes on in this thread alone, takes no lock that another one may have had,
        // and ends by `_exit`.
        let child = unsafe { libc::fork() };
        assert!(child >= 0, "no process was forked");
        if child == 0 {
            resume_unwind(Box::new(Inherited));
        }
        let mut status = 0;
        // SAFETY: `status` is there to be written.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        self.ended = Some(status);
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

#[test]
fn a_forked_process_drops_a_training_and_the_other_goes_on() {
    let Some(cuda) = emulator::cuda() else { return };
    for (freeze_features, storage) in [
        (false, FeatureStorage::Auto),
        (true, FeatureStorage::Resident),
        (true, FeatureStorage::Stream),
    ] {
        let config = TrainConfig {
            embedding_size: 16,
            batch_size: 50,
            epochs: 4,
            freeze_features,
            ..TrainConfig::default()
        };
        let folder = tempfile::tempdir().unwrap();
        let [alone, forking] = ["alone", "forking"]
            .map(|name| RunDirectory::open(&folder.path().join(name), false).unwrap());
        let mut forks = Forks::default();
        let train = |directory: &RunDirectory, observer: &mut dyn Observer| {
            let options = FitOptions {
                initial: None,
                resume: false,
                checkpoint_interval: Duration::from_secs(3600),
            };
            let cuda = cuda.clone().sharing().sibling().unwrap().keeping_features(storage);
            let stop = AtomicBool::new(false);
            fit(cuda, &dataset(), &config, directory, &options, observer, &stop)
        };
        train(&alone, &mut ()).unwrap();
        let outcome = catch_unwind(AssertUnwindSafe(|| train(&forking, &mut forks)));
        if outcome.as_ref().is_err_and(|thrown| thrown.is::<Inherited>()) {
            // SAFETY: ends the child, which has dropped what it can reach, at once.
            unsafe { libc::_exit(0) };
        }
        outcome.expect("no panic").unwrap();
        let ended = forks.ended.expect("the second epoch came");
        assert_eq!(ended, 0, "the child of a training with features {storage:?} was ended");
        let model = |directory: &RunDirectory| std::fs::read(directory.file(MODEL)).unwrap();
        assert!(model(&alone) == model(&forking), "the bits of a training that was never forked");
    }
}
