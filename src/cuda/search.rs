//! Item rows on a GPU that any number of threads search at a time.
//!
//! One thread of its own works with the device. It takes whatever searches wait, gives them to one
//! launch of the kernel `top_k`, and tells each caller its lists: while a launch runs, the next
//! callers gather. A caller adds itself to a queue without a lock and sleeps until it is answered.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use super::Cuda;
use super::device::Device;
use super::memory::Memory;
use super::ranking::{Masked, ranked};
use crate::backend::TopK;
use crate::recommender::Masks;
use crate::{Error, Result};

/// Queries of one launch: enough blocks for every multiprocessor, with lists of any length.
const QUERIES: usize = 4096;

/// What the thread that works with the device is asked for.
struct Search {
    /// q × d.
    queries: Vec<f32>,
    masks: Masks,
    k: usize,
    answer: SyncSender<Result<TopK>>,
}

impl Search {
    fn count(&self) -> usize {
        self.masks.offsets.len() - 1
    }
}

/// The rows of all items on a device.
pub(crate) struct CudaIndex {
    /// `None` once it is being dropped, which ends the thread.
    searches: Option<Sender<Search>>,
    worker: Option<JoinHandle<()>>,
    device: String,
}

impl CudaIndex {
    /// Copies I × d rows to a device.
    ///
    /// # Errors
    /// [`Error::DeviceMemory`] where they have no room, and failures of the device or of the system
    /// to begin a thread.
    pub fn new(gpu: &Cuda, items: &[f32], width: usize) -> Result<Self> {
        let device = gpu.device().sibling()?;
        let rows = (QUERIES + items.len() / width) * width;
        let mut memory = Memory::new(&device, rows, "the rows of all items")?;
        memory.write(QUERIES * width, items, "the rows of all items")?;
        let name = device.describe();
        let worker = Worker { device, rows: memory, width };
        let (searches, waiting) = channel();
        let worker = std::thread::Builder::new()
            .name("bm3-search".to_owned())
            .spawn(move || worker.work(&waiting))
            .map_err(|error| Error::DeviceOperation {
                device: name.clone(),
                operation: "beginning a thread for searches".to_owned(),
                problem: error.to_string(),
            })?;
        Ok(Self { searches: Some(searches), worker: Some(worker), device: name })
    }

    /// The `k` best items for each row of `queries`, what its mask names left out.
    ///
    /// # Errors
    /// Those of the device.
    pub fn search(&self, mut queries: Vec<f32>, mut masks: Masks, k: usize) -> Result<TopK> {
        let count = masks.offsets.len() - 1;
        if count == 0 {
            return Ok(TopK::empty(0, k));
        }
        let width = queries.len() / count;
        let mut parts = Vec::new();
        while masks.offsets.len() - 1 > QUERIES {
            let later = queries.split_off(QUERIES * width);
            let (first, rest) = masks.split(QUERIES);
            parts.push(self.ask(std::mem::replace(&mut queries, later), first, k)?);
            masks = rest;
        }
        parts.push(self.ask(queries, masks, k)?);
        let mut all = TopK::empty(0, k);
        for answer in parts {
            let lists = answer.recv().map_err(|_| self.ended())??;
            all.items.extend(lists.items);
            all.scores.extend(lists.scores);
        }
        Ok(all)
    }

    /// Asks for the lists of at most [`QUERIES`] queries.
    fn ask(&self, queries: Vec<f32>, masks: Masks, k: usize) -> Result<Receiver<Result<TopK>>> {
        let (answer, answered) = sync_channel(1);
        let search = Search { queries, masks, k, answer };
        let sent = self.searches.as_ref().map(|searches| searches.send(search));
        match sent {
            Some(Ok(())) => Ok(answered),
            _ => Err(self.ended()),
        }
    }

    fn ended(&self) -> Error {
        Error::DeviceOperation {
            device: self.device.clone(),
            operation: "searching".to_owned(),
            problem: "the thread that works with the device has ended".to_owned(),
        }
    }
}

impl Drop for CudaIndex {
    fn drop(&mut self) {
        self.searches.take();
        if let Some(worker) = self.worker.take() {
            // It has ended by a panic, or ends now: there is nobody left to be told.
            worker.join().ok();
        }
    }
}

struct Worker {
    device: Arc<Device>,
    /// Room for [`QUERIES`] queries, then the items: (q + I) × d.
    rows: Memory<f32>,
    width: usize,
}

impl Worker {
    fn work(mut self, waiting: &Receiver<Search>) {
        let mut next = None;
        while let Some(first) = next.take().or_else(|| waiting.recv().ok()) {
            let mut count = first.count();
            let mut searches = vec![first];
            while let Ok(search) = waiting.try_recv() {
                if count + search.count() > QUERIES {
                    next = Some(search);
                    break;
                }
                count += search.count();
                searches.push(search);
            }
            self.answer(searches);
        }
    }

    /// Answers some searches by one launch. A caller that does not wait any more misses nothing.
    fn answer(&mut self, searches: Vec<Search>) {
        let k = searches.iter().map(|search| search.k).max().unwrap_or(1);
        match self.lists(&searches, k) {
            Ok(lists) => {
                let mut first = 0;
                for search in searches {
                    let rows = first..first + search.count();
                    first = rows.end;
                    // The beginning of a longer list is the shorter one.
                    let cut = |row: usize| row * k..row * k + search.k;
                    let items = rows.clone().flat_map(|row| &lists.items[cut(row)]).copied();
                    let scores = rows.flat_map(|row| &lists.scores[cut(row)]).copied();
                    let (items, scores) = (items.collect(), scores.collect());
                    search.answer.send(Ok(TopK { k: search.k, items, scores })).ok();
                }
            }
            Err(error) => {
                for search in &searches {
                    search.answer.send(Err(repeated(&error))).ok();
                }
            }
        }
    }

    fn lists(&mut self, searches: &[Search], k: usize) -> Result<TopK> {
        let queries: Vec<f32> =
            searches.iter().flat_map(|search| &search.queries).copied().collect();
        let (mut offsets, mut neighbours) = (vec![0u32], Vec::new());
        for search in searches {
            for query in 0..search.count() {
                // The kernel knows items as the nodes after the queries.
                let nodes = search.masks.of(query).iter().map(|&item| QUERIES as u32 + item);
                neighbours.extend(nodes);
                offsets.push(neighbours.len() as u32);
            }
        }
        let count = offsets.len() - 1;
        self.rows.write(0, &queries, "the rows of queries")?;
        let what = "what lists leave out";
        let masked = Masked {
            users: QUERIES,
            items: self.rows.len() / self.width - QUERIES,
            offsets: &Memory::from_slice(&self.device, &offsets, what)?,
            neighbours: &Memory::from_slice(&self.device, &neighbours, what)?,
        };
        let ids: Vec<u32> = (0..count as u32).collect();
        ranked(&self.device, &masked, self.rows.address_of(0), self.width, &ids, k)?.read()
    }
}

/// The error of several searches, for one of them.
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
