//! The results and the plan of a sweep, as text.

use bm3_engine::config::word;
use bm3_engine::sweep::{ConfigurationResult, PlannedRun, Results, Room, Spread};

use super::output::bytes;
use super::table::aligned;

/// The list lengths whose metrics are shown, if they were measured.
const LENGTHS: [usize; 2] = [10, 20];

/// The configurations, best first, then the one that selection by test split would have chosen, and
/// the failed runs.
pub fn results_table(results: &Results) -> String {
    let Some(first) = results.configurations.first() else { return String::new() };
    let mut headings: Vec<String> =
        first.settings.0.keys().map(|key| key.replace('_', "-")).collect();
    let settings = headings.len();
    headings.extend(["runs".to_owned(), "valid R@20".to_owned()]);
    let measured = |name: &str| {
        results.configurations.iter().any(|configuration| configuration.test.get(name).is_some())
    };
    let columns: Vec<(String, String)> = [("R", "recall"), ("N", "ndcg")]
        .into_iter()
        .flat_map(|(short, metric)| {
            LENGTHS.map(|k| (format!("test {short}@{k}"), format!("{metric}@{k}")))
        })
        .filter(|(_, name)| measured(name))
        .collect();
    headings.extend(columns.iter().map(|(heading, _)| heading.clone()));
    let row = |configuration: &ConfigurationResult| {
        let mut cells: Vec<String> = configuration.settings.0.values().map(word).collect();
        let all = configuration.runs.len();
        cells.push(match configuration.finished {
            finished if finished == all => all.to_string(),
            finished => format!("{finished} of {all}"),
        });
        cells.push(spread(configuration.valid.get("recall@20")));
        cells.extend(columns.iter().map(|(_, name)| spread(configuration.test.get(name))));
        cells
    };
    let mut rows = vec![headings];
    rows.extend(results.configurations.iter().map(row));
    let mut text = aligned(&rows, settings);
    let several = results.configurations.len() > 1;
    if let Some(selected) = results.test_selected.filter(|_| several) {
        let chosen = &results.configurations[selected];
        text.push_str(&format!(
            "\ntest-selected, as the reference implementation's published figures are (it looks at \
             the test split to choose): {}: test R@20 {}, N@20 {}\n",
            chosen.settings,
            spread(chosen.test.get("recall@20")),
            spread(chosen.test.get("ndcg@20")),
        ));
    }
    let failed: Vec<String> = results
        .runs()
        .filter_map(|run| Some(format!("failed: {}: {}\n", run.run, run.problem.as_ref()?)))
        .collect();
    if !failed.is_empty() {
        text.push('\n');
        text.push_str(&failed.concat());
    }
    text
}

/// A mean and its standard deviation.
fn spread(spread: Option<Spread>) -> String {
    match spread {
        None => "-".to_owned(),
        Some(Spread { mean, deviation: None }) => format!("{mean:.4}"),
        Some(Spread { mean, deviation: Some(deviation) }) => format!("{mean:.4} ± {deviation:.4}"),
    }
}

/// The runs that a sweep would train.
pub fn preview(runs: &[PlannedRun], room: &Room) -> String {
    let mut text: String = runs.iter().map(|run| format!("{}\n", run.name)).collect();
    text.push_str(&format!("{} runs; {}\n", runs.len(), describe(room)));
    text
}

