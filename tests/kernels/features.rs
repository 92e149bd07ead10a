//! `project.cu` and `project_backward.cu`: raw features of each stored type, gathered and
//! multiplied; and the copy of features to the device.

use std::sync::Arc;

use bm3_engine::backend::{Backend, BatchRooms, view, view_mut};
use bm3_engine::batch::EpochPlan;
use bm3_engine::config::{FeatureStorage, Order, TrainConfig};
use bm3_engine::cpu::Cpu;
use bm3_engine::cuda::{Cuda, StoredType};
use bm3_engine::data::{Dataset, FeatureMatrix, Modality, Pairs};
use bm3_engine::real::Real;
use bm3_engine::step::fresh_features;
use bm3_engine::train;
use half::{bf16, f16};

use crate::check::{
    BatchCase, SPLIT, close, download, ids, magnitudes, numbers, on_device, roundings, upload,
};

const TYPES: [StoredType; 3] = [StoredType::F32, StoredType::F16, StoredType::Bf16];

/// Rows, columns, d, and the items of the batch: one of everything; columns that no vector access
/// divides; a batch smaller and larger than a tile; depths of several slices, forward and backward.
const SHAPES: [(usize, usize, usize, usize); 7] = [
    (1, 1, 4, 1),
    (5, 3, 12, 9),
    (20, 33, 64, 5),
    (90, 70, 68, 150),
    (150, 384, 64, 130),
    (9, 2100, 64, 9),
    (400, 20, 132, 500),
];

fn batch(rows: usize, pairs: usize) -> BatchCase {
    BatchCase::new(vec![0; pairs], ids(8, pairs, rows))
}

/// A value rounded to a stored type.
fn stored(value: f32, stored: StoredType) -> f32 {
    match stored {
        StoredType::F32 => value,
        StoredType::F16 => f16::from_f32(value).to_f32(),
        StoredType::Bf16 => bf16::from_f32(value).to_f32(),
    }
}

struct Case<'a> {
    rows: usize,
    columns: usize,
    width: usize,
    batch: BatchCase,
    values: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    gradient: &'a [f32],
}

/// z, then dW and db.
type Outcome = (Vec<f64>, Vec<f64>);

impl Case<'_> {
    /// The CPU's result in f64, and the summed magnitudes of its terms.
    fn expected(&self) -> (Outcome, Outcome) {
        let [values, weight, bias, gradient] =
            [self.values, self.weight, self.bias, self.gradient].map(magnitudes);
        let sizes = Case {
            batch: self.batch.clone(),
            values: &values,
            weight: &weight,
            bias: &bias,
            gradient: &gradient,
            ..*self
        };
        (self.run(&Cpu::<f64>::new()), sizes.run(&Cpu::<f64>::new()))
    }

    /// z, then dW and db.
    fn run<B: Backend>(&self, backend: &B) -> (Vec<B::Real>, Vec<B::Real>) {
        let matrix = FeatureMatrix::from_f32(self.rows, self.columns, self.values.to_vec());
        let matrix = Arc::new(matrix.expect("sizes agree"));
        let features = backend.frozen_features(matrix, self.rows).expect("room");
        self.run_with(backend, &features)
    }

    fn run_with<B: Backend>(
        &self,
        backend: &B,
        features: &B::Features,
    ) -> (Vec<B::Real>, Vec<B::Real>) {
        let parameters = self.width * (self.columns + 1);
        let weight = upload(backend, self.weight);
        let bias = upload(backend, self.bias);
        let mut gradient = upload(backend, &vec![7.0; parameters]);
        self.batch.with(backend, |batch| {
            let (items, room) = (self.batch.host().items.len(), batch.rooms().items);
            let (filled, elements) = (items * self.width, room * self.width);
            let mut z = upload(backend, &vec![7.0; elements]);
            let (w, b) = (view(&weight, 0..self.weight.len()), view(&bias, 0..self.width));
            backend.project(batch, features, w, b, view_mut(&mut z, 0..elements)).unwrap();
            // Rows beyond the batch's items hold arbitrary numbers, which must not affect the
            // result.
            let mut dz = self.gradient[..filled].to_vec();
            dz.resize(elements, 9.0);
            let dz = upload(backend, &dz);
            let target = view_mut(&mut gradient, 0..parameters);
            backend.project_backward(batch, features, view(&dz, 0..elements), target).unwrap();
            let z = download(backend, &z, elements);
            assert!(z[filled..].iter().all(|value| value.to_f64() == 7.0));
            (z[..filled].to_vec(), download(backend, &gradient, parameters))
        })
    }
}

