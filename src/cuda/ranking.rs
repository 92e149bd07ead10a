//! The best items of users, and ranking metrics (`top_k.cu`, `metrics.cu`).

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

/// The longest list: half of a user's candidates at the least users a block.
pub const LONGEST_LIST: usize = 1024;
/// Candidates of all users of a block: `KEYS` of `top_k.cu`.
const KEYS: usize = 4096;
/// Threads of a block: the same of `top_k.cu`.
const THREADS: u32 = 64;
/// The most users of a block: `USERS` of `top_k.cu`.
const USERS: usize = 16;
/// Items scored between two looks at the candidates: `ITEMS` of `top_k.cu`.
const ITEMS: usize = 128;
/// Blocks that the users' items are cut for, where users are few: four for each multiprocessor of a
/// large GPU.
const TARGET_BLOCKS: usize = 4 * 132;
/// The most slices: to merge more takes longer than it saves.
const MOST_SLICES: usize = 132;
/// Users that a block of `user_metrics` measures: `WARPS` of `metrics.cu`.
const MEASURED: u64 = 8;

/// How a search is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    /// Candidates of a user.
    capacity: usize,
    users_per_block: usize,
    /// Items of a slice, whole tiles.
    slice_items: usize,
    slices: usize,
}

impl Cut {
    fn of(users: usize, items: usize, k: usize) -> Self {
        let capacity = (k + ITEMS).next_power_of_two();
        let users_per_block = (KEYS / capacity).min(USERS);
        let blocks = users.div_ceil(users_per_block).max(1);
        let tiles = items.div_ceil(ITEMS).max(1);
        let wanted = (TARGET_BLOCKS / blocks).clamp(1, MOST_SLICES.min(tiles));
        // Of fewer items than K a slice would leave keys of nothing, to be merged all the same.
        let slice_items = (tiles.div_ceil(wanted) * ITEMS).max(k.next_multiple_of(ITEMS));
        Self { capacity, users_per_block, slice_items, slices: items.div_ceil(slice_items).max(1) }
    }

    /// Keys that slices leave of each user; none where there is one slice.
    fn slice_keys(self, k: usize) -> usize {
        if self.slices == 1 { 0 } else { self.slices * k }
    }
}

/// Bytes that a search has beside its lists.
pub(super) fn search_bytes(users: usize, items: usize, k: usize) -> u64 {
    8 * (users * Cut::of(users, items, k).slice_keys(k)) as u64
}

/// Lists on a device.
#[derive(Debug)]
pub struct CudaLists {
    k: usize,
    items: Memory<u32>,
    scores: Memory<f32>,
}

impl CudaLists {
    /// The lists, read.
    ///
    /// # Errors
    /// Those of the device.
    pub fn read(&self) -> Result<TopK> {
        let scores = self.scores.read(0..self.scores.len())?;
        Ok(TopK {
            k: self.k,
            items: self.items.read(0..self.items.len())?,
            scores: scores.into_iter().map(f64::from).collect(),
        })
    }
}

/// Users, items, and which items each user's list leaves out.
pub(super) struct Masked<'a> {
    /// Rows before the items' rows.
    pub users: usize,
    /// Items' rows.
    pub items: usize,
    /// A bound for each user, and the last one, into `neighbours`.
    pub offsets: &'a Memory<u32>,
    /// Nodes: items are numbered after the users; ascending within a user.
    pub neighbours: &'a Memory<u32>,
}

/// The `k` best items of each of `users`.
pub(super) fn top_k(
    device: &Arc<Device>,
    graph: &CudaGraph,
    predicted: Address,
    width: usize,
    users: &[u32],
    k: usize,
) -> Result<CudaLists> {
    let masked = Masked {
        users: graph.graph.users(),
        items: graph.graph.items(),
        offsets: &graph.offsets,
        neighbours: &graph.neighbours,
    };
    ranked(device, &masked, predicted, width, users, k)
}

