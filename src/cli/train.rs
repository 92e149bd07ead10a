//! `bm3-engine train`

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bm3_engine::config::{ConfigFile, RunConfig, RunSettings, TrainSettings};
use bm3_engine::data::IdMaps;
use bm3_engine::records::Observer;
use bm3_engine::run::{CONFIG, RunDirectory, STATE, StopReason, Summary};
use bm3_engine::sweep::SWEEP;
use bm3_engine::train::{FitOptions, check_saved, fit};
use bm3_engine::{Error, Result, with_backend};
use jiff::Timestamp;
use jiff::tz::Offset;

use super::interrupt::{self, Interrupted};
use super::profiling::Profiling;
use super::progress::{Face, Reporter};
use super::{FIXED_BY_A_RUN, backend, plan};

/// Train a model and save it, with its settings and metrics, in a directory
///
/// Every epoch is measured on the validation split; training ends when Recall@20 has not risen for
/// a while, and the best epoch's model is kept. Ctrl-C saves the run before the program ends.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct TrainArguments {
    #[command(flatten)]
    run: RunSettings,
    #[command(flatten)]
    train: TrainSettings,
    /// Read settings from a TOML or YAML file, MMRec's included; flags win (may be repeated, the
    /// later file wins)
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    config: Vec<PathBuf>,
    /// Continue an interrupted run, bit for bit as if it had not been interrupted
    #[arg(
        long,
        value_name = "RUNDIR",
        help_heading = "Run",
        conflicts_with_all = FIXED_BY_A_RUN,
        conflicts_with = "dry_run",
    )]
    resume: Option<PathBuf>,
    /// Time each operation of one epoch, the second one trained or the only one, and write the
    /// times to profile.json in the run's directory; no result changes
    #[arg(long, help_heading = "Output")]
    profile: bool,
    /// Read the data, print the settings and the memory that the run would need, then stop
    #[arg(long, help_heading = "Output")]
    dry_run: bool,
    /// Print one JSON object per line on standard output: start, epoch, checkpoint, end
    #[arg(long, conflicts_with = "quiet", help_heading = "Output")]
    json: bool,
    /// Print nothing but errors and the final table
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
}

const AFTER_HELP: &str = "\
Examples:
  Train on a folder in MMRec's layout (baby.inter, image_feat.npy, text_feat.npy):
    bm3-engine train --data data/baby

  The paper's settings for Electronics, with features as fixed inputs:
    bm3-engine train --data data/elec --layers 2 --dropout 0.3 --freeze-features

  Features from elsewhere, and of these only two:
    bm3-engine train --data data/baby --feature audio=/features/audio.npy --modalities text,audio

  Features in parts, and in a safetensors file:
    bm3-engine train --data data/baby --feature 'image=/features/part-*.npy' \\
        --feature text=/features/text.safetensors:embeddings

  Repeat a run with another seed; continue one that stopped early, with more patience:
    bm3-engine train --config runs/first/config.toml --seed 7 --out runs/second
    bm3-engine train --resume runs/first --patience 50

  See how a run went, and what its time goes to:
    bm3-engine train --data data/baby --out runs/baby --profile
    bm3-engine report runs/baby

  MMRec's settings as they are, with one value where they sweep:
    bm3-engine train --config overall.yaml --config BM3.yaml --data data/baby \\
        --layers 1 --dropout 0.5 --reg-weight 0.1";

/// Everything that the command line and the files ask for, checked.
#[derive(Debug, PartialEq)]
pub struct TrainRequest {
    /// The run's settings; for a continued run, with the changes that are allowed.
    pub config: RunConfig,
    /// The run's directory; `None` takes the [`default_directory`] of the data set's name.
    pub out: Option<PathBuf>,
    /// Whether to continue the run in `out`.
    pub resume: bool,
    /// Print what would be done instead of doing it.
    pub dry_run: bool,
    /// Time the operations of an epoch.
    pub profile: bool,
    /// How progress is shown.
    pub face: Face,
}

pub fn run(arguments: &TrainArguments) -> anyhow::Result<()> {
    let (request, notices) = request(arguments)?;
    if request.face != Face::Quiet {
        for notice in notices {
            eprintln!("note: {notice}");
        }
    }
    super::use_threads(request.config.threads)?;
    if request.dry_run {
        return plan::print(&request.config, request.face);
    }
    let interrupted = interrupt::install()?;
    let mut reporter = Reporter::new(request.face);
    let summary = train(&request, &mut reporter, &interrupted)?;
    reporter.finish(&summary)?;
    if summary.stopped_by == StopReason::Interrupted {
        return Err(Interrupted.into());
    }
    Ok(())
}

