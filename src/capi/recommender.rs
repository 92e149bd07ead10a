//! Opens, saves and inspects trained models.

use std::ffi::{CString, c_char};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::arguments::{Out, device, path};
use super::dataset::bm3_dataset;
use super::handle::{Kind, borrow, change, give, take};
use super::status::{self, Failure, bm3_status, call};
use crate::config::DeviceChoice;
use crate::device::Device;
use crate::wording::Caller;
use crate::{Error, Model, Recommender, Result};

/// A trained model, ready to answer.
pub struct bm3_recommender(());

/// A recommender, and what is told of it as C strings.
pub(super) struct Served {
    recommender: Recommender,
    choice: DeviceChoice,
    device: CString,
    record: CString,
}

impl Served {
    /// Serves a model on a device; says so if `auto` passes over a GPU.
    pub fn new(model: impl Into<Arc<Model>>, choice: DeviceChoice) -> Result<Self> {
        let (device, passed_over) = Device::open(choice)?;
        let mut description = device.describe();
        if let Some(reason) = passed_over {
            let reason = Caller::C.words(&reason.to_string());
            description += &format!(" (GPU 0 cannot be used: {reason})");
        }
        let recommender = Recommender::on_device(model, device)?;
        let record = serde_json::to_string(recommender.model().record())
            .map_err(|error| Error::setting("record", error.to_string()))?;
        let [device, record] = [description, record].map(|text| status::text(&text));
        Ok(Self { recommender, choice, device, record })
    }
}

impl Deref for Served {
    type Target = Recommender;

    fn deref(&self) -> &Recommender {
        &self.recommender
    }
}

impl DerefMut for Served {
    fn deref_mut(&mut self) -> &mut Recommender {
        &mut self.recommender
    }
}

impl Kind for bm3_recommender {
    type Value = Served;
    const WORD: u64 = u64::from_be_bytes(*b"bm3serve");
    const NAME: &'static str = "bm3_recommender";
}

/// Opens a trained model: `file` is the directory of a run, or a model.safetensors.
///
/// `device` is "cpu", a GPU's number such as "0", or "auto": GPU 0 if it can be used, else the CPU;
/// NULL means the CPU. `bm3_recommender_free` frees the handle written to `recommender`.
///
/// The file stays mapped until then: replace it by renaming a newer one to its name, never by
/// writing into it.
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
        // SAFETY: the caller keeps the rules of the module.
        let (out, file, device) = unsafe {
            (Out::handle("recommender", recommender)?, path("file", file)?, self::device(device)?)
        };
        give(Served::new(Model::load(&file)?, device)?, &out);
        Ok(())
    })
}

/// Writes the model to a file that `bm3_recommender_open` and the program can read, whole or not at
/// all.
///
/// Items added to the recommender are not part of the model: add them again after opening it.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_recommender_save(
    recommender: *const bm3_recommender,
    file: *const c_char,
) -> bm3_status {
    call(|| {
        // SAFETY: the caller keeps the rules of the module.
        let (recommender, file) = unsafe { (borrow(recommender)?, path("file", file)?) };
        Ok(recommender.model().save(&file)?)
    })
}

/// Replaces the training interactions by those of a data set, for example newer ones of the same users
/// and items, without training: they are what lists leave out, and part of what rows are made of.
///
/// The numbers of users and items must be the model's, without added items. Added items are no longer
/// there, and cold items are no longer scored by their features: call `bm3_score_cold_items` and
/// `bm3_add_items` again. `bm3_recommender_save` keeps the interactions. If it fails, nothing changes.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_recommender_set_interactions(
    recommender: *mut bm3_recommender,
    dataset: *const bm3_dataset,
) -> bm3_status {
    call(|| {
        // SAFETY: the caller keeps the rules of the module.
        let dataset = &unsafe { borrow(dataset) }?.dataset;
        // SAFETY: the caller keeps the rules of the module.
        unsafe {
            change(recommender, |served| {
                let model = Model::clone(served.recommender.model()).with_interactions(dataset)?;
                *served = Served::new(model, served.choice)?;
                Ok(())
            })
        }
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
    // SAFETY: the caller keeps the rules of the module.
    call(|| unsafe { take(recommender) }.map(drop))
}

/// Writes the number of users, the number of items including added ones, and the width of a row.
/// Each of the three may be NULL.
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
        // SAFETY: the caller keeps the rules of the module.
        let recommender = unsafe { borrow(recommender) }?;
        for (name, place, size) in [
            ("users", users, recommender.model().users()),
            ("items", items, recommender.items()),
            ("embedding_size", embedding_size, recommender.width()),
        ] {
            // SAFETY: the caller keeps the rules of the module.
            if let Some(out) = unsafe { Out::optional(name, place) }? {
                out.set(size);
            }
        }
        Ok(())
    })
}

