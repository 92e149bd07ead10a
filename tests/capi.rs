//! The C API: its header, the library's exports, C programs under AddressSanitizer (with
//! LeakSanitizer) and UndefinedBehaviorSanitizer, and the README's quick start.
//!
//! The library is built without sanitizers, as users build it. They still see its heap (leaks,
//! double frees, uses after free by the programs and by functions that copy memory) and everything
//! in the programs. Guards around the programs' arrays show that the library writes nowhere else
//! (`serving.c`).
//!
//! Environment: `CC` and `CXX` name the compilers [cc, c++]; `BM3_RECORD_HEADER=1` writes the
//! header instead of comparing it.
#![cfg(unix)]

#[path = "capi/header.rs"]
mod header;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use bm3_engine::{Model, Recommender};

/// The compiler named by `variable`, or else `standard`; `None` if it does not run.
fn compiler(variable: &str, standard: &str) -> Option<String> {
    let name = std::env::var(variable).unwrap_or_else(|_| standard.to_owned());
    match Command::new(&name).arg("--version").output() {
        Ok(output) if output.status.success() => Some(name),
        _ => {
            println!("skipped: there is no compiler `{name}` ({variable} names another one)");
            None
        }
    }
}

fn succeeds(command: &mut Command) -> String {
    // cargo makes tests search its own folder for libraries first, where a Python wheel's library
    // of the same name may be. Programs are linked with the path of theirs.
    command.env_remove("LD_LIBRARY_PATH");
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{stdout}\n{stderr}");
    stdout.into_owned()
}

/// A command of the README, to run from the repository's root.
fn shell(command: &str) -> Command {
    let cargo = Path::new(env!("CARGO")).parent().unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut shell = Command::new("sh");
    shell.args(["-ec", command]).current_dir(header::root());
    shell.env("PATH", format!("{}:{path}", cargo.display())).env_remove("CARGO_TARGET_DIR");
    shell
}

/// The README's quick start in C: its program and its commands; the first command builds the
/// library.
fn quick_start() -> (String, Vec<String>) {
    let readme = fs::read_to_string(header::root().join("README.md")).unwrap();
    let (_, section) = readme.split_once("\n### C\n").expect("README.md has a section `### C`");
    let block = |language: &str| {
        let (_, block) = section.split_once(&format!("```{language}\n")).unwrap();
        block.split_once("```").unwrap().0.to_owned()
    };
    (block("c"), block("sh").lines().map(str::to_owned).collect())
}

/// The folder of the library, built as the README says.
fn library() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        succeeds(&mut shell(&quick_start().1[0]));
        header::root().join("target/release")
    })
}

/// Compiles a program of `tests/capi` with the sanitizers; `None` without a compiler.
fn program(name: &str) -> Option<PathBuf> {
    let compiler = compiler("CC", "cc")?;
    let (root, library) = (header::root(), library());
    let folder = root.join("target/capi");
    fs::create_dir_all(&folder).unwrap();
    let output = folder.join(name);
    let mut command = Command::new(compiler);
    command
        .args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g", "-O1", "-pthread"])
        .args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all"])
        .arg("-fno-omit-frame-pointer")
        .arg("-I")
        .arg(root.join("include"))
        .arg(root.join("tests/capi").join(name).with_extension("c"))
        .arg("-o")
        .arg(&output)
        .arg("-L")
        .arg(library)
        .args(["-lbm3_engine", "-lm"])
        .arg(format!("-Wl,-rpath,{}", library.display()));
    succeeds(&mut command);
    Some(output)
}

/// Runs one; a fault, a leak or a failed check fails the test.
fn run(program: &Path, arguments: &[&Path]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).env("CUDA_VISIBLE_DEVICES", "");
    command.env("ASAN_OPTIONS", "detect_leaks=1:detect_stack_use_after_return=1");
    command.env("UBSAN_OPTIONS", "print_stacktrace=1");
    succeeds(&mut command)
}

#[test]
fn the_header_is_that_of_the_functions() {
    let (text, path) = (header::text(&header::bindings()), header::path());
    if std::env::var_os("BM3_RECORD_HEADER").is_some_and(|value| value == "1") {
        fs::write(&path, &text).unwrap();
        return;
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == text,
        "{} is not that of src/capi; write it with BM3_RECORD_HEADER=1",
        path.display()
    );
}

#[test]
fn the_header_is_c_and_cpp_without_a_warning() {
    let include = header::root().join("include");
    let directory = tempfile::tempdir().unwrap();
    for (variable, standard, dialects, ending) in
        [("CC", "cc", ["c11", "c17"], "c"), ("CXX", "c++", ["c++17", "c++20"], "cpp")]
    {
        let Some(compiler) = compiler(variable, standard) else { continue };
        let source = directory.path().join("header").with_extension(ending);
        let text = "#include \"bm3_engine.h\"\n#include \"bm3_engine.h\"\n\
                    int main(void) { return bm3_version() == 0 || BM3_NO_ITEM == BM3_WITH_SEEN; }\n";
        fs::write(&source, text).unwrap();
        for dialect in dialects {
            let mut command = Command::new(&compiler);
            command.arg(format!("-std={dialect}")).args(["-Wall", "-Wextra", "-Wpedantic"]);
            command.args(["-Werror", "-fsyntax-only", "-I"]).arg(&include).arg(&source);
            succeeds(&mut command);
        }
    }
}

