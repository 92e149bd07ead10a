//! A data set: interactions by split, and the features of its items.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use super::feature_file::FeatureFile;
use super::features::FeatureMatrix;
use super::folder::{check_name, feature_files, interactions_file, without_features};
use super::graphs::Graphs;
use super::inter::{self, Interactions, LARGEST_ID, absurd_id};
use super::{DataError, SplitRatio};
use crate::graph::Graph;

/// Pairs of a user and an item, in file order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pairs {
    /// User of each pair.
    pub users: Vec<u32>,
    /// Item of each pair.
    pub items: Vec<u32>,
}

/// The items to be found for each user of a validation or test split.
///
/// User `users[k]`'s items are `items[offsets[k]..offsets[k + 1]]`, in file order, repeats kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Split {
    /// Distinct users, in order of first appearance.
    pub users: Vec<u32>,
    /// `users.len() + 1` bounds into `items`.
    pub offsets: Vec<usize>,
    /// Items of all users, concatenated.
    pub items: Vec<u32>,
}

impl Split {
    /// Groups `pairs` by user, leaving out users for which `trained` is false; also returns the
    /// number of pairs left out.
    pub(crate) fn new(pairs: &Pairs, trained: &[bool]) -> (Self, usize) {
        let mut positions = HashMap::new();
        let mut users = Vec::new();
        let mut lists: Vec<Vec<u32>> = Vec::new();
        let mut dropped = 0;
        for (&user, &item) in pairs.users.iter().zip(&pairs.items) {
            if !trained.get(user as usize).is_some_and(|&trained| trained) {
                dropped += 1;
                continue;
            }
            let position = *positions.entry(user).or_insert_with(|| {
                users.push(user);
                lists.push(Vec::new());
                lists.len() - 1
            });
            lists[position].push(item);
        }
        let mut offsets = vec![0];
        let mut items = Vec::new();
        for list in lists {
            items.extend(list);
            offsets.push(items.len());
        }
        (Self { users, offsets, items }, dropped)
    }

    /// The items of the user at `position`.
    pub fn items_of(&self, position: usize) -> &[u32] {
        &self.items[self.offsets[position]..self.offsets[position + 1]]
    }
}

/// One modality's raw features: row i belongs to item i.
#[derive(Debug, Clone)]
pub struct Modality {
    /// `image`, `text`, `audio`, …
    pub name: String,
    /// I × D_m (more rows than items are allowed and ignored).
    pub features: Arc<FeatureMatrix>,
}

impl Modality {
    /// Features in memory: `columns` D_m, `values` row-major, row i for item i.
    ///
    /// # Errors
    /// [`DataError::Parts`] if the values do not make whole rows.
    pub fn new(
        name: impl Into<String>,
        columns: usize,
        values: impl Into<Vec<f32>>,
    ) -> Result<Self, DataError> {
        let values = values.into();
        let rows = values.len() / columns.max(1);
        let features = Arc::new(FeatureMatrix::from_f32(rows, columns, values)?);
        Ok(Self { name: name.into(), features })
    }

    /// Refuses a table with fewer rows than there are items.
    fn check_rows(&self, items: usize) -> Result<(), DataError> {
        let rows = self.features.rows();
        if rows >= items {
            return Ok(());
        }
        let place = self.features.place();
        Err(DataError::TooFewRows { place, rows, items }.of_modality(&self.name))
    }
}

/// Everything a model is trained and measured on.
///
/// Its fields may be changed: derived values follow, and training checks the fields again
/// ([`Dataset::check`]).
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The name of the `.inter` file without its ending.
    pub name: String,
    /// U: one more than the largest user id of any split, or more if requested by
    /// [`DatasetBuilder::at_least`](super::DatasetBuilder::at_least).
    pub users: usize,
    /// I: one more than the largest item id of any split, or more likewise.
    pub items: usize,
    /// Training pairs, in file order.
    pub train: Pairs,
    /// Validation items by user.
    pub valid: Split,
    /// Test items by user.
    pub test: Split,
    /// Modalities, in the order of their names.
    pub modalities: Vec<Modality>,
    /// What the user should know about the files but need not change.
    pub warnings: Vec<String>,
    source: Option<Source>,
    graphs: Graphs,
}

