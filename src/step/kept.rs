//! A model's parameters as they were at a step, kept beside those that go on being trained.

use super::DeviceModel;
use crate::Result;
use crate::backend::{Backend, view};

/// The parameters of a [`DeviceModel`] at a step, where the device keeps them.
pub struct KeptParameters<B: Backend> {
    dense: B::Kept,
    features: Vec<Option<B::Kept>>,
}

/// Parameters, read from a device.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterValues<T> {
    /// The arena of dense parameters, as the [`crate::parameters::Layout`] has it.
    pub dense: Vec<T>,
    /// Of each modality its trained features, I × D_m; `None` where they are frozen.
    pub features: Vec<Option<Vec<T>>>,
}

impl<B: Backend> DeviceModel<B> {
    /// Keeps all parameters, without moments, every row of trained features brought up to the last
    /// step.
    ///
    /// # Errors
    /// Those of the device.
    pub fn keep(&mut self) -> Result<KeptParameters<B>> {
        self.replay_features()?;
        let dense = self.backend.keep(view(&self.parameters, 0..self.layout.len()))?;
        let features = self.features.iter().map(|features| self.backend.keep_features(features));
        Ok(KeptParameters { dense, features: features.collect::<Result<_>>()? })
    }

    /// Reads what was kept.
    ///
    /// # Errors
    /// Those of the device.
    pub fn read_kept(&self, kept: KeptParameters<B>) -> Result<ParameterValues<B::Real>> {
        let read = |kept| self.backend.read_kept(kept);
        let features = kept.features.into_iter().map(|features| features.map(read).transpose());
        Ok(ParameterValues { dense: read(kept.dense)?, features: features.collect::<Result<_>>()? })
    }
}
