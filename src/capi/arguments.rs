//! Checks what a caller passes, before it is used.

use std::ffi::{CStr, c_char};
use std::marker::PhantomData;
use std::path::PathBuf;
use std::slice;
use std::sync::Arc;

use super::status::Failure;
use crate::config::{ConfigFile, DeviceChoice, FeatureSource};
use crate::data::{FeatureMatrix, Modality};

/// Lists of items, one after the other: list n is `items[offsets[n]]` up to, but not including,
/// `items[offsets[n + 1]]`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct bm3_lists {
    /// One offset more than there are lists, ascending from 0 to `items_len`.
    pub offsets: *const usize,
    /// The number of offsets.
    pub offsets_len: usize,
    /// The items of all lists.
    pub items: *const u32,
    /// The number of items.
    pub items_len: usize,
}

/// A modality's features, one row for each item: numbers in memory, or files.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct bm3_features {
    /// The modality's name, such as "text".
    pub modality: *const c_char,
    /// The numbers, row after row, which are copied; NULL if the features are in files.
    pub values: *const f32,
    /// How many numbers there are: rows times columns.
    pub values_len: usize,
    /// Numbers in a row; ignored for files, which have their own.
    pub columns: usize,
    /// A .npy file, or whatever else `--feature NAME=FILE` of the program takes, mapped and not
    /// copied; NULL if the numbers are in memory.
    pub files: *const c_char,
}

/// A place that the caller wants written.
pub(super) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// # Safety
    /// The pointer is NULL, or may be written as long as the result lives.
    pub unsafe fn new(name: &str, pointer: *mut T) -> Result<Self, Failure> {
        check_pointer(name, pointer)?;
        Ok(Self(pointer))
    }

    /// Like [`Out::new`], but NULL means that nothing is wanted.
    ///
    /// # Safety
    /// As [`Out::new`].
    pub unsafe fn optional(name: &str, pointer: *mut T) -> Result<Option<Self>, Failure> {
        // SAFETY: the caller promises the same.
        (!pointer.is_null()).then(|| unsafe { Self::new(name, pointer) }).transpose()
    }

    /// Writes the place without reading what was there.
    pub fn set(&self, value: T) {
        // SAFETY: `new` refuses a NULL or misaligned pointer, and its caller promises that it may
        // be written.
        unsafe { self.0.write(value) }
    }
}

impl<K> Out<*mut K> {
    /// A place for a handle, NULL until there is one.
    ///
    /// # Safety
    /// As [`Out::new`].
    pub unsafe fn handle(name: &str, pointer: *mut *mut K) -> Result<Self, Failure> {
        // SAFETY: the caller promises the same.
        let out = unsafe { Self::new(name, pointer) }?;
        out.set(std::ptr::null_mut());
        Ok(out)
    }
}

/// An array that the caller wants filled. It is never read, and may overlap the arguments: it is
/// written once they are no longer needed.
pub(super) struct Buffer<'a, T> {
    pointer: *mut T,
    length: usize,
    caller: PhantomData<&'a mut [T]>,
}

impl<T> Buffer<'_, T> {
    /// An array of exactly `expected` elements; `None` is a number beyond memory.
    ///
    /// # Safety
    /// The pointer is NULL or that of `length` elements that may be written.
    pub unsafe fn new(
        name: &str,
        pointer: *mut T,
        length: usize,
        expected: Option<usize>,
    ) -> Result<Self, Failure> {
        if Some(length) != expected {
            let expected = match expected {
                Some(expected) => format!("exactly {expected} expected"),
                None => "more than memory has expected".to_owned(),
            };
            return Err(Failure::argument(name, format!("room for {length} found, {expected}")));
        }
        if length > 0 {
            check_array(name, pointer, length)?;
        }
        Ok(Self { pointer, length, caller: PhantomData })
    }

    /// Like [`Buffer::new`], but NULL with a length of 0 means that nothing is wanted.
    ///
    /// # Safety
    /// As [`Buffer::new`].
    pub unsafe fn optional(
        name: &str,
        pointer: *mut T,
        length: usize,
        expected: Option<usize>,
    ) -> Result<Option<Self>, Failure> {
        if pointer.is_null() && length == 0 {
            return Ok(None);
        }
        // SAFETY: the caller promises the same.
        unsafe { Self::new(name, pointer, length, expected) }.map(Some)
    }

    /// Writes values until the array is full.
    pub fn fill(&self, values: impl Iterator<Item = T>) {
        for (place, value) in values.take(self.length).enumerate() {
            // SAFETY: the place is in the array, and `new`'s caller promises that it may be
            // written.
            unsafe { self.pointer.add(place).write(value) }
        }
    }
}

