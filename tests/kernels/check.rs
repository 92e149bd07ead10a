//! Inputs, and the comparison of outputs.

use std::ops::Range;

use bm3_engine::backend::{Backend, Rooms, Updated, view};
use bm3_engine::batch::{Batch, EpochPlan};
use bm3_engine::config::Order;
use bm3_engine::cuda::Cuda;
use bm3_engine::data::Pairs;
use bm3_engine::graph::Graph;
use bm3_engine::philox::{Purpose, Stream};
use bm3_engine::real::Real;

use crate::emulator;

/// The largest relative error of one rounding to f32.
pub const ROUNDING: f64 = 1.0 / (1 << 24) as f64;

/// Roundings that a product in split TF32 adds: each operand's rest beyond two TF32 numbers is
/// below 2⁻²² of it, and so is the product of the two small parts, which is left out.
pub const SPLIT: f64 = 12.0;

/// Runs a test on the device; on the emulator, in several orders of threads and blocks.
pub fn on_device(test: impl Fn(&Cuda)) {
    let Some(cuda) = emulator::cuda() else { return };
    match emulator::on_gpu() {
        true => test(&cuda),
        false => {
            let emulator = emulator::emulator().expect("the device is the emulator's");
            for order in ["0", "1", "2"] {
                emulator.set("BM3_EMULATOR_ORDER", order);
                test(&cuda);
            }
        }
    }
}

/// Roundings of a sum of `length` numbers: random ones grow with its square root. Twice that is
/// allowed, plus a few.
pub fn roundings(length: usize) -> f64 {
    4.0 + 2.0 * (length as f64).sqrt()
}

/// Fails if an element of `found` is further from `expected` than `roundings` of its `magnitude`.
#[track_caller]
pub fn close(what: &str, found: &[f32], expected: &[f64], magnitude: &[f64], roundings: f64) {
    assert_eq!((found.len(), magnitude.len()), (expected.len(), expected.len()), "{what}: length");
    for (index, ((&found, expected), magnitude)) in
        found.iter().zip(expected).zip(magnitude).enumerate()
    {
        // Precision ends below the smallest normal number.
        let allowed = roundings * ROUNDING * magnitude + f64::from(f32::MIN_POSITIVE);
        let off = (f64::from(found) - expected).abs();
        // A NaN must fail too.
        assert!(
            off <= allowed,
            "{what}: element {index} is {found}, not {expected}: off by {off:.3e}, {allowed:.3e} \
             allowed"
        );
    }
}

/// Numbers between -1 and 1, some of them 0, exact in f32.
pub fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let stream = Stream::new(seed, Purpose::Initial, 3, 0);
    let number = |index: u64| match stream.uniform(index) {
        drawn if drawn < 0.05 => 0.0,
        drawn => (2.0 * drawn - 1.0) as f32,
    };
    (0..count as u64).map(number).collect()
}

/// Absolute values.
pub fn magnitudes(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| value.abs()).collect()
}

/// Elements of parameters and their first and second moments, to be updated.
pub fn updated<Buffer>(arenas: &mut [Buffer; 3], range: Range<usize>) -> Updated<'_, Buffer> {
    let [parameters, first, second] = arenas;
    Updated { parameters, first, second, range }
}

/// `count` ids below `end`.
pub fn ids(seed: u64, count: usize, end: usize) -> Vec<u32> {
    let stream = Stream::new(seed, Purpose::Initial, 4, 0);
    (0..count as u64).map(|index| (stream.uniform(index) * end as f64) as u32).collect()
}

/// Uploads numbers to a device.
pub fn upload<B: Backend>(backend: &B, values: &[f32]) -> B::Buffer {
    let values: Vec<B::Real> = values.iter().map(|&value| B::Real::from_f32(value)).collect();
    backend.upload(&values).expect("room")
}

/// Downloads numbers from a device.
pub fn download<B: Backend>(backend: &B, buffer: &B::Buffer, count: usize) -> Vec<B::Real> {
    backend.download(view(buffer, 0..count)).expect("a copy")
}

