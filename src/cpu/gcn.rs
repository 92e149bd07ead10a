//! A layer of the paper's propagation: LeakyReLU₀.₂(x W) (SPEC §2).

use rayon::prelude::*;

use super::matrix::{Matrix, Packed, multiply, multiply_transposed};
use crate::real::Real;

/// The slope of LeakyReLU below zero.
const SLOPE: f64 = 0.2;

/// y `=` LeakyReLU(x W): x, y N × d, weight d × d used as printed.
pub fn layer<T: Real>(x: &[T], weight: &[T], width: usize, y: &mut [T]) {
    y.fill(T::ZERO);
    let weight = Packed::from_rows(&Matrix::new(weight, width), 0..width, 0..width);
    multiply(&Matrix::new(x, width), &weight, y);
    let slope = T::from_f64(SLOPE);
    y.par_iter_mut().for_each(|y| {
        if *y < T::ZERO {
            *y = slope * *y;
        }
    });
}

/// From y and dy: dx `=` dt Wᵀ and dW `=` xᵀ dt, where dt = dy ∘ LeakyReLU' overwrites dy.
///
/// LeakyReLU keeps the sign, so the sign of y gives the slope at x W.
pub fn layer_backward<T: Real>(
    x: &[T],
    weight: &[T],
    y: &[T],
    [y_gradient, x_gradient, weight_gradient]: [&mut [T]; 3],
) {
    let width = weight.len().isqrt();
    let slope = T::from_f64(SLOPE);
    y_gradient.par_iter_mut().zip(y).for_each(|(gradient, &y)| {
        if y <= T::ZERO {
            *gradient = slope * *gradient;
        }
    });
    let inner = Matrix::new(y_gradient, width);
    let rows = x.len() / width;
    multiply_transposed(&Matrix::new(x, width), &inner, rows, (width, width), weight_gradient);
    x_gradient.fill(T::ZERO);
    let weight = Packed::from_transposed(&Matrix::new(weight, width), width, width);
    multiply(&inner, &weight, x_gradient);
}
