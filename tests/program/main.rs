//! The program from end to end on the CPU: made-up and prepared data, training, interruption,
//! evaluation, recommendation, and its error messages. (On a GPU: tests/program_gpu.rs.)

mod lists;
mod lost;
mod prepared;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use assert_cmd::cargo::cargo_bin_cmd;
use predicates::prelude::*;
use predicates::str::{contains, is_empty};
use serde_json::Value;

fn program(arguments: &[&str]) -> assert_cmd::Command {
    let mut command = cargo_bin_cmd!("bm3-engine");
    command.args(arguments).env_remove("RUST_LOG").envs(NO_GPU);
    command
}

/// Hides any GPU, so that `--device auto` is the CPU, without a warning.
const NO_GPU: [(&str, &str); 1] = [("CUDA_VISIBLE_DEVICES", "")];

fn output(arguments: &[&str]) -> String {
    let assert = program(arguments).assert().success();
    String::from_utf8(assert.get_output().stdout.clone()).unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A tiny data set in `directory/tiny`.
fn tiny(directory: &Path) -> String {
    let data = directory.join("tiny");
    program(&["synth", "--shape", "tiny", "--out", path(&data)]).assert().success();
    path(&data).to_owned()
}

fn summary(run: &Path) -> Value {
    serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).unwrap()
}

