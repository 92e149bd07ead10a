//! The header of a `.npy` file (format versions 1.0, 2.0 and 3.0).
//!
//! A header is a Python dictionary of three known keys in ASCII, and this reads nothing else. (npyz
//! reads elements through a reader and gives no view of a map.)

use std::path::Path;

use super::error::{DataError, excerpt};
use super::features::{FeatureType, Form};

const MAGIC: &[u8] = b"\x93NUMPY";

/// Longer headers are refused: three keys need about a hundred bytes.
const LONGEST_HEADER: usize = 1 << 16;

/// Reads the header of a whole file and checks the file's length against it.
///
/// # Errors
/// The problem of the header, or of the file's length.
pub fn parse(file: &[u8], path: &Path) -> Result<Form, DataError> {
    let broken =
        |problem: &str| DataError::NpyHeader { path: path.to_owned(), problem: problem.to_owned() };
    let rest = file.strip_prefix(MAGIC).ok_or_else(|| {
        broken("it does not begin with the bytes \\x93NUMPY; save it with numpy.save")
    })?;
    let (version, length_size) = match rest {
        [1, 0, ..] => (1, 2),
        [2 | 3, 0, ..] => (2, 4),
        [major, minor, ..] => {
            return Err(broken(&format!(
                "its format version is {major}.{minor}; expected 1.0, 2.0 or 3.0"
            )));
        }
        _ => return Err(broken("it ends within its header")),
    };
    let words = rest.get(2..2 + length_size).ok_or_else(|| broken("it ends within its header"))?;
    let text_length = match version {
        1 => usize::from(u16::from_le_bytes([words[0], words[1]])),
        _ => u32::from_le_bytes([words[0], words[1], words[2], words[3]]) as usize,
    };
    if text_length > LONGEST_HEADER {
        return Err(broken(&format!("its header claims {text_length} bytes")));
    }
    let start = MAGIC.len() + 2 + length_size;
    let length = start + text_length;
    let text = file.get(start..length).ok_or_else(|| broken("it ends within its header"))?;
    let dictionary = Dictionary::parse(text)
        .ok_or_else(|| broken(&format!("its header is {}", excerpt(text))))?;
    let (dtype, big_endian) = dtype(&dictionary.descr).ok_or_else(|| DataError::NpyType {
        path: path.to_owned(),
        found: excerpt(dictionary.descr.as_bytes()),
    })?;
    let [rows, columns] = dictionary.shape[..] else {
        return Err(DataError::NpyRank { path: path.to_owned(), found: dictionary.shape });
    };
    if columns == 0 {
        return Err(broken("it has no columns; expected one feature at least"));
    }
    // Without rows, the number of columns could be anything.
    if rows == 0 {
        return Err(broken("it has no rows; expected one item at least"));
    }
    let expected = (u128::from(rows) * u128::from(columns)).saturating_mul(dtype.size() as u128);
    let found = (file.len() - length) as u64;
    if u128::from(found) != expected {
        let (path, element) = (path.to_owned(), dtype.size());
        return Err(DataError::NpyLength { path, found, expected, rows, columns, element });
    }
    // The elements are there, so both dimensions fit the address space.
    let size = |dimension: u64| {
        usize::try_from(dimension).map_err(|_| broken("a dimension exceeds this machine's"))
    };
    Ok(Form {
        start: length,
        rows: size(rows)?,
        columns: size(columns)?,
        dtype,
        big_endian,
        fortran: dictionary.fortran_order,
    })
}

fn dtype(descr: &str) -> Option<(FeatureType, bool)> {
    let (order, kind) = descr.split_at_checked(1)?;
    let big_endian = match order {
        "<" => false,
        ">" => true,
        "=" | "|" => cfg!(target_endian = "big"),
        _ => return None,
    };
    let dtype = match kind {
        "f2" => FeatureType::F16,
        "f4" => FeatureType::F32,
        "f8" => FeatureType::F64,
        _ => return None,
    };
    Some((dtype, big_endian))
}

#[derive(Default)]
struct Dictionary {
    descr: String,
    fortran_order: bool,
    shape: Vec<u64>,
}

