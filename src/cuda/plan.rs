//! What a training run asks of a GPU's memory, counted before it starts.
//!
//! It follows [`crate::step::Model`], [`crate::train::fit`] and the wrappers beside this file
//! allocation by allocation, with the most that a batch can need; `tests/gpu_memory.rs` has runs
//! succeed with just as much memory, and fail with a little less. The driver hands memory out in
//! larger pieces, and its own share (context, code) is gone from the free memory before the first
//! of these is asked for.

use super::StoredType;
use super::dense::{TILE, slices};
use super::device::PART_ALIGNMENT;
use super::random;
use super::rows::norm_blocks;
use super::spmm;
use crate::config::{Order, Propagation, TrainConfig};
use crate::data::Dataset;
use crate::evaluate;
use crate::graph::Graph;
use crate::memory::{MemoryLine, largest_batch, layer_buffers};
use crate::parameters::Layout;
use crate::train::{self, STOPPING_LENGTH};

/// Bytes of a number in f32, and of an id.
const WORD: u64 = 4;
/// Bytes of the constants of a step, for trained features.
const STEP: u64 = 8;

/// Everything that lies on the GPU.
pub(crate) fn training(dataset: &Dataset, graph: &Graph, config: &TrainConfig) -> Vec<MemoryLine> {
    let layout = train::layout(dataset, config);
    let (dense, nodes) = (layout.len() as u64, layout.nodes.len() as u64);
    let (graph_bytes, slots) = spmm::sizes(graph);
    let mut lines = Vec::new();
    let mut add = |what: &str, bytes: u64| {
        lines.push(MemoryLine { what: what.to_owned(), bytes });
    };
    add("the graph, cut into even work", graph_bytes);
    add("dense parameters, their gradients and two moments", 4 * dense * WORD);
    add("propagated nodes and their gradient", (2 + layer_buffers(config)) * nodes * WORD);
    let values: u64 = dataset.modalities.iter().map(|m| m.features.columns() as u64).sum::<u64>()
        * dataset.items as u64;
    if !config.freeze_features && values > 0 {
        let modalities = dataset.modalities.len() as u64;
        let touched = modalities * dataset.items as u64 * WORD;
        add("trained features and two moments", 3 * values * WORD + touched);
        let steps = config.epochs.saturating_mul(steps_per_epoch(dataset, config));
        add("constants of past steps, if no epoch is spared", modalities * STEP * history(steps));
    }
    if config.freeze_features {
        for stored in [StoredType::F32, StoredType::F16, StoredType::Bf16] {
            let columns: usize = dataset
                .modalities
                .iter()
                .filter(|modality| StoredType::of_run(config, &modality.features) == stored)
                .map(|modality| modality.features.columns())
                .sum();
            if columns > 0 {
                let bytes = (dataset.items * columns * stored.size()) as u64;
                add(&format!("frozen features in {stored}"), bytes);
            }
        }
    }
    let (users, items, pairs) = largest_batch(dataset, config);
    let rows = users + items * (1 + dataset.modalities.len());
    let terms = 3 + 2 * dataset.modalities.len() as u64;
    add(
        "a batch's rows, predictions and gradients",
        3 * (rows * config.embedding_size) as u64 * WORD + 2 * 8 * terms,
    );
    add("intermediate sums", scratch(&layout, config, slots, rows, items));
    let ids = (2 * (users + items + pairs) + 2) as u64 * WORD;
    let layer = if config.propagation == Propagation::Gcn { nodes * WORD } else { 0 };
    let order = match config.order {
        Order::Random => random::order_bytes(dataset.train.users.len()),
        Order::File => 0,
    };
    add(
        "what comes and goes: the order of an epoch, a batch, or evaluation",
        order.max(ids + layer).max(evaluation(dataset, config, nodes)),
    );
    lines
}

fn steps_per_epoch(dataset: &Dataset, config: &TrainConfig) -> u64 {
    dataset.train.users.len().div_ceil(config.batch_size) as u64
}

