//! Every setting of a training run.
//!
//! [`TrainConfig`] decides the bits of a trained model. [`RunConfig`] adds where the data is and
//! where to compute; a run keeps it as `config.toml`. Both are filled from [`TrainSettings`] and
//! [`RunSettings`], whose fields are all optional: one of each is read from a file
//! ([`ConfigFile`]), one from the command line, and the latter wins.

mod builder;
mod choices;
mod feature_source;
mod file;
mod grid;
mod keys;
mod mmrec;
mod reading;
mod run;
mod settings;
mod value;

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub use builder::TrainConfigBuilder;
pub use choices::{ByteSize, DeviceChoice, ModalityChoice, SplitRatio};
pub use feature_source::FeatureSource;
pub use file::ConfigFile;
pub use grid::{Axis, seeds, word};
pub use run::RunConfig;
pub use settings::{RunSettings, TrainSettings, ascending};

use crate::{Error, Result};

/// The largest list length K.
pub const MAX_TOP_K: usize = 1024;
/// The largest integer that a TOML file can hold, and so the largest that a run can be repeated
/// with.
const MAX_INTEGER: u64 = i64::MAX as u64;

/// How embeddings travel along the interaction graph (SPEC §2, equation (2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Propagation {
    /// H^{l+1} = Â H^l: no weights, no activation; the reference code's form.
    Light,
    /// H^{l+1} = LeakyReLU₀.₂(Â H^l W^l): the paper's equation as printed.
    Gcn,
}

/// The order in which an epoch visits the training pairs (SPEC §7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// A fresh permutation each epoch, keyed by seed and epoch.
    Random,
    /// The order of the `.inter` file, the same in every epoch.
    File,
}

/// Where the frozen features of a run lie, besides their files. Results do not depend on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum FeatureStorage {
    /// On the GPU if there is room, else streamed.
    #[default]
    Auto,
    /// On the GPU, all of them.
    Resident,
    /// In their files: each step's rows are copied to the GPU, and only the most used ones stay
    /// there.
    Stream,
}

impl FeatureStorage {
    /// Checks that the features of this training can be stored this way.
    ///
    /// # Errors
    /// [`Error::Setting`] for `--feature-storage`.
    pub fn validate(self, config: &TrainConfig) -> Result<()> {
        if self == Self::Stream && !config.freeze_features {
            return Err(Error::setting(
                "--feature-storage",
                "stream found, auto or resident for features that are trained (--freeze-features \
                 keeps them as inputs) expected",
            ));
        }
        Ok(())
    }
}

/// The type of frozen features on a GPU. A type that rounds them changes results.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum FeatureTypeChoice {
    /// f16 or bf16 if the file has it, else f32.
    #[default]
    Auto,
    /// Single precision, whatever the file has.
    F32,
    /// Half precision: half the bytes of f32, 11 bits of precision, up to 65504.
    F16,
    /// Brain floating point: half the bytes of f32, 8 bits of precision, f32's range.
    Bf16,
}

impl fmt::Display for FeatureTypeChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

/// The settings that decide the bits of a trained model, and when training stops.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// d, the width of every embedding: a multiple of 4 from 4 to 512.
    pub embedding_size: usize,
    /// L, the number of propagation layers: 0 to 4.
    pub layers: usize,
    /// How a layer propagates.
    pub propagation: Propagation,
    /// Adds a self-loop to every node of the graph, as in the paper's text.
    pub self_loops: bool,
    /// Probability that an element of a bootstrap target is dropped: 0 ≤ p < 1.
    pub dropout: f64,
    /// λ_reg, the weight of the Frobenius norms in the loss.
    pub reg_weight: f64,
    /// λ_cl, the weight of the alignment and mask losses.
    pub cl_weight: f64,
    /// Keeps raw features as inputs instead of training them.
    pub freeze_features: bool,
    /// The type of frozen features on a GPU. The CPU reads them from their files, and trained
    /// features are f32, so both allow only `auto` and `f32`.
    pub feature_type: FeatureTypeChoice,
    /// Adam's learning rate in the first epoch.
    pub learning_rate: f64,
    /// γ: the learning rate is multiplied by γ^(epoch/50), epochs from 0.
    pub learning_rate_decay: f64,
    /// Training pairs per step.
    pub batch_size: usize,
    /// At most this many epochs.
    pub epochs: u64,
    /// Stops when more than this many evaluations in a row have not beaten the best Recall@20.
    pub patience: u64,
    /// The list lengths K at which metrics are reported, ascending; 20 is always measured.
    pub top_k: Vec<usize>,
    /// The seed of every random draw of the run.
    pub seed: u64,
    /// The order of the training pairs.
    pub order: Order,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            embedding_size: 64,
            layers: 1,
            propagation: Propagation::Light,
            self_loops: false,
            dropout: 0.5,
            reg_weight: 0.1,
            cl_weight: 2.0,
            freeze_features: false,
            feature_type: FeatureTypeChoice::Auto,
            learning_rate: 1e-3,
            learning_rate_decay: 1.0,
            batch_size: 2048,
            epochs: 1000,
            patience: 20,
            top_k: vec![5, 10, 20, 50],
            seed: 999,
            order: Order::Random,
        }
    }
}

