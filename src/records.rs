//! The records that a training run reports while it runs.
//!
//! A run's log keeps one [`EpochRecord`] per epoch; `--json` prints it and the progress display
//! shows it. An [`Observer`] receives the records; it may be anything from nothing
//! (`impl Observer for ()`) to a terminal.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::profile::Profile;

/// The four ranking metrics of one split, each at every list length (SPEC §9).
///
/// In JSON this is one flat object, by list length and then by metric:
/// `{"recall@5": …, "ndcg@5": …, "precision@5": …, "map@5": …, "recall@10": …}`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    /// The list lengths K; each of the vectors below has one value per length.
    pub top_k: Vec<usize>,
    /// Recall@K.
    pub recall: Vec<f64>,
    /// NDCG@K.
    pub ndcg: Vec<f64>,
    /// Precision@K.
    pub precision: Vec<f64>,
    /// MAP@K.
    pub map: Vec<f64>,
}

impl Metrics {
    /// The metrics by their names in JSON, in the order in which they are written.
    pub fn by_name(&self) -> [(&'static str, &[f64]); 4] {
        [
            ("recall", &self.recall),
            ("ndcg", &self.ndcg),
            ("precision", &self.precision),
            ("map", &self.map),
        ]
    }

    /// Recall at list length `k`, if it was measured.
    pub fn recall_at(&self, k: usize) -> Option<f64> {
        let position = self.top_k.iter().position(|&length| length == k)?;
        self.recall.get(position).copied()
    }
}

impl Serialize for Metrics {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(4 * self.top_k.len()))?;
        for (position, k) in self.top_k.iter().enumerate() {
            for (name, values) in self.by_name() {
                if let Some(value) = values.get(position) {
                    map.serialize_entry(&format!("{name}@{k}"), value)?;
                }
            }
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Metrics {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut metrics = Self::default();
        // One slot per list length and metric, so that a missing metric is noticed.
        let mut found: Vec<[Option<f64>; 4]> = Vec::new();
        for (key, value) in ordered_map::deserialize(deserializer)? {
            let (name, k) = key
                .split_once('@')
                .and_then(|(name, k)| Some((name, k.parse::<usize>().ok()?)))
                .ok_or_else(|| D::Error::custom(format!("`{key}` is not METRIC@K")))?;
            let metric = metrics
                .by_name()
                .iter()
                .position(|(known, _)| *known == name)
                .ok_or_else(|| D::Error::custom(format!("`{name}` is not a metric")))?;
            let position = metrics.top_k.iter().position(|&length| length == k);
            let position = position.unwrap_or_else(|| {
                metrics.top_k.push(k);
                found.push([None; 4]);
                found.len() - 1
            });
            found[position][metric] = Some(value);
        }
        for (k, values) in metrics.top_k.iter().zip(&found) {
            let [Some(recall), Some(ndcg), Some(precision), Some(map)] = *values else {
                return Err(D::Error::custom(format!("a metric at list length {k} is missing")));
            };
            metrics.recall.push(recall);
            metrics.ndcg.push(ndcg);
            metrics.precision.push(precision);
            metrics.map.push(map);
        }
        Ok(metrics)
    }
}

/// The results of one epoch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// The epoch, from 1.
    pub epoch: u64,
    /// Optimiser steps taken since the run began, this epoch's included.
    pub step: u64,
    /// The learning rate of this epoch.
    pub learning_rate: f64,
    /// Means over the epoch's batches by name: `total`, `ui`, `iu`, `align.NAME`, `mask.NAME`,
    /// `reg`.
    #[serde(with = "ordered_map")]
    pub loss: Vec<(String, f64)>,
    /// Metrics on the validation split, if this epoch measured them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<Metrics>,
    /// Metrics on the test split, if this epoch measured them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<Metrics>,
    /// Wall time of the epoch's steps, in seconds.
    pub train_seconds: f64,
    /// Wall time of the epoch's evaluations, in seconds.
    pub evaluate_seconds: f64,
    /// Whether its validation Recall@20 is higher than that of every earlier epoch; always true
    /// without a validation split.
    pub best: bool,
    /// Whether the epoch's operations were timed individually. That takes longer, so its seconds
    /// cannot be compared with those of other epochs. Left out of the JSON if false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub profiled: bool,
}

impl EpochRecord {
    /// The loss term called `name`.
    pub fn loss_term(&self, name: &str) -> Option<f64> {
        self.loss.iter().find(|(term, _)| term == name).map(|&(_, value)| value)
    }
}

