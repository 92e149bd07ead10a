//! Mutations that keep most of an input's structure.

/// SplitMix64: the same draws from the same seed, everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number from 0 to below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub fn choose<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    /// A range within `length`, mostly short.
    fn span(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        let longest = if self.one_in(8) { length } else { 16 };
        start..length.min(start + self.below(longest + 1))
    }
}

/// How a file divides into a description and the data it describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// All of it is text.
    Text,
    /// Magic and version, two or four bytes of length, a dictionary of that length, elements.
    Npy,
    /// Eight bytes of length, JSON of that length, elements.
    Safetensors,
}

impl Format {
    /// The bytes before the length, the description, and the rest.
    fn split(self, file: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
        let (prefix, width) = match self {
            Self::Text => return Some((&[], file, &[])),
            Self::Npy => (8, if file.get(6)? == &1 { 2 } else { 4 }),
            Self::Safetensors => (0, 8),
        };
        let length = file.get(prefix..prefix + width)?;
        let length = length.iter().rev().fold(0, |length, &byte| length << 8 | usize::from(byte));
        let start = prefix + width;
        let description = file.get(start..start.checked_add(length)?)?;
        Some((&file[..prefix], description, &file[start + length..]))
    }

    fn join(self, prefix: &[u8], description: &[u8], rest: &[u8]) -> Vec<u8> {
        let width = match self {
            Self::Text => 0,
            Self::Npy if prefix.get(6) == Some(&1) => 2,
            Self::Npy => 4,
            Self::Safetensors => 8,
        };
        let length = &(description.len() as u64).to_le_bytes()[..width];
        [prefix, length, description, rest].concat()
    }
}

/// Longer inputs are cut.
const LONGEST: usize = 1 << 14;

const NUMBERS: &[&str] = &[
    "0",
    "1",
    "2",
    "3",
    "4",
    "5",
    "7",
    "8",
    "63",
    "64",
    "65",
    "-1",
    "-0",
    "00",
    "255",
    "256",
    "65535",
    "65536",
    "1000000",
    "9999999",
    "16777217",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "100000000000000000000000000000",
    "1e9",
    "1e308",
    "1e999",
    "0.1",
    "-1e-400",
    "nan",
    "inf",
    "0x10",
    "1_000",
];

const WORDS: &[u64] = &[
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    0x7fff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    1 << 40,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 8,
    u64::MAX,
];

/// A mutated copy of one of `seeds`.
pub fn mutate(
    random: &mut Random,
    seeds: &[Vec<u8>],
    format: Format,
    dictionary: &[&str],
) -> Vec<u8> {
    let seed = random.choose(seeds);
    let parts = format.split(seed).filter(|_| !random.one_in(4));
    let mut file = match parts {
        None => {
            let mut file = seed.clone();
            change(random, &mut file, seeds, dictionary);
            file
        }
        Some((prefix, description, rest)) => {
            let (mut description, mut rest) = (description.to_vec(), rest.to_vec());
            change(random, &mut description, seeds, dictionary);
            if random.one_in(8) {
                change(random, &mut rest, seeds, dictionary);
            }
            format.join(prefix, &description, &rest)
        }
    };
    file.truncate(LONGEST);
    file
}

fn change(random: &mut Random, bytes: &mut Vec<u8>, seeds: &[Vec<u8>], dictionary: &[&str]) {
    loop {
        change_once(random, bytes, seeds, dictionary);
        bytes.truncate(2 * LONGEST);
        if random.one_in(2) {
            return;
        }
    }
}

fn change_once(random: &mut Random, bytes: &mut Vec<u8>, seeds: &[Vec<u8>], dictionary: &[&str]) {
    let length = bytes.len();
    match random.below(12) {
        0 if length > 0 => bytes[random.below(length)] ^= 1 << random.below(8),
        1 if length > 0 => bytes[random.below(length)] = random.next() as u8,
        2 => drop(bytes.drain(random.span(length))),
        3 => {
            let copied = bytes[random.span(length)].to_vec();
            let place = random.below(length + 1);
            bytes.splice(place..place, copied);
        }
        4 => {
            let place = random.below(length + 1);
            bytes.splice(place..place, random.choose(dictionary).bytes());
        }
        5 => drop(bytes.splice(random.span(length), random.choose(dictionary).bytes())),
        6 | 7 => replace_number(random, bytes),
        8 => {
            let other = random.choose(seeds);
            bytes.truncate(random.below(length + 1));
            bytes.extend(&other[random.below(other.len() + 1)..]);
        }
        9 => bytes.truncate(random.below(length + 1)),
        10 => {
            let span = random.span(length);
            let repeated = bytes[span.clone()].repeat(1 + random.below(200));
            bytes.splice(span, repeated.into_iter().take(LONGEST));
        }
        _ => {
            let word = random.choose(WORDS).to_le_bytes();
            let place = random.below(length + 1);
            let width = (1usize << random.below(4)).min(length - place);
            bytes[place..place + width].copy_from_slice(&word[..width]);
        }
    }
}

/// Replaces a number in the text by another one.
fn replace_number(random: &mut Random, bytes: &mut Vec<u8>) {
    let start = random.below(bytes.len() + 1);
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    let Some(first) = bytes[start..].iter().position(is_digit).map(|found| start + found) else {
        return;
    };
    let first = bytes[..first].iter().rposition(|byte| !is_digit(byte)).map_or(0, |end| end + 1);
    let last = bytes[first..].iter().position(|byte| !is_digit(byte));
    let last = last.map_or(bytes.len(), |length| first + length);
    bytes.splice(first..last, random.choose(NUMBERS).bytes());
}
