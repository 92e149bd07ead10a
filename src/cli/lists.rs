//! Item lists and their output formats: CSV, JSON lines, `.npy`.

use std::io::Write;
use std::path::{Path, PathBuf};

use bm3_engine::backend::TopK;
use bm3_engine::config::validate_top_k;
use bm3_engine::data::{NpyElement, NpyWriter};
use bm3_engine::model::Model;
use bm3_engine::{Error, Result, files};
use serde_json::Value;

use super::model::ModelRequest;
use super::names::{ExternalIds, Kind, Names};
use super::output::STANDARD_OUTPUT;

/// The flags of every command that writes lists.
#[derive(Debug, clap::Args)]
pub struct ListArguments {
    /// Items per list: 1 to 1024
    #[arg(long, value_name = "K", default_value_t = 20, allow_negative_numbers = true)]
    pub top_k: usize,
    /// Write to this file: .csv, .jsonl or .npy [default: CSV on standard output]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Write over a file that is no list, and remove scores that belong to replaced lists
    #[arg(long)]
    pub overwrite: bool,
    /// Write the scores too
    #[arg(long)]
    pub scores: bool,
    /// Score items without training interactions from their features, not from embeddings that no
    /// interaction trained
    #[arg(long)]
    pub cold_items: bool,
    /// Leave out ids that the model does not know, and say how many, instead of stopping; not for
    /// the rows of a .npy file, which have no ids
    #[arg(long)]
    pub skip_unknown: bool,
    /// Whether users and items go by the ids of the original interactions, where the run or the
    /// data folder keeps them; a .npy file always holds the numbers of the .inter file
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto")]
    pub external_ids: ExternalIds,
}

/// The format of the lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListFormat {
    /// One line per list and rank.
    Csv,
    /// One JSON object per list.
    Jsonl,
    /// One row per list.
    Npy,
}

impl ListFormat {
    /// The format that a file's extension names.
    fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("csv") => Ok(Self::Csv),
            Some("jsonl") => Ok(Self::Jsonl),
            Some("npy") => Ok(Self::Npy),
            _ => {
                let problem = format!(
                    "`{}` found, a file that ends in .csv, .jsonl or .npy expected",
                    path.display()
                );
                Err(Error::setting("--out", problem))
            }
        }
    }
}

/// Whose lists to write, how long they are and where they go.
#[derive(Debug, PartialEq)]
pub struct ListRequest {
    /// Whose lists they are: items for users, or similar items for items.
    pub kind: Kind,
    /// Items per list.
    pub top_k: usize,
    /// The file; `None` for standard output.
    pub out: Option<PathBuf>,
    /// Whether a file that is no list may be written over.
    pub overwrite: bool,
    /// The file's format.
    pub format: ListFormat,
    /// Whether to write the scores too.
    pub scores: bool,
    /// Whether to score items without interactions from their features.
    pub cold_items: bool,
    /// Whether ids that the model does not know are left out.
    pub skip_unknown: bool,
    /// Which ids users and items go by.
    pub external_ids: ExternalIds,
}

/// Lists made at a time, so that memory does not grow with their number.
const LISTS_AT_A_TIME: usize = 8192;

/// Makes the lists of some users or items.
pub type Answer<'a> = dyn FnMut(&[u32]) -> Result<TopK> + 'a;

impl ListArguments {
    /// The request for lists of this kind.
    ///
    /// # Errors
    /// [`Error::Setting`] for a length out of range or a file of unknown format.
    pub fn request(&self, kind: Kind) -> Result<ListRequest> {
        validate_top_k(&[self.top_k])?;
        Ok(ListRequest {
            kind,
            format: self.out.as_deref().map_or(Ok(ListFormat::Csv), ListFormat::of)?,
            top_k: self.top_k,
            out: self.out.clone(),
            overwrite: self.overwrite,
            scores: self.scores,
            cold_items: self.cold_items,
            skip_unknown: self.skip_unknown,
            external_ids: self.external_ids,
        })
    }
}

