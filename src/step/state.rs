//! The state that a model starts from and that is saved: features, parameters, moments.

use std::sync::Arc;

use super::{DeviceModel, last_product};
use crate::Result;
use crate::backend::{AdamStep, Backend, FeatureState, SavedFeatures, view, view_mut};
use crate::data::FeatureMatrix;

/// A modality's raw features, as given to a model.
#[derive(Debug, Clone)]
pub enum RawFeatures<T> {
    /// Fixed inputs.
    Frozen(Arc<FeatureMatrix>),
    /// Parameters that start from these values.
    Untrained(Arc<FeatureMatrix>),
    /// Parameters and their optimiser state, I × D_m.
    Trained(FeatureState<T>),
}

/// The dense parameters and their optimiser state, as they are saved.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseState<T> {
    /// The arena of parameters.
    pub parameters: Vec<T>,
    /// First moments.
    pub first: Vec<T>,
    /// Second moments.
    pub second: Vec<T>,
}

impl<B: Backend> DeviceModel<B> {
    /// Sets the constants of the steps already done, when a run is resumed.
    pub fn set_history(&mut self, constants: &[AdamStep]) -> Result<()> {
        self.steps = 0;
        self.plan(constants)?;
        self.steps = constants.len() as u32;
        Ok(())
    }

    /// The dense parameters and their moments.
    pub fn dense_state(&self) -> Result<DenseState<B::Real>> {
        let all = || 0..self.layout.len();
        Ok(DenseState {
            parameters: self.backend.download(view(&self.parameters, all()))?,
            first: self.backend.download(view(&self.first, all()))?,
            second: self.backend.download(view(&self.second, all()))?,
        })
    }

    /// The dense gradients of the last step, in the order of
    /// [`crate::parameters::Layout`], if nothing was done since.
    ///
    /// That of H⁰ is computed once more, since the step stores none.
    pub fn gradients(&self) -> Result<Vec<B::Real>> {
        let Self { backend, layout, graph, .. } = self;
        let mut of_nodes = backend.zeros(layout.nodes.len())?;
        let target = view_mut(&mut of_nodes, 0..layout.nodes.len());
        let inputs = last_product(&self.settings, &self.workspace, &layout.nodes);
        backend.spmm(graph, inputs, target)?;
        let mut gradients = backend.download(view(&of_nodes, 0..layout.nodes.len()))?;
        gradients.extend(backend.download(view(&self.gradients, 0..layout.gradients()))?);
        Ok(gradients)
    }

    /// Trained features and their moments, with every row brought up to the last step; `None` for
    /// frozen modalities.
    pub fn feature_states(&mut self) -> Result<Vec<Option<SavedFeatures<'_, B::Real>>>> {
        self.replay_features()?;
        self.features.iter().map(|features| self.backend.feature_state(features)).collect()
    }

    pub(super) fn replay_features(&mut self) -> Result<()> {
        for features in &mut self.features {
            self.backend.adam_rows_replay_all(self.steps, &self.schedule, features)?;
        }
        Ok(())
    }
}
