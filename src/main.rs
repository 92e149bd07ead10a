//! The `bm3-engine` program.

fn main() {}
