//! Models that answer.

use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::arrays::{self, Features, GivenLists, Lists, PyLists};
use super::dataset::PyDataset;
use super::pool::Pool;
use super::settings;
use crate::backend::TopK;
use crate::config::{DeviceChoice, ascending, check_lengths};
use crate::data::{LARGEST_ID, Modality};
use crate::{Error, Model, Query, Recommender, Result, evaluate};

/// Numbers of users or items.
type Ids<'py> = PyReadonlyArray1<'py, u32>;

/// Items and scores of one list.
type PyList<'py> = (Bound<'py, PyArray1<i32>>, Bound<'py, PyArray1<f32>>);

/// Up to this many queries are answered on the calling thread, as in the engine.
const FEW: usize = crate::cpu::ItemIndex::<f32>::TASK;

/// The most queries asked at a time.
const PIECE: usize = 8192;

/// A trained model on a device.
#[pyclass(frozen, name = "Model", module = "bm3_engine._native")]
pub struct PyModel {
    model: Arc<Model>,
    device: DeviceChoice,
    pool: Pool,
    /// Made by the first question, so that a model can be saved wherever it can be held.
    recommender: OnceLock<RwLock<Recommender>>,
}

impl PyModel {
    /// A model that answers on `device` with `threads` threads.
    pub fn new(model: Model, device: DeviceChoice, threads: Option<usize>) -> Result<Self> {
        Self::with_pool(model, device, Pool::new(threads)?)
    }

    /// Reads a model's file. Its graph is sorted in parallel, which must happen on our pool.
    fn read(path: &Path, device: DeviceChoice, threads: Option<usize>) -> Result<Self> {
        let pool = Pool::new(threads)?;
        let model = pool.install(|| Model::load(path))?;
        Self::with_pool(model, device, pool)
    }

    fn with_pool(model: Model, device: DeviceChoice, pool: Pool) -> Result<Self> {
        if model.items() > LARGEST_ID as usize {
            let problem = format!("{} found, {LARGEST_ID} at most expected", model.items());
            return Err(Error::setting("items", problem));
        }
        Ok(Self { model: Arc::new(model), device, pool, recommender: OnceLock::new() })
    }

    fn recommender(&self) -> Result<&RwLock<Recommender>> {
        if let Some(recommender) = self.recommender.get() {
            return Ok(recommender);
        }
        let made = self.pool.install(|| Recommender::on(self.model.clone(), self.device))?;
        // If another thread was faster, its recommender is the same.
        Ok(self.recommender.get_or_init(|| RwLock::new(made)))
    }

    /// Asks on this thread, while other Python threads run.
    fn ask<T: Send>(
        &self,
        py: Python<'_>,
        question: impl FnOnce(&Recommender) -> Result<T> + Send,
    ) -> PyResult<T> {
        let answer = || {
            let recommender = self.recommender()?.read().unwrap_or_else(PoisonError::into_inner);
            question(&recommender)
        };
        Ok(py.detach(answer)?)
    }

    /// Asks for the lists of `count` queries, piece by piece, and heeds Ctrl-C between pieces: a
    /// list does not depend on what is asked beside it.
    ///
    /// Holds no lock between pieces, as a signal handler may itself ask or add items.
    fn ask_pieces(
        &self,
        py: Python<'_>,
        count: usize,
        question: impl Fn(&Recommender, Range<usize>) -> Result<TopK> + Sync,
    ) -> PyResult<TopK> {
        let ask = |piece: Range<usize>| {
            self.ask(py, |recommender| match piece.len() {
                // Waking another thread takes longer.
                ..=FEW => question(recommender, piece),
                _ => self.pool.install(|| question(recommender, piece)),
            })
        };
        let mut lists = ask(0..count.min(PIECE))?;
        for start in (PIECE..count).step_by(PIECE) {
            py.check_signals()?;
            let piece = ask(start..count.min(start + PIECE))?;
            lists.items.extend(piece.items);
            lists.scores.extend(piece.scores);
        }
        Ok(lists)
    }

