//! The README shows the example that is run.

use std::fs;
use std::path::Path;

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// CI runs the example (`cargo run --example quickstart`).
#[test]
fn the_quick_start_in_rust_is_the_example() {
    let block = format!("```rust\n{}```\n", read("examples/quickstart.rs"));
    assert!(read("README.md").contains(&block));
}
