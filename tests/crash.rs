//! Runs whose process dies, or whose disk fills up, at any moment can be continued to the bits of
//! an unbroken run.

#![cfg(unix)]

mod runs;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bm3_engine::checkpoint::{ModelRecord, StateRecord, TensorFile};
use bm3_engine::philox::{Purpose, Stream};
use runs::{Scene, names, said};

const SIGKILL: i32 = 9;

/// Kills runs with `kill -9` at 200 moments, drawn anew each time, and resumes them after each.
/// `--resume` accepts whatever is there, and each run that ends equals the unbroken one.
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
    // Long enough that a run progresses, short enough that it does not end at once.
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

/// Debug builds have points between all file operations at which a process can be ended.
fn has_points() -> bool {
    if !cfg!(debug_assertions) {
        println!("skipped: only a debug build can be ended at a given point");
    }
    cfg!(debug_assertions)
}

/// Resumed without further epochs, a run has the best model according to its state, and no
/// half-written one.
fn check_settled(scene: &Scene, run: &Path) {
    let state = TensorFile::open(&run.join("state.safetensors")).unwrap();
    let state: StateRecord = state.record().unwrap();
    let mut command = scene.command(run);
    let output = command.args(["--epochs", &state.epoch.to_string()]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let model = TensorFile::open(&run.join("model.safetensors")).unwrap();
    let model: ModelRecord = model.record().unwrap();
    assert_eq!(Some(model.epoch), state.best.map(|best| best.epoch));
    let others = names(run).into_iter().filter(|name| name.starts_with('.') && name != ".lock");
    assert_eq!(others.count(), 0);
    // Restores the settings with which the run is to continue.
    let settings = run.join("config.toml");
    let text = fs::read_to_string(&settings).unwrap();
    let whole = fs::read_to_string(scene.whole.join("config.toml")).unwrap();
    let line = |text: &str| text.lines().find(|line| line.starts_with("epochs")).map(str::to_owned);
    let (Some(now), Some(then)) = (line(&text), line(&whole)) else { panic!("{text}") };
    fs::write(&settings, text.replace(&now, &then)).unwrap();
}

/// Ends a run at each point of its writing in turn, and once more while it is resumed.
#[test]
fn a_run_ended_between_any_two_writes_goes_on_to_the_same_bits() {
    if !has_points() {
        return;
    }
    let scene = Scene::new();
    // All checkpoints are written alike, so the points of the first ones are enough.
    let mut before_the_first = 0;
    for point in 1..=48 {
        let run = scene.run(&format!("point {point}"));
        let output = scene.train(&run, Some(&format!("kill:{point}")));
        assert!(output.status.signal().is_some(), "point {point}: {output:?}");
        before_the_first += usize::from(!run.join("state.safetensors").exists());
        if run.join("state.safetensors").exists() {
            check_settled(&scene, &run);
        }
        let again = scene.train(&run, Some(&format!("kill:{}", 1 + point % 23)));
        assert!(again.status.signal().is_some(), "point {point}: {again:?}");
        let output = scene.train(&run, None);
        assert!(output.status.success(), "point {point}: {}", said(&output));
        scene.check(&run);
    }
    assert!(before_the_first > 5, "{before_the_first}");
}

/// Fills the disk from each point of a run's writing on: an error names the file and how to
/// continue, and nothing is lost.
#[test]
fn a_disk_that_is_full_at_any_moment_loses_nothing() {
    if !has_points() {
        return;
    }
    let scene = Scene::new();
    for point in 1..=48 {
        let run = scene.run(&format!("point {point}"));
        let output = scene.train(&run, Some(&format!("full:{point}")));
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "point {point}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains(&*run.to_string_lossy()) && said.contains(": cannot "), "{said}");
        assert!(said.contains("no storage space"), "{said}");
        let has_begun = run.join("config.toml").exists();
        assert_eq!(said.contains("--resume"), has_begun, "point {point}: {said}");
        let has_state = run.join("state.safetensors").exists();
        assert_eq!(said.contains("the last checkpoint is whole"), has_state, "{said}");
        let output = scene.train(&run, None);
        assert!(output.status.success(), "point {point}: {output:?}");
        scene.check(&run);
    }
}

/// A data set that replaces another is there whole, or the other one still is, whether the process
/// dies or the disk fills up; at worst the folder has no interactions, and so no data set.
#[test]
fn a_data_set_is_replaced_whole_or_not_at_all() {
    if !has_points() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let synth = |name: &str, seed: &str, image: &str, fault: Option<String>| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bm3-engine"));
        command.args(["synth", "--shape", "tiny", "--overwrite", "--seed", seed, "--image", image]);
        command.arg("--out").arg(folder.path().join(name));
        command.envs(fault.map(|fault| ("BM3_TEST_FAULT", fault))).output().unwrap()
    };
    let content = |name: &str| -> Vec<(String, Vec<u8>)> {
        let directory = folder.path().join(name);
        let names = names(&directory).into_iter();
        names
            .map(|name| (name.clone(), fs::read(directory.join(&name)).unwrap_or_default()))
            .collect()
    };
    for (name, seed, image) in [("old", "1", "8"), ("new", "2", "0")] {
        assert!(synth(name, seed, image, None).status.success());
    }
    for fault in ["kill", "full"] {
        let (mut kept, mut lost, mut replaced) = (0, 0, 0);
        for point in 1.. {
            fs::remove_dir_all(folder.path().join("data")).ok();
            assert!(synth("data", "1", "8", None).status.success());
            let output = synth("data", "2", "0", Some(format!("{fault}:{point}")));
            let mut found = content("data");
            if fault == "kill" {
                found.retain(|(name, _)| !name.starts_with(".bm3-unfinished-"));
            }
            match found {
                found if found == content("old") => kept += 1,
                found if found == content("new") => replaced += 1,
                found => {
                    assert!(found.iter().all(|(name, _)| !name.ends_with(".inter")), "{point}");
                    assert!(found.iter().all(|(name, _)| !name.starts_with('.')), "{point}");
                    lost += 1;
                }
            }
            if output.status.success() {
                break;
            }
            // Once more, and nothing of the earlier attempts is left.
            assert!(synth("data", "2", "0", None).status.success());
            assert_eq!(content("data"), content("new"), "{fault} at {point}");
        }
        println!("{fault}: {kept} times kept, {lost} times no data set, {replaced} times replaced");
        assert!(kept > 5 && lost > 0 && replaced > 0 && lost < kept, "{fault}");
    }
}
