//! Products with small dense weights and the operations around them: the predictor, the layers of
//! the paper's form, Adam (`multiply.cu`, `sum_slices.cu`, `leaky_relu.cu`, `adam.cu`).

use std::ops::Range;
use std::sync::Arc;

use super::batches::CudaBatch;
use super::device::{Device, Scratch};
use super::launch::{Address, Launch, blocks, launch};
use super::loss::CudaLosses;
use crate::Result;
use crate::backend::{BatchRooms, Rooms};

/// Lines of a tile; rooms are multiples of it. `NARROW` of `tile.cuh`.
pub(super) const TILE: u64 = 64;
/// Lines of features in a tile: `WIDE` of `tile.cuh`.
const WIDE: u64 = 128;
/// Depth that a tile multiplies at a time: `DEPTH` of `operand.cuh`.
const DEPTH: usize = 16;
/// Rows that a thread of `column_slices` sums: `ROWS` of `sum_slices.cu`.
pub(super) const COLUMN_ROWS: u64 = 32;

/// Blocks of a projection, one for each multiprocessor of a large GPU; also in `batch.cuh`. A
/// constant, so that sums have one order on every GPU.
const PROJECTION_BLOCKS: u32 = 132;

/// Warps to cut a product into if its depth allows: eight for each of these multiprocessors.
const TARGET_WARPS: u64 = 8 * PROJECTION_BLOCKS as u64;

/// The tile of a block: a `Product` of `tile.cuh`.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    rows: u64,
    columns: u64,
    /// The least depth of a slice: a shallower one would spend its time on its output.
    least_depth: usize,
}

impl Tile {
    /// For a product of small weights.
    pub const SMALL: Self = Self { rows: TILE, columns: TILE, least_depth: 8 * DEPTH };
    /// For a product with one output row per row of features.
    pub const FEATURE_ROWS: Self = Self { rows: WIDE, columns: TILE, least_depth: 4 * DEPTH };
    /// For a product with one output column per column of features.
    pub const FEATURE_COLUMNS: Self = Self { rows: TILE, columns: WIDE, ..Self::FEATURE_ROWS };

    /// Warps of a block: one per 32 × 32 elements.
    fn warps(self) -> u64 {
        self.rows * self.columns / (32 * 32)
    }

    /// Threads of a block.
    pub fn threads(self) -> u32 {
        32 * self.warps() as u32
    }

    /// The grid of a product with `rows` × `columns` outputs in `slices` slices: `place_in_grid` of
    /// `tile.cuh`.
    pub fn grid(self, rows: usize, columns: usize, slices: usize) -> [u32; 3] {
        [self.tiles(rows, columns), slices as u32, 1]
    }

    /// The number of slices that the depth of a product is cut into.
    pub fn slices(self, rows: usize, columns: usize, depth: usize) -> usize {
        let tiles = u64::from(self.tiles(rows, columns));
        let wanted = (TARGET_WARPS / self.warps() / tiles.max(1)).max(1) as usize;
        let slice_depth = depth.div_ceil(wanted).next_multiple_of(DEPTH).max(self.least_depth);
        depth.div_ceil(slice_depth).max(1)
    }

    /// The most slices of a product that fills only some of these rows and chooses its own number
    /// (`projection_slices` of `batch.cuh`): the number for half of them.
    pub fn most_slices(self, rows: usize, columns: usize, depth: usize) -> usize {
        self.slices(rows.div_ceil(2), columns, depth)
    }

    /// Blocks of a projection that chooses its slices: enough for all tiles and for all slices.
    pub fn projection_blocks(self, rows: usize, columns: usize) -> u32 {
        self.tiles(rows, columns).max(PROJECTION_BLOCKS)
    }

    /// The number of tiles over `rows` × `columns` outputs.
    fn tiles(self, rows: usize, columns: usize) -> u32 {
        blocks(rows as u64, self.rows) * self.column_tiles(columns)
    }

    /// The number of tiles side by side over `columns` columns.
    pub fn column_tiles(self, columns: usize) -> u32 {
        blocks(columns as u64, self.columns)
    }
}

/// Memory for the slices of a product, if there are several.
pub(super) fn partial_sums(
    device: &Device,
    count: usize,
    elements: usize,
) -> Result<Option<Scratch<'_>>> {
    match count {
        1 => Ok(None),
        _ => Ok(Some(device.scratch([4 * count * elements], "slices of a product")?)),
    }
}

/// The rows that a launch computes, as its first arguments: a batch's record and rooms, or all rows
/// there are.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    batch: Address,
    rooms: Rooms,
}

