//! Three operations alone, for which PyTorch has a counterpart: `compare.py` runs this beside
//! `peer/time_operations.py`.
//!
//! ```sh
//! cargo bench --bench alone -- [--data DIR] [--device 0] [--threads N] [--repeats N]
//! ```
//!
//! Without a folder it makes up a data set, as the other bench does. Calls are issued one after the
//! other and waited for together; top-K lists are waited for one by one. Prints one JSON line, in
//! seconds.

mod made_up;

use std::path::PathBuf;
use std::time::Instant;

use bm3_engine::backend::{Backend, BatchRooms, SpmmFactors, SpmmInputs, view, view_mut};
use bm3_engine::batch::{Batch, epoch_order};
use bm3_engine::bench::Spread;
use bm3_engine::config::{DeviceChoice, Order, TrainConfig};
use bm3_engine::data::{Dataset, DatasetOptions};
use bm3_engine::device::Device;
use bm3_engine::philox::{Purpose, Stream};
use bm3_engine::{evaluate, train, with_backend};
use clap::Parser;

/// Times `spmm`, `project` of all modalities and `top_k` alone
#[derive(Debug, Parser)]
struct Arguments {
    /// Folder with NAME.inter and one NAME_feat.npy per modality [default: a made-up set]
    #[arg(long)]
    data: Option<PathBuf>,
    /// `cpu` or a GPU's number
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// CPU threads [default: one per core]
    #[arg(long)]
    threads: Option<usize>,
    /// Measured repeats, after one to warm up
    #[arg(long, default_value_t = 7)]
    repeats: usize,
    /// The length K of lists
    #[arg(long, default_value_t = 50)]
    top_k: usize,
    /// Cargo passes it to every bench
    #[arg(long, hide = true)]
    bench: bool,
    /// Makes one call, to see that it works
    #[arg(long, hide = true)]
    test: bool,
}

fn main() -> anyhow::Result<()> {
    let mut arguments = Arguments::parse();
    if arguments.test {
        arguments.repeats = 1;
    }
    if let Some(threads) = arguments.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    let (_made_up, dataset) = match &arguments.data {
        Some(data) => (None, Dataset::open(data, &DatasetOptions::default())?),
        None => {
            let (directory, dataset) = made_up::dataset();
            (Some(directory), dataset)
        }
    };
    let (device, _) = Device::open(arguments.device)?;
    let operations = with_backend!(device, backend => operations(&backend, &dataset, &arguments))?;
    println!("{}", serde_json::json!({ "operations": operations }));
    Ok(())
}

/// `count` numbers from -0.5 to 0.5, drawn for their places.
fn numbers(count: usize) -> Vec<f32> {
    let stream = Stream::new(1, Purpose::Initial, 0, 0);
    (0..count as u64).map(|index| stream.uniform(index) as f32 - 0.5).collect()
}

/// Seconds per call of `work`, over `calls` calls that are waited for together.
fn timed<B: Backend>(
    backend: &B,
    repeats: usize,
    calls: u32,
    mut work: impl FnMut() -> bm3_engine::Result<()>,
) -> bm3_engine::Result<Spread> {
    let mut seconds = Vec::new();
    for repeat in 0..=repeats.max(1) {
        backend.synchronize()?;
        let begun = Instant::now();
        (0..calls).try_for_each(|_| work())?;
        backend.synchronize()?;
        if repeat > 0 {
            seconds.push(begun.elapsed().as_secs_f64() / f64::from(calls));
        }
    }
    Ok(Spread::of(seconds))
}

/// The seconds of each operation, by its name.
fn operations<B: Backend<Real = f32>>(
    backend: &B,
    dataset: &Dataset,
    arguments: &Arguments,
) -> bm3_engine::Result<serde_json::Value> {
    let config = TrainConfig::default();
    let d = config.embedding_size;
    let calls = if arguments.device == DeviceChoice::Cpu { 1 } else { 20 };
    let graph = backend.upload_graph(train::graph(dataset, &config))?;
    let nodes = (dataset.users + dataset.items) * d;
    let (x, mut y) = (backend.upload(&numbers(nodes))?, backend.zeros(nodes)?);
    let factors = SpmmFactors { neighbours: 1.0, base: 0.0, item_base: 0.0 };
    let spmm = timed(backend, arguments.repeats, calls, || {
        let inputs = SpmmInputs { x: Some(view(&x, 0..nodes)), base: None, factors };
        backend.spmm(&graph, inputs, view_mut(&mut y, 0..nodes))
    })?;

    let order = epoch_order(Order::Random, 1, 0, dataset.train.users.len());
    let pairs = &order[..config.batch_size.min(order.len())];
    let batch = backend.upload_batch(Batch::of_pairs(&dataset.train, pairs), 1)?;
    let projected = batch.rooms().items * d;
    let mut z = backend.zeros(projected)?;
    let modalities = dataset.modalities.iter().map(|modality| {
        let columns = modality.features.columns();
        let features = backend.frozen_features(modality.features.clone(), dataset.items)?;
        Ok((features, backend.upload(&numbers(columns * d + d))?, columns * d))
    });
    let modalities = modalities.collect::<bm3_engine::Result<Vec<_>>>()?;
    let project = timed(backend, arguments.repeats, calls, || {
        modalities.iter().try_for_each(|(features, arena, weights)| {
            let (weight, bias) = (view(arena, 0..*weights), view(arena, *weights..weights + d));
            backend.project(&batch, features, weight, bias, view_mut(&mut z, 0..projected))
        })
    })?;

    let users = evaluate::users_of(&[&dataset.valid, &dataset.test]);
    let top_k = timed(backend, arguments.repeats.div_ceil(2), 1, || {
        backend.top_k(&graph, view(&x, 0..nodes), &users, arguments.top_k).map(drop)
    })?;
    Ok(serde_json::json!({ "spmm": spmm, "project": project, "top_k": top_k }))
}
