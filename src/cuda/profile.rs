//! Kernels timed one by one, and the device's ceilings (`ceilings.cu`).

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use cudarc::driver::{CudaEvent, DriverError, sys};

use super::device::Device;
use super::launch::{Launch, blocks, launch};
use super::memory::Memory;
use super::process::OfThisProcess;
use super::staging::Staging;
use crate::Result;
use crate::profile::{self, Ceilings, Operation};

/// A timed launch.
pub(super) struct Timed {
    launch: Launch,
    begun: CudaEvent,
    ended: CudaEvent,
}

const TIMED: Option<sys::CUevent_flags> = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);

/// Numbers to copy: enough for a launch to take [`LONG_COPY`] seconds, on a large GPU 256 MB, which
/// is more than its caches hold.
const LEAST_NUMBERS: usize = 1 << 17;
const MOST_NUMBERS: usize = 1 << 26;
const LONG_COPY: f64 = 1e-4;
/// Rounds of the arithmetic ceilings: enough for a launch to take [`LONG`] seconds.
const LEAST_ROUNDS: u32 = 1 << 4;
const MOST_ROUNDS: u32 = 1 << 14;
const LONG: f64 = 2e-3;
/// Blocks of the arithmetic ceilings per multiprocessor, 256 threads each: they fill it.
const BLOCKS: u32 = 8;
/// `CHAINS` and `TILES` of `ceilings.cu`.
const CHAINS: u64 = 8;
const TILES: u64 = 4;
/// Timed launches per measurement.
const ATTEMPTS: usize = 5;
/// The most numbers copied from the host, and the value of their bytes.
const MOST_UPLOADED: usize = 1 << 24;
const MARK: u8 = 0xa5;
/// The name of the measurement in errors.
const WHAT: &str = "measuring the device";

/// The time of launches by kernel, in the order of their first launch.
fn operations(launches: &[Timed]) -> Result<Vec<Operation>, DriverError> {
    let mut operations = Vec::new();
    for Timed { launch, begun, ended } in launches {
        let seconds = f64::from(begun.elapsed_ms(ended)?) / 1e3;
        profile::add(&mut operations, launch.kernel, seconds, launch.bytes, launch.flops);
    }
    Ok(operations)
}

