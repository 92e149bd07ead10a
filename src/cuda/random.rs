//! Initial values and the order of an epoch, drawn on the device (`initial_values.cu`,
//! `epoch_order.cu`).

use std::sync::Arc;

use super::device::Device;
use super::launch::{Launch, blocks, launch};
use super::memory::Memory;
use crate::Result;
use crate::parameters::{Initial, Layout};

/// Keys of a block of the radix sort: `BLOCK_KEYS` of `epoch_order.cu`.
const BLOCK_KEYS: u64 = 2048;
/// Values of a digit.
const DIGITS: usize = 256;

/// The arena's initial values: the bits of [`Layout::initial_values`].
pub(super) fn initial_values(
    device: &Arc<Device>,
    layout: &Layout,
    seed: u64,
) -> Result<Memory<f32>> {
    let values = Memory::zeros(device, layout.len(), "parameters")?;
    for tensor in &layout.tensors {
        let (is_normal, scale) = match tensor.initial {
            Initial::Uniform(bound) => (0u32, bound),
            Initial::Normal(deviation) => (1, deviation),
        };
        let elements = tensor.range.len() as u64;
        launch!(
            device,
            Launch {
                kernel: "initial_values",
                grid: [blocks(elements, 256), 1, 1],
                block: 256,
                bytes: 4 * elements,
                flops: 60 * elements,
            },
            [
                seed,
                tensor.stream,
                is_normal,
                scale,
                elements,
                values.address_of(tensor.range.start),
            ],
            "{} values of {}",
            elements,
            tensor.name
        )?;
    }
    Ok(values)
}

/// Bytes that [`epoch_order`] takes while it sorts.
pub(super) fn order_bytes(pairs: usize) -> u64 {
    let counts = DIGITS as u64 * u64::from(blocks(pairs as u64, BLOCK_KEYS));
    2 * (8 + 4) * pairs as u64 + 4 * counts
}

/// The pairs in the order of epoch `epoch`: the outcome of [`crate::batch::epoch_order`].
pub(super) fn epoch_order(
    device: &Arc<Device>,
    seed: u64,
    epoch: u64,
    pairs: usize,
) -> Result<Vec<u32>> {
    let what = "the order of an epoch";
    let count = pairs as u32;
    let keys = || Memory::<u64>::new(device, pairs, what);
    let ids = || Memory::<u32>::new(device, pairs, what);
    let (mut from, mut to) = ((keys()?, ids()?), (keys()?, ids()?));
    let n = pairs as u64;
    launch!(
        device,
        Launch {
            kernel: "order_keys",
            grid: [blocks(n, 256), 1, 1],
            block: 256,
            bytes: 12 * n,
            flops: 0,
        },
        [seed, epoch as u32, count, &from.0, &from.1],
        "{pairs} pairs"
    )?;
    let grid = blocks(n, BLOCK_KEYS);
    let counts = Memory::<u32>::new(device, DIGITS * grid as usize, what)?;
    for shift in (0..64u32).step_by(8) {
        launch!(
            device,
            Launch {
                kernel: "radix_count",
                grid: [grid, 1, 1],
                block: 256,
                bytes: 8 * n,
                flops: 0,
            },
            [&from.0, count, shift, &counts],
            "{pairs} pairs"
        )?;
        launch!(
            device,
            Launch {
                kernel: "radix_offsets",
                grid: [grid.min(1), 1, 1],
                block: 256,
                bytes: 8 * counts.len() as u64,
                flops: 0,
            },
            [&counts, counts.len() as u32],
            "{} counts",
            counts.len()
        )?;
        launch!(
            device,
            Launch {
                kernel: "radix_move",
                grid: [grid, 1, 1],
                block: 256,
                bytes: 24 * n,
                flops: 0,
            },
            [&from.0, &from.1, count, shift, &counts, &to.0, &to.1],
            "{pairs} pairs"
        )?;
        std::mem::swap(&mut from, &mut to);
    }
    from.1.read(0..pairs)
}
