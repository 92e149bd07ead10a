//! BM3 itself: one training step, written once with the operations of a [`Backend`].
//!
//! It reads like SPEC §2 to §5, top to bottom, and runs on every device.

mod branches;
mod kept;
mod propagation;
mod scoring;
mod state;

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use crate::Result;
use crate::backend::{
    AdamStep, BETA1, BETA2, Backend, BatchRooms, Dropout, FeatureState, LossShape, Rooms, Updated,
    view, view_mut,
};
use crate::batch::Batch;
use crate::config::{Propagation, TrainConfig};
use crate::graph::Graph;
use crate::parameters::Layout;
use crate::real::Real;
use crate::watch::Failure;
use branches::Branches;
pub use kept::{KeptParameters, ParameterValues};
use propagation::last_product;
pub use state::{DenseState, RawFeatures};

/// A model on a device, with everything its training needs.
pub struct DeviceModel<B: Backend> {
    backend: B,
    layout: Layout,
    settings: StepSettings,
    interactions: Arc<Graph>,
    graph: B::Graph,
    parameters: B::Buffer,
    /// Gradients of the parameters after H⁰.
    gradients: B::Buffer,
    first: B::Buffer,
    second: B::Buffer,
    features: Vec<B::Features>,
    losses: B::Losses,
    /// Adam's constants at every step planned so far.
    schedule: B::Schedule,
    /// The number of steps done.
    steps: u32,
    workspace: Workspace<B>,
}

/// The settings that a step needs.
#[derive(Debug, Clone, Copy)]
struct StepSettings {
    layers: usize,
    propagation: Propagation,
    reg_weight: f64,
    cl_weight: f64,
}

/// Buffers that live from one operation of a step to the next.
struct Workspace<B: Backend> {
    /// H, N × d.
    nodes: B::Buffer,
    /// G, and in an evaluation p(H), N × d.
    node_gradient: B::Buffer,
    /// Two N × d buffers for the layers between the first and the last.
    layers: [B::Buffer; 2],
    /// Â H^l of each layer in the paper's form, kept for the backward pass.
    neighbour_sums: Vec<B::Buffer>,
    /// H^{l+1} of each layer in the paper's form.
    activations: Vec<B::Buffer>,
    /// The batch's rows of H and Z, their predictions (then their gradients), and dx: R × d each.
    rows: RowBuffers<B>,
}

struct RowBuffers<B: Backend> {
    capacity: usize,
    x: B::Buffer,
    predicted: B::Buffer,
    gradient: B::Buffer,
}

impl<B: Backend> RowBuffers<B> {
    fn new(backend: &B, capacity: usize) -> Result<Self> {
        Ok(Self {
            capacity,
            x: backend.zeros(capacity)?,
            predicted: backend.zeros(capacity)?,
            gradient: backend.zeros(capacity)?,
        })
    }
}

impl<B: Backend> Workspace<B> {
    /// Makes room for a batch's rows: `elements` numbers in each buffer.
    fn reserve_rows(&mut self, backend: &B, elements: usize) -> Result<()> {
        if self.rows.capacity < elements {
            // Free the old buffers before allocating larger ones.
            self.rows = RowBuffers::new(backend, 0)?;
            self.rows = RowBuffers::new(backend, elements)?;
        }
        Ok(())
    }
}

impl<B: Backend> DeviceModel<B> {
    /// A model on `backend` with initial values drawn from `config`'s seed (SPEC §6), and one
    /// feature source for each modality.
    ///
    /// # Errors
    /// [`crate::Error::Setting`] for features that the chosen type cannot hold,
    /// [`crate::Error::DeviceMemory`] and [`crate::Error::DeviceOperation`].
    pub fn fresh(
        backend: B,
        config: &TrainConfig,
        layout: Layout,
        graph: Arc<Graph>,
        features: Vec<RawFeatures<B::Real>>,
    ) -> Result<Self> {
        let dense = [
            backend.initial_values(&layout, config.seed)?,
            backend.zeros(layout.len())?,
            backend.zeros(layout.len())?,
        ];
        Self::assemble(backend, config, layout, graph, dense, Some(features))
    }

