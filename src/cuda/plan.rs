//! The GPU memory of a training run, counted before it starts.
//!
//! The count follows [`crate::step::DeviceModel`], [`crate::train::fit`] and the wrappers beside
//! this file allocation by allocation; `tests/gpu_memory.rs` checks that runs succeed with just as
//! much memory and fail with a little less. The driver hands memory out in larger pieces. Its own
//! share (context, code) is already gone from the free memory when the first of these is allocated;
//! the few megabytes of it that recorded steps take are not counted.

use std::sync::Arc;

use super::StoredType;
use super::batches::{self, rooms_for};
use super::dense::{COLUMN_ROWS, Tile};
use super::device::PART_ALIGNMENT;
use super::features::parts;
use super::loss::loss_bytes;
use super::ranking::{self, CudaWanted};
use super::rows::norm_blocks;
use super::schedule::room_for;
use super::{spmm, stream};
use crate::backend::Rooms;
use crate::config::{FeatureStorage, Propagation, TrainConfig};
use crate::data::{Dataset, Split};
use crate::evaluate;
use crate::graph::Graph;
use crate::memory::{MemoryLine, feature_values, layer_buffers};
use crate::parameters::Layout;
use crate::train::{self, measured_lengths};

/// Bytes of a number in f32 or of an id.
const WORD: u64 = 4;
/// Bytes of a step's constants.
const STEP: u64 = 8;

/// One part in this many of everything else is left free, and [`MARGIN`] bytes: the driver hands
/// memory out in larger pieces than are asked for.
pub(crate) const SPARE_SHARE: u64 = 16;
pub(crate) const MARGIN: u64 = 64 << 20;

/// Where a run keeps what need not lie on the GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placement {
    /// Where its features are.
    pub features: FeaturePlacement,
    /// Whether the best epoch's dense parameters are kept on the GPU instead of in host memory.
    pub keeps_dense: bool,
}

/// Where a run keeps its features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FeaturePlacement {
    /// All on the GPU.
    Resident,
    /// On the GPU, because they are trained.
    Trained {
        /// Whether the best epoch's are kept there too instead of in host memory: reading them can
        /// take longer than an epoch.
        keeps_best: bool,
    },
    /// In their files: a batch's rows come when needed, those of a few items stay on the GPU.
    Streamed {
        /// The items whose rows stay.
        kept: Vec<u32>,
        /// The most distinct items of a batch, in whole tiles.
        room: usize,
    },
}

impl Placement {
    /// Decides for a run on a GPU with `free` bytes free, of which the run may take `limit`.
    pub fn decide(
        dataset: &Dataset,
        graph: &Graph,
        config: &TrainConfig,
        storage: FeatureStorage,
        free: u64,
        limit: Option<u64>,
    ) -> Self {
        let others: u64 = others(dataset, graph, config).iter().map(|line| line.bytes).sum();
        // A limit counts bytes as they are asked for: nothing need be spared of it.
        let most = free.saturating_sub(others / SPARE_SHARE + MARGIN);
        let budget = limit.map_or(most, |limit| limit.min(most)).saturating_sub(others);
        let (row_bytes, trained) = (row_bytes(dataset, config), trained_bytes(dataset, config));
        let (all, best) = ((dataset.items * row_bytes) as u64, best_bytes(dataset, config));
        if trained > 0 {
            let keeps_best = best + trained <= budget;
            let features = FeaturePlacement::Trained { keeps_best };
            return Self { features, keeps_dense: best <= budget };
        }
        let room = rooms(dataset, config).items;
        let least = stream::bytes(0, room, row_bytes);
        let is_resident = match storage {
            FeatureStorage::Resident => true,
            // For a small table, a few batches take more than the whole.
            FeatureStorage::Auto => all <= budget || all <= least,
            FeatureStorage::Stream => row_bytes == 0,
        };
        if is_resident {
            let features = FeaturePlacement::Resident;
            return Self { features, keeps_dense: all + best <= budget };
        }
        // A user who asks for streaming but sets no limit wants the memory for something else: take
        // a quarter.
        let takes_all = storage != FeatureStorage::Stream || limit.is_some();
        let for_rows = if takes_all { budget } else { budget / 4 };
        let kept = for_rows.saturating_sub(least) / row_bytes as u64;
        let mut items: Vec<u32> = (0..dataset.items as u32).collect();
        // An item is in nearly as many batches as it has pairs.
        items.sort_by_key(|&item| {
            std::cmp::Reverse(graph.neighbours(dataset.users + item as usize).len())
        });
        items.truncate(usize::try_from(kept).unwrap_or(usize::MAX));
        // Rows that stay save more than copying a best epoch now and then costs.
        let keeps_dense = stream::bytes(items.len(), room, row_bytes) + best <= budget;
        Self { features: FeaturePlacement::Streamed { kept: items, room }, keeps_dense }
    }

