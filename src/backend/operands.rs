//! What the operations of a [`super::Backend`] take and give.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// A read-only part of a device buffer.
#[derive(Debug)]
pub struct View<'a, Buffer> {
    /// The buffer.
    pub buffer: &'a Buffer,
    /// The elements of the part.
    pub range: Range<usize>,
}

/// A writable part of a device buffer.
#[derive(Debug)]
pub struct ViewMut<'a, Buffer> {
    /// The buffer.
    pub buffer: &'a mut Buffer,
    /// The elements of the part.
    pub range: Range<usize>,
}

/// A read-only view of the elements `range` of `buffer`.
pub fn view<Buffer>(buffer: &Buffer, range: Range<usize>) -> View<'_, Buffer> {
    View { buffer, range }
}

/// A writable view of the elements `range` of `buffer`.
pub fn view_mut<Buffer>(buffer: &mut Buffer, range: Range<usize>) -> ViewMut<'_, Buffer> {
    ViewMut { buffer, range }
}

/// The factors of [`super::Backend::spmm`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpmmFactors {
    /// The factor of Âx.
    pub neighbours: f64,
    /// The factor of the base.
    pub base: f64,
    /// The extra factor of the base on item rows.
    pub item_base: f64,
}

/// What [`super::Backend::spmm`] computes its result from.
#[derive(Debug)]
pub struct SpmmInputs<'a, Buffer> {
    /// x, N × d; without it, no neighbours are read.
    pub x: Option<View<'a, Buffer>>,
    /// b, N × d; 0 without it.
    pub base: Option<View<'a, Buffer>>,
    /// Their factors.
    pub factors: SpmmFactors,
}

/// Which elements of the bootstrap targets are kept (SPEC §2, equation (4)).
#[derive(Debug, Clone)]
pub enum Dropout {
    /// Keep all of them.
    None,
    /// Keep each with probability 1 − p, drawn by Philox for (seed, the batch's step, tensor, row,
    /// column), and scale it by 1/(1 − p).
    Random {
        /// p.
        probability: f64,
        /// The seed of the run.
        seed: u64,
    },
    /// Keep those that the caller gives, to compare with other implementations.
    Given {
        /// p, which sets the scale 1/(1 − p).
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

/// Dense parameters and their moments, of which Adam updates the elements `range`.
///
/// The bounds are multiples of 4; all buffers have one length.
#[derive(Debug)]
pub struct Updated<'a, Buffer> {
    /// p.
    pub parameters: &'a mut Buffer,
    /// m.
    pub first: &'a mut Buffer,
    /// v.
    pub second: &'a mut Buffer,
    /// The elements that are updated.
    pub range: Range<usize>,
}

/// Adam's β₁.
pub const BETA1: f64 = 0.9;
/// Adam's β₂.
pub const BETA2: f64 = 0.999;
/// Adam's ε, added outside the root.
pub const ADAM_EPSILON: f64 = 1e-8;
/// The ε of the cosine: a smaller norm counts as this.
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

    /// M for a given number of terms.
    pub(crate) fn modalities_of(terms: usize) -> usize {
        terms.saturating_sub(3) / 2
    }

    /// R: the rows that a batch has room for, see [`Rooms`].
    pub fn rows(self, rooms: Rooms) -> usize {
        rooms.users + rooms.items * (1 + self.modalities)
    }
}

/// Room for the rows of a batch.
///
/// A batch's rows lie in blocks: one for its users, one for its items, then one for its items in
/// each modality. A batch fills the beginning of each block, one row per distinct user or item; no
/// result depends on the rows after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rooms {
    /// Rows of the first block.
    pub users: usize,
    /// Rows of every other block.
    pub items: usize,
}

/// A batch on a device.
pub trait BatchRooms {
    /// The room for its rows.
    fn rooms(&self) -> Rooms;
}

/// Trained raw features and their optimiser state, as they are saved.
///
/// `touched[i]` is the step up to which row i is current, or 0 if no step has touched it. Later
/// steps, in which its gradient was zero, are replayed when the row is next needed (SPEC §5).
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureState<T> {
    /// E_m, I × D_m.
    pub values: Vec<T>,
    /// First moments, I × D_m.
    pub first: Vec<T>,
    /// Second moments, I × D_m.
    pub second: Vec<T>,
    /// One step per row, I.
    pub touched: Vec<u32>,
}

/// A feature state to be written to a file: borrowed if the device's memory is the host's.
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

    /// Empty lists for `users` users.
    pub fn empty(users: usize, k: usize) -> Self {
        Self { k, items: vec![Self::NO_ITEM; users * k], scores: vec![0.0; users * k] }
    }

    /// The scores in f32, the type they were computed in; `filling` where a list is short.
    pub fn scores_or(&self, filling: f32) -> impl Iterator<Item = f32> + '_ {
        let score = move |(&item, &score): (&u32, &f64)| match item {
            Self::NO_ITEM => filling,
            // Scores are computed in f32, so nothing is lost.
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
