//! Lists of the best items, and ranking metrics (`top_k.cu`, `metrics.cu`).

use std::collections::HashMap;
use std::sync::Arc;

use super::device::Device;
use super::launch::{Address, Launch, blocks, launch};
use super::memory::Memory;
use super::spmm::CudaGraph;
use crate::backend::TopK;
use crate::data::Split;
use crate::evaluate::gain;
use crate::records::Metrics;
use crate::{Error, Result};

/// The longest list: half of the candidates of a warp with one user.
pub const LONGEST_LIST: usize = 1024;
/// Bytes of a block's shared memory: the size of `Shared` in `top_k.cu`.
pub(super) const SHARED: u32 = 82_944;
/// Candidates of all users of a warp: `KEYS` of `top_k.cu`.
const KEYS: usize = 2048;
/// Warps of a block: `WARPS` of `top_k.cu`.
const WARPS: usize = 4;
/// The most users of a warp: `OWN` of `top_k.cu`.
const USERS: usize = 16;
/// Items scored at a time: `ITEMS` of `top_k.cu`.
const ITEMS: usize = 64;
/// Keys of slices read at a time: `MERGED` of `top_k_merge.cu`.
const MERGED: usize = 128;
/// Blocks to aim for: if users are few, their items are cut into slices. Two for each
/// multiprocessor of a large GPU.
const TARGET_BLOCKS: usize = 2 * 132;
/// The most slices: merging more takes longer than it saves.
const MOST_SLICES: usize = 132;
/// Rows of a block of `largest_norm` at a time, and its most blocks: further rows take turns.
const ROWS: u64 = 16;
const MOST_BLOCKS: u32 = 8 * 132;
/// Users that a block of `user_metrics` measures: `WARPS` of `metrics.cu`.
const MEASURED: u64 = 8;

/// How a search is cut into blocks and slices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    /// Candidates of a user.
    capacity: usize,
    users_per_warp: usize,
    /// Items of a slice, in whole tiles.
    slice_items: usize,
    slices: usize,
}

impl Cut {
    fn of(users: usize, items: usize, k: usize) -> Self {
        let capacity = (k + ITEMS).next_power_of_two();
        // Spread few users over a block's warps.
        let users_per_warp = (KEYS / capacity).min(USERS).min(users.div_ceil(WARPS)).max(1);
        let blocks = users.div_ceil(WARPS * users_per_warp).max(1);
        let tiles = items.div_ceil(ITEMS).max(1);
        let wanted = (TARGET_BLOCKS / blocks).clamp(1, MOST_SLICES.min(tiles));
        // A slice of fewer than K items would leave empty keys, which must be merged all the same.
        let slice_items = (tiles.div_ceil(wanted) * ITEMS).max(k.next_multiple_of(ITEMS));
        Self { capacity, users_per_warp, slice_items, slices: items.div_ceil(slice_items).max(1) }
    }

    /// Keys that the slices leave for each user; 0 if there is one slice.
    fn slice_keys(self, k: usize) -> usize {
        if self.slices == 1 { 0 } else { self.slices * k }
    }
}

/// Bytes of a search over all items, without its users and its lists.
pub(super) fn search_bytes(users: usize, items: usize, width: usize, k: usize) -> u64 {
    if users == 0 {
        return 0;
    }
    let halves = 4 + 2 * items * width.next_multiple_of(8);
    (halves + 8 * users * Cut::of(users, items, k).slice_keys(k)) as u64
}

/// Lists on a device.
#[derive(Debug)]
pub struct CudaLists {
    k: usize,
    items: Memory<u32>,
    scores: Memory<f32>,
}

impl CudaLists {
    fn new(device: &Arc<Device>, users: usize, k: usize) -> Result<Self> {
        let items = Memory::new(device, users * k, "lists")?;
        Ok(Self { k, items, scores: Memory::new(device, users * k, "lists")? })
    }

