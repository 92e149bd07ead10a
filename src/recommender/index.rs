//! Item rows on a device, searched for the highest products with a query.

use super::together::Search;
use super::turns::Turns;
use crate::backend::TopK;
use crate::cuda::CudaIndex;
use crate::device::Device;
use crate::{Error, Result};

/// The items that each of several queries leaves out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Masks {
    /// q + 1 bounds into `items`.
    pub offsets: Vec<u32>,
    /// Ascending and distinct within a query.
    pub items: Vec<u32>,
}

impl Masks {
    /// Masks of no queries.
    pub fn new() -> Self {
        Self { offsets: vec![0], items: Vec::new() }
    }

    /// Adds a query that leaves out the items in `seen` (ascending) and `excluded` (in any order).
    pub fn push(&mut self, seen: impl Iterator<Item = u32>, excluded: &[u32]) {
        let start = self.items.len();
        self.items.extend(seen);
        if !excluded.is_empty() {
            self.items.extend_from_slice(excluded);
            self.items[start..].sort_unstable();
            let mut kept = start;
            for place in start..self.items.len() {
                if place == start || self.items[place] != self.items[kept - 1] {
                    self.items[kept] = self.items[place];
                    kept += 1;
                }
            }
            self.items.truncate(kept);
        }
        self.offsets.push(self.items.len() as u32);
    }

    /// Splits off the masks of all but the first `count` queries.
    pub fn split(mut self, count: usize) -> (Self, Self) {
        let bound = self.offsets[count];
        let later = self.offsets[count..].iter().map(|&offset| offset - bound).collect();
        self.offsets.truncate(count + 1);
        let items = self.items.split_off(bound as usize);
        (self, Self { offsets: later, items })
    }

    /// The items that a query leaves out.
    pub fn of(&self, query: usize) -> &[u32] {
        &self.items[self.offsets[query] as usize..self.offsets[query + 1] as usize]
    }
}

/// Item rows that any number of threads can search at a time.
pub(crate) enum Index {
    /// Callers search on their own threads; when there are too many, they search for each other.
    Cpu(Turns),
    /// All waiting callers are answered together.
    Gpu(CudaIndex),
}

impl Index {
    /// Copies I × d rows to a device.
    ///
    /// # Errors
    /// [`crate::Error::DeviceMemory`] if they do not fit, [`crate::Error::DeviceOperation`].
    pub fn new(device: &Device, items: &[f32], width: usize) -> Result<Self> {
        Ok(match device {
            Device::Cpu(_) => Self::Cpu(Turns::new(items, width)),
            Device::Gpu(gpu) => {
                Self::Gpu(CudaIndex::new(gpu, items, width).map_err(Error::without_advice)?)
            }
        })
    }

    /// Refuses to work in a process forked from the one that owns the device.
    ///
    /// # Errors
    /// [`Error::DeviceOperation`].
    pub fn check_process(&self) -> Result<()> {
        match self {
            Self::Cpu(_) => Ok(()),
            Self::Gpu(index) => index.check_process(),
        }
    }

    /// The `k` best items for each row of `queries` (q × d) by the product of the rows, excluding
    /// those in its mask; ties go to the lower number.
    ///
    /// # Errors
    /// [`Error::DeviceMemory`] and [`Error::DeviceOperation`].
    pub fn search(&self, queries: Vec<f32>, masks: Masks, k: usize) -> Result<TopK> {
        match self {
            Self::Cpu(turns) => Ok(turns.search(Search { queries, masks, k })),
            Self::Gpu(index) => index.search(Search { queries, masks, k }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A mask is the union of the seen and the excluded items, also after a split.
        #[test]
        fn a_mask_is_a_union(
            queries in prop::collection::vec(
                (prop::collection::btree_set(0u32..20, 0..9), prop::collection::vec(0u32..20, 0..9)),
                0..5,
            ),
            cut: prop::sample::Index,
        ) {
            let mut masks = Masks::new();
            for (seen, excluded) in &queries {
                masks.push(seen.iter().copied(), excluded);
            }
            let cut = cut.index(queries.len() + 1);
            let (first, later) = masks.clone().split(cut);
            for (query, (seen, excluded)) in queries.iter().enumerate() {
                let all: BTreeSet<u32> = seen.iter().chain(excluded).copied().collect();
                let all: Vec<u32> = all.into_iter().collect();
                prop_assert_eq!(masks.of(query), &all);
                let (half, place) = if query < cut { (&first, query) } else { (&later, query - cut) };
                prop_assert_eq!(half.of(place), all);
            }
        }
    }
}