/// Merges files and flags, flags winning; also returns notes about the files.
fn request(arguments: &TrainArguments) -> Result<(TrainRequest, Vec<String>)> {
    let (config, out, notices) = match &arguments.resume {
        Some(directory) => (continued(directory, arguments)?, Some(directory.clone()), Vec::new()),
        None => {
            let ConfigFile { train, run, notices } =
                ConfigFile::read_under(&arguments.config, &arguments.train, &arguments.run)?;
            (RunConfig::new(&train, &run)?, run.out, notices)
        }
    };
    let request = TrainRequest {
        config,
        out,
        resume: arguments.resume.is_some(),
        dry_run: arguments.dry_run,
        profile: arguments.profile,
        face: Face::choose(arguments.json, arguments.quiet),
    };
    Ok((request, notices))
}

/// The settings of the run in `directory`, with the changes allowed when it is continued.
fn continued(directory: &Path, arguments: &TrainArguments) -> Result<RunConfig> {
    let path = directory.join(CONFIG);
    if !path.is_file() {
        let problem = if !directory.is_dir() {
            "no run to continue: there is no such directory; start the run with --data and --out"
                .to_owned()
        } else if directory.join(SWEEP).is_file() {
            "no run to continue, but a sweep: continue it with `bm3-engine sweep --resume`"
                .to_owned()
        } else if directory.join(STATE).is_file() {
            format!(
                "its {CONFIG} is missing, which says how it was trained; put it back, or start \
                 again with --data and --out"
            )
        } else {
            format!(
                "no run to continue: there is no {CONFIG} in it, so that nothing was trained here \
                 yet; start the run with --data and --out"
            )
        };
        return Err(Error::run_file(directory, problem));
    }
    let ConfigFile { train, run, .. } = ConfigFile::read(&path)?;
    // Flags that the run fixes are refused with --resume, so whatever is given may change.
    let config =
        RunConfig::new(&arguments.train.clone().or(train), &arguments.run.clone().or(run))?;
    if !config.data.exists() && arguments.run.data.is_none() {
        let problem = format!(
            "its data, {}, are not there any more; say where they are with --data",
            config.data.display()
        );
        return Err(Error::run_file(directory, problem));
    }
    Ok(config)
}

/// Refuses initial values of a run that numbers users and items otherwise than the data: its rows
/// would be those of others.
fn check_numbers(init: &Path, data: &Path) -> Result<()> {
    let run = init.parent().unwrap_or(Path::new(""));
    // Ids that cannot be read are told of when the run would keep them.
    let Ok(Some(_)) = IdMaps::differing(run, data) else { return Ok(()) };
    let problem = format!(
        "{} numbers users and items otherwise than {}, so its rows belong to others: begin with a \
         model that was trained on this folder",
        run.display(),
        data.display()
    );
    Err(Error::setting("--init", problem))
}

/// Creates the [`default_directory`] of a data set's name, with `-2`, `-3` and so on appended if
/// another process began in the same second.
pub(super) fn create_default_directory(dataset: &str) -> Result<PathBuf> {
    create_new(&default_directory(dataset, Timestamp::now()))
}

/// Creates a directory of this name, or with the first number appended that makes it new.
fn create_new(path: &Path) -> Result<PathBuf> {
    let parent = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(|error| Error::io(parent, "create", error))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let others = (2..).map(|number| path.with_file_name(format!("{name}-{number}")));
    for path in std::iter::once(path.to_owned()).chain(others) {
        match std::fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io(&path, "create", error)),
        }
    }
    unreachable!("there is always another number")
}

/// `runs/DATASET-UTCTIME`, as in `runs/baby-20260131T235959Z`.
fn default_directory(dataset: &str, now: Timestamp) -> PathBuf {
    let time = Offset::UTC.to_datetime(now).strftime("%Y%m%dT%H%M%SZ");
    Path::new("runs").join(format!("{dataset}-{time}"))
}

