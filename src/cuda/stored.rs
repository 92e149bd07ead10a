//! The types in which a GPU stores frozen features.

use std::fmt;

use crate::config::{FeatureTypeChoice, TrainConfig};
use crate::data::{FeatureMatrix, FeatureType};

/// The type in which a device stores frozen features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoredType {
    /// Single precision.
    F32,
    /// Half precision; exact for features whose file is in f16.
    F16,
    /// Brain floating point: f32's range, 8 bits of precision.
    Bf16,
}

impl fmt::Display for StoredType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

impl StoredType {
    /// The type that holds features of a file's type: half-precision ones as they are, wider ones
    /// in f32.
    pub fn of(file: FeatureType) -> Self {
        match file {
            FeatureType::F16 => Self::F16,
            FeatureType::Bf16 => Self::Bf16,
            FeatureType::F32 | FeatureType::F64 => Self::F32,
        }
    }

    /// The type that a setting names; `None` if it follows the file, see [`StoredType::of`].
    pub fn chosen(choice: FeatureTypeChoice) -> Option<Self> {
        match choice {
            FeatureTypeChoice::Auto => None,
            FeatureTypeChoice::F32 => Some(Self::F32),
            FeatureTypeChoice::F16 => Some(Self::F16),
            FeatureTypeChoice::Bf16 => Some(Self::Bf16),
        }
    }

    /// The type in which a run stores features: f32 for trained ones.
    pub(crate) fn of_run(config: &TrainConfig, features: &FeatureMatrix) -> Self {
        match config.freeze_features {
            true => Self::chosen(config.feature_type).unwrap_or(Self::of(features.dtype())),
            false => Self::F32,
        }
    }

    /// Bytes of a row of features as a run stores them.
    pub(crate) fn row_bytes(config: &TrainConfig, features: &FeatureMatrix) -> usize {
        features.columns() * Self::of_run(config, features).size()
    }

    /// The file type whose numbers are stored as they are.
    pub(super) fn in_file(self) -> FeatureType {
        match self {
            Self::F32 => FeatureType::F32,
            Self::F16 => FeatureType::F16,
            Self::Bf16 => FeatureType::Bf16,
        }
    }

    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}
