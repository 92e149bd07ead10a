//! A trained model read back, to score with.

use std::path::{Path, PathBuf};

use crate::backend::Backend;
use crate::checkpoint::{Identity, ModelRecord, TensorFile};
use crate::data::Dataset;
use crate::real::Real;
use crate::run::MODEL;
use crate::step::{DenseState, Model};
use crate::train::{graph, layout_of};
use crate::{Error, Result};

/// A `model.safetensors`, open.
#[derive(Debug)]
pub struct SavedModel {
    file: TensorFile,
    path: PathBuf,
    /// What the file says about itself.
    pub record: ModelRecord,
}

impl SavedModel {
    /// Opens a model file, or that of a run's directory.
    ///
    /// # Errors
    /// [`Error::Io`] when it is not there, [`Error::RunFile`] when it is no model of ours or one
    /// of another format version.
    pub fn open(path: &Path) -> Result<Self> {
        let path = if path.is_dir() { path.join(MODEL) } else { path.to_owned() };
        let file = TensorFile::open(&path)?;
        let record: ModelRecord = file.record()?;
        let saved = Self { file, path, record };
        saved.check()?;
        Ok(saved)
    }

    /// Holds the record against the tensors that are there, before its sizes are believed.
    fn check(&self) -> Result<()> {
        let Identity { config, modalities, .. } = &self.record.identity;
        config
            .validate()
            .map_err(|error| Error::run_file(&self.path, format!("its record: {error}")))?;
        for (position, (name, columns)) in modalities.iter().enumerate() {
            if modalities[..position].iter().any(|(earlier, _)| earlier == name) {
                let problem = format!("its record names the modality `{name}` twice");
                return Err(Error::run_file(&self.path, problem));
            }
            let weight = format!("modality.{name}.weight");
            self.file.check_shape(&weight, &[config.embedding_size, *columns])?;
        }
        Ok(())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model on a device, ready to score (raw features are not needed for that).
    ///
    /// Scores come from the graph of `dataset`'s training pairs, so those should be the ones it
    /// was trained on: see [`SavedModel::fits`].
    ///
    /// # Errors
    /// [`Error::RunFile`] when the numbers of users and items differ, or a tensor is missing.
    pub fn load<B: Backend>(&self, backend: B, dataset: &Dataset) -> Result<Model<B>> {
        let identity = &self.record.identity;
        if (identity.users, identity.items) != (dataset.users, dataset.items) {
            let problem = format!(
                "was trained on {} users and {} items; {} has {} and {}: give the folder it was \
                 trained on",
                identity.users, identity.items, dataset.name, dataset.users, dataset.items
            );
            return Err(Error::run_file(&self.path, problem));
        }
        let layout = layout_of(&identity.config, dataset, &identity.modalities);
        let parameters: Vec<B::Real> = self.file.arena("", &layout)?;
        let zeros = vec![B::Real::ZERO; parameters.len()];
        let dense = DenseState { parameters, first: zeros.clone(), second: zeros };
        let graph = graph(dataset, &identity.config);
        Model::new(backend, &identity.config, layout, graph, &dense, Vec::new())
    }

    /// Whether it was trained on just these interactions.
    pub fn fits(&self, dataset: &Dataset) -> bool {
        self.record.identity.interactions_fingerprint == dataset.interactions_fingerprint()
    }
}
