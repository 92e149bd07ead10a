//! One step of the Baby shape on the CPU, operation by operation, and the whole step.
//!
//! Each line gives the time of one call and, as throughput, its bytes (the least that must move)
//! and its flops (the elements of criterion's figure). `cargo bench` runs it; BM3_BENCH_SHAPE=tiny
//! makes it quick.

mod made_up;

use bm3_engine::backend::{
    AdamStep, Backend, BatchRooms, Dropout, FeatureState, LossShape, SpmmFactors, SpmmInputs,
    Updated, view, view_mut,
};
use bm3_engine::batch::{Batch, epoch_order};
use bm3_engine::config::{Order, TrainConfig};
use bm3_engine::cpu::Cpu;
use bm3_engine::data::Dataset;
use bm3_engine::step::{DenseState, DeviceModel, RawFeatures, adam_step, fresh_features};
use bm3_engine::{evaluate, train};
use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};

/// Bytes of an f32.
const REAL: u64 = 4;

#[derive(Clone, Copy)]
struct Work {
    bytes: u64,
    flops: u64,
}

fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    work: Work,
    mut call: impl FnMut(),
) {
    let Work { bytes, flops } = work;
    group.throughput(Throughput::ElementsAndBytes { elements: flops, bytes });
    group.bench_function(name, |bencher| bencher.iter(&mut call));
}

fn model(dataset: &Dataset, config: &TrainConfig) -> DeviceModel<Cpu<f32>> {
    let layout = train::layout(dataset, config);
    let parameters: Vec<f32> = layout.initial_values(1);
    let zeros = vec![0.0; parameters.len()];
    let dense = DenseState { parameters, first: zeros.clone(), second: zeros };
    let features = dataset
        .modalities
        .iter()
        .map(|modality| {
            if config.freeze_features {
                RawFeatures::Frozen(modality.features.clone())
            } else {
                RawFeatures::Trained(trained(dataset, &modality.features))
            }
        })
        .collect();
    let graph = train::graph(dataset, config);
    DeviceModel::new(Cpu::new(), config, layout, graph, &dense, features).expect("memory")
}

