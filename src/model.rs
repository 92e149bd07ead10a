//! A trained model in memory, and its file.
//!
//! `model.safetensors` is all that serving needs: the parameters under the names of SPEC §1, and the
//! distinct training interactions, which scores depend on through the graph and which lists leave
//! out.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::backend::Backend;
use crate::checkpoint::{self, Identity, ModelRecord, Tensor, TensorFile};
use crate::config::TrainConfig;
use crate::data::{Dataset, Pairs};
use crate::graph::Graph;
use crate::parameters::Layout;
use crate::real::Real;
use crate::run::MODEL;
use crate::step::DeviceModel;
use crate::{Error, Result};

/// U + 1 bounds of the users' parts of [`INTERACTION_ITEMS`].
const INTERACTION_OFFSETS: &str = "interactions.offsets";
/// The distinct items of each user's training pairs, ascending.
const INTERACTION_ITEMS: &str = "interactions.items";
/// What a model's file has beside the values of tensors.
pub(crate) const INTERACTIONS: [&str; 2] = [INTERACTION_OFFSETS, INTERACTION_ITEMS];

/// A trained model: its parameters, the interactions it was trained on, and how it came about.
///
/// It is on no device; a [`Recommender`](crate::recommender::Recommender) is made of it. All is plain
/// memory but for trained features of one that was loaded, which may be much larger than all else: they
/// are read from its file when they are asked for.
#[derive(Debug, Clone)]
pub struct Model {
    record: ModelRecord,
    layout: Layout,
    parameters: Vec<f32>,
    features: Features,
    graph: Arc<Graph>,
    /// Whether `graph` is that of the training.
    as_trained: bool,
}

/// Trained raw features, which may be much larger than all else.
#[derive(Debug, Clone)]
enum Features {
    /// I × D_m of each modality; `None` where they are inputs.
    Held(Vec<Option<Vec<f32>>>),
    /// In the model's file, mapped.
    Mapped(Arc<TensorFile>),
}

impl Model {
    pub(crate) fn new<T: Real>(
        record: ModelRecord,
        layout: Layout,
        parameters: &[T],
        features: Vec<Option<Vec<T>>>,
        graph: Arc<Graph>,
    ) -> Self {
        let single = |values: &[T]| values.iter().map(|value| value.to_f64() as f32).collect();
        let features = features.into_iter().map(|values| values.as_deref().map(single)).collect();
        let parameters = single(parameters);
        let features = Features::Held(features);
        Self { record, layout, parameters, features, graph, as_trained: true }
    }

