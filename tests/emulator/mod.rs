//! A GPU for tests: the CUDA driver's interface with an emulator behind it, which runs the sources
//! of `kernels/` compiled by a host compiler; or, with `BM3_TEST_GPU=1`, the real GPU 0.
//!
//! Environment: `CXX` names the compiler [c++]; `BM3_EMULATOR_FLAGS` adds flags (sanitizers,
//! coverage); `BM3_KERNELS` names another folder of kernels; `BM3_EMULATOR_FOLDER` another folder to
//! build in.
#![allow(dead_code, reason = "each test uses a part")]

use std::collections::hash_map::DefaultHasher;
use std::ffi::{CString, OsStr};
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bm3_engine::cuda::{Capability, Cuda, CudaVersion, Device, KERNEL_NAMES, Kernels};

/// Runs a body for each backend, named as a function that makes one.
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

/// Whether tests run on the machine's own GPU.
pub fn on_gpu() -> bool {
    std::env::var_os("BM3_TEST_GPU").is_some_and(|value| value == "1")
}

/// A device for a test; `None`, with the reason printed, where neither a GPU was asked for nor a
/// C++ compiler is there to build the emulator.
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

/// What stands for compiled kernels on the emulator, which has its own.
pub fn kernels() -> Kernels {
    Kernels {
        image: b"none".into(),
        toolkit: CudaVersion { major: 13, minor: 0 },
        machine_code: vec![Capability(80), Capability(90)],
        ptx: Capability(90),
    }
}

/// The emulator's library, loaded into this process in the driver's place.
pub fn emulator() -> Option<&'static Emulator> {
    static EMULATOR: OnceLock<Option<Emulator>> = OnceLock::new();
    EMULATOR.get_or_init(|| library().map(|path| Emulator::load(&path))).as_ref()
}

/// The emulator, for a test that changes what a device has; `None`, with the reason printed, on a GPU
/// or without a C++ compiler.
pub fn changeable() -> Option<&'static Emulator> {
    if on_gpu() {
        println!("skipped: what a GPU has cannot be changed");
        return None;
    }
    emulator()
}

/// One test at a time changes what the device of this process has, or counts it.
pub fn alone() -> Alone {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    Alone { _held: ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner) }
}

/// What a test holds while it is [`alone`]; the next one has a device with as much memory as ever.
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
    /// Where `libcuda.so` lies, for programs started with `LD_LIBRARY_PATH`.
    pub folder: PathBuf,
}

impl Emulator {
    fn load(path: &Path) -> Self {
        // SAFETY: our own library, whose initialisers register kernels and nothing else. Its name,
        // libcuda.so, is now taken: cudarc gets this one.
        let library = unsafe { libloading::Library::new(path) }.expect("the emulator loads");
        Self { library, folder: path.parent().expect("it lies in a folder").to_owned() }
    }

    /// Sets what `driver.cpp` lists; an empty value is the standard one.
    pub fn set(&self, name: &str, value: &str) {
        let (name, value) = (CString::new(name).unwrap(), CString::new(value).unwrap());
        type Set = unsafe extern "C" fn(*const i8, *const i8);
        // SAFETY: the function has this type, and the strings outlive the call.
        unsafe {
            let set = self.library.get::<Set>(b"bm3_emulator_set").expect("the function");
            set(name.as_ptr().cast(), value.as_ptr().cast());
        }
    }

    /// Forgets a failure of the device.
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

    /// Bytes copied to the host since the process began.
    pub fn read(&self) -> u64 {
        self.count(b"bm3_emulator_read")
    }

    fn count(&self, name: &[u8]) -> u64 {
        // SAFETY: the functions that count have this type.
        unsafe {
            let count = self.library.get::<unsafe extern "C" fn() -> u64>(name);
            count.expect("the function")()
        }
    }
}