impl Rows {
    /// All rows.
    pub const ALL: Self = Self { batch: Address::NULL, rooms: Rooms { users: 1, items: 1 } };

    /// The rows of a batch.
    pub fn of(batch: &CudaBatch) -> Self {
        Self { batch: batch.record(), rooms: batch.rooms() }
    }

    /// The record, the users' room and the items' room.
    fn arguments(self) -> (Address, u32, u32) {
        (self.batch, self.rooms.users as u32, self.rooms.items as u32)
    }
}

/// Slices that a thread of `sum_slices` reads at a time; also in `sum_slices.cu`.
const SLICES_AT_ONCE: usize = 8;
/// The most threads of `sum_slices`: as many as these multiprocessors run at a time.
const MOST_SUMMING: usize = 2048 * PROJECTION_BLOCKS as usize;

/// Slices of a product, to be added.
#[derive(Clone, Copy)]
pub(super) struct Slices {
    pub address: Address,
    /// The number of slices.
    pub count: usize,
    /// Numbers in each.
    pub elements: usize,
}

impl Slices {
    /// How many lanes share an element.
    fn lanes(self) -> usize {
        let mut lanes = 1;
        while lanes < 32
            && self.count > SLICES_AT_ONCE * lanes
            && 2 * lanes * self.elements <= MOST_SUMMING
        {
            lanes *= 2;
        }
        lanes
    }

    /// out `=` the sum of the slices.
    pub fn sum(self, device: &Arc<Device>, out: Address) -> Result<()> {
        self.sum_with(device, Address::NULL, 0, Address::NULL, 1, out)
    }

    /// out `=` the sum of the slices that the projection of the batch's items fills, plus the bias
    /// of each of `width` columns; only the items' rows are written.
    pub fn sum_projection(
        self,
        device: &Arc<Device>,
        batch: &CudaBatch,
        bias: Address,
        width: usize,
        out: Address,
    ) -> Result<()> {
        let column_tiles = Tile::FEATURE_ROWS.column_tiles(width);
        self.sum_with(device, batch.record(), column_tiles, bias, width, out)
    }

    fn sum_with(
        self,
        device: &Arc<Device>,
        batch: Address,
        column_tiles: u32,
        bias: Address,
        width: usize,
        out: Address,
    ) -> Result<()> {
        let (Self { address, count, elements }, lanes) = (self, self.lanes());
        launch!(
            device,
            Launch {
                kernel: "sum_slices",
                grid: [blocks((elements * lanes) as u64, 256), 1, 1],
                block: 256,
                bytes: 4 * (count as u64 + 1) * elements as u64,
                flops: (count * elements) as u64,
            },
            [
                batch,
                address,
                count as u32,
                column_tiles,
                elements as u64,
                lanes as u32,
                bias,
                width as u32,
                out,
            ],
            "{count} slices of {elements}"
        )
    }
}

/// sums `=` the column sums of `x` (rows × width); with a batch, over its items' rows only.
pub(super) fn column_sums(
    device: &Arc<Device>,
    batch: Address,
    x: Address,
    rows: usize,
    width: usize,
    sums: Address,
) -> Result<()> {
    let count = (rows as u64).div_ceil(COLUMN_ROWS) as usize;
    let slices = device.scratch([4 * count * width], "column sums")?;
    launch!(
        device,
        Launch {
            kernel: "column_slices",
            grid: [count as u32, blocks(width as u64, 128), 1],
            block: 128,
            bytes: 4 * (rows * width) as u64,
            flops: (rows * width) as u64,
        },
        [batch, x, rows as u32, width as u32, slices.part(0)],
        "{rows} rows, d = {width}"
    )?;
    Slices { address: slices.part(0), count, elements: width }.sum(device, sums)
}

/// out (rows × width) `=` x wᵀ + bias, with x rows × width and w width × width.
pub(super) fn multiply_transposed(
    device: &Arc<Device>,
    over: Rows,
    x: Address,
    weight: Address,
    bias: Address,
    out: Address,
    (rows, width): (usize, usize),
) -> Result<()> {
    let launch = product("multiply_transposed", rows, width);
    let width = width as u32;
    let (batch, users, items) = over.arguments();
    launch!(
        device,
        launch,
        [batch, users, items, x, rows as u32, width, weight, width, bias, out],
        "{rows} rows, d = {width}"
    )
}

