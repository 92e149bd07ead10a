//! The operations of [`Backend`] on a GPU.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use super::batches::{CudaBatch, CudaBatches};
use super::dense::Rows;
use super::features::Replay;
use super::launch::Address;
use super::stream::FeatureStream;
use super::upload::frozen_table;
use super::{
    Cuda, CudaFeatures, CudaGraph, CudaKept, CudaLists, CudaLosses, CudaSchedule, CudaWanted,
    Device, FeaturePlacement, Memory, Placement, RunGraph, Shared, StoredType, dense, features,
    loss, random, ranking, rows, spmm,
};
use crate::Result;
use crate::backend::{
    AdamStep, Backend, Dropout, FeatureState, LossShape, SavedFeatures, SpmmInputs, TopK, Updated,
    View, ViewMut,
};
use crate::batch::{Batch, EpochPlan};
use crate::config::{FeatureTypeChoice, TrainConfig};
use crate::data::{Dataset, FeatureMatrix, Pairs, Split};
use crate::graph::Graph;
use crate::parameters::Layout;
use crate::profile::{Ceilings, Operation};
use crate::records::Metrics;
use crate::watch::Failure;

/// The address of a view's first element.
fn address(view: &View<'_, Memory<f32>>) -> Address {
    address_in(view.buffer, &view.range)
}

/// The same for a writable view.
fn address_mut(view: &ViewMut<'_, Memory<f32>>) -> Address {
    address_in(view.buffer, &view.range)
}

fn address_in(buffer: &Memory<f32>, range: &Range<usize>) -> Address {
    assert!(range.end <= buffer.len(), "{range:?} of {buffer:?}");
    buffer.address_of(range.start)
}

/// The addresses of x and the base; null where there is none.
fn places_of(inputs: &SpmmInputs<'_, Memory<f32>>) -> [Address; 2] {
    [&inputs.x, &inputs.base].map(|view| view.as_ref().map_or(Address::NULL, address))
}

/// The addresses of the arenas' first elements.
fn arenas_of(updated: &Updated<'_, Memory<f32>>) -> [Address; 3] {
    let Updated { parameters, first, second, range } = updated;
    [parameters, first, second].map(|buffer| {
        assert!(range.end <= buffer.len(), "{range:?} of {buffer:?}");
        buffer.address_of(0)
    })
}

/// d, from the size of a matrix over all nodes.
fn width_of(graph: &CudaGraph, elements: usize) -> usize {
    elements / graph.graph.nodes().max(1)
}

impl Backend for Cuda {
    type Real = f32;
    type Buffer = Memory<f32>;
    type Graph = RunGraph;
    type Batch = CudaBatch;
    type Batches = CudaBatches;
    type Schedule = CudaSchedule;
    type Features = CudaFeatures;
    type Kept = CudaKept;
    type Losses = CudaLosses;
    type Lists = CudaLists;
    type Wanted = CudaWanted;

    fn describe(&self) -> String {
        self.device.describe()
    }

    fn synchronize(&self) -> Result<()> {
        self.device.synchronize()
    }

    fn branch(&self, number: usize) -> Result<Self> {
        Ok(Self { device: Device::branch(&self.device, number)?, ..self.clone() })
    }

    fn after(&self, other: &Self) -> Result<()> {
        self.device.after(&other.device)
    }

    fn peak_memory(&self) -> Option<u64> {
        self.device.peak_memory()
    }