impl TrainConfig {
    /// Checks the range of every setting, and that the settings are compatible.
    ///
    /// # Errors
    /// [`Error::Setting`] with the flag's name, the value found and what is expected.
    pub fn validate(&self) -> Result<()> {
        self.validate_ranges()?;
        expect(
            "--feature-type",
            self.feature_type,
            self.freeze_features
                || matches!(self.feature_type, FeatureTypeChoice::Auto | FeatureTypeChoice::F32),
            "auto or f32 for features that are trained (--freeze-features keeps them as inputs)",
        )
    }

    /// Checks each setting on its own, since one of several files may be completed by another.
    pub(super) fn validate_ranges(&self) -> Result<()> {
        let d = self.embedding_size;
        expect(
            "--embedding-size",
            d,
            d.is_multiple_of(4) && (4..=512).contains(&d),
            "a multiple of 4 from 4 to 512",
        )?;
        match self.propagation {
            Propagation::Light => {
                expect("--layers", self.layers, self.layers <= 4, "0 to 4")?;
            }
            Propagation::Gcn => expect(
                "--layers",
                self.layers,
                (1..=4).contains(&self.layers),
                "1 to 4 with --propagation gcn",
            )?,
        }
        expect(
            "--dropout",
            self.dropout,
            (0.0..1.0).contains(&self.dropout),
            "at least 0 and less than 1",
        )?;
        for (flag, weight) in [("--reg-weight", self.reg_weight), ("--cl-weight", self.cl_weight)] {
            expect(flag, weight, weight.is_finite() && weight >= 0.0, "a number from 0")?;
        }
        expect(
            "--learning-rate",
            self.learning_rate,
            self.learning_rate.is_finite() && self.learning_rate > 0.0,
            "a number greater than 0",
        )?;
        expect(
            "--learning-rate-decay",
            self.learning_rate_decay,
            self.learning_rate_decay > 0.0 && self.learning_rate_decay <= 1.0,
            "greater than 0 and at most 1",
        )?;
        expect(
            "--batch-size",
            self.batch_size,
            (1..=1 << 24).contains(&self.batch_size),
            "1 to 16777216",
        )?;
        for (flag, value, least) in [
            ("--epochs", self.epochs, 1),
            ("--patience", self.patience, 0),
            ("--seed", self.seed, 0),
        ] {
            expect(flag, value, value >= least, &format!("a number from {least}"))?;
            expect(flag, value, value <= MAX_INTEGER, &format!("at most {MAX_INTEGER}"))?;
        }
        validate_top_k(&self.top_k)
    }
}

/// Checks list lengths as [`check_lengths`] does.
///
/// # Errors
/// [`Error::Setting`] for `--top-k`.
pub fn validate_top_k(top_k: &[usize]) -> Result<()> {
    check_lengths(top_k).map_err(|problem| Error::setting("--top-k", problem))
}

/// Checks list lengths: at least one, each from 1 to [`MAX_TOP_K`], strictly ascending.
///
/// # Errors
/// A message with what was found and what was expected.
pub fn check_lengths(lengths: &[usize]) -> Result<(), String> {
    if lengths.is_empty() {
        return Err("an empty list found, at least one length expected".to_owned());
    }
    if let Some(length) = lengths.iter().find(|length| !(1..=MAX_TOP_K).contains(*length)) {
        return Err(format!("{length} found, 1 to {MAX_TOP_K} expected"));
    }
    if !lengths.is_sorted_by(|a, b| a < b) {
        return Err(format!("{lengths:?} found, ascending lengths without repeats expected"));
    }
    Ok(())
}

/// The most CPU threads that may be asked for: many more than any processor has only wait for each other.
pub const MAX_THREADS: usize = 4096;

/// Checks a number of CPU threads: 1 to [`MAX_THREADS`].
///
/// # Errors
/// What was found and what was expected.
pub fn check_threads(threads: usize) -> Result<(), String> {
    match threads {
        1..=MAX_THREADS => Ok(()),
        0 => Err("0 found, a number from 1 expected".to_owned()),
        more => Err(format!("{more} found, at most {MAX_THREADS} expected")),
    }
}

