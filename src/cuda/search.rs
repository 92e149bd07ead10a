//! Item rows on a GPU, searched by any number of threads at a time.
//!
//! One thread works with the device. It takes all waiting searches, answers them with one launch of
//! the kernel `top_k`, and sends each caller its lists; while a launch runs, the next callers
//! gather. A caller adds itself to a queue without a lock and sleeps until it is answered. A
//! process made by `fork` has neither the thread nor the device, and gets an error.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use rayon::ThreadPool;

use super::Cuda;
use super::device::Device;
use super::memory::{LARGE, Memory};
use super::ranking::{HalfRows, Masked, half_rows, ranked};
use crate::backend::TopK;
use crate::recommender::{Search, apart};
use crate::{Error, Result};

/// Queries per launch: enough blocks for every multiprocessor, with lists of any length.
const QUERIES: usize = 4096;

/// Threads that copy long lists from a device: a few are as fast as its connection.
const COPYING_THREADS: usize = 4;

/// A search, and the channel for its answer.
struct Waiting {
    search: Search,
    answer: SyncSender<Result<TopK>>,
}

/// The rows of all items on a device.
pub(crate) struct CudaIndex {
    /// `None` once it is being dropped, which ends the thread.
    searches: Option<Sender<Waiting>>,
    worker: Option<JoinHandle<()>>,
    device: String,
    /// The process that the thread belongs to.
    process: u32,
}

impl CudaIndex {
    /// Copies I × d rows to a device.
    ///
    /// # Errors
    /// [`Error::DeviceMemory`] if they do not fit, and [`Error::DeviceOperation`] if the device
    /// fails or the thread cannot be started.
    pub fn new(gpu: &Cuda, items: &[f32], width: usize) -> Result<Self> {
        // What was freed before, such as the model that made the rows, must be there for the sibling.
        gpu.device().synchronize()?;
        let device = gpu.device().sibling()?;
        let rows = (QUERIES + items.len() / width) * width;
        let mut memory = Memory::new(&device, rows, "the rows of all items")?;
        memory.write(QUERIES * width, items, "the rows of all items")?;
        let name = device.describe();
        let first = memory.address_of(QUERIES * width);
        let halves = half_rows(&device, first, items.len() / width, width)?;
        let threads = device.thread_pool(rayon::current_num_threads().min(COPYING_THREADS))?;
        let worker = Worker { device, rows: memory, width, halves, threads };
        let (searches, waiting) = channel();
        let worker = std::thread::Builder::new()
            .name("bm3-search".to_owned())
            .spawn(move || worker.work(&waiting))
            .map_err(|error| Error::DeviceOperation {
                device: name.clone(),
                operation: "beginning a thread for searches".to_owned(),
                problem: error.to_string(),
            })?;
        let (searches, worker) = (Some(searches), Some(worker));
        Ok(Self { searches, worker, device: name, process: std::process::id() })
    }

    /// Refuses to go on in a process forked from the one that opened the device.
    ///
    /// # Errors
    /// [`Error::DeviceOperation`] in a forked process.
    pub fn check_process(&self) -> Result<()> {
        if self.process == std::process::id() {
            return Ok(());
        }
        Err(self.failed(
            "it was opened in the process that this one was forked from; load the model in \
                         this one",
        ))
    }

    /// Answers a search.
    ///
    /// # Errors
    /// [`Error::DeviceMemory`] and [`Error::DeviceOperation`], also in a forked process.
    pub fn search(&self, search: Search) -> Result<TopK> {
        self.check_process()?;
        let Search { mut queries, mut masks, k } = search;
        let count = masks.offsets.len() - 1;
        if count == 0 {
            return Ok(TopK::empty(0, k));
        }
        let width = queries.len() / count;
        let mut parts = Vec::new();
        while masks.offsets.len() - 1 > QUERIES {
            let later = queries.split_off(QUERIES * width);
            let (first, rest) = masks.split(QUERIES);
            let queries = std::mem::replace(&mut queries, later);
            parts.push(self.ask(Search { queries, masks: first, k })?);
            masks = rest;
        }
        parts.push(self.ask(Search { queries, masks, k })?);
        let mut all = TopK::empty(0, k);
        for answer in parts {
            let lists = answer.recv().map_err(|_| self.ended())??;
            all.items.extend(lists.items);
            all.scores.extend(lists.scores);
        }
        Ok(all)
    }

