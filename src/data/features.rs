//! Raw feature tables.

/// A table of raw features, rows × columns, mapped from a file or held in memory.
#[derive(Debug)]
pub struct FeatureMatrix;
