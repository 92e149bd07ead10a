//! `bm3-engine sweep`

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::Arc;

use bm3_engine::backend::Backend;
use bm3_engine::config::{
    Axis, ConfigFile, RunConfig, RunSettings, TrainSettings, seeds, validate_threads,
};
use bm3_engine::data::Dataset;
use bm3_engine::device::Device;
use bm3_engine::sweep::{self, Outcome, Plan, PlannedRun, Results, Room, Sweep, SweepDirectory};
use bm3_engine::{Error, Result};

use super::backend;
use super::interrupt::{self, Interrupted};
use super::progress::{Face, SweepReporter};
use super::train::create_default_directory;
use super::{FIXED_BY_A_RUN, output, sweep_table};

/// Train a grid of configurations, several at once, and compare them
///
/// All runs share one copy of the data; with --split, all runs of a seed share a split. Each leaves
/// an ordinary run directory inside the sweep's, with the same numbers as if trained alone. The table
/// is sorted by validation Recall@20. Ctrl-C saves all runs before the program ends.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
#[command(mut_arg("out", |out| out.value_name("DIR").help(
    "Directory of the sweep; one that has a sweep already is refused \
     [default: runs/DATASET-sweep-UTCTIME]"
)))]
#[command(mut_arg("threads", |threads| threads.help(
    "CPU threads of all runs together; results do not depend on it [default: one per core]"
)))]
pub struct SweepArguments {
    /// A training setting, by its flag's name, and the values to try, or modalities, as in
    /// modalities=image,image+text,none (may be repeated: every combination is trained)
    #[arg(long, value_name = "KEY=VALUE,…", help_heading = "Sweep")]
    grid: Vec<String>,
    /// Train every configuration with several seeds: a count, from --seed on, or a list such as
    /// 1,5,9
    #[arg(long, value_name = "N|SEED,…", help_heading = "Sweep")]
    seeds: Option<String>,
    /// Runs at once [default: on the CPU one per thread, on a GPU up to 8]; fewer if they do not
    /// fit in memory
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Sweep")]
    jobs: Option<usize>,
    /// Continue a sweep: finished runs are kept, interrupted ones resume bit for bit, the rest
    /// start
    #[arg(
        long,
        value_name = "DIR",
        help_heading = "Sweep",
        conflicts_with_all = FIXED_BY_A_RUN,
        conflicts_with_all = ["epochs", "patience"],
    )]
    resume: Option<PathBuf>,
    /// Read settings from a TOML or YAML file, MMRec's included; its lists act like --grid; flags
    /// win (may be repeated, the later file wins)
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    config: Vec<PathBuf>,
    #[command(flatten)]
    run: RunSettings,
    #[command(flatten)]
    train: TrainSettings,
    /// Print the runs, how many train at once and their memory, then stop
    #[arg(long, help_heading = "Output")]
    dry_run: bool,
    /// Print one JSON object per line on standard output: the sweep, the runs' events with their
    /// names, the results
    #[arg(long, conflicts_with = "quiet", help_heading = "Output")]
    json: bool,
    /// Print nothing but errors and the final table
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
}

const AFTER_HELP: &str = "\
Examples:
  The published grid of eight configurations, each with five seeds:
    bm3-engine sweep --data data/baby --seeds 5 \\
        --grid layers=1,2 --grid dropout=0.3,0.5 --grid reg-weight=0.1,0.01

  The lists of MMRec's own files, but other layers:
    bm3-engine sweep --data data/baby --config overall.yaml --config BM3.yaml --grid layers=1,2,3

  Continue after Ctrl-C or a crash:
    bm3-engine sweep --resume runs/baby-sweep-20260131T235959Z

  Use one of its models like any other run's:
    bm3-engine evaluate --model runs/baby-sweep-20260131T235959Z/layers=1,dropout=0.3,seed=999

The directory holds sweep.json, results.csv (a line for each run), results.json (by configuration,
with means and standard deviations over the seeds) and the runs. A run that fails is named in the
table, does not stop the others, and makes the exit code 1; --resume tries it again.";

