//! Messages for callers of the library: errors and warnings name settings by the program's flags,
//! and a caller in code knows them by other names.

/// Where a caller is at home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// A Rust program.
    Rust,
    /// A C program.
    C,
    /// A Python program.
    Python,
}

impl Caller {
    /// A message with settings named as this caller knows them: `batch_size`, a field of
    /// [`TrainConfig`](crate::TrainConfig), a key of settings files and a parameter in Python, instead
    /// of `--batch-size`.
    ///
    /// The place that a message begins with, up to a colon, stays as it is unless it is a flag, and so
    /// does a command line of the program between backquotes.
    pub fn words(self, message: &str) -> String {
        let start = match message.split_once(": ") {
            Some((place, _)) if !message.starts_with("--") => place.len(),
            _ => 0,
        };
        let (place, rest) = message.split_at(start);
        let parts = rest.split('`').enumerate().map(|(index, part)| {
            let is_command = index % 2 == 1 && part.starts_with("bm3-engine ");
            if is_command { part.to_owned() } else { self.renamed(part) }
        });
        place.to_owned() + &parts.collect::<Vec<_>>().join("`")
    }

    /// A text with its flags renamed.
    fn renamed(self, text: &str) -> String {
        let text = match self {
            Self::Rust => text.replace("--device cpu", "--device DeviceChoice::Cpu"),
            Self::C | Self::Python => text.replace("--device cpu", "--device \"cpu\""),
        };
        let mut shown = String::with_capacity(text.len());
        let mut rest = &*text;
        while let Some(start) = rest.find("--") {
            let (before, flag) = (&rest[..start], &rest[start + 2..]);
            let end = flag
                .find(|character: char| character != '-' && !character.is_ascii_lowercase())
                .unwrap_or(flag.len());
            let begins = before.is_empty() || before.ends_with([' ', '(']);
            shown.push_str(before);
            match &flag[..end] {
                flag if begins && flag.starts_with(|first: char| first.is_ascii_lowercase()) => {
                    shown.push_str(&self.name(flag));
                }
                other => {
                    shown.push_str("--");
                    shown.push_str(other);
                }
            }
            rest = &flag[end..];
        }
        shown + rest
    }

    /// The name of a flag.
    fn name(self, flag: &str) -> String {
        match (flag, self) {
            ("out", _) => "directory".to_owned(),
            ("feature", _) => "features".to_owned(),
            ("init", Self::Rust | Self::Python) => "initial".to_owned(),
            ("resume", Self::C) => "BM3_RESUME and directory".to_owned(),
            ("resume", Self::Python) => "resume=True and directory".to_owned(),
            (flag, _) => flag.replace('-', "_"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_the_names_of_the_caller() {
        for (message, expected) in [
            ("--batch-size: 0 found", "batch_size: 0 found"),
            ("f: auto (--freeze-features keeps it)", "f: auto (freeze_features keeps it)"),
            ("f: give another --out, or --resume a", "f: give another directory, or resume a"),
            ("f: a--b, -- and --, --Data and --1", "f: a--b, -- and --, --Data and --1"),
            ("f: no --feature x=F; --init", "f: no features x=F; initial"),
            ("device 0: use --device cpu", "device 0: use device DeviceChoice::Cpu"),
            // Commands and paths stay.
            (
                "f: `bm3-engine train --out D` and `--out`",
                "f: `bm3-engine train --out D` and `directory`",
            ),
            ("/my --out data/x`y: add --split 1,0,0", "/my --out data/x`y: add split 1,0,0"),
        ] {
            assert_eq!(Caller::Rust.words(message), expected);
        }
        let message = "d: --resume a, --init or --device cpu";
        let expected = "d: BM3_RESUME and directory a, init or device \"cpu\"";
        assert_eq!(Caller::C.words(message), expected);
        let expected = "d: resume=True and directory a, initial or device \"cpu\"";
        assert_eq!(Caller::Python.words(message), expected);
    }
}
