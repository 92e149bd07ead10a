//! Raw features on a device: the projection, its gradient, and Adam by rows (`project.cu`,
//! `project_backward.cu`, `adam_rows.cu`).

use std::fmt;
use std::iter;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::batches::CudaBatch;
use super::dense::{Slices, Tile, column_sums, partial_sums};
use super::device::Device;
use super::launch::{Address, Launch, launch};
use super::memory::Memory;
use super::shared::Shared;
use super::staging::PIECE;
use super::stream::FeatureStream;
use crate::backend::{BatchRooms, FeatureState};
use crate::config::{FeatureTypeChoice, TrainConfig};
use crate::data::{FeatureMatrix, FeatureType};
use crate::{Error, Result};

/// The type in which a device stores frozen features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoredType {
    /// Single precision.
    F32,
    /// Half precision; exact for features whose file is in f16.
    F16,
    /// Brain floating point: f32's range, 8 bits of precision.
    Bf16,
}

impl fmt::Display for StoredType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

impl StoredType {
    /// The type that holds features of a file's type: half-precision ones as they are, wider ones
    /// in f32.
    pub fn of(file: FeatureType) -> Self {
        match file {
            FeatureType::F16 => Self::F16,
            FeatureType::Bf16 => Self::Bf16,
            FeatureType::F32 | FeatureType::F64 => Self::F32,
        }
    }

    /// The type that a setting names; `None` if it follows the file, see [`StoredType::of`].
    pub fn chosen(choice: FeatureTypeChoice) -> Option<Self> {
        match choice {
            FeatureTypeChoice::Auto => None,
            FeatureTypeChoice::F32 => Some(Self::F32),
            FeatureTypeChoice::F16 => Some(Self::F16),
            FeatureTypeChoice::Bf16 => Some(Self::Bf16),
        }
    }

    /// The type in which a run stores features: f32 for trained ones.
    pub(crate) fn of_run(config: &TrainConfig, features: &FeatureMatrix) -> Self {
        match config.freeze_features {
            true => Self::chosen(config.feature_type).unwrap_or(Self::of(features.dtype())),
            false => Self::F32,
        }
    }

    /// Bytes of a row of features as a run stores them.
    pub(crate) fn row_bytes(config: &TrainConfig, features: &FeatureMatrix) -> usize {
        features.columns() * Self::of_run(config, features).size()
    }

    /// The file type whose numbers are stored as they are.
    fn in_file(self) -> FeatureType {
        match self {
            Self::F32 => FeatureType::F32,
            Self::F16 => FeatureType::F16,
            Self::Bf16 => FeatureType::Bf16,
        }
    }

    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Bytes of rows that a thread converts and copies at a time.
const COPY_BYTES: usize = PIECE;

/// Bytes read before the file's pages are released.
const RELEASED_BYTES: u64 = 32 << 20;

/// How many rows of a table are converted and copied at a time.
fn rows_at_a_time(row_bytes: usize, rows: usize) -> usize {
    (COPY_BYTES / row_bytes).clamp(1, rows.max(1))
}

/// The name of trained features in an error about memory.
const TRAINED: &str = "trained features (values and two moments)";

/// A snapshot of a buffer.
#[derive(Debug)]
pub enum CudaKept {
    /// On the device, where copying is fast.
    Device(Memory<u8>),
    /// In the host's memory.
    Host(Vec<f32>),
}

impl CudaKept {
    /// Takes the copy on the device; if other programs have taken the memory that was counted on,
    /// reads the values by `read` instead.
    ///
    /// # Errors
    /// [`Error::DeviceOperation`].
    pub(super) fn new(
        copy: Result<Memory<u8>>,
        read: impl FnOnce() -> Result<Vec<f32>>,
    ) -> Result<Self> {
        match copy {
            Err(error @ Error::DeviceMemory { .. }) => {
                tracing::warn!(%error, "the best epoch's model is kept in the host's memory");
                read().map(Self::Host)
            }
            copy => copy.map(Self::Device),
        }
    }

    /// Reads the snapshot.
    pub(super) fn read(self) -> Result<Vec<f32>> {
        match self {
            Self::Device(memory) => memory.read_as(),
            Self::Host(values) => Ok(values),
        }
    }
}

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
    /// [`Error::DeviceMemory`] and [`Error::DeviceOperation`].
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
    /// [`Error::DeviceMemory`] and [`Error::DeviceOperation`].
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
    /// [`Error::DeviceOperation`].
    pub fn values(&self) -> Result<Option<Vec<f32>>> {
        self.trained.as_ref().map(|_| self.values.read_as()).transpose()
    }

    /// Takes a snapshot of the values of trained features, on the device or else in host memory;
    /// `None` for frozen ones.
    ///
    /// # Errors
    /// [`Error::DeviceOperation`].
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
    /// [`Error::DeviceOperation`].
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

/// Called while features are copied to the device: with the file, the bytes done and all bytes.
pub type UploadProgress = dyn Fn(&str, u64, u64) + Send + Sync;

/// Which rows of a table to copy.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a> {
    /// This many from the first on.
    First(usize),
    /// These, in this order.
    Chosen(&'a [u32]),
}

impl Rows<'_> {
    fn count(self) -> usize {
        match self {
            Self::First(count) => count,
            Self::Chosen(rows) => rows.len(),
        }
    }

