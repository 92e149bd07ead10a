//! `bm3-engine recommend`

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bm3_engine::backend::TopK;
use bm3_engine::config::validate_top_k;
use bm3_engine::data::{IdMaps, NpyElement, NpyWriter};
use bm3_engine::model::Model;
use bm3_engine::{Error, Result, files};
use clap::ValueEnum;
use serde_json::Value;

use super::model::{ModelArguments, ModelRequest};

/// Write the best items for each of some users
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct RecommendArguments {
    #[command(flatten)]
    model: ModelArguments,
    /// The users: `all`, a file with one id per line, or a list as in 1,2,3
    #[arg(long, value_name = "all|FILE|ID,…", default_value = "all")]
    users: UserChoice,
    /// Items per user: 1 to 1024
    #[arg(long, value_name = "K", default_value_t = 20)]
    top_k: usize,
    /// Write to this file: .csv, .jsonl or .npy [default: CSV on standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write the scores too
    #[arg(long)]
    scores: bool,
    /// Score items without training interactions by their features, instead of by what training has
    /// left of their embeddings
    #[arg(long)]
    cold_items: bool,
    /// Whether users and items go by the ids of the original interactions, where the run or the
    /// data folder keeps them
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto")]
    external_ids: ExternalIds,
}

const AFTER_HELP: &str = "\
Examples:
  bm3-engine recommend --model runs/baby --users 0,1,2 --top-k 5
  bm3-engine recommend --model runs/baby --out lists.jsonl --scores
  bm3-engine recommend --model runs/baby --users users.txt --out lists.npy --external-ids never

A user's training items are left out. CSV has the columns user,rank,item[,score]; JSONL one object
per user; .npy a table of item numbers with one row per user (-1 where a list is short), with
--scores also FILE_scores.npy.";

/// The users that lists are wanted for, as they were given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserChoice {
    /// Every user of the data set.
    All,
    /// A list of ids, or a file of them.
    Given(String),
}

impl FromStr for UserChoice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "all" { Self::All } else { Self::Given(text.to_owned()) })
    }
}

impl UserChoice {
    /// The ids: `None` for all users. What names a file is one; anything else is a list.
    ///
    /// # Errors
    /// [`Error::Setting`] for an empty list, [`Error::Io`] for a file that cannot be read.
    fn ids(&self) -> Result<Option<Vec<String>>> {
        let Self::Given(given) = self else {
            return Ok(None);
        };
        let path = Path::new(given);
        let text;
        let ids: Vec<&str> = if path.is_file() || given.contains(std::path::is_separator) {
            text = std::fs::read_to_string(path).map_err(|error| Error::io(path, "read", error))?;
            text.lines().map(str::trim).filter(|id| !id.is_empty()).collect()
        } else {
            given.split(',').map(str::trim).collect()
        };
        if ids.is_empty() || ids.contains(&"") {
            let problem = format!(
                "`{given}` found, `all`, a file with one id per line, or a list as in 1,2,3 expected"
            );
            return Err(Error::setting("--users", problem));
        }
        Ok(Some(ids.into_iter().map(str::to_owned).collect()))
    }
}

/// Which ids users and items go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExternalIds {
    /// The original ones where the run or the data folder keeps them, else numbers
    Auto,
    /// The numbers of the .inter file
    Never,
}

/// How lists are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListFormat {
    /// One line per user and rank.
    Csv,
    /// One JSON object per user.
    Jsonl,
    /// One row per user.
    Npy,
}

impl ListFormat {
    /// What a file's ending says.
    fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("csv") => Ok(Self::Csv),
            Some("jsonl") => Ok(Self::Jsonl),
            Some("npy") => Ok(Self::Npy),
            _ => {
                let problem = format!(
                    "`{}` found, a file that ends in .csv, .jsonl or .npy expected",
                    path.display()
                );
                Err(Error::setting("--out", problem))
            }
        }
    }
}

/// What is to be recommended, to whom, and where it goes.
#[derive(Debug, PartialEq)]
pub struct RecommendRequest {
    /// The model and its data.
    pub model: ModelRequest,
    /// Ids of the users, as given; `None` for all users.
    pub users: Option<Vec<String>>,
    /// Items per user.
    pub top_k: usize,
    /// The file; `None` for standard output.
    pub out: Option<PathBuf>,
    /// The form of the file.
    pub format: ListFormat,
    /// Whether scores are written too.
    pub scores: bool,
    /// Which ids users and items go by.
    pub external_ids: ExternalIds,
    /// Whether items without interactions are scored by their features.
    pub cold_items: bool,
}

pub fn run(arguments: &RecommendArguments) -> anyhow::Result<()> {
    let request = request(arguments)?;
    super::use_threads(request.model.threads)?;
    recommend(&request)
}

