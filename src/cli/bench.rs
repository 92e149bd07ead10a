//! `bm3-engine bench`

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bm3_engine::bench::{Measured, Serving, Spread, Upload, measure, measure_serving};
use bm3_engine::config::{RunConfig, RunSettings, SplitRatio, TrainSettings};
use bm3_engine::data::DataError;
use bm3_engine::profile::Operation;
use bm3_engine::synth::{self, SynthOptions};
use bm3_engine::{Error, Model, Recommender, with_backend};
use clap::ArgGroup;

use super::backend;
use super::output;
use super::synth::Shape;

/// Measure how fast this machine trains and evaluates, as a whole and operation by operation, or
/// how fast a model answers
#[derive(Debug, clap::Args)]
#[command(
    after_help = AFTER_HELP,
    group = ArgGroup::new("measured").args(["shape", "data", "model"]).required(true)
)]
pub struct BenchArguments {
    /// Measure on a made-up data set of a known size, instead of on --data
    #[arg(long, value_enum)]
    shape: Option<Shape>,
    /// Measure how fast this model answers: a run's directory, or a model.safetensors
    #[arg(long, value_name = "RUNDIR|FILE", conflicts_with_all = OF_TRAINING)]
    model: Option<PathBuf>,
    #[command(flatten)]
    run: BenchRun,
    #[command(flatten)]
    train: TrainSettings,
    /// Timed epochs and evaluations, after one of each to warm up; with --model, 0.4 s each
    #[arg(long, value_name = "N", default_value_t = 5, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

/// The run settings that matter to a benchmark.
#[derive(Debug, clap::Args)]
struct BenchRun {
    /// Folder with NAME.inter and one NAME_feat.npy per modality
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    data: Option<PathBuf>,
    /// Use only these modalities: a list as in image,text, or `none` [default: all there are]
    #[arg(long, value_name = "NAME,…", help_heading = "Data")]
    modalities: Option<bm3_engine::config::ModalityChoice>,
    /// Where to compute: `cpu`, a GPU's number (`0` or `cuda:0`), or `auto`: GPU 0 if it can be
    /// used, else the CPU [default: auto]
    #[arg(long, value_name = "DEVICE", help_heading = "Run")]
    device: Option<bm3_engine::config::DeviceChoice>,
    /// Where frozen features lie on a GPU; results do not depend on it [default: auto]
    #[arg(long, value_name = "STORAGE", value_enum, help_heading = "Run")]
    feature_storage: Option<bm3_engine::config::FeatureStorage>,
    /// Most of a GPU's memory to take, as in 8GB or 900MB [default: what is free]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, help_heading = "Run")]
    device_memory: Option<bm3_engine::config::ByteSize>,
    /// CPU threads [default: one per core]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Run")]
    threads: Option<usize>,
}

const AFTER_HELP: &str = "\
Examples:
  bm3-engine bench --shape baby
  bm3-engine bench --shape electronics --device 0 --freeze-features --json
  bm3-engine bench --data data/baby --layers 2
  bm3-engine bench --model runs/baby --top-k 20

Times are medians, with the least and the most behind them. The ceilings (a copy in memory, fused
multiply-adds) are measured in the same run. Operations are timed one by one in some steps and one
evaluation, so that they add up to more than the steps that follow each other without a stop; bytes
are what must move at least, much of it from caches. Only figures of one run on one machine compare.";

/// Flags that say how to train, by argument id: refused with --model, whose model is trained
/// already.
const OF_TRAINING: [&str; 19] = [
    "modalities",
    "feature_storage",
    "device_memory",
    "embedding_size",
    "layers",
    "propagation",
    "self_loops",
    "freeze_features",
    "feature_type",
    "dropout",
    "reg_weight",
    "cl_weight",
    "learning_rate",
    "learning_rate_decay",
    "batch_size",
    "epochs",
    "patience",
    "seed",
    "order",
];

/// How long answers are timed for one figure, per repeat.
const WINDOW: Duration = Duration::from_millis(400);

pub fn run(arguments: &BenchArguments) -> anyhow::Result<()> {
    let BenchRun { data, modalities, device, feature_storage, device_memory, threads } =
        &arguments.run;
    super::use_threads(*threads)?;
    if let Some(model) = &arguments.model {
        return serving(arguments, model);
    }
    let folder = tempfile::tempdir()?;
    let data = match (data, arguments.shape) {
        (Some(data), _) => data.clone(),
        (None, shape) => {
            let shape = synth::Shape::from(shape.unwrap_or(Shape::Tiny));
            let options = SynthOptions::new(shape, 999);
            let data = folder.path().join("made-up");
            synth::generate(&options, &data, &mut |_, _, _| ())?;
            data
        }
    };
    let settings = RunSettings {
        data: Some(data),
        modalities: modalities.clone(),
        device: *device,
        feature_storage: *feature_storage,
        device_memory: *device_memory,
        threads: *threads,
        ..RunSettings::default()
    };
    let config = RunConfig::new(&arguments.train, &settings)?;
    let device = backend::open_for(&config, true)?;
    let dataset = match backend::dataset(&config, !arguments.json) {
        // Any split will do.
        Err(Error::Data(DataError::NoSplit { .. })) => {
            let split = Some(SplitRatio { train: 0.8, valid: 0.1, test: 0.1 });
            backend::dataset(&RunConfig { split, ..config.clone() }, !arguments.json)?
        }
        other => other?,
    };
    backend::warn(&dataset);
    let repeats = arguments.repeats as usize;
    let measured = with_backend!(device, backend => {
        measure(backend, &dataset, &config.train, repeats)
    })?;
    if arguments.json {
        output::print_json(&serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "config": config.train,
            "measured": measured,
        }))
    } else {
        output::print(&tables(&measured))
    }
}

