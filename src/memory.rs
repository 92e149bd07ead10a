//! The memory of a training run, counted before it starts.

use serde::Serialize;

use crate::config::{FeatureStorage, Propagation, TrainConfig};
use crate::cuda::{self, FeaturePlacement, Placement, StoredType};
use crate::data::Dataset;
use crate::evaluate;
use crate::graph::Graph;
use crate::train::{STOPPING_LENGTH, layout};

/// One entry of a [`MemoryPlan`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemoryLine {
    /// What the memory is for.
    pub what: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// All memory of a run, in f32 unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The process's own memory.
    pub host: Vec<MemoryLine>,
    /// Memory on the GPU; empty for a run on the CPU.
    pub device: Vec<MemoryLine>,
    /// Bytes of mapped feature files: page cache, which the system takes back when it needs to.
    pub mapped: u64,
}

const REAL: u64 = size_of::<f32>() as u64;

impl MemoryPlan {
    /// Counts for training on `dataset` with `config` on the CPU.
    pub fn on_cpu(dataset: &Dataset, graph: &Graph, config: &TrainConfig) -> Self {
        let layout = layout(dataset, config);
        let (dense, nodes) = (layout.len() as u64, layout.nodes.len() as u64);
        let d = config.embedding_size as u64;
        let mut host = Vec::new();
        let mut add = |what: &str, bytes: u64| {
            host.push(MemoryLine { what: what.to_owned(), bytes });
        };
        let pairs = dataset.train.users.len() as u64;
        add("interactions and an epoch's order", interactions(dataset) + pairs * 20);
        add("graph", graph.entries() as u64 * 4 + graph.nodes() as u64 * (8 + REAL));
        let gradients = layout.gradients() as u64;
        add("dense parameters, two moments and gradients", (3 * dense + gradients) * REAL);
        add("propagated nodes and their gradient", (2 + layer_buffers(config)) * nodes * REAL);
        let pairs_at_once = dataset.train.users.len().min(config.batch_size);
        let users = pairs_at_once.min(dataset.users);
        let items = pairs_at_once.min(dataset.items);
        let most_rows = (users + items * (1 + dataset.modalities.len())) as u64;
        add("a batch's rows, predictions, targets and gradients", 4 * most_rows * d * REAL);
        let widest = dataset.modalities.iter().map(|modality| modality.features.columns()).max();
        add("packed weights and gradient blocks", 2 * widest.unwrap_or(0) as u64 * d * REAL);
        let features = feature_values(dataset);
        if !config.freeze_features && features > 0 {
            add("trained features and two moments", 3 * features * REAL);
            add("trained features of the best epoch", features * REAL);
        }
        add("dense parameters of the best epoch", dense * REAL);
        let users = evaluate::users_of(&[&dataset.valid, &dataset.test]).len() as u64;
        let longest = config.top_k.iter().copied().max().unwrap_or(0).max(STOPPING_LENGTH) as u64;
        add("evaluation: items and lists", dataset.items as u64 * d * REAL + users * longest * 12);
        Self { host, device: Vec::new(), mapped: mapped(dataset) }
    }

    /// Counts for training on `dataset` with `config` on a GPU with `free` bytes free, of which the
    /// run may take `limit`.
    pub fn on_gpu(
        dataset: &Dataset,
        graph: &Graph,
        config: &TrainConfig,
        storage: FeatureStorage,
        free: u64,
        limit: Option<u64>,
    ) -> Self {
        let placement = Placement::decide(dataset, graph, config, storage, free, limit);
        let dense = layout(dataset, config).len() as u64;
        let mut host = Vec::new();
        let mut add = |what: &str, bytes: u64| {
            host.push(MemoryLine { what: what.to_owned(), bytes });
        };
        let pairs = dataset.train.users.len() as u64;
        add("interactions and an epoch's order", interactions(dataset) + pairs * 4);
        add("graph", graph.entries() as u64 * 4 + graph.nodes() as u64 * 8);
        // The best epoch's are written and released before these are read.
        add("dense parameters and two moments, while they are saved", 3 * dense * REAL);
        let features = feature_values(dataset);
        if !config.freeze_features && features > 0 {
            let what = "trained features and two moments, while they are saved";
            let touched = dataset.modalities.len() as u64 * dataset.items as u64 * 4;
            add(what, 3 * features * REAL + touched);
        }
        let streamed = matches!(placement.features, FeaturePlacement::Streamed { .. });
        if features > 0 && !streamed {
            let tables = dataset.modalities.iter().map(|modality| &modality.features);
            let longest = tables.map(|features| StoredType::row_bytes(config, features)).max();
            let bytes = cuda::staging_bytes(longest.unwrap_or(0));
            add("page-locked memory, by way of which features are copied", bytes);
        }
        let users = evaluate::users_of(&[&dataset.valid, &dataset.test]).len() as u64;
        let wanted = (dataset.valid.items.len() + dataset.test.items.len()) as u64;
        add("evaluation: who is measured, and what is to be found", users * 24 + wanted * 4);
        let device = cuda::training_memory(dataset, graph, config, &placement);
        Self { host, device, mapped: mapped(dataset) }
    }

    /// The total of the process's own memory, in bytes.
    pub fn host_total(&self) -> u64 {
        self.host.iter().map(|line| line.bytes).sum()
    }

    /// The total of memory on the GPU, in bytes.
    pub fn device_total(&self) -> u64 {
        self.device.iter().map(|line| line.bytes).sum()
    }
}

/// The number of N × d buffers that the layers need besides H and its gradient.
pub(crate) fn layer_buffers(config: &TrainConfig) -> u64 {
    match config.propagation {
        Propagation::Light if config.layers < 2 => 0,
        Propagation::Light => 2,
        Propagation::Gcn => 2 + 2 * config.layers as u64,
    }
}

/// Bytes of the pairs of all splits.
fn interactions(dataset: &Dataset) -> u64 {
    let found = dataset.valid.items.len() + dataset.test.items.len();
    dataset.train.users.len() as u64 * 8 + found as u64 * 4
}

/// The number of values in all modalities' features.
pub(crate) fn feature_values(dataset: &Dataset) -> u64 {
    let columns = dataset.modalities.iter().map(|modality| modality.features.columns() as u64);
    dataset.items as u64 * columns.sum::<u64>()
}

fn mapped(dataset: &Dataset) -> u64 {
    dataset.modalities.iter().map(|modality| modality.features.bytes() as u64).sum()
}
