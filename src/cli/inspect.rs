//! `bm3-engine inspect`

use std::path::{Path, PathBuf};

use bm3_engine::checkpoint::{StateRecord, TensorFile};
use bm3_engine::config::{ConfigFile, RunConfig, TrainConfig};
use bm3_engine::data::{DataError, Dataset, DatasetOptions, FeatureMatrix, Modality, SplitRatio};
use bm3_engine::model::Model;
use bm3_engine::run::Summary;
use bm3_engine::sweep::{RESULTS, RESULTS_TABLE, SWEEP, SweepDirectory};
use bm3_engine::{Error, Result, run};
use serde_json::{Map, Value, json};

use super::output;

/// Show what a run, a sweep, a data set, a model or a feature file holds
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct InspectArguments {
    /// A run's or a sweep's directory, a data folder, a .safetensors or a .npy file
    path: PathBuf,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

const AFTER_HELP: &str = "\
Examples:
  bm3-engine inspect data/baby
  bm3-engine inspect runs/baby --json
  bm3-engine inspect runs/baby/model.safetensors
  bm3-engine inspect data/baby/image_feat.npy";

/// The kinds of path that can be inspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The directory of a run.
    Run,
    /// The directory of a sweep.
    Sweep,
    /// A folder with an `.inter` file.
    Data,
    /// A `.safetensors` file.
    Safetensors,
    /// A `.npy` file.
    Npy,
}

impl Kind {
    /// Finds out what the path leads to.
    ///
    /// # Errors
    /// [`Error::Io`] when there is nothing or it cannot be read, [`Error::RunFile`] when it is
    /// anything else.
    fn of(path: &Path) -> Result<Self> {
        let found = std::fs::metadata(path).map_err(|error| Error::io(path, "read", error))?;
        let ending = |path: &Path, ending: &str| path.extension().is_some_and(|e| e == ending);
        if found.is_file() {
            if ending(path, "safetensors") {
                return Ok(Self::Safetensors);
            }
            if ending(path, "npy") {
                return Ok(Self::Npy);
            }
            let problem = "a .safetensors or .npy file, or a directory, expected";
            return Err(Error::run_file(path, problem));
        }
        if [run::CONFIG, run::MODEL, run::STATE].iter().any(|name| path.join(name).is_file()) {
            return Ok(Self::Run);
        }
        if path.join(SWEEP).is_file() {
            return Ok(Self::Sweep);
        }
        let entries = std::fs::read_dir(path).map_err(|error| Error::io(path, "read", error))?;
        if entries.flatten().any(|entry| ending(&entry.path(), "inter")) {
            return Ok(Self::Data);
        }
        let problem = format!(
            "neither a run (no {}), a sweep (no {SWEEP}) nor a data folder (no .inter file)",
            run::CONFIG
        );
        Err(Error::run_file(path, problem))
    }
}

pub fn run(arguments: &InspectArguments) -> anyhow::Result<()> {
    let path = &arguments.path;
    let found = match Kind::of(path)? {
        Kind::Run => inspect_run(path)?,
        Kind::Sweep => inspect_sweep(path, arguments.json)?,
        Kind::Data => inspect_data(path)?,
        Kind::Safetensors => inspect_tensors(path)?,
        Kind::Npy => inspect_npy(path)?,
    };
    if arguments.json {
        output::print_json(&found)
    } else {
        let mut text = String::new();
        outline(&mut text, 0, &found);
        output::print(&text)
    }
}

