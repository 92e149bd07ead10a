//! The narrow operand of a product, cut into panels that a tile reads line by line.

use std::ops::Range;

use rayon::prelude::*;

use super::Rows;
use super::tile::tile_shape;
use crate::real::Real;

/// How many rows ahead of the packed one are prefetched.
const ROWS_AHEAD: usize = 4;

/// A depth × columns matrix, cut into panels as wide as a tile, each stored line by line and padded
/// with zeros.
pub struct Packed<T> {
    values: Vec<T>,
    depth: usize,
    columns: usize,
    width: usize,
}

impl<T: Real> Packed<T> {
    /// Packs Bᵀ: row j of `source` becomes column j of B.
    pub fn from_transposed(source: &impl Rows<T>, columns: usize, depth: usize) -> Self {
        let (_, width) = tile_shape::<T>();
        let mut packed = Self::empty(depth, columns, width);
        packed.values.par_chunks_mut(depth.max(1) * width).enumerate().for_each(
            |(panel, values)| {
                let mut scratch = vec![T::ZERO; depth];
                for lane in 0..width.min(columns - panel * width) {
                    let row = source.row(panel * width + lane, 0..depth, &mut scratch);
                    for (line, &value) in values.chunks_exact_mut(width).zip(row) {
                        line[lane] = value;
                    }
                }
            },
        );
        packed
    }

    /// Packs rows `rows` of `source`, restricted to `columns`, without transposing.
    pub fn from_rows(source: &impl Rows<T>, rows: Range<usize>, columns: Range<usize>) -> Self {
        let (_, width) = tile_shape::<T>();
        let depth = rows.len();
        let mut packed = Self::empty(depth, columns.len(), width);
        let mut scratch = vec![T::ZERO; columns.len()];
        let last = rows.end.saturating_sub(1);
        for (line, row) in rows.enumerate() {
            source.prefetch((row + ROWS_AHEAD).min(last), columns.clone());
            let values = source.row(row, columns.clone(), &mut scratch);
            let lines = &mut packed.values[line * width..];
            match width {
                32 => copy_line::<T, 32>(values, lines, depth),
                16 => copy_line::<T, 16>(values, lines, depth),
                8 => copy_line::<T, 8>(values, lines, depth),
                _ => copy_line::<T, 4>(values, lines, depth),
            }
        }
        packed
    }

    fn empty(depth: usize, columns: usize, width: usize) -> Self {
        let values = vec![T::ZERO; columns.div_ceil(width) * width * depth];
        Self { values, depth, columns, width }
    }

    /// Lines `lines` of the panels that hold `columns`; `columns` starts at a panel's first column.
    #[inline(always)]
    pub(super) fn panels(&self, lines: Range<usize>, columns: Range<usize>) -> Panels<'_, T> {
        debug_assert!(columns.start.is_multiple_of(self.width));
        let start = (columns.start * self.depth + lines.start * self.width).min(self.values.len());
        Panels {
            values: &self.values[start..],
            stride: self.depth * self.width,
            length: lines.len() * self.width,
            columns: columns.len(),
        }
    }

    /// The number of rows of B.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// The number of columns of B.
    pub fn columns(&self) -> usize {
        self.columns
    }
}

/// Copies a row to the first line of each panel in `lines`; panels have `depth` lines of `WIDTH`.
#[inline(always)]
fn copy_line<T: Real, const WIDTH: usize>(row: &[T], lines: &mut [T], depth: usize) {
    let (whole, rest) = row.as_chunks::<WIDTH>();
    let mut panels = lines.chunks_mut(depth * WIDTH);
    for (part, panel) in whole.iter().zip(&mut panels) {
        panel[..WIDTH].copy_from_slice(part);
    }
    if let Some(panel) = panels.next() {
        panel[..rest.len()].copy_from_slice(rest);
    }
}

/// Some lines of adjacent panels.
pub(super) struct Panels<'a, T> {
    values: &'a [T],
    /// Elements from one panel to the next.
    stride: usize,
    /// Elements taken of each panel.
    length: usize,
    /// Columns of all panels together; the last panel may be partly padding.
    columns: usize,
}

impl<'a, T: Real> Panels<'a, T> {
    /// The columns of all panels together.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// The lines of the panel whose first column is `column`.
    #[inline(always)]
    pub(super) fn lines<const WIDTH: usize>(&self, column: usize) -> &'a [[T; WIDTH]] {
        let start = column / WIDTH * self.stride;
        self.values[start..start + self.length].as_chunks().0
    }

    /// The same panels with T under its concrete name: E and T must be the same type.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn cast<E: Real>(&self) -> Panels<'a, E> {
        Panels {
            values: bytemuck::cast_slice(self.values),
            stride: self.stride,
            length: self.length,
            columns: self.columns,
        }
    }
}
