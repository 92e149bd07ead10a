//! Streaming of frozen features that do not all lie on the device: each step's rows are copied
//! while the steps before are computed, and the rows of the items seen most often stay.
//!
//! The host knows an epoch's batches ahead. One thread reads their rows from the mapped files, in
//! parallel and a few batches ahead, into page-locked memory. A separate stream copies them into
//! one of [`SLOTS`] slots; the step waits for its slot, and a slot is filled again once the step
//! that used it is done. No result depends on where rows lie: kernels read the same numbers from
//! other places.

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use cudarc::driver::{CudaEvent, CudaStream, DriverError};
use rayon::ThreadPool;
use rayon::prelude::*;

use super::device::Device;
use super::memory::Memory;
use super::process::OfThisProcess;
use super::staging::Staging;
use super::stored::StoredType;
use super::upload::{Rows, UploadProgress, beyond, row_to_bytes, upload_rows};
use crate::data::FeatureMatrix;
use crate::{Error, Result};

/// `FEATURE_SLOTS` of `batch.cuh`.
pub(super) const SLOTS: usize = 3;

/// Marks an item whose rows do not stay.
const NOT_KEPT: u32 = u32::MAX;

/// Bytes of a place.
const PLACE: usize = size_of::<u32>();

/// The streamed features of a run.
pub struct FeatureStream {
    device: Arc<Device>,
    copies: OfThisProcess<Arc<CudaStream>>,
    /// As many threads as training has; the thread that loads ahead is in no pool.
    threads: OfThisProcess<ThreadPool>,
    /// The items whose rows stay, in the order of their rows.
    kept: Vec<u32>,
    /// Each item's row among those that stay, or [`NOT_KEPT`].
    kept_rows: Vec<u32>,
    /// Rows of a slot.
    room: usize,
    /// The places of the rows of each slot's batch.
    places: Memory<u32>,
    tables: Mutex<Vec<Table>>,
    /// Page-locked memory, kept from one feed to the next: locking pages takes long.
    idle: Mutex<Vec<Staging>>,
}

/// One modality's table: the rows that stay, then those of each slot.
#[derive(Clone)]
struct Table {
    matrix: Arc<FeatureMatrix>,
    stored: StoredType,
    row_bytes: usize,
    memory: Arc<Memory<u8>>,
}

/// Bytes on the device of all tables, whose rows have `row_bytes` together, and of their places.
pub(super) fn bytes(kept: usize, room: usize, row_bytes: usize) -> u64 {
    ((kept + SLOTS * room) * row_bytes + SLOTS * room * PLACE) as u64
}

impl FeatureStream {
    /// For batches of at most `room` distinct items out of `items`; the rows of those in `kept`
    /// stay.
    ///
    /// # Errors
    /// [`Error::DeviceMemory`] and [`Error::DeviceOperation`].
    pub(super) fn new(
        device: &Arc<Device>,
        items: usize,
        kept: Vec<u32>,
        room: usize,
    ) -> Result<Self> {
        let mut kept_rows = vec![NOT_KEPT; items];
        for (row, &item) in kept.iter().enumerate() {
            kept_rows[item as usize] = row as u32;
        }
        let copies = device.asking(|| device.stream().context().new_stream());
        let copies = copies
            .map_err(|error| device.failed_or_full("a stream for features".to_owned(), error))?;
        Ok(Self {
            copies: OfThisProcess::new(copies),
            threads: OfThisProcess::new(device.thread_pool(rayon::current_num_threads())?),
            kept,
            kept_rows,
            room,
            places: Memory::new(device, SLOTS * room, "the places of streamed features")?,
            tables: Mutex::default(),
            idle: Mutex::default(),
            device: device.clone(),
        })
    }

    /// Adds a modality and copies the rows that stay.
    pub(super) fn add(
        &self,
        matrix: Arc<FeatureMatrix>,
        stored: StoredType,
        progress: &UploadProgress,
    ) -> Result<Arc<Memory<u8>>> {
        let what = "rows of streamed features";
        let row_bytes = matrix.columns() * stored.size();
        let rows = self.kept.len() + SLOTS * self.room;
        let mut memory = Memory::<u8>::new(&self.device, rows * row_bytes, what)?;
        let kept = Rows::Chosen(&self.kept);
        upload_rows(&self.device, &mut memory, &matrix, stored, kept, progress)?;
        let memory = Arc::new(memory);
        let table = Table { matrix, stored, row_bytes, memory: memory.clone() };
        self.tables.lock().unwrap_or_else(PoisonError::into_inner).push(table);
        Ok(memory)
    }

