//! The original ids of users and items, kept beside a data set.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::{Error, Result, files};

const USERS: &str = "u_id_mapping.csv";
const ITEMS: &str = "i_id_mapping.csv";

/// Original ids: position `k` has that of user or item `k`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMaps {
    /// The users' ids.
    pub users: Vec<String>,
    /// The items' ids.
    pub items: Vec<String>,
}

impl IdMaps {
    /// The paths of a folder's maps: users, items.
    pub fn paths(directory: &Path) -> [PathBuf; 2] {
        [directory.join(USERS), directory.join(ITEMS)]
    }

    /// Reads the maps of a folder; `None` if it has neither.
    ///
    /// # Errors
    /// [`Error::RunFile`] with the line that is not a pair of an id and a number, or whose number
    /// is repeated or out of range; also if only one of the two files exists.
    pub fn read(directory: &Path) -> Result<Option<Self>> {
        let [users, items] = Self::paths(directory);
        match (users.is_file(), items.is_file()) {
            (false, false) => Ok(None),
            (true, true) => {
                Ok(Some(Self { users: read(&users, "userID")?, items: read(&items, "itemID")? }))
            }
            (has_users, _) => {
                let (there, missing) = if has_users { (users, ITEMS) } else { (items, USERS) };
                Err(Error::run_file(&there, format!("{missing} is missing beside it")))
            }
        }
    }

    /// The ids of two folders, if both have some and they are not the same: rows of the one then
    /// belong to other users and items than those of the other.
    ///
    /// # Errors
    /// As [`IdMaps::read`].
    pub fn differing(one: &Path, other: &Path) -> Result<Option<[Self; 2]>> {
        let Some(of_one) = Self::read(one)? else { return Ok(None) };
        let both = Self::read(other)?.map(|of_other| [of_one, of_other]);
        Ok(both.filter(|[of_one, of_other]| of_one != of_other))
    }

    /// Whether a folder has these users and no items yet, as [`IdMaps::write`] leaves it if
    /// interrupted.
    pub(crate) fn are_begun(&self, directory: &Path) -> bool {
        let [users, items] = Self::paths(directory);
        !items.exists() && read(&users, "userID").is_ok_and(|users| users == self.users)
    }

    /// Writes the maps into a folder, tab-separated like MMRec's.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, directory: &Path) -> Result<()> {
        let [users, items] = Self::paths(directory);
        write(&users, ["user_id", "userID"], &self.users)?;
        write(&items, ["item_id", "itemID"], &self.items)
    }
}

fn write(path: &Path, header: [&str; 2], ids: &[String]) -> Result<()> {
    files::write_atomic(path, |writer| {
        let wrong = |error: csv::Error| Error::io(path, "write", error.into());
        let mut table = csv::WriterBuilder::new().delimiter(b'\t').from_writer(writer);
        table.write_record(header).map_err(wrong)?;
        for (number, id) in ids.iter().enumerate() {
            table.write_record([id.as_str(), &number.to_string()]).map_err(wrong)?;
        }
        table.flush().map_err(|error| Error::io(path, "write", error))
    })
}

/// A map's ids in the order of their numbers. The column of numbers is the one called
/// `number_name`, or else the second.
fn read(path: &Path, number_name: &str) -> Result<Vec<String>> {
    let text = std::fs::read(path).map_err(|error| Error::io(path, "read", error))?;
    let first_line = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let delimiter = if first_line.contains(&b'\t') { b'\t' } else { b',' };
    let mut table = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(&text[..]);
    let broken =
        |line: u64, problem: String| Error::run_file(path, format!("line {line}: {problem}"));
    let header = table.headers().map_err(|error| broken(1, error.to_string()))?;
    let number_column = header.iter().position(|name| name == number_name).unwrap_or(1);
    let id_column = usize::from(number_column == 0);
    let mut ids: Vec<Option<String>> = Vec::new();
    let records: Vec<csv::StringRecord> =
        table.records().collect::<Result<_, _>>().map_err(|error| {
            broken(error.position().map_or(0, csv::Position::line), error.to_string())
        })?;
    ids.resize(records.len(), None);
    let mut seen = HashSet::new();
    for record in &records {
        let line = record.position().map_or(0, csv::Position::line);
        let (Some(id), Some(number)) = (record.get(id_column), record.get(number_column)) else {
            return Err(broken(line, "expected an id and a number".to_owned()));
        };
        let slot = number.trim().parse::<usize>().ok().and_then(|number| ids.get_mut(number));
        let Some(slot) = slot else {
            let problem = format!(
                "the number is \"{}\"; expected one from 0 to {}, each once",
                super::excerpt(number.as_bytes()),
                records.len() - 1
            );
            return Err(broken(line, problem));
        };
        if slot.replace(id.to_owned()).is_some() {
            return Err(broken(line, format!("the number {number} is there twice")));
        }
        if !seen.insert(id) {
            let id = super::excerpt(id.as_bytes());
            return Err(broken(line, format!("the id \"{id}\" is there twice")));
        }
    }
    // As many numbers as slots and none repeated: every slot is taken.
    Ok(ids.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 32, failure_persistence: None, ..Default::default()
        })]

        #[test]
        fn any_ids_come_back(
            users in prop::collection::vec("[ -~\t\n\"é\u{4e2d}]{1,8}", 0..6),
            items in prop::collection::vec(".{1,6}", 0..6)
        ) {
            let distinct = |mut ids: Vec<String>| {
                ids.sort();
                ids.dedup();
                ids
            };
            let maps = IdMaps { users: distinct(users), items: distinct(items) };
            let directory = tempfile::tempdir().unwrap();
            maps.write(directory.path()).unwrap();
            prop_assert_eq!(IdMaps::read(directory.path()).unwrap(), Some(maps));
        }
    }

    #[test]
    fn foreign_files_are_read_and_broken_ones_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(IdMaps::read(directory.path()).unwrap(), None);
        let [users, items] = IdMaps::paths(directory.path());
        std::fs::write(&users, "userID,raw\n1,bob\n0,ann\n").unwrap();
        let error = IdMaps::read(directory.path()).unwrap_err().to_string();
        assert!(error.contains("i_id_mapping.csv is missing"), "{error}");
        std::fs::write(&items, "asin\titemID\nB01\t0\n").unwrap();
        let maps = IdMaps::read(directory.path()).unwrap().unwrap();
        assert_eq!(
            (maps.users, maps.items),
            (vec!["ann".into(), "bob".into()], vec!["B01".into()])
        );
        for (text, problem) in [
            ("asin\titemID\nB01\t1\n", "line 2: the number is \"1\"; expected one from 0 to 0"),
            ("asin\titemID\nB01\t0\nB02\t0\n", "line 3: the number 0 is there twice"),
            ("asin\titemID\nB01\tx\n", "line 2: the number is \"x\""),
            ("asin\titemID\nB01\t1\nB01\t0\n", "line 3: the id \"B01\" is there twice"),
        ] {
            std::fs::write(&items, text).unwrap();
            let error = IdMaps::read(directory.path()).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }
}
