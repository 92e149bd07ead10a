//! Trains on a thread of its own, while the calling thread heeds signals and calls Python back.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::dataset::PyDataset;
use super::model::PyModel;
use super::settings;
use crate::pool::alone;
use crate::records::{EpochRecord, Observer, RunStart};
use crate::{Error, Result, Trainer};

/// The longest that a Ctrl-C may go unnoticed.
const INTERVAL: Duration = Duration::from_millis(50);

/// The result of training: the model, if an epoch was finished, the summary and the epochs' records
/// as JSON, and the exception that ended training early.
type Outcome = (Option<PyModel>, String, Vec<String>, Option<Py<PyAny>>);

/// Trains. The calling thread calls `on_start` with JSON, `on_step` now and then with (epoch, step,
/// steps of an epoch), and `on_epoch` with JSON; `on_epoch` ends training by returning True.
#[pyfunction]
#[pyo3(signature = (
    dataset, settings, *, device, feature_storage, device_memory, threads, directory, resume, initial,
    checkpoint_interval, on_start, on_step, on_epoch
))]
#[expect(clippy::too_many_arguments, reason = "each has a name where it is called")]
pub fn train(
    py: Python<'_>,
    dataset: &Bound<'_, PyDataset>,
    settings: &Bound<'_, PyDict>,
    device: &Bound<'_, PyAny>,
    feature_storage: &Bound<'_, PyAny>,
    device_memory: &Bound<'_, PyAny>,
    threads: &Bound<'_, PyAny>,
    directory: Option<PathBuf>,
    resume: bool,
    initial: Option<PathBuf>,
    checkpoint_interval: f64,
    on_start: Option<Bound<'_, PyAny>>,
    on_step: Option<Bound<'_, PyAny>>,
    on_epoch: Option<Bound<'_, PyAny>>,
) -> PyResult<Outcome> {
    let device = settings::device(device)?;
    let storage = settings::feature_storage(feature_storage)?;
    let memory = settings::device_memory(device_memory)?;
    let threads = settings::threads(threads)?;
    let interval = Duration::try_from_secs_f64(checkpoint_interval).map_err(|_| {
        let problem = format!("{checkpoint_interval} found, seconds from 0 expected");
        Error::setting("checkpoint_interval", problem)
    })?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut trainer = Trainer::new(settings::config(settings)?)
        .device(device)
        .feature_storage(storage)
        .checkpoint_interval(interval)
        .stop_when(stop.clone());
    if let Some(threads) = threads {
        trainer = trainer.threads(threads);
    }
    if let Some(bytes) = memory {
        trainer = trainer.device_memory(bytes);
    }
    if let Some(initial) = initial {
        trainer = trainer.initial(initial);
    }
    trainer = match (directory, resume) {
        (Some(directory), true) => trainer.resume(directory),
        (Some(directory), false) => trainer.directory(directory),
        (None, true) => {
            let problem = "True found, which goes on with the run of a directory; give that";
            return Err(Error::setting("resume", problem).into());
        }
        (None, false) => trainer,
    };
    let position = Arc::new(Position::default());
    let (events, received) = channel();
    let (replies, replied) = channel();
    let messenger = Messenger {
        events,
        // Without a listener there is no reply to wait for.
        replies: on_epoch.is_some().then_some(replied),
        position: position.clone(),
        stop: stop.clone(),
    };
    let dataset = dataset.get().dataset.clone();
    let mut listener = Listener { on_start, on_step, on_epoch, position, raised: None };
    let trained = std::thread::scope(|scope| {
        let fit = || trainer.fit_observed(&dataset, messenger);
        // On threads of its own in either case.
        let worker = scope.spawn(|| if threads.is_some() { fit() } else { alone()?.install(fit) });
        listener.listen(py, received, &replies, &stop);
        py.detach(|| worker.join())
    });
    // A panic of the engine continues here, and becomes a Python exception.
    let trained = trained.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let raised = listener.raised;
    let trained = match (trained, raised) {
        // Tell the caller why training was stopped, not that the stopped training failed.
        (Err(_), Some(raised)) => return Err(raised),
        (trained, raised) => (trained?, raised),
    };
    let (trained, raised) = trained;
    let model = trained.model.map(|model| PyModel::new(model, device, threads)).transpose()?;
    let records = trained.records.iter().map(json).collect::<Result<_>>()?;
    let raised = raised.map(|raised| raised.into_value(py).into_any());
    Ok((model, json(&trained.summary)?, records, raised))
}

fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|error| Error::setting("records", format!("cannot be told: {error}")))
}

/// The position of training, which the listener reads.
#[derive(Default)]
struct Position {
    epoch: AtomicU64,
    step: AtomicU64,
    steps: AtomicU64,
}

/// What the training thread reports.
enum Event {
    Start(Box<RunStart>),
    Epoch(Box<EpochRecord>),
}

/// The training thread's side.
struct Messenger {
    events: Sender<Event>,
    /// After each epoch: whether to go on.
    replies: Option<Receiver<bool>>,
    position: Arc<Position>,
    stop: Arc<AtomicBool>,
}

impl Observer for Messenger {
    fn start(&mut self, run: &RunStart) {
        // Sending fails only while the calling thread unwinds.
        self.events.send(Event::Start(Box::new(run.clone()))).ok();
    }

    fn step(&mut self, epoch: u64, step: u64, steps: u64) {
        self.position.steps.store(steps, Ordering::Relaxed);
        self.position.step.store(step, Ordering::Relaxed);
        self.position.epoch.store(epoch, Ordering::Relaxed);
    }

    fn epoch(&mut self, record: &EpochRecord) {
        let Some(replies) = &self.replies else { return };
        let told = self.events.send(Event::Epoch(Box::new(record.clone())));
        if told.is_err() || replies.recv() != Ok(true) {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// The calling thread's side.
struct Listener<'py> {
    on_start: Option<Bound<'py, PyAny>>,
    on_step: Option<Bound<'py, PyAny>>,
    on_epoch: Option<Bound<'py, PyAny>>,
    position: Arc<Position>,
    /// The first exception that a signal handler or a callback raised.
    raised: Option<PyErr>,
}

impl Listener<'_> {
    /// Answers events until the training thread has ended.
    fn listen(
        &mut self,
        py: Python<'_>,
        mut events: Receiver<Event>,
        replies: &Sender<bool>,
        stop: &AtomicBool,
    ) {
        loop {
            let event;
            (event, events) = py.detach(move || (events.recv_timeout(INTERVAL), events));
            // Only the first time: a second Ctrl-C is left to the caller, after everything is
            // saved.
            if self.raised.is_none() {
                self.heed(py.check_signals(), stop);
            }
            let told = match event {
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => self.tell(Self::step),
                Ok(Event::Start(run)) => self.tell(|listener| listener.start(&run)),
                Ok(Event::Epoch(record)) => {
                    let proceeds = self.tell(|listener| listener.epoch(&record));
                    // If the thread is gone, there is nobody to reply to.
                    replies.send(matches!(proceeds, Ok(true))).ok();
                    proceeds
                }
            };
            self.heed(told.map(|_| ()), stop);
        }
    }

    /// Stops training if something was raised.
    fn heed(&mut self, outcome: PyResult<()>, stop: &AtomicBool) {
        if let Err(error) = outcome {
            stop.store(true, Ordering::Relaxed);
            self.raised.get_or_insert(error);
        }
    }

    /// Calls back, unless something was raised before.
    fn tell(&self, call: impl Fn(&Self) -> PyResult<bool>) -> PyResult<bool> {
        if self.raised.is_some() { Ok(false) } else { call(self) }
    }

    fn start(&self, run: &RunStart) -> PyResult<bool> {
        if let Some(on_start) = &self.on_start {
            on_start.call1((json(run)?,))?;
        }
        Ok(true)
    }

    fn step(&self) -> PyResult<bool> {
        let Position { epoch, step, steps } = &*self.position;
        let epoch = epoch.load(Ordering::Relaxed);
        if let Some(on_step) = self.on_step.as_ref().filter(|_| epoch > 0) {
            let (step, steps) = (step.load(Ordering::Relaxed), steps.load(Ordering::Relaxed));
            on_step.call1((epoch, step, steps))?;
        }
        Ok(true)
    }

    /// Whether to go on.
    fn epoch(&self, record: &EpochRecord) -> PyResult<bool> {
        let Some(on_epoch) = &self.on_epoch else { return Ok(true) };
        Ok(!on_epoch.call1((json(record)?,))?.is_truthy()?)
    }
}
