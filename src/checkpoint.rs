//! Models and training states on disk: safetensors files with one JSON record in their metadata.
//!
//! Both kinds hold tensors under the names of SPEC §1 and are written atomically. The metadata is a
//! single entry, `bm3`, so that equal contents give equal bytes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Metadata, TensorInfo, View};
use safetensors::{Dtype, SafeTensors};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::TrainConfig;
use crate::data::DataError;
use crate::mapped::MappedFile;
use crate::parameters::{Layout, TensorSlot};
use crate::real::Real;
use crate::records::{EpochRecord, Metrics};
use crate::{Error, Result, files};

/// The version of the files that this crate writes; files of other versions are refused.
pub const FORMAT_VERSION: u32 = 3;

/// The data and settings that a model belongs to; equal in all files of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// [`FORMAT_VERSION`] of the program that wrote the file.
    pub format_version: u32,
    /// The data set's name.
    pub dataset: String,
    /// The fingerprint of its pairs and splits.
    pub interactions_fingerprint: u64,
    /// The fingerprint of each modality's features.
    pub features_fingerprints: Vec<u64>,
    /// U, the number of users.
    pub users: usize,
    /// I, the number of items.
    pub items: usize,
    /// Name and raw width D_m of each modality.
    pub modalities: Vec<(String, usize)>,
    /// The settings of its training.
    pub config: TrainConfig,
}

/// The record in a `model.safetensors`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// The run it belongs to.
    pub identity: Identity,
    /// Its epoch, from 1.
    pub epoch: u64,
    /// Its metrics on the validation split, if there is one.
    pub valid: Option<Metrics>,
    /// Its metrics on the test split, if there is one.
    pub test: Option<Metrics>,
}

/// The record in a `state.safetensors`: the progress of training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StateRecord {
    /// The run it belongs to.
    pub identity: Identity,
    /// Epochs completed.
    pub epoch: u64,
    /// Steps taken in the next, unfinished epoch.
    pub step_in_epoch: u64,
    /// Steps taken in total.
    pub step: u64,
    /// Sums of the loss terms over `step_in_epoch` steps.
    pub loss_sums: Vec<f64>,
    /// The best epoch so far, if any was measured.
    pub best: Option<EpochRecord>,
    /// Evaluations since the best one.
    pub evaluations_since_best: u64,
    /// The last epoch's record.
    pub last: Option<EpochRecord>,
}

/// A tensor to be written.
#[derive(Debug, Clone)]
pub struct Tensor<'a, T> {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub values: &'a [T],
}

struct Bytes<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

