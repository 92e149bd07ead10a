//! Each kernel's use of a multiprocessor, as `ptxas` reported it at compile time, against
//! `kernels/budgets.txt`. Registers and shared memory decide how many blocks run side by side, and
//! a spilled register is traffic that no formula counts.
//!
//! Exceeding the budget fails. So does staying so far below it that the budget no longer guards the
//! gain. `BM3_RECORD_BUDGETS=1 cargo test --test kernel_budgets` records what this build uses. The
//! figures belong to one toolkit: with another one, or without nvcc, nothing is compared.
//!
//! nvcc may compile the same source differently from run to run: some of its choices depend on
//! where its own data happens to lie. A kernel whose figures vary like this is rewritten until they
//! do not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

/// One line per kernel and capability, written by `build/nvcc.rs`; empty without nvcc.
const FOUND: &str = include_str!(env!("BM3_KERNEL_RESOURCES"));
const TOOLKIT: &str = env!("BM3_CUDA_TOOLKIT");

/// Registers are given to a warp in units of 256: eight for each of its threads.
const REGISTER_UNIT: u32 = 8;

/// What a kernel uses or may use: the maximum over all capabilities, and registers for each.
#[derive(Debug, Clone, Default, PartialEq)]
struct Resources {
    shared_bytes: u32,
    spilled_bytes: u32,
    registers: BTreeMap<u32, u32>,
}

type Kernels = BTreeMap<String, Resources>;

fn number(word: &str) -> u32 {
    word.parse().unwrap_or_else(|_| panic!("`{word}` is no number"))
}

/// Reads lines of kernel, capability, registers, shared bytes and spilled bytes.
fn found(text: &str) -> Kernels {
    let mut kernels = Kernels::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [kernel, capability, registers, shared, spilled] = words[..] else {
            panic!("not a line of the compiler's table: {line}");
        };
        let kernel = kernels.entry(kernel.to_owned()).or_default();
        kernel.shared_bytes = kernel.shared_bytes.max(number(shared));
        kernel.spilled_bytes = kernel.spilled_bytes.max(number(spilled));
        kernel.registers.insert(number(capability), number(registers));
    }
    kernels
}

/// Reads `budgets.txt`: the toolkit, and each kernel's budget.
fn budgets(text: &str) -> (String, Kernels) {
    let (mut toolkit, mut capabilities, mut kernels) = (String::new(), Vec::new(), Kernels::new());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["toolkit", version] => version.clone_into(&mut toolkit),
            ["kernel", "shared", "spilled", ref columns @ ..] => {
                capabilities = columns.iter().map(|column| number(column)).collect();
            }
            [kernel, shared, spilled, ref registers @ ..]
                if registers.len() == capabilities.len() =>
            {
                let registers = registers.iter().map(|word| number(word));
                let resources = Resources {
                    shared_bytes: number(shared),
                    spilled_bytes: number(spilled),
                    registers: capabilities.iter().copied().zip(registers).collect(),
                };
                kernels.insert(kernel.to_owned(), resources);
            }
            _ => panic!("not a line of budgets.txt: {line}"),
        }
    }
    (toolkit, kernels)
}

/// The text that [`budgets`] reads.
fn written(toolkit: &str, kernels: &Kernels) -> String {
    let capabilities: BTreeSet<u32> =
        kernels.values().flat_map(|kernel| kernel.registers.keys().copied()).collect();
    let mut text = String::from(
        "# What each kernel may use: bytes of shared memory and of spilled registers, and registers\n\
         # of a thread by compute capability (tests/kernel_budgets.rs, which also writes this file).\n",
    );
    let _ = writeln!(text, "toolkit {toolkit}");
    let _ = write!(text, "{:22} {:>6} {:>7}", "kernel", "shared", "spilled");
    for capability in &capabilities {
        let _ = write!(text, " {capability:>4}");
    }
    for (name, kernel) in kernels {
        let _ = write!(text, "\n{name:22} {:6} {:7}", kernel.shared_bytes, kernel.spilled_bytes);
        for registers in kernel.registers.values() {
            let _ = write!(text, " {registers:4}");
        }
    }
    text + "\n"
}

