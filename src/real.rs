//! The floating-point type a computation runs in.

use std::fmt::{Debug, Display};
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

/// f32, in which models are trained, or f64, in which the same code is verified.
pub trait Real:
    Copy
    + Default
    + Send
    + Sync
    + 'static
    + PartialOrd
    + Debug
    + Display
    + bytemuck::Pod
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + Sum
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// The distance from 1 to the next larger number.
    const EPSILON: Self;
    /// The name of the type in safetensors files.
    const DTYPE: safetensors::Dtype;

    /// The nearest number of this type.
    fn from_f64(value: f64) -> Self;
    /// The nearest number of this type.
    fn from_f32(value: f32) -> Self;
    /// The number, exactly.
    fn to_f64(self) -> f64;
    /// Square root, correctly rounded.
    fn sqrt(self) -> Self;
    /// self · factor + addend with one rounding.
    fn fused_multiply_add(self, factor: Self, addend: Self) -> Self;
    /// Whether the number is neither NaN nor infinite.
    fn is_finite(self) -> bool;
}

macro_rules! implement_real {
    ($type:ident, $dtype:ident) => {
        impl Real for $type {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const EPSILON: Self = $type::EPSILON;
            const DTYPE: safetensors::Dtype = safetensors::Dtype::$dtype;

            #[inline(always)]
            #[allow(clippy::unnecessary_cast, reason = "the macro serves f64 too")]
            fn from_f64(value: f64) -> Self {
                value as Self
            }
            #[inline(always)]
            fn from_f32(value: f32) -> Self {
                Self::from(value)
            }
            #[inline(always)]
            #[allow(clippy::useless_conversion, reason = "the macro serves f64 too")]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            #[inline(always)]
            fn fused_multiply_add(self, factor: Self, addend: Self) -> Self {
                self.mul_add(factor, addend)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                self.is_finite()
            }
        }
    };
}

implement_real!(f32, F32);
implement_real!(f64, F64);