impl View for Bytes<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        self.bytes.into()
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes tensors and row counters atomically, with `record` as metadata.
///
/// # Errors
/// [`Error::Io`] with `path`.
pub fn write<T: Real>(
    path: &Path,
    record: &impl Serialize,
    tensors: &[Tensor<'_, T>],
    counters: &[Tensor<'_, u32>],
) -> Result<()> {
    let record =
        serde_json::to_string(record).map_err(|error| Error::io(path, "describe", error.into()))?;
    let metadata = HashMap::from([("bm3".to_owned(), record)]);
    fn bytes<'a, E: bytemuck::Pod>(dtype: Dtype, tensor: &Tensor<'a, E>) -> (String, Bytes<'a>) {
        let bytes = bytemuck::cast_slice(tensor.values);
        (tensor.name.clone(), Bytes { dtype, shape: tensor.shape.clone(), bytes })
    }
    let views: Vec<_> = tensors
        .iter()
        .map(|tensor| bytes(T::DTYPE, tensor))
        .chain(counters.iter().map(|tensor| bytes(Dtype::U32, tensor)))
        .collect();
    files::write_atomic_by_name(path, |temporary| {
        safetensors::serialize_to_file(views, Some(metadata), temporary).map_err(|error| {
            let source = match error {
                safetensors::SafeTensorError::IoError(source) => source,
                other => std::io::Error::other(other.to_string()),
            };
            Error::io(path, "write", source)
        })
    })
}

/// A safetensors file, mapped.
#[derive(Debug)]
pub struct TensorFile {
    map: MappedFile,
    data_start: usize,
    metadata: Metadata,
}

impl TensorFile {
    /// Maps `path` and checks its header.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::RunFile`] if it is not complete.
    pub fn open(path: &Path) -> Result<Self> {
        let map = MappedFile::open(path).map_err(|error| Error::io(path, "read", error))?;
        let broken = |error: safetensors::SafeTensorError| {
            Error::run_file(path, format!("not a whole safetensors file ({error}); write it anew"))
        };
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(broken)?;
        SafeTensors::deserialize(&map).map_err(broken)?;
        Ok(Self { map, data_start: header + 8, metadata })
    }

    /// The record in the metadata.
    ///
    /// # Errors
    /// [`Error::RunFile`] if there is none, or one of another kind or format version.
    pub fn record<R: DeserializeOwned>(&self) -> Result<R> {
        let text = self.metadata.metadata().as_ref().and_then(|metadata| metadata.get("bm3"));
        let Some(text) = text else {
            return Err(Error::run_file(
                self.path(),
                "has no `bm3` entry in its metadata; expected a file that bm3-engine train wrote",
            ));
        };
        let unreadable = |error: serde_json::Error| {
            Error::run_file(self.path(), format!("its `bm3` metadata cannot be read: {error}"))
        };
        // Version first: a record of another version may have other fields.
        let record: serde_json::Value = serde_json::from_str(text).map_err(unreadable)?;
        match record["identity"]["format_version"].as_u64() {
            Some(version) if version != u64::from(FORMAT_VERSION) => {
                let problem = format!(
                    "is of format version {version}; this program reads version {FORMAT_VERSION}: \
                     use the version of the program that wrote it, or train again"
                );
                Err(Error::run_file(self.path(), problem))
            }
            _ => serde_json::from_value(record).map_err(unreadable),
        }
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// Refuses a file that was modified or truncated since it was mapped: anything may have been
    /// read from it.
    ///
    /// # Errors
    /// [`DataError::Changed`].
    pub fn check_unchanged(&self) -> Result<()> {
        match self.map.is_unchanged() {
            true => Ok(()),
            false => Err(DataError::Changed { path: self.path().to_owned() }.into()),
        }
    }

    /// The names of the tensors.
    pub fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// Type, shape and place of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name)
    }

    /// A tensor of floating-point numbers (f32 or f64 in the file) of a known shape.
    ///
    /// # Errors
    /// [`Error::RunFile`] if it is missing or has another shape or type.
    pub fn reals<T: Real>(&self, name: &str, shape: &[usize]) -> Result<Vec<T>> {
        let (info, bytes) = self.bytes(name, shape)?;
        match info.dtype {
            Dtype::F32 => Ok(bytes
                .as_chunks()
                .0
                .iter()
                .map(|&word| T::from_f32(f32::from_le_bytes(word)))
                .collect()),
            Dtype::F64 => Ok(bytes
                .as_chunks()
                .0
                .iter()
                .map(|&word| T::from_f64(f64::from_le_bytes(word)))
                .collect()),
            other => Err(Error::run_file(
                self.path(),
                format!("tensor `{name}` is of type {other:?}; expected F32 or F64"),
            )),
        }
    }

    /// A tensor of u32 with a step for each of `rows` rows, at most `last`.
    ///
    /// # Errors
    /// [`Error::RunFile`] if it is missing, has another shape or type, or has a step after `last`.
    pub fn steps(&self, name: &str, rows: usize, last: u64) -> Result<Vec<u32>> {
        let steps = self.counters(name, rows)?;
        if let Some(step) = steps.iter().find(|&&step| u64::from(step) > last) {
            let problem = format!("tensor `{name}` names step {step} of {last}; start a new run");
            return Err(Error::run_file(self.path(), problem));
        }
        Ok(steps)
    }

    /// A tensor of `count` numbers of type u32.
    ///
    /// # Errors
    /// [`Error::RunFile`] if it is missing or has another shape or type.
    pub fn counters(&self, name: &str, count: usize) -> Result<Vec<u32>> {
        let (info, bytes) = self.bytes(name, &[count])?;
        if info.dtype != Dtype::U32 {
            let problem = format!("tensor `{name}` is of type {:?}; expected U32", info.dtype);
            return Err(Error::run_file(self.path(), problem));
        }
        Ok(bytes.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect())
    }

    /// The dense tensors of a layout, each under its name prefixed with `prefix`, in one arena.
    ///
    /// # Errors
    /// [`Error::RunFile`] if one is missing, has another shape, or is neither F32 nor F64. Memory
    /// is allocated only once all are known to be there.
    pub fn arena<T: Real>(&self, prefix: &str, layout: &Layout) -> Result<Vec<T>> {
        let name = |tensor: &TensorSlot| format!("{prefix}{}", tensor.name);
        for tensor in &layout.tensors {
            self.check_shape(&name(tensor), &tensor.shape)?;
        }
        let mut values = vec![T::ZERO; layout.len()];
        for tensor in &layout.tensors {
            values[tensor.range.clone()]
                .copy_from_slice(&self.reals(&name(tensor), &tensor.shape)?);
        }
        Ok(values)
    }

    /// [`TensorFile::arena`] of parameters, which a sound file has no NaN or infinity among.
    ///
    /// # Errors
    /// Its errors, and [`Error::RunFile`] naming the tensor and what it has.
    pub fn finite_arena<T: Real>(&self, layout: &Layout) -> Result<Vec<T>> {
        let values: Vec<T> = self.arena("", layout)?;
        for tensor in &layout.tensors {
            self.check_finite(&tensor.name, &values[tensor.range.clone()])?;
        }
        Ok(values)
    }

    /// [`TensorFile::reals`] of parameters, among which a sound file has no NaN or infinity.
    ///
    /// # Errors
    /// Its errors, and [`Error::RunFile`] naming the tensor and the number found.
    pub fn finite_reals<T: Real>(&self, name: &str, shape: &[usize]) -> Result<Vec<T>> {
        let values = self.reals(name, shape)?;
        self.check_finite(name, &values)?;
        Ok(values)
    }

    fn check_finite<T: Real>(&self, name: &str, values: &[T]) -> Result<()> {
        // On this thread: models are also loaded where no pool may be used, in a forked process.
        match values.iter().find(|value| !value.to_f64().is_finite()) {
            None => Ok(()),
            Some(found) => {
                let problem = format!(
                    "tensor `{name}` has {}, a finite number expected; the file is damaged: give a \
                     copy of it from before",
                    found.to_f64()
                );
                Err(Error::run_file(self.path(), problem))
            }
        }
    }

    /// Refuses a file in which a tensor is missing or has another shape.
    ///
    /// # Errors
    /// [`Error::RunFile`].
    pub fn check_shape(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.bytes(name, shape).map(|_| ())
    }

    fn bytes(&self, name: &str, shape: &[usize]) -> Result<(&TensorInfo, &[u8])> {
        let Some(info) = self.info(name) else {
            let problem = format!("has no tensor `{name}`; it has {}", self.names().join(", "));
            return Err(Error::run_file(self.path(), problem));
        };
        if info.shape != shape {
            let problem =
                format!("tensor `{name}` is of shape {:?}; expected {shape:?}", info.shape);
            return Err(Error::run_file(self.path(), problem));
        }
        let (start, end) = info.data_offsets;
        Ok((info, &self.map[self.data_start + start..self.data_start + end]))
    }
}

/// The tensors of an arena, each under its name prefixed with `prefix`.
pub(crate) fn dense_tensors<'a, T>(
    layout: &Layout,
    prefix: &str,
    arena: &'a [T],
) -> Vec<Tensor<'a, T>> {
    let tensor = |slot: &TensorSlot| Tensor {
        name: format!("{prefix}{}", slot.name),
        shape: slot.shape.clone(),
        values: &arena[slot.range.clone()],
    };
    layout.tensors.iter().map(tensor).collect()
}

