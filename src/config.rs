//! Every setting of a training run.

use serde::{Deserialize, Serialize};

/// How embeddings travel along the interaction graph (SPEC §2, equation (2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Propagation {
    /// H^{l+1} = Â H^l: no weights, no activation; the reference code's form.
    Light,
    /// H^{l+1} = LeakyReLU₀.₂(Â H^l W^l): the paper's equation as printed.
    Gcn,
}

/// The order in which an epoch visits the training pairs (SPEC §7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// A fresh permutation each epoch, keyed by seed and epoch.
    Random,
    /// The lines of the `.inter` file as they stand, every epoch the same.
    File,
}

/// The settings that decide the bits of a trained model, and when training stops.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// d, the width of every embedding: a multiple of 4 from 4 to 512.
    pub embedding_size: usize,
    /// L, the number of propagation layers: 0 to 4.
    pub layers: usize,
    /// How a layer propagates.
    pub propagation: Propagation,
    /// Adds a self-loop to every node of the graph, as the paper's text writes.
    pub self_loops: bool,
    /// Probability with which an element of a bootstrap target is dropped: 0 ≤ p < 1.
    pub dropout: f64,
    /// λ_reg, the weight of the Frobenius norms in the loss.
    pub reg_weight: f64,
    /// λ_cl, the weight of the alignment and mask losses.
    pub cl_weight: f64,
    /// Keeps raw features as inputs instead of training them.
    pub freeze_features: bool,
    /// Adam's learning rate in the first epoch.
    pub learning_rate: f64,
    /// γ: the learning rate is multiplied by γ^(epoch/50), epochs from 0.
    pub learning_rate_decay: f64,
    /// Training pairs per step.
    pub batch_size: usize,
    /// At most this many epochs.
    pub epochs: u64,
    /// Stops when more than this many evaluations in a row have not beaten the best Recall@20.
    pub patience: u64,
    /// The list lengths K at which metrics are reported, ascending; 20 is always measured.
    pub top_k: Vec<usize>,
    /// Keys every random draw of the run.
    pub seed: u64,
    /// The order of the training pairs.
    pub order: Order,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            embedding_size: 64,
            layers: 1,
            propagation: Propagation::Light,
            self_loops: false,
            dropout: 0.5,
            reg_weight: 0.1,
            cl_weight: 2.0,
            freeze_features: false,
            learning_rate: 1e-3,
            learning_rate_decay: 1.0,
            batch_size: 2048,
            epochs: 1000,
            patience: 20,
            top_k: vec![5, 10, 20, 50],
            seed: 999,
            order: Order::Random,
        }
    }
}

impl TrainConfig {
    /// stub until merged
    pub fn validate(&self) -> crate::Result<()> {
        Ok(())
    }
}
