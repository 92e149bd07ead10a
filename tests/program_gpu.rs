//! The program on a GPU, from end to end: training, interruption, evaluation, recommendation, the
//! list of devices, and the messages for a GPU that cannot be used or has too little memory.
//!
//! The program finds the emulated driver (`tests/emulator`) through `LD_LIBRARY_PATH`; with
//! `BM3_TEST_GPU=1` it computes on the machine's GPU 0. A program built without nvcc has no
//! kernels: then the tests check that it says so.

mod emulator;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use assert_cmd::cargo::cargo_bin_cmd;
use bm3_engine::cuda::{Kernels, Unusable, gpus};
use predicates::prelude::*;
use predicates::str::{contains, is_empty, starts_with};
use serde_json::Value;

/// Settings of a run that takes a second.
const SHORT: &str = "embedding_size = 16\nepochs = 2\npatience = 9\n";

/// A test's folder, with a tiny data set, and the driver for the program to find.
struct Setting {
    folder: tempfile::TempDir,
    /// The emulated driver's folder; `None` on a real GPU.
    driver: Option<PathBuf>,
}

impl Setting {
    /// `None`, after printing the reason, if no driver is available.
    fn new() -> Option<Self> {
        let driver = match emulator::on_gpu() {
            true => None,
            false => Some(emulator::library::build()?.parent().expect("a folder").to_owned()),
        };
        let setting = Self { folder: tempfile::tempdir().unwrap(), driver };
        let data = setting.path("tiny");
        setting.program(&["synth", "--shape", "tiny", "--out", &data]).assert().success();
        fs::write(setting.path("short.toml"), SHORT).unwrap();
        Some(setting)
    }

    /// As [`Setting::new`], for tests that need a driver that can be told what to pretend.
    fn emulated() -> Option<Self> {
        if emulator::on_gpu() {
            println!("skipped: a real driver cannot be told what to pretend");
            return None;
        }
        Self::new()
    }

