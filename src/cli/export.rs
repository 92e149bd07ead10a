//! `bm3-engine export`

use std::path::PathBuf;

use bm3_engine::export::{ExportForm, export};

use super::model::ModelArguments;
use super::names::{ExternalIds, Names};
use super::output;

/// Write the embeddings of all users and items for other programs
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct ExportArguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Folder to write into
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Replace existing files
    #[arg(long)]
    overwrite: bool,
    /// The files to make
    #[arg(long, value_name = "FORM", value_enum, default_value = "npy")]
    form: ExportForm,
    /// Give items without training interactions the rows that their features make, not embeddings
    /// that no interaction trained
    #[arg(long)]
    cold_items: bool,
    /// Whether to write the ids of the original interactions, where the run or the data folder
    /// keeps them
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto")]
    external_ids: ExternalIds,
}

const AFTER_HELP: &str = "\
Examples:
  bm3-engine export --model runs/baby --out embeddings
  bm3-engine export --model runs/baby --out embeddings --form vectors
  bm3-engine export --model runs/baby --out embeddings --form csv --cold-items

The score of a user and an item is the inner product of their rows. CSV has the original ids, where
they are known; the other forms number users and items from 0, and u_id_mapping.csv and
i_id_mapping.csv beside them say what they are called. The files are printed, one a line.";

pub fn run(arguments: &ExportArguments) -> anyhow::Result<()> {
    let request = arguments.model.request()?;
    super::use_threads(request.threads)?;
    let recommender = request.recommender(arguments.cold_items)?;
    let names = Names::wanted(arguments.external_ids, &request, recommender.model())?;
    let paths =
        export(&recommender, arguments.form, &arguments.out, names.maps(), arguments.overwrite)?;
    let lines: Vec<String> = paths.iter().map(|path| format!("{}\n", path.display())).collect();
    output::print(&lines.concat())
}
