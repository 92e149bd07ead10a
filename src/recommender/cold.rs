//! Items without interactions, scored by their features.
//!
//! The losses (8) make an item's predicted features p(Z_m) point in the direction of its row H_i.
//! An item without interactions is therefore represented by the mean of p(Z_m) over its modalities,
//! after two corrections. Modalities differ in spread: on lfm2k that of audio is three times that
//! of text, which it would drown out. And p(Z_m) is larger than p(H_i) and has another centre. With
//! c(·) for centring and scaling over the items that have interactions,
//!
//!   x = mean over m of c(p(Z_m)),   row = mean p(H_i) + spread of p(H_i) · c(x),
//!
//! where the spread is the root of the mean squared distance from the mean. Centring shifts all of
//! a user's scores equally, so cold items are ordered by the mean of p(Z_m)/spread_m.

use std::ops::Range;
use std::sync::Arc;

use super::{Index, Recommender};
use crate::cpu;
use crate::data::{FeatureMatrix, Modality};
use crate::parameters::ModalityLayout;
use crate::{Error, Result};

/// Centre and spread of rows.
#[derive(Debug, Clone)]
struct Moments {
    mean: Vec<f64>,
    spread: f64,
}

/// The moments that turn features into item rows.
#[derive(Debug, Clone)]
pub(super) struct Calibration {
    /// Of p(Z_m), by modality.
    modalities: Vec<Moments>,
    /// Of the mean of the centred and scaled p(Z_m).
    mean: Moments,
    /// Of p(H_i).
    rows: Moments,
    /// Of H_i.
    nodes: Moments,
}

impl Moments {
    /// The moments of the rows of `items` in `rows`, each `width` wide.
    fn of(rows: &[f32], width: usize, items: &[u32]) -> Self {
        let count = items.len().max(1) as f64;
        let row = |&item: &u32| &rows[item as usize * width..][..width];
        let mut mean = vec![0.0; width];
        for row in items.iter().map(row) {
            mean.iter_mut().zip(row).for_each(|(mean, &x)| *mean += f64::from(x) / count);
        }
        let square = |row: &[f32]| -> f64 {
            row.iter().zip(&mean).map(|(&x, &mean)| (f64::from(x) - mean).powi(2)).sum()
        };
        let spread = (items.iter().map(row).map(square).sum::<f64>() / count).sqrt();
        Self { mean, spread }
    }

    /// (x − mean) / spread of every row; 0 if the spread is 0.
    fn standardized(&self, rows: &[f32]) -> Vec<f32> {
        let scale = if self.spread > 0.0 { 1.0 / self.spread } else { 0.0 };
        let means = self.mean.iter().cycle();
        rows.iter().zip(means).map(|(&x, mean)| ((f64::from(x) - mean) * scale) as f32).collect()
    }

    /// mean + spread · x of every row.
    fn restored(&self, rows: &[f32]) -> Vec<f32> {
        let means = self.mean.iter().cycle();
        rows.iter()
            .zip(means)
            .map(|(&x, mean)| (mean + self.spread * f64::from(x)) as f32)
            .collect()
    }
}

impl Recommender {
    /// The items without training interactions, ascending, including items added after training.
    ///
    /// Until [`Recommender::score_cold_items`] is called, those of the model keep the rows that
    /// training left them, made of an embedding that no interaction has moved; evaluation uses
    /// these rows (SPEC §9).
    pub fn cold_items(&self) -> &[u32] {
        &self.cold
    }

    /// The users without training interactions, ascending: their rows, and so their lists, come from
    /// what was drawn when training began.
    pub fn cold_users(&self) -> &[u32] {
        &self.cold_users
    }

    /// Scores the model's items without training interactions by their features from now on, and
    /// returns their number.
    ///
    /// `frozen` are the features that the model was trained with if they are its inputs
    /// (`freeze_features`). Trained features are part of the model; `frozen` may then be empty.
    ///
    /// # Errors
    /// [`Error::Setting`] for a model without modalities or without training interactions, and for
    /// features that are missing or differ from those of the training; [`Error::DeviceMemory`] and
    /// [`Error::DeviceOperation`].
    pub fn score_cold_items(&mut self, frozen: &[Modality]) -> Result<usize> {
        self.index.check_process()?;
        let (calibration, standard) = self.calibrate(frozen)?;
        let d = self.width();
        let own: Vec<u32> = self
            .cold
            .iter()
            .copied()
            .filter(|&item| (item as usize) < self.model.items())
            .collect();
        let (mut rows, mut nodes) = (self.item_rows.to_vec(), self.item_nodes.clone());
        for &item in &own {
            let range = item as usize * d..(item as usize + 1) * d;
            let made = calibration.made(&standard[range.clone()]);
            check_finite(&made, d, |_| format!("row {item}"))?;
            let [row, node] = made;
            rows[range.clone()].copy_from_slice(&row);
            nodes[range].copy_from_slice(&node);
        }
        self.replace_items(rows, nodes)?;
        self.calibration = Some(calibration);
        self.own_cold_scored = true;
        Ok(own.len())
    }

