//! The projection of raw features and the predictor, forward and backward (SPEC §2 (1), (5); §4).
//!
//! Both are products of [`super::matrix`]; this file chooses the operands. Only rows of the batch
//! are computed: projecting costs 2 · n_i · D_m · d flops and reads n_i · D_m features, once
//! forward and once backward, straight from where they are stored.

use std::any::TypeId;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::matrix::{Matrix, Packed, Rows, multiply, multiply_transposed};
use super::rows::column_sums;
use super::simd::prefetch;
use crate::backend::FeatureState;
use crate::data::FeatureMatrix;
use crate::real::Real;

/// Raw features on the CPU.
#[derive(Debug)]
pub enum CpuFeatures<T> {
    /// Inputs, read from the mapped file.
    Frozen(Arc<FeatureMatrix>),
    /// Parameters, with their optimiser state.
    Trained {
        /// Values and moments.
        state: FeatureState<T>,
        /// D_m.
        columns: usize,
    },
}

impl<T: Real> CpuFeatures<T> {
    /// D_m.
    pub fn columns(&self) -> usize {
        match self {
            Self::Frozen(features) => features.columns(),
            Self::Trained { columns, .. } => *columns,
        }
    }
}

/// The feature rows of some items.
struct ItemRows<'a, T> {
    features: &'a CpuFeatures<T>,
    items: &'a [u32],
}

impl<T: Real> Rows<T> for ItemRows<'_, T> {
    fn row<'a>(&'a self, row: usize, columns: Range<usize>, scratch: &'a mut [T]) -> &'a [T] {
        let item = self.items[row] as usize;
        match self.features {
            CpuFeatures::Trained { state, columns: width } => {
                &state.values[item * width..][columns]
            }
            CpuFeatures::Frozen(features) => {
                if TypeId::of::<T>() == TypeId::of::<f32>()
                    && let Some(row) = features.row_f32(item)
                {
                    // T is f32, so the cast is the identity.
                    return &bytemuck::cast_slice(row)[columns];
                }
                let scratch = &mut scratch[..columns.len()];
                features.copy_row(item, columns, scratch);
                scratch
            }
        }
    }

    fn prefetch(&self, row: usize, columns: Range<usize>) {
        let item = self.items[row] as usize;
        match self.features {
            CpuFeatures::Trained { state, columns: width } => {
                prefetch(&state.values[item * width..][columns]);
            }
            CpuFeatures::Frozen(features) => {
                // Rows of another type must be converted, which takes longer than fetching them.
                if let Some(row) = features.row_f32(item) {
                    prefetch(&row[columns]);
                }
            }
        }
    }
}

/// Fills every row of `out` with `bias`.
fn fill_rows<T: Real>(bias: &[T], out: &mut [T]) {
    out.par_chunks_mut(bias.len()).for_each(|row| row.copy_from_slice(bias));
}

/// z `=` E\[items\] Wᵀ + b: weight d × D_m, bias d, z n × d.
pub fn project<T: Real>(
    features: &CpuFeatures<T>,
    items: &[u32],
    weight: &[T],
    bias: &[T],
    z: &mut [T],
) {
    let columns = features.columns();
    fill_rows(bias, z);
    let weight = Packed::from_transposed(&Matrix::new(weight, columns), bias.len(), columns);
    multiply(&ItemRows { features, items }, &weight, z);
}

/// dW `=` dzᵀ E\[items\] and db `=` Σ dz, stored in this order in `gradient`.
pub fn project_backward<T: Real>(
    features: &CpuFeatures<T>,
    items: &[u32],
    z_gradient: &[T],
    embedding_size: usize,
    gradient: &mut [T],
) {
    let columns = features.columns();
    let (weight, bias) = gradient.split_at_mut(embedding_size * columns);
    multiply_transposed(
        &Matrix::new(z_gradient, embedding_size),
        &ItemRows { features, items },
        items.len(),
        (embedding_size, columns),
        weight,
    );
    column_sums(z_gradient, embedding_size, bias);
}

/// p `=` x Wᵀ + b: x and p rows × d.
pub fn predict<T: Real>(x: &[T], weight: &[T], bias: &[T], p: &mut [T]) {
    let width = bias.len();
    fill_rows(bias, p);
    let weight = Packed::from_transposed(&Matrix::new(weight, width), width, width);
    multiply(&Matrix::new(x, width), &weight, p);
}

/// p(Z_m) of the first `rows` rows of `features`, rows × d. `projection` and `predictor` are each a
/// weight (d × D_m and d × d) and a bias (d).
pub fn predict_features(
    features: &Arc<FeatureMatrix>,
    rows: usize,
    projection: [&[f32]; 2],
    predictor: [&[f32]; 2],
) -> Vec<f32> {
    let items: Vec<u32> = (0..rows as u32).collect();
    let mut z = vec![0.0; rows * projection[1].len()];
    project(&CpuFeatures::Frozen(features.clone()), &items, projection[0], projection[1], &mut z);
    let mut predicted = vec![0.0; z.len()];
    predict(&z, predictor[0], predictor[1], &mut predicted);
    predicted
}

/// dx `=` da W, with W d × d.
pub fn predict_backward<T: Real>(output_gradient: &[T], weight: &[T], input_gradient: &mut [T]) {
    let width = weight.len().isqrt();
    input_gradient.fill(T::ZERO);
    let weight = Packed::from_rows(&Matrix::new(weight, width), 0..width, 0..width);
    multiply(&Matrix::new(output_gradient, width), &weight, input_gradient);
}

/// dW `=` daᵀ x and db `=` Σ da, stored in this order in `gradient`, with rows of `width` numbers.
pub fn predict_gradient<T: Real>(output_gradient: &[T], x: &[T], width: usize, gradient: &mut [T]) {
    let (weight_gradient, bias_gradient) = gradient.split_at_mut(width * width);
    let (output, rows) = (Matrix::new(output_gradient, width), x.len() / width);
    multiply_transposed(&output, &Matrix::new(x, width), rows, (width, width), weight_gradient);
    column_sums(output_gradient, width, bias_gradient);
}

/// dE `=` dz W for the rows of dz from `first_row` on.
pub fn feature_gradient<T: Real>(
    z_gradient: &[T],
    embedding_size: usize,
    first_row: usize,
    weight: &Packed<T>,
    gradient: &mut [T],
) {
    gradient.fill(T::ZERO);
    let rows = Matrix::new(z_gradient, embedding_size);
    super::matrix::multiply_block(&rows, first_row, weight, 0..weight.columns(), gradient);
}