/// Where a data set was read from, and what was read.
#[derive(Debug, Clone)]
struct Source {
    /// An absolute path, if the system could make one.
    folder: PathBuf,
    options: DatasetOptions,
    interactions: u64,
    modalities: Vec<Modality>,
}

/// What to read from a folder, and how.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DatasetOptions {
    /// Features by modality, in addition to the folder's `*_feat.npy` files, which they replace
    /// where names are equal. The rows of several files make one table, in the order of the files.
    pub features: Vec<(String, Vec<FeatureFile>)>,
    /// Only these modalities; an empty list means none.
    pub modalities: Option<Vec<String>>,
    /// Splits each user's interactions by these shares, instead of by `x_label`.
    pub split: Option<SplitRatio>,
}

/// The path from the root, if the system can tell.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

impl DatasetOptions {
    /// The same with absolute paths.
    fn absolute(&self) -> Self {
        let mut options = self.clone();
        for file in options.features.iter_mut().flat_map(|(_, files)| files) {
            file.path = absolute(&file.path);
        }
        options
    }
}

impl Dataset {
    /// Reads a folder in the MMRec layout.
    ///
    /// # Errors
    /// The first problem found. The folder is never written to.
    pub fn open(directory: &Path, options: &DatasetOptions) -> Result<Self, DataError> {
        Self::open_with(directory, options, &mut |_, _, _| ())
    }

    /// [`Dataset::open`], telling `progress` which modality's features are being read, and how many
    /// of how many bytes are done.
    ///
    /// # Errors
    /// The errors of [`Dataset::open`].
    pub fn open_with(
        directory: &Path,
        options: &DatasetOptions,
        progress: &mut dyn FnMut(&str, u64, u64),
    ) -> Result<Self, DataError> {
        let (path, name) = interactions_file(directory)?;
        let mut rows = inter::read(&path)?;
        let mut warnings = Vec::new();
        if let Some(split) = &options.split {
            if rows.labels.is_some() {
                warnings.push(format!(
                    "{}: --split replaces the split that its column x_label says",
                    path.display()
                ));
            }
            rows.labels = Some(split.labels(&rows));
        }
        let Some(labels) = &rows.labels else { return Err(DataError::NoSplit { path }) };
        let [train, valid, test] = [0, 1, 2].map(|label| with_label(&rows, labels, label));
        if train.users.is_empty() {
            return Err(DataError::EmptyTraining { path });
        }
        let modalities = feature_files(directory, options)?
            .into_iter()
            .map(|(name, files)| {
                let features = Arc::new(FeatureMatrix::open_all(&files)?);
                Ok(Modality { name, features })
            })
            .collect::<Result<Vec<_>, DataError>>()?;
        let mut dataset =
            Self::assemble(&name, train, [&valid, &test], (0, 0), modalities, progress)?;
        warnings.append(&mut dataset.warnings);
        dataset.warnings = warnings;
        dataset.source = Some(Source {
            folder: absolute(directory),
            options: options.absolute(),
            interactions: dataset.interactions_fingerprint(),
            modalities: dataset.modalities.clone(),
        });
        if dataset.modalities.is_empty() && options.modalities.is_none() {
            dataset.warnings.push(without_features(directory)?);
        }
        tracing::info!(
            folder = %directory.display(),
            users = dataset.users,
            items = dataset.items,
            train = dataset.train.users.len(),
            "opened a data set"
        );
        for Modality { name, features } in &dataset.modalities {
            tracing::debug!(name, columns = features.columns(), kept = ?features.dtype(), "modality");
        }
        Ok(dataset)
    }

    /// The folder it was read from, if it was; a run that trains on it keeps the folder's original
    /// ids.
    pub fn folder(&self) -> Option<&Path> {
        self.source.as_ref().map(|source| &*source.folder)
    }

    /// The folder it was read from and how it was read, if it was, and has not been changed since.
    pub fn source(&self) -> Option<(&Path, &DatasetOptions)> {
        let source = self.source.as_ref()?;
        let same = |(one, other): (&Modality, &Modality)| {
            one.name == other.name && Arc::ptr_eq(&one.features, &other.features)
        };
        let is_unchanged = self.interactions_fingerprint() == source.interactions
            && self.modalities.len() == source.modalities.len()
            && self.modalities.iter().zip(&source.modalities).all(same);
        is_unchanged.then_some((&*source.folder, &source.options))
    }

