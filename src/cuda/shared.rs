//! What several runs on one GPU share: the graph, and frozen features.
//!
//! Each run has a stream of its own ([`Device::sibling`]), so that the runs' work overlaps. What
//! none of them changes lies on the GPU once. Streams do not wait for each other, so it is ordered
//! here: whoever makes it waits for the copies before anyone is given it, and whoever used it waits
//! for that use before it may be given back.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::Device;
use super::features::{StoredType, UploadProgress, frozen_table};
use super::memory::Memory;
use super::spmm::CudaGraph;
use crate::Result;
use crate::data::FeatureMatrix;
use crate::graph::Graph;

/// Something on a GPU that may be others' too.
pub struct Shared<T> {
    value: Arc<T>,
    /// Whose work may be using it, where it is not the one that gives it back.
    user: Option<Arc<Device>>,
}

impl<T> Shared<T> {
    /// What is allocated on the stream that it is used on: giving it back comes after that.
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
            // Work that failed uses it no more; the failure is reported by what comes next.
            user.synchronize().ok();
        }
    }
}

/// What the runs of one GPU share, until the last of their backends is gone.
pub(super) struct Pool {
    /// Whose stream fills everything here, and gives it back.
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

    /// The first `rows` rows of a table, for the work of `user`.
    pub fn features(
        &self,
        matrix: &Arc<FeatureMatrix>,
        rows: usize,
        stored: StoredType,
        user: &Arc<Device>,
        progress: &UploadProgress,
    ) -> Result<Shared<Memory<u8>>> {
        // Held while it is copied: who wants the same one waits for it instead of copying it too.
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

    /// A graph, for the work of `user`.
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

/// A thread that panicked left whole entries.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
