//! Snapshots of a model's parameters, taken while training goes on.

use super::DeviceModel;
use crate::Result;
use crate::backend::{Backend, view};

/// A snapshot of a [`DeviceModel`]'s parameters at a step, kept by the device or, for want of room,
/// by the host.
pub struct KeptParameters<B: Backend> {
    dense: B::Kept,
    features: Vec<Option<B::Kept>>,
}

/// Parameters read from a device.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterValues<T> {
    /// The arena of dense parameters, in the order of [`crate::parameters::Layout`].
    pub dense: Vec<T>,
    /// Each modality's trained features, I × D_m; `None` if they are frozen.
    pub features: Vec<Option<Vec<T>>>,
}

impl<B: Backend> DeviceModel<B> {
    /// Takes a snapshot of all parameters, without moments, after bringing every row of trained
    /// features up to the last step.
    ///
    /// # Errors
    /// [`crate::Error::DeviceMemory`] and [`crate::Error::DeviceOperation`].
    pub fn keep(&mut self) -> Result<KeptParameters<B>> {
        self.replay_features()?;
        let dense = self.backend.keep(view(&self.parameters, 0..self.layout.len()))?;
        let features = self.features.iter().map(|features| self.backend.keep_features(features));
        Ok(KeptParameters { dense, features: features.collect::<Result<_>>()? })
    }

    /// Reads a snapshot.
    ///
    /// # Errors
    /// [`crate::Error::DeviceOperation`].
    pub fn read_kept(&self, kept: KeptParameters<B>) -> Result<ParameterValues<B::Real>> {
        let read = |kept| self.backend.read_kept(kept);
        let features = kept.features.into_iter().map(|features| features.map(read).transpose());
        Ok(ParameterValues { dense: read(kept.dense)?, features: features.collect::<Result<_>>()? })
    }
}