    /// The same interactions with these of its modalities only, in the same order; shares the features,
    /// and the graphs made so far.
    #[must_use]
    pub fn with_modalities(&self, names: &[String]) -> Self {
        let mut dataset = self.clone();
        dataset.modalities.retain(|modality| names.contains(&modality.name));
        if let Some(source) = &mut dataset.source {
            source.modalities.retain(|modality| names.contains(&modality.name));
            let left = source.modalities.iter().map(|modality| modality.name.clone());
            source.options.modalities = Some(left.collect());
        }
        dataset
    }

    /// A data set from memory, with the same checks as for a folder.
    ///
    /// # Errors
    /// No training pair or more than 2³² − 1, slices of different lengths, ids far beyond what so
    /// many interactions can need, duplicate modalities, too few feature rows, or features that are
    /// not finite.
    pub fn from_parts(
        name: &str,
        train: Pairs,
        valid: &Pairs,
        test: &Pairs,
        modalities: Vec<Modality>,
    ) -> Result<Self, DataError> {
        Self::assemble(name, train, [valid, test], (0, 0), modalities, &mut |_, _, _| ())
    }

    /// A data set of at least this many users and items.
    pub(super) fn assemble(
        name: &str,
        train: Pairs,
        [valid, test]: [&Pairs; 2],
        (least_users, least_items): (usize, usize),
        mut modalities: Vec<Modality>,
        progress: &mut dyn FnMut(&str, u64, u64),
    ) -> Result<Self, DataError> {
        let splits = [&train, valid, test];
        if splits.iter().any(|pairs| pairs.users.len() != pairs.items.len()) {
            let problem = "users and items of a split have different lengths";
            return Err(DataError::Parts(problem.to_owned()));
        }
        check_pairs(&train)?;
        let count = splits.iter().map(|pairs| pairs.users.len()).sum();
        for pairs in splits {
            for (what, ids) in [("user", &pairs.users), ("item", &pairs.items)] {
                let absurd = |id: &&u32| **id > LARGEST_ID || absurd_id(**id, count);
                if let Some(&id) = ids.iter().find(absurd) {
                    return Err(DataError::Parts(format!(
                        "{what} {id} found, far beyond what {count} interactions can need; numbers \
                         must count up from 0"
                    )));
                }
            }
        }
        let size = |ids: fn(&Pairs) -> &Vec<u32>| {
            let largest = splits.iter().flat_map(|pairs| ids(pairs)).max();
            largest.map_or(0, |&largest| largest as usize + 1)
        };
        let users = size(|pairs| &pairs.users).max(least_users);
        let items = size(|pairs| &pairs.items).max(least_items);
        let mut warnings = Vec::new();
        let (trained_users, seen_items) = (
            marks(users, train.users.iter()),
            marks(items, splits.iter().flat_map(|pairs| &pairs.items)),
        );
        let seen_users = marks(users, splits.iter().flat_map(|pairs| &pairs.users));
        for (what, seen) in [("user", &seen_users), ("item", &seen_items)] {
            let missing = seen.iter().filter(|&&seen| !seen).count();
            if missing > 0 {
                warnings.push(format!(
                    "{missing} of the {} {what} ids up to the largest have no interaction",
                    seen.len()
                ));
            }
        }
        let (valid, valid_dropped) = Split::new(valid, &trained_users);
        let (test, test_dropped) = Split::new(test, &trained_users);
        if valid_dropped + test_dropped > 0 {
            warnings.push(format!(
                "{valid_dropped} validation and {test_dropped} test interactions are left out: \
                 their users have no training interaction"
            ));
        }
        modalities.sort_by(|left, right| left.name.cmp(&right.name));
        for pair in modalities.windows(2) {
            if pair[0].name == pair[1].name {
                let problem = "given twice; give each modality one table of features".to_owned();
                return Err(DataError::Modality { name: pair[0].name.clone(), problem });
            }
        }
        for modality in &modalities {
            let Modality { name, features } = modality;
            check_name(name)?;
            modality.check_rows(items)?;
            if features.rows() > items {
                warnings.push(format!(
                    "modality {name}: {} rows for {items} items; the rows after them are ignored",
                    features.rows()
                ));
            }
            let bytes = |rows: usize| (rows * features.columns() * features.dtype().size()) as u64;
            features
                .check_finite_with(items, &mut |rows| progress(name, bytes(rows), bytes(items)))
                .map_err(|error| error.of_modality(name))?;
        }
        let name = name.to_owned();
        let graphs = Graphs::default();
        let source = None;
        Ok(Self { name, users, items, train, valid, test, modalities, warnings, source, graphs })
    }