    /// A message for the user, if features are streamed.
    pub fn describe(&self, dataset: &Dataset, config: &TrainConfig) -> Option<String> {
        let FeaturePlacement::Streamed { kept, .. } = &self.features else { return None };
        let row_bytes = row_bytes(dataset, config);
        let gigabytes = |rows: usize| (rows * row_bytes) as f64 / 1e9;
        Some(format!(
            "features stay in their files ({:.2} GB): each step's rows are streamed, and those of \
             the {} items with most interactions ({:.2} GB) stay on the GPU",
            gigabytes(dataset.items),
            kept.len(),
            gigabytes(kept.len())
        ))
    }
}

/// Bytes of an item's features in all modalities, as they are stored.
fn row_bytes(dataset: &Dataset, config: &TrainConfig) -> usize {
    let features = dataset.modalities.iter().map(|modality| &modality.features);
    features.map(|features| StoredType::row_bytes(config, features)).sum()
}

/// Bytes of the values of trained features; 0 if they are frozen.
fn trained_bytes(dataset: &Dataset, config: &TrainConfig) -> u64 {
    if config.freeze_features { 0 } else { feature_values(dataset) * WORD }
}

/// Bytes of the best epoch's dense parameters.
fn best_bytes(dataset: &Dataset, config: &TrainConfig) -> u64 {
    train::layout(dataset, config).len() as u64 * WORD
}

/// The rooms of a run's batches.
fn rooms(dataset: &Dataset, config: &TrainConfig) -> Rooms {
    let most = dataset.train.users.len().min(config.batch_size);
    rooms_for(dataset.users.min(most), dataset.items.min(most))
}

/// Everything that a run keeps on the GPU.
pub(crate) fn training(
    dataset: &Dataset,
    graph: &Graph,
    config: &TrainConfig,
    placement: &Placement,
) -> Vec<MemoryLine> {
    let mut lines = others(dataset, graph, config);
    let mut add = |what: String, bytes: u64| lines.push(MemoryLine { what, bytes });
    if placement.keeps_dense {
        add("dense parameters of the best epoch".to_owned(), best_bytes(dataset, config));
    }
    match &placement.features {
        FeaturePlacement::Trained { keeps_best } => {
            if *keeps_best {
                let bytes = trained_bytes(dataset, config);
                add("trained features of the best epoch".to_owned(), bytes);
            }
        }
        FeaturePlacement::Streamed { kept, room } => {
            let bytes = stream::bytes(kept.len(), *room, row_bytes(dataset, config));
            let what = format!("streamed features: {} rows that stay, and batches'", kept.len());
            add(what, bytes);
        }
        FeaturePlacement::Resident => {
            for stored in [StoredType::F32, StoredType::F16, StoredType::Bf16] {
                let columns: usize = dataset
                    .modalities
                    .iter()
                    .filter(|modality| StoredType::of_run(config, &modality.features) == stored)
                    .map(|modality| modality.features.columns())
                    .sum();
                if columns > 0 {
                    let bytes = (dataset.items * columns * stored.size()) as u64;
                    add(format!("frozen features in {stored}"), bytes);
                }
            }
        }
    }
    lines
}