    /// Reads the lists.
    ///
    /// # Errors
    /// [`Error::DeviceOperation`].
    pub fn read(&self) -> Result<TopK> {
        let scores = self.scores.read(0..self.scores.len())?;
        Ok(TopK {
            k: self.k,
            items: self.items.read(0..self.items.len())?,
            scores: scores.into_iter().map(f64::from).collect(),
        })
    }
}

/// The rows of users and items, and the items that each user's list leaves out.
pub(super) struct Masked<'a> {
    /// The number of rows before the items' rows.
    pub users: usize,
    /// The number of the items' rows.
    pub items: usize,
    /// Bounds into `neighbours`: one for each user, and the end.
    pub offsets: &'a Memory<u32>,
    /// Nodes: items are numbered after the users. Ascending for each user.
    pub neighbours: &'a Memory<u32>,
    /// The items' rows in half precision, for the tensor cores.
    pub halves: &'a HalfRows,
}

/// Rows in half precision, scaled by their largest norm.
#[derive(Debug)]
pub(super) struct HalfRows {
    /// The bits of an f32.
    largest_norm: Memory<u32>,
    /// Rows padded to a multiple of eight.
    rows: Memory<u16>,
}

/// Converts `count` rows of `width` numbers to half precision.
pub(super) fn half_rows(
    device: &Arc<Device>,
    rows: Address,
    count: usize,
    width: usize,
) -> Result<HalfRows> {
    let largest_norm = Memory::zeros(device, 1, "the largest norm of an item")?;
    let padded = width.next_multiple_of(8);
    let halves = Memory::new(device, count * padded, "items' rows as halves")?;
    launch!(
        device,
        Launch {
            kernel: "largest_norm",
            grid: [blocks(count as u64, ROWS).min(MOST_BLOCKS), 1, 1],
            block: 256,
            bytes: (4 * count * width) as u64,
            flops: 2 * (count * width) as u64,
        },
        [rows, count as u32, width as u32, &largest_norm],
        "{count} rows, d = {width}"
    )?;
    launch!(
        device,
        Launch {
            kernel: "half_rows",
            grid: [blocks((count * padded / 8) as u64, 256), 1, 1],
            block: 256,
            bytes: (count * (4 * width + 2 * padded)) as u64,
            flops: (count * width) as u64,
        },
        [rows, count as u32, width as u32, &largest_norm, &halves],
        "{count} rows, d = {width}"
    )?;
    Ok(HalfRows { largest_norm, rows: halves })
}

/// The `k` best items for each of `users`.
pub(super) fn top_k(
    device: &Arc<Device>,
    graph: &CudaGraph,
    predicted: Address,
    width: usize,
    users: &[u32],
    k: usize,
) -> Result<CudaLists> {
    if users.is_empty() || k == 0 {
        return CudaLists::new(device, users.len(), k);
    }
    let (all_users, items) = (graph.graph.users(), graph.graph.items());
    let item_rows = Address(predicted.0 + 4 * (all_users * width) as u64);
    let masked = Masked {
        users: all_users,
        items,
        offsets: &graph.offsets,
        neighbours: &graph.neighbours,
        halves: &half_rows(device, item_rows, items, width)?,
    };
    ranked(device, &masked, predicted, width, users, k)
}