#[test]
fn a_model_is_trained_evaluated_and_asked() {
    let directory = tempfile::tempdir().unwrap();
    let data = tiny(directory.path());
    let run = directory.path().join("run");
    let arguments = ["train", "--data", &data, "--out", path(&run), "--epochs", "30"];
    let table = output(&arguments);
    assert!(table.contains("valid") && table.contains("recall"), "{table}");
    for name in
        ["config.toml", "metrics.jsonl", "model.safetensors", "state.safetensors", "summary.json"]
    {
        assert!(run.join(name).is_file(), "{name}");
    }

    // Popularity alone finds about one in eight of a user's test items among 20.
    let summary = summary(&run);
    assert!(summary["test"]["recall@20"].as_f64().unwrap() > 0.15, "{summary}");

    // The saved model measures as in training, to the last bit.
    for split in ["valid", "test"] {
        let text = output(&["evaluate", "--model", path(&run), "--split", split, "--json"]);
        let measured: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(measured["metrics"], summary[split]);
    }

    // The same lists in every form, without items that the user already has.
    let file = |name: &str| directory.path().join(name);
    let ask = |out: &Path| {
        let arguments = ["--model", path(&run), "--users", "3,1", "--top-k", "7", "--scores"];
        program(&["recommend"]).args(arguments).args(["--out", path(out)]).assert().success();
    };
    let (csv, jsonl, npy) = (file("l.csv"), file("l.jsonl"), file("l.npy"));
    for out in [&csv, &jsonl, &npy] {
        ask(out);
    }
    // Earlier lists are replaced, and nothing else.
    for out in [&csv, &jsonl, &npy] {
        let list = fs::read(out).unwrap();
        ask(out);
        assert!(fs::read(out).unwrap() == list);
        fs::write(out, "my notes\n").unwrap();
        let arguments = ["recommend", "--model", path(&run), "--users", "3", "--out", path(out)];
        program(&arguments).assert().code(2).stderr(contains("holds something else; add --over"));
        assert_eq!(fs::read_to_string(out).unwrap(), "my notes\n");
        program(&arguments).arg("--overwrite").assert().success();
        ask(out);
    }
    // Arrays of other numbers are no lists, nor scores beside one.
    let features = fs::read(Path::new(&data).join("text_feat.npy")).unwrap();
    let [array, array_scores] = ["a.npy", "a_scores.npy"].map(file);
    for (taken, free) in [(&array, &array_scores), (&array_scores, &array)] {
        fs::write(taken, &features).unwrap();
        let arguments = ["recommend", "--model", path(&run), "--scores", "--out", path(&array)];
        program(&arguments).assert().code(2).stderr(contains("holds something else; add --over"));
        assert!(fs::read(taken).unwrap() == features && !free.exists());
        fs::remove_file(taken).unwrap();
    }
    let lines: Vec<Value> = fs::read_to_string(&jsonl)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!((lines[0]["user"].as_u64(), lines[1]["user"].as_u64()), (Some(3), Some(1)));
    let csv = fs::read_to_string(&csv).unwrap();
    let rows: Vec<Vec<&str>> = csv.lines().skip(1).map(|line| line.split(',').collect()).collect();
    assert_eq!((csv.lines().next(), rows.len()), (Some("user,rank,item,score"), 14));
    for (index, row) in rows.iter().enumerate() {
        let (list, rank) = (&lines[index / 7], index % 7);
        assert_eq!(row[0], list["user"].to_string());
        assert_eq!(row[1], (rank + 1).to_string());
        assert_eq!(row[2], list["items"][rank].to_string());
        assert_eq!(row[3].parse::<f64>().unwrap(), list["scores"][rank].as_f64().unwrap());
    }
    let bytes = fs::read(&npy).unwrap();
    let numbers: Vec<i64> = bytes[bytes.len() - 14 * 8..]
        .as_chunks()
        .0
        .iter()
        .map(|&word| i64::from_le_bytes(word))
        .collect();
    let listed: Vec<i64> = rows.iter().map(|row| row[2].parse().unwrap()).collect();
    assert_eq!(numbers, listed);
    assert!(file("l_scores.npy").is_file());
    // The scores of other lists do not stay beside new ones.
    let alone = ["recommend", "--model", path(&run), "--users", "3", "--out", path(&npy)];
    let problem = "l_scores.npy has the scores of other lists; add --scores";
    program(&alone).assert().code(2).stderr(contains(problem));
    program(&alone).arg("--overwrite").assert().success();
    assert!(!file("l_scores.npy").exists());
    // An empty list of what is sold out, unknown ids, a pipe.
    fs::write(file("sold_out.txt"), "").unwrap();
    let asked = ["recommend", "--model", path(&run), "--users", "3", "--top-k", "7"];
    let lists = output(&asked);
    let exclude = file("sold_out.txt");
    assert_eq!(output(&[&asked[..], &["--exclude", path(&exclude)]].concat()), lists);
    fs::write(&exclude, "99999999\n").unwrap();
    program(&asked).args(["--exclude", path(&exclude)]).assert().code(2);
    program(&asked)
        .args(["--exclude", path(&exclude), "--skip-unknown"])
        .assert()
        .success()
        .stdout(lists.clone())
        .stderr(contains("warning: 1 of 1 items are unknown and left out, the first: "));
    let to_rows = [&asked[..], &["--skip-unknown", "--out", path(&npy)]].concat();
    let problem = "--skip-unknown: the rows of a .npy file are told apart by their order alone";
    program(&to_rows).assert().code(2).stderr(contains(problem));
    if cfg!(unix) {
        let arguments = ["recommend", "--model", path(&run), "--users", "/dev/stdin"];
        let assert = program(&arguments).args(["--top-k", "7"]).write_stdin("3\n").assert();
        assert.success().stdout(lists);
    }
    let inter = fs::read_to_string(Path::new(&data).join("tiny.inter")).unwrap();
    for line in inter.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let recommended = rows.iter().any(|row| row[0] == fields[0] && row[2] == fields[1]);
        assert!(fields[4] != "0" || !recommended, "{line}");
    }

    // A reader that closes the pipe early ends the program quietly.
    let mut child = Command::new(assert_cmd::cargo::cargo_bin!("bm3-engine"))
        .envs(NO_GPU)
        .args(["recommend", "--model", path(&run), "--top-k", "150"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");

    // The results can be inspected, and a run is not overwritten.
    assert!(output(&["inspect", path(&run)]).contains("best_model"));
    let inspected: Value = serde_json::from_str(&output(&["inspect", &data, "--json"])).unwrap();
    assert_eq!(inspected["train"], 5000);
    output(&["inspect", path(&run.join("model.safetensors"))]);
    output(&["inspect", &format!("{data}/text_feat.npy")]);
    program(&arguments).assert().code(2).stderr(contains("a run is already here"));

    // The run's settings repeat it, to the same bytes.
    let again = directory.path().join("again");
    let config = run.join("config.toml");
    output(&["train", "--config", path(&config), "--out", path(&again), "--quiet"]);
    assert!(
        fs::read(run.join("model.safetensors")).unwrap()
            == fs::read(again.join("model.safetensors")).unwrap()
    );
}

#[test]
fn events_are_json_lines() {
    let directory = tempfile::tempdir().unwrap();
    let data = tiny(directory.path());
    let run = directory.path().join("run");
    let text = output(&["train", "--data", &data, "--out", path(&run), "--epochs", "2", "--json"]);
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["start", "epoch", "epoch", "checkpoint", "end"]);
    assert_eq!(events[0]["train_pairs"], 5000);
    let kept = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let kept: Vec<Value> = kept.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (event, kept) in events[1..3].iter().zip(&kept) {
        assert_eq!(event["loss"], kept["loss"]);
        assert_eq!(event["valid"], kept["valid"]);
    }
}

