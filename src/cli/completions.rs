//! `bm3-engine completions`

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, output};

/// Print a script that completes this program's commands and flags in a shell
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct CompletionsArguments {
    /// The shell to complete in
    #[arg(value_enum)]
    shell: Shell,
}

const AFTER_HELP: &str = "\
Examples:
  bm3-engine completions bash > ~/.local/share/bash-completion/completions/bm3-engine
  bm3-engine completions zsh > ~/.zfunc/_bm3-engine
  bm3-engine completions fish > ~/.config/fish/completions/bm3-engine.fish";

pub fn run(arguments: &CompletionsArguments) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "bm3-engine", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}
