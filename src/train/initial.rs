//! How a run begins: drawn values, or those of a file.

use std::path::Path;

use super::{Run, feature_sources, graph};
use crate::backend::Backend;
use crate::checkpoint::{Identity, TensorFile};
use crate::config::TrainConfig;
use crate::data::Dataset;
use crate::parameters::Layout;
use crate::real::Real;
use crate::run::RunDirectory;
use crate::step::{DenseState, DeviceModel, RawFeatures, fresh_features};
use crate::{Error, Result};

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
                    let values = initial.file.reals(&name, &shape)?;
                    RawFeatures::Trained(fresh_features(values, dataset.items))
                }
                _ => RawFeatures::Untrained(modality.features.clone()),
            })
        })?;
        let graph = graph(dataset, config);
        let place = backend.place_features(dataset, &graph, config)?;
        let model = match &initial {
            Some(initial) => {
                let parameters: Vec<B::Real> = initial.file.arena("", &layout)?;
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
        let known = |name: &str| {
            layout.tensors.iter().any(|tensor| tensor.name == name)
                || layout.modalities.iter().any(|modality| modality.features_name() == name)
        };
        if let Some(unknown) = file.names().into_iter().find(|name| !known(name)) {
            let problem = format!(
                "tensor `{unknown}` is not one of this model's; expected {}",
                layout.tensors.iter().map(|tensor| &*tensor.name).collect::<Vec<_>>().join(", ")
            );
            return Err(Error::run_file(path, problem));
        }
        Ok(Self { file })
    }
}