/// Reads the data, opens the run's directory, writes the settings to it and trains.
fn train(
    request: &TrainRequest,
    observer: &mut dyn Observer,
    interrupted: &AtomicBool,
) -> anyhow::Result<Summary> {
    let config = &request.config;
    let device = backend::open_for(config, request.face != Face::Quiet)?;
    let dataset = backend::dataset(config, request.face != Face::Quiet)?;
    if request.face != Face::Quiet {
        backend::warn(&dataset);
        if dataset.valid.users.is_empty() {
            eprintln!(
                "warning: there are no validation interactions (x_label 1): nothing stops training \
                 early, up to epoch {}, which is kept; set --epochs, or split the interactions with \
                 --split",
                config.train.epochs
            );
        }
    }
    if let Some(init) = config.init.as_ref().filter(|_| !request.resume) {
        check_numbers(init, &config.data)?;
    }
    let path = match &request.out {
        Some(path) => path.clone(),
        None => create_default_directory(&dataset.name)?,
    };
    let (directory, problem) = RunDirectory::begin(&path, request.resume, |directory| {
        if request.resume {
            // Check before the settings are written: a run that is refused is left as it was.
            let has_state = check_saved(&dataset, &config.train, directory)?;
            if !has_state && request.face != Face::Quiet {
                eprintln!(
                    "note: {}: the run was ended before its first checkpoint; it starts at the \
                     beginning",
                    path.display()
                );
            }
        }
        let problem = directory.keep_ids(Some(&config.data))?;
        config.write(&directory.file(CONFIG))?;
        Ok(problem)
    })?;
    if let Some(problem) = problem.filter(|_| request.face != Face::Quiet) {
        eprintln!("warning: the original ids are not kept with the run: {problem}");
    }
    let options = FitOptions {
        initial: config.init.as_deref(),
        resume: request.resume,
        checkpoint_interval: Duration::from_secs(config.checkpoint_seconds),
    };
    let mut observer = Profiling::new(observer, &directory, request.profile);
    let result = with_backend!(device, backend => fit(
        backend, &dataset, &config.train, &directory, &options, &mut observer, interrupted,
    ));
    // The model matters more: report its failure before the profile's.
    let result = result.and_then(|summary| observer.finish().map(|()| summary));
    let is_saved = directory.has_state();
    match directory.end(result) {
        // This error names the checkpoint, and resuming would only repeat it.
        Err(error @ Error::NonFinite(_)) => Err(error.into()),
        Err(error) if !error.is_input() && (request.resume || !error.is_refusal()) => {
            Err(Resumable { error, is_saved, directory: path }.into())
        }
        result => Ok(result?),
    }
}

/// A failure that left the settings, and the last checkpoint if any, intact.
#[derive(Debug, thiserror::Error)]
#[error(
    "{error}; {}mend this and go on with bm3-engine train --resume {}",
    if *is_saved { "the last checkpoint is whole: " } else { "" },
    directory.display()
)]
struct Resumable {
    #[source]
    error: Error,
    is_saved: bool,
    directory: PathBuf,
}