/// The most steps that the buffers of `features::Trained::learn` have room for while one is
/// replaced by the next, in a run of `steps`.
fn history(steps: u64) -> u64 {
    // Steps are numbered in 32 bits.
    let steps = steps.min(u64::from(u32::MAX));
    let (mut room, mut before) = (0, 0);
    while room < steps {
        before = room;
        room = (2 * (room + 1)).max(1024);
    }
    before + room
}

/// The most that [`super::Device`] keeps for intermediate numbers: it grows by half at least.
fn scratch(layout: &Layout, config: &TrainConfig, slots: usize, rows: usize, items: usize) -> u64 {
    let d = config.embedding_size;
    let partial = |lines: usize, columns: usize, depth: usize| match slices(lines, columns, depth) {
        (_, 1) => 0,
        (_, count) => 4 * count * lines * columns,
    };
    // Batches may be smaller than the largest one, and then need more: fewer tiles, more slices.
    let upto = |most: usize, step: usize| {
        (1..=most.div_ceil(step)).map(move |number| (number * step).min(most))
    };
    // Below a depth of 128 for each slice there are fewer of them.
    let over_depths = |lines: usize, columns: usize, most: usize| {
        upto(most, 128).map(|depth| partial(lines, columns, depth)).max().unwrap_or(0)
    };
    let modalities = layout.modalities.iter().map(|modality| {
        let columns = modality.columns;
        let forward = upto(items, TILE as usize).map(|items| partial(items, d, columns)).max();
        forward.unwrap_or(0).max(over_depths(d, columns, items))
    });
    let gcn = match config.propagation {
        Propagation::Light => 0,
        Propagation::Gcn => partial(d, d, layout.nodes.len() / d),
    };
    let aligned = |bytes: usize| (bytes as u64).next_multiple_of(PART_ALIGNMENT);
    let users_elements = (layout.users * d) as u64;
    let norms = 8 * norm_blocks(users_elements, layout.nodes.len() as u64).1 as usize;
    let needs = [
        aligned(4 * slots * d),
        aligned(16 * rows),
        aligned(norms) + PART_ALIGNMENT,
        aligned(4 * rows.div_ceil(32) * d),
        aligned(over_depths(d, d, rows).max(gcn)),
        aligned(modalities.max().unwrap_or(0)),
    ];
    let most = needs.into_iter().max().unwrap_or(0);
    most + most / 2
}

/// The larger of scoring and measuring, both with the lists.
fn evaluation(dataset: &Dataset, config: &TrainConfig, nodes: u64) -> u64 {
    let splits = [&dataset.valid, &dataset.test];
    let users = evaluate::users_of(&splits).len() as u64;
    let mut lengths = config.top_k.clone();
    lengths.push(STOPPING_LENGTH);
    lengths.sort_unstable();
    lengths.dedup();
    let (longest, columns) = (lengths.last().map_or(0, |&k| k as u64), 4 * lengths.len() as u64);
    let measuring = splits.map(|split| {
        let (measured, wanted) = (split.users.len() as u64, split.items.len() as u64);
        8 * columns * (measured + 1)
            + WORD * (2 * measured + 1 + wanted + columns / 4)
            + 8 * (2 * longest + 1)
    });
    let scoring = WORD * (nodes + users);
    2 * WORD * users * longest + scoring.max(measuring[0]).max(measuring[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `features::Trained::learn` has it, a step at a time.
    #[test]
    fn past_steps_are_counted_with_the_room_they_grow_into() {
        let (mut room, mut most) = (0u64, 0);
        for step in 1..10_000 {
            if step > room {
                most = room + (2 * step).max(1024);
                room = (2 * step).max(1024);
            }
            assert_eq!(history(step), most, "{step} steps");
        }
        assert_eq!(history(u64::MAX), history(u64::from(u32::MAX)));
    }
}