impl StateRecord {
    /// Refuses counters that no training could have left, given `steps_per_epoch` steps per epoch
    /// and `losses` sums of loss terms.
    ///
    /// # Errors
    /// [`Error::RunFile`] for `path`.
    pub fn check(&self, steps_per_epoch: u64, losses: usize, path: &Path) -> Result<()> {
        let steps = self.epoch.checked_mul(steps_per_epoch);
        let steps = steps.and_then(|steps| steps.checked_add(self.step_in_epoch));
        let problem = if self.step_in_epoch >= steps_per_epoch || steps != Some(self.step) {
            format!(
                "{} steps, {} of them after epoch {}; an epoch has {steps_per_epoch}",
                self.step, self.step_in_epoch, self.epoch
            )
        } else if self.evaluations_since_best > self.epoch {
            format!(
                "{} evaluations in {} epochs without a better one",
                self.evaluations_since_best, self.epoch
            )
        } else if self.loss_sums.len() != losses {
            format!("{} sums of losses instead of {losses}", self.loss_sums.len())
        } else {
            return Ok(());
        };
        let problem = format!("its counters do not belong together: {problem}; start a new run");
        Err(Error::run_file(path, problem))
    }
}

impl Identity {
    /// Refuses a file that does not belong to `expected`, naming the difference.
    ///
    /// Settings that only decide when to stop (epochs, patience) or what to report (list lengths)
    /// may differ.
    ///
    /// # Errors
    /// [`Error::RunFile`] for `path`.
    pub fn check(&self, expected: &Self, path: &Path) -> Result<()> {
        let differ = |what: &str, found: String, expected: String| {
            Err(Error::run_file(path, format!("{what} is {found}; expected {expected}")))
        };
        for (what, found, expected) in [
            ("its number of users", self.users, expected.users),
            ("its number of items", self.items, expected.items),
        ] {
            if found != expected {
                return differ(what, found.to_string(), expected.to_string());
            }
        }
        if self.modalities != expected.modalities {
            let words = |identity: &Self| {
                let word = |(name, width): &(String, usize)| format!("{name} ({width} wide)");
                let words: Vec<String> = identity.modalities.iter().map(word).collect();
                if words.is_empty() { "empty".to_owned() } else { words.join(", ") }
            };
            return differ("its list of modalities", words(self), words(expected));
        }
        let settings = |identity: &Self| {
            serde_json::to_value(&identity.config).unwrap_or_default().as_object().cloned()
        };
        let found = settings(self).unwrap_or_default();
        for (key, expected) in settings(expected).unwrap_or_default() {
            if ["epochs", "patience", "top_k"].contains(&&*key) {
                continue;
            }
            let found = found.get(&key).cloned().unwrap_or_default();
            if found != expected {
                let what = format!("its setting {key}");
                return differ(&what, found.to_string(), expected.to_string());
            }
        }
        let interactions = (
            "interactions".to_owned(),
            self.interactions_fingerprint,
            expected.interactions_fingerprint,
        );
        let fingerprints = self.features_fingerprints.iter().zip(&expected.features_fingerprints);
        let features = self.modalities.iter().zip(fingerprints).map(|((name, _), prints)| {
            (format!("features of modality `{name}`"), *prints.0, *prints.1)
        });
        for (what, found, wanted) in std::iter::once(interactions).chain(features) {
            if found != wanted {
                let problem = format!(
                    "it was trained on other {what} (data set {}, fingerprint {found:016x}; this \
                     one, {}, has {wanted:016x}): give the folder it was trained on",
                    self.dataset, expected.dataset
                );
                return Err(Error::run_file(path, problem));
            }
        }
        Ok(())
    }
}