#[cfg(test)]
mod tests {
    use bm3_engine::config::{ByteSize, DeviceChoice, FeatureStorage, ModalityChoice, TrainConfig};
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        train: TrainArguments,
    }

    fn parse(arguments: &[&str]) -> Result<TrainArguments, clap::Error> {
        let arguments = ["train"].iter().chain(arguments);
        Command::try_parse_from(arguments).map(|command| command.train)
    }

    fn requested(arguments: &[&str]) -> Result<TrainRequest> {
        request(&parse(arguments).unwrap()).map(|(request, _)| request)
    }

    /// A run directory with these settings.
    fn run_directory(config: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(CONFIG), config).unwrap();
        directory
    }

    #[test]
    fn without_settings_there_are_the_defaults() {
        let request = requested(&["--data", "d", "--quiet"]).unwrap();
        assert_eq!(request.config.train, TrainConfig::default());
        assert_eq!(request.config.device, DeviceChoice::Auto);
        assert_eq!((request.out, request.resume, request.dry_run), (None, false, false));
        assert_eq!(request.face, Face::Quiet);
        assert!(requested(&[]).unwrap_err().to_string().starts_with("--data: not given"));
    }

    #[test]
    fn every_flag_arrives() {
        let request = requested(&[
            "--data=d",
            "--feature=image=i.npy",
            "--feature=text=t.npy",
            "--modalities=image",
            "--split=0.7,0.1,0.2",
            "--device=cpu",
            "--feature-storage=stream",
            "--device-memory=1.5GB",
            "--threads=2",
            "--out=o",
            "--init=s.safetensors",
            "--checkpoint-seconds=5",
            "--order=file",
            "--layers=2",
            "--dropout=0",
            "--reg-weight=1",
            "--cl-weight=3",
            "--embedding-size=32",
            "--propagation=gcn",
            "--self-loops",
            "--freeze-features=true",
            "--feature-type=bf16",
            "--learning-rate=1e-2",
            "--learning-rate-decay=0.9",
            "--batch-size=16",
            "--epochs=3",
            "--patience=4",
            "--top-k=20,5,20",
            "--seed=1",
            "--profile",
            "--dry-run",
            "--json",
        ])
        .unwrap();
        let RunConfig { train, features, modalities, split, device, threads, .. } = request.config;
        assert_eq!(features.len(), 2);
        assert_eq!(modalities, ModalityChoice::Only(vec!["image".into()]));
        assert_eq!(split.unwrap().valid, 0.1);
        assert_eq!((device, threads), (DeviceChoice::Cpu, Some(2)));
        assert_eq!(request.config.feature_storage, FeatureStorage::Stream);
        assert_eq!(request.config.device_memory, Some(ByteSize(1_500_000_000)));
        assert_eq!(request.config.checkpoint_seconds, 5);
        assert!(request.config.init.unwrap().ends_with("s.safetensors"));
        assert_eq!(request.out, Some("o".into()));
        assert!(request.dry_run && request.profile);
        assert_eq!(request.face, Face::Json);
        // Every value differs from its default, so that a flag that does not arrive is noticed.
        let json = |config: &TrainConfig| match serde_json::to_value(config).unwrap() {
            serde_json::Value::Object(map) => map,
            other => panic!("{other}"),
        };
        for ((key, given), (_, default)) in
            json(&train).into_iter().zip(json(&TrainConfig::default()))
        {
            assert_ne!(given, default, "{key}");
        }
        assert_eq!(train.top_k, [5, 20]);
    }

    #[test]
    fn flags_win_over_files_and_later_files_over_earlier_ones() {
        let directory = tempfile::tempdir().unwrap();
        let first = directory.path().join("first.toml");
        let second = directory.path().join("second.yaml");
        std::fs::write(&first, "data = 'd'\nseed = 1\nlayers = 1\nself_loops = true").unwrap();
        std::fs::write(&second, "seed: 2\nlayers: 2\neval_batch_size: 4096").unwrap();
        let arguments = [
            "--config",
            first.to_str().unwrap(),
            "--config",
            second.to_str().unwrap(),
            "--seed",
            "3",
            "--self-loops=false",
        ];
        let (request, notices) = request(&parse(&arguments).unwrap()).unwrap();
        let train = request.config.train;
        assert_eq!((train.seed, train.layers, train.self_loops), (3, 2, false));
        assert!(request.config.data.is_absolute());
        assert_eq!(notices.len(), 1);
    }

    #[test]
    fn a_run_is_continued_with_its_own_settings_but_for_a_few() {
        let directory = run_directory("data = '/old'\nlayers = 2\nepochs = 10\nthreads = 1\n");
        let path = directory.path().to_str().unwrap();
        let request = requested(&[
            "--resume",
            path,
            "--data",
            "/new",
            "--epochs",
            "20",
            "--patience",
            "9",
            "--threads",
            "2",
            "--device",
            "cpu",
            "--checkpoint-seconds",
            "1",
        ])
        .unwrap();
        assert!(request.resume);
        assert_eq!(request.out.as_deref(), Some(directory.path()));
        let RunConfig { train, data, threads, .. } = request.config;
        assert_eq!((data, threads), ("/new".into(), Some(2)));
        assert_eq!((train.layers, train.epochs, train.patience), (2, 20, 9));

        let missing = requested(&["--resume", "does/not/exist"]).unwrap_err();
        assert!(missing.is_input() && missing.to_string().contains("no run to continue"));
    }

    #[test]
    fn every_other_flag_is_refused_when_a_run_is_continued() {
        let allowed = [
            "resume",
            "data",
            "device",
            "feature_storage",
            "device_memory",
            "threads",
            "epochs",
            "patience",
            "checkpoint_seconds",
            "profile",
            "json",
            "quiet",
            "help",
        ];
        for argument in Command::command().get_arguments() {
            let identifier = argument.get_id().as_str();
            assert!(
                allowed.contains(&identifier)
                    != (FIXED_BY_A_RUN.contains(&identifier) || identifier == "dry_run"),
                "{identifier}: decide whether it may be given with --resume"
            );
        }
        let error = parse(&["--resume", "r", "--layers", "2"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("'--layers <L>'"), "{error}");
    }

    #[test]
    fn a_directory_is_named_after_the_data_and_the_time() {
        let at = |seconds| default_directory("baby", Timestamp::from_second(seconds).unwrap());
        assert_eq!(at(0), Path::new("runs/baby-19700101T000000Z"));
        assert_eq!(at(951_827_696), Path::new("runs/baby-20000229T123456Z"));
        assert_eq!(at(1_767_225_599), Path::new("runs/baby-20251231T235959Z"));
        assert_eq!(at(4_107_542_400), Path::new("runs/baby-21000301T000000Z"));
    }

    #[test]
    fn directories_of_one_second_are_numbered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runs/a-20260131T235959Z");
        let names: Vec<PathBuf> = (0..3).map(|_| create_new(&path).unwrap()).collect();
        let expected =
            ["", "-2", "-3"].map(|end| PathBuf::from(format!("{}{end}", path.display())));
        assert_eq!(names, expected);
        assert!(names.iter().all(|name| name.is_dir()));
    }
}
