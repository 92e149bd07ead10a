//! The operations a device offers to the step.
//!
//! They are named after the maths of SPEC §2–§5 and work on buffers that stay on the device; the
//! step ([`crate::step`]) writes the model with them once, for every device. All matrices are
//! row-major and densely packed. `=` outputs are overwritten, `+=` outputs added to.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

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

/// A part of a device buffer, read.
#[derive(Debug)]
pub struct View<'a, Buffer> {
    /// The buffer.
    pub buffer: &'a Buffer,
    /// The elements meant.
    pub range: Range<usize>,
}

/// A part of a device buffer, written.
#[derive(Debug)]
pub struct ViewMut<'a, Buffer> {
    /// The buffer.
    pub buffer: &'a mut Buffer,
    /// The elements meant.
    pub range: Range<usize>,
}

/// The elements `range` of `buffer`, to be read.
pub fn view<Buffer>(buffer: &Buffer, range: Range<usize>) -> View<'_, Buffer> {
    View { buffer, range }
}

/// The elements `range` of `buffer`, to be written.
pub fn view_mut<Buffer>(buffer: &mut Buffer, range: Range<usize>) -> ViewMut<'_, Buffer> {
    ViewMut { buffer, range }
}

/// The factors of [`Backend::spmm`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpmmFactors {
    /// Of Âx.
    pub neighbours: f64,
    /// Of the base.
    pub base: f64,
    /// Of the base once more, on item rows only.
    pub item_base: f64,
}

/// Which elements of the bootstrap targets are kept (SPEC §2, equation (4)).
#[derive(Debug, Clone)]
pub enum Dropout {
    /// All of them.
    None,
    /// Each with probability 1 − p, drawn by Philox for (seed, the batch's step, tensor, row,
    /// column) and scaled by 1/(1 − p).
    Random {
        /// p.
        probability: f64,
        /// The seed of the run.
        seed: u64,
    },
    /// As the caller says, to compare with other implementations.
    Given {
        /// p, from which the scale 1/(1 − p) comes.
        probability: f64,
        /// Kept elements of H_u (U × d), H_i (I × d) and each Z_m (I × d).
        kept: Arc<Vec<Vec<bool>>>,
    },
}

/// Adam's constants at one step (SPEC §5): p ← p − step_size · m / (√v · root_factor + ε).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    /// lr / (1 − β₁ᵗ).
    pub step_size: f64,
    /// 1 / √(1 − β₂ᵗ).
    pub root_factor: f64,
}

/// Adam's β₁.
pub const BETA1: f64 = 0.9;
/// Adam's β₂.
pub const BETA2: f64 = 0.999;
/// Adam's ε, added outside the root.
pub const ADAM_EPSILON: f64 = 1e-8;
/// The ε of the cosine, below which a norm is taken as this.
pub const COSINE_EPSILON: f64 = 1e-8;

/// The sizes a loss is computed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LossShape {
    /// d.
    pub embedding_size: usize,
    /// M.
    pub modalities: usize,
}

impl LossShape {
    /// The number of loss terms: ui, iu, then align and mask of each modality, then reg.
    pub fn terms(self) -> usize {
        3 + 2 * self.modalities
    }

    /// M, of so many terms.
    pub(crate) fn modalities_of(terms: usize) -> usize {
        terms.saturating_sub(3) / 2
    }

    /// R: the rows that batches have room for, see [`Rooms`].
    pub fn rows(self, rooms: Rooms) -> usize {
        rooms.users + rooms.items * (1 + self.modalities)
    }
}

/// Room for the rows of a batch.
///
/// What a batch computes lies in blocks of rows: its users', its items', then its items' of each
/// modality. A batch fills the beginning of each block with as many rows as it has distinct users or
/// items; what the others hold is no part of any result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rooms {
    /// Rows of the first block.
    pub users: usize,
    /// Rows of every other block.
    pub items: usize,
}

/// A batch on a device.
pub trait BatchRooms {
    /// How its rows lie.
    fn rooms(&self) -> Rooms;
}