/// Builds `libcuda.so`, unless these very sources were built before.
pub fn library() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = root.join("tests/emulator");
    let kernels =
        std::env::var_os("BM3_KERNELS").map_or_else(|| root.join("kernels"), PathBuf::from);
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let mut flags: Vec<String> = [
        "-std=c++17",
        "-O2",
        "-g1",
        "-fPIC",
        "-shared",
        "-Wall",
        "-Wextra",
        "-Wno-unknown-pragmas",
    ]
    .map(str::to_owned)
    .into();
    // A kernel's roundings are those its source says, as with nvcc's -fmad=false.
    flags.extend(
        ["-ffp-contract=off", "-pthread", "-DBM3_EMULATOR", "-fvisibility=hidden"]
            .map(str::to_owned),
    );
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
        // Else each fmaf is a call.
        flags.extend(["-mfma", "-mavx2"].map(str::to_owned));
    }
    // Thread-local variables are a register and an offset away, not a call.
    flags.push("-ftls-model=initial-exec".to_owned());
    let extra = std::env::var("BM3_EMULATOR_FLAGS").unwrap_or_default();
    flags.extend(extra.split_whitespace().map(str::to_owned));

    let mut hasher = DefaultHasher::new();
    (&compiler, &flags).hash(&mut hasher);
    hash_sources(&sources, &mut hasher);
    let objects = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("emulator-objects-{:016x}", hasher.finish()));
    (KERNEL_NAMES, kernels.as_os_str()).hash(&mut hasher);
    let kernel_sources = hash_sources(&kernels, &mut hasher);
    let folder = std::env::var_os("BM3_EMULATOR_FOLDER")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from)
        .join(format!("emulator-{:016x}", hasher.finish()));
    let library = folder.join("libcuda.so");
    if library.is_file() {
        return Some(library);
    }
    if Command::new(&compiler).arg("--version").output().is_err() {
        println!("skipped: there is no C++ compiler `{compiler}` to build the CUDA emulator with");
        return None;
    }
    let compile = |building: &Path, arguments: &[&OsStr]| {
        let mut command = Command::new(&compiler);
        command.args(&flags).arg("-I").arg(&sources).arg("-I").arg(&kernels).args(arguments);
        // A sanitizer's library is loaded for the tests, not for the compiler.
        command.current_dir(building).env_remove("LD_PRELOAD");
        let output = command.output().expect("the compiler runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "the emulator does not compile:\n{said}");
        assert!(said.is_empty(), "the emulator compiles with warnings:\n{said}");
    };
    // What does not depend on the kernels is compiled once for all of them.
    make_once(&objects, |building| {
        compile(building, &["-c".as_ref(), sources.join("driver.cpp").as_ref()]);
    });
    make_once(&folder, |building| {
        let mut unit = String::from("#include \"emulator.h\"\n");
        for source in kernel_sources.iter().filter(|path| path.extension() == Some("cu".as_ref())) {
            let _ = writeln!(unit, "#include \"{}\"", source.display());
        }
        for name in KERNEL_NAMES {
            let _ = writeln!(
                unit,
                "static const emulator::Register register_{name}(\"{name}\", \
                 &emulator::Invoke<{name}>::entry, emulator::Invoke<{name}>::sizes());"
            );
        }
        // In one unit with what the kernels call all the time.
        unit.push_str("#include \"scheduler.cpp\"\n");
        std::fs::write(building.join("kernels.cpp"), unit).expect("the kernels' unit");
        let arguments = ["-Wl,-soname,libcuda.so", "-o", "libcuda.so", "kernels.cpp"];
        let mut arguments: Vec<&OsStr> = arguments.iter().map(AsRef::as_ref).collect();
        let driver = objects.join("driver.o");
        arguments.push(driver.as_ref());
        compile(building, &arguments);
    });
    Some(library)
}

/// Makes a folder with what `fill` leaves in it, unless it is there. Others may be making the same:
/// each in a folder of its own, the first to finish wins.
fn make_once(folder: &Path, fill: impl FnOnce(&Path)) {
    if folder.is_dir() {
        return;
    }
    let parent = folder.parent().expect("a folder in another one");
    let building = tempfile::tempdir_in(parent).expect("a folder to build in");
    fill(building.path());
    if let Err(error) = std::fs::rename(building.path(), folder) {
        assert!(folder.is_dir(), "{}: {error}", folder.display());
    }
}

/// The C++ and CUDA sources of a folder, sorted, and their contents into a hash.
fn hash_sources(folder: &Path, hasher: &mut impl Hasher) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
            ["cpp", "h", "cu", "cuh"].contains(&extension)
        })
        .collect();
    paths.sort();
    for path in &paths {
        std::fs::read(path).expect("a source").hash(hasher);
    }
    paths
}