/// A batch of pairs, uploaded by itself or formed as the short last batch of an epoch, whose rooms
/// are larger than it needs.
#[derive(Debug, Clone)]
pub struct BatchCase {
    pub users: Vec<u32>,
    pub items: Vec<u32>,
    /// Pairs of the batch before it; 0 for a batch by itself.
    pub before: usize,
    /// Its step, above 1.
    pub step: u32,
}

impl BatchCase {
    pub fn new(users: Vec<u32>, items: Vec<u32>) -> Self {
        Self { users, items, before: 0, step: 2 }
    }

    /// The same batch after a larger one, so that two tiles of each room are left unfilled.
    pub fn short(&self) -> Self {
        Self { before: (self.users.len() + 130).next_multiple_of(64), ..self.clone() }
    }

    pub fn host(&self) -> Batch {
        Batch::new(&self.users, &self.items)
    }

    /// Calls `work` with the batch on a device.
    pub fn with<B: Backend, T>(&self, backend: &B, mut work: impl FnMut(&B::Batch) -> T) -> T {
        if self.before == 0 {
            return work(&backend.upload_batch(self.host(), self.step).expect("room"));
        }
        let filling = 0..self.before as u32;
        let pairs = Pairs {
            users: filling.clone().chain(self.users.iter().copied()).collect(),
            items: filling.chain(self.items.iter().copied()).collect(),
        };
        let end = |ids: &[u32]| ids.iter().max().map_or(0, |&id| id as usize + 1);
        let (users, items) = (end(&pairs.users), end(&pairs.items));
        let mut batches = backend.batches(&pairs, users, items, self.before).expect("room");
        let (order, first_step) = (Order::File, self.step - 1);
        let plan = EpochPlan { order, seed: 0, epoch: 0, first_step };
        backend.arrange(&mut batches, plan).expect("an epoch");
        let mut outcome = None;
        let mut step = |batch: &B::Batch| {
            outcome = Some(work(batch));
            Ok(())
        };
        backend.each_batch(&mut batches, 1..2, &mut step, &mut || true).expect("a batch");
        outcome.expect("the batch was worked with")
    }
}

/// The places of a batch's rows in a backend's rooms for them: users, items, and items in each
/// modality.
pub fn places(batch: &Batch, rooms: Rooms, modalities: usize) -> Vec<usize> {
    let block = |start: usize, count: usize| start..start + count;
    let mut places: Vec<usize> = block(0, batch.users.len()).collect();
    for number in 0..1 + modalities {
        places.extend(block(rooms.users + number * rooms.items, batch.items.len()));
    }
    places
}

/// Rows at their places among `rows`, with `filler` in all others.
pub fn spread(
    values: &[f32],
    places: &[usize],
    rows: usize,
    width: usize,
    filler: f32,
) -> Vec<f32> {
    let mut spread = vec![filler; rows * width];
    for (row, &place) in values.chunks(width).zip(places) {
        spread[place * width..(place + 1) * width].copy_from_slice(row);
    }
    spread
}

/// The rows at `places`.
pub fn collect<T: Copy>(rows: &[T], places: &[usize], width: usize) -> Vec<T> {
    places.iter().flat_map(|&place| &rows[place * width..(place + 1) * width]).copied().collect()
}

/// The graph of [`random_pairs`].
pub fn graph(seed: u64, users: usize, items: usize, pairs: usize, self_loops: bool) -> Graph {
    Graph::new(&random_pairs(seed, users, items, pairs), users, items, self_loops)
}

/// Random pairs, 30 % of them with item 0.
pub fn random_pairs(seed: u64, users: usize, items: usize, pairs: usize) -> Pairs {
    let mut item_ids = ids(seed + 1, pairs, items);
    for item in item_ids.iter_mut().take(pairs * 3 / 10) {
        *item = 0;
    }
    Pairs { users: ids(seed, pairs, users), items: item_ids }
}
