//! Turns raw interactions with any ids into a folder to train on.
//!
//! The steps: read, filter by rating, collapse duplicates, reduce to the k-core, split each user's
//! interactions, number users and items by first appearance, bring features into the order of the
//! items. Everything is checked before the first file is written.

mod columnar;
mod features;
mod filter;
mod table;
mod time;

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::data::{Earlier, FeatureFile, FeatureType, IdMaps};
use crate::files::{self, Together};
use crate::{Error, Result};
use features::AlignedFeatures;
use table::{Needs, Table};

pub use columnar::ColumnarFormat;
pub use table::Delimiter;

/// Where the interactions come from and how the table is read.
#[derive(Debug, Clone, PartialEq)]
pub struct TableOptions {
    /// The file: delimited text, Parquet or Arrow IPC.
    pub path: PathBuf,
    /// The user's column, by name or by number from 1; found by usual names when absent.
    pub user_column: Option<String>,
    /// The item's column, likewise.
    pub item_column: Option<String>,
    /// The rating's column, likewise; only needed for `min_rating`.
    pub rating_column: Option<String>,
    /// The time's column, likewise; only needed to split by time.
    pub time_column: Option<String>,
    /// The column that names each interaction's split, for [`SplitMethod::Given`].
    pub split_column: Option<String>,
    /// The column separator of text; guessed from the first line when absent.
    pub delimiter: Option<Delimiter>,
    /// Whether the first line of text names the columns.
    pub has_header: bool,
}

/// How each user's interactions are split.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SplitMethod {
    /// At random, keyed by a seed.
    Random {
        /// Key of the draw.
        seed: u64,
    },
    /// The latest are for testing, those before them for validation.
    Time,
    /// The last is for testing, the one before it for validation (by time, or in the file's order).
    LeaveOneOut,
    /// As [`TableOptions::split_column`] says.
    Given,
}

/// What to do with an item without features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingFeatures {
    /// Refuse it.
    Error,
    /// A row of zeros.
    Zero,
    /// The mean of the existing rows.
    Mean,
    /// The item is removed with its interactions, before the k-core is taken.
    DropItem,
}

/// A modality's features, and the items they belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureInput {
    /// The modality.
    pub name: String,
    /// Its files; the rows of several are joined in order.
    pub files: Vec<FeatureFile>,
    /// Files of the item ids of its rows, one per line, joined in order; if there are none, row i
    /// belongs to the item with id `i`.
    pub ids: Vec<PathBuf>,
}

/// What to prepare.
#[derive(Debug, Clone, PartialEq)]
pub struct PrepareOptions {
    /// The interactions.
    pub table: TableOptions,
    /// Keeps only interactions rated at least this.
    pub min_rating: Option<f64>,
    /// Repeatedly removes users and items with fewer interactions than this; 0 keeps all.
    pub k_core: usize,
    /// How to split the interactions.
    pub split_method: SplitMethod,
    /// Shares of training, validation and test.
    pub shares: [f64; 3],
    /// The modalities.
    pub features: Vec<FeatureInput>,
    /// What to do with items without features.
    pub missing_features: MissingFeatures,
    /// The type of the features written: f16 or f32.
    pub feature_type: FeatureType,
    /// The data set's name.
    pub name: String,
    /// The folder to write.
    pub out: PathBuf,
    /// Whether to replace an existing data set and all of its files.
    pub overwrite: bool,
}

/// The counts at one stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Users with an interaction.
    pub users: usize,
    /// Items with an interaction.
    pub items: usize,
    /// Interactions.
    pub interactions: usize,
}