/// Trained raw features and their optimiser state, as they are saved.
///
/// `touched[i]` is the step up to which row i is current; later steps, in which its gradient was
/// zero, are replayed when it is next needed (SPEC §5). 0: never touched.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureState<T> {
    /// E_m, I × D_m.
    pub values: Vec<T>,
    /// First moments, I × D_m.
    pub first: Vec<T>,
    /// Second moments, I × D_m.
    pub second: Vec<T>,
    /// I steps.
    pub touched: Vec<u32>,
}

/// A feature state on its way to a file: borrowed where the device is this machine's memory.
pub type SavedFeatures<'a, T> = Cow<'a, FeatureState<T>>;

/// The best items of some users, best first.
#[derive(Debug, Clone, PartialEq)]
pub struct TopK {
    /// K, the row length of `items` and `scores`.
    pub k: usize,
    /// users × K item ids; [`TopK::NO_ITEM`] where a list is short.
    pub items: Vec<u32>,
    /// users × K scores; meaningless where a list is short.
    pub scores: Vec<f64>,
}

impl TopK {
    /// Fills the end of a short list.
    pub const NO_ITEM: u32 = u32::MAX;

    /// Lists of so many users without an item.
    pub(crate) fn empty(users: usize, k: usize) -> Self {
        Self { k, items: vec![Self::NO_ITEM; users * k], scores: vec![0.0; users * k] }
    }

    /// The scores in the type they were computed in, `filling` where a list is short.
    pub fn scores_or(&self, filling: f32) -> impl Iterator<Item = f32> + '_ {
        let score = move |(&item, &score): (&u32, &f64)| match item {
            Self::NO_ITEM => filling,
            // Scores are of type f32 in the first place.
            _ => score as f32,
        };
        self.items.iter().zip(&self.scores).map(score)
    }

    /// The list of the user at `position`, without the filling.
    pub fn list(&self, position: usize) -> &[u32] {
        let row = &self.items[position * self.k..(position + 1) * self.k];
        &row[..row.iter().position(|&item| item == Self::NO_ITEM).unwrap_or(self.k)]
    }
}

/// A device that can train and evaluate BM3.
///
/// Shapes: U users, I items, N = U + I nodes, d the embedding size, r_u and r_i the rooms of a batch
/// ([`Rooms`]), R = r_u + r_i (1 + M) its rows: users, then items, then the items of each modality.
///
/// Cloning it is cheap: a clone is another handle of the device.
pub trait Backend: Clone {
    /// The type it computes in.
    type Real: Real;
    /// Numbers on the device.
    type Buffer: Send + Sync;
    /// A graph on the device.
    type Graph: Send + Sync;
    /// A batch at its step, on the device.
    type Batch: BatchRooms + Send + Sync;
    /// The training pairs and their batches of the epoch at hand.
    type Batches;
    /// Adam's constants at every step, from the first on.
    type Schedule: Default + Send + Sync;
    /// One modality's raw features, resident or mapped; with optimiser state when trained.
    type Features: Send + Sync;
    /// Numbers kept as they were at some time, until they are read.
    type Kept: Send + Sync;
    /// Sums of loss terms, in f64, and what was not finite; kept on the device until asked for.
    type Losses: Send + Sync;
    /// Lists of the best items, kept on the device until asked for.
    type Lists: Send + Sync;
    /// The items of a split's users, ready to be looked for in lists.
    type Wanted: Send + Sync;

    /// One line that names the device.
    fn describe(&self) -> String;

