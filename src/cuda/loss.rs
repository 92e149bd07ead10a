//! Dropout, cosines, loss terms and their gradients (`bootstrap_loss.cu`).

use std::sync::Arc;

use super::batches::CudaBatch;
use super::device::Device;
use super::launch::{Address, Launch, blocks, launch};
use super::memory::Memory;
use super::spmm::lanes;
use crate::backend::{BatchRooms, Dropout, LossShape};
use crate::philox::dropout_threshold;
use crate::watch::Watch;
use crate::{Error, Result};

/// Sums of loss terms on a device, and the non-finite values seen (`watch.cuh`).
#[derive(Debug)]
pub struct CudaLosses {
    pub(super) sums: Memory<f64>,
    /// The cosines of a batch's rows, R × 2, not yet added to the sums.
    cosines: Memory<f64>,
    watch: Memory<u64>,
}

/// Words of `watch` before those of the modalities.
const WATCH_HEAD: usize = 3;

/// The name of the cosines' memory in an error.
const COSINES: &str = "cosines of a batch";

/// A word of `watch` that has seen nothing.
const NOTHING_SEEN: u64 = u64::MAX;

/// Bytes of the sums and the watch for this many modalities.
pub(super) fn loss_bytes(modalities: usize) -> u64 {
    let shape = LossShape { embedding_size: 0, modalities };
    8 * (shape.terms() + WATCH_HEAD + modalities) as u64
}

impl CudaLosses {
    /// Sums that start from `sums`.
    ///
    /// # Errors
    /// [`Error::DeviceMemory`] and [`Error::DeviceOperation`].
    pub(super) fn new(device: &Arc<Device>, sums: &[f64]) -> Result<Self> {
        let words = WATCH_HEAD + LossShape::modalities_of(sums.len());
        Ok(Self {
            sums: Memory::from_slice(device, sums, "loss terms")?,
            cosines: Memory::new(device, 0, COSINES)?,
            watch: Memory::from_slice(device, &vec![NOTHING_SEEN; words], "loss terms")?,
        })
    }

    /// Makes room for the cosines of `rows` rows.
    fn cosines(&mut self, device: &Arc<Device>, rows: usize) -> Result<&Memory<f64>> {
        if self.cosines.len() < 2 * rows {
            // Free the old memory before allocating more.
            self.cosines = Memory::new(device, 0, COSINES)?;
            self.cosines = Memory::new(device, 2 * rows, COSINES)?;
        }
        Ok(&self.cosines)
    }

    /// Where `adam.cu` and `watch_losses` note non-finite values.
    pub(super) fn watch_of_dense(&self) -> Address {
        self.watch.address_of(0)
    }

    /// Where `adam_rows.cu` notes non-finite values of a modality.
    pub(super) fn watch_of(&self, modality: usize) -> Address {
        self.watch.address_of(WATCH_HEAD + modality)
    }

    /// Reads what has been seen.
    ///
    /// # Errors
    /// [`Error::DeviceOperation`].
    pub(super) fn watch(&self) -> Result<Watch> {
        let words = self.watch.read(0..self.watch.len())?;
        let seen = |word: u64| (word != NOTHING_SEEN).then_some(((word >> 32) as u32, word as u32));
        let value = f64::from_bits(words[1]);
        Ok(Watch {
            loss: seen(words[0]).map(|(step, term)| (step, term, value)),
            dense: seen(words[2]),
            features: words[WATCH_HEAD..].iter().map(|&word| seen(word)).collect(),
        })
    }
}

/// The widest rows: 4 quads per lane, 32 lanes.
const WIDEST: usize = 512;

/// Computes the cosines of the terms ui, iu, align and mask, and replaces `predicted` by its
/// gradient.
pub(super) fn bootstrap_loss(
    device: &Arc<Device>,
    shape: LossShape,
    batch: &CudaBatch,
    cl_weight: f64,
    dropout: &Dropout,
    (x, predicted): (Address, Address),
    losses: &mut CudaLosses,
) -> Result<()> {
    let width = shape.embedding_size;
    let rooms = batch.rooms();
    let rows = shape.rows(rooms);
    let kernel = match width.div_ceil(128) {
        1 => "bootstrap_loss_1",
        2 => "bootstrap_loss_2",
        3 | 4 => "bootstrap_loss_4",
        _ => {
            let problem = format!("is {width}; the kernels take at most {WIDEST}");
            return Err(Error::setting("--embedding-size", problem));
        }
    };
    let given = match dropout {
        Dropout::Given { kept, .. } => {
            let bytes: Vec<u8> = kept.iter().flatten().map(|&kept| u8::from(kept)).collect();
            Some(Memory::from_slice(device, &bytes, "given masks")?)
        }
        _ => None,
    };
    // The numbers of rows of the given masks of H_u and of H_i.
    let (users, items) = match dropout {
        Dropout::Given { kept, .. } => (kept[0].len() / width, kept[1].len() / width),
        _ => (0, 0),
    };
    let (mode, probability, seed) = match dropout {
        Dropout::None => (0u32, 0.0, 0u64),
        Dropout::Random { probability, seed } => (1, *probability, *seed),
        Dropout::Given { probability, .. } => (2, *probability, 0),
    };
    let cosines = losses.cosines(device, rows)?;
    let lanes = lanes(width);
    let targets = (2 * batch.pairs + 2 * rooms.items * shape.modalities) as u64;
    let (n, d) = (rows as u64, width as u64);
    launch!(
        device,
        Launch {
            kernel,
            grid: [blocks(n, u64::from(256 / lanes)), 1, 1],
            block: 256,
            bytes: 4 * d * (3 * n + targets),
            flops: d * (6 * targets + 12 * n),
        },
        [
            batch.record(),
            rooms.users as u32,
            rooms.items as u32,
            rows as u32,
            width as u32,
            lanes,
            cl_weight as f32,
            mode,
            seed,
            dropout_threshold(probability),
            (1.0 / (1.0 - probability)) as f32,
            given.as_ref().map_or(Address::NULL, |given| given.address_of(0)),
            users as u32,
            items as u32,
            x,
            predicted,
            cosines,
        ],
        "{} pairs, {rows} rows, d = {width}",
        batch.pairs
    )
}

/// Adds the terms ui, iu, align and mask to the sums, from their cosines.
pub(super) fn add_losses(
    device: &Arc<Device>,
    shape: LossShape,
    batch: &CudaBatch,
    losses: &CudaLosses,
) -> Result<()> {
    let rooms = batch.rooms();
    let (rows, terms) = (shape.rows(rooms), shape.terms() as u32 - 1);
    let cosines = &losses.cosines;
    assert!(cosines.len() >= 2 * rows, "the loss of {rows} rows was not computed before");
    let n = rows as u64;
    launch!(
        device,
        Launch {
            kernel: "loss_terms",
            grid: [terms, 1, 1],
            block: 256,
            bytes: 16 * n,
            flops: 2 * n,
        },
        [batch.record(), rooms.users as u32, rooms.items as u32, cosines, &losses.sums],
        "{terms} terms of {rows} rows"
    )
}

/// Checks the sums of a step.
pub(super) fn watch_losses(
    device: &Arc<Device>,
    batch: &CudaBatch,
    losses: &CudaLosses,
) -> Result<()> {
    let terms = losses.sums.len() as u32;
    launch!(
        device,
        Launch {
            kernel: "watch_losses",
            grid: [1, 1, 1],
            block: 32,
            bytes: 8 * u64::from(terms),
            flops: 0,
        },
        [batch.record(), &losses.sums, terms, losses.watch_of_dense()],
        "{terms} sums"
    )
}
