//! The made-up data set that benches measure: Baby's shape, or that of BM3_BENCH_SHAPE.

use bm3_engine::data::{Dataset, DatasetOptions};
use bm3_engine::synth::{self, Shape, SynthOptions};

/// The data set, and the folder that holds its files while it is used.
pub fn dataset() -> (tempfile::TempDir, Dataset) {
    let shape = match std::env::var("BM3_BENCH_SHAPE") {
        Ok(name) => name.parse().expect("a shape's name"),
        Err(_) => Shape::Baby,
    };
    let directory = tempfile::tempdir().expect("a temporary folder");
    let options = SynthOptions::new(shape, 1);
    synth::generate(&options, directory.path(), &mut |_, _, _| {}).expect("a made-up data set");
    let dataset = Dataset::open(directory.path(), &DatasetOptions::default()).expect("our own");
    (directory, dataset)
}
