//! Writing `.npy` files as streams.

use std::io::{self, Write};

use half::f16;

/// The type of the elements written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NpyElement {
    /// Half precision.
    F16,
    /// Single precision.
    F32,
    /// 64-bit integers.
    I64,
}

impl NpyElement {
    fn descr(self) -> &'static str {
        match self {
            Self::F16 => "<f2",
            Self::F32 => "<f4",
            Self::I64 => "<i8",
        }
    }
}

/// Writes an array of one or two dimensions in C order, format version 1.0, part by part.
#[derive(Debug)]
pub struct NpyWriter<W> {
    writer: W,
    element: NpyElement,
    missing: u64,
}

impl<W: Write> NpyWriter<W> {
    /// Writes the header of a rows × columns array.
    ///
    /// # Errors
    /// The errors of `writer`.
    pub fn new(writer: W, element: NpyElement, rows: usize, columns: usize) -> io::Result<Self> {
        let shape = format!("({rows}, {columns})");
        Self::shaped(writer, element, &shape, rows as u64 * columns as u64)
    }

    /// Writes the header of an array of one dimension.
    ///
    /// # Errors
    /// The errors of `writer`.
    pub fn vector(writer: W, element: NpyElement, length: usize) -> io::Result<Self> {
        Self::shaped(writer, element, &format!("({length},)"), length as u64)
    }

    fn shaped(mut writer: W, element: NpyElement, shape: &str, missing: u64) -> io::Result<Self> {
        let dictionary = format!(
            "{{'descr': '{}', 'fortran_order': False, 'shape': {shape}, }}",
            element.descr()
        );
        // Magic, version and length take 10 bytes, the line end 1. Elements start at a multiple of
        // 64, so that a map of the file is aligned.
        let length = (10 + dictionary.len() + 1).next_multiple_of(64) - 10;
        writer.write_all(b"\x93NUMPY\x01\x00")?;
        // Two 20-digit numbers fit easily.
        writer.write_all(&(length as u16).to_le_bytes())?;
        writeln!(writer, "{dictionary:width$}", width = length - 1)?;
        Ok(Self { writer, element, missing })
    }

    /// Writes floating-point elements, in the array's type.
    ///
    /// # Errors
    /// The errors of the writer; `InvalidInput` for an array of integers, or a full one.
    pub fn write_f32(&mut self, values: &[f32]) -> io::Result<()> {
        self.take(values.len())?;
        match self.element {
            NpyElement::F32 => {
                values.iter().try_for_each(|x| self.writer.write_all(&x.to_le_bytes()))
            }
            NpyElement::F16 => values
                .iter()
                .try_for_each(|&x| self.writer.write_all(&f16::from_f32(x).to_le_bytes())),
            NpyElement::I64 => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Writes integer elements.
    ///
    /// # Errors
    /// The errors of the writer; `InvalidInput` for an array of other numbers, or a full one.
    pub fn write_i64(&mut self, values: &[i64]) -> io::Result<()> {
        self.take(values.len())?;
        match self.element {
            NpyElement::I64 => {
                values.iter().try_for_each(|x| self.writer.write_all(&x.to_le_bytes()))
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn take(&mut self, count: usize) -> io::Result<()> {
        self.missing = self.missing.checked_sub(count as u64).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(())
    }

    /// Ends the array.
    ///
    /// # Errors
    /// `InvalidInput` if elements are missing.
    pub fn finish(self) -> io::Result<W> {
        if self.missing > 0 {
            let problem = format!("{} elements of the array are missing", self.missing);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        Ok(self.writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::FeatureMatrix;

    #[test]
    fn what_is_written_is_read_back() {
        for (element, exact) in [(NpyElement::F32, 0.1f32), (NpyElement::F16, 0.125)] {
            let mut bytes = Vec::new();
            let mut writer = NpyWriter::new(&mut bytes, element, 2, 3).unwrap();
            writer.write_f32(&[1.0, 2.0]).unwrap();
            writer.write_f32(&[3.0, -4.0, exact, 0.0]).unwrap();
            writer.finish().unwrap();
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), bytes).unwrap();
            let matrix = FeatureMatrix::open(file.path()).unwrap();
            assert_eq!((matrix.rows(), matrix.columns()), (2, 3));
            let mut row = [0.0f32; 3];
            matrix.copy_row(1, 0..3, &mut row);
            assert_eq!(row, [-4.0, exact, 0.0]);
        }
    }

    #[test]
    fn an_array_of_another_size_is_an_error() {
        let mut writer = NpyWriter::new(Vec::new(), NpyElement::I64, 1, 2).unwrap();
        assert!(writer.write_f32(&[1.0]).is_err());
        let mut writer = NpyWriter::new(Vec::new(), NpyElement::I64, 1, 2).unwrap();
        writer.write_i64(&[1]).unwrap();
        assert!(writer.write_i64(&[1, 2]).is_err());
        assert!(writer.finish().is_err());
    }
}
