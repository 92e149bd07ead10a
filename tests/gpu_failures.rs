//! A GPU that cannot be used, or that fails: a clear error each time, no panic, and no memory left
//! behind. On the emulated driver, which can be told to fail.

mod common;
mod emulator;

use std::sync::{Mutex, MutexGuard, PoisonError};

use bm3_engine::backend::{Backend, Dropout};
use bm3_engine::batch::EpochPlan;
use bm3_engine::config::{Order, TrainConfig};
use bm3_engine::cuda::{Capability, Cuda, CudaVersion, Device, Kernels, Unusable, gpus};
use bm3_engine::data::Split;
use bm3_engine::step::{DenseState, adam_step};
use bm3_engine::{Error, Model, Recommender, Result, Trainer};
use common::Problem;
use emulator::Emulator;

/// Exclusive use of the emulator, in its initial state.
struct Alone {
    emulator: &'static Emulator,
    _guard: MutexGuard<'static, ()>,
}

impl Alone {
    fn new() -> Option<Self> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        if emulator::on_gpu() {
            println!("skipped: a GPU cannot be told to fail");
            return None;
        }
        let emulator = emulator::emulator()?;
        let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let alone = Self { emulator, _guard: guard };
        alone.reset();
        Some(alone)
    }

    fn set(&self, name: &str, value: &str) {
        self.emulator.set(&format!("BM3_EMULATOR_{name}"), value);
    }

    fn reset(&self) {
        for name in [
            "DEVICES",
            "DRIVER",
            "CAPABILITY",
            "MEMORY",
            "FAIL",
            "FAIL_AT",
            "FAIL_FOR",
            "FAIL_WITH",
        ] {
            self.set(name, "");
        }
        self.emulator.recover();
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.reset();
    }
}

fn reason_of(opened: Result<std::sync::Arc<Device>>) -> (String, Unusable) {
    let error = opened.expect_err("it cannot be used");
    assert!(error.is_input(), "exit code 2: {error}");
    let text = error.to_string();
    match error {
        Error::Gpu { reason, .. } => (text, reason),
        _ => panic!("{text}"),
    }
}

#[test]
fn each_reason_why_a_gpu_cannot_be_used_is_its_own() {
    let Some(alone) = Alone::new() else { return };
    let kernels = emulator::kernels();

    let (text, reason) = reason_of(Device::open(3, Some(&kernels)));
    assert_eq!(reason, Unusable::NoSuchGpu { count: 1 });
    assert!(text.starts_with("device 3: there is no such GPU: the driver shows one"), "{text}");

    alone.set("DEVICES", "0");
    let (_, reason) = reason_of(Device::open(0, Some(&kernels)));
    assert_eq!(reason, Unusable::NoSuchGpu { count: 0 });
    assert_eq!(gpus(), Ok(vec![]));
    alone.reset();

    let (text, reason) = reason_of(Device::open(0, None));
    assert_eq!(reason, Unusable::NoKernels);
    assert!(text.contains("nvcc") && text.contains("--device cpu"), "{text}");

    alone.set("DRIVER", "12020");
    let (text, reason) = reason_of(Device::open(0, Some(&kernels)));
    let needed = CudaVersion { major: 13, minor: 0 };
    assert_eq!(reason, Unusable::OldDriver { found: CudaVersion { major: 12, minor: 2 }, needed });
    assert!(text.contains("12.2") && text.contains("13.0"), "{text}");
    // Kernels of an older toolkit would load, but this driver lacks a function that we call.
    let older = Kernels { toolkit: CudaVersion { major: 12, minor: 0 }, ..kernels.clone() };
    let (text, _) = reason_of(Device::open(0, Some(&older)));
    assert!(text.contains("12.4"), "{text}");
    // Minor versions within a major version do not matter.
    alone.set("DRIVER", "13000");
    let newer = Kernels { toolkit: CudaVersion { major: 13, minor: 2 }, ..kernels.clone() };
    assert!(Device::open(0, Some(&newer)).is_ok());
    alone.reset();

    alone.set("CAPABILITY", "75");
    let (text, reason) = reason_of(Device::open(0, Some(&kernels)));
    assert_eq!(reason, Unusable::OldGpu { found: Capability(75), needed: Capability(80) });
    assert!(text.contains("7.5") && text.contains("8.0"), "{text}");
    alone.reset();

    alone.set("FAIL", "cuInit");
    let (text, _) = reason_of(Device::open(0, Some(&kernels)));
    assert!(text.contains("the NVIDIA driver does not work: unknown error"), "{text}");
}

