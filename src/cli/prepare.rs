//! `bm3-engine prepare`

use std::path::PathBuf;

use bm3_engine::config::{FeatureSource, SplitRatio};
use bm3_engine::prepare::{self, Delimiter, FeatureInput, PrepareOptions, TableOptions};
use bm3_engine::{Error, Result};
use clap::ValueEnum;

use super::output;

/// Make a data folder from a table of interactions and feature files
///
/// Numbers users and items, removes rare ones (k-core), splits the interactions and puts features
/// in the order of the items. The folder also keeps the original ids.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct PrepareArguments {
    /// The table: text, one interaction per line, with columns separated by commas, tabs or
    /// --delimiter; or Parquet or Arrow IPC, if the program is built with the feature `parquet`
    #[arg(long, value_name = "FILE", help_heading = "Interactions")]
    interactions: PathBuf,
    /// Column of the user's id, by name or by number from 1 [default: found by usual names;
    /// with --no-header, 1]
    #[arg(long, value_name = "COLUMN", help_heading = "Interactions")]
    user_column: Option<String>,
    /// Column of the item's id [default: found by usual names; with --no-header, 2]
    #[arg(long, value_name = "COLUMN", help_heading = "Interactions")]
    item_column: Option<String>,
    /// Column of the rating, for --min-rating [default: found by usual names]
    #[arg(long, value_name = "COLUMN", help_heading = "Interactions")]
    rating_column: Option<String>,
    /// Column of the time, for the split methods that need it: numbers, or dates as in 2026-11-28
    /// or 2026-11-28T09:30:00Z [default: found by usual names]
    #[arg(long, value_name = "COLUMN", help_heading = "Interactions")]
    time_column: Option<String>,
    /// Keep only interactions rated at least this
    #[arg(
        long,
        value_name = "RATING",
        allow_negative_numbers = true,
        value_parser = rating,
        help_heading = "Interactions"
    )]
    min_rating: Option<f64>,
    /// What separates columns: one character, `tab`, or `::` [default: what the first line has]
    #[arg(long, value_name = "CHARACTER", value_parser = delimiter, help_heading = "Interactions")]
    delimiter: Option<Delimiter>,
    /// The first line is an interaction, not a header; columns go by number
    #[arg(long, help_heading = "Interactions")]
    no_header: bool,
    /// Repeatedly remove users and items with fewer interactions than this; 0 keeps all
    #[arg(
        long,
        value_name = "K",
        default_value_t = 5,
        allow_negative_numbers = true,
        help_heading = "Interactions"
    )]
    k_core: usize,

    /// How to split the interactions
    #[arg(
        long,
        value_name = "METHOD",
        value_enum,
        default_value = "random",
        help_heading = "Split"
    )]
    split_method: SplitMethod,
    /// Keep the split that this column names for each interaction: 0, 1 or 2, or train, valid or
    /// test; --k-core 0 keeps all of it
    #[arg(
        long,
        value_name = "COLUMN",
        conflicts_with_all = ["split_method", "split", "seed"],
        help_heading = "Split"
    )]
    split_column: Option<String>,
    /// Shares for training, validation and test [default: 0.8,0.1,0.1]
    #[arg(long, value_name = "SHARES", allow_hyphen_values = true, help_heading = "Split")]
    split: Option<SplitRatio>,
    /// Key of the random split
    #[arg(
        long,
        value_name = "N",
        default_value_t = 999,
        allow_negative_numbers = true,
        help_heading = "Split"
    )]
    seed: u64,

    /// A modality's features, one row per item (may be repeated): a .npy file, a two-dimensional
    /// tensor of a .safetensors file (FILE.safetensors:TENSOR), or several, whose rows are joined
    /// in order: FILE,FILE or a pattern as in 'image=part-*.npy', sorted by the numbers in the
    /// names
    #[arg(long = "feature", value_name = "NAME=FILE[,FILE…]", help_heading = "Features")]
    features: Vec<FeatureSource>,
    /// The item ids of a modality's rows, one per line, in one file or several as for --feature
    /// [default: row 0 is the item with the id 0, and so on]
    #[arg(long, value_name = "NAME=FILE[,FILE…]", help_heading = "Features")]
    feature_ids: Vec<FeatureSource>,
    /// What to do with an item that has no row
    #[arg(
        long,
        value_name = "ACTION",
        value_enum,
        default_value = "error",
        help_heading = "Features"
    )]
    missing_features: MissingFeatures,
    /// Number type of the feature files written
    #[arg(long, value_name = "TYPE", value_enum, default_value = "f32", help_heading = "Features")]
    feature_type: FeatureType,

    /// Name of the data set [default: the name of the folder]
    #[arg(long, value_name = "NAME", help_heading = "Output")]
    name: Option<String>,
    /// The folder to write
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: PathBuf,
    /// Replace an existing data set and all of its files
    #[arg(long, help_heading = "Output")]
    overwrite: bool,
}

