//! Raw feature tables: mapped files, or numbers in memory (SPEC §8).

use std::any::TypeId;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::error::DataError;
use super::feature_file::{self, FeatureFile};
use crate::mapped::MappedFile;
use crate::real::Real;

/// The type in which features are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeatureType {
    /// Half precision.
    F16,
    /// Brain floating point: the upper half of single precision.
    Bf16,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
}

impl FeatureType {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

impl fmt::Display for FeatureType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
        })
    }
}

/// Where a table's elements lie in its bytes, and in which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    /// Bytes before the first element.
    pub start: usize,
    /// The first dimension.
    pub rows: usize,
    /// The second dimension.
    pub columns: usize,
    /// The type of an element.
    pub dtype: FeatureType,
    /// Whether elements are stored most significant byte first.
    pub big_endian: bool,
    /// Whether columns are stored one after another, instead of rows.
    pub fortran: bool,
}

/// A table of raw features, rows × columns, mapped from one file or several, or held in memory.
///
/// A mapped table is never copied: rows are converted as they are read. The rows of several files
/// follow one another in the order of the files.
#[derive(Debug)]
pub struct FeatureMatrix {
    rows: usize,
    columns: usize,
    dtype: FeatureType,
    parts: Vec<Part>,
    /// The first row of each part.
    first_rows: Vec<usize>,
    /// [`FeatureMatrix::fingerprint`] and its number of rows, once all of them have been read.
    fingerprint: OnceLock<(usize, u64)>,
}

/// The rows of one file.
#[derive(Debug)]
struct Part {
    form: Form,
    storage: Storage,
}

enum Storage {
    Mapped { file: FeatureFile, map: MappedFile },
    Memory(Arc<SharedNumbers>),
}

/// Numbers owned elsewhere: by a vector, or by another language's array.
pub type SharedNumbers = dyn AsRef<[f32]> + Send + Sync;

impl fmt::Debug for Storage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mapped { file, .. } => write!(formatter, "Mapped({file})"),
            Self::Memory(_) => formatter.write_str("Memory"),
        }
    }
}

