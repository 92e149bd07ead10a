//! A batch on a device, its rows taken from the nodes and given back (`gather_rows.cu`,
//! `scatter_rows.cu`), the norms of all rows (`norm_backward.cu`), and sums of vectors
//! (`add_scaled.cu`).

use std::sync::Arc;

use super::device::Device;
use super::launch::{Address, Launch, blocks, launch};
use super::memory::Memory;
use super::spmm::CudaGraph;
use crate::Result;
use crate::batch::Batch;

/// Elements that one block of `norm_squares` sums: `CHUNK` of `norm_backward.cu`.
const NORM_CHUNK: u64 = 8192;

/// A batch on a device, in one copy.
#[derive(Debug)]
pub struct CudaBatch {
    ids: Memory<u32>,
    /// Where each of the six arrays of [`Batch`] begins in `ids`.
    starts: [usize; 6],
    /// n_u.
    pub user_count: usize,
    /// n_i.
    pub item_count: usize,
    /// |B|.
    pub pairs: usize,
}

impl CudaBatch {
    /// Copies a batch to a device.
    ///
    /// # Errors
    /// Those of the device.
    pub fn new(device: &Arc<Device>, batch: &Batch) -> Result<Self> {
        let arrays = [
            &batch.users,
            &batch.items,
            &batch.user_offsets,
            &batch.items_of_users,
            &batch.item_offsets,
            &batch.users_of_items,
        ];
        let mut ids = Vec::with_capacity(arrays.iter().map(|array| array.len()).sum());
        let starts = arrays.map(|array| {
            let start = ids.len();
            ids.extend_from_slice(array);
            start
        });
        Ok(Self {
            ids: Memory::from_slice(device, &ids, "a batch")?,
            starts,
            user_count: batch.users.len(),
            item_count: batch.items.len(),
            pairs: batch.pairs(),
        })
    }

    /// The six arrays, in the order of [`Batch`]'s fields.
    pub fn arrays(&self) -> [Address; 6] {
        self.starts.map(|start| self.ids.address_of(start))
    }

    /// The distinct items.
    pub fn items(&self) -> Address {
        self.ids.address_of(self.starts[1])
    }
}

/// Copies the batch's rows from `nodes` to `rows`, or adds them the other way.
pub(super) fn move_rows(
    device: &Arc<Device>,
    kernel: &'static str,
    graph: &CudaGraph,
    batch: &CudaBatch,
    (from, to): (Address, Address),
    width: usize,
) -> Result<()> {
    let [users, items, ..] = batch.arrays();
    let rows = (batch.user_count + batch.item_count) as u64;
    let elements = rows * width as u64;
    let adds = kernel == "scatter_rows";
    launch!(
        device,
        Launch {
            kernel,
            grid: [blocks(elements / 4, 256), 1, 1],
            block: 256,
            bytes: elements * if adds { 12 } else { 8 },
            flops: if adds { elements } else { 0 },
        },
        [
            users,
            batch.user_count as u32,
            items,
            batch.item_count as u32,
            graph.graph.users() as u32,
            width as u32,
            from,
            to,
        ],
        "{rows} rows, d = {width}"
    )
}

/// y `+=` factor · x.
pub(super) fn add_scaled(
    device: &Arc<Device>,
    factor: f64,
    x: Address,
    y: Address,
    elements: usize,
) -> Result<()> {
    let elements = elements as u64;
    launch!(
        device,
        Launch {
            kernel: "add_scaled",
            grid: [blocks(elements / 4, 256), 1, 1],
            block: 256,
            bytes: 12 * elements,
            flops: 2 * elements,
        },
        [factor as f32, x, y, elements],
        "{elements} elements"
    )
}

/// The blocks that sum the squares of the users' elements, and of all.
pub(super) fn norm_blocks(user_elements: u64, elements: u64) -> (u32, u32) {
    let user_blocks = blocks(user_elements, NORM_CHUNK);
    (user_blocks, user_blocks + blocks(elements - user_elements, NORM_CHUNK))
}

/// gradient `=` factor · H/‖H‖ of each half; loss `+=` loss_factor · (‖H_u‖ + ‖H_i‖).
pub(super) fn norm_backward(
    device: &Arc<Device>,
    (nodes, gradient): (Address, Address),
    (user_elements, elements): (usize, usize),
    (factor, loss_factor): (f64, f64),
    loss: Address,
) -> Result<()> {
    let (user_elements, elements) = (user_elements as u64, elements as u64);
    let (user_blocks, all_blocks) = norm_blocks(user_elements, elements);
    let scratch = device.scratch([8 * all_blocks as usize, 8], "sums of squares")?;
    let (sums, scales) = (scratch.part(0), scratch.part(1));
    launch!(
        device,
        Launch {
            kernel: "norm_squares",
            grid: [all_blocks, 1, 1],
            block: 256,
            bytes: 4 * elements,
            flops: 2 * elements,
        },
        [nodes, user_elements, elements, user_blocks, sums],
        "{elements} elements"
    )?;
    launch!(
        device,
        Launch {
            kernel: "norm_scales",
            grid: [1, 1, 1],
            block: 256,
            bytes: 8 * u64::from(all_blocks),
            flops: u64::from(all_blocks),
        },
        [sums, user_blocks, all_blocks, factor, loss_factor, scales, loss],
        "{all_blocks} sums"
    )?;
    launch!(
        device,
        Launch {
            kernel: "norm_gradient",
            grid: [blocks(elements / 4, 256), 1, 1],
            block: 256,
            bytes: 8 * elements,
            flops: elements,
        },
        [nodes, user_elements, elements, scales, gradient],
        "{elements} elements"
    )
}