    /// A model on `backend` for scoring only: without features, gradients or moments, it can be
    /// neither trained nor projected.
    ///
    /// # Errors
    /// [`crate::Error::DeviceMemory`] and [`crate::Error::DeviceOperation`].
    pub fn for_scoring(
        backend: B,
        config: &TrainConfig,
        layout: Layout,
        graph: Arc<Graph>,
        parameters: &[B::Real],
    ) -> Result<Self> {
        let dense = [backend.upload(parameters)?, backend.zeros(0)?, backend.zeros(0)?];
        Self::assemble(backend, config, layout, graph, dense, None)
    }

    /// A model on `backend`, from `dense` values and one feature source for each modality.
    ///
    /// # Errors
    /// As for [`DeviceModel::fresh`].
    pub fn new(
        backend: B,
        config: &TrainConfig,
        layout: Layout,
        graph: Arc<Graph>,
        dense: &DenseState<B::Real>,
        features: Vec<RawFeatures<B::Real>>,
    ) -> Result<Self> {
        let dense = [
            backend.upload(&dense.parameters)?,
            backend.upload(&dense.first)?,
            backend.upload(&dense.second)?,
        ];
        Self::assemble(backend, config, layout, graph, dense, Some(features))
    }

    fn assemble(
        mut backend: B,
        config: &TrainConfig,
        layout: Layout,
        graph: Arc<Graph>,
        [parameters, first, second]: [B::Buffer; 3],
        features: Option<Vec<RawFeatures<B::Real>>>,
    ) -> Result<Self> {
        let elements = layout.nodes.len();
        let gradients = if features.is_some() { layout.gradients() } else { 0 };
        let features = features.unwrap_or_default();
        if features.iter().any(|source| matches!(source, RawFeatures::Frozen(_))) {
            backend.store_features_as(config.feature_type)?;
        }
        let features = features
            .into_iter()
            .zip(&layout.modalities)
            .map(|(source, modality)| match source {
                RawFeatures::Frozen(matrix) => backend.frozen_features(matrix, layout.items),
                RawFeatures::Untrained(matrix) => backend.untrained_features(&matrix, layout.items),
                RawFeatures::Trained(state) => backend.trained_features(state, modality.columns),
            })
            .collect::<Result<Vec<_>>>()?;
        let (between, printed) = match config.propagation {
            Propagation::Light if config.layers < 2 => (0, 0),
            Propagation::Light => (elements, 0),
            Propagation::Gcn => (elements, config.layers),
        };
        let zeros = |count: usize| -> Result<Vec<B::Buffer>> {
            (0..count).map(|_| backend.zeros(elements)).collect()
        };
        let workspace = Workspace {
            nodes: backend.zeros(elements)?,
            node_gradient: backend.zeros(elements)?,
            layers: [backend.zeros(between)?, backend.zeros(between)?],
            neighbour_sums: zeros(printed)?,
            activations: zeros(printed)?,
            rows: RowBuffers::new(&backend, 0)?,
        };
        let shape = loss_shape(&layout);
        Ok(Self {
            settings: StepSettings {
                layers: config.layers,
                propagation: config.propagation,
                reg_weight: config.reg_weight,
                cl_weight: config.cl_weight,
            },
            graph: backend.upload_graph(graph.clone())?,
            interactions: graph,
            parameters,
            gradients: backend.zeros(gradients)?,
            first,
            second,
            features,
            losses: backend.losses(&vec![0.0; shape.terms()])?,
            schedule: B::Schedule::default(),
            steps: 0,
            workspace,
            layout,
            backend,
        })
    }

