//! The model's tensors: names, shapes, places in the arena, initial values (SPEC §1, §6).

use std::ops::Range;

use rayon::prelude::*;

use crate::config::{Propagation, TrainConfig};
use crate::philox::{Purpose, Stream};
use crate::real::Real;

/// A tensor's initial distribution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Initial {
    /// Uniform within ± the bound.
    Uniform(f64),
    /// Normal with this standard deviation.
    Normal(f64),
}

/// A dense tensor and its place in the arena.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSlot {
    /// The name in every saved file.
    pub name: String,
    /// Rows and columns, or one length.
    pub shape: Vec<usize>,
    /// Its elements in the arena.
    pub range: Range<usize>,
    pub(crate) initial: Initial,
    /// Keys the initial values.
    pub(crate) stream: u32,
}

/// A modality's tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct ModalityLayout {
    /// `image`, `text`, …
    pub name: String,
    /// D_m.
    pub columns: usize,
    /// `modality.<name>.weight`, d × D_m.
    pub weight: Range<usize>,
    /// `modality.<name>.bias`, d, right after the weight.
    pub bias: Range<usize>,
}

impl ModalityLayout {
    /// Its dense tensors: the weight and the bias.
    pub fn projection(&self) -> Range<usize> {
        self.weight.start..self.bias.end
    }

    /// The name of trained features in saved files.
    pub fn features_name(&self) -> String {
        format!("modality.{}.features", self.name)
    }
}

/// The places of all dense parameters in one arena, so that one launch updates all that are ready
/// at the same time.
///
/// Moments have arenas of the same layout. The embeddings of users and items come first and together
/// are H⁰, N × d. The arena of gradients begins after them: H⁰'s gradient is used as it is computed.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// U, the number of users.
    pub users: usize,
    /// I, the number of items.
    pub items: usize,
    /// d, the embedding size.
    pub embedding_size: usize,
    /// All dense tensors, in the order of the arena.
    pub tensors: Vec<TensorSlot>,
    /// H⁰.
    pub nodes: Range<usize>,
    /// W^l of the paper's propagation; empty for the light form.
    pub propagation: Vec<Range<usize>>,
    /// `predictor.weight`, d × d.
    pub predictor_weight: Range<usize>,
    /// `predictor.bias`, d, right after the weight.
    pub predictor_bias: Range<usize>,
    /// The modalities' tensors.
    pub modalities: Vec<ModalityLayout>,
}

impl Layout {
    /// The layout of a model over `users` and `items` with modalities of these names and widths.
    pub fn new(
        config: &TrainConfig,
        users: usize,
        items: usize,
        modalities: &[(String, usize)],
    ) -> Self {
        let d = config.embedding_size;
        let mut arena = Arena::default();
        let user_embedding = arena.embedding("user_embedding", users, d, 0);
        let item_embedding = arena.embedding("item_embedding", items, d, 1);
        let propagation = match config.propagation {
            Propagation::Light => Vec::new(),
            Propagation::Gcn => (0..config.layers)
                .map(|layer| {
                    arena.weight(
                        &format!("propagation.{layer}.weight"),
                        d,
                        d,
                        1 << 16 | layer as u32,
                    )
                })
                .collect(),
        };
        let predictor_weight = arena.weight("predictor.weight", d, d, 2);
        let predictor_bias = arena.bias("predictor.bias", d, d, 3);
        let modalities = modalities
            .iter()
            .enumerate()
            .map(|(index, (name, columns))| {
                let stream = 4 + 2 * index as u32;
                ModalityLayout {
                    name: name.clone(),
                    columns: *columns,
                    weight: arena.weight(&format!("modality.{name}.weight"), d, *columns, stream),
                    bias: arena.bias(&format!("modality.{name}.bias"), d, *columns, stream + 1),
                }
            })
            .collect();
        Self {
            users,
            items,
            embedding_size: d,
            tensors: arena.tensors,
            nodes: user_embedding.start..item_embedding.end,
            propagation,
            predictor_weight,
            predictor_bias,
            modalities,
        }
    }

    /// The W^l of the paper's propagation.
    pub fn propagation_weights(&self) -> Range<usize> {
        self.nodes.end..self.propagation.last().map_or(self.nodes.end, |weight| weight.end)
    }

    /// The place of parameters after H⁰ in the arena of gradients.
    pub fn gradient(&self, parameters: &Range<usize>) -> Range<usize> {
        parameters.start - self.nodes.end..parameters.end - self.nodes.end
    }

    /// The length of the arena of gradients.
    pub fn gradients(&self) -> usize {
        self.len() - self.nodes.end
    }

    /// The predictor's tensors: the weight and the bias.
    pub fn predictor(&self) -> Range<usize> {
        self.predictor_weight.start..self.predictor_bias.end
    }

    /// The number of dense parameters.
    pub fn len(&self) -> usize {
        self.tensors.last().map_or(0, |tensor| tensor.range.end)
    }

    /// Whether there are no parameters at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The arena's initial values for a seed; each element is drawn from (seed, tensor, element).
    pub fn initial_values<T: Real>(&self, seed: u64) -> Vec<T> {
        let mut values = vec![T::ZERO; self.len()];
        for tensor in &self.tensors {
            let stream = Stream::new(seed, Purpose::Initial, 0, tensor.stream);
            values[tensor.range.clone()].par_iter_mut().enumerate().for_each(|(index, value)| {
                let index = index as u64;
                let drawn = match tensor.initial {
                    Initial::Uniform(bound) => bound * (2.0 * stream.uniform(index) - 1.0),
                    Initial::Normal(deviation) => deviation * stream.normal(index),
                };
                // Rounded to f32, so that a model in f64 starts from exactly the same numbers.
                *value = T::from_f32(drawn as f32);
            });
        }
        values
    }
}

#[derive(Default)]
struct Arena {
    tensors: Vec<TensorSlot>,
}

impl Arena {
    fn push(
        &mut self,
        name: &str,
        shape: Vec<usize>,
        initial: Initial,
        stream: u32,
    ) -> Range<usize> {
        let start = self.tensors.last().map_or(0, |tensor| tensor.range.end);
        let range = start..start + shape.iter().product::<usize>();
        let slot =
            TensorSlot { name: name.to_owned(), shape, range: range.clone(), initial, stream };
        self.tensors.push(slot);
        range
    }

    /// Xavier uniform on the table's shape.
    fn embedding(&mut self, name: &str, rows: usize, d: usize, stream: u32) -> Range<usize> {
        let bound = (6.0 / (rows + d) as f64).sqrt();
        self.push(name, vec![rows, d], Initial::Uniform(bound), stream)
    }

    /// Xavier normal.
    fn weight(&mut self, name: &str, rows: usize, columns: usize, stream: u32) -> Range<usize> {
        let deviation = (2.0 / (rows + columns) as f64).sqrt();
        self.push(name, vec![rows, columns], Initial::Normal(deviation), stream)
    }

    /// Uniform within ±1/√fan_in.
    fn bias(&mut self, name: &str, length: usize, fan_in: usize, stream: u32) -> Range<usize> {
        self.push(name, vec![length], Initial::Uniform(1.0 / (fan_in as f64).sqrt()), stream)
    }
}