impl Device {
    /// Runs `work` and times each launch; launches replayed from a recording are not timed.
    pub(super) fn profile(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Vec<Operation>> {
        let recorder = || self.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        // Meanwhile this device does the branches' work, in its own intermediate memory: the run
        // would have both otherwise, which is more than was planned. Graphs that use the branches'
        // must have ended, since the branches' streams know nothing of them.
        self.synchronize()?;
        self.release_branches_scratch();
        *recorder() = Some(OfThisProcess::new(Vec::new()));
        let outcome = work();
        let launches = recorder().take();
        self.release_scratch();
        outcome?;
        self.synchronize()?;
        let failed = |error| self.failed("reading how long kernels took".to_owned(), error);
        operations(launches.as_deref().map_or(&[], Vec::as_slice)).map_err(failed)
    }

    /// Whether launches are being timed, which recorded ones cannot be.
    pub(super) fn times_launches(&self) -> bool {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Surrounds a launch with events if launches are being timed.
    pub(super) fn timed(
        &self,
        launch: Launch,
        start: impl FnOnce() -> Result<(), DriverError>,
    ) -> Result<(), DriverError> {
        let mut recorder = self.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(recorded) = recorder.as_mut() else {
            drop(recorder);
            return start();
        };
        let begun = self.stream().record_event(TIMED)?;
        start()?;
        recorded.push(Timed { launch, begun, ended: self.stream().record_event(TIMED)? });
        Ok(())
    }

    /// Measures the ceilings, in as much memory as is free for it, and checks that the results are
    /// right.
    pub(super) fn ceilings(self: &Arc<Self>) -> Result<Ceilings> {
        let (free, _) = self.memory()?;
        let most = MOST_NUMBERS.min((free / 16) as usize / 4 * 4).max(4);
        let mut numbers = LEAST_NUMBERS.min(most);
        let (mut copy, mut seconds) = self.copy_ceiling(numbers)?;
        while numbers < most && seconds < LONG_COPY {
            numbers = (8 * numbers).min(most);
            (copy, seconds) = self.copy_ceiling(numbers)?;
        }
        // Add rounds until a launch takes long enough to be timed well.
        let (mut rounds, mut arithmetic) = (LEAST_ROUNDS, self.arithmetic_ceilings(LEAST_ROUNDS)?);
        while rounds < MOST_ROUNDS && arithmetic.iter().any(|&(_, seconds)| seconds < LONG) {
            rounds *= 4;
            arithmetic = self.arithmetic_ceilings(rounds)?;
        }
        let [(multiply_add, _), (tensor, _)] = arithmetic;
        let upload = Some(self.upload_ceiling(4 * numbers.min(MOST_UPLOADED))?);
        Ok(Ceilings { copy, multiply_add, tensor: Some(tensor), upload })
    }

    /// Bytes per second of the fastest of several copies of `bytes` bytes from page-locked memory.
    fn upload_ceiling(self: &Arc<Self>, bytes: usize) -> Result<f64> {
        let failed = |error| self.failed(WHAT.to_owned(), error);
        let target = Memory::<u8>::new(self, bytes, WHAT)?;
        let mut staging = Staging::new(self.stream(), bytes).map_err(failed)?;
        staging.bytes(bytes).map_err(failed)?.fill(MARK);
        let mut best = 0.0f64;
        for _ in 0..ATTEMPTS {
            self.synchronize()?;
            let begun = Instant::now();
            // SAFETY: the target has as many bytes, and only this stream uses it.
            unsafe { staging.copy_range(0..bytes, target.address_of(0)) }
                .and_then(|()| staging.mark())
                .map_err(failed)?;
            self.synchronize()?;
            best = best.max(bytes as f64 / begun.elapsed().as_secs_f64());
        }
        if target.read(bytes - 1..bytes)? != [MARK] {
            return Err(self.refused(WHAT.to_owned(), "a copy is not what was copied".to_owned()));
        }
        Ok(best)
    }

    /// Bytes read and written per second, and seconds per launch.
    fn copy_ceiling(self: &Arc<Self>, numbers: usize) -> Result<(f64, f64)> {
        let mut from = Memory::<f32>::zeros(self, numbers, WHAT)?;
        let to = Memory::<f32>::zeros(self, numbers, WHAT)?;
        // The marks at both ends are checked afterwards.
        let end = numbers.min(1000);
        let marks: Vec<f32> = (1..=end).map(|number| number as f32).collect();
        from.write(0, &marks, WHAT)?;
        from.write(numbers - end, &marks, WHAT)?;
        let n = numbers as u64;
        let launch = geometry("copy_ceiling", blocks(n / 4, 256), 8 * n, 0);
        let operations = self.profile(&mut || {
            (0..ATTEMPTS).try_for_each(|_| launch!(self, launch, [&from, n, &to], "{n} numbers"))
        })?;
        if to.read(numbers - end..numbers)? != marks || to.read(0..end)? != from.read(0..end)? {
            return Err(self.refused(WHAT.to_owned(), "a copy is not what was copied".to_owned()));
        }
        Ok(rate(&operations, |operation| operation.bytes))
    }

    /// Operations per second and seconds per launch: of multiply-adds, then of tensor cores.
    fn arithmetic_ceilings(self: &Arc<Self>, rounds: u32) -> Result<[(f64, f64); 2]> {
        let grid = BLOCKS * self.gpu().multiprocessors.max(1);
        let out = Memory::<f32>::zeros(self, 256 * grid as usize, WHAT)?;
        let (warps, thread) = (8 * u64::from(grid), out.len() - 1);
        let wrong = |found: f32, expected: f64| {
            let problem = format!("{found} was computed, and {expected} expected");
            self.refused(WHAT.to_owned(), problem)
        };

        let (factor, addend) = (0.999f32, 0.001f32);
        let flops = 2 * CHAINS * u64::from(rounds) * 32 * warps;
        let launch = geometry("multiply_ceiling", grid, 0, flops);
        let operations = self.profile(&mut || {
            let arguments = || (rounds, factor, addend);
            (0..ATTEMPTS).try_for_each(|_| {
                let (rounds, factor, addend) = arguments();
                launch!(self, launch, [rounds, factor, addend, &out], "{rounds} rounds")
            })
        })?;
        let chain = |first: f32| (0..rounds).fold(first, |x, _| x.mul_add(factor, addend));
        // The last thread of a block.
        let expected = (0..CHAINS).fold(0.0f32, |sum, index| sum + chain((255 + index) as f32));
        let found = out.read(thread..thread + 1)?[0];
        if found != expected {
            return Err(wrong(found, f64::from(expected)));
        }
        let multiply_add = rate(&operations, |operation| operation.flops);

        let value = 0.125f32;
        let flops = 2 * 16 * 8 * 8 * TILES * u64::from(rounds) * warps;
        let launch = geometry("tensor_ceiling", grid, 0, flops);
        let operations = self.profile(&mut || {
            (0..ATTEMPTS)
                .try_for_each(|_| launch!(self, launch, [rounds, value, &out], "{rounds} rounds"))
        })?;
        // Every product and sum of these is exact in f32 and in TF32.
        let expected = f64::from(value * value) * (8 * 4 * TILES * u64::from(rounds)) as f64;
        let found = out.read(thread..thread + 1)?[0];
        if f64::from(found) != expected {
            return Err(wrong(found, expected));
        }
        Ok([multiply_add, rate(&operations, |operation| operation.flops)])
    }
}

fn geometry(kernel: &'static str, grid: u32, bytes: u64, flops: u64) -> Launch {
    Launch { kernel, grid: [grid, 1, 1], block: 256, bytes, flops }
}

/// Work per second of the only kind of operation, and seconds per call.
fn rate(operations: &[Operation], work: fn(&Operation) -> u64) -> (f64, f64) {
    operations.first().map_or((0.0, 0.0), |operation| {
        // Do not divide by zero if the clock has not moved.
        let seconds = operation.seconds.max(1e-9);
        (work(operation) as f64 / seconds, seconds / operation.calls as f64)
    })
}
