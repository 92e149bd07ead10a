//! An open GPU: memory, copies and launches, done in the order they are queued.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{
    CudaContext, CudaFunction, CudaGraph, CudaStream, DevicePtr, DriverError, LaunchConfig,
    PushKernelArg, sys,
};
use cudarc::nvrtc::Ptx;
use rayon::prelude::*;

use super::allocation::{Allocation, Allowance};
use super::driver::{self, Gpu, problem_of};
use super::kernels::{Kernels, NAMES, shared_at_launch};
use super::launch::{Address, Arguments, Launch};
use super::memory::Memory;
use super::pool::{self, Open};
use super::process::OfThisProcess;
use super::profile::Timed;
use super::recording::{Asked, Notes};
use super::staging::{PIECE, StagingPool};
use crate::error::SAVES_DEVICE_MEMORY;
use crate::{Error, Result};

/// The branch that [`Device::beside`] works on; no [`Device::branch`] has its number.
const ASIDE: usize = 0;

/// A GPU that runs the kernels of `kernels/`.
///
/// It has one stream: work is done in the order it is queued, and a copy to the host waits for
/// everything before it. For runs that overlap, take a [`Device::sibling`] for each; within a run,
/// parts of a step overlap on branches.
pub struct Device {
    gpu: Gpu,
    stream: OfThisProcess<Arc<CudaStream>>,
    kernels: OfThisProcess<Arc<HashMap<&'static str, Kernel>>>,
    scratch: Mutex<Option<Allocation>>,
    /// The memory limit, shared with all siblings.
    allowance: Arc<Allowance>,
    /// Shared with all siblings.
    open: Arc<Open>,
    /// Page-locked memory for copying tables, shared with all siblings.
    staging: Arc<StagingPool>,
    /// The branches made so far.
    branches: Mutex<Vec<Arc<Self>>>,
    /// A log of the work queued on this device and its branches, while one is kept.
    notes: Arc<Notes>,
    /// Launches that were timed; `None` while none are.
    pub(super) recorder: Mutex<Option<OfThisProcess<Vec<Timed>>>>,
}

struct Kernel {
    function: CudaFunction,
    /// Bytes of each parameter, as read by the driver from the compiled code.
    sizes: Vec<usize>,
    /// Bytes of shared memory that its launches ask for.
    shared: u32,
}

impl Kernel {
    fn of(function: CudaFunction, shared: u32) -> Result<Self, DriverError> {
        if shared > 0 {
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(attribute, shared as i32)?;
        }
        Ok(Self { sizes: parameter_sizes(&function)?, function, shared })
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Device({})", self.describe())
    }
}

/// Memory for one operation's intermediate results, in parts; the next operation reuses it.
pub(super) struct Scratch<'a> {
    /// Held so that no other thread's operation comes between this one's launches.
    _guard: MutexGuard<'a, Option<Allocation>>,
    base: u64,
    starts: Vec<u64>,
}

impl Scratch<'_> {
    /// The address of a part.
    pub fn part(&self, index: usize) -> Address {
        Address(self.base + self.starts[index])
    }
}

/// The parts of a scratch begin at multiples of this many bytes.
pub(super) const PART_ALIGNMENT: u64 = 256;

