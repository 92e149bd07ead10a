//! The `bm3-engine` program.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
