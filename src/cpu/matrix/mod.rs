//! Matrix products: the projection, the predictor, their gradients and the scores.
//!
//! Two operations cover them all, both with the narrow operand packed once into panels:
//!
//! - [`multiply`]: C += A B, reading rows of A where they lie (gathered and mapped rows included);
//! - [`multiply_transposed`]: C = Aᵀ B, summed over the rows of both.
//!
//! One task sums each element of C in ascending order of depth, `DEPTH_BLOCK` terms in a register
//! at a time, so the bits depend neither on the number of threads nor on the width of the
//! registers.

mod packed;
mod tile;

use std::ops::Range;

use rayon::prelude::*;

use crate::real::Real;
use tile::{MOST_TILE_ROWS, multiply_rows, tile_shape};

pub use packed::Packed;

/// Terms summed in registers before they are added to C.
///
/// A panel block of 32 columns takes 64 KiB in f32 and streams from the second-level cache, while
/// half a page of each feature row is read in one go. With 256 the block stays in the first level,
/// but every row's pages are visited twice as often (benches/RESULTS.md).
const DEPTH_BLOCK: usize = 512;

/// Rows of C that one task of [`multiply`] computes.
const ROWS_PER_TASK: usize = 48;

/// Columns of C that one task of [`multiply_transposed`] computes: enough of each row of B to be
/// worth fetching, in a block that fits in the second-level cache, but few enough that a narrow C
/// still occupies several threads.
fn columns_per_task(columns: usize) -> usize {
    match columns {
        ..=256 => 32,
        257..2048 => 64,
        _ => 128,
    }
}

/// Columns that one task transposes.
const TRANSPOSED_PER_TASK: usize = 16;

/// A matrix whose rows can be read one at a time, whatever their storage and type.
pub trait Rows<T>: Sync {
    /// Row `row`, restricted to `columns`: the stored slice itself, or `scratch` filled with it.
    ///
    /// `scratch` holds at least `columns.len()` elements.
    fn row<'a>(&'a self, row: usize, columns: Range<usize>, scratch: &'a mut [T]) -> &'a [T];

    /// Asks the processor to fetch what [`Rows::row`] will read; worthwhile for rows in no
    /// predictable pattern.
    fn prefetch(&self, _row: usize, _columns: Range<usize>) {}
}

/// A row-major matrix in memory.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    values: &'a [T],
    columns: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// `values` as rows of `columns` elements.
    pub fn new(values: &'a [T], columns: usize) -> Self {
        debug_assert!(columns > 0 && values.len().is_multiple_of(columns));
        Self { values, columns }
    }
}

impl<T: Real> Rows<T> for Matrix<'_, T> {
    #[inline(always)]
    fn row<'a>(&'a self, row: usize, columns: Range<usize>, _: &'a mut [T]) -> &'a [T] {
        let start = row * self.columns;
        &self.values[start + columns.start..start + columns.end]
    }
}

/// C += A B, with C `rows` × `b.columns()`, in parallel over blocks of rows.
///
/// Flops: 2 · rows · depth · columns. Bytes: A once, B once per task from the caches, C once per
/// `DEPTH_BLOCK` of depth.
pub fn multiply<T: Real>(a: &impl Rows<T>, b: &Packed<T>, c: &mut [T]) {
    let columns = b.columns();
    if columns == 0 {
        return;
    }
    c.par_chunks_mut(ROWS_PER_TASK * columns).enumerate().for_each(|(task, c)| {
        multiply_block(a, task * ROWS_PER_TASK, b, 0..columns, c);
    });
}

/// C += A B for the rows of A from `first_row` on and some columns of B, on the calling thread.
///
/// C is row-major with `columns.len()` columns; `columns` starts at a multiple of a panel's width
/// (any multiple of 32 does).
pub fn multiply_block<T: Real>(
    a: &impl Rows<T>,
    first_row: usize,
    b: &Packed<T>,
    columns: Range<usize>,
    c: &mut [T],
) {
    let (tile_rows, _) = tile_shape::<T>();
    let row_length = columns.len();
    let mut scratch = vec![T::ZERO; MOST_TILE_ROWS * DEPTH_BLOCK.min(b.depth())];
    for depth_start in (0..b.depth()).step_by(DEPTH_BLOCK) {
        let depth = depth_start..(depth_start + DEPTH_BLOCK).min(b.depth());
        let panels = b.panels(depth.clone(), columns.clone());
        for (tile, c) in c.chunks_mut(tile_rows * row_length).enumerate() {
            let rows = c.len() / row_length;
            let mut scratch = scratch.chunks_exact_mut(depth.len());
            let mut rows_of_a = [[].as_slice(); MOST_TILE_ROWS];
            for (lane, row_of_a) in rows_of_a.iter_mut().enumerate().take(rows) {
                // One chunk for each of at most MOST_TILE_ROWS lanes.
                let scratch = scratch.next().unwrap_or_default();
                let row = first_row + tile * tile_rows + lane;
                *row_of_a = a.row(row, depth.clone(), scratch);
            }
            // A partial tile repeats its last row and does not store the repeats.
            let last = rows_of_a[rows - 1];
            rows_of_a[rows..].fill(last);
            multiply_rows(&rows_of_a, rows, &panels, c);
        }
    }
}

