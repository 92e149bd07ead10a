//! Thread pools that also work in forked processes.
//!
//! A forked process, such as `multiprocessing` makes on Linux, has none of its parent's threads:
//! work given to rayon's global pool would wait for ever. So every process has pools of its own.

use std::sync::{Arc, Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::config::check_threads;
use crate::{Error, Result};

/// A pool that is made when there is work, anew in each process.
pub struct Pool {
    threads: Option<usize>,
    made: Mutex<Made>,
}

/// The process's id and its pool.
type Made = Option<(u32, Arc<ThreadPool>)>;

/// The pool of all callers that set no number of threads.
static SHARED: Mutex<Made> = Mutex::new(None);

impl Pool {
    /// A pool of this many threads, at least 1; `None` takes all of the machine's.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        if let Some(threads) = threads {
            check_threads(threads).map_err(|problem| Error::setting("threads", problem))?;
        }
        Ok(Self { threads, made: Mutex::new(None) })
    }

    /// Runs `work` on the pool's threads.
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
        // Leak the parent's pool: its threads do not exist here, so it cannot be shut down.
        std::mem::forget(made.replace((process, pool.clone())));
        Ok(pool)
    }
}
