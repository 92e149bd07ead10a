//! Raw feature tables.
use crate::real::Real;
use std::ops::Range;
/// A table of raw features, rows × columns, mapped from a file or held in memory.
#[derive(Debug)]
pub struct FeatureMatrix {
    columns: usize,
    values: Vec<f32>,
}
impl FeatureMatrix {
    /// stub
    pub fn from_f32(
        _rows: usize,
        columns: usize,
        values: Vec<f32>,
    ) -> Result<Self, super::DataError> {
        Ok(Self { columns, values })
    }
    /// stub
    pub fn columns(&self) -> usize {
        self.columns
    }
    /// stub
    pub fn rows(&self) -> usize {
        self.values.len() / self.columns
    }
    /// stub
    pub fn row_f32(&self, row: usize) -> Option<&[f32]> {
        Some(&self.values[row * self.columns..(row + 1) * self.columns])
    }
    /// stub
    pub fn copy_row<T: Real>(&self, row: usize, columns: Range<usize>, out: &mut [T]) {
        for (o, c) in out.iter_mut().zip(columns) {
            *o = T::from_f32(self.values[row * self.columns + c]);
        }
    }
}
