//! `bm3-engine recommend`

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bm3_engine::config::validate_top_k;
use bm3_engine::{Error, Result};
use clap::ValueEnum;

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
    /// Whether users and items go by the ids of the original interactions, where the data folder
    /// keeps them
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto")]
    external_ids: ExternalIds,
}

const AFTER_HELP: &str = "\
Examples:
  bm3-engine recommend --model runs/baby --users 0,1,2 --top-k 5
  bm3-engine recommend --model runs/baby --out lists.jsonl --scores
  bm3-engine recommend --model runs/baby --users users.txt --out lists.npy --external-ids never

A user's training items are left out. CSV has the columns user,rank,item[,score]; JSONL one object
per user; .npy a table of item numbers with one row per user, with --scores also FILE_scores.npy.";

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
    /// The original ones where the data folder keeps them, else numbers
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
}

pub fn run(arguments: &RecommendArguments) -> anyhow::Result<()> {
    let request = request(arguments)?;
    super::use_threads(request.model.config.threads)?;
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
    })
}

/// Reads the model and the data and writes the lists.
fn recommend(_request: &RecommendRequest) -> anyhow::Result<()> {
    anyhow::bail!("recommending is not available yet")
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
