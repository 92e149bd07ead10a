//! The threads that work for Python.

use crate::config::check_threads;
use crate::pool::{Own, shared};
use crate::{Error, Result};

/// A pool that is made when there is work, anew in each process.
pub struct Pool {
    threads: Option<usize>,
    own: Own,
}

impl Pool {
    /// A pool of this many threads, at least 1; `None` takes the one of all that set no number.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        if let Some(threads) = threads {
            check_threads(threads).map_err(|problem| Error::setting("threads", problem))?;
        }
        Ok(Self { threads, own: Own::new() })
    }

    /// Another of as many threads.
    pub fn another(&self) -> Self {
        Self { threads: self.threads, own: Own::new() }
    }

    /// Runs `work` on the pool's threads.
    pub fn install<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        match self.threads {
            Some(threads) => self.own.get(threads)?.install(work),
            None => shared()?.install(work),
        }
    }
}