/// What was done.
#[derive(Debug, Clone, PartialEq)]
pub struct PrepareSummary {
    /// The counts after each stage, by its name.
    pub stages: Vec<(&'static str, Counts)>,
    /// Interactions of the training, validation and test split.
    pub splits: [usize; 3],
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// An interaction; users and items are positions in the table's lists of ids.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Interaction {
    user: u32,
    item: u32,
    rating: Option<f64>,
    time: Option<f64>,
    /// 0 for training, 1 for validation, 2 for testing, if the table says so.
    split: u8,
}

/// Prepares a data set; `progress` receives the name of each step.
///
/// # Errors
/// [`Error::Prepare`] for a malformed table or features, [`Error::Setting`] for options that cannot
/// be used, [`Error::Io`]. Nothing is written unless every check passes.
pub fn prepare(options: &PrepareOptions, progress: &mut dyn FnMut(&str)) -> Result<PrepareSummary> {
    if !matches!(options.feature_type, FeatureType::F16 | FeatureType::F32) {
        let problem = format!("`{}` found, `f32` or `f16` expected", options.feature_type);
        return Err(Error::setting("--feature-type", problem));
    }
    if options.split_method == SplitMethod::Given && options.table.split_column.is_none() {
        let problem = "not given, the column that names each interaction's split expected";
        return Err(Error::setting("--split-column", problem));
    }
    let outputs = Outputs::new(options);
    let written: Vec<&Path> = outputs.all().collect();
    let earlier = Earlier::find(&options.out, &written, &inputs(options), options.overwrite)?;
    progress("reading interactions");
    let by_time = options.split_method == SplitMethod::Time;
    let needs = Needs {
        rating: options.min_rating.is_some(),
        time: by_time,
        // Where times order the rows, one that cannot be read would misplace its row.
        every_time: by_time || options.split_method == SplitMethod::LeaveOneOut,
    };
    let Table { users, items, mut rows, has_times, has_split } =
        Table::read(&options.table, needs)?;
    let mut warnings = Vec::new();
    if options.split_method == SplitMethod::LeaveOneOut && !has_times {
        warnings.push(
            "there is no column of times, so each user's last interaction is the last in the file; \
             if there is one by another name, give --time-column"
                .to_owned(),
        );
    }
    if has_split && options.table.split_column.is_none() {
        warnings.push(
            "the column x_label is not used: the interactions are split anew; give --split-column \
             x_label to keep its split"
                .to_owned(),
        );
    }
    let mut stages = vec![("read", counts(&rows))];
    if let Some(least) = options.min_rating {
        rows.retain(|row| row.rating.is_some_and(|rating| rating >= least));
        stages.push(("rated high enough", counts(&rows)));
    }
    filter::collapse_duplicates(&mut rows);
    stages.push(("without repetitions", counts(&rows)));

    progress("reading features");
    let mut aligned = options
        .features
        .iter()
        .map(|input| AlignedFeatures::open(input, &items))
        .collect::<Result<Vec<_>>>()?;
    if options.missing_features == MissingFeatures::DropItem {
        rows.retain(|row| aligned.iter().all(|features| features.has(row.item)));
        stages.push(("with features", counts(&rows)));
    }
    if options.k_core > 0 {
        filter::reduce_to_core(&mut rows, options.k_core);
        stages.push(("in the core", counts(&rows)));
    }
    if rows.is_empty() {
        return Err(Error::from(PrepareError::NothingLeft {
            path: options.table.path.clone(),
            stages: describe(&stages),
        }));
    }
    let labels = filter::split(&rows, options.split_method, options.shares);
    let (user_ids, item_ids) =
        (renumber(rows.iter().map(|row| row.user)), renumber(rows.iter().map(|row| row.item)));
    for features in &mut aligned {
        features.arrange(&item_ids.order, &items, options.missing_features, &mut warnings)?;
        if options.feature_type == FeatureType::F16 {
            features.check_half()?;
        }
    }
    let splits = [0, 1, 2].map(|label| labels.iter().filter(|&&other| other == label).count());
    for (number, split) in [(1, "validation"), (2, "test")] {
        let reason = match options.split_method {
            SplitMethod::Given => "",
            SplitMethod::LeaveOneOut => ": the users have too few",
            _ if options.shares[number] > 0.0 => ": the users have too few for its share",
            _ => continue,
        };
        if splits[number] == 0 {
            warnings.push(format!("no interaction is in the {split} split{reason}"));
        }
    }
    let mut trained = vec![false; item_ids.order.len()];
    for (row, &label) in rows.iter().zip(&labels) {
        trained[item_ids.number[&row.item] as usize] |= label == 0;
    }
    let untrained = trained.iter().filter(|&&trained| !trained).count();
    if untrained > 0 {
        warnings
            .push(format!("{untrained} items have no training interaction, only held-out ones"));
    }

    progress("writing");
    let raw = |order: &[u32], ids: &[String]| -> Vec<String> {
        order.iter().map(|&id| ids[id as usize].clone()).collect()
    };
    let maps = IdMaps { users: raw(&user_ids.order, &users), items: raw(&item_ids.order, &items) };
    let new = Together::begin(&options.out)?;
    new.write(|folder| {
        let outputs = outputs.within(folder);
        for (features, path) in aligned.iter().zip(&outputs.features) {
            features.write(path, options.feature_type)?;
        }
        maps.write(folder)?;
        write_interactions(&outputs.interactions, &rows, &labels, &user_ids, &item_ids)
    })?;
    earlier.replace(new, &written)?;
    Ok(PrepareSummary { stages, splits, warnings })
}

fn describe(stages: &[(&'static str, Counts)]) -> String {
    stages
        .iter()
        .map(|(stage, counts)| format!("{} {stage}", counts.interactions))
        .collect::<Vec<_>>()
        .join(", ")
}

fn counts(rows: &[Interaction]) -> Counts {
    let distinct = |id: fn(&Interaction) -> u32| {
        rows.iter().map(id).collect::<std::collections::HashSet<u32>>().len()
    };
    Counts {
        users: distinct(|row| row.user),
        items: distinct(|row| row.item),
        interactions: rows.len(),
    }
}

/// New numbers for ids, by first appearance.
struct Numbers {
    order: Vec<u32>,
    number: HashMap<u32, u32>,
}

fn renumber(ids: impl Iterator<Item = u32>) -> Numbers {
    let mut numbers = Numbers { order: Vec::new(), number: HashMap::new() };
    for id in ids {
        numbers.number.entry(id).or_insert_with(|| {
            numbers.order.push(id);
            numbers.order.len() as u32 - 1
        });
    }
    numbers
}

/// The files to read.
fn inputs(options: &PrepareOptions) -> Vec<&Path> {
    let mut paths = vec![&*options.table.path];
    for input in &options.features {
        paths.extend(input.files.iter().map(|file| &*file.path));
        paths.extend(input.ids.iter().map(|path| &**path));
    }
    paths
}

/// The files to write.
struct Outputs {
    interactions: PathBuf,
    maps: [PathBuf; 2],
    features: Vec<PathBuf>,
}

impl Outputs {
    fn new(options: &PrepareOptions) -> Self {
        let file = |name: String| options.out.join(name);
        Self {
            interactions: file(format!("{}.inter", options.name)),
            maps: IdMaps::paths(&options.out),
            features: options
                .features
                .iter()
                .map(|input| file(format!("{}_feat.npy", input.name)))
                .collect(),
        }
    }

    /// The same files in another folder.
    fn within(&self, folder: &Path) -> Self {
        let there = |path: &PathBuf| folder.join(path.file_name().unwrap_or_default());
        Self {
            interactions: there(&self.interactions),
            maps: self.maps.each_ref().map(there),
            features: self.features.iter().map(there).collect(),
        }
    }

    /// All, the interactions last: a folder without them is known to be unfinished.
    fn all(&self) -> impl Iterator<Item = &Path> {
        self.features.iter().chain(&self.maps).chain([&self.interactions]).map(|path| &**path)
    }
}

fn write_interactions(
    path: &Path,
    rows: &[Interaction],
    labels: &[u8],
    users: &Numbers,
    items: &Numbers,
) -> Result<()> {
    files::write_atomic(path, |writer| {
        let wrong = |error| Error::io(path, "write", error);
        writeln!(writer, "userID\titemID\trating\ttimestamp\tx_label").map_err(wrong)?;
        for (position, (row, label)) in rows.iter().zip(labels).enumerate() {
            let (user, item) = (users.number[&row.user], items.number[&row.item]);
            let rating = row.rating.unwrap_or(1.0);
            // Without a time, the position keeps the order of the file.
            let time = row.time.unwrap_or(position as f64);
            writeln!(writer, "{user}\t{item}\t{rating}\t{time}\t{label}").map_err(wrong)?;
        }
        Ok(())
    })
}

/// Errors in raw interactions and their features.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum PrepareError {
    #[error("{}: is empty; expected one interaction a line or row", path.display())]
    Empty { path: PathBuf },

    #[error("{}: line {line}: {problem}", path.display())]
    Malformed { path: PathBuf, line: u64, problem: String },

    #[error(
        "{}: is {format}, and this program was built to read text; build it with `cargo build \
         --release --features parquet`, or save the table as CSV",
        path.display()
    )]
    NotBuiltFor { path: PathBuf, format: ColumnarFormat },

