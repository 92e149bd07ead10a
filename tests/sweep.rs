//! `sweep` from end to end on the CPU: each run gives the numbers that it gives alone, whatever is
//! trained beside it and however often it is interrupted. (On a GPU: tests/sweep_gpu.rs.)

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use assert_cmd::cargo::cargo_bin_cmd;
use predicates::prelude::*;
use predicates::str::{contains, is_empty};
use serde_json::Value;

/// Hides any GPU.
const NO_GPU: [(&str, &str); 1] = [("CUDA_VISIBLE_DEVICES", "")];

fn program(arguments: &[&str]) -> assert_cmd::Command {
    let mut command = cargo_bin_cmd!("bm3-engine");
    command.args(arguments).env_remove("RUST_LOG").envs(NO_GPU);
    command
}

/// A folder with a tiny data set in it.
struct Setting {
    folder: tempfile::TempDir,
}

impl Setting {
    fn new() -> Self {
        let setting = Self { folder: tempfile::tempdir().unwrap() };
        program(&["synth", "--shape", "tiny", "--out", &setting.text("tiny")]).assert().success();
        setting
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A sweep in `sweep` with these arguments.
    fn sweep(&self, arguments: &[&str]) -> assert_cmd::Command {
        let mut command = program(&["sweep", "--data", &self.text("tiny")]);
        command.args(["--out", &self.text("sweep")]).args(arguments);
        command
    }

    /// The same run alone.
    fn train(&self, out: &str, arguments: &[&str]) {
        let mut command = program(&["train", "--quiet", "--data", &self.text("tiny")]);
        command.args(["--out", &self.text(out)]).args(arguments).assert().success();
    }

    fn run(&self, name: &str) -> PathBuf {
        self.path("sweep").join(name)
    }

    fn results(&self) -> Value {
        serde_json::from_slice(&fs::read(self.run("results.json")).unwrap()).unwrap()
    }
}

/// Everything in a file of tensors but its header, which holds wall times.
fn numbers(run: &Path, name: &str) -> Vec<u8> {
    let bytes = fs::read(run.join(name)).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header..].to_vec()
}

fn summary(run: &Path) -> Value {
    serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).unwrap()
}

fn assert_same_run(left: &Path, right: &Path) {
    let model = "model.safetensors";
    assert!(fs::read(left.join(model)).unwrap() == fs::read(right.join(model)).unwrap(), "models");
    let state = "state.safetensors";
    assert!(numbers(left, state) == numbers(right, state), "states of {}", left.display());
    for field in ["epochs", "steps", "best_epoch", "valid", "test", "stopped_by"] {
        assert_eq!(summary(left)[field], summary(right)[field], "{field}");
    }
}

#[test]
fn each_run_is_that_run_alone() {
    let setting = Setting::new();
    let common = ["--epochs", "4", "--embedding-size", "16"];
    let grid = ["--grid", "layers=1,2", "--grid", "freeze-features=true,false", "--seeds", "3,5"];
    let assert = setting.sweep(&[&common[..], &grid].concat()).args(["--jobs", "3"]).assert();
    let assert = assert.success();
    let table = String::from_utf8(assert.get_output().stdout.clone()).unwrap();
    assert!(table.starts_with("layers  freeze-features  runs  "), "{table}");
    assert!(
        table.contains("\ntest-selected, as the reference implementation's published"),
        "{table}"
    );
    let said = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    assert!(said.contains("tiny: 8 runs; 3 at a time; memory: up to "), "{said}");
    assert!(said.contains("\n8/8 "), "{said}");

    for layers in ["1", "2"] {
        for (frozen, flag) in [("true", "--freeze-features"), ("false", "--freeze-features=false")]
        {
            for seed in ["3", "5"] {
                let name = format!("layers={layers},freeze-features={frozen},seed={seed}");
                let alone = format!("alone {name}");
                let own = ["--layers", layers, flag, "--seed", seed];
                setting.train(&alone, &[&common[..], &own].concat());
                assert_same_run(&setting.run(&name), &setting.path(&alone));
            }
        }
    }

    // The table is sorted by validation, and every run can be used.
    let results = setting.results();
    let valid: Vec<f64> = results["configurations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| result["valid"]["recall@20"]["mean"].as_f64().unwrap())
        .collect();
    assert_eq!(valid.len(), 4);
    assert!(valid.is_sorted_by(|a, b| a >= b), "{valid:?}");
    let run = &results["configurations"][0]["runs"][0];
    let path = setting.run(run["run"].as_str().unwrap());
    let evaluated = program(&["evaluate", "--json", "--model", path.to_str().unwrap()]).assert();
    let evaluated: Value = serde_json::from_slice(&evaluated.get_output().stdout).unwrap();
    assert_eq!(evaluated["metrics"], run["summary"]["test"]);
    let table = fs::read_to_string(setting.run("results.csv")).unwrap();
    assert_eq!(table.lines().count(), 9);
    assert!(table.starts_with("run,layers,freeze_features,seed,status,"), "{table}");

    // Nothing is left to do, and the results are shown again.
    let sweep = setting.text("sweep");
    let again = program(&["sweep", "--resume", &sweep, "--json"]).assert().success();
    let again = String::from_utf8(again.get_output().stdout.clone()).unwrap();
    let events: Vec<Value> =
        again.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names, [&["sweep"][..], &["kept"; 8], &["results"]].concat());
    assert_eq!(events[9]["configurations"], results["configurations"]);
}

