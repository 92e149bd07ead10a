//! The Python package's extension module, `bm3_engine._native`.
//!
//! The interface for users is written in Python (`python/bm3_engine/`): names, defaults, shapes,
//! progress. This module does what Python cannot: it takes arrays that the package has converted to
//! one type, releases the interpreter while the engine computes, and hands out memory without
//! copying it.

mod arrays;
mod dataset;
mod devices;
mod error;
mod model;
mod pool;
mod settings;
mod training;

use pyo3::pymodule;

#[pymodule]
#[pyo3(name = "_native")]
mod native {
    #[pymodule_export]
    use super::dataset::{PyDataset, original_ids};
    #[pymodule_export]
    use super::devices::{devices, passed_over};
    #[pymodule_export]
    use super::error::EngineError;
    #[pymodule_export]
    use super::model::PyModel;
    #[pymodule_export]
    use super::settings::check;
    #[pymodule_export]
    use super::training::train;

    /// The version of the crate, which is the package's too.
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");
}
