//! Which users or items are meant, and what they are called.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::Path;
use std::str::FromStr;

use bm3_engine::data::IdMaps;
use bm3_engine::model::Model;
use bm3_engine::{Error, Result};
use clap::ValueEnum;
use serde_json::Value;

use super::model::ModelRequest;

/// Users or items, as they were given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// All there are.
    All,
    /// A list of ids, or a file of them.
    Given(String),
}

impl FromStr for Choice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "all" { Self::All } else { Self::Given(text.to_owned()) })
    }
}

impl Choice {
    /// The ids: `None` for all. What names a file is one; anything else is a list.
    ///
    /// # Errors
    /// [`Error::Setting`] naming `flag` for an empty list, [`Error::Io`] for a file that cannot be
    /// read.
    pub fn ids(&self, flag: &str) -> Result<Option<Vec<String>>> {
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
            return Err(Error::setting(flag, problem));
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

/// Users, or items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Users.
    User,
    /// Items.
    Item,
}

impl Kind {
    /// The word for one of them.
    pub fn word(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Item => "item",
        }
    }
}

/// What users and items are called.
pub struct Names {
    maps: Option<IdMaps>,
    users: usize,
    items: usize,
}

impl Names {
    /// Numbers alone.
    pub fn numbers(model: &Model) -> Self {
        Self { maps: None, users: model.users(), items: model.items() }
    }

    /// The maps kept with the model, where its interactions are those it was trained on, else those of
    /// the data folder; where there are any.
    ///
    /// # Errors
    /// What is wrong with the maps.
    pub fn read(request: &ModelRequest, model: &Model) -> Result<Self> {
        let (users, items) = (model.users(), model.items());
        let run = request.file.parent().filter(|_| model.is_as_trained());
        let mut directory = run.map(Path::to_owned).unwrap_or_default();
        let mut maps = run.map(IdMaps::read).transpose()?.flatten();
        if let (None, Some(data)) = (&maps, request.data_folder()) {
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
        Ok(Self { maps, users, items })
    }

    /// Those kept, where they are wanted.
    ///
    /// # Errors
    /// Those of [`Names::read`].
    pub fn wanted(ids: ExternalIds, request: &ModelRequest, model: &Model) -> Result<Self> {
        match ids {
            ExternalIds::Auto => Self::read(request, model),
            ExternalIds::Never => Ok(Self::numbers(model)),
        }
    }

    /// The original ids, where there are any.
    pub fn maps(&self) -> Option<&IdMaps> {
        self.maps.as_ref()
    }

    fn ids(&self, kind: Kind) -> Option<&[String]> {
        self.maps.as_ref().map(|maps| match kind {
            Kind::User => &*maps.users,
            Kind::Item => &*maps.items,
        })
    }

    /// The numbers of those that were given by their ids under `flag`; all where none were.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the id that is unknown.
    pub fn find(&self, kind: Kind, given: Option<&[String]>, flag: &str) -> Result<Vec<u32>> {
        let count = match kind {
            Kind::User => self.users,
            Kind::Item => self.items,
        };
        let Some(given) = given else { return Ok((0..count as u32).collect()) };
        let positions: Option<HashMap<&str, u32>> = self.ids(kind).map(|ids| {
            ids.iter().enumerate().map(|(number, id)| (id.as_str(), number as u32)).collect()
        });
        let find = |id: &String| match &positions {
            Some(positions) => positions.get(id.as_str()).copied(),
            None => id.parse().ok().filter(|&number: &u32| (number as usize) < count),
        };
        given
            .iter()
            .map(|id| {
                find(id).ok_or_else(|| {
                    let expected = match &self.maps {
                        Some(_) => "an id of the original interactions (or --external-ids never \
                                    and a number)"
                            .to_owned(),
                        None => format!("a number from 0 to {}", count.saturating_sub(1)),
                    };
                    Error::setting(flag, format!("`{id}` found, {expected} expected"))
                })
            })
            .collect()
    }

    /// What one is called.
    pub fn name(&self, kind: Kind, number: u32) -> String {
        match self.ids(kind) {
            Some(ids) => ids[number as usize].clone(),
            None => number.to_string(),
        }
    }

    /// What one is called in JSON: a text, or a number.
    pub fn value(&self, kind: Kind, number: u32) -> Value {
        match self.ids(kind) {
            Some(ids) => ids[number as usize].clone().into(),
            None => number.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Result<Option<Vec<String>>> {
        text.parse::<Choice>().unwrap().ids("--users")
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
}
