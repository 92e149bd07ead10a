//! `report` and `train --profile`, through the program: what is timed, what the file says, what is
//! refused, and what a reader sees in a real browser.

mod browser;

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::cargo::cargo_bin_cmd;
use browser::Browser;
use predicates::prelude::*;
use predicates::str::{contains, is_empty};
use serde_json::Value;

fn program(arguments: &[&str]) -> assert_cmd::Command {
    let mut command = cargo_bin_cmd!("bm3-engine");
    command.args(arguments).env_remove("RUST_LOG").env("CUDA_VISIBLE_DEVICES", "");
    command
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A tiny data set, and the runs trained on it.
struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { directory: tempfile::tempdir().unwrap() };
        let data = scene.file("tiny");
        program(&["synth", "--shape", "tiny", "--out", path(&data)]).assert().success();
        scene
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn train(&self, name: &str, arguments: &[&str]) -> PathBuf {
        let (data, run) = (self.file("tiny"), self.file(name));
        program(&["train", "--data", path(&data), "--out", path(&run), "--quiet"])
            .args(["--embedding-size", "8", "--batch-size", "512", "--patience", "1000"])
            .args(arguments)
            .assert()
            .success();
        run
    }

    /// The text of a report on these runs.
    fn report(&self, runs: &[&Path]) -> String {
        let out = self.file("out.html");
        let mut command = program(&["report", "--out", path(&out)]);
        let said = format!("{}\n", out.display());
        command.args(runs).assert().success().stdout(said).stderr(is_empty());
        fs::read_to_string(out).unwrap()
    }
}