    /// As [`Setting::new`], for tests that need kernels in the program. Without them, checks that
    /// it says so.
    fn with_kernels() -> Option<Self> {
        let setting = Self::new()?;
        if Kernels::embedded().is_some() {
            return Some(setting);
        }
        println!("skipped: the program was built without CUDA kernels");
        setting
            .train("run", &["--device", "0"])
            .assert()
            .code(2)
            .stdout(is_empty())
            .stderr(starts_with("error: device 0: the GPU is there, but this build of bm3-engine"));
        assert!(!Path::new(&setting.path("run")).exists());
        None
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn program(&self, arguments: &[impl AsRef<OsStr>]) -> Command {
        let mut command = cargo_bin_cmd!("bm3-engine");
        command.args(arguments).env_remove("RUST_LOG");
        if let Some(driver) = &self.driver {
            command.env("LD_LIBRARY_PATH", driver);
        }
        command
    }

    fn output(&self, arguments: &[&str]) -> String {
        let assert = self.program(arguments).assert().success();
        String::from_utf8(assert.get_output().stdout.clone()).unwrap()
    }

    /// The command line of a short run of this name on the tiny data set.
    fn training(&self, run: &str) -> [String; 7] {
        let [short, data, run] = [self.path("short.toml"), self.path("tiny"), self.path(run)];
        let [config, from, to] = ["--config", "--data", "--out"].map(str::to_owned);
        ["train".to_owned(), config, short, from, data, to, run]
    }

    /// The same command with more settings.
    fn train(&self, run: &str, arguments: &[&str]) -> Command {
        let mut command = self.program(&self.training(run));
        command.args(arguments);
        command
    }

    fn bytes(&self, run: &str, name: &str) -> Vec<u8> {
        fs::read(self.folder.path().join(run).join(name)).unwrap()
    }

    fn summary(&self, run: &str) -> Value {
        serde_json::from_slice(&self.bytes(run, "summary.json")).unwrap()
    }

    /// Lists with scores for some users, by a run's model.
    fn lists(&self, run: &str, device: &str) -> Vec<Value> {
        let (model, out) = (self.path(run), self.path("lists.jsonl"));
        self.output(&[
            "recommend",
            "--model",
            &model,
            "--device",
            device,
            "--top-k",
            "10",
            "--scores",
            "--out",
            &out,
        ]);
        let text = fs::read_to_string(out).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Asserts equal lists of equal scores, up to `tolerance`; items whose scores are that close may
/// have changed places.
fn assert_same_lists(expected: &[Value], found: &[Value], tolerance: f64) {
    assert_eq!(expected.len(), found.len());
    let numbers = |line: &Value, key: &str| -> Vec<f64> {
        line[key].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
    };
    let (mut ranks, mut exchanged) = (0, 0);
    for (expected, found) in expected.iter().zip(found) {
        assert_eq!(expected["user"], found["user"]);
        let [expected_scores, found_scores] = [expected, found].map(|line| numbers(line, "scores"));
        let [expected_items, found_items] = [expected, found].map(|line| numbers(line, "items"));
        assert_eq!(expected_items.len(), found_items.len());
        for rank in 0..expected_items.len() {
            let off = (expected_scores[rank] - found_scores[rank]).abs();
            assert!(off <= tolerance, "{}, rank {rank}: off by {off:e}", expected["user"]);
            ranks += 1;
            exchanged += usize::from(expected_items[rank] != found_items[rank]);
        }
    }
    assert!(exchanged * 50 <= ranks, "{exchanged} of {ranks} ranks have other items");
}

#[test]
fn a_gpu_trains_and_serves_as_the_cpu_does() {
    let Some(setting) = Setting::with_kernels() else { return };
    let on_gpu = contains("parameters, on GPU 0 (");
    setting.train("gpu", &["--device", "0"]).assert().success().stderr(on_gpu);
    setting.train("cpu", &["--device", "cpu"]).assert().success();
    assert!(setting.summary("gpu")["device"].as_str().unwrap().starts_with("GPU 0 ("));

    // The run's saved settings repeat it on the GPU, to the same bits.
    let (config, again) = (setting.path("gpu/config.toml"), setting.path("again"));
    setting.output(&["train", "--config", &config, "--out", &again]);
    assert!(
        setting.bytes("gpu", "model.safetensors") == setting.bytes("again", "model.safetensors")
    );

    // On the device where it was trained, a model measures as in training, to the last bit.
    let model = setting.path("gpu");
    let evaluate = |split: &str, device: &str| -> Value {
        let arguments =
            ["evaluate", "--model", &model, "--split", split, "--device", device, "--json"];
        serde_json::from_str(&setting.output(&arguments)).unwrap()
    };
    for split in ["valid", "test"] {
        let measured = evaluate(split, "0");
        assert_eq!(measured["metrics"], setting.summary("gpu")[split]);
        let elsewhere = evaluate(split, "cpu");
        for (name, value) in measured["metrics"].as_object().unwrap() {
            let off = value.as_f64().unwrap() - elsewhere["metrics"][name].as_f64().unwrap();
            assert!(off.abs() < 0.005, "{split} {name}: {off}");
        }
    }

    // One model scores alike on both, up to some roundings at 22 bits (kernels/tile.cuh) in sums of
    // 16 products. Two models trained apart also differ by the roundings of their steps.
    let lists = setting.lists("gpu", "0");
    assert_eq!(lists.len(), 300);
    assert_same_lists(&setting.lists("gpu", "cpu"), &lists, 3e-6);
    assert_same_lists(&setting.lists("cpu", "cpu"), &lists, 1e-4);
}

/// A resumed run uses the feature type in its settings file: it gives the bits of an unbroken run,
/// which are not those of another type.
#[cfg(unix)]
#[test]
fn an_interrupted_run_goes_on_to_the_same_bits() {
    use std::io::{BufRead, BufReader};
    use std::process::{self, Stdio};

    let Some(setting) = Setting::with_kernels() else { return };
    let frozen = ["--device", "0", "--freeze-features", "--epochs", "3"];
    let narrow = [&frozen[..], &["--feature-type", "bf16"]].concat();
    setting.train("whole", &narrow).assert().success();
    setting.train("wide", &frozen).assert().success();
    let broken = setting.path("broken");
    let mut command = process::Command::new(assert_cmd::cargo::cargo_bin!("bm3-engine"));
    command.args(setting.training("broken")).arg("--json").args(&narrow);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    if let Some(driver) = &setting.driver {
        command.env("LD_LIBRARY_PATH", driver);
    }
    let mut child = command.spawn().unwrap();
    let mut events = BufReader::new(child.stdout.take().unwrap()).lines();
    // Interrupted after the first of three epochs, if it is seen in time. (tests/training.rs
    // interrupts within epochs.)
    events.find(|line| line.as_ref().unwrap().contains("\"event\":\"epoch\"")).unwrap().unwrap();
    process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    events.for_each(drop);
    let code = child.wait().unwrap().code();
    assert!(matches!(code, Some(0 | 130)), "{code:?}");
    println!("interrupted after {} steps", setting.summary("broken")["steps"]);

    setting.output(&["train", "--resume", &broken]);
    let numbers = |run: &str, name: &str| {
        let bytes = setting.bytes(run, name);
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[8 + header..].to_vec()
    };
    for name in ["model.safetensors", "state.safetensors"] {
        assert!(numbers("whole", name) == numbers("broken", name), "{name}");
    }
    assert!(numbers("whole", "model.safetensors") != numbers("wide", "model.safetensors"));

    // Serving needs no features, so a CPU can use the model, but it cannot continue its training.
    assert_same_lists(&setting.lists("whole", "cpu"), &setting.lists("whole", "0"), 3e-6);
    setting
        .program(&["train", "--resume", &broken, "--device", "cpu", "--epochs", "4"])
        .assert()
        .code(2)
        .stderr(contains("--feature-type: bf16 found, auto or f32 expected on the CPU"));
    // A hand-edited settings file is another run's.
    let config = setting.folder.path().join("broken/config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("feature_type = \"bf16\"", "feature_type = \"f16\"")).unwrap();
    setting
        .program(&["train", "--resume", &broken, "--epochs", "4"])
        .assert()
        .code(2)
        .stderr(contains("its setting feature_type is"));
}

/// Every launch of the epoch is timed, even those that are otherwise recorded once for many.
#[test]
fn a_profile_changes_no_bit_of_a_run() {
    let Some(setting) = Setting::with_kernels() else { return };
    let settings = ["--device", "0", "--batch-size", "700"];
    setting.train("plain", &settings).assert().success();
    setting.train("timed", &settings).arg("--profile").assert().success();
    assert!(
        setting.bytes("plain", "model.safetensors") == setting.bytes("timed", "model.safetensors")
    );
    let profile: Value = serde_json::from_slice(&setting.bytes("timed", "profile.json")).unwrap();
    assert_eq!((profile["epoch"].as_u64(), profile["steps"].as_u64()), (Some(2), Some(8)));
    let operations = profile["operations"].as_array().unwrap();
    let calls = |name: &str| operations.iter().find(|o| o["name"] == name).map(|o| &o["calls"]);
    assert_eq!(calls("loss_terms"), Some(&8.into()), "{profile}");
}

#[test]
fn a_number_that_a_type_cannot_hold_is_named() {
    let Some(setting) = Setting::with_kernels() else { return };
    let text = setting.folder.path().join("tiny/text_feat.npy");
    let mut bytes = fs::read(&text).unwrap();
    // The last two of 200 rows of 32 numbers.
    for row in 1..=2 {
        let place = bytes.len() - 4 * (32 * row - 5);
        bytes[place..place + 4].copy_from_slice(&70_000.0f32.to_le_bytes());
    }
    fs::write(&text, bytes).unwrap();
    let frozen = ["--device", "0", "--freeze-features", "--feature-type"];
    let problem = "text_feat.npy, which is 70000; give a type of wider range, f32 or bf16";
    setting
        .train("run", &[&frozen[..], &["f16"]].concat())
        .assert()
        .code(2)
        .stderr(contains("--feature-type: f16 cannot hold row 198, column 5 of "))
        .stderr(contains(problem));
    assert!(!Path::new(&setting.path("run")).exists());
    setting.train("run", &[&frozen[..], &["bf16"]].concat()).assert().success();
}

#[test]
fn each_reason_why_a_gpu_cannot_be_used_is_its_own() {
    let Some(setting) = Setting::emulated() else { return };
    let refused = |device: &str, environment: &[(&str, &str)], reason: &str| {
        for command in ["train", "evaluate", "recommend"] {
            let mut command = match command {
                "train" => setting.train("run", &[]),
                _ => setting.program(&[command, "--model", &setting.path("cpu")]),
            };
            command
                .args(["--device", device])
                .envs(environment.iter().copied())
                .assert()
                .code(2)
                .stdout(is_empty())
                .stderr(contains(reason).and(predicate::function(is_one_line)));
            assert!(!Path::new(&setting.path("run")).exists());
        }
    };
    setting.train("cpu", &["--device", "cpu", "--epochs", "1"]).assert().success();
    refused("3", &[], "error: device 3: there is no such GPU: the driver shows one, number 0;");
    refused("0", &[("BM3_EMULATOR_DEVICES", "0")], "the driver shows none;");
    if Kernels::embedded().is_some() {
        let old_driver = [("BM3_EMULATOR_DRIVER", "12020")];
        refused("0", &old_driver, "error: device 0: the driver supports CUDA 12.2, and this");
        let old_gpu = [("BM3_EMULATOR_CAPABILITY", "75")];
        refused("0", &old_gpu, "error: device 0: its compute capability is 7.5, and this");
    } else {
        refused("0", &[], "error: device 0: the GPU is there, but this build of bm3-engine has no");
    }
    // This process does not use the emulator.
    if matches!(gpus(), Err(Unusable::NoDriver)) {
        let nowhere = [("LD_LIBRARY_PATH", "")];
        refused("0", &nowhere, "error: device 0: there is no NVIDIA driver on this machine");
    } else {
        println!("skipped, in part: this machine has a driver");
    }
}

fn is_one_line(text: &str) -> bool {
    text.ends_with('\n') && text.matches('\n').count() == 1
}

/// `auto` is GPU 0 or the CPU, and says why it does not use a GPU that is there. A GPU that fails
/// is an error.
#[test]
fn auto_takes_the_gpu_or_says_why_not() {
    let Some(setting) = Setting::emulated() else { return };
    let train = |name: &str, environment: &[(&str, &str)]| {
        let mut command = setting.train(name, &["--epochs", "1"]);
        command.envs(environment.iter().copied());
        command
    };
    let warned = "warning: computing on the CPU because GPU 0 cannot be used: ";
    let on_cpu = || contains("parameters, on CPU (");
    let kernels = Kernels::embedded().is_some();
    if kernels {
        train("a", &[]).assert().success().stderr(contains("parameters, on GPU 0 ("));
        let fails = [("BM3_EMULATOR_FAIL", "cuStreamCreate")];
        train("b", &fails)
            .assert()
            .code(1)
            .stderr(starts_with("error: GPU 0 (emulated GPU): making a stream: "));
    }
    let old = [("BM3_EMULATOR_DRIVER", "12020")];
    let reason = if kernels { "the driver supports CUDA 12.2" } else { "no CUDA kernels" };
    let said = train("c", &old).assert().success().stderr(on_cpu());
    let said = String::from_utf8(said.get_output().stderr.clone()).unwrap();
    assert!(said.starts_with(warned) && said.contains(reason), "{said}");
    assert_eq!(said.matches("warning").count(), 1, "{said}");
    let evaluate = ["evaluate", "--model", &setting.path("c")];
    setting.program(&evaluate).envs(old).assert().success().stderr(starts_with(warned));
    // There is no warning if the user asks for the CPU or for silence, or if there is no GPU.
    setting.program(&evaluate).args(["--device", "cpu"]).envs(old).assert().stderr(is_empty());
    train("d", &old).arg("--quiet").assert().success().stderr(is_empty());
    let none = [("BM3_EMULATOR_DEVICES", "0")];
    let silent = contains("warning").not();
    train("e", &none).assert().success().stderr(on_cpu().and(silent));
}

#[test]
fn devices_are_listed() {
    let Some(setting) = Setting::emulated() else { return };
    let list = |environment: &[(&str, &str)]| -> (String, Value) {
        let run = |arguments: &[&str]| {
            let mut command = setting.program(arguments);
            let assert = command.envs(environment.iter().copied()).assert();
            let assert = assert.success().stderr(is_empty());
            String::from_utf8(assert.get_output().stdout.clone()).unwrap()
        };
        (run(&["devices"]), serde_json::from_str(&run(&["devices", "--json"])).unwrap())
    };
    let kernels = Kernels::embedded();
    let two = [("BM3_EMULATOR_DEVICES", "2"), ("BM3_EMULATOR_MEMORY", "64000000000")];
    let (table, object) = list(&two);
    assert!(table.starts_with("device  name"), "{table}");
    assert!(table.contains("\ncpu     CPU, "), "{table}");
    assert_eq!(object["gpus"].as_array().unwrap().len(), 2);
    let gpu = &object["gpus"][1];
    assert_eq!((&gpu["device"], &gpu["name"]), (&1.into(), &"emulated GPU".into()));
    assert_eq!((&gpu["memory"], &gpu["driver"]), (&64_000_000_000u64.into(), &"13.0".into()));
    assert_eq!((&gpu["capability"], &gpu["multiprocessors"]), (&"9.0".into(), &4.into()));
    assert_eq!(gpu["usable"], kernels.is_some());
    match &kernels {
        Some(kernels) => {
            assert_eq!((&gpu["free"], &gpu["problem"]), (&gpu["memory"], &Value::Null));
            assert_eq!(object["kernels"]["toolkit"], kernels.toolkit.to_string());
            assert!(table.contains(&format!("\nkernels: {kernels}\n")), "{table}");
            let version = setting.output(&["--version"]);
            assert!(version.contains(&format!("\nkernels:  {kernels}\n")), "{version}");
        }
        None => {
            assert_eq!(object["kernels"], Value::Null);
            assert!(table.contains("GPU 1 cannot be used: the GPU is there, but"), "{table}");
            assert!(table.contains("\nkernels: none: built without nvcc"), "{table}");
        }
    }
    if kernels.is_some() {
        let (table, object) = list(&[("BM3_EMULATOR_DRIVER", "12020")]);
        assert!(table.contains("GPU 0 cannot be used: the driver supports CUDA 12.2"), "{table}");
        assert_eq!(object["gpus"][0]["usable"], false);
        // A GPU that fails only when it is opened.
        let (table, _) = list(&[("BM3_EMULATOR_FAIL", "cuModuleLoadData")]);
        assert!(table.contains("GPU 0 cannot be used: GPU 0 (emulated GPU): loading"), "{table}");
    }
    let (table, object) = list(&[("BM3_EMULATOR_DEVICES", "0")]);
    assert!(table.contains("\nno GPU: the NVIDIA driver shows no GPU\n"), "{table}");
    assert_eq!(object["problem"], "the NVIDIA driver shows no GPU");
    if matches!(gpus(), Err(Unusable::NoDriver)) {
        let (table, object) = list(&[("LD_LIBRARY_PATH", "")]);
        assert!(table.contains("\nno GPU: there is no NVIDIA driver on this machine"), "{table}");
        assert_eq!(object["gpus"], Value::Array(vec![]));
    } else {
        println!("skipped, in part: this machine has a driver");
    }
}

/// Too little memory is a failure (exit code 1), with one line that says what is missing and what
/// helps; `--dry-run` knows it before.
#[test]
fn too_little_memory_says_what_would_help() {
    if emulator::on_gpu() {
        println!("skipped: what a GPU has cannot be changed");
        return;
    }
    let Some(setting) = Setting::with_kernels() else { return };
    let frozen = ["--freeze-features"];
    for (arguments, memory, what) in [
        (&[][..], "100000", "no room for parameters"),
        (&[], "150000", "no room for trained features (values and two moments): 51200 bytes"),
        (&frozen, "150000", "no room for frozen features: 51200 bytes needed, "),
        (&[], "550000", "no room for "),
    ] {
        let limit = [("BM3_EMULATOR_MEMORY", memory)];
        let mut command = setting.train("run", &["--device", "0", "--quiet"]);
        let said = command.args(arguments).envs(limit).assert().code(1).stdout(is_empty());
        let said = String::from_utf8(said.get_output().stderr.clone()).unwrap();
        assert!(said.starts_with("error: GPU 0 (emulated GPU): ") && said.contains(what), "{said}");
        assert!(said.contains(&format!(" of {memory} bytes free; ")), "{said}");
        for flag in ["--freeze-features", "--feature-type f16", "--embedding-size", "--batch-size"]
        {
            assert!(said.contains(flag), "{said}");
        }
        assert!(is_one_line(&said), "{said}");
        assert!(!Path::new(&setting.path("run")).exists());
        let mut command = setting.train("run", &["--device", "0", "--dry-run"]);
        command
            .args(arguments)
            .envs(limit)
            .assert()
            .success()
            .stdout(contains("# Memory of GPU 0 (emulated GPU):\n"))
            .stdout(contains("that the GPU has: IT DOES NOT FIT; keep features as inputs"));
    }
    // The same if the GPU has more, but the run may not take it.
    let within = ["--device", "0", "--device-memory", "150kB"];
    let mut command = setting.train("run", &[&within[..], &["--quiet"]].concat());
    command.assert().code(1).stderr(contains(
        "no room for trained features (values and two moments): 51200 bytes needed, ",
    ));
    command
        .assert()
        .stderr(contains(" of 150000 bytes free; raise --device-memory, keep features"));
    let mut command = setting.train("run", &[&within[..], &["--dry-run"]].concat());
    command.assert().success().stdout(contains(
        ", 150 kB may be taken: IT DOES NOT FIT; raise --device-memory, keep features as inputs",
    ));
    let plan = setting.train("run", &["--device", "0", "--dry-run"]).assert().success();
    let text = String::from_utf8(plan.get_output().stdout.clone()).unwrap();
    assert!(text.contains("that the GPU has: it fits\n"), "{text}");
    assert!(text.contains("\n# Memory of the host:\n"), "{text}");
    text.parse::<toml::Table>().unwrap();
}

/// `bench` on a GPU also measures how fast features reach it, beside a plain copy.
#[test]
fn a_bench_measures_how_features_come_to_the_gpu() {
    let Some(setting) = Setting::with_kernels() else { return };
    let bench = |arguments: &[&str]| {
        let data = setting.path("tiny");
        let mut all = vec!["bench", "--data", &data, "--device", "0", "--repeats", "1"];
        all.extend(arguments);
        let output = setting.program(&all).assert().success().get_output().stdout.clone();
        String::from_utf8(output).unwrap()
    };
    let small = ["--embedding-size", "4", "--batch-size", "4096"];
    let object: Value = serde_json::from_str(&bench(&[&small[..], &["--json"]].concat())).unwrap();
    let measured = &object["measured"];
    // 200 items, 64 + 32 columns, in f32.
    assert_eq!(measured["upload"]["file_bytes"], 200 * 96 * 4);
    assert!(measured["upload"]["seconds"].as_f64().unwrap() > 0.0);
    assert!(measured["ceilings"]["upload"].as_f64().unwrap() > 0.0);
    let text = bench(&small);
    assert!(text.contains("\nfeatures     ") && text.contains("copy from the host"), "{text}");
}
