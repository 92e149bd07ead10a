//! The graph on a device, cut into segments of even work, and Â times a matrix (`spmm.cu`).

use std::cmp::Reverse;
use std::ops::Deref;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::batches::CudaBatch;
use super::device::Device;
use super::launch::{Address, Arguments, Launch, blocks};
use super::loss::CudaLosses;
use super::memory::Memory;
use super::shared::Shared;
use crate::backend::SpmmFactors;
use crate::graph::Graph;
use crate::{Error, Result};

/// The most neighbours of a segment, in rows with at most as many segments.
const SEGMENT: usize = 32;

/// Marks a segment that is a whole row.
const NO_SLOT: u32 = u32::MAX;

/// `Segment` of `spmm.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
struct Segment {
    row: u32,
    start: u32,
    length: u32,
    slot: u32,
    /// The row's index among the long ones.
    long_row: u32,
}

/// `LongRow` of `spmm.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
struct LongRow {
    row: u32,
    slot: u32,
    segments: u32,
}

/// A graph on a device.
#[derive(Debug)]
pub struct CudaGraph {
    /// The graph.
    pub graph: Arc<Graph>,
    /// N + 1 bounds into `neighbours`.
    pub offsets: Memory<u32>,
    /// The neighbours of all nodes.
    pub neighbours: Memory<u32>,
    scales: Memory<f32>,
    segments: Memory<Segment>,
    long_rows: Memory<LongRow>,
    /// The number of segments in rows with several.
    slots: usize,
}

/// The most neighbours of a segment, in a row with this many: [`SEGMENT`], or about as many as the
/// row has segments, so that adding up a hub's segments takes no longer than each of them.
fn segment_length(neighbours: usize) -> usize {
    let root_up = neighbours.saturating_sub(1).isqrt() + 1;
    root_up.max(SEGMENT).next_multiple_of(4)
}

/// Cuts rows into segments; a row without neighbours gets an empty one. The segments of long rows
/// come first; begun last, they would hold everything up, because the last one of a row adds up the
/// row. Otherwise longer segments come first, so that the groups of a warp have equal work. Also
/// returns the long rows, and the number of their segments.
fn cut(offsets: &[usize]) -> (Vec<Segment>, Vec<LongRow>, usize) {
    let (mut segments, mut long_rows, mut slots) = (Vec::new(), Vec::new(), 0);
    for (row, bounds) in offsets.windows(2).enumerate() {
        let most = segment_length(bounds[1] - bounds[0]);
        let (row, count) = (row as u32, (bounds[1] - bounds[0]).div_ceil(most).max(1));
        let long_row = if count > 1 { long_rows.len() as u32 } else { 0 };
        if count > 1 {
            long_rows.push(LongRow { row, slot: slots as u32, segments: count as u32 });
        }
        for segment in 0..count {
            let start = bounds[0] + segment * most;
            let length = (bounds[1] - start).min(most) as u32;
            let slot = if count > 1 { (slots + segment) as u32 } else { NO_SLOT };
            segments.push(Segment { row, start: start as u32, length, slot, long_row });
        }
        if count > 1 {
            slots += count;
        }
    }
    segments.sort_by_key(|&Segment { row, length, slot, .. }| match slot {
        NO_SLOT => (Reverse(length as usize), true, Reverse(length)),
        _ => {
            let most = segment_length(offsets[row as usize + 1] - offsets[row as usize]);
            (Reverse(most), false, Reverse(length))
        }
    });
    (segments, long_rows, slots)
}

/// The memory of a graph on a device.
pub(super) struct Sizes {
    /// Bytes that runs share.
    pub shared: u64,
    /// Bytes that each run needs besides.
    pub own: u64,
    /// The number of segments in rows with several.
    pub slots: usize,
}

impl Sizes {
    /// The sizes of a graph.
    pub fn of(graph: &Graph) -> Self {
        let (segments, long_rows, slots) = cut(graph.offsets());
        let offsets_and_scales = 4 * (2 * graph.nodes() + 1);
        let cuts = size_of_val(&segments[..]) + size_of_val(&long_rows[..]);
        Self {
            shared: (offsets_and_scales + 4 * graph.entries() + cuts) as u64,
            own: 4 * long_rows.len() as u64,
            slots,
        }
    }
}