/// The `k` best items of each of `users`; `predicted`: (users + items) × d.
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
    let lists = CudaLists {
        k,
        items: Memory::new(device, users.len() * k, "lists")?,
        scores: Memory::new(device, users.len() * k, "lists")?,
    };
    let scored = (users.len() * items) as u64;
    let grid = blocks(users.len() as u64, cut.users_per_block as u64);
    let list_bytes = (8 * users.len() * k) as u64;
    launch!(
        device,
        Launch {
            kernel: "top_k",
            grid: [grid, cut.slices as u32, 1],
            block: THREADS,
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
            cut.users_per_block as u32,
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
                cut.capacity as u32,
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

/// The metrics of `split` at each of `lengths`, from the lists of `users`.
pub(super) fn metrics(
    device: &Arc<Device>,
    split: &Split,
    users: &[u32],
    lists: &CudaLists,
    lengths: &[usize],
) -> Result<Metrics> {
    let rows: HashMap<u32, u32> =
        users.iter().enumerate().map(|(row, &user)| (user, row as u32)).collect();
    let (mut positions, mut offsets, mut wanted) = (Vec::new(), vec![0u32], Vec::new());
    for (position, user) in split.users.iter().enumerate() {
        let Some(&row) = rows.get(user) else { continue };
        positions.push(row);
        let start = wanted.len();
        wanted
            .extend_from_slice(&split.items[split.offsets[position]..split.offsets[position + 1]]);
        wanted[start..].sort_unstable();
        offsets.push(wanted.len() as u32);
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
    let measured = positions.len();
    let what = "metrics";
    let values = Memory::<f64>::new(device, measured * columns, what)?;
    let sums = Memory::<f64>::zeros(device, columns, what)?;
    launch!(
        device,
        Launch {
            kernel: "user_metrics",
            grid: [blocks(measured as u64, MEASURED), 1, 1],
            block: 256,
            bytes: (4 * measured * longest + 4 * wanted.len() + 8 * measured * columns) as u64,
            flops: (measured * columns) as u64,
        },
        [
            &lists.items,
            lists.k as u32,
            &Memory::from_slice(device, &positions, what)?,
            measured as u32,
            &Memory::from_slice(device, &offsets, what)?,
            &Memory::from_slice(device, &wanted, what)?,
            &Memory::from_slice(device, &device_lengths, what)?,
            lengths.len() as u32,
            &Memory::from_slice(device, &gains, what)?,
            &Memory::from_slice(device, &ideals, what)?,
            &values,
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
        [&values, measured as u32, columns as u32, &sums],
        "{measured} users, {columns} columns"
    )?;
    let sums = sums.read(0..columns)?;
    let mean = |metric: usize| -> Vec<f64> {
        (0..lengths.len()).map(|index| sums[4 * index + metric] / measured.max(1) as f64).collect()
    };
    Ok(Metrics {
        top_k: lengths.to_vec(),
        recall: mean(0),
        ndcg: mean(1),
        precision: mean(2),
        map: mean(3),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Slices are tiles, all items lie in one, none is empty; few users have many blocks, many
        /// users no slices; candidates fit.
        #[test]
        fn items_are_cut_for_few_users(
            users in 1usize..20_000,
            items in 1usize..100_000,
            k in 1usize..=LONGEST_LIST,
        ) {
            let cut = Cut::of(users, items, k);
            let Cut { capacity, users_per_block, slice_items, slices } = cut;
            prop_assert!(capacity.is_power_of_two() && capacity >= k + ITEMS);
            prop_assert!(users_per_block >= 1 && users_per_block * capacity <= KEYS);
            prop_assert_eq!(slice_items % ITEMS, 0);
            prop_assert!(slices * slice_items >= items && (slices - 1) * slice_items < items);
            let blocks = users.div_ceil(users_per_block);
            prop_assert!(slices == 1 || blocks * slices <= TARGET_BLOCKS);
            prop_assert!(slices <= MOST_SLICES);
            prop_assert!(slices == 1 || slice_items >= k);
            let tiles = items.div_ceil(k.next_multiple_of(ITEMS).max(ITEMS));
            let least = (TARGET_BLOCKS / blocks).min(MOST_SLICES).min(tiles);
            prop_assert!(2 * slices >= least, "{slices} slices, {least} wanted");
            prop_assert_eq!(search_bytes(users, items, k) == 0, slices == 1);
        }
    }
}
