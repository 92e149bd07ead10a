//! Items without interactions.

use super::arguments::{Out, bm3_features, modalities};
use super::handle::change;
use super::recommender::bm3_recommender;
use super::status::{bm3_status, call};

/// Scores the model's items without training interactions from their features from now on.
///
/// `features` are those that the model was trained with, a table for each modality, if they are
/// inputs (`freeze_features`); a model that trained its features has its own, and `features` may be
/// NULL with a length of 0. `count`, which may be NULL, receives the number of such items.
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
        // SAFETY: the caller keeps the rules of the module.
        let (count, features) =
            unsafe { (Out::optional("count", count)?, modalities(features, features_len)?) };
        // SAFETY: the caller keeps the rules of the module.
        let scored = unsafe {
            change(recommender, |recommender| Ok(recommender.score_cold_items(&features)?))
        }?;
        if let Some(count) = count {
            count.set(scored);
        }
        Ok(())
    })
}

/// Adds items by their features: a table for each of the model's modalities, all with the same
/// number of rows.
///
/// The new items are numbered after the existing ones: `first` receives the first number, `count`
/// how many there are; both may be NULL. If the model's features are inputs (`freeze_features`),
/// call `bm3_score_cold_items` first.
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
        // SAFETY: the caller keeps the rules of the module.
        let (first, count, features) = unsafe {
            (
                Out::optional("first", first)?,
                Out::optional("count", count)?,
                modalities(features, features_len)?,
            )
        };
        // SAFETY: the caller keeps the rules of the module.
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
