//! The command line: turns flags and files into requests to the library.
//!
//! Each command has a file with its flags, whose doc comments are its help, and a `run` that turns
//! them into a request (parsed, merged with settings files, checked) and hands it to the library.
//! Standard output carries data, standard error carries talk.

mod backend;
mod bench;
mod completions;
mod devices;
mod evaluate;
mod export;
mod histories;
mod inspect;
mod interrupt;
mod lists;
mod loading;
mod model;
mod names;
mod output;
mod plan;
mod prepare;
mod profiling;
mod progress;
mod recommend;
mod report;
mod signals;
mod similar;
mod sweep;
mod sweep_table;
mod synth;
mod table;
mod train;
mod version;

use std::error::Error as _;
use std::io::{self, IsTerminal};
use std::num::{IntErrorKind, ParseFloatError, ParseIntError};
use std::process::ExitCode;

use clap::error::ContextKind;
use clap::{ArgAction, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Train and serve BM3, the multimodal recommender
#[derive(Debug, Parser)]
#[command(
    name = "bm3-engine",
    version,
    long_version = version::long(),
    arg_required_else_help = true,
    after_help = AFTER_HELP,
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Say more on standard error: -v what is done, -vv in detail, -vvv everything
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
}

const AFTER_HELP: &str = "\
Examples:
  Make a small data set, train on it, look at the result:
    bm3-engine synth --shape tiny --out data/tiny
    bm3-engine train --data data/tiny --out runs/tiny --epochs 20
    bm3-engine evaluate --model runs/tiny
    bm3-engine recommend --model runs/tiny --users 0,1,2 --top-k 5

  Bring your own interactions:
    bm3-engine prepare --interactions ratings.csv --feature text=text.npy --out data/mine

Exit codes:
  0  done
  1  failure of the machine or of the program
  2  something is wrong with what was given: a flag, a file
  130  interrupted

NO_COLOR turns colours off; RUST_LOG filters what is said on standard error.";

#[derive(Debug, Subcommand)]
enum Command {
    Train(Box<train::TrainArguments>),
    Sweep(Box<sweep::SweepArguments>),
    Evaluate(evaluate::EvaluateArguments),
    Recommend(recommend::RecommendArguments),
    Similar(similar::SimilarArguments),
    Export(export::ExportArguments),
    Prepare(Box<prepare::PrepareArguments>),
    Synth(synth::SynthArguments),
    Inspect(inspect::InspectArguments),
    Report(report::ReportArguments),
    Bench(Box<bench::BenchArguments>),
    Devices(devices::DevicesArguments),
    Completions(completions::CompletionsArguments),
}

/// Settings fixed when a run starts, by argument id: changing one on `--resume` would make it
/// another run. A sweep also fixes `epochs` and `patience`.
const FIXED_BY_A_RUN: [&str; 21] = [
    "config",
    "features",
    "modalities",
    "split",
    "out",
    "init",
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
    "top_k",
    "seed",
    "order",
];

/// Parses the command line, runs the command and returns its exit code.
pub fn main() -> ExitCode {
    signals::install();
    let cli = match Cli::try_parse().map_err(with_expectation) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version arrive here too, with exit code 0. If they cannot be printed, there
            // is nowhere to report it.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    log_to_stderr(cli.verbose);
    match run(&cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        // The pipe's reader has closed it, as `… | head` does.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // An interrupted command has already reported how it ended.
            if !error.is::<interrupt::Interrupted>() {
                eprintln!("error: {}", message(&error));
            }
            ExitCode::from(exit_code(&error))
        }
    }
}

