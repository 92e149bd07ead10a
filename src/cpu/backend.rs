//! The operations of [`Backend`] on the CPU.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::{
    Cpu, CpuBatch, CpuBatches, CpuFeatures, CpuGraph, CpuLosses, CpuWanted, adam, ceilings, gcn,
    instruction_set, loss, parts, projection, read, rows, spmm, top_k, write,
};
use crate::backend::{
    AdamStep, Backend, Dropout, FeatureState, LossShape, SavedFeatures, SpmmInputs, TopK, Updated,
    View, ViewMut,
};
use crate::batch::{Batch, EpochPlan, epoch_order};
use crate::config::{FeatureTypeChoice, TrainConfig};
use crate::data::{Dataset, FeatureMatrix, Pairs, Split};
use crate::graph::Graph;
use crate::parameters::Layout;
use crate::profile::{self, Ceilings, Operation, Timed};
use crate::real::Real;
use crate::records::Metrics;
use crate::step::fresh_features;
use crate::watch::{Failure, Watch, keep_first};
use crate::{Error, Result, evaluate};

impl<T: Real> Backend for Cpu<T> {
    type Real = T;
    type Buffer = Vec<T>;
    type Graph = CpuGraph<T>;
    type Batch = CpuBatch;
    type Batches = CpuBatches;
    type Schedule = Vec<AdamStep>;
    type Features = CpuFeatures<T>;
    type Kept = Vec<T>;
    type Losses = CpuLosses;
    type Lists = TopK;
    type Wanted = CpuWanted;

    fn describe(&self) -> String {
        let threads = rayon::current_num_threads();
        let plural = if threads == 1 { "" } else { "s" };
        format!("CPU ({threads} thread{plural}, {})", instruction_set().name())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    /// Operations use all threads and are complete when they return, so a branch gains nothing.
    fn branch(&self, _: usize) -> Result<Self> {
        Ok(*self)
    }

    fn after(&self, _: &Self) -> Result<()> {
        Ok(())
    }

    fn peak_memory(&self) -> Option<u64> {
        // Linux reports it in kB; other systems do not report it.
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| 1024 * kilobytes)
    }

