//! A GPU that was opened: memory, copies, launches, all in the order they are asked for.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{
    CudaContext, CudaFunction, CudaGraph, CudaStream, DevicePtr, DriverError, LaunchConfig,
    PushKernelArg, result, sys,
};
use cudarc::nvrtc::Ptx;
use rayon::prelude::*;

use super::allocation::{Allocation, Allowance};
use super::driver::{self, Gpu, problem_of};
use super::kernels::{Kernels, NAMES, shared_at_launch};
use super::launch::{Address, Arguments, Launch};
use super::memory::Memory;
use super::process::OfThisProcess;
use super::profile::Timed;
use super::recording::{Asked, Notes};
use super::staging::{PIECE, StagingPool};
use crate::error::SAVES_DEVICE_MEMORY;
use crate::{Error, Result};

/// The branch of what is done [`Device::beside`] something; no [`Device::branch`] has its number.
const ASIDE: usize = 0;

/// A GPU that runs the kernels of `kernels/`.
///
/// It has one stream: work is done in the order it was asked for, and a copy to the host waits for
/// everything before it. Programs that want to overlap runs take a [`Device::sibling`] for each; a
/// run has the parts of its steps overlap on branches.
pub struct Device {
    gpu: Gpu,
    stream: OfThisProcess<Arc<CudaStream>>,
    kernels: OfThisProcess<Arc<HashMap<&'static str, Kernel>>>,
    scratch: Mutex<Option<Allocation>>,
    /// The bytes that it and all siblings may have.
    allowance: Arc<Allowance>,
    /// What tables are copied by way of; all siblings have the same.
    staging: Arc<StagingPool>,
    /// Those that have been asked for.
    branches: Mutex<Vec<Arc<Self>>>,
    /// What is asked of this device and its branches, where somebody wants to know.
    notes: Arc<Notes>,
    /// Launches that are being timed.
    pub(super) recorder: Mutex<Option<OfThisProcess<Vec<Timed>>>>,
}

struct Kernel {
    function: CudaFunction,
    /// Bytes of each parameter, as the driver read them from the compiled code.
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

/// Memory for one operation's intermediate numbers, in parts; the next operation has it after that.
pub(super) struct Scratch<'a> {
    /// Kept so that no other thread's operation comes between this one's launches.
    _guard: MutexGuard<'a, Option<Allocation>>,
    base: u64,
    starts: Vec<u64>,
}

