//! `bootstrap_loss.cu`: dropout, cosines, every loss term and their gradients.

use std::sync::Arc;

use bm3_engine::backend::{Backend, BatchRooms, Dropout, LossShape, view, view_mut};
use bm3_engine::batch::Batch;
use bm3_engine::cpu::Cpu;
use bm3_engine::cuda::Cuda;
use bm3_engine::real::Real;

use crate::check::{
    BatchCase, ROUNDING, close, collect, download, ids, numbers, on_device, places, spread, upload,
};

#[derive(Clone)]
struct Case {
    shape: LossShape,
    pairs: BatchCase,
    batch: Batch,
    dropout: Dropout,
    x: Vec<f32>,
    predicted: Vec<f32>,
}

const CL_WEIGHT: f64 = 1.75;

impl Case {
    fn new(users: usize, items: usize, pairs: usize, width: usize, modalities: usize) -> Self {
        let pairs = BatchCase::new(ids(1, pairs, users), ids(2, pairs, items));
        let batch = pairs.host();
        let shape = LossShape { embedding_size: width, modalities };
        let rows = batch.users.len() + batch.items.len() * (1 + modalities);
        let (x, predicted) = (numbers(3, rows * width), numbers(4, rows * width));
        Self { shape, pairs, batch, dropout: Dropout::None, x, predicted }
    }

    /// The gradient, and the loss terms added to sums other than 0.
    fn run<B: Backend>(&self, backend: &B) -> (Vec<B::Real>, Vec<f64>) {
        let sums: Vec<f64> = (0..self.shape.terms()).map(|term| term as f64).collect();
        let mut losses = backend.losses(&sums).unwrap();
        let width = self.shape.embedding_size;
        let gradient = self.pairs.with(backend, |batch| {
            let rooms = batch.rooms();
            let (rows, places) =
                (self.shape.rows(rooms), places(&self.batch, rooms, self.shape.modalities));
            let elements = rows * width;
            // Rows that the batch does not fill hold arbitrary numbers before and no gradient
            // after.
            let x = upload(backend, &spread(&self.x, &places, rows, width, 5.0));
            let mut predicted =
                upload(backend, &spread(&self.predicted, &places, rows, width, 6.0));
            backend
                .bootstrap_loss(
                    self.shape,
                    batch,
                    CL_WEIGHT,
                    &self.dropout,
                    view(&x, 0..elements),
                    view_mut(&mut predicted, 0..elements),
                    &mut losses,
                )
                .unwrap();
            backend.add_losses(self.shape, batch, &mut losses).unwrap();
            let gradient = download(backend, &predicted, elements);
            for row in (0..rows).filter(|row| !places.contains(row)) {
                let row = &gradient[row * width..(row + 1) * width];
                assert!(row.iter().all(|value| value.to_f64() == 0.0));
            }
            collect(&gradient, &places, width)
        });
        (gradient, backend.read_losses(&losses).unwrap())
    }

    /// A bound on each row's gradient: w / |B| · its number of targets / ‖a‖, in every element,
    /// since unit rows have no element above 1.
    fn magnitude(&self) -> Vec<f64> {
        let (users, items) = (self.batch.users.len(), self.batch.items.len());
        let width = self.shape.embedding_size;
        let pairs = self.batch.pairs() as f64;
        let length = |offsets: &[u32], row: usize| f64::from(offsets[row + 1] - offsets[row]);
        let rows = self.predicted.chunks(width).enumerate().flat_map(|(row, online)| {
            let targets = if row < users {
                length(&self.batch.user_offsets, row)
            } else if row < users + items {
                length(&self.batch.item_offsets, row - users)
            } else {
                2.0 * CL_WEIGHT * length(&self.batch.item_offsets, (row - users) % items)
            };
            let square: f64 = online.iter().map(|&value| f64::from(value).powi(2)).sum();
            // The gradient's two parts, S and (â·S) â.
            let size = 2.0 * targets / pairs / square.sqrt().max(1e-8);
            vec![size; width]
        });
        rows.collect()
    }

    /// Compares the device with the CPU, for the batch by itself and at the end of an epoch.
    fn check(&self, name: &str, cuda: &Cuda) {
        let short = Self { pairs: self.pairs.short(), ..self.clone() };
        self.compare(name, &short.run(cuda));
        self.compare(name, &self.run(cuda));
    }