const AFTER_HELP: &str = "\
Examples:
  A CSV of ratings with a header, features in the order of the item ids:
    bm3-engine prepare --interactions ratings.csv --min-rating 4 --feature image=image.npy \\
        --out data/mine

  A Parquet table (after cargo build --release --features parquet), split by its times:
    bm3-engine prepare --interactions events.parquet --user-column customer --item-column sku \\
        --time-column at --split-method time --out data/shop

  A headless table, text features with ids of their own, the newest interactions for testing:
    bm3-engine prepare --interactions u.data --no-header --user-column 1 --item-column 2 \\
        --time-column 4 --split-method time --feature text=text.npy \\
        --feature-ids text=text_ids.txt --missing-features mean --out data/ml100k";

/// How to split interactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SplitMethod {
    /// Each user's interactions at random
    Random,
    /// Each user's interactions by time: the last ones for testing
    Time,
    /// Each user's last interaction for testing, the one before it for validation: by time or,
    /// without times, in the order of the file
    LeaveOneOut,
}

/// What to do with an item without features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MissingFeatures {
    /// Stop and say which
    Error,
    /// A row of zeros
    Zero,
    /// The mean of all rows
    Mean,
    /// The item is removed with its interactions
    DropItem,
}

/// Number type of feature files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FeatureType {
    /// 32 bits
    F32,
    /// 16 bits: half the size, three decimal digits
    F16,
}

impl From<MissingFeatures> for prepare::MissingFeatures {
    fn from(missing: MissingFeatures) -> Self {
        match missing {
            MissingFeatures::Error => Self::Error,
            MissingFeatures::Zero => Self::Zero,
            MissingFeatures::Mean => Self::Mean,
            MissingFeatures::DropItem => Self::DropItem,
        }
    }
}

impl From<FeatureType> for bm3_engine::data::FeatureType {
    fn from(feature_type: FeatureType) -> Self {
        match feature_type {
            FeatureType::F32 => Self::F32,
            FeatureType::F16 => Self::F16,
        }
    }
}

pub fn run(arguments: &PrepareArguments) -> anyhow::Result<()> {
    let options = options(arguments)?;
    let summary = prepare::prepare(&options, &mut |what| eprintln!("{what} …"))?;
    for warning in &summary.warnings {
        eprintln!("warning: {warning}");
    }
    let mut text = String::new();
    for (stage, counts) in &summary.stages {
        text.push_str(&format!(
            "{stage:20}  {:>9} users  {:>9} items  {:>10} interactions\n",
            counts.users, counts.items, counts.interactions
        ));
    }
    let [train, valid, test] = summary.splits;
    text.push_str(&format!("split  {train} training, {valid} validation, {test} test\n"));
    text.push_str(&format!("wrote {}\n", options.out.display()));
    output::print(&text)
}

fn options(arguments: &PrepareArguments) -> Result<PrepareOptions> {
    if arguments.split_method == SplitMethod::LeaveOneOut && arguments.split.is_some() {
        let problem = "--split-method leave-one-out has no shares; leave one of the two out";
        return Err(Error::setting("--split", problem));
    }
    let shares =
        arguments.split.map_or([0.8, 0.1, 0.1], |split| [split.train, split.valid, split.test]);
    Ok(PrepareOptions {
        table: TableOptions {
            path: arguments.interactions.clone(),
            user_column: arguments.user_column.clone(),
            item_column: arguments.item_column.clone(),
            rating_column: arguments.rating_column.clone(),
            time_column: arguments.time_column.clone(),
            split_column: arguments.split_column.clone(),
            delimiter: arguments.delimiter,
            has_header: !arguments.no_header,
        },
        min_rating: arguments.min_rating,
        k_core: arguments.k_core,
        split_method: match arguments.split_method {
            _ if arguments.split_column.is_some() => prepare::SplitMethod::Given,
            SplitMethod::Random => prepare::SplitMethod::Random { seed: arguments.seed },
            SplitMethod::Time => prepare::SplitMethod::Time,
            SplitMethod::LeaveOneOut => prepare::SplitMethod::LeaveOneOut,
        },
        shares,
        features: tables(&arguments.features, &arguments.feature_ids)?,
        missing_features: arguments.missing_features.into(),
        feature_type: arguments.feature_type.into(),
        name: name(arguments)?,
        out: arguments.out.clone(),
        overwrite: arguments.overwrite,
    })
}