impl ListRequest {
    /// Refuses to leave out some of those whose lists are rows without ids, which would then be
    /// taken for others'.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn check_rows(&self, are_named: bool) -> Result<()> {
        if self.format == ListFormat::Npy && self.skip_unknown && are_named {
            let problem = "the rows of a .npy file are told apart by their order alone; write .csv or \
                           .jsonl, or give ids that are all known";
            return Err(Error::setting("--skip-unknown", problem));
        }
        Ok(())
    }

    /// The names by which users and items are asked for. They do not depend on the file's format: a
    /// file that holds only numbers can still be asked for by name.
    ///
    /// # Errors
    /// As [`Names::wanted`].
    pub fn names(&self, request: &ModelRequest, model: &Model) -> Result<Names> {
        let names = Names::wanted(self.external_ids, request, model)?;
        Ok(names.skipping_unknown(self.skip_unknown))
    }

    /// Writes the lists of `whose`.
    ///
    /// # Errors
    /// The errors of `answer`; [`Error::Io`] when the lists cannot be written.
    pub fn write(&self, whose: &[u32], names: &Names, answer: &mut Answer<'_>) -> Result<()> {
        let Some(path) = &self.out else {
            let mut stdout = std::io::stdout().lock();
            return self.text(&mut stdout, Path::new(STANDARD_OUTPUT), whose, names, answer);
        };
        self.check_replaced(path)?;
        if self.format == ListFormat::Npy {
            return self.npy(path, whose, answer);
        }
        files::write_atomic(path, |writer| self.text(writer, path, whose, names, answer))
    }

    /// Refuses to write over a file that holds something else than lists of its form.
    fn check_replaced(&self, path: &Path) -> Result<()> {
        let beginning = match self.format {
            ListFormat::Csv => format!("{},rank,{}", self.kind.word(), self.found()).into_bytes(),
            ListFormat::Jsonl => format!("{{\"{}\":", self.kind.word()).into_bytes(),
            ListFormat::Npy => npy_header(NpyElement::I64),
        };
        if self.overwrite || is_absent_or_begins(path, &beginning)? {
            return Ok(());
        }
        Err(Self::refused(path))
    }

    /// The same of the scores beside a list: any numbers may be scores, but not beside no list.
    fn check_scores_replaced(&self, list: &Path, scores: &Path) -> Result<()> {
        let replaces = list.is_file() && is_absent_or_begins(scores, &npy_header(NpyElement::F32))?;
        if self.overwrite || replaces || !scores.exists() {
            return Ok(());
        }
        Err(Self::refused(scores))
    }

    fn refused(path: &Path) -> Error {
        let problem = format!(
            "{} holds something else; add --overwrite to write over it, or give another file",
            path.display()
        );
        Error::setting("--out", problem)
    }

    fn text(
        &self,
        writer: &mut dyn Write,
        path: &Path,
        whose: &[u32],
        names: &Names,
        answer: &mut Answer<'_>,
    ) -> Result<()> {
        match self.format {
            ListFormat::Csv => self.csv(writer, path, whose, names, answer),
            _ => self.json(writer, path, whose, names, answer),
        }
    }

    /// The CSV column of the listed items.
    fn found(&self) -> &'static str {
        match self.kind {
            Kind::User => "item",
            Kind::Item => "similar",
        }
    }

    fn csv(
        &self,
        writer: &mut dyn Write,
        path: &Path,
        whose: &[u32],
        names: &Names,
        answer: &mut Answer<'_>,
    ) -> Result<()> {
        let wrong = |error: std::io::Error| Error::io(path, "write", error);
        // Keep the system's own error, so that a closed pipe is recognised.
        let csv_wrong = |error: csv::Error| match error.into_kind() {
            csv::ErrorKind::Io(source) => wrong(source),
            other => wrong(std::io::Error::other(format!("{other:?}"))),
        };
        let mut table = csv::Writer::from_writer(writer);
        let columns = [self.kind.word(), "rank", self.found(), "score"];
        let count = if self.scores { 4 } else { 3 };
        table.write_record(&columns[..count]).map_err(csv_wrong)?;
        for whose in whose.chunks(LISTS_AT_A_TIME) {
            let top = answer(whose)?;
            for (position, &of) in whose.iter().enumerate() {
                let scores = &top.scores[position * top.k..];
                for (rank, (&item, score)) in top.list(position).iter().zip(scores).enumerate() {
                    let fields = [
                        names.name(self.kind, of),
                        (rank + 1).to_string(),
                        names.name(Kind::Item, item),
                        score.to_string(),
                    ];
                    table.write_record(&fields[..count]).map_err(csv_wrong)?;
                }
            }
        }
        table.flush().map_err(wrong)
    }

    fn json(
        &self,
        writer: &mut dyn Write,
        path: &Path,
        whose: &[u32],
        names: &Names,
        answer: &mut Answer<'_>,
    ) -> Result<()> {
        let wrong = |error: std::io::Error| Error::io(path, "write", error);
        let found = match self.kind {
            Kind::User => "items",
            Kind::Item => "similar",
        };
        let mut writer = std::io::BufWriter::new(writer);
        for whose in whose.chunks(LISTS_AT_A_TIME) {
            let top = answer(whose)?;
            for (position, &of) in whose.iter().enumerate() {
                let list = top.list(position);
                let mut line = serde_json::Map::new();
                line.insert(self.kind.word().into(), names.value(self.kind, of));
                let items = list.iter().map(|&item| names.value(Kind::Item, item)).collect();
                line.insert(found.into(), Value::Array(items));
                if self.scores {
                    let scores = &top.scores[position * top.k..][..list.len()];
                    line.insert("scores".into(), scores.into());
                }
                writeln!(writer, "{}", Value::Object(line)).map_err(wrong)?;
            }
        }
        writer.flush().map_err(wrong)
    }

    /// Writes items as a lists × K table of 64-bit integers, padded with -1, and scores as an f32
    /// table in a second file, padded with NaN.
    fn npy(&self, path: &Path, whose: &[u32], answer: &mut Answer<'_>) -> Result<()> {
        let (rows, k) = (whose.len(), self.top_k);
        let wrong = |error| Error::io(path, "write", error);
        let mut write = |items: &mut dyn Write, scores: &mut dyn FnMut(&TopK) -> Result<()>| {
            let mut npy = NpyWriter::new(items, NpyElement::I64, rows, k).map_err(wrong)?;
            for whose in whose.chunks(LISTS_AT_A_TIME) {
                let top = answer(whose)?;
                let number = |&item: &u32| if item == TopK::NO_ITEM { -1 } else { i64::from(item) };
                let items: Vec<i64> = top.items.iter().map(number).collect();
                npy.write_i64(&items).map_err(wrong)?;
                scores(&top)?;
            }
            npy.finish().and_then(|items| items.flush()).map_err(wrong)
        };
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let scores_path = path.with_file_name(format!("{stem}_scores.npy"));
        if !self.scores {
            // They would pass for those of the new lists.
            let stale = scores_path.exists();
            if stale && !self.overwrite {
                let problem = format!(
                    "{} has the scores of other lists; add --scores to replace them, --overwrite to \
                     remove them, or give another file",
                    scores_path.display()
                );
                return Err(Error::setting("--out", problem));
            }
            if stale {
                files::remove(&scores_path)?;
            }
            return files::write_atomic(path, |items| write(items, &mut |_| Ok(())));
        }
        self.check_scores_replaced(path, &scores_path)?;
        let wrong = |error| Error::io(&scores_path, "write", error);
        // Both files are written before either gets its name.
        files::write_atomic(path, |items| {
            files::write_atomic(&scores_path, |scores| {
                let mut npy = NpyWriter::new(scores, NpyElement::F32, rows, k).map_err(wrong)?;
                write(items, &mut |top| {
                    let scores: Vec<f32> = top.scores_or(f32::NAN).collect();
                    npy.write_f32(&scores).map_err(wrong)
                })?;
                npy.finish().map(|_| ()).map_err(wrong)
            })
        })
    }
}

