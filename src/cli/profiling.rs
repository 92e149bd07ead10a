//! `bm3-engine train --profile`: times the operations of one epoch and keeps them.

use std::path::Path;

use bm3_engine::Result;
use bm3_engine::profile::Profile;
use bm3_engine::records::{EpochRecord, Observer, RunStart};
use bm3_engine::run::RunDirectory;

/// Asks for a profile of one epoch and writes it to the run's directory; passes everything on to
/// another observer.
pub struct Profiling<'a> {
    observer: &'a mut dyn Observer,
    directory: &'a RunDirectory,
    wanted: bool,
    /// The epoch to time, once it is known.
    epoch: Option<u64>,
    written: Result<()>,
}

impl<'a> Profiling<'a> {
    /// Passes everything on to `observer`; asks for a profile if it is `wanted`.
    pub fn new(observer: &'a mut dyn Observer, directory: &'a RunDirectory, wanted: bool) -> Self {
        Self { observer, directory, wanted, epoch: None, written: Ok(()) }
    }

    /// Whether the profile was written.
    ///
    /// # Errors
    /// As [`RunDirectory::write_profile`].
    pub fn finish(self) -> Result<()> {
        self.written
    }
}

impl Observer for Profiling<'_> {
    fn start(&mut self, run: &RunStart) {
        // The first epoch starts with cold caches and allocates memory, so time the second, unless
        // there is only one.
        self.epoch = self.wanted.then(|| (run.first_epoch + 1).min(run.epochs));
        self.observer.start(run);
    }

    fn step(&mut self, epoch: u64, step_in_epoch: u64, steps_per_epoch: u64) {
        self.observer.step(epoch, step_in_epoch, steps_per_epoch);
    }

    fn epoch(&mut self, record: &EpochRecord) {
        self.observer.epoch(record);
    }

    fn wants_profile(&self, epoch: u64) -> bool {
        self.epoch == Some(epoch) || self.observer.wants_profile(epoch)
    }

    fn profile(&mut self, profile: &Profile) {
        if self.epoch == Some(profile.epoch) {
            self.written = self.directory.write_profile(profile);
        }
        self.observer.profile(profile);
    }

    fn checkpoint(&mut self, path: &Path) {
        self.observer.checkpoint(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The epochs that are timed.
    fn timed(first_epoch: u64, epochs: u64, wanted: bool) -> Vec<u64> {
        let folder = tempfile::tempdir().unwrap();
        let directory = RunDirectory::open(folder.path(), false).unwrap();
        let mut nobody = ();
        let mut profiling = Profiling::new(&mut nobody, &directory, wanted);
        profiling.start(&RunStart { first_epoch, epochs, ..RunStart::default() });
        (1..=epochs).filter(|&epoch| profiling.wants_profile(epoch)).collect()
    }

    #[test]
    fn the_second_epoch_of_a_process_is_timed_or_its_only_one() {
        assert_eq!(timed(1, 9, true), [2]);
        assert_eq!(timed(5, 9, true), [6]);
        assert_eq!(timed(9, 9, true), [9]);
        assert_eq!(timed(1, 1, true), [1]);
        assert_eq!(timed(1, 9, false), [0u64; 0]);
    }
}
