//! Compiles `kernels/` with nvcc, if there is one, and collects the facts that
//! `bm3-engine --version` prints.
//!
//! Without nvcc the build succeeds, with one warning, and cannot use a GPU; `BM3_REQUIRE_CUDA=1`
//! makes that an error, and `BM3_CUDA=0` skips nvcc. The other facts cannot fail the build: one
//! that is not available is `unknown`, as in a source tree without git.

#[path = "build/nvcc.rs"]
mod nvcc;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    kernels(&root, &out);
    for (name, value) in [
        ("BM3_GIT_COMMIT", commit(&root)),
        ("BM3_TARGET", env::var("TARGET").ok()),
        ("BM3_PROFILE", env::var("PROFILE").ok()),
        ("BM3_RUSTC", env::var("RUSTC").ok().and_then(|rustc| output(&rustc, &["--version"]))),
    ] {
        println!("cargo::rustc-env={name}={}", value.as_deref().unwrap_or("unknown"));
    }
    // Whether the tree is as committed depends on all of these. Git's index is left out: even
    // `git status` rewrites it, which would rebuild the crate.
    for path in ["build.rs", "build", "kernels", "src", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={path}");
    }
}

/// Compiles the kernels to one file that the crate embeds; without nvcc the file is empty.
fn kernels(root: &Path, out: &Path) {
    for variable in nvcc::VARIABLES {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let is = |name: &str, expected: &str| env::var_os(name).is_some_and(|value| value == expected);
    let required = is("BM3_REQUIRE_CUDA", "1");
    let compiled = match nvcc::find(root) {
        _ if is("BM3_CUDA", "0") => nvcc::Compiled::nothing(out),
        Ok(Some(nvcc)) => nvcc::compile(&nvcc, root, out),
        Ok(None) if required => {
            Err(format!("BM3_REQUIRE_CUDA=1, and there is no nvcc; searched: {}", nvcc::SEARCHED))
        }
        Ok(None) => {
            println!(
                "cargo::warning=no nvcc: building without CUDA kernels, for the CPU alone \
                 (README, GPU, says how to get it; then build with BM3_REQUIRE_CUDA=1; searched: {})",
                nvcc::SEARCHED
            );
            nvcc::Compiled::nothing(out)
        }
        Err(problem) => Err(problem),
    };
    match compiled {
        Ok(compiled) => {
            println!("cargo::rustc-env=BM3_CUDA_TOOLKIT={}", compiled.toolkit);
            println!("cargo::rustc-env=BM3_CUDA_ARCHITECTURES={}", compiled.architectures);
            println!("cargo::rustc-env=BM3_KERNEL_RESOURCES={}", compiled.resources.display());
        }
        Err(problem) => {
            println!("cargo::error={}", problem.replace('\n', "\ncargo::error="));
        }
    }
}

/// The commit of this tree, with `+dirty` if tracked files differ from it.
fn commit(root: &Path) -> Option<String> {
    let root = root.canonicalize().ok()?;
    // Inside another project's repository (a vendored copy), the commit says nothing about us.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != root {
        return None;
    }
    // These move with every commit and checkout, also in a linked worktree and with packed
    // references.
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name])
            && Path::new(&path).exists()
        {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changes = git(&["--no-optional-locks", "status", "--porcelain", "--untracked-files=no"])?;
    Some(if changes.is_empty() { commit } else { format!("{commit}+dirty") })
}

fn git(arguments: &[&str]) -> Option<String> {
    output("git", arguments)
}

/// What a program prints, trimmed; `None` if it is missing or fails.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