    /// One step on a given batch: forward, loss, backward, Adam (SPEC §2 to §5).
    pub fn step(&mut self, batch: Batch, dropout: &Dropout, learning_rate: f64) -> Result<()> {
        self.plan(&[adam_step(u64::from(self.steps) + 1, learning_rate)])?;
        let batch = self.backend.upload_batch(batch, self.steps + 1)?;
        self.bring_up(&batch)?;
        self.step_on(&batch, dropout)?;
        self.steps += 1;
        Ok(())
    }

    /// Runs the steps of batches `numbers` of the epoch that `batches` is arranged for, asking
    /// `proceed` before each (for several at a time on a GPU), until it says no. Returns how many
    /// were done. Their constants must have been [planned](DeviceModel::plan). A device that does
    /// not run ahead of the host stops after a step with a non-finite value; on any device,
    /// [`DeviceModel::failure`] tells of that step.
    pub fn train(
        &mut self,
        batches: &mut B::Batches,
        numbers: Range<u64>,
        dropout: &Dropout,
        proceed: &mut dyn FnMut() -> bool,
    ) -> Result<u64> {
        let backend = self.backend.clone();
        let looks_ahead = backend.looks_ahead(&self.features);
        if looks_ahead && !numbers.is_empty() {
            // Later steps find their rows brought up by the step before.
            backend.with_batch(batches, numbers.start, &mut |batch| self.bring_up(batch))?;
        }
        let failed = Cell::new(false);
        let mut step = |batch: &B::Batch| {
            if !looks_ahead {
                self.bring_up(batch)?;
            }
            self.step_on(batch, dropout)?;
            failed.set(backend.has_failed(&self.losses));
            Ok(())
        };
        let mut proceed = || !failed.get() && proceed();
        let done = backend.each_batch(batches, numbers, &mut step, &mut proceed)?;
        self.steps += done as u32;
        Ok(done)
    }

    /// Sets Adam's constants for the steps after those done, and forgets any planned for them
    /// before.
    pub fn plan(&mut self, constants: &[AdamStep]) -> Result<()> {
        self.backend.set_schedule(&mut self.schedule, self.steps as usize, constants)
    }

    /// Brings the batch's feature rows up to date with the step before this batch.
    fn bring_up(&mut self, batch: &B::Batch) -> Result<()> {
        for features in &mut self.features {
            self.backend.adam_rows_replay(batch, &self.schedule, features)?;
        }
        Ok(())
    }

    /// Forward, loss, backward and Adam for a batch whose rows have been
    /// [brought up](DeviceModel::bring_up).
    fn step_on(&mut self, batch: &B::Batch, dropout: &Dropout) -> Result<()> {
        let branches = Branches::of(&self.backend, self.layout.modalities.len())?;
        let outcome = self.step_with(&branches, batch, dropout);
        if outcome.is_err() {
            // The branches' buffers may be freed from here on. Report the first failure only.
            for branch in branches.all() {
                branch.synchronize().ok();
            }
        }
        outcome
    }

