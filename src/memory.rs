//! What a training run will hold in memory, counted before it starts.

use crate::batch::Batch;
use crate::config::{Propagation, TrainConfig};
use crate::data::Dataset;
use crate::evaluate;
use crate::graph::Graph;
use crate::train::{STOPPING_LENGTH, layout};

/// One thing that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryLine {
    /// What it is.
    pub what: String,
    /// Its bytes.
    pub bytes: u64,
}

/// Everything a run on the CPU holds, in f32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// What is held in memory of the process's own.
    pub lines: Vec<MemoryLine>,
    /// Bytes of mapped feature files: page cache, which the system takes back when it needs to.
    pub mapped: u64,
}

impl MemoryPlan {
    /// Counts for training on `dataset` with `config`.
    pub fn new(dataset: &Dataset, graph: &Graph, config: &TrainConfig) -> Self {
        const REAL: u64 = size_of::<f32>() as u64;
        let layout = layout(dataset, config);
        let (dense, nodes) = (layout.len() as u64, layout.nodes.len() as u64);
        let d = config.embedding_size as u64;
        let mut lines = Vec::new();
        let mut add = |what: &str, bytes: u64| {
            lines.push(MemoryLine { what: what.to_owned(), bytes });
        };
        let splits = [&dataset.valid, &dataset.test];
        let pairs = dataset.train.users.len() as u64 * 8
            + splits.iter().map(|split| split.items.len() as u64 * 4).sum::<u64>();
        add("interactions and an epoch's order", pairs + dataset.train.users.len() as u64 * 20);
        add("graph", graph.entries() as u64 * 4 + graph.nodes() as u64 * (8 + REAL));
        add("dense parameters, their gradients and two moments", 4 * dense * REAL);
        let layers = match config.propagation {
            Propagation::Light if config.layers < 2 => 0,
            Propagation::Light => 2,
            Propagation::Gcn => 2 + 2 * config.layers as u64,
        };
        add("propagated nodes and their gradient", (2 + layers) * nodes * REAL);
        let first = 0..dataset.train.users.len().min(config.batch_size) as u32;
        let batch = Batch::of_pairs(&dataset.train, &first.collect::<Vec<u32>>());
        let modalities = dataset.modalities.len() as u64;
        let most_rows = (batch.pairs().min(dataset.users)
            + batch.pairs().min(dataset.items) * (1 + dataset.modalities.len()))
            as u64;
        add("a batch's rows, predictions, targets and gradients", 4 * most_rows * d * REAL);
        let widest = dataset.modalities.iter().map(|modality| modality.features.columns()).max();
        add("packed weights and gradient blocks", 2 * widest.unwrap_or(0) as u64 * d * REAL);
        let features: u64 = dataset
            .modalities
            .iter()
            .map(|modality| (dataset.items * modality.features.columns()) as u64)
            .sum();
        if !config.freeze_features && modalities > 0 {
            add("trained features and two moments", 3 * features * REAL);
            add("trained features of the best epoch", features * REAL);
        }
        add("dense parameters of the best epoch", dense * REAL);
        let users = evaluate::users_of(&splits).len() as u64;
        let longest = config.top_k.iter().copied().max().unwrap_or(0).max(STOPPING_LENGTH) as u64;
        let scored = nodes * REAL + dataset.items as u64 * d * REAL;
        add("evaluation: predicted nodes and lists", scored + users * longest * 12);
        let mapped =
            dataset.modalities.iter().map(|modality| modality.features.bytes() as u64).sum();
        Self { lines, mapped }
    }

    /// The sum of all lines.
    pub fn total(&self) -> u64 {
        self.lines.iter().map(|line| line.bytes).sum()
    }
}
