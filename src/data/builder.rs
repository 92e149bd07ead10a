//! Building a data set from memory.

use std::sync::Arc;

use super::inter::LARGEST_ID;
use super::{DataError, Dataset, FeatureMatrix, Interactions, Modality, Pairs, SplitRatio};

/// Gathers a [`Dataset`] from slices; [`DatasetBuilder::build`] makes the same checks as reading a
/// folder.
///
/// Users and items are numbered from 0; interactions are pairs (`users[n]`, `items[n]`).
#[derive(Debug)]
pub struct DatasetBuilder {
    name: String,
    /// Training, validation, test.
    splits: [Pairs; 3],
    modalities: Vec<Modality>,
    users: usize,
    items: usize,
    /// The first problem.
    problem: Option<DataError>,
}

impl Dataset {
    /// Starts a data set of this name.
    pub fn builder(name: impl Into<String>) -> DatasetBuilder {
        DatasetBuilder {
            name: name.into(),
            splits: Default::default(),
            modalities: Vec::new(),
            users: 0,
            items: 0,
            problem: None,
        }
    }
}

impl DatasetBuilder {
    /// Adds training interactions.
    #[must_use]
    pub fn train(self, users: &[u32], items: &[u32]) -> Self {
        self.pairs(0, users, items)
    }

    /// Adds validation interactions, which decide when training stops.
    #[must_use]
    pub fn valid(self, users: &[u32], items: &[u32]) -> Self {
        self.pairs(1, users, items)
    }

    /// Adds test interactions, which decide nothing.
    #[must_use]
    pub fn test(self, users: &[u32], items: &[u32]) -> Self {
        self.pairs(2, users, items)
    }

    /// Adds interactions and splits them by user, like those of a folder without labels.
    #[must_use]
    pub fn interactions(mut self, users: &[u32], items: &[u32], ratio: SplitRatio) -> Self {
        if self.differ(users, items) {
            return self;
        }
        let rows = Interactions { users: users.to_vec(), items: items.to_vec(), labels: None };
        for (row, &label) in ratio.labels(&rows).iter().enumerate() {
            let split = &mut self.splits[usize::from(label)];
            split.users.push(users[row]);
            split.items.push(items[row]);
        }
        self
    }

    fn pairs(mut self, split: usize, users: &[u32], items: &[u32]) -> Self {
        if !self.differ(users, items) {
            self.splits[split].users.extend_from_slice(users);
            self.splits[split].items.extend_from_slice(items);
        }
        self
    }

    /// Whether the slices are not pairs.
    fn differ(&mut self, users: &[u32], items: &[u32]) -> bool {
        let differ = users.len() != items.len();
        if differ {
            let problem =
                format!("{} users and {} items, pairs expected", users.len(), items.len());
            self.problem.get_or_insert(DataError::Parts(problem));
        }
        differ
    }

    /// Adds a modality: `columns` D_m, `values` row-major, row i for item i.
    #[must_use]
    pub fn features(
        mut self,
        name: impl Into<String>,
        columns: usize,
        values: impl Into<Vec<f32>>,
    ) -> Self {
        match Modality::new(name, columns, values) {
            Ok(modality) => self.modalities.push(modality),
            Err(problem) => {
                self.problem.get_or_insert(problem);
            }
        }
        self
    }

    /// Adds a modality from an array of items × D_m, copied.
    #[cfg(feature = "ndarray")]
    #[must_use]
    pub fn feature_array(
        self,
        name: impl Into<String>,
        features: ndarray::ArrayView2<'_, f32>,
    ) -> Self {
        let columns = features.ncols();
        self.features(name, columns, features.iter().copied().collect::<Vec<f32>>())
    }

    /// Adds a modality whose features may lie in mapped files or in shared memory.
    #[must_use]
    pub fn modality(
        mut self,
        name: impl Into<String>,
        features: impl Into<Arc<FeatureMatrix>>,
    ) -> Self {
        self.modalities.push(Modality { name: name.into(), features: features.into() });
        self
    }

    /// Counts at least this many users and items, with or without interactions; of several calls,
    /// the largest numbers count.
    #[must_use]
    pub fn at_least(self, users: usize, items: usize) -> Self {
        Self { users: self.users.max(users), items: self.items.max(items), ..self }
    }

