//! Raw feature tables: mapped `.npy` files, or numbers in memory (SPEC §8).

use std::any::TypeId;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::error::DataError;
use super::npy::Header;
use crate::mapped::MappedFile;
use crate::real::Real;

/// The type in which features are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeatureType {
    /// Half precision.
    F16,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
}

impl FeatureType {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

impl fmt::Display for FeatureType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::F64 => "f64",
        })
    }
}

/// A table of raw features, rows × columns, mapped from a file or held in memory.
///
/// A mapped table is never copied: rows are converted as they are read.
#[derive(Debug)]
pub struct FeatureMatrix {
    rows: usize,
    columns: usize,
    dtype: FeatureType,
    big_endian: bool,
    fortran: bool,
    storage: Storage,
    /// [`FeatureMatrix::fingerprint`] of so many rows, once it was asked for.
    fingerprint: OnceLock<(usize, u64)>,
}

#[derive(Debug)]
enum Storage {
    Mapped { file: MappedFile, start: usize },
    Memory(Vec<f32>),
}

impl FeatureMatrix {
    /// Maps a `.npy` file: two dimensions, f16, f32 or f64, either byte order, C or Fortran order.
    ///
    /// # Errors
    /// What is wrong with the file; its length must be exactly what its header says.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let file = MappedFile::open(path).map_err(|error| DataError::read(path, error))?;
        let header = Header::parse(&file, path)?;
        Ok(Self {
            rows: header.rows,
            columns: header.columns,
            dtype: header.dtype,
            big_endian: header.big_endian,
            fortran: header.fortran,
            storage: Storage::Mapped { file, start: header.length },
            fingerprint: OnceLock::new(),
        })
    }

    /// A table in memory, row-major.
    ///
    /// # Errors
    /// When `values` are not rows × columns numbers.
    pub fn from_f32(rows: usize, columns: usize, values: Vec<f32>) -> Result<Self, DataError> {
        if rows.checked_mul(columns) != Some(values.len()) || columns == 0 {
            return Err(DataError::Parts(format!(
                "{} feature values were given for {rows} rows × {columns} columns",
                values.len()
            )));
        }
        Ok(Self {
            rows,
            columns,
            dtype: FeatureType::F32,
            big_endian: false,
            fortran: false,
            storage: Storage::Memory(values),
            fingerprint: OnceLock::new(),
        })
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

    /// The mapped file, if there is one.
    pub fn path(&self) -> Option<&Path> {
        match &self.storage {
            Storage::Mapped { file, .. } => Some(file.path()),
            Storage::Memory(_) => None,
        }
    }

    /// Bytes of all elements as they are stored.
    pub fn bytes(&self) -> usize {
        self.rows * self.columns * self.dtype.size()
    }

    fn raw(&self) -> &[u8] {
        match &self.storage {
            Storage::Mapped { file, start } => &file[*start..],
            Storage::Memory(values) => bytemuck::cast_slice(values),
        }
    }

    /// A row as it is stored, where that is f32 in this machine's byte order, row after row.
    #[inline]
    pub fn row_f32(&self, row: usize) -> Option<&[f32]> {
        if self.dtype != FeatureType::F32
            || self.fortran
            || self.big_endian != cfg!(target_endian = "big")
        {
            return None;
        }
        let bytes = &self.raw()[row * self.columns * 4..(row + 1) * self.columns * 4];
        // Misaligned only where a header's length is no multiple of 4, which old writers made.
        bytemuck::try_cast_slice(bytes).ok()
    }

    /// A row as it is stored, where that is f16 in this machine's byte order, row after row.
    fn row_f16(&self, row: usize) -> Option<&[f16]> {
        if self.dtype != FeatureType::F16
            || self.fortran
            || self.big_endian != cfg!(target_endian = "big")
        {
            return None;
        }
        let bytes = &self.raw()[row * self.columns * 2..(row + 1) * self.columns * 2];
        bytemuck::try_cast_slice(bytes).ok()
    }

    /// Copies a part of a row into `out`, converted; `out` is as long as `columns`.
    pub fn copy_row<T: Real>(&self, row: usize, columns: Range<usize>, out: &mut [T]) {
        let raw = self.raw();
        if let Some(halves) = self.row_f16(row)
            && TypeId::of::<T>() == TypeId::of::<f32>()
        {
            // T is f32: the cast changes nothing but the name of the type. A slice at a time, the
            // processor's own conversion is used.
            let out: &mut [f32] = bytemuck::cast_slice_mut(&mut out[..columns.len()]);
            halves[columns].convert_to_f32_slice(out);
            return;
        }
        match self.dtype {
            FeatureType::F16 => self.copy::<T, 2>(raw, row, columns, out, |bytes| {
                T::from_f32(f16::from_le_bytes(bytes).to_f32())
            }),
            FeatureType::F32 => self.copy::<T, 4>(raw, row, columns, out, |bytes| {
                T::from_f32(f32::from_le_bytes(bytes))
            }),
            FeatureType::F64 => self.copy::<T, 8>(raw, row, columns, out, |bytes| {
                T::from_f64(f64::from_le_bytes(bytes))
            }),
        }
    }

    fn copy<T: Real, const SIZE: usize>(
        &self,
        raw: &[u8],
        row: usize,
        columns: Range<usize>,
        out: &mut [T],
        convert: impl Fn([u8; SIZE]) -> T,
    ) {
        let elements = raw.as_chunks::<SIZE>().0;
        let (start, stride) = if self.fortran {
            (columns.start * self.rows + row, self.rows)
        } else {
            (row * self.columns + columns.start, 1)
        };
        for (out, bytes) in out.iter_mut().zip(elements[start..].iter().step_by(stride)) {
            let mut bytes = *bytes;
            if self.big_endian {
                bytes.reverse();
            }
            *out = convert(bytes);
        }
    }

    /// Refuses a file that was written to or truncated since it was mapped: what was read of it may be
    /// anything.
    ///
    /// # Errors
    /// [`DataError::Changed`].
    pub fn check_unchanged(&self) -> Result<(), DataError> {
        match &self.storage {
            Storage::Mapped { file, .. } if !file.is_unchanged() => {
                Err(DataError::Changed { path: file.path().to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// A hash of the first `rows` rows: of the numbers, in whatever type and order they are stored.
    ///
    /// Rows are hashed side by side and their hashes in order, so it is the same on any number of
    /// threads. All rows are read, the first time it is asked for.
    pub fn fingerprint(&self, rows: usize) -> u64 {
        let &(of_rows, hash) = self.fingerprint.get_or_init(|| (rows, self.hash(rows)));
        if of_rows == rows { hash } else { self.hash(rows) }
    }

    fn hash(&self, rows: usize) -> u64 {
        // Of two words that differ anywhere, the products differ in their upper halves.
        let mix = |hash: u64, word: u64| {
            let mixed = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed ^ mixed >> 32
        };
        let of_row = |values: &mut Vec<f64>, row: usize| {
            self.copy_row(row, 0..self.columns, values);
            values.iter().fold(self.columns as u64, |hash, value| mix(hash, value.to_bits()))
        };
        let hashes: Vec<u64> = (0..rows)
            .into_par_iter()
            .with_min_len(16)
            .map_init(|| vec![0.0f64; self.columns], of_row)
            .collect();
        hashes.into_iter().fold(rows as u64, mix)
    }

    /// Refuses NaN and infinities in the first `rows` rows, in parallel.
    ///
    /// # Errors
    /// [`DataError::NonFinite`] naming the first such row and column.
    pub fn check_finite(&self, rows: usize) -> Result<(), DataError> {
        let place = || match self.path() {
            Some(path) => path.display().to_string(),
            None => "features in memory".to_owned(),
        };
        // Rows of a Fortran table lie far apart: columns are walked instead, as they are stored.
        let first = if self.fortran {
            (0..self.columns)
                .into_par_iter()
                .filter_map(|column| {
                    let mut value = [0.0f64];
                    (0..rows).find_map(|row| {
                        self.copy_row(row, column..column + 1, &mut value);
                        (!value[0].is_finite()).then_some((row, column))
                    })
                })
                .min()
        } else {
            (0..rows)
                .into_par_iter()
                .with_min_len(16)
                .map_init(
                    || vec![0.0f32; self.columns],
                    |values, row| {
                        let row_values = match self.row_f32(row) {
                            Some(stored) => stored,
                            None => {
                                self.copy_row(row, 0..self.columns, values);
                                values
                            }
                        };
                        let bad = row_values.iter().position(|value| !value.is_finite());
                        bad.map(|column| (row, column))
                    },
                )
                .find_first(Option::is_some)
                .flatten()
        };
        let Some((row, column)) = first else { return Ok(()) };
        let mut value = [0.0f64];
        self.copy_row(row, column..column + 1, &mut value);
        Err(DataError::NonFinite { place: place(), row, column, value: value[0] })
    }
}
