//! The CPU backend: rayon over rows, vectorised loops, and results that do not depend on the number
//! of threads.
//!
//! It runs in the rayon pool it is called from. One task computes each output element, in an order
//! fixed by the sizes alone.

mod adam;
mod backend;
mod ceilings;
mod gcn;
mod loss;
mod matrix;
mod projection;
mod rows;
mod simd;
mod spmm;
mod top_k;

use std::marker::PhantomData;

pub use projection::CpuFeatures;
pub(crate) use projection::predict_features;
pub use simd::{InstructionSet, instruction_set};
pub use spmm::CpuGraph;
pub(crate) use top_k::{ItemIndex, product};

use crate::backend::{AdamStep, BatchRooms, Rooms, Updated, View, ViewMut};
use crate::batch::{Batch, positions};
use crate::data::{Pairs, Split};
use crate::watch::{Watch, keep_first};

/// The CPU, computing in type T.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu<T>(PhantomData<T>);

impl<T> Cpu<T> {
    /// Creates the backend.
    pub fn new() -> Self {
        Self(PhantomData)
    }
}

/// A batch and its step.
#[derive(Debug, Clone)]
pub struct CpuBatch {
    batch: Batch,
    /// Counted from 1.
    step: u32,
}

impl CpuBatch {
    /// Adam's constants at this batch's step.
    fn constants(&self, schedule: &[AdamStep]) -> AdamStep {
        schedule[self.step as usize - 1]
    }

    /// Notes that the dense parameter at `wrong`, counted from `start`, is not finite after this
    /// batch's step.
    fn watch_dense(&self, losses: &mut CpuLosses, start: usize, wrong: Option<usize>) {
        if let Some(element) = wrong {
            keep_first(&mut losses.watch.dense, (self.step, ((start + element) / 4) as u32));
        }
    }
}

impl BatchRooms for CpuBatch {
    fn rooms(&self) -> Rooms {
        Rooms { users: self.batch.users.len(), items: self.batch.items.len() }
    }
}

/// The training pairs, and their order in the current epoch.
#[derive(Debug)]
pub struct CpuBatches {
    pairs: Pairs,
    batch_size: usize,
    order: Vec<u32>,
    /// The step of the epoch's first batch.
    first_step: u32,
}

impl CpuBatches {
    fn batch(&self, number: u64) -> CpuBatch {
        let positions = positions(number, self.batch_size, self.order.len());
        let batch = Batch::of_pairs(&self.pairs, &self.order[positions]);
        CpuBatch { batch, step: self.first_step + number as u32 }
    }
}

/// Sums of loss terms, and the watch for numbers that are not finite.
#[derive(Debug, Clone)]
pub struct CpuLosses {
    sums: Vec<f64>,
    /// Terms of the last batch, not yet added to `sums`.
    found: Vec<f64>,
    watch: Watch,
}

fn read<T>(view: View<'_, Vec<T>>) -> &[T] {
    &view.buffer[view.range]
}

fn write<T>(view: ViewMut<'_, Vec<T>>) -> &mut [T] {
    &mut view.buffer[view.range]
}

/// The elements to be updated: parameters, first and second moments.
fn parts<T>(updated: Updated<'_, Vec<T>>) -> [&mut [T]; 3] {
    let Updated { parameters, first, second, range } = updated;
    [parameters, first, second].map(|buffer| &mut buffer[range.clone()])
}

/// A split, the users whose lists are to be measured, and the list lengths.
#[derive(Debug)]
pub struct CpuWanted {
    split: Split,
    users: Vec<u32>,
    lengths: Vec<usize>,
}