impl CudaGraph {
    /// Copies a graph to a device.
    ///
    /// # Errors
    /// [`Error::DeviceMemory`] and [`Error::DeviceOperation`], the latter also for 2³² entries or
    /// more.
    pub fn new(device: &Arc<Device>, graph: Arc<Graph>) -> Result<Self> {
        if u32::try_from(graph.entries()).is_err() {
            return Err(Error::DeviceOperation {
                device: device.describe(),
                operation: format!("copying a graph of {} entries", graph.entries()),
                problem: "the kernels count entries in 32 bits; compute with --device cpu".into(),
            });
        }
        let what = "the graph";
        let (segments, long_rows, slots) = cut(graph.offsets());
        let offsets: Vec<u32> = graph.offsets().iter().map(|&offset| offset as u32).collect();
        let scales: Vec<f32> = (0..graph.nodes()).map(|node| graph.scale(node) as f32).collect();
        Ok(Self {
            offsets: Memory::from_slice(device, &offsets, what)?,
            neighbours: Memory::from_slice(device, graph.all_neighbours(), what)?,
            scales: Memory::from_slice(device, &scales, what)?,
            segments: Memory::from_slice(device, &segments, what)?,
            long_rows: Memory::from_slice(device, &long_rows, what)?,
            slots,
            graph,
        })
    }
}

/// A graph that other runs may share, and this run's own part of it.
#[derive(Debug)]
pub struct RunGraph {
    shared: Shared<CudaGraph>,
    /// For each long row, how many of its segments' sums have arrived: 0 between launches.
    arrived: Memory<u32>,
}

impl RunGraph {
    /// A run's own part of a graph.
    ///
    /// # Errors
    /// [`Error::DeviceMemory`] and [`Error::DeviceOperation`].
    pub(super) fn new(device: &Arc<Device>, graph: Shared<CudaGraph>) -> Result<Self> {
        let arrived = Memory::zeros(device, graph.long_rows.len(), "the graph")?;
        Ok(Self { shared: graph, arrived })
    }
}

impl Deref for RunGraph {
    type Target = CudaGraph;

    fn deref(&self) -> &CudaGraph {
        &self.shared
    }
}

/// Bytes of x that one launch gathers from: as many as stay in the L2 cache of a large GPU, besides
/// what passes through it.
const GATHERED_BYTES: usize = 40 << 20;
/// The least columns of a part: a line of that cache.
const LEAST_COLUMNS: usize = 32;

/// The number of columns per launch, of `width` columns of `nodes` nodes.
fn columns_at_once(nodes: usize, width: usize) -> usize {
    let parts = (4 * nodes * width).div_ceil(GATHERED_BYTES).max(1);
    width.div_ceil(parts).next_multiple_of(LEAST_COLUMNS).min(width)
}

/// The lanes that share a row of `width` columns: one for each four, up to a warp.
pub(super) fn lanes(width: usize) -> u32 {
    (width / 4).next_power_of_two().clamp(1, 32) as u32
}

/// What becomes of a product.
pub(super) enum Target<'a> {
    /// It is written to this address.
    Write(Address),
    /// It is the gradient of the parameters from element `begin` of their arenas on, which the
    /// batch's Adam step updates.
    Adam {
        batch: &'a CudaBatch,
        schedule: Address,
        /// Parameters, first and second moments.
        arenas: [Address; 3],
        begin: u64,
        losses: &'a CudaLosses,
    },
}