#[test]
fn gpus_are_described() {
    let Some(alone) = Alone::new() else { return };
    alone.set("DEVICES", "2");
    alone.set("CAPABILITY", "103");
    alone.set("MEMORY", "85899345920");
    let gpus = gpus().expect("two");
    assert_eq!(gpus.len(), 2);
    assert_eq!(gpus[1].to_string(), "GPU 1 (emulated GPU)");
    assert_eq!((gpus[1].capability, gpus[1].memory), (Capability(103), 80 << 30));
    assert_eq!(gpus[1].capability.to_string(), "10.3");
}

#[test]
fn kernels_that_are_none_are_refused() {
    let Some(_alone) = Alone::new() else { return };
    let kernels = Kernels { image: b"no fatbin".into(), ..emulator::kernels() };
    let error = Device::open(0, Some(&kernels)).expect_err("no kernels");
    assert!(!error.is_input());
    let expected = "GPU 0 (emulated GPU): loading the kernels: device kernel image is invalid";
    assert!(error.to_string().starts_with(expected), "{error}");
}

/// A step and an evaluation of a problem that exercises everything, on a new device.
fn work(problem: &Problem) -> Result<()> {
    let cuda = Cuda::new(Device::open(0, Some(&emulator::kernels()))?);
    let initial = cuda.initial_values(&problem.layout(), 7)?;
    drop(initial);
    let mut model = problem.try_model(cuda)?;
    let dropout = Dropout::Random { probability: 0.5, seed: 3 };
    for _ in 0..2 {
        model.step(problem.batch(), &dropout, 0.01)?;
    }
    model.losses()?;
    model.feature_states()?;
    model.dense_state()?;
    let lists = model.lists(&[0, 1], 3)?;
    let split = Split { users: vec![1], offsets: vec![0, 1], items: vec![2] };
    let wanted = model.backend().wanted(&split, &[0, 1], &[2])?;
    model.backend().metrics(&wanted, &lists)?;
    let Problem { users, items, .. } = *problem;
    let mut batches = model.backend().batches(&problem.train_pairs(), users, items, 2)?;
    let plan = EpochPlan { order: Order::Random, seed: 1, epoch: 0, first_step: 3 };
    model.backend().arrange(&mut batches, plan)?;
    model.plan(&[adam_step(3, 0.1), adam_step(4, 0.1), adam_step(5, 0.1)])?;
    model.train(&mut batches, 0..3, &dropout, &mut || true)?;
    model.losses()?;
    assert_eq!(model.failure()?, None);
    Ok(())
}

/// Lists on a new device, for more queries than a launch takes, from two callers at a time.
fn serve(model: &Model) -> Result<()> {
    let cuda = Cuda::new(Device::open(0, Some(&emulator::kernels()))?);
    let recommender = Recommender::on_device(model.clone(), bm3_engine::device::Device::Gpu(cuda))?;
    recommender.top_k_batch(&[1; 4100], 2)?;
    recommender.similar_items(3, 2)?;
    std::thread::scope(|scope| {
        let other = scope.spawn(|| recommender.top_k(0, 3));
        let own = recommender.top_k(1, 2);
        other.join().expect("no panic").and(own).map(|_| ())
    })
}

fn trained() -> Model {
    let config = TrainConfig { embedding_size: 8, epochs: 1, ..TrainConfig::default() };
    Trainer::new(config).fit(&common::groups()).unwrap().model.unwrap()
}

fn problem(freeze_features: bool) -> Problem {
    let mut problem = Problem::example();
    problem.config.freeze_features = freeze_features;
    problem
}