    fn compare(&self, name: &str, found: &(Vec<f32>, Vec<f64>)) {
        let (expected, expected_losses) = self.run(&Cpu::<f64>::new());
        // Norms and cosines are sums over d; a row's targets are added one after the other.
        let longest = self
            .batch
            .user_offsets
            .windows(2)
            .chain(self.batch.item_offsets.windows(2))
            .map(|bounds| bounds[1] - bounds[0])
            .max();
        let allowed = 12.0
            + 2.0 * (self.shape.embedding_size as f64).sqrt()
            + 2.0 * f64::from(longest.unwrap_or(0)).sqrt();
        close(name, &found.0, &expected, &self.magnitude(), allowed);
        for (term, (found, expected)) in found.1.iter().zip(&expected_losses).enumerate() {
            let off = (found - expected).abs();
            assert!(off <= allowed * ROUNDING, "{name}: loss term {term} is off by {off:e}");
        }
    }
}

fn shapes() -> Vec<(&'static str, Case)> {
    vec![
        ("one pair", Case::new(1, 1, 1, 4, 1)),
        ("one user, the same item again and again", Case::new(1, 1, 9, 12, 2)),
        ("no modality", Case::new(20, 30, 50, 64, 0)),
        ("repeats", Case::new(7, 5, 60, 64, 2)),
        ("blocks of different lengths", Case::new(9, 120, 170, 8, 2)),
        ("more rows of a term than a block's threads", Case::new(900, 600, 800, 4, 1)),
        ("wide rows", Case::new(9, 9, 20, 132, 1)),
        ("wider rows", Case::new(9, 9, 20, 260, 1)),
        ("widest rows", Case::new(9, 9, 20, 512, 3)),
        ("lanes without columns", Case::new(40, 60, 100, 36, 2)),
    ]
}

#[test]
fn agrees_with_the_cpu_without_dropout() {
    on_device(|cuda| {
        for (name, case) in shapes() {
            case.check(name, cuda);
        }
    });
}

/// Masks are drawn as on the CPU: a different draw of one element would move a gradient by far more
/// than its roundings.
#[test]
fn draws_the_masks_of_the_cpu() {
    on_device(|cuda| {
        for (name, mut case) in shapes() {
            for (probability, seed, step) in
                [(0.5, 7, 2), (0.3, u64::MAX, 12_345), (0.9, 1 << 40, 3)]
            {
                case.dropout = Dropout::Random { probability, seed };
                case.pairs.step = step;
                case.check(&format!("{name}, p = {probability}"), cuda);
            }
        }
    });
}

#[test]
fn takes_masks_that_are_given() {
    on_device(|cuda| {
        let (users, items) = (7, 5);
        for width in [4, 36, 132] {
            let mut case = Case::new(users, items, 30, width, 2);
            let kept = |seed, rows: usize| -> Vec<bool> {
                numbers(seed, rows * width).iter().map(|&value| value > -0.3).collect()
            };
            let masks = vec![kept(1, users), kept(2, items), kept(3, items), kept(4, items)];
            case.dropout = Dropout::Given { probability: 0.35, kept: Arc::new(masks) };
            case.check(&format!("d = {width}"), cuda);
        }
    });
}

/// Norms below the cosine's ε, and targets of which dropout leaves nothing.
#[test]
fn rows_of_zeros_and_almost_zeros_are_as_on_the_cpu() {
    on_device(|cuda| {
        let mut case = Case::new(5, 5, 12, 8, 1);
        let width = case.shape.embedding_size;
        case.predicted[..width].fill(0.0);
        case.predicted[width..2 * width].fill(1e-12);
        let last = case.predicted.len() - width;
        case.predicted[last..].fill(-1e-10);
        case.x[..2 * width].fill(0.0);
        case.x[2 * width..3 * width].fill(1e-13);
        let x_last = case.x.len() - width;
        case.x[x_last..].fill(0.0);
        case.check("tiny rows", cuda);
        // p so close to 1 that nearly everything is dropped.
        case.dropout = Dropout::Random { probability: 0.98, seed: 3 };
        case.check("tiny rows, p = 0.98", cuda);
    });
}
