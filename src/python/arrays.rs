//! Passes arrays in and out without copies.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use numpy::ndarray::{ArrayView, Dimension};
use numpy::npyffi::NPY_ARRAY_WRITEABLE;
use numpy::{
    Element, Ix1, Ix2, PyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1,
    PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::PyWeakrefReference;

use crate::backend::TopK;
use crate::data::{DataError, FeatureFile, FeatureMatrix, Modality};

/// Features as they are given: an array that is lent, or files that are mapped.
#[derive(FromPyObject)]
pub enum Features<'py> {
    /// Rows in memory, C-contiguous f32.
    Array(Bound<'py, PyArray2<f32>>),
    /// Files, as `FILE.npy` or `FILE.safetensors:TENSOR`, whose rows are joined in order.
    Files(Vec<String>),
}

/// The modalities given by name.
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
    /// The array and those it is a view of, write-protected.
    _arrays: Protected,
}

// SAFETY: the numbers are only read, and any thread may hold and drop references to Python's
// objects.
unsafe impl Send for Lent {}
// SAFETY: as above.
unsafe impl Sync for Lent {}

impl Lent {
    fn new(array: &Bound<'_, PyArray2<f32>>) -> PyResult<Self> {
        if !array.is_c_contiguous() || !array.data().is_aligned() {
            return Err(PyValueError::new_err("features: a C-contiguous array expected"));
        }
        let _arrays = Protected::new(array.as_untyped())?;
        Ok(Self { numbers: array.data().cast_const(), count: array.len(), _arrays })
    }
}

impl AsRef<[f32]> for Lent {
    fn as_ref(&self) -> &[f32] {
        if self.count == 0 {
            // An empty array's address may be anything.
            return &[];
        }
        // SAFETY: `numbers` points to `count` aligned, initialised numbers of type f32, as in every
        // C-contiguous array of that type. They live as long as the array, which we hold a
        // reference to. They stay in place: NumPy moves them only by `resize`, which it refuses,
        // even with `refcheck=False`, for an array with weak references, as ours has. They do not
        // change: this array and those it is a view of are write-protected, and the numpy crate
        // heeds that flag. What remains is code that, while training runs, writes through another
        // view of the same memory made before, raises the flag by hand, or gives the array other
        // memory by `data` or `__setstate__`; the package's documentation forbids all of these.
        unsafe { std::slice::from_raw_parts(self.numbers, self.count) }
    }
}

/// Arrays whose `WRITEABLE` flags are down as long as this lives, and which NumPy does not resize:
/// both raise in Python instead of changing, or freeing, what is read.
struct Protected {
    /// The arrays whose flags were up before, each a view of the next.
    arrays: Vec<Py<PyUntypedArray>>,
    /// A weak reference to each array: while one exists, the array is not resized.
    weak: Vec<Py<PyWeakrefReference>>,
}

/// The arrays that we protect.
///
/// The lock is held only to touch this and the flags: no Python code runs and nothing is freed
/// meanwhile, so neither a finalizer nor another thread can come back here and wait for it.
#[derive(Default)]
struct Flags {
    /// How often each array is protected, by its address.
    times: HashMap<usize, usize>,
    /// Arrays that are no longer protected themselves, but are views of protected ones: as those
    /// may not be written to, their flags stay down until then.
    pending: Vec<Py<PyUntypedArray>>,
}

static PROTECTED: Mutex<Option<Flags>> = Mutex::new(None);

impl Protected {
    /// Protects an array and everything that it is a view of.
    fn new(array: &Bound<'_, PyUntypedArray>) -> PyResult<Self> {
        let weak = bases(array).map(|array| Ok(PyWeakrefReference::new(array.as_any())?.unbind()));
        let weak = weak.collect::<PyResult<_>>()?;
        let arrays = with_flags(array.py(), |flags| {
            bases(array).filter(|array| flags.lower(array)).map(Bound::unbind).collect()
        });
        Ok(Self { arrays, weak })
    }
}

impl Drop for Protected {
    fn drop(&mut self) {
        // At the interpreter's end, no code is left that could write.
        Python::try_attach(|py| {
            self.weak.clear();
            let arrays = std::mem::take(&mut self.arrays);
            // Drop these once the lock is free again.
            let _raised = with_flags(py, |flags| flags.raise(py, arrays));
        });
    }
}

impl Flags {
    /// Lowers an array's flag; returns whether it was up, or down only because of us.
    fn lower(&mut self, array: &Bound<'_, PyUntypedArray>) -> bool {
        let address = address(array);
        if let Some(times) = self.times.get_mut(&address) {
            *times += 1;
            return true;
        }
        let pending = self.pending.iter().position(|held| held.as_ptr() == array.as_ptr());
        // This frees nothing, as `array` lives.
        let ours = pending.map(|position| self.pending.swap_remove(position)).is_some();
        if !ours && !is_writeable(array) {
            return false;
        }
        set_writeable(array, false);
        self.times.insert(address, 1);
        true
    }

