//! Features in several files and in safetensors files: what is read, the error for each mistake,
//! and that a run repeats from its saved settings.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::cargo::cargo_bin_cmd;
use bm3_engine::data::{
    Dataset, DatasetOptions, FeatureFile, FeatureMatrix, FeatureType, NpyElement, NpyWriter,
};
use half::{bf16, f16};
use predicates::prelude::*;
use predicates::str::contains;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

const COLUMNS: usize = 3;

fn values(rows: usize) -> Vec<f32> {
    (0..rows * COLUMNS).map(|index| index as f32 / 4.0 - 2.0).collect()
}

fn write_npy(path: &Path, columns: usize, values: &[f32], element: NpyElement) {
    let rows = values.len() / columns;
    let mut writer = NpyWriter::new(Vec::new(), element, rows, columns).unwrap();
    writer.write_f32(values).unwrap();
    fs::write(path, writer.finish().unwrap()).unwrap();
}

fn write_tensors(path: &Path, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn bytes_of(values: &[f32], dtype: Dtype) -> Vec<u8> {
    let encode = |&value: &f32| match dtype {
        Dtype::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::F32 => value.to_le_bytes().to_vec(),
        _ => f64::from(value).to_le_bytes().to_vec(),
    };
    values.iter().flat_map(encode).collect()
}

fn all_of(matrix: &FeatureMatrix) -> Vec<f32> {
    let mut all = vec![0.0; matrix.rows() * matrix.columns()];
    for (row, out) in all.chunks_mut(matrix.columns()).enumerate() {
        matrix.copy_row(row, 0..matrix.columns(), out);
        if let Some(stored) = matrix.row_f32(row) {
            assert_eq!(stored, out);
        }
    }
    all
}

/// A table of 10 rows in three files of different kinds, and its values.
struct Shards {
    folder: TempDir,
    values: Vec<f32>,
}

impl Shards {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let values = values(10);
        let path = |name: &str| folder.path().join(name);
        write_npy(&path("a.npy"), COLUMNS, &values[..4 * COLUMNS], NpyElement::F32);
        let bytes = bytes_of(&values[4 * COLUMNS..5 * COLUMNS], Dtype::F32);
        write_tensors(&path("b.safetensors"), &[("only", Dtype::F32, vec![1, COLUMNS], bytes)]);
        write_npy(&path("c.npy"), COLUMNS, &values[5 * COLUMNS..], NpyElement::F32);
        Self { folder, values }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn files(&self, names: &[&str]) -> Vec<FeatureFile> {
        names.iter().map(|name| FeatureFile::parse(self.path(name).to_str().unwrap())).collect()
    }

    fn open(&self, names: &[&str]) -> Result<FeatureMatrix, String> {
        FeatureMatrix::open_all(&self.files(names)).map_err(|error| {
            assert!(error.is_input(), "{error} is the user's to mend");
            error.to_string()
        })
    }

    #[track_caller]
    fn refused(&self, names: &[&str], parts: &[&str]) {
        let error = self.open(names).unwrap_err();
        for part in parts {
            assert!(error.contains(part), "{error:?} does not say {part:?}");
        }
    }
}

#[test]
fn the_rows_of_several_files_are_one_table() {
    let shards = Shards::new();
    let matrix = shards.open(&["a.npy", "b.safetensors", "c.npy"]).unwrap();
    assert_eq!((matrix.rows(), matrix.columns(), matrix.bytes()), (10, COLUMNS, 120));
    assert_eq!(all_of(&matrix), shards.values);
    matrix.check_finite(10).unwrap();
    assert!(matrix.place().ends_with("a.npy and 2 files more"));
    assert!(matrix.place_of(4).ends_with("b.safetensors (rows 4 to 4)"));
    assert!(matrix.place_of(9).ends_with("c.npy (rows 5 to 9)"));
}

#[test]
fn files_that_do_not_go_together_are_named() {
    let shards = Shards::new();
    write_npy(&shards.path("wide.npy"), 2, &[0.0; 4], NpyElement::F32);
    shards.refused(&["a.npy", "wide.npy"], &["wide.npy: has 2 columns", "a.npy", "has 3 columns"]);
    write_npy(&shards.path("half.npy"), COLUMNS, &[0.0; 6], NpyElement::F16);
    shards.refused(&["a.npy", "half.npy"], &["half.npy: has numbers of type f16", "of type f32"]);
    shards.refused(&["a.npy", "missing.npy"], &["missing.npy: cannot read"]);
    shards.refused(&[], &["no file of features"]);

    let mut bad = shards.values[5 * COLUMNS..].to_vec();
    bad[4] = f32::NAN;
    write_npy(&shards.path("c.npy"), COLUMNS, &bad, NpyElement::F32);
    let matrix = shards.open(&["a.npy", "b.safetensors", "c.npy"]).unwrap();
    matrix.check_finite(6).unwrap();
    let error = matrix.check_finite(10).unwrap_err().to_string();
    assert!(error.contains("c.npy (rows 5 to 9): row 6, column 1 is NaN"), "{error}");
}

#[test]
fn every_type_of_a_tensor_is_read() {
    let shards = Shards::new();
    for (dtype, expected) in [
        (Dtype::F16, FeatureType::F16),
        (Dtype::BF16, FeatureType::Bf16),
        (Dtype::F32, FeatureType::F32),
        (Dtype::F64, FeatureType::F64),
    ] {
        let bytes = bytes_of(&shards.values, dtype);
        let other = ("bias", Dtype::F32, vec![2], vec![0; 8]);
        let tensors = [("table", dtype, vec![10, COLUMNS], bytes), other];
        write_tensors(&shards.path("t.safetensors"), &tensors);
        for name in ["t.safetensors", "t.safetensors:table"] {
            let matrix = shards.open(&[name]).unwrap();
            assert_eq!(matrix.dtype(), expected);
            assert_eq!(all_of(&matrix), shards.values);
            let mut doubles = [0.0f64; 2];
            matrix.copy_row(7, 1..3, &mut doubles);
            assert_eq!(doubles.map(|value| value as f32), shards.values[22..24]);
        }
    }
}

#[test]
fn mistakes_in_a_safetensors_file_say_what_it_has() {
    let shards = Shards::new();
    let file = shards.path("t.safetensors");
    let table = |name: &'static str| (name, Dtype::F32, vec![1, 2], vec![0; 8]);
    write_tensors(&file, &[table("image"), table("text")]);
    shards.refused(&["t.safetensors"], &["t.safetensors: has several", "(image, text)"]);
    shards.open(&["t.safetensors:text"]).unwrap();
    shards.refused(&["t.safetensors:audio"], &["no tensor `audio`; it has image, text"]);
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    shards.refused(&["t.safetensors:text"], &["t.safetensors: not a whole safetensors file"]);
    write_tensors(&file, &[("bias", Dtype::F32, vec![2], vec![0; 8])]);
    shards.refused(&["t.safetensors"], &["no tensor of two dimensions", "its tensors: bias"]);
    shards.refused(&["t.safetensors:bias"], &["`bias` is of shape [2]", "two dimensions"]);
    write_tensors(&file, &[("ids", Dtype::I64, vec![1, 2], vec![0; 16])]);
    shards.refused(&["t.safetensors"], &["`ids` is of type I64", "F16, BF16, F32 or F64"]);
    write_tensors(&file, &[("none", Dtype::F32, vec![3, 0], vec![])]);
    shards.refused(&["t.safetensors"], &["shape [3, 0]", "one column at least"]);
    write_tensors(&file, &[]);
    shards.refused(&["t.safetensors"], &["its tensors: none"]);
}

#[test]
fn the_fingerprint_is_of_the_rows_and_not_of_the_files() {
    let shards = Shards::new();
    write_npy(&shards.path("all.npy"), COLUMNS, &shards.values, NpyElement::F32);
    let data = tempfile::tempdir().unwrap();
    let lines: String = (0..10).map(|item| format!("0\t{item}\t0\n")).collect();
    fs::write(data.path().join("d.inter"), format!("userID\titemID\tx_label\n{lines}")).unwrap();
    let fingerprint = |names: &[&str]| {
        let features = vec![("image".to_owned(), shards.files(names))];
        let options = DatasetOptions { features, ..DatasetOptions::default() };
        Dataset::open(data.path(), &options).unwrap().features_fingerprints()
    };
    let whole = fingerprint(&["all.npy"]);
    assert_eq!(fingerprint(&["a.npy", "b.safetensors", "c.npy"]), whole);
    assert_ne!(fingerprint(&["c.npy", "b.safetensors", "a.npy"]), whole);

    let features = vec![("image".to_owned(), shards.files(&["a.npy", "b.safetensors"]))];
    let options = DatasetOptions { features, ..DatasetOptions::default() };
    let error = Dataset::open(data.path(), &options).unwrap_err().to_string();
    assert!(error.contains("a.npy and 1 file more: has 5 rows"), "{error}");
}

fn program(arguments: &[&str]) -> assert_cmd::Command {
    let mut command = cargo_bin_cmd!("bm3-engine");
    command.args(arguments).env_remove("RUST_LOG").env("CUDA_VISIBLE_DEVICES", "");
    command
}

/// A tiny data set whose image features are cut into twelve files of one modality.
#[test]
fn a_run_on_several_files_is_the_run_on_one_and_repeats() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    program(&["synth", "--shape", "tiny", "--out", &path("tiny")]).assert().success();
    let whole = FeatureMatrix::open(Path::new(&path("tiny/image_feat.npy"))).unwrap();
    let columns = whole.columns();
    let rows = all_of(&whole);
    let part_rows = whole.rows().div_ceil(12);
    for (number, part) in rows.chunks(part_rows * columns).enumerate() {
        if number == 3 {
            let bytes = bytes_of(part, Dtype::F32);
            let shape = vec![part.len() / columns, columns];
            let file = path("image-3.safetensors");
            write_tensors(Path::new(&file), &[("image", Dtype::F32, shape, bytes)]);
        } else {
            write_npy(
                Path::new(&path(&format!("image-{number}.npy"))),
                columns,
                part,
                NpyElement::F32,
            );
        }
    }
    let train = |out: &str, more: &[&str]| {
        let out = path(out);
        let mut command = program(&["train", "--out", &out, "--quiet"]);
        command.args(["--epochs", "2", "--freeze-features"]).args(more).assert().success();
        fs::read(Path::new(&out).join("model.safetensors")).unwrap()
    };
    let data = path("tiny");
    let one = train("one", &["--data", &data]);
    let pattern = format!("image={}", path("image-*"));
    assert!(train("many", &["--data", &data, "--feature", &pattern]) == one);
    let kept = fs::read_to_string(path("many/config.toml")).unwrap();
    let listed: Vec<usize> =
        (0..12).map(|number| kept.find(&format!("/image-{number}.")).unwrap()).collect();
    assert!(listed.is_sorted(), "{kept}");

    // A file that the pattern would match now is not part of the run.
    write_npy(Path::new(&path("image-0-late.npy")), columns, &rows[..columns], NpyElement::F32);
    assert!(train("again", &["--config", &path("many/config.toml")]) == one);

    let arguments = ["train", "--data", &data, "--out", &path("no")];
    let refused = |feature: &str, reason: &str| {
        program(&arguments).args(["--feature", feature]).assert().code(2).stderr(contains(reason));
    };
    refused(&format!("image={}", path("none-*.npy")), "matches no file");
    refused(
        &format!("image={}", path("image-3.safetensors:text")),
        "no tensor `text`; it has image",
    );
    refused("image=a.npy,", "file without a name");
}