/// Checks a number of CPU threads, where one was given, as [`check_threads`] does.
///
/// # Errors
/// [`Error::Setting`] for `--threads`.
pub fn validate_threads(threads: Option<usize>) -> Result<()> {
    let checked = threads.map_or(Ok(()), check_threads);
    checked.map_err(|problem| Error::setting("--threads", problem))
}

fn expect(flag: &str, found: impl std::fmt::Display, holds: bool, expected: &str) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(Error::setting(flag, format!("{found} found, {expected} expected")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(change: impl FnOnce(&mut TrainConfig)) -> Option<String> {
        let mut config = TrainConfig::default();
        change(&mut config);
        config.validate().err().map(|error| {
            assert!(error.is_input());
            error.to_string()
        })
    }

    #[test]
    fn the_defaults_and_the_ends_of_every_range_are_valid() {
        assert_eq!(problem(|_| ()), None);
        assert_eq!(problem(|config| config.embedding_size = 4), None);
        assert_eq!(problem(|config| config.embedding_size = 512), None);
        assert_eq!(problem(|config| config.layers = 0), None);
        assert_eq!(problem(|config| config.layers = 4), None);
        assert_eq!(problem(|config| config.dropout = 0.0), None);
        assert_eq!(problem(|config| config.reg_weight = 0.0), None);
        assert_eq!(problem(|config| config.batch_size = 1 << 24), None);
        assert_eq!(problem(|config| config.patience = 0), None);
        assert_eq!(problem(|config| config.feature_type = FeatureTypeChoice::F32), None);
        let frozen = |config: &mut TrainConfig| {
            (config.freeze_features, config.feature_type) = (true, FeatureTypeChoice::Bf16);
        };
        assert_eq!(problem(frozen), None);
        assert_eq!(problem(|config| config.top_k = vec![1, 1024]), None);
    }

    #[test]
    fn every_value_out_of_range_names_its_flag_what_was_found_and_what_is_expected() {
        type Change = fn(&mut TrainConfig);
        let cases: [(Change, &str); 23] = [
            (|c| c.embedding_size = 0, "--embedding-size: 0 found, a multiple of 4 from 4 to 512"),
            (|c| c.embedding_size = 66, "--embedding-size: 66 found"),
            (|c| c.embedding_size = 516, "--embedding-size: 516 found"),
            (|c| c.layers = 5, "--layers: 5 found, 0 to 4 expected"),
            (
                |c| (c.layers, c.propagation) = (0, Propagation::Gcn),
                "--layers: 0 found, 1 to 4 with --propagation gcn expected",
            ),
            (|c| c.dropout = 1.0, "--dropout: 1 found, at least 0 and less than 1 expected"),
            (|c| c.dropout = -0.1, "--dropout: -0.1 found"),
            (|c| c.dropout = f64::NAN, "--dropout: NaN found"),
            (|c| c.reg_weight = -1.0, "--reg-weight: -1 found, a number from 0 expected"),
            (|c| c.cl_weight = f64::INFINITY, "--cl-weight: inf found"),
            (|c| c.learning_rate = 0.0, "--learning-rate: 0 found, a number greater than 0"),
            (|c| c.learning_rate = f64::NAN, "--learning-rate: NaN found"),
            (|c| c.learning_rate_decay = 0.0, "--learning-rate-decay: 0 found"),
            (|c| c.learning_rate_decay = 1.5, "--learning-rate-decay: 1.5 found"),
            (|c| c.batch_size = 0, "--batch-size: 0 found, 1 to 16777216 expected"),
            (|c| c.batch_size = (1 << 24) + 1, "--batch-size: 16777217 found"),
            (|c| c.epochs = 0, "--epochs: 0 found, a number from 1 expected"),
            (
                |c| c.seed = u64::MAX,
                "--seed: 18446744073709551615 found, at most 9223372036854775807 expected",
            ),
            (
                |c| c.feature_type = FeatureTypeChoice::F16,
                "--feature-type: f16 found, auto or f32 for features that are trained \
                 (--freeze-features keeps them as inputs) expected",
            ),
            (|c| c.top_k = vec![], "--top-k: an empty list found"),
            (|c| c.top_k = vec![0], "--top-k: 0 found, 1 to 1024 expected"),
            (|c| c.top_k = vec![1025], "--top-k: 1025 found"),
            (|c| c.top_k = vec![5, 5], "--top-k: [5, 5] found, ascending lengths without repeats"),
        ];
        for (change, expected) in cases {
            let problem = problem(change).unwrap_or_else(|| panic!("accepted, not {expected}"));
            assert!(problem.starts_with(expected), "{problem}");
        }
    }
}
