//! Arrays in and out without copies.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use numpy::ndarray::{ArrayView, Dimension};
use numpy::{
    Element, Ix1, Ix2, PyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1,
    PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;

use crate::backend::TopK;
use crate::data::{DataError, FeatureFile, FeatureMatrix, Modality};

/// Features as they are given: an array that is lent, or files that are mapped.
#[derive(FromPyObject)]
pub enum Features<'py> {
    /// Rows in memory, C-contiguous f32.
    Array(Bound<'py, PyArray2<f32>>),
    /// Files, as `FILE.npy` or `FILE.safetensors:TENSOR`, whose rows follow each other.
    Files(Vec<String>),
}

/// Modalities of what was given under their names.
pub fn modalities(given: Vec<(String, Features<'_>)>) -> PyResult<Vec<Modality>> {
    let modality = |(name, features)| Ok(Modality { name, features: Arc::new(table(features)?) });
    given.into_iter().map(modality).collect()
}

fn table(features: Features<'_>) -> PyResult<FeatureMatrix> {
    Ok(match features {
        Features::Files(files) => {
            let files: Vec<_> = files.iter().map(|file| FeatureFile::parse(file)).collect();
            FeatureMatrix::open_all(&files)?
        }
        Features::Array(array) => {
            let [rows, columns] = [0, 1].map(|axis| array.shape()[axis]);
            FeatureMatrix::from_shared(rows, columns, Arc::new(Lent::new(&array)?))?
        }
    })
}

/// A NumPy array whose numbers the engine reads while Python code runs.
struct Lent {
    numbers: *const f32,
    count: usize,
    /// The array and the arrays it shows parts of, write-protected.
    _arrays: Protected,
}

// SAFETY: the numbers are only read, and references to Python's objects may be held and dropped by
// any thread.
unsafe impl Send for Lent {}
// SAFETY: as above.
unsafe impl Sync for Lent {}

impl Lent {
    fn new(array: &Bound<'_, PyArray2<f32>>) -> PyResult<Self> {
        if !array.is_c_contiguous() || !array.data().is_aligned() {
            return Err(PyValueError::new_err("features: a C-contiguous array expected"));
        }
        let _arrays = Protected::new(array)?;
        Ok(Self { numbers: array.data().cast_const(), count: array.len(), _arrays })
    }
}

impl AsRef<[f32]> for Lent {
    fn as_ref(&self) -> &[f32] {
        if self.count == 0 {
            // An empty array's address may be anything.
            return &[];
        }
        // SAFETY: `numbers` begins `count` aligned, initialised numbers of type f32: a C-contiguous
        // array of that type has them there. They live as long as the array, which we hold a
        // reference to, and NumPy refuses to move those of an array that others refer to. Nobody
        // writes to them: not through this array or those it is a view of, whose flags are down, nor
        // through the numpy crate, which asks for that flag. Left is who writes through another view
        // of the same memory, made before, or raises the flag by hand, while training runs; the
        // package's documentation forbids both.
        unsafe { std::slice::from_raw_parts(self.numbers, self.count) }
    }
}

/// Arrays whose `WRITEABLE` flags are down as long as this lives, so that an assignment raises in
/// Python instead of changing what is read.
struct Protected {
    /// Those whose flags were up before, each a view of the next.
    arrays: Vec<Py<PyAny>>,
}

/// How often each array is protected by us, by its address.
static PROTECTED: Mutex<Option<HashMap<usize, usize>>> = Mutex::new(None);

impl Protected {
    /// Protects an array and all that it is a view of.
    fn new(array: &Bound<'_, PyAny>) -> PyResult<Self> {
        let mut protected = Self { arrays: Vec::new() };
        let mut current = array.clone();
        while current.cast::<PyUntypedArray>().is_ok() {
            if lower(&current)? {
                protected.arrays.push(current.clone().unbind());
            }
            current = current.getattr("base")?;
        }
        Ok(protected)
    }
}

impl Drop for Protected {
    fn drop(&mut self) {
        // The owner first: a view may be written to only if its owner may. At the interpreter's end no
        // code is left that could write.
        Python::try_attach(|py| self.arrays.iter().rev().for_each(|array| raise(array.bind(py))));
    }
}

/// Lowers an array's flag; whether it was up, or down by us alone.
fn lower(array: &Bound<'_, PyAny>) -> PyResult<bool> {
    let mut protected = match PROTECTED.lock_py_attached(array.py()) {
        Ok(protected) => protected,
        Err(poisoned) => poisoned.into_inner(),
    };
    let times = protected.get_or_insert_default();
    let address = array.as_ptr() as usize;
    if let Some(times) = times.get_mut(&address) {
        *times += 1;
        return Ok(true);
    }
    let flags = array.getattr("flags")?;
    if !flags.getattr("writeable")?.is_truthy()? {
        return Ok(false);
    }
    flags.setattr("writeable", false)?;
    times.insert(address, 1);
    Ok(true)
}

/// Takes one [`lower`] back.
fn raise(array: &Bound<'_, PyAny>) {
    let mut protected = match PROTECTED.lock_py_attached(array.py()) {
        Ok(protected) => protected,
        Err(poisoned) => poisoned.into_inner(),
    };
    let times = protected.get_or_insert_default();
    let address = array.as_ptr() as usize;
    let Some(left) = times.get_mut(&address) else { return };
    *left -= 1;
    if *left == 0 {
        times.remove(&address);
        // Refused where somebody has protected the memory's owner meanwhile, and rightly.
        array.getattr("flags").and_then(|flags| flags.setattr("writeable", true)).ok();
    }
}

/// A copy of some numbers, made while Python code waits.
pub fn copied<T: Element + Copy>(array: &PyReadonlyArray1<'_, T>) -> Vec<T> {
    array.as_array().iter().copied().collect()
}

/// Lists of different lengths, one after the other.
pub struct Lists {
    bounds: Vec<usize>,
    items: Vec<u32>,
}

/// Bounds, and what lies between them.
pub type GivenLists<'py> = (PyReadonlyArray1<'py, i64>, PyReadonlyArray1<'py, u32>);

impl Lists {
    /// Lists whose bounds ascend from 0 to the number of items.
    pub fn new((bounds, items): &GivenLists<'_>) -> PyResult<Self> {
        let items = copied(items);
        let bounds: Vec<usize> = copied(bounds)
            .into_iter()
            .map(usize::try_from)
            .collect::<Result<_, _>>()
            .map_err(|_| PyValueError::new_err("bounds: a number below 0 found"))?;
        let whole = bounds.first() == Some(&0) && bounds.last() == Some(&items.len());
        if !whole || !bounds.is_sorted() {
            return Err(PyValueError::new_err("bounds: must ascend from 0 to the number of items"));
        }
        Ok(Self { bounds, items })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bounds.len() - 1
    }

    /// The list at a position; where there is but one it is everybody's.
    pub fn of(&self, position: usize) -> &[u32] {
        let position = if self.len() == 1 { 0 } else { position };
        &self.items[self.bounds[position]..self.bounds[position + 1]]
    }
}

/// Items (-1 where a list is short) and scores (NaN there), each queries × K.
pub type PyLists<'py> = (Bound<'py, PyArray2<i32>>, Bound<'py, PyArray2<f32>>);

/// Items, -1 where a list is short, and scores, NaN there. The items are not copied.
pub fn converted(top: TopK) -> (Vec<i32>, Vec<f32>) {
    let score = |(&item, score): (&u32, f64)| match item {
        TopK::NO_ITEM => f32::NAN,
        // Scores are of type f32 in the first place.
        _ => score as f32,
    };
    let scores = top.items.iter().zip(top.scores).map(score).collect();
    // `NO_ITEM` has all bits set, which is -1; items are fewer than 2³¹ (`LARGEST_ID`).
    (bytemuck::cast_vec(top.items), scores)
}

/// Lists as arrays, which the numbers are handed over to.
pub fn lists(
    py: Python<'_>,
    (items, scores): (Vec<i32>, Vec<f32>),
    shape: [usize; 2],
) -> PyResult<PyLists<'_>> {
    Ok((
        PyArray1::from_vec(py, items).reshape(shape)?,
        PyArray1::from_vec(py, scores).reshape(shape)?,
    ))
}

/// Keeps numbers alive that an array shows.
#[pyclass(frozen, name = "Owner", module = "bm3_engine._native")]
struct Owner(#[allow(dead_code, reason = "held, not read")] Arc<Vec<f32>>);

/// Rows of the engine as an array that cannot be written to.
pub fn rows<'py>(
    py: Python<'py>,
    rows: Arc<Vec<f32>>,
    width: usize,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let owner = Bound::new(py, Owner(rows.clone()))?.into_any();
    let view = ArrayView::from_shape((rows.len() / width, width), &rows[..])
        .map_err(|error| DataError::Parts(error.to_string()))?;
    // SAFETY: the numbers lie in a vector that `owner` holds and that nobody changes while it is
    // shared: the engine changes rows by `Arc::make_mut`.
    Ok(locked(unsafe { PyArray::<f32, Ix2>::borrow_from_array(&view, owner) }))
}

/// Numbers of the engine as an array that cannot be written to.
///
/// # Safety
/// `numbers` must stay where and what they are as long as `owner` lives.
pub unsafe fn numbers<'py, T: Element>(
    numbers: &[T],
    owner: Bound<'py, PyAny>,
) -> Bound<'py, PyArray1<T>> {
    // SAFETY: that is what the caller promises.
    locked(unsafe { PyArray::<T, Ix1>::borrow_from_array(&ArrayView::from(numbers), owner) })
}

/// An array that is just made, as one that cannot be written to; as it does not own its memory,
/// Python cannot undo that.
fn locked<T: Element, D: Dimension>(array: Bound<'_, PyArray<T, D>>) -> Bound<'_, PyArray<T, D>> {
    // Nobody else knows the array yet.
    array.readwrite().make_nonwriteable();
    array
}