fn request(arguments: &RecommendArguments) -> Result<RecommendRequest> {
    validate_top_k(&[arguments.top_k])?;
    Ok(RecommendRequest {
        format: arguments.out.as_deref().map_or(Ok(ListFormat::Csv), ListFormat::of)?,
        users: arguments.users.ids()?,
        model: arguments.model.request()?,
        top_k: arguments.top_k,
        out: arguments.out.clone(),
        scores: arguments.scores,
        external_ids: arguments.external_ids,
        cold_items: arguments.cold_items,
    })
}

/// Users whose lists are made at a time: memory does not grow with the number of users.
const USERS_AT_A_TIME: usize = 8192;

/// Reads the model and writes the lists.
fn recommend(request: &RecommendRequest) -> anyhow::Result<()> {
    let recommender = request.model.recommender(request.cold_items)?;
    let all_users = recommender.model().users();
    let names = Names::read(request, recommender.model())?;
    let users = match &request.users {
        None => (0..all_users as u32).collect(),
        Some(ids) => names.users(ids)?,
    };
    let mut lists = |write: &mut dyn FnMut(&[u32], &TopK) -> Result<()>| {
        users
            .chunks(USERS_AT_A_TIME)
            .try_for_each(|users| write(users, &recommender.top_k_batch(users, request.top_k)?))
    };
    let Some(path) = &request.out else {
        let mut stdout = std::io::stdout().lock();
        write_text(&mut stdout, Path::new("standard output"), request, &names, &mut lists)?;
        return Ok(());
    };
    if request.format == ListFormat::Npy {
        return Ok(write_npy(path, request, users.len(), &mut lists)?);
    }
    files::write_atomic(path, |writer| write_text(writer, path, request, &names, &mut lists))?;
    Ok(())
}

/// What calls back with the lists of some users at a time.
type Lists<'a> = dyn FnMut(&mut dyn FnMut(&[u32], &TopK) -> Result<()>) -> Result<()> + 'a;

fn write_text(
    writer: &mut dyn Write,
    path: &Path,
    request: &RecommendRequest,
    names: &Names,
    lists: &mut Lists<'_>,
) -> Result<()> {
    let wrong = |error: std::io::Error| Error::io(path, "write", error);
    // The system's own error, so that a closed pipe is known as one.
    let csv_wrong = |error: csv::Error| match error.into_kind() {
        csv::ErrorKind::Io(source) => wrong(source),
        other => wrong(std::io::Error::other(format!("{other:?}"))),
    };
    match request.format {
        ListFormat::Csv => {
            let mut table = csv::Writer::from_writer(writer);
            let columns = ["user", "rank", "item", "score"];
            let count = if request.scores { 4 } else { 3 };
            table.write_record(&columns[..count]).map_err(csv_wrong)?;
            lists(&mut |users, top| {
                for (position, &user) in users.iter().enumerate() {
                    let scores = &top.scores[position * top.k..];
                    for (rank, (&item, score)) in top.list(position).iter().zip(scores).enumerate()
                    {
                        let fields = [
                            names.user(user),
                            (rank + 1).to_string(),
                            names.item(item),
                            score.to_string(),
                        ];
                        table.write_record(&fields[..count]).map_err(csv_wrong)?;
                    }
                }
                Ok(())
            })?;
            table.flush().map_err(wrong)
        }
        _ => {
            let mut writer = std::io::BufWriter::new(writer);
            lists(&mut |users, top| {
                for (position, &user) in users.iter().enumerate() {
                    let list = top.list(position);
                    let mut line = serde_json::Map::new();
                    line.insert("user".into(), names.user_value(user));
                    let items = list.iter().map(|&item| names.item_value(item)).collect();
                    line.insert("items".into(), Value::Array(items));
                    if request.scores {
                        let scores = &top.scores[position * top.k..][..list.len()];
                        line.insert("scores".into(), scores.into());
                    }
                    writeln!(writer, "{}", Value::Object(line)).map_err(wrong)?;
                }
                Ok(())
            })?;
            writer.flush().map_err(wrong)
        }
    }
}

