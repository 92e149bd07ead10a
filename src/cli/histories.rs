//! The histories of users that a model was not trained on.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use bm3_engine::{Error, Result};

use super::names::{Kind, Names, Unknown};

/// New users by name, in the order of the file, and the items of each.
#[derive(Debug, PartialEq, Eq)]
pub struct Histories {
    pub users: Vec<String>,
    pub items: Vec<Vec<u32>>,
}

impl Histories {
    /// Reads a table whose lines begin with a user and an item, separated by tabs or commas; more
    /// columns are ignored, as is a first line `user,item` or `user_id,item_id`. A user's lines need
    /// not be adjacent. Where unknown items are skipped, so are users who have no others.
    ///
    /// # Errors
    /// [`Error::RunFile`] naming the line that has no user, no item or an unknown one, and for a
    /// table without lines; [`Error::Io`].
    pub fn read(path: &Path, names: &Names) -> Result<Self> {
        let text = std::fs::read(path).map_err(|error| Error::io(path, "read", error))?;
        let first = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let mut table = csv::ReaderBuilder::new()
            .delimiter(if first.contains(&b'\t') { b'\t' } else { b',' })
            .has_headers(false)
            .flexible(true)
            .trim(csv::Trim::All)
            .from_reader(&text[..]);
        let at =
            |line: u64, problem: &str| Error::run_file(path, format!("line {line}: {problem}"));
        let item_of = names.finder(Kind::Item);
        let mut positions: HashMap<String, usize> = HashMap::new();
        let mut histories = Self { users: Vec::new(), items: Vec::new() };
        let (mut unknown, mut count) = (Unknown::default(), 0);
        let mut skipped: HashSet<String> = HashSet::new();
        for (number, record) in table.records().enumerate() {
            let record = record.map_err(|error| {
                at(error.position().map_or(0, csv::Position::line), &error.to_string())
            })?;
            let line = record.position().map_or(0, csv::Position::line);
            let (user, item) = (record.get(0).unwrap_or(""), record.get(1).unwrap_or(""));
            let is_header = |field: &str, name: &str| {
                let letters = field.chars().filter(char::is_ascii_alphanumeric);
                let field = letters.collect::<String>().to_ascii_lowercase();
                field.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest == "id")
            };
            if number == 0 && is_header(user, "user") && is_header(item, "item") {
                continue;
            }
            if user.is_empty() || item.is_empty() {
                return Err(at(line, "a user and an item expected, as in ann,B00X"));
            }
            count += 1;
            let Some(found) = item_of(item) else {
                let expected = || {
                    let expected = names.expected(Kind::Item);
                    at(line, &format!("`{item}` found, {expected} expected"))
                };
                names.skip(&mut unknown, expected)?;
                skipped.insert(user.to_owned());
                continue;
            };
            let position = *positions.entry(user.to_owned()).or_insert_with(|| {
                histories.users.push(user.to_owned());
                histories.items.push(Vec::new());
                histories.users.len() - 1
            });
            histories.items[position].push(found);
        }
        unknown.warn(count, Kind::Item);
        let without = skipped.iter().filter(|user| !positions.contains_key(*user)).count();
        if without > 0 {
            let all = histories.users.len() + without;
            eprintln!("warning: {without} of {all} users have no known items: no lists");
        }
        if count == 0 {
            return Err(Error::run_file(path, "is empty; lines with a user and an item expected"));
        }
        Ok(histories)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Histories> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new.csv");
        std::fs::write(&path, text).unwrap();
        Histories::read(&path, &Names::of_numbers(3, 10))
    }

    #[test]
    fn lines_are_gathered_by_user() {
        let expected = Histories {
            users: vec!["ann".into(), "bob, jr".into()],
            items: vec![vec![3, 9], vec![0, 0]],
        };
        for text in [
            "ann,3\n\"bob, jr\",0\nann,9\n\"bob, jr\",0\n",
            "User,Item,rating\r\nann, 3,5\r\n\"bob, jr\",0,1\r\nann,9,2\r\n\"bob, jr\",0,1",
            "ann\t3\nbob, jr\t0\nann\t9\n\nbob, jr\t0\n",
            "user_id\titemID\nann\t3\nbob, jr\t0\nann\t9\nbob, jr\t0\n",
        ] {
            assert_eq!(read(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn unknown_items_are_left_out_if_asked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new.csv");
        std::fs::write(&path, "ann,3\nbob,99\nann,x\n").unwrap();
        let names = Names::of_numbers(3, 10).skipping_unknown(true);
        let expected = Histories { users: vec!["ann".into()], items: vec![vec![3]] };
        assert_eq!(Histories::read(&path, &names).unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, problem) in [
            ("", "is empty; lines with a user and an item expected"),
            ("user,item\n", "is empty; lines with a user and an item expected"),
            ("ann\n", "line 1: a user and an item expected, as in ann,B00X"),
            ("ann,1\n,2\n", "line 2: a user and an item expected"),
            ("ann,1\nann,10\n", "line 2: `10` found, a number from 0 to 9 expected"),
            ("ann,x\n", "line 1: `x` found, a number from 0 to 9 expected"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.is_input() && error.to_string().contains(problem), "{error}");
        }
    }
}