impl Device {
    /// Opens GPU `ordinal` (from 0) and loads `kernels` onto it.
    ///
    /// # Errors
    /// [`Error::Gpu`] with the reason why it cannot be used, [`Error::DeviceOperation`] if the
    /// driver fails.
    pub fn open(ordinal: usize, kernels: Option<&Kernels>) -> Result<Arc<Self>> {
        let gpu = driver::find(ordinal)?;
        let kernels = driver::serve(&gpu, kernels)?;
        let failed = |operation: &str, error: DriverError| match error {
            DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY) => Error::DeviceMemory {
                device: gpu.to_string(),
                what: operation.to_owned(),
                needed: None,
                free: 0,
                total: gpu.memory,
                advice: String::new(),
            },
            error => Error::DeviceOperation {
                device: gpu.to_string(),
                operation: operation.to_owned(),
                problem: problem_of(error),
            },
        };
        let context = CudaContext::new(ordinal).map_err(|error| failed("opening it", error))?;
        // SAFETY: event tracking orders uses of memory by several streams. Each allocation of this
        // context is made, used and freed on one stream; where other streams use it too,
        // `shared.rs`, `stream.rs` and the branches of a step (`step/`) make the streams wait for
        // each other.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(|error| failed("making a stream", error))?;
        pool::keep_freed_memory(&context)
            .map_err(|error| failed("setting its memory pool up", error))?;
        let module = context
            .load_module(Ptx::from_binary(kernels.image.to_vec()))
            .map_err(|error| failed("loading the kernels", error))?;
        let mut functions = HashMap::new();
        for &name in NAMES {
            let kernel = module
                .load_function(name)
                .and_then(|function| Kernel::of(function, shared_at_launch(name)))
                .map_err(|error| failed(&format!("loading kernel {name}"), error))?;
            functions.insert(name, kernel);
        }
        tracing::info!(%gpu, kernels = functions.len(), bytes = kernels.image.len(), "opened a GPU");
        Ok(Self::on(
            gpu,
            stream,
            Arc::new(functions),
            (Arc::default(), Open::new(&context, ordinal)),
            Arc::default(),
            Arc::default(),
        ))
    }

    fn on(
        gpu: Gpu,
        stream: Arc<CudaStream>,
        kernels: Arc<HashMap<&'static str, Kernel>>,
        (allowance, open): (Arc<Allowance>, Arc<Open>),
        staging: Arc<StagingPool>,
        notes: Arc<Notes>,
    ) -> Arc<Self> {
        Arc::new(Self {
            gpu,
            stream: OfThisProcess::new(stream),
            kernels: OfThisProcess::new(kernels),
            scratch: Mutex::default(),
            allowance,
            open,
            staging,
            branches: Mutex::default(),
            notes,
            recorder: Mutex::default(),
        })
    }

    /// Whether this device belongs to a process that this one was forked from. Then the driver must
    /// not be called, see [`OfThisProcess`].
    pub(super) fn is_inherited(&self) -> bool {
        self.stream.is_inherited()
    }

    /// Limits the GPU memory that this device and its siblings use at a time to `most` bytes: a
    /// request beyond it fails as on a smaller GPU. Memory that the driver takes for itself, for
    /// the kernels' code, recorded steps and what its pool rounds up to, does not count.
    pub fn limit_memory(&self, most: u64) {
        self.allowance.limit(most);
    }

    /// The same GPU with the same kernels, but its own stream and intermediate memory, so that its
    /// work overlaps with this device's.
    ///
    /// # Errors
    /// [`Error::DeviceOperation`] if the driver fails.
    pub fn sibling(&self) -> Result<Arc<Self>> {
        self.with_stream(Arc::default())
    }

    fn with_stream(&self, notes: Arc<Notes>) -> Result<Arc<Self>> {
        let stream = self.asking(|| self.stream.context().new_stream());
        let stream = stream.map_err(|error| self.failed_or_full("a stream".to_owned(), error))?;
        let (kernels, shared) =
            (Arc::clone(&self.kernels), (self.allowance.clone(), self.open.clone()));
        Ok(Self::on(self.gpu.clone(), stream, kernels, shared, self.staging.clone(), notes))
    }

    /// Branch `number` of this device: a sibling that is the same one each time, so that its
    /// intermediate memory is allocated once. While launches are timed it is this device itself,
    /// because they are timed one by one.
    ///
    /// # Errors
    /// [`Error::DeviceOperation`] if the driver fails.
    pub(super) fn branch(this: &Arc<Self>, number: usize) -> Result<Arc<Self>> {
        Self::numbered_branch(this, ASIDE + 1 + number)
    }

    fn numbered_branch(this: &Arc<Self>, number: usize) -> Result<Arc<Self>> {
        if this.times_launches() {
            return Ok(this.clone());
        }
        loop {
            if let Some(branch) = this.branches().get(number) {
                return Ok(branch.clone());
            }
            // Made without the lock, which is taken again where memory is short.
            let branch = this.with_stream(this.notes.clone())?;
            this.branches().push(branch);
        }
    }

    /// A thread that panicked left only complete branches.
    fn branches(&self) -> MutexGuard<'_, Vec<Arc<Self>>> {
        self.branches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work` on this device and, at the same time, `aside` on a branch of it; later work on
    /// this device waits for both.
    ///
    /// # Errors
    /// The errors of both, and [`Error::DeviceOperation`] if the driver fails.
    pub(super) fn beside(
        this: &Arc<Self>,
        aside: impl FnOnce(&Arc<Self>) -> Result<()>,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let side = Self::numbered_branch(this, ASIDE)?;
        side.after(this)?;
        let outcome = aside(&side).and_then(|()| work());
        // Join after a failure too: what `aside` queued may use memory freed on this device's
        // stream.
        let joined = this.after(&side);
        outcome.and(joined)
    }

    /// Makes work queued from now on wait for the work queued on `other` so far.
    ///
    /// # Errors
    /// [`Error::DeviceOperation`] if the driver fails.
    pub(super) fn after(&self, other: &Self) -> Result<()> {
        if Arc::ptr_eq(&self.stream, &other.stream) {
            return Ok(());
        }
        // Join even while launches are only noted: memory may be replaced meanwhile, and must not
        // be freed before the graphs that use it are done.
        self.notes.note(|| Asked::After { stream: self.number(), other: other.number() });
        let ordered = self.stream.join(&other.stream);
        ordered.map_err(|error| self.failed("ordering two streams".to_owned(), error))
    }

    /// Identifies the stream in [`Notes`].
    fn number(&self) -> usize {
        Arc::as_ptr(&self.stream).addr()
    }

    /// One line that names the device.
    pub fn describe(&self) -> String {
        self.gpu.to_string()
    }

    /// The driver's description of the GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Free and total bytes, within [the limit](Device::limit_memory).
    ///
    /// # Errors
    /// [`Error::DeviceOperation`] if the driver does not answer.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let (free, total) = self.memory_of_all()?;
        let (most, left) = self.allowance.most_and_left();
        Ok((left.min(free), most.min(total)))
    }

    /// What is left of [the limit](Device::limit_memory), if there is one, in bytes.
    pub(super) fn left_of_limit(&self) -> Option<u64> {
        let (most, left) = self.allowance.most_and_left();
        (most < u64::MAX).then_some(left)
    }

    /// Free and total bytes, whatever the limit.
    pub(super) fn memory_of_all(&self) -> Result<(u64, u64)> {
        let (free, total) = self
            .stream
            .context()
            .mem_get_info()
            .map_err(|error| self.failed("asking for free memory".to_owned(), error))?;
        // What this process has freed stays in its pool for later allocations; the driver counts it
        // as used.
        let reserved = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT;
        let used = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
        let kept = match (self.of_pool(reserved), self.of_pool(used)) {
            (Some(reserved), Some(used)) => reserved.saturating_sub(used),
            // Without a pool nothing is kept.
            _ => 0,
        };
        Ok((free as u64 + kept, total as u64))
    }

    /// Peak bytes in use so far, as counted by the driver.
    pub(super) fn peak_memory(&self) -> Option<u64> {
        self.of_pool(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)
    }

    /// An attribute of the driver's memory pool, in bytes, if there is a pool.
    fn of_pool(&self, attribute: sys::CUmemPool_attribute) -> Option<u64> {
        pool::attribute(self.stream.context(), attribute)
    }

    /// Waits for all work queued so far.
    ///
    /// # Errors
    /// [`Error::DeviceOperation`] if any of it failed.
    pub fn synchronize(&self) -> Result<()> {
        self.stream
            .synchronize()
            .map_err(|error| self.failed("waiting for work to be done".to_owned(), error))
    }

    pub(super) fn allocate(&self, bytes: usize, what: &str) -> Result<Allocation> {
        let no_room = |raise: &str| self.no_room(what.to_owned(), Some(bytes as u64), raise);
        let allowed = self.allowance.take(bytes as u64);
        let allowed = allowed.ok_or_else(|| no_room("raise --device-memory, "))?;
        // SAFETY: any value is a valid byte; reading before writing gives garbage, not other
        // memory.
        match self.asking(|| unsafe { self.stream.alloc::<u8>(bytes) }) {
            Ok(slice) => Ok(Allocation::new(slice, allowed)),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Err(no_room("")),
            Err(error) => Err(self.failed(format!("allocating {bytes} bytes for {what}"), error)),
        }
    }

    fn no_room(&self, what: String, needed: Option<u64>, raise: &str) -> Error {
        let (free, total) = self.memory().unwrap_or((0, 0));
        let advice = format!("{raise}{SAVES_DEVICE_MEMORY}, ");
        Error::DeviceMemory { device: self.describe(), what, needed, free, total, advice }
    }

    /// Asks the driver for what takes memory. If there is too little, asks once more without what
    /// its pool keeps: the driver does not promise to wait for memory that is about to be freed, nor
    /// to use what the pool has in pieces of other sizes.
    pub(super) fn asking<T>(
        &self,
        ask: impl Fn() -> Result<T, DriverError>,
    ) -> Result<T, DriverError> {
        match ask() {
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                self.give_back_unused()?;
                ask()
            }
            other => other,
        }
    }

    /// Waits for what this device and its branches are about to free, and gives memory that nothing
    /// uses back to the driver.
    fn give_back_unused(&self) -> Result<(), DriverError> {
        self.wait_for_all()?;
        pool::trim(self.stream.context())
    }

    fn wait_for_all(&self) -> Result<(), DriverError> {
        self.stream.synchronize()?;
        let branches = self.branches().clone();
        branches.iter().try_for_each(|branch| branch.wait_for_all())
    }

    /// Memory for intermediate results, in parts of the given sizes in bytes. Only one may be
    /// alive: a second request on the same thread deadlocks.
    pub(super) fn scratch<const N: usize>(
        &self,
        parts: [usize; N],
        what: &str,
    ) -> Result<Scratch<'_>> {
        let mut end = 0;
        let starts = parts.map(|bytes| {
            let start = end;
            end = (start + bytes as u64).next_multiple_of(PART_ALIGNMENT);
            start
        });
        // A thread that panicked while it held the scratch left nothing in it that matters.
        let mut guard = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let held = guard.as_ref().map_or(0, |held| held.len()) as u64;
        if end > held {
            // Free the old memory before allocating; the stream frees it after launches that use
            // it.
            *guard = None;
            *guard = Some(self.allocate(end as usize, what)?);
        }
        let base = guard.as_ref().map_or(0, |slice| slice.device_ptr(&self.stream).0);
        Ok(Scratch { _guard: guard, base, starts: starts.to_vec() })
    }

    /// Frees the intermediate memory, after the work in flight; it is allocated anew when it is
    /// needed.
    pub(super) fn release_scratch(&self) {
        *self.scratch.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Frees that of all branches, and of their branches.
    pub(super) fn release_branches_scratch(&self) {
        for branch in &*self.branches() {
            branch.release_scratch();
            branch.release_branches_scratch();
        }
    }

    /// Starts a kernel; an empty grid launches nothing. `sizes` goes into the error message.
    pub(super) fn launch(
        &self,
        launch: Launch,
        arguments: &Arguments,
        sizes: fmt::Arguments<'_>,
    ) -> Result<()> {
        let Launch { kernel: name, grid, block, bytes, flops } = launch;
        if grid.contains(&0) {
            return Ok(());
        }
        tracing::trace!(name, ?grid, block, bytes, flops, "{sizes}");
        let operation = || format!("kernel {name} ({sizes})");
        let kernel = &self.kernels[name];
        if kernel.sizes != arguments.sizes() {
            return Err(self.refused(
                operation(),
                format!(
                    "takes parameters of {:?} bytes, and was to be given {:?}",
                    kernel.sizes,
                    arguments.sizes()
                ),
            ));
        }
        if !self.notes.note(|| Asked::launch(name, self.number(), (grid, block), arguments)) {
            return Ok(());
        }
        let mut builder = self.stream.launch_builder(&kernel.function);
        for slot in arguments.slots() {
            builder.arg(slot);
        }
        let config = LaunchConfig {
            grid_dim: grid.into(),
            block_dim: (block, 1, 1),
            shared_mem_bytes: kernel.shared,
        };
        // SAFETY: the arguments have the number and the sizes of the kernel's parameters, as just
        // checked. The wrappers pass what the kernel's source names, in its order, from memory
        // whose lengths they derive from the same shapes.
        let start = || unsafe { builder.launch(config) }.map(|_| ());
        self.timed(launch, start).map_err(|error| self.failed_or_full(operation(), error))
    }

    /// Records the launches of `work` without making them: [`Device::replay`] does. Also returns
    /// what `work` queued.
    pub(super) fn record(
        &self,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<(CudaGraph, Vec<Asked>)> {
        let failed = |error| self.failed_or_full("recording steps".to_owned(), error);
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(failed)?;
        let (outcome, asked) = self.notes.of(true, work);
        let graph = self.end_recording();
        outcome?;
        let graph = graph.map_err(failed)?.ok_or_else(|| {
            self.refused("recording steps".to_owned(), "nothing was recorded".to_owned())
        })?;
        Ok((graph, asked))
    }

    /// Ends a recording even after a failure: a stream that records does nothing else.
    fn end_recording(&self) -> Result<Option<CudaGraph>, DriverError> {
        let end = || self.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        let graph = end();
        let ended = Ok(sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE);
        if graph.is_err() && self.stream.capture_status() != ended {
            // cudarc reported an earlier failure instead of ending the recording.
            end().ok();
        }
        graph
    }

    /// What `work` would queue; its launches are not made.
    pub(super) fn would_ask(&self, work: impl FnOnce() -> Result<()>) -> Result<Vec<Asked>> {
        let (outcome, asked) = self.notes.of(false, work);
        outcome.map(|()| asked)
    }

    /// Makes the recorded launches.
    pub(super) fn replay(&self, graph: &CudaGraph) -> Result<()> {
        let launched = self.asking(|| graph.launch());
        launched.map_err(|error| self.failed_or_full("recorded steps".to_owned(), error))
    }

    /// Fills the first `length` bytes of `target` in parts of at most `part` bytes. All threads
    /// call `fill` to make parts in page-locked memory while others are being copied. A free thread
    /// takes the next part, so a file is read from its beginning on.
    pub(super) fn upload_parts(
        &self,
        target: &mut Memory<u8>,
        length: usize,
        part: usize,
        what: &str,
        fill: impl Fn(Range<usize>, &mut [u8]) + Sync,
    ) -> Result<()> {
        assert!(length <= target.len(), "{length} bytes of {what} are filled, of {}", target.len());
        let base = target.address_of(0);
        let failed = |error| self.failed(format!("copying {length} bytes to {what}"), error);
        (0..length.div_ceil(part.max(1))).par_bridge().try_for_each(|number| {
            let range = number * part..((number + 1) * part).min(length);
            let mut staging = self.staging.take(&self.stream, part).map_err(failed)?;
            fill(range.clone(), staging.bytes(range.len()).map_err(failed)?);
            let place = Address(base.0 + range.start as u64);
            // SAFETY: these bytes are part of the target, to which the caller has the only
            // reference; other streams use it only after this one has come so far (`shared.rs`,
            // `stream.rs`).
            let copied = unsafe { staging.copy_range(0..range.len(), place) };
            copied.and_then(|()| staging.mark()).map_err(failed)?;
            self.staging.give(staging);
            Ok(())
        })
    }

    /// Copies `target.len()` bytes from address `from` on, once the work queued so far is done,
    /// through page-locked memory and on all threads.
    ///
    /// # Safety
    /// `target.len()` bytes from `from` on must be memory of this device.
    pub(super) unsafe fn download_parts(&self, from: Address, target: &mut [u8]) -> Result<()> {
        let length = target.len();
        let failed = |error| self.failed(format!("copying {length} bytes from the device"), error);
        target.par_chunks_mut(PIECE).enumerate().try_for_each(|(number, part)| {
            let mut staging = self.staging.take(&self.stream, part.len()).map_err(failed)?;
            let place = Address(from.0 + (number * PIECE) as u64);
            // SAFETY: part of the range that the caller promises.
            unsafe { staging.copy_from(place, part.len()) }.map_err(failed)?;
            part.copy_from_slice(staging.bytes(part.len()).map_err(failed)?);
            self.staging.give(staging);
            Ok(())
        })
    }

    /// A pool of threads for work on a thread outside any pool. rayon's global pool does not know
    /// how many threads the caller wants, and does not exist in a forked process.
    pub(super) fn thread_pool(&self, threads: usize) -> Result<rayon::ThreadPool> {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|error| self.refused("beginning threads".to_owned(), error.to_string()))
    }

    /// A driver error, with the operation that failed.
    pub(super) fn failed(&self, operation: String, error: DriverError) -> Error {
        self.refused(operation, problem_of(error))
    }

    /// As [`Device::failed`], for an operation for which the driver takes memory of the device.
    pub(super) fn failed_or_full(&self, operation: String, error: DriverError) -> Error {
        match error {
            DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY) => {
                self.no_room(operation, None, "")
            }
            error => self.failed(operation, error),
        }
    }

    pub(super) fn refused(&self, operation: String, problem: String) -> Error {
        Error::DeviceOperation { device: self.describe(), operation, problem }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.is_inherited() {
            return;
        }
        // A failed device has nothing in flight any more.
        for branch in &*self.branches() {
            // Branches free their memory on their own streams, but graphs use it on this one.
            branch.after(self).ok();
        }
        self.release_scratch();
        self.release_branches_scratch();
        // The last device of a GPU gives back what was freed, see `Open`.
        self.wait_for_all().ok();
    }
}

/// The size of each parameter of a kernel, in bytes.
fn parameter_sizes(function: &CudaFunction) -> Result<Vec<usize>, DriverError> {
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function is loaded, and both variables outlive the call.
        let answer = unsafe {
            sys::cuFuncGetParamInfo(
                function.cu_function(),
                sizes.len(),
                &raw mut offset,
                &raw mut size,
            )
        };
        match answer {
            sys::CUresult::CUDA_SUCCESS => sizes.push(size),
            // There is no such parameter: all have been read.
            sys::CUresult::CUDA_ERROR_INVALID_VALUE => return Ok(sizes),
            error => return Err(DriverError(error)),
        }
    }
}
