//! Initial values and an epoch's order, drawn on the device (`initial_values.cu`,
//! `epoch_order.cu`).

use std::sync::Arc;

use super::device::Device;
use super::launch::{Address, Launch, blocks, launch};
use super::memory::Memory;
use crate::Result;
use crate::parameters::{Initial, Layout};

/// Keys of a block of the radix sort: `BLOCK_KEYS` of `epoch_order.cu`.
const BLOCK_KEYS: u64 = 2048;
/// The number of values of a digit.
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

/// Bytes of a [`Sort`] of `keys` keys.
pub(super) fn sort_bytes(keys: usize) -> u64 {
    let counts = DIGITS as u64 * (keys as u64).div_ceil(BLOCK_KEYS);
    2 * (8 + 4) * keys as u64 + 4 * counts
}

/// The range of the sorted keys: their low halves are below `low`, their high halves below `high`.
#[derive(Debug, Clone, Copy)]
pub(super) struct SortBits {
    pub low: u64,
    pub high: u64,
}

/// A stable radix sort of values by 64-bit keys, eight bits at a time from the lowest.
#[derive(Debug)]
pub(super) struct Sort {
    from: (Memory<u64>, Memory<u32>),
    to: (Memory<u64>, Memory<u32>),
    counts: Memory<u32>,
}

impl Sort {
    /// Room for `count` keys and values.
    pub fn new(device: &Arc<Device>, count: usize, what: &str) -> Result<Self> {
        let room = || -> Result<_> {
            Ok((Memory::new(device, count, what)?, Memory::new(device, count, what)?))
        };
        let blocks = (count as u64).div_ceil(BLOCK_KEYS) as usize;
        Ok(Self { from: room()?, to: room()?, counts: Memory::new(device, DIGITS * blocks, what)? })
    }

    /// The keys; written before the sort and read after it.
    pub fn keys(&self) -> Address {
        self.from.0.address_of(0)
    }

    /// The values; written before the sort and read after it.
    pub fn values(&self) -> Address {
        self.from.1.address_of(0)
    }

    /// Keeps the values only.
    pub fn into_values(self) -> Memory<u32> {
        self.from.1
    }

    /// Sorts; digits that are 0 in every key are skipped.
    pub fn sort(&mut self, device: &Arc<Device>, bits: SortBits) -> Result<()> {
        let digits = |end: u64| (64 - end.saturating_sub(1).leading_zeros()).div_ceil(8);
        let shifts = (0..digits(bits.low)).chain((0..digits(bits.high)).map(|digit| 4 + digit));
        for digit in shifts {
            self.pass(device, 8 * digit)?;
        }
        Ok(())
    }

    fn pass(&mut self, device: &Arc<Device>, shift: u32) -> Result<()> {
        let Self { from, to, counts } = self;
        let count = from.0.len() as u32;
        let (n, grid) = (u64::from(count), blocks(u64::from(count), BLOCK_KEYS));
        let geometry = |kernel, grid, bytes| Launch {
            kernel,
            grid: [grid, 1, 1],
            block: 256,
            bytes,
            flops: 0,
        };
        launch!(
            device,
            geometry("radix_count", grid, 8 * n),
            [&from.0, count, shift, &*counts],
            "{n} keys"
        )?;
        launch!(
            device,
            geometry("radix_offsets", grid.min(1), 8 * counts.len() as u64),
            [&*counts, counts.len() as u32],
            "{n} keys"
        )?;
        launch!(
            device,
            geometry("radix_move", grid, 24 * n),
            [&from.0, &from.1, count, shift, &*counts, &to.0, &to.1],
            "{n} keys"
        )?;
        std::mem::swap(from, to);
        Ok(())
    }
}

/// The pairs in the order of epoch `epoch`, the same as [`crate::batch::epoch_order`].
pub(super) fn epoch_order(
    device: &Arc<Device>,
    seed: u64,
    epoch: u64,
    pairs: usize,
) -> Result<Memory<u32>> {
    let mut sort = Sort::new(device, pairs, "the order of an epoch")?;
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
        [seed, epoch as u32, pairs as u32, sort.keys(), sort.values()],
        "{pairs} pairs"
    )?;
    sort.sort(device, SortBits { low: 1 << 32, high: 1 << 32 })?;
    Ok(sort.into_values())
}
