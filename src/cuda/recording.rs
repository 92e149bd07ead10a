//! Notes of what a step queues on a device, so that its graphs are reused while that stays the
//! same.

use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::CudaGraph;

use super::device::Device;
use super::launch::Arguments;
use super::process::OfThisProcess;
use crate::Result;

/// A request to a stream; streams are told apart by their addresses in memory.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Asked {
    /// A launch.
    Launch {
        /// The kernel.
        kernel: &'static str,
        /// The stream.
        stream: usize,
        /// Blocks in x, y and z, and the threads of one.
        geometry: ([u32; 3], u32),
        /// Its arguments.
        arguments: Vec<u64>,
    },
    /// A wait for the work queued on another stream.
    After {
        /// The stream that waits.
        stream: usize,
        /// The stream it waits for.
        other: usize,
    },
}

impl Asked {
    pub fn launch(
        kernel: &'static str,
        stream: usize,
        geometry: ([u32; 3], u32),
        arguments: &Arguments,
    ) -> Self {
        Self::Launch { kernel, stream, geometry, arguments: arguments.slots().to_vec() }
    }
}

/// The requests to a device and its branches since noting began.
#[derive(Debug)]
struct Noting {
    asked: Vec<Asked>,
    /// Whether launches are also made.
    is_done: bool,
}

/// The notes of a device, shared with its branches.
#[derive(Debug, Default)]
pub(super) struct Notes(Mutex<Option<Noting>>);

impl Notes {
    /// Notes a request, if notes are being taken. Returns whether a launch is to be made.
    pub fn note(&self, asked: impl FnOnce() -> Asked) -> bool {
        self.lock().as_mut().is_none_or(|noting| {
            noting.asked.push(asked());
            noting.is_done
        })
    }

    /// Does `work`, with its launches made or not. Returns its result and its requests.
    pub fn of<T>(&self, is_done: bool, work: impl FnOnce() -> T) -> (T, Vec<Asked>) {
        *self.lock() = Some(Noting { asked: Vec::new(), is_done });
        let noting = UntilDropped(self);
        let outcome = work();
        (outcome, noting.0.take())
    }

    /// Ends the notes and returns them.
    fn take(&self) -> Vec<Asked> {
        self.lock().take().map_or_else(Vec::new, |noting| noting.asked)
    }

    /// A thread that panicked left only complete notes.
    fn lock(&self) -> MutexGuard<'_, Option<Noting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the notes, even on a panic: otherwise the device would never launch again.
struct UntilDropped<'a>(&'a Notes);

impl Drop for UntilDropped<'_> {
    fn drop(&mut self) {
        self.0.take();
    }
}

/// The most steps of a graph. Between graphs a device waits some microseconds for the host and for
/// the last branch; a run told to stop first finishes the steps already queued.
const MOST_STEPS: u64 = 16;

/// How many of `steps` steps to queue at once: as even a part as [`MOST_STEPS`] allows, so that few
/// are left over.
pub(super) fn steps_at_once(steps: u64) -> u64 {
    steps / steps.div_ceil(MOST_STEPS).max(1)
}

/// Recorded steps: graphs of one step and of several.
#[derive(Default)]
pub(super) struct Recordings {
    /// What each step requests.
    asked: Vec<Asked>,
    /// Each graph with its number of steps.
    graphs: Vec<(u64, OfThisProcess<CudaGraph>)>,
}

impl Recordings {
    pub fn is_empty(&self) -> bool {
        self.graphs.is_empty()
    }

    /// Forgets all graphs unless `step` requests the same; its launches are not made.
    pub fn keep_if_same(
        &mut self,
        device: &Device,
        step: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        if !self.is_empty() && device.would_ask(step)? != self.asked {
            *self = Self::default();
        }
        Ok(())
    }

    /// Does `steps` times, at once, what `step` requests; what it needs must have been allocated.
    pub fn do_steps(
        &mut self,
        device: &Device,
        steps: u64,
        step: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        if let Some((_, graph)) = self.graphs.iter().find(|(of, _)| *of == steps) {
            return device.replay(graph);
        }
        let (graph, asked) = device.record(|| (0..steps).try_for_each(|_| step()))?;
        let asked_once = asked.len() / steps as usize;
        if self.is_empty() {
            self.asked = asked[..asked_once].to_vec();
        }
        if asked_once == 0 || asked.chunks(asked_once).any(|step| step != self.asked) {
            let problem = "one asked for something else than another".to_owned();
            return Err(device.refused("recording steps".to_owned(), problem));
        }
        tracing::debug!(steps, launches_and_waits = asked.len(), "recorded steps as a graph");
        device.replay(&graph)?;
        self.graphs.push((steps, OfThisProcess::new(graph)));
        Ok(())
    }
}

impl std::fmt::Debug for Recordings {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let steps: Vec<u64> = self.graphs.iter().map(|(steps, _)| *steps).collect();
        write!(formatter, "Recordings({steps:?} steps of {} launches and waits)", self.asked.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Asked {
        Asked::After { stream: 1, other: 2 }
    }

    #[test]
    fn what_is_asked_is_noted_done_or_not_and_no_longer_after_a_panic() {
        let notes = Notes::default();
        assert!(notes.note(asked));
        assert_eq!(notes.of(true, || notes.note(asked)), (true, vec![asked()]));
        assert_eq!(notes.of(false, || notes.note(asked)), (false, vec![asked()]));
        let work = std::panic::AssertUnwindSafe(|| notes.of(false, || panic!("as is meant")));
        assert!(std::panic::catch_unwind(work).is_err());
        assert!(notes.note(asked));
    }

    /// One graph if one is enough; otherwise fewer than twice as many launches as with the most
    /// steps at once, counting left-over steps.
    #[test]
    fn steps_are_asked_for_in_even_parts() {
        assert_eq!(steps_at_once(0), 0);
        assert!((1..=MOST_STEPS).all(|steps| steps_at_once(steps) == steps));
        for steps in 1..1000 {
            let at_once = steps_at_once(steps);
            assert!((1..=MOST_STEPS).contains(&at_once), "{at_once} of {steps} steps");
            let launches = steps / at_once + steps % at_once;
            assert!(launches < 2 * steps.div_ceil(MOST_STEPS), "{at_once} of {steps} steps");
        }
    }
}
