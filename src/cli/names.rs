//! Which users or items are asked for, and by which names.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bm3_engine::data::IdMaps;
use bm3_engine::model::Model;
use bm3_engine::{Error, Result};
use clap::ValueEnum;
use serde_json::Value;

use super::model::ModelRequest;

/// Users or items, as given on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// All of them.
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

/// The ids that were given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenIds {
    ids: Vec<String>,
    place: Place,
}

/// Where the ids were given.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// In the value of this flag.
    Flag(&'static str),
    /// In a file, each on the line of this number.
    File(PathBuf, Vec<usize>),
}

impl Choice {
    /// The ids, at least one; `None` for all. An argument that names a file is read as one, unless it
    /// is a number; any other is a list.
    ///
    /// # Errors
    /// As [`Choice::some_ids`], and [`Error::RunFile`] for an empty file.
    pub fn ids(&self, flag: &'static str) -> Result<Option<GivenIds>> {
        let given = self.some_ids(flag)?;
        if let Some(GivenIds { ids, place: Place::File(path, _) }) = &given
            && ids.is_empty()
        {
            return Err(Error::run_file(path, "is empty; one id per line expected"));
        }
        Ok(given)
    }

    /// As [`Choice::ids`], but a file may be empty, such as that of the items that are sold out.
    ///
    /// # Errors
    /// [`Error::Setting`] naming `flag` for an empty id and for the path of no file, [`Error::Io`]
    /// for a file that cannot be read.
    pub fn some_ids(&self, flag: &'static str) -> Result<Option<GivenIds>> {
        let Self::Given(given) = self else {
            return Ok(None);
        };
        let path = Path::new(given);
        let is_number = given.bytes().all(|byte| byte.is_ascii_digit());
        // Pipes are read too.
        if path.exists() && !path.is_dir() && !is_number {
            return read_ids(path).map(Some);
        }
        if given.contains(std::path::is_separator) {
            let problem = format!(
                "`{given}` found, and there is no such file; ids with this character go into a \
                 file, one per line"
            );
            return Err(Error::setting(flag, problem));
        }
        let ids: Vec<String> = given.split(',').map(|id| id.trim().to_owned()).collect();
        if ids.iter().any(String::is_empty) {
            let problem = format!(
                "`{given}` found, `all`, a file with one id per line, or a list as in 1,2,3 expected"
            );
            return Err(Error::setting(flag, problem));
        }
        Ok(Some(GivenIds { ids, place: Place::Flag(flag) }))
    }
}

/// The ids in a file, one on each line that is not blank.
fn read_ids(path: &Path) -> Result<GivenIds> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::io(path, "read", error))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines = text.lines().map(str::trim).zip(1..).filter(|(id, _)| !id.is_empty());
    let (ids, lines): (Vec<String>, Vec<usize>) =
        lines.map(|(id, line)| (id.to_owned(), line)).unzip();
    Ok(GivenIds { ids, place: Place::File(path.to_owned(), lines) })
}

impl GivenIds {
    /// An error for the id at a position, naming where it was given.
    fn unknown(&self, position: usize, expected: &str) -> Error {
        let problem = format!("`{}` found, {expected} expected", self.ids[position]);
        match &self.place {
            Place::File(path, lines) => {
                Error::run_file(path, format!("line {}: {problem}", lines[position]))
            }
            // It may be the name of a file that is elsewhere.
            Place::Flag(flag) if self.ids.len() == 1 => {
                Error::setting(*flag, format!("{problem} (and there is no file of that name)"))
            }
            Place::Flag(flag) => Error::setting(*flag, problem),
        }
    }
}

/// Which ids users and items go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExternalIds {
    /// The original ids if the run or the data folder keeps them, else numbers
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

/// The advice when the maps of ids are wrong.
const NUMBERS_ALONE: &str = "add --external-ids never";

/// Reads the maps of a folder, if it has any.
fn read_maps(directory: &Path) -> Result<Option<IdMaps>> {
    IdMaps::read(directory).map_err(|error| match error {
        Error::RunFile { path, problem } => {
            Error::run_file(&path, format!("{problem}; mend that, or {NUMBERS_ALONE}"))
        }
        other => other,
    })
}

/// The names of users and items.
pub struct Names {
    maps: Option<IdMaps>,
    /// The names of new users, which are asked for in place of the model's.
    new_users: Option<Vec<String>>,
    users: usize,
    items: usize,
    /// Whether ids that nobody knows are left out, with a warning, instead of being errors.
    skips_unknown: bool,
}

