//! Raw interactions with any ids: delimited text here, Parquet and Arrow IPC in `columnar`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::Path;

use super::columnar::{self, ColumnarFormat};
use super::{Interaction, PrepareError, TableOptions, time};
use crate::data::excerpt;
use crate::{Error, Result};

/// Usual names of columns, compared without case, `_`, `-` and spaces.
const USER_NAMES: &[&str] = &["userid", "user", "uid", "reviewerid", "customerid", "visitorid"];
const ITEM_NAMES: &[&str] = &[
    "itemid",
    "item",
    "iid",
    "asin",
    "parentasin",
    "productid",
    "movieid",
    "artistid",
    "trackid",
    "bookid",
    "businessid",
];
const RATING_NAMES: &[&str] = &["rating", "ratings", "score", "stars", "overall", "weight"];
const TIME_NAMES: &[&str] =
    &["timestamp", "time", "unixreviewtime", "date", "datetime", "reviewtime"];

/// The interactions of a file; users and items are positions in the lists of distinct ids.
pub struct Table {
    pub users: Vec<String>,
    pub items: Vec<String>,
    pub rows: Vec<Interaction>,
    /// Whether there is a column of times.
    pub has_times: bool,
    /// Whether there is a column `x_label`, which names a split.
    pub has_split: bool,
}

/// What the rest of the preparation needs of a table.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    /// A rating in every row.
    pub rating: bool,
    /// A column of times.
    pub time: bool,
    /// A time in every row, if there is a column of times.
    pub every_time: bool,
}

/// The positions of the columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns {
    pub user: usize,
    pub item: usize,
    pub rating: Option<usize>,
    pub time: Option<usize>,
    pub split: Option<usize>,
}

impl Table {
    /// Reads a file, as text unless its first bytes show another format. A rating or a time that is
    /// needed must have a column and a number in it.
    pub fn read(options: &TableOptions, needs: Needs) -> Result<Self> {
        let source = Source::open(&options.path)?;
        if let Some(problem) = no_table(&source.head) {
            let (path, problem) = (options.path.clone(), problem.to_owned());
            return Err(PrepareError::Malformed { path, line: 1, problem }.into());
        }
        let table = match ColumnarFormat::of(&source.head) {
            None => Self::read_text(source, options, needs)?,
            // Such a file is not read from its beginning to its end.
            Some(format) if !options.path.is_file() => {
                let problem = format!("is {format} and no regular file; save it as one first");
                let path = options.path.clone();
                return Err(PrepareError::Malformed { path, line: 1, problem }.into());
            }
            Some(format) => {
                let has_none = |flag, what: &str| {
                    let problem = format!("{format} has {what} of its own; leave the flag out");
                    Err(Error::setting(flag, problem))
                };
                if options.delimiter.is_some() {
                    return has_none("--delimiter", "columns");
                }
                if !options.has_header {
                    return has_none("--no-header", "names");
                }
                columnar::read(format, options, needs)?
            }
        };
        if table.rows.is_empty() {
            return Err(PrepareError::Empty { path: options.path.clone() }.into());
        }
        Ok(table)
    }