    /// Reads a model file, or that of a run's directory.
    ///
    /// The file stays mapped for as long as the model is there. To put a newer one in its place, write
    /// that to another name and rename it, as [`Model::save`] does: a model in memory then goes on with
    /// the old one. A file that is overwritten in place makes [`Model::features`] and all that needs them
    /// (saving, scoring items by features) fail, and one that is cut short while it is being read ends the
    /// process, as the system has it.
    ///
    /// # Errors
    /// [`Error::Io`] when it is not there, [`Error::RunFile`] when it is no model of ours, one of
    /// another format version, or its record and tensors do not belong together;
    /// [`DataError::Changed`](crate::data::DataError::Changed) when it is written to meanwhile.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let (file, record) = open(path.as_ref())?;
        let path = file.path().to_owned();
        let Identity { users, items, config, modalities, .. } = &record.identity;
        let graph = Arc::new(read_graph(&file, *users, *items, config, &path)?);
        // Of these sizes there are bounds in the file, or they are held against tensors there.
        let layout = Layout::new(config, *users, *items, modalities);
        let parameters = file.arena("", &layout)?;
        file.check_unchanged()?;
        let features = Features::Mapped(Arc::new(file));
        tracing::info!(path = %path.display(), users, items, "loaded a model");
        Ok(Self { record, layout, parameters, features, graph, as_trained: true })
    }

    /// What a model file, or that of a run's directory, says about itself; its numbers are not read.
    ///
    /// # Errors
    /// Those of [`Model::load`].
    pub fn read_record(path: impl AsRef<Path>) -> Result<ModelRecord> {
        open(path.as_ref()).map(|(_, record)| record)
    }

    /// Writes the model, atomically; [`Model::load`] gives it back to the bit.
    ///
    /// # Errors
    /// [`Error::Io`]; those of [`Model::features`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let features: Vec<Option<Vec<f32>>> = (0..self.layout.modalities.len())
            .map(|modality| self.features(modality))
            .collect::<Result<_>>()?;
        write(path, &self.record, &self.layout, &self.parameters, &features, &self.graph)
    }

    /// What the model belongs to, the epoch it is from, and that epoch's metrics.
    pub fn record(&self) -> &ModelRecord {
        &self.record
    }

    /// The settings it was trained with.
    pub fn config(&self) -> &TrainConfig {
        &self.record.identity.config
    }

    /// U.
    pub fn users(&self) -> usize {
        self.layout.users
    }

    /// I.
    pub fn items(&self) -> usize {
        self.layout.items
    }

    /// d.
    pub fn embedding_size(&self) -> usize {
        self.layout.embedding_size
    }

    /// Where the parameters lie, and the names and widths of the modalities.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The graph of the training interactions.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// A parameter by its name of SPEC §1, as `user_embedding` (U × d) or `predictor.weight` (d × d):
    /// its shape and its numbers, row-major. Trained features are read by [`Model::features`].
    pub fn parameter(&self, name: &str) -> Option<(&[usize], &[f32])> {
        let tensor = self.layout.tensors.iter().find(|tensor| tensor.name == name)?;
        Some((&tensor.shape, &self.parameters[tensor.range.clone()]))
    }

    /// A part of the arena of parameters.
    pub(crate) fn arena(&self, range: &Range<usize>) -> &[f32] {
        &self.parameters[range.clone()]
    }

    /// The trained features E_m of a modality by its position, I × D_m; `None` where they are inputs
    /// of the model.
    ///
    /// # Errors
    /// [`Error::RunFile`] when the model's file has them in another shape;
    /// [`DataError::Changed`](crate::data::DataError::Changed) when it was written to since the model was
    /// loaded.
    pub fn features(&self, modality: usize) -> Result<Option<Vec<f32>>> {
        match &self.features {
            Features::Held(features) => Ok(features[modality].clone()),
            Features::Mapped(file) => {
                let slot = &self.layout.modalities[modality];
                let name = slot.features_name();
                if self.config().freeze_features {
                    return Ok(None);
                }
                // Before: beyond the end of a file that was cut short nothing can be read. After: it
                // may have been written to meanwhile.
                file.check_unchanged()?;
                let values = file.reals(&name, &[self.layout.items, slot.columns])?;
                file.check_unchanged()?;
                Ok(Some(values))
            }
        }
    }

    /// Whether its interactions are just these.
    pub fn fits(&self, dataset: &Dataset) -> bool {
        self.record.identity.interactions_fingerprint == dataset.interactions_fingerprint()
    }

    /// The model with the training interactions of `dataset` in the place of its own: newer ones of
    /// the same users and items, say. Saved, it has them as its own.
    ///
    /// # Errors
    /// [`Error::RunFile`] when the numbers of users and items differ, [`Error::Data`] for a data set
    /// that was changed and is none any more.
    pub fn with_interactions(self, dataset: &Dataset) -> Result<Self> {
        if (self.users(), self.items()) != (dataset.users, dataset.items) {
            let problem = format!(
                "was trained on {} users and {} items; {} has {} and {}: give the folder it was \
                 trained on",
                self.users(),
                self.items(),
                dataset.name,
                dataset.users,
                dataset.items
            );
            return Err(Error::run_file(&self.place(), problem));
        }
        dataset.check()?;
        let graph = dataset.graph(self.config().self_loops);
        let as_trained = self.as_trained && self.fits(dataset);
        let mut record = self.record;
        record.identity.interactions_fingerprint = dataset.interactions_fingerprint();
        Ok(Self { record, graph, as_trained, ..self })
    }

    /// Whether its interactions are those it was trained on.
    pub fn is_as_trained(&self) -> bool {
        self.as_trained
    }

    /// What a message calls it.
    fn place(&self) -> PathBuf {
        match &self.features {
            Features::Mapped(file) => file.path().to_owned(),
            Features::Held(_) => PathBuf::from("the model"),
        }
    }

    /// The model on a device, ready to score: it can be neither trained further nor projected.
    ///
    /// # Errors
    /// Those of the device, when its memory does not suffice.
    pub fn on<B: Backend>(&self, backend: B) -> Result<DeviceModel<B>> {
        let values: Vec<B::Real> =
            self.parameters.iter().map(|&value| B::Real::from_f32(value)).collect();
        let (layout, graph) = (self.layout.clone(), self.graph.clone());
        DeviceModel::for_scoring(backend, self.config(), layout, graph, &values)
    }
}

