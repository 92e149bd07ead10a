//! Gathering and scattering a batch's rows, the norms of all rows, and small sums.

use std::ops::Range;

use rayon::prelude::*;

use super::simd::{dot, multiply_add, vectorized};
use crate::real::Real;

/// Rows that one task handles.
const ROWS_PER_TASK: usize = 512;

/// out_r `=` source_{ids_r}: rows of `width` elements.
pub fn gather<T: Real>(source: &[T], ids: &[u32], width: usize, out: &mut [T]) {
    for (out, &id) in out.chunks_exact_mut(width).zip(ids) {
        let start = id as usize * width;
        out.copy_from_slice(&source[start..start + width]);
    }
}

/// target_{ids_r} `+=` rows_r. The ids are distinct and ascending, so the order cannot matter.
pub fn scatter_add<T: Real>(rows: &[T], ids: &[u32], width: usize, target: &mut [T]) {
    target.par_chunks_mut(ROWS_PER_TASK * width).enumerate().for_each(|(task, target)| {
        let first = task * ROWS_PER_TASK;
        let last = first + target.len() / width;
        let from = ids.partition_point(|&id| (id as usize) < first);
        let to = ids.partition_point(|&id| (id as usize) < last);
        for (rows, &id) in rows[from * width..to * width].chunks_exact(width).zip(&ids[from..to]) {
            let start = (id as usize - first) * width;
            for (target, &value) in target[start..start + width].iter_mut().zip(rows) {
                *target += value;
            }
        }
    });
}

/// y `+=` factor · x.
pub fn add_scaled<T: Real>(factor: T, x: &[T], y: &mut [T]) {
    y.par_chunks_mut(1 << 14).zip(x.par_chunks(1 << 14)).for_each(|(y, x)| {
        add_scaled_block(factor, x, y);
    });
}

vectorized! {
    fn add_scaled_block<T: Real>(factor: T, x: &[T], y: &mut [T]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = multiply_add::<T, FUSED>(factor, x, *y);
        }
    }
}

/// sums `=` Σ over rows of `width` elements, added in order.
pub fn column_sums<T: Real>(rows: &[T], width: usize, sums: &mut [T]) {
    sums.fill(T::ZERO);
    for row in rows.chunks_exact(width) {
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum += value;
        }
    }
}

/// gradient `=` that of factor · ‖X‖_F for each part of the rows, users and then items; returns the
/// two norms. Squares are summed in T within a block, and in f64 and in order across blocks.
pub fn norm_gradients<T: Real>(
    x: &[T],
    user_elements: usize,
    factor: f64,
    gradient: &mut [T],
) -> [f64; 2] {
    let norm = |range: Range<usize>| {
        let squares: Vec<f64> = x[range]
            .par_chunks(1 << 12)
            .map(|block| block.chunks(256).map(|part| square_sum(part).to_f64()).sum())
            .collect();
        squares.iter().sum::<f64>().sqrt()
    };
    let norms = [norm(0..user_elements), norm(user_elements..x.len())];
    let (users, items) = gradient.split_at_mut(user_elements);
    for (gradient, x, norm) in
        [(users, &x[..user_elements], norms[0]), (items, &x[user_elements..], norms[1])]
    {
        let scale = T::from_f64(if norm > 0.0 { factor / norm } else { 0.0 });
        gradient.par_chunks_mut(1 << 14).zip(x.par_chunks(1 << 14)).for_each(|(gradient, x)| {
            for (gradient, &x) in gradient.iter_mut().zip(x) {
                *gradient = scale * x;
            }
        });
    }
    norms
}

vectorized! {
    fn square_sum<T: Real>(values: &[T]) -> T {
        dot::<T, FUSED>(values, values)
    }
}
