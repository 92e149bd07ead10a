//! How many runs of a sweep train at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::host::available_memory;
use super::lanes::Lanes;
use super::plan::PlannedRun;
use crate::Result;
use crate::config::FeatureStorage;
use crate::cuda::{Cuda, MARGIN, SPARE_SHARE, Shares, StoredType};
use crate::data::Dataset;
use crate::graph::Graph;
use crate::memory::MemoryPlan;
use crate::train::graph;

/// Runs at once on a GPU by default: as many as it takes work from at a time, unless the driver is
/// set otherwise (CUDA_DEVICE_MAX_CONNECTIONS).
const GPU_JOBS: usize = 8;

const HOST: &str = "memory";
const GPU: &str = "GPU memory";

/// How many runs train at once, and the memory that decides it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// How many, and on how many threads.
    pub lanes: Lanes,
    /// Which memory the figures describe, as a noun: the one that holds fewer runs.
    pub memory: &'static str,
    /// Bytes that all runs share.
    pub shared: u64,
    /// The most bytes that one run needs beside the shared ones.
    pub each: u64,
    /// Bytes free when this was counted, if known.
    pub free: Option<u64>,
    /// How many were wanted, if memory does not hold them.
    pub wanted: Option<usize>,
}

impl Room {
    /// Up to `wanted` runs at once, at least one: as many as `free` holds when each gets
    /// 1/[`SPARE_SHARE`] more than its `each` bytes.
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

/// Room on the CPU: one run on each of `threads` threads, unless `jobs` says how many.
///
/// A thread that works for a single run never waits for another thread, so this is faster than one
/// run after the other on all threads (benches/RESULTS.md has figures).
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

/// Room on a GPU: `jobs` runs, by default eight, as far as its memory and the host's hold them.
/// Also returns the backend whose [siblings](Cuda::sibling) the runs use.
///
/// Frozen features are on the GPU once for all runs. If they do not fit beside one run, runs train
/// one after another, and each decides which features to keep there. With `stream`, each run keeps
/// rows in its part of the memory. Runs that train features also keep those of the best epoch
/// there, if that does not reduce the number of runs at once.
///
/// # Errors
/// [`crate::Error::DeviceOperation`] when the driver does not answer.
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
        let all = MemoryPlan::on_gpu(&dataset, &graph, config, resident, 0, None);
        host = host.max(all.host_total());
        own = own.max(shares.own);
        streaming = streaming.max(shares.streaming);
        keeping = keeping.max(shares.own + shares.best);
        for (table, stored, bytes) in shares.tables {
            tables.insert((table, stored), bytes);
        }
        graphs.insert(config.self_loops, shares.graph);
    }
    // A split by seed gives each seed its own graphs; other modalities do not.
    let distinct: BTreeMap<*const Graph, u64> = runs
        .iter()
        .map(|run| {
            let self_loops = run.config.train.self_loops;
            (Arc::as_ptr(&dataset(run).graph(self_loops)), graphs[&self_loops])
        })
        .collect();
    let own_graph = graphs.values().copied().max().unwrap_or(0);
    let graphs = distinct.values().sum::<u64>();
    let wanted = jobs.unwrap_or(GPU_JOBS).min(runs.len());
    let shared = graphs + tables.values().sum::<u64>();
    let cuda = cuda.sharing();
    // All runs may be saved at the same time; the host then holds a copy of each.
    let on_host = Room::new(wanted, None, 0, host, available_memory());
    let gpu = |shared, each| {
        let room = Room::new(wanted, None, shared, each, Some(free));
        let tighter = on_host.lanes.jobs < room.lanes.jobs;
        if tighter { on_host.clone() } else { Room { memory: GPU, ..room } }
    };
    // A run's part of the memory, plus what the run counts although it is already there.
    let part = |room: &Room, shared: u64| {
        free.saturating_sub(shared) / room.lanes.jobs as u64 + own_graph + MARGIN
    };
    if storage == FeatureStorage::Stream {
        let room = gpu(graphs, streaming);
        let part = part(&room, graphs);
        return Ok((room, cuda.keeping_features(storage).within(part)));
    }
    // Runs keep their best features on the GPU if as many runs still fit.
    let (room, keeping) = (gpu(shared, own), gpu(shared, keeping));
    let leaves_all = keeping.lanes.jobs == room.lanes.jobs && keeping.memory == room.memory;
    let room = if leaves_all { keeping } else { room };
    if shared + own + own / SPARE_SHARE <= free {
        // A run counts shared features as its own; what lies beside them has been counted here.
        let part = part(&room, shared);
        let cuda = cuda.keeping_features(FeatureStorage::Resident).within(part).keeping_dense();
        return Ok((room, cuda));
    }
    let (storage, shared) = match storage {
        // One run after another, each with all that is free.
        FeatureStorage::Auto => (FeatureStorage::Auto, graphs),
        _ => (FeatureStorage::Resident, shared),
    };
    let part = part(&room, shared);
    Ok((room, cuda.keeping_features(storage).within(part)))
}

/// Keeps one run of each configuration: seeds change no size.
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
        // 170 each, with what is spared.
        let fits = room(Some(100 + 4 * 170));
        assert_eq!((fits.lanes.jobs, fits.wanted), (4, None));
        let tight = room(Some(100 + 4 * 170 - 1));
        assert_eq!((tight.lanes.jobs, tight.wanted), (3, Some(4)));
        // A run that does not fit is tried alone.
        let small = room(Some(50));
        assert_eq!((small.lanes.jobs, small.wanted), (1, Some(4)));
    }
}
