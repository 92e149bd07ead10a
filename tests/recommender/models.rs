//! Models, their files, and their runs.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bm3_engine::config::TrainConfig;
use bm3_engine::data::DataError;
use bm3_engine::records::Observer;
use bm3_engine::run::StopReason;
use bm3_engine::{Model, Recommender, Trainer};

use crate::common::groups;
use crate::{config, trained, without_items};

#[test]
fn models_come_back_from_their_files_to_the_bit() {
    let directory = tempfile::tempdir().unwrap();
    let dataset = groups();
    for freeze_features in [false, true] {
        let config = TrainConfig { freeze_features, self_loops: true, ..config() };
        let model = trained(&dataset, config.clone());
        let path = directory.path().join("m.safetensors");
        model.save(&path).unwrap();
        let back = Model::load(&path).unwrap();
        assert_eq!(back.record(), model.record());
        assert_eq!(back.graph(), model.graph());
        for name in ["user_embedding", "item_embedding", "predictor.weight", "modality.text.bias"] {
            assert!(back.parameter(name).is_some());
            assert_eq!(back.parameter(name), model.parameter(name));
        }
        assert_eq!(back.parameter("smell"), None);
        for modality in 0..2 {
            assert_eq!(back.features(modality).unwrap(), model.features(modality).unwrap());
            assert_eq!(back.features(modality).unwrap().is_none(), freeze_features);
        }
        let again = directory.path().join("again.safetensors");
        back.save(&again).unwrap();
        assert!(std::fs::read(&path).unwrap() == std::fs::read(&again).unwrap());

        // Training in memory or in a directory gives the same model.
        let run = directory.path().join(format!("run-{freeze_features}"));
        let kept = Trainer::new(config).directory(&run).fit(&dataset).unwrap();
        let in_run = std::fs::read(run.join("model.safetensors")).unwrap();
        assert!(std::fs::read(&path).unwrap() == in_run);
        assert_eq!(kept.model.unwrap().record(), model.record());
    }
}

