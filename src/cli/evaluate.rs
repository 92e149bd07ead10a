//! `bm3-engine evaluate`

use bm3_engine::backend::Backend;
use bm3_engine::config::{ascending, validate_top_k};
use bm3_engine::records::Metrics;
use bm3_engine::{Error, with_backend};
use clap::ValueEnum;

use super::backend::open;
use super::model::{ModelArguments, ModelRequest};
use super::output;
use super::table::metrics_table;

/// Measure a trained model: Recall, NDCG, Precision and MAP
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct EvaluateArguments {
    #[command(flatten)]
    model: ModelArguments,
    /// The split to measure on
    #[arg(long, value_name = "SPLIT", value_enum, default_value = "test")]
    split: SplitName,
    /// List lengths K at which metrics are reported: 1 to 1024 [default: the run's]
    #[arg(long, value_name = "K,…", allow_negative_numbers = true, value_delimiter = ',')]
    top_k: Option<Vec<usize>>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

const AFTER_HELP: &str = "\
Examples:
  bm3-engine evaluate --model runs/baby
  bm3-engine evaluate --model runs/baby --split valid --top-k 10,20,100 --json

A user's training items are never recommended; validation items may be, also when the test split is
measured. The table goes to standard output.";

/// A split to measure on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SplitName {
    /// The validation split
    Valid,
    /// The test split
    Test,
}

impl SplitName {
    /// The name in tables and JSON.
    fn name(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Test => "test",
        }
    }
}

/// What to measure.
#[derive(Debug, PartialEq)]
pub struct EvaluateRequest {
    /// The model and its data.
    pub model: ModelRequest,
    /// The split.
    pub split: SplitName,
    /// List lengths, ascending; `None` uses those of the model's settings.
    pub top_k: Option<Vec<usize>>,
}

pub fn run(arguments: &EvaluateArguments) -> anyhow::Result<()> {
    let top_k = arguments.top_k.clone().map(ascending);
    if let Some(top_k) = &top_k {
        validate_top_k(top_k)?;
    }
    let model = arguments.model.request()?;
    super::use_threads(model.threads)?;
    let request = EvaluateRequest { model, split: arguments.split, top_k };
    let device = open(request.model.device, true)?;
    let metrics = with_backend!(device, backend => evaluate(&request, backend))?;
    let split = request.split.name();
    if arguments.json {
        output::print_json(&serde_json::json!({ "split": split, "metrics": metrics }))
    } else {
        output::print(&metrics_table(&[(split, &metrics)]))
    }
}

/// Reads the model and the data, and measures.
fn evaluate(request: &EvaluateRequest, backend: impl Backend) -> anyhow::Result<Metrics> {
    let (model, dataset) = request.model.model_and_interactions()?;
    let (split, label) = match request.split {
        SplitName::Valid => (&dataset.valid, 1),
        SplitName::Test => (&dataset.test, 2),
    };
    if split.users.is_empty() {
        let problem = format!(
            "`{}` found, but {} has no interaction with x_label {label} of a user it trains on",
            request.split.name(),
            dataset.name
        );
        return Err(Error::setting("--split", problem).into());
    }
    let lengths = request.top_k.as_ref().unwrap_or(&model.config().top_k);
    // Validated: there is at least one length.
    let longest = lengths.iter().copied().max().unwrap_or(1);
    // Measure as training does, for the same bits.
    let mut model = model.on(backend)?;
    let lists = model.lists(&split.users, longest)?;
    let wanted = model.backend().wanted(split, &split.users, lengths)?;
    Ok(model.backend().metrics(&wanted, &lists)?)
}
