//! This processor's highest rates, with all threads, of copying and of fused multiply-adds.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use super::simd::{multiply_add, vectorized};
use crate::profile::Ceilings;
use crate::real::Real;

/// Length of the arrays copied, far larger than any cache.
const NUMBERS: usize = 1 << 26;
/// Numbers that a task copies at a time.
const PART: usize = 1 << 18;
/// Independent multiply-add chains of a task; they stay in registers.
const CHAINS: usize = 96;
/// Multiply-adds of each chain.
const ROUNDS: usize = 1 << 18;
/// The ceiling is the best of this many attempts.
const ATTEMPTS: usize = 5;

/// Measures both ceilings.
pub fn ceilings() -> Ceilings {
    let best = |work: &dyn Fn() -> f64| (0..ATTEMPTS).map(|_| work()).fold(0.0, f64::max);
    let source = vec![1.0f32; NUMBERS];
    let target = std::sync::Mutex::new(vec![0.0f32; NUMBERS]);
    let copy = best(&|| {
        // Uncontended, and a copy does not panic.
        let mut target = target.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let begun = Instant::now();
        target.par_chunks_mut(PART).zip(source.par_chunks(PART)).for_each(|(target, source)| {
            target.copy_from_slice(source);
        });
        (2 * 4 * NUMBERS) as f64 / begun.elapsed().as_secs_f64()
    });
    let threads = rayon::current_num_threads();
    let multiply_add = best(&|| {
        let begun = Instant::now();
        (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
            let mut chains = [0.5f32; CHAINS];
            multiply_chains(&mut chains, ROUNDS);
            black_box(chains);
        });
        (2 * CHAINS * ROUNDS * threads) as f64 / begun.elapsed().as_secs_f64()
    });
    Ceilings { copy, multiply_add, tensor: None, upload: None }
}

vectorized! {
    /// Multiplies and adds to each chain `rounds` times.
    fn multiply_chains<T: Real>(chains: &mut [T; CHAINS], rounds: usize) {
        let (factor, addend) = (T::from_f64(0.999), T::from_f64(0.001));
        let mut local = *chains;
        for _ in 0..rounds {
            for chain in &mut local {
                *chain = multiply_add::<T, FUSED>(*chain, factor, addend);
            }
        }
        *chains = local;
    }
}