#[test]
fn every_call_of_the_driver_may_fail() {
    let Some(alone) = Alone::new() else { return };
    let functions = [
        "cuDriverGetVersion",
        "cuDeviceGetCount",
        "cuDeviceGet",
        "cuDeviceGetName",
        "cuDeviceTotalMem_v2",
        "cuDeviceGetAttribute",
        "cuDevicePrimaryCtxRetain",
        "cuDeviceGetDefaultMemPool",
        "cuMemPoolSetAttribute",
        "cuModuleLoadData",
        "cuModuleGetFunction",
        "cuFuncGetParamInfo",
        "cuStreamCreate",
        "cuStreamSynchronize",
        "cuStreamWaitEvent",
        "cuEventCreate",
        "cuEventRecord",
        "cuEventSynchronize",
        "cuMemAllocAsync",
        "cuMemHostAlloc",
        "cuMemsetD8Async",
        "cuMemcpyHtoDAsync_v2",
        "cuMemcpyDtoHAsync_v2",
        "cuLaunchKernel",
        "cuStreamBeginCapture_v2",
        "cuStreamEndCapture",
        "cuGraphInstantiateWithFlags",
        "cuGraphLaunch",
    ];
    let model = trained();
    let works: [&dyn Fn() -> Result<()>; 3] =
        [&|| work(&problem(false)), &|| work(&problem(true)), &|| serve(&model)];
    for work in works {
        alone.reset();
        work().expect("nothing fails");
        assert_eq!(alone.emulator.used(), 0, "memory is left");
        assert_eq!(alone.emulator.held(), 0, "the pool keeps memory that nobody here needs");
        for function in functions {
            let mut failures = 0;
            // Fails each call in turn, until there is no such call.
            for call in 1.. {
                alone.set("FAIL", function);
                alone.set("FAIL_AT", &call.to_string());
                // A single want of memory is waited out.
                alone.set("FAIL_FOR", if function == "cuMemAllocAsync" { "2" } else { "1" });
                let outcome = work();
                alone.reset();
                assert_eq!(alone.emulator.used(), 0, "{function} {call}: memory is left");
                let Err(error) = outcome else { break };
                failures += 1;
                let text = error.to_string();
                match error {
                    Error::DeviceMemory { .. } => {
                        assert!(function.contains("Alloc"), "{function} {call}: {text}");
                    }
                    Error::DeviceOperation { .. } | Error::Gpu { .. } => {
                        let known = ["unknown error", "out of memory"];
                        assert!(
                            known.iter().any(|problem| text.contains(problem)),
                            "{function} {call}: {text}"
                        );
                    }
                    _ => panic!("{function} {call}: {text}"),
                }
            }
            println!("{function:28} {failures} failures, each an error, nothing left");
        }
    }
}

/// The driver refuses memory that it keeps, or is about to have: allocations, streams and recorded
/// steps are asked for once more. What is refused then is refused for want of memory.
#[test]
fn a_passing_want_of_memory_is_waited_out() {
    let Some(alone) = Alone::new() else { return };
    let problem = problem(false);
    let train = |function: &str, at: usize, calls: &str| {
        alone.set("FAIL", function);
        alone.set("FAIL_AT", &at.to_string());
        alone.set("FAIL_FOR", calls);
        alone.set("FAIL_WITH", "memory");
        let outcome = work(&problem);
        alone.reset();
        assert_eq!((alone.emulator.used(), alone.emulator.held()), (0, 0));
        outcome
    };
    for (function, first) in [("cuMemAllocAsync", 1), ("cuGraphLaunch", 1), ("cuStreamCreate", 2)] {
        for at in first..20 {
            train(function, at, "1").unwrap_or_else(|error| panic!("{function} {at}: {error}"));
        }
    }
    for (function, at) in [
        ("cuMemAllocAsync", 1),
        ("cuGraphLaunch", 1),
        ("cuGraphInstantiateWithFlags", 1),
        ("cuLaunchKernel", 1),
        // While the device is opened, and for a branch of it.
        ("cuStreamCreate", 1),
        ("cuStreamCreate", 2),
    ] {
        let error = train(function, at, "2").unwrap_err();
        let text = error.to_string();
        let Error::DeviceMemory { needed, .. } = error else { panic!("{function}: {text}") };
        assert_eq!(needed.is_some(), function == "cuMemAllocAsync", "{text}");
        assert!(text.contains("no room for ") && text.contains(" free; "), "{text}");
    }
}