/// Measures how fast a model answers.
fn serving(arguments: &BenchArguments, model: &Path) -> anyhow::Result<()> {
    let k = match arguments.train.top_k.as_deref() {
        None => 20,
        Some(&[k]) => k,
        Some(several) => {
            let problem = format!(
                "{} list lengths found; with --model, one expected, as in --top-k 20",
                several.len()
            );
            return Err(Error::setting("--top-k", problem).into());
        }
    };
    let model = Model::load(model)?;
    let device = backend::open(arguments.run.device.unwrap_or_default(), true)?;
    let name = device.describe();
    let recommender = Recommender::on_device(model, device)?;
    let measured = measure_serving(&recommender, name, k, WINDOW * arguments.repeats)?;
    if arguments.json {
        let version = env!("CARGO_PKG_VERSION");
        output::print_json(&serde_json::json!({ "version": version, "measured": measured }))
    } else {
        output::print(&serving_table(&measured))
    }
}

fn serving_table(measured: &Serving) -> String {
    let Serving { device, users, items, embedding_size, top_k, single, batches, callers } =
        measured;
    let mut text = format!(
        "{users} users, {items} items, d = {embedding_size}; lists of {top_k}\non {device}\n\n\
         one user       half in {}, 99 of 100 in {}\n",
        time(single.p50),
        time(single.p99)
    );
    // Writing to a string does not fail.
    for rate in batches {
        let _ = writeln!(
            text,
            "batch of {:<5} {:.0} users per second, {} a batch",
            rate.users,
            rate.users_per_second,
            time(rate.seconds.median)
        );
    }
    for rate in callers {
        let _ = writeln!(
            text,
            "{} caller{}      {:.0} users per second, half in {}, 99 of 100 in {}",
            rate.callers,
            if rate.callers == 1 { " " } else { "s" },
            rate.users_per_second,
            time(rate.latency.p50),
            time(rate.latency.p99)
        );
    }
    text
}