    /// Checks what a change of the fields may have broken: lengths, ids beyond the numbers of users
    /// and items, and tables of features that are too short.
    ///
    /// # Errors
    /// [`DataError::Parts`] or [`DataError::TooFewRows`] with the problem.
    pub fn check(&self) -> Result<(), DataError> {
        let refuse = |problem: String| Err(DataError::Parts(problem));
        let most = LARGEST_ID as usize + 1;
        if self.users.max(self.items) > most {
            return refuse(format!(
                "{} users and {} items found, at most {most} of either expected",
                self.users, self.items
            ));
        }
        check_pairs(&self.train)?;
        let Self { train, valid, test, .. } = self;
        for (split, users, items) in [
            ("training", &train.users, &train.items),
            ("validation", &valid.users, &valid.items),
            ("test", &test.users, &test.items),
        ] {
            for (what, ids, count) in [("user", users, self.users), ("item", items, self.items)] {
                if let Some(id) = ids.iter().find(|&&id| id as usize >= count) {
                    return refuse(format!(
                        "{split} {what} {id} found, {what}s from 0 to {} expected: there are \
                         {count}",
                        count.saturating_sub(1)
                    ));
                }
            }
        }
        for (name, split) in [("validation", valid), ("test", test)] {
            let Split { users, offsets, items } = split;
            let bounds = offsets.len() == users.len() + 1
                && offsets.is_sorted()
                && offsets.first() == Some(&0)
                && offsets.last() == Some(&items.len());
            // A split without users needs no bounds.
            if !(bounds || users.is_empty() && items.is_empty()) {
                return refuse(format!(
                    "the offsets of the {name} split are not bounds of the items of its {} users",
                    users.len()
                ));
            }
        }
        self.modalities.iter().try_for_each(|modality| modality.check_rows(self.items))
    }

    /// The graph of the training pairs, shared by all callers as long as the pairs stay the same.
    ///
    /// # Panics
    /// If a changed data set has ids beyond its numbers of users and items; [`Dataset::check`]
    /// finds them.
    pub fn graph(&self, self_loops: bool) -> Arc<Graph> {
        self.graphs.get(&self.train, self.users, self.items, self_loops)
    }

    /// A hash of sizes, pairs and splits, on which evaluation and recommendations depend.
    ///
    /// 64-bit FNV-1a over little-endian words, so it is the same on every machine and in every
    /// version of this program.
    pub fn interactions_fingerprint(&self) -> u64 {
        let mut hash = Fingerprint::new();
        hash.word(self.users as u64);
        hash.word(self.items as u64);
        hash.ids(&self.train.users);
        hash.ids(&self.train.items);
        for split in [&self.valid, &self.test] {
            hash.ids(&split.users);
            split.offsets.iter().for_each(|&offset| hash.word(offset as u64));
            hash.ids(&split.items);
        }
        hash.0
    }

    /// A hash of each modality's features, over the rows of the I items.
    pub fn features_fingerprints(&self) -> Vec<u64> {
        self.modalities.iter().map(|modality| modality.features.fingerprint(self.items)).collect()
    }

    /// Refuses feature files that were modified since they were opened.
    ///
    /// # Errors
    /// [`DataError::Changed`].
    pub fn check_unchanged(&self) -> Result<(), DataError> {
        self.modalities.iter().try_for_each(|modality| modality.features.check_unchanged())
    }
}

struct Fingerprint(u64);

