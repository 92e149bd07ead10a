//! Settings that are more than a number, each read from one word of a flag or a file.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::data::{MODALITY_NAMES, is_modality_name};

/// Where to compute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// GPU 0 if it can be used, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number, and nothing else.
    Gpu(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            // As in PyTorch.
            "cuda" => Ok(Self::Gpu(0)),
            _ => {
                let number = text.strip_prefix("cuda:").unwrap_or(text);
                number.parse().map(Self::Gpu).map_err(|_| {
                    format!("`{text}` found, `cpu`, `auto` or a GPU's number expected")
                })
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Auto => formatter.write_str("auto"),
            Self::Cpu => formatter.write_str("cpu"),
            Self::Gpu(number) => number.fmt(formatter),
        }
    }
}

impl Serialize for DeviceChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A modality's name becomes part of tensor names (`modality.NAME.weight`) and of loss terms.
pub(super) fn check_modality_name(name: &str) -> Result<(), String> {
    if is_modality_name(name) {
        return Ok(());
    }
    Err(format!("`{name}` is not a modality's name: {MODALITY_NAMES} expected"))
}

/// Which of the data set's modalities to use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ModalityChoice {
    /// All of the data set's modalities.
    #[default]
    All,
    /// These and no others; an empty list is a model without modalities.
    Only(Vec<String>),
}

impl ModalityChoice {
    /// The names, or `None` for all.
    pub fn names(&self) -> Option<&[String]> {
        match self {
            Self::All => None,
            Self::Only(names) => Some(names),
        }
    }

    /// A choice of these names.
    ///
    /// # Errors
    /// A name that is not allowed, or is repeated.
    pub(super) fn only(names: Vec<String>) -> Result<Self, String> {
        for (position, name) in names.iter().enumerate() {
            check_modality_name(name)?;
            if names[..position].contains(name) {
                return Err(format!("`{name}` is there twice"));
            }
        }
        Ok(Self::Only(names))
    }
}

impl FromStr for ModalityChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            "none" => Ok(Self::Only(Vec::new())),
            names => Self::only(names.split(',').map(|name| name.trim().to_owned()).collect()),
        }
    }
}

impl Serialize for ModalityChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_str("all"),
            Self::Only(names) => names.serialize(serializer),
        }
    }
}

/// A number of bytes: a number alone, or with a unit as in `900MB`, `1.5GB` or `2GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(
    /// Bytes.
    pub u64,
);

impl ByteSize {
    /// The units of a size, and their bytes.
    const UNITS: [(&'static str, u64); 9] = [
        ("TB", 1_000_000_000_000),
        ("GB", 1_000_000_000),
        ("MB", 1_000_000),
        ("kB", 1000),
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
        ("B", 1),
    ];
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected =
            || format!("`{text}` found, a size in bytes expected, as in 8GB, 1.5GB or 900MB");
        let end = text.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = (&text[..end], text[end..].trim());
        let named = Self::UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
        let bytes = match (unit, named) {
            ("", _) => 1,
            (_, Some(&(_, bytes))) => bytes,
            (_, None) => return Err(expected()),
        };
        // Whole numbers are exact to the last byte, which a double could not hold.
        let size = match number.parse::<u64>() {
            Ok(whole) => whole.checked_mul(bytes),
            Err(_) => {
                let size = number.parse::<f64>().map_err(|_| expected())? * bytes as f64;
                (size < u64::MAX as f64).then_some(size as u64)
            }
        };
        size.filter(|&size| size > 0).map(Self).ok_or_else(expected)
    }
}