/// out (rows × width) `=` x w, with x rows × width and w width × width.
pub(super) fn multiply_plain(
    device: &Arc<Device>,
    over: Rows,
    x: Address,
    weight: Address,
    out: Address,
    (rows, width): (usize, usize),
) -> Result<()> {
    let launch = product("multiply_plain", rows, width);
    let width = width as u32;
    let (batch, users, items) = over.arguments();
    launch!(
        device,
        launch,
        [batch, users, items, x, rows as u32, width, weight, width, out],
        "{rows} rows, d = {width}"
    )
}

/// The launch of a product of rows × width by width × width.
fn product(kernel: &'static str, rows: usize, width: usize) -> Launch {
    let (n, d) = (rows as u64, width as u64);
    Launch {
        kernel,
        grid: Tile::SMALL.grid(rows, width, 1),
        block: Tile::SMALL.threads(),
        bytes: 4 * (2 * n * d + d * d),
        flops: 2 * n * d * d,
    }
}

/// out (width × width) `=` yᵀ x, with y and x rows × width.
pub(super) fn multiply_gradient(
    device: &Arc<Device>,
    over: Rows,
    y: Address,
    x: Address,
    out: Address,
    (rows, width): (usize, usize),
) -> Result<()> {
    let count = Tile::SMALL.slices(width, width, rows);
    let elements = width * width;
    let partial = partial_sums(device, count, elements)?;
    let target = partial.as_ref().map_or(out, |partial| partial.part(0));
    let (batch, users, items) = over.arguments();
    let (n, d) = (rows as u64, width as u64);
    launch!(
        device,
        Launch {
            kernel: "multiply_gradient",
            grid: Tile::SMALL.grid(width, width, count),
            block: Tile::SMALL.threads(),
            bytes: 4 * (2 * n * d + count as u64 * d * d),
            flops: 2 * n * d * d,
        },
        [batch, users, items, y, width as u32, x, width as u32, rows as u32, target,],
        "{rows} rows, d = {width}"
    )?;
    match partial {
        None => Ok(()),
        Some(partial) => Slices { address: partial.part(0), count, elements }.sum(device, out),
    }
}

/// y `=` LeakyReLU(y).
pub(super) fn leaky_relu(device: &Arc<Device>, y: Address, elements: usize) -> Result<()> {
    let elements = elements as u64;
    let launch = elementwise("leaky_relu", elements, 8, 1);
    launch!(device, launch, [y, elements], "{elements} elements")
}

/// gradient `=` gradient ∘ LeakyReLU', from the activation's output y.
pub(super) fn leaky_relu_backward(
    device: &Arc<Device>,
    y: Address,
    gradient: Address,
    elements: usize,
) -> Result<()> {
    let elements = elements as u64;
    let launch = elementwise("leaky_relu_backward", elements, 12, 1);
    launch!(device, launch, [y, gradient, elements], "{elements} elements")
}

/// One Adam step on the elements `range` of the dense parameters, whose gradients are at `gradients`.
pub(super) fn adam(
    device: &Arc<Device>,
    batch: &CudaBatch,
    schedule: Address,
    gradients: Address,
    [parameters, first, second]: [Address; 3],
    range: Range<usize>,
    losses: &CudaLosses,
) -> Result<()> {
    let (begin, end) = (range.start as u64, range.end as u64);
    let launch = elementwise("adam", end - begin, 28, 18);
    launch!(
        device,
        launch,
        [
            batch.record(),
            schedule,
            gradients,
            parameters,
            first,
            second,
            begin,
            end,
            losses.watch_of_dense(),
        ],
        "{} parameters",
        range.len()
    )
}

/// A launch with one thread per four elements.
fn elementwise(kernel: &'static str, elements: u64, bytes: u64, flops: u64) -> Launch {
    Launch {
        kernel,
        grid: [blocks(elements / 4, 256), 1, 1],
        block: 256,
        bytes: bytes * elements,
        flops: flops * elements,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A grid has at most 65,535 blocks in y and z: no number of nodes, rows or slices may need
    /// more.
    #[test]
    fn a_grid_holds_as_many_rows_as_ids_can_tell_apart() {
        let nodes = u32::MAX as usize;
        let [x, y, z] = Tile::SMALL.grid(nodes, 64, Tile::SMALL.slices(nodes, 64, 64));
        assert_eq!((x, y, z), (1 << 26, 1, 1));
        let [x, y, z] = Tile::SMALL.grid(512, 512, Tile::SMALL.slices(512, 512, nodes));
        assert_eq!((x, z), (64, 1));
        assert!((2..1024).contains(&y), "{y} slices");
    }
}