/// The GPU memory of one run among several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Bytes that the run does not share.
    pub own: u64,
    /// The same if features are streamed and no rows stay.
    pub streaming: u64,
    /// Bytes of a second copy of trained features, which may be kept for the best epoch.
    pub best: u64,
    /// Bytes of the graph, which runs share.
    pub graph: u64,
    /// The tables of frozen features, which runs share: the address, which tells a table from others, the
    /// stored type and bytes.
    pub tables: Vec<(usize, StoredType, u64)>,
}

impl Shares {
    /// Counts for a run.
    pub fn of(dataset: &Dataset, graph: &Graph, config: &TrainConfig) -> Self {
        let graph_bytes = spmm::Sizes::of(graph).shared;
        let all: u64 = others(dataset, graph, config).iter().map(|line| line.bytes).sum();
        let own = all - graph_bytes + best_bytes(dataset, config);
        if !config.freeze_features || dataset.modalities.is_empty() {
            let best = trained_bytes(dataset, config);
            return Self { own, streaming: own, best, graph: graph_bytes, tables: Vec::new() };
        }
        let room = rooms(dataset, config).items;
        let table = |modality: &crate::data::Modality| {
            let stored = StoredType::of_run(config, &modality.features);
            let bytes = dataset.items * modality.features.columns() * stored.size();
            (Arc::as_ptr(&modality.features).addr(), stored, bytes as u64)
        };
        Self {
            own,
            streaming: own + stream::bytes(0, room, row_bytes(dataset, config)),
            best: 0,
            graph: graph_bytes,
            tables: dataset.modalities.iter().map(table).collect(),
        }
    }
}

/// Everything that must lie on the GPU: all but frozen features and the best epoch.
fn others(dataset: &Dataset, graph: &Graph, config: &TrainConfig) -> Vec<MemoryLine> {
    let layout = train::layout(dataset, config);
    let (dense, nodes) = (layout.len() as u64, layout.nodes.len() as u64);
    let spmm::Sizes { shared, own, slots } = spmm::Sizes::of(graph);
    let mut lines = Vec::new();
    let mut add = |what: &str, bytes: u64| {
        lines.push(MemoryLine { what: what.to_owned(), bytes });
    };
    add("the graph, cut into even work", shared + own);
    let gradients = layout.gradients() as u64;
    add("dense parameters, two moments and gradients", (3 * dense + gradients) * WORD);
    add("propagated nodes and their gradient", (2 + layer_buffers(config)) * nodes * WORD);
    let trained = trained_bytes(dataset, config);
    if trained > 0 {
        let parts = dataset.modalities.iter().map(|part| parts(part.features.columns()) as u64);
        let touched = parts.sum::<u64>() * dataset.items as u64 * WORD;
        add("trained features and two moments", 3 * trained + touched);
    }
    let pairs = dataset.train.users.len();
    let steps_per_epoch = pairs.div_ceil(config.batch_size);
    add("the training pairs and their batches", batches::bytes(pairs, steps_per_epoch));
    add("constants of steps, if no epoch is spared", schedule(config.epochs, steps_per_epoch));
    let rooms = rooms(dataset, config);
    let rows = rooms.users + rooms.items * (1 + dataset.modalities.len());
    add(
        "a batch's rows, predictions and gradients",
        (3 * 4 * config.embedding_size + 16) as u64 * rows as u64
            + loss_bytes(dataset.modalities.len()),
    );
    add("intermediate sums", scratch(&layout, config, slots, rows, rooms.items));
    add("what lists are compared with", wanted(dataset, config));
    let arranging = batches::arranging_bytes(pairs, config.order);
    add(
        "what comes and goes: the order of an epoch, or evaluation",
        arranging.max(evaluation(dataset, config)),
    );
    lines
}

