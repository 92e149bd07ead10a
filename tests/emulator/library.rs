//! Builds the emulator's `libcuda.so`. Each kernel source, the scheduler and the driver is an
//! object of its own, compiled once for the same sources and flags.
//!
//! Environment: `CXX` names the compiler [c++]; `BM3_EMULATOR_FLAGS` adds flags (sanitizers,
//! coverage); `BM3_KERNELS` names another folder of kernels; `BM3_EMULATOR_FOLDER` names another
//! folder for new builds.

use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

use bm3_engine::cuda::KERNEL_NAMES;

/// The library's path. Prints why and returns `None` if there is no C++ compiler.
pub fn build() -> Option<PathBuf> {
    let compiler = Compiler::new();
    if Command::new(&compiler.program).arg("--version").output().is_err() {
        let program = &compiler.program;
        println!("skipped: there is no C++ compiler `{program}` to build the CUDA emulator with");
        return None;
    }
    let objects = compiler.objects();
    let inputs: Vec<&OsStr> = objects.iter().map(|path| path.as_os_str()).collect();
    let mut hasher = DefaultHasher::new();
    inputs.hash(&mut hasher);
    let library = compiler.make_once("library", "libcuda.so", hasher.finish(), |building| {
        let arguments = ["-shared", "-Wl,-soname,libcuda.so", "-o", "libcuda.so"].map(OsStr::new);
        compiler.run(building, &[&arguments, inputs.as_slice()].concat());
    });
    Some(library)
}

struct Compiler {
    program: String,
    flags: Vec<String>,
    sources: PathBuf,
    kernels: PathBuf,
}

