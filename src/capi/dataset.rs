//! Data sets to train on.

use std::ffi::{CString, c_char};

use super::arguments::{Out, array, bm3_features, modality, path, settings, text};
use super::handle::{Kind, borrow, change, give, take};
use super::status::{self, Failure, bm3_status, call};
use crate::Dataset;
use crate::config::RunConfig;
use crate::data::DatasetBuilder;
use crate::wording::Caller;

/// A data set: interactions by split, and the features of the items.
pub struct bm3_dataset(());

/// A data set under construction.
pub struct bm3_dataset_builder(());

/// A data set, and its warnings as a C string.
pub(super) struct Opened {
    pub dataset: Dataset,
    warnings: CString,
}

impl Opened {
    fn new(dataset: Dataset) -> Self {
        let warnings = dataset.warnings.iter().map(|warning| Caller::C.words(warning));
        let warnings = status::text(&warnings.collect::<Vec<_>>().join("\n"));
        Self { dataset, warnings }
    }
}

impl Kind for bm3_dataset {
    type Value = Opened;
    const WORD: u64 = u64::from_be_bytes(*b"bm3 data");
    const NAME: &'static str = "bm3_dataset";
}

impl Kind for bm3_dataset_builder {
    type Value = DatasetBuilder;
    const WORD: u64 = u64::from_be_bytes(*b"bm3build");
    const NAME: &'static str = "bm3_dataset_builder";
}

/// The purpose of interactions; the numbers are those of the column x_label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum bm3_split {
    /// To train on.
    BM3_TRAIN = 0,
    /// Held out, to decide when training stops.
    BM3_VALID = 1,
    /// Held out, deciding nothing.
    BM3_TEST = 2,
}

/// Opens a data folder in MMRec's layout.
///
/// `settings` may have the settings `modalities`, `split`, `seed` (of the split) and `features` of
/// the program's --config files, in TOML, such as "modalities = ['text']"; NULL means none.
/// Settings of training have no effect here, so that one text serves this function and `bm3_train`.
/// `bm3_dataset_free` frees the handle written to `dataset`.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_dataset_open(
    folder: *const c_char,
    settings: *const c_char,
    dataset: *mut *mut bm3_dataset,
) -> bm3_status {
    call(|| {
        // SAFETY: the caller keeps the rules of the module.
        let (out, folder, mut settings) = unsafe {
            (Out::handle("dataset", dataset)?, path("folder", folder)?, self::settings(settings)?)
        };
        settings.run.data = Some(folder);
        let config = RunConfig::new(&settings.train, &settings.run)?;
        let dataset = Dataset::open(&config.data, &config.dataset_options())?;
        give(Opened::new(dataset), &out);
        Ok(())
    })
}

/// Frees a data set and sets the pointer to NULL; NULL, and a pointer to NULL, are left alone.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_dataset_free(dataset: *mut *mut bm3_dataset) -> bm3_status {
    // SAFETY: the caller keeps the rules of the module.
    call(|| unsafe { take(dataset) }.map(drop))
}

/// Writes the number of users and the number of items. Each of the two may be NULL.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_dataset_sizes(
    dataset: *const bm3_dataset,
    users: *mut usize,
    items: *mut usize,
) -> bm3_status {
    call(|| {
        // SAFETY: the caller keeps the rules of the module.
        let Opened { dataset, .. } = unsafe { borrow(dataset) }?;
        for (name, place, size) in
            [("users", users, dataset.users), ("items", items, dataset.items)]
        {
            // SAFETY: the caller keeps the rules of the module.
            if let Some(out) = unsafe { Out::optional(name, place) }? {
                out.set(size);
            }
        }
        Ok(())
    })
}

/// Lends the data set's warnings, one per line; an empty text if there are none. They need no action:
/// for example, validation interactions are left out if their users have none in training.
///
/// `warnings` then points to the library's own text, which stays valid until the data set is freed.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_dataset_warnings(
    dataset: *const bm3_dataset,
    warnings: *mut *const c_char,
) -> bm3_status {
    call(|| {
        // SAFETY: the caller keeps the rules of the module.
        let (opened, out) = unsafe { (borrow(dataset)?, Out::new("warnings", warnings)?) };
        out.set(opened.warnings.as_ptr());
        Ok(())
    })
}

