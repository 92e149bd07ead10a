//! The inner loop of all products: a tile of C kept in registers.
//!
//! At each step of depth a tile reads one element of each of its rows of A and one line of a panel
//! of B, and accumulates their products; the sums are added to C at the end. For AVX-512 and AVX2
//! the vectors are written out by one macro, so that they stay in registers however the compiler
//! treats loops over arrays. The lanes are literals and the slices are cut to one length in view of
//! the loop, so that no step checks a bound.
//!
//! A tile of few rows (a search for one user) takes several panels at once: with fewer than eight
//! sums each multiply-add would wait for the previous one.

use super::packed::Panels;
use crate::cpu::simd::{BASELINE_FUSED, InstructionSet, instruction_set, multiply_add};
use crate::real::Real;

/// The shape of the register tile for an instruction set and a type: (rows, columns).
///
/// Each row has two vectors of sums, which leaves registers for a line and a factor.
pub(super) fn tile_shape<T>() -> (usize, usize) {
    let double = size_of::<T>() == 8;
    match (instruction_set(), double) {
        (InstructionSet::Avx512, false) => (8, 32),
        (InstructionSet::Avx512, true) => (8, 16),
        (InstructionSet::Avx2, false) => (6, 16),
        (InstructionSet::Avx2, true) => (6, 8),
        (InstructionSet::Baseline, false) => (4, 8),
        (InstructionSet::Baseline, true) => (4, 4),
    }
}

/// The most rows a register tile has.
pub(super) const MOST_TILE_ROWS: usize = 8;

/// C += A B for at most a tile's rows: `a` holds `rows` of them, then repeats the last.
///
/// C is row-major with as many columns as `b`; every row of A is as long as `b` has lines.
pub(super) fn multiply_rows<T: Real>(
    a: &[&[T]; MOST_TILE_ROWS],
    rows: usize,
    b: &Panels<'_, T>,
    c: &mut [T],
) {
    match (instruction_set(), size_of::<T>() == 8) {
        // SAFETY: `instruction_set` returns only sets that the processor reports.
        #[cfg(target_arch = "x86_64")]
        (InstructionSet::Avx512, double) => unsafe {
            if double {
                avx512_double::multiply_rows(&cast(a), rows, &b.cast(), bytemuck::cast_slice_mut(c))
            } else {
                avx512_single::multiply_rows(&cast(a), rows, &b.cast(), bytemuck::cast_slice_mut(c))
            }
        },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (InstructionSet::Avx2, double) => unsafe {
            if double {
                avx2_double::multiply_rows(&cast(a), rows, &b.cast(), bytemuck::cast_slice_mut(c))
            } else {
                avx2_single::multiply_rows(&cast(a), rows, &b.cast(), bytemuck::cast_slice_mut(c))
            }
        },
        (_, true) => baseline::<T, 4>(a, rows, b, c),
        (_, false) => baseline::<T, 8>(a, rows, b, c),
    }
}

/// The same rows with T under its concrete name: E and T must be the same type.
#[cfg(target_arch = "x86_64")]
fn cast<'a, T: Real, E: Real>(a: &[&'a [T]; MOST_TILE_ROWS]) -> [&'a [E]; MOST_TILE_ROWS] {
    a.map(bytemuck::cast_slice)
}

/// Defines a tile of the listed rows and panels. The names that [`tiles!`] uses must be in scope.
#[cfg(target_arch = "x86_64")]
macro_rules! tile {
    ($name:ident, $element:ty, $features:literal, [$($lane:literal)*], [$($panel:literal)*]) => {
        /// C[i][j] += Σ_k A(i, k) · B[k][j] for the tile's first `rows` rows and its panels' first
        /// `columns` columns; `stride` elements separate rows of C.
        #[inline]
        #[target_feature(enable = $features)]
        fn $name(
            a: &[&[$element]; MOST_TILE_ROWS],
            b: &[&[Line]],
            c: &mut [$element],
            (stride, rows, columns): (usize, usize, usize),
        ) {
            const ROWS: usize = [$($lane),*].len();
            const PANELS: usize = [$($panel),*].len();
            let depth = b[0].len();
            let a: [&[$element]; ROWS] = [$(&a[$lane][..depth]),*];
            let b: [&[Line]; PANELS] = [$(&b[$panel][..depth]),*];
            let mut sums = [[[zeros(); 2]; PANELS]; ROWS];
            for step in 0..depth {
                let lines: [[Vector; 2]; PANELS] = [$(bytemuck::must_cast(b[$panel][step])),*];
                $(
                    let factor = broadcast(a[$lane][step]);
                    for (sums, line) in sums[$lane].iter_mut().zip(lines) {
                        sums[0] = fused_multiply_add(factor, line[0], sums[0]);
                        sums[1] = fused_multiply_add(factor, line[1], sums[1]);
                    }
                )*
            }
            $(
                if $lane < rows {
                    add_sums(&sums[$lane], &mut c[$lane * stride..][..columns]);
                }
            )*
        }
    };
}

