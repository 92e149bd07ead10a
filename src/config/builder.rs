//! Building a [`TrainConfig`] setting by setting.

use super::{FeatureTypeChoice, Order, Propagation, TrainConfig, ascending};
use crate::Result;

/// Gathers the settings of a training; all others have their defaults.
///
/// ```
/// use bm3_engine::TrainConfig;
///
/// let config = TrainConfig::builder().layers(2).dropout(0.3).seed(7).build()?;
/// assert_eq!((config.layers, config.embedding_size), (2, 64));
/// assert!(TrainConfig::builder().dropout(1.5).build().is_err());
/// # Ok::<(), bm3_engine::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct TrainConfigBuilder {
    config: TrainConfig,
}

impl TrainConfig {
    /// Starts with the defaults.
    pub fn builder() -> TrainConfigBuilder {
        TrainConfigBuilder::default()
    }
}

/// Defines one method for each setting.
macro_rules! settings {
    ($($setting:ident: $kind:ty, $what:literal;)*) => {
        impl TrainConfigBuilder {
            $(
                #[doc = $what]
                #[must_use]
                pub fn $setting(mut self, $setting: $kind) -> Self {
                    self.config.$setting = $setting;
                    self
                }
            )*
        }
    };
}

settings! {
    embedding_size: usize, "d, the width of every embedding: a multiple of 4 from 4 to 512.";
    layers: usize, "L, the number of propagation layers: 0 to 4.";
    propagation: Propagation, "How a layer propagates.";
    self_loops: bool, "Adds a self-loop to every node of the graph.";
    dropout: f64, "Probability with which an element of a bootstrap target is dropped: 0 ≤ p < 1.";
    reg_weight: f64, "λ_reg, the weight of the Frobenius norms in the loss.";
    cl_weight: f64, "λ_cl, the weight of the alignment and mask losses.";
    freeze_features: bool, "Keeps raw features as inputs instead of training them.";
    feature_type: FeatureTypeChoice, "The type in which frozen features lie on a GPU.";
    learning_rate: f64, "Adam's learning rate in the first epoch.";
    learning_rate_decay: f64, "γ: the learning rate is multiplied by γ^(epoch/50).";
    batch_size: usize, "Training pairs per step.";
    epochs: u64, "At most this many epochs.";
    patience: u64, "Stops when more than this many evaluations in a row have not beaten the best \
                    Recall@20.";
    seed: u64, "Keys every random draw of the run.";
    order: Order, "The order of the training pairs.";
}

impl TrainConfigBuilder {
    /// The list lengths K at which metrics are reported: 1 to 1024, in any order.
    #[must_use]
    pub fn top_k(mut self, top_k: &[usize]) -> Self {
        self.config.top_k = ascending(top_k.to_vec());
        self
    }

    /// Checks and returns the settings.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting) with the setting, what was found and what is
    /// expected.
    pub fn build(self) -> Result<TrainConfig> {
        self.config.validate()?;
        Ok(self.config)
    }
}
