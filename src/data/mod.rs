//! Data sets on disk and in memory.

mod error;
mod features;

pub use error::DataError;
pub use features::FeatureMatrix;

/// Training pairs in the order of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pairs {
    /// User of each pair.
    pub users: Vec<u32>,
    /// Item of each pair.
    pub items: Vec<u32>,
}

/// The items to be found for each user of a validation or test split.
///
/// `users` are in order of first appearance in the file; user `users[k]`'s items are
/// `items[offsets[k]..offsets[k + 1]]`, in file order, repeats kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Split {
    /// Distinct users, in order of first appearance.
    pub users: Vec<u32>,
    /// `users.len() + 1` bounds into `items`.
    pub offsets: Vec<usize>,
    /// Items of all users, concatenated.
    pub items: Vec<u32>,
}

/// One modality's raw features: row i belongs to item i.
#[derive(Debug)]
pub struct Modality {
    /// `image`, `text`, `audio`, …
    pub name: String,
    /// I × D_m (more rows than items are allowed and ignored).
    pub features: std::sync::Arc<FeatureMatrix>,
}

/// Everything a model is trained and measured on.
#[derive(Debug)]
pub struct Dataset {
    /// The name of the `.inter` file without its ending.
    pub name: String,
    /// U: one more than the largest user id of any split.
    pub users: usize,
    /// I: one more than the largest item id of any split.
    pub items: usize,
    /// Training pairs, in file order.
    pub train: Pairs,
    /// Validation items by user.
    pub valid: Split,
    /// Test items by user.
    pub test: Split,
    /// Modalities in the order of their names.
    pub modalities: Vec<Modality>,
    /// What the user should know about the files but need not change.
    pub warnings: Vec<String>,
}

impl Dataset {
    /// stub until merged
    pub fn fingerprint(&self) -> u64 {
        0
    }
}