/// How many runs train at once, and the memory they need.
pub fn describe(room: &Room) -> String {
    let Room { lanes, memory: whose, shared, each, free, wanted } = room;
    let at_once = match lanes.jobs {
        1 => "one at a time".to_owned(),
        jobs => format!("{jobs} at a time"),
    };
    let memory = match shared {
        0 => format!("up to {} each", bytes(*each)),
        shared => format!("up to {} each beside {} that they share", bytes(*each), bytes(*shared)),
    };
    let free = free.map_or(String::new(), |free| format!(", of {} free", bytes(free)));
    let wanted = wanted.map_or(String::new(), |wanted| {
        let needed = shared + each * wanted as u64;
        format!(" ({whose} does not hold {wanted}, which need {})", bytes(needed))
    });
    format!("{at_once}{wanted}; {whose}: {memory}{free}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bm3_engine::sweep::{Choice, Lanes, RunResult, Spreads};

    fn configuration(layers: u64, dropout: f64, valid: Option<f64>) -> ConfigurationResult {
        let spreads = |scale: f64| {
            let spread = |mean: f64| Spread { mean, deviation: (layers == 2).then_some(0.0125) };
            let all = valid.into_iter().flat_map(|valid| {
                [
                    ("recall@20".to_owned(), spread(valid * scale)),
                    ("ndcg@20".to_owned(), spread(valid / 2.0)),
                ]
            });
            Spreads(all.collect())
        };
        let run = |seed: u64| RunResult {
            run: format!("layers={layers},dropout={dropout},seed={seed}"),
            seed,
            status: if valid.is_some() { "finished" } else { "failed" },
            problem: valid.is_none().then(|| "it broke".to_owned()),
            summary: None,
        };
        let fields = serde_json::json!({ "layers": layers, "dropout": dropout });
        ConfigurationResult {
            settings: Choice(fields.as_object().unwrap().clone()),
            finished: if valid.is_some() { 2 } else { 0 },
            valid: spreads(1.0),
            test: spreads(if layers == 1 { 2.0 } else { 1.0 }),
            runs: vec![run(7), run(8)],
        }
    }

    #[test]
    fn the_table_is_sorted_and_names_what_the_test_split_would_choose_and_what_failed() {
        let configurations = vec![
            configuration(2, 0.5, Some(0.25)),
            configuration(1, 0.5, Some(0.125)),
            configuration(1, 0.75, None),
        ];
        let results = Results { configurations, test_selected: Some(1) };
        let expected = "\
layers  dropout    runs       valid R@20       test R@20       test N@20
2       0.5           2  0.2500 ± 0.0125  0.2500 ± 0.0125  0.1250 ± 0.0125
";
        let table = results_table(&results);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[1], expected.lines().nth(1).unwrap());
        let cells = |line: &str| -> Vec<String> {
            line.split("  ")
                .filter(|cell| !cell.is_empty())
                .map(|cell| cell.trim().into())
                .collect()
        };
        assert_eq!(
            cells(lines[0]),
            ["layers", "dropout", "runs", "valid R@20", "test R@20", "test N@20"]
        );
        assert_eq!(cells(lines[2]), ["1", "0.5", "2", "0.1250", "0.2500", "0.0625"]);
        assert_eq!(cells(lines[3]), ["1", "0.75", "0 of 2", "-", "-", "-"]);
        assert_eq!(
            lines[5],
            "test-selected, as the reference implementation's published figures are (it looks at \
             the test split to choose): layers=1,dropout=0.5: test R@20 0.2500, N@20 0.0625"
        );
        assert_eq!(
            lines[7..],
            [
                "failed: layers=1,dropout=0.75,seed=7: it broke",
                "failed: layers=1,dropout=0.75,seed=8: it broke",
            ]
        );
    }

    #[test]
    fn memory_that_does_not_hold_all_says_what_all_need() {
        let mut room = Room {
            lanes: Lanes { jobs: 8, threads: None },
            memory: "GPU memory",
            shared: 2_000_000_000,
            each: 1_000_000_000,
            free: Some(80_000_000_000),
            wanted: None,
        };
        assert_eq!(
            describe(&room),
            "8 at a time; GPU memory: up to 1.0 GB each beside 2.0 GB that they share, of 80.0 GB free"
        );
        (room.lanes.jobs, room.wanted, room.free) = (1, Some(8), Some(4_000_000_000));
        assert_eq!(
            describe(&room),
            "one at a time (GPU memory does not hold 8, which need 10.0 GB); GPU memory: up to \
             1.0 GB each beside 2.0 GB that they share, of 4.0 GB free"
        );
    }
}
