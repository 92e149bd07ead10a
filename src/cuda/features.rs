//! Raw features on a device: the projection, its gradient, and Adam by rows (`project.cu`,
//! `project_backward.cu`, `adam_rows.cu`).

use std::iter;
use std::sync::Arc;

use super::batches::CudaBatch;
use super::dense::{Slices, Tile, column_sums, partial_sums};
use super::device::Device;
use super::kept::CudaKept;
use super::launch::{Address, Launch, launch};
use super::memory::Memory;
use super::shared::Shared;
use super::stored::StoredType;
use super::stream::FeatureStream;
use super::upload::{Rows, UploadProgress, upload_rows};
use crate::Result;
use crate::backend::{BatchRooms, FeatureState};
use crate::data::FeatureMatrix;

/// The name of trained features in an error about memory.
const TRAINED: &str = "trained features (values and two moments)";

/// Raw features on a device.
#[derive(Debug)]
pub struct CudaFeatures {
    values: Shared<Memory<u8>>,
    stored: StoredType,
    /// I.
    rows: usize,
    /// D_m.
    columns: usize,
    trained: Option<Trained>,
    /// The stream that brings the rows, if they are streamed.
    places: Option<Arc<FeatureStream>>,
}

#[derive(Debug)]
struct Trained {
    first: Memory<f32>,
    second: Memory<f32>,
    /// The step up to which each part of each row is current.
    touched: Memory<u32>,
}

/// Columns of a row that a block of `adam_replay` brings up to date, four per thread; also in
/// `adam_rows.cu`.
const PART: usize = 512;

/// The number of parts of a row of trained features.
pub(super) fn parts(columns: usize) -> usize {
    columns.div_ceil(PART)
}

impl CudaFeatures {
    /// D_m.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Frozen features, all of which lie in `values`.
    pub(super) fn frozen(
        values: Shared<Memory<u8>>,
        stored: StoredType,
        columns: usize,
        rows: usize,
    ) -> Self {
        Self { values, stored, rows, columns, trained: None, places: None }
    }

    /// A table whose rows are streamed; `values` holds those that are on the device.
    pub(super) fn streamed(
        stream: Arc<FeatureStream>,
        values: Arc<Memory<u8>>,
        stored: StoredType,
        columns: usize,
        rows: usize,
    ) -> Self {
        let values = Shared::own(values);
        Self { values, stored, rows, columns, trained: None, places: Some(stream) }
    }

    /// Whether the features are trained.
    pub fn is_trained(&self) -> bool {
        self.trained.is_some()
    }

    /// Where kernels find the rows of streamed features; null if rows are found by item.
    fn places(&self) -> Address {
        self.places.as_ref().map_or(Address::NULL, |stream| stream.places().address_of(0))
    }

    /// Features to be trained, with the given state.
    ///
    /// # Errors
    /// [`crate::Error::DeviceMemory`] and [`crate::Error::DeviceOperation`].
    pub fn trained(
        device: &Arc<Device>,
        state: &FeatureState<f32>,
        columns: usize,
    ) -> Result<Self> {
        let what = TRAINED;
        let of_parts = state.touched.iter().flat_map(|&step| iter::repeat_n(step, parts(columns)));
        let of_parts: Vec<u32> = of_parts.collect();
        Ok(Self {
            values: Shared::own(Memory::from_slice(
                device,
                bytemuck::cast_slice(&state.values),
                what,
            )?),
            stored: StoredType::F32,
            rows: state.touched.len(),
            columns,
            trained: Some(Trained {
                first: Memory::from_slice(device, &state.first, what)?,
                second: Memory::from_slice(device, &state.second, what)?,
                touched: Memory::from_slice(device, &of_parts, what)?,
            }),
            places: None,
        })
    }

    /// Features to be trained, starting from the first `rows` rows of a table.
    ///
    /// # Errors
    /// [`crate::Error::DeviceMemory`] and [`crate::Error::DeviceOperation`].
    pub fn untrained(
        device: &Arc<Device>,
        matrix: &FeatureMatrix,
        rows: usize,
        progress: &UploadProgress,
    ) -> Result<Self> {
        let (what, stored) = (TRAINED, StoredType::F32);
        let elements = rows * matrix.columns();
        let mut values = Memory::<u8>::new(device, elements * stored.size(), what)?;
        upload_rows(device, &mut values, matrix, stored, Rows::First(rows), progress)?;
        Ok(Self {
            values: Shared::own(values),
            stored,
            rows,
            columns: matrix.columns(),
            trained: Some(Trained {
                first: Memory::zeros(device, elements, what)?,
                second: Memory::zeros(device, elements, what)?,
                touched: Memory::zeros(device, rows * parts(matrix.columns()), what)?,
            }),
            places: None,
        })
    }

