//! Page-locked memory for copying tables to a device and from it.

use std::collections::VecDeque;
use std::mem;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{CudaEvent, CudaStream, DriverError, PinnedHostSlice, result};

use super::launch::Address;
use super::process::OfThisProcess;

/// The least bytes of a piece: enough that starting a copy costs little.
pub(super) const PIECE: usize = 1 << 20;

/// The most bytes of page-locked memory for copying tables whose rows have `row_bytes`.
pub(crate) fn staging_bytes(row_bytes: usize) -> u64 {
    // One piece in use per thread, as many waiting, and one more.
    ((2 * rayon::current_num_threads() + 1) * row_bytes.max(PIECE)) as u64
}

/// Pieces of page-locked memory, reused from table to table: locking pages takes longer than
/// copying.
#[derive(Default)]
pub(super) struct StagingPool(Mutex<VecDeque<Staging>>);

impl StagingPool {
    /// A piece of at least `bytes` bytes: the one given back longest ago, whose copy is likely
    /// done, or a new one while there are fewer than two for each thread.
    pub fn take(&self, stream: &Arc<CudaStream>, bytes: usize) -> Result<Staging, DriverError> {
        let mut pieces = self.lock();
        // Besides those that wait here, each thread has at most one.
        let oldest = match pieces.len() > rayon::current_num_threads() {
            true => pieces.pop_front(),
            false => None,
        };
        drop(pieces);
        match oldest {
            Some(mut piece) if piece.length() >= bytes => {
                // Its last copy may be on a sibling's stream.
                piece.wait()?;
                piece.stream = OfThisProcess::new(stream.clone());
                Ok(piece)
            }
            _ => Staging::new(stream, bytes.max(PIECE)),
        }
    }

    pub fn give(&self, piece: Staging) {
        self.lock().push_back(piece);
    }

    /// A thread that panicked gave nothing back.
    fn lock(&self) -> MutexGuard<'_, VecDeque<Staging>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Page-locked memory for copies to or from the device.
///
/// cudarc knows when such memory is free again by its event tracking, which is turned off for this
/// device: hence our own event.
pub(super) struct Staging {
    memory: OfThisProcess<PinnedHostSlice<u8>>,
    stream: OfThisProcess<Arc<CudaStream>>,
    /// Whether copies were queued that have not been waited for.
    is_in_use: bool,
    /// The event after the last of them.
    copied: Option<OfThisProcess<CudaEvent>>,
}

impl Staging {
    pub fn new(stream: &Arc<CudaStream>, bytes: usize) -> Result<Self, DriverError> {
        // Not write-combined: threads write a part each, not in the order of the addresses.
        // SAFETY: only what was written is copied, and any value is a valid byte.
        let memory = unsafe { stream.context().alloc_pinned_with_flags::<u8>(bytes, 0) }?;
        Ok(Self {
            memory: OfThisProcess::new(memory),
            stream: OfThisProcess::new(stream.clone()),
            is_in_use: false,
            copied: None,
        })
    }

    /// Waits for the queued copies, even if queueing or waiting failed: once the memory is freed, a
    /// pending copy would read or write what is no longer there.
    fn wait(&mut self) -> Result<(), DriverError> {
        if !mem::take(&mut self.is_in_use) {
            return Ok(());
        }
        let outcome = match self.copied.take() {
            Some(copied) => copied.synchronize(),
            None => self.stream.synchronize(),
        };
        // cudarc reports an earlier failure at the next call, once: wait again. On a device that
        // itself failed, nothing is in flight any more.
        outcome.inspect_err(|_| {
            self.stream.synchronize().ok();
        })
    }

    /// Its length in bytes.
    pub fn length(&self) -> usize {
        self.memory.len()
    }

    /// The first `length` bytes, once the last copy is done.
    pub fn bytes(&mut self, length: usize) -> Result<&mut [u8], DriverError> {
        self.wait()?;
        Ok(&mut self.memory.as_mut_slice()?[..length])
    }

    /// Queues a copy of a part to the device, without waiting; [`Staging::mark`] must follow the
    /// last one.
    ///
    /// # Safety
    /// `range.len()` bytes from `target` on must be memory of this device, and nothing else may use
    /// them before this stream has come so far.
    pub unsafe fn copy_range(
        &mut self,
        range: Range<usize>,
        target: Address,
    ) -> Result<(), DriverError> {
        if range.is_empty() {
            return Ok(());
        }
        self.stream.context().bind_to_thread()?;
        let source = &self.memory.as_slice()?[range];
        self.is_in_use = true;
        // SAFETY: as the caller promises; the source lives until the copies have been waited for.
        unsafe { result::memcpy_htod_async(target.0, source, self.stream.cu_stream()) }
    }

    /// Queues a copy of `length` bytes from the device to the beginning, without waiting.
    ///
    /// # Safety
    /// `length` bytes from `source` on must be memory of this device.
    pub unsafe fn copy_from(&mut self, source: Address, length: usize) -> Result<(), DriverError> {
        self.wait()?;
        self.stream.context().bind_to_thread()?;
        let target = &mut self.memory.as_mut_slice()?[..length];
        self.is_in_use = true;
        // SAFETY: as the caller promises; the target lives until the copies have been waited for.
        unsafe { result::memcpy_dtoh_async(target, source.0, self.stream.cu_stream()) }?;
        self.mark()
    }

    /// Marks the end of the copies queued so far.
    pub fn mark(&mut self) -> Result<(), DriverError> {
        self.copied = Some(OfThisProcess::new(self.stream.record_event(None)?));
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.memory.is_inherited() {
            // The next operation reports the failure.
            self.wait().ok();
        }
    }
}
