//! `bm3-engine devices`

use std::fmt::Write;

use bm3_engine::cpu::instruction_set;
use bm3_engine::cuda::{self, Gpu, Kernels, Unusable};
use serde_json::{Value, json};

use super::table::aligned;
use super::{output, version};

/// List the devices to compute on, the CPU and every GPU, and whether this build can use them
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct DevicesArguments {
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

const AFTER_HELP: &str = "\
Examples:
  bm3-engine devices
  bm3-engine devices --json

The first column is what --device takes. Each GPU is opened to see whether it works and how much of
its memory is free. What cannot be used is no failure: the exit code is 0.";

/// A GPU that was tried.
struct Tried {
    gpu: Gpu,
    /// Free bytes of its memory, or why it cannot be used.
    outcome: Result<u64, String>,
}

pub fn run(arguments: &DevicesArguments) -> anyhow::Result<()> {
    let kernels = Kernels::embedded();
    let found = cuda::gpus();
    let tried = found.map(|gpus| {
        let one = |gpu: Gpu| Tried { outcome: attempt(&gpu, kernels.as_ref()), gpu };
        gpus.into_iter().map(one).collect::<Vec<_>>()
    });
    if arguments.json {
        output::print_json(&object(kernels.as_ref(), &tried))
    } else {
        output::print(&table(&tried))
    }
}

/// Opens a GPU and asks for its free memory.
fn attempt(gpu: &Gpu, kernels: Option<&Kernels>) -> Result<u64, String> {
    cuda::can_run(gpu, kernels).map_err(|reason| reason.to_string())?;
    let free = cuda::Device::open(gpu.ordinal, kernels).and_then(|device| device.memory());
    free.map(|(free, _)| free).map_err(|error| error.to_string())
}

/// Why there is no GPU at all; `None` if there is one.
fn absence(tried: &Result<Vec<Tried>, Unusable>) -> Option<String> {
    match tried {
        Err(reason) => Some(reason.to_string()),
        Ok(gpus) if gpus.is_empty() => Some("the NVIDIA driver shows no GPU".to_owned()),
        Ok(_) => None,
    }
}

fn threads() -> usize {
    rayon::current_num_threads()
}

const HEADINGS: [&str; 8] =
    ["device", "name", "memory", "free", "capability", "multiprocessors", "driver", "usable"];

/// A row for each device, then remarks: why a GPU is missing or cannot be used, and which kernels
/// the build has.
fn table(tried: &Result<Vec<Tried>, Unusable>) -> String {
    let plural = if threads() == 1 { "" } else { "s" };
    let cpu = format!("CPU, {} thread{plural}, {}", threads(), instruction_set().name());
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.push(["cpu", &cpu, "", "", "", "", "", "yes"].map(str::to_owned));
    let mut remarks = String::new();
    for Tried { gpu, outcome } in tried.iter().flatten() {
        rows.push([
            gpu.ordinal.to_string(),
            gpu.name.clone(),
            output::bytes(gpu.memory),
            outcome.as_ref().map_or_else(|_| String::new(), |&free| output::bytes(free)),
            gpu.capability.to_string(),
            gpu.multiprocessors.to_string(),
            format!("CUDA {}", gpu.driver),
            if outcome.is_ok() { "yes" } else { "no" }.to_owned(),
        ]);
        if let Err(problem) = outcome {
            let _ = writeln!(remarks, "GPU {} cannot be used: {problem}", gpu.ordinal);
        }
    }
    if let Some(absence) = absence(tried) {
        let _ = writeln!(remarks, "no GPU: {absence}");
    }
    let _ = writeln!(remarks, "kernels: {}", version::kernels());
    format!("{}\n{remarks}", aligned(&rows, HEADINGS.len()))
}

/// The same for programs: sizes in bytes, null for what is unknown.
fn object(kernels: Option<&Kernels>, tried: &Result<Vec<Tried>, Unusable>) -> Value {
    let gpus: Vec<Value> = tried
        .iter()
        .flatten()
        .map(|Tried { gpu, outcome }| {
            json!({
                "device": gpu.ordinal,
                "name": gpu.name,
                "memory": gpu.memory,
                "free": outcome.as_ref().ok(),
                "capability": gpu.capability.to_string(),
                "multiprocessors": gpu.multiprocessors,
                "driver": gpu.driver.to_string(),
                "usable": outcome.is_ok(),
                "problem": outcome.as_ref().err(),
            })
        })
        .collect();
    let kernels = kernels.map(|kernels| {
        json!({
            "toolkit": kernels.toolkit.to_string(),
            "capabilities":
                kernels.machine_code.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "ptx": kernels.ptx.to_string(),
        })
    });
    json!({
        "cpu": { "threads": threads(), "instruction_set": instruction_set().name() },
        "gpus": gpus,
        "problem": absence(tried),
        "kernels": kernels,
    })
}

#[cfg(test)]
mod tests {
    use bm3_engine::cuda::{Capability, CudaVersion};

    use super::*;

    fn tried(outcomes: &[Result<u64, String>]) -> Result<Vec<Tried>, Unusable> {
        let gpu = |ordinal| Gpu {
            ordinal,
            name: "GPU of a test".to_owned(),
            capability: Capability(90),
            memory: 80_000_000_000,
            multiprocessors: 132,
            driver: CudaVersion { major: 13, minor: 0 },
        };
        let one = |(ordinal, outcome): (usize, &Result<u64, String>)| Tried {
            gpu: gpu(ordinal),
            outcome: outcome.clone(),
        };
        Ok(outcomes.iter().enumerate().map(one).collect())
    }

    #[test]
    fn a_row_for_each_device_and_a_line_for_each_problem() {
        let text = table(&tried(&[Ok(79_000_000_000), Err("it is too old".to_owned())]));
        let lines: Vec<&str> = text.lines().collect();
        let cells = |line: &str| -> Vec<String> {
            line.split("  ")
                .map(str::trim)
                .filter(|cell| !cell.is_empty())
                .map(str::to_owned)
                .collect()
        };
        assert_eq!(cells(lines[0]), HEADINGS);
        let [first, .., last] = &cells(lines[1])[..] else { panic!("{text}") };
        assert_eq!((first.as_str(), last.as_str()), ("cpu", "yes"));
        let usable = ["0", "GPU of a test", "80.0 GB", "79.0 GB", "9.0", "132", "CUDA 13.0", "yes"];
        assert_eq!(cells(lines[2]), usable);
        let unusable = ["1", "GPU of a test", "80.0 GB", "9.0", "132", "CUDA 13.0", "no"];
        assert_eq!(cells(lines[3]), unusable);
        for heading in HEADINGS {
            let place = lines[0].find(heading).unwrap();
            assert_ne!(lines[2].as_bytes()[place], b' ', "a cell begins where its heading does");
        }
        assert_eq!(lines[5], "GPU 1 cannot be used: it is too old");
        assert!(lines[6].starts_with("kernels: "));
        assert!(lines.iter().all(|line| *line == line.trim_end()), "{text}");
    }

    #[test]
    fn without_a_gpu_the_reason_is_said() {
        assert!(table(&Err(Unusable::NoDriver)).contains("\nno GPU: there is no NVIDIA driver"));
        assert!(table(&tried(&[])).contains("\nno GPU: the NVIDIA driver shows no GPU\n"));
        let object = object(None, &Err(Unusable::NoDriver));
        assert!(object["problem"].as_str().unwrap().contains("no NVIDIA driver"));
        assert_eq!((&object["gpus"], &object["kernels"]), (&json!([]), &Value::Null));
    }
}