/// Opens a model's file, and holds its record against its tensors.
fn open(path: &Path) -> Result<(TensorFile, ModelRecord)> {
    let path = if path.is_dir() { path.join(MODEL) } else { path.to_owned() };
    let file = TensorFile::open(&path)?;
    let record: ModelRecord = file.record()?;
    check(&record.identity, &file, &path)?;
    Ok((file, record))
}

/// Writes a model's file.
pub(crate) fn write<T: Real>(
    path: &Path,
    record: &ModelRecord,
    layout: &Layout,
    parameters: &[T],
    features: &[Option<Vec<T>>],
    graph: &Graph,
) -> Result<()> {
    let mut tensors = checkpoint::dense_tensors(layout, "", parameters);
    for (modality, values) in layout.modalities.iter().zip(features) {
        if let Some(values) = values {
            let shape = vec![layout.items, modality.columns];
            tensors.push(Tensor { name: modality.features_name(), shape, values });
        }
    }
    let (mut offsets, mut items) = (vec![0u32], Vec::new());
    for user in 0..graph.users() {
        items.extend(graph.items_of(user));
        // Interactions are numbered in 32 bits, as the steps' pairs are.
        offsets.push(items.len() as u32);
    }
    let counter = |name: &str, values| Tensor { name: name.to_owned(), shape: vec![], values };
    let counters = [counter(INTERACTION_OFFSETS, &offsets[..]), counter(INTERACTION_ITEMS, &items)]
        .map(|tensor| Tensor { shape: vec![tensor.values.len()], ..tensor });
    checkpoint::write(path, record, &tensors, &counters)
}

/// Holds the record against the tensors that are there, before its sizes are believed.
fn check(identity: &Identity, file: &TensorFile, path: &Path) -> Result<()> {
    let Identity { config, modalities, .. } = identity;
    config.validate().map_err(|error| Error::run_file(path, format!("its record: {error}")))?;
    for (position, (name, columns)) in modalities.iter().enumerate() {
        if modalities[..position].iter().any(|(earlier, _)| earlier == name) {
            let problem = format!("its record names the modality `{name}` twice");
            return Err(Error::run_file(path, problem));
        }
        let weight = format!("modality.{name}.weight");
        file.check_shape(&weight, &[config.embedding_size, *columns])?;
    }
    for (name, rows) in [("user_embedding", identity.users), ("item_embedding", identity.items)] {
        file.check_shape(name, &[rows, config.embedding_size])?;
    }
    Ok(())
}

/// The graph of the interactions in a model's file, each of which is looked at.
fn read_graph(
    file: &TensorFile,
    users: usize,
    items: usize,
    config: &TrainConfig,
    path: &Path,
) -> Result<Graph> {
    let wrong = |problem: String| Error::run_file(path, format!("{problem}; train again"));
    let offsets = file.counters(INTERACTION_OFFSETS, users + 1)?;
    let count = offsets.last().copied().unwrap_or_default() as usize;
    let of_users = file.counters(INTERACTION_ITEMS, count)?;
    if offsets[0] != 0 || !offsets.is_sorted() {
        return Err(wrong(format!("tensor `{INTERACTION_OFFSETS}` does not ascend from 0")));
    }
    let mut pairs = Pairs { users: Vec::with_capacity(count), items: of_users };
    for (user, bounds) in offsets.windows(2).enumerate() {
        let own = &pairs.items[bounds[0] as usize..bounds[1] as usize];
        let ascends = own.is_sorted_by(|left, right| left < right);
        if !ascends || own.last().is_some_and(|&item| item as usize >= items) {
            return Err(wrong(format!(
                "tensor `{INTERACTION_ITEMS}`: the items of user {user} are not distinct ones \
                 below {items} that ascend"
            )));
        }
        pairs.users.extend(own.iter().map(|_| user as u32));
    }
    Ok(Graph::new(&pairs, users, items, config.self_loops))
}