    #[error("{}: not whole {format} ({problem}); write it again", path.display())]
    BrokenTable { path: PathBuf, format: ColumnarFormat, problem: String },

    #[error(
        "{}: column `{column}`, the {what}'s, is of type {found}; expected {expected}",
        path.display()
    )]
    ColumnType {
        path: PathBuf,
        column: String,
        what: &'static str,
        found: String,
        expected: &'static str,
    },

    #[error(
        "{}: row {row} (of 0, 1, …): column `{column}`, the {what}'s, is {found}; expected {expected}",
        path.display()
    )]
    BadCell {
        path: PathBuf,
        row: usize,
        column: String,
        what: &'static str,
        found: String,
        expected: &'static str,
    },

    #[error(
        "{}: no column for the {what}{}; found {found}; {advice}",
        path.display(),
        wanted.as_ref().map(|name| format!(" called `{name}`")).unwrap_or_default(),
    )]
    NoColumn {
        path: PathBuf,
        what: &'static str,
        wanted: Option<String>,
        found: String,
        /// What to do.
        advice: Box<str>,
    },

    #[error(
        "{}: line {line}: the {what} is \"{found}\"; expected {expected}",
        path.display()
    )]
    BadField { path: PathBuf, line: u64, what: &'static str, found: String, expected: &'static str },

    #[error(
        "{}: no interaction is left ({stages}); lower --k-core or --min-rating",
        path.display()
    )]
    NothingLeft { path: PathBuf, stages: String },

    #[error(
        "{ids}: {found} items are named; {features}: has {rows} rows, and each line must be the id \
         of one row"
    )]
    IdCount { ids: String, features: String, found: usize, rows: usize },

    #[error(
        "{place}: row {row}, column {column} is {value}, beyond the largest f16 (65504); write \
         --feature-type f32"
    )]
    BeyondHalf { place: String, row: usize, column: usize, value: f32 },

    #[error("{}: line {line}: item \"{id}\" is there twice; give each item one row", path.display())]
    DoubleId { path: PathBuf, line: usize, id: String },

    #[error(
        "{place}: has no features for {count} of {items} items (among them {examples}); add them, \
         or choose with --missing-features zero, mean or drop-item"
    )]
    Missing { place: String, count: usize, items: usize, examples: String },

    #[error(
        "{place}: has features for none of {items} items (the first is {wanted}; {found}); name each \
         row's item with --feature-ids, one id per line as in the interactions"
    )]
    NoneMatch { place: String, items: usize, wanted: String, found: String },
}