    /// Reads the values of trained features; `None` for frozen ones.
    ///
    /// # Errors
    /// [`crate::Error::DeviceOperation`].
    pub fn values(&self) -> Result<Option<Vec<f32>>> {
        self.trained.as_ref().map(|_| self.values.read_as()).transpose()
    }

    /// Takes a snapshot of the values of trained features, on the device or else in host memory;
    /// `None` for frozen ones.
    ///
    /// # Errors
    /// [`crate::Error::DeviceOperation`].
    pub(super) fn keep(&self, on_device: bool) -> Result<Option<CudaKept>> {
        if self.trained.is_none() {
            return Ok(None);
        }
        let read = || self.values.read_as();
        if !on_device {
            return read().map(CudaKept::Host).map(Some);
        }
        let copy = self.values.copy(0..self.values.len(), "features of the best epoch");
        CudaKept::new(copy, read).map(Some)
    }

    /// Reads the state of trained features; `None` for frozen ones.
    ///
    /// # Errors
    /// [`crate::Error::DeviceOperation`].
    pub fn state(&self) -> Result<Option<FeatureState<f32>>> {
        let (Some(trained), Some(values)) = (&self.trained, self.values()?) else {
            return Ok(None);
        };
        // Both steps and replays leave all parts of a row at the same step.
        let touched = trained.touched.read(0..trained.touched.len())?;
        Ok(Some(FeatureState {
            values,
            first: trained.first.read(0..trained.first.len())?,
            second: trained.second.read(0..trained.second.len())?,
            touched: touched.into_iter().step_by(parts(self.columns)).collect(),
        }))
    }