impl fmt::Display for ByteSize {
    /// In the largest decimal unit that divides it, else in bytes.
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let decimal = Self::UNITS.iter().take(4).find(|(_, bytes)| self.0.is_multiple_of(*bytes));
        match decimal {
            Some((unit, bytes)) => write!(formatter, "{}{unit}", self.0 / bytes),
            None => self.0.fmt(formatter),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The shares of the interactions that go to training, validation and test.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SplitRatio {
    /// Greater than 0.
    pub train: f64,
    /// At least 0.
    pub valid: f64,
    /// At least 0.
    pub test: f64,
}

impl SplitRatio {
    /// Three shares that add up to 1.
    ///
    /// # Errors
    /// A message with the problem.
    pub fn new(shares: &[f64]) -> Result<Self, String> {
        let &[train, valid, test] = shares else {
            return Err(format!(
                "{} shares found, three expected (training, validation, test), as in 0.8,0.1,0.1",
                shares.len()
            ));
        };
        let sum = train + valid + test;
        let in_range = train > 0.0 && valid >= 0.0 && test >= 0.0;
        // Also refuses NaN. Decimal shares rarely add up to 1 exactly.
        if !(in_range && (sum - 1.0).abs() <= 1e-6) {
            return Err(format!(
                "{train},{valid},{test} found, three shares that add up to 1 expected, the first \
                 one greater than 0, as in 0.8,0.1,0.1"
            ));
        }
        Ok(Self { train, valid, test })
    }
}

impl FromStr for SplitRatio {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shares = text
            .split(',')
            .map(|share| share.trim().parse::<f64>())
            .collect::<Result<Vec<f64>, _>>()
            .map_err(|_| format!("`{text}` found, three numbers expected, as in 0.8,0.1,0.1"))?;
        Self::new(&shares)
    }
}

impl fmt::Display for SplitRatio {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "{},{},{}", self.train, self.valid, self.test)
    }
}

impl Serialize for SplitRatio {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        [self.train, self.valid, self.test].serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_a_word_or_a_number() {
        for text in ["auto", "cpu", "0", "7"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        for (text, number) in [("cuda", 0), ("cuda:0", 0), ("cuda:3", 3)] {
            assert_eq!(text.parse(), Ok(DeviceChoice::Gpu(number)));
        }
        for text in ["gpu", "-1", "", "CPU", "cuda:", "cuda:x"] {
            assert!(text.parse::<DeviceChoice>().unwrap_err().contains("`cpu`, `auto`"), "{text}");
        }
    }

    #[test]
    fn modalities_are_all_none_or_named() {
        assert_eq!("all".parse(), Ok(ModalityChoice::All));
        assert_eq!("none".parse(), Ok(ModalityChoice::Only(vec![])));
        let named: ModalityChoice = "image, text".parse().unwrap();
        assert_eq!(named.names().unwrap(), ["image", "text"]);
        assert!("a,a".parse::<ModalityChoice>().unwrap_err().contains("twice"));
        assert!("a,".parse::<ModalityChoice>().unwrap_err().contains("not a modality's name"));
    }

    #[test]
    fn a_size_is_a_number_of_bytes_or_of_a_unit() {
        for (text, bytes) in [
            ("1", 1),
            ("900MB", 900_000_000),
            ("900 mb", 900_000_000),
            ("1.5GB", 1_500_000_000),
            ("0.001kB", 1),
            ("2GiB", 2 << 30),
            ("3KiB", 3072),
            ("18446744073709551615", u64::MAX),
            ("18446744073709551615B", u64::MAX),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!(size, ByteSize(bytes), "{text}");
            assert_eq!(size.to_string().parse(), Ok(size), "{text}");
        }
        assert_eq!(ByteSize(1_500_000_000).to_string(), "1500MB");
        assert_eq!(ByteSize(1 << 30).to_string(), "1073741824");
        for text in
            ["", "0", "0.4", "GB", "-1", "1e9", "1.2.3GB", "8 G", "nan", "20000000TB", "1GBps"]
        {
            let problem = text.parse::<ByteSize>().unwrap_err();
            assert!(problem.ends_with("as in 8GB, 1.5GB or 900MB"), "{text}: {problem}");
        }
    }

    #[test]
    fn the_shares_of_a_split_make_one() {
        let ratio: SplitRatio = "0.8, 0.1,0.1".parse().unwrap();
        assert_eq!(ratio, SplitRatio { train: 0.8, valid: 0.1, test: 0.1 });
        assert_eq!(ratio.to_string(), "0.8,0.1,0.1");
        for text in ["0.8,0.2", "0.8,0.1,0.2", "0,0.5,0.5", "1.1,-0.1,0", "nan,0,1", "a,b,c", ""] {
            text.parse::<SplitRatio>().unwrap_err();
        }
    }
}
