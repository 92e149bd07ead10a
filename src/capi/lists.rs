//! Lists and scores.

use super::arguments::{Buffer, Lists, array, bm3_lists, flags};
use super::handle::borrow;
use super::recommender::bm3_recommender;
use super::status::{Failure, bm3_status, call};
use crate::backend::TopK;
use crate::{Query, Recommender, ScoredItem};

/// Fills the rest of a short list; the score beside it is minus infinity.
pub const BM3_NO_ITEM: u32 = u32::MAX;
const _: () = assert!(BM3_NO_ITEM == TopK::NO_ITEM);

/// A flag: lists may include items that the user interacted with in training, or the items given.
pub const BM3_WITH_SEEN: u32 = 1;

/// Where to write lists and their scores.
struct Places<'a> {
    items: Buffer<'a, u32>,
    scores: Option<Buffer<'a, f32>>,
}

impl Places<'_> {
    /// Places for `lists` lists of `k` items.
    ///
    /// # Safety
    /// As [`Buffer::new`].
    unsafe fn new(
        (lists, k): (usize, usize),
        (items, items_len): (*mut u32, usize),
        (scores, scores_len): (*mut f32, usize),
    ) -> Result<Self, Failure> {
        let count = lists.checked_mul(k);
        // SAFETY: the caller promises the same.
        unsafe {
            Ok(Self {
                items: Buffer::new("items", items, items_len, count)?,
                scores: Buffer::optional("scores", scores, scores_len, count)?,
            })
        }
    }

    /// Writes many lists.
    fn fill(&self, top: &TopK) {
        self.items.fill(top.items.iter().copied());
        if let Some(scores) = &self.scores {
            scores.fill(top.scores_or(f32::NEG_INFINITY));
        }
    }

    /// Writes one list.
    fn fill_one(&self, list: &[ScoredItem]) {
        let no_item = ScoredItem { item: BM3_NO_ITEM, score: f32::NEG_INFINITY };
        let filled = || list.iter().copied().chain(std::iter::repeat(no_item));
        self.items.fill(filled().map(|found| found.item));
        if let Some(scores) = &self.scores {
            scores.fill(filled().map(|found| found.score));
        }
    }
}

/// A query with the caller's exclusions and flags.
fn asked<'a>(query: Query<'a>, excluded: &'a [u32], flags: u32) -> Query<'a> {
    let query = query.excluding(excluded);
    if flags & BM3_WITH_SEEN != 0 { query.with_seen() } else { query }
}

/// Queries with the caller's flags and, if `excluded` is given, one list of exclusions each.
fn asked_all<'a>(
    queries: impl Iterator<Item = Query<'a>>,
    excluded: Option<&'a Lists<'a>>,
    flags: u32,
) -> Vec<Query<'a>> {
    let excluded = |position| excluded.map_or(&[][..], |lists| lists.get(position));
    let ask = |(position, query)| asked(query, excluded(position), flags);
    queries.enumerate().map(ask).collect()
}

/// Writes the `k` best items (1 to 1024) for each of some users, without the items that the user
/// interacted with in training (`flags`: BM3_WITH_SEEN keeps them).
///
/// `excluded` has a list of further items to leave out for each user; NULL means none. `items` has
/// room for users_len times k items, user after user; `scores` for as many scores, or is NULL with
/// a length of 0. If a user's list is short, BM3_NO_ITEM fills it in `items`, and minus infinity in
/// `scores`.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_recommend(
    recommender: *const bm3_recommender,
    users: *const u32,
    users_len: usize,
    excluded: *const bm3_lists,
    k: usize,
    flags: u32,
    items: *mut u32,
    items_len: usize,
    scores: *mut f32,
    scores_len: usize,
) -> bm3_status {
    call(|| {
        let flags = self::flags(flags, BM3_WITH_SEEN)?;
        // SAFETY: the caller keeps the rules of the module.
        let (recommender, users, excluded, places) = unsafe {
            (
                borrow(recommender)?,
                array("users", users, users_len)?,
                Lists::optional("excluded", excluded, users_len)?,
                Places::new((users_len, k), (items, items_len), (scores, scores_len))?,
            )
        };
        let queries = users.iter().map(|&user| Query::user(user));
        places.fill(&recommender.search(&asked_all(queries, excluded.as_ref(), flags), k)?);
        Ok(())
    })
}

/// Writes the `k` best items for each of some users that the model was not trained on, from the
/// items that they interacted with: `histories` has a list of at least one item for each user.
///
/// A user's own items are left out (`flags`: BM3_WITH_SEEN keeps them). Otherwise as
/// `bm3_recommend`.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_recommend_for_items(
    recommender: *const bm3_recommender,
    histories: *const bm3_lists,
    excluded: *const bm3_lists,
    k: usize,
    flags: u32,
    items: *mut u32,
    items_len: usize,
    scores: *mut f32,
    scores_len: usize,
) -> bm3_status {
    call(|| {
        let flags = self::flags(flags, BM3_WITH_SEEN)?;
        // SAFETY: the caller keeps the rules of the module.
        let (recommender, histories, excluded, places) = unsafe {
            let histories = Lists::new("histories", histories)?;
            let count = histories.len();
            (
                borrow(recommender)?,
                histories,
                Lists::optional("excluded", excluded, count)?,
                Places::new((count, k), (items, items_len), (scores, scores_len))?,
            )
        };
        let queries = (0..histories.len()).map(|position| Query::items(histories.get(position)));
        places.fill(&recommender.search(&asked_all(queries, excluded.as_ref(), flags), k)?);
        Ok(())
    })
}