    /// Adds items by their features and returns their numbers. `features` has one table for each of
    /// the model's modalities, all with as many rows; row n becomes the n-th item after the
    /// existing ones. Existing items do not change: the model's own without interactions are scored
    /// by their features only after [`Recommender::score_cold_items`].
    ///
    /// If the model's features are inputs, call [`Recommender::score_cold_items`] first, so that
    /// new features can be compared with those of the training.
    ///
    /// # Errors
    /// [`Error::Setting`] for tables that are missing, unknown, or differ in width or number of
    /// rows, for features so large that their rows are not finite, and as
    /// [`Recommender::score_cold_items`]; [`Error::Data`] for features that are not finite.
    pub fn add_items(&mut self, features: &[Modality]) -> Result<Range<u32>> {
        self.index.check_process()?;
        let calibration = match &self.calibration {
            Some(calibration) => calibration.clone(),
            None if self.model.config().freeze_features => {
                let problem = "those the model was trained with are not known to it; give them to \
                               score_cold_items first";
                return Err(Error::setting("features", problem));
            }
            None => self.calibrate(&[])?.0,
        };
        let tables = self.tables(features, "of the new items")?;
        let count = tables.first().map_or(0, |table| table.rows());
        if let Some(other) = tables.iter().find(|table| table.rows() != count) {
            let problem = format!(
                "tables of {count} and {} rows found, one row for each new item \
                                   in every modality expected",
                other.rows()
            );
            return Err(Error::setting("features", problem));
        }
        let first = self.items() as u32;
        if u32::try_from(self.items() + count).is_err() {
            return Err(Error::setting("features", "more items found than 32 bits can number"));
        }
        tables.iter().try_for_each(|table| table.check_finite(count))?;
        let standard = calibration.standard(&self.predicted(&tables, count));
        let made = calibration.made(&standard);
        check_finite(&made, self.width(), |row| format!("row {row} of the new items"))?;
        let rows = [&self.item_rows[..], &made[0]].concat();
        let nodes = [&self.item_nodes[..], &made[1]].concat();
        self.replace_items(rows, nodes)?;
        let added = first..first + count as u32;
        self.cold.extend(added.clone());
        self.calibration = Some(calibration);
        Ok(added)
    }

    /// Replaces the item rows; on error the old ones stay.
    fn replace_items(&mut self, rows: Vec<f32>, nodes: Vec<f32>) -> Result<()> {
        self.index = Index::new(&self.device, &rows, self.width())?;
        self.similar.take();
        (self.item_rows, self.item_nodes) = (Arc::new(rows), nodes);
        Ok(())
    }

    /// The calibration, and c(x) of the model's items, I × d.
    fn calibrate(&self, frozen: &[Modality]) -> Result<(Calibration, Vec<f32>)> {
        let (model, d) = (&self.model, self.width());
        let layout = model.layout();
        if layout.modalities.is_empty() {
            let problem = "none found in the model; items without interactions are scored by \
                           modalities that it was trained with";
            return Err(Error::setting("features", problem));
        }
        let known: Vec<u32> = (0..model.items() as u32)
            .filter(|item| self.cold.binary_search(item).is_err())
            .collect();
        if known.is_empty() {
            let problem = "none of the model's items has interactions to compare others with";
            return Err(Error::setting("features", problem));
        }
        let tables = match model.config().freeze_features {
            true => self.frozen_tables(frozen)?,
            false => (0..layout.modalities.len())
                .map(|modality| {
                    let values = model.features(modality)?.unwrap_or_default();
                    let columns = layout.modalities[modality].columns;
                    Ok(Arc::new(FeatureMatrix::from_f32(model.items(), columns, values)?))
                })
                .collect::<Result<Vec<_>>>()?,
        };
        let predicted = self.predicted(&tables, model.items());
        let modalities: Vec<Moments> =
            predicted.iter().map(|rows| Moments::of(rows, d, &known)).collect();
        let x = mean_of_standardized(&modalities, &predicted);
        let calibration = Calibration {
            modalities,
            mean: Moments::of(&x, d, &known),
            rows: Moments::of(&self.item_rows, d, &known),
            nodes: Moments::of(&self.item_nodes, d, &known),
        };
        let standard = calibration.mean.standardized(&x);
        Ok((calibration, standard))
    }