    /// As [`Self::ask_pieces`], with the lists as arrays.
    fn ask_lists<'py>(
        &self,
        py: Python<'py>,
        count: usize,
        question: impl Fn(&Recommender, Range<usize>) -> Result<TopK> + Sync,
    ) -> PyResult<PyLists<'py>> {
        let lists = self.ask_pieces(py, count, question)?;
        let k = lists.k;
        let converted = py.detach(|| arrays::converted(lists));
        arrays::lists(py, converted, [count, k])
    }

    /// Changes the recommender, once the answers in flight are done.
    fn change<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Recommender) -> Result<T> + Send,
    ) -> PyResult<T> {
        let changed = || {
            let recommender = self.recommender()?;
            let mut guard = recommender.write().unwrap_or_else(PoisonError::into_inner);
            let recommender: &mut Recommender = &mut guard;
            self.pool.install(|| work(recommender))
        };
        Ok(py.detach(changed)?)
    }

    /// Asks for the best of some candidates.
    fn best_of<'py>(
        &self,
        py: Python<'py>,
        query: Query<'_>,
        candidates: &Ids<'py>,
        k: usize,
        with_seen: bool,
    ) -> PyResult<PyList<'py>> {
        let candidates = arrays::copied(candidates);
        let query = if with_seen { query.with_seen() } else { query };
        let ranked = self.ask(py, |recommender| recommender.rank(query, &candidates, k))?;
        let (items, scores) =
            ranked.into_iter().map(|found| (found.item as i32, found.score)).unzip();
        Ok((PyArray1::from_vec(py, items), PyArray1::from_vec(py, scores)))
    }
}

#[pymethods]
impl PyModel {
    /// Reads a model from its file, or from a run's directory.
    #[staticmethod]
    fn load(
        py: Python<'_>,
        path: PathBuf,
        device: &Bound<'_, PyAny>,
        threads: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let (device, threads) = (settings::device(device)?, settings::threads(threads)?);
        Ok(py.detach(|| Self::read(&path, device, threads))?)
    }

    /// Reads a model from the bytes of its file.
    #[staticmethod]
    fn from_bytes(
        py: Python<'_>,
        bytes: &[u8],
        device: &Bound<'_, PyAny>,
        threads: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let (device, threads) = (settings::device(device)?, settings::threads(threads)?);
        let read = || {
            // Trained features stay mapped; unix keeps a removed file while it is mapped.
            let file = temporary(|file| file.write_all(bytes))?;
            Self::read(file.path(), device, threads)
        };
        Ok(py.detach(read)?)
    }

