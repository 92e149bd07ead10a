//! Finding nvcc, and compiling all kernels with it.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What of the environment decides how kernels are compiled.
pub const VARIABLES: [&str; 7] = [
    "NVCC",
    "CUDA_HOME",
    "CUDA_PATH",
    "PATH",
    "BM3_CUDA",
    "BM3_REQUIRE_CUDA",
    "BM3_CUDA_ARCHITECTURES",
];

/// Where [`find`] looks, in words.
pub const SEARCHED: &str =
    "NVCC, CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda, and a pip-installed toolkit in .cuda";

/// Says what `kernels.fatbin` was compiled from.
const STAMP: &str = "kernels.stamp";

/// What was compiled.
pub struct Compiled {
    /// The toolkit's version: `13.0`; empty without one.
    pub toolkit: String,
    /// Capabilities with machine code, ascending, the last one also as PTX: `80,90`.
    pub architectures: String,
    /// A table of what each kernel uses.
    pub resources: PathBuf,
}

impl Compiled {
    /// No kernels: what embeds them finds an empty file.
    pub fn nothing(out: &Path) -> Result<Self, String> {
        let resources = out.join("kernel_resources.txt");
        // Else the next build with nvcc would take this empty file for what it compiled before.
        let _ = fs::remove_file(out.join(STAMP));
        write(&out.join("kernels.fatbin"), "")?;
        write(&resources, "")?;
        Ok(Self { toolkit: String::new(), architectures: String::new(), resources })
    }
}

