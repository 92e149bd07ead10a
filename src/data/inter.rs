//! `.inter` files: tab-separated interactions with a header (SPEC §8).

use std::path::Path;

use rayon::prelude::*;

use super::error::{DataError, excerpt};
use crate::mapped::MappedFile;

/// The largest id accepted; tables have one row for every id up to the largest.
pub const LARGEST_ID: u32 = (1 << 31) - 1;

/// Ids above this many times the number of lines, plus [`SPARE_IDS`], are not taken for counts from
/// 0.
const IDS_PER_LINE: usize = 1000;
const SPARE_IDS: usize = 10_000_000;

/// Bytes that one task parses.
const CHUNK: usize = 1 << 20;

/// The rows of an `.inter` file, in its order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interactions {
    /// `userID` of each row.
    pub users: Vec<u32>,
    /// `itemID` of each row.
    pub items: Vec<u32>,
    /// `x_label` of each row (0 train, 1 valid, 2 test), if the file has that column.
    pub labels: Option<Vec<u8>>,
}

/// The positions of the columns we read.
#[derive(Clone, Copy)]
struct Columns {
    user: usize,
    item: usize,
    label: Option<usize>,
}

/// Reads a file, in parallel from a memory map.
///
/// # Errors
/// The first malformed line in file order, or the problem of the file as a whole.
pub fn read(path: &Path) -> Result<Interactions, DataError> {
    let file = MappedFile::open(path).map_err(|error| DataError::read(path, error))?;
    if file.is_empty() {
        return Err(DataError::NoHeader { path: path.to_owned() });
    }
    let interactions = parse(&file, path, CHUNK)?;
    match file.is_unchanged() {
        true => Ok(interactions),
        false => Err(DataError::Changed { path: path.to_owned() }),
    }
}

/// [`read`] for bytes in memory, cut into chunks of about `chunk` bytes.
fn parse(bytes: &[u8], path: &Path, chunk: usize) -> Result<Interactions, DataError> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let header_end = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
    let columns = header(&bytes[..header_end], path)?;
    let body = bytes.get(header_end + 1..).unwrap_or_default();
    let chunks = cut(body, chunk);
    let parsed: Vec<Result<Interactions, LineError>> =
        chunks.par_iter().map(|chunk| parse_lines(chunk, columns)).collect();
    let mut all = Interactions { labels: columns.label.map(|_| Vec::new()), ..Default::default() };
    // The header is line 1.
    let mut lines = 1;
    for (result, chunk) in parsed.into_iter().zip(&chunks) {
        let part = result.map_err(|error| error.place(path, lines))?;
        all.users.extend(part.users);
        all.items.extend(part.items);
        if let (Some(labels), Some(part)) = (&mut all.labels, part.labels) {
            labels.extend(part);
        }
        lines += chunk.iter().filter(|&&byte| byte == b'\n').count();
    }
    check_sizes(&all, body, path)?;
    Ok(all)
}

fn header(line: &[u8], path: &Path) -> Result<Columns, DataError> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    // RecBole writes the type after the name: `userID:token`.
    let names: Vec<&[u8]> = line
        .split(|&byte| byte == b'\t')
        .map(|name| name.split(|&byte| byte == b':').next().unwrap_or_default().trim_ascii())
        .collect();
    if !line.contains(&b'\t') && line.iter().any(|byte| b",;| ".contains(byte)) {
        return Err(DataError::NoTabs { path: path.to_owned(), found: excerpt(line) });
    }
    let find = |wanted: &[u8]| names.iter().position(|name| *name == wanted);
    let require = |column: &'static str| {
        find(column.as_bytes()).ok_or_else(|| DataError::MissingColumn {
            path: path.to_owned(),
            column,
            found: names.iter().map(|name| excerpt(name)).collect::<Vec<_>>().join(", "),
        })
    };
    Ok(Columns { user: require("userID")?, item: require("itemID")?, label: find(b"x_label") })
}

/// Cuts at line ends, about every `size` bytes.
fn cut(body: &[u8], size: usize) -> Vec<&[u8]> {
    let mut chunks = Vec::new();
    let mut rest = body;
    while rest.len() > size {
        let Some(end) = rest[size..].iter().position(|&byte| byte == b'\n') else { break };
        let (chunk, tail) = rest.split_at(size + end + 1);
        chunks.push(chunk);
        rest = tail;
    }
    if !rest.is_empty() {
        chunks.push(rest);
    }
    chunks
}

/// The problem of a line, which is counted from the start of its chunk.
struct LineError {
    line: usize,
    kind: LineErrorKind,
}

