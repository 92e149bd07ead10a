//! The driver's pool of a GPU's memory, which all of this process share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::process::OfThisProcess;

/// Makes the driver keep freed memory for the next allocation, instead of releasing it whenever the
/// stream is waited for.
pub(super) fn keep_freed_memory(context: &CudaContext) -> Result<(), DriverError> {
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut threshold = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the pool is the device's own, and the attribute's value is a u64, as documented.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast())
    }
}

/// An attribute of the pool, in bytes, if there is a pool.
pub(super) fn attribute(context: &CudaContext, attribute: sys::CUmemPool_attribute) -> Option<u64> {
    let mut bytes = 0u64;
    // SAFETY: the pool is the device's own, and the attribute's value is a u64, as documented.
    let asked = context.has_async_alloc().then(|| unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast())
    });
    asked?.ok().map(|()| bytes)
}

/// Gives freed memory that the pool keeps back to the GPU.
pub(super) fn trim(context: &CudaContext) -> Result<(), DriverError> {
    if !context.has_async_alloc() {
        return Ok(());
    }
    // SAFETY: the pool is the device's own.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        result::mem_pool::trim_to(pool, 0)
    }
}

/// A GPU that is open, shared by a device and its siblings. When the last that this process has open
/// of a GPU is gone, other libraries and programs get what the pool keeps.
#[derive(Debug)]
pub(super) struct Open {
    context: OfThisProcess<Arc<CudaContext>>,
    ordinal: usize,
}

/// How many are open of each GPU.
static OPEN: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

impl Open {
    /// One more of this GPU.
    pub fn new(context: &Arc<CudaContext>, ordinal: usize) -> Arc<Self> {
        *OPEN.lock().unwrap_or_else(PoisonError::into_inner).entry(ordinal).or_default() += 1;
        Arc::new(Self { context: OfThisProcess::new(context.clone()), ordinal })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.context.is_inherited() {
            return;
        }
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let left = open.entry(self.ordinal).or_default();
        *left = left.saturating_sub(1);
        if *left == 0 {
            trim(&self.context).ok();
        }
    }
}
