//! Data sets.

use std::path::PathBuf;
use std::sync::Arc;

use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrays::{self, Features};
use super::pool::Pool;
use crate::Dataset;
use crate::data::{DatasetOptions, FeatureFile, IdMaps, Modality, Split, SplitRatio};
use crate::wording::Caller;

/// Users and items of interactions.
type Pairs<'py> = (PyReadonlyArray1<'py, u32>, PyReadonlyArray1<'py, u32>);
type PyPairs<'py> = (Bound<'py, PyArray1<u32>>, Bound<'py, PyArray1<u32>>);

/// The ids of users, and of items.
type Ids = (Vec<String>, Vec<String>);

/// Interactions by split, and the features of the items.
///
/// Made by `from_mmrec`, and taken by `BM3.fit`.
#[pyclass(frozen, name = "Dataset", module = "bm3_engine")]
pub struct PyDataset {
    pub(super) dataset: Arc<Dataset>,
}

#[pymethods]
impl PyDataset {
    /// Reads a folder in MMRec's layout.
    #[staticmethod]
    #[pyo3(signature = (folder, modalities, features, split, seed))]
    fn _open(
        py: Python<'_>,
        folder: PathBuf,
        modalities: Option<Vec<String>>,
        features: Vec<(String, Vec<String>)>,
        split: Option<Vec<f64>>,
        seed: u64,
    ) -> PyResult<Self> {
        let files =
            |files: Vec<String>| files.iter().map(|file| FeatureFile::parse(file)).collect();
        let split = split.map(|shares| ratio(&shares, seed)).transpose()?;
        let options = DatasetOptions {
            features: features.into_iter().map(|(name, own)| (name, files(own))).collect(),
            modalities,
            split,
        };
        let pool = Pool::new(None)?;
        let dataset = py.detach(|| pool.install(|| Ok(Dataset::open(&folder, &options)?)))?;
        Ok(Self { dataset: Arc::new(dataset) })
    }

    /// Builds a data set from arrays; `share` of each user's training interactions go to
    /// validation.
    #[staticmethod]
    #[expect(clippy::too_many_arguments, reason = "the package alone calls it")]
    fn _gather(
        py: Python<'_>,
        train: Pairs<'_>,
        valid: Pairs<'_>,
        test: Pairs<'_>,
        share: f64,
        seed: u64,
        features: Vec<(String, Features<'_>)>,
        sizes: (usize, usize),
    ) -> PyResult<Self> {
        let [train, valid, test] = [train, valid, test]
            .map(|(users, items)| (arrays::copied(&users), arrays::copied(&items)));
        let modalities = arrays::modalities(features)?;
        // Rows of features count as items, even without interactions.
        let (users, items) = (sizes.0, sizes.1.max(rows(&modalities)?));
        let pool = Pool::new(None)?;
        let gather = || {
            let mut builder = Dataset::builder("arrays").at_least(users, items);
            builder = match share > 0.0 {
                true => {
                    let ratio = SplitRatio { train: 1.0 - share, valid: share, test: 0.0, seed };
                    builder.interactions(&train.0, &train.1, ratio)
                }
                false => builder.train(&train.0, &train.1),
            };
            for modality in modalities {
                builder = builder.modality(modality.name, modality.features);
            }
            Ok(builder.valid(&valid.0, &valid.1).test(&test.0, &test.1).build()?)
        };
        let dataset = py.detach(|| pool.install(gather))?;
        Ok(Self { dataset: Arc::new(dataset) })
    }

    /// The data set's name.
    #[getter]
    fn name(&self) -> &str {
        &self.dataset.name
    }

    /// U, the number of users.
    #[getter]
    fn users(&self) -> usize {
        self.dataset.users
    }

    /// I, the number of items.
    #[getter]
    fn items(&self) -> usize {
        self.dataset.items
    }

    /// Users and items of the training interactions, as read-only views.
    #[getter]
    fn train<'py>(slf: &Bound<'py, Self>) -> PyPairs<'py> {
        let pairs = &slf.get().dataset.train;
        // SAFETY: nothing changes a data set, and the object, whose class is frozen, holds it.
        unsafe {
            (
                arrays::numbers(&pairs.users, slf.clone().into_any()),
                arrays::numbers(&pairs.items, slf.clone().into_any()),
            )
        }
    }

    /// Users and items of the validation interactions, user by user.
    #[getter]
    fn valid<'py>(&self, py: Python<'py>) -> PyPairs<'py> {
        pairs(py, &self.dataset.valid)
    }

    /// Users and items of the test interactions, user by user.
    #[getter]
    fn test<'py>(&self, py: Python<'py>) -> PyPairs<'py> {
        pairs(py, &self.dataset.test)
    }

    /// The width of each modality's features, by name.
    #[getter]
    fn modalities<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let widths = PyDict::new(py);
        for modality in &self.dataset.modalities {
            widths.set_item(&modality.name, modality.features.columns())?;
        }
        Ok(widths)
    }

    /// Warnings about the data, which need no action.
    #[getter]
    fn warnings(&self) -> Vec<String> {
        self.dataset.warnings.iter().map(|warning| Caller::Python.words(warning)).collect()
    }

    fn __repr__(&self) -> String {
        let Dataset { name, users, items, train, valid, test, modalities, .. } = &*self.dataset;
        let modalities: Vec<String> = modalities
            .iter()
            .map(|modality| format!("{} {}", modality.name, modality.features.columns()))
            .collect();
        format!(
            "Dataset({name}: {users} users, {items} items, {} training, {} validation and {} test \
             interactions; features: {})",
            train.users.len(),
            valid.items.len(),
            test.items.len(),
            if modalities.is_empty() { "none".to_owned() } else { modalities.join(", ") }
        )
    }
}

/// The number of rows of every table, 0 if there is none.
fn rows(modalities: &[Modality]) -> PyResult<usize> {
    let Some(first) = modalities.first() else { return Ok(0) };
    let rows = first.features.rows();
    match modalities.iter().find(|other| other.features.rows() != rows) {
        None => Ok(rows),
        Some(other) => {
            let problem = format!(
                "{rows} rows of {} and {} rows of {} found, one row for each item expected in each",
                first.name,
                other.features.rows(),
                other.name
            );
            Err(crate::Error::setting("features", problem).into())
        }
    }
}

/// The pairs of a split, which is stored user by user.
fn pairs<'py>(py: Python<'py>, split: &Split) -> PyPairs<'py> {
    let users = split.users.iter().zip(split.offsets.windows(2));
    let users = users.flat_map(|(&user, bounds)| std::iter::repeat_n(user, bounds[1] - bounds[0]));
    (PyArray1::from_vec(py, users.collect()), PyArray1::from_slice(py, &split.items))
}

fn ratio(shares: &[f64], seed: u64) -> PyResult<SplitRatio> {
    let shares = crate::config::SplitRatio::new(shares)
        .map_err(|problem| crate::Error::setting("split", problem))?;
    let crate::config::SplitRatio { train, valid, test } = shares;
    Ok(SplitRatio { train, valid, test, seed })
}

/// The original ids of users and items that a folder keeps; of a model's file, those beside it.
#[pyfunction]
pub fn original_ids(folder: PathBuf) -> PyResult<Option<Ids>> {
    let found = std::fs::metadata(&folder);
    let found = found.map_err(|error| crate::Error::io(&folder, "read", error))?;
    let folder = match folder.parent().filter(|_| found.is_file()) {
        Some(parent) => parent.to_owned(),
        None => folder,
    };
    Ok(IdMaps::read(&folder)?.map(|maps| (maps.users, maps.items)))
}
