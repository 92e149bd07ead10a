//! The operations a device offers to the step.
//!
//! Their names follow the maths of SPEC §2–§5, and their buffers stay on the device. The step
//! ([`crate::step`]) expresses the model in them once, for every device. All matrices are row-major
//! and densely packed. `=` outputs are overwritten, `+=` outputs are added to.

mod operands;

use std::ops::Range;
use std::sync::Arc;

pub use operands::{
    ADAM_EPSILON, AdamStep, BETA1, BETA2, BatchRooms, COSINE_EPSILON, Dropout, FeatureState,
    LossShape, Rooms, SavedFeatures, SpmmFactors, SpmmInputs, TopK, Updated, View, ViewMut, view,
    view_mut,
};

use crate::Result;
use crate::batch::{Batch, EpochPlan};
use crate::config::{FeatureTypeChoice, TrainConfig};
use crate::data::{Dataset, FeatureMatrix, Pairs, Split};
use crate::graph::Graph;
use crate::parameters::Layout;
use crate::profile::{Ceilings, Operation};
use crate::real::Real;
use crate::records::Metrics;
use crate::watch::Failure;

/// A device that can train and evaluate BM3.
///
/// Shapes: U users, I items, N = U + I nodes, d the embedding size, r_u and r_i the rooms of a
/// batch ([`Rooms`]), R = r_u + r_i (1 + M) its rows: users, then items, then the items of each
/// modality.
///
/// Cloning is cheap: a clone is another handle to the same device.
pub trait Backend: Clone {
    /// The type it computes in.
    type Real: Real;
    /// An array of numbers on the device.
    type Buffer: Send + Sync;
    /// A graph on the device.
    type Graph: Send + Sync;
    /// A batch on the device, with its optimiser step.
    type Batch: BatchRooms + Send + Sync;
    /// The training pairs and the current epoch's batches.
    type Batches;
    /// Adam's constants for every step from the first.
    type Schedule: Default + Send + Sync;
    /// One modality's raw features, resident or mapped; with optimiser state when trained.
    type Features: Send + Sync;
    /// A snapshot of a buffer, held until it is read.
    type Kept: Send + Sync;
    /// Sums of loss terms, in f64, and the first non-finite values; kept on the device until read.
    type Losses: Send + Sync;
    /// Lists of the best items, kept on the device until read.
    type Lists: Send + Sync;
    /// The held-out items of a split's users, prepared for [`Backend::metrics`].
    type Wanted: Send + Sync;

    /// One line that names the device.
    fn describe(&self) -> String;

