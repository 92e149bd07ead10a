//! Batches on a device: single ones from the host, and those of an epoch, which are arranged on the
//! device and visited by launches that were recorded once (`batch.cuh`, `batches.cu`).

use std::mem;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::dense::TILE;
use super::device::Device;
use super::launch::{Address, Launch, blocks, launch};
use super::memory::Memory;
use super::random::{self, SortBits};
use super::recording::{Recordings, steps_at_once};
use super::stream::{FeatureStream, Feed};
use crate::Result;
use crate::backend::{BatchRooms, Rooms};
use crate::batch::{Batch, EpochPlan, positions};
use crate::config::Order;
use crate::data::Pairs;

/// `Batch` of `batch.cuh`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Record {
    users: Address,
    items: Address,
    user_offsets: Address,
    items_of_users: Address,
    item_offsets: Address,
    users_of_items: Address,
    user_count: u32,
    item_count: u32,
    pairs: u32,
    step: u32,
    number: u32,
    next_item_count: u32,
    next_items: Address,
}

/// A batch on a device: the record that kernels read, and the lists it points to.
#[derive(Debug)]
pub struct CudaBatch {
    record: Memory<Record>,
    rooms: Rooms,
    /// The most pairs it may have.
    pub(super) pairs: usize,
    /// The lists, unless they belong to an epoch.
    _lists: Option<Memory<u32>>,
}

impl BatchRooms for CudaBatch {
    fn rooms(&self) -> Rooms {
        self.rooms
    }
}

/// Rooms for this many distinct users and items, in whole tiles.
pub(super) fn rooms_for(users: usize, items: usize) -> Rooms {
    let tiles = |rows: usize| rows.max(1).next_multiple_of(TILE as usize);
    Rooms { users: tiles(users), items: tiles(items) }
}

impl CudaBatch {
    /// Copies a batch to a device.
    ///
    /// # Errors
    /// [`crate::Error::DeviceMemory`] and [`crate::Error::DeviceOperation`].
    pub fn new(device: &Arc<Device>, batch: &Batch, step: u32) -> Result<Self> {
        let arrays = [
            &batch.users,
            &batch.items,
            &batch.user_offsets,
            &batch.items_of_users,
            &batch.item_offsets,
            &batch.users_of_items,
        ];
        let mut ids = Vec::with_capacity(arrays.iter().map(|array| array.len()).sum());
        let starts = arrays.map(|array| {
            let start = ids.len();
            ids.extend_from_slice(array);
            start
        });
        let lists = Memory::from_slice(device, &ids, "a batch")?;
        let [users, items, user_offsets, items_of_users, item_offsets, users_of_items] =
            starts.map(|start| lists.address_of(start));
        let record = Record {
            users,
            items,
            user_offsets,
            items_of_users,
            item_offsets,
            users_of_items,
            user_count: batch.users.len() as u32,
            item_count: batch.items.len() as u32,
            pairs: batch.pairs() as u32,
            step,
            number: 0,
            next_item_count: 0,
            next_items: Address::NULL,
        };
        Ok(Self {
            record: Memory::from_slice(device, &[record], "a batch")?,
            rooms: rooms_for(batch.users.len(), batch.items.len()),
            pairs: batch.pairs(),
            _lists: Some(lists),
        })
    }

    /// The address of the record, for kernels.
    pub(super) fn record(&self) -> Address {
        self.record.address_of(0)
    }
}

/// One side of an epoch's batches.
#[derive(Debug)]
struct Side {
    /// The side's id of each pair, in the order of the file.
    of_pairs: Memory<u32>,
    /// The number of ids on this side.
    end: usize,
    /// Each batch's distinct ids, from the position of its first pair.
    ids: Memory<u32>,
    /// Each batch's bounds, one more than it has pairs.
    offsets: Memory<u32>,
    /// For each pair, in this side's order, the index of its partner in the batch.
    partners: Memory<u32>,
    /// The number of distinct ids in each batch.
    counts: Memory<u32>,
}

