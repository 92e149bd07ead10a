//! How many runs of a sweep are trained at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::host::available_memory;
use super::lanes::Lanes;
use super::plan::PlannedRun;
use crate::Result;
use crate::config::FeatureStorage;
use crate::cuda::{Cuda, MARGIN, SPARE_SHARE, Shares, StoredType};
use crate::data::Dataset;
use crate::memory::MemoryPlan;
use crate::train::graph;

/// Runs at once on a GPU, unless asked for: as many as it takes work from at a time, unless its
/// driver is told otherwise (CUDA_DEVICE_MAX_CONNECTIONS).
const GPU_JOBS: usize = 8;

const HOST: &str = "memory";
const GPU: &str = "GPU memory";

/// How many runs are trained at once, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// How many, and with what.
    pub lanes: Lanes,
    /// Whose memory is told of here, as a noun: the one that holds fewer runs.
    pub memory: &'static str,
    /// Bytes that all runs share.
    pub shared: u64,
    /// The most bytes of a run beside them.
    pub each: u64,
    /// Bytes free when this was counted, where that is known.
    pub free: Option<u64>,
    /// How many were wanted, where memory does not hold them.
    pub wanted: Option<usize>,
}

impl Room {
    /// Runs at once, of `wanted`, one at least: as many as there is memory for, a share of each
    /// run's left free beside it.
    fn new(
        wanted: usize,
        threads: Option<usize>,
        shared: u64,
        each: u64,
        free: Option<u64>,
    ) -> Self {
        let wanted = wanted.max(1);
        let fitting = match free {
            None => wanted,
            Some(free) => {
                let count = free.saturating_sub(shared) / (each + each / SPARE_SHARE).max(1);
                usize::try_from(count).unwrap_or(usize::MAX)
            }
        };
        let jobs = wanted.min(fitting).max(1);
        Self {
            lanes: Lanes { jobs, threads },
            memory: HOST,
            shared,
            each,
            free,
            wanted: (fitting < wanted).then_some(wanted),
        }
    }
}

/// For the CPU: one run on each of `threads` threads, unless `jobs` says how many.
///
/// A thread that computes for one run alone never waits for another one, so that this is faster
/// than one run on all threads after the other (benches/RESULTS.md has figures).
pub fn on_cpu(
    runs: &[&PlannedRun],
    dataset: &dyn Fn(&PlannedRun) -> Arc<Dataset>,
    threads: usize,
    jobs: Option<usize>,
) -> Result<Room> {
    let mut shared = 0;
    let mut each = 0;
    for run in one_of_each_configuration(runs) {
        let (dataset, config) = (dataset(run), &run.config.train);
        let graph = graph(&dataset, config);
        let own_graph = graph.entries() as u64 * 4 + graph.nodes() as u64 * 8;
        let all = MemoryPlan::on_cpu(&dataset, &graph, config).host_total();
        shared = shared.max(own_graph);
        each = each.max(all.saturating_sub(own_graph));
    }
    let wanted = jobs.unwrap_or(threads).min(runs.len());
    Ok(Room::new(wanted, Some(threads), shared, each, available_memory()))
}

