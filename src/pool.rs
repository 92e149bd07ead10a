//! Thread pools that also work in forked processes.
//!
//! A forked process, such as a preforking server or `multiprocessing` makes, has none of its
//! parent's threads: work given to rayon's global pool would wait for ever. So callers in C and
//! Python get pools that belong to their process.

use std::sync::{Arc, Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{Error, Result};

/// A process's pool, made when there is work.
pub struct Own(Mutex<Option<(u32, Arc<ThreadPool>)>>);

/// The pool of all callers that set no number of threads.
static SHARED: Own = Own::new();

impl Own {
    /// No pool yet.
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// The pool of this process, made with this many threads if there is none yet.
    pub fn get(&self, threads: usize) -> Result<Arc<ThreadPool>> {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let process = std::process::id();
        if let Some((_, pool)) = made.as_ref().filter(|(owner, _)| *owner == process) {
            return Ok(pool.clone());
        }
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = Arc::new(
            pool.map_err(|error| Error::setting("threads", format!("{threads}: {error}")))?,
        );
        // Leak the parent's pool: its threads do not exist here, so it cannot be shut down.
        std::mem::forget(made.replace((process, pool.clone())));
        Ok(pool)
    }
}

/// A new pool of this process, with all of the machine's threads: for a training. In a shared pool,
/// a call that waits for its other threads would take up the whole training as its own work.
pub fn alone() -> Result<Arc<ThreadPool>> {
    Own::new().get(rayon::current_num_threads())
}

/// The pool of this process, with all of the machine's threads.
pub fn shared() -> Result<Arc<ThreadPool>> {
    SHARED.get(rayon::current_num_threads())
}