fn check_pointer<T>(name: &str, pointer: *const T) -> Result<(), Failure> {
    let found = match pointer {
        null if null.is_null() => "NULL",
        odd if !odd.is_aligned() => "an address that no such value can have",
        _ => return Ok(()),
    };
    Err(Failure::argument(name, format!("{found} found, a pointer expected")))
}

fn check_array<T>(name: &str, pointer: *const T, length: usize) -> Result<(), Failure> {
    check_pointer(name, pointer)?;
    if length > isize::MAX as usize / size_of::<T>().max(1) {
        let problem = format!("a length of {length} found, more than memory has");
        return Err(Failure::argument(name, problem));
    }
    Ok(())
}

/// An array from the caller; it may be NULL if it is empty.
///
/// # Safety
/// The pointer is NULL or that of `length` elements that do not change during `'a`.
pub(super) unsafe fn array<'a, T>(
    name: &str,
    pointer: *const T,
    length: usize,
) -> Result<&'a [T], Failure> {
    if length == 0 {
        return Ok(&[]);
    }
    check_array(name, pointer, length)?;
    // SAFETY: neither NULL, misaligned nor longer than an object can be; the caller answers for the
    // rest.
    Ok(unsafe { slice::from_raw_parts(pointer, length) })
}

/// A text from the caller.
///
/// # Safety
/// The pointer is NULL or that of a text that ends with NUL and does not change during `'a`.
pub(super) unsafe fn text<'a>(name: &str, pointer: *const c_char) -> Result<&'a str, Failure> {
    check_pointer(name, pointer)?;
    // SAFETY: not NULL; the caller answers for the rest.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map_err(|_| Failure::argument(name, "a text that is not UTF-8 found"))
}

/// A path from the caller; any bytes on Unix.
///
/// # Safety
/// As [`text`].
pub(super) unsafe fn path(name: &str, pointer: *const c_char) -> Result<PathBuf, Failure> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        check_pointer(name, pointer)?;
        // SAFETY: not NULL; the caller answers for the rest.
        let bytes = unsafe { CStr::from_ptr(pointer) }.to_bytes();
        Ok(std::ffi::OsStr::from_bytes(bytes).into())
    }
    #[cfg(not(unix))]
    {
        // SAFETY: the caller promises the same.
        unsafe { text(name, pointer) }.map(PathBuf::from)
    }
}

/// The device to compute on; NULL means the CPU.
///
/// # Safety
/// As [`text`].
pub(super) unsafe fn device(pointer: *const c_char) -> Result<DeviceChoice, Failure> {
    if pointer.is_null() {
        return Ok(DeviceChoice::Cpu);
    }
    // SAFETY: the caller promises the same.
    let text = unsafe { text("device", pointer) }?;
    text.parse().map_err(|problem: String| Failure::argument("device", problem))
}

/// The settings in a text; NULL means none. Settings that are arguments are refused.
///
/// # Safety
/// As [`text`].
pub(super) unsafe fn settings(pointer: *const c_char) -> Result<ConfigFile, Failure> {
    if pointer.is_null() {
        return Ok(ConfigFile::default());
    }
    // SAFETY: the caller promises the same.
    let settings = ConfigFile::parse(unsafe { text("settings", pointer) }?)?;
    for notice in &settings.notices {
        tracing::warn!("{notice}");
    }
    let run = &settings.run;
    for (key, given, argument) in [
        ("data", run.data.is_some(), "folder"),
        ("device", run.device.is_some(), "device"),
        ("out", run.out.is_some(), "directory"),
    ] {
        if given {
            let problem = format!("{key} found, which is the argument `{argument}` here");
            return Err(Failure::argument("settings", problem));
        }
    }
    Ok(settings)
}

