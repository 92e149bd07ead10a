//! Failing files: size limits, directories without write permission, inputs that change while in
//! use, a directory that is taken. Each is reported in one sentence, and nothing is lost.

#![cfg(unix)]

mod runs;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use bm3_engine::checkpoint::FORMAT_VERSION;
use runs::{Scene, numbers, said};

/// The one sentence of a command that fails with this code; warnings may precede it.
fn sentence(output: &Output, code: i32) -> String {
    let said = said(output);
    let said: String =
        said.split_inclusive('\n').filter(|line| !line.starts_with("warning: ")).collect();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(output.stdout.is_empty());
    assert!(said.starts_with("error: ") && said.lines().count() == 1, "{said}");
    said
}

/// The program with these arguments.
fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("bm3-engine"));
    command.env("CUDA_VISIBLE_DEVICES", "").env_remove("RUST_LOG").args(arguments);
    command
}

/// A limit on the size of files acts like a full disk for the larger ones. Whatever the limit, no
/// signal ends the process, and the run can continue afterwards.
#[test]
fn a_limit_on_the_size_of_files_is_an_error_of_the_file() {
    let scene = Scene::new();
    let mut whole = 0;
    for blocks in [0, 1, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 100] {
        let run = scene.run(&format!("{blocks} blocks"));
        let command = scene.command(&run);
        let mut limited = Command::new("sh");
        let script = format!("ulimit -f {blocks}; exec \"$@\"");
        limited.args(["-c", &script, "sh"]).arg(command.get_program()).args(command.get_args());
        limited.env("CUDA_VISIBLE_DEVICES", "");
        // A pipe has no limit.
        limited.stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = limited.output().unwrap();
        if output.status.success() {
            whole += 1;
        } else {
            let said = sentence(&output, 1);
            assert!(said.contains("cannot write: File too large"), "{said}");
            assert!(said.contains(&*run.to_string_lossy()), "{said}");
            let has_begun = run.join("config.toml").exists();
            assert_eq!(said.contains("--resume"), has_begun, "{said}");
            let output = scene.train(&run, None);
            assert!(output.status.success(), "{}", runs::said(&output));
        }
        scene.check(&run);
    }
    assert!(whole > 0, "no limit was large enough to be none");
}

/// If this user may write anything, the program runs as an unprivileged one.
#[test]
fn a_directory_that_may_not_be_written_is_named() {
    let scene = Scene::new();
    let folder = tempfile::tempdir().unwrap();
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    // That user must be able to read everything, including the program, wherever it was built.
    let binary = folder.path().join("bm3-engine");
    fs::copy(assert_cmd::cargo::cargo_bin!("bm3-engine"), &binary).unwrap();
    for path in [folder.path(), &*binary, scene.directory.path(), &scene.data()] {
        mode(path, 0o755);
    }
    let closed = folder.path().join("closed");
    let run = closed.join("run");
    fs::create_dir(&closed).unwrap();
    let output = scene.train(&run, None);
    assert!(output.status.success(), "{}", said(&output));
    let before = fs::read(run.join("state.safetensors")).unwrap();
    mode(&closed, 0o555);
    mode(&run, 0o555);
    let writes_anyway = fs::write(closed.join("probe"), "").is_ok();
    fs::remove_file(closed.join("probe")).ok();

    let attempt = |run: &Path| {
        let command = scene.command(run);
        let mut attempt = Command::new(&binary);
        attempt.args(command.get_args()).env("CUDA_VISIBLE_DEVICES", "").current_dir("/");
        if writes_anyway {
            attempt.uid(65534).gid(65534);
        }
        sentence(&attempt.output().unwrap(), 2)
    };
    let said = attempt(&closed.join("new"));
    let expected = format!("{}: cannot create: Permission denied", closed.join("new").display());
    assert!(said.contains(&expected), "{said}");
    let said = attempt(&run);
    assert!(said.contains(&*run.to_string_lossy()), "{said}");
    assert!(said.contains(": cannot ") && said.contains("Permission denied"), "{said}");
    mode(&closed, 0o755);
    mode(&run, 0o755);
    assert!(fs::read(run.join("state.safetensors")).unwrap() == before);
    scene.check(&run);
}