/// The facts known when training begins.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RunStart {
    /// The data set's name.
    pub dataset: String,
    /// U, the number of users.
    pub users: usize,
    /// I, the number of items.
    pub items: usize,
    /// Training pairs, repeats included.
    pub train_pairs: usize,
    /// Validation pairs.
    pub valid_pairs: usize,
    /// Test pairs.
    pub test_pairs: usize,
    /// Name and raw width D_m of each modality.
    pub modalities: Vec<(String, usize)>,
    /// Trained numbers in all tensors together.
    pub parameters: usize,
    /// The device, in words.
    pub device: String,
    /// Where the device has the features, if there is something to report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<String>,
    /// The first epoch of this process: 1, or the one after a resumed checkpoint.
    pub first_epoch: u64,
    /// The last epoch training may reach.
    pub epochs: u64,
    /// Training stops when more than this many evaluations in a row have not beaten the best.
    pub patience: u64,
    /// The run's directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
}

/// Receives a run's records as they are made. Every method is optional.
pub trait Observer {
    /// Training is about to begin, or to continue.
    fn start(&mut self, _run: &RunStart) {}
    /// Step `step_in_epoch` of `steps_per_epoch` (from 1) of `epoch` is done. On a GPU it may only
    /// be queued or about to be, together with up to 15 steps after it.
    fn step(&mut self, _epoch: u64, _step_in_epoch: u64, _steps_per_epoch: u64) {}
    /// An epoch has been trained and evaluated.
    fn epoch(&mut self, _record: &EpochRecord) {}
    /// Whether to time the operations of `epoch` individually, which changes no result. On the CPU,
    /// timing covers the whole process, including other runs in it.
    fn wants_profile(&self, _epoch: u64) -> bool {
        false
    }
    /// The operations of an epoch for which [`Observer::wants_profile`] returned true.
    fn profile(&mut self, _profile: &Profile) {}
    /// A checkpoint is safely on disk.
    fn checkpoint(&mut self, _path: &Path) {}
}

/// Observes nothing.
impl Observer for () {}

/// Pairs as a JSON object that keeps their order.
mod ordered_map {
    use super::{Deserializer, MapAccess, Serializer, Visitor, fmt};

    pub fn serialize<S: Serializer>(
        pairs: &[(String, f64)],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(pairs.iter().map(|(name, value)| (name, value)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<(String, f64)>, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = Vec<(String, f64)>;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("an object of numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(pairs)
            }
        }

        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        Metrics {
            top_k: vec![5, 20],
            recall: vec![0.1, 0.2],
            ndcg: vec![0.07, 1.0 / 3.0],
            precision: vec![0.01, 0.02],
            map: vec![0.03, 0.04],
        }
    }

    #[test]
    fn metrics_are_one_flat_object() {
        let json = serde_json::to_string(&metrics()).unwrap();
        assert_eq!(
            json,
            r#"{"recall@5":0.1,"ndcg@5":0.07,"precision@5":0.01,"map@5":0.03,"recall@20":0.2,"ndcg@20":0.3333333333333333,"precision@20":0.02,"map@20":0.04}"#
        );
        assert_eq!(serde_json::from_str::<Metrics>(&json).unwrap(), metrics());
    }

    #[test]
    fn malformed_metrics_are_refused() {
        for (json, problem) in [
            (r#"{"recall": 1.0}"#, "not METRIC@K"),
            (r#"{"hits@5": 1.0}"#, "`hits` is not a metric"),
            (r#"{"recall@5": 1.0}"#, "list length 5 is missing"),
            (r#"[1.0]"#, "an object of numbers"),
        ] {
            let error = serde_json::from_str::<Metrics>(json).unwrap_err().to_string();
            assert!(error.contains(problem), "{json}: {error}");
        }
    }

    #[test]
    fn a_record_keeps_the_order_and_every_bit_of_its_numbers() {
        let record = EpochRecord {
            epoch: 3,
            step: 12,
            learning_rate: 1e-3,
            // Decimal parsing without correct rounding reads the second one 1 ulp off.
            loss: vec![
                ("total".into(), 0.1 + 0.2),
                ("ui".into(), 31.245_270_191_439_438),
                ("align.text".into(), f64::MIN_POSITIVE),
                ("reg".into(), 5e-324),
            ],
            valid: Some(metrics()),
            test: None,
            train_seconds: 0.25,
            evaluate_seconds: 0.125,
            best: true,
            profiled: false,
        };
        let json = serde_json::to_string(&record).unwrap();
        assert!(json.contains(r#""loss":{"total":0.30000000000000004,"ui":"#), "{json}");
        assert!(!json.contains("test") && !json.contains("profiled"), "{json}");
        assert_eq!(serde_json::from_str::<EpochRecord>(&json).unwrap(), record);
        assert_eq!(record.loss_term("reg"), Some(5e-324));
        assert_eq!(record.valid.unwrap().recall_at(20), Some(0.2));
    }
}