enum LineErrorKind {
    Short { found: usize, expected: usize },
    Id { column: &'static str, found: String },
    Label { found: String },
}

impl LineError {
    fn place(self, path: &Path, lines_before: usize) -> DataError {
        let (path, line) = (path.to_owned(), lines_before + self.line);
        match self.kind {
            LineErrorKind::Short { found, expected } => {
                DataError::ShortLine { path, line, found, expected }
            }
            LineErrorKind::Id { column, found } => DataError::BadId { path, line, column, found },
            LineErrorKind::Label { found } => DataError::BadLabel { path, line, found },
        }
    }
}

fn parse_lines(chunk: &[u8], columns: Columns) -> Result<Interactions, LineError> {
    let mut rows = Interactions { labels: columns.label.map(|_| Vec::new()), ..Default::default() };
    let last = columns.user.max(columns.item).max(columns.label.unwrap_or(0));
    for (number, line) in chunk.split(|&byte| byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let wrong = |kind| LineError { line: number + 1, kind };
        let mut fields = [None; 3];
        let mut count = 0;
        for (index, field) in line.split(|&byte| byte == b'\t').enumerate().take(last + 1) {
            count = index + 1;
            for (slot, column) in
                fields.iter_mut().zip([Some(columns.user), Some(columns.item), columns.label])
            {
                if column == Some(index) {
                    *slot = Some(field);
                }
            }
        }
        let short = || wrong(LineErrorKind::Short { found: count, expected: last + 1 });
        let id = |field: Option<&[u8]>, column: &'static str| {
            let field = field.ok_or_else(short)?;
            parse_id(field)
                .ok_or_else(|| wrong(LineErrorKind::Id { column, found: excerpt(field) }))
        };
        rows.users.push(id(fields[0], "userID")?);
        rows.items.push(id(fields[1], "itemID")?);
        if let Some(labels) = &mut rows.labels {
            let field = fields[2].ok_or_else(short)?;
            match field {
                [label @ b'0'..=b'2'] => labels.push(label - b'0'),
                _ => return Err(wrong(LineErrorKind::Label { found: excerpt(field) })),
            }
        }
    }
    Ok(rows)
}

fn parse_id(field: &[u8]) -> Option<u32> {
    if field.is_empty() || field.len() > 20 {
        return None;
    }
    let mut id = 0u64;
    for &byte in field {
        if !byte.is_ascii_digit() {
            return None;
        }
        id = id.saturating_mul(10).saturating_add(u64::from(byte - b'0'));
    }
    u32::try_from(id).ok().filter(|&id| id <= LARGEST_ID)
}

/// Whether an id is far beyond what this many interactions can need.
pub(super) fn absurd_id(id: u32, interactions: usize) -> bool {
    id as usize > interactions.saturating_mul(IDS_PER_LINE).saturating_add(SPARE_IDS)
}

/// Refuses ids that would make tables absurdly larger than the data.
fn check_sizes(rows: &Interactions, body: &[u8], path: &Path) -> Result<(), DataError> {
    let lines = rows.users.len();
    for (ids, column) in [(&rows.users, "userID"), (&rows.items, "itemID")] {
        if let Some(row) = ids.iter().position(|&id| absurd_id(id, lines)) {
            let (line, found) = (line_of(row, body), ids[row]);
            return Err(DataError::AbsurdId { path: path.to_owned(), line, column, found, lines });
        }
    }
    Ok(())
}

/// The line of a row; empty lines are not rows.
fn line_of(row: usize, body: &[u8]) -> usize {
    let is_row = |line: &[u8]| !line.strip_suffix(b"\r").unwrap_or(line).is_empty();
    let mut lines = body.split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| is_row(line));
    // The header is line 1.
    lines.nth(row).map_or(row, |(number, _)| number) + 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However it is cut into chunks, a file reads as the rows it was written from.
        #[test]
        fn chunks_do_not_matter(
            rows in prop::collection::vec((0u32..5000, 0u32..300, 0u8..3), 0..60),
            chunk in 1usize..200, windows: bool, last_newline: bool
        ) {
            let end = if windows { "\r\n" } else { "\n" };
            let mut text = format!("rating\titemID\tx_label\tuserID{end}");
            for (user, item, label) in &rows {
                text += &format!("1.0\t{item}\t{label}\t{user}{end}");
            }
            let text = if last_newline { &text[..] } else { text.trim_end() };
            let found = parse(text.as_bytes(), Path::new("x.inter"), chunk).unwrap();
            let expected = Interactions {
                users: rows.iter().map(|row| row.0).collect(),
                items: rows.iter().map(|row| row.1).collect(),
                labels: Some(rows.iter().map(|row| row.2).collect()),
            };
            prop_assert_eq!(found, expected);
        }

        /// The first bad line is reported, whatever the chunks.
        #[test]
        fn the_first_bad_line_is_named(bad in 0usize..20, chunk in 1usize..100) {
            let mut text = "userID\titemID\n".to_owned();
            for row in 0..40 {
                text += if row == bad || row == 30 { "x\t1\n" } else { "1\t1\n" };
            }
            let error = parse(text.as_bytes(), Path::new("x.inter"), chunk).unwrap_err();
            let expected = format!("x.inter: line {}: userID is \"x\"", bad + 2);
            prop_assert!(error.to_string().starts_with(&expected));
        }

        /// An absurd id is reported with its line, whichever lines are empty.
        #[test]
        fn an_absurd_id_is_found_in_its_line(
            rows in prop::collection::vec(0usize..3, 1..20), windows: bool, at: prop::sample::Index
        ) {
            let end = if windows { "\r\n" } else { "\n" };
            let bad = at.index(rows.len());
            let (mut text, mut line) = (format!("userID\titemID{end}"), 1);
            for (row, empty) in rows.iter().enumerate() {
                text += &end.repeat(*empty);
                text += if row == bad { "0\t2000000000" } else { "0\t1" };
                text += end;
                line += if row <= bad { empty + 1 } else { 0 };
            }
            let error = parse(text.as_bytes(), Path::new("x.inter"), 16).unwrap_err().to_string();
            let expected = format!("x.inter: line {line}: itemID is 2000000000, far beyond");
            prop_assert!(error.starts_with(&expected), "{}", error);
        }

        /// No bytes make the parser panic.
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let text = [b"userID\titemID\tx_label\n".as_slice(), &bytes].concat();
            let _ = parse(&text, Path::new("x"), 16);
            let _ = parse(&bytes, Path::new("x"), 16);
        }
    }
}