#[test]
fn training_can_be_stopped_from_the_callback_and_resumed() {
    let directory = tempfile::tempdir().unwrap();
    let dataset = groups();
    let whole = Trainer::new(config()).threads(2).fit(&dataset).unwrap();
    assert_eq!((whole.records.len(), whole.summary.epochs), (8, 8));
    let run = directory.path().join("run");
    let mut epochs = Vec::new();
    let part = Trainer::new(config()).directory(&run).fit_with(&dataset, |record| {
        epochs.push(record.epoch);
        if record.epoch == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let part = part.unwrap();
    assert_eq!(epochs, [1, 2, 3]);
    assert_eq!(part.summary.stopped_by, StopReason::Interrupted);
    assert!(part.model.is_some());
    let error = Trainer::new(config()).directory(&run).fit(&dataset).unwrap_err().to_string();
    assert!(error.contains("a run is already here"), "{error}");
    let rest = Trainer::new(config()).resume(&run).fit(&dataset).unwrap();
    assert_eq!(rest.records.len(), 8);
    let (rest, whole) = (rest.model.unwrap(), whole.model.unwrap());
    assert_eq!(rest.parameter("user_embedding"), whole.parameter("user_embedding"));

    // An observer sees every step, and can stop the run by the flag.
    struct Steps(Vec<(u64, u64, u64)>, Arc<AtomicBool>);
    impl Observer for &mut Steps {
        fn step(&mut self, epoch: u64, step: u64, steps: u64) {
            self.0.push((epoch, step, steps));
            self.1.store((epoch, step) == (2, 3), Ordering::Relaxed);
        }
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut steps = Steps(Vec::new(), stop.clone());
    let part = Trainer::new(config()).stop_when(stop).fit_observed(&dataset, &mut steps).unwrap();
    let count = part.summary.steps;
    assert_eq!((part.records.len(), steps.0.last().map(|last| last.0)), (1, Some(2)));
    assert_eq!(count, steps.0.len() as u64);

    // A resumed run updates its kept settings; a run with other settings is refused and replaces
    // nothing.
    let kept = || std::fs::read_to_string(run.join("config.toml")).unwrap();
    assert!(kept().contains("epochs = 8\n"));
    let longer = TrainConfig { epochs: 9, ..config() };
    Trainer::new(longer.clone()).resume(&run).fit(&dataset).unwrap();
    assert!(kept().contains("epochs = 9\n"));
    let other = TrainConfig { layers: 1, ..longer };
    let error = Trainer::new(other.clone()).resume(&run).fit(&dataset).unwrap_err().to_string();
    assert!(error.contains("its setting layers is 2; expected 1"), "{error}");
    assert!(kept().contains("layers = 2\n") && kept().contains("epochs = 9\n"));
    let left = directory.path().join("left");
    std::fs::create_dir(&left).unwrap();
    let data = left.join("data");
    std::fs::write(left.join("config.toml"), format!("layers = 2\ndata = {data:?}\n")).unwrap();
    let settings = std::fs::read(left.join("config.toml")).unwrap();
    let error = Trainer::new(other.clone()).directory(&left).fit(&dataset).unwrap_err();
    assert!(error.to_string().contains("a run is already here, or its config.toml"), "{error}");
    assert_eq!(std::fs::read(left.join("config.toml")).unwrap(), settings);
    // Resuming where there is nothing starts a run.
    let new = Trainer::new(other).resume(directory.path().join("new")).fit(&dataset).unwrap();
    assert_eq!(new.summary.epochs, 9);

    // The flag is set before anything is done.
    let stop = Arc::new(AtomicBool::new(true));
    let none = Trainer::new(config()).stop_when(stop.clone()).fit(&dataset).unwrap();
    assert!(none.model.is_none() && none.records.is_empty());
    assert!(stop.load(Ordering::Relaxed));
    assert!(Trainer::new(config()).threads(0).fit(&dataset).unwrap_err().is_input());
}

/// A model keeps its file when the path is replaced, and refuses a file that is changed in place.
#[test]
fn a_model_whose_file_is_changed_in_place_says_so() {
    let dataset = without_items(&[12]);
    let folder = tempfile::tempdir().unwrap();
    let [path, copy] = ["model.safetensors", "copy.safetensors"].map(|n| folder.path().join(n));
    let model = trained(&dataset, TrainConfig { epochs: 1, ..config() });
    model.save(&path).unwrap();
    let loaded = Arc::new(Model::load(&path).unwrap());
    let mut recommender = Recommender::new(loaded.clone()).unwrap();
    // Replaced, even by the model itself: its own file is as it was.
    trained(&dataset, TrainConfig { epochs: 2, ..config() }).save(&path).unwrap();
    assert_eq!(loaded.features(0).unwrap(), model.features(0).unwrap());
    let loaded = {
        loaded.save(&path).unwrap();
        Arc::new(Model::load(&path).unwrap())
    };
    recommender.score_cold_items(&[]).unwrap();
    let mut recommender = Recommender::new(loaded.clone()).unwrap();

    let bytes = std::fs::read(&path).unwrap();
    let newer = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    for length in [0, bytes.len() / 2, bytes.len()] {
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(length as u64).unwrap();
        // A clock may not tell apart two writes in a row.
        file.set_modified(newer).unwrap();
        let changed = |error: bm3_engine::Error| {
            let is_changed = matches!(&error, bm3_engine::Error::Data(DataError::Changed { .. }));
            assert!(is_changed && error.to_string().contains("model.safetensors: was changed"));
        };
        changed(loaded.features(0).unwrap_err());
        changed(loaded.save(&copy).unwrap_err());
        changed(recommender.score_cold_items(&[]).unwrap_err());
        assert!(!copy.exists());
    }
    // What is in memory still answers.
    assert_eq!(recommender.top_k(0, 3).unwrap().len(), 3);
}

/// A file with impossible interactions is refused before they are used.
#[test]
fn interactions_of_a_file_are_looked_at() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.safetensors");
    trained(&groups(), TrainConfig { epochs: 1, ..config() }).save(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&whole).unwrap();
    let place = |name: &str| {
        let data = tensors.tensor(name).unwrap().data();
        data.as_ptr() as usize - whole.as_ptr() as usize
    };
    let refused = |place: usize, value: u32, problem: &str| {
        let mut changed = whole.clone();
        changed[place..place + 4].copy_from_slice(&value.to_le_bytes());
        std::fs::write(&path, &changed).unwrap();
        let error = Model::load(&path).unwrap_err();
        assert!(error.is_input() && error.to_string().contains(problem), "{error}");
    };
    let (offsets, items) = (place("interactions.offsets"), place("interactions.items"));
    refused(offsets, 1, "`interactions.offsets` does not ascend from 0");
    refused(offsets + 4, u32::MAX, "`interactions.offsets` does not ascend from 0");
    refused(offsets + 4 * 60, 7, "expected [7]");
    refused(items, u32::MAX, "the items of user 0 are not distinct ones below 40");
    let twice = u32::from_le_bytes(whole[items + 4..items + 8].try_into().unwrap());
    refused(items, twice, "the items of user 0 are not distinct");
    let count = tensors.tensor("interactions.items").unwrap().shape()[0];
    refused(items + 4 * (count - 1), 40, "are not distinct ones below 40 that ascend");
}
