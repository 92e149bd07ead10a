//! `bm3-engine inspect`

use std::path::{Path, PathBuf};

use bm3_engine::{Error, Result, run};

/// Say what a run, a data set, a model or a feature file holds
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct InspectArguments {
    /// A run's directory, a data folder, a .safetensors or a .npy file
    path: PathBuf,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

const AFTER_HELP: &str = "\
Examples:
  bm3-engine inspect data/baby
  bm3-engine inspect runs/baby --json
  bm3-engine inspect runs/baby/model.safetensors
  bm3-engine inspect data/baby/image_feat.npy";

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The directory of a run.
    Run,
    /// A folder with an `.inter` file.
    Data,
    /// A `.safetensors` file.
    Safetensors,
    /// A `.npy` file.
    Npy,
}

impl Kind {
    /// Looks at a path.
    ///
    /// # Errors
    /// [`Error::Io`] when there is nothing or it cannot be read, [`Error::RunFile`] when it is
    /// something else.
    fn of(path: &Path) -> Result<Self> {
        let found = std::fs::metadata(path).map_err(|error| Error::io(path, "read", error))?;
        let ending = |path: &Path, ending: &str| path.extension().is_some_and(|e| e == ending);
        if found.is_file() {
            if ending(path, "safetensors") {
                return Ok(Self::Safetensors);
            }
            if ending(path, "npy") {
                return Ok(Self::Npy);
            }
            let problem = "a .safetensors or .npy file, or a directory, expected";
            return Err(Error::run_file(path, problem));
        }
        if [run::CONFIG, run::MODEL, run::STATE].iter().any(|name| path.join(name).is_file()) {
            return Ok(Self::Run);
        }
        let entries = std::fs::read_dir(path).map_err(|error| Error::io(path, "read", error))?;
        if entries.flatten().any(|entry| ending(&entry.path(), "inter")) {
            return Ok(Self::Data);
        }
        let problem =
            format!("neither a run (no {}) nor a data folder (no .inter file)", run::CONFIG);
        Err(Error::run_file(path, problem))
    }
}

/// What is to be inspected.
#[derive(Debug)]
pub struct InspectRequest<'a> {
    /// Where it lies.
    pub path: &'a Path,
    /// What it is.
    pub kind: Kind,
    /// Whether JSON is wanted.
    pub json: bool,
}

pub fn run(arguments: &InspectArguments) -> anyhow::Result<()> {
    let kind = Kind::of(&arguments.path)?;
    inspect(&InspectRequest { path: &arguments.path, kind, json: arguments.json })
}

/// Reads what is there and prints it.
fn inspect(request: &InspectRequest) -> anyhow::Result<()> {
    anyhow::bail!(
        "{}: inspecting a {:?}{} is not available yet",
        request.path.display(),
        request.kind,
        if request.json { " as JSON" } else { "" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_told_by_what_lies_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let touch = |name: &str| {
            std::fs::write(path.join(name), "").unwrap();
            path.join(name)
        };
        assert!(Kind::of(path).unwrap_err().to_string().contains("neither a run"));
        assert_eq!(Kind::of(&touch("a.npy")).unwrap(), Kind::Npy);
        assert_eq!(Kind::of(&touch("a.safetensors")).unwrap(), Kind::Safetensors);
        assert!(Kind::of(&touch("a.txt")).unwrap_err().is_input());
        touch("a.inter");
        assert_eq!(Kind::of(path).unwrap(), Kind::Data);
        touch("config.toml");
        assert_eq!(Kind::of(path).unwrap(), Kind::Run);
        assert!(Kind::of(Path::new("does/not/exist")).unwrap_err().is_input());
    }
}
