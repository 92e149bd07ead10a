//! Searches of several callers, joined into one and taken apart again.

use super::Masks;
use crate::backend::TopK;

/// A caller's search.
pub(crate) struct Search {
    /// q × d.
    pub queries: Vec<f32>,
    /// The items that each query leaves out.
    pub masks: Masks,
    /// The length of the lists.
    pub k: usize,
}

impl Search {
    /// q.
    pub fn count(&self) -> usize {
        self.masks.offsets.len() - 1
    }

    /// Joins `searches`, in order, into one whose lists are as long as the longest asked for.
    pub fn together<'a>(searches: impl Iterator<Item = &'a Self> + Clone) -> Self {
        let queries = searches.clone().flat_map(|search| &search.queries).copied().collect();
        let k = searches.clone().map(|search| search.k).max().unwrap_or(1);
        let mut masks = Masks::new();
        for search in searches {
            let first = masks.items.len() as u32;
            masks.items.extend_from_slice(&search.masks.items);
            masks.offsets.extend(search.masks.offsets[1..].iter().map(|&offset| first + offset));
        }
        Self { queries, masks, k }
    }
}

/// The lists of one of several joined searches, whose first query is at `first` in `lists`. A
/// shorter list is the beginning of a longer one.
pub(crate) fn apart(lists: &TopK, first: usize, search: &Search) -> TopK {
    let rows = first..first + search.count();
    let cut = |row: usize| row * lists.k..row * lists.k + search.k;
    TopK {
        k: search.k,
        items: rows.clone().flat_map(|row| &lists.items[cut(row)]).copied().collect(),
        scores: rows.flat_map(|row| &lists.scores[cut(row)]).copied().collect(),
    }
}