impl Compiler {
    fn new() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut flags: Vec<String> = [
            "-std=c++17",
            "-O2",
            "-g1",
            "-fPIC",
            "-Wall",
            "-Wextra",
            "-Wno-unknown-pragmas",
            // Roundings are those in a kernel's source, as with nvcc's -fmad=false.
            "-ffp-contract=off",
            "-pthread",
            "-DBM3_EMULATOR",
            "-fvisibility=hidden",
            // Makes thread-local variables a register and an offset away, not a call.
            "-ftls-model=initial-exec",
        ]
        .map(str::to_owned)
        .into();
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2")
        {
            // Otherwise each fmaf is a call.
            flags.extend(["-mfma", "-mavx2"].map(str::to_owned));
        }
        let extra = env::var("BM3_EMULATOR_FLAGS").unwrap_or_default();
        flags.extend(extra.split_whitespace().map(str::to_owned));
        Self {
            program: env::var("CXX").unwrap_or_else(|_| "c++".to_owned()),
            flags,
            sources: root.join("tests/emulator"),
            kernels: env::var_os("BM3_KERNELS").map_or_else(|| root.join("kernels"), PathBuf::from),
        }
    }

    fn run(&self, building: &Path, arguments: &[&OsStr]) {
        let mut command = Command::new(&self.program);
        command.args(&self.flags).arg("-I").arg(&self.sources).args(arguments);
        // LD_PRELOAD names a sanitizer's library for the tests, not for the compiler.
        command.current_dir(building).env_remove("LD_PRELOAD");
        let output = command.output().expect("the compiler runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "the emulator does not compile:\n{said}");
        assert!(said.is_empty(), "the emulator compiles with warnings:\n{said}");
    }

    /// All objects of the library, compiled in parallel.
    fn objects(&self) -> Vec<PathBuf> {
        let units = self.units();
        let next = AtomicUsize::new(0);
        let compile = || {
            let mut compiled = Vec::new();
            while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
                compiled.push(self.object(unit));
            }
            compiled
        };
        // Not on Rayon's threads, which may already wait for the library.
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let mut objects: Vec<PathBuf> = thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(compile)).collect();
            workers.into_iter().flat_map(|worker| worker.join().expect("it compiles")).collect()
        });
        objects.sort();
        objects
    }

    fn units(&self) -> Vec<Unit> {
        let mut units: Vec<Unit> = ["driver.cpp", "scheduler.cpp"]
            .map(|name| Unit { source: self.sources.join(name), kernels: Vec::new() })
            .into();
        let mut nowhere: BTreeSet<&str> = KERNEL_NAMES.iter().copied().collect();
        for entry in fs::read_dir(&self.kernels).expect("the kernels' folder") {
            let source = entry.expect("an entry").path();
            if source.extension() == Some(OsStr::new("cu")) {
                let kernels = kernels_of(&fs::read_to_string(&source).expect("a source"));
                nowhere.retain(|name| !kernels.contains(name));
                units.push(Unit { source, kernels });
            }
        }
        assert!(nowhere.is_empty(), "no source has the kernels {nowhere:?}");
        units
    }

    fn object(&self, unit: &Unit) -> PathBuf {
        let header = self.sources.join("emulator.h");
        // In order of inclusion. Paths are not hashed: a copy in another folder is the same object.
        let mut files = Vec::new();
        for file in [&header, &unit.source] {
            self.add_included(file, &mut files);
        }
        let mut hasher = DefaultHasher::new();
        (&self.program, &self.flags, &unit.kernels).hash(&mut hasher);
        for file in &files {
            fs::read(file).expect("a source").hash(&mut hasher);
        }
        let name = unit.source.file_stem().and_then(OsStr::to_str).expect("a source's name");
        self.make_once(name, &format!("{name}.o"), hasher.finish(), |building| {
            let mut text = format!(
                "#include \"{}\"\n#include \"{}\"\n",
                header.display(),
                unit.source.display()
            );
            for kernel in &unit.kernels {
                let _ = writeln!(
                    text,
                    "static const emulator::Register register_{kernel}(\"{kernel}\", \
                     &emulator::Invoke<{kernel}>::entry, emulator::Invoke<{kernel}>::sizes());"
                );
            }
            let file = format!("{name}.cpp");
            fs::write(building.join(&file), text).expect("the unit is written");
            self.run(building, &["-c", &file].map(OsStr::new));
        })
    }

    /// Adds a source and our files that it includes, directly or indirectly.
    fn add_included(&self, source: &Path, files: &mut Vec<PathBuf>) {
        if !files.iter().any(|file| file == source) {
            files.push(source.to_owned());
            let text = fs::read_to_string(source).expect("a source");
            for line in text.lines() {
                if let Some(name) = line.strip_prefix("#include \"") {
                    let name = name.trim_end_matches('"');
                    let beside = source.with_file_name(name);
                    let is_beside = beside.is_file();
                    let included = if is_beside { beside } else { self.sources.join(name) };
                    self.add_included(&included, files);
                }
            }
        }
    }

    /// The path of a file in a folder of its own, which `fill` makes unless it exists. Others may
    /// be making the same: each works in a folder of its own, and the first to finish wins.
    fn make_once(&self, name: &str, file: &str, hash: u64, fill: impl FnOnce(&Path)) -> PathBuf {
        let folder = format!("emulator-{name}-{hash:016x}");
        let standard = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let parent = env::var_os("BM3_EMULATOR_FOLDER").map(PathBuf::from);
        let parent = parent.as_deref().unwrap_or(standard);
        if let Some(made) = [standard, parent]
            .map(|parent| parent.join(&folder).join(file))
            .into_iter()
            .find(|path| path.is_file())
        {
            return made;
        }
        let building = tempfile::tempdir_in(parent).expect("a folder to build in");
        fill(building.path());
        let folder = parent.join(folder);
        if let Err(error) = fs::rename(building.path(), &folder) {
            assert!(folder.is_dir(), "{}: {error}", folder.display());
        }
        folder.join(file)
    }
}

/// A source compiled into an object of its own, and the kernels it defines.
struct Unit {
    source: PathBuf,
    kernels: Vec<&'static str>,
}

/// The kernels that a source defines, by name or, in a macro, by the name without its last part.
fn kernels_of(source: &str) -> Vec<&'static str> {
    let is_defined = |name: &&str| {
        let family = name.rsplit_once('_').map_or(*name, |(family, _)| family);
        source.contains(&format!(") {name}(")) || source.contains(&format!(") {family}_##"))
    };
    KERNEL_NAMES.iter().copied().filter(is_defined).collect()
}
