//! Adam, dense and by rows (SPEC §5).
//!
//! m ← β₁ m + (1 − β₁) g; v ← β₂ v + (1 − β₂) g²; p ← p − step_size · m / (√v · root_factor + ε).
//! Bytes: p, m, v read and written and g read, once each. Each element belongs to one task.
//!
//! A row of trained features whose gradient was zero for some steps is replayed by the function
//! that a dense sweep would have called at each of them, with g = 0. The bits are therefore the
//! same, yet the row is read and written only once.

use rayon::prelude::*;

use super::matrix::{Matrix, Packed};
use super::projection::feature_gradient;
use super::simd::{multiply_add, vectorized};
use crate::backend::{ADAM_EPSILON, AdamStep, BETA1, BETA2, FeatureState};
use crate::real::Real;

/// Elements that one task of the dense update handles.
const ELEMENTS_PER_TASK: usize = 1 << 14;

/// Feature rows whose gradients one task holds at a time: 256 KiB at 4,096 columns in f32.
const ROWS_PER_TASK: usize = 16;

/// Elements that a replay keeps in registers.
const REPLAY_BLOCK: usize = 64;

/// Adam's constants in type T.
#[derive(Clone, Copy)]
struct Constants<T> {
    beta1: T,
    one_minus_beta1: T,
    beta2: T,
    one_minus_beta2: T,
    epsilon: T,
    step_size: T,
    root_factor: T,
}

impl<T: Real> Constants<T> {
    #[inline(always)]
    fn new(step: AdamStep) -> Self {
        Self {
            beta1: T::from_f64(BETA1),
            one_minus_beta1: T::from_f64(1.0 - BETA1),
            beta2: T::from_f64(BETA2),
            one_minus_beta2: T::from_f64(1.0 - BETA2),
            epsilon: T::from_f64(ADAM_EPSILON),
            step_size: T::from_f64(step.step_size),
            root_factor: T::from_f64(step.root_factor),
        }
    }
}

/// One step of one element.
#[inline(always)]
fn update<T: Real, const FUSED: bool>(
    constants: &Constants<T>,
    gradient: T,
    parameter: &mut T,
    first: &mut T,
    second: &mut T,
) {
    let scaled = constants.one_minus_beta1 * gradient;
    *first = multiply_add::<T, FUSED>(constants.beta1, *first, scaled);
    let squared = constants.one_minus_beta2 * gradient * gradient;
    *second = multiply_add::<T, FUSED>(constants.beta2, *second, squared);
    let root = multiply_add::<T, FUSED>(second.sqrt(), constants.root_factor, constants.epsilon);
    *parameter -= constants.step_size * *first / root;
}

/// One step of all elements of `[parameters, first, second]`; returns the first element that is not
/// finite afterwards.
pub fn adam<T: Real>(
    step: AdamStep,
    gradients: &[T],
    [parameters, first, second]: [&mut [T]; 3],
) -> Option<usize> {
    parameters
        .par_chunks_mut(ELEMENTS_PER_TASK)
        .zip(first.par_chunks_mut(ELEMENTS_PER_TASK))
        .zip(second.par_chunks_mut(ELEMENTS_PER_TASK))
        .zip(gradients.par_chunks(ELEMENTS_PER_TASK))
        .enumerate()
        .filter_map(|(task, (((parameters, first), second), gradients))| {
            let wrong = update_part(step, gradients, [parameters, first, second]);
            wrong.map(|element| task * ELEMENTS_PER_TASK + element)
        })
        .min()
}

/// [`adam`] within one task.
///
/// A gradient that is not finite, or whose square is not, shows in v; every other failure in p.
pub fn update_part<T: Real>(
    step: AdamStep,
    gradients: &[T],
    [parameters, first, second]: [&mut [T]; 3],
) -> Option<usize> {
    let finite = update_elements(step, gradients, parameters, first, second);
    (!finite).then(|| first_wrong(parameters, second))
}

/// The first element that is not finite, given that at least one is not.
fn first_wrong<T: Real>(parameters: &[T], second: &[T]) -> usize {
    let wrong = |(parameter, second): (&T, &T)| !parameter.is_finite() || !second.is_finite();
    parameters.iter().zip(second).position(wrong).unwrap_or_default()
}

vectorized! {
    /// One step of some elements; returns whether all are finite afterwards.
    fn update_elements<T: Real>(
        step: AdamStep,
        gradients: &[T],
        parameters: &mut [T],
        first: &mut [T],
        second: &mut [T],
    ) -> bool {
        let constants = Constants::new(step);
        // Accumulated rather than branched on, so that the loop vectorises.
        let mut wrong = 0u32;
        for (((parameter, first), second), &gradient) in
            parameters.iter_mut().zip(first).zip(second).zip(gradients)
        {
            update::<T, FUSED>(&constants, gradient, parameter, first, second);
            wrong |= u32::from(!parameter.is_finite()) | u32::from(!second.is_finite());
        }
        wrong == 0
    }
}

