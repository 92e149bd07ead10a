//! Reads Parquet and Arrow IPC tables, a batch of rows at a time.

use std::fmt::{Display, Write};
use std::fs::File;
use std::io::BufReader;
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Date64Type, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{ArrowError, DataType, SchemaRef, TimeUnit};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::ColumnarFormat;
use crate::data::excerpt;
use crate::prepare::table::{A_SPLIT, Columns, Ids, Needs, Table, has_split, split_of};
use crate::prepare::{Interaction, PrepareError, TableOptions, time};
use crate::{Error, Result};

/// Rows read at a time.
const ROWS: usize = 1 << 16;

/// The types that ids may have.
const AN_ID: &str = "text or whole numbers";
/// The types that ratings may have, and those of times.
const A_NUMBER: &str = "numbers, dates or times";
const TIMES: &str = "numbers, dates, times or text";

type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>>;

/// Reads only the columns that are wanted.
///
/// # Errors
/// For a truncated or corrupt file, a column that is missing or of an unsuitable type, and the
/// first row without a value that it needs.
pub fn read(format: ColumnarFormat, options: &TableOptions, needs: Needs) -> Result<Table> {
    // Apache's readers trust some of the offsets in a file, and panic if they are wrong. Whatever a
    // panic leaves half done is dropped with it.
    catch_unwind(AssertUnwindSafe(|| read_columns(format, options, needs))).unwrap_or_else(
        |panic| {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or(panic.downcast_ref::<&str>().copied());
            Err(broken(format, options, &message.unwrap_or("its reader gave up")))
        },
    )
}

fn read_columns(format: ColumnarFormat, options: &TableOptions, needs: Needs) -> Result<Table> {
    let (schema, _) = open(format, options, None)?;
    let names: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
    let columns = Columns::find(options, &names, needs, false)?;
    let optional = [columns.rating, columns.time, columns.split];
    let mut wanted: Vec<usize> =
        [columns.user, columns.item].into_iter().chain(optional.into_iter().flatten()).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let (_, batches) = open(format, options, Some(&wanted))?;

    let mut reader = Reader {
        options,
        names: &names,
        users: Ids::default(),
        items: Ids::default(),
        rows: Vec::new(),
    };
    for batch in batches {
        let batch = batch.map_err(|error| broken(format, options, &error))?;
        let column = |index: usize| {
            let place = wanted.iter().position(|&other| other == index);
            let array = place.and_then(|place| batch.columns().get(place));
            // The readers keep the columns in the order of the file, and `wanted` is sorted.
            array.ok_or_else(|| broken(format, options, &"a batch lacks a column"))
        };
        let optional = |index: Option<usize>| {
            index.map(|index| Ok::<_, Error>((index, column(index)?))).transpose()
        };
        reader.add(
            (columns.user, column(columns.user)?),
            (columns.item, column(columns.item)?),
            optional(columns.rating)?,
            optional(columns.time)?,
            optional(columns.split)?,
            needs,
        )?;
    }
    let Reader { users, items, rows, .. } = reader;
    let (has_times, has_split) = (columns.time.is_some(), has_split(&names));
    Ok(Table { users: users.names, items: items.names, rows, has_times, has_split })
}

/// The schema of the whole file, and the batches of its `wanted` columns.
fn open(
    format: ColumnarFormat,
    options: &TableOptions,
    wanted: Option<&[usize]>,
) -> Result<(SchemaRef, Batches)> {
    let wrong = |error: &dyn Display| broken(format, options, error);
    let path = &options.path;
    let file = File::open(path).map_err(|error| Error::io(path, "read", error))?;
    let projection = wanted.map(<[usize]>::to_vec);
    Ok(match format {
        ColumnarFormat::Parquet => {
            let builder =
                ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| wrong(&error))?;
            let schema = builder.schema().clone();
            let mask = match projection {
                Some(wanted) => ProjectionMask::roots(builder.parquet_schema(), wanted),
                None => ProjectionMask::all(),
            };
            let builder = builder.with_batch_size(ROWS).with_projection(mask);
            (schema, Box::new(builder.build().map_err(|error| wrong(&error))?))
        }
        ColumnarFormat::ArrowFile => {
            let reader = FileReader::try_new_buffered(file, projection);
            let reader = reader.map_err(|error| wrong(&error))?;
            (reader.schema(), Box::new(reader))
        }
        ColumnarFormat::ArrowStream => {
            let reader = StreamReader::try_new(BufReader::new(file), projection);
            let reader = reader.map_err(|error| wrong(&error))?;
            (reader.schema(), Box::new(reader))
        }
    })
}