impl FeatureMatrix {
    /// Maps one file; see [`FeatureMatrix::open_all`].
    ///
    /// # Errors
    /// A [`DataError`] with the problem of the file.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        Self::open_all(&[FeatureFile::new(path)])
    }

    /// Maps files whose rows make one table, in this order.
    ///
    /// A file is a `.npy` array of two dimensions, f16, f32 or f64, in either byte order, C or
    /// Fortran order, or a two-dimensional tensor of a `.safetensors` file, f16, bf16, f32 or f64.
    ///
    /// # Errors
    /// A [`DataError`] with the problem of a file, or for a file whose width or type differs from
    /// the first.
    pub fn open_all(files: &[FeatureFile]) -> Result<Self, DataError> {
        let mut parts: Vec<Part> = Vec::with_capacity(files.len());
        for file in files {
            let (form, map) = feature_file::map(file)?;
            if let (Some(first), Some(first_file)) = (parts.first(), files.first()) {
                let differs = |found: String, expected: String| {
                    let (file, first) = (file.to_string(), first_file.to_string());
                    DataError::FilesDiffer { file, found, first, expected }
                };
                if form.columns != first.form.columns {
                    let columns = |form: Form| match form.columns {
                        1 => "1 column".to_owned(),
                        count => format!("{count} columns"),
                    };
                    return Err(differs(columns(form), columns(first.form)));
                }
                if form.dtype != first.form.dtype {
                    let numbers = |form: Form| format!("numbers of type {}", form.dtype);
                    return Err(differs(numbers(form), numbers(first.form)));
                }
            }
            parts.push(Part { form, storage: Storage::Mapped { file: file.clone(), map } });
        }
        Self::of_parts(parts)
    }

    /// A table in memory, row-major.
    ///
    /// # Errors
    /// [`DataError::Parts`] if `values` are not rows × columns numbers.
    pub fn from_f32(rows: usize, columns: usize, values: Vec<f32>) -> Result<Self, DataError> {
        Self::from_shared(rows, columns, Arc::new(values))
    }

    /// A table in memory that is shared with others, row-major; it is not copied. Its numbers must
    /// not change while it exists.
    ///
    /// # Errors
    /// [`DataError::Parts`] if `values` are not rows × columns numbers.
    pub fn from_shared(
        rows: usize,
        columns: usize,
        values: Arc<SharedNumbers>,
    ) -> Result<Self, DataError> {
        let count = (*values).as_ref().len();
        if rows.checked_mul(columns) != Some(count) || columns == 0 {
            return Err(DataError::Parts(format!(
                "{count} feature values were given for {rows} rows × {columns} columns"
            )));
        }
        let form = Form {
            start: 0,
            rows,
            columns,
            dtype: FeatureType::F32,
            big_endian: cfg!(target_endian = "big"),
            fortran: false,
        };
        Self::of_parts(vec![Part { form, storage: Storage::Memory(values) }])
    }

    fn of_parts(parts: Vec<Part>) -> Result<Self, DataError> {
        let Some(first) = parts.first() else {
            return Err(DataError::Parts("no file of features was given".to_owned()));
        };
        let (columns, dtype) = (first.form.columns, first.form.dtype);
        let mut rows = 0;
        let mut first_rows = Vec::with_capacity(parts.len());
        for part in &parts {
            first_rows.push(rows);
            rows += part.form.rows;
        }
        Ok(Self { rows, columns, dtype, parts, first_rows, fingerprint: OnceLock::new() })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// D_m, the number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The type of the stored elements.
    pub fn dtype(&self) -> FeatureType {
        self.dtype
    }

    /// The table's name in messages: its file, the first file and how many more, or that it is in
    /// memory.
    pub fn place(&self) -> String {
        let first = self.parts[0].place();
        match self.parts.len() - 1 {
            0 => first,
            1 => format!("{first} and 1 file more"),
            more => format!("{first} and {more} files more"),
        }
    }

    /// The place of a row in messages: its file and, if there are several, the rows of the table in
    /// that file.
    pub fn place_of(&self, row: usize) -> String {
        let index = self.index_of(row);
        let part = &self.parts[index];
        if self.parts.len() == 1 {
            return part.place();
        }
        let first = self.first_rows[index];
        format!("{} (rows {first} to {})", part.place(), first + part.form.rows - 1)
    }

    /// Bytes of all elements as stored.
    pub fn bytes(&self) -> usize {
        self.rows * self.columns * self.dtype.size()
    }

    fn index_of(&self, row: usize) -> usize {
        // Row 0 belongs to the first part.
        self.first_rows.partition_point(|&first| first <= row).saturating_sub(1)
    }

    /// The part that holds a row, and the row's number in it.
    #[inline]
    fn part_of(&self, row: usize) -> (&Part, usize) {
        match self.parts.as_slice() {
            [only] => (only, row),
            parts => {
                let index = self.index_of(row);
                (&parts[index], row - self.first_rows[index])
            }
        }
    }

    /// A stored row, if the table is row-major f32 in this machine's byte order.
    #[inline]
    pub fn row_f32(&self, row: usize) -> Option<&[f32]> {
        let (part, row) = self.part_of(row);
        part.row(FeatureType::F32, row)
    }

    /// Copies and converts a part of a row into `out`, which is as long as `columns`.
    pub fn copy_row<T: Real>(&self, row: usize, columns: Range<usize>, out: &mut [T]) {
        let (part, row) = self.part_of(row);
        part.copy_row(row, columns, out);
    }

    /// The bytes of a stored row, if the table is row-major `dtype` in this machine's byte order.
    #[inline]
    pub(crate) fn row_bytes(&self, dtype: FeatureType, row: usize) -> Option<&[u8]> {
        let (part, row) = self.part_of(row);
        part.row_bytes(dtype, row)
    }

    /// Tells the system that the mapped pages of some rows have been read and are not needed soon.
    ///
    /// They then no longer count as memory of this process, which would otherwise seem to hold the
    /// whole file. The system may keep them in its page cache.
    pub fn release(&self, rows: Range<usize>) {
        for (part, &first) in self.parts.iter().zip(&self.first_rows) {
            let [start, end] =
                [rows.start, rows.end].map(|row| row.saturating_sub(first).min(part.form.rows));
            if start < end {
                part.release(start..end);
            }
        }
    }

    /// Refuses NaN and infinities in the first `rows` rows, in parallel.
    ///
    /// # Errors
    /// [`DataError::NonFinite`] with the first such row and column.
    pub fn check_finite(&self, rows: usize) -> Result<(), DataError> {
        self.check_finite_with(rows, &mut |_| ())
    }

    /// [`FeatureMatrix::check_finite`], telling `progress` how many rows have been read.
    ///
    /// # Errors
    /// The errors of [`FeatureMatrix::check_finite`].
    pub fn check_finite_with(
        &self,
        rows: usize,
        progress: &mut dyn FnMut(usize),
    ) -> Result<(), DataError> {
        let mut fingerprint = rows as u64;
        for (part, &first) in self.parts.iter().zip(&self.first_rows) {
            let rows = rows.saturating_sub(first).min(part.form.rows);
            let slice = part.rows_at_a_time();
            for start in (0..rows).step_by(slice) {
                let slice = start..rows.min(start + slice);
                progress(first + start);
                match part.hash_finite(slice.clone()) {
                    Ok(hashes) => fingerprint = hashes.into_iter().fold(fingerprint, mix),
                    Err((row, column)) => {
                        let row = first + row;
                        let mut value = [0.0f64];
                        self.copy_row(row, column..column + 1, &mut value);
                        let place = self.place_of(row);
                        return Err(DataError::NonFinite { place, row, column, value: value[0] });
                    }
                }
                part.release(slice);
            }
        }
        progress(rows);
        // An earlier check of the same rows may have set it.
        self.fingerprint.set((rows, fingerprint)).ok();
        Ok(())
    }

    /// A hash of the first `rows` rows as numbers in f32, whatever their stored type, order and
    /// files.
    ///
    /// The check for finite numbers computes it on the way; without such a check all rows are read.
    pub fn fingerprint(&self, rows: usize) -> u64 {
        match self.fingerprint.get() {
            Some(&(of_rows, fingerprint)) if of_rows == rows => fingerprint,
            _ => {
                let hashes: Vec<u64> = (0..rows)
                    .into_par_iter()
                    .with_min_len(16)
                    .map_init(Vec::new, |converted, row| {
                        let (part, row) = self.part_of(row);
                        hash_values(part.row_in_f32(row, converted))
                    })
                    .collect();
                hashes.into_iter().fold(rows as u64, mix)
            }
        }
    }

    /// Refuses files that were modified or truncated since they were mapped: anything may have been
    /// read from them.
    ///
    /// # Errors
    /// [`DataError::Changed`].
    pub fn check_unchanged(&self) -> Result<(), DataError> {
        self.parts.iter().try_for_each(|part| match &part.storage {
            Storage::Mapped { map, .. } if !map.is_unchanged() => {
                Err(DataError::Changed { path: map.path().to_owned() })
            }
            _ => Ok(()),
        })
    }
}