    /// Waits for the work asked for so far.
    fn synchronize(&self) -> Result<()>;
    /// Branch `number` (from 0) of this handle: another handle of the device, whose work may be done
    /// at the same time as this one's and other branches'. The same number is the same branch each
    /// time. Whose work comes first where it matters is said by [`Backend::after`] alone, in both
    /// directions; work that is asked of one handle is done in the order it is asked for.
    fn branch(&self, number: usize) -> Result<Self>;
    /// Has the work that will be asked of this handle come after the work that was asked of another
    /// branch of the same device, or of what it is a branch of, so far.
    fn after(&self, other: &Self) -> Result<()>;
    /// The most bytes of the device's memory that were in use at a time so far, where that can be
    /// told; on the CPU all of the process's.
    fn peak_memory(&self) -> Option<u64>;
    /// Does `work` and tells how long each kind of operation in it took. Operations are timed one by
    /// one, so that all together they take longer than without it.
    fn profile(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Vec<Operation>>;
    /// What the device can do at most, measured now.
    fn ceilings(&self) -> Result<Ceilings>;
    /// `length` zeros.
    fn zeros(&self, length: usize) -> Result<Self::Buffer>;
    /// A copy of `values` on the device.
    fn upload(&self, values: &[Self::Real]) -> Result<Self::Buffer>;
    /// A copy of a part of a buffer.
    fn download(&self, source: View<'_, Self::Buffer>) -> Result<Vec<Self::Real>>;
    /// Keeps a copy of a part of a buffer, as it is after the work asked for so far.
    fn keep(&self, source: View<'_, Self::Buffer>) -> Result<Self::Kept>;
    /// What was kept, read from where it is.
    fn read_kept(&self, kept: Self::Kept) -> Result<Vec<Self::Real>>;
    /// The arena's initial values for a seed (SPEC §6): the bits of [`Layout::initial_values`].
    fn initial_values(&self, layout: &Layout, seed: u64) -> Result<Self::Buffer>;
    /// A graph on the device.
    fn upload_graph(&self, graph: Arc<Graph>) -> Result<Self::Graph>;
    /// A batch on the device, at the optimiser's step `step` (from 1).
    fn upload_batch(&self, batch: Batch, step: u32) -> Result<Self::Batch>;
    /// The training pairs, to be visited in batches of `batch_size` (from 1). All ids lie below
    /// `users` and `items`.
    fn batches(
        &self,
        pairs: &Pairs,
        users: usize,
        items: usize,
        batch_size: usize,
    ) -> Result<Self::Batches>;
    /// Arranges an epoch's batches: those of [`crate::batch::epoch_order`].
    fn arrange(&self, batches: &mut Self::Batches, epoch: EpochPlan) -> Result<()>;
    /// Has `step` work with the batches of `numbers` (from 0) of the epoch, each after `proceed` has
    /// said yes, until it says no; the outcome is the number of batches that were worked with.
    ///
    /// `step` must ask for the same operations on the same buffers each time: a device may record
    /// what it asks for at one batch and do it again for the next ones, and then it is not called.
    /// Such a device may ask `proceed` for several batches before it works with them.
    fn each_batch(
        &self,
        batches: &mut Self::Batches,
        numbers: Range<u64>,
        step: &mut dyn FnMut(&Self::Batch) -> Result<()>,
        proceed: &mut dyn FnMut() -> bool,
    ) -> Result<u64>;
    /// Has `work` see batch `number` of the epoch, before [`Backend::each_batch`] comes to it.
    fn with_batch(
        &self,
        batches: &mut Self::Batches,
        number: u64,
        work: &mut dyn FnMut(&Self::Batch) -> Result<()>,
    ) -> Result<()>;
    /// Makes `constants` those of the steps after the first `steps`, which `schedule` has.
    fn set_schedule(
        &self,
        schedule: &mut Self::Schedule,
        steps: usize,
        constants: &[AdamStep],
    ) -> Result<()>;
    /// Has frozen features stored in the type that a run asks for from now on; `auto` leaves it to
    /// the backend.
    ///
    /// # Errors
    /// [`crate::Error::Setting`] naming `--feature-type`, for a type that the device does not store.
    fn store_features_as(&mut self, choice: FeatureTypeChoice) -> Result<()>;
    /// Decides where the frozen features of a run will lie, and what is kept of trained ones; before
    /// anything of it is allocated. The outcome is a sentence for the user, where there is something
    /// to say.
    ///
    /// # Errors
    /// [`crate::Error::Setting`] for a choice that does not suit the run; those of the device.
    fn place_features(
        &mut self,
        dataset: &Dataset,
        graph: &Graph,
        config: &TrainConfig,
    ) -> Result<Option<String>>;
    /// The first `items` rows of `features`, as inputs.
    fn frozen_features(&self, features: Arc<FeatureMatrix>, items: usize)
    -> Result<Self::Features>;
    /// Features to be trained, D_m = `columns`.
    fn trained_features(
        &self,
        state: FeatureState<Self::Real>,
        columns: usize,
    ) -> Result<Self::Features>;
    /// Features to be trained, which start as the first `items` rows of `features`.
    fn untrained_features(&self, features: &FeatureMatrix, items: usize) -> Result<Self::Features>;
    /// The state of trained features, borrowed where it lies in memory anyway; `None` when they
    /// are frozen.
    fn feature_state<'a>(
        &self,
        features: &'a Self::Features,
    ) -> Result<Option<SavedFeatures<'a, Self::Real>>>;
    /// Keeps a copy of the values of trained features, I × D_m, without their moments; `None` when
    /// frozen.
    fn keep_features(&self, features: &Self::Features) -> Result<Option<Self::Kept>>;
    /// Sums of loss terms that go on from `sums`. Nothing that is not finite has been seen.
    fn losses(&self, sums: &[f64]) -> Result<Self::Losses>;
    /// Makes sums of as many loss terms go on from `sums`.
    fn set_losses(&self, losses: &mut Self::Losses, sums: &[f64]) -> Result<()>;
    /// The sums so far.
    fn read_losses(&self, losses: &Self::Losses) -> Result<Vec<f64>>;
    /// The first step in which a loss term or what Adam updates was not finite, if there is one
    /// since the losses were made.
    fn failure(&self, losses: &Self::Losses) -> Result<Option<Failure>>;
    /// Whether it is known, without waiting for the device, that there is a [`Backend::failure`].
    fn has_failed(&self, losses: &Self::Losses) -> bool;

    /// Equation (2) and its transpose: y = neighbours · Âx + (base + \[item row\] item_base) · b.
    ///
    /// `x`, `base`, `y` (`=`): N × d. Without `x` no neighbour is read, without `base` it is zero.
    fn spmm(
        &self,
        graph: &Self::Graph,
        x: Option<View<'_, Self::Buffer>>,
        base: Option<View<'_, Self::Buffer>>,
        factors: SpmmFactors,
        y: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// A layer of the paper's form: y (`=`, N × d) = LeakyReLU₀.₂(x W), with W d × d as printed.
    fn gcn_layer(
        &self,
        x: View<'_, Self::Buffer>,
        weight: View<'_, Self::Buffer>,
        y: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// The gradients of [`Backend::gcn_layer`] from its output and the output's gradient, which is
    /// overwritten: `x_gradient` (N × d) and `weight_gradient` (d × d), both `=`.
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

    /// The batch's user rows, then its item rows, of `nodes` (N × d): rows `=`, (r_u + r_i) × d.
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

    /// Equation (5): p (`=`, rows × d) = x W_pᵀ + b_p, over a batch's R rows or, without one, over
    /// all rows there are.
    fn predict(
        &self,
        batch: Option<&Self::Batch>,
        x: View<'_, Self::Buffer>,
        weight: View<'_, Self::Buffer>,
        bias: View<'_, Self::Buffer>,
        p: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// Equations (4), (6), (8), (9): finds the terms ui, iu, align and mask, for
    /// [`Backend::add_losses`], and replaces the predictor outputs by their gradients (SPEC §4).
    ///
    /// `x` (R × d) holds the rows that the targets are made of.
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

    /// Adds the terms that [`Backend::bootstrap_loss`] found to the sums. By itself, since the gradients
    /// do not wait for it.
    fn add_losses(
        &self,
        shape: LossShape,
        batch: &Self::Batch,
        losses: &mut Self::Losses,
    ) -> Result<()>;

    /// Looks at the sums of a step to which all terms were added: the first that is not finite is noted
    /// in `losses`, for [`Backend::failure`].
    fn watch_losses(&self, batch: &Self::Batch, losses: &mut Self::Losses) -> Result<()>;

    /// The gradient of the predictor's input over a batch's R rows: dx `=` da W_p.
    fn predict_backward(
        &self,
        batch: &Self::Batch,
        output_gradient: View<'_, Self::Buffer>,
        weight: View<'_, Self::Buffer>,
        input_gradient: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// The gradients of the predictor's parameters over a batch's R rows: dW_p `=` daᵀ x,
    /// db_p `=` Σ da, one after the other in `gradient`, (d · d + d).
    fn predict_gradient(
        &self,
        batch: &Self::Batch,
        output_gradient: View<'_, Self::Buffer>,
        x: View<'_, Self::Buffer>,
        gradient: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// A projection's gradients: dW_m `=` dzᵀ E_m\[items\], db_m `=` Σ dz. The two lie one after
    /// the other in `gradient`, (d · D_m + d).
    fn project_backward(
        &self,
        batch: &Self::Batch,
        features: &Self::Features,
        z_gradient: View<'_, Self::Buffer>,
        gradient: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// The gradient of factor · (‖H_u‖_F + ‖H_i‖_F), `=`, N × d; the norms' sum, unweighted, times
    /// `loss_factor` is added to the last term of `losses`. A half that is all zero has gradient 0.
    fn norm_backward(
        &self,
        graph: &Self::Graph,
        nodes: View<'_, Self::Buffer>,
        factor: f64,
        loss_factor: f64,
        gradient: ViewMut<'_, Self::Buffer>,
        losses: &mut Self::Losses,
    ) -> Result<()>;

    /// Adds the rows of [`Backend::gather_rows`]' layout to their nodes: nodes `+=`, N × d.
    fn scatter_rows(
        &self,
        graph: &Self::Graph,
        batch: &Self::Batch,
        rows: View<'_, Self::Buffer>,
        nodes: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// Adam's step of the batch on the elements `range` of the dense parameters, bounds that are
    /// multiples of 4; all buffers have one length. That something of them is not finite afterwards is
    /// noted in `losses`, for [`Backend::failure`].
    #[allow(clippy::too_many_arguments, reason = "one fused operation")]
    fn adam(
        &self,
        batch: &Self::Batch,
        schedule: &Self::Schedule,
        range: Range<usize>,
        gradients: &Self::Buffer,
        parameters: &mut Self::Buffer,
        first: &mut Self::Buffer,
        second: &mut Self::Buffer,
        losses: &mut Self::Losses,
    ) -> Result<()>;

    /// Replays, for the batch's rows of trained features, every step after the row's last one in
    /// which its gradient was zero; afterwards they are current up to the step before the batch's.
    /// The result has the bits of a dense Adam sweep at each of those steps.
    fn adam_rows_replay(
        &self,
        batch: &Self::Batch,
        schedule: &Self::Schedule,
        features: &mut Self::Features,
    ) -> Result<()>;

    /// Whether a step is to ask for [`Backend::adam_rows_replay_ahead`], with these features, and not
    /// for [`Backend::adam_rows_replay`], which only the first of several steps then needs.
    fn looks_ahead(&self, _features: &[Self::Features]) -> bool {
        false
    }

    /// Does what [`Backend::adam_rows_replay`] would do in the next batch's step for those of its rows
    /// that are not the batch's own: their gradient is zero in the batch's step, too. It may be done at
    /// the same time as the batch's step. Where the next batch is not known, nothing.
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

    /// Adam's step of the batch on its rows of trained features, with the gradient dE = dz W_m. The
    /// rows are current up to the step before. That something of them is not finite afterwards is
    /// noted in `losses`, for the modality of this number.
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

    /// Equation (10): the `k` best items of each of `users` by the product of predicted rows,
    /// training items of the user left out, ties by lower item id (SPEC §9).
    ///
    /// `predicted`: N × d, users first. `k` is at least 1.
    fn top_k(
        &self,
        graph: &Self::Graph,
        predicted: View<'_, Self::Buffer>,
        users: &[u32],
        k: usize,
    ) -> Result<Self::Lists>;

    /// Lists, read from the device.
    fn read_lists(&self, lists: Self::Lists) -> Result<TopK>;

    /// What [`Backend::metrics`] looks for in the lists of `users`, at each of `lengths`: the items of
    /// `split`. Once for many evaluations.
    fn wanted(&self, split: &Split, users: &[u32], lengths: &[usize]) -> Result<Self::Wanted>;

    /// The metrics (SPEC §9) of lists, of the users that were named to [`Backend::wanted`] in their
    /// order: see [`crate::evaluate::metrics`].
    fn metrics(&self, wanted: &Self::Wanted, lists: &Self::Lists) -> Result<Metrics>;
}
