//! Hostile files: whatever a file says, reading it ends, never panics, blames the input, and takes
//! no more memory than a multiple of the file's length. See README.md in this folder.
#![cfg(unix)]

mod allocator;
mod harness;
mod models;
mod mutate;

use std::path::Path;

use bm3_engine::Error;
use bm3_engine::config::{ConfigFile, RunConfig};
use bm3_engine::data::{Dataset, DatasetOptions, FeatureFile, FeatureMatrix, read_interactions};
use harness::{Outcome, Target, alone, fuzz, workshop};
use mutate::Format;

#[global_allocator]
static ALLOCATOR: allocator::Counting = allocator::Counting;

const KILOBYTE: usize = 1 << 10;
const MEGABYTE: usize = 1 << 20;

/// Requires good and bad inputs: otherwise they do not exercise the target.
fn assert_both(outcome: &Outcome) {
    assert!((1..outcome.inputs).contains(&outcome.accepted), "{outcome:?}");
}

/// Reads a table in every possible way.
fn read_table(files: &[FeatureFile]) -> Result<(), Error> {
    let matrix = FeatureMatrix::open_all(files)?;
    matrix.check_finite(matrix.rows())?;
    for row in [0, matrix.rows() / 2, matrix.rows() - 1] {
        let mut single = vec![0.0f32; matrix.columns()];
        matrix.copy_row(row, 0..matrix.columns(), &mut single);
        let mut double = [0.0f64];
        matrix.copy_row(row, matrix.columns() - 1..matrix.columns(), &mut double);
        assert!(double[0].is_finite());
        assert!(matrix.row_f32(row).is_none_or(|stored| stored == single));
    }
    Ok(())
}

#[test]
fn npy() {
    assert_both(&fuzz(
        &alone(),
        Target {
            name: "npy",
            ending: ".npy",
            format: Format::Npy,
            dictionary: &[
                "'descr'",
                "'fortran_order'",
                "'shape'",
                "'<f4'",
                "'>f8'",
                "'<f2'",
                "'|f4'",
                "True",
                "False",
                "(",
                ")",
                ", ",
                ": ",
                "{",
                "}",
                "L",
                "\"",
                "'",
                "[('a', '<f4')]",
                "\\x93NUMPY",
                "\u{1}\u{0}",
                "\u{2}\u{0}",
                "\u{3}\u{0}",
                "é",
                "(0, 1)",
                "(1,)",
                "(1, 0)",
            ],
            peak: (8, 64 * KILOBYTE),
            share: 1,
            seeds: Vec::new(),
            read: &mut |path| read_table(&[FeatureFile::new(path), FeatureFile::new(path)]),
        },
    ));
}

#[test]
fn safetensors() {
    assert_both(&fuzz(
        &alone(),
        Target {
            name: "safetensors",
            ending: ".safetensors",
            format: Format::Safetensors,
            dictionary: &[
                "\"dtype\":",
                "\"shape\":",
                "\"data_offsets\":",
                "\"__metadata__\":",
                "\"F32\"",
                "\"F16\"",
                "\"BF16\"",
                "\"F64\"",
                "\"F4\"",
                "\"I64\"",
                "[0,0]",
                "[1,2]",
                "[",
                "]",
                "{",
                "}",
                ",",
                ":",
                "\"image\"",
                "\"",
                "\\u0000",
                "\\ud800",
                "null",
                "é",
            ],
            peak: (64, 256 * KILOBYTE),
            share: 1,
            seeds: Vec::new(),
            read: &mut |path| {
                let file = FeatureFile::new(path);
                let named = FeatureFile { tensor: Some("image".to_owned()), ..file.clone() };
                read_table(&[named]).or_else(|_| read_table(&[file]))
            },
        },
    ));
}

const INTER_WORDS: &[&str] = &[
    "userID",
    "itemID",
    "x_label",
    "rating",
    "\t",
    "\n",
    "\r\n",
    "\u{feff}",
    ":token",
    "0",
    "1",
    "2",
    "-",
    "+",
    ".",
    " ",
    "\0",
    "2147483647",
    "10000000",
];

#[test]
fn inter() {
    assert_both(&fuzz(
        &alone(),
        Target {
            name: "inter",
            ending: ".inter",
            format: Format::Text,
            dictionary: INTER_WORDS,
            peak: (64, 64 * KILOBYTE),
            share: 1,
            seeds: Vec::new(),
            read: &mut |path| {
                let rows = read_interactions(path)?;
                assert_eq!(rows.users.len(), rows.items.len());
                assert!(rows.labels.is_none_or(|labels| labels.len() == rows.users.len()));
                Ok(())
            },
        },
    ));
}

