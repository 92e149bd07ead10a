//! A table of features in a safetensors file.

use std::path::Path;

use safetensors::tensor::TensorInfo;
use safetensors::{Dtype, SafeTensors};

use super::error::{DataError, excerpt};
use super::features::{FeatureType, Form};

/// The most tensors named in a message.
const NAMED: usize = 8;

/// Finds the tensor `wanted`, or the only one of two dimensions, in a whole file.
///
/// # Errors
/// The problem of the file; no such tensor, several, or one of the wrong kind.
pub fn find(file: &[u8], path: &Path, wanted: Option<&str>) -> Result<Form, DataError> {
    let (header, metadata) = SafeTensors::read_metadata(file).map_err(|error| {
        DataError::Safetensors { path: path.to_owned(), problem: error.to_string() }
    })?;
    let names = metadata.offset_keys();
    let tables: Vec<&String> = names
        .iter()
        .filter(|name| metadata.info(name).is_some_and(|info| info.shape.len() == 2))
        .collect();
    let name = match (wanted, tables.as_slice()) {
        (Some(wanted), _) => wanted,
        (None, [only]) => only.as_str(),
        (None, _) => {
            let path = path.to_owned();
            return Err(if tables.is_empty() {
                DataError::NoTable { path, found: list(names.iter()) }
            } else {
                DataError::SeveralTables { path, found: list(tables.into_iter()) }
            });
        }
    };
    let Some(TensorInfo { dtype, shape, data_offsets }) = metadata.info(name) else {
        let (path, wanted) = (path.to_owned(), excerpt(name.as_bytes()));
        return Err(DataError::NoTensor { path, wanted, found: list(names.iter()) });
    };
    let wrong = |found: String, expected: &'static str| DataError::Tensor {
        path: path.to_owned(),
        name: excerpt(name.as_bytes()),
        found,
        expected,
    };
    let dtype = match dtype {
        Dtype::F16 => FeatureType::F16,
        Dtype::BF16 => FeatureType::Bf16,
        Dtype::F32 => FeatureType::F32,
        Dtype::F64 => FeatureType::F64,
        other => return Err(wrong(format!("type {other:?}"), "F16, BF16, F32 or F64")),
    };
    let &[rows, columns] = shape.as_slice() else {
        return Err(wrong(format!("shape {shape:?}"), "two dimensions, items × width"));
    };
    // The other dimension of an empty table could be anything.
    if rows == 0 || columns == 0 {
        return Err(wrong(format!("shape {shape:?}"), "one row and one column at least"));
    }
    let start = 8 + header + data_offsets.0;
    Ok(Form { start, rows, columns, dtype, big_endian: false, fortran: false })
}

fn list<'a>(names: impl ExactSizeIterator<Item = &'a String>) -> String {
    let count = names.len();
    let mut shown: Vec<String> = names.take(NAMED).map(|name| excerpt(name.as_bytes())).collect();
    if shown.is_empty() {
        return "none".to_owned();
    }
    if count > NAMED {
        shown.push(format!("and {} more", count - NAMED));
    }
    shown.join(", ")
}
