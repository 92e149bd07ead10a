//! Saving and resuming a run: the best model and the state of the last epoch.
//!
//! Renaming the state commits a checkpoint. By then the files it refers to exist: the records,
//! which may go on beyond it, and the best model, under a name of its own. If a process is killed
//! between renaming the state and renaming the model, the next process does the second.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{Best, Run, Trained, feature_sources, graph};
use crate::backend::{Backend, FeatureState};
use crate::checkpoint::{
    self, Identity, ModelRecord, StateRecord, Tensor, TensorFile, dense_tensors,
};
use crate::config::TrainConfig;
use crate::data::Dataset;
use crate::model::Model;
use crate::parameters::Layout;
use crate::records::{EpochRecord, Observer};
use crate::run::{self, RunDirectory, Summary};
use crate::step::{
    DenseState, DeviceModel, ParameterValues, RawFeatures, adam_step, learning_rate,
};
use crate::{Error, Result, files, model};

/// Advice for a run directory whose files do not match.
const AS_IT_WAS: &str = "give the directory as the run left it, or start again in another --out";

/// Prefix of the name of a tensor of Adam's first moments.
const FIRST: &str = "optimizer.first.";
/// Prefix of the name of a tensor of Adam's second moments.
const SECOND: &str = "optimizer.second.";
/// Prefix of the name of the steps up to which each row of trained features is current.
const TOUCHED: &str = "optimizer.touched.";

impl<'a, B: Backend> Run<'a, B> {
    pub(super) fn resume(
        mut backend: B,
        dataset: &'a Dataset,
        config: &TrainConfig,
        layout: Layout,
        identity: Identity,
        directory: &'a RunDirectory,
    ) -> Result<Self> {
        let Saved { file, state, records } = Saved::open(&identity, directory)?;
        let arena = |prefix: &str| file.arena(prefix, &layout);
        let dense = DenseState {
            parameters: file.finite_arena(&layout)?,
            first: arena(FIRST)?,
            second: arena(SECOND)?,
        };
        let features = feature_sources(dataset, config, |index, modality| {
            let name = layout.modalities[index].features_name();
            let shape = [dataset.items, modality.features.columns()];
            Ok(RawFeatures::Trained(FeatureState {
                values: file.finite_reals(&name, &shape)?,
                first: file.reals(&format!("{FIRST}{name}"), &shape)?,
                second: file.reals(&format!("{SECOND}{name}"), &shape)?,
                touched: file.steps(&format!("{TOUCHED}{name}"), dataset.items, state.step)?,
            }))
        })?;
        let graph = graph(dataset, config);
        let place = backend.place_features(dataset, &graph, config)?;
        let model = DeviceModel::new(backend, config, layout, graph, &dense, features)?;
        let mut run = Self::with_model(model, dataset, config, identity, Some(directory), place)?;
        let steps_per_epoch = run.steps_per_epoch(config);
        let losses = run.model.losses()?.len();
        state.check(steps_per_epoch, losses, &directory.file(run::STATE))?;
        let history = (0..state.step)
            .map(|step| adam_step(step + 1, learning_rate(config, step / steps_per_epoch)));
        run.model.set_history(&history.collect::<Vec<_>>())?;
        run.model.set_losses(&state.loss_sums)?;
        run.records = records;
        run.best = state.best.map(|record| Best { record, unsaved: None });
        run.evaluations_since_best = state.evaluations_since_best;
        (run.epoch, run.step_in_epoch, run.step) = (state.epoch, state.step_in_epoch, state.step);
        run.saved = Some(state.step);
        Ok(run)
    }

    /// Writes a checkpoint, if the run has a directory. Returns how long that took, without what
    /// `observer` does.
    pub(super) fn checkpoint(&mut self, observer: &mut dyn Observer) -> Result<Duration> {
        let Some(directory) = self.directory else { return Ok(Duration::ZERO) };
        let begun = Instant::now();
        if self.identity.config.freeze_features {
            self.dataset.check_unchanged()?;
        }
        self.write_records()?;
        let next_model = directory.file(run::NEXT_MODEL);
        let has_next = self.save_best(&next_model)?;
        // If a finished run goes on, its summary describes an older model.
        files::remove(&directory.file(run::SUMMARY))?;
        let path = directory.file(run::STATE);
        self.save_state(&path)?;
        if has_next {
            files::rename(&next_model, &directory.file(run::MODEL))?;
        }
        self.saved = Some(self.step);
        let took = begun.elapsed();
        tracing::debug!(step = self.step, path = %path.display(), "saved a checkpoint");
        observer.checkpoint(&path);
        Ok(took)
    }

    /// Writes the records of the epochs so far, if the run has a directory.
    pub(super) fn write_records(&self) -> Result<()> {
        self.directory.map_or(Ok(()), |directory| directory.write_records(&self.records))
    }

    /// Writes the best model if it is not yet saved, releases its snapshot, and returns whether it
    /// did. If it cannot be written, the run ends.
    fn save_best(&mut self, path: &Path) -> Result<bool> {
        let kept = self.best.as_mut().and_then(|best| best.unsaved.take());
        let (Some(best), Some(kept)) = (&self.best, kept) else { return Ok(false) };
        let record = self.model_record(&best.record);
        let ParameterValues { dense, features } = self.model.read_kept(kept)?;
        let (layout, graph) = (self.model.layout(), self.model.graph());
        model::write(path, &record, layout, &dense, &features, graph)?;
        Ok(true)
    }

