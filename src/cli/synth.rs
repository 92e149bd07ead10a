//! `bm3-engine synth`

use std::path::PathBuf;

use bm3_engine::synth::{self, SynthOptions};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};

use super::prepare::FeatureType;

/// Make a data set of a known shape, to try things out and to measure speed
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct SynthArguments {
    /// Size and modalities
    #[arg(long, value_enum)]
    pub shape: Shape,
    /// The folder to write
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Key of every random draw
    #[arg(long, value_name = "N", default_value_t = 999)]
    pub seed: u64,
    /// Numbers of the feature files
    #[arg(long, value_name = "TYPE", value_enum, default_value = "f32")]
    pub feature_type: FeatureType,
    /// Replace a data set that is already there
    #[arg(long)]
    pub overwrite: bool,
}

const AFTER_HELP: &str = "\
Examples:
  bm3-engine synth --shape tiny --out data/tiny
  bm3-engine synth --shape electronics --feature-type f16 --out data/elec-shape

The interactions follow made-up tastes that the features carry, so that a model can learn something;
the figures it reaches say nothing about the real set of that name.";

/// The size of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// A few hundred users and items: seconds to train
    Tiny,
    /// Amazon Baby: 19,445 users, 7,050 items
    Baby,
    /// Amazon Sports: 35,598 users, 18,357 items
    Sports,
    /// Amazon Electronics: 192,403 users, 63,001 items
    Electronics,
}

impl From<Shape> for synth::Shape {
    fn from(shape: Shape) -> Self {
        match shape {
            Shape::Tiny => Self::Tiny,
            Shape::Baby => Self::Baby,
            Shape::Sports => Self::Sports,
            Shape::Electronics => Self::Electronics,
        }
    }
}

pub fn run(arguments: &SynthArguments) -> anyhow::Result<()> {
    let options = SynthOptions {
        shape: arguments.shape.into(),
        seed: arguments.seed,
        feature_type: arguments.feature_type.into(),
        overwrite: arguments.overwrite,
    };
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
        "{msg:12} {wide_bar} {human_pos}/{human_len} items",
    )?);
    let mut progress = |what: &str, done: usize, all: usize| {
        bar.set_length(all as u64);
        bar.set_message(what.to_owned());
        bar.set_position(done as u64);
    };
    let sizes = synth::generate(&options, &arguments.out, &mut progress)?;
    bar.finish_and_clear();
    let [train, valid, test] = sizes.pairs;
    eprintln!(
        "{}: {} users, {} items, {train} training, {valid} validation, {test} test pairs; image \
         ({}), text ({})",
        arguments.out.display(),
        sizes.users,
        sizes.items,
        sizes.image,
        sizes.text
    );
    Ok(())
}
