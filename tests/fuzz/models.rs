//! Saved models and training states, read as `recommend` and `train --resume` do.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bm3_engine::Error;
use bm3_engine::checkpoint::{StateRecord, TensorFile};
use bm3_engine::config::{Propagation, TrainConfig};
use bm3_engine::cpu::Cpu;
use bm3_engine::data::{Dataset, DatasetOptions};
use bm3_engine::model::Model;
use bm3_engine::run::{MODEL, RunDirectory, STATE};
use bm3_engine::train::{FitOptions, fit, identity};
use tempfile::TempDir;

use crate::harness::{Target, alone, corpus, fuzz, workshop};
use crate::mutate::Format;
use crate::{KILOBYTE, assert_both};

const WORDS: &[&str] = &[
    "\"dtype\":",
    "\"shape\":",
    "\"data_offsets\":",
    "\"__metadata__\":",
    "\"F32\"",
    "\"F64\"",
    "\"U32\"",
    "[0,0]",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "\\\"",
    "\"",
    "\\\"embedding_size\\\":",
    "\\\"layers\\\":",
    "\\\"propagation\\\":\\\"gcn\\\"",
    "\\\"modalities\\\":",
    "\\\"users\\\":",
    "\\\"step\\\":",
    "\\\"epoch\\\":",
    "\\\"step_in_epoch\\\":",
    "\\\"loss_sums\\\":[]",
    "null",
    "\\\"evaluations_since_best\\\":",
    "true",
    "false",
    "\\u0000",
    "image",
];

/// A run of two epochs on the corpus's data set.
struct TinyRun {
    folder: TempDir,
    dataset: Dataset,
    config: TrainConfig,
}

impl TinyRun {
    fn new(freeze_features: bool) -> Self {
        let dataset = Dataset::open(&corpus("data"), &DatasetOptions::default()).unwrap();
        let config = TrainConfig {
            embedding_size: 4,
            batch_size: 3,
            epochs: 2,
            propagation: if freeze_features { Propagation::Gcn } else { Propagation::Light },
            freeze_features,
            ..TrainConfig::default()
        };
        let run = Self { folder: workshop(), dataset, config };
        run.fit(false, false).unwrap();
        run
    }

    fn fit(&self, resume: bool, stop: bool) -> Result<(), Error> {
        let directory = RunDirectory::open(self.folder.path(), resume)?;
        let options =
            FitOptions { initial: None, resume, checkpoint_interval: Duration::from_secs(1000) };
        let stop = AtomicBool::new(stop);
        fit(Cpu::<f32>::new(), &self.dataset, &self.config, &directory, &options, &mut (), &stop)?;
        Ok(())
    }

    fn file(&self, name: &str) -> Vec<u8> {
        fs::read(self.folder.path().join(name)).unwrap()
    }
}

#[test]
fn model() {
    let alone = alone();
    let (trained, frozen) = (TinyRun::new(false), TinyRun::new(true));
    let read = |path: &Path| {
        let model = Model::load(path)?;
        model.fits(&trained.dataset);
        model.on(Cpu::<f32>::new())?.predictions()?;
        Ok(())
    };
    assert_both(&fuzz(
        &alone,
        Target {
            name: "model",
            ending: ".safetensors",
            format: Format::Safetensors,
            dictionary: WORDS,
            peak: (64, 256 * KILOBYTE),
            share: 4,
            seeds: vec![trained.file(MODEL), frozen.file(MODEL)],
            read: &mut |path| read(path),
        },
    ));
}

#[test]
fn state() {
    let alone = alone();
    for freeze_features in [false, true] {
        let run = TinyRun::new(freeze_features);
        let records = run.file("metrics.jsonl");
        assert_both(&fuzz(
            &alone,
            Target {
                name: if freeze_features { "state-frozen" } else { "state" },
                ending: ".safetensors",
                format: Format::Safetensors,
                dictionary: WORDS,
                // Files are written through a buffer of a megabyte.
                peak: (128, 2048 * KILOBYTE),
                share: 20,
                seeds: vec![run.file(STATE)],
                read: &mut |path| {
                    // Undoes what resuming the previous input wrote.
                    fs::copy(path, run.folder.path().join(STATE)).unwrap();
                    fs::write(run.folder.path().join("metrics.jsonl"), &records).unwrap();
                    run.fit(true, true)
                },
            },
        ));
    }
}

/// A saved state that is refused as another data set's would not reach the code that it was saved
/// for.
#[test]
fn the_saved_states_are_of_the_runs_that_are_resumed() {
    for (freeze_features, name) in [(false, "state"), (true, "state-frozen")] {
        let run = TinyRun::new(freeze_features);
        let identity = identity(&run.dataset, &run.config);
        let mut inputs = 0;
        for entry in fs::read_dir(corpus(name)).unwrap() {
            let path = entry.unwrap().path();
            let state: StateRecord = TensorFile::open(&path).unwrap().record().unwrap();
            state.identity.check(&identity, &path).unwrap();
            inputs += 1;
        }
        assert!(inputs > 0);
    }
}