fn trained(dataset: &Dataset, features: &bm3_engine::data::FeatureMatrix) -> FeatureState<f32> {
    let columns = features.columns();
    let mut values = vec![0.0; dataset.items * columns];
    for (row, values) in values.chunks_exact_mut(columns).enumerate() {
        features.copy_row(row, 0..columns, values);
    }
    fresh_features(values, dataset.items)
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args().sample_size(20);
    let (_directory, dataset) = made_up::dataset();
    let config = TrainConfig::default();
    let backend = Cpu::<f32>::new();
    let d = config.embedding_size;
    let order = epoch_order(Order::Random, 1, 0, dataset.train.users.len());
    let positions = &order[..config.batch_size.min(order.len())];
    let batch = Batch::of_pairs(&dataset.train, positions);
    let rows_of_batch = batch.clone();
    let shape = LossShape { embedding_size: d, modalities: dataset.modalities.len() };
    let (users, items) = (batch.users.len(), batch.items.len());
    let batch_pairs = batch.pairs();
    let batch = backend.upload_batch(batch, 1).expect("memory");
    let (rows, nodes) = (shape.rows(batch.rooms()), dataset.users + dataset.items);
    let graph = train::graph(&dataset, &config);
    let entries = graph.entries() as u64;
    let device_graph = backend.upload_graph(graph).expect("memory");
    let numbers = |count: usize| -> Vec<f32> {
        (0..count).map(|index| ((index * 7919) % 1000) as f32 / 1000.0 - 0.5).collect()
    };
    println!(
        "{}: {} users, {} items in the batch's {} pairs; {}",
        dataset.name,
        users,
        items,
        batch_pairs,
        backend.describe()
    );

    let mut group = criterion.benchmark_group("operation");
    let (n, r, d64) = (nodes as u64, rows as u64, d as u64);
    let x = numbers(nodes * d);
    let mut y = vec![0.0; nodes * d];
    let factors = SpmmFactors { neighbours: 0.5, base: 0.5, item_base: 1.0 };
    let work =
        Work { bytes: entries * (d64 * REAL + 4) + 2 * n * d64 * REAL, flops: 2 * entries * d64 };
    let inputs = || {
        let [x, base] = [(); 2].map(|()| Some(view(&x, 0..nodes * d)));
        SpmmInputs { x, base, factors }
    };
    measure(&mut group, "spmm", work, || {
        backend.spmm(&device_graph, inputs(), view_mut(&mut y, 0..nodes * d)).unwrap();
    });
    let schedule = vec![adam_step(1, 1e-3)];
    let mut losses = backend.losses(&vec![0.0; shape.terms()]).unwrap();
    let mut arenas = [(); 3].map(|()| vec![0.0; nodes * d]);
    fn updated(arenas: &mut [Vec<f32>; 3]) -> Updated<'_, Vec<f32>> {
        let range = 0..arenas[0].len();
        let [parameters, first, second] = arenas;
        Updated { parameters, first, second, range }
    }
    let adam = Work { bytes: 7 * n * d64 * REAL, flops: 12 * n * d64 };
    measure(&mut group, "adam of H0", adam, || {
        let gradients = view(&x, 0..nodes * d);
        backend.adam(&batch, &schedule, gradients, updated(&mut arenas), &mut losses).unwrap();
    });
    let work = Work { bytes: work.bytes + 5 * n * d64 * REAL, flops: work.flops + adam.flops };
    measure(&mut group, "spmm_adam", work, || {
        let updated = updated(&mut arenas);
        backend
            .spmm_adam(&device_graph, inputs(), &batch, &schedule, updated, &mut losses)
            .unwrap();
    });
    for modality in &dataset.modalities {
        let columns = modality.features.columns();
        let wide = columns as u64;
        let (weight, bias) = (numbers(d * columns), numbers(d));
        let mut z = vec![0.0; items * d];
        let mut gradient = vec![0.0; d * columns + d];
        let frozen = backend.frozen_features(modality.features.clone(), dataset.items).unwrap();
        let flops = 2 * items as u64 * wide * d64;
        let bytes = (items as u64 * wide + d64 * wide) * REAL;
        let name = format!("project {} ({columns} wide)", modality.name);
        measure(&mut group, &name, Work { bytes, flops }, || {
            let (weight, bias) = (view(&weight, 0..weight.len()), view(&bias, 0..d));
            backend.project(&batch, &frozen, weight, bias, view_mut(&mut z, 0..items * d)).unwrap();
        });
        let z_gradient = numbers(items * d);
        let name = format!("project_backward {} ({columns} wide)", modality.name);
        measure(&mut group, &name, Work { bytes, flops }, || {
            let range = 0..gradient.len();
            let z_gradient = view(&z_gradient, 0..items * d);
            let gradient = view_mut(&mut gradient, range);
            backend.project_backward(&batch, &frozen, z_gradient, gradient).unwrap();
        });
        let state = trained(&dataset, &modality.features);
        let mut features = backend.trained_features(state, columns).unwrap();
        let mut schedule: Vec<AdamStep> = vec![adam_step(1, 1e-3)];
        let mut losses = backend.losses(&vec![0.0; shape.terms()]).unwrap();
        // Together, since replays without gradients in between would run into subnormal numbers.
        let name =
            format!("adam_rows_replay of 4 steps, adam_rows: {} ({columns} wide)", modality.name);
        let elements = items as u64 * wide;
        let work = Work { bytes: 12 * elements * REAL, flops: flops + (4 * 8 + 12) * elements };
        measure(&mut group, &name, work, || {
            for _ in 0..5 {
                schedule.push(adam_step(schedule.len() as u64 + 1, 1e-3));
            }
            let step = schedule.len() as u32;
            let batch = backend.upload_batch(rows_of_batch.clone(), step).unwrap();
            backend.adam_rows_replay(&batch, &schedule, &mut features).unwrap();
            let (dz, weight) = (view(&z_gradient, 0..items * d), view(&weight, 0..weight.len()));
            let features = &mut features;
            backend.adam_rows(&batch, dz, weight, &schedule, features, 0, &mut losses).unwrap();
        });
    }
    let (weight, bias) = (numbers(d * d), numbers(d));
    let online = numbers(rows * d);
    let mut predicted = vec![0.0; rows * d];
    let flops = 2 * r * d64 * d64;
    measure(&mut group, "predict", Work { bytes: 2 * r * d64 * REAL, flops }, || {
        let (weight, bias) = (view(&weight, 0..d * d), view(&bias, 0..d));
        let online = view(&online, 0..rows * d);
        let target = view_mut(&mut predicted, 0..rows * d);
        backend.predict(Some(&batch), online, weight, bias, target).unwrap();
    });
    let mut gradient = vec![0.0; d * d + d];
    let mut input_gradient = vec![0.0; rows * d];
    let work = Work { bytes: 2 * r * d64 * REAL, flops };
    measure(&mut group, "predict_backward", work, || {
        let (output, weight) = (view(&online, 0..rows * d), view(&weight, 0..d * d));
        let input_gradient = view_mut(&mut input_gradient, 0..rows * d);
        backend.predict_backward(&batch, output, weight, input_gradient).unwrap();
    });
    measure(&mut group, "predict_gradient", work, || {
        let (output, x) = (view(&online, 0..rows * d), view(&online, 0..rows * d));
        let range = 0..gradient.len();
        let gradient = view_mut(&mut gradient, range);
        backend.predict_gradient(&batch, output, x, gradient).unwrap();
    });
    let mut losses = backend.losses(&vec![0.0; shape.terms()]).unwrap();
    let dropout = Dropout::Random { probability: 0.5, seed: 1 };
    let pairs = batch_pairs as u64;
    let work =
        Work { bytes: (3 * r + 2 * pairs) * d64 * REAL, flops: 12 * r * d64 + 2 * pairs * d64 };
    measure(&mut group, "bootstrap_loss", work, || {
        predicted.copy_from_slice(&online);
        let x = view(&online, 0..rows * d);
        let target = view_mut(&mut predicted, 0..rows * d);
        backend.bootstrap_loss(shape, &batch, 2.0, &dropout, x, target, &mut losses).unwrap();
        backend.add_losses(shape, &batch, &mut losses).unwrap();
    });
    let work = Work { bytes: 3 * n * d64 * REAL, flops: 3 * n * d64 };
    measure(&mut group, "norm_backward", work, || {
        let gradient = view_mut(&mut y, 0..nodes * d);
        let x = view(&x, 0..nodes * d);
        backend.norm_backward(&device_graph, x, 0.1, 1.0, gradient, &mut losses).unwrap();
    });
    let node_rows = (users + items) * d;
    let bytes = 2 * node_rows as u64 * REAL;
    measure(&mut group, "gather_rows", Work { bytes, flops: 0 }, || {
        let rows = view_mut(&mut input_gradient, 0..node_rows);
        backend.gather_rows(&device_graph, &batch, view(&x, 0..nodes * d), rows).unwrap();
    });
    let work = Work { bytes: 3 * node_rows as u64 * REAL, flops: node_rows as u64 };
    measure(&mut group, "scatter_rows", work, || {
        let rows = view(&input_gradient, 0..node_rows);
        backend.scatter_rows(&device_graph, &batch, rows, view_mut(&mut y, 0..nodes * d)).unwrap();
    });
    let evaluated = evaluate::users_of(&[&dataset.valid, &dataset.test]);
    let scores = evaluated.len() as u64 * dataset.items as u64;
    let work =
        Work { bytes: (n * d64 + evaluated.len() as u64 * 50 * 3) * REAL, flops: 2 * scores * d64 };
    measure(&mut group, "top_k (K = 50, all evaluated users)", work, || {
        backend.top_k(&device_graph, view(&x, 0..nodes * d), &evaluated, 50).unwrap();
    });
    let work = Work { bytes: pairs * 8, flops: 0 };
    measure(&mut group, "arrange a batch", work, || {
        std::hint::black_box(Batch::of_pairs(&dataset.train, positions));
    });
    group.finish();

    let mut group = criterion.benchmark_group("step");
    for (name, freeze_features) in [("features frozen", true), ("features trained", false)] {
        let config = TrainConfig { freeze_features, ..TrainConfig::default() };
        let mut model = model(&dataset, &config);
        let mut batches = order.chunks(config.batch_size).cycle();
        group.throughput(Throughput::Elements(config.batch_size.min(order.len()) as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let dropout = Dropout::Random { probability: 0.5, seed: 1 };
                let positions = batches.next().expect("an endless cycle");
                let batch = Batch::of_pairs(&dataset.train, positions);
                model.step(batch, &dropout, 1e-3).unwrap();
            });
        });
    }
    group.finish();
    criterion.final_summary();
}
