//! Data sets on disk and in memory (SPEC §8).

mod builder;
mod dataset;
mod error;
mod feature_file;
mod features;
mod folder;
mod graphs;
mod id_map;
mod inter;
mod npy;
mod npy_writer;
mod renumber;
mod safetensors;
mod split;

pub use builder::DatasetBuilder;
pub use dataset::{Dataset, DatasetOptions, Modality, Pairs, Split};
pub use error::DataError;
pub(crate) use error::excerpt;
pub use feature_file::FeatureFile;
pub use features::{FeatureMatrix, FeatureType, SharedNumbers};
pub(crate) use folder::{Earlier, MODALITY_NAMES, interactions_file, is_modality_name};
pub use id_map::IdMaps;
pub use inter::{Interactions, LARGEST_ID, read as read_interactions};
pub use npy_writer::{NpyElement, NpyWriter};
pub use split::SplitRatio;
