//! Tests of [`super`]: what each face writes, and where.

use std::cell::RefCell;
use std::rc::Rc;

use bm3_engine::records::Metrics;
use bm3_engine::run::StopReason;

use super::*;

/// A writer whose bytes can be inspected.
#[derive(Clone, Default)]
struct Kept(Rc<RefCell<Vec<u8>>>);

impl Kept {
    fn text(&self) -> String {
        String::from_utf8(self.0.borrow().clone()).unwrap()
    }
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A pipe whose reader is gone.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn metrics(recall: f64) -> Metrics {
    Metrics {
        top_k: vec![20],
        recall: vec![recall],
        ndcg: vec![0.03],
        precision: vec![0.01],
        map: vec![0.02],
    }
}

fn record(epoch: u64, recall: f64, best: bool) -> EpochRecord {
    EpochRecord {
        epoch,
        step: 58 * epoch,
        learning_rate: 1e-3,
        loss: vec![("total".into(), 1.2345), ("ui".into(), 0.4), ("align.text".into(), 0.1 + 0.2)],
        valid: Some(metrics(recall)),
        test: None,
        train_seconds: 0.5,
        evaluate_seconds: 0.03,
        best,
        profiled: false,
    }
}

/// Reports a run of two epochs and returns the data and the talk.
fn shown(face: Face) -> (String, String) {
    let (data, talk) = (Kept::default(), Kept::default());
    let mut reporter = Reporter::on(face, Box::new(data.clone()), Box::new(talk.clone()));
    reporter.start(&RunStart {
        dataset: "baby".into(),
        users: 19_445,
        modalities: vec![("text".into(), 384)],
        device: "CPU, 2 threads".into(),
        first_epoch: 1,
        epochs: 2,
        directory: Some("runs/baby".into()),
        ..RunStart::default()
    });
    reporter.epoch(&record(1, 0.0812, true));
    reporter.checkpoint(Path::new("runs/baby/state.safetensors"));
    reporter.epoch(&record(2, 0.08, false));
    reporter.finish(&summary()).unwrap();
    (data.text(), talk.text())
}

fn summary() -> Summary {
    Summary {
        version: "0".into(),
        dataset: "baby".into(),
        device: "CPU".into(),
        stopped_by: StopReason::Epochs,
        epochs: 2,
        steps: 116,
        best_epoch: Some(1),
        valid: Some(metrics(0.0812)),
        test: None,
        train_seconds: 1.0,
        evaluate_seconds: 0.06,
    }
}

const TABLE: &str = "\
valid         @20
recall     0.0812
ndcg       0.0300
precision  0.0100
map        0.0200
";

#[test]
fn a_log_has_a_line_per_epoch_and_the_table_goes_to_standard_output() {
    let (data, talk) = shown(Face::Plain);
    assert_eq!(data, TABLE);
    let lines: Vec<&str> = talk.lines().collect();
    assert!(lines[0].starts_with("baby: 19,445 users"), "{talk}");
    assert_eq!(
        lines[3..],
        [
            "epoch    1  loss 1.2345 (ui 0.4000 align.text 0.3000)  valid R@20 .0812 best .0812@1  0.53 s",
            "epoch    2  loss 1.2345 (ui 0.4000 align.text 0.3000)  valid R@20 .0800 best .0812@1  0.53 s",
            "all epochs trained: 2 epochs, 116 steps, best epoch 1; 1.0 s training, 0.1 s evaluating",
        ]
    );
}

#[test]
fn json_is_one_object_a_line_and_nothing_else() {
    let (data, talk) = shown(Face::Json);
    assert_eq!(talk, "");
    let events: Vec<serde_json::Value> =
        data.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["start", "epoch", "checkpoint", "epoch", "end"]);
    assert_eq!(events[0]["users"], 19_445);
    assert_eq!(events[1]["loss"]["align.text"], 0.1 + 0.2);
    assert_eq!(events[1]["valid"]["recall@20"], 0.0812);
    assert_eq!(events[2]["path"], "runs/baby/state.safetensors");
    assert_eq!(events[4]["stopped_by"], "epochs");
    assert_eq!(events[4]["valid"]["ndcg@20"], 0.03);
}

#[test]
fn quiet_leaves_the_table() {
    assert_eq!(shown(Face::Quiet), (TABLE.to_owned(), String::new()));
}

#[test]
fn a_continued_run_knows_its_best_epoch() {
    let directory = tempfile::tempdir().unwrap();
    let lines: String = [record(1, 0.05, true), record(2, 0.07, true), record(3, 0.06, false)]
        .iter()
        .map(|record| serde_json::to_string(record).unwrap() + "\n")
        .collect();
    std::fs::write(directory.path().join(bm3_engine::run::METRICS), lines).unwrap();
    let talk = Kept::default();
    let mut reporter = Reporter::on(Face::Plain, Box::new(Kept::default()), Box::new(talk.clone()));
    let directory = directory.path().to_owned();
    reporter.start(&RunStart { first_epoch: 4, directory: Some(directory), ..RunStart::default() });
    reporter.epoch(&record(4, 0.06, false));
    assert!(talk.text().contains("continuing after epoch 3"), "{}", talk.text());
    assert!(talk.text().contains("best .0700@2"), "{}", talk.text());
}

#[test]
fn a_run_that_was_over_says_how_to_go_on() {
    let said = |first_epoch, stopped_by| {
        let talk = Kept::default();
        let mut reporter =
            Reporter::on(Face::Plain, Box::new(Kept::default()), Box::new(talk.clone()));
        reporter.start(&RunStart { first_epoch, ..RunStart::default() });
        reporter.finish(&Summary { stopped_by, ..summary() }).unwrap();
        talk.text()
    };
    assert!(said(3, StopReason::Epochs).contains("a larger --epochs"));
    assert!(said(3, StopReason::Patience).contains("a larger --patience"));
    for trained in [said(3, StopReason::Interrupted), said(2, StopReason::Epochs)] {
        assert!(!trained.contains("larger"), "{trained}");
    }
    assert!(!said(1, StopReason::Epochs).contains("larger"));
}

#[test]
fn a_closed_pipe_is_reported_once_at_the_end() {
    let mut reporter = Reporter::on(Face::Json, Box::new(Closed), Box::new(Kept::default()));
    reporter.epoch(&record(1, 0.1, true));
    reporter.epoch(&record(2, 0.1, false));
    let error = reporter.finish(&summary()).unwrap_err();
    assert!(super::super::output::is_broken_pipe(&error), "{error}");
}
