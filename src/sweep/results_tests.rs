use super::*;
use crate::config::{Axis, RunConfig, RunSettings, TrainSettings};
use crate::run::StopReason;

fn plan() -> Plan {
    let run = RunSettings { data: Some("/d".into()), ..RunSettings::default() };
    Plan {
        grid: vec![Axis::parse("layers=1,2,3").unwrap()],
        seeds: vec![7, 8],
        base: RunConfig::new(&TrainSettings::default(), &run).unwrap(),
    }
}

fn metrics(recall: f64) -> Metrics {
    Metrics {
        top_k: vec![20],
        recall: vec![recall],
        ndcg: vec![recall / 2.0],
        precision: vec![0.01],
        map: vec![0.02],
    }
}

fn finished(valid: f64, test: f64) -> Outcome {
    Outcome::Finished(Summary {
        version: "0".into(),
        dataset: "d".into(),
        device: "CPU".into(),
        stopped_by: StopReason::Patience,
        epochs: 30,
        steps: 60,
        best_epoch: Some(9),
        valid: Some(metrics(valid)),
        test: Some(metrics(test)),
        train_seconds: 1.25,
        evaluate_seconds: 0.25,
    })
}

/// One layer is best on the test split and two on the validation split; of the runs with three, one
/// has failed and the other has not started.
fn results() -> Results {
    let plan = plan();
    let outcomes = [
        finished(0.10, 0.31),
        finished(0.12, 0.29),
        finished(0.15, 0.20),
        finished(0.11, 0.22),
        Outcome::Failed("step 3: loss term `reg` is inf".into()),
        Outcome::Waiting,
    ];
    Results::new(&plan, &plan.runs().unwrap(), &outcomes)
}

#[test]
fn configurations_are_sorted_by_validation_and_the_test_selected_one_is_marked() {
    let results = results();
    let order: Vec<String> =
        results.configurations.iter().map(|result| result.settings.to_string()).collect();
    assert_eq!(order, ["layers=2", "layers=1", "layers=3"]);
    assert_eq!(results.test_selected, Some(1));
    assert_eq!(results.configurations[2].finished, 0);
    assert_eq!(results.configurations[2].valid, Spreads::default());
    let counts = ["finished", "failed", "waiting", "interrupted"].map(|name| results.count(name));
    assert_eq!(counts, [4, 1, 1, 0]);
}

#[test]
fn means_are_over_seeds_and_deviations_over_one_less() {
    let results = results();
    let spread = results.configurations[0].valid.get("recall@20").unwrap();
    assert!((spread.mean - 0.13).abs() < 1e-15);
    // √((0.02² + 0.02²) / 1).
    assert!((spread.deviation.unwrap() - 0.0008f64.sqrt()).abs() < 1e-15);
    assert_eq!(Spread::of(&[0.25]), Some(Spread { mean: 0.25, deviation: None }));
    assert_eq!(Spread::of(&[]), None);
}

#[test]
fn both_files_hold_every_run() {
    let directory = tempfile::tempdir().unwrap();
    let results = results();
    let path = directory.path().join("results.csv");
    results.write_csv(&path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 7);
    assert!(lines[0].starts_with(
        "run,layers,seed,status,epochs,best_epoch,seconds,valid_recall@20,valid_ndcg@20,"
    ));
    assert!(lines[0].ends_with(",test_map@20,problem"));
    assert!(
        lines[1].starts_with("\"layers=2,seed=7\",2,7,finished,30,9,1.500,0.15,0.075,"),
        "{}",
        lines[1]
    );
    assert_eq!(
        lines[5],
        "\"layers=3,seed=7\",3,7,failed,,,,,,,,,,,,step 3: loss term `reg` is inf"
    );
    let path = directory.path().join("results.json");
    results.write_json(&path).unwrap();
    let value: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(value["test_selected"], 1);
    let best = &value["configurations"][0];
    assert_eq!(best["settings"]["layers"], 2);
    let mean = results.configurations[0].test.get("recall@20").unwrap().mean;
    assert_eq!(best["test"]["recall@20"]["mean"], mean);
    assert_eq!(best["runs"][1]["summary"]["valid"]["recall@20"], 0.11);
    assert_eq!(value["configurations"][2]["runs"][1]["status"], "waiting");
}
