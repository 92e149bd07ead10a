//! What can be wrong with a data set.

/// What can be wrong with a data set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {}

impl DataError {
    /// Whether the cause is what the user gave, rather than the machine.
    pub fn is_input(&self) -> bool {
        true
    }
}