/// Settings, progress and results of a run.
fn inspect_run(directory: &Path) -> Result<Value> {
    let config = directory.join(run::CONFIG);
    let config = config.is_file().then(|| settings(&config)).transpose()?;
    let state = directory.join(run::STATE);
    let state: Option<StateRecord> =
        state.is_file().then(|| TensorFile::open(&state)?.record()).transpose()?;
    let model = directory.join(run::MODEL);
    let model = model.is_file().then(|| Model::read_record(&model)).transpose()?;
    let summary = directory.join(run::SUMMARY);
    let summary = std::fs::read_to_string(&summary).ok();
    let summary = summary.and_then(|text| serde_json::from_str::<Summary>(&text).ok());
    Ok(json!({
        "kind": "run",
        "settings": config,
        "progress": state.map(|state| json!({
            "epochs": state.epoch,
            "steps": state.step,
            "evaluations_since_best": state.evaluations_since_best,
            "last_epoch": state.last,
        })),
        "best_model": model.map(|model| json!({
            "epoch": model.epoch,
            "valid": model.valid,
            "test": model.test,
        })),
        "stopped_by": summary.as_ref().map(|summary| summary.stopped_by),
        "train_seconds": summary.as_ref().map(|summary| summary.train_seconds),
        "evaluate_seconds": summary.as_ref().map(|summary| summary.evaluate_seconds),
    }))
}

/// What a sweep tries, and the results so far: for a program all of them, for people where the table
/// is.
fn inspect_sweep(directory: &Path, for_program: bool) -> Result<Value> {
    let plan = SweepDirectory::plan(directory)?;
    let axes = plan.grid.iter().map(|axis| (axis.key.clone(), json!(axis.values))).collect();
    let runs: Vec<String> = plan.runs()?.into_iter().map(|run| run.name).collect();
    let results = match for_program {
        true => std::fs::read(directory.join(RESULTS))
            .ok()
            .and_then(|text| serde_json::from_slice::<Value>(&text).ok()),
        false => Some(json!(directory.join(RESULTS_TABLE))),
    };
    // Without what each run has for itself.
    let mut settings = json!(plan.base);
    if let Value::Object(settings) = &mut settings {
        settings.retain(|key, _| key != "seed" && plan.grid.iter().all(|axis| axis.key != *key));
    }
    Ok(json!({
        "kind": "sweep",
        "settings": settings,
        "grid": Value::Object(axes),
        "seeds": plan.seeds,
        "runs": runs,
        "results": results,
    }))
}

/// The settings of a run; only the training settings if another program began it, from data in no
/// folder.
fn settings(path: &Path) -> Result<Value> {
    let file = ConfigFile::read(path)?;
    if file.run.data.is_some() {
        return Ok(json!(RunConfig::read(path)?));
    }
    let mut config = TrainConfig::default();
    file.train.apply(&mut config);
    Ok(json!(config))
}

/// The counts of a data set, after the same checks as in training.
fn inspect_data(directory: &Path) -> Result<Value> {
    let dataset = match Dataset::open(directory, &DatasetOptions::default()) {
        Err(DataError::NoSplit { path }) => {
            let split = Some(SplitRatio { train: 0.8, valid: 0.1, test: 0.1, seed: 999 });
            let options = DatasetOptions { split, ..DatasetOptions::default() };
            let mut dataset = Dataset::open(directory, &options)?;
            dataset.warnings.push(format!(
                "{}: has no split (no column x_label); the counts are those of train --split \
                 0.8,0.1,0.1",
                path.display()
            ));
            dataset
        }
        other => other?,
    };
    let pairs = dataset.train.users.len() + dataset.valid.items.len() + dataset.test.items.len();
    let cells = dataset.users as f64 * dataset.items as f64;
    let degrees = |ids: &[u32], count: usize| {
        let mut degrees = vec![0usize; count];
        ids.iter().for_each(|&id| degrees[id as usize] += 1);
        degrees.sort_unstable();
        json!({
            "smallest": degrees.first(),
            "median": degrees.get(count / 2),
            "largest": degrees.last(),
        })
    };
    let modalities: Map<String, Value> = dataset
        .modalities
        .iter()
        .map(|Modality { name, features }| (name.clone(), describe_features(features)))
        .collect();
    Ok(json!({
        "kind": "data set",
        "name": dataset.name,
        "users": dataset.users,
        "items": dataset.items,
        "interactions": pairs,
        "density": pairs as f64 / cells,
        "train": dataset.train.users.len(),
        "valid": { "users": dataset.valid.users.len(), "interactions": dataset.valid.items.len() },
        "test": { "users": dataset.test.users.len(), "interactions": dataset.test.items.len() },
        "training_interactions_of_a_user": degrees(&dataset.train.users, dataset.users),
        "training_interactions_of_an_item": degrees(&dataset.train.items, dataset.items),
        "modalities": modalities,
        "warnings": dataset.warnings,
    }))
}

