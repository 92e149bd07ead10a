//! Facts about the build, for `bm3-engine --version`.
//!
//! Nothing here can fail the build: what cannot be found out is `unknown`, as in a source tree
//! without git.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    for (name, value) in [
        ("BM3_GIT_COMMIT", commit()),
        ("BM3_TARGET", env::var("TARGET").ok()),
        ("BM3_PROFILE", env::var("PROFILE").ok()),
        ("BM3_RUSTC", env::var("RUSTC").ok().and_then(|rustc| output(&rustc, &["--version"]))),
    ] {
        println!("cargo::rustc-env={name}={}", value.as_deref().unwrap_or("unknown"));
    }
    // Whether the tree is as committed depends on all of these. Git's index is not among them: even
    // `git status` rewrites it, and would have the crate built anew.
    for path in ["build.rs", "src", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={path}");
    }
}

/// The commit this tree is at, with `+dirty` where tracked files differ from it.
fn commit() -> Option<String> {
    let root = Path::new(&env::var_os("CARGO_MANIFEST_DIR")?).canonicalize().ok()?;
    // Inside another project's repository (a vendored copy), its commit says nothing about us.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != root {
        return None;
    }
    // Moves with every commit and checkout, also in a linked worktree and with packed references.
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

/// What a program prints, without the line's end; `None` where it is missing or fails.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
