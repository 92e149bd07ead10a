//! Models that answer.

use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use numpy::{PyArray1, PyArray2, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::arrays::{self, Features, GivenLists, Lists, PyLists};
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

/// So many queries are answered on the thread that asks, as the engine does.
const FEW: usize = crate::cpu::ItemIndex::<f32>::TASK;

/// So many queries are asked at a time.
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
    /// A model that answers on `device` by `threads` threads.
    pub fn new(model: Model, device: DeviceChoice, threads: Option<usize>) -> Result<Self> {
        Self::with_pool(model, device, Pool::new(threads)?)
    }

    /// A model's file. Its graph is sorted in parallel, which must happen on our pool.
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
        // Where another thread was faster, its recommender is the same.
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

    /// Asks for the lists of so many queries, piece by piece, so that Ctrl-C is heeded between them: the
    /// engine's lists do not depend on what is asked beside them.
    ///
    /// Nothing is held meanwhile, as a signal's handler may be code that asks or adds items itself.
    fn ask_pieces(
        &self,
        py: Python<'_>,
        count: usize,
        question: impl Fn(&Recommender, Range<usize>) -> Result<TopK> + Sync,
    ) -> PyResult<TopK> {
        let ask = |piece: Range<usize>| {
            self.ask(py, |recommender| match piece.len() {
                // To wake another thread takes longer.
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

    /// The same as arrays.
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

    /// Changes what is answered; waits for the answers in flight.
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
}

#[pymethods]
impl PyModel {
    /// Reads a model's file, or that of a run's directory.
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
            // Its trained features stay mapped; unix keeps a file that is removed while it is.
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

    /// What the model belongs to and where it comes from, as JSON.
    fn record(&self) -> PyResult<String> {
        let record = serde_json::to_string(self.model.record());
        Ok(record.map_err(|error| Error::setting("record", error.to_string()))?)
    }

    /// U.
    #[getter]
    fn users(&self) -> usize {
        self.model.users()
    }

    /// The number of items, those added after training among them.
    fn items(&self, py: Python<'_>) -> PyResult<usize> {
        // None are added without a recommender, which takes a while to make.
        if self.recommender.get().is_none() {
            return Ok(self.model.items());
        }
        self.ask(py, |recommender| Ok(recommender.items()))
    }

    /// Lists of the best items for users: items and scores.
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

    /// The same for somebody new, known by items.
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

    /// The best of some items for a user.
    fn rank<'py>(
        &self,
        py: Python<'py>,
        user: u32,
        candidates: Ids<'py>,
        k: usize,
        with_seen: bool,
    ) -> PyResult<PyList<'py>> {
        let candidates = arrays::copied(&candidates);
        let query = Query::user(user);
        let query = if with_seen { query.with_seen() } else { query };
        let ranked = self.ask(py, |recommender| recommender.rank(query, &candidates, k))?;
        let (items, scores) =
            ranked.into_iter().map(|found| (found.item as i32, found.score)).unzip();
        Ok((PyArray1::from_vec(py, items), PyArray1::from_vec(py, scores)))
    }

    /// Lists of the items nearest to items.
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
                // It is made first, in parallel.
                false => self.pool.install(|| recommender.similar_items_batch(items, k)),
            }
        };
        self.ask_lists(py, items.len(), question)
    }

    /// Scores of pairs.
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

    /// Metrics by name, as `recall@20`.
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

    /// Scores those by their features from now on.
    fn score_cold_items(
        &self,
        py: Python<'_>,
        features: Vec<(String, Features<'_>)>,
    ) -> PyResult<usize> {
        let frozen: Vec<Modality> = arrays::modalities(features)?;
        self.change(py, |recommender| recommender.score_cold_items(&frozen))
    }

    /// Adds items by their features: the first and one after the last of their numbers.
    fn add_items(
        &self,
        py: Python<'_>,
        features: Vec<(String, Features<'_>)>,
    ) -> PyResult<(u32, u32)> {
        let modalities: Vec<Modality> = arrays::modalities(features)?;
        let added = self.change(py, |recommender| recommender.add_items(&modalities))?;
        Ok((added.start, added.end))
    }

    /// p(H_u), U × d, a view.
    fn user_rows<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let rows = self.ask(py, |recommender| Ok(recommender.shared_user_rows()))?;
        arrays::rows(py, rows, self.model.embedding_size())
    }

    /// What they are multiplied with, I × d, a view of what there is now.
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

/// A file that goes when it is dropped.
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
