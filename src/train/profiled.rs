//! An epoch whose operations are timed one by one, if the observer asks for it.

use super::{Pause, Run};
use crate::Result;
use crate::backend::Backend;
use crate::config::TrainConfig;
use crate::profile::{Profile, ProfiledOperation};
use crate::records::{EpochRecord, Observer};

impl<B: Backend> Run<'_, B> {
    /// [`Run::train_epoch`], timed if the observer asks for it; the results are bit-identical.
    pub(super) fn observed_epoch(
        &mut self,
        config: &TrainConfig,
        observer: &mut dyn Observer,
        pause: &Pause<'_>,
    ) -> Result<Option<EpochRecord>> {
        let epoch = self.epoch + 1;
        if !observer.wants_profile(epoch) {
            return self.train_epoch(config, observer, pause);
        }
        // Do not pause for checkpoints: only a stop may split the epoch.
        let pause = Pause { interval: None, ..*pause };
        let backend = self.model.backend().clone();
        let (steps_before, mut record) = (self.step, None);
        let operations = backend.profile(&mut || {
            record = self.train_epoch(config, observer, &pause)?;
            Ok(())
        })?;
        // An interrupted epoch gets its record, and its profile, when it is resumed.
        let Some(record) = &mut record else { return Ok(None) };
        record.profiled = true;
        observer.profile(&Profile {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            device: backend.describe(),
            epoch,
            steps: self.step - steps_before,
            train_seconds: record.train_seconds,
            evaluate_seconds: record.evaluate_seconds,
            operations: ProfiledOperation::rank(operations),
        });
        Ok(Some(record.clone()))
    }
}