/// [`crate::backend::Backend::spmm`] and [`crate::backend::Backend::spmm_adam`], for d = `width`; x
/// and base may be null.
pub(super) fn spmm(
    device: &Arc<Device>,
    graph: &RunGraph,
    [x, base]: [Address; 2],
    factors: SpmmFactors,
    target: &Target<'_>,
    width: usize,
) -> Result<()> {
    let users = graph.graph.users() as u32;
    let (nodes, entries) = (graph.graph.nodes() as u64, graph.graph.entries() as u64);
    let SpmmFactors { neighbours, base: base_factor, item_base } = factors;
    let partial = device.scratch([4 * graph.slots * width], "sums of long rows")?;
    let gathered = if x == Address::NULL { 0 } else { entries };
    let (kernel, passes, row_flops) = match target {
        Target::Write(_) => ("spmm", 2, 2),
        Target::Adam { .. } => ("spmm_adam", 7, 18),
    };
    let at_once = columns_at_once(graph.graph.nodes(), width);
    for first in (0..width).step_by(at_once) {
        let columns = at_once.min(width - first);
        let (row_bytes, lanes) = (4 * columns as u64, lanes(columns));
        let groups_per_block = u64::from(256 / lanes);
        let launch = Launch {
            kernel,
            grid: [blocks(graph.segments.len() as u64, groups_per_block), 1, 1],
            block: 256,
            bytes: gathered * (row_bytes + 8)
                + nodes * (passes * row_bytes + 24)
                + 2 * graph.slots as u64 * row_bytes,
            flops: (2 * gathered + row_flops * nodes) * columns as u64,
        };
        let mut arguments = Arguments::default();
        arguments
            .with(&graph.segments)
            .with(graph.segments.len() as u32)
            .with(&graph.long_rows)
            .with(&graph.arrived)
            .with(&graph.neighbours)
            .with(&graph.scales)
            .with(x)
            .with(base)
            .with(partial.part(0))
            .with(users)
            .with(first as u32)
            .with((first + columns) as u32)
            .with(width as u32)
            .with(lanes)
            .with(neighbours as f32)
            .with(base_factor as f32)
            .with(item_base as f32);
        match target {
            Target::Write(y) => arguments.with(*y),
            Target::Adam { batch, schedule, arenas, begin, losses } => {
                let [parameters, first, second] = *arenas;
                arguments
                    .with(batch.record())
                    .with(*schedule)
                    .with(parameters)
                    .with(first)
                    .with(second)
                    .with(*begin)
                    .with(losses.watch_of_dense())
            }
        };
        let sizes = format_args!("N = {nodes}, {entries} entries, {columns} of d = {width}");
        device.launch(launch, &arguments, sizes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Every entry is in one segment, in order; every row has a segment; slots are dense; a hub
        /// has no more segments than its longest has neighbours, and long rows come first.
        #[test]
        fn segments_cover_every_row_once(
            lengths in prop::collection::vec(0usize..100, 0..30),
            hub in 0usize..10_000,
        ) {
            let mut offsets = vec![0];
            offsets.extend(lengths.iter().chain([&hub]).scan(0, |sum, length| {
                *sum += length;
                Some(*sum)
            }));
            let (mut segments, long_rows, slots) = cut(&offsets);
            let whole = segments.iter().position(|segment| segment.slot == NO_SLOT);
            let whole = whole.unwrap_or(segments.len());
            prop_assert!(segments[..whole].iter().all(|segment| segment.slot != NO_SLOT));
            prop_assert!(segments[whole..].iter().all(|segment| segment.slot == NO_SLOT));
            prop_assert!(segments[whole..].is_sorted_by_key(|segment| Reverse(segment.length)));
            segments.sort_by_key(|segment| (segment.start, segment.row));
            let mut next = 0;
            let mut taken = Vec::new();
            for segment in &segments {
                prop_assert_eq!(segment.start, next);
                let row = segment.row as usize;
                let neighbours = offsets[row + 1] - offsets[row];
                let length = segment.length as usize;
                prop_assert!(length <= SEGMENT || (length - 4).pow(2) < neighbours);
                next += segment.length;
                prop_assert_eq!(segment.slot == NO_SLOT, length == neighbours);
                if segment.slot != NO_SLOT {
                    taken.push((segment.row, segment.slot));
                    prop_assert_eq!(long_rows[segment.long_row as usize].row, segment.row);
                }
            }
            prop_assert_eq!(next as usize, *offsets.last().unwrap());
            let rows: std::collections::BTreeSet<u32> = segments.iter().map(|s| s.row).collect();
            prop_assert_eq!(rows.len(), lengths.len() + 1);
            let listed: Vec<(u32, u32)> = long_rows
                .iter()
                .flat_map(|row| (0..row.segments).map(|segment| (row.row, row.slot + segment)))
                .collect();
            prop_assert_eq!(&taken, &listed);
            prop_assert_eq!(taken.len(), slots);
            for row in &long_rows {
                let longest = segments.iter().filter(|segment| segment.row == row.row);
                let longest = longest.map(|segment| segment.length).max().unwrap();
                prop_assert!(row.segments <= longest, "{row:?}, the longest has {longest}");
            }
        }
    }
}
