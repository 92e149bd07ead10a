//! Features brought into the order of the items.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::{FeatureInput, MissingFeatures, PrepareError};
use crate::data::{FeatureMatrix, FeatureType, NpyElement, NpyWriter};
use crate::{Error, Result, files};

/// Ids named in a message.
const EXAMPLES: usize = 5;

/// A modality's table and which row belongs to which item.
pub struct AlignedFeatures {
    path: PathBuf,
    matrix: FeatureMatrix,
    /// The row of each raw item, where it has one.
    row_of_item: Vec<Option<usize>>,
    /// The row of each new item; `None` is filled with `filling`.
    arranged: Vec<Option<usize>>,
    filling: Vec<f32>,
}

impl AlignedFeatures {
    /// Maps the table and finds the rows of `items`.
    pub fn open(input: &FeatureInput, items: &[String]) -> Result<Self> {
        let matrix = FeatureMatrix::open(&input.file)?;
        matrix.check_finite(matrix.rows())?;
        let row_of_item = match &input.ids {
            Some(path) => {
                let rows = read_ids(path, &input.file, matrix.rows())?;
                items.iter().map(|item| rows.get(item).copied()).collect()
            }
            None => items
                .iter()
                .map(|item| item.parse().ok().filter(|&row| row < matrix.rows()))
                .collect(),
        };
        let path = input.file.clone();
        Ok(Self { path, matrix, row_of_item, arranged: Vec::new(), filling: Vec::new() })
    }

    /// Whether a raw item has features.
    pub fn has(&self, item: u32) -> bool {
        self.row_of_item[item as usize].is_some()
    }

    /// Takes the rows of the new items `order`, and decides what those without one get.
    pub fn arrange(
        &mut self,
        order: &[u32],
        items: &[String],
        missing: MissingFeatures,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        self.arranged = order.iter().map(|&item| self.row_of_item[item as usize]).collect();
        let columns = self.matrix.columns();
        self.filling = vec![0.0; columns];
        let without: Vec<&str> = order
            .iter()
            .filter(|&&item| !self.has(item))
            .map(|&item| items[item as usize].as_str())
            .collect();
        if without.is_empty() {
            return Ok(());
        }
        match missing {
            // Dropped items are not in the order any more.
            MissingFeatures::Error | MissingFeatures::DropItem => {
                let examples: Vec<String> = without
                    .iter()
                    .take(EXAMPLES)
                    .map(|id| crate::data::excerpt(id.as_bytes()))
                    .collect();
                let (path, count) = (self.path.clone(), without.len());
                let (items, examples) = (order.len(), examples.join(", "));
                return Err(PrepareError::Missing { path, count, items, examples }.into());
            }
            MissingFeatures::Zero => {}
            MissingFeatures::Mean => self.filling = self.mean(),
        }
        warnings.push(format!(
            "{}: {} of {} items have no row and get {}",
            self.path.display(),
            without.len(),
            order.len(),
            if missing == MissingFeatures::Zero { "zeros" } else { "the mean of the others" }
        ));
        Ok(())
    }

    /// Refuses numbers that would become infinite in f16.
    pub fn check_half(&self) -> Result<()> {
        let mut values = vec![0.0f32; self.matrix.columns()];
        for &row in self.arranged.iter().flatten() {
            self.matrix.copy_row(row, 0..values.len(), &mut values);
            let beyond = values.iter().position(|&value| !half::f16::from_f32(value).is_finite());
            if let Some(column) = beyond {
                let (path, value) = (self.path.clone(), values[column]);
                return Err(PrepareError::BeyondHalf { path, row, column, value }.into());
            }
        }
        Ok(())
    }

    /// The mean row of the new items that have one.
    fn mean(&self) -> Vec<f32> {
        let columns = self.matrix.columns();
        let (mut sums, mut row_values) = (vec![0.0f64; columns], vec![0.0f64; columns]);
        let rows: Vec<usize> = self.arranged.iter().flatten().copied().collect();
        for &row in &rows {
            self.matrix.copy_row(row, 0..columns, &mut row_values);
            for (sum, value) in sums.iter_mut().zip(&row_values) {
                *sum += value;
            }
        }
        sums.iter().map(|sum| (sum / rows.len().max(1) as f64) as f32).collect()
    }

    /// Writes the table in the new order.
    pub fn write(&self, path: &Path, feature_type: FeatureType) -> Result<()> {
        let element = match feature_type {
            FeatureType::F16 => NpyElement::F16,
            _ => NpyElement::F32,
        };
        let columns = self.matrix.columns();
        files::write_atomic(path, |writer| {
            let wrong = |error| Error::io(path, "write", error);
            let mut npy =
                NpyWriter::new(writer, element, self.arranged.len(), columns).map_err(wrong)?;
            let mut values = vec![0.0f32; columns];
            for row in &self.arranged {
                match row {
                    Some(row) => {
                        self.matrix.copy_row(*row, 0..columns, &mut values);
                        npy.write_f32(&values).map_err(wrong)?;
                    }
                    None => npy.write_f32(&self.filling).map_err(wrong)?,
                }
            }
            npy.finish().map(|_| ()).map_err(wrong)
        })
    }
}

/// The row of each item id: one id a line, as many as there are rows.
fn read_ids(path: &Path, features: &Path, rows: usize) -> Result<HashMap<String, usize>> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::io(path, "read", error))?;
    let ids: Vec<&str> = text.lines().map(str::trim).collect();
    if ids.len() != rows {
        return Err(Error::from(PrepareError::IdCount {
            ids: path.to_owned(),
            features: features.to_owned(),
            found: ids.len(),
            rows,
        }));
    }
    let mut row_of_id = HashMap::with_capacity(rows);
    for (row, id) in ids.into_iter().enumerate() {
        if row_of_id.insert(id.to_owned(), row).is_some() {
            let id = crate::data::excerpt(id.as_bytes());
            let path = path.to_owned();
            return Err(PrepareError::DoubleId { path, line: row + 1, id }.into());
        }
    }
    Ok(row_of_id)
}