#[test]
fn projections_agree_with_the_cpu_in_every_stored_type() {
    on_device(|cuda| {
        for (rows, columns, width, pairs) in SHAPES {
            let values = numbers(1, rows * columns);
            let (weight, bias) = (numbers(2, width * columns), numbers(3, width));
            let gradient = numbers(4, rows * width);
            for storage in TYPES {
                let values: Vec<f32> = values.iter().map(|&x| stored(x, storage)).collect();
                let case = Case {
                    rows,
                    columns,
                    width,
                    batch: batch(rows, pairs),
                    values: &values,
                    weight: &weight,
                    bias: &bias,
                    gradient: &gradient,
                };
                let ((expected, expected_gradient), (sizes, gradient_sizes)) = case.expected();
                for batch in [case.batch.short(), case.batch.clone()] {
                    let case = Case { batch, ..case };
                    let (found, found_gradient) = case.run(&cuda.clone().storing(storage));
                    let name = format!("{rows} x {columns} in {storage:?}, d = {width}");
                    let allowed = SPLIT + roundings(columns);
                    close(&format!("z of {name}"), &found, &expected, &sizes, allowed);
                    let (what, allowed) = (format!("dW, db of {name}"), SPLIT + roundings(pairs));
                    close(&what, &found_gradient, &expected_gradient, &gradient_sizes, allowed);
                }
            }
        }
    });
}

/// More items than half of the batch's room: the projection has fewer slices than there is room
/// for, and must not add what lies in the others.
#[test]
fn a_projection_of_fewer_slices_than_there_is_room_for_agrees_with_the_cpu() {
    on_device(|cuda| {
        let (rows, columns, width, pairs) = (512, 2304, 4, 2000);
        let (values, weight) = (numbers(1, rows * columns), numbers(2, width * columns));
        let (bias, gradient) = (numbers(3, width), numbers(4, rows * width));
        let case = Case {
            rows,
            columns,
            width,
            batch: batch(rows, pairs),
            values: &values,
            weight: &weight,
            bias: &bias,
            gradient: &gradient,
        };
        let ((expected, _), (sizes, _)) = case.expected();
        let found = case.run(cuda).0;
        close("z", &found, &expected, &sizes, SPLIT + roundings(columns));
    });
}

/// Trained features are projected by the same kernels, with the same bits as frozen ones in f32.
#[test]
fn trained_features_are_projected_as_frozen_ones() {
    on_device(|cuda| {
        let (rows, columns, width) = (30, 50, 16);
        let values = numbers(1, rows * columns);
        let (weight, bias) = (numbers(2, width * columns), numbers(3, width));
        let gradient = numbers(4, rows * width);
        let batch = batch(rows, 40);
        let case = Case {
            rows,
            columns,
            width,
            batch,
            values: &values,
            weight: &weight,
            bias: &bias,
            gradient: &gradient,
        };
        let trained = cuda.trained_features(fresh_features(values.clone(), rows), columns).unwrap();
        assert_eq!(case.run_with(cuda, &trained), case.run(cuda));
        assert_eq!(trained.values().unwrap(), Some(values.clone()));
    });
}

/// Every finite f16 and bf16 value is read as the number it is: subnormal ones, the largest, both
/// zeros.
#[test]
fn every_half_is_read_exactly() {
    on_device(|cuda| {
        let halves = (0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f32());
        read_exactly(&cuda.clone().storing(StoredType::F16), halves.collect());
        let brains = (0..=u16::MAX).map(|bits| bf16::from_bits(bits).to_f32());
        read_exactly(&cuda.clone().storing(StoredType::Bf16), brains.collect());
    });
}

/// Projects values, 64 per row, by the identity.
fn read_exactly(cuda: &Cuda, mut values: Vec<f32>) {
    values.retain(|value| value.is_finite());
    let width = 64;
    let rows = values.len() / width;
    values.truncate(rows * width);
    let identity: Vec<f32> =
        (0..width * width).map(|place| if place % (width + 1) == 0 { 1.0 } else { 0.0 }).collect();
    let case = Case {
        rows,
        columns: width,
        width,
        batch: BatchCase::new(vec![0; rows], (0..rows as u32).collect()),
        values: &values,
        weight: &identity,
        bias: &vec![0.0; width],
        gradient: &vec![0.0; rows * width],
    };
    assert_eq!(case.run(cuda).0, values);
}