    /// Writes the model's file.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        Ok(py.detach(|| self.model.save(&path))?)
    }

    /// The bytes of the model's file.
    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = py.detach(|| {
            let file = temporary(|_| Ok(()))?;
            self.model.save(file.path())?;
            std::fs::read(file.path()).map_err(|error| Error::io(file.path(), "read", error))
        })?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// The same model with the training interactions of a data set.
    fn with_interactions(&self, py: Python<'_>, dataset: &PyDataset) -> PyResult<Self> {
        let (model, dataset) = (Model::clone(&self.model), &dataset.dataset);
        let make = || {
            let model = self.pool.install(|| model.with_interactions(dataset))?;
            Self::with_pool(model, self.device, self.pool.another())
        };
        Ok(py.detach(make)?)
    }

    /// The model's identity and origin, as JSON.
    fn record(&self) -> PyResult<String> {
        let record = serde_json::to_string(self.model.record());
        Ok(record.map_err(|error| Error::setting("record", error.to_string()))?)
    }

    /// U, the number of users.
    #[getter]
    fn users(&self) -> usize {
        self.model.users()
    }

    /// The number of items, including those added after training.
    fn items(&self, py: Python<'_>) -> PyResult<usize> {
        // Items are added only to a recommender, and making one takes a while.
        if self.recommender.get().is_none() {
            return Ok(self.model.items());
        }
        self.ask(py, |recommender| Ok(recommender.items()))
    }

    /// The best items for users: items and scores.
    fn recommend<'py>(
        &self,
        py: Python<'py>,
        users: Ids<'py>,
        k: usize,
        excluded: GivenLists<'py>,
        with_seen: bool,
    ) -> PyResult<PyLists<'py>> {
        let (users, excluded) = (arrays::copied(&users), Lists::new(&excluded)?);
        let query = |position| Query::user(users[position]);
        self.search(py, users.len(), query, &excluded, with_seen, k)
    }

    /// The best items for new users, known by their items.
    fn recommend_new<'py>(
        &self,
        py: Python<'py>,
        known: GivenLists<'py>,
        k: usize,
        excluded: GivenLists<'py>,
        with_seen: bool,
    ) -> PyResult<PyLists<'py>> {
        let (known, excluded) = (Lists::new(&known)?, Lists::new(&excluded)?);
        self.search(
            py,
            known.len(),
            |position| Query::items(known.of(position)),
            &excluded,
            with_seen,
            k,
        )
    }

    /// The rows of new users, known by their items, n × d.
    fn rows_new<'py>(
        &self,
        py: Python<'py>,
        known: GivenLists<'py>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let known = Lists::new(&known)?;
        let rows = self.ask(py, |recommender| {
            let row = |position| recommender.row(Query::items(known.of(position)));
            Ok((0..known.len()).map(row).collect::<Result<Vec<_>>>()?.concat())
        })?;
        PyArray1::from_vec(py, rows).reshape([known.len(), self.model.embedding_size()])
    }

    /// The best of some items for a user.
    fn rank<'py>(
        &self,
        py: Python<'py>,
        user: u32,
        candidates: Ids<'py>,
        k: usize,
        with_seen: bool,
    ) -> PyResult<PyList<'py>> {
        self.best_of(py, Query::user(user), &candidates, k, with_seen)
    }

    /// The best of some items for a new user, known by items.
    fn rank_new<'py>(
        &self,
        py: Python<'py>,
        known: Ids<'py>,
        candidates: Ids<'py>,
        k: usize,
        with_seen: bool,
    ) -> PyResult<PyList<'py>> {
        let known = arrays::copied(&known);
        self.best_of(py, Query::items(&known), &candidates, k, with_seen)
    }

    /// The items nearest to each of some items.
    fn similar_items<'py>(
        &self,
        py: Python<'py>,
        items: Ids<'py>,
        k: usize,
    ) -> PyResult<PyLists<'py>> {
        let items = arrays::copied(&items);
        let question = |recommender: &Recommender, piece| {
            let items: &[u32] = &items[piece];
            match recommender.has_similar_index() {
                true => recommender.similar_items_batch(items, k),
                // The index is made first, in parallel.
                false => self.pool.install(|| recommender.similar_items_batch(items, k)),
            }
        };
        self.ask_lists(py, items.len(), question)
    }

    /// The scores of pairs.
    fn scores<'py>(
        &self,
        py: Python<'py>,
        users: Ids<'py>,
        items: Ids<'py>,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let (users, items) = (arrays::copied(&users), arrays::copied(&items));
        let scores = self.ask(py, |recommender| recommender.scores(&users, &items))?;
        Ok(PyArray1::from_vec(py, scores))
    }

    /// Metrics by name, such as `recall@20`.
    fn evaluate<'py>(
        &self,
        py: Python<'py>,
        users: Ids<'py>,
        items: Ids<'py>,
        lengths: Vec<usize>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let lengths = ascending(lengths);
        check_lengths(&lengths).map_err(|problem| Error::setting("k", problem))?;
        let (users, items) = (arrays::copied(&users), arrays::copied(&items));
        let split =
            self.ask(py, |recommender| self.pool.install(|| recommender.held_out(&users, &items)))?;
        let longest = lengths.last().copied().unwrap_or(0);
        let lists = self.ask_pieces(py, split.users.len(), |recommender, piece| {
            recommender.top_k_batch(&split.users[piece], longest)
        })?;
        let metrics = py.detach(|| {
            let measure = || Ok(evaluate::metrics(&split, &split.users, &lists, &lengths));
            self.pool.install(measure)
        })?;
        let named = PyDict::new(py);
        for (position, k) in metrics.top_k.iter().enumerate() {
            for (name, values) in metrics.by_name() {
                named.set_item(format!("{name}@{k}"), values[position])?;
            }
        }
        Ok(named)
    }

    /// Items without training interactions.
    fn cold_items<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i32>>> {
        let cold = self.ask(py, |recommender| Ok(recommender.cold_items().to_vec()))?;
        Ok(PyArray1::from_vec(py, cold.into_iter().map(|item| item as i32).collect()))
    }

    /// Users without training interactions.
    fn cold_users<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i32>>> {
        let cold = self.ask(py, |recommender| Ok(recommender.cold_users().to_vec()))?;
        Ok(PyArray1::from_vec(py, cold.into_iter().map(|user| user as i32).collect()))
    }

    /// As `score_cold_items`, with the features of a data set.
    fn score_cold_items_of(&self, py: Python<'_>, dataset: &PyDataset) -> PyResult<usize> {
        let frozen = dataset.dataset.modalities.clone();
        // A model that has trained its features needs none.
        let frozen = if self.model.config().freeze_features { frozen } else { Vec::new() };
        self.change(py, |recommender| recommender.score_cold_items(&frozen))
    }

    /// Scores cold items from their features from now on; returns how many there are.
    fn score_cold_items(
        &self,
        py: Python<'_>,
        features: Vec<(String, Features<'_>)>,
    ) -> PyResult<usize> {
        let frozen: Vec<Modality> = arrays::modalities(features)?;
        self.change(py, |recommender| recommender.score_cold_items(&frozen))
    }

    /// Adds items by their features; returns the first of their numbers, and one after the last.
    fn add_items(
        &self,
        py: Python<'_>,
        features: Vec<(String, Features<'_>)>,
    ) -> PyResult<(u32, u32)> {
        let modalities: Vec<Modality> = arrays::modalities(features)?;
        let added = self.change(py, |recommender| recommender.add_items(&modalities))?;
        Ok((added.start, added.end))
    }

    /// p(H_u), U × d, as a view.
    fn user_rows<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let rows = self.ask(py, |recommender| Ok(recommender.shared_user_rows()))?;
        arrays::rows(py, rows, self.model.embedding_size())
    }

    /// The rows that `user_rows` are multiplied with, I × d, as a view of the current ones.
    fn item_rows<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let rows = self.ask(py, |recommender| Ok(recommender.shared_item_rows()))?;
        arrays::rows(py, rows, self.model.embedding_size())
    }
}

