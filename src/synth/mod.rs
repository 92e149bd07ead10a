//! Seeded data sets of known sizes, with a structure that can be learned.
//!
//! Every item belongs to a topic and has a latent vector near its topic's; its raw features are
//! projections of that vector, with noise. Every user likes a few topics and picks items by
//! popularity × liking. So interactions and features agree, as in real sets, and a model that
//! learns ranks far better than popularity.

mod features;
mod interactions;

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::data::{Earlier, FeatureType, NpyElement, NpyWriter};
use crate::files::{self, Together};
use crate::philox::{Purpose, Stream};
use crate::{Error, Result};

/// The number of topics: larger sets have more topics, with more items in each.
fn topics(items: usize) -> usize {
    ((items as f64).sqrt() / 2.5).round().max(3.0) as usize
}

/// A data set's sizes by name; all but `tiny` are those of the Amazon sets in the literature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Trains in seconds.
    Tiny,
    /// Amazon Baby.
    Baby,
    /// Amazon Sports.
    Sports,
    /// Amazon Electronics.
    Electronics,
}

/// The exact sizes of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// U, the number of users.
    pub users: usize,
    /// I, the number of items.
    pub items: usize,
    /// Training, validation and test pairs.
    pub pairs: [usize; 3],
    /// D of the image features; 0 for none.
    pub image: usize,
    /// D of the text features; 0 for none.
    pub text: usize,
}

impl Sizes {
    /// Refuses sizes that cannot be generated: every user needs two training pairs, every item one
    /// and room for as many again, and no user has more than a quarter of the items.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the flag of the first size out of bounds, and the bounds.
    pub fn check(&self) -> Result<()> {
        let [train, valid, test] = self.pairs;
        let refuse = |flag: &str, found: usize, bounds: String| {
            Err(Error::setting(flag, format!("{found} found, {bounds}")))
        };
        let sizes = [("--users", self.users), ("--items", self.items)];
        for (flag, size) in sizes {
            if !(1..=MOST_NODES).contains(&size) {
                return refuse(flag, size, format!("1 to {MOST_NODES} expected"));
            }
        }
        for (flag, columns) in [("--image", self.image), ("--text", self.text)] {
            if columns > MOST_COLUMNS {
                return refuse(flag, columns, format!("0 to {MOST_COLUMNS} expected"));
            }
        }
        let least = (LEAST_TRAINING * self.users).max(2 * self.items);
        let most = self.users.saturating_mul(interactions::most_training(self.items));
        if !(least..=most).contains(&train) {
            return refuse(
                "--interactions",
                train + valid + test,
                format!(
                    "of which {train} are for training; with {} users and {} items those must be \
                     {least} to {most}",
                    self.users, self.items
                ),
            );
        }
        if valid > train / 2 || test > train / 2 {
            let bounds = "at most half as many as training pairs expected".to_owned();
            return refuse("--interactions", valid.max(test), bounds);
        }
        Ok(())
    }
}

/// The most users, and the most items: ids have 32 bits, and so has their sum.
const MOST_NODES: usize = 1 << 30;

/// The widest features.
const MOST_COLUMNS: usize = 1 << 20;

/// The fewest training pairs of a user.
const LEAST_TRAINING: usize = 2;

impl Shape {
    /// All shapes.
    pub const ALL: [Self; 4] = [Self::Tiny, Self::Baby, Self::Sports, Self::Electronics];

    /// Its sizes.
    pub fn sizes(self) -> Sizes {
        let (users, items, pairs, image, text) = match self {
            Self::Tiny => (300, 200, [5_000, 600, 700], 64, 32),
            Self::Baby => (19_445, 7_050, [118_551, 20_559, 21_682], 4096, 384),
            Self::Sports => (35_598, 18_357, [218_409, 37_899, 40_029], 4096, 384),
            Self::Electronics => (192_403, 63_001, [1_254_441, 211_800, 222_947], 4096, 384),
        };
        Sizes { users, items, pairs, image, text }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Baby => "baby",
            Self::Sports => "sports",
            Self::Electronics => "electronics",
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|shape| shape.name() == text).ok_or_else(|| {
            format!("`{text}` found, `tiny`, `baby`, `sports` or `electronics` expected")
        })
    }
}

/// What to generate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SynthOptions {
    /// The name of the data set.
    pub name: String,
    /// The sizes.
    pub sizes: Sizes,
    /// The key of every draw.
    pub seed: u64,
    /// The type of the features: f16 or f32.
    pub feature_type: FeatureType,
    /// Whether to replace an existing data set and all of its files.
    pub overwrite: bool,
}

impl SynthOptions {
    /// A data set of a known shape, with features in f32.
    pub fn new(shape: Shape, seed: u64) -> Self {
        Self {
            name: shape.to_string(),
            sizes: shape.sizes(),
            seed,
            feature_type: FeatureType::F32,
            overwrite: false,
        }
    }
}

/// The random stream of one kind of draw; each kind has a tensor number.
fn stream(seed: u64, tensor: u32) -> Stream {
    Stream::new(seed, Purpose::Synthetic, 0, tensor)
}