impl Side {
    fn new(device: &Arc<Device>, of_pairs: &[u32], end: usize, batch_size: usize) -> Result<Self> {
        let what = "the training pairs and their batches";
        let (pairs, batches) = (of_pairs.len(), of_pairs.len().div_ceil(batch_size));
        Ok(Self {
            of_pairs: Memory::from_slice(device, of_pairs, what)?,
            end,
            ids: Memory::new(device, pairs, what)?,
            offsets: Memory::new(device, pairs + batches, what)?,
            partners: Memory::new(device, pairs, what)?,
            counts: Memory::new(device, batches, what)?,
        })
    }
}

/// The training pairs on a device, and the current epoch's batches.
#[derive(Debug)]
pub struct CudaBatches {
    /// Recorded steps of the current batch, kept from one call to the next. First, so that they go
    /// before the memory, and with it the last use of the kernels that they launch.
    recordings: Recordings,
    pairs: usize,
    batch_size: usize,
    users: Side,
    items: Side,
    /// The number of the next batch, and the step before it.
    cursor: Memory<u32>,
    /// The step of the epoch's first batch.
    first_step: u32,
    batch: CudaBatch,
    /// The pairs' items, if features are streamed.
    on_host: Option<HostItems>,
}

/// The items of an epoch's batches, kept on the host.
#[derive(Debug)]
struct HostItems {
    of_pairs: Vec<u32>,
    /// The epoch's order; `None` for the file's.
    order: Option<Vec<u32>>,
}

impl HostItems {
    /// The distinct items of the pairs at `positions` of the epoch's order, ascending.
    fn at(&self, positions: Range<usize>) -> Vec<u32> {
        let mut items: Vec<u32> = match &self.order {
            Some(order) => {
                order[positions].iter().map(|&pair| self.of_pairs[pair as usize]).collect()
            }
            None => self.of_pairs[positions].to_vec(),
        };
        items.sort_unstable();
        items.dedup();
        items
    }
}

/// Bytes of a [`CudaBatches`].
pub(super) fn bytes(pairs: usize, batches: usize) -> u64 {
    let side = 4 * pairs + 2 * batches;
    4 * (2 * side + 2) as u64 + size_of::<Record>() as u64
}

/// The most bytes that [`CudaBatches::arrange`] allocates temporarily: the order, the places of
/// both sides, one side's sorted positions and the other side's sort.
pub(super) fn arranging_bytes(pairs: usize, order: Order) -> u64 {
    let order = if order == Order::Random { pairs } else { 0 };
    4 * (order + 3 * pairs) as u64 + random::sort_bytes(pairs)
}

impl CudaBatches {
    /// Copies pairs to a device.
    ///
    /// # Errors
    /// [`crate::Error::DeviceMemory`] and [`crate::Error::DeviceOperation`].
    pub fn new(
        device: &Arc<Device>,
        pairs: &Pairs,
        users: usize,
        items: usize,
        batch_size: usize,
        streams: bool,
    ) -> Result<Self> {
        let count = pairs.users.len();
        let most = count.min(batch_size);
        Ok(Self {
            pairs: count,
            // A larger batch size would give the same single batch.
            batch_size: most.max(1),
            users: Side::new(device, &pairs.users, users, most.max(1))?,
            items: Side::new(device, &pairs.items, items, most.max(1))?,
            cursor: Memory::zeros(device, 2, "the batch at hand")?,
            first_step: 1,
            batch: CudaBatch {
                record: Memory::zeros(device, 1, "the batch at hand")?,
                rooms: rooms_for(users.min(most), items.min(most)),
                pairs: most,
                _lists: None,
            },
            on_host: streams.then(|| HostItems { of_pairs: pairs.items.clone(), order: None }),
            recordings: Recordings::default(),
        })
    }

