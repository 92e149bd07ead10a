//! The compiled kernels that `build.rs` embedded, and the GPUs they run on.

use std::borrow::Cow;
use std::fmt;

/// Every kernel of `kernels/` that a launch wrapper starts.
pub const NAMES: &[&str] = &[
    "adam",
    "adam_replay",
    "adam_rows",
    "add_scaled",
    "batch_keys",
    "batch_lists",
    "batch_partners",
    "bootstrap_loss_1",
    "bootstrap_loss_2",
    "bootstrap_loss_4",
    "column_slices",
    "copy_ceiling",
    "gather_rows",
    "half_rows",
    "initial_values",
    "largest_norm",
    "leaky_relu",
    "leaky_relu_backward",
    "loss_terms",
    "multiply_ceiling",
    "multiply_gradient",
    "multiply_plain",
    "multiply_transposed",
    "next_batch",
    "norm_gradient",
    "norm_scales",
    "norm_squares",
    "order_keys",
    "project_backward_bf16",
    "project_backward_f16",
    "project_backward_f32",
    "project_bf16",
    "project_f16",
    "project_f32",
    "radix_count",
    "radix_move",
    "radix_offsets",
    "scatter_rows",
    "spmm",
    "spmm_adam",
    "sum_metrics",
    "sum_slices",
    "tensor_ceiling",
    "top_k",
    "top_k_merge",
    "user_metrics",
    "watch_losses",
];

/// Bytes of shared memory that a launch asks for per block, besides the at most 48 KB that the
/// kernel declares. All GPUs that kernels are compiled for give a block 99 KB.
pub(super) fn shared_at_launch(kernel: &str) -> u32 {
    match kernel {
        "top_k" => super::ranking::SHARED,
        _ => 0,
    }
}

/// The CUDA version of a driver or a toolkit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CudaVersion {
    /// 13 in 13.0.
    pub major: u32,
    /// 0 in 13.0.
    pub minor: u32,
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

/// A GPU's compute capability, as major · 10 + minor: 90 is 9.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capability(pub u32);

impl fmt::Display for Capability {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.0 / 10, self.0 % 10)
    }
}

/// Compiled kernels.
#[derive(Debug, Clone)]
pub struct Kernels {
    /// A fatbin, as `nvcc -fatbin` writes it.
    pub image: Cow<'static, [u8]>,
    /// The toolkit that compiled it; a driver of an older major version cannot load it.
    pub toolkit: CudaVersion,
    /// The capabilities for which it holds machine code, ascending.
    pub machine_code: Vec<Capability>,
    /// The lowest capability for which a driver can compile its PTX.
    pub ptx: Capability,
}

static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

impl Kernels {
    /// The kernels of this build; `None` when it was built without nvcc.
    pub fn embedded() -> Option<Self> {
        if IMAGE.is_empty() {
            return None;
        }
        // `build.rs` has written and checked these: `13.0` and `80,90,100`.
        let numbers = |text: &str, separator| -> Vec<u32> {
            text.split(separator).filter_map(|number| number.parse().ok()).collect()
        };
        let toolkit = numbers(env!("BM3_CUDA_TOOLKIT"), '.');
        let machine_code: Vec<Capability> =
            numbers(env!("BM3_CUDA_ARCHITECTURES"), ',').into_iter().map(Capability).collect();
        Some(Self {
            image: Cow::Borrowed(IMAGE),
            toolkit: CudaVersion { major: *toolkit.first()?, minor: *toolkit.get(1)? },
            ptx: *machine_code.last()?,
            machine_code,
        })
    }

    /// The capabilities for which there is machine code, in words: `8.0, 9.0`.
    pub fn capabilities(&self) -> String {
        let names: Vec<String> = self.machine_code.iter().map(Capability::to_string).collect();
        names.join(", ")
    }

    /// Whether a GPU can run them: by machine code of the same major and no newer minor capability,
    /// or by PTX.
    pub fn serve(&self, gpu: Capability) -> bool {
        let runs = |code: &Capability| code.0 / 10 == gpu.0 / 10 && code.0 <= gpu.0;
        self.machine_code.iter().any(runs) || self.ptx <= gpu
    }
}

/// How they were compiled, on one line.
impl fmt::Display for Kernels {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "compiled by CUDA {} for {}, and as PTX for what is newer than {}",
            self.toolkit,
            self.capabilities(),
            self.ptx
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_serve_gpus_of_their_generation_and_later_ones() {
        let kernels = Kernels {
            image: Cow::Borrowed(&[1]),
            toolkit: CudaVersion { major: 13, minor: 0 },
            machine_code: [80, 90, 100].map(Capability).to_vec(),
            ptx: Capability(100),
        };
        for (capability, serves) in
            [(70, false), (75, false), (80, true), (89, true), (90, true), (103, true), (120, true)]
        {
            assert_eq!(kernels.serve(Capability(capability)), serves, "{capability}");
        }
        assert_eq!(
            kernels.to_string(),
            "compiled by CUDA 13.0 for 8.0, 9.0, 10.0, and as PTX for what is newer than 10.0"
        );
        // Code for 9.0 does not run on 8.6.
        let hopper = Kernels { machine_code: vec![Capability(90)], ptx: Capability(90), ..kernels };
        assert!(!hopper.serve(Capability(86)));
    }

    /// The kernels that the wrappers may launch are those that the sources define.
    #[test]
    fn every_kernel_of_the_sources_is_named() {
        let mut found = Vec::new();
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        for entry in std::fs::read_dir(folder).expect("the kernels' sources") {
            let path = entry.expect("an entry").path();
            if path.extension().is_none_or(|extension| extension != "cu") {
                continue;
            }
            let source = std::fs::read_to_string(&path).expect("a source");
            for part in source.split("__launch_bounds__(").skip(1) {
                let name = part.split_once(')').map(|(_, rest)| rest.trim_start());
                let name = name.and_then(|rest| rest.split_once('(')).map(|(name, _)| name);
                match name.expect("a kernel's name") {
                    // One for each number of quads that a lane holds.
                    "bootstrap_loss_##QUADS" => {
                        found.extend([1, 2, 4].map(|quads| format!("bootstrap_loss_{quads}")));
                    }
                    name => found.push(name.to_owned()),
                }
            }
        }
        found.sort();
        assert_eq!(found, NAMES);
    }
}