/// Mixes a word into a hash. Products of words that differ anywhere differ in their upper halves,
/// which are folded into the lower ones.
pub(super) fn mix(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 32
}

/// Lanes in which a row's numbers are hashed, enough to fill vectors of any width.
const LANES: usize = 32;

/// A hash of a row.
fn hash_values(values: &[f32]) -> u64 {
    // Each step maps different words to different words.
    let step = |lane: &mut u32, value: f32| {
        *lane = (*lane ^ value.to_bits()).wrapping_mul(0x9e37_79b1);
        *lane ^= *lane >> 15;
    };
    let mut lanes = [0x243f_6a88u32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &value)| step(lane, value));
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, &value)| step(lane, value));
    lanes.into_iter().fold(values.len() as u64, |hash, lane| mix(hash, u64::from(lane)))
}

/// Bytes of rows read before their pages are released.
const SLICE_BYTES: usize = 64 << 20;

impl Part {
    fn place(&self) -> String {
        match &self.storage {
            Storage::Mapped { file, .. } => file.to_string(),
            Storage::Memory(_) => "features in memory".to_owned(),
        }
    }

    fn raw(&self) -> &[u8] {
        match &self.storage {
            Storage::Mapped { map, .. } => &map[self.form.start..],
            Storage::Memory(values) => bytemuck::cast_slice((**values).as_ref()),
        }
    }

    /// A stored row, if the part is row-major `dtype` in this machine's byte order.
    #[inline]
    fn row<E: bytemuck::Pod>(&self, dtype: FeatureType, row: usize) -> Option<&[E]> {
        // Misaligned only if a header's length is odd, as some old writers made it.
        bytemuck::try_cast_slice(self.row_bytes(dtype, row)?).ok()
    }

    #[inline]
    fn row_bytes(&self, dtype: FeatureType, row: usize) -> Option<&[u8]> {
        let form = &self.form;
        if form.dtype != dtype || form.fortran || form.big_endian != cfg!(target_endian = "big") {
            return None;
        }
        let row_bytes = form.columns * dtype.size();
        Some(&self.raw()[row * row_bytes..(row + 1) * row_bytes])
    }