/// The program, started with nobody to listen.
#[cfg(unix)]
fn started(arguments: &[&str]) -> Child {
    Command::new(assert_cmd::cargo::cargo_bin!("bm3-engine"))
        .envs(NO_GPU)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Sends a signal, to a process that may have ended already.
#[cfg(unix)]
fn send(signal: &str, child: &Child) {
    let pid = child.id().to_string();
    let _ = Command::new("kill").args([signal, &pid]).stderr(Stdio::null()).status();
}

/// Trains on `data` in `run` for a while, then sends a signal.
#[cfg(unix)]
fn train_and_signal(data: &str, run: &Path, signal: &str, patience: Duration) -> Option<i32> {
    let mut arguments = vec!["train", "--checkpoint-seconds", "0"];
    if run.join("config.toml").is_file() {
        arguments.extend(["--resume", path(run)]);
    } else {
        // A run killed before it had a `config.toml` starts anew.
        arguments.extend(["--data", data, "--out", path(run), "--epochs", "80"]);
        arguments.extend(["--patience", "1000", "--dropout", "0.2"]);
    }
    let mut child = started(&arguments);
    std::thread::sleep(patience);
    send(signal, &child);
    child.wait().unwrap().code()
}

#[cfg(unix)]
#[test]
fn a_run_killed_again_and_again_ends_with_the_same_model() {
    let directory = tempfile::tempdir().unwrap();
    let data = tiny(directory.path());
    let whole = directory.path().join("whole");
    let settings = ["--epochs", "80", "--patience", "1000", "--dropout", "0.2"];
    let arguments = ["train", "--data", &data, "--out", path(&whole), "--quiet"];
    program(&arguments).args(settings).assert().success();
    let broken = directory.path().join("broken");
    for attempt in 0..12u64 {
        let patience = Duration::from_millis(30 + 37 * (attempt % 5));
        let signal = if attempt % 3 == 2 { "-INT" } else { "-KILL" };
        train_and_signal(&data, &broken, signal, patience);
    }
    let resume = if broken.join("config.toml").is_file() {
        vec!["train", "--quiet", "--resume", path(&broken)]
    } else {
        let mut arguments = vec!["train", "--quiet", "--data", &data, "--out", path(&broken)];
        arguments.extend(settings);
        arguments
    };
    program(&resume).assert().success();
    for name in ["model.safetensors", "state.safetensors"] {
        let numbers = |run: &Path| {
            let bytes = fs::read(run.join(name)).unwrap();
            let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            bytes[8 + header..].to_vec()
        };
        assert!(numbers(&whole) == numbers(&broken), "{name}");
    }
    assert_eq!(summary(&whole)["test"], summary(&broken)["test"]);
    assert_eq!(fs::read_to_string(broken.join("metrics.jsonl")).unwrap().lines().count(), 80);
    // Half-written files of killed processes are gone.
    let names = |run: &Path| {
        let entries = fs::read_dir(run).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&whole), names(&broken));
}

#[cfg(unix)]
#[test]
fn an_interruption_saves_and_says_how_to_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let data = tiny(directory.path());
    let run = directory.path().join("run");
    let child = Command::new(assert_cmd::cargo::cargo_bin!("bm3-engine"))
        .envs(NO_GPU)
        .args(["train", "--data", &data, "--out", path(&run), "--epochs", "1000000"])
        .args(["--patience", "1000000"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(600));
    send("-INT", &child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("--resume"), "{said}");
    assert_eq!(summary(&run)["stopped_by"], "interrupted");
    let epochs = summary(&run)["epochs"].as_u64().unwrap() + 2;
    let epochs = epochs.to_string();
    program(&["train", "--resume", path(&run), "--epochs", &epochs]).assert().success();
    assert_eq!(summary(&run)["stopped_by"], "epochs");
}

