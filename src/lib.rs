//! BM3 trained and served by hand-written kernels.
//!
//! The crate computes one model family: BM3, "Bootstrap Latent Representations for Multi-modal
//! Recommendation" (WWW 2023), on the CPU or on an NVIDIA GPU. Five types are enough to embed it:
//!
//! - a [`Dataset`], from a folder in MMRec's layout ([`Dataset::open`]) or from memory
//!   ([`Dataset::builder`]);
//! - a [`TrainConfig`], the settings, with serde and a [builder](TrainConfig::builder);
//! - a [`Trainer`], which trains with them, calls back after each epoch, and can be stopped and
//!   resumed;
//! - a [`Model`], the result: parameters in memory, which can be saved and loaded;
//! - a [`Recommender`], which serves lists for known and [new](Query::items) users, similar items,
//!   scores, and [items without interactions](Recommender::score_cold_items).
//!
//! ```
//! use bm3_engine::{Dataset, Query, Recommender, TrainConfig, Trainer};
//!
//! // Four users, five items; a text embedding of two numbers for each item.
//! let dataset = Dataset::builder("shop")
//!     .train(&[0, 0, 1, 1, 2, 2, 3, 3], &[0, 1, 1, 2, 2, 3, 3, 4])
//!     .features("text", 2, [0.9, 0.1, 0.8, 0.2, 0.5, 0.5, 0.2, 0.8, 0.1, 0.9])
//!     .build()?;
//! let config = TrainConfig::builder().embedding_size(8).epochs(20).build()?;
//! let trained = Trainer::new(config).fit(&dataset)?;
//! let recommender = Recommender::new(trained.model.expect("was not stopped"))?;
//!
//! let list = recommender.top_k(0, 3)?;
//! assert!(list.iter().all(|found| found.item > 1), "what user 0 has is left out");
//! let visitor = recommender.search(&[Query::items(&[3, 4])], 2)?;
//! assert_eq!(visitor.list(0).len(), 2);
//! # Ok::<(), bm3_engine::Error>(())
//! ```
//!
//! C programs use the functions of `capi` (feature `capi`), declared in `include/bm3_engine.h`.
//!
//! Errors are typed ([`Error`]). Their messages name settings by the program's flags; [`wording`] has
//! the names that callers in code know. The crate never prints and never ends the process; it reports
//! progress as `tracing` events. CPU work runs in the rayon pool it is called from.
//!
//! The five types rest on lower layers: [`step`] is the paper, top to bottom, written with the
//! operations of a [`backend`]; [`cpu`] and [`cuda`] are the backends. "SPEC" is [`specification`].

#![warn(missing_docs)]

pub mod backend;
pub mod batch;
pub mod bench;
#[cfg(feature = "capi")]
pub mod capi;
pub mod checkpoint;
pub mod config;
pub mod cpu;
pub mod cuda;
pub mod data;
pub mod device;
pub mod error;
pub mod evaluate;
pub mod export;
mod fault;
pub mod files;
pub mod graph;
pub mod mapped;
pub mod memory;
pub mod model;
pub mod parameters;
pub mod philox;
#[cfg(any(feature = "capi", feature = "python"))]
mod pool;
pub mod prepare;
pub mod profile;
#[cfg(feature = "python")]
mod python;
pub mod real;
pub mod recommender;
pub mod records;
pub mod report;
pub mod run;
#[allow(rustdoc::broken_intra_doc_links, reason = "its brackets are indices")]
#[allow(rustdoc::invalid_html_tags, reason = "its angle brackets are places for names")]
#[doc = include_str!("SPEC.md")]
pub mod specification {}
pub mod step;
pub mod sweep;
pub mod synth;
pub mod text;
pub mod train;
pub mod trainer;
pub mod watch;
pub mod wording;

pub use config::{DeviceChoice, TrainConfig};
pub use data::Dataset;
pub use error::Error;
pub use model::Model;
pub use recommender::{Query, Recommender, ScoredItem};
pub use train::Trained;
pub use trainer::Trainer;

/// The result of every fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