/// Features go to the device in several parts, through page-locked memory that is reused.
#[test]
fn a_table_of_many_parts_arrives_whole() {
    on_device(|cuda| {
        let (rows, columns) = (9_000, 1024);
        let values: Vec<f32> = (0..rows * columns).map(|index| (index % 8191) as f32).collect();
        let picked: Vec<u32> = (0..rows as u32).step_by(190).collect();
        let mut weight = vec![0.0; 4 * columns];
        weight[columns - 1] = 1.0;
        let case = Case {
            rows,
            columns,
            width: 4,
            batch: BatchCase::new(vec![0; picked.len()], picked.clone()),
            values: &values,
            weight: &weight,
            bias: &[0.0; 4],
            gradient: &vec![0.0; 4 * picked.len()],
        };
        let (found, _) = case.run(cuda);
        for (index, &row) in picked.iter().enumerate() {
            let expected = values[row as usize * columns + columns - 1];
            assert_eq!(found[4 * index], expected, "row {row}");
        }
    });
}

/// For each batch of an epoch, features streamed from their files equal resident ones, wherever
/// they are put.
#[test]
fn streamed_features_are_projected_as_resident_ones() {
    let (users, items, columns, width) = (50, 700, 12, 16);
    let pairs = Pairs { users: ids(1, 500, users), items: ids(2, 500, items) };
    let values = numbers(3, items * columns);
    let (weight, bias) = (numbers(4, width * columns), numbers(5, width));
    let dz = numbers(6, 128 * width);
    let matrix = Arc::new(FeatureMatrix::from_f32(items, columns, values).expect("sizes agree"));
    let modality = Modality { name: "image".to_owned(), features: matrix.clone() };
    let none = Pairs::default();
    // A pair with the last item, so that the data set has as many.
    let mut trained = pairs;
    trained.items[0] = items as u32 - 1;
    let dataset =
        Dataset::from_parts("streamed", trained.clone(), &none, &none, vec![modality]).unwrap();
    let config = TrainConfig { freeze_features: true, batch_size: 70, ..TrainConfig::default() };
    let graph = train::graph(&dataset, &config);
    on_device(|cuda| {
        let project = |storage: FeatureStorage| -> Vec<Vec<f32>> {
            let mut cuda = cuda.clone().keeping_features(storage);
            let said = cuda.place_features(&dataset, &graph, &config).unwrap();
            assert_eq!(said.is_some(), storage == FeatureStorage::Stream);
            let features = cuda.frozen_features(matrix.clone(), items).unwrap();
            let mut batches =
                cuda.batches(&trained, dataset.users, items, config.batch_size).unwrap();
            let plan = EpochPlan { order: Order::Random, seed: 1, epoch: 0, first_step: 1 };
            cuda.arrange(&mut batches, plan).unwrap();
            let [weight, bias, dz] = [&weight, &bias, &dz].map(|values| upload(&cuda, values));
            let mut results = Vec::new();
            for (number, batch) in batches.read().unwrap().into_iter().enumerate() {
                let filled = batch.items.len() * width;
                let mut step = |batch: &<Cuda as Backend>::Batch| {
                    let elements = batch.rooms().items * width;
                    let mut z = upload(&cuda, &vec![7.0; elements]);
                    let (w, b) = (view(&weight, 0..width * columns), view(&bias, 0..width));
                    cuda.project(batch, &features, w, b, view_mut(&mut z, 0..elements))?;
                    results.push(download(&cuda, &z, filled));
                    let mut gradient = upload(&cuda, &vec![7.0; width * (columns + 1)]);
                    let target = view_mut(&mut gradient, 0..width * (columns + 1));
                    cuda.project_backward(batch, &features, view(&dz, 0..elements), target)?;
                    results.push(download(&cuda, &gradient, width * (columns + 1)));
                    Ok(())
                };
                let numbers = number as u64..number as u64 + 1;
                cuda.each_batch(&mut batches, numbers, &mut step, &mut || true).unwrap();
            }
            results
        };
        assert_eq!(project(FeatureStorage::Stream), project(FeatureStorage::Resident));
    });
}

/// Tables of many parts, the last one shorter, go to the device and back.
#[test]
fn a_large_table_comes_back_as_it_went() {
    on_device(|cuda| {
        // A GPU's host has many threads: more parts, so that threads take several in turn.
        let rows = if crate::emulator::on_gpu() { 40_003 } else { 2_101 };
        let columns = 1_003;
        let values = numbers(11, rows * columns);
        let matrix = FeatureMatrix::from_f32(rows, columns, values.clone()).unwrap();
        let features = cuda.untrained_features(&matrix, rows).unwrap();
        assert!(features.values().unwrap() == Some(values));
    });
}
