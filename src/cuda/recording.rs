//! What a step asks of a device, noted, so that a graph of it serves as long as it is the same.

use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::CudaGraph;

use super::launch::Arguments;

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

/// A recorded step: the graph, and what was asked for when it was recorded.
pub(super) struct Recording {
    pub graph: CudaGraph,
    pub asked: Vec<Asked>,
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Recording({} launches and waits)", self.asked.len())
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
}