#[test]
fn the_library_exports_its_functions_and_nothing_else() {
    let bindings = header::bindings();
    let functions: BTreeSet<&str> = bindings.dynamic_symbols_names().collect();
    assert!(functions.iter().all(|name| name.starts_with("bm3_")), "{functions:?}");
    let misuse = fs::read_to_string(header::root().join("tests/capi/misuse.c")).unwrap();
    for name in &functions {
        assert!(misuse.contains(&format!("{name}(")), "{name} is not misused in a test");
    }
    if !cfg!(target_os = "linux") || Command::new("nm").arg("--version").output().is_err() {
        println!("skipped, in part: there is no nm to list what a library exports");
        return;
    }
    let library = library().join("libbm3_engine.so");
    let listed = succeeds(Command::new("nm").args(["-D", "--defined-only"]).arg(library));
    let exported: BTreeSet<&str> =
        listed.lines().filter_map(|line| line.split_whitespace().last()).collect();
    assert_eq!(exported, functions);
}

#[test]
fn what_is_asked_for_is_answered() {
    let Some(program) = program("serving") else { return };
    run(&program, &[]);
}

#[test]
fn what_is_wrong_is_refused() {
    let Some(program) = program("misuse") else { return };
    run(&program, &[]);
}

#[test]
fn training_calls_back_stops_and_goes_on() {
    let Some(program) = program("training") else { return };
    let directory = tempfile::tempdir().unwrap();
    run(&program, &[directory.path()]);
}

#[test]
fn a_forked_process_answers_and_trains() {
    let Some(program) = program("fork") else { return };
    let directory = tempfile::tempdir().unwrap();
    run(&program, &[&directory.path().join("model.safetensors")]);
}

#[test]
fn four_threads_get_the_lists_of_one() {
    let Some(program) = program("threads") else { return };
    run(&program, &[]);
}

/// One model, trained by the program, gives the same lists from the program, C and Rust, with the
/// same bits of every score.
#[test]
fn lists_are_the_same_from_the_program_c_and_rust() {
    const K: usize = 20;
    let Some(lists) = program("lists") else { return };
    let directory = tempfile::tempdir().unwrap();
    let (data, model) = (directory.path().join("tiny"), directory.path().join("run"));
    let engine = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bm3-engine"));
        command.env_remove("RUST_LOG").env("CUDA_VISIBLE_DEVICES", "");
        command
    };
    succeeds(engine().args(["synth", "--shape", "tiny", "--out"]).arg(&data));
    let mut train = engine();
    train.args(["train", "--quiet", "--epochs", "8", "--device", "cpu", "--data"]).arg(&data);
    succeeds(train.arg("--out").arg(&model));

    let mut recommend = engine();
    recommend.args(["recommend", "--scores", "--device", "cpu", "--top-k", "20", "--model"]);
    let csv = succeeds(recommend.arg(&model));
    let of_program: Vec<String> = csv
        .lines()
        .skip(1)
        .map(|line| {
            let (list, score) = line.rsplit_once(',').unwrap();
            // The decimal form holds every digit of the f32.
            let score: f64 = score.parse().unwrap();
            assert_eq!(f64::from(score as f32), score);
            format!("{list},{:08x}", (score as f32).to_bits())
        })
        .collect();

    let from_c = run(&lists, &[&model, Path::new(&K.to_string())]);
    assert!(of_program.len() > 1000);
    assert!(of_program.iter().map(String::as_str).eq(from_c.lines()));

    let recommender = Recommender::new(Model::load(&model).unwrap()).unwrap();
    let in_rust: Vec<String> = (0..recommender.model().users() as u32)
        .flat_map(|user| {
            let list = recommender.top_k(user, K).unwrap().into_iter().enumerate();
            list.map(move |(rank, found)| {
                format!("{user},{},{},{:08x}", rank + 1, found.item, found.score.to_bits())
            })
        })
        .collect();
    assert!(of_program == in_rust);
}

#[test]
fn the_quick_start_is_the_readmes_and_runs() {
    let (program, commands) = quick_start();
    let example = header::root().join("examples/quickstart.c");
    assert!(fs::read_to_string(example).unwrap() == program, "README.md shows another program");
    if compiler("CC", "cc").is_none() {
        return;
    }
    library();
    let printed = succeeds(&mut shell(&commands[1..].join("\n")));
    print!("{printed}");
    // The third item of the user's group comes first.
    assert!(printed.contains("user 0: item 2 ("), "{printed}");
    assert!(printed.contains("with item 6 new: item 5 ("), "{printed}");
}