    /// The same, with work that may overlap queued on branches.
    ///
    /// ```text
    /// nodes      | H, rows of it --+-- |H| ------------+-- scatter, R G and Adam H⁰ -+
    /// modalities | Z_m ------------+                   +-- dW_m, Adam E_m, Adam W_m -+
    /// the device |                 +-- p(x), loss, dx -+-- dW_p, losses, Adam W_p ---+--
    /// ahead      | rows of E_m that the next step needs, brought up to this one -----+
    /// ```
    fn step_with(
        &mut self,
        branches: &Branches<B>,
        batch: &B::Batch,
        dropout: &Dropout,
    ) -> Result<()> {
        let shape = loss_shape(&self.layout);
        let d = shape.embedding_size;
        let Rooms { users, items } = batch.rooms();
        let node_rows = (users + items) * d;
        let rows = shape.rows(batch.rooms()) * d;
        self.workspace.reserve_rows(&self.backend, rows)?;
        branches.fork(&self.backend)?;
        let looks_ahead = self.backend.looks_ahead(&self.features);
        if looks_ahead {
            branches.ahead.after(&self.backend)?;
            for features in &mut self.features {
                branches.ahead.adam_rows_replay_ahead(batch, &self.schedule, features)?;
            }
        }
        let on_nodes = &branches.nodes;
        self.propagate(on_nodes)?;
        let Self { backend, layout, graph, parameters, gradients, features, losses, .. } = self;
        let Workspace { nodes, node_gradient, rows: buffers, .. } = &mut self.workspace;
        let RowBuffers { x, predicted, gradient, .. } = buffers;
        let schedule = &self.schedule;
        let modality_rows = |index: usize| {
            let start = node_rows + index * items * d;
            start..start + items * d
        };
        let parameter = |range: &Range<usize>| view(&*parameters, range.clone());
        let all = 0..layout.nodes.len();

        // (1) Z_m = E_m W_mᵀ + b_m for the batch's items only, after the batch's rows of H.
        on_nodes.gather_rows(graph, batch, view(nodes, all.clone()), view_mut(x, 0..node_rows))?;
        for (index, modality) in layout.modalities.iter().enumerate() {
            let (on_modality, features) = (&branches.modalities[index], &features[index]);
            let (weight, bias) = (parameter(&modality.weight), parameter(&modality.bias));
            let z = view_mut(x, modality_rows(index));
            on_modality.project(batch, features, weight, bias, z)?;
        }
        branches.join(backend)?;

        // G starts as the norms' gradient, on every node.
        let per_item = 1.0 / layout.items as f64;
        let factor = self.settings.reg_weight * per_item;
        let target = view_mut(node_gradient, all.clone());
        let nodes = view(nodes, all.clone());
        on_nodes.norm_backward(graph, nodes, factor, per_item, target, losses)?;

        // (5) p(x), then (4), (6), (8), (9): the loss, whose gradient replaces p(x).
        let weight = || parameter(&layout.predictor_weight);
        let bias = parameter(&layout.predictor_bias);
        let target = view_mut(predicted, 0..rows);
        backend.predict(Some(batch), view(x, 0..rows), weight(), bias, target)?;
        let cl_weight = self.settings.cl_weight;
        let online = view_mut(predicted, 0..rows);
        backend.bootstrap_loss(
            shape,
            batch,
            cl_weight,
            dropout,
            view(x, 0..rows),
            online,
            losses,
        )?;

        // §4: back through the predictor, to the nodes and through the projections.
        let output_gradient = || view(&*predicted, 0..rows);
        let target = view_mut(gradient, 0..rows);
        backend.predict_backward(batch, output_gradient(), weight(), target)?;
        branches.fork(backend)?;
        for (index, modality) in layout.modalities.iter().enumerate() {
            let z_gradient = || view(&*gradient, modality_rows(index));
            let (on_modality, features) = (&branches.modalities[index], &mut features[index]);
            let target = view_mut(gradients, layout.gradient(&modality.projection()));
            on_modality.project_backward(batch, features, z_gradient(), target)?;
            let weight = parameter(&modality.weight);
            on_modality.adam_rows(
                batch,
                z_gradient(),
                weight,
                schedule,
                features,
                index,
                losses,
            )?;
        }
        let target = view_mut(gradients, layout.gradient(&layout.predictor()));
        backend.predict_gradient(batch, output_gradient(), view(x, 0..rows), target)?;
        // The regularisation term is computed on the nodes' branch: wait for it.
        backend.after(on_nodes)?;
        backend.add_losses(shape, batch, losses)?;
        backend.watch_losses(batch, losses)?;

        // Add the batch's rows to G, then compute dH⁰, all but its last product.
        let target = view_mut(node_gradient, all);
        on_nodes.scatter_rows(graph, batch, view(gradient, 0..node_rows), target)?;
        self.propagate_backward(on_nodes)?;

        // §5: each branch updates the dense parameters whose gradients it computed, and H⁰ in the
        // last product.
        let Self { layout, graph, parameters, first, second, losses, .. } = self;
        let (gradients, schedule) = (&self.gradients, &self.schedule);
        let mut update = |branch: &B, range: Range<usize>| {
            let gradient = view(gradients, layout.gradient(&range));
            let updated = Updated { parameters, first, second, range };
            branch.adam(batch, schedule, gradient, updated, losses)
        };
        for (modality, branch) in layout.modalities.iter().zip(&branches.modalities) {
            update(branch, modality.projection())?;
        }
        update(&self.backend, layout.predictor())?;
        if !layout.propagation.is_empty() {
            update(on_nodes, layout.propagation_weights())?;
        }
        let inputs = last_product(&self.settings, &self.workspace, &layout.nodes);
        let updated = Updated { parameters, first, second, range: layout.nodes.clone() };
        on_nodes.spmm_adam(graph, inputs, batch, schedule, updated, losses)?;
        branches.join(&self.backend)?;
        if looks_ahead {
            self.backend.after(&branches.ahead)?;
        }
        Ok(())
    }

