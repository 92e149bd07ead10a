//! The program's flags, through the program itself: help, refusals, exit codes, merged settings.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use assert_cmd::cargo::cargo_bin_cmd;
use predicates::prelude::*;
use predicates::str::{contains, is_empty, starts_with};

const COMMANDS: [&str; 13] = [
    "train",
    "sweep",
    "evaluate",
    "recommend",
    "similar",
    "export",
    "prepare",
    "synth",
    "inspect",
    "report",
    "bench",
    "devices",
    "completions",
];

fn program(arguments: &[&str]) -> assert_cmd::Command {
    let mut command = cargo_bin_cmd!("bm3-engine");
    // Hides any GPU, so that the program uses the CPU on every machine.
    command.args(arguments).env_remove("RUST_LOG").env("CUDA_VISIBLE_DEVICES", "");
    command
}

/// The program refuses with exit code 2, says why on standard error and nothing on standard output.
fn refused(arguments: &[&str], reason: &str) {
    program(arguments).assert().code(2).stdout(is_empty()).stderr(contains(reason));
}

fn write(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A folder with the least data that can be trained on.
fn data_folder(directory: &Path) -> String {
    let folder = directory.join("d");
    std::fs::create_dir(&folder).unwrap();
    write(&folder, "d.inter", "userID\titemID\tx_label\n0\t0\t0\n0\t1\t1\n0\t2\t2\n");
    folder.to_str().unwrap().to_owned()
}

/// The settings that `train` would run with.
fn settings(arguments: &[&str]) -> toml::Table {
    let output = program(&["train", "--dry-run"]).args(arguments).assert().success();
    let text = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    text.parse().unwrap()
}

#[test]
fn help_teaches_by_example() {
    program(&["--help"])
        .assert()
        .success()
        .stdout(contains("Examples:").and(contains("Exit codes:")))
        .stderr(is_empty());
    for command in COMMANDS {
        program(&[command, "--help"])
            .assert()
            .success()
            .stdout(contains("Examples:\n").and(contains(format!("  bm3-engine {command} "))));
        program(&["--help"]).assert().stdout(contains(format!("\n  {command} ")));
        // Text after the flags is not wrapped, so it has to be narrow enough as it is.
        let help = program(&[command, "--help"]).output().unwrap().stdout;
        let help = String::from_utf8(help).unwrap();
        let examples = help.split("Examples:\n").nth(1).unwrap();
        assert!(examples.lines().all(|line| line.chars().count() <= 100), "{examples}");
    }
}

#[test]
fn no_command_shows_the_help_as_talk() {
    program(&[]).assert().code(2).stdout(is_empty()).stderr(contains("Commands:"));
}

#[test]
fn version_says_how_the_program_was_built() {
    program(&["-V"])
        .assert()
        .success()
        .stdout(format!("bm3-engine {}\n", env!("CARGO_PKG_VERSION")));
    let mut long = program(&["--version"]);
    let mut long = long.assert().success().stdout(starts_with("bm3-engine "));
    for fact in ["commit:", "target:", "profile:", "compiler: rustc", "kernels:", "CPU:"] {
        long = long.stdout(contains(format!("\n{fact}")));
    }
}

#[test]
fn a_misspelt_flag_or_command_is_answered_with_the_right_one() {
    refused(&["train", "--layer", "2"], "'--layers'");
    refused(&["evaluate", "--mode", "x"], "'--model'");
    refused(&["trian"], "'train'");
    refused(&["train", "--freeze-features", "false"], "unexpected argument 'false'");
}

#[test]
fn values_out_of_range_name_their_flag() {
    for (flag, value, reason) in [
        ("--embedding-size", "66", "--embedding-size: 66 found, a multiple of 4 from 4 to 512"),
        ("--layers", "5", "--layers: 5 found, 0 to 4 expected"),
        ("--dropout", "1", "--dropout: 1 found, at least 0 and less than 1"),
        ("--dropout", "-0.5", "--dropout: -0.5 found"),
        ("--reg-weight", "inf", "--reg-weight: inf found, a number from 0 expected"),
        ("--learning-rate", "0", "--learning-rate: 0 found, a number greater than 0"),
        ("--learning-rate-decay", "1.5", "--learning-rate-decay: 1.5 found"),
        ("--batch-size", "0", "--batch-size: 0 found, 1 to 16777216 expected"),
        ("--epochs", "0", "--epochs: 0 found"),
        ("--seed", "18446744073709551615", "--seed: 18446744073709551615 found"),
        ("--top-k", "0,5", "--top-k: 0 found, 1 to 1024 expected"),
        ("--threads", "0", "--threads: 0 found, a number from 1 expected"),
        ("--threads", "4097", "--threads: 4097 found, at most 4096 expected"),
        ("--layers", "two", "'two' for '--layers <L>': a whole number from 0 expected"),
        ("--layers", "-1", "'-1' for '--layers <L>': a whole number from 0 expected"),
        ("--epochs", "1.5", "'1.5' for '--epochs <N>': a whole number from 0 expected"),
        ("--seed", "99999999999999999999", "for '--seed <N>': a smaller number expected"),
        ("--dropout", "half", "'half' for '--dropout <P>': a number expected"),
        ("--device-memory", "8G", "`8G` found, a size in bytes expected, as in 8GB"),
        ("--embedding-size", "-1", "'-1' for '--embedding-size <D>'"),
        ("--batch-size", "-1", "'-1' for '--batch-size <PAIRS>'"),
        ("--epochs", "-1", "'-1' for '--epochs <N>'"),
        ("--patience", "-1", "'-1' for '--patience <N>'"),
        ("--seed", "-1", "'-1' for '--seed <N>'"),
        ("--top-k", "-1", "'-1' for '--top-k <K,…>'"),
        ("--threads", "-1", "'-1' for '--threads <N>'"),
        ("--checkpoint-seconds", "-1", "'-1' for '--checkpoint-seconds <SECONDS>'"),
        ("--device", "gpu", "`gpu` found, `cpu`, `auto` or a GPU's number expected"),
        ("--propagation", "heavy", "[possible values: light, gcn]"),
        ("--feature-type", "f64", "[possible values: auto, f32, f16, bf16]"),
        ("--feature-type", "f16", "--feature-type: f16 found, auto or f32 for features that are"),
        ("--split", "0.8,0.1,0.2", "three shares that add up to 1 expected"),
        ("--split", "-1,1,1", "three shares that add up to 1 expected"),
        ("--feature", "image", "NAME=FILE expected"),
        ("--modalities", "a,a", "`a` is there twice"),
    ] {
        refused(&["train", "--data", "d", flag, value], reason);
    }
}

#[test]
fn what_is_required_is_asked_for() {
    refused(&["train"], "--data: not given; name the folder");
    refused(&["evaluate"], "--model");
    refused(&["prepare", "--out", "x"], "--interactions");
    refused(&["synth", "--out", "x"], "--shape");
    refused(&["evaluate", "--model", "does/not/exist"], "there is no such model");
    refused(&["inspect", "does/not/exist"], "does/not/exist: cannot read");
    refused(&["train", "--config", "does/not/exist.toml"], "does/not/exist.toml: cannot read");
    refused(&["train", "--resume", "does/not/exist"], "no run to continue");
}

#[test]
fn flags_that_exclude_each_other() {
    refused(&["train", "--data", "d", "--json", "--quiet"], "cannot be used with");
    refused(&["train", "--resume", "r", "--seed", "1"], "'--seed <N>'");
    refused(&["train", "--resume", "r", "--freeze-features"], "'--freeze-features[=<BOOL>]'");
    refused(&["train", "--resume", "r", "--feature-type", "f32"], "'--feature-type <TYPE>'");
    for given in [["--layers", "3"], ["--epochs", "9"], ["--modalities", "none"]] {
        let reason = format!("{} <", given[0]);
        refused(&[&["bench", "--model", "r"], &given[..]].concat(), &reason);
    }
    for given in [["--data", "d"], ["--shape", "tiny"]] {
        refused(&[&["bench", "--model", "r"], &given[..]].concat(), "cannot be used with");
    }
    refused(&["bench", "--model", "r", "--top-k", "5,10"], "--top-k: 2 list lengths found");
}

#[test]
fn a_settings_file_is_checked_line_by_line() {
    let directory = tempfile::tempdir().unwrap();
    let toml = write(directory.path(), "a.toml", "seed = 1\nembeding_size = 64\n");
    refused(
        &["train", "--config", &toml],
        "a.toml: line 2: embeding_size: is not a setting; did you",
    );
    let yaml = write(directory.path(), "BM3.yaml", "n_layers: [1, 2]\n");
    refused(
        &["train", "--config", &yaml],
        "BM3.yaml: line 1: n_layers: [1, 2] found; a list means a sweep",
    );
    let broken = write(directory.path(), "b.toml", "seed = = 1\n");
    refused(&["train", "--config", &broken], "b.toml: line 1: ");
}

#[test]
fn flags_win_over_files_and_files_over_defaults() {
    let directory = tempfile::tempdir().unwrap();
    let data = data_folder(directory.path());
    let text =
        format!("data: {data}\nn_layers: [2]\ndropout: 0.3\nuse_gpu: False\nvocab_size: 1\n");
    let file = write(directory.path(), "BM3.yaml", &text);
    let merged = settings(&["--config", &file, "--dropout", "0.4", "--top-k", "20,10"]);
    assert_eq!(merged["data"].as_str(), Some(data.as_str()));
    assert_eq!(merged["layers"].as_integer(), Some(2));
    assert_eq!(merged["dropout"].as_float(), Some(0.4));
    assert_eq!(merged["device"].as_str(), Some("cpu"));
    assert_eq!(merged["batch_size"].as_integer(), Some(2048));
    assert_eq!(merged["top_k"].to_string(), "[10, 20]");
    let arguments = ["train", "--dry-run", "--config", &file];
    program(&arguments).assert().stderr(contains("note: ").and(contains("vocab_size")));
    program(&arguments).arg("--quiet").assert().stderr(is_empty());
}

#[test]
fn the_settings_of_a_run_repeat_it() {
    let directory = tempfile::tempdir().unwrap();
    let data = data_folder(directory.path());
    let arguments = [
        "--data",
        &data,
        "--feature",
        "image=i.npy",
        "--modalities",
        "none",
        "--split",
        "0.7,0.2,0.1",
        "--dropout",
        "0.1",
        "--learning-rate",
        "3.3e-4",
        "--self-loops",
        "--threads",
        "2",
    ];
    let first = program(&["train", "--dry-run", "--quiet"]).args(arguments).assert().success();
    let text = String::from_utf8(first.get_output().stdout.clone()).unwrap();
    let file = write(directory.path(), "config.toml", &text);
    program(&["train", "--dry-run", "--config", &file]).assert().success().stdout(text);
}

#[test]
fn completions_are_there_for_the_usual_shells() {
    for shell in ["bash", "zsh", "fish"] {
        program(&["completions", shell])
            .assert()
            .success()
            .stdout(contains("bm3-engine").and(contains("freeze-features")))
            .stderr(is_empty());
    }
    refused(&["completions", "csh"], "possible values");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_output_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let data = data_folder(directory.path());
    let output = std::process::Command::new(assert_cmd::cargo::cargo_bin!("bm3-engine"))
        .args(["inspect", &data, "--json"])
        .stdout(std::fs::File::options().write(true).open("/dev/full").unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("error: standard output: cannot write: No space left"), "{said}");
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    // (`recommend` writes its lists another way: see tests/program/main.rs.)
    let mut child = Command::new(assert_cmd::cargo::cargo_bin!("bm3-engine"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}