    /// Arranges an epoch's batches.
    ///
    /// # Errors
    /// [`crate::Error::DeviceMemory`] and [`crate::Error::DeviceOperation`].
    pub fn arrange(&mut self, device: &Arc<Device>, epoch: EpochPlan) -> Result<()> {
        let what = "the order of an epoch";
        let pairs = self.pairs;
        let order = match epoch.order {
            Order::File => None,
            Order::Random => Some(random::epoch_order(device, epoch.seed, epoch.epoch, pairs)?),
        };
        if let Some(host) = &mut self.on_host {
            host.order = order.as_ref().map(|order| order.read(0..pairs)).transpose()?;
        }
        let order = order.as_ref().map_or(Address::NULL, |order| order.address_of(0));
        // For each position of the order, its user's and its item's index within the batch.
        let places = [Memory::<u32>::new(device, pairs, what)?, Memory::new(device, pairs, what)?];
        let sorted = [
            self.arrange_side(device, &self.users, order, &places[0])?,
            self.arrange_side(device, &self.items, order, &places[1])?,
        ];
        let sides = [&self.users, &self.items];
        for (side, positions, others) in
            [(sides[0], &sorted[0], &places[1]), (sides[1], &sorted[1], &places[0])]
        {
            launch!(
                device,
                Launch {
                    kernel: "batch_partners",
                    grid: [blocks(pairs as u64, 256), 1, 1],
                    block: 256,
                    bytes: 12 * pairs as u64,
                    flops: 0,
                },
                [positions, others, pairs as u32, &side.partners],
                "{pairs} pairs"
            )?;
        }
        self.first_step = epoch.first_step;
        Ok(())
    }

    /// Sorts the positions of the order by batch and id, and lists each batch's ids. Returns the
    /// sorted positions.
    fn arrange_side(
        &self,
        device: &Arc<Device>,
        side: &Side,
        order: Address,
        places: &Memory<u32>,
    ) -> Result<Memory<u32>> {
        let pairs = self.pairs as u64;
        let mut sort = random::Sort::new(device, self.pairs, "the order of an epoch")?;
        launch!(
            device,
            Launch {
                kernel: "batch_keys",
                grid: [blocks(pairs, 256), 1, 1],
                block: 256,
                bytes: 20 * pairs,
                flops: 0,
            },
            [
                order,
                &side.of_pairs,
                self.pairs as u32,
                self.batch_size as u32,
                sort.keys(),
                sort.values(),
            ],
            "{pairs} pairs"
        )?;
        let batches = self.pairs.div_ceil(self.batch_size);
        sort.sort(device, SortBits { low: side.end as u64, high: batches as u64 })?;
        launch!(
            device,
            Launch {
                kernel: "batch_lists",
                grid: [batches as u32, 1, 1],
                block: 256,
                bytes: 24 * pairs,
                flops: 0,
            },
            [
                sort.keys(),
                sort.values(),
                self.pairs as u32,
                self.batch_size as u32,
                &side.ids,
                &side.offsets,
                places,
                &side.counts,
            ],
            "{pairs} pairs in batches of {}",
            self.batch_size
        )?;
        Ok(sort.into_values())
    }

    /// Reads the current epoch's batches from the device.
    ///
    /// # Errors
    /// [`crate::Error::DeviceOperation`].
    pub fn read(&self) -> Result<Vec<Batch>> {
        let read = |side: &Side| -> Result<_> {
            let all = |memory: &Memory<u32>| memory.read(0..memory.len());
            Ok([all(&side.ids)?, all(&side.offsets)?, all(&side.partners)?, all(&side.counts)?])
        };
        let [users, items] = [read(&self.users)?, read(&self.items)?];
        let batch = |number: usize| {
            let Range { start, end } = positions(number as u64, self.batch_size, self.pairs);
            let lists = |[ids, offsets, partners, counts]: &[Vec<u32>; 4]| {
                let (count, bounds) = (counts[number] as usize, start + number);
                (
                    ids[start..start + count].to_vec(),
                    offsets[bounds..=bounds + count].to_vec(),
                    partners[start..end].to_vec(),
                )
            };
            let (users, user_offsets, items_of_users) = lists(&users);
            let (items, item_offsets, users_of_items) = lists(&items);
            Batch { users, items, user_offsets, items_of_users, item_offsets, users_of_items }
        };
        Ok((0..self.pairs.div_ceil(self.batch_size)).map(batch).collect())
    }

    /// Moves the cursor to just before batch `number` of the epoch.
    fn seek(&mut self, number: u64) -> Result<()> {
        let number = number as u32;
        self.cursor.write(0, &[number, self.first_step + number - 1], "the batch at hand")
    }

