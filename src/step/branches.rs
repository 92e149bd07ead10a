//! What a step can have a device do at the same time.

use crate::Result;
use crate::backend::Backend;

/// Handles of a device for what a step can do at the same time.
pub(super) struct Branches<B> {
    /// For H and its gradient.
    pub nodes: B,
    /// For each modality's projection and its gradients.
    pub modalities: Vec<B>,
    /// For what the next step would wait for.
    pub ahead: B,
}

impl<B: Backend> Branches<B> {
    /// Those of a device, for so many modalities.
    pub fn of(backend: &B, modalities: usize) -> Result<Self> {
        let ahead = backend.branch(1 + modalities)?;
        let modalities = (1..=modalities).map(|number| backend.branch(number));
        let modalities = modalities.collect::<Result<_>>()?;
        Ok(Self { nodes: backend.branch(0)?, modalities, ahead })
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &B> {
        self.of_step().chain([&self.ahead])
    }

    /// Those whose work the step itself waits for.
    fn of_step(&self) -> impl Iterator<Item = &B> {
        std::iter::once(&self.nodes).chain(&self.modalities)
    }

    /// Has what the step's branches will be asked for come after what the device was asked for so
    /// far.
    pub fn fork(&self, backend: &B) -> Result<()> {
        self.of_step().try_for_each(|branch| branch.after(backend))
    }

    /// Has what the device will be asked for come after what the step's branches were asked for so
    /// far.
    pub fn join(&self, backend: &B) -> Result<()> {
        self.of_step().try_for_each(|branch| backend.after(branch))
    }
}
