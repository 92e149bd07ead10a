//! `similar` and `export` through the program, without the data folder, in every form, with the
//! library's numbers.

use std::fs;
use std::path::Path;

use assert_cmd::cargo::cargo_bin_cmd;
use bm3_engine::data::{FeatureMatrix, IdMaps};
use bm3_engine::{Dataset, Model, Recommender, TrainConfig, Trainer};
use predicates::str::contains;

fn program(arguments: &[&str]) -> assert_cmd::Command {
    let mut command = cargo_bin_cmd!("bm3-engine");
    // Hides any GPU, so that the program uses the CPU on every machine.
    command.args(arguments).env_remove("RUST_LOG").env("CUDA_VISIBLE_DEVICES", "");
    command
}

fn output(arguments: &[&str]) -> String {
    let assert = program(arguments).assert().success();
    String::from_utf8(assert.get_output().stdout.clone()).unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A trained run without its data folder.
fn run(folder: &Path) -> String {
    let (data, run) = (folder.join("tiny"), folder.join("run"));
    output(&["synth", "--shape", "tiny", "--out", path(&data)]);
    output(&["train", "--data", path(&data), "--out", path(&run), "--epochs", "5", "--quiet"]);
    fs::remove_dir_all(data).unwrap();
    path(&run).to_owned()
}

fn table(text: &str) -> Vec<Vec<&str>> {
    text.lines().skip(1).map(|line| line.split(',').collect()).collect()
}

#[test]
fn a_run_serves_without_its_data() {
    let directory = tempfile::tempdir().unwrap();
    let run = run(directory.path());
    let recommender = Recommender::new(Model::load(Path::new(&run)).unwrap()).unwrap();

    let lists = output(&["recommend", "--model", &run, "--top-k", "6", "--scores"]);
    let rows = table(&lists);
    assert_eq!(rows.len(), 6 * recommender.model().users());
    for (user, rows) in rows.chunks(6).enumerate() {
        for (row, found) in rows.iter().zip(recommender.top_k(user as u32, 6).unwrap()) {
            assert_eq!((row[0], row[2]), (&*user.to_string(), &*found.item.to_string()));
            assert_eq!(row[3].parse::<f64>().unwrap(), f64::from(found.score));
        }
    }
    let similar =
        output(&["similar", "--model", &run, "--items", "7,3", "--top-k", "4", "--scores"]);
    assert_eq!(similar.lines().next(), Some("item,rank,similar,score"));
    for (item, rows) in [7, 3].into_iter().zip(table(&similar).chunks(4)) {
        for (row, found) in rows.iter().zip(recommender.similar_items(item, 4).unwrap()) {
            assert_eq!((row[0], row[2]), (&*item.to_string(), &*found.item.to_string()));
            assert_eq!(row[3].parse::<f64>().unwrap(), f64::from(found.score));
        }
    }
    let json = directory.path().join("s.jsonl");
    output(&["similar", "--model", &run, "--items", "7", "--top-k", "4", "--out", path(&json)]);
    let line: serde_json::Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    assert_eq!((line["item"].as_u64(), line["similar"].as_array().unwrap().len()), (Some(7), 4));

    let refused = |arguments: &[&str], problem: &str| {
        program(arguments).args(["--model", &run]).assert().code(2).stderr(contains(problem));
    };
    refused(&["similar", "--items", "100000"], "--items: `100000` found, a number from 0 to");
    refused(&["recommend", "--users", "x"], "--users: `x` found");
    let moved = "tiny, which the settings of the run name, is not there; name the folder";
    refused(&["evaluate"], moved);
    let alone = directory.path().join("alone.safetensors");
    fs::copy(Path::new(&run).join("model.safetensors"), &alone).unwrap();
    program(&["evaluate", "--model", path(&alone)])
        .assert()
        .code(2)
        .stderr(contains("--data: not given, and "))
        .stderr(contains("is in no run's directory"));
    // All items of this set have interactions, so nothing changes.
    assert_eq!(
        output(&["recommend", "--model", &run, "--top-k", "6", "--scores", "--cold-items"]),
        lists
    );
}

/// The program accepts a run that the library trained on data in memory.
#[test]
fn runs_of_the_library_are_runs() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let dataset = Dataset::builder("made").train(&[0, 1, 2], &[2, 1, 0]).build().unwrap();
    let config = TrainConfig { embedding_size: 8, epochs: 2, ..TrainConfig::default() };
    Trainer::new(config).directory(&run).fit(&dataset).unwrap();
    let found: serde_json::Value =
        serde_json::from_str(&output(&["inspect", path(&run), "--json"])).unwrap();
    assert_eq!(found["settings"]["embedding_size"], 8);
    assert_eq!(found["best_model"]["epoch"], 2);
    output(&["recommend", "--model", path(&run)]);
    output(&["report", path(&run)]);
    program(&["evaluate", "--model", path(&run)])
        .assert()
        .code(2)
        .stderr(contains("--data: not given"));
}

