//! Settings that may be given: the flags of `train`, and the keys of a settings file.
//!
//! One definition serves both: the comments on the fields are the flags' help.

use std::path::PathBuf;

use super::{
    ByteSize, DeviceChoice, FeatureSource, FeatureStorage, FeatureTypeChoice, ModalityChoice,
    Order, Propagation, SplitRatio, TrainConfig,
};

/// The settings of a [`TrainConfig`] that were given.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
pub struct TrainSettings {
    /// Width d of every embedding: a multiple of 4 from 4 to 512 [default: 64]
    #[arg(long, value_name = "D", allow_negative_numbers = true, help_heading = "Model")]
    pub embedding_size: Option<usize>,
    /// Propagation layers L: 0 to 4 [default: 1]
    #[arg(long, value_name = "L", allow_negative_numbers = true, help_heading = "Model")]
    pub layers: Option<usize>,
    /// How a layer propagates [default: light]
    #[arg(long, value_name = "FORM", value_enum, help_heading = "Model")]
    pub propagation: Option<Propagation>,
    /// Add a self-loop to every node of the graph, as in the paper's text [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", help_heading = "Model")]
    pub self_loops: Option<bool>,
    /// Keep raw features as inputs instead of training them: less memory, and tables of any size
    /// [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", help_heading = "Model")]
    pub freeze_features: Option<bool>,
    /// Type of frozen features on a GPU; on the CPU they stay in their files [default: auto]
    #[arg(long, value_name = "TYPE", value_enum, help_heading = "Model")]
    pub feature_type: Option<FeatureTypeChoice>,
    /// Probability that an element of a bootstrap target is dropped: 0 ≤ P < 1 [default: 0.5]
    #[arg(long, value_name = "P", allow_negative_numbers = true, help_heading = "Model")]
    pub dropout: Option<f64>,
    /// Weight λ_reg of the embeddings' norms in the loss [default: 0.1]
    #[arg(long, value_name = "WEIGHT", allow_negative_numbers = true, help_heading = "Model")]
    pub reg_weight: Option<f64>,
    /// Weight λ_cl of the alignment and mask losses [default: 2]
    #[arg(long, value_name = "WEIGHT", allow_negative_numbers = true, help_heading = "Model")]
    pub cl_weight: Option<f64>,

    /// Adam's learning rate in the first epoch [default: 0.001]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, help_heading = "Training")]
    pub learning_rate: Option<f64>,
    /// γ: the learning rate is multiplied by γ^(epoch/50), epochs from 0 [default: 1]
    #[arg(long, value_name = "GAMMA", allow_negative_numbers = true, help_heading = "Training")]
    pub learning_rate_decay: Option<f64>,
    /// Training pairs per step [default: 2048]
    #[arg(long, value_name = "PAIRS", allow_negative_numbers = true, help_heading = "Training")]
    pub batch_size: Option<usize>,
    /// At most this many epochs [default: 1000]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Training")]
    pub epochs: Option<u64>,
    /// Stop when more than N evaluations in a row have not beaten the best Recall@20 [default: 20]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Training")]
    pub patience: Option<u64>,
    /// List lengths K at which metrics are reported: 1 to 1024 [default: 5,10,20,50]
    #[arg(
        long,
        value_name = "K,…",
        allow_negative_numbers = true,
        value_delimiter = ',',
        help_heading = "Training"
    )]
    pub top_k: Option<Vec<usize>>,
    /// Seed of every random draw: the same seed gives the same model [default: 999]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Training")]
    pub seed: Option<u64>,
    /// Order in which an epoch visits the training pairs [default: random]
    #[arg(long, value_name = "ORDER", value_enum, help_heading = "Training")]
    pub order: Option<Order>,
}

impl TrainSettings {
    /// Applies the given settings to `config`; list lengths are sorted and deduplicated.
    pub fn apply(&self, config: &mut TrainConfig) {
        fn set<T: Clone>(field: &mut T, given: &Option<T>) {
            if let Some(value) = given {
                field.clone_from(value);
            }
        }
        set(&mut config.embedding_size, &self.embedding_size);
        set(&mut config.layers, &self.layers);
        set(&mut config.propagation, &self.propagation);
        set(&mut config.self_loops, &self.self_loops);
        set(&mut config.dropout, &self.dropout);
        set(&mut config.reg_weight, &self.reg_weight);
        set(&mut config.cl_weight, &self.cl_weight);
        set(&mut config.freeze_features, &self.freeze_features);
        set(&mut config.feature_type, &self.feature_type);
        set(&mut config.learning_rate, &self.learning_rate);
        set(&mut config.learning_rate_decay, &self.learning_rate_decay);
        set(&mut config.batch_size, &self.batch_size);
        set(&mut config.epochs, &self.epochs);
        set(&mut config.patience, &self.patience);
        set(&mut config.top_k, &self.top_k.clone().map(ascending));
        set(&mut config.seed, &self.seed);
        set(&mut config.order, &self.order);
    }