/// With `--split` the run's seed also decides the split, as for a run alone.
#[test]
fn a_split_is_that_of_the_runs_seed() {
    let setting = Setting::new();
    let inter = setting.path("tiny/tiny.inter");
    let text = fs::read_to_string(&inter).unwrap();
    let without = text.lines().map(|line| {
        // The label is the last column.
        line.rsplit_once('\t').unwrap().0.to_owned() + "\n"
    });
    let heading = text.lines().next().unwrap();
    assert!(heading.ends_with("\tx_label"), "{heading}");
    fs::write(&inter, without.collect::<String>()).unwrap();
    let common = ["--epochs", "2", "--split", "0.8,0.1,0.1", "--freeze-features"];
    setting.sweep(&common).args(["--seeds", "2", "--seed", "4"]).assert().success();
    for seed in ["4", "5"] {
        setting.train(seed, &[&common[..], &["--seed", seed]].concat());
        assert_same_run(&setting.run(&format!("seed={seed}")), &setting.path(seed));
    }
}

#[test]
fn a_run_that_fails_is_named_and_the_others_go_on() {
    let setting = Setting::new();
    let grid = ["--grid", "learning-rate=1e30,0.001", "--epochs", "3", "--quiet"];
    let failure = "failed: learning-rate=1e+30,seed=999: step ";
    setting
        .sweep(&grid)
        .assert()
        .code(1)
        .stdout(contains(failure).and(contains("0 of 1")))
        .stderr("error: 1 of 2 runs failed\n");
    let results = setting.results();
    let configurations = &results["configurations"];
    assert_eq!(configurations[0]["settings"]["learning_rate"], 0.001);
    assert_eq!(configurations[0]["finished"], 1);
    assert_eq!(configurations[1]["runs"][0]["status"], "failed");
    setting.train("alone", &["--learning-rate", "0.001", "--epochs", "3"]);
    assert_same_run(&setting.run("learning-rate=0.001,seed=999"), &setting.path("alone"));
    // The failed run is tried again, to no avail; the other one is kept.
    let sweep = setting.text("sweep");
    program(&["sweep", "--resume", &sweep, "--json"])
        .assert()
        .code(1)
        .stdout(contains("\"event\":\"kept\",\"run\":\"learning-rate=0.001,seed=999\""))
        .stdout(contains("\"event\":\"failed\",\"run\":\"learning-rate=1e+30,seed=999\""));
}