fn broken(format: ColumnarFormat, options: &TableOptions, problem: &dyn Display) -> Error {
    let problem = excerpt_of(problem);
    PrepareError::BrokenTable { path: options.path.clone(), format, problem }.into()
}

/// The first line of a reader's message.
fn excerpt_of(problem: &dyn Display) -> String {
    problem.to_string().lines().next().unwrap_or_default().chars().take(200).collect()
}

struct Reader<'a> {
    options: &'a TableOptions,
    names: &'a [String],
    users: Ids,
    items: Ids,
    rows: Vec<Interaction>,
}

/// A column's number and its values.
type Column<'a> = (usize, &'a ArrayRef);

impl Reader<'_> {
    fn add(
        &mut self,
        user: Column<'_>,
        item: Column<'_>,
        rating: Option<Column<'_>>,
        time: Option<Column<'_>>,
        split: Option<Column<'_>>,
        needs: Needs,
    ) -> Result<()> {
        let mut users = std::mem::take(&mut self.users);
        let mut items = std::mem::take(&mut self.items);
        let user_ids = self.ids(user, "user", &mut users)?;
        let item_ids = self.ids(item, "item", &mut items)?;
        let ratings = self.numbers(rating, "rating", needs.rating)?;
        let times = self.times(time, needs.every_time)?;
        let splits = split.map(|(column, array)| self.splits(column, array)).transpose()?;
        for (row, (user, item)) in user_ids.into_iter().zip(item_ids).enumerate() {
            let of = |numbers: &Option<Vec<Option<f64>>>| numbers.as_ref().and_then(|all| all[row]);
            let (rating, time) = (of(&ratings), of(&times));
            let split = splits.as_ref().map_or(0, |splits| splits[row]);
            self.rows.push(Interaction { user, item, rating, time, split });
        }
        (self.users, self.items) = (users, items);
        Ok(())
    }

    fn bad_cell(
        &self,
        row: usize,
        column: usize,
        what: &'static str,
        found: &str,
        expected: &'static str,
    ) -> Error {
        let (path, row) = (self.options.path.clone(), self.rows.len() + row);
        let column = excerpt(self.names[column].as_bytes());
        let found = found.to_owned();
        PrepareError::BadCell { path, row, column, what, found, expected }.into()
    }

    fn bad_type(
        &self,
        column: usize,
        what: &'static str,
        array: &dyn Array,
        expected: &'static str,
    ) -> Error {
        let path = self.options.path.clone();
        let column = excerpt(self.names[column].as_bytes());
        let found = excerpt_of(array.data_type());
        PrepareError::ColumnType { path, column, what, found, expected }.into()
    }

    /// The positions of a column's ids, which are trimmed as in text files.
    fn ids(
        &self,
        (column, array): Column<'_>,
        what: &'static str,
        ids: &mut Ids,
    ) -> Result<Vec<u32>> {
        let plain =
            without_dictionary(array).ok_or_else(|| self.bad_type(column, what, array, AN_ID))?;
        let mut positions = Vec::with_capacity(plain.len());
        let mut take = |id: Option<&str>| match id.map(str::trim) {
            Some(id) if !id.is_empty() => {
                positions.push(ids.position(id));
                Ok(())
            }
            Some(_) => Err(self.bad_cell(positions.len(), column, what, "empty", "an id")),
            None => Err(self.bad_cell(positions.len(), column, what, "null", "an id")),
        };
        match texts(&plain) {
            Some(mut texts) => texts.try_for_each(take)?,
            None => {
                let numbers = whole_numbers(&plain)
                    .ok_or_else(|| self.bad_type(column, what, array, AN_ID))?;
                let mut text = String::new();
                for number in numbers {
                    text.clear();
                    match number {
                        Some(number) => {
                            // Writing to a string cannot fail.
                            let _ = write!(text, "{number}");
                            take(Some(&text))?;
                        }
                        None => take(None)?,
                    }
                }
            }
        }
        Ok(positions)
    }

    /// The splits that a column names.
    fn splits(&self, column: usize, array: &ArrayRef) -> Result<Vec<u8>> {
        let mut names = Ids::default();
        let of_rows = self.ids((column, array), "split", &mut names)?;
        let splits: Vec<Option<u8>> = names.names.iter().map(|name| split_of(name)).collect();
        let split = |(row, name): (usize, u32)| {
            splits[name as usize].ok_or_else(|| {
                let found = format!("\"{}\"", excerpt(names.names[name as usize].as_bytes()));
                self.bad_cell(row, column, "split", &found, A_SPLIT)
            })
        };
        of_rows.into_iter().enumerate().map(split).collect()
    }

    /// A column's times, in numbers or in text; if `needed`, every row must have one.
    fn times(&self, time: Option<Column<'_>>, needed: bool) -> Result<Option<Vec<Option<f64>>>> {
        let Some((column, array)) = time else { return Ok(None) };
        let plain = without_dictionary(array);
        let Some(mut texts) = plain.as_ref().and_then(texts) else {
            return self.numbers(time, "time", needed);
        };
        let mut times = Vec::with_capacity(array.len());
        texts.try_for_each(|text| {
            let time = text.and_then(|text| time::parse(text.trim()));
            if needed && time.is_none() {
                let found = text
                    .map_or("null".to_owned(), |text| format!("\"{}\"", excerpt(text.as_bytes())));
                return Err(self.bad_cell(times.len(), column, "time", &found, time::A_TIME));
            }
            times.push(time);
            Ok::<_, Error>(())
        })?;
        Ok(Some(times))
    }

    /// A column's numbers; if `needed`, every row must have one.
    fn numbers(
        &self,
        column: Option<Column<'_>>,
        what: &'static str,
        needed: bool,
    ) -> Result<Option<Vec<Option<f64>>>> {
        let Some((column, array)) = column else { return Ok(None) };
        let Some(mut numbers) = numbers_of(array) else {
            return match needed {
                true => {
                    let expected = if what == "time" { TIMES } else { A_NUMBER };
                    Err(self.bad_type(column, what, array, expected))
                }
                // It was found by a usual name, and is not needed.
                false => Ok(None),
            };
        };
        for (row, number) in numbers.iter_mut().enumerate() {
            if number.is_some_and(f64::is_finite) {
                continue;
            }
            if needed {
                let found = number.map_or("null".to_owned(), |number| number.to_string());
                return Err(self.bad_cell(row, column, what, &found, "a number"));
            }
            *number = None;
        }
        Ok(Some(numbers))
    }
}