impl Fingerprint {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn word(&mut self, word: u64) {
        for byte in word.to_le_bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn ids(&mut self, ids: &[u32]) {
        self.word(ids.len() as u64);
        ids.iter().for_each(|&id| self.word(u64::from(id)));
    }
}

/// The most training pairs: an epoch's order and a model's file count them in 32 bits.
const MOST_PAIRS: usize = u32::MAX as usize;

/// Refuses unequal slices, and no or too many training pairs.
fn check_pairs(train: &Pairs) -> Result<(), DataError> {
    if train.users.len() != train.items.len() {
        return Err(DataError::Parts(format!(
            "{} training users and {} items found, pairs expected",
            train.users.len(),
            train.items.len()
        )));
    }
    check_count(train.users.len())
}

fn check_count(pairs: usize) -> Result<(), DataError> {
    match pairs {
        0 => Err(DataError::Parts("there is no training interaction".to_owned())),
        1..=MOST_PAIRS => Ok(()),
        _ => Err(DataError::Parts(format!(
            "{pairs} training interactions found, at most {MOST_PAIRS} expected; train on a part \
             of them"
        ))),
    }
}

fn marks<'a>(size: usize, ids: impl Iterator<Item = &'a u32>) -> Vec<bool> {
    let mut marks = vec![false; size];
    ids.for_each(|&id| marks[id as usize] = true);
    marks
}

fn with_label(rows: &Interactions, labels: &[u8], label: u8) -> Pairs {
    let (users, items) = (0..labels.len())
        .into_par_iter()
        .filter(|&row| labels[row] == label)
        .map(|row| (rows.users[row], rows.items[row]))
        .unzip();
    Pairs { users, items }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset() -> Dataset {
        let train = Pairs { users: vec![0, 1], items: vec![0, 1] };
        let valid = Pairs { users: vec![1], items: vec![2] };
        let text = Modality::new("text", 1, [0.5; 3]).unwrap();
        Dataset::from_parts("d", train, &valid, &Pairs::default(), vec![text]).unwrap()
    }

    #[test]
    fn a_changed_data_set_is_checked() {
        dataset().check().unwrap();
        let problem = |change: fn(&mut Dataset)| {
            let mut dataset = dataset();
            change(&mut dataset);
            dataset.check().unwrap_err().to_string()
        };
        for (change, expected) in [
            (
                (|d| d.train.users.push(0)) as fn(&mut Dataset),
                "3 training users and 2 items found, pairs expected",
            ),
            (|d| d.train = Pairs::default(), "there is no training interaction"),
            (|d| d.train.users[1] = 2, "training user 2 found, users from 0 to 1 expected"),
            (|d| d.valid.items[0] = 3, "validation item 3 found, items from 0 to 2 expected"),
            (|d| d.test.users.push(0), "the offsets of the test split"),
            (|d| d.valid.offsets[1] = 2, "the offsets of the validation split"),
            (|d| d.items = 4, "modality `text`: features in memory: has 3 rows"),
            (|d| d.users = usize::MAX, "at most 2147483648 of either expected"),
        ] {
            let problem = problem(change);
            assert!(problem.starts_with(expected) || problem.ends_with(expected), "{problem}");
        }
        let mut emptied = dataset();
        emptied.valid = Split::default();
        emptied.check().unwrap();
    }

    #[test]
    fn training_pairs_are_counted_in_32_bits() {
        check_count(MOST_PAIRS).unwrap();
        let error = check_count(MOST_PAIRS + 1).unwrap_err().to_string();
        assert!(
            error.starts_with("4294967296 training interactions found, at most 42949"),
            "{error}"
        );
    }

    #[test]
    fn parts_are_checked_as_a_folder_is() {
        let text = |values: [f32; 3]| vec![Modality::new("text", 1, values).unwrap()];
        let problem = |train: Pairs, modalities| {
            let none = Pairs::default();
            let error = Dataset::from_parts("d", train, &none, &none, modalities).unwrap_err();
            error.to_string()
        };
        let far = Pairs { users: vec![2_000_000_000], items: vec![0] };
        assert!(problem(far, Vec::new()).starts_with("user 2000000000 found, far beyond what 1"));
        let train = || Pairs { users: vec![0, 1], items: vec![0, 2] };
        assert_eq!(
            problem(train(), text([0.0, f32::NAN, 0.0])),
            "modality `text`: features in memory: row 1, column 0 is NaN; features must be finite \
             numbers (the row is the item's id)"
        );
        let many = Pairs { users: vec![0], items: vec![5] };
        let rows = problem(many, text([0.0; 3]));
        assert!(rows.starts_with("modality `text`: features in memory: has 3 rows; "), "{rows}");
    }
}
