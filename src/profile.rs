//! The time that operations take, and a device's measured limits.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// All calls of one kind of operation, together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// The name of the operation, or on a GPU of the kernel.
    pub name: String,
    /// The number of calls.
    pub calls: u64,
    /// Seconds in total.
    pub seconds: f64,
    /// The least number of bytes that had to move.
    pub bytes: u64,
    /// Floating-point operations.
    pub flops: u64,
}

/// The operations of one epoch of a run, timed individually: `profile.json` in its directory.
///
/// They are those of the epoch's steps and evaluation. Timing slows them down, so the epoch's
/// seconds cannot be compared with those of other epochs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// The program's version.
    pub version: String,
    /// The device, in words.
    pub device: String,
    /// The epoch, from 1.
    pub epoch: u64,
    /// The timed steps of the epoch: all of them, unless the epoch was resumed midway.
    pub steps: u64,
    /// Wall time of these steps, in seconds.
    pub train_seconds: f64,
    /// Wall time of the epoch's evaluation, in seconds.
    pub evaluate_seconds: f64,
    /// The operations, slowest first.
    pub operations: Vec<ProfiledOperation>,
}

/// An operation and its share of the total time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProfiledOperation {
    /// All of its calls together.
    #[serde(flatten)]
    pub operation: Operation,
    /// Its share of the seconds of all operations, 0 to 1.
    pub share: f64,
}

impl ProfiledOperation {
    /// Computes the operations' shares and sorts them, slowest first.
    pub fn rank(mut operations: Vec<Operation>) -> Vec<Self> {
        operations.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let all: f64 = operations.iter().map(|operation| operation.seconds).sum();
        let share = |seconds: f64| if all > 0.0 { seconds / all } else { 0.0 };
        let ranked = |operation: Operation| Self { share: share(operation.seconds), operation };
        operations.into_iter().map(ranked).collect()
    }
}

/// The highest rates that were measured on a device.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ceilings {
    /// Bytes per second of a copy within its memory, counting bytes read and bytes written.
    pub copy: f64,
    /// Fused multiply-adds in f32 per second, each counted as two operations.
    pub multiply_add: f64,
    /// The same for TF32 products on tensor cores, if there are any.
    pub tensor: Option<f64>,
    /// Bytes per second of a copy from the host's page-locked memory, if the device has its own
    /// memory.
    pub upload: Option<f64>,
}

/// Adds a call to its kind of operation.
pub(crate) fn add(
    operations: &mut Vec<Operation>,
    name: &str,
    seconds: f64,
    bytes: u64,
    flops: u64,
) {
    let operation = match operations.iter_mut().find(|operation| operation.name == name) {
        Some(operation) => operation,
        None => {
            let name = name.to_owned();
            operations.push(Operation { name, calls: 0, seconds: 0.0, bytes: 0, flops: 0 });
            // Just pushed.
            let last = operations.len() - 1;
            &mut operations[last]
        }
    };
    operation.calls += 1;
    operation.seconds += seconds;
    operation.bytes += bytes;
    operation.flops += flops;
}

/// Whether the CPU backend's operations are timed; each of them checks it.
static IS_ON: AtomicBool = AtomicBool::new(false);
static RECORDED: Mutex<Vec<Operation>> = Mutex::new(Vec::new());

/// Times an operation of the CPU backend until dropped, if timing is on.
pub(crate) struct Timed {
    begun: Option<Instant>,
    name: &'static str,
    bytes: u64,
    flops: u64,
}

impl Timed {
    /// Starts timing; counts four bytes for each of `numbers`.
    pub fn new(name: &'static str, numbers: usize, flops: usize) -> Self {
        let begun = IS_ON.load(Ordering::Relaxed).then(Instant::now);
        Self { begun, name, bytes: 4 * numbers as u64, flops: flops as u64 }
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        if let Some(begun) = self.begun {
            let seconds = begun.elapsed().as_secs_f64();
            let mut recorded = RECORDED.lock().unwrap_or_else(PoisonError::into_inner);
            add(&mut recorded, self.name, seconds, self.bytes, self.flops);
        }
    }
}

/// Runs `work` and returns the CPU backend's operations during it, from the whole process.
pub(crate) fn record<E>(work: impl FnOnce() -> Result<(), E>) -> Result<Vec<Operation>, E> {
    /// Ends the timing, also if `work` panics.
    struct UntilDropped;

    impl Drop for UntilDropped {
        fn drop(&mut self) {
            IS_ON.store(false, Ordering::Relaxed);
        }
    }

    RECORDED.lock().unwrap_or_else(PoisonError::into_inner).clear();
    IS_ON.store(true, Ordering::Relaxed);
    let timing = UntilDropped;
    let outcome = work();
    drop(timing);
    outcome?;
    Ok(std::mem::take(&mut *RECORDED.lock().unwrap_or_else(PoisonError::into_inner)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(name: &str, seconds: f64) -> Operation {
        Operation { name: name.to_owned(), calls: 2, seconds, bytes: 8, flops: 4 }
    }

    #[test]
    fn operations_are_ranked_by_their_seconds() {
        let ranked = ProfiledOperation::rank(vec![operation("a", 1.0), operation("b", 3.0)]);
        let found: Vec<_> =
            ranked.iter().map(|ranked| (&*ranked.operation.name, ranked.share)).collect();
        assert_eq!(found, [("b", 0.75), ("a", 0.25)]);
        assert_eq!(ProfiledOperation::rank(vec![operation("a", 0.0)])[0].share, 0.0);
        let json = serde_json::to_string(&ranked[0]).unwrap();
        let expected = r#"{"name":"b","calls":2,"seconds":3.0,"bytes":8,"flops":4,"share":0.75}"#;
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_str::<ProfiledOperation>(&json).unwrap(), ranked[0]);
    }
}
