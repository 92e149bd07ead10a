//! `bm3-engine recommend`

use std::path::PathBuf;

use bm3_engine::Query;

use super::histories::Histories;
use super::lists::ListArguments;
use super::model::ModelArguments;
use super::names::{Choice, Kind};

/// Write the best items for some or all users
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct RecommendArguments {
    #[command(flatten)]
    model: ModelArguments,
    /// The users: `all`, a file with one id per line, or a list as in 1,2,3
    #[arg(long, value_name = "all|FILE|ID,…", default_value = "all")]
    users: Choice,
    /// New users instead, by what they interacted with: a file with a user and an item on each line
    #[arg(long, value_name = "FILE", conflicts_with = "users")]
    histories: Option<PathBuf>,
    #[command(flatten)]
    lists: ListArguments,
}

const AFTER_HELP: &str = "\
Examples:
  bm3-engine recommend --model runs/baby --users 0,1,2 --top-k 5
  bm3-engine recommend --model runs/baby --out lists.jsonl --scores
  bm3-engine recommend --model runs/baby --users users.txt --out lists.npy
  bm3-engine recommend --model runs/baby --histories new_users.csv

A user's training items are left out, and the items of a new user's history. CSV has the columns
user,rank,item[,score]; JSONL one object per user; .npy a table of item numbers with one row per
user, in the order of --users (-1 where a list is short), with --scores also NAME_scores.npy beside
NAME.npy (NaN there).";

pub fn run(arguments: &RecommendArguments) -> anyhow::Result<()> {
    let lists = arguments.lists.request(Kind::User)?;
    let users = arguments.users.ids("--users")?;
    let request = arguments.model.request()?;
    super::use_threads(request.threads)?;
    let recommender = request.recommender(lists.cold_items)?;
    let names = lists.names(&request, recommender.model())?;
    if let Some(path) = &arguments.histories {
        let Histories { users, items } = Histories::read(path, &names)?;
        let whose: Vec<u32> = (0..users.len() as u32).collect();
        let names = names.with_new_users(users);
        lists.write(&whose, &names, &mut |users| {
            let history = |&user: &u32| Query::items(&items[user as usize]);
            let queries: Vec<Query<'_>> = users.iter().map(history).collect();
            recommender.search(&queries, lists.top_k)
        })?;
        return Ok(());
    }
    let users = names.find(Kind::User, users.as_ref())?;
    let graph = recommender.model().graph();
    let untrained = users.iter().filter(|&&user| graph.items_of(user as usize).next().is_none());
    let untrained = untrained.count();
    if untrained > 0 {
        eprintln!(
            "warning: {untrained} of {} users have no training interactions: their lists come from \
             what was drawn at the start; with --histories, users need none",
            users.len()
        );
    }
    lists.write(&users, &names, &mut |users| recommender.top_k_batch(users, lists.top_k))?;
    Ok(())
}
