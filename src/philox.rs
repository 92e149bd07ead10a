//! Philox4x32-10, the counter-based random generator behind every draw of a run.
//!
//! A draw is a function of (seed, purpose, position) alone, so it does not depend on the device,
//! the number of threads or the order of the work (SPEC §6, §7). See "Parallel random numbers: as
//! easy as 1, 2, 3", Salmon et al., SC 2011.

/// The purpose of a draw; keeps the streams of one seed apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Initial values of the parameters.
    Initial = 1,
    /// The order of an epoch's training pairs.
    Order = 2,
    /// Dropout masks.
    Dropout = 3,
    /// Splits of interactions without labels.
    Split = 4,
    /// Synthetic data sets.
    Synthetic = 5,
}

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Four random words for a counter and a key.
#[inline(always)]
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let first = u64::from(MULTIPLIER[0]) * u64::from(counter[0]);
        let second = u64::from(MULTIPLIER[1]) * u64::from(counter[2]);
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
    }
    counter
}

/// A stream of draws of one run for one purpose.
///
/// Key: the low half of the seed and `variable` (the step of a mask, the epoch of an order, 0 for
/// initial values). Counter: two words of position, the tensor (low 24 bits) with the purpose
/// above it, and the high half of the seed.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    key: [u32; 2],
    tensor_and_purpose: u32,
    seed_high: u32,
}

impl Stream {
    /// The stream of `seed` for `purpose`, at `variable` (step or epoch), of `tensor`.
    pub fn new(seed: u64, purpose: Purpose, variable: u32, tensor: u32) -> Self {
        Self {
            key: [seed as u32, variable],
            tensor_and_purpose: (tensor & 0x00FF_FFFF) | (purpose as u32) << 24,
            seed_high: (seed >> 32) as u32,
        }
    }

    /// The four words at a position.
    #[inline(always)]
    pub fn words(&self, row: u32, block: u32) -> [u32; 4] {
        philox([block, row, self.tensor_and_purpose, self.seed_high], self.key)
    }

    /// A uniform number in [0, 1) with 53 random bits, for element `index`.
    pub fn uniform(&self, index: u64) -> f64 {
        let words = self.words((index >> 32) as u32, index as u32);
        unit(words[0], words[1])
    }

    /// A standard normal number for element `index`, by the Box–Muller transform.
    ///
    /// The logarithm and the cosine are our own series of plain additions, multiplications and
    /// divisions, so that the bits are the same on every platform and device:
    /// `kernels/initial_values.cu` has the same operations in the same order.
    pub fn normal(&self, index: u64) -> f64 {
        let words = self.words((index >> 32) as u32, index as u32);
        // 1 − u lies in (0, 1], so its logarithm is finite.
        let radius = (-2.0 * logarithm(1.0 - unit(words[0], words[1]))).sqrt();
        radius * cosine_of_turn(unit(words[2], words[3]))
    }
}

/// The threshold below which a word of Philox drops its element.
pub fn dropout_threshold(probability: f64) -> u32 {
    // Saturates at the largest word, an error below 2⁻³².
    (probability * (1u64 << 32) as f64).round() as u32
}

/// ln x of a positive normal number: x = 2ᵉ m, ln m = 2 artanh((m − 1) / (m + 1)).
fn logarithm(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) as i32 - 1023) as f64;
    let mut mantissa = f64::from_bits(bits & 0x000F_FFFF_FFFF_FFFF | 0x3FF0_0000_0000_0000);
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1.0;
    }
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let mut sum = 1.0 / 21.0;
    for term in (1..=19).rev().step_by(2) {
        sum = sum * square + 1.0 / f64::from(term);
    }
    exponent * std::f64::consts::LN_2 + 2.0 * s * sum
}