impl Scratch<'_> {
    /// Where a part begins.
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
    /// [`Error::Gpu`] with the reason why it cannot be used, [`Error::DeviceOperation`] when the
    /// driver fails on the way.
    pub fn open(ordinal: usize, kernels: Option<&Kernels>) -> Result<Arc<Self>> {
        let gpu = driver::find(ordinal)?;
        let kernels = driver::serve(&gpu, kernels)?;
        let failed = |operation: &str, error: DriverError| Error::DeviceOperation {
            device: gpu.to_string(),
            operation: operation.to_owned(),
            problem: problem_of(error),
        };
        let context = CudaContext::new(ordinal).map_err(|error| failed("opening it", error))?;
        // SAFETY: events order the uses of memory by several streams; this context's memory is
        // allocated, used and freed on one stream each, and where others use it too, they wait for
        // it, and it for them, in `shared.rs`, `stream.rs` and the branches of a step (`step/`).
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(|error| failed("making a stream", error))?;
        keep_freed_memory(&context).map_err(|error| failed("setting its memory pool up", error))?;
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
        Ok(Arc::new(Self {
            gpu,
            stream: OfThisProcess::new(stream),
            kernels: OfThisProcess::new(Arc::new(functions)),
            scratch: Mutex::default(),
            allowance: Arc::default(),
            staging: Arc::default(),
            branches: Mutex::default(),
            notes: Arc::default(),
            recorder: Mutex::default(),
        }))
    }

    /// Whether it is that of a process that this one was forked from: the driver must not be called,
    /// see [`OfThisProcess`].
    pub(super) fn is_inherited(&self) -> bool {
        self.stream.is_inherited()
    }

    /// Has it and its siblings have no more than `most` bytes of the GPU's memory at a time: what asks
    /// for more fails as on a GPU that has no more. What the driver takes for itself, for the kernels'
    /// code and recorded steps, does not count.
    pub fn limit_memory(&self, most: u64) {
        self.allowance.limit(most);
    }

    /// The same GPU with the same kernels, and a stream and intermediate numbers of its own: its
    /// work and this one's overlap.
    ///
    /// # Errors
    /// [`Error::DeviceOperation`] when the driver fails.
    pub fn sibling(&self) -> Result<Arc<Self>> {
        self.with_stream(Arc::default())
    }

    fn with_stream(&self, notes: Arc<Notes>) -> Result<Arc<Self>> {
        let stream = self.stream.context().new_stream();
        let stream = stream.map_err(|error| self.failed("making a stream".to_owned(), error))?;
        Ok(Arc::new(Self {
            gpu: self.gpu.clone(),
            stream: OfThisProcess::new(stream),
            kernels: OfThisProcess::new(Arc::clone(&self.kernels)),
            scratch: Mutex::default(),
            allowance: self.allowance.clone(),
            staging: self.staging.clone(),
            branches: Mutex::default(),
            notes,
            recorder: Mutex::default(),
        }))
    }

    /// Branch `number` of this device: a sibling that is the same one each time, so that it has its
    /// intermediate numbers' memory once. While launches are timed it is this device itself: they
    /// are timed one by one.
    ///
    /// # Errors
    /// [`Error::DeviceOperation`] when the driver fails.
    pub(super) fn branch(this: &Arc<Self>, number: usize) -> Result<Arc<Self>> {
        Self::numbered_branch(this, ASIDE + 1 + number)
    }

    fn numbered_branch(this: &Arc<Self>, number: usize) -> Result<Arc<Self>> {
        if this.times_launches() {
            return Ok(this.clone());
        }
        // A thread that panicked left whole branches.
        let mut branches = this.branches.lock().unwrap_or_else(PoisonError::into_inner);
        while branches.len() <= number {
            branches.push(this.with_stream(this.notes.clone())?);
        }
        Ok(branches[number].clone())
    }

    /// Does `work` on this device, and `aside` at the same time on a branch of it; what comes after it
    /// comes after both.
    ///
    /// # Errors
    /// Those of both, and [`Error::DeviceOperation`] when the driver fails.
    pub(super) fn beside(
        this: &Arc<Self>,
        aside: impl FnOnce(&Arc<Self>) -> Result<()>,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let side = Self::numbered_branch(this, ASIDE)?;
        side.after(this)?;
        let outcome = aside(&side).and_then(|()| work());
        // Also of what failed half-way: its memory may be given back on this device's stream.
        let joined = this.after(&side);
        outcome.and(joined)
    }

    /// Has what will be asked for come after what `other` has been asked for so far.
    ///
    /// # Errors
    /// [`Error::DeviceOperation`] when the driver fails.
    pub(super) fn after(&self, other: &Self) -> Result<()> {
        if Arc::ptr_eq(&self.stream, &other.stream) {
            return Ok(());
        }
        // Done in any case, so that memory which moves while there are only notes is not given back
        // before graphs that use it.
        self.notes.note(|| Asked::After { stream: self.number(), other: other.number() });
        let ordered = self.stream.join(&other.stream);
        ordered.map_err(|error| self.failed("ordering two streams".to_owned(), error))
    }

    /// What tells the stream from others in [`Notes`].
    fn number(&self) -> usize {
        Arc::as_ptr(&self.stream).addr()
    }

    /// One line that names the device.
    pub fn describe(&self) -> String {
        self.gpu.to_string()
    }

    /// What the driver says of the GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Bytes free and bytes in all, where [a limit](Device::limit_memory) leaves so many.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let (free, total) = self
            .stream
            .context()
            .mem_get_info()
            .map_err(|error| self.failed("asking for free memory".to_owned(), error))?;
        // What this process has freed is kept for its next allocations, and not free to the driver.
        let reserved = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT;
        let used = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
        let kept = match (self.of_pool(reserved), self.of_pool(used)) {
            (Some(reserved), Some(used)) => reserved.saturating_sub(used),
            // Without a pool nothing is kept.
            _ => 0,
        };
        let (most, left) = self.allowance.most_and_left();
        Ok((left.min(free as u64 + kept), most.min(total as u64)))
    }

    /// The most bytes that were in use at a time, as far as the driver counts them.
    pub(super) fn peak_memory(&self) -> Option<u64> {
        self.of_pool(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)
    }

    /// Bytes that the driver counts of its memory pool, if it has one.
    fn of_pool(&self, attribute: sys::CUmemPool_attribute) -> Option<u64> {
        let context = self.stream.context();
        let mut bytes = 0u64;
        // SAFETY: the pool is the device's own, and the attribute's value is a u64, as documented.
        let asked = context.has_async_alloc().then(|| unsafe {
            let pool = result::device::get_default_mem_pool(context.cu_device())?;
            result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast())
        });
        asked?.ok().map(|()| bytes)
    }

    /// Waits for the work asked for so far.
    ///
    /// # Errors
    /// When it failed.
    pub fn synchronize(&self) -> Result<()> {
        self.stream
            .synchronize()
            .map_err(|error| self.failed("waiting for work to be done".to_owned(), error))
    }

    pub(super) fn allocate(&self, bytes: usize, what: &str) -> Result<Allocation> {
        let no_room = |raise: &str| {
            let (free, total) = self.memory().unwrap_or((0, 0));
            let (what, needed) = (what.to_owned(), bytes as u64);
            let advice = format!("{raise}{SAVES_DEVICE_MEMORY}, ");
            Error::DeviceMemory { device: self.describe(), what, needed, free, total, advice }
        };
        let allowed = self.allowance.take(bytes as u64);
        let allowed = allowed.ok_or_else(|| no_room("raise --device-memory, "))?;
        // SAFETY: undefined bytes are still bytes; those who read before they write read nonsense,
        // not foreign memory.
        match unsafe { self.stream.alloc::<u8>(bytes) } {
            Ok(slice) => Ok(Allocation::new(slice, allowed)),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Err(no_room("")),
            Err(error) => Err(self.failed(format!("allocating {bytes} bytes for {what}"), error)),
        }
    }

    /// Memory for intermediate numbers in parts of as many bytes. Only one exists at a time: drop
    /// it before asking again, or wait for ever.
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
        // A thread that panicked while it held the scratch left nothing that matters in it.
        let mut guard = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let held = guard.as_ref().map_or(0, |held| held.len()) as u64;
        if end > held {
            // Given back before the new one is asked for; launches that use it come first.
            *guard = None;
            *guard = Some(self.allocate(end as usize, what)?);
        }
        let base = guard.as_ref().map_or(0, |slice| slice.device_ptr(&self.stream).0);
        Ok(Scratch { _guard: guard, base, starts: starts.to_vec() })
    }

    /// Starts a kernel; a grid without blocks is no launch. `sizes` is for the error.
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
        // SAFETY: the arguments have the number and the sizes of the kernel's parameters, as was
        // just checked; the wrappers pass what the kernel's source names, in its order, from
        // memory whose lengths they derive from the same shapes.
        let start = || unsafe { builder.launch(config) }.map(|_| ());
        self.timed(launch, start).map_err(|error| self.failed(operation(), error))
    }

    /// Records the launches of `work`, which are not made: [`Device::replay`] makes them. And what
    /// it asked for.
    pub(super) fn record(
        &self,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<(CudaGraph, Vec<Asked>)> {
        let failed = |error| self.failed("recording steps".to_owned(), error);
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

    /// Ends a recording in any case: a stream that records does nothing else.
    fn end_recording(&self) -> Result<Option<CudaGraph>, DriverError> {
        let end = || self.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        let graph = end();
        let ended = Ok(sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE);
        if graph.is_err() && self.stream.capture_status() != ended {
            // cudarc told of an earlier failure instead of ending it.
            end().ok();
        }
        graph
    }

    /// What `work` would ask for; its launches are not made.
    pub(super) fn would_ask(&self, work: impl FnOnce() -> Result<()>) -> Result<Vec<Asked>> {
        let (outcome, asked) = self.notes.of(false, work);
        outcome.map(|()| asked)
    }

    /// Makes the launches that were recorded.
    pub(super) fn replay(&self, graph: &CudaGraph) -> Result<()> {
        graph.launch().map_err(|error| self.failed("recorded steps".to_owned(), error))
    }

    /// Fills the first `length` bytes of `target` in parts of `part` bytes at most: `fill` makes them in
    /// page-locked memory, on all threads, while others are on their way. Whoever is free takes the next
    /// part, so that a file is read from its beginning on.
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
            // SAFETY: these bytes are part of the target, of which the caller has the only reference;
            // other streams use it only after this one has come so far (`shared.rs`, `stream.rs`).
            let copied = unsafe { staging.copy_range(0..range.len(), place) };
            copied.and_then(|()| staging.mark()).map_err(failed)?;
            self.staging.give(staging);
            Ok(())
        })
    }

    /// Copies as many bytes as `target` has from an address on, once the work asked for so far is done: by
    /// way of page-locked memory, on all threads.
    ///
    /// # Safety
    /// As many bytes from `from` on are memory of this device.
    pub(super) unsafe fn download_parts(&self, from: Address, target: &mut [u8]) -> Result<()> {
        let length = target.len();
        let failed = |error| self.failed(format!("copying {length} bytes from the device"), error);
        target.par_chunks_mut(PIECE).enumerate().try_for_each(|(number, part)| {
            let mut staging = self.staging.take(&self.stream, part.len()).map_err(failed)?;
            let place = Address(from.0 + (number * PIECE) as u64);
            // SAFETY: a part of what the caller promises.
            unsafe { staging.copy_from(place, part.len()) }.map_err(failed)?;
            part.copy_from_slice(staging.bytes(part.len()).map_err(failed)?);
            self.staging.give(staging);
            Ok(())
        })
    }

    /// Threads of their own for work on a thread that belongs to no pool: the one that rayon makes once
    /// for all knows nothing of how many threads its caller wants, and is not there in a forked process.
    pub(super) fn thread_pool(&self, threads: usize) -> Result<rayon::ThreadPool> {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|error| self.refused("beginning threads".to_owned(), error.to_string()))
    }

    /// An error of the driver, with what was attempted.
    pub(super) fn failed(&self, operation: String, error: DriverError) -> Error {
        self.refused(operation, problem_of(error))
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
        // Branches give their memory back on their own streams, and graphs use it on this one.
        for branch in self.branches.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            // Of a device that failed nothing is in flight any more.
            branch.after(self).ok();
        }
    }
}

/// Has the driver keep freed memory for the next allocation, instead of giving it back whenever
/// the stream is waited for.
fn keep_freed_memory(context: &CudaContext) -> Result<(), DriverError> {
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

/// The bytes of each parameter of a kernel.
fn parameter_sizes(function: &CudaFunction) -> Result<Vec<usize>, DriverError> {
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function is loaded, and both places outlive the call.
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
            // There is no such parameter: these were all.
            sys::CUresult::CUDA_ERROR_INVALID_VALUE => return Ok(sizes),
            error => return Err(DriverError(error)),
        }
    }
}
