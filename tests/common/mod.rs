//! Small random problems shared by the integration tests.
#![allow(dead_code, reason = "each test uses a part")]

use std::sync::Arc;

use bm3_engine::backend::Backend;
use bm3_engine::batch::Batch;
use bm3_engine::config::{Propagation, TrainConfig};
use bm3_engine::cpu::Cpu;
use bm3_engine::data::{FeatureMatrix, Pairs};
use bm3_engine::graph::Graph;
use bm3_engine::parameters::Layout;
use bm3_engine::philox::{Purpose, Stream};
use bm3_engine::real::Real;
use bm3_engine::step::{DenseState, Model, RawFeatures, fresh_features};
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

    pub fn model<T: Real>(&self) -> Model<Cpu<T>> {
        self.try_model(Cpu::new()).expect("room")
    }

    pub fn try_model<B: Backend>(&self, backend: B) -> bm3_engine::Result<Model<B>> {
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
        Model::new(backend, &self.config, layout, graph, &dense, features)
    }
}
