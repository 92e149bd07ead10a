//! What lists hold.

use std::fs;

use predicates::str::contains;

use super::{output, path, program, tiny};

/// Lists of chosen items, and without others, are the whole lists without the rest.
#[test]
fn lists_are_narrowed_to_candidates_and_by_exclusions() {
    let directory = tempfile::tempdir().unwrap();
    let data = tiny(directory.path());
    let run = directory.path().join("run");
    output(&["train", "--data", &data, "--out", path(&run), "--epochs", "2", "--quiet"]);
    let ask = |arguments: &[&str]| -> Vec<String> {
        let flags = ["recommend", "--model", path(&run), "--users", "3,7,250", "--scores"];
        let text = output(&[&flags[..], arguments].concat());
        // user, item and score, without the rank.
        let columns = |line: &str| -> String {
            let columns: Vec<&str> = line.split(',').collect();
            format!("{},{},{}", columns[0], columns[2], columns[3])
        };
        text.lines().skip(1).map(columns).collect()
    };
    let item = |line: &String| line.split(',').nth(1).unwrap().parse::<u32>().unwrap();
    let whole = ask(&["--top-k", "1000"]);
    let seen = ask(&["--top-k", "1000", "--with-seen"]);
    let items = seen.len() / 3;
    assert_eq!(seen.len(), 3 * items);
    assert!(whole.len() < seen.len() && whole.iter().all(|line| seen.contains(line)));
    let chosen = directory.path().join("chosen.txt");
    let odd: String = (1..items).step_by(2).map(|item| format!("{item}\n")).collect();
    fs::write(&chosen, odd).unwrap();
    for (flag, parity) in [("--candidates", 1), ("--exclude", 0)] {
        for (all, more) in [(&whole, &[][..]), (&seen, &["--with-seen"])] {
            let left: Vec<String> =
                all.iter().filter(|line| item(line) % 2 == parity).cloned().collect();
            let flags = [&["--top-k", "1000", flag, path(&chosen)], more].concat();
            assert_eq!(ask(&flags), left, "{flag} {more:?}");
        }
    }
    let both = ask(&["--top-k", "2", "--candidates", "1,2,3", "--exclude", "2,9"]);
    assert!(both.iter().all(|line| [1, 3].contains(&item(line))), "{both:?}");
    for (flag, given, reason) in [
        ("--exclude", "all", "--exclude: `all` found"),
        ("--candidates", "1,100000", "--candidates: `100000` found"),
        ("--candidates", "no/such", "--candidates: `no/such` found, and there is no such file"),
    ] {
        program(&["recommend", "--model", path(&run), flag, given])
            .assert()
            .code(2)
            .stderr(contains(reason));
    }
}