impl Names {
    /// Numbers only.
    pub fn numbers(model: &Model) -> Self {
        Self::of_numbers(model.users(), model.items())
    }

    /// The numbers of so many users and items.
    pub fn of_numbers(users: usize, items: usize) -> Self {
        Self { maps: None, new_users: None, users, items, skips_unknown: false }
    }

    /// Leaves out ids that nobody knows, if `skip` is set.
    #[must_use]
    pub fn skipping_unknown(self, skip: bool) -> Self {
        Self { skips_unknown: skip, ..self }
    }

    /// Names new users instead of the model's.
    #[must_use]
    pub fn with_new_users(self, names: Vec<String>) -> Self {
        Self { users: names.len(), new_users: Some(names), ..self }
    }

    /// The maps kept with the model; without, the data folder's. Numbers if there are none.
    ///
    /// # Errors
    /// [`Error::RunFile`] when the maps are malformed or too short; [`Error::Io`] when they cannot
    /// be read.
    pub fn read(request: &ModelRequest, model: &Model) -> Result<Self> {
        let (users, items) = (model.users(), model.items());
        let mut directory = request.directory().to_owned();
        let mut maps = read_maps(&directory)?;
        if let (None, Some(data)) = (&maps, request.data_folder()) {
            maps = read_maps(&data)?;
            directory = data;
        }
        if let Some(maps) = &maps {
            let [of_users, of_items] = IdMaps::paths(&directory);
            for (path, ids, count, kind) in [
                (of_users, &maps.users, users, Kind::User),
                (of_items, &maps.items, items, Kind::Item),
            ] {
                if ids.len() < count {
                    let problem = format!(
                        "has the ids of {} {kind}s; the interactions have {count}: put the file that \
                         belongs to them there, or {NUMBERS_ALONE}",
                        ids.len(),
                        kind = kind.word()
                    );
                    return Err(Error::run_file(&path, problem));
                }
            }
        }
        Ok(Self { maps, new_users: None, users, items, skips_unknown: false })
    }

    /// The names that `ids` asks for.
    ///
    /// # Errors
    /// As [`Names::read`].
    pub fn wanted(ids: ExternalIds, request: &ModelRequest, model: &Model) -> Result<Self> {
        match ids {
            ExternalIds::Auto => Self::read(request, model),
            ExternalIds::Never => Ok(Self::numbers(model)),
        }
    }

    /// The original ids, if there are any.
    pub fn maps(&self) -> Option<&IdMaps> {
        self.maps.as_ref()
    }

    fn ids(&self, kind: Kind) -> Option<&[String]> {
        match (kind, &self.new_users, &self.maps) {
            (Kind::User, Some(new), _) => Some(new),
            (Kind::User, None, maps) => maps.as_ref().map(|maps| &*maps.users),
            (Kind::Item, _, maps) => maps.as_ref().map(|maps| &*maps.items),
        }
    }

    fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::User => self.users,
            Kind::Item => self.items,
        }
    }

    /// Finds the number of a user or an item by name.
    pub fn finder(&self, kind: Kind) -> impl Fn(&str) -> Option<u32> {
        let count = self.count(kind);
        let positions: Option<HashMap<&str, u32>> = self.ids(kind).map(|ids| {
            ids.iter().enumerate().map(|(number, id)| (id.as_str(), number as u32)).collect()
        });
        move |id| match &positions {
            Some(positions) => positions.get(id).copied(),
            None => id.parse().ok().filter(|&number: &u32| (number as usize) < count),
        }
    }

    /// What a user or an item is named by, for an error.
    pub fn expected(&self, kind: Kind) -> String {
        match &self.maps {
            Some(_) => "an id of the original interactions (or --external-ids never and a number)"
                .to_owned(),
            None => format!("a number from 0 to {}", self.count(kind).saturating_sub(1)),
        }
    }

    /// The numbers of the users or items with the given ids; all of them if none were given. Unknown
    /// ids are left out if they are to be [skipped](Names::skipping_unknown).
    ///
    /// # Errors
    /// For an unknown id, [`Error::Setting`] naming the flag it was given with, or
    /// [`Error::RunFile`] naming its file and line.
    pub fn find(&self, kind: Kind, given: Option<&GivenIds>) -> Result<Vec<u32>> {
        let Some(given) = given else { return Ok((0..self.count(kind) as u32).collect()) };
        let find = self.finder(kind);
        let mut unknown = Unknown::default();
        let mut numbers = Vec::with_capacity(given.ids.len());
        for (position, id) in given.ids.iter().enumerate() {
            match find(id) {
                Some(number) => numbers.push(number),
                None => {
                    self.skip(&mut unknown, || given.unknown(position, &self.expected(kind)))?;
                }
            }
        }
        unknown.warn(given.ids.len(), kind);
        Ok(numbers)
    }

    /// Counts an unknown id, or refuses it.
    ///
    /// # Errors
    /// `error`, unless unknown ids are skipped.
    pub fn skip(&self, unknown: &mut Unknown, error: impl FnOnce() -> Error) -> Result<()> {
        if !self.skips_unknown {
            return Err(error());
        }
        unknown.first.get_or_insert_with(|| error().to_string());
        unknown.count += 1;
        Ok(())
    }

    /// The name of one user or item.
    pub fn name(&self, kind: Kind, number: u32) -> String {
        match self.ids(kind) {
            Some(ids) => ids[number as usize].clone(),
            None => number.to_string(),
        }
    }

    /// The name of one in JSON: a string or a number.
    pub fn value(&self, kind: Kind, number: u32) -> Value {
        match self.ids(kind) {
            Some(ids) => ids[number as usize].clone().into(),
            None => number.into(),
        }
    }
}

/// The unknown ids that were left out.
#[derive(Debug, Default)]
pub struct Unknown {
    count: usize,
    /// What is wrong with the first.
    first: Option<String>,
}

impl Unknown {
    /// Says how many of `all` ids were left out, if any were.
    pub fn warn(&self, all: usize, kind: Kind) {
        if let Some(first) = &self.first {
            eprintln!(
                "warning: {} of {all} {}s are unknown and left out, the first: {first}",
                self.count,
                kind.word()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Result<Option<Vec<String>>> {
        let given = text.parse::<Choice>().unwrap().ids("--users")?;
        Ok(given.map(|given| given.ids))
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
        std::fs::write(&path, "\n \n").unwrap();
        let error = ids(path.to_str().unwrap()).unwrap_err();
        let expected = format!("{}: is empty; one id per line expected", path.display());
        assert!(error.is_input() && error.to_string() == expected, "{error}");
        let none = path.to_str().unwrap().parse::<Choice>().unwrap().some_ids("--exclude");
        assert_eq!(none.unwrap().unwrap().ids, [""; 0]);
    }

    /// `2` asks for 2, whatever files there are.
    #[test]
    fn a_number_is_no_file() {
        let path = Path::new("4711");
        std::fs::write(path, "1\n").unwrap();
        let found = ids("4711");
        let of_path = ids("./4711");
        std::fs::remove_file(path).unwrap();
        assert_eq!(found.unwrap().unwrap(), ["4711"]);
        assert_eq!(of_path.unwrap().unwrap(), ["1"]);
    }

    #[test]
    fn an_unknown_id_is_told_by_where_it_stands() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users.txt");
        std::fs::write(&path, "1\n\nzz\n").unwrap();
        let names = Names::of_numbers(3, 2);
        let find = |given: &str| {
            let given = given.parse::<Choice>().unwrap().ids("--users")?;
            names.find(Kind::User, given.as_ref())
        };
        assert_eq!(find("2,0").unwrap(), [2, 0]);
        assert_eq!(find("all").unwrap(), [0, 1, 2]);
        let given = "7,1,x,0".parse::<Choice>().unwrap().ids("--users").unwrap();
        let skipping = Names::of_numbers(3, 2).skipping_unknown(true);
        assert_eq!(skipping.find(Kind::User, given.as_ref()).unwrap(), [1, 0]);
        let expected = "found, a number from 0 to 2 expected";
        for (given, problem) in [
            (path.to_str().unwrap(), format!("{}: line 3: `zz` {expected}", path.display())),
            ("nofile.txt", format!("`nofile.txt` {expected} (and there is no file of that name)")),
            ("1,3", format!("--users: `3` {expected}")),
        ] {
            let error = find(given).unwrap_err();
            assert!(error.is_input() && error.to_string().ends_with(&problem), "{error}");
        }
    }
}