/// Whichever allocation finds too little memory, the error says what it was for and what to do.
#[test]
fn any_memory_may_be_too_little() {
    let Some(alone) = Alone::new() else { return };
    let problem = problem(false);
    let mut refused = std::collections::BTreeSet::new();
    let mut memory = 256;
    loop {
        alone.set("MEMORY", &memory.to_string());
        let outcome = work(&problem);
        alone.reset();
        assert_eq!(alone.emulator.used(), 0);
        let Err(error) = outcome else { break };
        let text = error.to_string();
        let Error::DeviceMemory { what, needed, free, total, .. } = error else {
            panic!("{text}");
        };
        assert_eq!(total, memory);
        assert!(needed > Some(free), "{text}");
        assert!(text.contains("--freeze-features") && text.contains("--batch-size"), "{text}");
        refused.insert(what);
        memory += 256;
    }
    assert!(refused.len() > 5, "{refused:?}");
}

/// A model too large for the GPU is refused, and the message suggests no training settings.
#[test]
fn a_model_too_large_to_serve_is_refused() {
    let Some(alone) = Alone::new() else { return };
    let model = trained();
    let mut refused = std::collections::BTreeSet::new();
    for memory in (1024..).step_by(4096) {
        alone.set("MEMORY", &memory.to_string());
        let outcome = serve(&model);
        alone.reset();
        assert_eq!(alone.emulator.used(), 0);
        let Err(error) = outcome else { break };
        let text = error.to_string();
        let Error::DeviceMemory { what, .. } = error else { panic!("{text}") };
        assert!(text.contains("free; end other programs on the device"), "{text}");
        refused.insert(what);
    }
    assert!(refused.contains("the rows of all items"), "{refused:?}");
}

/// The call that waits for a failed kernel reports it, and everything after it fails as well.
#[test]
fn a_failed_kernel_is_an_error_of_what_waits() {
    let Some(alone) = Alone::new() else { return };
    let problem = problem(true);
    let cuda = emulator::cuda().expect("the emulator");
    let mut model = problem.try_model(cuda).expect("room");
    model.step(problem.batch(), &Dropout::None, 0.01).expect("a step");
    // A GPU does nothing any more after an access out of bounds.
    alone.set("FAIL", "cuStreamSynchronize");
    let error = model.losses().expect_err("it fails");
    assert!(
        error.to_string().contains("copying 56 bytes from the device: unknown error"),
        "{error}"
    );
}

/// Three epochs of four steps each; `more` additional steps are planned before the second epoch.
fn epochs(more: u64, one_by_one: bool) -> Result<DenseState<f32>> {
    let problem = problem(false);
    let cuda = Cuda::new(Device::open(0, Some(&emulator::kernels()))?);
    let mut model = problem.try_model(cuda.clone())?;
    let Problem { users, items, .. } = problem;
    let mut batches = cuda.batches(&problem.train_pairs(), users, items, 2)?;
    let dropout = Dropout::Random { probability: 0.5, seed: 3 };
    let mut train = || {
        for epoch in 0..3u32 {
            let first_step = 1 + 4 * epoch;
            let last = u64::from(first_step) + 3 + if epoch == 1 { more } else { 0 };
            let constants: Vec<_> =
                (first_step.into()..=last).map(|step| adam_step(step, 0.01)).collect();
            model.plan(&constants)?;
            let order = Order::Random;
            let plan = EpochPlan { order, seed: 1, epoch: epoch.into(), first_step };
            cuda.arrange(&mut batches, plan)?;
            model.train(&mut batches, 0..4, &dropout, &mut || true)?;
        }
        Ok(())
    };
    match one_by_one {
        true => drop(cuda.profile(&mut train)?),
        false => train()?,
    }
    model.dense_state()
}

/// A step is recorded once for all epochs, alone and with those of an epoch. It is recorded again
/// if its requests change, for instance after its steps' constants have moved to a larger buffer.
#[test]
fn a_recorded_step_serves_as_long_as_it_asks_for_the_same() {
    let Some(alone) = Alone::new() else { return };
    let recordings = |more| {
        (1..)
            .find(|call: &u32| {
                alone.set("FAIL", "cuGraphInstantiateWithFlags");
                alone.set("FAIL_AT", &call.to_string());
                let outcome = epochs(more, false);
                alone.reset();
                outcome.is_ok()
            })
            .map(|call| call - 1)
    };
    for (more, expected) in [(0, 2), (3000, 3)] {
        assert_eq!(recordings(more), Some(expected), "{more} more steps");
        let one_by_one = epochs(more, true).unwrap();
        assert!(epochs(more, false).unwrap() == one_by_one, "{more} more steps");
    }
}
