//! A small data set and program runs on it, for tests of run directories.

#![allow(dead_code, reason = "each test program uses a part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bm3_engine::philox::{Purpose, Stream};

const EPOCHS: usize = 12;

/// A data set that takes no time to read, and an uninterrupted run on it.
pub struct Scene {
    pub directory: tempfile::TempDir,
    pub whole: PathBuf,
}

impl Scene {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        write_data(&directory.path().join("data"));
        let whole = directory.path().join("whole");
        let scene = Self { directory, whole };
        let output = scene.train(&scene.whole, None);
        assert!(output.status.success(), "{output:?}");
        let records = untimed(&scene.whole);
        assert!(records.iter().all(|record| record["best"] == true), "{records:?}");
        scene
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub fn run(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `train`, or `train --resume` if the run has begun.
    pub fn command(&self, run: &Path) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("bm3-engine"));
        command.env("CUDA_VISIBLE_DEVICES", "").env_remove("RUST_LOG");
        command.args(["train", "--quiet", "--checkpoint-seconds", "0", "--threads", "1"]);
        if run.join("config.toml").is_file() {
            command.arg("--resume").arg(run);
        } else {
            let epochs = EPOCHS.to_string();
            command.arg("--data").arg(self.data()).arg("--out").arg(run);
            command.args(["--device", "cpu", "--epochs", &epochs, "--patience", "1000"]);
            command.args(["--embedding-size", "8", "--batch-size", "32"]);
            command.args(["--learning-rate", "0.02"]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn train(&self, run: &Path, fault: Option<&str>) -> Output {
        self.command(run).envs(fault.map(|fault| ("BM3_TEST_FAULT", fault))).output().unwrap()
    }

    /// Asserts that a finished run equals the uninterrupted one.
    pub fn check(&self, run: &Path) {
        for name in ["model.safetensors", "state.safetensors"] {
            assert!(numbers(&self.whole.join(name)) == numbers(&run.join(name)), "{name} differs");
        }
        assert_eq!(untimed(&self.whole), untimed(run));
        assert_eq!(names(&self.whole), names(run));
        let settings = |run: &Path| fs::read_to_string(run.join("config.toml")).unwrap();
        assert_eq!(settings(&self.whole), settings(run));
    }
}

/// Users of two tastes, items of two kinds, one modality. There is no validation split, so every
/// epoch is the best so far and every checkpoint writes a model.
pub fn write_data(data: &Path) {
    let (users, items, columns) = (24u32, 16u32, 6u32);
    let stream = Stream::new(3, Purpose::Initial, 0, 0);
    let mut table = "userID\titemID\tx_label\n".to_owned();
    for (user, item) in (0..users).flat_map(|user| (0..items).map(move |item| (user, item))) {
        let chance = if user % 2 == item % 2 { 0.8 } else { 0.1 };
        if user % items == item || stream.uniform(u64::from(user * items + item)) < chance {
            let label = if user % items == item { 0 } else { [0, 0, 0, 2][item as usize / 2 % 4] };
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

/// The tensors of a safetensors file, without its header, which holds wall times.
pub fn numbers(path: &Path) -> Vec<u8> {
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

pub fn names(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
