//! `bm3-engine train --dry-run`: what a run would do, and the memory it would take.

use std::fmt::Write;

use bm3_engine::backend::Backend;
use bm3_engine::config::RunConfig;
use bm3_engine::device::Device;
use bm3_engine::error::SAVES_DEVICE_MEMORY;
use bm3_engine::memory::{MemoryLine, MemoryPlan};
use bm3_engine::train::graph;
use bm3_engine::with_backend;

use super::backend;
use super::output;
use super::progress::Face;

/// Prints a run's settings and its memory plan, as TOML with comments or as a JSON object; writes no
/// file.
pub fn print(config: &RunConfig, face: Face) -> anyhow::Result<()> {
    let talks = face != Face::Quiet;
    let mut device = backend::open(config.device, talks)?;
    if config.train.freeze_features {
        let choice = config.train.feature_type;
        with_backend!(&mut device, backend => backend.store_features_as(choice))?;
    }
    let dataset = backend::dataset(config, talks)?;
    if talks {
        backend::warn(&dataset);
    }
    let graph = graph(&dataset, &config.train);
    let limit = config.device_memory.map(|size| size.0);
    let (plan, memory) = match &device {
        Device::Cpu(_) => (MemoryPlan::on_cpu(&dataset, &graph, &config.train), None),
        Device::Gpu(backend) => {
            let (free, total) = backend.device().memory()?;
            let storage = config.feature_storage;
            let plan = MemoryPlan::on_gpu(&dataset, &graph, &config.train, storage, free, limit);
            (plan, Some((free, total)))
        }
    };
    if face == Face::Json {
        return output::print_json(&serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "config": config,
            "device": device.describe(),
            "memory": {
                "device": plan.device,
                "device_bytes": plan.device_total(),
                "free_device_bytes": memory.map(|(free, _)| free),
                "device_limit_bytes": limit,
                "host": plan.host,
                "host_bytes": plan.host_total(),
                "mapped_bytes": plan.mapped,
            },
        }));
    }
    let mut text = config.to_toml()?;
    if let Some((free, total)) = memory {
        push(&mut text, &format!("Memory of {}", device.describe()), &plan.device);
        text.push_str(&verdict(plan.device_total(), free, total, limit));
    }
    let title = if plan.device.is_empty() { "Memory" } else { "Memory of the host" };
    push(&mut text, title, &plan.host);
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "# {:>9}  of mapped feature files beside it, page cache that the system may take back",
        output::bytes(plan.mapped)
    );
    output::print(&text)
}

/// A title, a line for each item, and their sum.
fn push(text: &mut String, title: &str, lines: &[MemoryLine]) {
    let _ = writeln!(text, "\n# {title}:");
    for MemoryLine { what, bytes } in lines {
        let _ = writeln!(text, "# {:>9}  {what}", output::bytes(*bytes));
    }
    let total = lines.iter().map(|line| line.bytes).sum();
    let _ = writeln!(text, "# {:>9}  in all", output::bytes(total));
}

/// Whether the bytes needed fit into the free memory.
fn verdict(needed: u64, free: u64, total: u64, limit: Option<u64>) -> String {
    let room = format!(
        "# {:>9}  free now, of {} that the GPU has",
        output::bytes(free),
        output::bytes(total)
    );
    let may_take =
        limit.map_or(String::new(), |limit| format!(", {} may be taken", output::bytes(limit)));
    let raise = match limit {
        Some(limit) if needed > limit => "raise --device-memory, ",
        _ => "",
    };
    if needed <= limit.map_or(free, |limit| limit.min(free)) {
        format!("{room}{may_take}: it fits\n")
    } else {
        format!("{room}{may_take}: IT DOES NOT FIT; {raise}{SAVES_DEVICE_MEMORY}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_says_so_and_what_to_do() {
        let fits = "#       5 B  free now, of 10 B that the GPU has: it fits\n";
        assert_eq!(verdict(5, 5, 10, None), fits);
        let fits = "#       9 B  free now, of 10 B that the GPU has, 5 B may be taken: it fits\n";
        assert_eq!(verdict(5, 9, 10, Some(5)), fits);
        let text = verdict(5, 9, 10, Some(4));
        assert!(text.contains("IT DOES NOT FIT; raise --device-memory, keep"), "{text}");
        let text = verdict(9, 8, 10, Some(9));
        assert!(text.contains("IT DOES NOT FIT; keep"), "{text}");
        let text = verdict(6, 5, 10, None);
        assert!(text.contains("IT DOES NOT FIT; keep features as inputs with --freeze-features"));
        assert!(text.starts_with("# ") && text.matches('\n').count() == 1);
    }
}