/// For a GPU: as many as `jobs` says, or eight, where its memory and the host's hold them; also the
/// backend that the runs' are [siblings](Cuda::sibling) of.
///
/// Frozen features lie on the GPU once for all runs. Where they do not fit beside one run, runs
/// follow one another, and each decides for itself what of the features it keeps there. With
/// `stream`, each run keeps rows in its part of the memory. Runs that train features also keep those
/// of the best epoch there, where that leaves no run out.
///
/// # Errors
/// Those of the device.
pub fn on_gpu(
    cuda: Cuda,
    storage: FeatureStorage,
    runs: &[&PlannedRun],
    dataset: &dyn Fn(&PlannedRun) -> Arc<Dataset>,
    jobs: Option<usize>,
) -> Result<(Room, Cuda)> {
    let (free, _) = cuda.device().memory()?;
    let free = free.saturating_sub(MARGIN);
    let mut graphs = BTreeMap::new();
    let mut tables: BTreeMap<(usize, StoredType), u64> = BTreeMap::new();
    let (mut own, mut streaming, mut keeping, mut host) = (0, 0, 0, 0);
    for run in one_of_each_configuration(runs) {
        let (dataset, config) = (dataset(run), &run.config.train);
        let graph = graph(&dataset, config);
        let shares = Shares::of(&dataset, &graph, config);
        let resident = FeatureStorage::Resident;
        let all = MemoryPlan::on_gpu(&dataset, &graph, config, resident, 0, None)?;
        host = host.max(all.host_total());
        own = own.max(shares.own);
        streaming = streaming.max(shares.streaming);
        keeping = keeping.max(shares.own + shares.best);
        for (modality, stored, bytes) in shares.tables {
            tables.insert((modality, stored), bytes);
        }
        graphs.insert(config.self_loops, shares.graph);
    }
    // With a split by seed each one has graphs of its own.
    let sets: BTreeSet<*const Dataset> =
        runs.iter().map(|run| Arc::as_ptr(&dataset(run))).collect();
    let own_graph = graphs.values().copied().max().unwrap_or(0);
    let graphs = graphs.values().sum::<u64>() * sets.len() as u64;
    let wanted = jobs.unwrap_or(GPU_JOBS).min(runs.len());
    let shared = graphs + tables.values().sum::<u64>();
    let cuda = cuda.sharing();
    // All may be saved at the same time, for which the host holds a copy of each.
    let on_host = Room::new(wanted, None, 0, host, available_memory());
    let gpu = |shared, each| {
        let room = Room::new(wanted, None, shared, each, Some(free));
        let tighter = on_host.lanes.jobs < room.lanes.jobs;
        if tighter { on_host.clone() } else { Room { memory: GPU, ..room } }
    };
    // The part of one run, and what it counts although it is there already.
    let part = |room: &Room, shared: u64| {
        free.saturating_sub(shared) / room.lanes.jobs as u64 + own_graph + MARGIN
    };
    if storage == FeatureStorage::Stream {
        let room = gpu(graphs, streaming);
        let part = part(&room, graphs);
        return Ok((room, cuda.keeping_features(storage).within(part)));
    }
    // Runs keep their best features on the GPU where that leaves no other run out.
    let (room, keeping) = (gpu(shared, own), gpu(shared, keeping));
    let leaves_all = keeping.lanes.jobs == room.lanes.jobs && keeping.memory == room.memory;
    let room = if leaves_all { keeping } else { room };
    let holds_one = shared + own + own / SPARE_SHARE <= free;
    let (storage, shared) = match storage {
        // One run after the other, each with what there is.
        FeatureStorage::Auto if !holds_one => (FeatureStorage::Auto, graphs),
        _ => (FeatureStorage::Resident, shared),
    };
    let part = part(&room, shared);
    Ok((room, cuda.keeping_features(storage).within(part)))
}

/// Seeds change no size.
fn one_of_each_configuration<'a>(runs: &[&'a PlannedRun]) -> impl Iterator<Item = &'a PlannedRun> {
    let mut seen = BTreeSet::new();
    runs.iter().copied().filter(move |run| seen.insert(run.configuration))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_run_at_once_as_there_is_memory_for() {
        let room = |free| Room::new(4, Some(4), 100, 160, free);
        assert_eq!((room(None).lanes.jobs, room(None).wanted), (4, None));
        // 170 each with what is spared.
        let fits = room(Some(100 + 4 * 170));
        assert_eq!((fits.lanes.jobs, fits.wanted), (4, None));
        let tight = room(Some(100 + 4 * 170 - 1));
        assert_eq!((tight.lanes.jobs, tight.wanted), (3, Some(4)));
        // What does not fit at all is tried alone.
        let small = room(Some(50));
        assert_eq!((small.lanes.jobs, small.wanted), (1, Some(4)));
    }
}