/// The `k` best items for each of `users`, `k` at least 1; `predicted`: (users + items) × d.
pub(super) fn ranked(
    device: &Arc<Device>,
    masked: &Masked<'_>,
    predicted: Address,
    width: usize,
    users: &[u32],
    k: usize,
) -> Result<CudaLists> {
    if k > LONGEST_LIST {
        let problem = format!("is {k}; the kernels keep at most {LONGEST_LIST} items");
        return Err(Error::setting("--top-k", problem));
    }
    let (all_users, items) = (masked.users, masked.items);
    let cut = Cut::of(users.len(), items, k);
    let slice_keys = Memory::<u64>::new(device, users.len() * cut.slice_keys(k), "lists")?;
    let ids = Memory::from_slice(device, users, "users to be scored")?;
    let lists = CudaLists::new(device, users.len(), k)?;
    let scored = (users.len() * items) as u64;
    let grid = blocks(users.len() as u64, (WARPS * cut.users_per_warp) as u64);
    let list_bytes = (8 * users.len() * k) as u64;
    launch!(
        device,
        Launch {
            kernel: "top_k",
            grid: [grid, cut.slices as u32, 1],
            block: 32 * WARPS as u32,
            bytes: (4 * (users.len() + items) * width) as u64 + cut.slices as u64 * list_bytes,
            flops: 2 * scored * width as u64,
        },
        [
            predicted,
            &ids,
            users.len() as u32,
            all_users as u32,
            items as u32,
            cut.slice_items as u32,
            width as u32,
            masked.offsets,
            masked.neighbours,
            k as u32,
            cut.capacity as u32,
            cut.users_per_warp as u32,
            &masked.halves.largest_norm,
            &masked.halves.rows,
            &slice_keys,
            &lists.items,
            &lists.scores,
        ],
        "{} users, {items} items in {} slices, d = {width}, K = {k}",
        users.len(),
        cut.slices
    )?;
    if !slice_keys.is_empty() {
        launch!(
            device,
            Launch {
                kernel: "top_k_merge",
                grid: [users.len() as u32, 1, 1],
                block: 32,
                bytes: (cut.slices as u64 + 1) * list_bytes,
                flops: 0,
            },
            [
                &slice_keys,
                cut.slice_keys(k) as u32,
                k as u32,
                (k + MERGED).next_power_of_two() as u32,
                &lists.items,
                &lists.scores,
            ],
            "{} users, {} slices, K = {k}",
            users.len(),
            cut.slices
        )?;
    }
    Ok(lists)
}

/// The held-out items of a split's users on a device, and the memory for their metrics.
#[derive(Debug)]
pub struct CudaWanted {
    /// The row of each measured user's list.
    rows: Memory<u32>,
    /// Bounds into `items`: one for each measured user, and the end.
    offsets: Memory<u32>,
    /// Ascending for each user.
    items: Memory<u32>,
    lengths: Memory<u32>,
    /// The gain of a hit at each rank, and the sums of the first gains.
    gains: Memory<f64>,
    ideals: Memory<f64>,
    /// The four metrics for each measured user and length.
    values: Memory<f64>,
    /// Their sums over the users.
    sums: Memory<f64>,
    top_k: Vec<usize>,
}

impl CudaWanted {
    /// The items of `split`, for lists in the order of `users`.
    pub(super) fn new(
        device: &Arc<Device>,
        split: &Split,
        users: &[u32],
        lengths: &[usize],
    ) -> Result<Self> {
        let row_of: HashMap<u32, u32> =
            users.iter().enumerate().map(|(row, &user)| (user, row as u32)).collect();
        let (mut rows, mut offsets, mut items) = (Vec::new(), vec![0u32], Vec::new());
        for (position, user) in split.users.iter().enumerate() {
            let Some(&row) = row_of.get(user) else { continue };
            rows.push(row);
            let start = items.len();
            items.extend_from_slice(
                &split.items[split.offsets[position]..split.offsets[position + 1]],
            );
            items[start..].sort_unstable();
            offsets.push(items.len() as u32);
        }
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let gains: Vec<f64> = (1..=longest).map(gain).collect();
        let mut ideals = vec![0.0];
        ideals.extend(gains.iter().scan(0.0, |sum, gain| {
            *sum += gain;
            Some(*sum)
        }));
        let device_lengths: Vec<u32> = lengths.iter().map(|&length| length as u32).collect();
        let columns = 4 * lengths.len();
        let what = "metrics";
        Ok(Self {
            offsets: Memory::from_slice(device, &offsets, what)?,
            items: Memory::from_slice(device, &items, what)?,
            lengths: Memory::from_slice(device, &device_lengths, what)?,
            gains: Memory::from_slice(device, &gains, what)?,
            ideals: Memory::from_slice(device, &ideals, what)?,
            values: Memory::new(device, rows.len() * columns, what)?,
            sums: Memory::zeros(device, columns, what)?,
            rows: Memory::from_slice(device, &rows, what)?,
            top_k: lengths.to_vec(),
        })
    }