/// Writes the rows of users that the model was not trained on, from the items that they interacted
/// with: a score is the inner product of such a row and an item's. `histories` has a list of at least
/// one item for each user.
///
/// `rows` has room for as many rows as there are lists, one after the other, each as long as the
/// embedding size.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_rows_for_items(
    recommender: *const bm3_recommender,
    histories: *const bm3_lists,
    rows: *mut f32,
    rows_len: usize,
) -> bm3_status {
    call(|| {
        // SAFETY: the caller keeps the rules of the module.
        let (recommender, histories, places) = unsafe {
            let (recommender, histories) =
                (borrow(recommender)?, Lists::new("histories", histories)?);
            let count = histories.len().checked_mul(recommender.width());
            (recommender, histories, Buffer::new("rows", rows, rows_len, count)?)
        };
        let row = |position| recommender.row(Query::items(histories.get(position)));
        let rows = (0..histories.len()).map(row).collect::<crate::Result<Vec<_>>>()?;
        places.fill(rows.into_iter().flatten());
        Ok(())
    })
}

/// Writes the `k` items nearest to each of some items, by the cosine of their rows, without the
/// item itself.
///
/// `items` has room for of_len times k items; otherwise as `bm3_recommend`.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_similar_items(
    recommender: *const bm3_recommender,
    of: *const u32,
    of_len: usize,
    k: usize,
    items: *mut u32,
    items_len: usize,
    scores: *mut f32,
    scores_len: usize,
) -> bm3_status {
    call(|| {
        // SAFETY: the caller keeps the rules of the module.
        let (recommender, of, places) = unsafe {
            (
                borrow(recommender)?,
                array("of", of, of_len)?,
                Places::new((of_len, k), (items, items_len), (scores, scores_len))?,
            )
        };
        places.fill(&recommender.similar_items_batch(of, k)?);
        Ok(())
    })
}

/// Writes the best `k` of some candidates for a user; repeats count once. Items that the user
/// interacted with in training are left out (`flags`: BM3_WITH_SEEN keeps them).
///
/// `items` has room for k items; otherwise as `bm3_recommend`.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_rank(
    recommender: *const bm3_recommender,
    user: u32,
    candidates: *const u32,
    candidates_len: usize,
    k: usize,
    flags: u32,
    items: *mut u32,
    items_len: usize,
    scores: *mut f32,
    scores_len: usize,
) -> bm3_status {
    call(|| {
        // SAFETY: the caller keeps the rules of the module.
        let places = unsafe { Places::new((1, k), (items, items_len), (scores, scores_len))? };
        // SAFETY: likewise.
        unsafe {
            rank(recommender, Query::user(user), (candidates, candidates_len), k, flags, &places)
        }
    })
}

/// Writes the best `k` of some candidates for a user that the model was not trained on, from the
/// items that the user interacted with: `history` has at least one.
///
/// The user's own items are left out (`flags`: BM3_WITH_SEEN keeps them). Otherwise as `bm3_rank`.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_rank_for_items(
    recommender: *const bm3_recommender,
    history: *const u32,
    history_len: usize,
    candidates: *const u32,
    candidates_len: usize,
    k: usize,
    flags: u32,
    items: *mut u32,
    items_len: usize,
    scores: *mut f32,
    scores_len: usize,
) -> bm3_status {
    call(|| {
        // SAFETY: the caller keeps the rules of the module.
        let (history, places) = unsafe {
            (
                array("history", history, history_len)?,
                Places::new((1, k), (items, items_len), (scores, scores_len))?,
            )
        };
        // SAFETY: likewise.
        unsafe {
            let query = Query::items(history);
            rank(recommender, query, (candidates, candidates_len), k, flags, &places)
        }
    })
}

/// Writes the best `k` of some candidates for a query.
///
/// # Safety
/// The module's rules for pointers.
unsafe fn rank(
    recommender: *const bm3_recommender,
    query: Query<'_>,
    (candidates, candidates_len): (*const u32, usize),
    k: usize,
    flags: u32,
    places: &Places<'_>,
) -> Result<(), Failure> {
    let flags = self::flags(flags, BM3_WITH_SEEN)?;
    // SAFETY: the caller keeps the rules of the module.
    let (recommender, candidates) =
        unsafe { (borrow(recommender)?, array("candidates", candidates, candidates_len)?) };
    places.fill_one(&recommender.rank(asked(query, &[], flags), candidates, k)?);
    Ok(())
}

/// Writes the scores of pairs of a user and an item, seen or not, with the same bits as in lists.
/// `users`, `items` and `scores` have `pairs_len` elements each.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_scores(
    recommender: *const bm3_recommender,
    users: *const u32,
    items: *const u32,
    scores: *mut f32,
    pairs_len: usize,
) -> bm3_status {
    call(|| {
        // SAFETY: the caller keeps the rules of the module.
        let (recommender, users, items, places): (&Recommender, _, _, _) = unsafe {
            (
                borrow(recommender)?,
                array("users", users, pairs_len)?,
                array("items", items, pairs_len)?,
                Buffer::new("scores", scores, pairs_len, Some(pairs_len))?,
            )
        };
        places.fill(recommender.scores(users, items)?.into_iter());
        Ok(())
    })
}