/// Everything that the command line and the files ask for, checked.
#[derive(Debug)]
struct SweepRequest {
    plan: Plan,
    runs: Vec<PlannedRun>,
    /// The sweep's directory; `None` names one after the data set and the time.
    out: Option<PathBuf>,
    resume: bool,
    jobs: Option<usize>,
    dry_run: bool,
    face: Face,
}

pub fn run(arguments: &SweepArguments) -> anyhow::Result<()> {
    let (request, notices) = request(arguments)?;
    let talks = request.face != Face::Quiet;
    if talks {
        for notice in notices {
            eprintln!("note: {notice}");
        }
    }
    let base = &request.plan.base;
    super::use_threads(base.threads)?;
    let device = backend::open_for(base, talks)?;
    if let Device::Cpu(mut cpu) = device {
        // Refuse what the device does not support before anything is written.
        for run in request.runs.iter().filter(|run| run.config.train.freeze_features) {
            cpu.store_features_as(run.config.train.feature_type)?;
        }
    }
    let datasets = Datasets::open(&request.plan, &request.runs, talks)?;
    if talks {
        backend::warn(&datasets.first);
    }
    if request.dry_run {
        let waiting: Vec<&PlannedRun> = request.runs.iter().collect();
        let (room, _) = room(device, &request.plan, &waiting, &datasets, request.jobs)?;
        if request.face == Face::Json {
            let run =
                |run: &PlannedRun| serde_json::json!({"name": run.name, "config": run.config});
            let runs: Vec<_> = request.runs.iter().map(run).collect();
            return output::print_json(&serde_json::json!({
                "version": env!("CARGO_PKG_VERSION"),
                "runs": runs,
                "jobs": room.lanes.jobs,
                "memory": {
                    "of": room.memory,
                    "shared_bytes": room.shared,
                    "bytes_of_each": room.each,
                    "free_bytes": room.free,
                },
            }));
        }
        return output::print(&sweep_table::preview(&request.runs, &room));
    }
    // A path that cannot be kept is refused before anything is written.
    request.plan.base.to_toml()?;
    let interrupted = interrupt::install()?;
    let path = match &request.out {
        Some(path) => path.clone(),
        None => create_default_directory(&format!("{}-sweep", datasets.first.name))?,
    };
    let directory = match request.resume {
        true => SweepDirectory::open(&path, &datasets.first)?,
        false => SweepDirectory::create(&path, &request.plan, &datasets.first)?,
    };
    let sweep = Sweep {
        plan: &request.plan,
        runs: &request.runs,
        directory: &directory,
        dataset: &|run| datasets.of(run),
    };
    let outcomes = sweep.outcomes()?;
    let waiting: Vec<&PlannedRun> = request
        .runs
        .iter()
        .zip(&outcomes)
        .filter_map(|(run, outcome)| (*outcome == Outcome::Waiting).then_some(run))
        .collect();
    let (room, device) = room(device, &request.plan, &waiting, &datasets, request.jobs)?;
    let reporter = SweepReporter::new(request.face);
    reporter.begin(&directory, &datasets.first, request.runs.len(), waiting.len(), &room);
    let results = match device {
        Device::Cpu(cpu) => {
            sweep.train(outcomes, room.lanes, &|| Ok(cpu), &reporter, &interrupted)?
        }
        Device::Gpu(gpu) => {
            sweep.train(outcomes, room.lanes, &|| gpu.sibling(), &reporter, &interrupted)?
        }
    };
    reporter.finish(&results, &directory)?;
    ended(&results)
}

/// The command's result, which decides its exit code.
fn ended(results: &Results) -> anyhow::Result<()> {
    let all = results.runs().count();
    match results.count("failed") {
        _ if results.count("interrupted") + results.count("waiting") > 0 => Err(Interrupted.into()),
        0 => Ok(()),
        failed => Err(anyhow::anyhow!("{failed} of {all} runs failed")),
    }
}