/// The compiler, or `None` where there is none. One that `NVCC` names must exist.
pub fn find(root: &Path) -> Result<Option<PathBuf>, String> {
    let program = format!("nvcc{}", env::consts::EXE_SUFFIX);
    if let Some(named) = env::var_os("NVCC").filter(|named| !named.is_empty()) {
        let path = PathBuf::from(&named);
        return if path.is_file() {
            Ok(Some(path))
        } else {
            Err(format!("NVCC names {}, which is no file", path.display()))
        };
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let homes = homes.map(|home| PathBuf::from(home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let installed = [PathBuf::from("/usr/local/cuda/bin")];
    let folders = homes.chain(env::split_paths(&path)).chain(installed).chain(pip_folders(root));
    Ok(folders.map(|folder| folder.join(&program)).find(|path| path.is_file()))
}

/// `bin` of every toolkit in the virtual environment `.cuda`, the newest first.
fn pip_folders(root: &Path) -> Vec<PathBuf> {
    let entries = |folder: PathBuf| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths.reverse();
        paths
    };
    let libraries = [root.join(".cuda/lib"), root.join(".cuda/Lib")];
    let packages = libraries.into_iter().flat_map(|library| {
        let mut folders = entries(library.clone());
        folders.push(library);
        folders
    });
    packages
        .flat_map(|folder| entries(folder.join("site-packages/nvidia")))
        .map(|folder| folder.join("bin"))
        .collect()
}

/// Compiles all of `kernels/*.cu` to `kernels.fatbin`.
pub fn compile(nvcc: &Path, root: &Path, out: &Path) -> Result<Compiled, String> {
    let toolkit = version(nvcc)?;
    let architectures = architectures(nvcc)?;
    let together = out.join("kernels.cu");
    write(&together, &together_of(&root.join("kernels"))?)?;
    let mut command = Command::new(nvcc);
    // No contraction: a kernel's roundings are those its source says (kernels/common.cuh).
    command.args(["-fatbin", "-std=c++17", "-O3", "-fmad=false", "-Xptxas", "-v"]);
    command.args(["--threads", "0", "-o"]).arg(out.join("kernels.fatbin")).arg(&together);
    let newest = architectures.len() - 1;
    for (index, architecture) in architectures.iter().enumerate() {
        let ptx = if index == newest { format!(",compute_{architecture}") } else { String::new() };
        command.arg(format!("-gencode=arch=compute_{architecture},code=[sm_{architecture}{ptx}]"));
    }
    let resources = out.join("kernel_resources.txt");
    // Cargo asks again whenever anything of the crate changes: the kernels seldom have.
    let stamp = out.join(STAMP);
    let ingredients = format!("{command:?}\n{toolkit}\n{}", contents(&root.join("kernels"))?);
    if fs::read_to_string(&stamp).is_ok_and(|found| found == ingredients) {
        return Ok(Compiled { toolkit, architectures: joined(&architectures), resources });
    }
    let _ = fs::remove_file(&stamp);
    let said = run(&mut command)?;
    write(&resources, &resource_table(&said))?;
    write(&stamp, &ingredients)?;
    Ok(Compiled { toolkit, architectures: joined(&architectures), resources })
}

fn joined(architectures: &[u32]) -> String {
    architectures.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// The files of a folder, sorted by name.
fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

/// Every source and header of a folder, its name and its text.
fn contents(folder: &Path) -> Result<String, String> {
    let is_code = |path: &&PathBuf| {
        path.extension().is_some_and(|extension| extension == "cu" || extension == "cuh")
    };
    files(folder)?.iter().filter(is_code).try_fold(String::new(), |mut all, path| {
        let text = fs::read_to_string(path);
        let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
        let _ = writeln!(all, "{}\n{text}", path.display());
        Ok(all)
    })
}

/// One source that includes all others.
fn together_of(folder: &Path) -> Result<String, String> {
    let is_source = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "cu");
    let sources: Vec<PathBuf> = files(folder)?.into_iter().filter(is_source).collect();
    Ok(sources.iter().fold(String::new(), |mut text, source| {
        let _ = writeln!(text, "#include \"{}\"", source.display());
        text
    }))
}

/// `13.0` of `Cuda compilation tools, release 13.0, V13.0.88`.
fn version(nvcc: &Path) -> Result<String, String> {
    let said = run(Command::new(nvcc).arg("--version"))?;
    let release = said.split_once("release ").and_then(|(_, rest)| rest.split_once(','));
    let release = release.map(|(release, _)| release.trim().to_owned());
    release.ok_or_else(|| format!("{} --version names no release: {said}", nvcc.display()))
}

/// The capabilities to compile for: 8.0, 9.0 and the first of every newer generation that nvcc
/// knows, or those of `BM3_CUDA_ARCHITECTURES`.
fn architectures(nvcc: &Path) -> Result<Vec<u32>, String> {
    let said = run(Command::new(nvcc).arg("--list-gpu-code"))?;
    let known: Vec<u32> =
        said.lines().filter_map(|line| line.trim().strip_prefix("sm_")?.parse().ok()).collect();
    let mut chosen = match env::var("BM3_CUDA_ARCHITECTURES") {
        Ok(list) if !list.is_empty() => {
            let numbers = list.split(',').map(|number| number.trim().parse::<u32>());
            let numbers: Vec<u32> = numbers.collect::<Result<_, _>>().map_err(|_| {
                format!("BM3_CUDA_ARCHITECTURES is `{list}`; numbers such as `80,90` are expected")
            })?;
            if let Some(unknown) = numbers.iter().find(|number| !known.contains(number)) {
                return Err(format!(
                    "BM3_CUDA_ARCHITECTURES names {unknown}; this nvcc knows {known:?}, and the \
                     kernels need 80 or newer"
                ));
            }
            numbers
        }
        _ => known.iter().copied().filter(|code| *code >= 80 && code % 10 == 0).collect(),
    };
    chosen.sort_unstable();
    chosen.dedup();
    match chosen.first() {
        Some(80..) => Ok(chosen),
        // Tensor cores multiply TF32 from 8.0 on.
        _ => Err(format!(
            "{} compiles for {known:?}, and the kernels need 80 or newer; CUDA 12 or newer does",
            nvcc.display()
        )),
    }
}

/// What `ptxas -v` said, as a line for each kernel and capability, sorted: name, capability,
/// registers, bytes of shared memory, bytes spilled.
fn resource_table(said: &str) -> String {
    let number_before = |line: &str, words: &str| -> u64 {
        let before = line.split_once(words).map_or("", |(before, _)| before);
        before.rsplit(' ').find_map(|word| word.parse().ok()).unwrap_or(0)
    };
    let mut table = BTreeMap::new();
    let mut entry = None;
    let mut spilled = 0;
    for line in said.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let mut quoted = rest.split('\'');
            let (name, code) = (quoted.next().unwrap_or(""), quoted.nth(1).unwrap_or(""));
            entry = Some((name.to_owned(), code.trim_start_matches("sm_").to_owned()));
            spilled = 0;
        } else if line.contains("bytes spill stores") {
            spilled = number_before(line, " bytes spill stores");
        } else if line.contains("Used ")
            && let Some((name, code)) = entry.take()
        {
            let registers = number_before(line, " registers");
            let shared = number_before(line, " bytes smem");
            table.insert((name, code), (registers, shared, spilled));
        }
    }
    let mut text = String::from("# kernel capability registers shared_bytes spilled_bytes\n");
    for ((name, code), (registers, shared, spilled)) in table {
        let _ = writeln!(text, "{name} {code} {registers} {shared} {spilled}");
    }
    text
}

/// Runs a command and returns everything it said.
fn run(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("cannot run {program}: {error}"))?;
    let said = [&*output.stdout, b"\n", &*output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    if output.status.success() { Ok(said) } else { Err(format!("{program} failed:\n{said}")) }
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
