//! `bm3-engine report`

use std::path::PathBuf;

use bm3_engine::report::{REPORT, data_sets, read_runs, render, write};

use super::output;

/// Draw runs as one HTML file: curves, metrics side by side, settings, time by operation
///
/// The file is self-contained and needs no network. A run that is still training, or was
/// interrupted, is drawn up to its last epoch; a sweep's directory stands for all of its runs.
/// Anything that is not a run, or has no epoch yet, is left out with a warning, as long as there is
/// a run to draw.
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
    /// Overwrite a file that is not a report
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
    if let Some(names) = data_sets(&runs) {
        eprintln!(
            "warning: the runs are on several data sets ({}), whose metrics do not compare",
            names.join(", ")
        );
    }
    let out = match (&arguments.out, &*arguments.runs) {
        (Some(out), _) => out.clone(),
        (None, [directory]) => directory.join(REPORT),
        (None, _) => PathBuf::from(REPORT),
    };
    write(&out, &render(&runs, arguments.title.as_deref()), arguments.overwrite)?;
    output::print(&format!("{}\n", out.display()))
}