#[test]
fn prepare_takes_several_files_and_their_ids() {
    let shards = Shards::new();
    let path = |name: &str| shards.path(name).to_str().unwrap().to_owned();
    let table: String = (0..10).rev().map(|item| format!("u,item {item}\n")).collect();
    fs::write(path("t.csv"), format!("user,item\n{table}")).unwrap();
    let ids = |items: std::ops::Range<usize>| -> String {
        items.map(|item| format!("item {item}\n")).collect()
    };
    fs::write(path("ids-0.txt"), ids(0..4)).unwrap();
    fs::write(path("ids-1.txt"), ids(4..10)).unwrap();
    let files = [path("a.npy"), path("b.safetensors:only"), path("c.npy")].join(",");
    let prepare = |ids: &str| {
        let mut command = program(&["prepare", "--interactions", &path("t.csv"), "--k-core", "0"]);
        command.args(["--feature", &format!("image={files}"), "--feature-ids", ids]);
        command.args(["--out", &path("out"), "--overwrite"]);
        command
    };
    prepare(&format!("image={}", path("ids-*.txt"))).assert().success();
    let written = FeatureMatrix::open(&shards.path("out/image_feat.npy")).unwrap();
    let reversed: Vec<f32> = shards.values.chunks(COLUMNS).rev().flatten().copied().collect();
    assert_eq!(all_of(&written), reversed);
    prepare(&format!("image={}", path("ids-0.txt"))).assert().code(2).stderr(
        contains("ids-0.txt: 4 items are named").and(contains("2 files more: has 10 rows")),
    );
    fs::write(path("ids-1.txt"), ids(3..9)).unwrap();
    prepare(&format!("image={}", path("ids-*.txt")))
        .assert()
        .code(2)
        .stderr(contains("ids-1.txt: line 1: item \"item 3\" is there twice"));
}
