//! The beginning of a run: random values, or those of a file.

use std::path::Path;

use super::{Run, feature_sources, graph};
use crate::backend::Backend;
use crate::checkpoint::{Identity, TensorFile};
use crate::config::TrainConfig;
use crate::data::Dataset;
use crate::parameters::{Layout, ModalityLayout};
use crate::real::Real;
use crate::run::RunDirectory;
use crate::step::{DenseState, DeviceModel, RawFeatures, fresh_features};
use crate::{Error, Result, model};

impl<'a, B: Backend> Run<'a, B> {
    pub(super) fn begin(
        mut backend: B,
        dataset: &'a Dataset,
        config: &TrainConfig,
        layout: Layout,
        identity: Identity,
        directory: Option<&'a RunDirectory>,
        initial: Option<&Path>,
    ) -> Result<Self> {
        let initial = initial.map(|path| Initial::open(path, &layout)).transpose()?;
        let features = feature_sources(dataset, config, |index, modality| {
            let shape = [dataset.items, modality.features.columns()];
            let name = layout.modalities[index].features_name();
            Ok(match &initial {
                Some(initial) if initial.file.info(&name).is_some() => {
                    let values = initial.file.finite_reals(&name, &shape)?;
                    RawFeatures::Trained(fresh_features(values, dataset.items))
                }
                _ => RawFeatures::Untrained(modality.features.clone()),
            })
        })?;
        let graph = graph(dataset, config);
        let place = backend.place_features(dataset, &graph, config)?;
        let model = match &initial {
            Some(initial) => {
                let parameters: Vec<B::Real> = initial.file.finite_arena(&layout)?;
                let zeros = vec![B::Real::ZERO; parameters.len()];
                let dense = DenseState { parameters, first: zeros.clone(), second: zeros };
                DeviceModel::new(backend, config, layout, graph, &dense, features)?
            }
            None => DeviceModel::fresh(backend, config, layout, graph, features)?,
        };
        Self::with_model(model, dataset, config, identity, directory, place)
    }
}

/// A file of initial values.
struct Initial {
    file: TensorFile,
}

impl Initial {
    fn open(path: &Path, layout: &Layout) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let tensors = layout.tensors.iter().map(|tensor| tensor.name.clone());
        let features = layout.modalities.iter().map(ModalityLayout::features_name);
        let known: Vec<String> = tensors.chain(features).collect();
        // A model's file also holds the interactions it was trained on.
        let is_value = |name: &String| !model::INTERACTIONS.contains(&name.as_str());
        let mut names = file.names().into_iter().filter(is_value);
        if let Some(unknown) = names.find(|name| !known.iter().any(|known| known == name)) {
            let problem = format!(
                "tensor `{unknown}` is not one of this model's; expected {}",
                known.join(", ")
            );
            return Err(Error::run_file(path, problem));
        }
        Ok(Self { file })
    }
}
