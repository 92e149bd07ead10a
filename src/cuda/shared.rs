//! Data shared by several runs on one GPU: the graph, and frozen features.
//!
//! Each run has its own stream ([`Device::sibling`]), so that the runs' work overlaps. Data that no
//! run changes is on the GPU once. Streams do not wait for each other, so they are ordered here:
//! the maker waits for the copies before handing the data out, and each user waits for its own work
//! before the data may be freed.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::Device;
use super::memory::Memory;
use super::spmm::CudaGraph;
use super::stored::StoredType;
use super::upload::{UploadProgress, frozen_table};
use crate::Result;
use crate::data::FeatureMatrix;
use crate::graph::Graph;

/// Data on a GPU that others may share.
pub struct Shared<T> {
    value: Arc<T>,
    /// The device whose work may be using it, unless that device also frees it.
    user: Option<Arc<Device>>,
}

impl<T> Shared<T> {
    /// Data allocated on the stream that uses it, which frees it after that use.
    pub(super) fn own(value: impl Into<Arc<T>>) -> Self {
        Self { value: value.into(), user: None }
    }

    fn with(value: Arc<T>, user: &Arc<Device>) -> Self {
        Self { value, user: Some(user.clone()) }
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(formatter)
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        if let Some(user) = self.user.as_ref().filter(|user| !user.is_inherited()) {
            // Failed work no longer uses it; the next operation reports the failure.
            user.synchronize().ok();
        }
    }
}

/// The data shared by the runs of one GPU, kept until the last of their backends is dropped.
pub(super) struct Pool {
    /// The device whose stream fills and frees everything here.
    device: Arc<Device>,
    tables: Mutex<Vec<Table>>,
    graphs: Mutex<Vec<Arc<CudaGraph>>>,
}

struct Table {
    matrix: Arc<FeatureMatrix>,
    rows: usize,
    stored: StoredType,
    memory: Arc<Memory<u8>>,
}

impl Pool {
    pub fn new(device: Arc<Device>) -> Self {
        Self { device, tables: Mutex::default(), graphs: Mutex::default() }
    }

    /// The first `rows` rows of a table, for use by `user`.
    pub fn features(
        &self,
        matrix: &Arc<FeatureMatrix>,
        rows: usize,
        stored: StoredType,
        user: &Arc<Device>,
        progress: &UploadProgress,
    ) -> Result<Shared<Memory<u8>>> {
        // Hold the lock while copying, so that another run waits for the table instead of copying
        // it too.
        let mut tables = lock(&self.tables);
        let is_it = |table: &&Table| {
            Arc::ptr_eq(&table.matrix, matrix) && (table.rows, table.stored) == (rows, stored)
        };
        if let Some(table) = tables.iter().find(is_it) {
            return Ok(Shared::with(table.memory.clone(), user));
        }
        let memory = Arc::new(frozen_table(&self.device, matrix, rows, stored, progress)?);
        self.device.synchronize()?;
        tables.push(Table { matrix: matrix.clone(), rows, stored, memory: memory.clone() });
        Ok(Shared::with(memory, user))
    }

    /// A graph, for use by `user`.
    pub fn graph(&self, graph: Arc<Graph>, user: &Arc<Device>) -> Result<Shared<CudaGraph>> {
        let mut graphs = lock(&self.graphs);
        if let Some(found) = graphs.iter().find(|found| Arc::ptr_eq(&found.graph, &graph)) {
            return Ok(Shared::with(found.clone(), user));
        }
        let copy = Arc::new(CudaGraph::new(&self.device, graph)?);
        self.device.synchronize()?;
        graphs.push(copy.clone());
        Ok(Shared::with(copy, user))
    }
}

/// A thread that panicked left only complete entries.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
