//! The user and item rows whose products are scores, in files that other programs load.

use std::io::BufWriter;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::checkpoint::{self, Tensor};
use crate::data::{IdMaps, NpyElement, NpyWriter};
use crate::recommender::Recommender;
use crate::{Error, Result, files};

/// The files that an export writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportForm {
    /// user_embeddings.npy and item_embeddings.npy
    Npy,
    /// embeddings.safetensors with the tensors user_embeddings and item_embeddings
    Safetensors,
    /// users/ and items/, in each id.npy and vector.npy: what faiss and Milvus take
    Vectors,
    /// users.csv and items.csv, in each line an id and [x,y,…]: what pgvector takes
    Csv,
}

/// One kind of exported rows: users or items.
struct Table<'a> {
    /// `user` or `item`.
    kind: &'static str,
    /// n × d.
    rows: &'a [f32],
    /// Original ids.
    ids: Option<&'a [String]>,
}

impl<'a> Table<'a> {
    fn tensor(&self, d: usize) -> Tensor<'a, f32> {
        let name = format!("{}_embeddings", self.kind);
        Tensor { name, shape: vec![self.rows.len() / d, d], values: self.rows }
    }
}

/// Writes p(H_u) (U × d) and the items' rows (I × d) into a folder; the score of equation (10) is
/// the product of a user's row and an item's row. CSV files use the ids of `maps`, if given. The
/// other forms use numbers, and the maps are written beside them. Returns the files.
///
/// # Errors
/// [`Error::Setting`] for a file that exists, unless `overwrite` is set, for maps in the folder that
/// would give the numbers ids of something else, and for maps with fewer users or items than the
/// recommender; [`Error::Io`].
pub fn export(
    recommender: &Recommender,
    form: ExportForm,
    directory: &Path,
    maps: Option<&IdMaps>,
    overwrite: bool,
) -> Result<Vec<PathBuf>> {
    let tables = [
        Table { kind: "user", rows: recommender.user_rows(), ids: maps.map(|maps| &*maps.users) },
        Table { kind: "item", rows: recommender.item_rows(), ids: maps.map(|maps| &*maps.items) },
    ];
    let d = recommender.width();
    for Table { kind, rows, ids } in &tables {
        let count = rows.len() / d;
        if let Some(ids) = ids.filter(|ids| ids.len() < count) {
            let problem = format!("{} names of {kind}s found, {count} expected", ids.len());
            return Err(Error::setting("ids", problem));
        }
    }
    let mut paths = planned(form, directory);
    if form != ExportForm::Csv {
        let of_ids = IdMaps::paths(directory);
        match maps {
            Some(_) => paths.extend(of_ids),
            None => refuse_other_ids(&of_ids)?,
        }
    }
    if !overwrite {
        files::refuse_existing(&paths)?;
    }
    for path in &paths {
        // Every planned path lies in the folder or a subfolder.
        let folder = path.parent().unwrap_or(directory);
        std::fs::create_dir_all(folder).map_err(|error| Error::io(folder, "create", error))?;
    }
    match form {
        ExportForm::Safetensors => {
            let record = recommender.model().record();
            checkpoint::write(&paths[0], record, &tables.map(|table| table.tensor(d)), &[])?;
        }
        ExportForm::Npy => {
            for (path, table) in paths.iter().zip(&tables) {
                write_rows(path, table.rows, d)?;
            }
        }
        ExportForm::Vectors => {
            for (pair, table) in paths.chunks_exact(2).zip(&tables) {
                write_numbers(&pair[0], table.rows.len() / d)?;
                write_rows(&pair[1], table.rows, d)?;
            }
        }
        ExportForm::Csv => {
            for (path, table) in paths.iter().zip(&tables) {
                write_csv(path, table, d)?;
            }
        }
    }
    if let Some(maps) = maps.filter(|_| form != ExportForm::Csv) {
        maps.write(directory)?;
    }
    Ok(paths)
}

/// Refuses a folder with maps that say what rows are called, for rows that they are not of. They may
/// be those of a run or a data set, so they are never removed.
fn refuse_other_ids(paths: &[PathBuf]) -> Result<()> {
    let Some(found) = paths.iter().find(|path| path.exists()) else { return Ok(()) };
    let problem = format!(
        "{} would give these numbers the ids of something else; give another folder",
        found.display()
    );
    Err(Error::setting("--out", problem))
}

/// The files of a form: the users', then the items'.
fn planned(form: ExportForm, directory: &Path) -> Vec<PathBuf> {
    let names: &[&str] = match form {
        ExportForm::Npy => &["user_embeddings.npy", "item_embeddings.npy"],
        ExportForm::Safetensors => &["embeddings.safetensors"],
        ExportForm::Vectors => {
            &["users/id.npy", "users/vector.npy", "items/id.npy", "items/vector.npy"]
        }
        ExportForm::Csv => &["users.csv", "items.csv"],
    };
    names.iter().map(|name| directory.join(name)).collect()
}

fn write_rows(path: &Path, rows: &[f32], d: usize) -> Result<()> {
    files::write_atomic(path, |writer| {
        let wrong = |error| Error::io(path, "write", error);
        let mut npy = NpyWriter::new(writer, NpyElement::F32, rows.len() / d, d).map_err(wrong)?;
        npy.write_f32(rows).map_err(wrong)?;
        npy.finish().map(|_| ()).map_err(wrong)
    })
}

/// 0, 1, 2, …
fn write_numbers(path: &Path, count: usize) -> Result<()> {
    files::write_atomic(path, |writer| {
        let wrong = |error| Error::io(path, "write", error);
        let mut npy = NpyWriter::vector(writer, NpyElement::I64, count).map_err(wrong)?;
        let numbers: Vec<i64> = (0..count as i64).collect();
        npy.write_i64(&numbers).map_err(wrong)?;
        npy.finish().map(|_| ()).map_err(wrong)
    })
}

fn write_csv(path: &Path, table: &Table<'_>, d: usize) -> Result<()> {
    files::write_atomic(path, |writer| {
        let wrong = |error: csv::Error| Error::io(path, "write", error.into());
        let mut csv = csv::Writer::from_writer(BufWriter::new(writer));
        csv.write_record(["id", "embedding"]).map_err(wrong)?;
        for (number, row) in table.rows.chunks_exact(d).enumerate() {
            let id = match table.ids {
                Some(ids) => ids[number].clone(),
                None => number.to_string(),
            };
            // The shortest digits that restore the number.
            let numbers: Vec<String> = row.iter().map(f32::to_string).collect();
            csv.write_record([id, format!("[{}]", numbers.join(","))]).map_err(wrong)?;
        }
        csv.flush().map_err(|error| Error::io(path, "write", error))
    })
}
