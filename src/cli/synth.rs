//! `bm3-engine synth`

use std::path::PathBuf;

use bm3_engine::synth::{self, SynthOptions};
use bm3_engine::text::grouped;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};

use super::output::counted;
use super::prepare::FeatureType;

/// Make a data set of a known shape, to try things out and to measure speed
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct SynthArguments {
    /// Size and modalities
    #[arg(long, value_enum)]
    pub shape: Shape,
    /// Number of users, instead of the shape's
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub users: Option<usize>,
    /// Number of items, instead of the shape's
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub items: Option<usize>,
    /// Number of interactions, instead of the shape's; a tenth each goes to validation and test
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub interactions: Option<usize>,
    /// Width of the image features, instead of the shape's; 0 for none
    #[arg(long, value_name = "D", allow_negative_numbers = true)]
    pub image: Option<usize>,
    /// Width of the text features, instead of the shape's; 0 for none
    #[arg(long, value_name = "D", allow_negative_numbers = true)]
    pub text: Option<usize>,
    /// The folder to write
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Key of every random draw
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = 999)]
    pub seed: u64,
    /// Number type of the feature files
    #[arg(long, value_name = "TYPE", value_enum, default_value = "f32")]
    pub feature_type: FeatureType,
    /// Replace an existing data set and all of its files
    #[arg(long)]
    pub overwrite: bool,
}

const AFTER_HELP: &str = "\
Examples:
  bm3-engine synth --shape tiny --out data/tiny
  bm3-engine synth --shape electronics --feature-type f16 --out data/elec-shape
  bm3-engine synth --shape baby --items 100000 --interactions 1000000 --image 512 --out data/large

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

impl SynthArguments {
    fn options(&self) -> SynthOptions {
        let mut options = SynthOptions::new(self.shape.into(), self.seed);
        let of_shape = options.sizes;
        let sizes = &mut options.sizes;
        sizes.users = self.users.unwrap_or(sizes.users);
        sizes.items = self.items.unwrap_or(sizes.items);
        sizes.image = self.image.unwrap_or(sizes.image);
        sizes.text = self.text.unwrap_or(sizes.text);
        if let Some(all) = self.interactions {
            sizes.pairs = [all - 2 * (all / 10), all / 10, all / 10];
        }
        if *sizes != of_shape {
            options.name += "-resized";
        }
        options.feature_type = self.feature_type.into();
        options.overwrite = self.overwrite;
        options
    }
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
    let options = arguments.options();
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
    let modalities: Vec<String> = [("image", sizes.image), ("text", sizes.text)]
        .into_iter()
        .filter(|&(_, columns)| columns > 0)
        .map(|(name, columns)| format!("{name} ({columns})"))
        .collect();
    eprintln!(
        "{}: {}, {}, {} training, {} validation, {} test pairs{}{}",
        arguments.out.display(),
        counted(sizes.users as u64, "user"),
        counted(sizes.items as u64, "item"),
        grouped(train as u64),
        grouped(valid as u64),
        grouped(test as u64),
        if modalities.is_empty() { "" } else { "; " },
        modalities.join(", "),
    );
    Ok(())
}
