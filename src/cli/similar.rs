//! `bm3-engine similar`

use super::lists::ListArguments;
use super::model::ModelArguments;
use super::names::{Choice, Kind};

/// Write the items most similar to some or all items
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct SimilarArguments {
    #[command(flatten)]
    model: ModelArguments,
    /// The items: `all`, a file with one id per line, or a list as in 1,2,3
    #[arg(long, value_name = "all|FILE|ID,…", default_value = "all")]
    items: Choice,
    #[command(flatten)]
    lists: ListArguments,
}

const AFTER_HELP: &str = "\
Examples:
  bm3-engine similar --model runs/baby --items 0,1,2 --top-k 5 --scores
  bm3-engine similar --model runs/baby --out similar.npy

Likeness is the cosine of the rows that scores are products of, so that items are alike which the
same users are recommended. CSV has the columns item,rank,similar[,score]; JSONL one object per
item; .npy a table of item numbers with one row per item, in the order of --items (-1 where a list
is short), with --scores also NAME_scores.npy beside NAME.npy (NaN there).";

pub fn run(arguments: &SimilarArguments) -> anyhow::Result<()> {
    let lists = arguments.lists.request(Kind::Item)?;
    let items = arguments.items.ids("--items")?;
    lists.check_rows(items.is_some())?;
    let request = arguments.model.request()?;
    super::use_threads(request.threads)?;
    let recommender = request.recommender(lists.cold_items)?;
    let names = lists.names(&request, recommender.model())?;
    let items = names.find(Kind::Item, items.as_ref())?;
    lists
        .write(&items, &names, &mut |items| recommender.similar_items_batch(items, lists.top_k))?;
    Ok(())
}
