//! bm3-engine in C: trains BM3, the multimodal recommender, and serves what was trained.
//!
//! Results. A function returns BM3_OK, or what went wrong; `bm3_last_error` then has it in words, for
//! the thread that called. What a function would have written is then not to be read, but for handles,
//! which are NULL. Nothing is printed, unless the library itself is at fault; nothing ends the process,
//! unless memory does not suffice or a file is truncated while it is mapped.
//!
//! Pointers. A NULL pointer is refused, unless a function says what NULL means or the array has no
//! element. Lengths count elements, and are held against what the other arguments imply; ids are held
//! against the model. What cannot be checked is up to the caller: an array has as many elements as its
//! length says, a text ends with NUL and is UTF-8 (a path: what the system takes), a handle is in use
//! or NULL. Arrays are read and written during the call alone, unless a function says otherwise.
//!
//! Handles. Each is made by one function and freed by the one named after it, which sets the caller's
//! pointer to NULL: to free it again does nothing. A handle of another kind is refused.
//!
//! Threads. Functions that take a `const` handle may be called by any number of threads at a time; one
//! that takes a handle to change or to free it must be the only call with that handle while it lasts.
//! Parallel work uses threads of the library's own, which are not there in a process made by `fork`,
//! and which do not let the library be unloaded by `dlclose`. A GPU that a process has opened cannot be
//! used in those that it forks either.
//!
//! Users and items are numbered from 0. Lists are best first, ties by lower number; the same model
//! gives the same lists, to the bit of a score, here, in Rust and by the program `bm3-engine`.
#![allow(non_camel_case_types, reason = "types have the names that they have in C")]

mod arguments;
mod cold;
mod dataset;
mod evaluation;
mod handle;
mod lists;
mod recommender;
mod status;
mod training;

pub use arguments::{bm3_features, bm3_lists};
pub use cold::{bm3_add_items, bm3_score_cold_items};
pub use dataset::{
    bm3_dataset, bm3_dataset_builder, bm3_dataset_builder_add_features,
    bm3_dataset_builder_add_pairs, bm3_dataset_builder_at_least, bm3_dataset_builder_finish,
    bm3_dataset_builder_free, bm3_dataset_builder_new, bm3_dataset_free, bm3_dataset_open,
    bm3_dataset_sizes, bm3_dataset_warnings, bm3_split,
};
pub use evaluation::{bm3_evaluate, bm3_metrics};
pub use lists::{
    BM3_NO_ITEM, BM3_WITH_SEEN, bm3_rank, bm3_recommend, bm3_recommend_for_items, bm3_scores,
    bm3_similar_items,
};
pub use recommender::{
    bm3_cold_items, bm3_item_rows, bm3_recommender, bm3_recommender_free, bm3_recommender_open,
    bm3_recommender_save, bm3_recommender_sizes, bm3_user_rows,
};
pub use status::{bm3_last_error, bm3_status, bm3_version};
pub use training::{BM3_RESUME, bm3_epoch, bm3_epoch_callback, bm3_train};