/// cos(2π u) for u in [0, 1): takes off the nearest quarter turn, then uses a Taylor series within
/// π/4.
fn cosine_of_turn(u: f64) -> f64 {
    let quarters = (4.0 * u + 0.5).floor();
    let x = (4.0 * u - quarters) * std::f64::consts::FRAC_PI_2;
    let square = x * x;
    let quadrant = quarters as i32 & 3;
    // 1 − x²/(1·2) (1 − x²/(3·4) (1 − …)); for the sine the factors start at 2·3.
    let first = if quadrant % 2 == 0 { 1.0 } else { 2.0 };
    let mut sum = 1.0;
    for term in (0..=16).rev().step_by(2) {
        let term = f64::from(term);
        sum = 1.0 - square / ((first + term) * (first + term + 1.0)) * sum;
    }
    let magnitude = if quadrant % 2 == 0 { sum } else { x * sum };
    if quadrant == 1 || quadrant == 2 { -magnitude } else { magnitude }
}

/// 53 of 64 random bits as a number in [0, 1).
fn unit(high: u32, low: u32) -> f64 {
    let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
    bits as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published by the authors with their generator (Random123, kat_vectors).
    #[test]
    fn agrees_with_the_published_vectors() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    /// The mean and variance of 10⁵ draws lie within five standard errors of their expectations.
    #[test]
    fn draws_have_the_right_moments() {
        let stream = Stream::new(7, Purpose::Initial, 0, 3);
        let count = 100_000u64;
        let n = count as f64;
        let uniform: Vec<f64> = (0..count).map(|index| stream.uniform(index)).collect();
        let mean = uniform.iter().sum::<f64>() / n;
        assert!((mean - 0.5).abs() < 5.0 * (1.0 / 12.0 / n).sqrt());
        let normal: Vec<f64> = (0..count).map(|index| stream.normal(index)).collect();
        let mean = normal.iter().sum::<f64>() / n;
        let variance = normal.iter().map(|x| x * x).sum::<f64>() / n;
        assert!(mean.abs() < 5.0 / n.sqrt());
        assert!((variance - 1.0).abs() < 5.0 * (2.0 / n).sqrt());
    }

    /// The series agree with the system's functions to a few units in the last place of a double.
    #[test]
    fn series_agree_with_the_functions() {
        let stream = Stream::new(1, Purpose::Initial, 0, 0);
        for index in 0..20_000 {
            // Includes small arguments of the logarithm, down to the smallest that a draw can give.
            let x = (1.0 - stream.uniform(index)) * 0.5f64.powi(index as i32 % 54);
            let (found, expected) = (logarithm(x), x.ln());
            assert!((found - expected).abs() <= 1e-15 * expected.abs(), "ln {x}: {found}");
            let u = stream.uniform(index + (1 << 40));
            let (found, expected) = (cosine_of_turn(u), (std::f64::consts::TAU * u).cos());
            // The system's argument 2π u is rounded first.
            assert!((found - expected).abs() <= 1e-15, "cos 2π {u}: {found}, not {expected}");
        }
        assert_eq!([0.0, 0.25, 0.5, 0.75].map(cosine_of_turn), [1.0, -0.0, -1.0, 0.0]);
        assert_eq!(logarithm(1.0), 0.0);
    }

    /// Streams that differ in seed, purpose, step or tensor give different words.
    #[test]
    fn streams_differ() {
        let word = |seed, purpose, variable, tensor| {
            Stream::new(seed, purpose, variable, tensor).words(1, 2)[0]
        };
        let reference = word(1, Purpose::Dropout, 1, 1);
        assert_ne!(reference, word(2, Purpose::Dropout, 1, 1));
        assert_ne!(reference, word(1 + (1 << 32), Purpose::Dropout, 1, 1));
        assert_ne!(reference, word(1, Purpose::Order, 1, 1));
        assert_ne!(reference, word(1, Purpose::Dropout, 2, 1));
        assert_ne!(reference, word(1, Purpose::Dropout, 1, 2));
    }
}
