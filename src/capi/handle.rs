//! Handles: opaque pointers for the caller.
//!
//! A handle points to a word that says what kind it is and whether it may be used, followed by its
//! value. The word turns most mistakes with handles into refusals: one of another kind, one whose
//! change has not ended, one that was freed (until its memory is reused).

use std::sync::atomic::{AtomicU64, Ordering};

use super::arguments::Out;
use super::status::Failure;

/// A kind of handle, by the type that stands for it in the header.
pub(super) trait Kind {
    /// The value in it.
    type Value;
    /// The word of a usable handle.
    const WORD: u64;
    /// Its name in messages and in the names of functions.
    const NAME: &'static str;
}

/// Added to the word of a handle that is being changed.
const CHANGING: u64 = 1;

#[repr(C)]
struct Handle<T> {
    word: AtomicU64,
    value: T,
}

/// Puts a value into a new handle and gives that to the caller.
pub(super) fn give<K: Kind>(value: K::Value, out: &Out<*mut K>) {
    let handle = Box::new(Handle { word: AtomicU64::new(K::WORD), value });
    out.set(Box::into_raw(handle).cast());
}

/// The handle behind a pointer, if its word says that it may be used or, with `suits`, that it is
/// being changed.
///
/// # Safety
/// The pointer is NULL or that of a handle in use.
unsafe fn checked<K: Kind>(
    pointer: *const K,
    suits: bool,
) -> Result<*mut Handle<K::Value>, Failure> {
    let wrong = |problem: &str| {
        Err(Failure::argument(K::NAME, format!("{problem} found, a {} expected", K::NAME)))
    };
    if pointer.is_null() {
        return wrong("NULL");
    }
    let word = pointer.cast::<AtomicU64>();
    if !word.is_aligned() {
        return wrong("a pointer to something else");
    }
    // SAFETY: every handle, of whatever kind, begins with its word.
    let word = unsafe { &*word }.load(Ordering::Acquire);
    match word {
        word if word == K::WORD => {}
        word if word == K::WORD + CHANGING && suits => {}
        word if word == K::WORD + CHANGING => {
            return wrong(
                "one that another call changes, or that a failure has left half-changed,",
            );
        }
        _ => return wrong("a handle of another kind, or one that was freed,"),
    }
    Ok(pointer.cast::<Handle<K::Value>>().cast_mut())
}

/// The value in a handle.
///
/// # Safety
/// The pointer is NULL or that of a handle that is neither changed nor freed during `'a`.
pub(super) unsafe fn borrow<'a, K: Kind>(pointer: *const K) -> Result<&'a K::Value, Failure> {
    // SAFETY: the caller promises the same.
    let handle = unsafe { checked(pointer, false) }?;
    // SAFETY: its word shows a handle of this kind; the caller answers for its lifetime.
    Ok(unsafe { &(*handle).value })
}

/// Changes the value in a handle. If `change` panics, the handle can only be freed.
///
/// # Safety
/// The pointer is NULL or that of a handle that no other call uses meanwhile.
pub(super) unsafe fn change<K: Kind, T>(
    pointer: *mut K,
    change: impl FnOnce(&mut K::Value) -> Result<T, Failure>,
) -> Result<T, Failure> {
    // SAFETY: the caller promises the same.
    let handle = unsafe { checked(pointer, false) }?;
    // SAFETY: its word shows a handle of this kind; the caller promises that no other call uses it.
    let Handle { word, value } = unsafe { &mut *handle };
    word.store(K::WORD + CHANGING, Ordering::Release);
    let result = change(value);
    word.store(K::WORD, Ordering::Release);
    result
}

/// Takes the value out of a handle and sets the caller's pointer to NULL; `None` if it was NULL
/// already.
///
/// # Safety
/// `pointer` is NULL, or points to NULL or to a handle that no other call uses meanwhile or later.
pub(super) unsafe fn take<K: Kind>(pointer: *mut *mut K) -> Result<Option<K::Value>, Failure> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller promises the same.
    let out = unsafe { Out::new(K::NAME, pointer) }?;
    // SAFETY: `pointer` points to a pointer, as this function requires.
    let handle = unsafe { *pointer };
    if handle.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller promises the same.
    let handle = unsafe { checked(handle, true) }?;
    out.set(std::ptr::null_mut());
    // SAFETY: its word shows a handle of this kind, which `give` made from a box; the caller
    // promises that no other call uses it.
    let handle = unsafe { Box::from_raw(handle) };
    handle.word.store(0, Ordering::Release);
    Ok(Some(handle.value))
}

#[cfg(test)]
mod tests {
    use std::ptr::null_mut;

    use super::super::status::call;
    use super::*;

    struct number;
    struct word;

    impl Kind for number {
        type Value = u8;
        const WORD: u64 = 10;
        const NAME: &'static str = "number";
    }

    impl Kind for word {
        type Value = String;
        const WORD: u64 = 20;
        const NAME: &'static str = "word";
    }

    fn made<K: Kind>(value: K::Value) -> *mut K {
        let mut pointer = null_mut();
        // SAFETY: the pointer is a local variable.
        give(value, &unsafe { Out::new("out", &raw mut pointer) }.unwrap());
        pointer
    }

    fn problem<T>(result: Result<T, Failure>) -> String {
        match result {
            Err(Failure::Error(error)) => error.to_string(),
            _ => panic!("accepted"),
        }
    }

    #[test]
    fn a_handle_is_used_changed_and_freed_once() {
        let mut pointer = made::<number>(7);
        // SAFETY: one thread uses the handles of these tests, and not after they were freed.
        unsafe {
            assert_eq!(*borrow(pointer).unwrap(), 7);
            assert_eq!(change(pointer, |value| Ok(std::mem::replace(value, 8))).unwrap(), 7);
            assert_eq!(take(&raw mut pointer).unwrap(), Some(8));
            assert!(pointer.is_null());
            assert_eq!(take(&raw mut pointer).unwrap(), None);
            assert_eq!(take::<number>(null_mut()).unwrap(), None);
        }
    }

    #[test]
    fn what_is_no_handle_of_the_kind_is_refused_and_stays() {
        let mut other = made::<word>("w".to_owned());
        // SAFETY: as above.
        unsafe {
            assert!(problem(borrow(null_mut::<number>())).contains("NULL found, a number"));
            assert!(problem(borrow(other.cast::<number>())).contains("of another kind"));
            let odd = other.cast::<u8>().wrapping_add(1).cast::<number>();
            assert!(problem(borrow(odd)).contains("something else"));
            let mut disguised = other.cast::<number>();
            assert!(problem(take(&raw mut disguised)).contains("of another kind"));
            assert!(!disguised.is_null());
            assert_eq!(take(&raw mut other).unwrap().as_deref(), Some("w"));
        }
    }

    #[test]
    fn a_handle_left_half_changed_is_good_for_nothing_but_to_be_freed() {
        let mut pointer = made::<number>(7);
        call(|| {
            // SAFETY: as above.
            unsafe { change(pointer, |_| -> Result<(), Failure> { panic!("half-way") }) }
        });
        // SAFETY: as above.
        unsafe {
            assert!(problem(borrow(pointer)).contains("half-changed"));
            assert!(problem(change(pointer, |_| Ok(()))).contains("half-changed"));
            assert_eq!(take(&raw mut pointer).unwrap(), Some(7));
        }
    }
}
