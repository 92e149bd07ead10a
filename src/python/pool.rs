//! Threads to compute on that are there in forked processes, too.
//!
//! A process that is forked, as `multiprocessing` does on Linux, has none of its parent's threads: work
//! given to the pool that rayon makes once for all would wait for ever. So pools belong to a process.

use std::sync::{Arc, Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{Error, Result};

/// A pool that is made when there is work, anew in each process.
pub struct Pool {
    threads: Option<usize>,
    made: Mutex<Made>,
}

/// The process and its pool.
type Made = Option<(u32, Arc<ThreadPool>)>;

/// The pool of all who do not say how many threads they want.
static SHARED: Mutex<Made> = Mutex::new(None);

impl Pool {
    /// Of so many threads, at least 1; of all of the machine's where there is no number.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        if threads == Some(0) {
            return Err(Error::setting("threads", "0 found, a number from 1 expected"));
        }
        Ok(Self { threads, made: Mutex::new(None) })
    }

    /// Does some work on its threads.
    pub fn install<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.of_this_process()?.install(work)
    }

    fn of_this_process(&self) -> Result<Arc<ThreadPool>> {
        let made = if self.threads.is_some() { &self.made } else { &SHARED };
        let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
        let process = std::process::id();
        if let Some((_, pool)) = made.as_ref().filter(|(owner, _)| *owner == process) {
            return Ok(pool.clone());
        }
        let threads = self.threads.unwrap_or_else(rayon::current_num_threads);
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = Arc::new(
            pool.map_err(|error| Error::setting("threads", format!("{threads}: {error}")))?,
        );
        // The parent's cannot be ended here: its threads are not ours.
        std::mem::forget(made.replace((process, pool.clone())));
        Ok(pool)
    }
}
