//! Interactions in Parquet and Arrow IPC are read like the same table in text.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::types::{Int32Type, TimestampMillisecondType};
use arrow_array::{
    ArrayRef, DictionaryArray, Float32Array, Float64Array, Int64Array, LargeStringArray,
    PrimitiveArray, RecordBatch, StringArray, StringViewArray, UInt8Array,
};
use arrow_ipc::writer::{FileWriter, StreamWriter};
use assert_cmd::cargo::cargo_bin_cmd;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use predicates::prelude::*;
use predicates::str::contains;
use tempfile::TempDir;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn create(&self, name: &str) -> File {
        File::create(self.path(name)).unwrap()
    }

    fn parquet(&self, name: &str, batch: &RecordBatch, compression: Compression) {
        let properties = WriterProperties::builder()
            .set_compression(compression)
            // Forces several row groups and batches.
            .set_max_row_group_row_count(Some(7))
            .build();
        let mut writer =
            ArrowWriter::try_new(self.create(name), batch.schema(), Some(properties)).unwrap();
        writer.write(batch).unwrap();
        writer.close().unwrap();
    }

    fn prepare(&self, table: &str, out: &str, more: &[&str]) -> assert_cmd::Command {
        let mut command = cargo_bin_cmd!("bm3-engine");
        command.env_remove("RUST_LOG").env("CUDA_VISIBLE_DEVICES", "");
        command.args(["prepare", "--interactions", &self.path(table), "--k-core", "0"]);
        command.args(["--out", &self.path(out), "--overwrite", "--name", "d"]).args(more);
        command
    }

    /// The files of a prepared folder.
    fn prepared(&self, table: &str, out: &str, more: &[&str]) -> [String; 3] {
        self.prepare(table, out, more).assert().success();
        ["d.inter", "u_id_mapping.csv", "i_id_mapping.csv"]
            .map(|name| fs::read_to_string(PathBuf::from(self.path(out)).join(name)).unwrap())
    }
}

const ROWS: usize = 20;

fn user(row: usize) -> String {
    format!("ann {}", row % 3)
}

fn item(row: usize) -> i64 {
    (row * 7 % 11) as i64 - 2
}

fn rating(row: usize) -> f64 {
    (row % 5) as f64 + 0.5
}

fn time(row: usize) -> i64 {
    1_600_000_000 + (row * 13 % 17) as i64
}

