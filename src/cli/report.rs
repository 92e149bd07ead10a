//! `bm3-engine report`

use std::path::PathBuf;

use bm3_engine::report::{REPORT, read_runs, render, write};

use super::output;

/// Draw runs as one HTML file: curves, metrics side by side, settings, time by operation
///
/// The file needs no other, and no network. Runs that still train, or were interrupted, are drawn as
/// far as they have come; of a sweep's directory, all of its runs. What is no run, or has no epoch
/// yet, is left out with a warning, as long as there is a run to draw.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct ReportArguments {
    /// Directories of runs or of sweeps
    #[arg(required = true, value_name = "RUNDIR")]
    runs: Vec<PathBuf>,
    /// The file [default: report.html, in RUNDIR where there is one, else here]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The page's title [default: the run's name, or how many runs there are]
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
    /// Write over a file that is no report
    #[arg(long)]
    overwrite: bool,
}

const AFTER_HELP: &str = "\
Examples:
  bm3-engine report runs/baby
  bm3-engine report runs/first runs/second --out compared.html --title 'One layer or two'
  bm3-engine report runs/baby-sweep
  bm3-engine report runs/* --out all.html

The file's path is printed on standard output. An earlier report is replaced.";

pub fn run(arguments: &ReportArguments) -> anyhow::Result<()> {
    let (runs, left_out) = read_runs(&arguments.runs)?;
    for reason in left_out {
        eprintln!("warning: left out: {reason}");
    }
    let out = match (&arguments.out, &*arguments.runs) {
        (Some(out), _) => out.clone(),
        (None, [directory]) => directory.join(REPORT),
        (None, _) => PathBuf::from(REPORT),
    };
    write(&out, &render(&runs, arguments.title.as_deref()), arguments.overwrite)?;
    output::print(&format!("{}\n", out.display()))
}