/// What `.npy` files begin with.
const NPY: &[u8] = b"\x93NUMPY";

/// How a two-dimensional array begins that [`NpyWriter`] wrote; the zeros are the header's length.
fn npy_header(element: NpyElement) -> Vec<u8> {
    let mut file = Vec::new();
    // Writing to memory does not fail.
    let _ = NpyWriter::new(&mut file, element, 0, 0);
    let shape = file.iter().position(|&byte| byte == b'(').unwrap_or(file.len());
    file.truncate(shape);
    file[8..10].fill(0);
    file
}

/// Whether there is no such file, an empty one, one that begins so, or no regular one.
fn is_absent_or_begins(path: &Path, beginning: &[u8]) -> Result<bool> {
    // Reading a device or a pipe would take something from it.
    if path.exists() && !path.is_file() {
        return Ok(true);
    }
    let Some(mut found) = files::beginning(path, beginning.len())? else { return Ok(true) };
    if beginning.starts_with(NPY) && found.len() == beginning.len() {
        // The length of the header.
        found[8..10].fill(0);
    }
    Ok(found.is_empty() || found == beginning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_of_the_file_decides_its_form() {
        assert_eq!(ListFormat::of(Path::new("a.csv")).unwrap(), ListFormat::Csv);
        assert_eq!(ListFormat::of(Path::new("a.b.jsonl")).unwrap(), ListFormat::Jsonl);
        assert_eq!(ListFormat::of(Path::new("a.npy")).unwrap(), ListFormat::Npy);
        for path in ["a", "a.txt", "csv"] {
            let error = ListFormat::of(Path::new(path)).unwrap_err().to_string();
            assert!(error.starts_with("--out: `"), "{error}");
        }
    }
}