    /// These settings, completed by those of `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            embedding_size: self.embedding_size.or(other.embedding_size),
            layers: self.layers.or(other.layers),
            propagation: self.propagation.or(other.propagation),
            self_loops: self.self_loops.or(other.self_loops),
            freeze_features: self.freeze_features.or(other.freeze_features),
            feature_type: self.feature_type.or(other.feature_type),
            dropout: self.dropout.or(other.dropout),
            reg_weight: self.reg_weight.or(other.reg_weight),
            cl_weight: self.cl_weight.or(other.cl_weight),
            learning_rate: self.learning_rate.or(other.learning_rate),
            learning_rate_decay: self.learning_rate_decay.or(other.learning_rate_decay),
            batch_size: self.batch_size.or(other.batch_size),
            epochs: self.epochs.or(other.epochs),
            patience: self.patience.or(other.patience),
            top_k: self.top_k.or(other.top_k),
            seed: self.seed.or(other.seed),
            order: self.order.or(other.order),
        }
    }
}

/// Sorts list lengths, so that they are measured and reported in ascending order, each once.
pub fn ascending(mut top_k: Vec<usize>) -> Vec<usize> {
    top_k.sort_unstable();
    top_k.dedup();
    top_k
}

/// The settings of a run, other than its [`TrainConfig`], that were given.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
pub struct RunSettings {
    /// Folder with NAME.inter and one NAME_feat.npy per modality
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    pub data: Option<PathBuf>,
    /// A modality's features, replacing or adding to the folder's *_feat.npy (may be repeated): a
    /// .npy file, a two-dimensional tensor of a .safetensors file (FILE.safetensors:TENSOR), or
    /// several of these, whose rows are concatenated: FILE,FILE or a pattern as in
    /// 'image=part-*.npy', sorted by the numbers in the names
    #[arg(long = "feature", value_name = "NAME=FILE[,FILE…]", help_heading = "Data")]
    pub features: Vec<FeatureSource>,
    /// Use only these modalities: a list as in image,text, or `none` [default: all there are]
    #[arg(long, value_name = "NAME,…", help_heading = "Data")]
    pub modalities: Option<ModalityChoice>,
    /// Split each user's interactions by these shares (training, validation, test), drawn with
    /// --seed, not by x_label
    #[arg(long, value_name = "SHARES", allow_hyphen_values = true, help_heading = "Data")]
    pub split: Option<SplitRatio>,

    /// Where to compute: `cpu`, a GPU's number (`0` or `cuda:0`), or `auto`: GPU 0 if it can be
    /// used, else the CPU [default: auto]
    #[arg(long, value_name = "DEVICE", allow_hyphen_values = true, help_heading = "Run")]
    pub device: Option<DeviceChoice>,
    /// Where frozen features lie on a GPU; results do not depend on it [default: auto]
    #[arg(long, value_name = "STORAGE", value_enum, help_heading = "Run")]
    pub feature_storage: Option<FeatureStorage>,
    /// Limit on the GPU memory to take, as in 8GB or 900MB; results do not depend on it
    /// [default: what is free]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, help_heading = "Run")]
    pub device_memory: Option<ByteSize>,
    /// CPU threads; results do not depend on it [default: one per core]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Run")]
    pub threads: Option<usize>,
    /// Directory of the run; refused if it already has a run [default: runs/DATASET-UTCTIME]
    #[arg(long, value_name = "RUNDIR", help_heading = "Run")]
    pub out: Option<PathBuf>,
    /// Start from the tensors of this safetensors file instead of random ones
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    pub init: Option<PathBuf>,
    /// Save a checkpoint, also within an epoch, once this much time has passed since the last one
    /// and 20 times as long as that one took; 0: after each epoch [default: 30]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, help_heading = "Run")]
    pub checkpoint_seconds: Option<u64>,
}

impl RunSettings {
    /// These settings, completed by those of `other`. Features of both are combined; if both name a
    /// modality, these settings' files are used.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        let mut features = self.features;
        for source in other.features {
            if !features.iter().any(|own| own.name == source.name) {
                features.push(source);
            }
        }
        Self {
            data: self.data.or(other.data),
            features,
            modalities: self.modalities.or(other.modalities),
            split: self.split.or(other.split),
            device: self.device.or(other.device),
            feature_storage: self.feature_storage.or(other.feature_storage),
            device_memory: self.device_memory.or(other.device_memory),
            threads: self.threads.or(other.threads),
            out: self.out.or(other.out),
            init: self.init.or(other.init),
            checkpoint_seconds: self.checkpoint_seconds.or(other.checkpoint_seconds),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_settings_replace_and_the_others_stay() {
        let mut config = TrainConfig::default();
        TrainSettings::default().apply(&mut config);
        assert_eq!(config, TrainConfig::default());
        let given = TrainSettings {
            dropout: Some(0.3),
            top_k: Some(vec![20, 5, 20]),
            self_loops: Some(true),
            ..TrainSettings::default()
        };
        given.apply(&mut config);
        assert_eq!((config.dropout, config.self_loops), (0.3, true));
        assert_eq!(config.top_k, [5, 20]);
        assert_eq!(config.layers, 1);
    }

    #[test]
    fn flags_win_over_files_feature_by_feature() {
        let sources = |sources: &[&str]| sources.iter().map(|s| s.parse().unwrap()).collect();
        let flags = RunSettings {
            threads: Some(2),
            features: sources(&["image=flag.npy"]),
            ..RunSettings::default()
        };
        let file = RunSettings {
            threads: Some(4),
            data: Some("data".into()),
            features: sources(&["image=file.npy", "text=file.npy"]),
            ..RunSettings::default()
        };
        let both = flags.or(file);
        assert_eq!((both.threads, both.data), (Some(2), Some("data".into())));
        assert_eq!(
            both.features,
            sources(&["image=flag.npy", "text=file.npy"]) as Vec<FeatureSource>
        );
    }
}