/// Items as a users × K table of 64-bit integers, -1 where a list is short; scores as f32 beside.
fn write_npy(
    path: &Path,
    request: &RecommendRequest,
    users: usize,
    lists: &mut Lists<'_>,
) -> Result<()> {
    let k = request.top_k;
    let mut all_scores: Vec<f32> = Vec::new();
    files::write_atomic(path, |writer| {
        let wrong = |error| Error::io(path, "write", error);
        let mut npy = NpyWriter::new(writer, NpyElement::I64, users, k).map_err(wrong)?;
        lists(&mut |_, top| {
            let number = |&item: &u32| if item == TopK::NO_ITEM { -1 } else { i64::from(item) };
            let items: Vec<i64> = top.items.iter().map(number).collect();
            if request.scores {
                all_scores.extend(top.scores.iter().map(|&score| score as f32));
            }
            npy.write_i64(&items).map_err(wrong)
        })?;
        npy.finish().map(|_| ()).map_err(wrong)
    })?;
    if !request.scores {
        return Ok(());
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let scores_path = path.with_file_name(format!("{stem}_scores.npy"));
    files::write_atomic(&scores_path, |writer| {
        let wrong = |error| Error::io(&scores_path, "write", error);
        let mut npy = NpyWriter::new(writer, NpyElement::F32, users, k).map_err(wrong)?;
        npy.write_f32(&all_scores).map_err(wrong)?;
        npy.finish().map(|_| ()).map_err(wrong)
    })
}

/// What users and items are called.
struct Names {
    maps: Option<IdMaps>,
    count: usize,
}

impl Names {
    /// The maps kept with the model, where its interactions are those it was trained on, else those of
    /// the data folder; where there are any and they are wanted.
    fn read(request: &RecommendRequest, model: &Model) -> Result<Self> {
        let (users, items) = (model.users(), model.items());
        // A table of numbers has no place for other ids.
        let wanted = request.external_ids == ExternalIds::Auto && request.format != ListFormat::Npy;
        if !wanted {
            return Ok(Self { maps: None, count: users });
        }
        let run = request.model.file.parent().filter(|_| model.is_as_trained());
        let mut directory = run.map(Path::to_owned).unwrap_or_default();
        let mut maps = run.map(IdMaps::read).transpose()?.flatten();
        if let (None, Some(data)) = (&maps, request.model.data_folder()) {
            maps = IdMaps::read(&data)?;
            directory = data;
        }
        if let Some(maps) = &maps
            && (maps.users.len() < users || maps.items.len() < items)
        {
            let problem = format!(
                "its id maps name {} users and {} items; the interactions have {users} and \
                 {items}: mend them, or add --external-ids never",
                maps.users.len(),
                maps.items.len()
            );
            return Err(Error::run_file(&directory, problem));
        }
        Ok(Self { maps, count: users })
    }

    /// The numbers of users by the ids they were given with.
    fn users(&self, ids: &[String]) -> Result<Vec<u32>> {
        let positions: Option<HashMap<&str, u32>> = self.maps.as_ref().map(|maps| {
            maps.users.iter().enumerate().map(|(user, id)| (id.as_str(), user as u32)).collect()
        });
        let find = |id: &String| match &positions {
            Some(positions) => positions.get(id.as_str()).copied(),
            None => id.parse().ok().filter(|&user: &u32| (user as usize) < self.count),
        };
        ids.iter()
            .map(|id| {
                find(id).ok_or_else(|| {
                    let expected = match &self.maps {
                        Some(_) => "an id of the original interactions (or --external-ids never \
                                    and a number)"
                            .to_owned(),
                        None => format!("a number from 0 to {}", self.count.saturating_sub(1)),
                    };
                    Error::setting("--users", format!("`{id}` found, {expected} expected"))
                })
            })
            .collect()
    }

    fn user(&self, user: u32) -> String {
        match &self.maps {
            Some(maps) => maps.users[user as usize].clone(),
            None => user.to_string(),
        }
    }

    fn item(&self, item: u32) -> String {
        match &self.maps {
            Some(maps) => maps.items[item as usize].clone(),
            None => item.to_string(),
        }
    }

    fn user_value(&self, user: u32) -> Value {
        if self.maps.is_some() { self.user(user).into() } else { user.into() }
    }

    fn item_value(&self, item: u32) -> Value {
        if self.maps.is_some() { self.item(item).into() } else { item.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Result<Option<Vec<String>>> {
        text.parse::<UserChoice>().unwrap().ids()
    }

    #[test]
    fn users_are_all_listed_or_in_a_file() {
        assert_eq!(ids("all").unwrap(), None);
        assert_eq!(ids("1, 2,3").unwrap().unwrap(), ["1", "2", "3"]);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users.txt");
        std::fs::write(&path, "A1\n\nB2\r\n").unwrap();
        assert_eq!(ids(path.to_str().unwrap()).unwrap().unwrap(), ["A1", "B2"]);
        for text in ["", "1,,2", "no/such/file"] {
            assert!(ids(text).unwrap_err().is_input(), "{text}");
        }
    }

    #[test]
    fn the_ending_of_the_file_decides_its_form() {
        assert_eq!(ListFormat::of(Path::new("a.csv")).unwrap(), ListFormat::Csv);
        assert_eq!(ListFormat::of(Path::new("a.b.jsonl")).unwrap(), ListFormat::Jsonl);
        assert_eq!(ListFormat::of(Path::new("a.npy")).unwrap(), ListFormat::Npy);
        for path in ["a", "a.txt", "csv"] {
            let error = ListFormat::of(Path::new(path)).unwrap_err().to_string();
            assert!(error.starts_with("--out: `"), "{error}");
        }
    }
}