/// The figures of `bench --model` are consistent.
#[test]
fn a_bench_measures_answers() {
    let directory = tempfile::tempdir().unwrap();
    let run = run(directory.path());
    let arguments = ["bench", "--model", &run, "--repeats", "1", "--top-k", "7"];
    let text = output(&[&arguments[..], &["--json"]].concat());
    let measured = &serde_json::from_str::<serde_json::Value>(&text).unwrap()["measured"];
    assert_eq!(measured["top_k"], 7);
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    assert!(number(&measured["single"]["p50"]) <= number(&measured["single"]["p99"]));
    for rate in measured["batches"].as_array().unwrap() {
        let product = number(&rate["users_per_second"]) * number(&rate["seconds"]["median"]);
        assert!((product / number(&rate["users"]) - 1.0).abs() < 1e-9);
    }
    assert_eq!(measured["callers"].as_array().unwrap().len(), 4);
    let table = output(&arguments);
    assert!(table.contains("one user") && table.contains("8 callers"), "{table}");
    program(&["bench", "--model", &run, "--top-k", "5,10"])
        .assert()
        .code(2)
        .stderr(contains("--top-k: 2 list lengths found; with --model, one expected"));
}

#[test]
fn exports_hold_the_rows_that_scores_are_products_of() {
    let directory = tempfile::tempdir().unwrap();
    let run = run(directory.path());
    let recommender = Recommender::new(Model::load(Path::new(&run)).unwrap()).unwrap();
    let (users, items) = (recommender.user_rows(), recommender.item_rows());
    let d = recommender.width();
    let out = directory.path().join("out");
    let export = |form: &str| -> Vec<String> {
        let text = output(&["export", "--model", &run, "--out", path(&out), "--form", form]);
        text.lines().map(str::to_owned).collect()
    };
    let rows = |file: &str| -> Vec<f32> {
        let matrix = FeatureMatrix::open(Path::new(file)).unwrap();
        assert_eq!(matrix.columns(), d);
        (0..matrix.rows()).flat_map(|row| matrix.row_f32(row).unwrap().to_vec()).collect()
    };
    let files = export("npy");
    assert_eq!((rows(&files[0]), rows(&files[1])), (users.to_vec(), items.to_vec()));
    let bytes = fs::read(&export("safetensors")[0]).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (name, expected) in [("user_embeddings", users), ("item_embeddings", items)] {
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!(tensor.shape(), [expected.len() / d, d]);
        assert_eq!(tensor.data(), bytemuck::cast_slice::<f32, u8>(expected));
    }
    let files = export("vectors");
    assert_eq!((rows(&files[1]), rows(&files[3])), (users.to_vec(), items.to_vec()));
    for (file, count) in [(&files[0], users.len() / d), (&files[2], items.len() / d)] {
        let bytes = fs::read(file).unwrap();
        assert!(String::from_utf8_lossy(&bytes[..128]).contains(&format!("'shape': ({count},)")));
        let numbers = bytes[bytes.len() - 8 * count..].as_chunks().0;
        assert!(numbers.iter().map(|&word| i64::from_le_bytes(word)).eq(0..count as i64));
    }
    let files = export("csv");
    let mut csv = csv::Reader::from_path(&files[1]).unwrap();
    for (number, record) in csv.records().enumerate() {
        let record = record.unwrap();
        assert_eq!(record[0], number.to_string());
        let row: Vec<f32> = serde_json::from_str(&record[1]).unwrap();
        assert_eq!(row, items[number * d..][..d]);
    }

    let arguments = ["export", "--model", &run, "--out", path(&out)];
    program(&arguments).assert().code(2).stderr(contains("user_embeddings.npy exists"));
    program(&arguments).arg("--overwrite").assert().success();
}

#[test]
fn original_ids_are_exported() {
    let directory = tempfile::tempdir().unwrap();
    let run = run(directory.path());
    let model = Model::load(Path::new(&run)).unwrap();
    let name = |kind: &str, count: usize| (0..count).map(|n| format!("{kind} \"{n}\"")).collect();
    let maps = IdMaps { users: name("u", model.users()), items: name("i", model.items()) };
    maps.write(Path::new(&run)).unwrap();
    let out = directory.path().join("out");
    let export = |form: &[&str]| {
        output(&[&["export", "--model", &run, "--out", path(&out)], form].concat());
    };
    export(&["--form", "csv"]);
    let mut csv = csv::Reader::from_path(out.join("users.csv")).unwrap();
    assert_eq!(&csv.records().next().unwrap().unwrap()[0], "u \"0\"");
    assert!(!out.join("u_id_mapping.csv").exists());
    export(&[]);
    assert_eq!(IdMaps::read(&out).unwrap(), Some(maps));
    // Rows without ids do not go beside ids.
    let none = ["export", "--model", &run, "--out", path(&out), "--external-ids", "never"];
    let problem = "u_id_mapping.csv would give these numbers the ids of something else";
    program(&none).arg("--overwrite").assert().code(2).stderr(contains(problem));
    program(&none).args(["--overwrite", "--form", "csv"]).assert().success();
    let similar = output(&["similar", "--model", &run, "--items", "i \"3\"", "--top-k", "1"]);
    assert!(similar.contains("\"i \"\"3\"\"\",1,\"i \"\""), "{similar}");
}