    fn model_record(&self, best: &EpochRecord) -> ModelRecord {
        ModelRecord {
            identity: self.identity.clone(),
            epoch: best.epoch,
            valid: best.valid.clone(),
            test: best.test.clone(),
        }
    }

    /// The outcome of a finished run.
    pub(super) fn into_trained(mut self, summary: Summary) -> Result<Trained> {
        let model = match (self.best.take(), self.directory) {
            (None, _) => None,
            (Some(Best { record, unsaved: Some(kept) }), _) => {
                let record = self.model_record(&record);
                let (layout, graph) = (self.model.layout().clone(), self.model.graph().clone());
                let ParameterValues { dense, features } = self.model.read_kept(kept)?;
                Some(Model::new(record, layout, &dense, features, graph))
            }
            (Some(_), directory) => {
                directory.map(|directory| Model::load(directory.path())).transpose()?
            }
        };
        Ok(Trained { model, summary, records: self.records })
    }

    fn save_state(&mut self, path: &Path) -> Result<()> {
        let dense = self.model.dense_state()?;
        let record = StateRecord {
            identity: self.identity.clone(),
            epoch: self.epoch,
            step_in_epoch: self.step_in_epoch,
            step: self.step,
            loss_sums: self.model.losses()?,
            best: self.best.as_ref().map(|best| best.record.clone()),
            evaluations_since_best: self.evaluations_since_best,
            last: self.records.last().cloned(),
        };
        let layout = self.model.layout().clone();
        let features = self.model.feature_states()?;
        let mut tensors = dense_tensors(&layout, "", &dense.parameters);
        tensors.extend(dense_tensors(&layout, FIRST, &dense.first));
        tensors.extend(dense_tensors(&layout, SECOND, &dense.second));
        let mut counters = Vec::new();
        for (modality, state) in layout.modalities.iter().zip(&features) {
            let Some(state) = state else { continue };
            let name = modality.features_name();
            let shape = vec![layout.items, modality.columns];
            for (prefix, values) in
                [("", &state.values), (FIRST, &state.first), (SECOND, &state.second)]
            {
                tensors.push(Tensor {
                    name: format!("{prefix}{name}"),
                    shape: shape.clone(),
                    values,
                });
            }
            counters.push(Tensor {
                name: format!("{TOUCHED}{name}"),
                shape: vec![layout.items],
                values: &state.touched,
            });
        }
        checkpoint::write(path, &record, &tensors, &counters)
    }
}

/// Refuses a directory whose state belongs to another data set or to other settings, or whose files
/// do not match. Returns whether it has a state at all.
///
/// # Errors
/// [`Error::Data`] for a data set that cannot be used, [`Error::RunFile`] naming the difference.
pub fn check_saved(
    dataset: &Dataset,
    config: &TrainConfig,
    directory: &RunDirectory,
) -> Result<bool> {
    if directory.has_state() {
        dataset.check()?;
        Saved::open(&super::identity(dataset, config), directory)?;
    }
    Ok(directory.has_state())
}

/// The last checkpoint of a run.
struct Saved {
    file: TensorFile,
    state: StateRecord,
    /// The records of the epochs up to it.
    records: Vec<EpochRecord>,
}

impl Saved {
    /// Opens the last checkpoint of the run with this `identity`, and puts its model in place.
    fn open(identity: &Identity, directory: &RunDirectory) -> Result<Self> {
        let path = directory.file(run::STATE);
        let file = TensorFile::open(&path)?;
        let state: StateRecord = file.record()?;
        state.identity.check(identity, &path)?;
        settle_model(directory, &state)?;
        let records = run::read_records(directory.path(), state.epoch)?;
        if records.len() as u64 != state.epoch {
            let problem = format!(
                "has records of {} epochs; the {} beside it is of epoch {}; {AS_IT_WAS}",
                records.len(),
                run::STATE,
                state.epoch
            );
            return Err(Error::run_file(&directory.file(run::METRICS), problem));
        }
        Ok(Self { file, state, records })
    }
}

/// Makes `model.safetensors` the best model of `state`: finishes the renaming if a process was
/// killed after writing the state, and removes a next model whose state was never written.
fn settle_model(directory: &RunDirectory, state: &StateRecord) -> Result<()> {
    let epoch_of = |path: &Path| -> Result<Option<u64>> {
        if !path.exists() {
            return Ok(None);
        }
        TensorFile::open(path)?.record::<ModelRecord>().map(|record| Some(record.epoch))
    };
    let best = state.best.as_ref().map(|best| best.epoch);
    let (next, model) = (directory.file(run::NEXT_MODEL), directory.file(run::MODEL));
    match epoch_of(&next)? {
        None => {}
        found if found == best => files::rename(&next, &model)?,
        Some(_) => files::remove(&next)?,
    }
    let found = epoch_of(&model)?;
    if found == best {
        return Ok(());
    }
    let epoch = |epoch: Option<u64>| match epoch {
        Some(epoch) => format!("of epoch {epoch}"),
        None => "not there".to_owned(),
    };
    let problem = format!(
        "is {}; by the {} beside it the best model is {}; {AS_IT_WAS}",
        epoch(found),
        run::STATE,
        epoch(best)
    );
    Err(Error::run_file(&model, problem))
}
