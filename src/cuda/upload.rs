//! Copies tables of features to a device, converting their numbers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::device::Device;
use super::memory::Memory;
use super::staging::PIECE;
use super::stored::StoredType;
use crate::data::FeatureMatrix;
use crate::{Error, Result};

/// Bytes of rows that a thread converts and copies at a time.
const COPY_BYTES: usize = PIECE;

/// Bytes read before the file's pages are released.
const RELEASED_BYTES: u64 = 32 << 20;

/// How many rows of a table are converted and copied at a time.
fn rows_at_a_time(row_bytes: usize, rows: usize) -> usize {
    (COPY_BYTES / row_bytes).clamp(1, rows.max(1))
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