    /// The sums of the loss terms over the steps since [`DeviceModel::set_losses`]: ui, iu, align
    /// and mask for each modality, reg (unweighted).
    pub fn losses(&self) -> Result<Vec<f64>> {
        self.backend.read_losses(&self.losses)
    }

    /// The first step in which a loss term, a gradient or a parameter was not finite.
    pub fn failure(&self) -> Result<Option<Failure>> {
        self.backend.failure(&self.losses)
    }

    /// Sets the sums of the loss terms to `sums`.
    pub fn set_losses(&mut self, sums: &[f64]) -> Result<()> {
        self.backend.set_losses(&mut self.losses, sums)
    }

    /// The graph of the training interactions, on the host.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.interactions
    }

    /// The layout of the dense parameters.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }
}

fn loss_shape(layout: &Layout) -> LossShape {
    LossShape { embedding_size: layout.embedding_size, modalities: layout.modalities.len() }
}

/// Adam's constants at step `step` (from 1).
pub fn adam_step(step: u64, learning_rate: f64) -> AdamStep {
    let step = step as f64;
    AdamStep {
        step_size: learning_rate / (1.0 - libm::pow(BETA1, step)),
        root_factor: 1.0 / (1.0 - libm::pow(BETA2, step)).sqrt(),
    }
}

/// lr · γ^(epoch/50), epochs from 0 (SPEC §5).
pub fn learning_rate(config: &TrainConfig, epoch: u64) -> f64 {
    config.learning_rate * libm::pow(config.learning_rate_decay, epoch as f64 / 50.0)
}

/// The loss terms' names, in the order of [`DeviceModel::losses`].
pub fn loss_names(modalities: &[String]) -> Vec<String> {
    let mut names = vec!["ui".to_owned(), "iu".to_owned()];
    for modality in modalities {
        names.push(format!("align.{modality}"));
        names.push(format!("mask.{modality}"));
    }
    names.push("reg".to_owned());
    names
}

/// L from its terms (SPEC §3), in the order of [`loss_names`].
///
/// # Panics
/// With fewer than two terms; a model without modalities has three.
pub fn total_loss(config: &TrainConfig, terms: &[f64]) -> f64 {
    let regularization = terms.last().copied().unwrap_or_default();
    let contrast: f64 = terms.get(2..terms.len() - 1).unwrap_or_default().iter().sum();
    terms[0] + terms[1] + config.cl_weight * contrast + config.reg_weight * regularization
}

/// Features that start from `values`, with no steps applied.
pub fn fresh_features<T: Real>(values: Vec<T>, items: usize) -> FeatureState<T> {
    let zeros = vec![T::ZERO; values.len()];
    FeatureState { first: zeros.clone(), second: zeros, touched: vec![0; items], values }
}
