//! Gathering and scattering a batch's rows (`gather_rows.cu`, `scatter_rows.cu`), the norms of all
//! rows (`norm_backward.cu`), and sums of vectors (`add_scaled.cu`).

use std::sync::Arc;

use super::batches::CudaBatch;
use super::device::Device;
use super::launch::{Address, Launch, blocks, launch};
use super::spmm::CudaGraph;
use crate::Result;
use crate::backend::{BatchRooms, Rooms};

/// Elements that one block of `norm_squares` sums: `CHUNK` of `norm_backward.cu`.
const NORM_CHUNK: u64 = 8192;

/// Copies the batch's rows from the nodes (`gather_rows`), or adds rows to them (`scatter_rows`).
pub(super) fn move_rows(
    device: &Arc<Device>,
    kernel: &'static str,
    graph: &CudaGraph,
    batch: &CudaBatch,
    (from, to): (Address, Address),
    width: usize,
) -> Result<()> {
    let Rooms { users, items } = batch.rooms();
    let rows = (users + items) as u64;
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
            batch.record(),
            users as u32,
            items as u32,
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

/// The numbers of blocks that sum the squares of the users' elements, and of all elements.
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