    /// Bytes of a [`CudaWanted`] for `measured` users with `wanted` items in all.
    pub(super) fn bytes(measured: usize, wanted: usize, lengths: usize, longest: usize) -> u64 {
        let columns = 4 * lengths;
        let words = 2 * measured + 1 + wanted + lengths;
        (4 * words + 8 * (columns * (measured + 1) + 2 * longest + 1)) as u64
    }

    /// The metrics of `lists`.
    pub(super) fn metrics(&self, device: &Arc<Device>, lists: &CudaLists) -> Result<Metrics> {
        let (measured, longest) = (self.rows.len(), self.gains.len());
        let columns = self.sums.len();
        launch!(
            device,
            Launch {
                kernel: "user_metrics",
                grid: [blocks(measured as u64, MEASURED), 1, 1],
                block: 256,
                bytes: (4 * (measured * longest + self.items.len()) + 8 * measured * columns)
                    as u64,
                flops: (measured * columns) as u64,
            },
            [
                &lists.items,
                lists.k as u32,
                &self.rows,
                measured as u32,
                &self.offsets,
                &self.items,
                &self.lengths,
                self.lengths.len() as u32,
                &self.gains,
                &self.ideals,
                &self.values,
            ],
            "{measured} users, K = {}",
            lists.k
        )?;
        launch!(
            device,
            Launch {
                kernel: "sum_metrics",
                grid: [columns as u32, 1, 1],
                block: 256,
                bytes: 8 * (measured * columns) as u64,
                flops: (measured * columns) as u64,
            },
            [&self.values, measured as u32, columns as u32, &self.sums],
            "{measured} users, {columns} columns"
        )?;
        let sums = self.sums.read(0..columns)?;
        let mean = |metric: usize| -> Vec<f64> {
            let sums = sums.iter().skip(metric).step_by(4);
            sums.map(|sum| sum / measured.max(1) as f64).collect()
        };
        Ok(Metrics {
            top_k: self.top_k.clone(),
            recall: mean(0),
            ndcg: mean(1),
            precision: mean(2),
            map: mean(3),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Slices are whole tiles, cover all items, and none is empty; few users have many blocks,
        /// many users have one slice; candidates fit.
        #[test]
        fn items_are_cut_for_few_users(
            users in 1usize..20_000,
            items in 1usize..100_000,
            k in 1usize..=LONGEST_LIST,
        ) {
            let cut = Cut::of(users, items, k);
            let Cut { capacity, users_per_warp, slice_items, slices } = cut;
            prop_assert!(capacity.is_power_of_two() && capacity >= k + ITEMS);
            prop_assert!(users_per_warp >= 1 && users_per_warp * capacity <= KEYS);
            prop_assert_eq!(slice_items % ITEMS, 0);
            prop_assert!(slices * slice_items >= items && (slices - 1) * slice_items < items);
            let blocks = users.div_ceil(WARPS * users_per_warp);
            prop_assert!(slices == 1 || blocks * slices <= TARGET_BLOCKS);
            prop_assert!(slices <= MOST_SLICES);
            prop_assert!(slices == 1 || slice_items >= k);
            let tiles = items.div_ceil(k.next_multiple_of(ITEMS).max(ITEMS));
            let least = (TARGET_BLOCKS / blocks).min(MOST_SLICES).min(tiles);
            prop_assert!(2 * slices >= least, "{slices} slices, {least} wanted");
            prop_assert_eq!(cut.slice_keys(k) == 0, slices == 1);
        }
    }
}
