//! The whole page, for made-up runs.

use super::curves::{COLOURS, sections};
use super::*;
use crate::profile::{Operation, Profile, ProfiledOperation};
use crate::records::{EpochRecord, Metrics};

/// A run of `epochs` epochs, the best one before the last.
fn run(name: &str, epochs: u64, height: f64) -> ReportedRun {
    let metrics = |value: f64| Metrics {
        top_k: vec![5, 20],
        recall: vec![value / 2.0, value],
        ndcg: vec![value / 3.0, value / 1.5],
        precision: vec![value / 8.0, value / 9.0],
        map: vec![value / 10.0, value / 11.0],
    };
    let best = epochs.saturating_sub(1).max(1);
    let record = |epoch: u64| {
        let rise = height * (1.0 - (-(epoch as f64) / 5.0).exp());
        let rise = if epoch > best { rise * 0.9 } else { rise };
        EpochRecord {
            epoch,
            step: 22 * epoch,
            learning_rate: 1e-3,
            loss: vec![("total".into(), 8.0 / epoch as f64), ("align.text".into(), 0.5)],
            valid: Some(metrics(rise)),
            test: Some(metrics(0.9 * rise)),
            train_seconds: 0.25,
            evaluate_seconds: 0.0625,
            best: epoch <= best,
            profiled: epoch == 2,
        }
    };
    ReportedRun {
        name: name.to_owned(),
        directory: name.into(),
        settings: vec![("data".into(), "/data/tiny".into()), ("seed".into(), name.into())],
        records: (1..=epochs).map(record).collect(),
        summary: None,
        profile: None,
    }
}

#[test]
fn no_run_is_best_on_another_data_set() {
    let mut runs = vec![run("a", 3, 0.3), run("b", 3, 0.2)];
    assert!(render(&runs, None).contains("Highest validation Recall@20: a"));
    runs[0].settings[0].1 = "/data/<other>".into();
    let text = render(&runs, None);
    let said = "Runs on &lt;other&gt;, tiny: metrics on different data sets do not compare.";
    assert!(text.contains(said) && !text.contains("Highest"));
}

#[test]
fn nothing_from_a_file_is_more_than_text() {
    let evil = "<script>alert(1)</script>\"'&";
    let mut runs = vec![run(evil, 3, 0.3), run("b", 3, 0.2)];
    for run in &mut runs {
        run.settings.push((evil.into(), evil.into()));
        run.settings[0].1 = format!("/data/{evil}");
        run.records.iter_mut().for_each(|record| record.loss.push((evil.into(), 1.0)));
        let operation = Operation { name: evil.into(), calls: 1, seconds: 1.0, bytes: 1, flops: 1 };
        run.profile = Some(Profile {
            version: evil.into(),
            device: evil.into(),
            epoch: 2,
            steps: 22,
            train_seconds: 1.0,
            evaluate_seconds: 0.5,
            operations: ProfiledOperation::rank(vec![operation]),
        });
    }
    let pages = [render(&runs, Some(evil)), render(&runs, None), render(&runs[..1], None)];
    for (page, charts) in pages.iter().zip([2, 2, 1].map(|n| sections(&runs[..n]))) {
        let more = |section: &curves::Section| section.more.as_ref().map_or(0, |more| more.1.len());
        let charts: usize = charts.iter().map(|section| section.charts.len() + more(section)).sum();
        // One block of data per chart, and the page's script.
        assert_eq!(page.matches("<script").count(), charts + 1);
        assert_eq!(page.matches("</script").count(), charts + 1);
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;"));
    }
}

#[test]
fn a_page_needs_nothing_from_elsewhere() {
    let page = render(&[run("a", 9, 0.3), run("b", 4, 0.2)], None);
    for outside in ["http:", "https:", "//www", "src=", "href=", "url(", "@import", "<link"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.starts_with(MARKER) && page.ends_with("</html>\n"));
    assert_eq!(page, render(&[run("a", 9, 0.3), run("b", 4, 0.2)], None));
}

#[test]
fn the_best_value_of_several_runs_is_marked() {
    let page = render(&[run("a", 9, 0.2), run("b", 9, 0.3)], None);
    let highest = super::number::significant(0.3 * (1.0 - (-8.0f64 / 5.0).exp()));
    assert!(page.contains(&format!("best\">{highest}</td>")), "{highest}");
    assert!(page.contains("Highest validation Recall@20: b, at epoch 8 of 9"));
    // 8 columns for each of the two splits.
    assert_eq!(page.matches("best\">").count(), 16);
    assert!(page.contains("<h3>Different between the runs</h3>"));
    let one = render(&[run("a", 9, 0.2)], None);
    assert!(!one.contains("best\">0.") && !one.contains("Different between"));
    assert!(one.contains("Best at epoch 8 of 9: test Recall@20 "));
    assert!(one.contains("train --profile"));
}

#[test]
fn more_runs_than_colours_leave_the_lesser_ones_grey() {
    let runs: Vec<ReportedRun> =
        (0..12).map(|index| run(&format!("r{index}"), 5, f64::from(index) / 20.0)).collect();
    let colours = curves::colours(&runs);
    assert!(colours[..4].iter().all(Option::is_none));
    assert_eq!(
        colours[4..].iter().copied().flatten().collect::<Vec<_>>(),
        [0, 1, 2, 3, 4, 5, 6, 7]
    );
    let page = render(&runs, None);
    assert!(page.contains("4 others"));
    assert_eq!(page.matches("<button").count(), COLOURS);
    assert!(!page.contains("<g class=\"end other\""));
}

#[test]
fn thousands_of_epochs_do_not_make_a_large_file() {
    let page = |epochs: u64| render(&[run("a", epochs, 0.3)], None).len();
    let (some, many) = (page(1_000), page(50_000));
    assert!(many < 400_000 && many < 2 * some, "{some} {many}");
}

#[test]
fn only_a_report_is_replaced_without_a_word() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.html");
    let report = render(&[run("a", 2, 0.3)], None);
    write(&path, &report, false).unwrap();
    write(&path, &report, false).unwrap();
    std::fs::write(&path, "<!doctype html>\nmine").unwrap();
    let error = write(&path, &report, false).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("--overwrite"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "<!doctype html>\nmine");
    write(&path, &report, true).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), report);
    assert!(write(directory.path(), &report, true).is_err());
}
