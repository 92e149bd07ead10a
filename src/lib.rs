//! BM3 trained and served by hand-written kernels.
//!
//! The crate computes one model family: BM3, "Bootstrap Latent Representations for Multi-modal
//! Recommendation" (WWW 2023). [`data`] reads an MMRec folder, [`train`] fits a model on it and
//! leaves a run directory, and the `bm3-engine` program wraps both.

pub mod config;
pub mod data;
pub mod error;
pub mod files;
pub mod real;
pub mod records;

pub use error::Error;

/// The result of every fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
