//! The program from end to end on the CPU: made-up and prepared data, training, interruption,
//! evaluation, recommendation, and its error messages. (On a GPU: tests/program_gpu.rs.)

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
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
    let mut child = Command::new(assert_cmd::cargo::cargo_bin!("bm3-engine"))
        .envs(NO_GPU)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(patience);
    let pid = child.id().to_string();
    // It may have ended already.
    let _ = Command::new("kill").args([signal, &pid]).stderr(Stdio::null()).status();
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
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
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
    let signal = |signal: &str| {
        Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    };
    let state = run.join("state.safetensors");
    while !state.is_file() {
        std::thread::sleep(Duration::from_millis(20));
    }
    signal("-HUP");
    // The run keeps writing checkpoints; a process told to stop would write only one.
    for _ in 0..3 {
        let before = fs::metadata(&state).unwrap().modified().unwrap();
        while fs::metadata(&state).unwrap().modified().unwrap() == before {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    signal("-TERM");
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

/// What was moved, lost or damaged since a run was made is named, with what to do.
#[test]
fn what_is_lost_of_a_run_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    let data = tiny(folder);
    let run = folder.join("run");
    output(&["train", "--data", &data, "--out", path(&run), "--epochs", "2", "--quiet"]);
    let resume = |run: &Path, more: &[&str]| {
        let mut command = program(&["train", "--resume", path(run), "--epochs", "3", "--quiet"]);
        let assert = command.args(more).assert();
        let code = assert.get_output().status.code();
        (code, String::from_utf8(assert.get_output().stderr.clone()).unwrap())
    };
    let refused = |run: &Path, reason: &str| {
        let (code, said) = resume(run, &[]);
        assert!(code == Some(2) && said.contains(reason), "{code:?} {said}");
    };
    refused(&folder.join("none"), "no run to continue: there is no such directory");
    refused(folder, "no run to continue: there is no config.toml in it");
    fs::write(folder.join("sweep.json"), "{}").unwrap();
    refused(folder, "continue it with `bm3-engine sweep --resume`");
    fs::rename(run.join("config.toml"), folder.join("kept.toml")).unwrap();
    refused(&run, "its config.toml is missing, which says how it was trained; put it back");
    fs::rename(folder.join("kept.toml"), run.join("config.toml")).unwrap();
    let moved = folder.join("moved");
    fs::rename(&data, &moved).unwrap();
    refused(&run, "are not there any more; say where they are with --data");
    assert_eq!(resume(&run, &["--data", path(&moved)]), (Some(0), String::new()));

    // A number that is none, in the file of a model and of a state.
    for name in ["model.safetensors", "state.safetensors"] {
        let file = run.join(name);
        let whole = fs::read(&file).unwrap();
        let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let tensors: Value = serde_json::from_slice(&whole[8..8 + header]).unwrap();
        let start = tensors["user_embedding"]["data_offsets"][0].as_u64().unwrap() as usize;
        let mut broken = whole.clone();
        broken[8 + header + start..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(&file, broken).unwrap();
        let expected = "tensor `user_embedding` has NaN, a finite number expected";
        match name {
            "model.safetensors" => {
                let evaluate = ["evaluate", "--model", path(&run), "--data", path(&moved)];
                program(&evaluate).assert().code(2).stderr(contains(expected).and(contains(name)));
            }
            _ => {
                let (code, said) = resume(&run, &["--data", path(&moved)]);
                assert!(
                    code == Some(2) && said.contains(expected) && said.contains(name),
                    "{said}"
                );
            }
        }
        fs::write(&file, whole).unwrap();
    }

    // Features by another name are not quietly left out.
    fs::rename(moved.join("text_feat.npy"), moved.join("text_features.npy")).unwrap();
    fs::remove_file(moved.join("image_feat.npy")).unwrap();
    let bare = ["train", "--data", path(&moved), "--epochs", "1", "--dry-run"];
    program(&bare).assert().success().stderr(contains(
        "has no features, NAME_feat.npy for each modality (found text_features.npy, by other names)",
    ));
    program(&bare).args(["--modalities", "none"]).assert().success().stderr(is_empty());
    let plan: Value = serde_json::from_str(&output(&[&bare[..], &["--json"]].concat())).unwrap();
    assert_eq!((&plan["config"]["epochs"], plan["device"].is_string()), (&Value::from(1), true));
    assert!(plan["memory"]["host_bytes"].as_u64().unwrap() > 0);

    // A pipe cannot be mapped, and is not waited for.
    #[cfg(unix)]
    {
        let pipe = moved.join("audio_feat.npy");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        program(&bare).assert().code(2).stderr(contains("audio_feat.npy: cannot read: it is no"));
    }
}

#[test]
fn raw_ids_come_back_in_recommendations() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    // 12 people and 9 things that all belong to a 3-core, one stray that does not, awkward ids.
    let mut table = "person,thing,points,when\n".to_owned();
    for user in 0..12 {
        for item in (0..9).filter(|item| (user + item) % 3 != 0) {
            table += &format!("\"u, {user}\",thing {item},{},{}\n", 1 + item % 5, 100 + item);
        }
    }
    table += "stray,thing 0,5,1\nstray,only here,5,2\n";
    let raw = folder.join("raw.csv");
    fs::write(&raw, table).unwrap();
    let ids: String = (0..9).rev().map(|item| format!("thing {item}\n")).collect();
    fs::write(folder.join("ids.txt"), ids).unwrap();
    // One feature: the number of the thing, with the things in reverse order.
    let header = "{'descr': '<f8', 'fortran_order': False, 'shape': (9, 1), }";
    let mut npy = b"\x93NUMPY\x01\x00".to_vec();
    npy.extend((header.len() as u16).to_le_bytes());
    npy.extend(header.as_bytes());
    (0..9).rev().for_each(|item| npy.extend(f64::from(item).to_le_bytes()));
    fs::write(folder.join("f.npy"), npy).unwrap();

    let data = folder.join("data");
    let (features, ids) = (
        format!("size={}", path(&folder.join("f.npy"))),
        format!("size={}", path(&folder.join("ids.txt"))),
    );
    let prepare = |extra: &[&str]| {
        let mut command = program(&["prepare", "--interactions", path(&raw), "--out", path(&data)]);
        command.args(["--user-column", "person", "--item-column", "thing", "--k-core", "3"]);
        command.args(["--feature", &features, "--feature-ids", &ids]).args(extra);
        command
    };
    // The k-core drops the stray, whose own thing has no features.
    prepare(&["--min-rating", "9"]).assert().code(2).stderr(contains("--rating-column"));
    prepare(&["--rating-column", "points", "--min-rating", "9"])
        .assert()
        .code(2)
        .stderr(contains("no interaction is left"));
    assert!(!data.exists());
    prepare(&["--time-column", "when", "--split-method", "leave-one-out"])
        .assert()
        .success()
        .stdout(contains("in the core").and(contains("12 users")));
    prepare(&[]).assert().code(2).stderr(contains("--overwrite"));

    // A pipe gives its bytes once.
    #[cfg(unix)]
    {
        let piped = folder.join("piped");
        let mut command =
            program(&["prepare", "--interactions", "/dev/stdin", "--out", path(&piped)]);
        command.args(["--user-column", "person", "--item-column", "thing", "--k-core", "3"]);
        command.args(["--time-column", "when", "--split-method", "leave-one-out"]);
        command.write_stdin(fs::read(&raw).unwrap()).assert().success();
        for name in ["u_id_mapping.csv", "i_id_mapping.csv"] {
            assert_eq!(fs::read(piped.join(name)).unwrap(), fs::read(data.join(name)).unwrap());
        }
        let own = fs::read(piped.join("piped.inter")).unwrap();
        assert_eq!(own, fs::read(data.join("data.inter")).unwrap());
    }

    let map = fs::read_to_string(data.join("i_id_mapping.csv")).unwrap();
    let size = bm3_engine::data::FeatureMatrix::open(&data.join("size_feat.npy")).unwrap();
    for line in map.lines().skip(1) {
        let (raw, number) = line.split_once('\t').unwrap();
        let mut value = [0.0f64];
        size.copy_row(number.parse().unwrap(), 0..1, &mut value);
        assert_eq!(format!("thing {}", value[0]), raw);
    }
    let inter = fs::read_to_string(data.join("data.inter")).unwrap();
    assert_eq!(inter.lines().count(), 1 + 12 * 6);
    assert_eq!(inter.lines().filter(|line| line.ends_with("\t2")).count(), 12);

    let run = folder.join("run");
    output(&["train", "--data", path(&data), "--out", path(&run), "--epochs", "2", "--quiet"]);
    // Foreign maps are left as they are. If a killed process wrote only the first map, the second
    // is written.
    let other = folder.join("other");
    fs::create_dir(&other).unwrap();
    let train = ["train", "--data", path(&data), "--out", path(&other), "--epochs", "1", "--quiet"];
    let [users_map, items_map] =
        ["u_id_mapping.csv", "i_id_mapping.csv"].map(|name| other.join(name));
    for (foreign, problem) in [
        ("user_id\tuserID\nsomebody\t0\n", "i_id_mapping.csv is missing beside it"),
        ("no map\n", "i_id_mapping.csv is missing beside it"),
    ] {
        fs::write(&users_map, foreign).unwrap();
        program(&train).assert().code(2).stderr(contains(problem).and(contains("--out")));
        assert_eq!(fs::read_to_string(&users_map).unwrap(), foreign);
    }
    fs::copy(data.join("u_id_mapping.csv"), &users_map).unwrap();
    fs::write(&items_map, "no map\n").unwrap();
    program(&train).assert().code(2).stderr(contains("line 1").or(contains("give another --out")));
    assert_eq!(fs::read_to_string(&items_map).unwrap(), "no map\n");
    fs::remove_file(&items_map).unwrap();
    output(&train);
    assert_eq!(fs::read(&items_map).unwrap(), fs::read(data.join("i_id_mapping.csv")).unwrap());
    let ask = |arguments: &[&str]| {
        output(&[&["recommend", "--model", path(&run), "--top-k", "2"], arguments].concat())
    };
    let users = folder.join("users.txt");
    fs::write(&users, "u, 3\nu, 4\n").unwrap();
    let lists = ask(&["--users", path(&users)]);
    assert!(lists.contains("\"u, 3\",1,thing "), "{lists}");
    // The run has the ids too: those of the folder are no longer needed.
    for name in ["u_id_mapping.csv", "i_id_mapping.csv"] {
        assert_eq!(fs::read(run.join(name)).unwrap(), fs::read(data.join(name)).unwrap());
        fs::remove_file(data.join(name)).unwrap();
    }
    assert_eq!(ask(&["--users", path(&users)]), lists);
    let numbered = ask(&["--users", "0", "--external-ids", "never"]);
    assert!(numbered.starts_with("user,rank,item\n0,1,"), "{numbered}");

    // New users are known by what they interacted with, by either kind of id.
    let maps = bm3_engine::data::IdMaps::read(&run).unwrap().unwrap();
    let number = |item: &str| maps.items.iter().position(|id| id == item).unwrap();
    let histories = folder.join("new.csv");
    fs::write(&histories, "user,item\nzoe,thing 3\nmax,thing 8\nzoe,thing 5\n").unwrap();
    let named = ask(&["--histories", path(&histories)]);
    let model = bm3_engine::Model::load(&run).unwrap();
    let recommender = bm3_engine::Recommender::new(model).unwrap();
    let mut expected = "user,rank,item\n".to_owned();
    for (user, items) in [("zoe", &["thing 3", "thing 5"][..]), ("max", &["thing 8"])] {
        let items: Vec<u32> = items.iter().map(|item| number(item) as u32).collect();
        let top = recommender.search(&[bm3_engine::Query::items(&items)], 2).unwrap();
        for (rank, &item) in top.list(0).iter().enumerate() {
            assert!(!items.contains(&item));
            expected += &format!("{user},{},{}\n", rank + 1, maps.items[item as usize]);
        }
    }
    assert_eq!(named, expected);
    let lines = format!("zoe\t{}\nzoe\t{}\n", number("thing 3"), number("thing 5"));
    fs::write(&histories, lines).unwrap();
    let numbered = ["--histories", path(&histories), "--external-ids", "never"];
    let numbered = ask(&[&numbered[..], &["--out", path(&folder.join("new.jsonl"))]].concat());
    assert_eq!(numbered, "");
    let line: Value = serde_json::from_slice(&fs::read(folder.join("new.jsonl")).unwrap()).unwrap();
    let items = line["items"].as_array().unwrap().iter().map(|item| item.as_u64().unwrap());
    let items: Vec<&str> = items.map(|item| maps.items[item as usize].as_str()).collect();
    assert_eq!(line["user"], "zoe");
    assert!(items.iter().zip(named.lines().skip(1)).all(|(item, line)| line.ends_with(item)));
    program(&["recommend", "--model", path(&run), "--histories", path(&histories)])
        .assert()
        .code(2)
        .stderr(contains("new.csv: line 1: `").and(contains("an id of the original interactions")));

    // Selecting by number gives the same users and items as selecting by id.
    let numbers = |file: &str, ids: &str| -> Vec<String> {
        let map = fs::read_to_string(run.join(file)).unwrap();
        let of = |id: &str| {
            let quoted = [format!("{id}\t"), format!("\"{id}\"\t")];
            let line = |line: &&str| quoted.iter().any(|start| line.starts_with(start));
            map.lines().find(line).unwrap().rsplit('\t').next().unwrap().to_owned()
        };
        ids.lines().map(of).collect()
    };
    let npy = folder.join("lists.npy");
    for (command, flag, file, ids) in [
        ("recommend", "--users", "u_id_mapping.csv", "u, 3\nu, 11\nu, 4\n"),
        ("similar", "--items", "i_id_mapping.csv", "thing 7\nthing 2\n"),
    ] {
        let given = folder.join("given.txt");
        fs::write(&given, ids).unwrap();
        let common = [command, "--model", path(&run), "--top-k", "2", "--out", path(&npy)];
        output(&[&common[..], &[flag, path(&given)]].concat());
        let of_ids = fs::read(&npy).unwrap();
        let numbers = numbers(file, ids).join(",");
        output(&[&common[..], &[flag, &numbers, "--external-ids", "never"]].concat());
        assert!(of_ids == fs::read(&npy).unwrap(), "{command}");
        // A number is not an id.
        let wrong = [&common[..], &[flag, "0"]].concat();
        program(&wrong).assert().code(2).stderr(contains(format!("{flag}: `0` found, an id")));
    }

    // If the maps do not fit the model, the error names their file.
    let (users_map, items_map) = (run.join("u_id_mapping.csv"), run.join("i_id_mapping.csv"));
    let whole = fs::read_to_string(&items_map).unwrap();
    let head: String = whole.lines().take(3).map(|line| format!("{line}\n")).collect();
    let broken = |reason: &str| {
        let said = contains(reason).and(contains("or add --external-ids never"));
        program(&["recommend", "--model", path(&run)]).assert().code(2).stderr(said);
    };
    fs::write(&items_map, head).unwrap();
    broken("i_id_mapping.csv: ");
    fs::write(&items_map, whole).unwrap();
    fs::rename(&users_map, folder.join("aside")).unwrap();
    broken("i_id_mapping.csv: u_id_mapping.csv is missing beside it");
    fs::rename(folder.join("aside"), &users_map).unwrap();
    program(&["recommend", "--model", path(&run), "--users", "nobody"])
        .assert()
        .code(2)
        .stderr(contains("--users: `nobody` found"));
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
    assert_eq!(calls("spmm"), 3 * 4 + 2);
    assert_eq!((calls("project"), calls("adam_rows")), (6, 6));
    // The nodes, the predictor and each modality.
    assert_eq!(calls("adam"), 3 * 4);
    assert_eq!((calls("predict"), calls("top_k"), calls("metrics")), (4, 1, 2));

    let text = output(&["bench", "--shape", "tiny", "--device", "cpu", "--repeats", "1"]);
    for heading in ["epoch ", "evaluation ", "ceilings ", "operation ", "adam_rows_replay "] {
        assert!(text.contains(&format!("\n{heading}")), "{text}");
    }
    program(&["bench"]).assert().code(2).stderr(
        contains("--shape <SHAPE>").and(contains("--data <DIR>")).and(contains("--model <RUNDIR")),
    );
}
