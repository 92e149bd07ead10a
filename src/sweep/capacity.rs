//! How many runs of a sweep are trained at once.

use std::collections::BTreeSet;

use super::lanes::Lanes;
use super::plan::PlannedRun;
use crate::Result;
use crate::data::Dataset;
use crate::memory::MemoryPlan;
use crate::train::graph;

/// This share of each run's memory is left free beside it: pages that are only partly used, and
/// what grows with the run.
const SPARE_SHARE: u64 = 16;

/// How many runs are trained at once, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// How many, and with what.
    pub lanes: Lanes,
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
    /// One run at a time, as it would be trained alone.
    pub fn one() -> Self {
        Self::new(1, None, 0, 0, None)
    }

    /// Runs at once, of `wanted`, one at least: as many as there is memory for.
    pub(crate) fn new(
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
    dataset: &dyn Fn(&PlannedRun) -> std::sync::Arc<Dataset>,
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

/// Seeds change no size.
pub(super) fn one_of_each_configuration<'a>(
    runs: &[&'a PlannedRun],
) -> impl Iterator<Item = &'a PlannedRun> {
    let mut seen = BTreeSet::new();
    runs.iter().copied().filter(move |run| seen.insert(run.configuration))
}

/// Bytes that processes can still have without others being swapped out; Linux says it in kB,
/// elsewhere it is not known.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| 1024 * kilobytes)
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
