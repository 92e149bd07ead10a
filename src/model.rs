//! A trained model in memory, and its file.
//!
//! `model.safetensors` is all that serving needs: the parameters under the names of SPEC §1, and
//! the distinct training interactions. Scores depend on the interactions through the graph, and
//! lists leave them out.

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
/// The contents of a model's file other than the values of tensors.
pub(crate) const INTERACTIONS: [&str; 2] = [INTERACTION_OFFSETS, INTERACTION_ITEMS];

/// A trained model: its parameters, the interactions it was trained on, and its record.
///
/// It is on no device; make a [`Recommender`](crate::recommender::Recommender) of it to serve it.
/// Everything is in plain memory except the trained features of a loaded model, which may be much
/// larger than all else: they are read from its file on demand.
#[derive(Debug, Clone)]
pub struct Model {
    record: ModelRecord,
    layout: Layout,
    parameters: Vec<f32>,
    features: Features,
    graph: Arc<Graph>,
}

/// Trained raw features, which may be much larger than all else.
#[derive(Debug, Clone)]
enum Features {
    /// I × D_m for each modality; `None` if the features are inputs.
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
        Self { record, layout, parameters, features, graph }
    }

    /// Reads a model file, or the one in a run's directory.
    ///
    /// The file stays mapped for the model's lifetime. To replace it with a newer one, write that
    /// under another name and rename it, as [`Model::save`] does; a loaded model then keeps the old
    /// file. After the file is overwritten in place, [`Model::features`] and everything that needs
    /// it (saving, scoring items by features) fails. If it is truncated while being read, the
    /// system ends the process.
    ///
    /// # Errors
    /// [`Error::Io`] if it does not exist, [`Error::RunFile`] if it is not one of our models, has
    /// another format version, or its record and tensors do not match;
    /// [`DataError::Changed`](crate::data::DataError::Changed) if it is modified meanwhile.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let (file, record) = open(path.as_ref())?;
        let path = file.path().to_owned();
        let Identity { users, items, config, modalities, .. } = &record.identity;
        let graph = Arc::new(read_graph(&file, *users, *items, config, &path)?);
        // The sizes were checked against the file's bounds or tensors.
        let layout = Layout::new(config, *users, *items, modalities);
        let parameters = file.finite_arena(&layout)?;
        file.check_unchanged()?;
        let features = Features::Mapped(Arc::new(file));
        tracing::info!(path = %path.display(), users, items, "loaded a model");
        Ok(Self { record, layout, parameters, features, graph })
    }

    /// Reads the record of a model file, or of the one in a run's directory, but none of its
    /// numbers.
    ///
    /// # Errors
    /// The errors of [`Model::load`].
    pub fn read_record(path: impl AsRef<Path>) -> Result<ModelRecord> {
        open(path.as_ref()).map(|(_, record)| record)
    }

    /// Writes the model atomically; [`Model::load`] restores it bit for bit.
    ///
    /// # Errors
    /// [`Error::Io`]; the errors of [`Model::features`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let features: Vec<Option<Vec<f32>>> = (0..self.layout.modalities.len())
            .map(|modality| self.features(modality))
            .collect::<Result<_>>()?;
        write(path, &self.record, &self.layout, &self.parameters, &features, &self.graph)
    }

    /// The run it belongs to, its epoch, and that epoch's metrics.
    pub fn record(&self) -> &ModelRecord {
        &self.record
    }

    /// The settings it was trained with.
    pub fn config(&self) -> &TrainConfig {
        &self.record.identity.config
    }

    /// U, the number of users.
    pub fn users(&self) -> usize {
        self.layout.users
    }

    /// I, the number of items.
    pub fn items(&self) -> usize {
        self.layout.items
    }

    /// d, the embedding size.
    pub fn embedding_size(&self) -> usize {
        self.layout.embedding_size
    }

    /// The places of the parameters, and the names and widths of the modalities.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The graph of the training interactions.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// The shape and the row-major numbers of a parameter by its name in SPEC §1, such as
    /// `user_embedding` (U × d) or `predictor.weight` (d × d). For trained features see
    /// [`Model::features`].
    pub fn parameter(&self, name: &str) -> Option<(&[usize], &[f32])> {
        let tensor = self.layout.tensors.iter().find(|tensor| tensor.name == name)?;
        Some((&tensor.shape, &self.parameters[tensor.range.clone()]))
    }

    /// A part of the parameters' arena.
    pub(crate) fn arena(&self, range: &Range<usize>) -> &[f32] {
        &self.parameters[range.clone()]
    }

    /// The trained features E_m of a modality by its position, I × D_m; `None` if they are inputs
    /// of the model.
    ///
    /// # Errors
    /// [`Error::RunFile`] if they have another shape in the model's file;
    /// [`DataError::Changed`](crate::data::DataError::Changed) if the file was modified after the
    /// model was loaded.
    pub fn features(&self, modality: usize) -> Result<Option<Vec<f32>>> {
        match &self.features {
            Features::Held(features) => Ok(features[modality].clone()),
            Features::Mapped(file) => {
                let slot = &self.layout.modalities[modality];
                let name = slot.features_name();
                if self.config().freeze_features {
                    return Ok(None);
                }
                // Before reading, since nothing can be read beyond the end of a truncated file; and
                // after, since it may have been modified meanwhile.
                file.check_unchanged()?;
                let values = file.reals(&name, &[self.layout.items, slot.columns])?;
                file.check_unchanged()?;
                Ok(Some(values))
            }
        }
    }

    /// Whether its interactions are those of `dataset`.
    pub fn fits(&self, dataset: &Dataset) -> bool {
        self.record.identity.interactions_fingerprint == dataset.interactions_fingerprint()
    }

    /// Replaces the training interactions by those of `dataset`, for example newer ones of the same
    /// users and items. They are saved with the model.
    ///
    /// # Errors
    /// [`Error::RunFile`] if the numbers of users and items differ, [`Error::Data`] if the data set
    /// has been modified so that it is no longer valid.
    pub fn with_interactions(self, dataset: &Dataset) -> Result<Self> {
        if (self.users(), self.items()) != (dataset.users, dataset.items) {
            let problem = format!(
                "was trained on {} users and {} items; {} has {} and {}: give the folder it was \
                 trained on, or as many users and items, with interactions or without",
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
        let mut record = self.record;
        record.identity.interactions_fingerprint = dataset.interactions_fingerprint();
        Ok(Self { record, graph, ..self })
    }

    /// The model's name in messages.
    fn place(&self) -> PathBuf {
        match &self.features {
            Features::Mapped(file) => file.path().to_owned(),
            Features::Held(_) => PathBuf::from("the model"),
        }
    }

    /// Places the model on a device for scoring; there it can be neither trained further nor
    /// projected.
    ///
    /// # Errors
    /// [`Error::DeviceMemory`] if it does not fit, [`Error::DeviceOperation`].
    pub fn on<B: Backend>(&self, backend: B) -> Result<DeviceModel<B>> {
        let values: Vec<B::Real> =
            self.parameters.iter().map(|&value| B::Real::from_f32(value)).collect();
        let (layout, graph) = (self.layout.clone(), self.graph.clone());
        DeviceModel::for_scoring(backend, self.config(), layout, graph, &values)
    }
}

/// Opens a model's file and checks its record against its tensors.
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
        // Interactions are numbered in 32 bits, like the pairs of a step.
        offsets.push(items.len() as u32);
    }
    let counter = |name: &str, values| Tensor { name: name.to_owned(), shape: vec![], values };
    let counters = [counter(INTERACTION_OFFSETS, &offsets[..]), counter(INTERACTION_ITEMS, &items)]
        .map(|tensor| Tensor { shape: vec![tensor.values.len()], ..tensor });
    checkpoint::write(path, record, &tensors, &counters)
}

/// Checks the record against the file's tensors, before its sizes are trusted.
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

/// The graph of the interactions in a model's file, each of which is checked.
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
