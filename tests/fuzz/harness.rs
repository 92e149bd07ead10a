//! Runs a target on its saved inputs and on mutated ones, and checks its errors, memory and time.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::allocator::peak_of;
use crate::mutate::{Format, Random, mutate};

/// An input that takes longer counts as a hang.
const PATIENCE: Duration = Duration::from_secs(10);

/// Code that reads a file.
pub struct Target<'a> {
    /// Its name, and that of its corpus folder.
    pub name: &'static str,
    /// The extension of its files, with a dot.
    pub ending: &'static str,
    pub format: Format,
    /// Words with a meaning in its format.
    pub dictionary: &'static [&'static str],
    /// The peak of memory allowed: bytes per byte of input, and a constant.
    pub peak: (usize, usize),
    /// Divides the number of inputs; slow targets get fewer.
    pub share: usize,
    /// Inputs in addition to the saved ones.
    pub seeds: Vec<Vec<u8>>,
    /// Reads the file: accepts it, or returns an error that must blame the input.
    pub read: &'a mut dyn FnMut(&Path) -> Result<(), bm3_engine::Error>,
}

/// The results of a number of inputs.
#[derive(Debug, Default)]
pub struct Outcome {
    pub inputs: u64,
    pub accepted: u64,
    largest_peak: usize,
    slowest: Duration,
}

/// Proof that no other test of this process runs: memory is counted for all of it.
pub struct Alone(#[allow(dead_code, reason = "held")] MutexGuard<'static, ()>);

/// Waits until the other tests are done or wait here themselves.
pub fn alone() -> Alone {
    static ONE: Mutex<()> = Mutex::new(());
    // Only the first call can set the number of threads.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(1).build_global();
    Alone(ONE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Inputs for each target with a share of 1.
fn inputs_wanted() -> u64 {
    setting("BM3_FUZZ_INPUTS").unwrap_or(20_000)
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.replace('_', "").parse().unwrap_or_else(|_| panic!("{name}: {text} is no number")))
}

/// A folder for the inputs, in memory if the system has a place for that.
pub fn workshop() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("bm3-fuzz-").tempdir_in(place).unwrap()
}

pub fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name)
}

/// Runs a target; panics with the path of the first input that fails.
pub fn fuzz(_: &Alone, target: Target<'_>) -> Outcome {
    let mut seeds = target.seeds.clone();
    let mut saved: Vec<PathBuf> = fs::read_dir(corpus(target.name))
        .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
        .unwrap_or_default();
    saved.sort();
    seeds.extend(saved.iter().map(|path| fs::read(path).unwrap()));
    assert!(!seeds.is_empty(), "{}: no inputs to start from", target.name);

    let folder = workshop();
    let path = folder.path().join(format!("input{}", target.ending));
    let mut bench = Bench {
        file: File::options().create_new(true).write(true).open(&path).unwrap(),
        path,
        watch: Watch::new(),
        outcome: Outcome::default(),
        target,
    };
    for seed in &seeds {
        bench.check(seed);
    }
    let seed = setting("BM3_FUZZ_SEED").unwrap_or(1);
    let mut random = Random::new(seed ^ fingerprint(bench.target.name.as_bytes()));
    for _ in 0..inputs_wanted() / bench.target.share as u64 {
        let input = mutate(&mut random, &seeds, bench.target.format, bench.target.dictionary);
        bench.check(&input);
    }
    let Outcome { inputs, accepted, largest_peak, slowest } = &bench.outcome;
    println!(
        "{}: {inputs} inputs, {accepted} accepted, at most {largest_peak} bytes at a time, \
         slowest {slowest:?}",
        bench.target.name
    );
    bench.outcome
}

struct Bench<'a> {
    target: Target<'a>,
    path: PathBuf,
    file: File,
    watch: Watch,
    outcome: Outcome,
}

impl Bench<'_> {
    fn check(&mut self, input: &[u8]) {
        // Not truncated first: some file systems flush an emptied file to the disk.
        self.file.write_all_at(input, 0).unwrap();
        self.file.set_len(input.len() as u64).unwrap();
        let started = self.watch.start(&self.path);
        let (result, peak) =
            peak_of(|| catch_unwind(AssertUnwindSafe(|| (self.target.read)(&self.path))));
        let elapsed = started.elapsed();
        self.watch.stop();
        let (factor, constant) = self.target.peak;
        let problem = match &result {
            Err(_) => Some("it panics".to_owned()),
            Ok(Err(error)) if !error.is_input() => Some(format!("blamed on the machine: {error}")),
            _ if peak > factor * input.len() + constant => {
                Some(format!("{peak} bytes at a time for {} of input", input.len()))
            }
            _ if elapsed > PATIENCE => Some(format!("it takes {elapsed:?}")),
            _ => None,
        };
        if let Some(problem) = problem {
            let place = keep(self.target.name, self.target.ending, input);
            panic!("{}: {problem}: {}", self.target.name, place.display());
        }
        let outcome = &mut self.outcome;
        outcome.inputs += 1;
        outcome.accepted += u64::from(matches!(result, Ok(Ok(()))));
        outcome.largest_peak = outcome.largest_peak.max(peak);
        outcome.slowest = outcome.slowest.max(elapsed);
    }
}

/// Saves an input in the build folder, to be inspected and moved into the corpus.
fn keep(name: &str, ending: &str, input: &[u8]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz").join(name);
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{:016x}{ending}", fingerprint(input)));
    fs::write(&path, input).unwrap();
    path
}

fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Ends the process if an input never ends: nothing else can.
struct Watch {
    started: Arc<Mutex<Option<Instant>>>,
}

impl Watch {
    fn new() -> Self {
        Self { started: Arc::default() }
    }

    fn start(&mut self, path: &Path) -> Instant {
        let now = Instant::now();
        if Arc::strong_count(&self.started) == 1 {
            let (started, path) = (self.started.clone(), path.to_owned());
            std::thread::spawn(move || watch(&started, &path));
        }
        *self.started.lock().unwrap() = Some(now);
        now
    }

    fn stop(&self) {
        *self.started.lock().unwrap() = None;
    }
}

fn watch(started: &Arc<Mutex<Option<Instant>>>, path: &Path) {
    // Until the target is done and only this thread holds the value.
    while Arc::strong_count(started) > 1 {
        std::thread::sleep(PATIENCE / 20);
        let hung = started.lock().unwrap().is_some_and(|start| start.elapsed() > 2 * PATIENCE);
        if hung {
            let kept = keep("hung", "", &fs::read(path).unwrap_or_default());
            eprintln!("an input never ends: {}", kept.display());
            std::process::exit(1);
        }
    }
}