    /// Waits for all work queued so far.
    fn synchronize(&self) -> Result<()>;
    /// Branch `number` (from 0) of this handle: another handle to the device, whose work may
    /// overlap with that of this handle and of other branches. The same number always gives the
    /// same branch. Each handle does its work in the order it was queued; only [`Backend::after`]
    /// orders two handles, in either direction.
    fn branch(&self, number: usize) -> Result<Self>;
    /// Makes work queued on this handle from now on wait for the work queued so far on `other`:
    /// another branch of the same device, or the handle it branches from.
    fn after(&self, other: &Self) -> Result<()>;
    /// Peak device memory in use so far, in bytes, if known; on the CPU, that of the whole process.
    fn peak_memory(&self) -> Option<u64>;
    /// Does `work` and returns how long each kind of operation in it took. Operations are timed one
    /// by one, so `work` takes longer than usual.
    fn profile(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Vec<Operation>>;
    /// Measures the device's peak rates.
    fn ceilings(&self) -> Result<Ceilings>;
    /// `length` zeros.
    fn zeros(&self, length: usize) -> Result<Self::Buffer>;
    /// A copy of `values` on the device.
    fn upload(&self, values: &[Self::Real]) -> Result<Self::Buffer>;
    /// A copy of a part of a buffer on the host.
    fn download(&self, source: View<'_, Self::Buffer>) -> Result<Vec<Self::Real>>;
    /// Takes a snapshot of a part of a buffer, as it is after the work queued so far.
    fn keep(&self, source: View<'_, Self::Buffer>) -> Result<Self::Kept>;
    /// Reads a snapshot.
    fn read_kept(&self, kept: Self::Kept) -> Result<Vec<Self::Real>>;
    /// The arena's initial values for a seed (SPEC §6): the bits of [`Layout::initial_values`].
    fn initial_values(&self, layout: &Layout, seed: u64) -> Result<Self::Buffer>;
    /// Copies a graph to the device.
    fn upload_graph(&self, graph: Arc<Graph>) -> Result<Self::Graph>;
    /// Copies a batch to the device, for the optimiser's step `step` (from 1).
    fn upload_batch(&self, batch: Batch, step: u32) -> Result<Self::Batch>;
    /// Copies the training pairs to the device, to be visited in batches of `batch_size` (at least
    /// 1). All ids must be below `users` and `items`.
    fn batches(
        &self,
        pairs: &Pairs,
        users: usize,
        items: usize,
        batch_size: usize,
    ) -> Result<Self::Batches>;
    /// Arranges an epoch's batches, in the order of [`crate::batch::epoch_order`].
    fn arrange(&self, batches: &mut Self::Batches, epoch: EpochPlan) -> Result<()>;
    /// Does `step` for the batches `numbers` (from 0) of the epoch, asking `proceed` before each,
    /// until it says no. Returns the number of batches done.
    ///
    /// `step` must queue the same operations on the same buffers each time: a device may record one
    /// call and replay it for later batches without calling `step`. Such a device may ask `proceed`
    /// for several batches before it starts them.
    fn each_batch(
        &self,
        batches: &mut Self::Batches,
        numbers: Range<u64>,
        step: &mut dyn FnMut(&Self::Batch) -> Result<()>,
        proceed: &mut dyn FnMut() -> bool,
    ) -> Result<u64>;
    /// Calls `work` with batch `number` of the epoch, before [`Backend::each_batch`] reaches it.
    fn with_batch(
        &self,
        batches: &mut Self::Batches,
        number: u64,
        work: &mut dyn FnMut(&Self::Batch) -> Result<()>,
    ) -> Result<()>;
    /// Sets the constants of the steps after the first `steps`, which `schedule` already holds.
    fn set_schedule(
        &self,
        schedule: &mut Self::Schedule,
        steps: usize,
        constants: &[AdamStep],
    ) -> Result<()>;
    /// Sets the type in which frozen features are stored from now on; `auto` leaves it to the
    /// backend.
    ///
    /// # Errors
    /// [`crate::Error::Setting`] naming `--feature-type`, if the device does not store that type.
    fn store_features_as(&mut self, choice: FeatureTypeChoice) -> Result<()>;
    /// Decides where a run keeps its frozen features, and where the best epoch's parameters: on the
    /// device if there is room. Call it before allocating anything for the run. Returns a sentence
    /// for the user if there is something to say.
    ///
    /// # Errors
    /// [`crate::Error::DeviceMemory`] and [`crate::Error::DeviceOperation`].
    fn place_features(
        &mut self,
        dataset: &Dataset,
        graph: &Graph,
        config: &TrainConfig,
    ) -> Result<Option<String>>;
    /// The first `items` rows of `features`, as fixed inputs.
    fn frozen_features(&self, features: Arc<FeatureMatrix>, items: usize)
    -> Result<Self::Features>;
    /// Features to be trained, starting from a saved state, D_m = `columns`.
    fn trained_features(
        &self,
        state: FeatureState<Self::Real>,
        columns: usize,
    ) -> Result<Self::Features>;
    /// Features to be trained, starting from the first `items` rows of `features`.
    fn untrained_features(&self, features: &FeatureMatrix, items: usize) -> Result<Self::Features>;
    /// The state of trained features, borrowed if it is in host memory anyway; `None` for frozen
    /// ones.
    fn feature_state<'a>(
        &self,
        features: &'a Self::Features,
    ) -> Result<Option<SavedFeatures<'a, Self::Real>>>;
    /// Takes a snapshot of the values of trained features, I × D_m, without moments; `None` for
    /// frozen ones.
    fn keep_features(&self, features: &Self::Features) -> Result<Option<Self::Kept>>;
    /// Sums of loss terms that start from `sums`, with nothing non-finite seen yet.
    fn losses(&self, sums: &[f64]) -> Result<Self::Losses>;
    /// Sets the sums to `sums`, which has as many terms.
    fn set_losses(&self, losses: &mut Self::Losses, sums: &[f64]) -> Result<()>;
    /// The sums so far.
    fn read_losses(&self, losses: &Self::Losses) -> Result<Vec<f64>>;
    /// The first step since the losses were made in which a loss term or a value updated by Adam
    /// was not finite, if any.
    fn failure(&self, losses: &Self::Losses) -> Result<Option<Failure>>;
    /// Whether a [`Backend::failure`] is known already, without waiting for the device.
    fn has_failed(&self, losses: &Self::Losses) -> bool;

    /// Equation (2) and its transpose: y = neighbours · Âx + (base + \[item row\] item_base) · b.
    ///
    /// `y`: `=`, N × d.
    fn spmm(
        &self,
        graph: &Self::Graph,
        inputs: SpmmInputs<'_, Self::Buffer>,
        y: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// [`Backend::adam`] with the result of [`Backend::spmm`] as the gradient, which is never
    /// stored: N × d elements are updated, with the bits of the two operations one after the other.
    fn spmm_adam(
        &self,
        graph: &Self::Graph,
        inputs: SpmmInputs<'_, Self::Buffer>,
        batch: &Self::Batch,
        schedule: &Self::Schedule,
        updated: Updated<'_, Self::Buffer>,
        losses: &mut Self::Losses,
    ) -> Result<()>;

    /// A layer in the paper's form: y (`=`, N × d) = LeakyReLU₀.₂(x W), with W d × d as printed.
    fn gcn_layer(
        &self,
        x: View<'_, Self::Buffer>,
        weight: View<'_, Self::Buffer>,
        y: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// The gradients of [`Backend::gcn_layer`] from its output and the output's gradient, which it
    /// overwrites: `x_gradient` (N × d) and `weight_gradient` (d × d), both `=`.
    fn gcn_layer_backward(
        &self,
        x: View<'_, Self::Buffer>,
        weight: View<'_, Self::Buffer>,
        y: View<'_, Self::Buffer>,
        y_gradient: ViewMut<'_, Self::Buffer>,
        x_gradient: ViewMut<'_, Self::Buffer>,
        weight_gradient: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// y `+=` factor · x.
    fn add_scaled(
        &self,
        factor: f64,
        x: View<'_, Self::Buffer>,
        y: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// Gathers the batch's user rows, then its item rows, of `nodes` (N × d):
    /// rows `=`, (r_u + r_i) × d.
    fn gather_rows(
        &self,
        graph: &Self::Graph,
        batch: &Self::Batch,
        nodes: View<'_, Self::Buffer>,
        rows: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// Equation (1) on the batch's items: z (`=`, r_i × d) = E W ᵀ + b.
    fn project(
        &self,
        batch: &Self::Batch,
        features: &Self::Features,
        weight: View<'_, Self::Buffer>,
        bias: View<'_, Self::Buffer>,
        z: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// Equation (5): p (`=`, rows × d) = x W_pᵀ + b_p, over a batch's R rows or, without a batch,
    /// over all rows of `x`.
    fn predict(
        &self,
        batch: Option<&Self::Batch>,
        x: View<'_, Self::Buffer>,
        weight: View<'_, Self::Buffer>,
        bias: View<'_, Self::Buffer>,
        p: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// Equations (4), (6), (8), (9): computes the terms ui, iu, align and mask for
    /// [`Backend::add_losses`], and replaces the predictor's outputs by their gradients (SPEC §4).
    ///
    /// `x` (R × d) holds the rows from which the targets are made.
    #[allow(clippy::too_many_arguments, reason = "one fused operation")]
    fn bootstrap_loss(
        &self,
        shape: LossShape,
        batch: &Self::Batch,
        cl_weight: f64,
        dropout: &Dropout,
        x: View<'_, Self::Buffer>,
        predicted: ViewMut<'_, Self::Buffer>,
        losses: &mut Self::Losses,
    ) -> Result<()>;

    /// Adds the terms that [`Backend::bootstrap_loss`] computed to the sums. A separate operation,
    /// because the gradients need not wait for it.
    fn add_losses(
        &self,
        shape: LossShape,
        batch: &Self::Batch,
        losses: &mut Self::Losses,
    ) -> Result<()>;

    /// Checks the sums after all terms of a step have been added, and notes the first that is not
    /// finite in `losses`, for [`Backend::failure`].
    fn watch_losses(&self, batch: &Self::Batch, losses: &mut Self::Losses) -> Result<()>;

    /// The gradient of the predictor's input over a batch's R rows: dx `=` da W_p.
    fn predict_backward(
        &self,
        batch: &Self::Batch,
        output_gradient: View<'_, Self::Buffer>,
        weight: View<'_, Self::Buffer>,
        input_gradient: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// The gradients of the predictor's parameters over a batch's R rows: dW_p `=` daᵀ x and
    /// db_p `=` Σ da, one after the other in `gradient`, (d · d + d).
    fn predict_gradient(
        &self,
        batch: &Self::Batch,
        output_gradient: View<'_, Self::Buffer>,
        x: View<'_, Self::Buffer>,
        gradient: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// A projection's gradients: dW_m `=` dzᵀ E_m\[items\] and db_m `=` Σ dz, one after the other
    /// in `gradient`, (d · D_m + d).
    fn project_backward(
        &self,
        batch: &Self::Batch,
        features: &Self::Features,
        z_gradient: View<'_, Self::Buffer>,
        gradient: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// The gradient of factor · (‖H_u‖_F + ‖H_i‖_F), `=`, N × d. Adds `loss_factor` times the
    /// unweighted sum of the norms to the last term of `losses`. A half that is all zero has
    /// gradient 0.
    fn norm_backward(
        &self,
        graph: &Self::Graph,
        nodes: View<'_, Self::Buffer>,
        factor: f64,
        loss_factor: f64,
        gradient: ViewMut<'_, Self::Buffer>,
        losses: &mut Self::Losses,
    ) -> Result<()>;

    /// Adds rows, laid out as by [`Backend::gather_rows`], to their nodes: nodes `+=`, N × d.
    fn scatter_rows(
        &self,
        graph: &Self::Graph,
        batch: &Self::Batch,
        rows: View<'_, Self::Buffer>,
        nodes: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// Adam's step for the batch on some elements of the dense parameters, as many as `gradients`
    /// has. Notes in `losses`, for [`Backend::failure`], if an updated value is not finite.
    fn adam(
        &self,
        batch: &Self::Batch,
        schedule: &Self::Schedule,
        gradients: View<'_, Self::Buffer>,
        updated: Updated<'_, Self::Buffer>,
        losses: &mut Self::Losses,
    ) -> Result<()>;

    /// Replays, for the batch's rows of trained features, the steps that each row has missed, in
    /// which its gradient was zero; afterwards the rows are current up to the step before the
    /// batch's. The result is bit-identical to a dense Adam sweep at each of those steps.
    fn adam_rows_replay(
        &self,
        batch: &Self::Batch,
        schedule: &Self::Schedule,
        features: &mut Self::Features,
    ) -> Result<()>;

    /// Whether a step should call [`Backend::adam_rows_replay_ahead`] for these features instead of
    /// [`Backend::adam_rows_replay`], which then only the first of several steps needs.
    fn looks_ahead(&self, _features: &[Self::Features]) -> bool {
        false
    }

    /// Does the work of [`Backend::adam_rows_replay`] in the next batch's step for those of its
    /// rows that are not also in this batch: their gradient is zero in this step too. May overlap
    /// with this batch's step. Does nothing if the next batch is not known.
    fn adam_rows_replay_ahead(
        &self,
        _batch: &Self::Batch,
        _schedule: &Self::Schedule,
        _features: &mut Self::Features,
    ) -> Result<()> {
        Ok(())
    }

    /// [`Backend::adam_rows_replay`] for all rows, up to step `last`.
    fn adam_rows_replay_all(
        &self,
        last: u32,
        schedule: &Self::Schedule,
        features: &mut Self::Features,
    ) -> Result<()>;

    /// Adam's step for the batch on its rows of trained features, with the gradient dE = dz W_m.
    /// The rows must be current up to the step before. Notes in `losses`, for this `modality`, if
    /// an updated value is not finite.
    #[allow(clippy::too_many_arguments, reason = "one fused operation")]
    fn adam_rows(
        &self,
        batch: &Self::Batch,
        z_gradient: View<'_, Self::Buffer>,
        weight: View<'_, Self::Buffer>,
        schedule: &Self::Schedule,
        features: &mut Self::Features,
        modality: usize,
        losses: &mut Self::Losses,
    ) -> Result<()>;

    /// Equation (10): the `k` best items for each of `users` by the product of predicted rows,
    /// without the user's training items, ties by lower item id (SPEC §9).
    ///
    /// `predicted`: N × d, users first. `k` is at least 1.
    fn top_k(
        &self,
        graph: &Self::Graph,
        predicted: View<'_, Self::Buffer>,
        users: &[u32],
        k: usize,
    ) -> Result<Self::Lists>;

    /// Reads lists from the device.
    fn read_lists(&self, lists: Self::Lists) -> Result<TopK>;

    /// Prepares the items of `split`, once for many evaluations, so that [`Backend::metrics`] can
    /// look for them in the lists of `users`, at each of `lengths`.
    fn wanted(&self, split: &Split, users: &[u32], lengths: &[usize]) -> Result<Self::Wanted>;

    /// The metrics (SPEC §9) of lists for the users given to [`Backend::wanted`], in the same
    /// order: see [`crate::evaluate::metrics`].
    fn metrics(&self, wanted: &Self::Wanted, lists: &Self::Lists) -> Result<Metrics>;
}
