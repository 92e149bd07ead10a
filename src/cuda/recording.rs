//! What a step asks of a device, noted, so that graphs of it serve as long as it is the same.

use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::CudaGraph;

use super::device::Device;
use super::launch::Arguments;
use super::process::OfThisProcess;
use crate::Result;

/// Something that is asked of a stream; streams are told apart by where they lie in memory.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Asked {
    /// A launch.
    Launch {
        /// Of which kernel.
        kernel: &'static str,
        /// On which stream.
        stream: usize,
        /// Blocks in x, y and z, and the threads of one.
        geometry: ([u32; 3], u32),
        /// Its arguments.
        arguments: Vec<u64>,
    },
    /// Waiting for what another stream was asked for.
    After {
        /// Who waits.
        stream: usize,
        /// For whom.
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

/// What a device and its branches were asked for since somebody wanted to know.
#[derive(Debug)]
struct Noting {
    asked: Vec<Asked>,
    /// Whether launches are made, too.
    is_done: bool,
}

/// The notes of a device, which its branches share.
#[derive(Debug, Default)]
pub(super) struct Notes(Mutex<Option<Noting>>);

impl Notes {
    /// Notes what is asked for, where somebody wants to know; whether a launch is to be made.
    pub fn note(&self, asked: impl FnOnce() -> Asked) -> bool {
        self.lock().as_mut().is_none_or(|noting| {
            noting.asked.push(asked());
            noting.is_done
        })
    }

    /// Does `work`; its outcome and what it asked for, whose launches are made or not.
    pub fn of<T>(&self, is_done: bool, work: impl FnOnce() -> T) -> (T, Vec<Asked>) {
        *self.lock() = Some(Noting { asked: Vec::new(), is_done });
        let noting = UntilDropped(self);
        let outcome = work();
        (outcome, noting.0.take())
    }

    /// What was noted; nothing is noted from here on.
    fn take(&self) -> Vec<Asked> {
        self.lock().take().map_or_else(Vec::new, |noting| noting.asked)
    }

    /// A thread that panicked has noted whole launches.
    fn lock(&self) -> MutexGuard<'_, Option<Noting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has notes end, also by a panic: a device that only notes would do nothing for ever.
struct UntilDropped<'a>(&'a Notes);

impl Drop for UntilDropped<'_> {
    fn drop(&mut self) {
        self.0.take();
    }
}

/// The most steps of a graph. Between graphs a device waits for the host's word and for the last
/// branch, some microseconds; a run that is to stop waits for those that were asked for.
const MOST_STEPS: u64 = 16;

/// How many of `steps` steps are asked for at once: as even a part as [`MOST_STEPS`] allows, so that
/// few are left over.
pub(super) fn steps_at_once(steps: u64) -> u64 {
    steps / steps.div_ceil(MOST_STEPS).max(1)
}

/// Steps that were recorded: graphs of one and of several of them.
#[derive(Default)]
pub(super) struct Recordings {
    /// What each step asks for.
    asked: Vec<Asked>,
    /// Each with its number of steps.
    graphs: Vec<(u64, OfThisProcess<CudaGraph>)>,
}

impl Recordings {
    pub fn is_empty(&self) -> bool {
        self.graphs.is_empty()
    }

    /// Forgets them all, unless `step` asks for the same; it is not done.
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

    /// Does so many times what `step` asks for, at once; what it needs has been allocated.
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

    /// One graph where one is enough; and fewer than twice as many launches as the most steps at once
    /// would take, those of steps that are left over too.
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
