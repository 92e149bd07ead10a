//! The runs of a sweep: every configuration of its grid with every seed.

use serde::{Deserialize, Serialize};

use crate::config::{Axis, ModalityChoice, RunConfig, word};
use crate::{Error, Result};

/// What a sweep tries.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The settings that vary.
    pub grid: Vec<Axis>,
    /// The seeds to train each configuration with.
    pub seeds: Vec<u64>,
    /// All other settings.
    pub base: RunConfig,
}

/// A run of a sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedRun {
    /// Its name, and its directory's within the sweep's: `layers=1,dropout=0.3,seed=999`.
    pub name: String,
    /// The number of its configuration, from 0, in the order of the grid.
    pub configuration: usize,
    /// All of its settings.
    pub config: RunConfig,
}

/// A configuration of the grid: a value for each setting that varies.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Choice(pub serde_json::Map<String, serde_json::Value>);

impl std::fmt::Display for Choice {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let part = |(key, value): (&String, &serde_json::Value)| {
            format!("{}={}", key.replace('_', "-"), word(value))
        };
        formatter.write_str(&self.0.iter().map(part).collect::<Vec<_>>().join(","))
    }
}

impl Plan {
    /// How many configurations the grid has.
    pub fn configurations(&self) -> usize {
        self.grid.iter().map(|axis| axis.values.len()).product()
    }

    /// The index of a configuration's value on each axis. The last axis varies fastest.
    fn indices(&self, configuration: usize) -> Vec<usize> {
        let mut rest = configuration;
        let mut indices: Vec<usize> = self
            .grid
            .iter()
            .rev()
            .map(|axis| {
                let index = rest % axis.values.len();
                rest /= axis.values.len();
                index
            })
            .collect();
        indices.reverse();
        indices
    }

    /// The values of a configuration.
    pub fn choice(&self, configuration: usize) -> Choice {
        let indices = self.indices(configuration);
        let chosen = self.grid.iter().zip(indices);
        Choice(chosen.map(|(axis, index)| (axis.key.clone(), axis.values[index].clone())).collect())
    }

    /// The settings with which the data of all `runs` are read: every modality that any of them uses.
    pub fn data_settings(&self, runs: &[PlannedRun]) -> RunConfig {
        let names: Option<Vec<&[String]>> =
            runs.iter().map(|run| run.config.modalities.names()).collect();
        let modalities = names.map_or(ModalityChoice::All, |names| {
            let mut names = names.concat();
            names.sort();
            names.dedup();
            ModalityChoice::Only(names)
        });
        RunConfig { modalities, ..self.base.clone() }
    }

    /// All runs, configuration by configuration.
    ///
    /// # Errors
    /// [`Error::Setting`] for `--grid` or `--seeds`, naming the run whose settings are out of range
    /// or do not go together.
    pub fn runs(&self) -> Result<Vec<PlannedRun>> {
        let mut runs = Vec::new();
        for configuration in 0..self.configurations() {
            let choice = self.choice(configuration).to_string();
            for &seed in &self.seeds {
                let mut config = self.base.clone();
                for (axis, index) in self.grid.iter().zip(self.indices(configuration)) {
                    axis.apply(index, &mut config)?;
                }
                config.train.seed = seed;
                let separator = if choice.is_empty() { "" } else { "," };
                let name = format!("{choice}{separator}seed={seed}");
                config.validate().map_err(|error| {
                    let flag = if self.grid.is_empty() { "--seeds" } else { "--grid" };
                    Error::setting(flag, format!("run {name}: {error}"))
                })?;
                runs.push(PlannedRun { name, configuration, config });
            }
        }
        Ok(runs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{RunSettings, TrainSettings};

    fn plan(grid: &[&str], seeds: &[u64]) -> Plan {
        let run = RunSettings { data: Some("/d".into()), ..RunSettings::default() };
        Plan {
            grid: grid.iter().map(|text| Axis::parse(text).unwrap()).collect(),
            seeds: seeds.to_vec(),
            base: RunConfig::new(&TrainSettings::default(), &run).unwrap(),
        }
    }

    #[test]
    fn every_configuration_is_trained_with_every_seed() {
        let plan = plan(&["layers=1,2", "reg-weight=0.1,0.01,0"], &[7, 3]);
        let runs = plan.runs().unwrap();
        assert_eq!((plan.configurations(), runs.len()), (6, 12));
        assert_eq!(runs[0].name, "layers=1,reg-weight=0.1,seed=7");
        assert_eq!(runs[3].name, "layers=1,reg-weight=0.01,seed=3");
        let last = &runs[11];
        assert_eq!((last.name.as_str(), last.configuration), ("layers=2,reg-weight=0.0,seed=3", 5));
        let train = &last.config.train;
        assert_eq!((train.layers, train.reg_weight, train.seed), (2, 0.0, 3));
        assert_eq!(train.dropout, plan.base.train.dropout);
        let names: std::collections::BTreeSet<_> = runs.iter().map(|run| &run.name).collect();
        assert_eq!(names.len(), 12);
    }

    #[test]
    fn without_a_grid_there_are_the_seeds() {
        let runs = plan(&[], &[1, 2]).runs().unwrap();
        let names: Vec<_> = runs.iter().map(|run| run.name.as_str()).collect();
        assert_eq!(names, ["seed=1", "seed=2"]);
    }

    #[test]
    fn settings_that_do_not_go_together_are_refused_with_the_run_that_has_them() {
        let error = plan(&["propagation=light,gcn", "layers=0,1"], &[1]).runs().unwrap_err();
        assert!(error.is_input());
        assert_eq!(
            error.to_string(),
            "--grid: run propagation=gcn,layers=0,seed=1: --layers: 0 found, 1 to 4 with \
             --propagation gcn expected"
        );
        let error = plan(&[], &[u64::MAX]).runs().unwrap_err().to_string();
        assert!(error.starts_with("--seeds: run seed=18446744073709551615: --seed: "), "{error}");
    }
}
