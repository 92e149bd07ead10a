//! Opening, keeping and looking into what answers.

use std::ffi::c_char;

use super::arguments::{Out, device, path};
use super::handle::{Kind, borrow, give, take};
use super::status::{Failure, bm3_status, call};
use crate::{Model, Recommender};

/// A trained model, ready to answer.
pub struct bm3_recommender(());

impl Kind for bm3_recommender {
    type Value = Recommender;
    const WORD: u64 = u64::from_be_bytes(*b"bm3serve");
    const NAME: &'static str = "bm3_recommender";
}

/// Opens a trained model: `file` is the directory of a run, or a model.safetensors.
///
/// `device` is "cpu", a GPU's number as "0", or "auto": GPU 0 where it can be used, else the CPU; NULL
/// is the CPU. `bm3_recommender_free` frees what is put into `recommender`.
///
/// The file stays mapped until then: a newer one takes its place by being renamed to its name, never
/// by being written into it. After `fork` a child opens a model of its own to answer on a GPU.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_recommender_open(
    file: *const c_char,
    device: *const c_char,
    recommender: *mut *mut bm3_recommender,
) -> bm3_status {
    call(|| {
        // SAFETY: the caller's.
        let (out, file, device) = unsafe {
            (Out::handle("recommender", recommender)?, path("file", file)?, self::device(device)?)
        };
        give(Recommender::on(Model::load(&file)?, device)?, &out);
        Ok(())
    })
}

/// Writes the model into a file as `bm3_recommender_open` and the program read it, whole or not at all.
///
/// Items that were added to the recommender are not in the model, and are added again where it is
/// opened.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_recommender_save(
    recommender: *const bm3_recommender,
    file: *const c_char,
) -> bm3_status {
    call(|| {
        // SAFETY: the caller's.
        let (recommender, file) = unsafe { (borrow(recommender)?, path("file", file)?) };
        Ok(recommender.model().save(&file)?)
    })
}

/// Frees a recommender and sets the pointer to NULL; NULL, and a pointer to NULL, are left alone.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_recommender_free(
    recommender: *mut *mut bm3_recommender,
) -> bm3_status {
    // SAFETY: the caller's.
    call(|| unsafe { take(recommender) }.map(drop))
}

/// How many users and items there are, those that were added among them, and how wide a row is. Each
/// of the three may be NULL.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_recommender_sizes(
    recommender: *const bm3_recommender,
    users: *mut usize,
    items: *mut usize,
    embedding_size: *mut usize,
) -> bm3_status {
    call(|| {
        // SAFETY: the caller's.
        let recommender = unsafe { borrow(recommender) }?;
        for (name, place, size) in [
            ("users", users, recommender.model().users()),
            ("items", items, recommender.items()),
            ("embedding_size", embedding_size, recommender.width()),
        ] {
            // SAFETY: the caller's.
            if let Some(out) = unsafe { Out::optional(name, place) }? {
                out.set(size);
            }
        }
        Ok(())
    })
}

/// The rows of all users, one after the other, each as long as the embedding size: a score is the
/// product of a user's row and an item's.
///
/// `rows` then points to the library's own numbers, `rows_len` of them in all, which are there until
/// the recommender is changed or freed.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_user_rows(
    recommender: *const bm3_recommender,
    rows: *mut *const f32,
    rows_len: *mut usize,
) -> bm3_status {
    // SAFETY: the caller's.
    call(|| unsafe { lend("rows", Recommender::user_rows, recommender, rows, rows_len) })
}

/// The rows of all items, those that were added among them; otherwise as `bm3_user_rows`.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_item_rows(
    recommender: *const bm3_recommender,
    rows: *mut *const f32,
    rows_len: *mut usize,
) -> bm3_status {
    // SAFETY: the caller's.
    call(|| unsafe { lend("rows", Recommender::item_rows, recommender, rows, rows_len) })
}

/// The items without training interactions, ascending, those that were added among them.
///
/// `items` then points to the library's own numbers, `items_len` of them, which are there until the
/// recommender is changed or freed.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_cold_items(
    recommender: *const bm3_recommender,
    items: *mut *const u32,
    items_len: *mut usize,
) -> bm3_status {
    // SAFETY: the caller's.
    call(|| unsafe { lend("items", Recommender::cold_items, recommender, items, items_len) })
}

/// Shows the caller numbers of a recommender, which are called `name`.
///
/// # Safety
/// Those of the functions above.
unsafe fn lend<T>(
    name: &str,
    of: fn(&Recommender) -> &[T],
    recommender: *const bm3_recommender,
    numbers: *mut *const T,
    length: *mut usize,
) -> Result<(), Failure> {
    // SAFETY: as this function's own.
    let (recommender, out, length) = unsafe {
        (borrow(recommender)?, Out::new(name, numbers)?, Out::new(&format!("{name}_len"), length)?)
    };
    let numbers = of(recommender);
    out.set(numbers.as_ptr());
    length.set(numbers.len());
    Ok(())
}