    /// Rows read before their pages are released: all rows if each lies in all pages.
    fn rows_at_a_time(&self) -> usize {
        match self.form.fortran {
            true => self.form.rows.max(1),
            false => (SLICE_BYTES / (self.form.columns * self.form.dtype.size())).max(1),
        }
    }

    fn release(&self, rows: Range<usize>) {
        let Storage::Mapped { map, .. } = &self.storage else { return };
        let row_bytes = match self.form.fortran {
            // A row has a piece of every column, so its pages hold other rows too.
            true => return,
            false => self.form.columns * self.form.dtype.size(),
        };
        let (offset, length) = (self.form.start + rows.start * row_bytes, rows.len() * row_bytes);
        map.release(offset..offset + length);
    }

    fn copy_row<T: Real>(&self, row: usize, columns: Range<usize>, out: &mut [T]) {
        if TypeId::of::<T>() == TypeId::of::<f32>() {
            // T is f32 here, so the casts are identities. Converting a slice at a time uses the
            // processor's own conversion.
            if let Some(halves) = self.row::<f16>(FeatureType::F16, row) {
                let out: &mut [f32] = bytemuck::cast_slice_mut(&mut out[..columns.len()]);
                halves[columns].convert_to_f32_slice(out);
                return;
            }
            if let Some(halves) = self.row::<bf16>(FeatureType::Bf16, row) {
                let out: &mut [f32] = bytemuck::cast_slice_mut(&mut out[..columns.len()]);
                halves[columns].convert_to_f32_slice(out);
                return;
            }
        }
        match self.form.dtype {
            FeatureType::F16 => self.copy::<T, 2>(row, columns, out, |bytes| {
                T::from_f32(f16::from_le_bytes(bytes).to_f32())
            }),
            FeatureType::Bf16 => self.copy::<T, 2>(row, columns, out, |bytes| {
                T::from_f32(bf16::from_le_bytes(bytes).to_f32())
            }),
            FeatureType::F32 => {
                self.copy::<T, 4>(row, columns, out, |bytes| T::from_f32(f32::from_le_bytes(bytes)))
            }
            FeatureType::F64 => {
                self.copy::<T, 8>(row, columns, out, |bytes| T::from_f64(f64::from_le_bytes(bytes)))
            }
        }
    }

    fn copy<T: Real, const SIZE: usize>(
        &self,
        row: usize,
        columns: Range<usize>,
        out: &mut [T],
        convert: impl Fn([u8; SIZE]) -> T,
    ) {
        let form = &self.form;
        let elements = self.raw().as_chunks::<SIZE>().0;
        let (start, stride) = if form.fortran {
            (columns.start * form.rows + row, form.rows)
        } else {
            (row * form.columns + columns.start, 1)
        };
        for (out, bytes) in out.iter_mut().zip(elements[start..].iter().step_by(stride)) {
            let mut bytes = *bytes;
            if form.big_endian {
                bytes.reverse();
            }
            *out = convert(bytes);
        }
    }

    /// The hashes of some rows, or row and column of the first number that is not finite.
    fn hash_finite(&self, rows: Range<usize>) -> Result<Vec<u64>, (usize, usize)> {
        let hash = |converted: &mut Vec<f32>, row| {
            let values = self.row_in_f32(row, converted);
            match first_infinite(values) {
                Some(column) => Err((row, column)),
                None => Ok(hash_values(values)),
            }
        };
        // Collected in order, so that the first such row is reported.
        let hashes: Vec<_> =
            rows.into_par_iter().with_min_len(16).map_init(Vec::new, hash).collect();
        hashes.into_iter().collect()
    }

    /// A row in f32: as stored, or converted into `converted`.
    fn row_in_f32<'a>(&'a self, row: usize, converted: &'a mut Vec<f32>) -> &'a [f32] {
        if let Some(stored) = self.row(FeatureType::F32, row) {
            return stored;
        }
        converted.resize(self.form.columns, 0.0);
        self.copy_row(row, 0..self.form.columns, converted);
        converted
    }
}

/// The position of the first number that is not finite. The first pass does not stop early: it
/// checks many numbers at a time, and there is rarely one to find.
fn first_infinite(values: &[f32]) -> Option<usize> {
    let infinite = |value: &f32| !value.is_finite();
    let any = values.iter().fold(false, |any, value| any | infinite(value));
    any.then(|| values.iter().position(infinite)).flatten()
}
