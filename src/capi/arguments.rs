//! What a caller gives and wants, checked before it is used.

use std::ffi::{CStr, c_char};
use std::marker::PhantomData;
use std::path::PathBuf;
use std::slice;
use std::sync::Arc;

use super::status::Failure;
use crate::config::{ConfigFile, DeviceChoice, FeatureSource};
use crate::data::{FeatureMatrix, Modality};

/// Lists of items, one after the other: list n is `items[offsets[n]]` up to, and without,
/// `items[offsets[n + 1]]`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct bm3_lists {
    /// One more than there are lists: ascending, from 0 to `items_len`.
    pub offsets: *const usize,
    /// How many offsets there are.
    pub offsets_len: usize,
    /// The items of all lists.
    pub items: *const u32,
    /// How many there are.
    pub items_len: usize,
}

/// A modality's features, one row for each item: numbers in memory, or files.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct bm3_features {
    /// The modality's name, as "text".
    pub modality: *const c_char,
    /// The numbers, row after row; NULL where they are in files. They are copied.
    pub values: *const f32,
    /// How many numbers there are: rows times columns.
    pub values_len: usize,
    /// Numbers in a row; not looked at where they are in files, which say it themselves.
    pub columns: usize,
    /// A .npy file, or what else `--feature NAME=FILE` of the program takes, which is mapped and
    /// not copied; NULL where the numbers are in memory.
    pub files: *const c_char,
}

/// A place that the caller wants written.
pub(super) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// # Safety
    /// The pointer is NULL or may be written as long as the outcome lives.
    pub unsafe fn new(name: &str, pointer: *mut T) -> Result<Self, Failure> {
        check_pointer(name, pointer)?;
        Ok(Self(pointer))
    }

    /// The same where NULL means that nothing is wanted.
    ///
    /// # Safety
    /// Those of [`Out::new`].
    pub unsafe fn optional(name: &str, pointer: *mut T) -> Result<Option<Self>, Failure> {
        // SAFETY: as this function's own.
        (!pointer.is_null()).then(|| unsafe { Self::new(name, pointer) }).transpose()
    }

    /// Writes the place, without looking at what was there.
    pub fn set(&self, value: T) {
        // SAFETY: the pointer is neither NULL nor misaligned, and may be written: `new` asks for it.
        unsafe { self.0.write(value) }
    }
}

impl<K> Out<*mut K> {
    /// A place for a handle, NULL until there is one.
    ///
    /// # Safety
    /// Those of [`Out::new`].
    pub unsafe fn handle(name: &str, pointer: *mut *mut K) -> Result<Self, Failure> {
        // SAFETY: as this function's own.
        let out = unsafe { Self::new(name, pointer) }?;
        out.set(std::ptr::null_mut());
        Ok(out)
    }
}

/// An array that the caller wants filled. It is not read, and may hold what the arguments hold: it is
/// written when they are needed no more.
pub(super) struct Buffer<'a, T> {
    pointer: *mut T,
    length: usize,
    caller: PhantomData<&'a mut [T]>,
}

impl<T> Buffer<'_, T> {
    /// An array of `expected` elements, no more and no fewer.
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

    /// The same where NULL means that nothing is wanted, and the length is 0.
    ///
    /// # Safety
    /// Those of [`Buffer::new`].
    pub unsafe fn optional(
        name: &str,
        pointer: *mut T,
        length: usize,
        expected: Option<usize>,
    ) -> Result<Option<Self>, Failure> {
        if pointer.is_null() && length == 0 {
            return Ok(None);
        }
        // SAFETY: as this function's own.
        unsafe { Self::new(name, pointer, length, expected) }.map(Some)
    }

    /// Writes as many values as there is room for.
    pub fn fill(&self, values: impl Iterator<Item = T>) {
        for (place, value) in values.take(self.length).enumerate() {
            // SAFETY: the place is in the array, which may be written: `new` asks for it.
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

/// An array that the caller gives; NULL is one without an element.
///
/// # Safety
/// The pointer is NULL or that of `length` elements, which do not change during `'a`.
pub(super) unsafe fn array<'a, T>(
    name: &str,
    pointer: *const T,
    length: usize,
) -> Result<&'a [T], Failure> {
    if length == 0 {
        return Ok(&[]);
    }
    check_array(name, pointer, length)?;
    // SAFETY: neither NULL, misaligned nor longer than an object can be; the rest the caller answers
    // for.
    Ok(unsafe { slice::from_raw_parts(pointer, length) })
}