/// The figures of the whole run, then a line for each operation.
fn tables(measured: &Measured) -> String {
    let mut text = String::new();
    let modalities: Vec<String> =
        measured.modalities.iter().map(|(name, width)| format!("{name} ({width})")).collect();
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "{}: {} users, {} items, {} training pairs; {}\non {}\n",
        measured.dataset,
        measured.users,
        measured.items,
        measured.pairs,
        if modalities.is_empty() { "no modalities".to_owned() } else { modalities.join(", ") },
        measured.device
    );
    let spread = |spread: Spread| {
        format!("{} ({} to {})", time(spread.median), time(spread.least), time(spread.most))
    };
    let _ = writeln!(text, "epoch        {}", spread(measured.epoch_seconds));
    let _ = writeln!(text, "evaluation   {}", spread(measured.evaluate_seconds));
    let _ = writeln!(
        text,
        "steps        {:.1} per second, {} in an epoch",
        measured.steps_per_second, measured.steps_per_epoch
    );
    let _ = writeln!(text, "pairs        {:.0} per second", measured.pairs_per_second);
    if let Some(memory) = measured.peak_memory {
        let _ = writeln!(text, "memory       {} at most", output::bytes(memory));
    }
    let ceilings = measured.ceilings;
    let _ = write!(
        text,
        "ceilings     copy {:.1} GB/s, multiply-add {:.2} TFLOP/s",
        ceilings.copy / 1e9,
        ceilings.multiply_add / 1e12
    );
    if let Some(tensor) = ceilings.tensor {
        let _ = write!(text, ", TF32 on tensor cores {:.1} TFLOP/s", tensor / 1e12);
    }
    if let Some(upload) = ceilings.upload {
        let _ = write!(text, ", copy from the host {:.1} GB/s", upload / 1e9);
        if let Some(Upload { file_bytes, seconds }) = measured.upload {
            let rate = file_bytes as f64 / seconds;
            let _ = write!(
                text,
                "\nfeatures     {} copied in {}: {:.1} GB/s of the files, {:.0}% of that copy",
                output::bytes(file_bytes),
                time(seconds),
                rate / 1e9,
                100.0 * rate / upload
            );
        }
    }
    let _ = writeln!(
        text,
        "\n\n{:24} {:>7} {:>11} {:>9} {:>8} {:>9} {:>8}",
        "operation", "calls", "µs a call", "GB/s", "of copy", "GFLOP/s", "of f32"
    );
    for Operation { name, calls, seconds, bytes, flops } in &measured.operations {
        let (bytes, flops) = (*bytes as f64 / seconds, *flops as f64 / seconds);
        let _ = writeln!(
            text,
            "{name:24} {calls:>7} {:>11.1} {:>9.1} {:>7.1}% {:>9.1} {:>7.1}%",
            1e6 * seconds / *calls as f64,
            bytes / 1e9,
            100.0 * bytes / ceilings.copy,
            flops / 1e9,
            100.0 * flops / ceilings.multiply_add
        );
    }
    let _ = writeln!(
        text,
        "\nof {} steps and one evaluation, each operation by itself",
        measured.profiled_steps
    );
    text
}

/// A time for people, as in `12.30 ms`.
fn time(seconds: f64) -> String {
    match seconds {
        1.0.. => format!("{seconds:.2} s"),
        1e-3.. => format!("{:.2} ms", 1e3 * seconds),
        _ => format!("{:.1} µs", 1e6 * seconds),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// A new training setting must be refused with --model too.
    #[test]
    fn with_a_model_every_setting_of_the_training_but_the_lists_length_is_refused() {
        #[derive(clap::Parser)]
        struct Settings {
            #[command(flatten)]
            _train: TrainSettings,
        }
        for argument in Settings::command().get_arguments() {
            let name = argument.get_id().as_str();
            assert_eq!(OF_TRAINING.contains(&name), name != "top_k", "{name}");
        }
    }

    #[test]
    fn times_have_the_unit_that_suits_them() {
        let found = [2.0, 0.0123, 0.000_045].map(time);
        assert_eq!(found, ["2.00 s", "12.30 ms", "45.0 µs"]);
    }
}
