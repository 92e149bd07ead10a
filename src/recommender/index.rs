//! Item rows on a device, searched for those with the highest product with a query.

use super::together::Search;
use super::turns::Turns;
use crate::backend::TopK;
use crate::cuda::CudaIndex;
use crate::device::Device;
use crate::{Error, Result};

/// The items that each of some queries leaves out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Masks {
    /// q + 1 bounds into `items`.
    pub offsets: Vec<u32>,
    /// Ascending and distinct within a query.
    pub items: Vec<u32>,
}

impl Masks {
    /// Of no query yet.
    pub fn new() -> Self {
        Self { offsets: vec![0], items: Vec::new() }
    }

    /// Adds a query that leaves out what `seen`, ascending, and `excluded`, in any order, name.
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

    /// Those of the first `count` queries, and those of the others.
    pub fn split(mut self, count: usize) -> (Self, Self) {
        let bound = self.offsets[count];
        let later = self.offsets[count..].iter().map(|&offset| offset - bound).collect();
        self.offsets.truncate(count + 1);
        let items = self.items.split_off(bound as usize);
        (self, Self { offsets: later, items })
    }

    /// What a query leaves out.
    pub fn of(&self, query: usize) -> &[u32] {
        &self.items[self.offsets[query] as usize..self.offsets[query + 1] as usize]
    }
}

/// Item rows, ready to be searched by any number of threads at a time.
pub(crate) enum Index {
    /// Callers search on their own threads, and for each other when they are too many.
    Cpu(Turns),
    /// Callers are answered together, as many as wait.
    Gpu(CudaIndex),
}

impl Index {
    /// Puts I × d rows on a device.
    ///
    /// # Errors
    /// [`crate::Error::DeviceMemory`] where they have no room there.
    pub fn new(device: &Device, items: &[f32], width: usize) -> Result<Self> {
        Ok(match device {
            Device::Cpu(_) => Self::Cpu(Turns::new(items, width)),
            Device::Gpu(gpu) => {
                Self::Gpu(CudaIndex::new(gpu, items, width).map_err(Error::without_advice)?)
            }
        })
    }

    /// Refuses to go on in a process that was forked from the one that has the device.
    ///
    /// # Errors
    /// [`Error::DeviceOperation`].
    pub fn check_process(&self) -> Result<()> {
        match self {
            Self::Cpu(_) => Ok(()),
            Self::Gpu(index) => index.check_process(),
        }
    }

    /// The `k` best items for each row of `queries` (q × d), those that its mask names left out, by
    /// the product of the rows; ties by lower number.
    ///
    /// # Errors
    /// Those of the device.
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
        /// A mask is the union of what was seen and what is excluded, also after a split.
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
