//! Settings from a dictionary.

use std::fmt::Display;

use clap::ValueEnum;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::Error;
use crate::config::{
    ByteSize, DeviceChoice, FeatureStorage, TrainConfig, ascending, check_threads,
};

/// The settings in a dictionary, checked; missing ones take their defaults.
pub fn config(settings: &Bound<'_, PyDict>) -> PyResult<TrainConfig> {
    const WHOLE: &str = "a whole number from 0";
    let mut config = TrainConfig::default();
    for (name, value) in settings {
        let name: String = name.extract()?;
        let setting = Setting { name: &name, value: &value };
        match name.as_str() {
            "embedding_size" => config.embedding_size = setting.take(WHOLE)?,
            "layers" => config.layers = setting.take(WHOLE)?,
            "propagation" => config.propagation = setting.choice()?,
            "self_loops" => config.self_loops = setting.take("True or False")?,
            "dropout" => config.dropout = setting.take("a number")?,
            "reg_weight" => config.reg_weight = setting.take("a number")?,
            "cl_weight" => config.cl_weight = setting.take("a number")?,
            "freeze_features" => config.freeze_features = setting.take("True or False")?,
            "feature_type" => config.feature_type = setting.choice()?,
            "learning_rate" => config.learning_rate = setting.take("a number")?,
            "learning_rate_decay" => config.learning_rate_decay = setting.take("a number")?,
            "batch_size" => config.batch_size = setting.take(WHOLE)?,
            "epochs" => config.epochs = setting.take(WHOLE)?,
            "patience" => config.patience = setting.take(WHOLE)?,
            "top_k" => config.top_k = ascending(setting.take("whole numbers")?),
            "seed" => config.seed = setting.take(WHOLE)?,
            "order" => config.order = setting.choice()?,
            _ => return Err(PyTypeError::new_err(format!("{name}: there is no such setting"))),
        }
    }
    config.validate()?;
    Ok(config)
}

/// Refuses settings, devices and limits that are not possible.
#[pyfunction]
#[pyo3(signature = (settings, *, device, feature_storage, device_memory, threads))]
pub fn check(
    settings: &Bound<'_, PyDict>,
    device: &Bound<'_, PyAny>,
    feature_storage: &Bound<'_, PyAny>,
    device_memory: &Bound<'_, PyAny>,
    threads: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let config = config(settings)?;
    self::device(device)?;
    self::feature_storage(feature_storage)?.validate(&config)?;
    self::device_memory(device_memory)?;
    self::threads(threads).map(|_| ())
}

/// A device by name or number.
pub fn device(value: &Bound<'_, PyAny>) -> PyResult<DeviceChoice> {
    let text = value.str()?.to_string();
    text.parse().map_err(|problem: String| Error::setting("device", problem).into())
}

/// Where frozen features lie on a GPU.
pub fn feature_storage(value: &Bound<'_, PyAny>) -> PyResult<FeatureStorage> {
    Setting { name: "feature_storage", value }.choice()
}

/// The most bytes of a GPU's memory: a number, or a text such as "8GB"; `None` takes what is free.
pub fn device_memory(value: &Bound<'_, PyAny>) -> PyResult<Option<u64>> {
    if value.is_none() {
        return Ok(None);
    }
    let size: Result<ByteSize, String> = value.str()?.to_string().parse();
    size.map(|size| Some(size.0)).map_err(|_| {
        Setting { name: "device_memory", value }
            .wrong("bytes from 1, a size as in '8GB', '1.5GB' or '900MB', or None,")
    })
}

/// A number of threads; `None` means all.
pub fn threads(value: &Bound<'_, PyAny>) -> PyResult<Option<usize>> {
    let setting = Setting { name: "threads", value };
    match setting.take(THREADS)? {
        Some(0) => Err(setting.wrong(THREADS)),
        Some(threads) => match check_threads(threads) {
            Ok(()) => Ok(Some(threads)),
            Err(problem) => Err(Error::setting("threads", problem).into()),
        },
        None => Ok(None),
    }
}

const THREADS: &str = "a whole number from 1, or None,";

/// A parameter and the value given for it.
struct Setting<'a, 'py> {
    /// The parameter's name.
    name: &'a str,
    /// The value.
    value: &'a Bound<'py, PyAny>,
}

impl<'py> Setting<'_, 'py> {
    /// The value as a `T`, which messages call `expected`.
    fn take<T: for<'a> FromPyObject<'a, 'py>>(&self, expected: &str) -> PyResult<T> {
        self.value.extract().map_err(|_| self.wrong(expected))
    }

    /// The value as one of the words of `T`.
    fn choice<T: ValueEnum>(&self) -> PyResult<T> {
        let words: Vec<_> =
            T::value_variants().iter().filter_map(ValueEnum::to_possible_value).collect();
        let found =
            self.value.extract::<String>().ok().and_then(|word| T::from_str(&word, false).ok());
        found.ok_or_else(|| {
            let words: Vec<String> =
                words.iter().map(|word| format!("'{}'", word.get_name())).collect();
            self.wrong(words.join(" or "))
        })
    }

    fn wrong(&self, expected: impl Display) -> PyErr {
        let found = self.value.repr().map_or_else(|_| "?".to_owned(), |found| found.to_string());
        PyValueError::new_err(format!("{}: {found} found, {expected} expected", self.name))
    }
}
