//! `--version`: everything about the program that a bug report should say.

use std::sync::LazyLock;

use bm3_engine::cuda::Kernels;

/// The version, how the program was built, and what this machine's CPU can do.
pub fn long() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let extensions = cpu_extensions();
        format!(
            "{}\n\
             commit:   {}\n\
             target:   {}\n\
             profile:  {}\n\
             compiler: {}\n\
             kernels:  {}\n\
             tables:   {}\n\
             CPU:      {}",
            env!("CARGO_PKG_VERSION"),
            env!("BM3_GIT_COMMIT"),
            env!("BM3_TARGET"),
            env!("BM3_PROFILE"),
            env!("BM3_RUSTC"),
            kernels(),
            if cfg!(feature = "parquet") { "text, Parquet, Arrow IPC" } else { "text" },
            if extensions.is_empty() { "no extensions known".into() } else { extensions.join(" ") },
        )
    });
    &TEXT
}

/// Describes the CUDA kernels built into the program.
pub fn kernels() -> String {
    match Kernels::embedded() {
        Some(kernels) => kernels.to_string(),
        None => "none: built without nvcc, for the CPU alone".to_owned(),
    }
}

/// The instruction set extensions that this CPU has and that matter to this program's loops.
#[cfg(target_arch = "x86_64")]
fn cpu_extensions() -> Vec<&'static str> {
    macro_rules! detected {
        ($($name:tt)*) => { [$(($name, is_x86_feature_detected!($name))),*] };
    }
    let all = detected!(
        "sse4.2" "avx" "avx2" "fma" "f16c" "avx512f" "avx512bw" "avx512vl" "avx512bf16" "avx512fp16"
    );
    all.into_iter().filter_map(|(name, present)| present.then_some(name)).collect()
}

#[cfg(target_arch = "aarch64")]
fn cpu_extensions() -> Vec<&'static str> {
    macro_rules! detected {
        ($($name:tt)*) => { [$(($name, std::arch::is_aarch64_feature_detected!($name))),*] };
    }
    let all = detected!("neon" "fp16" "dotprod" "bf16" "sve" "sve2");
    all.into_iter().filter_map(|(name, present)| present.then_some(name)).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn cpu_extensions() -> Vec<&'static str> {
    Vec::new()
}