fn records(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn profile(run: &Path) -> Value {
    serde_json::from_slice(&fs::read(run.join("profile.json")).unwrap()).unwrap()
}

#[test]
fn a_profile_changes_no_bit_of_a_run() {
    let scene = Scene::new();
    let plain = scene.train("plain", &["--epochs", "4"]);
    let timed = scene.train("timed", &["--epochs", "4", "--profile"]);
    let bytes = |run: &Path| fs::read(run.join("model.safetensors")).unwrap();
    assert!(bytes(&plain) == bytes(&timed));
    assert!(!plain.join("profile.json").exists());
    // The profiled epoch is marked, because its seconds differ; all else is the same.
    let untimed = |run: &Path| {
        let mut records = records(run);
        for record in &mut records {
            let fields = record.as_object_mut().unwrap();
            fields.retain(|name, _| !name.ends_with("_seconds") && name != "profiled");
        }
        records
    };
    assert_eq!(untimed(&plain), untimed(&timed));
    let flagged = |run: &Path| -> Vec<bool> {
        records(run).iter().map(|record| record["profiled"] == true).collect()
    };
    assert_eq!(flagged(&plain), [false; 4]);
    assert_eq!(flagged(&timed), [false, true, false, false]);

    let found = profile(&timed);
    let of_epoch = &records(&timed)[1];
    assert_eq!((found["epoch"].as_u64(), found["steps"].as_u64()), (Some(2), Some(10)));
    assert_eq!(found["train_seconds"], of_epoch["train_seconds"]);
    assert_eq!(found["evaluate_seconds"], of_epoch["evaluate_seconds"]);
    assert!(found["device"].as_str().unwrap().starts_with("CPU"), "{found}");
    let operations = found["operations"].as_array().unwrap();
    let number = |operation: &Value, field: &str| operation[field].as_f64().unwrap();
    let sum = |field: &str| operations.iter().map(|o| number(o, field)).sum::<f64>();
    assert!((sum("share") - 1.0).abs() < 1e-9);
    let within =
        sum("seconds") / (number(&found, "train_seconds") + number(&found, "evaluate_seconds"));
    assert!(within > 0.1 && within <= 1.0, "{within}");
    let ordered = operations.windows(2);
    assert!(
        ordered.into_iter().all(|pair| number(&pair[0], "seconds") >= number(&pair[1], "seconds"))
    );
    // Each step is counted once, and the evaluation is included.
    let calls =
        |name: &str| operations.iter().find(|o| o["name"] == name).map(|o| o["calls"].as_u64());
    assert_eq!(calls("bootstrap_loss"), Some(Some(10)), "{found}");
    assert!(calls("top_k").is_some(), "{found}");

    // A resumed process profiles its own second epoch, or its only one.
    program(&["train", "--resume", path(&timed), "--epochs", "6", "--profile", "--quiet"])
        .assert()
        .success();
    assert_eq!(profile(&timed)["epoch"], 6);
    let one = scene.train("one", &["--epochs", "1", "--profile"]);
    assert_eq!(profile(&one)["epoch"], 1);
}

#[test]
fn a_report_says_what_the_runs_have_left() {
    let scene = Scene::new();
    let first = scene.train("first", &["--epochs", "6"]);
    let settings = ["--epochs", "5", "--layers", "2", "--profile", "--learning-rate-decay", "0.5"];
    let second = scene.train("second", &settings);

    // One run: the report goes into its own directory.
    let out = first.join("report.html");
    program(&["report", path(&first)]).assert().success().stdout(format!("{}\n", out.display()));
    let one = fs::read_to_string(&out).unwrap();
    assert!(one.starts_with("<!doctype html>\n<!-- bm3-engine report -->\n"));
    for text in [
        "<h1>first</h1>",
        "Recall",
        "NDCG",
        "Precision",
        "MAP",
        "align.text",
        "mask.image",
        "embedding-size",
        "bm3-engine train --profile",
        "best epoch",
    ] {
        assert!(one.contains(text), "{text}");
    }
    assert!(!one.contains("Learning rate"));

    // Two runs, compared.
    let both = scene.report(&[&first, &second]);
    let summary: Value =
        serde_json::from_slice(&fs::read(second.join("summary.json")).unwrap()).unwrap();
    let test = summary["test"]["recall@20"].as_f64().unwrap();
    assert!(both.contains(&format!(">{test:.4}<")), "{test}");
    for text in [
        "<h1>2 runs on tiny</h1>",
        "Different between the runs",
        "Recall@20",
        "At other list lengths",
        "Learning rate",
        "bootstrap_loss",
        "One run has not timed",
    ] {
        assert!(both.contains(text), "{text}");
    }
    // Only these settings differ.
    let differ = both.split("Different between the runs").nth(1).unwrap();
    let head = differ.split("</thead>").next().unwrap();
    assert_eq!(head.matches("<th class=\"text\">").count(), 3, "{head}");

    // A report is replaced by the same bytes; no other file is replaced.
    assert_eq!(scene.report(&[&first, &second]), both);
    let mine = scene.file("mine.html");
    fs::write(&mine, "mine").unwrap();
    let arguments = ["report", path(&first), "--out", path(&mine)];
    program(&arguments).assert().code(2).stdout(is_empty()).stderr(contains("--overwrite"));
    assert_eq!(fs::read_to_string(&mine).unwrap(), "mine");
    program(&arguments).args(["--overwrite", "--title", "A <b> title"]).assert().success();
    assert!(fs::read_to_string(&mine).unwrap().contains("<h1>A &lt;b&gt; title</h1>"));

    // Several runs without --out: the report goes into the working directory.
    let mut command = program(&["report", path(&first), path(&second)]);
    command.current_dir(scene.directory.path()).assert().success().stdout("report.html\n");
    assert!(scene.file("report.html").is_file());

    // A run that still trains, or was killed.
    fs::remove_file(first.join("summary.json")).unwrap();
    assert!(scene.report(&[&first]).contains("not ended yet"));
    fs::remove_file(first.join("config.toml")).unwrap();
    assert!(scene.report(&[&first]).contains("There is no config.toml"));
}

#[test]
fn a_sweep_is_its_runs() {
    let scene = Scene::new();
    let (data, sweep) = (scene.file("tiny"), scene.file("sweep"));
    program(&["sweep", "--data", path(&data), "--out", path(&sweep), "--quiet"])
        .args(["--grid", "layers=1,2", "--seeds", "2", "--epochs", "2", "--embedding-size", "8"])
        .assert()
        .success();
    let report = scene.report(&[&sweep]);
    assert!(report.contains("<h1>4 runs on tiny</h1>"));
    for name in ["layers=1,seed=999", "layers=2,seed=1000"] {
        assert!(report.contains(name), "{name}");
    }
    // A run that has not begun is left out, as is one that ended in its first epoch; without any run
    // there is nothing to draw.
    fs::remove_dir_all(sweep.join("layers=1,seed=999")).unwrap();
    assert!(scene.report(&[&sweep]).contains("<h1>3 runs on tiny</h1>"));
    fs::write(sweep.join("layers=1,seed=1000").join("metrics.jsonl"), "").unwrap();
    assert!(scene.report(&[&sweep]).contains("<h1>2 runs on tiny</h1>"));
    for name in ["layers=2,seed=999", "layers=2,seed=1000"] {
        fs::remove_dir_all(sweep.join(name)).unwrap();
    }
    program(&["report", path(&sweep)]).assert().code(2).stderr(contains("no run of this sweep"));
}

#[test]
fn what_is_no_run_is_refused_by_file_and_line() {
    let scene = Scene::new();
    let run = scene.train("run", &["--epochs", "3", "--profile"]);
    let refused = |directory: &Path, reason: &str| {
        let one_line = predicate::function(|text: &str| text.trim_end().lines().count() == 1);
        let said = contains("error: ").and(contains(reason)).and(one_line);
        program(&["report", path(directory)]).assert().code(2).stdout(is_empty()).stderr(said);
    };
    refused(&scene.file("nowhere"), "nowhere: cannot read");
    refused(&scene.file("tiny"), "tiny: no run to report on: there is no metrics.jsonl");
    let begun = scene.file("begun");
    fs::create_dir(&begun).unwrap();
    fs::write(begun.join("config.toml"), "").unwrap();
    refused(&begun, "begun: no metrics.jsonl yet: a run writes it with its first checkpoint");
    let reason = contains("there is no such model").and(contains("has not saved one yet"));
    program(&["evaluate", "--model", path(&begun)]).assert().code(2).stderr(reason);
    refused(&run.join("config.toml"), "config.toml: a file found, the directory of a run expected");
    let broken = |name: &str, text: &str, reason: &str| {
        let file = run.join(name);
        let before = fs::read(&file).unwrap();
        fs::write(&file, text).unwrap();
        refused(&run, reason);
        fs::write(&file, before).unwrap();
    };
    let lines = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines: Vec<&str> = lines.lines().collect();
    broken("metrics.jsonl", "", "metrics.jsonl: no epoch yet");
    broken(
        "metrics.jsonl",
        &format!("{}\n{{\"epoch\": 2", lines[0]),
        "metrics.jsonl: line 2: not an",
    );
    let descending = format!("{}\n{}\n", lines[1], lines[0]);
    broken("metrics.jsonl", &descending, "metrics.jsonl: line 2: epoch 1 found after epoch 2");
    broken("summary.json", "{}", "summary.json: not a run's summary: missing field");
    broken("profile.json", "[1, 2]", "profile.json: not the profile of an epoch: ");
    broken("config.toml", "seed = 1\nseed = 2\n", "config.toml: line 2: ");
    program(&["report"]).assert().code(2).stderr(contains("<RUNDIR>"));

    // Among several paths, those that are not runs are left out, but a run with broken files is
    // still refused.
    let (none, young) = (scene.file("tiny"), scene.file("young"));
    fs::create_dir(&young).unwrap();
    fs::write(young.join("metrics.jsonl"), "").unwrap();
    let file = run.join("config.toml");
    let out = scene.file("several.html");
    let paths = [&none, &run, &young, &file].map(|directory| path(directory));
    let report =
        |paths: &[&str]| program(&[&["report", "--out", path(&out)], paths].concat()).assert();
    let warning = |of: &str| contains(format!("{of}: ")).and(contains("warning: left out: "));
    report(&paths)
        .success()
        .stderr(warning("tiny").and(warning("young/metrics.jsonl")).and(warning("config.toml")));
    assert!(fs::read_to_string(&out).unwrap() == scene.report(&[&run]));
    report(&[paths[0], paths[2]]).code(2).stderr(contains("error: ").and(contains("tiny: no run")));
    let whole = fs::read(run.join("summary.json")).unwrap();
    fs::write(run.join("summary.json"), "{}").unwrap();
    report(&paths).code(2).stderr(contains("summary.json: not a run's summary"));
    fs::write(run.join("summary.json"), whole).unwrap();

    program(&["report", path(&run), "--out", path(&scene.file("no/where.html"))])
        .assert()
        .code(2)
        .stderr(contains("where.html: cannot create"));
    assert!(!run.join("report.html").exists());
    scene.report(&[&run]);
}

/// Checks what holds for every page. Only the charts `flat` have a curve that neither rises nor
/// falls.
fn assert_well_drawn(found: &Value, width: u64, flat: &[&str]) {
    for (what, nothing) in [
        ("empty", serde_json::json!([])),
        ("flat", flat.into()),
        ("overlaps", serde_json::json!([])),
        ("outside", serde_json::json!([])),
        ("resources", serde_json::json!([])),
        ("problems", serde_json::json!([])),
        ("scroll", 0.into()),
        ("left", serde_json::json!([])),
        ("width", width.into()),
        ("tip", true.into()),
        ("cursor", "visible".into()),
    ] {
        assert_eq!(found[what], nothing, "{what}");
    }
}

/// A chart's read-out shows an epoch's record.
fn assert_reads(read: &Value, epoch: u64, values: &[f64]) {
    let parts: Vec<&str> = read.as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
    assert_eq!(parts[0], format!("epoch {epoch}"));
    let mut expected: Vec<f64> = values.to_vec();
    expected.sort_by(|a, b| b.total_cmp(a));
    let found: Vec<f64> = parts.iter().filter_map(|part| part.parse().ok()).collect();
    assert_eq!(found.len(), expected.len(), "{parts:?}");
    for (found, expected) in found.iter().zip(expected) {
        // Four significant digits.
        assert!((found - expected).abs() <= 5.001e-4 * expected, "{found} for {expected}");
    }
}

/// The lines of `epochs` epochs, each with the values of `record`.
fn many_epochs(record: &Value, epochs: u64) -> String {
    let line = |epoch: u64| {
        let mut record = record.clone();
        record["epoch"] = epoch.into();
        record["learning_rate"] = 0.001.into();
        record["loss"]["total"] = ((epoch as f64 / 7.0).sin() + 2.0).into();
        format!("{record}\n")
    };
    (1..=epochs).map(line).collect()
}

#[test]
fn a_reader_sees_every_curve_in_a_browser() {
    let Some(browser) = Browser::find() else { return };
    let scene = Scene::new();
    let settings = ["--epochs", "12", "--learning-rate", "0.01", "--learning-rate-decay", "0.5"];
    let first = scene.train("first", &[&settings[..], &["--profile"]].concat());
    let second = scene.train("a second one, of two layers", &["--epochs", "7", "--layers", "2"]);
    let short = scene.train("short", &["--epochs", "1"]);
    let page = |runs: &[&Path], name: &str| {
        let file = scene.file(name);
        fs::write(&file, scene.report(runs)).unwrap();
        file
    };

    // One run: metrics at four lengths of two splits; total, ui, iu, reg and two terms for each of
    // two modalities; two kinds of seconds; the learning rate.
    let one = page(&[&first], "one.html");
    let found = browser.look(&one, 1280, &[]);
    assert_well_drawn(&found, 1280, &[]);
    assert_eq!((found["charts"].as_u64(), found["curves"].as_u64()), (Some(14), Some(43)));
    assert!(found["labels"].as_u64() > Some(14 * 8), "{found}");
    let of_recall = |record: &Value| -> Vec<f64> {
        let values = |split: &str| {
            [5, 10, 20, 50].map(|k| record[split][format!("recall@{k}")].as_f64().unwrap())
        };
        [values("valid"), values("test")].concat()
    };
    let kept = records(&first);
    assert_reads(&found["pointer"], 12, &of_recall(&kept[11]));
    assert_reads(&found["keyboard"], 1, &of_recall(&kept[0]));
    assert_eq!(found["background"], "rgb(255, 255, 255)");

    // Several runs, one with a single epoch, in windows of all widths, and in dark mode.
    let three = page(&[&first, &second, &short], "three.html");
    for (width, flags) in
        [(1280, &[][..]), (500, &[]), (2200, &["--blink-settings=preferredColorScheme=0"])]
    {
        let found = browser.look(&three, width, flags);
        // The second run's learning rate is constant.
        assert_well_drawn(&found, width.into(), &["Learning rate"]);
        assert_eq!((found["charts"].as_u64(), found["curves"].as_u64()), (Some(27), Some(129)));
        let [before, hidden, after] = [0, 1, 2].map(|at| found["toggled"][at].as_u64().unwrap());
        assert!(hidden < before && after == before, "{found}");
        let dark = found["background"] == "rgb(21, 23, 27)";
        assert_eq!(dark, !flags.is_empty(), "{}", found["background"]);
        let last = &kept[11];
        let values = ["valid", "test"].map(|split| last[split]["recall@20"].as_f64().unwrap());
        assert_reads(&found["pointer"], 12, &values);
    }
    assert_well_drawn(&browser.look(&page(&[&short], "short.html"), 500, &[]), 500, &[]);

    // A run's name is shown as text, whatever it says.
    let evil = scene.file("<img src=x onerror=problems.push(1)>");
    fs::rename(&short, &evil).unwrap();
    let found = browser.look(&page(&[&evil], "evil.html"), 800, &[]);
    assert_well_drawn(&found, 800, &[]);
    assert_eq!(found["title"], "<img src=x onerror=problems.push(1)>");
    // Also where the script writes the name, at the epoch that both have.
    let found = browser.look(&page(&[&evil, &first], "evil.html"), 800, &[]);
    assert_well_drawn(&found, 800, &[]);
    let named = "1 <img src=x onerror=problems.push(1)>, valid";
    assert!(found["keyboard"].as_array().unwrap().contains(&named.into()), "{found}");

    // A long run is drawn with as many points as can be seen, including the last.
    let long = scene.file("long");
    fs::create_dir(&long).unwrap();
    fs::write(long.join("metrics.jsonl"), many_epochs(&kept[11], 20_000)).unwrap();
    let long = page(&[&long], "long.html");
    let bytes = fs::metadata(&long).unwrap().len();
    assert!(bytes < 700_000, "{bytes}");
    let found = browser.look(&long, 1280, &[]);
    assert_eq!((found["charts"].as_u64(), found["curves"].as_u64()), (Some(13), Some(42)));
    assert_eq!(found["overlaps"], serde_json::json!([]));
    assert_reads(&found["pointer"], 20_000, &of_recall(&kept[11]));

    // The pictures can be looked at if a folder is given.
    let folder = std::env::var_os("BM3_SCREENSHOTS").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| scene.directory.path().to_owned());
    browser.picture(&one, (1280, 2400), &[], &folder.join("one.png"));
    browser.picture(&three, (1280, 3000), &[], &folder.join("three.png"));
}
