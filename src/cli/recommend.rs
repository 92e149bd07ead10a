//! `bm3-engine recommend`

use std::path::PathBuf;

use bm3_engine::backend::TopK;
use bm3_engine::{Error, Query, Recommender, Result, ScoredItem};
use rayon::prelude::*;

use super::histories::Histories;
use super::lists::ListArguments;
use super::model::ModelArguments;
use super::names::{Choice, GivenIds, Kind};

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
    /// List only these items: a file with one id per line, or a list as in 1,2,3
    #[arg(long, value_name = "FILE|ID,…")]
    candidates: Option<Choice>,
    /// List none of these items; the file may be empty
    #[arg(long, value_name = "FILE|ID,…")]
    exclude: Option<Choice>,
    /// Also list the items of a user's training interactions or history
    #[arg(long)]
    with_seen: bool,
    #[command(flatten)]
    lists: ListArguments,
}

const AFTER_HELP: &str = "\
Examples:
  bm3-engine recommend --model runs/baby --users 0,1,2 --top-k 5
  bm3-engine recommend --model runs/baby --out lists.jsonl --scores
  bm3-engine recommend --model runs/baby --users users.txt --out lists.npy
  bm3-engine recommend --model runs/baby --histories new_users.csv
  bm3-engine recommend --model runs/baby --exclude sold_out.txt

A user's training items are left out, and the items of a new user's history, unless --with-seen is
given. CSV has the columns user,rank,item[,score]; JSONL one object per user; .npy a table of item
numbers with one row per user, in the order of --users (-1 where a list is short), with --scores
also NAME_scores.npy beside NAME.npy (NaN there).";

pub fn run(arguments: &RecommendArguments) -> anyhow::Result<()> {
    let lists = arguments.lists.request(Kind::User)?;
    let users = arguments.users.ids("--users")?;
    lists.check_rows(users.is_some() || arguments.histories.is_some())?;
    let not_all = |flag| {
        let problem = "`all` found, a file with one id per line or a list as in 1,2,3 expected";
        Err(Error::setting(flag, problem))
    };
    let candidates = match &arguments.candidates {
        Some(Choice::All) => not_all("--candidates"),
        Some(choice) => choice.ids("--candidates"),
        None => Ok(None),
    }?;
    let excluded = match &arguments.exclude {
        Some(Choice::All) => not_all("--exclude"),
        Some(choice) => choice.some_ids("--exclude"),
        None => Ok(None),
    }?;
    let request = arguments.model.request()?;
    super::use_threads(request.threads)?;
    let recommender = request.recommender(lists.cold_items)?;
    let names = lists.names(&request, recommender.model())?;
    let items = |given: &Option<GivenIds>| {
        given.as_ref().map(|given| names.find(Kind::Item, Some(given))).transpose()
    };
    let (candidates, excluded) = (items(&candidates)?, items(&excluded)?.unwrap_or_default());
    let answer = |queries: Vec<Query<'_>>| {
        let queries: Vec<Query<'_>> = queries
            .into_iter()
            .map(|query| query.excluding(&excluded))
            .map(|query| if arguments.with_seen { query.with_seen() } else { query })
            .collect();
        match &candidates {
            Some(candidates) => ranked(&recommender, &queries, candidates, lists.top_k),
            None => recommender.search(&queries, lists.top_k),
        }
    };
    if let Some(path) = &arguments.histories {
        let Histories { users, items } = Histories::read(path, &names)?;
        let whose: Vec<u32> = (0..users.len() as u32).collect();
        let names = names.with_new_users(users);
        lists.write(&whose, &names, &mut |users| {
            answer(users.iter().map(|&user| Query::items(&items[user as usize])).collect())
        })?;
        return Ok(());
    }
    let users = names.find(Kind::User, users.as_ref())?;
    let cold = recommender.cold_users();
    let untrained = users.iter().filter(|&user| cold.binary_search(user).is_ok()).count();
    if untrained > 0 {
        eprintln!(
            "warning: {untrained} of {} users have no training interactions: their lists come from \
             what was drawn at the start; with --histories, users need none",
            users.len()
        );
    }
    lists.write(&users, &names, &mut |users| {
        answer(users.iter().map(|&user| Query::user(user)).collect())
    })?;
    Ok(())
}

/// The best of the candidates for each query.
fn ranked(
    recommender: &Recommender,
    queries: &[Query<'_>],
    candidates: &[u32],
    k: usize,
) -> Result<TopK> {
    let rank = |query: &Query<'_>| recommender.rank(*query, candidates, k);
    let ranked: Vec<Vec<ScoredItem>> = queries.par_iter().map(rank).collect::<Result<_>>()?;
    let mut lists = TopK::empty(ranked.len(), k);
    for (user, list) in ranked.iter().enumerate() {
        for (rank, scored) in list.iter().enumerate() {
            lists.items[user * k + rank] = scored.item;
            lists.scores[user * k + rank] = f64::from(scored.score);
        }
    }
    Ok(lists)
}
