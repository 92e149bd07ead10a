//! The keys of a settings file that are this program's own.

use clap::ValueEnum;

use super::value::{Problem, Value};
use super::{FeatureSource, ModalityChoice, RunSettings, SplitRatio, TrainSettings, check_threads};

/// All of our own keys, in snake case.
pub(super) const KEYS: &[&str] = &[
    "embedding_size",
    "layers",
    "propagation",
    "self_loops",
    "dropout",
    "reg_weight",
    "cl_weight",
    "freeze_features",
    "feature_type",
    "learning_rate",
    "learning_rate_decay",
    "batch_size",
    "epochs",
    "patience",
    "top_k",
    "seed",
    "order",
    "data",
    "features",
    "modalities",
    "split",
    "device",
    "feature_storage",
    "device_memory",
    "threads",
    "out",
    "checkpoint_seconds",
    "init",
];

/// Sets our own key `key`; returns false if there is no such key.
pub(super) fn assign(
    train: &mut TrainSettings,
    run: &mut RunSettings,
    key: &str,
    value: &Value,
) -> Result<bool, Problem> {
    match key {
        "embedding_size" => train.embedding_size = Some(value.integer()?),
        "layers" => train.layers = Some(value.integer()?),
        "propagation" => train.propagation = Some(choice(value)?),
        "self_loops" => train.self_loops = Some(value.boolean()?),
        "dropout" => train.dropout = Some(value.number()?),
        "reg_weight" => train.reg_weight = Some(value.number()?),
        "cl_weight" => train.cl_weight = Some(value.number()?),
        "freeze_features" => train.freeze_features = Some(value.boolean()?),
        "feature_type" => train.feature_type = Some(choice(value)?),
        "learning_rate" => train.learning_rate = Some(value.number()?),
        "learning_rate_decay" => train.learning_rate_decay = Some(value.number()?),
        "batch_size" => train.batch_size = Some(value.integer()?),
        "epochs" => train.epochs = Some(value.integer()?),
        "patience" => train.patience = Some(value.integer()?),
        "top_k" => {
            train.top_k = Some(value.list().iter().map(Value::integer).collect::<Result<_, _>>()?);
        }
        "seed" => train.seed = Some(value.integer()?),
        "order" => train.order = Some(choice(value)?),
        "data" => run.data = Some(value.text()?.into()),
        "features" => run.features = features(value)?,
        "modalities" => run.modalities = Some(modalities(value)?),
        "split" => run.split = Some(split(value)?),
        "device" => run.device = Some(value.word()?.parse()?),
        "feature_storage" => run.feature_storage = Some(choice(value)?),
        "device_memory" => run.device_memory = Some(value.word()?.parse()?),
        "threads" => {
            let threads = value.integer()?;
            check_threads(threads)?;
            run.threads = Some(threads);
        }
        "out" => run.out = Some(value.text()?.into()),
        "checkpoint_seconds" => run.checkpoint_seconds = Some(value.integer()?),
        "init" => run.init = Some(value.text()?.into()),
        _ => return Ok(false),
    }
    Ok(true)
}

/// One of a few words, the same as for the flag of that name.
fn choice<T: ValueEnum>(value: &Value) -> Result<T, Problem> {
    let text = value.text()?;
    T::from_str(text, false).map_err(|_| {
        let words: Vec<String> = T::value_variants()
            .iter()
            .filter_map(ValueEnum::to_possible_value)
            .map(|word| format!("`{}`", word.get_name()))
            .collect();
        format!("{value} found, {} expected", words.join(" or "))
    })
}

fn features(value: &Value) -> Result<Vec<FeatureSource>, Problem> {
    let source = |(name, files): &(String, Value)| match files {
        Value::List(files) => {
            let files = files.iter().map(Value::text).collect::<Result<Vec<_>, _>>();
            let files = files.map_err(|problem| format!("{name}: {problem}"))?;
            FeatureSource::of_list(name, files.into_iter())
        }
        files => {
            let files = files.text().map_err(|problem| format!("{name}: {problem}"))?;
            FeatureSource::of_text(name, files)
        }
    };
    value.table()?.iter().map(source).collect()
}

fn modalities(value: &Value) -> Result<ModalityChoice, Problem> {
    match value {
        Value::List(names) => {
            let names = names.iter().map(|name| name.text().map(str::to_owned));
            ModalityChoice::only(names.collect::<Result<_, _>>()?)
        }
        other => other.text()?.parse(),
    }
}

fn split(value: &Value) -> Result<SplitRatio, Problem> {
    match value {
        Value::List(shares) => {
            SplitRatio::new(&shares.iter().map(Value::number).collect::<Result<Vec<_>, _>>()?)
        }
        other => other.text()?.parse(),
    }
}
