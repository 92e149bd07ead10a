//! BM3 trained and served by hand-written kernels.
//!
//! The crate computes one model family: BM3, "Bootstrap Latent Representations for Multi-modal
//! Recommendation" (WWW 2023). [`data`] reads an MMRec folder, [`train`] fits a model on it and
//! leaves a run directory, and the `bm3-engine` program wraps both.

#![warn(missing_docs)]

pub mod backend;
pub mod batch;
pub mod bench;
pub mod checkpoint;
pub mod config;
pub mod cpu;
pub mod cuda;
pub mod data;
pub mod error;
pub mod evaluate;
mod fault;
pub mod files;
pub mod graph;
pub mod mapped;
pub mod memory;
pub mod parameters;
pub mod philox;
pub mod prepare;
pub mod profile;
pub mod real;
pub mod records;
pub mod report;
pub mod run;
pub mod saved;
pub mod step;
pub mod sweep;
pub mod synth;
pub mod train;
pub mod watch;

pub use error::Error;

/// The result of every fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
