//! The results of a sweep: by configuration, over its seeds.

use std::path::Path;

use serde::{Serialize, Serializer};

use super::plan::{Choice, Plan, PlannedRun};
use crate::records::Metrics;
use crate::run::Summary;
use crate::train::STOPPING_LENGTH;
use crate::{Error, Result, files};

/// How far a run has come.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It finished, now or in an earlier process.
    Finished(Summary),
    /// It was interrupted and saved.
    Interrupted(Summary),
    /// It failed, for this reason.
    Failed(String),
    /// It has not started.
    Waiting,
}

impl Outcome {
    /// The outcome in one word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Finished(_) => "finished",
            Self::Interrupted(_) => "interrupted",
            Self::Failed(_) => "failed",
            Self::Waiting => "waiting",
        }
    }

    fn summary(&self) -> Option<&Summary> {
        match self {
            Self::Finished(summary) | Self::Interrupted(summary) => Some(summary),
            Self::Failed(_) | Self::Waiting => None,
        }
    }
}

/// A mean over runs, and their standard deviation (over n − 1) if there are at least two.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The standard deviation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deviation: Option<f64>,
}

impl Spread {
    /// The spread of `values`; `None` if there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        let deviation = (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt());
        (!values.is_empty()).then_some(Self { mean, deviation })
    }
}

/// The metrics of a configuration's finished runs on one split: `recall@20` and so on, in the order
/// of [`Metrics`] in JSON.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Spreads(pub Vec<(String, Spread)>);

impl Spreads {
    fn of(runs: &[&Metrics]) -> Self {
        let mut names: Vec<String> = Vec::new();
        for name in runs.iter().flat_map(|metrics| named(metrics)).map(|(name, _)| name) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let spread = |name: String| {
            let value = |metrics: &&Metrics| {
                named(metrics).into_iter().find(|(other, _)| *other == name).map(|(_, value)| value)
            };
            let values: Vec<f64> = runs.iter().filter_map(value).collect();
            Spread::of(&values).map(|spread| (name, spread))
        };
        Self(names.into_iter().filter_map(spread).collect())
    }

    /// A metric by its name.
    pub fn get(&self, name: &str) -> Option<Spread> {
        self.0.iter().find(|(other, _)| other == name).map(|&(_, spread)| spread)
    }

    fn recall(&self) -> Option<f64> {
        self.get(&format!("recall@{STOPPING_LENGTH}")).map(|spread| spread.mean)
    }
}

impl Serialize for Spreads {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, spread)| (name, spread)))
    }
}

/// Metrics by name, `recall@5` first.
fn named(metrics: &Metrics) -> Vec<(String, f64)> {
    let at = |(position, k): (usize, &usize)| {
        metrics.by_name().map(|(name, values)| (format!("{name}@{k}"), values[position]))
    };
    metrics.top_k.iter().enumerate().flat_map(at).collect()
}

/// A run in the results.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunResult {
    /// Its name.
    pub run: String,
    /// Its seed.
    pub seed: u64,
    /// See [`Outcome::name`].
    pub status: &'static str,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Its summary, as in `summary.json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
}

/// A configuration, with its runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConfigurationResult {
    /// The settings that vary.
    pub settings: Choice,
    /// How many runs have finished; `valid` and `test` are over these.
    pub finished: usize,
    /// The validation metrics of the best validation epochs.
    pub valid: Spreads,
    /// The test metrics of those epochs.
    pub test: Spreads,
    /// Its runs, by seed.
    pub runs: Vec<RunResult>,
}

/// The results of a sweep.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Results {
    /// By validation Recall@20, best first; configurations without one come last.
    pub configurations: Vec<ConfigurationResult>,
    /// The position of the configuration with the highest test Recall@20. The reference
    /// implementation selects this way, and so reports the luckiest figure, not the expected one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_selected: Option<usize>,
}

impl Results {
    /// Collects runs and their outcomes, in the order of [`Plan::runs`].
    pub fn new(plan: &Plan, runs: &[PlannedRun], outcomes: &[Outcome]) -> Self {
        // A configuration's runs are adjacent.
        let of_runs: Vec<(&PlannedRun, &Outcome)> = runs.iter().zip(outcomes).collect();
        let mut configurations: Vec<ConfigurationResult> = of_runs
            .chunk_by(|(one, _), (next, _)| one.configuration == next.configuration)
            .map(|own| ConfigurationResult::new(plan.choice(own[0].0.configuration), own))
            .collect();
        let order = |recall: Option<f64>| recall.unwrap_or(f64::NEG_INFINITY);
        // The sort is stable: ties stay in the order of the grid.
        configurations.sort_by(|left, right| {
            order(right.valid.recall()).total_cmp(&order(left.valid.recall()))
        });
        let measured = configurations.iter().enumerate();
        let measured = measured.filter_map(|(at, result)| Some((at, result.test.recall()?)));
        let test_selected = measured.rev().max_by(|a, b| a.1.total_cmp(&b.1)).map(|(at, _)| at);
        Self { configurations, test_selected }
    }