/// The table as text, and with every kind of column.
fn tables() -> (String, Vec<(&'static str, RecordBatch)>) {
    let mut text = "user_id,noise,item_id,rating,timestamp\n".to_owned();
    for row in 0..ROWS {
        text += &format!("{},x,{},{},{}\n", user(row), item(row), rating(row), time(row));
    }
    let users: Vec<String> = (0..ROWS).map(user).collect();
    let texts = || users.iter().map(|name| Some(name.as_str()));
    let items: Vec<i64> = (0..ROWS).map(item).collect();
    let item_texts: Vec<String> = items.iter().map(i64::to_string).collect();
    let ratings = || (0..ROWS).map(|row| Some(rating(row)));
    let halves: Vec<u8> = (0..ROWS).map(|row| (rating(row) - 0.5) as u8).collect();
    assert!(halves.iter().all(|&half| half < 5));
    let milliseconds: PrimitiveArray<TimestampMillisecondType> =
        (0..ROWS).map(|row| Some(time(row) * 1000)).collect();
    let dates: Vec<String> = (0..ROWS)
        .map(|row| format!("2020-09-13 12:26:{}", time(row) - 1_600_000_000 + 40))
        .collect();
    let dictionary: DictionaryArray<Int32Type> = texts().collect();
    let batch = |user: ArrayRef, item: ArrayRef, rating: ArrayRef, time: ArrayRef| {
        let noise: ArrayRef = Arc::new(StringArray::from(vec!["x"; ROWS]));
        RecordBatch::try_from_iter([
            ("user_id", user),
            ("noise", noise),
            ("item_id", item),
            ("rating", rating),
            ("timestamp", time),
        ])
        .unwrap()
    };
    let seconds = || Arc::new((0..ROWS).map(|row| Some(time(row))).collect::<Int64Array>());
    let tables = vec![
        (
            "plain",
            batch(
                Arc::new(texts().collect::<StringArray>()),
                Arc::new(Int64Array::from(items.clone())),
                Arc::new(ratings().collect::<Float64Array>()),
                seconds(),
            ),
        ),
        (
            "large",
            batch(
                Arc::new(texts().collect::<LargeStringArray>()),
                Arc::new(
                    item_texts.iter().map(|text| Some(text.as_str())).collect::<StringViewArray>(),
                ),
                Arc::new(ratings().map(|x| x.map(|x| x as f32)).collect::<Float32Array>()),
                Arc::new(milliseconds.with_timezone("+00:00")),
            ),
        ),
        (
            "dates as text",
            batch(
                Arc::new(texts().collect::<StringArray>()),
                Arc::new(Int64Array::from(items.clone())),
                Arc::new(ratings().collect::<Float64Array>()),
                Arc::new(
                    dates.iter().map(|date| Some(date.as_str())).collect::<LargeStringArray>(),
                ),
            ),
        ),
        (
            "categories",
            batch(
                Arc::new(dictionary),
                Arc::new(Int64Array::from(items)),
                Arc::new(ratings().collect::<Float64Array>()),
                seconds(),
            ),
        ),
    ];
    (text, tables)
}

#[test]
fn every_form_of_a_table_is_prepared_as_its_text() {
    let folder = Folder::new();
    let (text, tables) = tables();
    fs::write(folder.path("t.csv"), text).unwrap();
    let flags = ["--split-method", "time", "--min-rating", "1"];
    let expected = folder.prepared("t.csv", "text", &flags);
    assert!(expected[1].contains("ann 2\t") && expected[2].contains("-2\t"), "{expected:?}");
    for (name, batch) in &tables {
        for (compression, ending) in [
            (Compression::UNCOMPRESSED, "none"),
            (Compression::SNAPPY, "snappy"),
            (Compression::GZIP(Default::default()), "gzip"),
            (Compression::ZSTD(ZstdLevel::default()), "zstd"),
            (Compression::LZ4_RAW, "lz4"),
        ] {
            let file = format!("{name}.{ending}.parquet");
            folder.parquet(&file, batch, compression);
            assert_eq!(folder.prepared(&file, "parquet", &flags), expected, "{file}");
        }
        let mut file = FileWriter::try_new(folder.create("t.arrow"), &batch.schema()).unwrap();
        let mut stream = StreamWriter::try_new(folder.create("t.arrows"), &batch.schema()).unwrap();
        for start in [0, 9] {
            let part = batch.slice(start, if start == 0 { 9 } else { ROWS - 9 });
            file.write(&part).unwrap();
            stream.write(&part).unwrap();
        }
        file.finish().unwrap();
        stream.finish().unwrap();
        for table in ["t.arrow", "t.arrows"] {
            assert_eq!(folder.prepared(table, "arrow", &flags), expected, "{name} in {table}");
        }
    }
}

#[test]
fn columns_go_by_name_or_number() {
    let folder = Folder::new();
    let (text, tables) = tables();
    fs::write(folder.path("t.csv"), text).unwrap();
    folder.parquet("t.parquet", &tables[0].1, Compression::SNAPPY);
    // Users and items swapped, one column by name, the other by number.
    let flags = ["--user-column", "item_id", "--item-column", "1"];
    assert_eq!(folder.prepared("t.parquet", "a", &flags), folder.prepared("t.csv", "b", &flags));
    let refused = |flags: &[&str], reason: &str| {
        folder.prepare("t.parquet", "no", flags).assert().code(2).stderr(contains(reason));
    };
    refused(&["--user-column", "who"], "no column for the user called `who`; found user_id, noise");
    refused(&["--delimiter", "tab"], "--delimiter: Parquet has columns of its own");
    refused(&["--no-header"], "--no-header: Parquet has names of its own");
}

#[test]
fn recommendations_name_what_the_table_named() {
    let folder = Folder::new();
    folder.parquet("t.parquet", &tables().1[2].1, Compression::SNAPPY);
    folder.prepared("t.parquet", "data", &[]);
    let run = |arguments: &[&str]| {
        let mut command = cargo_bin_cmd!("bm3-engine");
        command.args(arguments).env("CUDA_VISIBLE_DEVICES", "").assert().success()
    };
    let (data, model) = (folder.path("data"), folder.path("run"));
    run(&["train", "--data", &data, "--out", &model, "--epochs", "1", "--quiet"]);
    run(&["recommend", "--model", &model, "--users", "ann 1", "--top-k", "2"])
        .stdout(contains("ann 1,1,"));
}

#[test]
fn what_cannot_be_read_is_named() {
    let folder = Folder::new();
    let write = |name: &str, user: ArrayRef, item: ArrayRef, rating: ArrayRef| {
        let columns = [("user", user), ("item", item), ("rating", rating)];
        let batch = RecordBatch::try_from_iter_with_nullable(
            columns.map(|(name, array)| (name, array, true)),
        )
        .unwrap();
        folder.parquet(name, &batch, Compression::UNCOMPRESSED);
    };
    let refused = |table: &str, flags: &[&str], reason: &str| {
        let assert = folder.prepare(table, "no", flags).assert().code(2);
        assert.stderr(contains(format!("{table}: ")).and(contains(reason)));
    };
    let names = || Arc::new(StringArray::from(vec![Some("a"), None])) as ArrayRef;
    let numbers = || Arc::new(UInt8Array::from(vec![7, 8])) as ArrayRef;
    let names_of = |names: &[&str]| Arc::new(StringArray::from(names.to_vec())) as ArrayRef;
    let floats = || Arc::new(Float64Array::from(vec![1.0, f64::NAN])) as ArrayRef;
    write("null.parquet", names(), numbers(), floats());
    refused("null.parquet", &[], "row 1 (of 0, 1, …): column `user`, the user's, is null");
    write("float.parquet", numbers(), floats(), floats());
    refused(
        "float.parquet",
        &[],
        "column `item`, the item's, is of type Float64; expected text or",
    );
    write("nan.parquet", numbers(), numbers(), floats());
    refused("nan.parquet", &["--min-rating", "0"], "row 1 (of 0, 1, …): column `rating`");
    folder.prepare("nan.parquet", "yes", &[]).assert().success();
    write("words.parquet", numbers(), numbers(), names());
    refused("words.parquet", &["--min-rating", "0"], "the rating's, is of type Utf8");
    folder.prepare("words.parquet", "yes", &[]).assert().success();
    // The split that a column names, as text or as a number.
    let parts = Arc::new(StringArray::from(vec!["train", "test"])) as ArrayRef;
    let labels = Arc::new(UInt8Array::from(vec![0, 2])) as ArrayRef;
    for part in [parts, labels] {
        let columns = [("user", names_of(&["a", "a"])), ("item", numbers()), ("part", part)];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        folder.parquet("parts.parquet", &batch, Compression::UNCOMPRESSED);
        let split = ["--split-column", "part"];
        folder
            .prepare("parts.parquet", "yes", &split)
            .assert()
            .success()
            .stdout(contains("split  1 training, 0 validation, 1 test"));
    }
    let later = "row 0 (of 0, 1, …): column `part`, the split's, is \"x\"; expected 0, 1 or 2, or";
    let columns = [("user", numbers()), ("item", numbers()), ("part", names_of(&["x", "0"]))];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    folder.parquet("later.parquet", &batch, Compression::UNCOMPRESSED);
    refused("later.parquet", &["--split-column", "part"], later);
    let time = Arc::new(StringArray::from(vec![Some("2020-09-13"), Some("soon")]));
    let columns = [("user", numbers()), ("item", numbers()), ("time", time as ArrayRef)];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    folder.parquet("soon.parquet", &batch, Compression::UNCOMPRESSED);
    let soon = "row 1 (of 0, 1, …): column `time`, the time's, is \"soon\"; expected a number, or";
    refused("soon.parquet", &["--split-method", "time"], soon);
    folder.prepare("soon.parquet", "yes", &[]).assert().success();
    let blank = Arc::new(StringArray::from(vec!["a", " "]));
    write("blank.parquet", blank, numbers(), floats());
    refused("blank.parquet", &[], "the user's, is empty; expected an id");
    let empty = Arc::new(StringArray::from(Vec::<&str>::new()));
    let none = RecordBatch::try_from_iter([
        ("user", empty.clone() as ArrayRef),
        ("item", empty as ArrayRef),
    ]);
    folder.parquet("empty.parquet", &none.unwrap(), Compression::UNCOMPRESSED);
    refused("empty.parquet", &[], "is empty");

    let whole = fs::read(folder.path("nan.parquet")).unwrap();
    fs::write(folder.path("cut.parquet"), &whole[..whole.len() - 9]).unwrap();
    refused("cut.parquet", &[], "not whole Parquet (");
    fs::write(folder.path("cut.arrow"), b"ARROW1\0\0").unwrap();
    refused("cut.arrow", &[], "not whole Arrow IPC (");
    fs::write(folder.path("cut.arrows"), [0xff; 9]).unwrap();
    refused("cut.arrows", &[], "not whole Arrow IPC (");
    // The reader panics on this file.
    let beyond = "tests/corrupt/offset-beyond-the-buffer.arrow";
    let beyond = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(beyond);
    fs::copy(beyond, folder.path("beyond.arrow")).unwrap();
    refused("beyond.arrow", &[], "not whole Arrow IPC (the offset of the new Buffer");
}
