//! Where a run is kept: the best model and the state of the last epoch, written and read back.

use std::path::{Path, PathBuf};

use super::{Best, Run, feature_sources, graph};
use crate::Result;
use crate::backend::{Backend, FeatureState};
use crate::checkpoint::{self, Identity, ModelRecord, StateRecord, Tensor, TensorFile};
use crate::config::TrainConfig;
use crate::data::Dataset;
use crate::parameters::Layout;
use crate::real::Real;
use crate::run::{self, RunDirectory};
use crate::step::{DenseState, Model, RawFeatures, adam_step, learning_rate};

/// Before the name of a tensor: Adam's first moments of it.
const FIRST: &str = "optimizer.first.";
/// Before the name of a tensor: Adam's second moments of it.
const SECOND: &str = "optimizer.second.";
/// Before the name of trained features: the step up to which each row is current.
const TOUCHED: &str = "optimizer.touched.";

fn dense_tensors<'a, T>(layout: &Layout, prefix: &str, arena: &'a [T]) -> Vec<Tensor<'a, T>> {
    layout
        .tensors
        .iter()
        .map(|tensor| Tensor {
            name: format!("{prefix}{}", tensor.name),
            shape: tensor.shape.clone(),
            values: &arena[tensor.range.clone()],
        })
        .collect()
}

impl<'a, B: Backend> Run<'a, B> {
    pub(super) fn resume(
        mut backend: B,
        dataset: &'a Dataset,
        config: &TrainConfig,
        layout: Layout,
        identity: Identity,
        directory: &'a RunDirectory,
    ) -> Result<Self> {
        let path = directory.file(run::STATE);
        let file = TensorFile::open(&path)?;
        let state: StateRecord = file.record()?;
        state.identity.check(&identity, &path)?;
        let arena = |prefix: &str| -> Result<Vec<B::Real>> {
            let mut values = vec![B::Real::ZERO; layout.len()];
            for tensor in &layout.tensors {
                let part = file.reals(&format!("{prefix}{}", tensor.name), &tensor.shape)?;
                values[tensor.range.clone()].copy_from_slice(&part);
            }
            Ok(values)
        };
        let dense =
            DenseState { parameters: arena("")?, first: arena(FIRST)?, second: arena(SECOND)? };
        let features = feature_sources(dataset, config, |index, modality| {
            let name = layout.modalities[index].features_name();
            let shape = [dataset.items, modality.features.columns()];
            Ok(RawFeatures::Trained(FeatureState {
                values: file.reals(&name, &shape)?,
                first: file.reals(&format!("{FIRST}{name}"), &shape)?,
                second: file.reals(&format!("{SECOND}{name}"), &shape)?,
                touched: file.counters(&format!("{TOUCHED}{name}"), &[dataset.items])?,
            }))
        })?;
        let graph = graph(dataset, config);
        let place = backend.place_features(dataset, &graph, config)?;
        let model = Model::new(backend, config, layout, graph, &dense, features)?;
        let mut run = Self::with_model(model, dataset, config, identity, directory, place)?;
        let steps_per_epoch = run.steps_per_epoch(config);
        let history = (0..state.step)
            .map(|step| adam_step(step + 1, learning_rate(config, step / steps_per_epoch)));
        run.model.set_history(&history.collect::<Vec<_>>())?;
        run.model.set_losses(&state.loss_sums)?;
        run.records = run::read_records(directory.path(), state.epoch)?;
        run.best = state.best.map(|record| Best { record, unsaved: None });
        run.evaluations_since_best = state.evaluations_since_best;
        (run.epoch, run.step_in_epoch, run.step) = (state.epoch, state.step_in_epoch, state.step);
        Ok(run)
    }

    /// Writes everything; the state comes last, so whatever it refers to is already there.
    pub(super) fn checkpoint(&mut self) -> Result<PathBuf> {
        self.directory.write_records(&self.records)?;
        self.save_best()?;
        let path = self.directory.file(run::STATE);
        self.save_state(&path)?;
        Ok(path)
    }

    fn save_best(&mut self) -> Result<()> {
        let Some(best) = &mut self.best else { return Ok(()) };
        let path = self.directory.file(run::MODEL);
        let Some(snapshot) = &best.unsaved else { return Ok(()) };
        let record = ModelRecord {
            identity: self.identity.clone(),
            epoch: best.record.epoch,
            valid: best.record.valid.clone(),
            test: best.record.test.clone(),
        };
        let layout = self.model.layout();
        let mut tensors = dense_tensors(layout, "", &snapshot.dense);
        for (modality, values) in layout.modalities.iter().zip(&snapshot.features) {
            if let Some(values) = values {
                let shape = vec![layout.items, modality.columns];
                tensors.push(Tensor { name: modality.features_name(), shape, values });
            }
        }
        checkpoint::write(&path, &record, &tensors, &[])?;
        best.unsaved = None;
        Ok(())
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