    fn profile(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Vec<Operation>> {
        profile::record(work)
    }

    fn ceilings(&self) -> Result<Ceilings> {
        Ok(ceilings::ceilings())
    }

    fn zeros(&self, length: usize) -> Result<Vec<T>> {
        Ok(vec![T::ZERO; length])
    }

    fn upload(&self, values: &[T]) -> Result<Vec<T>> {
        Ok(values.to_vec())
    }

    fn download(&self, source: View<'_, Vec<T>>) -> Result<Vec<T>> {
        Ok(read(source).to_vec())
    }

    fn keep(&self, source: View<'_, Vec<T>>) -> Result<Vec<T>> {
        self.download(source)
    }

    fn read_kept(&self, kept: Vec<T>) -> Result<Vec<T>> {
        Ok(kept)
    }

    fn initial_values(&self, layout: &Layout, seed: u64) -> Result<Vec<T>> {
        Ok(layout.initial_values(seed))
    }

    fn upload_graph(&self, graph: Arc<Graph>) -> Result<CpuGraph<T>> {
        Ok(CpuGraph::new(graph))
    }

    fn upload_batch(&self, batch: Batch, step: u32) -> Result<CpuBatch> {
        Ok(CpuBatch { batch, step })
    }

    fn batches(
        &self,
        pairs: &Pairs,
        _users: usize,
        _items: usize,
        batch_size: usize,
    ) -> Result<CpuBatches> {
        Ok(CpuBatches { pairs: pairs.clone(), batch_size, order: Vec::new(), first_step: 1 })
    }

    fn arrange(&self, batches: &mut CpuBatches, epoch: EpochPlan) -> Result<()> {
        let EpochPlan { order, seed, epoch, first_step } = epoch;
        batches.order = epoch_order(order, seed, epoch, batches.pairs.users.len());
        batches.first_step = first_step;
        Ok(())
    }

    fn each_batch(
        &self,
        batches: &mut CpuBatches,
        numbers: Range<u64>,
        step: &mut dyn FnMut(&CpuBatch) -> Result<()>,
        proceed: &mut dyn FnMut() -> bool,
    ) -> Result<u64> {
        for number in numbers.clone() {
            if !proceed() {
                return Ok(number - numbers.start);
            }
            step(&batches.batch(number))?;
        }
        Ok(numbers.end - numbers.start)
    }

    fn with_batch(
        &self,
        batches: &mut CpuBatches,
        number: u64,
        work: &mut dyn FnMut(&CpuBatch) -> Result<()>,
    ) -> Result<()> {
        work(&batches.batch(number))
    }

    fn set_schedule(
        &self,
        schedule: &mut Vec<AdamStep>,
        steps: usize,
        constants: &[AdamStep],
    ) -> Result<()> {
        schedule.truncate(steps);
        schedule.extend_from_slice(constants);
        Ok(())
    }

    fn store_features_as(&mut self, choice: FeatureTypeChoice) -> Result<()> {
        match choice {
            FeatureTypeChoice::Auto | FeatureTypeChoice::F32 => Ok(()),
            FeatureTypeChoice::F16 | FeatureTypeChoice::Bf16 => Err(Error::setting(
                "--feature-type",
                format!(
                    "{choice} found, auto or f32 expected on the CPU, which reads features as \
                     their files have them (`bm3-engine prepare --feature-type f16` writes f16)"
                ),
            )),
        }
    }

    fn place_features(
        &mut self,
        _dataset: &Dataset,
        _graph: &Graph,
        _config: &TrainConfig,
    ) -> Result<Option<String>> {
        // Features stay in their mapped files.
        Ok(None)
    }

    fn frozen_features(
        &self,
        features: Arc<FeatureMatrix>,
        _items: usize,
    ) -> Result<CpuFeatures<T>> {
        Ok(CpuFeatures::Frozen(features))
    }

    fn trained_features(&self, state: FeatureState<T>, columns: usize) -> Result<CpuFeatures<T>> {
        Ok(CpuFeatures::Trained { state, columns })
    }

    fn untrained_features(&self, features: &FeatureMatrix, items: usize) -> Result<CpuFeatures<T>> {
        let columns = features.columns();
        let mut values = vec![T::ZERO; items * columns];
        values.par_chunks_mut(columns).enumerate().for_each(|(row, values)| {
            features.copy_row(row, 0..columns, values);
        });
        self.trained_features(fresh_features(values, items), columns)
    }

    fn feature_state<'a>(
        &self,
        features: &'a CpuFeatures<T>,
    ) -> Result<Option<SavedFeatures<'a, T>>> {
        Ok(match features {
            CpuFeatures::Frozen(_) => None,
            CpuFeatures::Trained { state, .. } => Some(Cow::Borrowed(state)),
        })
    }

    fn keep_features(&self, features: &CpuFeatures<T>) -> Result<Option<Vec<T>>> {
        Ok(match features {
            CpuFeatures::Frozen(_) => None,
            CpuFeatures::Trained { state, .. } => Some(state.values.clone()),
        })
    }

    fn losses(&self, sums: &[f64]) -> Result<CpuLosses> {
        Ok(CpuLosses {
            sums: sums.to_vec(),
            found: vec![0.0; sums.len()],
            watch: Watch::new(LossShape::modalities_of(sums.len())),
        })
    }

    fn set_losses(&self, losses: &mut CpuLosses, sums: &[f64]) -> Result<()> {
        losses.sums.copy_from_slice(sums);
        Ok(())
    }

    fn read_losses(&self, losses: &CpuLosses) -> Result<Vec<f64>> {
        Ok(losses.sums.clone())
    }

    fn failure(&self, losses: &CpuLosses) -> Result<Option<Failure>> {
        Ok(losses.watch.first())
    }

    fn has_failed(&self, losses: &CpuLosses) -> bool {
        losses.watch.first().is_some()
    }

    fn spmm(
        &self,
        graph: &CpuGraph<T>,
        inputs: SpmmInputs<'_, Vec<T>>,
        y: ViewMut<'_, Vec<T>>,
    ) -> Result<()> {
        let n = y.range.len();
        let product = spmm::Product::new(graph, inputs, n);
        let (gathered, flops) = product.gathering();
        let _timed = Timed::new("spmm", gathered + 2 * n, flops + 2 * n);
        product.write(write(y));
        Ok(())
    }

    fn spmm_adam(
        &self,
        graph: &CpuGraph<T>,
        inputs: SpmmInputs<'_, Vec<T>>,
        batch: &CpuBatch,
        schedule: &Vec<AdamStep>,
        updated: Updated<'_, Vec<T>>,
        losses: &mut CpuLosses,
    ) -> Result<()> {
        let (start, n) = (updated.range.start, updated.range.len());
        let product = spmm::Product::new(graph, inputs, n);
        let (gathered, flops) = product.gathering();
        let _timed = Timed::new("spmm_adam", gathered + 7 * n, flops + 16 * n);
        let wrong = product.update(batch.constants(schedule), parts(updated));
        batch.watch_dense(losses, start, wrong);
        Ok(())
    }

    fn gcn_layer(
        &self,
        x: View<'_, Vec<T>>,
        weight: View<'_, Vec<T>>,
        y: ViewMut<'_, Vec<T>>,
    ) -> Result<()> {
        let weight = read(weight);
        gcn::layer(read(x), weight, weight.len().isqrt(), write(y));
        Ok(())
    }

    fn gcn_layer_backward(
        &self,
        x: View<'_, Vec<T>>,
        weight: View<'_, Vec<T>>,
        y: View<'_, Vec<T>>,
        y_gradient: ViewMut<'_, Vec<T>>,
        x_gradient: ViewMut<'_, Vec<T>>,
        weight_gradient: ViewMut<'_, Vec<T>>,
    ) -> Result<()> {
        let gradients = [write(y_gradient), write(x_gradient), write(weight_gradient)];
        gcn::layer_backward(read(x), read(weight), read(y), gradients);
        Ok(())
    }

    fn add_scaled(&self, factor: f64, x: View<'_, Vec<T>>, y: ViewMut<'_, Vec<T>>) -> Result<()> {
        rows::add_scaled(T::from_f64(factor), read(x), write(y));
        Ok(())
    }

    fn gather_rows(
        &self,
        graph: &CpuGraph<T>,
        batch: &CpuBatch,
        nodes: View<'_, Vec<T>>,
        rows: ViewMut<'_, Vec<T>>,
    ) -> Result<()> {
        let _timed = Timed::new("gather_rows", 2 * rows.range.len(), 0);
        let (nodes, rows) = (read(nodes), write(rows));
        let width = nodes.len() / graph.graph.nodes();
        let (users, items) = rows.split_at_mut(batch.batch.users.len() * width);
        rows::gather(nodes, &batch.batch.users, width, users);
        rows::gather(&nodes[graph.graph.users() * width..], &batch.batch.items, width, items);
        Ok(())
    }

    fn project(
        &self,
        batch: &CpuBatch,
        features: &CpuFeatures<T>,
        weight: View<'_, Vec<T>>,
        bias: View<'_, Vec<T>>,
        z: ViewMut<'_, Vec<T>>,
    ) -> Result<()> {
        let (n, d, wide) = (batch.batch.items.len(), bias.range.len(), features.columns());
        let _timed = Timed::new("project", (n + d) * wide + n * d, 2 * n * d * wide);
        projection::project(features, &batch.batch.items, read(weight), read(bias), write(z));
        Ok(())
    }

    fn predict(
        &self,
        _batch: Option<&CpuBatch>,
        x: View<'_, Vec<T>>,
        weight: View<'_, Vec<T>>,
        bias: View<'_, Vec<T>>,
        p: ViewMut<'_, Vec<T>>,
    ) -> Result<()> {
        let (elements, d) = (x.range.len(), bias.range.len());
        let _timed = Timed::new("predict", 2 * elements + d * d, 2 * elements * d);
        projection::predict(read(x), read(weight), read(bias), write(p));
        Ok(())
    }

    fn bootstrap_loss(
        &self,
        shape: LossShape,
        batch: &CpuBatch,
        cl_weight: f64,
        dropout: &Dropout,
        x: View<'_, Vec<T>>,
        predicted: ViewMut<'_, Vec<T>>,
        losses: &mut CpuLosses,
    ) -> Result<()> {
        let (elements, d) = (x.range.len(), shape.embedding_size);
        let pairs = batch.batch.pairs() * d;
        let _timed =
            Timed::new("bootstrap_loss", 3 * elements + 2 * pairs, 12 * elements + 2 * pairs);
        let (x, predicted) = (read(x), write(predicted));
        losses.found.fill(0.0);
        loss::bootstrap_loss(shape, batch, cl_weight, dropout, x, predicted, &mut losses.found);
        Ok(())
    }

    fn add_losses(
        &self,
        _shape: LossShape,
        _batch: &CpuBatch,
        losses: &mut CpuLosses,
    ) -> Result<()> {
        losses.sums.iter_mut().zip(&losses.found).for_each(|(sum, found)| *sum += found);
        Ok(())
    }

    fn watch_losses(&self, batch: &CpuBatch, losses: &mut CpuLosses) -> Result<()> {
        if losses.watch.loss.is_none() {
            let wrong = losses.sums.iter().position(|sum| !sum.is_finite());
            losses.watch.loss = wrong.map(|term| (batch.step, term as u32, losses.sums[term]));
        }
        Ok(())
    }

    fn predict_backward(
        &self,
        _batch: &CpuBatch,
        output_gradient: View<'_, Vec<T>>,
        weight: View<'_, Vec<T>>,
        input_gradient: ViewMut<'_, Vec<T>>,
    ) -> Result<()> {
        let (elements, d) = (output_gradient.range.len(), weight.range.len().isqrt());
        let _timed = Timed::new("predict_backward", 2 * elements + d * d, 2 * elements * d);
        let (output_gradient, weight) = (read(output_gradient), read(weight));
        projection::predict_backward(output_gradient, weight, write(input_gradient));
        Ok(())
    }

    fn predict_gradient(
        &self,
        _batch: &CpuBatch,
        output_gradient: View<'_, Vec<T>>,
        x: View<'_, Vec<T>>,
        gradient: ViewMut<'_, Vec<T>>,
    ) -> Result<()> {
        let (elements, parameters) = (x.range.len(), gradient.range.len());
        // There are d² + d parameters.
        let d = parameters.isqrt();
        let _timed = Timed::new("predict_gradient", 2 * elements + parameters, 2 * elements * d);
        projection::predict_gradient(read(output_gradient), read(x), d, write(gradient));
        Ok(())
    }

    fn project_backward(
        &self,
        batch: &CpuBatch,
        features: &CpuFeatures<T>,
        z_gradient: View<'_, Vec<T>>,
        gradient: ViewMut<'_, Vec<T>>,
    ) -> Result<()> {
        let (dz, parameters) = (z_gradient.range.len(), gradient.range.len());
        let (n, wide) = (batch.batch.items.len(), features.columns());
        let _timed = Timed::new("project_backward", n * wide + dz + parameters, 2 * dz * wide);
        let (z_gradient, gradient) = (read(z_gradient), write(gradient));
        let width = gradient.len() / (features.columns() + 1);
        projection::project_backward(features, &batch.batch.items, z_gradient, width, gradient);
        Ok(())
    }

    fn norm_backward(
        &self,
        graph: &CpuGraph<T>,
        nodes: View<'_, Vec<T>>,
        factor: f64,
        loss_factor: f64,
        gradient: ViewMut<'_, Vec<T>>,
        losses: &mut CpuLosses,
    ) -> Result<()> {
        let elements = nodes.range.len();
        let _timed = Timed::new("norm_backward", 3 * elements, 3 * elements);
        let nodes = read(nodes);
        let user_elements = nodes.len() / graph.graph.nodes() * graph.graph.users();
        let norms = rows::norm_gradients(nodes, user_elements, factor, write(gradient));
        if let Some(regularization) = losses.sums.last_mut() {
            *regularization += loss_factor * (norms[0] + norms[1]);
        }
        Ok(())
    }

    fn scatter_rows(
        &self,
        graph: &CpuGraph<T>,
        batch: &CpuBatch,
        rows: View<'_, Vec<T>>,
        nodes: ViewMut<'_, Vec<T>>,
    ) -> Result<()> {
        let _timed = Timed::new("scatter_rows", 3 * rows.range.len(), rows.range.len());
        let (rows, nodes) = (read(rows), write(nodes));
        let width = nodes.len() / graph.graph.nodes();
        let (user_rows, item_rows) = rows.split_at(batch.batch.users.len() * width);
        let (users, items) = nodes.split_at_mut(graph.graph.users() * width);
        rows::scatter_add(user_rows, &batch.batch.users, width, users);
        rows::scatter_add(item_rows, &batch.batch.items, width, items);
        Ok(())
    }

    fn adam(
        &self,
        batch: &CpuBatch,
        schedule: &Vec<AdamStep>,
        gradients: View<'_, Vec<T>>,
        updated: Updated<'_, Vec<T>>,
        losses: &mut CpuLosses,
    ) -> Result<()> {
        let (start, n) = (updated.range.start, updated.range.len());
        let _timed = Timed::new("adam", 7 * n, 14 * n);
        let step = batch.constants(schedule);
        let wrong = adam::adam(step, read(gradients), parts(updated));
        batch.watch_dense(losses, start, wrong);
        Ok(())
    }

    fn adam_rows_replay(
        &self,
        batch: &CpuBatch,
        schedule: &Vec<AdamStep>,
        features: &mut CpuFeatures<T>,
    ) -> Result<()> {
        if let CpuFeatures::Trained { state, columns } = features {
            let elements = batch.batch.items.len() * *columns;
            let _timed = Timed::new("adam_rows_replay", 6 * elements, 14 * elements);
            let before = &schedule[..batch.step as usize - 1];
            adam::replay(before, &batch.batch.items, *columns, state);
        }
        Ok(())
    }

    fn adam_rows_replay_all(
        &self,
        last: u32,
        schedule: &Vec<AdamStep>,
        features: &mut CpuFeatures<T>,
    ) -> Result<()> {
        if let CpuFeatures::Trained { state, columns } = features {
            let all: Vec<u32> = (0..state.touched.len() as u32).collect();
            adam::replay(&schedule[..last as usize], &all, *columns, state);
        }
        Ok(())
    }

    fn adam_rows(
        &self,
        batch: &CpuBatch,
        z_gradient: View<'_, Vec<T>>,
        weight: View<'_, Vec<T>>,
        schedule: &Vec<AdamStep>,
        features: &mut CpuFeatures<T>,
        modality: usize,
        losses: &mut CpuLosses,
    ) -> Result<()> {
        if let CpuFeatures::Trained { state, columns } = features {
            let (z_gradient, weight) = (read(z_gradient), read(weight));
            let (elements, dz) = (batch.batch.items.len() * *columns, z_gradient.len());
            let _timed = Timed::new(
                "adam_rows",
                6 * elements + dz + weight.len(),
                14 * elements + 2 * dz * *columns,
            );
            let history = &schedule[..batch.step as usize];
            let items = &batch.batch.items;
            let wrong = adam::adam_rows(history, items, z_gradient, weight, *columns, state);
            if let Some(position) = wrong {
                let seen = &mut losses.watch.features[modality];
                keep_first(seen, (batch.step, items[position]));
            }
        }
        Ok(())
    }

    fn top_k(
        &self,
        graph: &CpuGraph<T>,
        predicted: View<'_, Vec<T>>,
        users: &[u32],
        k: usize,
    ) -> Result<TopK> {
        let (elements, scores) = (predicted.range.len(), users.len() * graph.graph.items());
        let width = elements / graph.graph.nodes().max(1);
        let _timed = Timed::new("top_k", elements + 2 * users.len() * k, 2 * scores * width);
        Ok(top_k::top_k(&graph.graph, read(predicted), users, k))
    }

    fn read_lists(&self, lists: TopK) -> Result<TopK> {
        Ok(lists)
    }

    fn wanted(&self, split: &Split, users: &[u32], lengths: &[usize]) -> Result<CpuWanted> {
        let (users, lengths) = (users.to_vec(), lengths.to_vec());
        Ok(CpuWanted { split: split.clone(), users, lengths })
    }

    fn metrics(&self, wanted: &CpuWanted, lists: &TopK) -> Result<Metrics> {
        let CpuWanted { split, users, lengths } = wanted;
        let _timed = Timed::new("metrics", users.len() * lists.k + split.items.len(), 0);
        Ok(evaluate::metrics(split, users, lists, lengths))
    }
}
