//! Seeded data sets of known sizes with a structure that can be learned.
//!
//! Every item belongs to a topic and has a latent vector near its topic's; its raw features are
//! projections of that vector, with noise. Every user likes a few topics and picks items by
//! popularity × liking. So interactions and features tell about the same thing, as in real sets,
//! and a model that learns ranks far above popularity.

mod features;
mod interactions;

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::str::FromStr;

use crate::data::{FeatureType, NpyElement, NpyWriter};
use crate::philox::{Purpose, Stream};
use crate::{Error, Result, files};

/// The number of topics that items belong to: more in larger sets, with more items in each.
fn topics(items: usize) -> usize {
    ((items as f64).sqrt() / 2.5).round().max(3.0) as usize
}

/// A data set's sizes by name; all but `tiny` are those of the Amazon sets of the literature.
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
    /// U.
    pub users: usize,
    /// I.
    pub items: usize,
    /// Training, validation and test pairs.
    pub pairs: [usize; 3],
    /// D of the image features.
    pub image: usize,
    /// D of the text features.
    pub text: usize,
}

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

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SynthOptions {
    /// The sizes.
    pub shape: Shape,
    /// Keys every draw.
    pub seed: u64,
    /// The type of the features: f16 or f32.
    pub feature_type: FeatureType,
    /// Replaces files that are there already.
    pub overwrite: bool,
}

/// Where the random draws of a data set come from: each kind of draw has a tensor number.
fn stream(seed: u64, tensor: u32) -> Stream {
    Stream::new(seed, Purpose::Synthetic, 0, tensor)
}

/// Writes a data set into `directory`: `NAME.inter`, `image_feat.npy` and `text_feat.npy`.
///
/// The same options give the same bytes, on any number of threads. `progress` is told what is
/// being written, and how many of how many items are done.
///
/// # Errors
/// [`Error::Setting`] when files are there already and `overwrite` is not set, or for another
/// feature type; [`Error::Io`] when writing fails.
pub fn generate(
    options: &SynthOptions,
    directory: &Path,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Sizes> {
    let sizes = options.shape.sizes();
    let element = match options.feature_type {
        FeatureType::F16 => NpyElement::F16,
        FeatureType::F32 => NpyElement::F32,
        other @ (FeatureType::Bf16 | FeatureType::F64) => {
            let problem = format!("`{other}` found, `f32` or `f16` expected");
            return Err(Error::setting("--feature-type", problem));
        }
    };
    let inter = directory.join(format!("{}.inter", options.shape));
    let modalities = [
        (directory.join("image_feat.npy"), features::Kind::Image, sizes.image),
        (directory.join("text_feat.npy"), features::Kind::Text, sizes.text),
    ];
    if !options.overwrite {
        let paths = modalities.iter().map(|(path, ..)| path).chain([&inter]);
        files::refuse_existing(paths)?;
    }
    std::fs::create_dir_all(directory).map_err(|error| Error::io(directory, "create", error))?;
    let items = features::ItemLatents::new(options.seed, sizes.items);
    for (path, kind, columns) in &modalities {
        let wrong = |error| Error::io(path, "write", error);
        files::write_atomic(path, |writer| {
            let mut npy = NpyWriter::new(writer, element, sizes.items, *columns).map_err(wrong)?;
            items.write(*kind, *columns, |block, done| {
                progress(kind.name(), done, sizes.items);
                npy.write_f32(block).map_err(wrong)
            })?;
            npy.finish().map(|_| ()).map_err(wrong)
        })?;
    }
    progress("interactions", 0, sizes.items);
    let rows = interactions::draw(options.seed, &sizes, items.topics());
    // Last, so that a folder without it is seen to be unfinished.
    files::write_atomic(&inter, |writer| {
        let wrong = |error| Error::io(&inter, "write", error);
        writeln!(writer, "userID\titemID\trating\ttimestamp\tx_label").map_err(wrong)?;
        for (number, row) in rows.iter().enumerate() {
            writeln!(writer, "{}\t{}\t5.0\t{number}\t{}", row.user, row.item, row.label)
                .map_err(wrong)?;
        }
        Ok(())
    })?;
    progress("interactions", sizes.items, sizes.items);
    Ok(sizes)
}