/// Ids may be far larger than the number of lines. The constant covers the tables of the ten
/// million ids that are always allowed.
#[test]
fn data_set() {
    assert_both(&fuzz(
        &alone(),
        Target {
            name: "inter",
            ending: ".inter",
            format: Format::Text,
            dictionary: INTER_WORDS,
            peak: (8 * KILOBYTE, 128 * MEGABYTE),
            share: 50,
            seeds: Vec::new(),
            read: &mut |path| {
                let folder = path.parent().expect("a file lies in a folder");
                let dataset = Dataset::open(folder, &DatasetOptions::default())?;
                let pairs = dataset.valid.offsets.last().zip(dataset.test.offsets.last());
                assert_eq!(pairs, Some((&dataset.valid.items.len(), &dataset.test.items.len())));
                dataset.interactions_fingerprint();
                Ok(())
            },
        },
    ));
}

const SETTING_WORDS: &[&str] = &[
    "embedding_size",
    "n_layers",
    "layers",
    "features",
    "modalities",
    "split",
    "top_k",
    "topk",
    "learning_rate_scheduler",
    "data",
    "data_path",
    "dataset",
    "use_gpu",
    "gpu_id",
    "device",
    "stopping_step",
    "seed",
    "init",
    "out",
    "propagation",
    "gcn",
    "=",
    ":",
    ": ",
    "\n",
    "\n  ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    "[[",
    "]]",
    "\"",
    "'",
    "'''",
    "\"\"\"",
    "#",
    "|",
    ">",
    "&a ",
    "*a",
    "<<: ",
    "!!binary ",
    "!!int ",
    "---\n",
    "...\n",
    "%YAML 1.2\n",
    "? ",
    "null",
    "~",
    "true",
    "yes",
    "0x10",
    "0o7",
    ".inf",
    ".nan",
    "1979-05-27T07:32:00Z",
    "\\u0000",
    "\t",
    "é",
    "a.b",
];

/// Accepted settings are saved with a run, and must read back unchanged.
fn read_settings(path: &Path, kept: &Path) -> Result<(), Error> {
    let file = ConfigFile::read(path)?;
    let patterns = ['*', '?', '['];
    // What a pattern matches depends on the machine.
    let matches = |file: &FeatureFile| file.path.to_string_lossy().contains(patterns);
    if file.run.features.iter().any(|source| source.files.iter().any(matches)) {
        return Ok(());
    }
    let config = RunConfig::new(&file.train, &file.run)?;
    config.write(kept)?;
    assert!(RunConfig::read(kept)? == config, "a setting was lost");
    Ok(())
}

fn settings(name: &'static str, ending: &'static str, peak: (usize, usize)) {
    let folder = workshop();
    let kept = folder.path().join("kept.toml");
    assert_both(&fuzz(
        &alone(),
        Target {
            name,
            ending,
            format: Format::Text,
            dictionary: SETTING_WORDS,
            peak,
            share: 1,
            seeds: Vec::new(),
            read: &mut |path| read_settings(path, &kept),
        },
    ));
}

#[test]
fn toml() {
    settings("toml", ".toml", (512, MEGABYTE));
}

#[test]
fn yaml() {
    settings("yaml", ".yaml", (512, 4 * MEGABYTE));
}

#[test]
#[should_panic(expected = "it panics")]
fn a_panic_is_noticed() {
    planted(&mut |path| {
        assert!(std::fs::read(path).unwrap_or_default().first() == Some(&b'u'));
        Ok(())
    });
}

#[test]
#[should_panic(expected = "bytes at a time for")]
fn an_allocation_is_noticed() {
    planted(&mut |_| {
        std::hint::black_box(vec![0u8; MEGABYTE]);
        Ok(())
    });
}

#[test]
#[should_panic(expected = "blamed on the machine")]
fn a_wrong_blame_is_noticed() {
    planted(&mut |path| Err(Error::io(path, "read", std::io::ErrorKind::StorageFull.into())));
}

/// A target with a planted bug.
fn planted(read: &mut dyn FnMut(&Path) -> Result<(), Error>) {
    fuzz(
        &alone(),
        Target {
            name: "inter",
            ending: ".planted",
            format: Format::Text,
            dictionary: INTER_WORDS,
            peak: (64, 64 * KILOBYTE),
            share: 1,
            seeds: Vec::new(),
            read,
        },
    );
}