    fn read_text(source: Source, options: &TableOptions, needs: Needs) -> Result<Self> {
        let path = &options.path;
        let delimiter = options.delimiter.unwrap_or_else(|| Delimiter::guess(&source.head));
        let mut builder = csv::ReaderBuilder::new();
        // The end's mark is a record of its own.
        builder.has_headers(options.has_header).flexible(true);
        let bytes: Box<dyn Read> = match delimiter {
            Delimiter::Character(byte) => {
                builder.delimiter(byte);
                Box::new(source.until_end())
            }
            Delimiter::DoubleColon => {
                // Such files know no quotes.
                builder.delimiter(FIELD_END).quoting(false);
                Box::new(DoubleColons::new(source.until_end()))
            }
        };
        let mut reader = builder.from_reader(bytes);
        let names: Vec<String> = if options.has_header {
            let header = reader.byte_headers().map_err(|error| csv_error(path, error))?;
            header.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
        } else {
            Vec::new()
        };
        if names == [END] {
            return Err(PrepareError::Empty { path: path.clone() }.into());
        }
        let columns = Columns::find(options, &names, needs, true)?;
        let (mut users, mut items) = (Ids::default(), Ids::default());
        let mut rows = Vec::new();
        let mut record = csv::StringRecord::new();
        let mut expected = options.has_header.then_some(names.len());
        loop {
            let malformed = |line: u64, problem: String| {
                Err(PrepareError::Malformed { path: path.clone(), line, problem }.into())
            };
            if !reader.read_record(&mut record).map_err(|error| csv_error(path, error))? {
                // The header has taken the mark for a part of it.
                return malformed(1, OPEN_QUOTE.to_owned());
            }
            let line = record.position().map_or(0, csv::Position::line);
            if record.len() == 1 && &record[0] == END {
                break;
            }
            if record.iter().next_back().is_some_and(|field| field.ends_with(END)) {
                return malformed(line, OPEN_QUOTE.to_owned());
            }
            let columns_before = *expected.get_or_insert(record.len());
            if record.len() != columns_before {
                let problem =
                    format!("has {} columns; the lines before have {columns_before}", record.len());
                return malformed(line, problem);
            }
            let field = |column: usize, what: &'static str| {
                record.get(column).map(str::trim).filter(|field| !field.is_empty()).ok_or_else(
                    || {
                        let problem = format!(
                            "has no {what}: column {} of {} is empty or missing",
                            column + 1,
                            record.len()
                        );
                        PrepareError::Malformed { path: path.clone(), line, problem }
                    },
                )
            };
            let number = |column: Option<usize>, kind: &NumberKind, needed: bool| {
                let Some(column) = column else { return Ok(None) };
                let text = match field(column, kind.what) {
                    Ok(text) => text,
                    Err(error) if needed => return Err(error),
                    Err(_) => return Ok(None),
                };
                match (kind.parse)(text) {
                    None if needed => Err(PrepareError::BadField {
                        path: path.clone(),
                        line,
                        what: kind.what,
                        found: excerpt(text.as_bytes()),
                        expected: kind.expected,
                    }),
                    number => Ok(number),
                }
            };
            let id = |column: usize, what: &'static str| {
                let id = field(column, what)?;
                if id.contains('\n') {
                    let problem = format!(
                        "has an id of the {what} that goes over several lines; close the quote \
                         before it, or write one quote in a field as two"
                    );
                    return Err(PrepareError::Malformed { path: path.clone(), line, problem });
                }
                Ok(id)
            };
            rows.push(Interaction {
                user: users.position(id(columns.user, "user")?),
                item: items.position(id(columns.item, "item")?),
                rating: number(columns.rating, &RATING, needs.rating)?,
                time: number(columns.time, &TIME, needs.every_time)?,
                split: number(columns.split, &SPLIT, true)?.unwrap_or_default() as u8,
            });
        }
        let (has_times, has_split) = (columns.time.is_some(), has_split(&names));
        Ok(Self { users: users.names, items: items.names, rows, has_times, has_split })
    }
}

/// What else a file is by its first bytes, if it is known to be no table.
fn no_table(head: &[u8]) -> Option<&'static str> {
    match head {
        [0x1f, 0x8b, ..] => Some("is compressed by gzip; unpack it first"),
        [b'P', b'K', 3, 4, ..] => Some("is a zip archive; unpack it first, and save sheets as CSV"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("is UTF-16, not UTF-8; convert the file"),
        [b'{', b'"', ..] => {
            Some("is JSON; save it as a table, one interaction a line, such as CSV")
        }
        _ => None,
    }
}

/// Whether a column is MMRec's split.
pub(super) fn has_split(names: &[String]) -> bool {
    names.iter().any(|name| simplify(name) == "xlabel")
}

/// A kind of number in a field.
struct NumberKind {
    what: &'static str,
    parse: fn(&str) -> Option<f64>,
    expected: &'static str,
}

