//! Raw interactions in columns, Parquet and Arrow IPC, if built with the feature `parquet`.

#[cfg(feature = "parquet")]
mod read;

use std::fmt;

#[cfg(feature = "parquet")]
pub(super) use read::read;

#[cfg(not(feature = "parquet"))]
use crate::Result;

/// The format of a file that is not text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnarFormat {
    /// Apache Parquet.
    Parquet,
    /// Arrow IPC as a file: `.arrow`, `.feather`.
    ArrowFile,
    /// Arrow IPC as a stream: `.arrows`.
    ArrowStream,
}

impl fmt::Display for ColumnarFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Parquet => "Parquet",
            Self::ArrowFile | Self::ArrowStream => "Arrow IPC",
        })
    }
}

impl ColumnarFormat {
    /// The format that a file's first bytes show; `None` if it may be text.
    pub(super) fn of(first: &[u8]) -> Option<Self> {
        match first {
            [b'P', b'A', b'R', b'1', ..] => Some(Self::Parquet),
            [b'A', b'R', b'R', b'O', b'W', b'1', ..] => Some(Self::ArrowFile),
            // The start of a stream's message; these bytes do not occur in UTF-8.
            [0xff, 0xff, 0xff, 0xff, ..] => Some(Self::ArrowStream),
            _ => None,
        }
    }
}

/// Without the feature, only says how to get it.
#[cfg(not(feature = "parquet"))]
pub(super) fn read(
    format: ColumnarFormat,
    options: &super::TableOptions,
    _: super::table::Needs,
) -> Result<super::table::Table> {
    Err(super::PrepareError::NotBuiltFor { path: options.path.clone(), format }.into())
}
