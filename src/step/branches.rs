//! The parts of a step that may overlap on a device.

use crate::Result;
use crate::backend::Backend;

/// Handles to a device for the parts of a step that may overlap.
pub(super) struct Branches<B> {
    /// H and its gradient.
    pub nodes: B,
    /// Each modality's projection and its gradients.
    pub modalities: Vec<B>,
    /// Work that the next step would otherwise wait for.
    pub ahead: B,
}

impl<B: Backend> Branches<B> {
    /// The branches of a device, for `modalities` modalities.
    pub fn of(backend: &B, modalities: usize) -> Result<Self> {
        let ahead = backend.branch(1 + modalities)?;
        let modalities = (1..=modalities).map(|number| backend.branch(number));
        let modalities = modalities.collect::<Result<_>>()?;
        Ok(Self { nodes: backend.branch(0)?, modalities, ahead })
    }

    /// All branches.
    pub fn all(&self) -> impl Iterator<Item = &B> {
        self.of_step().chain([&self.ahead])
    }

    /// The branches that the step itself waits for.
    fn of_step(&self) -> impl Iterator<Item = &B> {
        std::iter::once(&self.nodes).chain(&self.modalities)
    }

    /// Makes the step's branches wait for the work queued on the device so far.
    pub fn fork(&self, backend: &B) -> Result<()> {
        self.of_step().try_for_each(|branch| branch.after(backend))
    }

    /// Makes the device wait for the work queued on the step's branches so far.
    pub fn join(&self, backend: &B) -> Result<()> {
        self.of_step().try_for_each(|branch| backend.after(branch))
    }
}