vectorized! {
    /// Applies `steps` with a zero gradient to one row.
    fn replay_row<T: Real>(
        steps: &[AdamStep],
        parameters: &mut [T],
        first: &mut [T],
        second: &mut [T],
    ) {
        let mut parameters = parameters.chunks_mut(REPLAY_BLOCK);
        let mut first = first.chunks_mut(REPLAY_BLOCK);
        let mut second = second.chunks_mut(REPLAY_BLOCK);
        while let (Some(parameters), Some(first), Some(second)) =
            (parameters.next(), first.next(), second.next())
        {
            let length = parameters.len();
            let mut block = [[T::ZERO; REPLAY_BLOCK]; 3];
            block[0][..length].copy_from_slice(parameters);
            block[1][..length].copy_from_slice(first);
            block[2][..length].copy_from_slice(second);
            let [p, m, v] = &mut block;
            for &step in steps {
                let constants = Constants::new(step);
                for ((p, m), v) in p.iter_mut().zip(m.iter_mut()).zip(v.iter_mut()) {
                    update::<T, FUSED>(&constants, T::ZERO, p, m, v);
                }
            }
            parameters.copy_from_slice(&block[0][..length]);
            first.copy_from_slice(&block[1][..length]);
            second.copy_from_slice(&block[2][..length]);
        }
    }
}

/// One row of trained features with its optimiser state.
struct FeatureRow<'a, T> {
    values: &'a mut [T],
    first: &'a mut [T],
    second: &'a mut [T],
    touched: &'a mut u32,
}

/// The rows `items` (distinct, ascending) of `state`.
fn rows_of<'a, T: Real>(
    state: &'a mut FeatureState<T>,
    columns: usize,
    items: &[u32],
) -> Vec<FeatureRow<'a, T>> {
    let mut values = state.values.chunks_exact_mut(columns);
    let mut first = state.first.chunks_exact_mut(columns);
    let mut second = state.second.chunks_exact_mut(columns);
    let mut touched = state.touched.iter_mut();
    let mut next = 0;
    items
        .iter()
        .map_while(|&item| {
            let skip = item as usize - next;
            next = item as usize + 1;
            Some(FeatureRow {
                values: values.nth(skip)?,
                first: first.nth(skip)?,
                second: second.nth(skip)?,
                touched: touched.nth(skip)?,
            })
        })
        .collect()
}

/// Brings rows up to step `history.len()`. Rows never touched have zero moments, so nothing to
/// replay.
pub fn replay<T: Real>(
    history: &[AdamStep],
    items: &[u32],
    columns: usize,
    state: &mut FeatureState<T>,
) {
    rows_of(state, columns, items).into_par_iter().for_each(|row| {
        if *row.touched > 0 {
            let missed = &history[*row.touched as usize..];
            if !missed.is_empty() {
                replay_row(missed, row.values, row.first, row.second);
            }
            *row.touched = history.len() as u32;
        }
    });
}

/// Step `history.len()`, with dE = dz W, of rows that are up to date with the step before; returns
/// the position of the first row that is not finite afterwards.
pub fn adam_rows<T: Real>(
    history: &[AdamStep],
    items: &[u32],
    z_gradient: &[T],
    weight: &[T],
    columns: usize,
    state: &mut FeatureState<T>,
) -> Option<usize> {
    let &step = history.last()?;
    let embedding_size = weight.len() / columns;
    let weight = Packed::from_rows(&Matrix::new(weight, columns), 0..embedding_size, 0..columns);
    let mut rows = rows_of(state, columns, items);
    let tasks = rows.par_chunks_mut(ROWS_PER_TASK).enumerate().map_init(
        || vec![T::ZERO; ROWS_PER_TASK * columns],
        |gradient, (task, rows)| {
            let mut wrong = None;
            let gradient = &mut gradient[..rows.len() * columns];
            feature_gradient(z_gradient, embedding_size, task * ROWS_PER_TASK, &weight, gradient);
            for (position, (row, gradient)) in
                rows.iter_mut().zip(gradient.chunks_exact(columns)).enumerate()
            {
                let finite = update_elements(step, gradient, row.values, row.first, row.second);
                *row.touched = history.len() as u32;
                if !finite {
                    wrong = wrong.or(Some(task * ROWS_PER_TASK + position));
                }
            }
            wrong
        },
    );
    tasks.flatten().min()
}
