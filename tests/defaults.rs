//! The training defaults are stated in four places: [`TrainConfig`], the help of the flags,
//! README's table and the Python package. All agree.

use std::collections::BTreeMap;

use bm3_engine::config::{RunSettings, TrainConfig, TrainSettings};
use clap::{Args, FromArgMatches};

/// The flags of the training settings, without those of a run.
fn flags() -> clap::Command {
    TrainSettings::augment_args(clap::Command::new("train"))
}

/// The default settings, changed by flags with these names and values.
fn config(values: &BTreeMap<String, String>) -> TrainConfig {
    let arguments = values.iter().map(|(name, value)| format!("--{name}={value}"));
    let matches = flags().no_binary_name(true).try_get_matches_from(arguments).unwrap();
    let mut config = TrainConfig::default();
    TrainSettings::from_arg_matches(&matches).unwrap().apply(&mut config);
    config
}

/// Each flag's name, with the default that `default_of` finds.
fn values(default_of: impl Fn(&clap::Arg) -> String) -> BTreeMap<String, String> {
    let flags = flags();
    let values: BTreeMap<String, String> = flags
        .get_arguments()
        .map(|flag| (flag.get_long().expect("a flag").to_owned(), default_of(flag)))
        .collect();
    let settings = serde_json::to_value(TrainConfig::default()).unwrap();
    assert_eq!(values.len(), settings.as_object().unwrap().len(), "a flag for each setting");
    values
}

#[test]
fn the_help_of_a_flag_says_its_default() {
    let values = values(|flag| {
        let help = flag.get_help().expect("a help").to_string();
        let default = help.rsplit_once("[default: ").and_then(|(_, end)| end.strip_suffix(']'));
        default.unwrap_or_else(|| panic!("{help}: says no default")).to_owned()
    });
    assert_eq!(config(&values), TrainConfig::default());
}

#[test]
fn the_readme_has_the_defaults() {
    let readme = include_str!("../README.md");
    // A row has one or several flags, and as many defaults.
    let mut rows = BTreeMap::new();
    for row in readme.lines().filter(|line| line.starts_with("| `--")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let names: Vec<&str> = cells[1].split(", ").collect();
        let defaults = match names.len() {
            1 => vec![cells[2]],
            _ => cells[2].split(", ").collect(),
        };
        assert_eq!(names.len(), defaults.len(), "{row}");
        for (name, default) in names.into_iter().zip(defaults) {
            rows.insert(name.trim_matches('`').trim_start_matches("--").to_owned(), default);
        }
    }
    let values = values(|flag| {
        let name = flag.get_long().expect("a flag");
        match rows.get(name) {
            Some(&"off") => "false".to_owned(),
            Some(default) => (*default).to_owned(),
            None => panic!("README has no row for --{name}"),
        }
    });
    assert_eq!(config(&values), TrainConfig::default());
    for flag in RunSettings::augment_args(clap::Command::new("train")).get_arguments() {
        let name = format!("`--{}`", flag.get_long().expect("a flag"));
        assert!(readme.contains(&name[..name.len() - 1]), "README does not name {name}");
    }
}

#[test]
fn python_has_the_defaults() {
    let parameters = include_str!("../python/bm3_engine/_parameters.py");
    let signature = parameters.split("def __init__(").nth(1).expect("a constructor");
    let signature = signature.split(") -> None:").next().expect("its end");
    let written: BTreeMap<String, String> = signature
        .lines()
        .filter_map(|line| line.trim().strip_suffix(',')?.split_once(" = "))
        .map(|(name, value)| {
            let name = name.split(':').next().expect("a name").replace('_', "-");
            let value = match value {
                "True" | "False" => value.to_lowercase(),
                _ => value.replace(['"', '(', ')', ' '], ""),
            };
            (name, value)
        })
        .collect();
    let values = values(|flag| {
        let name = flag.get_long().expect("a flag");
        written.get(name).unwrap_or_else(|| panic!("BM3 has no parameter for --{name}")).clone()
    });
    assert_eq!(config(&values), TrainConfig::default());
}