/// C = Aᵀ B over the rows of both: A is depth × `a_columns`, B is depth × `b_columns`, C is
/// `a_columns` × `b_columns`. Parallel over blocks of B's columns, packed `DEPTH_BLOCK` lines at a
/// time.
///
/// Flops: 2 · depth · a_columns · b_columns. Bytes: B once, A once per task from the caches.
pub fn multiply_transposed<T: Real>(
    a: &impl Rows<T>,
    b: &impl Rows<T>,
    depth: usize,
    (a_columns, b_columns): (usize, usize),
    c: &mut [T],
) {
    if depth == 0 {
        c.fill(T::ZERO);
        return;
    }
    let transposed = transpose(a, depth, a_columns);
    let per_task = columns_per_task(b_columns);
    let tasks: Vec<usize> = (0..b_columns).step_by(per_task).collect();
    let blocks: Vec<Vec<T>> = tasks
        .into_par_iter()
        .map(|start| {
            let columns = start..(start + per_task).min(b_columns);
            let mut block = vec![T::ZERO; a_columns * columns.len()];
            for first in (0..depth).step_by(DEPTH_BLOCK) {
                let lines = first..(first + DEPTH_BLOCK).min(depth);
                let b = Packed::from_rows(b, lines, columns.clone());
                let a = Matrix { values: &transposed[first..], columns: depth };
                multiply_block(&a, 0, &b, 0..b.columns(), &mut block);
            }
            block
        })
        .collect();
    c.par_chunks_mut(b_columns).enumerate().for_each(|(row, c)| {
        for (c, block) in c.chunks_mut(per_task).zip(&blocks) {
            c.copy_from_slice(&block[row * c.len()..(row + 1) * c.len()]);
        }
    });
}

/// Transposes `source` (rows × columns).
fn transpose<T: Real>(source: &impl Rows<T>, rows: usize, columns: usize) -> Vec<T> {
    let mut transposed = vec![T::ZERO; rows * columns];
    transposed.par_chunks_mut(TRANSPOSED_PER_TASK * rows).enumerate().for_each(|(task, lines)| {
        let first = task * TRANSPOSED_PER_TASK;
        let range = first..first + lines.len() / rows;
        let mut scratch = vec![T::ZERO; range.len()];
        for row in 0..rows {
            for (line, &value) in source.row(row, range.clone(), &mut scratch).iter().enumerate() {
                lines[line * rows + row] = value;
            }
        }
    });
    transposed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::{Purpose, Stream};
    use proptest::prelude::*;

    fn random(seed: u64, count: usize) -> Vec<f64> {
        let stream = Stream::new(seed, Purpose::Initial, 0, 0);
        (0..count as u64).map(|index| stream.uniform(index) - 0.5).collect()
    }

    /// Bound on the error of a sum of `depth` products of numbers below ½, each rounded to type T.
    fn tolerance<T: Real>(depth: usize) -> f64 {
        T::EPSILON.to_f64() * 0.25 * (depth.max(1) as f64) * 2.0
    }

    fn check<T: Real>(rows: usize, columns: usize, depth: usize) {
        let a64 = random(1, rows * depth);
        let b64 = random(2, depth * columns);
        let a: Vec<T> = a64.iter().map(|&x| T::from_f64(x)).collect();
        let b: Vec<T> = b64.iter().map(|&x| T::from_f64(x)).collect();
        let b_transposed: Vec<T> =
            (0..columns * depth).map(|k| b[k % depth * columns + k / depth]).collect();
        let a_transposed: Vec<T> =
            (0..depth * rows).map(|k| a[k % rows * depth + k / rows]).collect();
        let expected: Vec<f64> = (0..rows * columns)
            .map(|k| {
                let (row, column) = (k / columns, k % columns);
                (0..depth)
                    .map(|p| a[row * depth + p].to_f64() * b[p * columns + column].to_f64())
                    .sum()
            })
            .collect();
        let by_rows = Packed::from_rows(&Matrix::new(&b, columns), 0..depth, 0..columns);
        let by_columns =
            Packed::from_transposed(&Matrix::new(&b_transposed, depth), columns, depth);
        let mut results = [(); 3].map(|()| vec![T::ZERO; rows * columns]);
        multiply(&Matrix::new(&a, depth), &by_rows, &mut results[0]);
        multiply(&Matrix::new(&a, depth), &by_columns, &mut results[1]);
        multiply_transposed(
            &Matrix::new(&a_transposed, rows),
            &Matrix::new(&b, columns),
            depth,
            (rows, columns),
            &mut results[2],
        );
        for result in &results {
            for (found, expected) in result.iter().zip(&expected) {
                assert!((found.to_f64() - expected).abs() <= tolerance::<T>(depth));
            }
        }
        // All three sum in the same order.
        assert!(results[0] == results[1] && results[0] == results[2]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// For any shape, with tiles and blocks cut off anywhere, equals the sum of products in
        /// f64.
        #[test]
        fn products_equal_their_definition(
            rows in 1usize..70, columns in 1usize..140, depth in 1usize..600
        ) {
            check::<f32>(rows, columns, depth);
            check::<f64>(rows, columns, depth);
        }
    }
}