    /// Builds the data set. If every modality has the same number of rows, so many items count at
    /// least: those without interactions can be listed too.
    ///
    /// # Errors
    /// No training interaction, slices of different lengths, numbers far beyond what so many
    /// interactions can need, duplicate modalities, too few feature rows, or features that are not
    /// finite.
    pub fn build(self) -> Result<Dataset, DataError> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        let [train, valid, test] = self.splits;
        let rows = || self.modalities.iter().map(|modality| modality.features.rows());
        let same = rows().next().filter(|&first| rows().all(|rows| rows == first));
        let sizes = (self.users, self.items.max(same.unwrap_or(0)));
        if sizes.0.max(sizes.1) > LARGEST_ID as usize + 1 {
            return Err(DataError::Parts(format!(
                "at least {} users and {} items found, at most {} of either expected",
                sizes.0,
                sizes.1,
                LARGEST_ID as usize + 1
            )));
        }
        let splits = [&valid, &test];
        Dataset::assemble(&self.name, train, splits, sizes, self.modalities, &mut |_, _, _| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder() -> DatasetBuilder {
        Dataset::builder("made").train(&[0, 1, 1], &[0, 0, 1]).valid(&[1], &[2])
    }

    #[test]
    fn parts_become_a_data_set() {
        let dataset = builder()
            .test(&[0], &[1])
            .features("text", 2, [0.5; 8])
            .at_least(1, 4)
            .at_least(3, 0)
            .build()
            .unwrap();
        assert_eq!((dataset.users, dataset.items), (3, 4));
        assert_eq!(dataset.train, Pairs { users: vec![0, 1, 1], items: vec![0, 0, 1] });
        assert_eq!((dataset.valid.items, dataset.test.items), (vec![2], vec![1]));
        assert_eq!(dataset.modalities[0].features.columns(), 2);
        // Rows are items, if there are as many of each modality.
        let items = |rows: [usize; 2]| {
            let features = rows.map(|rows| vec![0.5; rows]);
            let [a, b] = features;
            builder().features("a", 1, a).features("b", 1, b).build().unwrap().items
        };
        assert_eq!((items([5, 5]), items([5, 6])), (5, 3));
        let ratio = SplitRatio { train: 0.5, valid: 0.25, test: 0.25, seed: 1 };
        let split = Dataset::builder("split")
            .interactions(&[0; 8], &[0, 1, 2, 3, 4, 5, 6, 7], ratio)
            .build()
            .unwrap();
        let count = (split.train.items.len(), split.valid.items.len(), split.test.items.len());
        assert_eq!(count, (4, 2, 2));
    }

    #[test]
    fn parts_that_do_not_fit_are_named() {
        let problem = |builder: DatasetBuilder| builder.build().unwrap_err().to_string();
        assert!(problem(Dataset::builder("none")).contains("no training interaction"));
        assert!(problem(builder().test(&[0], &[])).contains("1 users and 0 items"));
        assert!(problem(builder().train(&[0], &[u32::MAX])).contains("item 4294967295 found"));
        assert!(problem(builder().features("a", 2, [0.0; 7])).contains("7 feature values"));
        assert!(problem(builder().features("a", 0, [0.0; 7])).contains("0 columns"));
        assert!(problem(builder().features("a", 2, [0.0; 4])).contains("has 2 rows"));
        assert!(problem(builder().features("a", 1, [f32::NAN; 3])).contains("NaN"));
        assert!(problem(builder().at_least(1, usize::MAX)).contains("at most 2147483648"));
        let twice = builder().features("a", 1, [0.0; 3]).features("a", 1, [0.0; 3]);
        assert!(problem(twice).contains("given twice"));
    }

    #[cfg(feature = "ndarray")]
    #[test]
    fn arrays_are_read_row_by_row_however_they_lie() {
        let columns_first =
            ndarray::Array2::from_shape_vec((2, 3), vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        let dataset = builder().feature_array("a", columns_first.t()).build().unwrap();
        assert_eq!(dataset.modalities[0].features.row_f32(1), Some(&[1.0, 4.0][..]));
    }
}