/// Which modalities are used can be tried, too, with one copy of the data, with and without a split by
/// seed.
#[test]
fn modalities_are_compared() {
    for split in [&[][..], &["--split", "0.8,0.1,0.1"]] {
        let setting = Setting::new();
        let common = [&["--epochs", "3", "--embedding-size", "16"][..], split].concat();
        let grid = ["--grid", "modalities=image,text+image,none", "--seeds", "3,5"];
        let said = setting.sweep(&[&common[..], &grid].concat()).assert().success();
        let said = String::from_utf8(said.get_output().stderr.clone()).unwrap();
        assert!(said.contains("tiny: 6 runs;"), "{said}");
        for (value, own) in [("image", "image"), ("image+text", "text,image"), ("none", "none")] {
            for seed in ["3", "5"] {
                let name = format!("modalities={value},seed={seed}");
                let alone = format!("alone {name}");
                let own = ["--modalities", own, "--seed", seed];
                setting.train(&alone, &[&common[..], &own].concat());
                assert_same_run(&setting.run(&name), &setting.path(&alone));
            }
        }
        let results = setting.results();
        let configurations = results["configurations"].as_array().unwrap();
        assert!(configurations.iter().all(|configuration| configuration["finished"] == 2));
        let inspected = program(&["inspect", &setting.text("sweep"), "--json"]).assert().success();
        let inspected: Value = serde_json::from_slice(&inspected.get_output().stdout).unwrap();
        assert_eq!((&inspected["kind"], &inspected["results"]), (&"sweep".into(), &results));
        assert_eq!(inspected["grid"]["modalities"][2], serde_json::json!([]));
        assert_eq!(inspected["runs"][0], "modalities=image,seed=3");
        let no_run = program(&["evaluate", "--model", &setting.text("sweep")]).assert().code(2);
        no_run.stderr(contains("this is a sweep: name one of its runs"));
        let again = program(&["sweep", "--resume", &setting.text("sweep"), "--json"]).assert();
        let again = String::from_utf8(again.success().get_output().stdout.clone()).unwrap();
        assert_eq!(again.matches("\"event\":\"kept\"").count(), 6, "{again}");
    }
    let setting = Setting::new();
    let missing = ["--grid", "modalities=image,audio"];
    setting.sweep(&missing).assert().code(2).stderr(contains("audio_feat.npy and no --feature"));
    let both = ["--grid", "modalities=image,text", "--modalities", "text"];
    setting.sweep(&both).assert().code(2).stderr(contains("--modalities gives it one"));
}

#[cfg(unix)]
#[test]
fn a_sweep_killed_again_and_again_ends_with_the_same_runs() {
    let setting = Setting::new();
    let common = ["--epochs", "60", "--patience", "1000", "--dropout", "0.2"];
    let more = ["--grid", "layers=1,2", "--seeds", "2", "--checkpoint-seconds", "0"];
    let sweep = setting.text("sweep");
    let mut codes = Vec::new();
    for attempt in 0..10u64 {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("bm3-engine"));
        if setting.run("sweep.json").is_file() {
            command.args(["sweep", "--resume", &sweep]);
        } else {
            command.args(["sweep", "--data", &setting.text("tiny"), "--out", &sweep]);
            command.args(common).args(more);
        }
        let child = command.envs(NO_GPU).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let child = child.unwrap();
        std::thread::sleep(Duration::from_millis(40 + 61 * (attempt % 5)));
        let signal = if attempt % 2 == 1 { "-INT" } else { "-KILL" };
        let pid = child.id().to_string();
        // It may have ended already.
        let _ = Command::new("kill").args([signal, &pid]).stderr(Stdio::null()).status();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        if output.status.code() == Some(130) {
            assert!(said.contains(&format!("sweep --resume {sweep}`")), "{said}");
        }
        assert!(matches!(output.status.code(), None | Some(0 | 130)), "{said}");
        codes.push(output.status.code());
    }
    if !setting.run("sweep.json").is_file() {
        setting.sweep(&[&common[..], &more].concat()).assert().success();
    }
    println!("exit codes: {codes:?}");
    program(&["sweep", "--resume", &sweep, "--quiet"]).assert().success();
    for layers in ["1", "2"] {
        for seed in ["999", "1000"] {
            let alone = format!("{layers} {seed}");
            setting.train(&alone, &[&common[..], &["--layers", layers, "--seed", seed]].concat());
            let run = setting.run(&format!("layers={layers},seed={seed}"));
            assert_same_run(&run, &setting.path(&alone));
        }
    }
    let results = setting.results();
    assert_eq!(results["configurations"][1]["finished"], 2);
}