    /// The features of the training, checked against the model's fingerprints.
    fn frozen_tables(&self, given: &[Modality]) -> Result<Vec<Arc<FeatureMatrix>>> {
        let tables = self.tables(given, "the model was trained with")?;
        let fingerprints = &self.model.record().identity.features_fingerprints;
        for ((table, fingerprint), modality) in
            tables.iter().zip(fingerprints).zip(&self.model.layout().modalities)
        {
            let rows = self.model.items();
            if table.rows() < rows || table.fingerprint(rows) != *fingerprint {
                let problem = format!(
                    "{}: not the features that the model was trained with; give those",
                    table.place()
                );
                return Err(Error::setting(format!("modality {}", modality.name), problem));
            }
        }
        Ok(tables)
    }

    /// One table for each of the model's modalities, of the modality's width.
    fn tables(&self, given: &[Modality], whose: &str) -> Result<Vec<Arc<FeatureMatrix>>> {
        let modalities = &self.model.layout().modalities;
        let unknown =
            given.iter().find(|given| modalities.iter().all(|slot| slot.name != given.name));
        if let Some(unknown) = unknown {
            let names: Vec<&str> = modalities.iter().map(|slot| &*slot.name).collect();
            let problem = format!("not a modality of the model, which has {}", names.join(", "));
            return Err(Error::setting(format!("modality {}", unknown.name), problem));
        }
        modalities
            .iter()
            .map(|slot| {
                let wrong =
                    |problem| Err(Error::setting(format!("modality {}", slot.name), problem));
                let Some(table) = given.iter().find(|given| given.name == slot.name) else {
                    return wrong(format!("no features found; give those {whose}"));
                };
                let columns = table.features.columns();
                if columns != slot.columns {
                    return wrong(format!("{columns} columns found, {} expected", slot.columns));
                }
                Ok(table.features.clone())
            })
            .collect()
    }

    /// p(Z_m) of the first `rows` rows of each table, each rows × d.
    fn predicted(&self, tables: &[Arc<FeatureMatrix>], rows: usize) -> Vec<Vec<f32>> {
        let model = &self.model;
        let part = |range: &Range<usize>| model.arena(range);
        let layout = model.layout();
        let predictor = [part(&layout.predictor_weight), part(&layout.predictor_bias)];
        let of = |(slot, table): (&ModalityLayout, &Arc<FeatureMatrix>)| {
            let projection = [part(&slot.weight), part(&slot.bias)];
            cpu::predict_features(table, rows, projection, predictor)
        };
        layout.modalities.iter().zip(tables).map(of).collect()
    }
}

/// Refuses rows that are not finite, however finite the features are that made them; `place` names
/// the row at a position.
fn check_finite(made: &[Vec<f32>; 2], width: usize, place: impl Fn(usize) -> String) -> Result<()> {
    let is_finite = |row: &[f32]| row.iter().all(|x| x.is_finite());
    let rows = made.iter().map(|rows| rows.chunks_exact(width).position(|row| !is_finite(row)));
    let Some(row) = rows.flatten().min() else { return Ok(()) };
    let problem = format!(
        "{}: numbers so large found that its row is not finite; features on the scale of the \
         training's expected",
        place(row)
    );
    Err(Error::setting("features", problem))
}

impl Calibration {
    /// The rows of items and their nodes, made of c(x).
    fn made(&self, standard: &[f32]) -> [Vec<f32>; 2] {
        [&self.rows, &self.nodes].map(|moments| moments.restored(standard))
    }

    /// c(x) from p(Z_m) by modality.
    fn standard(&self, predicted: &[Vec<f32>]) -> Vec<f32> {
        self.mean.standardized(&mean_of_standardized(&self.modalities, predicted))
    }
}

/// The mean over the modalities of c(p(Z_m)).
fn mean_of_standardized(moments: &[Moments], predicted: &[Vec<f32>]) -> Vec<f32> {
    let mut mean = vec![0.0f32; predicted.first().map_or(0, Vec::len)];
    for (moments, rows) in moments.iter().zip(predicted) {
        for (mean, x) in mean.iter_mut().zip(moments.standardized(rows)) {
            *mean += x / predicted.len() as f32;
        }
    }
    mean
}