    fn profile(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Vec<Operation>> {
        self.device.profile(work)
    }

    fn ceilings(&self) -> Result<Ceilings> {
        self.device.ceilings()
    }

    fn zeros(&self, length: usize) -> Result<Memory<f32>> {
        Memory::zeros(&self.device, length, "parameters and rows")
    }

    fn upload(&self, values: &[f32]) -> Result<Memory<f32>> {
        Memory::from_slice(&self.device, values, "parameters")
    }

    fn download(&self, source: View<'_, Memory<f32>>) -> Result<Vec<f32>> {
        source.buffer.read(source.range)
    }

    fn keep(&self, source: View<'_, Memory<f32>>) -> Result<CudaKept> {
        let View { buffer, range } = source;
        if !self.keeps_dense {
            return buffer.read(range).map(CudaKept::Host);
        }
        let copy = buffer.copy(range.clone(), "parameters of the best epoch");
        CudaKept::new(copy, || buffer.read(range))
    }

    fn read_kept(&self, kept: CudaKept) -> Result<Vec<f32>> {
        kept.read()
    }

    fn initial_values(&self, layout: &Layout, seed: u64) -> Result<Memory<f32>> {
        random::initial_values(&self.device, layout, seed)
    }

    fn upload_graph(&self, graph: Arc<Graph>) -> Result<RunGraph> {
        let graph = match &self.pool {
            None => Shared::own(CudaGraph::new(&self.device, graph)?),
            Some(pool) => pool.graph(graph, &self.device)?,
        };
        RunGraph::new(&self.device, graph)
    }

    fn upload_batch(&self, batch: Batch, step: u32) -> Result<CudaBatch> {
        if let Some(stream) = &self.stream {
            stream.load(&batch.items)?;
        }
        CudaBatch::new(&self.device, &batch, step)
    }

    fn batches(
        &self,
        pairs: &Pairs,
        users: usize,
        items: usize,
        batch_size: usize,
    ) -> Result<CudaBatches> {
        let streams = self.stream.is_some();
        CudaBatches::new(&self.device, pairs, users, items, batch_size, streams)
    }

    fn arrange(&self, batches: &mut CudaBatches, epoch: EpochPlan) -> Result<()> {
        batches.arrange(&self.device, epoch)
    }

    fn each_batch(
        &self,
        batches: &mut CudaBatches,
        numbers: Range<u64>,
        step: &mut dyn FnMut(&CudaBatch) -> Result<()>,
        proceed: &mut dyn FnMut() -> bool,
    ) -> Result<u64> {
        batches.each(&self.device, numbers, step, proceed, self.stream.as_deref())
    }

    fn with_batch(
        &self,
        batches: &mut CudaBatches,
        number: u64,
        work: &mut dyn FnMut(&CudaBatch) -> Result<()>,
    ) -> Result<()> {
        batches.with(&self.device, number, work)
    }

    fn set_schedule(
        &self,
        schedule: &mut CudaSchedule,
        steps: usize,
        constants: &[AdamStep],
    ) -> Result<()> {
        schedule.set(&self.device, steps, constants)
    }

    fn store_features_as(&mut self, choice: FeatureTypeChoice) -> Result<()> {
        self.stored = StoredType::chosen(choice).or(self.stored);
        Ok(())
    }

    fn place_features(
        &mut self,
        dataset: &Dataset,
        graph: &Graph,
        config: &TrainConfig,
    ) -> Result<Option<String>> {
        let (free, _) = self.device.memory_of_all()?;
        let free = self.budget.map_or(free, |budget| budget.min(free));
        let limit = self.device.left_of_limit();
        let placement = Placement::decide(dataset, graph, config, self.storage, free, limit);
        self.stream = match &placement.features {
            FeaturePlacement::Resident | FeaturePlacement::Trained { .. } => None,
            FeaturePlacement::Streamed { kept, room } => {
                let kept = kept.clone();
                Some(Arc::new(FeatureStream::new(&self.device, dataset.items, kept, *room)?))
            }
        };
        self.keeps_dense = self.has_room_for_dense || placement.keeps_dense;
        self.keeps_features = placement.features == FeaturePlacement::Trained { keeps_best: true };
        Ok(placement.describe(dataset, config))
    }

    fn frozen_features(&self, features: Arc<FeatureMatrix>, items: usize) -> Result<CudaFeatures> {
        let stored = self.stored.unwrap_or(StoredType::of(features.dtype()));
        let columns = features.columns();
        match &self.stream {
            None => {
                let (device, progress) = (&self.device, &*self.progress);
                let table = match &self.pool {
                    None => Shared::own(frozen_table(device, &features, items, stored, progress)?),
                    Some(pool) => pool.features(&features, items, stored, device, progress)?,
                };
                Ok(CudaFeatures::frozen(table, stored, columns, items))
            }
            Some(stream) => {
                let values = stream.add(features, stored, &*self.progress)?;
                Ok(CudaFeatures::streamed(stream.clone(), values, stored, columns, items))
            }
        }
    }

    fn trained_features(&self, state: FeatureState<f32>, columns: usize) -> Result<CudaFeatures> {
        CudaFeatures::trained(&self.device, &state, columns)
    }

    fn untrained_features(&self, features: &FeatureMatrix, items: usize) -> Result<CudaFeatures> {
        CudaFeatures::untrained(&self.device, features, items, &*self.progress)
    }

    fn feature_state<'a>(
        &self,
        features: &'a CudaFeatures,
    ) -> Result<Option<SavedFeatures<'a, f32>>> {
        Ok(features.state()?.map(Cow::Owned))
    }

    fn keep_features(&self, features: &CudaFeatures) -> Result<Option<CudaKept>> {
        features.keep(self.keeps_features)
    }

    fn losses(&self, sums: &[f64]) -> Result<CudaLosses> {
        CudaLosses::new(&self.device, sums)
    }

    fn set_losses(&self, losses: &mut CudaLosses, sums: &[f64]) -> Result<()> {
        losses.sums.write(0, sums, "loss terms")
    }

    fn read_losses(&self, losses: &CudaLosses) -> Result<Vec<f64>> {
        losses.sums.read(0..losses.sums.len())
    }

    fn failure(&self, losses: &CudaLosses) -> Result<Option<Failure>> {
        Ok(losses.watch()?.first())
    }

    fn has_failed(&self, _: &CudaLosses) -> bool {
        // Asking would stall the host, so the device is asked once per epoch.
        false
    }

    fn spmm(
        &self,
        graph: &RunGraph,
        inputs: SpmmInputs<'_, Memory<f32>>,
        y: ViewMut<'_, Memory<f32>>,
    ) -> Result<()> {
        let width = width_of(graph, y.range.len());
        let target = spmm::Target::Write(address_mut(&y));
        spmm::spmm(&self.device, graph, places_of(&inputs), inputs.factors, &target, width)
    }

    fn spmm_adam(
        &self,
        graph: &RunGraph,
        inputs: SpmmInputs<'_, Memory<f32>>,
        batch: &CudaBatch,
        schedule: &CudaSchedule,
        updated: Updated<'_, Memory<f32>>,
        losses: &mut CudaLosses,
    ) -> Result<()> {
        let width = width_of(graph, updated.range.len());
        let target = spmm::Target::Adam {
            batch,
            schedule: schedule.address(),
            arenas: arenas_of(&updated),
            begin: updated.range.start as u64,
            losses,
        };
        spmm::spmm(&self.device, graph, places_of(&inputs), inputs.factors, &target, width)
    }

    fn gcn_layer(
        &self,
        x: View<'_, Memory<f32>>,
        weight: View<'_, Memory<f32>>,
        y: ViewMut<'_, Memory<f32>>,
    ) -> Result<()> {
        let width = weight.range.len().isqrt();
        let (elements, out) = (y.range.len(), address_mut(&y));
        let shape = (elements / width, width);
        dense::multiply_plain(&self.device, Rows::ALL, address(&x), address(&weight), out, shape)?;
        dense::leaky_relu(&self.device, out, elements)
    }

    fn gcn_layer_backward(
        &self,
        x: View<'_, Memory<f32>>,
        weight: View<'_, Memory<f32>>,
        y: View<'_, Memory<f32>>,
        y_gradient: ViewMut<'_, Memory<f32>>,
        x_gradient: ViewMut<'_, Memory<f32>>,
        weight_gradient: ViewMut<'_, Memory<f32>>,
    ) -> Result<()> {
        let width = weight.range.len().isqrt();
        let elements = y_gradient.range.len();
        let shape = (elements / width, width);
        let (device, all) = (&self.device, Rows::ALL);
        let (dt, out) = (address_mut(&y_gradient), address_mut(&weight_gradient));
        dense::leaky_relu_backward(device, address(&y), dt, elements)?;
        dense::multiply_gradient(device, all, address(&x), dt, out, shape)?;
        let (weight, out) = (address(&weight), address_mut(&x_gradient));
        dense::multiply_transposed(device, all, dt, weight, Address::NULL, out, shape)
    }

    fn add_scaled(
        &self,
        factor: f64,
        x: View<'_, Memory<f32>>,
        y: ViewMut<'_, Memory<f32>>,
    ) -> Result<()> {
        rows::add_scaled(&self.device, factor, address(&x), address_mut(&y), y.range.len())
    }

    fn gather_rows(
        &self,
        graph: &RunGraph,
        batch: &CudaBatch,
        nodes: View<'_, Memory<f32>>,
        rows: ViewMut<'_, Memory<f32>>,
    ) -> Result<()> {
        let width = width_of(graph, nodes.range.len());
        let places = (address(&nodes), address_mut(&rows));
        rows::move_rows(&self.device, "gather_rows", graph, batch, places, width)
    }

    fn project(
        &self,
        batch: &CudaBatch,
        features: &CudaFeatures,
        weight: View<'_, Memory<f32>>,
        bias: View<'_, Memory<f32>>,
        z: ViewMut<'_, Memory<f32>>,
    ) -> Result<()> {
        let width = bias.range.len();
        let parameters = (address(&weight), address(&bias));
        features::project(&self.device, batch, features, parameters, width, address_mut(&z))
    }

    fn predict(
        &self,
        batch: Option<&CudaBatch>,
        x: View<'_, Memory<f32>>,
        weight: View<'_, Memory<f32>>,
        bias: View<'_, Memory<f32>>,
        p: ViewMut<'_, Memory<f32>>,
    ) -> Result<()> {
        let width = bias.range.len();
        let shape = (x.range.len() / width, width);
        let (x, weight, bias) = (address(&x), address(&weight), address(&bias));
        let over = batch.map_or(Rows::ALL, Rows::of);
        dense::multiply_transposed(&self.device, over, x, weight, bias, address_mut(&p), shape)
    }

    fn bootstrap_loss(
        &self,
        shape: LossShape,
        batch: &CudaBatch,
        cl_weight: f64,
        dropout: &Dropout,
        x: View<'_, Memory<f32>>,
        predicted: ViewMut<'_, Memory<f32>>,
        losses: &mut CudaLosses,
    ) -> Result<()> {
        let rows = (address(&x), address_mut(&predicted));
        loss::bootstrap_loss(&self.device, shape, batch, cl_weight, dropout, rows, losses)
    }

    fn add_losses(
        &self,
        shape: LossShape,
        batch: &CudaBatch,
        losses: &mut CudaLosses,
    ) -> Result<()> {
        loss::add_losses(&self.device, shape, batch, losses)
    }

    fn watch_losses(&self, batch: &CudaBatch, losses: &mut CudaLosses) -> Result<()> {
        loss::watch_losses(&self.device, batch, losses)
    }

    fn predict_backward(
        &self,
        batch: &CudaBatch,
        output_gradient: View<'_, Memory<f32>>,
        weight: View<'_, Memory<f32>>,
        input_gradient: ViewMut<'_, Memory<f32>>,
    ) -> Result<()> {
        let width = weight.range.len().isqrt();
        let shape = (input_gradient.range.len() / width, width);
        let (da, weight) = (address(&output_gradient), address(&weight));
        let out = address_mut(&input_gradient);
        dense::multiply_plain(&self.device, Rows::of(batch), da, weight, out, shape)
    }

    fn predict_gradient(
        &self,
        batch: &CudaBatch,
        output_gradient: View<'_, Memory<f32>>,
        x: View<'_, Memory<f32>>,
        gradient: ViewMut<'_, Memory<f32>>,
    ) -> Result<()> {
        // The gradient has d² + d elements.
        let width = gradient.range.len().isqrt();
        let shape = (x.range.len() / width, width);
        let (da, target) = (address(&output_gradient), address_mut(&gradient));
        let over = Rows::of(batch);
        let bias = gradient.buffer.address_of(gradient.range.start + width * width);
        // Rows that the batch does not fill have gradient 0, so all can be summed.
        let sums = |side: &_| dense::column_sums(side, Address::NULL, da, shape.0, width, bias);
        let products =
            || dense::multiply_gradient(&self.device, over, da, address(&x), target, shape);
        Device::beside(&self.device, sums, products)
    }

    fn project_backward(
        &self,
        batch: &CudaBatch,
        features: &CudaFeatures,
        z_gradient: View<'_, Memory<f32>>,
        gradient: ViewMut<'_, Memory<f32>>,
    ) -> Result<()> {
        let width = gradient.range.len() / (features.columns() + 1);
        let bias = gradient.buffer.address_of(gradient.range.start + width * features.columns());
        let targets = (address_mut(&gradient), bias);
        let dz = address(&z_gradient);
        features::project_backward(&self.device, batch, features, dz, width, targets)
    }

    fn norm_backward(
        &self,
        graph: &RunGraph,
        nodes: View<'_, Memory<f32>>,
        factor: f64,
        loss_factor: f64,
        gradient: ViewMut<'_, Memory<f32>>,
        losses: &mut CudaLosses,
    ) -> Result<()> {
        let elements = nodes.range.len();
        let user_elements = width_of(graph, elements) * graph.graph.users();
        let loss = losses.sums.address_of(losses.sums.len() - 1);
        rows::norm_backward(
            &self.device,
            (address(&nodes), address_mut(&gradient)),
            (user_elements, elements),
            (factor, loss_factor),
            loss,
        )
    }

    fn scatter_rows(
        &self,
        graph: &RunGraph,
        batch: &CudaBatch,
        rows: View<'_, Memory<f32>>,
        nodes: ViewMut<'_, Memory<f32>>,
    ) -> Result<()> {
        let width = width_of(graph, nodes.range.len());
        let places = (address(&rows), address_mut(&nodes));
        rows::move_rows(&self.device, "scatter_rows", graph, batch, places, width)
    }

    fn adam(
        &self,
        batch: &CudaBatch,
        schedule: &CudaSchedule,
        gradients: View<'_, Memory<f32>>,
        updated: Updated<'_, Memory<f32>>,
        losses: &mut CudaLosses,
    ) -> Result<()> {
        assert_eq!(gradients.range.len(), updated.range.len(), "a gradient for each parameter");
        let (gradients, arenas) = (address(&gradients), arenas_of(&updated));
        let schedule = schedule.address();
        dense::adam(&self.device, batch, schedule, gradients, arenas, updated.range, losses)
    }

    fn adam_rows_replay(
        &self,
        batch: &CudaBatch,
        schedule: &CudaSchedule,
        features: &mut CudaFeatures,
    ) -> Result<()> {
        features::replay(&self.device, Replay::Batch(batch), schedule.address(), features)
    }

    fn looks_ahead(&self, features: &[CudaFeatures]) -> bool {
        features.iter().any(CudaFeatures::is_trained)
    }

    fn adam_rows_replay_ahead(
        &self,
        batch: &CudaBatch,
        schedule: &CudaSchedule,
        features: &mut CudaFeatures,
    ) -> Result<()> {
        features::replay(&self.device, Replay::Ahead(batch), schedule.address(), features)
    }

    fn adam_rows_replay_all(
        &self,
        last: u32,
        schedule: &CudaSchedule,
        features: &mut CudaFeatures,
    ) -> Result<()> {
        features::replay(&self.device, Replay::All(last), schedule.address(), features)
    }

    fn adam_rows(
        &self,
        batch: &CudaBatch,
        z_gradient: View<'_, Memory<f32>>,
        weight: View<'_, Memory<f32>>,
        schedule: &CudaSchedule,
        features: &mut CudaFeatures,
        modality: usize,
        losses: &mut CudaLosses,
    ) -> Result<()> {
        let width = weight.range.len() / features.columns();
        let places = (address(&z_gradient), address(&weight), losses.watch_of(modality));
        features::adam_rows(&self.device, batch, places, width, schedule.address(), features)
    }

    fn top_k(
        &self,
        graph: &RunGraph,
        predicted: View<'_, Memory<f32>>,
        users: &[u32],
        k: usize,
    ) -> Result<CudaLists> {
        let width = width_of(graph, predicted.range.len());
        ranking::top_k(&self.device, graph, address(&predicted), width, users, k)
    }

    fn read_lists(&self, lists: CudaLists) -> Result<TopK> {
        lists.read()
    }

    fn wanted(&self, split: &Split, users: &[u32], lengths: &[usize]) -> Result<CudaWanted> {
        CudaWanted::new(&self.device, split, users, lengths)
    }

    fn metrics(&self, wanted: &CudaWanted, lists: &CudaLists) -> Result<Metrics> {
        wanted.metrics(&self.device, lists)
    }
}