const RATING: NumberKind = NumberKind {
    what: "rating",
    parse: |text| text.parse().ok().filter(|number: &f64| number.is_finite()),
    expected: "a number",
};

const SPLIT: NumberKind =
    NumberKind { what: "split", parse: |text| split_of(text).map(f64::from), expected: A_SPLIT };

/// What is expected of a split.
pub(super) const A_SPLIT: &str = "0, 1 or 2, or train, valid or test";

/// The number of a split: 0 for training, 1 for validation, 2 for testing.
pub(super) fn split_of(text: &str) -> Option<u8> {
    match text.to_ascii_lowercase().as_str() {
        "0" | "train" | "training" => Some(0),
        "1" | "valid" | "validation" | "val" | "dev" => Some(1),
        "2" | "test" | "testing" => Some(2),
        _ => None,
    }
}

const TIME: NumberKind = NumberKind { what: "time", parse: time::parse, expected: time::A_TIME };

/// Distinct ids in order of appearance.
#[derive(Default)]
pub(super) struct Ids {
    pub names: Vec<String>,
    positions: HashMap<String, u32>,
}

impl Ids {
    pub fn position(&mut self, name: &str) -> u32 {
        if let Some(&position) = self.positions.get(name) {
            return position;
        }
        let position = self.names.len() as u32;
        self.names.push(name.to_owned());
        self.positions.insert(name.to_owned(), position);
        position
    }
}

impl Columns {
    /// Finds columns by name; `is_text` means that the names may be the first interaction.
    pub fn find(
        options: &TableOptions,
        names: &[String],
        needs: Needs,
        is_text: bool,
    ) -> Result<Self> {
        let find = |wanted: &Option<String>, usual: &[&str], default: Option<usize>| {
            if let Some(wanted) = wanted {
                let by_name = names.iter().position(|name| name.trim() == wanted);
                let by_number =
                    wanted.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
                return by_name.or(by_number.filter(|&n| names.is_empty() || n < names.len()));
            }
            let found = usual
                .iter()
                .find_map(|usual| names.iter().position(|name| simplify(name) == *usual));
            found.or(default.filter(|_| names.is_empty()))
        };
        let missing = |what, wanted: &Option<String>, flag| {
            let found = if names.is_empty() {
                "no header (columns go by number)".to_owned()
            } else {
                names.iter().map(|name| excerpt(name.as_bytes())).collect::<Vec<_>>().join(", ")
            };
            let (path, wanted) = (options.path.clone(), wanted.clone());
            let usual = [USER_NAMES, ITEM_NAMES].concat();
            // What was found may be an interaction instead of names.
            let headless = is_text
                && wanted.is_none()
                && !names.is_empty()
                && !names.iter().any(|name| usual.contains(&&*simplify(name)));
            let or = match headless {
                true => ", or add --no-header if the first line is an interaction",
                false => "",
            };
            let advice = format!("name it with {flag}{or}").into();
            Error::from(PrepareError::NoColumn { path, what, wanted, found, advice })
        };
        let optional = |what, wanted: &Option<String>, usual, flag, needed: bool| {
            let column = find(wanted, usual, None);
            if column.is_none() && (needed || wanted.is_some()) {
                return Err(missing(what, wanted, flag));
            }
            Ok(column)
        };
        let (user, item) = (&options.user_column, &options.item_column);
        Ok(Self {
            user: find(user, USER_NAMES, Some(0))
                .ok_or_else(|| missing("user", user, "--user-column"))?,
            item: find(item, ITEM_NAMES, Some(1))
                .ok_or_else(|| missing("item", item, "--item-column"))?,
            rating: optional(
                "rating",
                &options.rating_column,
                RATING_NAMES,
                "--rating-column",
                needs.rating,
            )?,
            time: optional("time", &options.time_column, TIME_NAMES, "--time-column", needs.time)?,
            split: optional("split", &options.split_column, &[], "--split-column", false)?,
        })
    }
}

/// A column's name in the form that is compared, without RecBole's type after a colon.
fn simplify(name: &str) -> String {
    let name = name.split(':').next().unwrap_or_default();
    name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase()
}