    /// Queues a search of at most [`QUERIES`] queries.
    fn ask(&self, search: Search) -> Result<Receiver<Result<TopK>>> {
        let (answer, answered) = sync_channel(1);
        let sent = self.searches.as_ref().map(|searches| searches.send(Waiting { search, answer }));
        match sent {
            Some(Ok(())) => Ok(answered),
            _ => Err(self.ended()),
        }
    }

    fn ended(&self) -> Error {
        self.failed("the thread that works with the device has ended")
    }

    fn failed(&self, problem: &str) -> Error {
        Error::DeviceOperation {
            device: self.device.clone(),
            operation: "searching".to_owned(),
            problem: problem.to_owned(),
        }
    }
}

impl Drop for CudaIndex {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // The thread and its memory on the device belong to the other process, and a lock of
            // the queue may have been held at the fork: drop neither.
            std::mem::forget((self.searches.take(), self.worker.take()));
            return;
        }
        self.searches.take();
        if let Some(worker) = self.worker.take() {
            // A panic of the thread needs no report: no caller is left.
            worker.join().ok();
        }
    }
}

struct Worker {
    device: Arc<Device>,
    /// Room for [`QUERIES`] queries, then the items: (q + I) × d.
    rows: Memory<f32>,
    width: usize,
    /// The items' rows again in half precision, for the tensor cores.
    halves: HalfRows,
    /// The threads that copy long lists from the device.
    threads: ThreadPool,
}

impl Worker {
    fn work(mut self, waiting: &Receiver<Waiting>) {
        let mut next = None;
        while let Some(first) = next.take().or_else(|| waiting.recv().ok()) {
            let mut count = first.search.count();
            let mut searches: Vec<Waiting> = vec![first];
            while let Ok(other) = waiting.try_recv() {
                if count + other.search.count() > QUERIES {
                    next = Some(other);
                    break;
                }
                count += other.search.count();
                searches.push(other);
            }
            self.answer(&searches);
        }
    }

    /// Answers some searches with one launch. A caller may have stopped waiting.
    fn answer(&mut self, searches: &[Waiting]) {
        let all = Search::together(searches.iter().map(|waiting| &waiting.search));
        let lists = self.lists(&all);
        let mut first = 0;
        for Waiting { search, answer } in searches {
            let own = match &lists {
                Ok(lists) => Ok(apart(lists, first, search)),
                Err(error) => Err(repeated(error)),
            };
            first += search.count();
            answer.send(own).ok();
        }
    }

    fn lists(&mut self, search: &Search) -> Result<TopK> {
        let Search { queries, masks, k } = search;
        let offsets = &masks.offsets;
        // The kernel numbers items as nodes after the queries.
        let neighbours: Vec<u32> = masks.items.iter().map(|&item| QUERIES as u32 + item).collect();
        let count = offsets.len() - 1;
        self.rows.write(0, queries, "the rows of queries")?;
        let what = "what lists leave out";
        let masked = Masked {
            users: QUERIES,
            items: self.rows.len() / self.width - QUERIES,
            offsets: &Memory::from_slice(&self.device, offsets, what)?,
            neighbours: &Memory::from_slice(&self.device, &neighbours, what)?,
            halves: &self.halves,
        };
        let ids: Vec<u32> = (0..count as u32).collect();
        let lists = ranked(&self.device, &masked, self.rows.address_of(0), self.width, &ids, *k)?;
        // Reading a short list takes less time than waking other threads.
        match count * k * size_of::<f32>() < LARGE {
            true => lists.read(),
            false => self.threads.install(|| lists.read()),
        }
    }
}

/// A copy of the error of several searches, for one of them.
fn repeated(error: &Error) -> Error {
    match error {
        Error::DeviceMemory { device, what, needed, free, total, .. } => Error::DeviceMemory {
            device: device.clone(),
            what: what.clone(),
            needed: *needed,
            free: *free,
            total: *total,
            advice: String::new(),
        },
        Error::DeviceOperation { device, operation, problem } => Error::DeviceOperation {
            device: device.clone(),
            operation: operation.clone(),
            problem: problem.clone(),
        },
        other => Error::DeviceOperation {
            device: String::new(),
            operation: "searching".to_owned(),
            problem: other.to_string(),
        },
    }
}
