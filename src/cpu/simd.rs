//! One source, compiled for several instruction sets.
//!
//! A function written inside [`vectorized!`] is compiled three times: for AVX-512, for AVX2 with
//! fused multiply-add, and for the target's baseline. The best one that this processor supports is
//! chosen at run time. The loops are plain Rust on slices, vectorised by the compiler. The first
//! two forms round in the same places, so they give the same bits; the baseline of x86-64 has no
//! fused multiply-add and rounds twice.

use std::sync::OnceLock;

use crate::real::Real;

/// The instruction set that the loops run in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstructionSet {
    /// x86-64 with AVX-512 (F, BW, DQ, VL) and fused multiply-add.
    Avx512,
    /// x86-64 with AVX2 and fused multiply-add.
    Avx2,
    /// The instructions that every processor of the target has.
    Baseline,
}

impl InstructionSet {
    /// The name used in processors' data sheets.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "AVX-512",
            Self::Avx2 => "AVX2",
            Self::Baseline => "baseline",
        }
    }
}

/// The best instruction set of this processor.
///
/// `BM3_INSTRUCTION_SET=avx2` or `baseline` selects a lesser one, so that one machine can test all
/// of them. A set that the processor lacks, or any other value, is ignored with a warning.
pub fn instruction_set() -> InstructionSet {
    static CHOICE: OnceLock<InstructionSet> = OnceLock::new();
    *CHOICE.get_or_init(|| {
        let wanted = std::env::var("BM3_INSTRUCTION_SET").unwrap_or_default();
        let set = detect(&wanted);
        if !matches!(
            (wanted.as_str(), set),
            ("", _) | ("avx2", InstructionSet::Avx2) | ("baseline", InstructionSet::Baseline)
        ) {
            tracing::warn!(
                "BM3_INSTRUCTION_SET: `{wanted}` found, `avx2` (where the processor has it) or \
                 `baseline` expected; computing with {}",
                set.name()
            );
        }
        set
    })
}

#[cfg(target_arch = "x86_64")]
fn detect(wanted: &str) -> InstructionSet {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match wanted {
        "baseline" => InstructionSet::Baseline,
        "avx2" if avx2 => InstructionSet::Avx2,
        _ if avx512 => InstructionSet::Avx512,
        _ if avx2 => InstructionSet::Avx2,
        _ => InstructionSet::Baseline,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect(_: &str) -> InstructionSet {
    InstructionSet::Baseline
}

/// Whether the target's baseline has a fused multiply-add instruction.
pub const BASELINE_FUSED: bool = cfg!(target_arch = "aarch64");

/// a · b + c, rounded once if `FUSED`, else twice, since fusing would be a library call.
#[inline(always)]
pub fn multiply_add<T: Real, const FUSED: bool>(a: T, b: T, c: T) -> T {
    if FUSED { a.fused_multiply_add(b, c) } else { a * b + c }
}

/// Asks the processor to fetch `values` into its caches; does nothing on other targets than x86-64.
#[inline(always)]
pub fn prefetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

        for line in values.chunks((CACHE_LINE / size_of::<T>()).max(1)) {
            // SAFETY: every x86-64 has SSE, and a prefetch accesses no memory, whatever the
            // address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

/// Bytes that the processor fetches at a time.
#[cfg(target_arch = "x86_64")]
const CACHE_LINE: usize = 64;

/// Defines a function generic over `T: Real` once and compiles it for every instruction set.
///
/// Inside the body, `FUSED` says whether [`multiply_add`] may fuse.
macro_rules! vectorized {
    ($(#[$attribute:meta])*
     $visibility:vis fn $name:ident<T: Real $(, const $generic:ident: $kind:ty)*>(
        $($argument:ident: $type:ty),* $(,)?
     ) $(-> $output:ty)? $body:block) => {
        $(#[$attribute])*
        #[allow(clippy::too_many_arguments, reason = "a leaf loop takes what it touches")]
        $visibility fn $name<T: Real $(, const $generic: $kind)*>(
            $($argument: $type),*
        ) $(-> $output)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments, reason = "a leaf loop takes what it touches")]
            fn portable<T: Real, const FUSED: bool $(, const $generic: $kind)*>(
                $($argument: $type),*
            ) $(-> $output)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            #[allow(clippy::too_many_arguments, reason = "a leaf loop takes what it touches")]
            fn avx512<T: Real $(, const $generic: $kind)*>(
                $($argument: $type),*
            ) $(-> $output)? {
                portable::<T, true $(, $generic)*>($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments, reason = "a leaf loop takes what it touches")]
            fn avx2<T: Real $(, const $generic: $kind)*>(
                $($argument: $type),*
            ) $(-> $output)? {
                portable::<T, true $(, $generic)*>($($argument),*)
            }

            match $crate::cpu::simd::instruction_set() {
                // SAFETY: `instruction_set` returns only sets that the processor reports.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::InstructionSet::Avx512 => unsafe {
                    avx512::<T $(, $generic)*>($($argument),*)
                },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::InstructionSet::Avx2 => unsafe {
                    avx2::<T $(, $generic)*>($($argument),*)
                },
                _ => portable::<T, { $crate::cpu::simd::BASELINE_FUSED } $(, $generic)*>(
                    $($argument),*
                ),
            }
        }
    };
}
pub(crate) use vectorized;

/// Partial sums that a reduction keeps side by side. Their number fixes the order of the sum, and
/// so its bits, whatever the width of the registers.
const PARTIAL_SUMS: usize = 16;

/// Σ left[k] · right[k], in a fixed order.
#[inline(always)]
pub fn dot<T: Real, const FUSED: bool>(left: &[T], right: &[T]) -> T {
    let mut sums = [T::ZERO; PARTIAL_SUMS];
    let left_chunks = left.chunks_exact(PARTIAL_SUMS);
    let right_chunks = right.chunks_exact(PARTIAL_SUMS);
    let (left_rest, right_rest) = (left_chunks.remainder(), right_chunks.remainder());
    for (left, right) in left_chunks.zip(right_chunks) {
        for lane in 0..PARTIAL_SUMS {
            sums[lane] = multiply_add::<T, FUSED>(left[lane], right[lane], sums[lane]);
        }
    }
    for (lane, (&left, &right)) in left_rest.iter().zip(right_rest).enumerate() {
        sums[lane] = multiply_add::<T, FUSED>(left, right, sums[lane]);
    }
    let mut width = PARTIAL_SUMS / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}