    /// All runs, in the order of their configurations.
    pub fn runs(&self) -> impl Iterator<Item = &RunResult> {
        self.configurations.iter().flat_map(|configuration| &configuration.runs)
    }

    /// How many runs have this status, an [`Outcome::name`].
    pub fn count(&self, outcome: &str) -> usize {
        self.runs().filter(|run| run.status == outcome).count()
    }

    /// Writes the results as JSON, atomically.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be written.
    pub fn write_json(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|error| Error::io(path, "write", error.into()))?;
        text.push('\n');
        files::write_bytes_atomic(path, text.as_bytes())
    }

    /// Writes one line per run as CSV, atomically.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be written.
    pub fn write_csv(&self, path: &Path) -> Result<()> {
        let failed = |error: csv::Error| Error::io(path, "write", error.into());
        let split = |run: &RunResult, split: &str| -> Vec<(String, f64)> {
            let summary = run.summary.as_ref();
            let metrics = summary.and_then(|summary| match split {
                "valid" => summary.valid.as_ref(),
                _ => summary.test.as_ref(),
            });
            let named = metrics.map(named).unwrap_or_default();
            named.into_iter().map(|(name, value)| (format!("{split}_{name}"), value)).collect()
        };
        let values = |run: &RunResult| [split(run, "valid"), split(run, "test")].concat();
        let mut columns: Vec<String> = Vec::new();
        for (name, _) in self.runs().flat_map(values) {
            if !columns.contains(&name) {
                columns.push(name);
            }
        }
        let keys: Vec<&String> =
            self.configurations.iter().take(1).flat_map(|first| first.settings.0.keys()).collect();
        let mut writer = csv::Writer::from_writer(Vec::new());
        let heading = ["run"].into_iter().chain(keys.iter().map(|key| key.as_str()));
        let heading = heading.chain(["seed", "status", "epochs", "best_epoch", "seconds"]);
        let heading = heading.chain(columns.iter().map(String::as_str)).chain(["problem"]);
        writer.write_record(heading).map_err(failed)?;
        for configuration in &self.configurations {
            for run in &configuration.runs {
                let mut line = vec![run.run.clone()];
                line.extend(configuration.settings.0.values().map(crate::config::word));
                line.extend([run.seed.to_string(), run.status.to_owned()]);
                let summary = run.summary.as_ref();
                let text = |value: Option<String>| value.unwrap_or_default();
                line.push(text(summary.map(|summary| summary.epochs.to_string())));
                let best = summary.and_then(|summary| summary.best_epoch);
                line.push(text(best.map(|epoch| epoch.to_string())));
                let seconds =
                    summary.map(|summary| summary.train_seconds + summary.evaluate_seconds);
                line.push(text(seconds.map(|seconds| format!("{seconds:.3}"))));
                let values = values(run);
                line.extend(columns.iter().map(|column| {
                    let value = values.iter().find(|(name, _)| name == column);
                    text(value.map(|(_, value)| value.to_string()))
                }));
                line.push(text(run.problem.clone()));
                writer.write_record(line).map_err(failed)?;
            }
        }
        let bytes = writer
            .into_inner()
            .map_err(|error| Error::io(path, "write", std::io::Error::other(error.to_string())))?;
        files::write_bytes_atomic(path, &bytes)
    }
}

impl ConfigurationResult {
    fn new(settings: Choice, runs: &[(&PlannedRun, &Outcome)]) -> Self {
        let finished: Vec<&Summary> = runs
            .iter()
            .filter_map(|(_, outcome)| match outcome {
                Outcome::Finished(summary) => Some(summary),
                _ => None,
            })
            .collect();
        let valid: Vec<&Metrics> = finished.iter().filter_map(|run| run.valid.as_ref()).collect();
        let test: Vec<&Metrics> = finished.iter().filter_map(|run| run.test.as_ref()).collect();
        Self {
            settings,
            finished: finished.len(),
            valid: Spreads::of(&valid),
            test: Spreads::of(&test),
            runs: runs
                .iter()
                .map(|(run, outcome)| RunResult {
                    run: run.name.clone(),
                    seed: run.config.train.seed,
                    status: outcome.name(),
                    problem: match outcome {
                        Outcome::Failed(problem) => Some(problem.clone()),
                        _ => None,
                    },
                    summary: outcome.summary().cloned(),
                })
                .collect(),
        }
    }
}

#[cfg(test)]
#[path = "results_tests.rs"]
mod tests;