/// Defines the tiles of one instruction set and one type.
#[cfg(target_arch = "x86_64")]
macro_rules! tiles {
    ($element:ty, $features:literal, $all_rows:tt) => {
        /// Columns of a panel.
        const WIDTH: usize = 2 * size_of::<Vector>() / size_of::<$element>();
        /// A line of a panel.
        type Line = [$element; WIDTH];

        tile!(one_row, $element, $features, [0], [0 1 2 3]);
        tile!(two_rows, $element, $features, [0 1], [0 1]);
        tile!(four_rows, $element, $features, [0 1 2 3], [0]);
        tile!(all_rows, $element, $features, $all_rows, [0]);

        /// c += sums; sums beyond C's columns are ignored.
        #[inline]
        #[target_feature(enable = $features)]
        fn add_sums(sums: &[[Vector; 2]], c: &mut [$element]) {
            let (lines, rest) = c.as_chunks_mut::<WIDTH>();
            for (line, sums) in lines.iter_mut().zip(sums) {
                let old: [Vector; 2] = bytemuck::must_cast(*line);
                *line = bytemuck::must_cast([add(old[0], sums[0]), add(old[1], sums[1])]);
            }
            if let Some(&sums) = sums.get(lines.len()) {
                let sums: Line = bytemuck::must_cast(sums);
                for (c, sum) in rest.iter_mut().zip(sums) {
                    *c += sum;
                }
            }
        }

        #[target_feature(enable = $features)]
        pub(super) fn multiply_rows(
            a: &[&[$element]; MOST_TILE_ROWS],
            rows: usize,
            b: &Panels<'_, $element>,
            c: &mut [$element],
        ) {
            let columns = b.columns();
            let panels_at_once = match rows {
                1 => 4,
                2 => 2,
                _ => 1,
            };
            let last = (columns - 1) / WIDTH * WIDTH;
            for start in (0..columns).step_by(panels_at_once * WIDTH) {
                // A partial tile repeats its last panel and does not store the repeat.
                let panel = |index: usize| b.lines((start + index * WIDTH).min(last));
                let valid = (panels_at_once * WIDTH).min(columns - start);
                let (c, shape) = (&mut c[start..], (columns, rows, valid));
                match rows {
                    1 => one_row(a, &[panel(0), panel(1), panel(2), panel(3)], c, shape),
                    2 => two_rows(a, &[panel(0), panel(1)], c, shape),
                    3 | 4 => four_rows(a, &[panel(0)], c, shape),
                    _ => all_rows(a, &[panel(0)], c, shape),
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx512_single {
    use super::{MOST_TILE_ROWS, Panels};
    use std::arch::x86_64::{
        __m512 as Vector, _mm512_add_ps as add, _mm512_fmadd_ps as fused_multiply_add,
        _mm512_set1_ps as broadcast, _mm512_setzero_ps as zeros,
    };

    tiles!(f32, "avx512f,avx512vl,avx2,fma", [0 1 2 3 4 5 6 7]);
}

#[cfg(target_arch = "x86_64")]
mod avx512_double {
    use super::{MOST_TILE_ROWS, Panels};
    use std::arch::x86_64::{
        __m512d as Vector, _mm512_add_pd as add, _mm512_fmadd_pd as fused_multiply_add,
        _mm512_set1_pd as broadcast, _mm512_setzero_pd as zeros,
    };

    tiles!(f64, "avx512f,avx512vl,avx2,fma", [0 1 2 3 4 5 6 7]);
}

#[cfg(target_arch = "x86_64")]
mod avx2_single {
    use super::{MOST_TILE_ROWS, Panels};
    use std::arch::x86_64::{
        __m256 as Vector, _mm256_add_ps as add, _mm256_fmadd_ps as fused_multiply_add,
        _mm256_set1_ps as broadcast, _mm256_setzero_ps as zeros,
    };

    tiles!(f32, "avx2,fma", [0 1 2 3 4 5]);
}

#[cfg(target_arch = "x86_64")]
mod avx2_double {
    use super::{MOST_TILE_ROWS, Panels};
    use std::arch::x86_64::{
        __m256d as Vector, _mm256_add_pd as add, _mm256_fmadd_pd as fused_multiply_add,
        _mm256_set1_pd as broadcast, _mm256_setzero_pd as zeros,
    };

    tiles!(f64, "avx2,fma", [0 1 2 3 4 5]);
}

/// The same computation for other instruction sets, in plain Rust.
fn baseline<T: Real, const WIDTH: usize>(
    a: &[&[T]; MOST_TILE_ROWS],
    rows: usize,
    b: &Panels<'_, T>,
    c: &mut [T],
) {
    let columns = b.columns();
    for start in (0..columns).step_by(WIDTH) {
        let lines = b.lines(start);
        let (c, shape) = (&mut c[start..], (columns, rows, WIDTH.min(columns - start)));
        match rows {
            1 => baseline_tile::<T, 1, WIDTH>(a, lines, c, shape),
            2 => baseline_tile::<T, 2, WIDTH>(a, lines, c, shape),
            _ => baseline_tile::<T, 4, WIDTH>(a, lines, c, shape),
        }
    }
}

/// C[i][j] += Σ_k A(i, k) · B[k][j] for one tile.
#[inline(always)]
fn baseline_tile<T: Real, const ROWS: usize, const WIDTH: usize>(
    a: &[&[T]; MOST_TILE_ROWS],
    b: &[[T; WIDTH]],
    c: &mut [T],
    (stride, rows, columns): (usize, usize, usize),
) {
    let a: [&[T]; ROWS] = std::array::from_fn(|lane| &a[lane][..b.len()]);
    let mut sums = [[T::ZERO; WIDTH]; ROWS];
    for (depth, line) in b.iter().enumerate() {
        for lane in 0..ROWS {
            let factor = a[lane][depth];
            for column in 0..WIDTH {
                sums[lane][column] =
                    multiply_add::<T, { BASELINE_FUSED }>(factor, line[column], sums[lane][column]);
            }
        }
    }
    for (sums, c) in sums.iter().zip(c.chunks_mut(stride)).take(rows) {
        for (c, &sum) in c.iter_mut().zip(sums).take(columns) {
            *c += sum;
        }
    }
}
