//! Page-locked memory, by way of which tables are copied to a device and from it.

use std::collections::VecDeque;
use std::mem;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{CudaEvent, CudaStream, DriverError, PinnedHostSlice, result};

use super::launch::Address;
use super::process::OfThisProcess;

/// Bytes of such a piece at least: long enough that a copy's beginning does not matter.
pub(super) const PIECE: usize = 1 << 20;

/// The most bytes of page-locked memory by way of which tables of such rows are copied.
pub(crate) fn staging_bytes(row_bytes: usize) -> u64 {
    // One in the hands of each thread, and as many that wait and one.
    ((2 * rayon::current_num_threads() + 1) * row_bytes.max(PIECE)) as u64
}

/// Pieces of page-locked memory that serve one table after the other: to page-lock takes longer than
/// to copy.
#[derive(Default)]
pub(super) struct StagingPool(Mutex<VecDeque<Staging>>);

impl StagingPool {
    /// A piece of so many bytes at least: the one that was given longest ago, so that its copy is
    /// likely done, or a new one while there are fewer than two for each thread.
    pub fn take(&self, stream: &Arc<CudaStream>, bytes: usize) -> Result<Staging, DriverError> {
        let mut pieces = self.lock();
        // Each thread has one at most beside those that wait here.
        let oldest = match pieces.len() > rayon::current_num_threads() {
            true => pieces.pop_front(),
            false => None,
        };
        drop(pieces);
        match oldest {
            Some(mut piece) if piece.length() >= bytes => {
                // It may have served a sibling's stream.
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

    /// A thread that panicked has given nothing back.
    fn lock(&self) -> MutexGuard<'_, VecDeque<Staging>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Page-locked memory that copies to the device, or from it, go by way of.
///
/// cudarc's own record of when such memory is free again goes with its event tracking, which this
/// device does without: the event is ours.
pub(super) struct Staging {
    memory: OfThisProcess<PinnedHostSlice<u8>>,
    stream: OfThisProcess<Arc<CudaStream>>,
    /// Whether copies were asked for that nobody has waited for.
    is_in_use: bool,
    /// The last of them has been made.
    copied: Option<OfThisProcess<CudaEvent>>,
}

impl Staging {
    pub fn new(stream: &Arc<CudaStream>, bytes: usize) -> Result<Self, DriverError> {
        // Not write-combined: threads write a part each, not in the order of the addresses.
        // SAFETY: only what was written is copied, and bytes are never invalid.
        let memory = unsafe { stream.context().alloc_pinned_with_flags::<u8>(bytes, 0) }?;
        Ok(Self {
            memory: OfThisProcess::new(memory),
            stream: OfThisProcess::new(stream.clone()),
            is_in_use: false,
            copied: None,
        })
    }

    /// Waits for the copies that were asked for, also where asking or waiting fails: with its memory
    /// given back, a copy that is still to be made would read or write what is no longer there.
    fn wait(&mut self) -> Result<(), DriverError> {
        if !mem::take(&mut self.is_in_use) {
            return Ok(());
        }
        let outcome = match self.copied.take() {
            Some(copied) => copied.synchronize(),
            None => self.stream.synchronize(),
        };
        // What failed may be an earlier call, of which cudarc tells by the next one, once. Of a device
        // that failed nothing is in flight any more.
        outcome.inspect_err(|_| {
            self.stream.synchronize().ok();
        })
    }

    /// How many bytes it has.
    pub fn length(&self) -> usize {
        self.memory.len()
    }

    /// The first `length` bytes, to be written, once the last copy has been made.
    pub fn bytes(&mut self, length: usize) -> Result<&mut [u8], DriverError> {
        self.wait()?;
        Ok(&mut self.memory.as_mut_slice()?[..length])
    }

    /// Copies a part to a place on the device, and does not wait; [`Staging::mark`] comes after the
    /// last one.
    ///
    /// # Safety
    /// As many bytes from `target` on are memory of this device, and nothing else uses them before
    /// this stream has come so far.
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
        // SAFETY: as the caller promises; the source stays until the copies were waited for.
        unsafe { result::memcpy_htod_async(target.0, source, self.stream.cu_stream()) }
    }

    /// Copies so many bytes from a place on the device to its beginning, and does not wait.
    ///
    /// # Safety
    /// As many bytes from `source` on are memory of this device.
    pub unsafe fn copy_from(&mut self, source: Address, length: usize) -> Result<(), DriverError> {
        self.wait()?;
        self.stream.context().bind_to_thread()?;
        let target = &mut self.memory.as_mut_slice()?[..length];
        self.is_in_use = true;
        // SAFETY: as the caller promises; the target stays until the copies were waited for.
        unsafe { result::memcpy_dtoh_async(target, source.0, self.stream.cu_stream()) }?;
        self.mark()
    }

    /// Says that the copies asked for so far are all.
    pub fn mark(&mut self) -> Result<(), DriverError> {
        self.copied = Some(OfThisProcess::new(self.stream.record_event(None)?));
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.memory.is_inherited() {
            // The failure is reported by what comes next.
            self.wait().ok();
        }
    }
}
