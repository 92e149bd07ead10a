//! Training.

use std::ffi::{c_char, c_void};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::arguments::{Out, device, flags, path, settings};
use super::dataset::bm3_dataset;
use super::handle::{borrow, give};
use super::recommender::{Served, bm3_recommender};
use super::status::{Failure, bm3_status, call_alone};
use crate::Trainer;
use crate::config::{DeviceChoice, RunConfig};
use crate::records::EpochRecord;
use crate::run::StopReason;
use crate::train::STOPPING_LENGTH;

/// A flag: continues the run in its directory, with the same bits as a run that was never stopped;
/// begins one if there is none.
pub const BM3_RESUME: u32 = 1;

/// The record of an epoch.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct bm3_epoch {
    /// Its number, from 1.
    pub epoch: u64,
    /// The mean of the loss over its batches.
    pub loss: f64,
    /// Recall@20 on the validation split; NaN without one.
    pub valid_recall: f64,
    /// NDCG@20 on the validation split; NaN without one.
    pub valid_ndcg: f64,
    /// Seconds that it took, including its evaluation.
    pub seconds: f64,
    /// 1 if its Recall@20 on the validation split is higher than every earlier epoch's, or if there
    /// is no validation split; else 0.
    pub best: i32,
}

impl From<&EpochRecord> for bm3_epoch {
    fn from(record: &EpochRecord) -> Self {
        let valid = |name| {
            let valid = record.valid.as_ref()?;
            let place = valid.top_k.iter().position(|&length| length == STOPPING_LENGTH)?;
            let (_, values) = valid.by_name().into_iter().find(|(metric, _)| *metric == name)?;
            values.get(place).copied()
        };
        Self {
            epoch: record.epoch,
            loss: record.loss_term("total").unwrap_or(f64::NAN),
            valid_recall: valid("recall").unwrap_or(f64::NAN),
            valid_ndcg: valid("ndcg").unwrap_or(f64::NAN),
            seconds: record.train_seconds + record.evaluate_seconds,
            best: record.best.into(),
        }
    }
}

/// Called after each epoch, with the pointer that was given to `bm3_train`; a value other than 0
/// stops the training. It may call functions of this library, must return, and must throw nothing.
/// `epoch` is valid only during the call.
pub type bm3_epoch_callback =
    Option<unsafe extern "C" fn(epoch: *const bm3_epoch, user: *mut c_void) -> i32>;

/// A callback and its pointer.
struct AfterEpoch {
    callback: bm3_epoch_callback,
    user: *mut c_void,
}

// SAFETY: the pointer is only passed back; `bm3_train` documents on which thread.
unsafe impl Send for AfterEpoch {}

impl AfterEpoch {
    fn call(&self, record: &EpochRecord) -> ControlFlow<()> {
        let Some(callback) = self.callback else { return ControlFlow::Continue(()) };
        let epoch = bm3_epoch::from(record);
        // SAFETY: the caller gave a function of this type, and the pointer that it takes.
        match unsafe { callback(&raw const epoch, self.user) } {
            0 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    }
}

/// Trains a model and makes it ready to answer.
///
/// `settings` are those of the program's --config files, in TOML, such as
/// "layers = 2\nepochs = 50"; NULL means the defaults. An unknown key is refused, with a suggestion.
/// Settings of a data set have no effect here; see `bm3_dataset_open`. `device` is as in
/// `bm3_recommender_open`. `directory` keeps the run as the program does, with its best model and
/// checkpoints, and must not have a run already, unless `flags` has BM3_RESUME, which continues it;
/// NULL keeps the run in memory only.
///
/// `callback`, which may be NULL, is called after each epoch with `user`: on the calling thread or,
/// if the settings have `threads` or in a forked process, on one of the library's own. If it stops
/// the training early, everything is saved and BM3_INTERRUPTED returned; `recommender` then holds the
/// model of the best epoch so far, or NULL if there is none. If the trained model cannot be placed on
/// the device to answer there, that error is returned, and `recommender` answers on the CPU.
/// `bm3_recommender_free` frees it.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_train(
    dataset: *const bm3_dataset,
    settings: *const c_char,
    device: *const c_char,
    directory: *const c_char,
    flags: u32,
    callback: bm3_epoch_callback,
    user: *mut c_void,
    recommender: *mut *mut bm3_recommender,
) -> bm3_status {
    call_alone(|| {
        // SAFETY: the caller keeps the rules of the module.
        let (out, dataset, mut settings, device) = unsafe {
            (
                Out::handle("recommender", recommender)?,
                borrow(dataset)?,
                self::settings(settings)?,
                self::device(device)?,
            )
        };
        let flags = self::flags(flags, BM3_RESUME)?;
        // The data set is open already, so where it came from does not matter.
        settings.run.data = Some(Path::new(".").into());
        settings.run.features.clear();
        let config = RunConfig::new(&settings.train, &settings.run)?;
        let mut trainer = Trainer::new(config.train)
            .device(device)
            .feature_storage(config.feature_storage)
            .checkpoint_interval(Duration::from_secs(config.checkpoint_seconds));
        if let Some(size) = config.device_memory {
            trainer = trainer.device_memory(size.0);
        }
        if let Some(threads) = config.threads {
            trainer = trainer.threads(threads);
        }
        if let Some(initial) = config.init {
            trainer = trainer.initial(initial);
        }
        if !directory.is_null() {
            // SAFETY: the caller keeps the rules of the module.
            let directory = unsafe { path("directory", directory) }?;
            trainer = match flags & BM3_RESUME {
                0 => trainer.directory(directory),
                _ => trainer.resume(directory),
            };
        } else if flags & BM3_RESUME != 0 {
            return Err(Failure::argument("directory", "NULL found, that of the run expected"));
        }
        let after_epoch = AfterEpoch { callback, user };
        let trained = trainer.fit_with(&dataset.dataset, move |record| after_epoch.call(record))?;
        if let Some(model) = trained.model {
            let model = Arc::new(model);
            match Served::new(model.clone(), device) {
                Ok(recommender) => give(recommender, &out),
                Err(error) => {
                    // A trained model is not lost when the device has no room for it.
                    give(Served::new(model, DeviceChoice::Cpu)?, &out);
                    return Err(error.into());
                }
            }
        }
        if trained.summary.stopped_by == StopReason::Interrupted {
            let message = format!("training was stopped after epoch {}", trained.summary.epochs);
            return Err(Failure::Interrupted(message));
        }
        Ok(())
    })
}
