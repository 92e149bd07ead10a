//! The Python package's extension module, `bm3_engine._native`.
//!
//! What users see is written in Python (`python/bm3_engine/`): names, defaults, shapes, progress. Here
//! is what Python cannot do: it takes arrays that the package has made of one type already, releases
//! the interpreter while the engine computes, and hands memory out without copying it.

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
    use super::dataset::PyDataset;
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

    /// The crate's version, which is the package's.
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");
}