/// What separates the columns of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delimiter {
    /// An ASCII character.
    Character(u8),
    /// `::`, as in the files of MovieLens.
    DoubleColon,
}

impl Delimiter {
    /// The most frequent separator of the first line.
    fn guess(line: &[u8]) -> Self {
        let count = |delimiter: u8| line.iter().filter(|&&byte| byte == delimiter).count();
        // Ties go to the last: tabs are hardly ever part of a field.
        let best = [b' ', b'|', b';', b',', b'\t'].into_iter().max_by_key(|&d| count(d));
        let best = best.filter(|&best| count(best) > 0);
        let double_colons = line.windows(2).filter(|two| two == b"::").count();
        // Two colons are hardly ever part of a field, spaces often are.
        let others = best.filter(|&best| best != b' ').map_or(0, count);
        if double_colons > 0 && double_colons >= others {
            return Self::DoubleColon;
        }
        Self::Character(best.unwrap_or(b','))
    }
}

/// What becomes of `::`: a control character that separates fields; no id has it.
const FIELD_END: u8 = 0x1f;

/// Replaces each `::` by one byte, because the reader of delimited text knows no longer separators.
struct DoubleColons<R> {
    lines: BufReader<R>,
    /// The rest of the current line, last byte first.
    rest: Vec<u8>,
}

impl<R: Read> DoubleColons<R> {
    fn new(bytes: R) -> Self {
        Self { lines: BufReader::new(bytes), rest: Vec::new() }
    }
}

impl<R: Read> Read for DoubleColons<R> {
    fn read(&mut self, target: &mut [u8]) -> std::io::Result<usize> {
        if self.rest.is_empty() {
            let mut line = Vec::new();
            self.lines.read_until(b'\n', &mut line)?;
            let mut bytes = line.into_iter().peekable();
            while let Some(byte) = bytes.next() {
                let is_separator = byte == b':' && bytes.next_if_eq(&b':').is_some();
                self.rest.push(if is_separator { FIELD_END } else { byte });
            }
            self.rest.reverse();
        }
        let count = self.rest.len().min(target.len());
        for byte in &mut target[..count] {
            *byte = self.rest.pop().unwrap_or_default();
        }
        Ok(count)
    }
}

/// What is wrong with a line that ends with the file.
const OPEN_QUOTE: &str = "has a quote that is not closed up to the file's end";

/// What follows a text's last line: a record by itself, or the end of a field whose quote is open. The
/// control character separates records; no id has it.
const END: &str = "\u{1e}";

/// A file that is opened once, because a pipe gives its bytes only once.
struct Source {
    /// The first line, or its beginning: enough to tell the format and the separator.
    head: Vec<u8>,
    rest: BufReader<File>,
}

impl Source {
    /// The longest first line that is looked at as a whole.
    const LONGEST: u64 = 1 << 20;

    fn open(path: &Path) -> Result<Self> {
        let read = || {
            let mut rest = BufReader::new(File::open(path)?);
            let mut head = Vec::new();
            (&mut rest).take(Self::LONGEST).read_until(b'\n', &mut head)?;
            Ok(Self { head, rest })
        };
        read().map_err(|error| Error::io(path, "read", error))
    }

    /// All bytes, and [`END`].
    fn until_end(self) -> impl Read {
        Cursor::new(self.head).chain(self.rest).chain("\n".as_bytes()).chain(END.as_bytes())
    }
}

fn csv_error(path: &Path, error: csv::Error) -> Error {
    let line = error.position().map_or(0, csv::Position::line);
    let problem = error.to_string();
    match error.into_kind() {
        csv::ErrorKind::Io(source) => Error::io(path, "read", source),
        csv::ErrorKind::Utf8 { .. } => {
            let problem = "is not UTF-8; convert the file".to_owned();
            PrepareError::Malformed { path: path.to_owned(), line, problem }.into()
        }
        _ => PrepareError::Malformed { path: path.to_owned(), line, problem }.into(),
    }
}