fn run(command: &Command) -> anyhow::Result<()> {
    // These save what they have; others leave nothing when they are interrupted.
    if !matches!(command, Command::Train(_) | Command::Sweep(_)) {
        interrupt::ends_at_once()?;
    }
    match command {
        Command::Train(arguments) => train::run(arguments),
        Command::Sweep(arguments) => sweep::run(arguments),
        Command::Evaluate(arguments) => evaluate::run(arguments),
        Command::Recommend(arguments) => recommend::run(arguments),
        Command::Similar(arguments) => similar::run(arguments),
        Command::Export(arguments) => export::run(arguments),
        Command::Prepare(arguments) => prepare::run(arguments),
        Command::Synth(arguments) => synth::run(arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
        Command::Report(arguments) => report::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Devices(arguments) => devices::run(arguments),
        Command::Completions(arguments) => completions::run(arguments),
    }
}

/// The error of a number that is none, with what was expected in the place of Rust's words for it.
fn with_expectation(error: clap::Error) -> clap::Error {
    let Some(source) = error.source() else { return error };
    let expected = if let Some(problem) = source.downcast_ref::<ParseIntError>() {
        match problem.kind() {
            IntErrorKind::PosOverflow => "a smaller number",
            _ => "a whole number from 0",
        }
    } else if source.is::<ParseFloatError>() {
        "a number"
    } else {
        return error;
    };
    let context = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    let (flag, value) = (context(ContextKind::InvalidArg), context(ContextKind::InvalidValue));
    let message = format!(
        "invalid value '{value}' for '{flag}': {expected} expected\n\n\
         For more information, try '--help'.\n"
    );
    clap::Error::raw(error.kind(), message)
}

/// Sends the library's events to standard error: warnings, and more with `-v` or `RUST_LOG`.
fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) if verbose == 0 && !filter.is_empty() => EnvFilter::new(filter),
        _ => EnvFilter::new(level),
    };
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && !no_color)
        .with_target(false)
        .without_time()
        .init();
}

/// The error's message, followed by the causes that it does not already quote.
fn message(error: &anyhow::Error) -> String {
    let mut message = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    message
}

/// 2 if the user can fix it by giving something else, 130 after an interruption, else 1.
fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<interrupt::Interrupted>() {
        return interrupt::EXIT_CODE;
    }
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<bm3_engine::Error>());
    if causes.any(|cause| cause.exit_code() == 2) { 2 } else { 1 }
}

/// Limits the threads of all parallel work of this process; `None` leaves one per core.
///
/// # Errors
/// [`bm3_engine::Error::Setting`] for 0 threads; when the system refuses threads.
fn use_threads(threads: Option<usize>) -> anyhow::Result<()> {
    bm3_engine::config::validate_threads(threads)?;
    if let Some(threads) = threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use bm3_engine::Error;
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_the_user_gave_is_told_from_what_broke() {
        let setting = anyhow::Error::from(Error::setting("--seed", "bad"));
        assert_eq!(exit_code(&setting.context("while reading")), 2);
        let io = |kind: io::ErrorKind| Error::io("x".as_ref(), "read", kind.into());
        assert_eq!(exit_code(&io(io::ErrorKind::NotFound).into()), 2);
        assert_eq!(exit_code(&io(io::ErrorKind::StorageFull).into()), 1);
        assert_eq!(exit_code(&io(io::ErrorKind::PermissionDenied).into()), 2);
        let refused = || Error::io("x".as_ref(), "write", io::ErrorKind::PermissionDenied.into());
        assert!(!refused().is_input() && refused().is_unwritable());
        let refused = io::ErrorKind::PermissionDenied.into();
        assert_eq!(exit_code(&Error::io("x".as_ref(), "create", refused).into()), 2);
        assert_eq!(exit_code(&anyhow::anyhow!("broken")), 1);
        assert_eq!(exit_code(&interrupt::Interrupted.into()), 130);
    }

    #[test]
    fn a_cause_is_not_said_twice() {
        let source = io::Error::other("disk on fire");
        let error: anyhow::Error = Error::io("a.npy".as_ref(), "read", source).into();
        assert_eq!(message(&error), "a.npy: cannot read: disk on fire");
        let error = Err::<(), _>(error).context("evaluation").unwrap_err();
        assert_eq!(message(&error), "evaluation: a.npy: cannot read: disk on fire");
    }
}
