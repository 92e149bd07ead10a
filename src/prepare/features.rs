//! Brings features into the order of the items.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::{FeatureInput, MissingFeatures, PrepareError};
use crate::data::{FeatureMatrix, FeatureType, NpyElement, NpyWriter};
use crate::{Error, Result, files};

/// How many ids a message names.
const EXAMPLES: usize = 5;

/// A modality's table and which row belongs to which item.
pub struct AlignedFeatures {
    matrix: FeatureMatrix,
    /// The row of each raw item, if it has one.
    row_of_item: Vec<Option<usize>>,
    /// An id that a row has, or what rows go by.
    example: String,
    /// The row of each new item; `None` takes `filling`.
    arranged: Vec<Option<usize>>,
    filling: Vec<f32>,
}

impl AlignedFeatures {
    /// Maps the table and finds the rows of `items`.
    pub fn open(input: &FeatureInput, items: &[String]) -> Result<Self> {
        let matrix = FeatureMatrix::open_all(&input.files)?;
        matrix.check_finite(matrix.rows())?;
        let (row_of_item, example) = if input.ids.is_empty() {
            let row = |item: &String| item.parse().ok().filter(|&row| row < matrix.rows());
            let example = format!(
                "without --feature-ids, rows go by number, 0 to {}",
                matrix.rows().saturating_sub(1)
            );
            (items.iter().map(row).collect(), example)
        } else {
            let rows = read_ids(&input.ids, &matrix)?;
            let first = rows.iter().min_by_key(|(_, row)| **row).map_or("", |(id, _)| id);
            let example = format!("its first id is {}", crate::data::excerpt(first.as_bytes()));
            (items.iter().map(|item| rows.get(item).copied()).collect(), example)
        };
        let features =
            Self { matrix, row_of_item, example, arranged: Vec::new(), filling: Vec::new() };
        features.check_any(0..items.len() as u32, items)?;
        Ok(features)
    }

    /// Whether a raw item has features.
    pub fn has(&self, item: u32) -> bool {
        self.row_of_item[item as usize].is_some()
    }

    /// Arranges rows in the `order` of the new items, and decides what items without a row get.
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
        self.check_any(order.iter().copied(), items)?;
        match missing {
            // Dropped items are no longer in the order.
            MissingFeatures::Error | MissingFeatures::DropItem => {
                let examples: Vec<String> = without
                    .iter()
                    .take(EXAMPLES)
                    .map(|id| crate::data::excerpt(id.as_bytes()))
                    .collect();
                let (place, count) = (self.matrix.place(), without.len());
                let (items, examples) = (order.len(), examples.join(", "));
                return Err(PrepareError::Missing { place, count, items, examples }.into());
            }
            MissingFeatures::Zero => {}
            MissingFeatures::Mean => self.filling = self.mean(),
        }
        warnings.push(format!(
            "{}: {} of {} items have no row and get {}",
            self.matrix.place(),
            without.len(),
            order.len(),
            if missing == MissingFeatures::Zero { "zeros" } else { "the mean of the others" }
        ));
        Ok(())
    }

    /// Refuses a table without a row for any of the items in `order`: it goes by other ids.
    fn check_any(
        &self,
        mut order: impl ExactSizeIterator<Item = u32> + Clone,
        items: &[String],
    ) -> Result<()> {
        let (count, first) = (order.len(), order.clone().next());
        let Some(first) = first.filter(|_| !order.any(|item| self.has(item))) else {
            return Ok(());
        };
        Err(Error::from(PrepareError::NoneMatch {
            place: self.matrix.place(),
            items: count,
            wanted: crate::data::excerpt(items[first as usize].as_bytes()),
            found: self.example.clone(),
        }))
    }

    /// Refuses numbers that would become infinite in f16.
    pub fn check_half(&self) -> Result<()> {
        let mut values = vec![0.0f32; self.matrix.columns()];
        for &row in self.arranged.iter().flatten() {
            self.matrix.copy_row(row, 0..values.len(), &mut values);
            let beyond = values.iter().position(|&value| !half::f16::from_f32(value).is_finite());
            if let Some(column) = beyond {
                let (place, value) = (self.matrix.place_of(row), values[column]);
                return Err(PrepareError::BeyondHalf { place, row, column, value }.into());
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

/// The row of each item id: one id per line, as many in all files as there are rows.
fn read_ids(paths: &[PathBuf], features: &FeatureMatrix) -> Result<HashMap<String, usize>> {
    let mut row_of_id = HashMap::with_capacity(features.rows());
    let mut found = 0;
    for path in paths {
        let text = std::fs::read_to_string(path).map_err(|error| Error::io(path, "read", error))?;
        // Editors put a mark before the first line, and empty lines after the last.
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text).trim_end();
        for (line, id) in text.lines().map(str::trim).enumerate() {
            if row_of_id.insert(id.to_owned(), found).is_some() {
                let id = crate::data::excerpt(id.as_bytes());
                return Err(
                    PrepareError::DoubleId { path: path.clone(), line: line + 1, id }.into()
                );
            }
            found += 1;
        }
    }
    if found != features.rows() {
        let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        return Err(Error::from(PrepareError::IdCount {
            ids: paths.join(", "),
            features: features.place(),
            found,
            rows: features.rows(),
        }));
    }
    Ok(row_of_id)
}