    /// The places of all slots.
    pub(super) fn places(&self) -> &Memory<u32> {
        &self.places
    }

    fn tables(&self) -> Vec<Table> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn failed(&self, error: DriverError) -> Error {
        self.device.failed("streaming features".to_owned(), error)
    }

    /// Page-locked memory for the places and the rows of one batch.
    fn staging(&self, tables: &[Table]) -> Result<Staging> {
        let row_bytes: usize = tables.iter().map(|table| table.row_bytes).sum();
        let bytes = self.room * (PLACE + row_bytes);
        if let Some(idle) = self.idle().pop().filter(|idle| idle.length() >= bytes) {
            return Ok(idle);
        }
        Staging::new(&self.copies, bytes.max(1)).map_err(|error| self.failed(error))
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Staging>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the places of a batch's items, and the rows of those that do not stay, as they lie in
    /// slot `slot`. Returns the number of those rows.
    fn fill(
        &self,
        staging: &mut Staging,
        tables: &[Table],
        slot: usize,
        items: &[u32],
    ) -> Result<usize> {
        let first = self.kept.len() + slot * self.room;
        let mut moving = Vec::new();
        let places: Vec<u32> = items
            .iter()
            .map(|&item| match self.kept_rows[item as usize] {
                NOT_KEPT => {
                    moving.push(item);
                    (first + moving.len() - 1) as u32
                }
                row => row,
            })
            .collect();
        let length = staging.length();
        let bytes = staging.bytes(length).map_err(|error| self.failed(error))?;
        let (head, mut rest) = bytes.split_at_mut(self.room * PLACE);
        head[..places.len() * PLACE].copy_from_slice(bytemuck::cast_slice(&places));
        for Table { matrix, stored, row_bytes, .. } in tables {
            let (rows, after) = rest.split_at_mut(self.room * row_bytes);
            let infinite = self.threads.install(|| {
                rows[..moving.len() * row_bytes]
                    .par_chunks_exact_mut(*row_bytes)
                    .zip(&moving)
                    .map_init(Vec::new, |scratch, (bytes, &item)| {
                        let fits = row_to_bytes(matrix, item as usize, *stored, scratch, bytes);
                        (!fits).then_some(item as usize)
                    })
                    .find_first(Option::is_some)
            });
            if let Some(row) = infinite.flatten() {
                return Err(beyond(*stored, matrix, row));
            }
            rest = after;
        }
        Ok(moving.len())
    }

    /// Copies what [`FeatureStream::fill`] wrote to its slot, on the stream for copies.
    fn copy(
        &self,
        staging: &mut Staging,
        tables: &[Table],
        slot: usize,
        items: usize,
        moving: usize,
    ) -> Result<(), DriverError> {
        // SAFETY: the places of the slot, which has room for the items of any batch.
        unsafe { staging.copy_range(0..items * PLACE, self.places.address_of(slot * self.room)) }?;
        let mut start = self.room * PLACE;
        for Table { row_bytes, memory, .. } in tables {
            let target = memory.address_of((self.kept.len() + slot * self.room) * row_bytes);
            // SAFETY: the first rows of the slot in this table's memory.
            unsafe { staging.copy_range(start..start + moving * row_bytes, target) }?;
            start += self.room * row_bytes;
        }
        staging.mark()
    }

    fn check(&self, items: usize) -> Result<()> {
        if items > self.room {
            let operation = format!("streaming the features of {items} items");
            let problem = format!("there is room for those of a batch, {} items", self.room);
            return Err(self.device.refused(operation, problem));
        }
        Ok(())
    }

    /// Copies the rows of a single batch into the first slot, before the work that follows.
    pub(super) fn load(&self, items: &[u32]) -> Result<()> {
        self.check(items.len())?;
        let tables = self.tables();
        let mut staging = self.staging(&tables)?;
        let moving = self.fill(&mut staging, &tables, 0, items)?;
        let copied = (|| {
            self.copies.wait(&self.device.stream().record_event(None)?)?;
            self.copy(&mut staging, &tables, 0, items.len(), moving)?;
            self.device.stream().wait(&self.copies.record_event(None)?)
        })();
        copied.map_err(|error| self.failed(error))?;
        self.idle().push(staging);
        Ok(())
    }

    /// Does `work` with a feed of the batches `numbers`; `items_of` gives a batch's distinct items,
    /// ascending.
    pub(super) fn feed<T>(
        &self,
        numbers: Range<u64>,
        items_of: &(dyn Fn(u64) -> Vec<u32> + Sync),
        work: impl FnOnce(&mut Feed<'_>) -> Result<T>,
    ) -> Result<T> {
        let tables = self.tables();
        let (free, frees) = channel();
        let (full, fulls) = channel();
        for _ in 0..SLOTS {
            // Cannot fail: the receiver is alive here.
            let _ = free.send(self.staging(&tables)?);
        }
        let begun = self.device.stream().record_event(None);
        begun.and_then(|event| self.copies.wait(&event)).map_err(|error| self.failed(error))?;
        thread::scope(|scope| {
            let tables = &tables;
            let loader = scope.spawn(move || {
                self.load_ahead(numbers, items_of, tables, &frees, &full);
                frees
            });
            let computed = [const { None }; SLOTS];
            let mut feed = Feed { stream: self, tables, fulls: &fulls, free, computed };
            let outcome = work(&mut feed);
            // Closes this end of `free`, so that the thread ends once it has filled what it still
            // finds there.
            drop(feed);
            let frees = loader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let loaded = fulls.try_iter().flatten().map(|loaded| loaded.staging);
            self.idle().extend(frees.try_iter().chain(loaded));
            outcome
        })
    }

    /// Fills page-locked memory with the rows of one batch after another.
    fn load_ahead(
        &self,
        numbers: Range<u64>,
        items_of: &(dyn Fn(u64) -> Vec<u32> + Sync),
        tables: &[Table],
        frees: &Receiver<Staging>,
        full: &Sender<Result<Loaded>>,
    ) {
        for number in numbers {
            let Ok(mut staging) = frees.recv() else { return };
            let items = items_of(number);
            let slot = number as usize % SLOTS;
            let loaded = self
                .check(items.len())
                .and_then(|()| self.fill(&mut staging, tables, slot, &items))
                .map(|moving| Loaded { staging, items: items.len(), moving });
            if full.send(loaded).is_err() {
                return;
            }
        }
    }
}

/// A batch's rows in page-locked memory.
struct Loaded {
    staging: Staging,
    items: usize,
    moving: usize,
}

/// Batches' rows on their way, for the thread that queues the steps.
pub(super) struct Feed<'a> {
    stream: &'a FeatureStream,
    tables: &'a [Table],
    fulls: &'a Receiver<Result<Loaded>>,
    free: Sender<Staging>,
    /// The event after the last step that used each slot.
    computed: [Option<OfThisProcess<CudaEvent>>; SLOTS],
}

impl Feed<'_> {
    /// Makes the work that follows wait for the rows of batch `number`.
    pub fn begin(&mut self, number: u64) -> Result<()> {
        let stream = self.stream;
        // The other end closes early only after sending an error.
        let ended = || stream.device.refused("streaming features".into(), "it ended".into());
        let Loaded { mut staging, items, moving } = self.fulls.recv().map_err(|_| ended())??;
        let slot = number as usize % SLOTS;
        let copied = (|| {
            if let Some(computed) = self.computed[slot].take() {
                stream.copies.wait(&computed)?;
            }
            stream.copy(&mut staging, self.tables, slot, items, moving)?;
            stream.device.stream().wait(&stream.copies.record_event(None)?)
        })();
        // The other end ignores what it does not need any more.
        let _ = self.free.send(staging);
        copied.map_err(|error| stream.failed(error))
    }

    /// Marks the end of the work queued with batch `number`.
    pub fn end(&mut self, number: u64) -> Result<()> {
        let computed = self.stream.device.stream().record_event(None);
        let computed = computed.map_err(|error| self.stream.failed(error))?;
        self.computed[number as usize % SLOTS] = Some(OfThisProcess::new(computed));
        Ok(())
    }
}

impl std::fmt::Debug for FeatureStream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "FeatureStream({} rows kept, room for {})", self.kept.len(), self.room)
    }
}