/// The texts of a plain column, if it is of text.
fn texts(plain: &ArrayRef) -> Option<Box<dyn Iterator<Item = Option<&str>> + '_>> {
    Some(match plain.data_type() {
        DataType::Utf8 => Box::new(plain.as_string::<i32>().iter()),
        DataType::LargeUtf8 => Box::new(plain.as_string::<i64>().iter()),
        DataType::Utf8View => Box::new(plain.as_string_view().iter()),
        _ => return None,
    })
}

/// The plain values of a dictionary column (a category of pandas).
fn without_dictionary(array: &ArrayRef) -> Option<ArrayRef> {
    match array.as_any_dictionary_opt() {
        None => Some(array.clone()),
        Some(dictionary) => {
            arrow_select::take::take(dictionary.values(), dictionary.keys(), None).ok()
        }
    }
}

fn whole_numbers(array: &ArrayRef) -> Option<Vec<Option<i128>>> {
    macro_rules! of {
        ($type:ty) => {
            array.as_primitive::<$type>().iter().map(|value| value.map(i128::from)).collect()
        };
    }
    Some(match array.data_type() {
        DataType::Int8 => of!(Int8Type),
        DataType::Int16 => of!(Int16Type),
        DataType::Int32 => of!(Int32Type),
        DataType::Int64 => of!(Int64Type),
        DataType::UInt8 => of!(UInt8Type),
        DataType::UInt16 => of!(UInt16Type),
        DataType::UInt32 => of!(UInt32Type),
        DataType::UInt64 => of!(UInt64Type),
        _ => return None,
    })
}

/// Numbers as they are; dates and times in seconds since 1970.
fn numbers_of(array: &ArrayRef) -> Option<Vec<Option<f64>>> {
    if let Some(numbers) = whole_numbers(array) {
        return Some(numbers.into_iter().map(|value| value.map(|value| value as f64)).collect());
    }
    macro_rules! of {
        ($type:ty, $convert:expr) => {
            array.as_primitive::<$type>().iter().map(|value| value.map($convert)).collect()
        };
    }
    Some(match array.data_type() {
        DataType::Float16 => of!(Float16Type, |value| value.to_f64()),
        DataType::Float32 => of!(Float32Type, f64::from),
        DataType::Float64 => of!(Float64Type, |value| value),
        DataType::Date32 => of!(Date32Type, |days| f64::from(days) * 86_400.0),
        DataType::Date64 => of!(Date64Type, |milliseconds| milliseconds as f64 / 1e3),
        DataType::Timestamp(unit, _) => match unit {
            TimeUnit::Second => of!(TimestampSecondType, |count| count as f64),
            TimeUnit::Millisecond => of!(TimestampMillisecondType, |count| count as f64 / 1e3),
            TimeUnit::Microsecond => of!(TimestampMicrosecondType, |count| count as f64 / 1e6),
            TimeUnit::Nanosecond => of!(TimestampNanosecondType, |count| count as f64 / 1e9),
        },
        _ => return None,
    })
}