/// Every figure over its budget, in the units that the device gives out, or so far below it that
/// the budget should follow.
fn differences(found: &Kernels, budgets: &Kernels) -> Vec<String> {
    let mut all = Vec::new();
    let mut compare = |kernel: &str, what: &str, found: u32, budget: u32, unit: u32| {
        if found.div_ceil(unit) > budget.div_ceil(unit) {
            all.push(format!("{kernel}: {found} {what}, over its budget of {budget}"));
        } else if found + unit <= budget {
            all.push(format!("{kernel}: {found} {what}, below its budget of {budget}: lower it"));
        }
    };
    let names: BTreeSet<&String> = found.keys().chain(budgets.keys()).collect();
    let mut strangers = Vec::new();
    for name in names {
        let (Some(uses), Some(budget)) = (found.get(name), budgets.get(name)) else {
            let which = if found.contains_key(name) { "has no budget" } else { "is not compiled" };
            strangers.push(format!("{name} {which}"));
            continue;
        };
        compare(name, "bytes of shared memory", uses.shared_bytes, budget.shared_bytes, 1);
        compare(name, "bytes of spilled registers", uses.spilled_bytes, budget.spilled_bytes, 1);
        for (capability, &registers) in &uses.registers {
            // A build for other capabilities may have none in the budget.
            if let Some(&most) = budget.registers.get(capability) {
                let what = format!("registers for capability {capability}");
                compare(name, &what, registers, most, REGISTER_UNIT);
            }
        }
    }
    all.extend(strangers);
    all
}

#[test]
fn kernels_keep_to_their_budgets() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/budgets.txt");
    let record = std::env::var_os("BM3_RECORD_BUDGETS").is_some_and(|value| value == "1");
    if FOUND.is_empty() {
        assert!(!record, "BM3_RECORD_BUDGETS=1, and this build has no kernels: there is no nvcc");
        println!("skipped: built without nvcc");
        return;
    }
    let found = found(FOUND);
    if record {
        std::fs::write(&path, written(TOOLKIT, &found)).expect("the budgets are written");
        return;
    }
    let text = std::fs::read_to_string(&path).expect("the recorded budgets");
    let (toolkit, budgets) = budgets(&text);
    if toolkit != TOOLKIT {
        println!("skipped: budgets are those of CUDA {toolkit}, and this is {TOOLKIT}");
        return;
    }
    let differences = differences(&found, &budgets);
    assert!(
        differences.is_empty(),
        "{}\nBM3_RECORD_BUDGETS=1 cargo test --test kernel_budgets records what is used now",
        differences.join("\n")
    );
}

#[test]
fn what_is_over_or_far_below_a_budget_is_named() {
    let recorded =
        found("spmm 80 40 0 0\nspmm 90 32 0 0\ntop_k 80 118 44416 0\ntop_k 90 96 44416 0\n");
    assert_eq!(budgets(&written("13.0", &recorded)), ("13.0".to_owned(), recorded.clone()));
    assert!(differences(&recorded, &recorded).is_empty());
    let alike =
        found("spmm 80 38 0 0\nspmm 90 30 0 0\ntop_k 80 120 44416 0\ntop_k 90 93 44416 0\n");
    assert!(differences(&alike, &recorded).is_empty());

    let now = found("spmm 80 33 0 0\nspmm 90 33 0 16\ntop_k 90 88 44032 0\nnew 90 1 0 0\n");
    assert_eq!(
        differences(&now, &recorded),
        [
            "spmm: 16 bytes of spilled registers, over its budget of 0",
            "spmm: 33 registers for capability 90, over its budget of 32",
            "top_k: 44032 bytes of shared memory, below its budget of 44416: lower it",
            "top_k: 88 registers for capability 90, below its budget of 96: lower it",
            "new has no budget",
        ]
    );
    let without = found("spmm 89 50 0 0\n");
    assert_eq!(differences(&without, &recorded), ["top_k is not compiled"]);
}