/// Pairs each `--feature` with the `--feature-ids` of the same name.
fn tables(features: &[FeatureSource], ids: &[FeatureSource]) -> Result<Vec<FeatureInput>> {
    for (flag, sources) in [("--feature", features), ("--feature-ids", ids)] {
        for (position, source) in sources.iter().enumerate() {
            if sources[..position].iter().any(|earlier| earlier.name == source.name) {
                return Err(Error::setting(flag, source.given_twice()));
            }
        }
    }
    if let Some(lonely) = ids.iter().find(|ids| !features.iter().any(|f| f.name == ids.name)) {
        let problem = format!("there is no --feature {}=FILE for these ids", lonely.name);
        return Err(Error::setting("--feature-ids", problem));
    }
    let table = |feature: &FeatureSource| {
        let ids = match ids.iter().find(|ids| ids.name == feature.name) {
            Some(ids) => ids.resolve("--feature-ids")?.files,
            None => Vec::new(),
        };
        if let Some(file) = ids.iter().find(|file| file.tensor.is_some()) {
            let problem = format!("`{file}` found, a text file with one id per line expected");
            return Err(Error::setting("--feature-ids", problem));
        }
        let FeatureSource { name, files } = feature.resolve("--feature")?;
        Ok(FeatureInput { name, files, ids: ids.into_iter().map(|file| file.path).collect() })
    };
    features.iter().map(table).collect()
}

/// The name given, or that of the output folder.
fn name(arguments: &PrepareArguments) -> Result<String> {
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None => {
            let folder = std::path::absolute(&arguments.out)
                .map_err(|error| Error::io(&arguments.out, "find", error))?;
            folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
        }
    };
    if name.is_empty() || name.contains(std::path::is_separator) {
        let problem = format!("`{name}` found, a file's name without its ending expected");
        return Err(Error::setting("--name", problem));
    }
    Ok(name)
}

/// Parses a rating.
fn rating(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite());
    number.ok_or_else(|| "a number expected, as in 4".to_owned())
}

/// Parses a column separator.
fn delimiter(text: &str) -> Result<Delimiter, String> {
    match text {
        "tab" | "\\t" => Ok(Delimiter::Character(b'\t')),
        "::" => Ok(Delimiter::DoubleColon),
        other => match other.as_bytes() {
            // Line breaks and quotes have a meaning; a record separator marks a text's end in
            // `prepare/table.rs`.
            &[byte] if byte.is_ascii() && !b"\n\r\"\x1e".contains(&byte) => {
                Ok(Delimiter::Character(byte))
            }
            _ => Err("one character, `tab` or `::` expected".into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        prepare: PrepareArguments,
    }

    fn requested(arguments: &[&str]) -> Result<PrepareOptions> {
        let always = ["prepare", "--interactions", "i.csv", "--out", "data/mine"];
        let command = Command::try_parse_from(always.iter().chain(arguments)).unwrap();
        options(&command.prepare)
    }

    #[test]
    fn features_meet_their_ids() {
        let request = requested(&[
            "--feature=image=i.npy",
            "--feature=text=t.npy",
            "--feature-ids=text=t.txt",
        ])
        .unwrap();
        let [image, text] = request.features.as_slice() else { panic!("{request:?}") };
        assert_eq!((image.name.as_str(), &image.ids), ("image", &vec![]));
        let ids = vec![std::path::absolute("t.txt").unwrap()];
        assert_eq!((text.name.as_str(), &text.ids), ("text", &ids));
        assert_eq!(request.name, "mine");
        assert_eq!((request.k_core, request.table.has_header), (5, true));
    }

    #[test]
    fn contradictions_name_their_flag() {
        for (arguments, expected) in [
            (&["--feature-ids=text=t.txt"][..], "--feature-ids: there is no --feature text="),
            (&["--feature=a=1", "--feature=a=2"], "--feature: the modality `a` is given twice"),
            (
                &["--split-method=leave-one-out", "--split=0.8,0.1,0.1"],
                "--split: --split-method leave-one-out has no shares",
            ),
            (&["--feature=a=1", "--feature-ids=a=b.safetensors:c"], "--feature-ids: `"),
            (&["--name", "a/b"], "--name: `a/b` found"),
        ] {
            let error = requested(arguments).unwrap_err();
            assert!(error.is_input() && error.to_string().starts_with(expected), "{error}");
        }
    }

    #[test]
    fn a_delimiter_is_one_character_or_two_colons() {
        assert_eq!(delimiter("tab"), Ok(Delimiter::Character(b'\t')));
        assert_eq!(delimiter("\\t"), Ok(Delimiter::Character(b'\t')));
        assert_eq!(delimiter(";"), Ok(Delimiter::Character(b';')));
        assert_eq!(delimiter(" "), Ok(Delimiter::Character(b' ')));
        assert_eq!(delimiter("::"), Ok(Delimiter::DoubleColon));
        for text in ["", ":::", ";;", "é", "\"", "\n"] {
            delimiter(text).unwrap_err();
        }
    }
}
