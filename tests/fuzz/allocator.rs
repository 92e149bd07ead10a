//! An allocator that counts live bytes, records their peak, and refuses absurd requests.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Reading a file of some kilobytes never needs this much. The program ends with the system's
/// message instead of filling the machine's memory first.
const CEILING: usize = 2 << 30;

static ALIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

pub struct Counting;

impl Counting {
    fn grow(bytes: usize) -> bool {
        let alive = ALIVE.fetch_add(bytes, Relaxed) + bytes;
        if alive > CEILING {
            ALIVE.fetch_sub(bytes, Relaxed);
            return false;
        }
        PEAK.fetch_max(alive, Relaxed);
        true
    }
}

// SAFETY: every request goes to the system's allocator unchanged, or is answered by null, which
// means out of memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !Self::grow(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !Self::grow(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both blocks exist while it moves.
        if !Self::grow(size) {
            return std::ptr::null_mut();
        }
        ALIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// The peak of live bytes during `body`, beyond those at its start.
pub fn peak_of<R>(body: impl FnOnce() -> R) -> (R, usize) {
    let before = ALIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = body();
    (result, PEAK.load(Relaxed).saturating_sub(before))
}