/// Lends one line that names the device it answers on; if "auto" passed over a GPU, with the reason.
///
/// `device` then points to the library's own text, which stays valid until the recommender is
/// changed or freed.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_recommender_device(
    recommender: *const bm3_recommender,
    device: *mut *const c_char,
) -> bm3_status {
    // SAFETY: the caller keeps the rules of the module.
    call(|| unsafe { lend_text("device", |served| &served.device, recommender, device) })
}

/// Lends what is known of the model, as a JSON object: in `identity` its settings (`config`), the
/// names and widths of its `modalities`, its numbers of `users` and `items`; the `epoch` it was best
/// in, and its metrics then on the validation split (`valid`) and the test split (`test`).
///
/// `record` then points to the library's own text, which stays valid until the recommender is
/// changed or freed.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_recommender_record(
    recommender: *const bm3_recommender,
    record: *mut *const c_char,
) -> bm3_status {
    // SAFETY: the caller keeps the rules of the module.
    call(|| unsafe { lend_text("record", |served| &served.record, recommender, record) })
}

/// Lends the caller a text of a recommender, which messages call `name`.
///
/// # Safety
/// As the functions above.
unsafe fn lend_text(
    name: &str,
    of: fn(&Served) -> &CString,
    recommender: *const bm3_recommender,
    text: *mut *const c_char,
) -> Result<(), Failure> {
    // SAFETY: the caller promises the same.
    let (recommender, out) = unsafe { (borrow(recommender)?, Out::new(name, text)?) };
    out.set(of(recommender).as_ptr());
    Ok(())
}

/// Lends the rows of all users, one after the other, each as long as the embedding size: a score is
/// the inner product of a user's row and an item's.
///
/// `rows` then points to the library's own numbers, `rows_len` of them in all, which stay valid
/// until the recommender is changed or freed.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_user_rows(
    recommender: *const bm3_recommender,
    rows: *mut *const f32,
    rows_len: *mut usize,
) -> bm3_status {
    // SAFETY: the caller keeps the rules of the module.
    call(|| unsafe { lend("rows", Recommender::user_rows, recommender, rows, rows_len) })
}

/// Lends the rows of all items, including added ones; otherwise as `bm3_user_rows`.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_item_rows(
    recommender: *const bm3_recommender,
    rows: *mut *const f32,
    rows_len: *mut usize,
) -> bm3_status {
    // SAFETY: the caller keeps the rules of the module.
    call(|| unsafe { lend("rows", Recommender::item_rows, recommender, rows, rows_len) })
}

/// Lends the items without training interactions, ascending, including added ones.
///
/// `items` then points to the library's own numbers, `items_len` of them, which stay valid until
/// the recommender is changed or freed.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_cold_items(
    recommender: *const bm3_recommender,
    items: *mut *const u32,
    items_len: *mut usize,
) -> bm3_status {
    // SAFETY: the caller keeps the rules of the module.
    call(|| unsafe { lend("items", Recommender::cold_items, recommender, items, items_len) })
}

/// Lends the users without training interactions, ascending: their lists come from what was drawn
/// when training began, and say nothing about them. Otherwise as `bm3_cold_items`.
///
/// # Safety
/// The module's rules for pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bm3_cold_users(
    recommender: *const bm3_recommender,
    users: *mut *const u32,
    users_len: *mut usize,
) -> bm3_status {
    // SAFETY: the caller keeps the rules of the module.
    call(|| unsafe { lend("users", Recommender::cold_users, recommender, users, users_len) })
}

/// Lends the caller an array of a recommender, which messages call `name`.
///
/// # Safety
/// As the functions above.
unsafe fn lend<T>(
    name: &str,
    of: fn(&Recommender) -> &[T],
    recommender: *const bm3_recommender,
    numbers: *mut *const T,
    length: *mut usize,
) -> Result<(), Failure> {
    // SAFETY: the caller promises the same.
    let (recommender, out, length) = unsafe {
        (borrow(recommender)?, Out::new(name, numbers)?, Out::new(&format!("{name}_len"), length)?)
    };
    let recommender: &Recommender = recommender;
    let numbers = of(recommender);
    out.set(numbers.as_ptr());
    length.set(numbers.len());
    Ok(())
}
