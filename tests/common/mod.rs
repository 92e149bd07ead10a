//! Small random problems shared by the integration tests.
#![allow(dead_code, reason = "each test uses a part")]

use std::sync::Arc;

use bm3_engine::backend::Backend;
use bm3_engine::batch::Batch;
use bm3_engine::config::{Propagation, TrainConfig};
use bm3_engine::cpu::Cpu;
use bm3_engine::data::{Dataset, FeatureMatrix, Modality, Pairs};
use bm3_engine::graph::Graph;
use bm3_engine::parameters::Layout;
use bm3_engine::philox::{Purpose, Stream};
use bm3_engine::real::Real;
use bm3_engine::step::{DenseState, DeviceModel, RawFeatures, fresh_features};
use proptest::prelude::*;

/// A small training problem, everything in it drawn from `seed`.
#[derive(Debug, Clone)]
pub struct Problem {
    pub config: TrainConfig,
    pub users: usize,
    pub items: usize,
    pub pairs: Vec<(u32, u32)>,
    pub batch: Vec<usize>,
    pub modalities: Vec<(String, usize)>,
    pub seed: u64,
}

impl Problem {
    pub fn random() -> impl Strategy<Value = Self> {
        let sizes = (1usize..9, 1usize..8, 1usize..5, 0usize..5, 0usize..4);
        let choices = (any::<bool>(), any::<bool>(), any::<bool>(), 0usize..3, any::<u32>());
        (sizes, choices).prop_flat_map(|((users, items, quarter, layers, modalities), choices)| {
            let (gcn, self_loops, freeze_features, dropout, seed) = choices;
            let pair = (0..users as u32, 0..items as u32);
            let pairs = prop::collection::vec(pair, 1..30);
            let widths = prop::collection::vec(1usize..9, modalities);
            (pairs, widths).prop_flat_map(move |(pairs, widths)| {
                let batch = prop::collection::vec(0..pairs.len(), 1..12);
                let config = TrainConfig {
                    embedding_size: 4 * quarter,
                    layers: if gcn { layers.max(1) } else { layers },
                    propagation: if gcn { Propagation::Gcn } else { Propagation::Light },
                    self_loops,
                    dropout: [0.0, 0.3, 0.7][dropout],
                    reg_weight: 0.3,
                    cl_weight: 1.7,
                    freeze_features,
                    seed: u64::from(seed),
                    ..TrainConfig::default()
                };
                let modalities: Vec<(String, usize)> = widths
                    .iter()
                    .enumerate()
                    .map(|(index, &width)| (format!("m{index}"), width))
                    .collect();
                batch.prop_map(move |batch| Self {
                    config: config.clone(),
                    users,
                    items,
                    pairs: pairs.clone(),
                    batch,
                    modalities: modalities.clone(),
                    seed: u64::from(seed),
                })
            })
        })
    }

    pub fn train_pairs(&self) -> Pairs {
        let (users, items) = self.pairs.iter().copied().unzip();
        Pairs { users, items }
    }

    pub fn graph(&self) -> Graph {
        Graph::new(&self.train_pairs(), self.users, self.items, self.config.self_loops)
    }

    pub fn layout(&self) -> Layout {
        Layout::new(&self.config, self.users, self.items, &self.modalities)
    }

    pub fn batch(&self) -> Batch {
        let positions: Vec<u32> = self.batch.iter().map(|&pair| pair as u32).collect();
        Batch::of_pairs(&self.train_pairs(), &positions)
    }

    /// The raw features of a modality, I × D_m, exact in f32.
    pub fn features(&self, modality: usize) -> Vec<f32> {
        let stream = Stream::new(self.seed, Purpose::Initial, 1, modality as u32);
        let count = (self.items * self.modalities[modality].1) as u64;
        (0..count).map(|index| (stream.uniform(index) - 0.3) as f32).collect()
    }

    /// Larger than the real initial values, so that no term is negligible.
    pub fn parameters(&self) -> Vec<f64> {
        let stream = Stream::new(self.seed, Purpose::Initial, 2, 0);
        (0..self.layout().len() as u64)
            .map(|index| f64::from((stream.uniform(index) - 0.5) as f32))
            .collect()
    }

    /// Some users and items, two modalities, repeats in the batch, and a hub.
    pub fn example() -> Self {
        Self {
            config: TrainConfig { embedding_size: 8, layers: 2, ..TrainConfig::default() },
            users: 5,
            items: 4,
            pairs: vec![(0, 0), (1, 0), (2, 0), (4, 0), (0, 1), (1, 2), (4, 3), (0, 0)],
            batch: vec![0, 1, 1, 4, 6],
            modalities: vec![("image".to_owned(), 7), ("text".to_owned(), 3)],
            seed: 11,
        }
    }

    pub fn model<T: Real>(&self) -> DeviceModel<Cpu<T>> {
        self.try_model(Cpu::new()).expect("room")
    }

    pub fn try_model<B: Backend>(&self, backend: B) -> bm3_engine::Result<DeviceModel<B>> {
        let layout = self.layout();
        let parameters: Vec<B::Real> =
            self.parameters().iter().map(|&x| B::Real::from_f64(x)).collect();
        let zeros = vec![B::Real::ZERO; parameters.len()];
        let dense = DenseState { parameters, first: zeros.clone(), second: zeros };
        let features = (0..self.modalities.len())
            .map(|modality| {
                let values = self.features(modality);
                let width = self.modalities[modality].1;
                if self.config.freeze_features {
                    let matrix = FeatureMatrix::from_f32(self.items, width, values);
                    RawFeatures::Frozen(Arc::new(matrix.expect("sizes agree")))
                } else {
                    let values = values.into_iter().map(B::Real::from_f32).collect();
                    RawFeatures::Trained(fresh_features(values, self.items))
                }
            })
            .collect();
        let graph = Arc::new(self.graph());
        DeviceModel::new(backend, &self.config, layout, graph, &dense, features)
    }
}

/// A data set with something to learn: items of a user's group are preferred.
pub fn groups() -> Dataset {
    let (users, items) = (60u32, 40u32);
    let stream = Stream::new(5, Purpose::Initial, 0, 0);
    let [mut train, mut valid, mut test] = [(); 3].map(|()| Pairs::default());
    for user in 0..users {
        for item in 0..items {
            let draw = stream.uniform(u64::from(user * items + item));
            let chance = if user % 4 == item % 4 { 0.7 } else { 0.05 };
            // The diagonal keeps every user and item in training.
            if draw < chance || user % items == item {
                let split = match (item / 4) % 8 {
                    0 if user % items != item => &mut valid,
                    1 if user % items != item => &mut test,
                    _ => &mut train,
                };
                split.users.push(user);
                split.items.push(item);
            }
        }
    }
    let modality = |name: &str, columns: u32| {
        let values = (0..items * columns)
            .map(|index| {
                let (item, column) = (index / columns, index % columns);
                let noise = stream.normal(u64::from(index) + 1_000_000) as f32;
                0.3 * noise + if item % 4 == column % 4 { 1.0 } else { 0.0 }
            })
            .collect();
        let features = FeatureMatrix::from_f32(items as usize, columns as usize, values);
        Modality { name: name.to_owned(), features: features.unwrap().into() }
    };
    let modalities = vec![modality("image", 24), modality("text", 10)];
    Dataset::from_parts("groups", train, &valid, &test, modalities).unwrap()
}