fn describe_features(features: &FeatureMatrix) -> Value {
    json!({
        "rows": features.rows(),
        "columns": features.columns(),
        "type": features.dtype().to_string(),
        "bytes": features.bytes(),
    })
}

/// The tensors of a file, and our record if it has one.
fn inspect_tensors(path: &Path) -> Result<Value> {
    let file = TensorFile::open(path)?;
    let tensors: Map<String, Value> = file
        .names()
        .into_iter()
        .filter_map(|name| {
            let info = file.info(&name)?;
            Some((name, json!(format!("{:?} {:?}", info.dtype, info.shape))))
        })
        .collect();
    Ok(json!({
        "kind": "tensors",
        "tensors": tensors,
        "record": file.record::<Value>().ok(),
    }))
}

/// The shape of a table, and whether its numbers can be trained on.
fn inspect_npy(path: &Path) -> Result<Value> {
    let features = FeatureMatrix::open(path)?;
    features.check_finite(features.rows())?;
    let mut found = json!({ "kind": "features" });
    if let (Value::Object(found), Value::Object(described)) =
        (&mut found, describe_features(&features))
    {
        found.extend(described);
        found.insert("all finite".to_owned(), true.into());
    }
    Ok(found)
}

/// JSON as indented lines, without what is absent.
fn outline(text: &mut String, depth: usize, value: &Value) {
    let Value::Object(map) = value else { return };
    let width = map.keys().map(|key| key.chars().count()).max().unwrap_or(0);
    for (key, value) in map {
        let indent = "  ".repeat(depth);
        match value {
            Value::Null => {}
            Value::Array(list) if list.is_empty() => {}
            Value::Object(inner) if inner.is_empty() => {}
            Value::Object(_) => {
                text.push_str(&format!("{indent}{key}:\n"));
                outline(text, depth + 1, value);
            }
            Value::String(word) => text.push_str(&format!("{indent}{key:width$}  {word}\n")),
            Value::Number(number) if number.is_f64() => {
                let number = short(number.as_f64().unwrap_or(f64::NAN));
                text.push_str(&format!("{indent}{key:width$}  {number}\n"));
            }
            other => text.push_str(&format!("{indent}{key:width$}  {other}\n")),
        }
    }
}

/// A number in few digits, for people; --json has all of them.
fn short(number: f64) -> String {
    let exact = number.to_string();
    match number.abs() {
        _ if exact.len() <= 8 => exact,
        0.001.. => format!("{number:.6}"),
        _ => format!("{number:.6e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_for_people() {
        for (number, expected) in [
            (0.5, "0.5"),
            (0.016_666_666_666_666_666, "0.016667"),
            (9.814_080_604_656_235, "9.814081"),
            (0.000_001, "0.000001"),
            (1.234_567_89e-7, "1.234568e-7"),
            (-2.000_000_1, "-2.000000"),
        ] {
            assert_eq!(short(number), expected);
        }
    }

    #[test]
    fn a_path_is_told_by_what_lies_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let touch = |name: &str| {
            std::fs::write(path.join(name), "").unwrap();
            path.join(name)
        };
        assert!(Kind::of(path).unwrap_err().to_string().contains("neither a run"));
        assert_eq!(Kind::of(&touch("a.npy")).unwrap(), Kind::Npy);
        assert_eq!(Kind::of(&touch("a.safetensors")).unwrap(), Kind::Safetensors);
        assert!(Kind::of(&touch("a.txt")).unwrap_err().is_input());
        touch("a.inter");
        assert_eq!(Kind::of(path).unwrap(), Kind::Data);
        touch("config.toml");
        assert_eq!(Kind::of(path).unwrap(), Kind::Run);
        assert!(Kind::of(Path::new("does/not/exist")).unwrap_err().is_input());
    }
}