    fn number(self, index: usize) -> usize {
        match self {
            Self::First(_) => index,
            Self::Chosen(rows) => rows[index] as usize,
        }
    }
}

/// Copies the first `rows` rows of a table, converting a part at a time.
///
/// # Errors
/// [`Error::Setting`] for a number that is infinite in the stored type, [`Error::DeviceMemory`] and
/// [`Error::DeviceOperation`].
pub(super) fn frozen_table(
    device: &Arc<Device>,
    matrix: &FeatureMatrix,
    rows: usize,
    stored: StoredType,
    progress: &UploadProgress,
) -> Result<Memory<u8>> {
    let bytes = rows * matrix.columns() * stored.size();
    let mut values = Memory::<u8>::new(device, bytes, "frozen features")?;
    upload_rows(device, &mut values, matrix, stored, Rows::First(rows), progress)?;
    Ok(values)
}

/// Fills the beginning of `memory` with rows of a table in the stored type, converting a part at a
/// time.
pub(super) fn upload_rows(
    device: &Device,
    memory: &mut Memory<u8>,
    matrix: &FeatureMatrix,
    stored: StoredType,
    rows: Rows<'_>,
    progress: &UploadProgress,
) -> Result<()> {
    let row_bytes = matrix.columns() * stored.size();
    let (bytes, place) = (rows.count() * row_bytes, matrix.place());
    let part = rows_at_a_time(row_bytes, rows.count()) * row_bytes;
    let first_beyond = AtomicUsize::new(usize::MAX);
    // The number of bytes done, and the end of the last of them.
    let done = Mutex::new((0, 0));
    progress(&place, 0, bytes as u64);
    device.upload_parts(memory, bytes, part, "features", |range, part| {
        let (first, length) = (range.start / row_bytes, range.len() as u64);
        let mut scratch = Vec::new();
        for (index, bytes) in part.chunks_exact_mut(row_bytes).enumerate() {
            let row = rows.number(first + index);
            if !row_to_bytes(matrix, row, stored, &mut scratch, bytes) {
                first_beyond.fetch_min(row, Ordering::Relaxed);
            }
        }
        // One thread reports at a time, so that the count only grows.
        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
        let (done, end) = &mut *done;
        *done += length;
        *end = range.end.max(*end);
        progress(&place, *done, bytes as u64);
        // Only now and then, because releasing pages interrupts every thread. Parts begin in the
        // file's order, so all up to `end` are done except those in progress, whose pages are read
        // again.
        if let Rows::First(_) = rows
            && *done % RELEASED_BYTES < length
        {
            matrix.release(0..*end / row_bytes);
        }
    })?;
    matrix.release(0..matrix.rows());
    match first_beyond.into_inner() {
        usize::MAX => Ok(()),
        row => Err(beyond(stored, matrix, row)),
    }
}

/// Writes a row of finite numbers in the stored type, in this machine's byte order, which is also
/// the device's. Returns false if one of them becomes infinite.
pub(super) fn row_to_bytes(
    matrix: &FeatureMatrix,
    row: usize,
    stored: StoredType,
    scratch: &mut Vec<f32>,
    bytes: &mut [u8],
) -> bool {
    if let Some(same) = matrix.row_bytes(stored.in_file(), row) {
        bytes.copy_from_slice(same);
        return true;
    }
    scratch.resize(matrix.columns(), 0.0);
    matrix.copy_row(row, 0..matrix.columns(), scratch);
    match stored {
        StoredType::F32 => {
            bytes.copy_from_slice(bytemuck::cast_slice(scratch));
            true
        }
        // Rows of two-byte numbers in page-locked memory begin at even addresses, as the casts
        // need.
        StoredType::F16 => {
            let halves: &mut [f16] = bytemuck::cast_slice_mut(bytes);
            halves.convert_from_f32_slice(scratch);
            halves.iter().all(|half| half.is_finite())
        }
        StoredType::Bf16 => {
            let halves: &mut [bf16] = bytemuck::cast_slice_mut(bytes);
            halves.convert_from_f32_slice(scratch);
            halves.iter().all(|half| half.is_finite())
        }
    }
}

/// The error for a row with a number that the stored type cannot hold.
pub(super) fn beyond(stored: StoredType, matrix: &FeatureMatrix, row: usize) -> Error {
    let mut values = vec![0.0f32; matrix.columns()];
    matrix.copy_row(row, 0..matrix.columns(), &mut values);
    let infinite = |value: f32| match stored {
        StoredType::F32 => false,
        StoredType::F16 => f16::from_f32(value).is_infinite(),
        StoredType::Bf16 => bf16::from_f32(value).is_infinite(),
    };
    let column = values.iter().position(|&value| infinite(value)).unwrap_or_default();
    let place = matrix.place_of(row);
    let problem = format!(
        "{stored} cannot hold row {row}, column {column} of {place}, which is {}; give a type of \
         wider range, f32 or bf16",
        values[column]
    );
    Error::setting("--feature-type", problem)
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