/// Begins a data set of this name from data in memory.
///
/// `bm3_dataset_builder_finish` turns the handle written to `builder` into a data set;
/// `bm3_dataset_builder_free` frees one that is no longer wanted.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_dataset_builder_new(
    name: *const c_char,
    builder: *mut *mut bm3_dataset_builder,
) -> bm3_status {
    call(|| {
        // SAFETY: the caller keeps the rules of the module.
        let (out, name) = unsafe { (Out::handle("builder", builder)?, text("name", name)?) };
        give(Dataset::builder(name), &out);
        Ok(())
    })
}

/// Adds interactions: user `users[n]` with item `items[n]`, for n below `pairs_len`. They are copied.
/// `split` is one of `bm3_split`.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_dataset_builder_add_pairs(
    builder: *mut bm3_dataset_builder,
    split: i32,
    users: *const u32,
    items: *const u32,
    pairs_len: usize,
) -> bm3_status {
    const TRAIN: i32 = bm3_split::BM3_TRAIN as i32;
    const VALID: i32 = bm3_split::BM3_VALID as i32;
    const TEST: i32 = bm3_split::BM3_TEST as i32;
    call(|| {
        let add = match split {
            TRAIN => DatasetBuilder::train,
            VALID => DatasetBuilder::valid,
            TEST => DatasetBuilder::test,
            _ => {
                let problem = format!("{split} found, BM3_TRAIN, BM3_VALID or BM3_TEST expected");
                return Err(Failure::argument("split", problem));
            }
        };
        // SAFETY: the caller keeps the rules of the module.
        unsafe {
            let users = array("users", users, pairs_len)?;
            let items = array("items", items, pairs_len)?;
            with(builder, |builder| Ok(add(builder, users, items)))
        }
    })
}

/// Adds a modality: one row of features per item. If all modalities have the same number of rows, so
/// many items count at least, with or without interactions.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_dataset_builder_add_features(
    builder: *mut bm3_dataset_builder,
    features: *const bm3_features,
) -> bm3_status {
    call(|| {
        // SAFETY: the caller keeps the rules of the module.
        unsafe {
            let modality = modality("features", features)?;
            with(builder, |builder| Ok(builder.modality(modality.name, modality.features)))
        }
    })
}

/// Counts at least this many users and items, whether or not they have interactions.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_dataset_builder_at_least(
    builder: *mut bm3_dataset_builder,
    users: usize,
    items: usize,
) -> bm3_status {
    // SAFETY: the caller keeps the rules of the module.
    call(|| unsafe { with(builder, |builder| Ok(builder.at_least(users, items))) })
}

/// Makes a data set of what was added, and frees the builder, even on failure: when there is no
/// training interaction, ids are far beyond what the number of interactions can need, or features
/// have too few rows or are not finite. Both pointers are set.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_dataset_builder_finish(
    builder: *mut *mut bm3_dataset_builder,
    dataset: *mut *mut bm3_dataset,
) -> bm3_status {
    call(|| {
        // SAFETY: the caller keeps the rules of the module.
        let (out, parts) = unsafe { (Out::handle("dataset", dataset)?, take(builder)?) };
        let parts = parts.ok_or_else(|| Failure::argument("builder", "NULL found"))?;
        give(Opened::new(parts.build()?), &out);
        Ok(())
    })
}

/// Frees a builder and sets the pointer to NULL; NULL, and a pointer to NULL, are left alone.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_dataset_builder_free(
    builder: *mut *mut bm3_dataset_builder,
) -> bm3_status {
    // SAFETY: the caller keeps the rules of the module.
    call(|| unsafe { take(builder) }.map(drop))
}

/// Replaces a builder by the result of one of its methods.
///
/// # Safety
/// As [`change`].
unsafe fn with(
    builder: *mut bm3_dataset_builder,
    method: impl FnOnce(DatasetBuilder) -> Result<DatasetBuilder, Failure>,
) -> Result<(), Failure> {
    // SAFETY: the caller promises the same.
    unsafe {
        change(builder, |value| {
            let builder = std::mem::replace(value, Dataset::builder(""));
            *value = method(builder)?;
            Ok(())
        })
    }
}
