//! From raw interactions to recommendations by their ids.

use std::fs;
use std::path::{Path, PathBuf};

use predicates::prelude::*;
use predicates::str::contains;
use serde_json::Value;

use super::{output, path, program};

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

/// A table of `rows` (user, item), prepared without features into `out`.
fn prepare(folder: &Path, out: &str, rows: &[(String, String)]) -> PathBuf {
    let (table, out) = (folder.join(format!("{out}.csv")), folder.join(out));
    let rows: String = rows.iter().map(|(user, item)| format!("{user},{item}\n")).collect();
    fs::write(&table, format!("user,item\n{rows}")).unwrap();
    output(
        &[
            &["prepare", "--interactions", path(&table), "--out", path(&out)][..],
            &["--k-core", "0", "--split", "0.9,0,0.1"],
        ]
        .concat(),
    );
    out
}

/// Newer interactions come in a folder of their own, which numbers users and items by their order
/// there: they are matched by their ids.
#[test]
fn interactions_that_are_numbered_otherwise_are_matched_by_their_ids() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    let mut rows = Vec::new();
    for user in 0..9 {
        for item in (0..8).filter(|item| (user + item) % 3 != 0) {
            rows.push((format!("user {user}"), format!("item {item}")));
        }
    }
    let data = prepare(folder, "data", &rows);
    let run = folder.join("run");
    let train = ["train", "--data", path(&data), "--epochs", "1", "--quiet"];
    output(&[&train[..], &["--out", path(&run), "--embedding-size", "8"]].concat());

    // One more interaction, in a table in the same order and in one in the reverse order, the latter
    // with somebody and something new.
    rows.push(("user 0".to_owned(), "item 0".to_owned()));
    let same = prepare(folder, "same", &rows);
    rows.reverse();
    rows.insert(0, ("newcomer".to_owned(), "item 1".to_owned()));
    rows.insert(1, ("user 3".to_owned(), "novelty".to_owned()));
    let other = prepare(folder, "other", &rows);
    // The same split, by ids: all of it is training data.
    for data in [&same, &other] {
        let file = data.join(format!("{}.inter", data.file_name().unwrap().display()));
        let text = fs::read_to_string(&file).unwrap().replace("\t2\n", "\t0\n");
        fs::write(&file, text).unwrap();
    }
    let ask = |command: &str, data: &Path| {
        program(&[command, "--model", path(&run), "--data", path(data), "--top-k", "3", "--scores"])
    };
    let expected = ask("recommend", &same).assert().success();
    let found = ask("recommend", &other).assert().success();
    assert_eq!(expected.get_output().stdout, found.get_output().stdout);
    found.stderr(contains("matched by their ids; 2 interactions, of others than the model knows"));
    let similar = |data: &Path| ask("similar", data).assert().success().get_output().stdout.clone();
    assert_eq!(similar(&same), similar(&other));

    // Rows of initial values and of features cannot be matched.
    let init = run.join("model.safetensors");
    let begin = ["train", "--data", path(&other), "--init", path(&init), "--epochs", "1"];
    let refused =
        contains("--init: ").and(contains("numbers users and items otherwise than")).and(contains(
            "so its rows belong to others: begin with a model that was trained on this folder\n",
        ));
    program(&begin).args(["--embedding-size", "8"]).assert().code(2).stderr(refused);
}

/// A user's number without training interactions has a list, but not without a word.
#[test]
fn users_without_training_interactions_are_told_of() {
    let directory = tempfile::tempdir().unwrap();
    let (data, run) = (directory.path().join("data"), directory.path().join("run"));
    fs::create_dir(&data).unwrap();
    let mut rows = "userID\titemID\tx_label\n".to_owned();
    for user in [0, 1, 3] {
        (0..6).for_each(|item| rows += &format!("{user}\t{}\t0\n", (user + item) % 8));
    }
    fs::write(data.join("data.inter"), rows).unwrap();
    output(&["train", "--data", path(&data), "--out", path(&run), "--epochs", "1", "--quiet"]);
    let ask = |users: &str| {
        program(&["recommend", "--model", path(&run), "--top-k", "2", "--users", users])
            .assert()
            .success()
    };
    ask("2,3").stderr(contains("warning: 1 of 2 users have no training interactions"));
    ask("0,1,3").stderr("");
}

/// A folder without a split is shown, measured, and trained on once told how to split it.
#[test]
fn a_folder_without_a_split_says_what_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let [data, run, alone] =
        ["data", "run", "alone.safetensors"].map(|name| directory.path().join(name));
    fs::create_dir(&data).unwrap();
    let mut rows = "userID\titemID\n".to_owned();
    for user in 0..20 {
        (0..10).for_each(|item| rows += &format!("{user}\t{}\n", (user + 3 * item) % 31));
    }
    fs::write(data.join("data.inter"), rows).unwrap();
    // What archives from macOS leave is no data.
    fs::write(data.join("._data.inter"), "\0").unwrap();
    fs::write(data.join("._image_feat.npy"), "\0").unwrap();
    let train = ["train", "--data", path(&data), "--out", path(&run), "--epochs", "1", "--quiet"];
    program(&train).assert().code(2).stderr(contains("x_label`; add --split 0.8,0.1,0.1"));
    program(&train).args(["--split", "0.8,0.1,0.1"]).assert().success();
    assert!(output(&["inspect", path(&data)]).contains("data.inter: has no split (no column"));
    output(&["bench", "--data", path(&data), "--device", "cpu", "--repeats", "1", "--json"]);
    output(&["evaluate", "--model", path(&run)]);
    fs::copy(run.join("model.safetensors"), &alone).unwrap();
    program(&["evaluate", "--model", path(&alone), "--data", path(&data)]).assert().code(2).stderr(
        contains("whose settings do as --model, or prepare").and(contains("--split").not()),
    );
}