/// Bytes of a [`super::CudaSchedule`] once all epochs are planned.
fn schedule(epochs: u64, steps_per_epoch: usize) -> u64 {
    // Steps are numbered in 32 bits.
    let steps = epochs.saturating_mul(steps_per_epoch as u64).min(u32::MAX.into());
    if steps == 0 { 0 } else { STEP * room_for(steps as usize) as u64 }
}

/// The most scratch memory that operations use; a [`super::Device`] and each of its branches in a
/// step have their own.
fn scratch(layout: &Layout, config: &TrainConfig, slots: usize, rows: usize, items: usize) -> u64 {
    let d = config.embedding_size;
    let aligned = |bytes: usize| (bytes as u64).next_multiple_of(PART_ALIGNMENT);
    let room = |count: usize, elements: usize| if count == 1 { 0 } else { 4 * count * elements };
    let partial = |tile: Tile, rows: usize, columns: usize, depth: usize| {
        room(tile.slices(rows, columns, depth), rows * columns)
    };
    let column_sums = |rows: usize| 4 * rows.div_ceil(COLUMN_ROWS as usize) * d;
    let modality = |columns: usize| {
        let most = Tile::FEATURE_ROWS.most_slices(items, d, columns);
        let forward = room(most, items * d);
        let backward = partial(Tile::FEATURE_COLUMNS, d, columns, items);
        aligned(forward.max(backward)) + aligned(column_sums(items))
    };
    let gcn = match config.propagation {
        Propagation::Light => 0,
        Propagation::Gcn => partial(Tile::SMALL, d, d, layout.nodes.len() / d),
    };
    let users_elements = (layout.users * d) as u64;
    let norms = 8 * norm_blocks(users_elements, layout.nodes.len() as u64).1 as usize;
    let spmm = 4 * slots * d;
    let nodes = aligned(spmm.max(gcn)).max(aligned(norms) + PART_ALIGNMENT);
    let modalities: u64 = layout.modalities.iter().map(|part| modality(part.columns)).sum();
    // The device itself runs spmm when an evaluation propagates.
    let predictor = partial(Tile::SMALL, d, d, rows);
    let device = aligned(spmm.max(predictor)) + aligned(column_sums(rows));
    device + nodes + modalities
}

/// Bytes of the [`CudaWanted`] of both splits.
fn wanted(dataset: &Dataset, config: &TrainConfig) -> u64 {
    let lengths = measured_lengths(config);
    let longest = lengths.last().copied().unwrap_or(0);
    let splits =
        [&dataset.valid, &dataset.test].into_iter().filter(|split| !split.users.is_empty());
    let bytes = |split: &Split| {
        CudaWanted::bytes(split.users.len(), split.items.len(), lengths.len(), longest)
    };
    splits.map(bytes).sum()
}

/// Bytes of an evaluation: search and lists. Predictions lie where the nodes' gradient did.
fn evaluation(dataset: &Dataset, config: &TrainConfig) -> u64 {
    let users = evaluate::users_of(&[&dataset.valid, &dataset.test]).len();
    let longest = measured_lengths(config).last().copied().unwrap_or(0);
    let (items, width) = (dataset.items, config.embedding_size);
    WORD * users as u64
        + ranking::search_bytes(users, items, width, longest)
        + 2 * WORD * (users * longest) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a run goes through all epochs, or is resumed after any of them, it ends in as much
    /// room, and never takes more on the way.
    #[test]
    fn the_constants_of_steps_are_counted_with_the_room_they_grow_into() {
        for steps_per_epoch in [1, 22, 613, 5000] {
            for epochs in 1..300 {
                let planned = schedule(epochs as u64, steps_per_epoch);
                assert_eq!(planned, STEP * room_for(epochs * steps_per_epoch) as u64);
                assert!(schedule(epochs as u64 - 1, steps_per_epoch) <= planned);
            }
        }
        assert_eq!(schedule(0, 100), 0);
        assert!(schedule(u64::MAX, 100) < 1 << 37);
    }
}