/// A text that the caller gives.
///
/// # Safety
/// The pointer is NULL or that of a text that ends with NUL and does not change during `'a`.
pub(super) unsafe fn text<'a>(name: &str, pointer: *const c_char) -> Result<&'a str, Failure> {
    check_pointer(name, pointer)?;
    // SAFETY: not NULL; the rest the caller answers for.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map_err(|_| Failure::argument(name, "a text that is not UTF-8 found"))
}

/// A path that the caller gives; on Unix any bytes.
///
/// # Safety
/// Those of [`text`].
pub(super) unsafe fn path(name: &str, pointer: *const c_char) -> Result<PathBuf, Failure> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        check_pointer(name, pointer)?;
        // SAFETY: not NULL; the rest the caller answers for.
        let bytes = unsafe { CStr::from_ptr(pointer) }.to_bytes();
        Ok(std::ffi::OsStr::from_bytes(bytes).into())
    }
    #[cfg(not(unix))]
    {
        // SAFETY: as this function's own.
        unsafe { text(name, pointer) }.map(PathBuf::from)
    }
}

/// Where to compute; the CPU where NULL is given.
///
/// # Safety
/// Those of [`text`].
pub(super) unsafe fn device(pointer: *const c_char) -> Result<DeviceChoice, Failure> {
    if pointer.is_null() {
        return Ok(DeviceChoice::Cpu);
    }
    // SAFETY: as this function's own.
    let text = unsafe { text("device", pointer) }?;
    text.parse().map_err(|problem: String| Failure::argument("device", problem))
}

/// The settings in a text, none where NULL is given. Those that are arguments are refused.
///
/// # Safety
/// Those of [`text`].
pub(super) unsafe fn settings(pointer: *const c_char) -> Result<ConfigFile, Failure> {
    if pointer.is_null() {
        return Ok(ConfigFile::default());
    }
    // SAFETY: as this function's own.
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

/// Flags, all of which are known.
pub(super) fn flags(found: u32, known: u32) -> Result<u32, Failure> {
    if found & !known != 0 {
        let problem = format!("{found:#x} found, none but the bits {known:#x} expected");
        return Err(Failure::argument("flags", problem));
    }
    Ok(found)
}

/// Lists of items that the caller gives.
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
        // SAFETY: neither NULL nor misaligned; the rest the caller answers for.
        let lists = unsafe { *pointer };
        let of = |part: &str| format!("{name}.{part}");
        // SAFETY: as this function's own.
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

    /// The same where NULL means none; as many as there are `expected`.
    ///
    /// # Safety
    /// Those of [`Lists::new`].
    pub unsafe fn optional(
        name: &str,
        pointer: *const bm3_lists,
        expected: usize,
    ) -> Result<Option<Self>, Failure> {
        if pointer.is_null() {
            return Ok(None);
        }
        // SAFETY: as this function's own.
        let lists = unsafe { Self::new(name, pointer) }?;
        if lists.len() != expected {
            let problem = format!("{} lists found, {expected} expected", lists.len());
            return Err(Failure::argument(name, problem));
        }
        Ok(Some(lists))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        // `new` has seen the first offset.
        self.offsets.len() - 1
    }

    /// The list at a position.
    pub fn get(&self, position: usize) -> &'a [u32] {
        &self.items[self.offsets[position]..self.offsets[position + 1]]
    }
}

/// Features that the caller gives.
///
/// # Safety
/// The pointer is NULL or that of features whose arrays are as long as they say.
pub(super) unsafe fn modality(
    name: &str,
    pointer: *const bm3_features,
) -> Result<Modality, Failure> {
    check_pointer(name, pointer)?;
    // SAFETY: neither NULL nor misaligned; the rest the caller answers for.
    let given = unsafe { *pointer };
    // SAFETY: as this function's own.
    let modality = unsafe { text(&format!("{name}.modality"), given.modality) }?.to_owned();
    let features = match (given.values.is_null(), given.files.is_null()) {
        (false, true) => {
            // SAFETY: as this function's own.
            let values = unsafe { array(name, given.values, given.values_len) }?;
            let rows = values.len() / given.columns.max(1);
            FeatureMatrix::from_f32(rows, given.columns, values.to_vec())?
        }
        (true, false) => {
            // SAFETY: as this function's own.
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

/// Features of several modalities that the caller gives.
///
/// # Safety
/// The pointer is NULL or that of `length` elements, each as [`modality`] asks.
pub(super) unsafe fn modalities(
    pointer: *const bm3_features,
    length: usize,
) -> Result<Vec<Modality>, Failure> {
    // SAFETY: as this function's own.
    let given = unsafe { array("features", pointer, length) }?;
    given
        .iter()
        // SAFETY: as this function's own.
        .map(|features| unsafe { modality("features", features) })
        .collect()
}
