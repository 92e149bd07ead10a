//! Runs whose process dies, or whose disk is full, at any moment: what is left goes on to the bits of
//! an unbroken run.

#![cfg(unix)]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bm3_engine::philox::{Purpose, Stream};

const EPOCHS: usize = 12;
const SIGKILL: i32 = 9;

/// A data set that is read in no time, and an unbroken run on it.
struct Scene {
    directory: tempfile::TempDir,
    whole: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        write_data(&directory.path().join("data"));
        let whole = directory.path().join("whole");
        let scene = Self { directory, whole };
        let output = scene.train(&scene.whole, None);
        assert!(output.status.success(), "{output:?}");
        scene
    }

    fn run(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `train`, or `train --resume` where the run has begun.
    fn command(&self, run: &Path) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("bm3-engine"));
        command.env("CUDA_VISIBLE_DEVICES", "").env_remove("RUST_LOG");
        command.args(["train", "--quiet", "--checkpoint-seconds", "0", "--threads", "1"]);
        if run.join("config.toml").is_file() {
            command.arg("--resume").arg(run);
        } else {
            let epochs = EPOCHS.to_string();
            command.arg("--data").arg(self.directory.path().join("data")).arg("--out").arg(run);
            command.args(["--device", "cpu", "--epochs", &epochs, "--patience", "1000"]);
            command.args(["--embedding-size", "8", "--batch-size", "32"]);
            command.args(["--learning-rate", "0.02"]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn train(&self, run: &Path, fault: Option<&str>) -> Output {
        self.command(run).envs(fault.map(|fault| ("BM3_TEST_FAULT", fault))).output().unwrap()
    }

    /// The run has ended: it is the unbroken one.
    fn check(&self, run: &Path) {
        for name in ["model.safetensors", "state.safetensors"] {
            assert!(numbers(&self.whole.join(name)) == numbers(&run.join(name)), "{name} differs");
        }
        assert_eq!(untimed(&self.whole), untimed(run));
        assert_eq!(names(&self.whole), names(run));
        let settings = |run: &Path| fs::read_to_string(run.join("config.toml")).unwrap();
        assert_eq!(settings(&self.whole), settings(run));
    }
}

/// Some users of two tastes, items of two kinds, one modality.
fn write_data(data: &Path) {
    let (users, items, columns) = (24u32, 16u32, 6u32);
    let stream = Stream::new(3, Purpose::Initial, 0, 0);
    let mut table = "userID\titemID\tx_label\n".to_owned();
    for (user, item) in (0..users).flat_map(|user| (0..items).map(move |item| (user, item))) {
        let chance = if user % 2 == item % 2 { 0.8 } else { 0.1 };
        if user % items == item || stream.uniform(u64::from(user * items + item)) < chance {
            let label = if user % items == item { 0 } else { [0, 0, 1, 2][item as usize / 2 % 4] };
            table += &format!("{user}\t{item}\t{label}\n");
        }
    }
    fs::create_dir(data).unwrap();
    fs::write(data.join("data.inter"), table).unwrap();
    let header =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({items}, {columns}), }}");
    let mut npy = b"\x93NUMPY\x01\x00".to_vec();
    npy.extend((header.len() as u16).to_le_bytes());
    npy.extend(header.as_bytes());
    for index in 0..items * columns {
        let value = stream.normal(u64::from(index) + 10_000) as f32;
        npy.extend(value.to_le_bytes());
    }
    fs::write(data.join("text_feat.npy"), npy).unwrap();
}

/// What a safetensors file holds after its header, which has wall times.
fn numbers(path: &Path) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header..].to_vec()
}

/// The epochs' records without their wall times.
fn untimed(run: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let untimed = |line: &str| {
        let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
        let fields = record.as_object_mut().unwrap();
        fields.retain(|name, _| !name.ends_with("_seconds"));
        record
    };
    text.lines().map(untimed).collect()
}

fn names(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `kill -9` at 200 moments, drawn anew each time, of runs that are resumed after each. Whatever is
/// there is resumed by `--resume`, and each run that ends is the unbroken one.
#[test]
fn a_run_killed_at_any_moment_goes_on_to_the_same_bits() {
    let scene = Scene::new();
    let seed = match std::env::var("BM3_TEST_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into(),
    };
    println!("BM3_TEST_SEED={seed}");
    let delays = Stream::new(seed, Purpose::Initial, 0, 0);
    let (mut killed, mut ended) = (0, 0);
    let mut run = scene.run("0");
    // Long enough that a run goes on, short enough that it does not end at once.
    let longest = 0.06;
    for attempt in 0.. {
        if killed >= 200 && ended >= 3 {
            break;
        }
        assert!(attempt < 2000, "{killed} killed, {ended} ended: no progress is made");
        let mut child = scene.command(&run).spawn().unwrap();
        std::thread::sleep(Duration::from_secs_f64(longest * delays.uniform(attempt)));
        // It may have ended already.
        child.kill().ok();
        let output = child.wait_with_output().unwrap();
        match output.status.signal() {
            Some(SIGKILL) => killed += 1,
            _ => {
                assert!(output.status.success(), "attempt {attempt}: {}", said(&output));
                scene.check(&run);
                ended += 1;
                run = scene.run(&ended.to_string());
            }
        }
    }
    println!("{killed} killed, {ended} ended with the bits of an unbroken run");
}

/// Debug builds have points between all that is done to files, at which a process may be ended.
fn has_points() -> bool {
    if !cfg!(debug_assertions) {
        println!("skipped: only a debug build can be ended at a given point");
    }
    cfg!(debug_assertions)
}

/// At each point of a run's writing in turn; then once more while it is resumed.
#[test]
fn a_run_ended_between_any_two_writes_goes_on_to_the_same_bits() {
    if !has_points() {
        return;
    }
    let scene = Scene::new();
    // Each checkpoint is written alike: the points of the first ones are all there are.
    let mut before_the_first = 0;
    for point in 1..=60 {
        let run = scene.run(&format!("point {point}"));
        let output = scene.train(&run, Some(&format!("kill:{point}")));
        assert!(output.status.signal().is_some(), "point {point}: {output:?}");
        before_the_first += usize::from(!run.join("state.safetensors").exists());
        let again = scene.train(&run, Some(&format!("kill:{}", 1 + point % 23)));
        assert!(again.status.signal().is_some(), "point {point}: {again:?}");
        let output = scene.train(&run, None);
        assert!(output.status.success(), "point {point}: {}", said(&output));
        scene.check(&run);
    }
    assert!(before_the_first > 5, "{before_the_first}");
}

/// From each point of a run's writing on: an error that names the file and how to go on, and nothing
/// is lost.
#[test]
fn a_disk_that_is_full_at_any_moment_loses_nothing() {
    if !has_points() {
        return;
    }
    let scene = Scene::new();
    for point in 1..=60 {
        let run = scene.run(&format!("point {point}"));
        let output = scene.train(&run, Some(&format!("full:{point}")));
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "point {point}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains(&*run.to_string_lossy()) && said.contains(": cannot "), "{said}");
        assert!(said.contains("no storage space"), "{said}");
        let has_state = run.join("state.safetensors").exists();
        assert_eq!(said.contains("--resume"), has_state, "point {point}: {said}");
        let output = scene.train(&run, None);
        assert!(output.status.success(), "point {point}: {output:?}");
        scene.check(&run);
    }
}