#[cfg(unix)]
#[test]
fn an_interruption_saves_all_runs_and_says_how_to_go_on() {
    let setting = Setting::new();
    let endless = ["--epochs", "1000000", "--patience", "1000000"];
    let mut child = Command::new(assert_cmd::cargo::cargo_bin!("bm3-engine"))
        .envs(NO_GPU)
        .args(["sweep", "--data", &setting.text("tiny"), "--out", &setting.text("sweep")])
        .args(endless)
        .args(["--seeds", "3", "--jobs", "2"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    // Waits until two runs have begun.
    for _ in 0..2 {
        lines.find(|line| line.as_ref().unwrap().contains(": training on CPU")).unwrap().unwrap();
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let said: String = lines.map(|line| line.unwrap() + "\n").collect();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(
        said.contains("3 of 3 runs are left, to be continued with `bm3-engine sweep"),
        "{said}"
    );
    for seed in ["999", "1000"] {
        assert_eq!(summary(&setting.run(&format!("seed={seed}")))["stopped_by"], "interrupted");
    }
    assert!(!setting.run("seed=1001").exists());
    let statuses: Vec<Value> = setting.results()["configurations"][0]["runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| run["status"].clone())
        .collect();
    assert_eq!(statuses, ["interrupted", "interrupted", "waiting"]);
}

#[test]
fn a_sweep_goes_on_as_it_was_begun_or_not_at_all() {
    let setting = Setting::new();
    let grid = ["--grid", "layers=1,2", "--seeds", "2"];
    setting.sweep(&grid).args(["--epochs", "1", "--quiet"]).assert().success();
    let sweep = setting.text("sweep");
    let refused = |arguments: &[&str], reason: &str| {
        program(&["sweep", "--resume", &sweep])
            .args(arguments)
            .assert()
            .code(2)
            .stdout(is_empty())
            .stderr(contains("error: ").and(contains(reason)));
    };
    program(&["sweep", "--resume", &sweep])
        .args(grid)
        .assert()
        .success()
        .stderr(contains("tiny: 4 runs, all finished before\n"));
    refused(
        &["--grid", "layers=1,2,3"],
        "--grid: layers=1,2,3 found, layers=1,2 expected, as the sweep was begun with",
    );
    refused(&["--grid", "dropout=0.5"], "--grid: dropout=0.5 found, no dropout expected");
    refused(&["--seeds", "3"], "--seeds: 3 found, 999,1000 expected");
    refused(&["--layers", "2"], "'--layers <L>'");
    setting.sweep(&grid).assert().code(2).stderr(contains("a sweep is already here; continue it"));
    // Nor does a run of its own begin there.
    let train = ["train", "--data", &setting.text("tiny"), "--out", &sweep];
    program(&train)
        .assert()
        .code(2)
        .stderr(contains("a sweep is already here; give another --out"));

    // Other data, a run in another's place, and a file of another version.
    let other = setting.text("other");
    program(&["synth", "--shape", "tiny", "--seed", "8", "--out", &other]).assert().success();
    refused(&["--data", &other], "sweep.json: was begun on other interactions");
    let run = setting.run("layers=1,seed=999");
    let aside = setting.path("aside");
    fs::rename(&run, &aside).unwrap();
    fs::rename(setting.run("layers=2,seed=999"), &run).unwrap();
    refused(&[], "has other settings than run layers=1,seed=999 of this sweep");
    fs::remove_dir_all(&run).unwrap();
    fs::rename(&aside, &run).unwrap();
    // A missing run is trained.
    program(&["sweep", "--resume", &sweep])
        .assert()
        .success()
        .stderr(contains("4 runs, 3 of them finished before; one at a time"))
        .stderr(contains("4/4 layers=2,seed=999: all epochs trained: 1 epoch,"));

    let file = setting.run("sweep.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("\"format_version\": 1", "\"format_version\": 2")).unwrap();
    refused(&[], "sweep.json: its format version is 2; this program reads 1");
    fs::write(&file, text.replace("\"layers\"", "\"lairs\"")).unwrap();
    refused(&[], "lairs");
    fs::write(&file, "{}").unwrap();
    refused(&[], "its format version is no number");
    fs::write(&file, "nonsense").unwrap();
    refused(&[], "sweep.json: not a sweep: ");
    fs::remove_file(&file).unwrap();
    refused(&[], "no sweep to continue: there is no sweep.json in it");
}

#[test]
fn bad_input_is_refused_and_nothing_is_written() {
    let setting = Setting::new();
    let refused = |arguments: &[&str], reason: &str| {
        setting
            .sweep(arguments)
            .assert()
            .code(2)
            .stdout(is_empty())
            .stderr(contains("error: ").and(contains(reason)));
        assert!(!setting.path("sweep").exists(), "{arguments:?}");
    };
    refused(&[], "--grid: not given, nor --seeds; name a setting");
    refused(&["--grid", "layer=1,2"], "`layer` is not a training setting; did you mean `layers`?");
    refused(&["--grid", "layers=1,x"], "layers=1,x: \"x\" found, a whole number from 0 expected");
    refused(
        &["--grid", "layers=1,5"],
        "--grid: run layers=5,seed=999: --layers: 5 found, 0 to 4 expected",
    );
    refused(&["--grid", "layers=1", "--grid", "layers=2"], "layers is there twice");
    refused(
        &["--grid", "layers=1,2", "--layers", "1"],
        "layers is to take the values 1,2, and --layers gives it one",
    );
    refused(&["--grid", "seed=1,2"], "seeds are given by --seeds");
    refused(&["--seeds", "none"], "--seeds: `none` found");
    refused(&["--seeds", "1,2", "--seed", "1"], "--seeds: a list found, 1,2, and --seed 1");
    refused(&["--seeds", "2", "--jobs", "0"], "--jobs: 0 found, a number from 1 expected");
    let narrow = ["--grid", "feature-type=f32,f16", "--freeze-features"];
    refused(&narrow, "--feature-type: f16 found, auto or f32 expected on the CPU");
    refused(&["--seeds", "2", "--device", "99"], "device 99: there is no ");
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::ffi::OsStrExt;
        let odd = setting.path("").join(std::ffi::OsStr::from_bytes(b"d\xff"));
        fs::rename(setting.path("tiny"), &odd).unwrap();
        program(&["sweep", "--seeds", "2", "--out", &setting.text("sweep"), "--data"])
            .arg(&odd)
            .assert()
            .code(2)
            .stderr(contains("is not UTF-8, as a run's config.toml has to be"));
        assert!(!setting.path("sweep").exists());
    }
}

#[test]
fn what_would_be_done_can_be_seen_before() {
    let setting = Setting::new();
    setting
        .sweep(&["--grid", "dropout=0.3,0.5", "--dry-run", "--threads", "2"])
        .assert()
        .success()
        .stdout(contains("dropout=0.3,seed=999\ndropout=0.5,seed=999\n2 runs; 2 at a time"));
    assert!(!setting.path("sweep").exists());
}

/// MMRec's own lists are a grid; `--grid` and flags replace them.
#[test]
fn lists_of_a_settings_file_are_a_grid() {
    let setting = Setting::new();
    let file = setting.text("BM3.yaml");
    let text = "n_layers: [1, 2]\ndropout: [0.3, 0.5]\nreg_weight: [0.1, 0.01]\nseed: [7, 8]\n";
    fs::write(&file, text).unwrap();
    let config = ["--config", &file, "--dry-run", "--threads", "2"];
    setting.sweep(&config).assert().success().stdout(
        contains("layers=1,dropout=0.3,reg-weight=0.1,seed=7\n").and(contains("\n16 runs; ")),
    );
    let other = ["--grid", "dropout=0.0,0.1,0.2", "--layers", "1", "--reg-weight=0", "--seed=5"];
    setting
        .sweep(&[&config[..], &other].concat())
        .assert()
        .success()
        .stdout(contains("dropout=0.0,seed=5\ndropout=0.1,seed=5\ndropout=0.2,seed=5\n3 runs; "));
}
