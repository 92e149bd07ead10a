//! Items without interactions.

use super::arguments::{Out, bm3_features, modalities};
use super::handle::change;
use super::recommender::bm3_recommender;
use super::status::{bm3_status, call};

/// Scores the model's items without training interactions by their features from now on.
///
/// `features` are those that the model was trained with, a table for each modality, where they are
/// inputs of it (`freeze_features`); trained ones are the model's own, and `features` may be NULL with
/// a length of 0. `count`, which may be NULL, is how many such items there are.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_score_cold_items(
    recommender: *mut bm3_recommender,
    features: *const bm3_features,
    features_len: usize,
    count: *mut usize,
) -> bm3_status {
    call(|| {
        // SAFETY: the caller's.
        let (count, features) =
            unsafe { (Out::optional("count", count)?, modalities(features, features_len)?) };
        // SAFETY: the caller's.
        let scored = unsafe {
            change(recommender, |recommender| Ok(recommender.score_cold_items(&features)?))
        }?;
        if let Some(count) = count {
            count.set(scored);
        }
        Ok(())
    })
}

/// Adds items by their features: a table for each of the model's modalities, all with as many rows.
///
/// The new items follow those there are: `first` is the number of the first, `count` how many they
/// are; both may be NULL. A model whose features are inputs of it (`freeze_features`) must have seen
/// them by `bm3_score_cold_items` before.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_add_items(
    recommender: *mut bm3_recommender,
    features: *const bm3_features,
    features_len: usize,
    first: *mut u32,
    count: *mut usize,
) -> bm3_status {
    call(|| {
        // SAFETY: the caller's.
        let (first, count, features) = unsafe {
            (
                Out::optional("first", first)?,
                Out::optional("count", count)?,
                modalities(features, features_len)?,
            )
        };
        // SAFETY: the caller's.
        let added =
            unsafe { change(recommender, |recommender| Ok(recommender.add_items(&features)?)) }?;
        if let Some(first) = first {
            first.set(added.start);
        }
        if let Some(count) = count {
            count.set(added.len());
        }
        Ok(())
    })
}