/// Flags, which must all be known.
pub(super) fn flags(found: u32, known: u32) -> Result<u32, Failure> {
    if found & !known != 0 {
        let problem = format!("{found:#x} found, none but the bits {known:#x} expected");
        return Err(Failure::argument("flags", problem));
    }
    Ok(found)
}

/// Lists of items from the caller.
pub(super) struct Lists<'a> {
    offsets: &'a [usize],
    items: &'a [u32],
}

impl<'a> Lists<'a> {
    /// # Safety
    /// The pointer is NULL or that of lists whose arrays are as long as they say and do not change
    /// during `'a`.
    pub unsafe fn new(name: &str, pointer: *const bm3_lists) -> Result<Self, Failure> {
        check_pointer(name, pointer)?;
        // SAFETY: neither NULL nor misaligned; the caller answers for the rest.
        let lists = unsafe { *pointer };
        let of = |part: &str| format!("{name}.{part}");
        // SAFETY: the caller promises the same.
        let (offsets, items) = unsafe {
            (
                array(&of("offsets"), lists.offsets, lists.offsets_len)?,
                array(&of("items"), lists.items, lists.items_len)?,
            )
        };
        let ends = (offsets.first(), offsets.last());
        if ends != (Some(&0), Some(&items.len())) || !offsets.is_sorted() {
            let problem = format!("numbers that ascend from 0 to {} expected", items.len());
            return Err(Failure::argument(&of("offsets"), problem));
        }
        Ok(Self { offsets, items })
    }

    /// Like [`Lists::new`], but NULL means none; there must be `expected` lists.
    ///
    /// # Safety
    /// As [`Lists::new`].
    pub unsafe fn optional(
        name: &str,
        pointer: *const bm3_lists,
        expected: usize,
    ) -> Result<Option<Self>, Failure> {
        if pointer.is_null() {
            return Ok(None);
        }
        // SAFETY: the caller promises the same.
        let lists = unsafe { Self::new(name, pointer) }?;
        if lists.len() != expected {
            let problem = format!("{} lists found, {expected} expected", lists.len());
            return Err(Failure::argument(name, problem));
        }
        Ok(Some(lists))
    }

    /// The number of lists.
    pub fn len(&self) -> usize {
        // `new` requires a first offset.
        self.offsets.len() - 1
    }

    /// The list at a position.
    pub fn get(&self, position: usize) -> &'a [u32] {
        &self.items[self.offsets[position]..self.offsets[position + 1]]
    }
}

/// Features from the caller.
///
/// # Safety
/// The pointer is NULL or that of features whose arrays are as long as they say.
pub(super) unsafe fn modality(
    name: &str,
    pointer: *const bm3_features,
) -> Result<Modality, Failure> {
    check_pointer(name, pointer)?;
    // SAFETY: neither NULL nor misaligned; the caller answers for the rest.
    let given = unsafe { *pointer };
    // SAFETY: the caller promises the same.
    let modality = unsafe { text(&format!("{name}.modality"), given.modality) }?.to_owned();
    let features = match (given.values.is_null(), given.files.is_null()) {
        (false, true) => {
            // SAFETY: the caller promises the same.
            let values = unsafe { array(name, given.values, given.values_len) }?;
            let rows = values.len() / given.columns.max(1);
            FeatureMatrix::from_f32(rows, given.columns, values.to_vec())?
        }
        (true, false) => {
            // SAFETY: the caller promises the same.
            let files = unsafe { text(&format!("{name}.files"), given.files) }?;
            let source: FeatureSource = format!("{modality}={files}")
                .parse()
                .map_err(|problem: String| Failure::argument(name, problem))?;
            FeatureMatrix::open_all(&source.resolve(name)?.files)?
        }
        _ => return Err(Failure::argument(name, "either `values` or `files` expected")),
    };
    Ok(Modality { name: modality, features: Arc::new(features) })
}

/// Features of several modalities from the caller.
///
/// # Safety
/// The pointer is NULL or that of `length` elements, each as [`modality`] requires.
pub(super) unsafe fn modalities(
    pointer: *const bm3_features,
    length: usize,
) -> Result<Vec<Modality>, Failure> {
    // SAFETY: the caller promises the same.
    let given = unsafe { array("features", pointer, length) }?;
    given
        .iter()
        // SAFETY: the caller promises the same.
        .map(|features| unsafe { modality("features", features) })
        .collect()
}
