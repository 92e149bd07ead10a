//! What a model computes beside its training: H, p(H), lists and projections.

use super::{DeviceModel, Workspace};
use crate::Result;
use crate::backend::{Backend, BatchRooms, TopK, View, view, view_mut};
use crate::batch::Batch;

impl<B: Backend> DeviceModel<B> {
    /// Computes p(H), where the last step's G lay.
    fn predict_nodes(&mut self) -> Result<()> {
        self.propagate(&self.backend.clone())?;
        let all = || 0..self.layout.nodes.len();
        let Workspace { nodes, node_gradient: predicted, .. } = &mut self.workspace;
        self.backend.predict(
            None,
            view(nodes, all()),
            view(&self.parameters, self.layout.predictor_weight.clone()),
            view(&self.parameters, self.layout.predictor_bias.clone()),
            view_mut(predicted, all()),
        )
    }

    /// What [`DeviceModel::predict_nodes`] has computed.
    fn predicted(&self) -> View<'_, B::Buffer> {
        view(&self.workspace.node_gradient, 0..self.layout.nodes.len())
    }

    /// The `k` best items for each of `users`, without their training items (SPEC §9).
    pub fn top_k(&mut self, users: &[u32], k: usize) -> Result<TopK> {
        let lists = self.lists(users, k)?;
        self.backend.read_lists(lists)
    }

    /// The lists of [`DeviceModel::top_k`], left on the device for [`Backend::metrics`].
    pub fn lists(&mut self, users: &[u32], k: usize) -> Result<B::Lists> {
        self.predict_nodes()?;
        self.backend.top_k(&self.graph, self.predicted(), users, k)
    }

    /// H from the current parameters, N × d.
    pub fn nodes(&mut self) -> Result<Vec<B::Real>> {
        self.propagate(&self.backend.clone())?;
        self.backend.download(view(&self.workspace.nodes, 0..self.layout.nodes.len()))
    }

    /// [`DeviceModel::nodes`] and [`DeviceModel::predictions`], from one propagation.
    pub fn nodes_and_predictions(&mut self) -> Result<[Vec<B::Real>; 2]> {
        let predictions = self.predictions()?;
        let nodes = view(&self.workspace.nodes, 0..self.layout.nodes.len());
        Ok([self.backend.download(nodes)?, predictions])
    }

    /// p(H) for every node, N × d: scores are products of its rows (SPEC §2 (10)).
    pub fn predictions(&mut self) -> Result<Vec<B::Real>> {
        self.predict_nodes()?;
        self.backend.download(self.predicted())
    }

    /// Z_m of the given items (distinct, ascending), n × d.
    pub fn project_items(&mut self, modality: usize, items: &[u32]) -> Result<Vec<B::Real>> {
        let batch = Batch::new(&vec![0; items.len()], items);
        let batch = self.backend.upload_batch(batch, self.steps + 1)?;
        let features = &mut self.features[modality];
        self.backend.adam_rows_replay(&batch, &self.schedule, features)?;
        let d = self.layout.embedding_size;
        let elements = batch.rooms().items * d;
        let mut z = self.backend.zeros(elements)?;
        let slots = &self.layout.modalities[modality];
        self.backend.project(
            &batch,
            features,
            view(&self.parameters, slots.weight.clone()),
            view(&self.parameters, slots.bias.clone()),
            view_mut(&mut z, 0..elements),
        )?;
        self.backend.download(view(&z, 0..items.len() * d))
    }
}