/// Writes a data set into `directory`: `NAME.inter`, and `image_feat.npy` and `text_feat.npy` if
/// their widths are not 0.
///
/// The same options give the same bytes on any number of threads. `progress` receives what is being
/// written, the number of items done and the number of all items.
///
/// # Errors
/// [`Error::Setting`] for impossible sizes, for another feature type, or when files exist and
/// `overwrite` is not set; [`Error::Io`] when writing fails.
pub fn generate(
    options: &SynthOptions,
    directory: &Path,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Sizes> {
    let sizes = options.sizes;
    sizes.check()?;
    let element = match options.feature_type {
        FeatureType::F16 => NpyElement::F16,
        FeatureType::F32 => NpyElement::F32,
        other @ (FeatureType::Bf16 | FeatureType::F64) => {
            let problem = format!("`{other}` found, `f32` or `f16` expected");
            return Err(Error::setting("--feature-type", problem));
        }
    };
    let inter = format!("{}.inter", options.name);
    let modalities = [
        ("image_feat.npy", features::Kind::Image, sizes.image),
        ("text_feat.npy", features::Kind::Text, sizes.text),
    ];
    let modalities = modalities.iter().filter(|(.., columns)| *columns > 0);
    // The interactions last: a folder without them is known to be unfinished.
    let names = modalities.clone().map(|(name, ..)| *name).chain([&*inter]);
    let written: Vec<PathBuf> = names.map(|name| directory.join(name)).collect();
    let written: Vec<&Path> = written.iter().map(|path| &**path).collect();
    let earlier = Earlier::find(directory, &written, &[], options.overwrite)?;
    let items = features::ItemLatents::new(options.seed, sizes.items);
    let new = Together::begin(directory)?;
    new.write(|folder| {
        for (name, kind, columns) in modalities {
            let path = folder.join(name);
            let wrong = |error| Error::io(&path, "write", error);
            files::write_atomic(&path, |writer| {
                let npy = NpyWriter::new(writer, element, sizes.items, *columns);
                let mut npy = npy.map_err(wrong)?;
                items.write(*kind, *columns, |block, done| {
                    progress(kind.name(), done, sizes.items);
                    npy.write_f32(block).map_err(wrong)
                })?;
                npy.finish().map(|_| ()).map_err(wrong)
            })?;
        }
        progress("interactions", 0, sizes.items);
        let rows = interactions::draw(options.seed, &sizes, items.topics());
        write_interactions(&folder.join(&inter), &rows)
    })?;
    earlier.replace(new, &written)?;
    progress("interactions", sizes.items, sizes.items);
    Ok(sizes)
}

fn write_interactions(path: &Path, rows: &[interactions::Row]) -> Result<()> {
    files::write_atomic(path, |writer| {
        let wrong = |error| Error::io(path, "write", error);
        writeln!(writer, "userID\titemID\trating\ttimestamp\tx_label").map_err(wrong)?;
        for (number, row) in rows.iter().enumerate() {
            writeln!(writer, "{}\t{}\t5.0\t{number}\t{}", row.user, row.item, row.label)
                .map_err(wrong)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Dataset, DatasetOptions};

    #[test]
    fn other_sizes_are_made_exactly_or_refused() {
        let sizes = Sizes { users: 70, items: 90, pairs: [400, 60, 50], image: 0, text: 8 };
        let folder = tempfile::tempdir().unwrap();
        let mut options = SynthOptions { sizes, ..SynthOptions::new(Shape::Tiny, 3) };
        // Features of a larger set, other interactions, and another set's ids.
        let older = ["image_feat.npy", "audio_feat.npy", "other.inter", "u_id_mapping.csv"];
        for name in older {
            std::fs::write(folder.path().join(name), "older").unwrap();
        }
        let mut silent = |_: &str, _: usize, _: usize| ();
        assert!(generate(&options, folder.path(), &mut silent).is_err());
        options.overwrite = true;
        generate(&options, folder.path(), &mut silent).unwrap();
        assert!(older.iter().all(|name| !folder.path().join(name).exists()));
        let dataset = Dataset::open(folder.path(), &DatasetOptions::default()).unwrap();
        let found =
            [dataset.train.users.len(), dataset.valid.items.len(), dataset.test.items.len()];
        assert_eq!((dataset.users, dataset.items, found), (70, 90, [400, 60, 50]));
        assert_eq!(dataset.modalities.len(), 1);

        for (flag, wrong) in [
            ("--users", Sizes { users: 0, ..sizes }),
            ("--items", Sizes { items: usize::MAX, ..sizes }),
            ("--text", Sizes { text: usize::MAX, ..sizes }),
            // Two per user, two per item, and at most a quarter of the items.
            ("--interactions", Sizes { users: 201, ..sizes }),
            ("--interactions", Sizes { items: 201, ..sizes }),
            ("--interactions", Sizes { pairs: [70 * 22 + 1, 60, 50], ..sizes }),
            ("--interactions", Sizes { pairs: [400, 201, 50], ..sizes }),
        ] {
            let error = wrong.check().unwrap_err().to_string();
            assert!(error.contains(flag), "{error}");
        }
        for shape in Shape::ALL {
            shape.sizes().check().unwrap();
        }
    }
}
