//! bm3-engine in C: trains BM3, the multimodal recommender, and serves trained models.
//!
//! Results. A function returns BM3_OK or the kind of failure; `bm3_last_error` then describes the
//! failure to the thread that called. The outputs of a failed call must not be read, except
//! handles, which are NULL unless the function says otherwise. Nothing is printed, unless the
//! library itself is at fault; nothing ends the process, unless memory runs out or a mapped file is
//! truncated.
//!
//! Pointers. A NULL pointer is refused, unless the function says what NULL means or the array is
//! empty. Lengths count elements and are checked against what the other arguments imply; ids are
//! checked against the model. The caller answers for what cannot be checked: an array has as many
//! elements as its length says, a text ends with NUL and is UTF-8 (a path: what the system takes),
//! a handle is in use or NULL. Arrays are read and written only during the call, unless the
//! function says otherwise.
//!
//! Handles. Each is made by one function and freed by the one named after it, which sets the
//! caller's pointer to NULL, so that freeing it again does nothing. A handle of another kind is
//! refused.
//!
//! Threads. Functions that take a `const` handle may be called by any number of threads at once; a
//! function that changes or frees a handle must be the only call that uses it at the time. Parallel
//! work runs on threads of the library's own, which keep `dlclose` from unloading the library.
//!
//! Processes. A process made by `fork` may use handles that it inherits on the CPU, and make others,
//! on threads of its own, if no call was at work when it was forked. It cannot use a GPU that its
//! parent has opened, or has looked for ("auto"): open models for a GPU after the fork.
//!
//! Users and items are numbered from 0. Lists are best first, ties by lower number; the same model
//! gives the same lists, with the same bits in every score, in C, in Rust and from the program
//! `bm3-engine`.
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
pub use evaluation::{bm3_evaluate, bm3_evaluate_split, bm3_metrics};
pub use lists::{
    BM3_NO_ITEM, BM3_WITH_SEEN, bm3_rank, bm3_rank_for_items, bm3_recommend,
    bm3_recommend_for_items, bm3_rows_for_items, bm3_scores, bm3_similar_items,
};
pub use recommender::{
    bm3_cold_items, bm3_cold_users, bm3_item_rows, bm3_recommender, bm3_recommender_device,
    bm3_recommender_free, bm3_recommender_open, bm3_recommender_record, bm3_recommender_save,
    bm3_recommender_set_interactions, bm3_recommender_sizes, bm3_user_rows,
};
pub use status::{bm3_last_error, bm3_status, bm3_version};
pub use training::{BM3_RESUME, bm3_epoch, bm3_epoch_callback, bm3_train};
