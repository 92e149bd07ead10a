//! A GPU for tests: the CUDA driver's interface with an emulator behind it, which runs the sources
//! of `kernels/` compiled by a host compiler; or, with `BM3_TEST_GPU=1`, the real GPU 0.
//!
//! The environment says how and where the emulator is built: see [`library`].
#![allow(dead_code, reason = "each test uses a part")]

pub mod library;

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bm3_engine::cuda::{Capability, Cuda, CudaVersion, Device, Kernels};

/// Runs a body once for each backend; `$backend` is a function that makes the backend.
#[allow(unused_macros, reason = "each test uses a part")]
macro_rules! on_each_backend {
    ($backend:ident => $body:expr) => {{
        {
            let $backend = bm3_engine::cpu::Cpu::<f32>::new;
            $body
        }
        if let Some(cuda) = emulator::cuda() {
            let $backend = || cuda.clone();
            $body
        }
    }};
}

/// Whether tests run on the machine's GPU.
pub fn on_gpu() -> bool {
    std::env::var_os("BM3_TEST_GPU").is_some_and(|value| value == "1")
}

/// A device for a test. Prints why and returns `None` if no GPU was asked for and there is no C++
/// compiler to build the emulator with.
pub fn device() -> Option<Arc<Device>> {
    if on_gpu() {
        let kernels = Kernels::embedded();
        return Some(Device::open(0, kernels.as_ref()).expect("BM3_TEST_GPU=1: GPU 0"));
    }
    emulator()?;
    Some(Device::open(0, Some(&kernels())).expect("the emulator"))
}

/// The backend of [`device`].
pub fn cuda() -> Option<Cuda> {
    device().map(Cuda::new)
}

/// A stand-in for compiled kernels: the emulator has its own.
pub fn kernels() -> Kernels {
    Kernels {
        image: b"none".into(),
        toolkit: CudaVersion { major: 13, minor: 0 },
        machine_code: vec![Capability(80), Capability(90)],
        ptx: Capability(90),
    }
}

/// The emulator's library, loaded into this process in place of the driver.
pub fn emulator() -> Option<&'static Emulator> {
    static EMULATOR: OnceLock<Option<Emulator>> = OnceLock::new();
    EMULATOR.get_or_init(|| library::build().map(|path| Emulator::load(&path))).as_ref()
}

/// The emulator, for a test that changes the device. Prints why and returns `None` on a GPU or
/// without a C++ compiler.
pub fn changeable() -> Option<&'static Emulator> {
    if on_gpu() {
        println!("skipped: what a GPU has cannot be changed");
        return None;
    }
    emulator()
}

/// Lets only one test at a time change this process's device, or read its counters.
pub fn alone() -> Alone {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    Alone { _held: ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner) }
}

/// Held by a test while it is [`alone`]; dropping it restores the device's memory size.
pub struct Alone {
    _held: MutexGuard<'static, ()>,
}

impl Drop for Alone {
    fn drop(&mut self) {
        if !on_gpu()
            && let Some(emulator) = emulator()
        {
            emulator.set("BM3_EMULATOR_MEMORY", "");
        }
    }
}

pub struct Emulator {
    library: libloading::Library,
    /// The folder of `libcuda.so`, for programs started with `LD_LIBRARY_PATH`.
    pub folder: PathBuf,
}

impl Emulator {
    fn load(path: &Path) -> Self {
        // SAFETY: our own library, whose initialisers only register kernels. It takes the name
        // libcuda.so, so cudarc gets this one.
        let library = unsafe { libloading::Library::new(path) }.expect("the emulator loads");
        Self { library, folder: path.parent().expect("it lies in a folder").to_owned() }
    }

    /// Sets one of the variables listed in `driver.cpp`; an empty value restores the default.
    pub fn set(&self, name: &str, value: &str) {
        let (name, value) = (CString::new(name).unwrap(), CString::new(value).unwrap());
        type Set = unsafe extern "C" fn(*const i8, *const i8);
        // SAFETY: the function has this type, and the strings outlive the call.
        unsafe {
            let set = self.library.get::<Set>(b"bm3_emulator_set").expect("the function");
            set(name.as_ptr().cast(), value.as_ptr().cast());
        }
    }

    /// Clears a failure of the device.
    pub fn recover(&self) {
        // SAFETY: the function has this type.
        unsafe {
            let recover = self.library.get::<unsafe extern "C" fn()>(b"bm3_emulator_recover");
            recover.expect("the function")();
        }
    }

    /// Bytes of device memory in use.
    pub fn used(&self) -> u64 {
        self.count(b"bm3_emulator_used")
    }

    /// Bytes of device memory that the driver's pool holds, in use or not.
    #[allow(dead_code, reason = "only some tests use it")]
    pub fn held(&self) -> u64 {
        self.count(b"bm3_emulator_held")
    }

    /// Bytes copied to the host since the process began.
    pub fn read(&self) -> u64 {
        self.count(b"bm3_emulator_read")
    }

    fn count(&self, name: &[u8]) -> u64 {
        // SAFETY: all functions that count have this type.
        unsafe {
            let count = self.library.get::<unsafe extern "C" fn() -> u64>(name);
            count.expect("the function")()
        }
    }
}
