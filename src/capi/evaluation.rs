//! How good the lists are.

use super::arguments::{Buffer, array};
use super::dataset::{bm3_dataset, bm3_split};
use super::handle::borrow;
use super::recommender::bm3_recommender;
use super::status::{Failure, bm3_status, call};
use crate::Recommender;
use crate::config::check_lengths;
use crate::records::Metrics;

/// Metrics of lists of one length: means over the users.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct bm3_metrics {
    /// Recall@K.
    pub recall: f64,
    /// NDCG@K.
    pub ndcg: f64,
    /// Precision@K.
    pub precision: f64,
    /// MAP@K.
    pub map: f64,
}

/// Measures how well held-out interactions are found: user `users[n]` with item `items[n]`, for n
/// below `pairs_len`.
///
/// All items are scored for each user, except the user's training items. Users without training
/// interactions do not count; at least one pair must be of another user. `lengths` are the list
/// lengths, 1 to 1024, ascending; `metrics` has room for as many elements.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_evaluate(
    recommender: *const bm3_recommender,
    users: *const u32,
    items: *const u32,
    pairs_len: usize,
    lengths: *const usize,
    lengths_len: usize,
    metrics: *mut bm3_metrics,
    metrics_len: usize,
) -> bm3_status {
    call(|| {
        // SAFETY: the caller keeps the rules of the module.
        let (recommender, users, items, lengths, places): (&Recommender, _, _, _, _) = unsafe {
            (
                borrow(recommender)?,
                array("users", users, pairs_len)?,
                array("items", items, pairs_len)?,
                array("lengths", lengths, lengths_len)?,
                Buffer::new("metrics", metrics, metrics_len, Some(lengths_len))?,
            )
        };
        check_lengths(lengths).map_err(|problem| Failure::argument("lengths", problem))?;
        fill(&places, &recommender.evaluate_pairs(users, items, lengths)?);
        Ok(())
    })
}

/// Measures how well the held-out interactions of a data set are found, such as those of the folder
/// that the model was trained on: `split` is BM3_VALID or BM3_TEST. Otherwise as `bm3_evaluate`.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_evaluate_split(
    recommender: *const bm3_recommender,
    dataset: *const bm3_dataset,
    split: i32,
    lengths: *const usize,
    lengths_len: usize,
    metrics: *mut bm3_metrics,
    metrics_len: usize,
) -> bm3_status {
    const VALID: i32 = bm3_split::BM3_VALID as i32;
    const TEST: i32 = bm3_split::BM3_TEST as i32;
    call(|| {
        // SAFETY: the caller keeps the rules of the module.
        let (recommender, dataset, lengths, places) = unsafe {
            (
                borrow(recommender)?,
                &borrow(dataset)?.dataset,
                array("lengths", lengths, lengths_len)?,
                Buffer::new("metrics", metrics, metrics_len, Some(lengths_len))?,
            )
        };
        check_lengths(lengths).map_err(|problem| Failure::argument("lengths", problem))?;
        let split = match split {
            VALID => &dataset.valid,
            TEST => &dataset.test,
            _ => {
                let problem = format!("{split} found, BM3_VALID or BM3_TEST expected");
                return Err(Failure::argument("split", problem));
            }
        };
        if split.users.is_empty() {
            return Err(Failure::argument("split", "no interaction found in it"));
        }
        fill(&places, &recommender.evaluate(split, lengths)?);
        Ok(())
    })
}

/// Writes the metrics of each length.
fn fill(places: &Buffer<'_, bm3_metrics>, found: &Metrics) {
    places.fill((0..found.top_k.len()).map(|place| bm3_metrics {
        recall: found.recall[place],
        ndcg: found.ndcg[place],
        precision: found.precision[place],
        map: found.map[place],
    }));
}