    fn kernel(&self, kernels: [&'static str; 3]) -> &'static str {
        match self.stored {
            StoredType::F32 => kernels[0],
            StoredType::F16 => kernels[1],
            StoredType::Bf16 => kernels[2],
        }
    }
}

/// z (n × d) `=` E\[items\] Wᵀ + b.
pub(super) fn project(
    device: &Arc<Device>,
    batch: &CudaBatch,
    features: &CudaFeatures,
    (weight, bias): (Address, Address),
    width: usize,
    z: Address,
) -> Result<()> {
    let (items, columns) = (batch.rooms().items, features.columns);
    let tile = Tile::FEATURE_ROWS;
    let count = tile.most_slices(items, width, columns);
    let elements = items * width;
    let partial = partial_sums(device, count, elements)?;
    let (target, added) = match &partial {
        None => (z, bias),
        Some(partial) => (partial.part(0), Address::NULL),
    };
    let (n, d, wide) = (items as u64, width as u64, columns as u64);
    launch!(
        device,
        Launch {
            kernel: features.kernel(["project_f32", "project_f16", "project_bf16"]),
            grid: [tile.projection_blocks(items, width), 1, 1],
            block: tile.threads(),
            bytes: n * wide * features.stored.size() as u64
                + 4 * d * wide
                + 4 * count as u64 * n * d,
            flops: 2 * n * d * wide,
        },
        [
            batch.record(),
            items as u32,
            &*features.values,
            features.places(),
            columns as u32,
            weight,
            width as u32,
            added,
            count as u32,
            target,
        ],
        "{items} items, D = {columns}, d = {width}"
    )?;
    match partial {
        None => Ok(()),
        Some(partial) => {
            let slices = Slices { address: partial.part(0), count, elements };
            slices.sum_projection(device, batch, bias, width, z)
        }
    }
}

/// dW (d × D_m) `=` dzᵀ E\[items\] and db (d) `=` Σ dz.
pub(super) fn project_backward(
    device: &Arc<Device>,
    batch: &CudaBatch,
    features: &CudaFeatures,
    z_gradient: Address,
    width: usize,
    (weight_gradient, bias_gradient): (Address, Address),
) -> Result<()> {
    let (items, columns) = (batch.rooms().items, features.columns);
    let tile = Tile::FEATURE_COLUMNS;
    let count = tile.slices(width, columns, items);
    let elements = width * columns;
    let kernels = ["project_backward_f32", "project_backward_f16", "project_backward_bf16"];
    let (n, d, wide) = (items as u64, width as u64, columns as u64);
    let bias = |side: &Arc<Device>| {
        column_sums(side, batch.record(), z_gradient, items, width, bias_gradient)
    };
    let weight = || {
        // Only now: while launches are timed, the side is this device, with the same scratch
        // memory.
        let partial = partial_sums(device, count, elements)?;
        let target = partial.as_ref().map_or(weight_gradient, |partial| partial.part(0));
        launch!(
            device,
            Launch {
                kernel: features.kernel(kernels),
                grid: tile.grid(width, columns, count),
                block: tile.threads(),
                bytes: n * wide * features.stored.size() as u64
                    + 4 * n * d
                    + 4 * count as u64 * d * wide,
                flops: 2 * n * d * wide,
            },
            [
                batch.record(),
                items as u32,
                z_gradient,
                width as u32,
                &*features.values,
                features.places(),
                columns as u32,
                target,
            ],
            "{items} items, D = {columns}, d = {width}"
        )?;
        match partial {
            None => Ok(()),
            Some(partial) => {
                let slices = Slices { address: partial.part(0), count, elements };
                slices.sum(device, weight_gradient)
            }
        }
    };
    Device::beside(device, bias, weight)
}

/// Which rows to bring up, and to which step.
#[derive(Clone, Copy)]
pub(super) enum Replay<'a> {
    /// A batch's rows, to the step before its own.
    Batch(&'a CudaBatch),
    /// The next batch's rows that are not in this batch, to this batch's step.
    Ahead(&'a CudaBatch),
    /// All rows, to this step.
    All(u32),
}

/// Brings rows up to a step by applying the steps they missed, in which their gradient was zero.
pub(super) fn replay(
    device: &Arc<Device>,
    which: Replay<'_>,
    schedule: Address,
    features: &CudaFeatures,
) -> Result<()> {
    let Some(trained) = &features.trained else { return Ok(()) };
    let columns = features.columns;
    let (batch, is_ahead, count, last) = match which {
        Replay::Batch(batch) => (batch.record(), 0u32, batch.rooms().items, 0),
        Replay::Ahead(batch) => (batch.record(), 1, batch.rooms().items, 0),
        Replay::All(last) => (Address::NULL, 0, features.rows, last),
    };
    launch!(
        device,
        Launch {
            kernel: "adam_replay",
            grid: [count as u32, parts(columns) as u32, 1],
            block: PART as u32 / 4,
            // The most, not the least: rows that missed no step are not read.
            bytes: 24 * (count * columns) as u64,
            flops: 14 * (count * columns) as u64,
        },
        [
            batch,
            is_ahead,
            schedule,
            last,
            columns as u32,
            &*features.values,
            &trained.first,
            &trained.second,
            &trained.touched,
        ],
        "{count} rows, D = {columns}"
    )
}

/// Adam's step for the batch on its rows, with dE = dz W.
pub(super) fn adam_rows(
    device: &Arc<Device>,
    batch: &CudaBatch,
    (z_gradient, weight, watch): (Address, Address, Address),
    width: usize,
    schedule: Address,
    features: &CudaFeatures,
) -> Result<()> {
    let Some(trained) = &features.trained else { return Ok(()) };
    let (items, columns) = (batch.rooms().items, features.columns);
    let elements = (items * columns) as u64;
    launch!(
        device,
        Launch {
            kernel: "adam_rows",
            grid: Tile::SMALL.grid(items, columns, 1),
            block: Tile::SMALL.threads(),
            bytes: 24 * elements + 4 * (items * width + width * columns) as u64,
            flops: elements * (2 * width as u64 + 18),
        },
        [
            batch.record(),
            schedule,
            z_gradient,
            width as u32,
            weight,
            columns as u32,
            &*features.values,
            &trained.first,
            &trained.second,
            &trained.touched,
            watch,
        ],
        "{items} items, D = {columns}, d = {width}"
    )
}