impl PyModel {
    fn search<'py, 'a>(
        &self,
        py: Python<'py>,
        count: usize,
        query: impl Fn(usize) -> Query<'a>,
        excluded: &'a Lists,
        with_seen: bool,
        k: usize,
    ) -> PyResult<PyLists<'py>> {
        if excluded.len() != 1 && excluded.len() != count {
            let problem =
                format!("{} lists found, one for each of {count} expected", excluded.len());
            return Err(Error::setting("exclude", problem).into());
        }
        let queries: Vec<Query<'_>> = (0..count)
            .map(|position| query(position).excluding(excluded.of(position)))
            .map(|query| if with_seen { query.with_seen() } else { query })
            .collect();
        self.ask_lists(py, count, |recommender, piece| recommender.search(&queries[piece], k))
    }
}

/// A file that is removed when dropped.
fn temporary(
    fill: impl FnOnce(&mut tempfile::NamedTempFile) -> std::io::Result<()>,
) -> Result<tempfile::NamedTempFile> {
    let place = || std::env::temp_dir();
    let mut file = tempfile::Builder::new()
        .suffix(".safetensors")
        .tempfile()
        .map_err(|error| Error::io(Path::new(&place()), "write to", error))?;
    fill(&mut file).map_err(|error| Error::io(&place(), "write to", error))?;
    Ok(file)
}