    /// Makes the next batch the current one.
    fn advance(&self, device: &Arc<Device>) -> Result<()> {
        launch!(
            device,
            Launch { kernel: "next_batch", grid: [1; 3], block: 32, bytes: 104, flops: 0 },
            [
                &self.users.ids,
                &self.items.ids,
                &self.users.offsets,
                &self.users.partners,
                &self.items.offsets,
                &self.items.partners,
                &self.users.counts,
                &self.items.counts,
                self.pairs as u32,
                self.batch_size as u32,
                &self.cursor,
                self.batch.record(),
            ],
            "{} pairs in batches of {}",
            self.pairs,
            self.batch_size
        )
    }

    /// See [`crate::backend::Backend::with_batch`].
    pub(super) fn with(
        &mut self,
        device: &Arc<Device>,
        number: u64,
        work: &mut dyn FnMut(&CudaBatch) -> Result<()>,
    ) -> Result<()> {
        self.seek(number)?;
        self.advance(device)?;
        work(&self.batch)
    }

    /// See [`crate::backend::Backend::each_batch`].
    ///
    /// The first batch's launches are made one by one, since they may allocate. Later batches
    /// replay graphs of one step or of several, which also serve later calls as long as a step
    /// queues the same work. While launches are timed, all are made one by one. If features are
    /// streamed, a graph has one step, because rows arrive between steps.
    pub(super) fn each(
        &mut self,
        device: &Arc<Device>,
        numbers: Range<u64>,
        step: &mut dyn FnMut(&CudaBatch) -> Result<()>,
        proceed: &mut dyn FnMut() -> bool,
        stream: Option<&FeatureStream>,
    ) -> Result<u64> {
        self.seek(numbers.start)?;
        let mut recordings = mem::take(&mut self.recordings);
        let this = &*self;
        let mut visit = |numbers, feed: Option<&mut Feed<'_>>| {
            let mut next = || {
                this.advance(device)?;
                step(&this.batch)
            };
            visit(device, numbers, &mut next, proceed, feed, &mut recordings)
        };
        let done = match (stream, &self.on_host) {
            (Some(stream), Some(host)) => {
                let (batch_size, pairs) = (self.batch_size, self.pairs);
                let items_of = |number| host.at(positions(number, batch_size, pairs));
                stream.feed(numbers.clone(), &items_of, |feed| visit(numbers, Some(feed)))
            }
            _ => visit(numbers, None),
        };
        // Keep nothing that was recorded on a device that failed.
        if done.is_ok() {
            self.recordings = recordings;
        }
        done
    }
}

/// Works through the batches `numbers` by `next`, or by recordings of it, as long as `proceed` says
/// yes. Returns how many were done.
fn visit(
    device: &Device,
    numbers: Range<u64>,
    next: &mut dyn FnMut() -> Result<()>,
    proceed: &mut dyn FnMut() -> bool,
    mut feed: Option<&mut Feed<'_>>,
    recordings: &mut Recordings,
) -> Result<u64> {
    let is_timed = device.times_launches();
    let at_once =
        if is_timed || feed.is_some() { 1 } else { steps_at_once(numbers.end - numbers.start) };
    if !is_timed && !numbers.is_empty() {
        recordings.keep_if_same(device, &mut *next)?;
    }
    let mut number = numbers.start;
    while number < numbers.end {
        let is_first = number == numbers.start && recordings.is_empty();
        let is_short = numbers.end - number < at_once;
        let wanted = if is_first || is_short { 1 } else { at_once };
        let steps = (0..wanted).take_while(|_| proceed()).count() as u64;
        if steps < wanted {
            // Told to stop within the steps of a graph: do the steps before that one by one.
            (0..steps).try_for_each(|_| recordings.do_steps(device, 1, next))?;
            return Ok(number + steps - numbers.start);
        }
        if let Some(feed) = &mut feed {
            feed.begin(number)?;
        }
        match is_timed || is_first {
            true => next()?,
            false => recordings.do_steps(device, steps, next)?,
        }
        if let Some(feed) = &mut feed {
            feed.end(number)?;
        }
        number += steps;
    }
    Ok(numbers.end - numbers.start)
}
