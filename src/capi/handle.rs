//! What a caller holds without knowing what is in it.
//!
//! A handle points to a word that says what kind it is and whether it may be used, and the value after
//! it. The word turns most mistakes with handles into refusals: one of another kind, one whose change
//! has not ended, one that was freed (as long as its memory is nobody else's).

use std::sync::atomic::{AtomicU64, Ordering};

use super::arguments::Out;
use super::status::Failure;

/// A kind of handle, by the type that stands for it in the header.
pub(super) trait Kind {
    /// What is in it.
    type Value;
    /// The word of a handle that may be used.
    const WORD: u64;
    /// What it is called in messages and in the names of functions.
    const NAME: &'static str;
}

/// Added to the word of a handle that is being changed.
const CHANGING: u64 = 1;

#[repr(C)]
struct Handle<T> {
    word: AtomicU64,
    value: T,
}

/// Puts a value into a handle of its own and gives that to the caller.
pub(super) fn give<K: Kind>(value: K::Value, out: &Out<*mut K>) {
    let handle = Box::new(Handle { word: AtomicU64::new(K::WORD), value });
    out.set(Box::into_raw(handle).cast());
}

/// The handle behind a pointer, where its word says that it may be used; or that it is being changed,
/// if that `suits`.
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

/// What is in a handle.
///
/// # Safety
/// The pointer is NULL or that of a handle, which is neither changed nor freed during `'a`.
pub(super) unsafe fn borrow<'a, K: Kind>(pointer: *const K) -> Result<&'a K::Value, Failure> {
    // SAFETY: as this function's own.
    let handle = unsafe { checked(pointer, false) }?;
    // SAFETY: by its word it is a handle of this kind; the caller answers for its life.
    Ok(unsafe { &(*handle).value })
}

/// Changes what is in a handle. Where `change` panics, the handle can be freed and nothing else.
///
/// # Safety
/// The pointer is NULL or that of a handle, which no other call uses meanwhile.
pub(super) unsafe fn change<K: Kind, T>(
    pointer: *mut K,
    change: impl FnOnce(&mut K::Value) -> Result<T, Failure>,
) -> Result<T, Failure> {
    // SAFETY: as this function's own.
    let handle = unsafe { checked(pointer, false) }?;
    // SAFETY: by its word it is a handle of this kind; the caller answers for its being the only use.
    let Handle { word, value } = unsafe { &mut *handle };
    word.store(K::WORD + CHANGING, Ordering::Release);
    let result = change(value);
    word.store(K::WORD, Ordering::Release);
    result
}

/// Takes what is in a handle and sets the caller's pointer to NULL; `None` where it is so already.
///
/// # Safety
/// `pointer` is NULL or points to NULL or to a handle, which no other call uses meanwhile or later.
pub(super) unsafe fn take<K: Kind>(pointer: *mut *mut K) -> Result<Option<K::Value>, Failure> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: as this function's own.
    let out = unsafe { Out::new(K::NAME, pointer) }?;
    // SAFETY: it points to a pointer, as this function asks.
    let handle = unsafe { *pointer };
    if handle.is_null() {
        return Ok(None);
    }
    // SAFETY: as this function's own.
    let handle = unsafe { checked(handle, true) }?;
    out.set(std::ptr::null_mut());
    // SAFETY: by its word it is a handle of this kind, which `give` made of a box; the caller answers
    // for nobody else using it.
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
        // SAFETY: handles of these tests are used by one thread, and not after they were freed.
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