/// Merges files and flags, flags winning; also returns notes about the files.
fn request(arguments: &SweepArguments) -> Result<(SweepRequest, Vec<String>)> {
    if arguments.jobs == Some(0) {
        return Err(Error::setting("--jobs", "0 found, a number from 1 expected"));
    }
    let (plan, out, notices) = match &arguments.resume {
        Some(directory) => {
            let mut plan = SweepDirectory::plan(directory)?;
            unchanged(&plan, arguments)?;
            adopt(&mut plan.base, &arguments.run)?;
            (plan, Some(directory.clone()), Vec::new())
        }
        None => {
            let mut grid = Axis::parse_all(&arguments.grid, &arguments.train, &arguments.run)?;
            let (ConfigFile { train, run, notices }, lists) =
                ConfigFile::read_sweep(&arguments.config, &arguments.train, &arguments.run)?;
            let (listed_seeds, lists): (Vec<Axis>, Vec<Axis>) =
                lists.into_iter().partition(|axis| axis.key == "seed");
            for axis in lists {
                if !grid.iter().any(|given| given.key == axis.key) {
                    grid.push(axis);
                }
            }
            let listed_seeds = listed_seeds.first().map(Axis::listed);
            if grid.is_empty() && arguments.seeds.is_none() && listed_seeds.is_none() {
                let problem = "not given, nor --seeds; name a setting and its values, as in --grid \
                               layers=1,2 (`bm3-engine train` trains one run)";
                return Err(Error::setting("--grid", problem));
            }
            let (train, run_of_all) = base_settings(train, run.clone(), &grid)?;
            let base = RunConfig::new(&train, &run_of_all)?;
            let seeds = given_seeds(arguments, listed_seeds, base.train.seed)?;
            (Plan { grid, seeds, base }, run.out, notices)
        }
    };
    let request = SweepRequest {
        runs: plan.runs()?,
        plan,
        out,
        resume: arguments.resume.is_some(),
        jobs: arguments.jobs,
        dry_run: arguments.dry_run,
        face: Face::choose(arguments.json, arguments.quiet),
    };
    Ok((request, notices))
}

/// The settings common to all runs, with the first value of each axis, so that they can be checked
/// as those of a real run.
fn base_settings(
    train: TrainSettings,
    run: RunSettings,
    grid: &[Axis],
) -> Result<(TrainSettings, RunSettings)> {
    grid.iter().try_fold((train, run), |(train, run), axis| {
        let (own, own_run) = axis.value(0)?;
        Ok((own.or(train), own_run.or(run)))
    })
}

/// The seeds: from `--seeds`, else from a file's list, else `first` alone.
fn given_seeds(arguments: &SweepArguments, listed: Option<String>, first: u64) -> Result<Vec<u64>> {
    match &arguments.seeds {
        None => listed.map_or_else(|| Ok(vec![first]), |listed| seeds(&listed, first)),
        Some(text) if text.contains(',') && arguments.train.seed.is_some() => {
            let problem =
                format!("a list found, {text}, and --seed {first}; leave one of the two out");
            Err(Error::setting("--seeds", problem))
        }
        Some(text) => seeds(text, first),
    }
}

/// Refuses a grid or seeds that differ from those of the sweep being continued.
fn unchanged(plan: &Plan, arguments: &SweepArguments) -> Result<()> {
    if !arguments.grid.is_empty() {
        let (train, run) = (TrainSettings::default(), RunSettings::default());
        let given = Axis::parse_all(&arguments.grid, &train, &run)?;
        let texts = |axes: &[Axis]| -> Vec<(String, String)> {
            axes.iter().map(|axis| (axis.flag(), axis.listed())).collect()
        };
        let (found, expected) = (texts(&given), texts(&plan.grid));
        let value = |axes: &[(String, String)], flag: &str| {
            axes.iter()
                .find(|(other, _)| other == flag)
                .map_or_else(|| format!("no {flag}"), |(flag, values)| format!("{flag}={values}"))
        };
        let flags = found.iter().chain(&expected).map(|(flag, _)| flag);
        let difference = flags.map(|flag| (value(&found, flag), value(&expected, flag)));
        if let Some((found, expected)) = difference.into_iter().find(|(a, b)| a != b) {
            let problem = format!(
                "{found} found, {expected} expected, as the sweep was begun with; begin another \
                 one with --out"
            );
            return Err(Error::setting("--grid", problem));
        }
    }
    if let Some(text) = &arguments.seeds {
        let first = plan.seeds.first().copied().unwrap_or_default();
        if seeds(text, first)? != plan.seeds {
            let list: Vec<String> = plan.seeds.iter().map(u64::to_string).collect();
            let problem = format!(
                "{text} found, {} expected, as the sweep was begun with; begin another one with \
                 --out",
                list.join(",")
            );
            return Err(Error::setting("--seeds", problem));
        }
    }
    Ok(())
}