/// `/dev/full` in place of standard output.
#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let scene = Scene::new();
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let model = scene.whole.to_str().unwrap();
    for arguments in [
        vec!["evaluate", "--model", model],
        vec!["evaluate", "--model", model, "--json"],
        vec!["recommend", "--model", model, "--users", "all"],
        vec!["inspect", model],
    ] {
        let output = program(&arguments).stdout(full()).output().unwrap();
        let said = sentence(&output, 1);
        assert!(said.contains("No space left on device"), "{arguments:?}: {said}");
    }
}

/// A run with frozen features, read at every step, that continues until something happens.
fn train_frozen(scene: &Scene, run: &Path, checkpoint_seconds: &str) -> Child {
    let mut command = program(&["train", "--json", "--checkpoint-seconds", checkpoint_seconds]);
    command.arg("--data").arg(scene.data()).arg("--out").arg(run);
    command.args(["--epochs", "1000000", "--patience", "1000000", "--freeze-features"]);
    command.args(["--embedding-size", "8", "--batch-size", "32", "--device", "cpu"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for a number of epochs; a thread then drains the rest of the output.
fn wait_for_epochs(child: &mut Child, count: usize) -> std::thread::JoinHandle<()> {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let epochs = lines.by_ref().filter(|line| line.contains("\"event\":\"epoch\"")).take(count);
    assert_eq!(epochs.count(), count, "it has ended");
    std::thread::spawn(move || lines.for_each(drop))
}

fn truncate(path: &Path, length: u64) {
    fs::File::options().write(true).open(path).unwrap().set_len(length).unwrap();
}

/// Either a whole mapped file is cut off, which the system answers with a signal, or a few bytes of
/// its last page, which then read as zeros. The first is reported at once, the second before
/// anything is saved.
#[test]
fn a_feature_file_that_is_truncated_while_it_is_used_is_named() {
    let scene = Scene::new();
    let features = scene.data().join("text_feat.npy");
    let whole = fs::read(&features).unwrap();
    let length = whole.len() as u64;
    for (checkpoint_seconds, length, expected) in [
        ("1000", 0, "text_feat.npy: ended while it was being read"),
        ("0", length - 4, "text_feat.npy: was changed while it was in use"),
    ] {
        let run = scene.run(checkpoint_seconds);
        let mut child = train_frozen(&scene, &run, checkpoint_seconds);
        let drained = wait_for_epochs(&mut child, 3);
        truncate(&features, length);
        let output = child.wait_with_output().unwrap();
        drained.join().unwrap();
        let said = sentence(&output, 1);
        assert!(said.contains(expected) && said.contains("--resume"), "{said}");
        fs::write(&features, &whole).unwrap();
        // One continues from its checkpoint; the other has none and starts from the beginning.
        let mut resume = program(&["train", "--quiet", "--epochs", "40", "--resume"]);
        let output = resume.arg(&run).output().unwrap();
        assert!(output.status.success(), "{}", runs::said(&output));
    }
    let [left, right] =
        ["1000", "0"].map(|run| fs::read_to_string(scene.run(run).join("metrics.jsonl")).unwrap());
    let epochs = |text: &str| text.lines().count();
    assert_eq!(epochs(&left), 40);
    // It may have trained more than 40 epochs before the file was cut.
    assert!(epochs(&right) >= 40);
}

/// Two runs in one directory: the second is always refused, and the first continues.
#[test]
fn a_directory_in_which_a_process_trains_is_refused() {
    let scene = Scene::new();
    let run = scene.run("shared");
    let mut child = train_frozen(&scene, &run, "0");
    let drained = wait_for_epochs(&mut child, 3);
    let new = program(&["train", "--quiet", "--data"])
        .arg(scene.data())
        .arg("--out")
        .arg(&run)
        .output()
        .unwrap();
    let resumed = program(&["train", "--quiet", "--resume"]).arg(&run).output().unwrap();
    for output in [new, resumed] {
        let said = sentence(&output, 2);
        let expected = format!("{}: another process is training in this directory", run.display());
        assert!(said.contains(&expected), "{said}");
    }
    // The first run still writes checkpoints.
    let state = run.join("state.safetensors");
    let before = numbers(&state);
    let deadline = Instant::now() + Duration::from_secs(60);
    while numbers(&state) == before {
        assert!(Instant::now() < deadline, "it has ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    drained.join().unwrap();
}

/// A state that belongs to something else is refused, with the difference named, and the run is
/// left as it was, including its settings.
#[test]
fn a_state_of_something_else_is_refused_and_left_alone() {
    let scene = Scene::new();
    let run = scene.run("run");
    assert!(scene.train(&run, None).status.success());
    let files = ["config.toml", "metrics.jsonl", "model.safetensors", "state.safetensors"];
    let contents = || files.map(|name| fs::read(run.join(name)).unwrap());
    let before = contents();
    let resume = |arguments: &[&str]| {
        let mut command = program(&["train", "--quiet", "--epochs", "99", "--resume"]);
        let output = command.arg(&run).args(arguments).output().unwrap();
        sentence(&output, 2)
    };
    let other = |name: &str, file: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let folder = scene.directory.path().join(name);
        fs::create_dir(&folder).unwrap();
        for name in ["data.inter", "text_feat.npy"] {
            fs::copy(scene.data().join(name), folder.join(name)).unwrap();
        }
        let path = folder.join(file);
        fs::write(&path, change(fs::read(&path).unwrap())).unwrap();
        folder.to_str().unwrap().to_owned()
    };
    // One number of the features differs; one interaction is added.
    let features = other("features", "text_feat.npy", &|mut bytes| {
        let place = bytes.len() - 50;
        bytes[place] ^= 1;
        bytes
    });
    let said = resume(&["--data", &features]);
    assert!(said.contains("trained on other features of modality `text`"), "{said}");
    let interactions = other("interactions", "data.inter", &|mut bytes| {
        bytes.extend(b"0\t0\t0\n");
        bytes
    });
    let said = resume(&["--data", &interactions]);
    assert!(said.contains("trained on other interactions"), "{said}");

    // A setting changed by hand, since no flag can.
    let settings = String::from_utf8(before[0].clone()).unwrap();
    let changed = settings.replace("learning_rate = 0.02", "learning_rate = 0.03");
    assert_ne!(settings, changed);
    fs::write(run.join("config.toml"), changed).unwrap();
    let said = resume(&[]);
    assert!(said.contains("its setting learning_rate is 0.02; expected 0.03"), "{said}");
    fs::write(run.join("config.toml"), settings).unwrap();

    // Another format version, of the state and of the model.
    for name in ["state.safetensors", "model.safetensors"] {
        let path = run.join(name);
        let bytes = fs::read(&path).unwrap();
        let version = format!("\\\"format_version\\\":{FORMAT_VERSION}");
        let version = version.as_bytes();
        let found = bytes.windows(version.len()).position(|part| part == version).unwrap();
        let mut other = bytes.clone();
        other[found + version.len() - 1] = b'9';
        fs::write(&path, other).unwrap();
        let said = resume(&[]);
        assert!(said.contains(name) && said.contains("is of format version 9"), "{said}");
        let read = format!("this program reads version {FORMAT_VERSION}");
        assert!(said.contains(&read), "{said}");
        fs::write(&path, bytes).unwrap();
    }

    // Files that do not belong together.
    fs::remove_file(run.join("model.safetensors")).unwrap();
    let said = resume(&[]);
    assert!(said.contains("model.safetensors: is not there; by the state.safetensors"), "{said}");
    fs::write(run.join("model.safetensors"), &before[2]).unwrap();
    let records = String::from_utf8(before[1].clone()).unwrap();
    let (fewer, _) = records.trim_end().rsplit_once('\n').unwrap();
    fs::write(run.join("metrics.jsonl"), format!("{fewer}\n")).unwrap();
    let said = resume(&[]);
    assert!(said.contains("metrics.jsonl: has records of 11 epochs"), "{said}");
    fs::write(run.join("metrics.jsonl"), records).unwrap();
    assert!(contents() == before);
    scene.check(&run);
}