/// Commands that save nothing in between leave nothing when they are interrupted.
#[cfg(unix)]
#[test]
fn an_interrupted_file_leaves_no_part() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("large");
    // Larger than can be written before the signal comes.
    let large = ["synth", "--shape", "electronics", "--image", "16000", "--out", path(&data)];
    let mut child = started(&large);
    let names = || -> Vec<String> {
        let entries = fs::read_dir(&data).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let is_temporary = |name: &String| name.starts_with('.');
    while !names().iter().any(is_temporary) {
        assert!(child.try_wait().unwrap().is_none(), "it ended before anything was written");
        std::thread::sleep(Duration::from_millis(5));
    }
    send("-INT", &child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!names().iter().any(|name| is_temporary(name) || name.ends_with(".inter")));
}

/// A run started by `nohup` continues when its terminal hangs up.
#[cfg(unix)]
#[test]
fn a_signal_that_the_program_is_started_to_ignore_is_ignored() {
    let directory = tempfile::tempdir().unwrap();
    let data = tiny(directory.path());
    let run = directory.path().join("run");
    let mut child = Command::new("sh")
        .envs(NO_GPU)
        .args(["-c", "trap '' HUP; exec \"$@\"", "sh"])
        .arg(assert_cmd::cargo::cargo_bin!("bm3-engine"))
        .args(["train", "--quiet", "--data", &data, "--out", path(&run)])
        .args(["--epochs", "1000000", "--patience", "1000000", "--checkpoint-seconds", "0"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let state = run.join("state.safetensors");
    while !state.is_file() {
        std::thread::sleep(Duration::from_millis(20));
    }
    send("-HUP", &child);
    // The run keeps writing checkpoints; a process told to stop would write only one.
    for _ in 0..3 {
        let before = fs::metadata(&state).unwrap().modified().unwrap();
        while fs::metadata(&state).unwrap().modified().unwrap() == before {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    send("-TERM", &child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

/// A safetensors file with one tensor that no model has.
const SMELL: &[u8] = b"\x48\0\0\0\0\0\0\0{\"smell.weight\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}       \0\0\0\0";

/// A model's file can give initial values: training continues from its parameters, with moments of
/// 0.
#[test]
fn a_model_begins_where_another_ended() {
    let directory = tempfile::tempdir().unwrap();
    let data = tiny(directory.path());
    let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
    let train = |run: &Path, more: &[&str]| {
        let arguments = ["train", "--quiet", "--data", &data, "--out", path(run)];
        program(&arguments).args(["--epochs", "30"]).args(more).assert().success();
        let records = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let loss = |line: &str| -> f64 {
            let record: Value = serde_json::from_str(line).unwrap();
            record["loss"]["total"].as_f64().unwrap()
        };
        (loss(records.lines().next().unwrap()), loss(records.lines().last().unwrap()))
    };
    let (begin, end) = train(&first, &[]);
    assert!(end < 0.9 * begin, "{end} after {begin}");
    let model = first.join("model.safetensors");
    let (goes_on, _) = train(&second, &["--init", path(&model)]);
    assert!(goes_on < end + 0.2 * (begin - end), "{goes_on} after {end}, first {begin}");
}

/// Without a validation split nothing ends a run early; the program warns of that before it begins.
#[test]
fn a_run_without_a_validation_split_is_warned_of() {
    let directory = tempfile::tempdir().unwrap();
    let data = tiny(directory.path());
    let run = directory.path().join("run");
    let warning = "warning: there are no validation interactions (x_label 1)";
    let arguments = ["train", "--data", &data, "--out", path(&run), "--epochs", "1"];
    program(&arguments).assert().success().stderr(contains(warning).not());
    let table = Path::new(&data).join("tiny.inter");
    let text = fs::read_to_string(&table).unwrap();
    let kept: Vec<&str> = text.lines().filter(|line| !line.ends_with("\t1")).collect();
    assert!(kept.len() < text.lines().count());
    fs::write(&table, kept.join("\n")).unwrap();
    fs::remove_dir_all(&run).unwrap();
    program(&arguments).assert().success().stderr(contains(warning));
}

#[test]
fn bad_input_is_refused_and_nothing_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let data = tiny(directory.path());
    let run = directory.path().join("run");
    let refused = |arguments: &[&str], reason: &str| {
        program(&["train", "--out", path(&run)])
            .args(arguments)
            .assert()
            .code(2)
            .stdout(is_empty())
            .stderr(contains("error: ").and(contains(reason)));
        assert!(!run.exists(), "{arguments:?}");
    };
    refused(&["--data", "does/not/exist"], "does/not/exist: cannot read");
    refused(&["--data", &data, "--device", "99"], "device 99: there is no ");
    let narrow = ["--data", &data, "--freeze-features", "--feature-type", "f16"];
    refused(&narrow, "--feature-type: f16 found, auto or f32 expected on the CPU");
    refused(&[&narrow[..], &["--dry-run"]].concat(), "--feature-type: f16 found");
    refused(&["--data", &data, "--init", "missing.safetensors"], "missing.safetensors");
    refused(&["--data", &data, "--embedding-size", "10"], "--embedding-size");
    refused(&["--data", &data, "--modalities", "smell"], "smell_feat.npy");
    let text = Path::new(&data).join("text_feat.npy");
    let bytes = fs::read(&text).unwrap();
    fs::write(&text, &bytes[..bytes.len() - 3]).unwrap();
    refused(&["--data", &data], "text_feat.npy: is truncated");
    let mut broken = bytes.clone();
    let end = broken.len();
    broken[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&text, broken).unwrap();
    refused(&["--data", &data], "row 199, column 31 is NaN");
    fs::write(&text, bytes).unwrap();
    let wrong = directory.path().join("wrong.safetensors");
    fs::write(&wrong, b"nonsense").unwrap();
    refused(&["--data", &data, "--init", path(&wrong)], "not a whole safetensors file");
    fs::write(&wrong, SMELL).unwrap();
    let expected = "`smell.weight` is not one of this model's; expected user_embedding, ";
    refused(&["--data", &data, "--init", path(&wrong)], expected);
    refused(&["--data", &data, "--init", path(&wrong)], "modality.image.features");

    program(&["synth", "--shape", "tiny", "--out", &data])
        .assert()
        .code(2)
        .stderr(contains("--overwrite"));
    program(&["evaluate", "--model", path(&run)])
        .assert()
        .code(2)
        .stderr(contains("no such model"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_directory_that_cannot_be_written_is_a_failure_with_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let data = tiny(directory.path());
    program(&["train", "--data", &data, "--out", "/proc/nowhere"])
        .assert()
        .failure()
        .stderr(contains("/proc/nowhere: cannot create"));
}

/// `bench` really trains and evaluates, and its figures are consistent.
#[test]
fn a_bench_measures_the_whole_and_every_operation() {
    let text = output(&[
        "bench",
        "--shape",
        "tiny",
        "--device",
        "cpu",
        "--repeats",
        "2",
        "--json",
        "--layers",
        "2",
    ]);
    let object: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(object["config"]["layers"], 2);
    let measured = &object["measured"];
    assert_eq!((&measured["users"], &measured["pairs"]), (&300.into(), &5000.into()));
    let number = |value: &Value| value.as_f64().unwrap();
    let epoch = &measured["epoch_seconds"];
    assert!(number(&epoch["least"]) <= number(&epoch["median"]));
    assert!(number(&epoch["median"]) <= number(&epoch["most"]));
    let pairs = number(&measured["pairs_per_second"]) * number(&epoch["median"]);
    assert!((pairs - 5000.0).abs() < 1e-6, "{pairs}");
    assert!(number(&measured["ceilings"]["copy"]) > 1e8);
    let operations = measured["operations"].as_array().unwrap();
    let calls = |name: &str| {
        let operation = operations.iter().find(|operation| operation["name"] == name);
        operation.unwrap_or_else(|| panic!("no {name}"))["calls"].as_u64().unwrap()
    };
    // Three steps of two layers forward and back, two modalities, and an evaluation.
    assert_eq!((calls("spmm"), calls("spmm_adam")), (3 * 3 + 2, 3));
    assert_eq!((calls("project"), calls("adam_rows")), (6, 6));
    // The predictor and each modality.
    assert_eq!(calls("adam"), 3 * 3);
    assert_eq!((calls("predict"), calls("top_k"), calls("metrics")), (4, 1, 2));

    let text = output(&["bench", "--shape", "tiny", "--device", "cpu", "--repeats", "1"]);
    for heading in ["epoch ", "evaluation ", "ceilings ", "operation ", "adam_rows_replay "] {
        assert!(text.contains(&format!("\n{heading}")), "{text}");
    }
    program(&["bench"]).assert().code(2).stderr(
        contains("--shape <SHAPE>").and(contains("--data <DIR>")).and(contains("--model <RUNDIR")),
    );
}