impl Dictionary {
    /// `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`, the keys in any order.
    fn parse(text: &[u8]) -> Option<Self> {
        let mut scanner = Scanner { rest: std::str::from_utf8(text).ok()? };
        let mut dictionary = Self::default();
        let mut seen = [false; 3];
        scanner.take("{")?;
        while scanner.take("}").is_none() {
            let key = scanner.string()?;
            scanner.take(":")?;
            let index = match key {
                "descr" => {
                    dictionary.descr = scanner.descr()?.to_owned();
                    0
                }
                "fortran_order" => {
                    dictionary.fortran_order = match scanner.take("True") {
                        Some(()) => true,
                        None => scanner.take("False").map(|()| false)?,
                    };
                    1
                }
                "shape" => {
                    dictionary.shape = scanner.tuple()?;
                    2
                }
                _ => return None,
            };
            if std::mem::replace(&mut seen[index], true) {
                return None;
            }
            if scanner.take(",").is_none() {
                scanner.take("}")?;
                break;
            }
        }
        (seen == [true; 3] && scanner.rest.trim().is_empty()).then_some(dictionary)
    }
}

struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    fn take(&mut self, token: &str) -> Option<()> {
        self.rest = self.rest.trim_start().strip_prefix(token)?;
        Some(())
    }

    fn string(&mut self) -> Option<&'a str> {
        let text = self.rest.trim_start();
        let quote = text.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
        let (string, rest) = text[1..].split_once(quote)?;
        self.rest = rest;
        Some(string)
    }

    /// A type: a string, or a structured type's list of fields.
    fn descr(&mut self) -> Option<&'a str> {
        let text = self.rest.trim_start();
        if !text.starts_with('[') {
            return self.string();
        }
        let end = text.find(']')? + 1;
        self.rest = &text[end..];
        Some(&text[..end])
    }

    fn tuple(&mut self) -> Option<Vec<u64>> {
        self.take("(")?;
        let mut numbers = Vec::new();
        while self.take(")").is_none() {
            let text = self.rest.trim_start();
            let end = text.find(|character: char| !character.is_ascii_digit())?;
            numbers.push(text[..end].parse().ok()?);
            self.rest = &text[end..];
            // Python 2 wrote long integers as 12L.
            let _ = self.take("L");
            if self.take(",").is_none() {
                self.take(")")?;
                break;
            }
        }
        Some(numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(file: &[u8]) -> Result<Form, String> {
        super::parse(file, Path::new("x.npy")).map_err(|error| error.to_string())
    }

    fn file(dictionary: &str, data: usize) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([1, 0]);
        bytes.extend((dictionary.len() as u16).to_le_bytes());
        bytes.extend(dictionary.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    #[test]
    fn reads_what_numpy_and_others_write() {
        let header = parse(&file(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }          \n",
            48,
        ))
        .unwrap();
        assert_eq!((header.rows, header.columns, header.fortran), (3, 4, false));
        let header =
            parse(&file("{\"shape\":(2L,1L),\"fortran_order\":True,\"descr\":\">f8\"}", 16))
                .unwrap();
        assert_eq!((header.rows, header.columns, header.fortran), (2, 1, true));
        assert_eq!((header.dtype, header.big_endian), (FeatureType::F64, true));
    }

    #[test]
    fn says_what_is_wrong() {
        let good = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }\n";
        for (file, problem) in [
            (b"hello".to_vec(), "does not begin with"),
            (file(good, 48)[..9].to_vec(), "ends within its header"),
            (file(good, 48)[..40].to_vec(), "ends within its header"),
            (file(good, 47), "truncated: 47 bytes after the header; a 3 × 4 array of 4 bytes"),
            (file(good, 49), "too long: 49 bytes"),
            (file("{'descr': '<i8', 'fortran_order': False, 'shape': (3, 4)}", 96), "\"<i8\""),
            (
                file("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3, 4)}", 48),
                "[('a', '<f4')]",
            ),
            (file("{'descr': '<f4', 'fortran_order': False, 'shape': (12,)}", 48), "1 dimension "),
            (file("{'descr': '<f4', 'fortran_order': False}", 48), "its header is"),
            (
                file(
                    "{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999, 9999999999)}",
                    4,
                ),
                "truncated",
            ),
        ] {
            let found = parse(&file).unwrap_err();
            assert!(found.contains(problem), "{found:?} does not say {problem:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let _ = parse(&bytes);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let _ = parse(&file(&text, 8));
        }

        #[test]
        fn any_dictionary_is_survived(text in r"\{['a-z_: <>f48(),0-9TrueFals\[\]]{0,60}\}?") {
            let _ = parse(&file(&text, 8));
        }
    }
}
