//! Items' topics, latent vectors and raw features.

use rayon::prelude::*;

use super::stream;
use crate::Result;
use crate::philox::Stream;

/// The width of a latent vector.
const LATENT: usize = 16;

/// How many latent dimensions a feature column mixes.
const MIXED: usize = 4;

/// Rows made at a time: 16 MiB of image features.
const ROWS_PER_BLOCK: usize = 1024;

/// What a modality's features look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Like activations of a convolutional network: not negative, many zeros.
    Image,
    /// Like a sentence's embedding: dense, of norm about 1.
    Text,
}

impl Kind {
    /// The modality's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Text => "text",
        }
    }

    fn tensor(self) -> u32 {
        match self {
            Self::Image => 10,
            Self::Text => 20,
        }
    }
}

/// Each item's topic and latent vector.
pub struct ItemLatents {
    seed: u64,
    topics: Vec<usize>,
    vectors: Vec<[f32; LATENT]>,
}

impl ItemLatents {
    /// Draws `items` items: a topic each, and a vector near the topic's.
    pub fn new(seed: u64, items: usize) -> Self {
        let (choice, centre, own) = (stream(seed, 1), stream(seed, 2), stream(seed, 3));
        let count = super::topics(items);
        let topics: Vec<usize> =
            (0..items).map(|item| (choice.uniform(item as u64) * count as f64) as usize).collect();
        let vectors = topics
            .par_iter()
            .enumerate()
            .map(|(item, &topic)| {
                std::array::from_fn(|dimension| {
                    let centre = centre.normal((topic * LATENT + dimension) as u64);
                    let own = own.normal((item * LATENT + dimension) as u64);
                    (centre + 0.6 * own) as f32
                })
            })
            .collect();
        Self { seed, topics, vectors }
    }

    /// The topic of each item.
    pub fn topics(&self) -> &[usize] {
        &self.topics
    }

    /// Passes all rows to `give`, a block at a time, with the number of rows so far.
    pub fn write(
        &self,
        kind: Kind,
        columns: usize,
        mut give: impl FnMut(&[f32], usize) -> Result<()>,
    ) -> Result<()> {
        let mixing = Mixing::new(&stream(self.seed, kind.tensor()), columns);
        let noise = stream(self.seed, kind.tensor() + 1);
        let mut block = vec![0.0f32; ROWS_PER_BLOCK * columns];
        for start in (0..self.vectors.len()).step_by(ROWS_PER_BLOCK) {
            let rows = ROWS_PER_BLOCK.min(self.vectors.len() - start);
            let block = &mut block[..rows * columns];
            block.par_chunks_mut(columns).enumerate().for_each(|(row, values)| {
                let item = start + row;
                mixing.project(&self.vectors[item], values);
                add_noise(&noise, item as u32, values);
                finish(kind, values);
            });
            give(block, start + rows)?;
        }
        Ok(())
    }
}

/// The latent dimensions that each column mixes, and their weights.
struct Mixing {
    columns: Vec<[(usize, f32); MIXED]>,
}

impl Mixing {
    fn new(stream: &Stream, columns: usize) -> Self {
        let column = |column: usize| {
            std::array::from_fn(|part| {
                let index = (2 * (column * MIXED + part)) as u64;
                let dimension = (stream.uniform(index) * LATENT as f64) as usize;
                (dimension, stream.normal(index + 1) as f32 / 2.0)
            })
        };
        Self { columns: (0..columns).map(column).collect() }
    }

    fn project(&self, vector: &[f32; LATENT], values: &mut [f32]) {
        for (value, mixed) in values.iter_mut().zip(&self.columns) {
            *value = mixed.iter().map(|&(dimension, weight)| weight * vector[dimension]).sum();
        }
    }
}

/// Adds noise of standard deviation about 1: the sum of a word's four bytes, close enough to normal
/// and much cheaper.
fn add_noise(stream: &Stream, row: u32, values: &mut [f32]) {
    // Four uniform bytes have mean 510 and variance 4 · (256² − 1) / 12.
    const MEAN: f32 = 510.0;
    const DEVIATION: f32 = 147.8;
    for (block, values) in values.chunks_mut(4).enumerate() {
        for (value, word) in values.iter_mut().zip(stream.words(row, block as u32)) {
            let sum: u32 = word.to_le_bytes().into_iter().map(u32::from).sum();
            *value += (sum as f32 - MEAN) / DEVIATION;
        }
    }
}

fn finish(kind: Kind, values: &mut [f32]) {
    match kind {
        Kind::Image => {
            for value in values {
                *value = (0.5 * *value - 0.2).max(0.0);
            }
        }
        Kind::Text => {
            let norm = values.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
            for value in values {
                *value /= norm;
            }
        }
    }
}