/// Applies the settings that may change when a sweep is continued.
fn adopt(base: &mut RunConfig, given: &RunSettings) -> Result<()> {
    if let Some(data) = &given.data {
        base.data = std::path::absolute(data).map_err(|error| Error::io(data, "find", error))?;
    }
    base.device = given.device.unwrap_or(base.device);
    base.feature_storage = given.feature_storage.unwrap_or(base.feature_storage);
    base.device_memory = given.device_memory.or(base.device_memory);
    base.threads = given.threads.or(base.threads);
    base.checkpoint_seconds = given.checkpoint_seconds.unwrap_or(base.checkpoint_seconds);
    validate_threads(base.threads)
}

/// The data of all runs: one set, or with `--split`, which draws from the seed, one per seed; of
/// each, one for every choice of modalities. All share the same features.
struct Datasets {
    /// With all modalities that any run uses.
    first: Arc<Dataset>,
    by_choice: HashMap<Choice, Arc<Dataset>>,
}

/// The seed that splits the interactions, if one does, and the modalities; `None` for all.
type Choice = (Option<u64>, Option<Vec<String>>);

impl Datasets {
    fn open(plan: &Plan, runs: &[PlannedRun], talks: bool) -> Result<Self> {
        let mut config = plan.data_settings(runs);
        config.train.seed = plan.seeds[0];
        let first = Arc::new(backend::dataset(&config, talks)?);
        // Made once for each seed, and shared by the sets that are cloned for other modalities.
        let make_graphs = |dataset: &Dataset| {
            for run in runs {
                dataset.graph(run.config.train.self_loops);
            }
        };
        make_graphs(&first);
        let mut by_seed = HashMap::from([(config.split.map(|_| plan.seeds[0]), first.clone())]);
        let mut by_choice = HashMap::new();
        for run in runs {
            let (seed, names) = Self::choice_of(run);
            if let (Entry::Vacant(entry), Some(seed)) = (by_seed.entry(seed), seed) {
                config.train.seed = seed;
                let mut dataset = backend::interactions(&config)?;
                dataset.modalities.clone_from(&first.modalities);
                make_graphs(&dataset);
                entry.insert(Arc::new(dataset));
            }
            let all = &by_seed[&seed];
            by_choice.entry((seed, names.clone())).or_insert_with(|| match names {
                Some(names) if names.len() < all.modalities.len() => {
                    Arc::new(all.with_modalities(&names))
                }
                _ => all.clone(),
            });
        }
        Ok(Self { first, by_choice })
    }

    fn choice_of(run: &PlannedRun) -> Choice {
        let RunConfig { split, train, modalities, .. } = &run.config;
        (split.map(|_| train.seed), modalities.names().map(<[String]>::to_vec))
    }

    /// The data of one of the runs that they were opened for.
    fn of(&self, run: &PlannedRun) -> Arc<Dataset> {
        self.by_choice[&Self::choice_of(run)].clone()
    }
}

/// How many runs fit at once, and the device to train them on.
fn room(
    device: Device,
    plan: &Plan,
    runs: &[&PlannedRun],
    datasets: &Datasets,
    jobs: Option<usize>,
) -> Result<(Room, Device)> {
    let dataset = |run: &PlannedRun| datasets.of(run);
    match device {
        Device::Cpu(_) => {
            let room = sweep::on_cpu(runs, &dataset, rayon::current_num_threads(), jobs)?;
            Ok((room, device))
        }
        Device::Gpu(gpu) => {
            let storage = plan.base.feature_storage;
            let (room, gpu) = sweep::on_gpu(gpu, storage, runs, &dataset, jobs)?;
            Ok((room, Device::Gpu(gpu)))
        }
    }
}