    /// Undoes [`Flags::lower`] for each of some arrays, and raises all flags that may be up again.
    /// Returns the arrays that are no longer held.
    fn raise(
        &mut self,
        py: Python<'_>,
        arrays: Vec<Py<PyUntypedArray>>,
    ) -> Vec<Py<PyUntypedArray>> {
        let mut released = Vec::new();
        for array in arrays {
            let address = address(array.bind(py));
            match self.times.get_mut(&address) {
                Some(1) => {
                    self.times.remove(&address);
                    self.pending.push(array);
                }
                times => {
                    if let Some(times) = times {
                        *times -= 1;
                    }
                    released.push(array);
                }
            }
        }
        let times = &self.times;
        let may_be_written = |array: &mut Py<PyUntypedArray>| {
            bases(array.bind(py)).all(|base| !times.contains_key(&address(&base)))
        };
        let raised = self.pending.extract_if(.., may_be_written);
        released.extend(raised.inspect(|array| set_writeable(array.bind(py), true)));
        released
    }
}

/// Runs `work` on the flags, under the lock.
fn with_flags<T>(py: Python<'_>, work: impl FnOnce(&mut Flags) -> T) -> T {
    let mut flags = match PROTECTED.lock_py_attached(py) {
        Ok(flags) => flags,
        Err(poisoned) => poisoned.into_inner(),
    };
    work(flags.get_or_insert_default())
}

fn address(array: &Bound<'_, PyUntypedArray>) -> usize {
    array.as_ptr() as usize
}

/// An array and everything that it is a view of. Avoids `array.base`, where a subclass may have
/// code.
fn bases<'py>(
    array: &Bound<'py, PyUntypedArray>,
) -> impl Iterator<Item = Bound<'py, PyUntypedArray>> {
    std::iter::successors(Some(array.clone()), |array| {
        // SAFETY: the pointer is that of a live array, whose `base` is null or an object that it holds
        // a reference to.
        let base = unsafe {
            let base = (*array.as_array_ptr()).fields.base;
            Bound::from_borrowed_ptr_or_opt(array.py(), base)
        };
        base?.cast_into().ok()
    })
}

fn is_writeable(array: &Bound<'_, PyUntypedArray>) -> bool {
    // SAFETY: the pointer is that of a live array.
    let flags = unsafe { (*array.as_array_ptr()).fields.flags };
    flags & NPY_ARRAY_WRITEABLE != 0
}

/// Raises or lowers the flag. Avoids `array.flags`, where a subclass may have code.
fn set_writeable(array: &Bound<'_, PyUntypedArray>, writeable: bool) {
    // SAFETY: the pointer is that of a live array, and a thread attached to the interpreter, as
    // `array` proves, may write to its fields. Only flags that were up before are raised, so the
    // memory may be written to.
    unsafe {
        let flags = &raw mut (*array.as_array_ptr()).fields.flags;
        match writeable {
            true => *flags |= NPY_ARRAY_WRITEABLE,
            false => *flags &= !NPY_ARRAY_WRITEABLE,
        }
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

    /// The number of lists.
    pub fn len(&self) -> usize {
        self.bounds.len() - 1
    }

    /// The list at a position; a single list serves all positions.
    pub fn of(&self, position: usize) -> &[u32] {
        let position = if self.len() == 1 { 0 } else { position };
        &self.items[self.bounds[position]..self.bounds[position + 1]]
    }
}

/// Items (-1 where a list is short) and scores (NaN there), each queries × K.
pub type PyLists<'py> = (Bound<'py, PyArray2<i32>>, Bound<'py, PyArray2<f32>>);

/// Lists as items, padded with -1, and scores, padded with NaN. The items are not copied.
pub fn converted(top: TopK) -> (Vec<i32>, Vec<f32>) {
    let scores = top.scores_or(f32::NAN).collect();
    // `NO_ITEM` has all bits set, which is -1; items are fewer than 2³¹ (`LARGEST_ID`).
    (bytemuck::cast_vec(top.items), scores)
}

/// Lists as arrays, which take over the numbers.
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

/// Keeps the numbers alive that an array shows.
#[pyclass(frozen, name = "Owner", module = "bm3_engine._native")]
struct Owner(#[allow(dead_code, reason = "held, not read")] Arc<Vec<f32>>);

/// Rows of the engine as a read-only array.
pub fn rows<'py>(
    py: Python<'py>,
    rows: Arc<Vec<f32>>,
    width: usize,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let owner = Bound::new(py, Owner(rows.clone()))?.into_any();
    let view = ArrayView::from_shape((rows.len() / width, width), &rows[..])
        .map_err(|error| DataError::Parts(error.to_string()))?;
    // SAFETY: the numbers are in a vector that `owner` holds and that nobody changes: the engine
    // makes new vectors when rows change (`Recommender::replace_items`), and a shared `Arc` gives
    // out no `&mut`.
    Ok(locked(unsafe { PyArray::<f32, Ix2>::borrow_from_array(&view, owner) }))
}

/// Numbers of the engine as a read-only array.
///
/// # Safety
/// `numbers` must stay in place and unchanged as long as `owner` lives.
pub unsafe fn numbers<'py, T: Element>(
    numbers: &[T],
    owner: Bound<'py, PyAny>,
) -> Bound<'py, PyArray1<T>> {
    // SAFETY: the caller promises that.
    locked(unsafe { PyArray::<T, Ix1>::borrow_from_array(&ArrayView::from(numbers), owner) })
}

/// Makes a new array read-only; as it does not own its memory, Python cannot undo that.
fn locked<T: Element, D: Dimension>(array: Bound<'_, PyArray<T, D>>) -> Bound<'_, PyArray<T, D>> {
    // There is no other reference to the array yet.
    array.readwrite().make_nonwriteable();
    array
}
