//! Runs and data that were moved, lost or damaged.

use std::fs;
use std::path::Path;
use std::process::Command;

use predicates::prelude::*;
use predicates::str::{contains, is_empty};
use serde_json::Value;

use super::{output, path, program, tiny};

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

    // How features were kept is as it was, whatever the settings of other models are.
    let streamed = folder.join("streamed");
    let stream = ["--freeze-features", "--feature-storage", "stream", "--epochs", "1", "--quiet"];
    let train = ["train", "--data", path(&moved), "--out", path(&streamed)];
    output(&[&train[..], &stream].concat());
    output(&["evaluate", "--model", path(&streamed)]);

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
