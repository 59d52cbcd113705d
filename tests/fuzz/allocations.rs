//! An allocator that remembers the largest block a thread got.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

struct Watched;

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// Counts a block that there was memory for: asking for too much and being refused is no harm.
fn note(block: *mut u8, size: usize) -> *mut u8 {
    if !block.is_null() {
        // a thread that ends allocates after its locals are gone
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
    }
    block
}

// SAFETY: every call is handed on to the system's allocator unchanged
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise
        note(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise
        note(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise
        note(unsafe { System.realloc(block, layout, size) }, size)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise
        unsafe { System.dealloc(block, layout) }
    }
}

/// Runs `read` and says how many bytes the largest block had that it got.
pub fn largest<T>(read: impl FnOnce() -> T) -> (T, usize) {
    LARGEST.set(0);
    let result = read();
    (result, LARGEST.get())
}

#[test]
fn the_largest_block_is_seen() {
    let (_, size) = largest(|| (vec![1_u8; 1000], vec![0_u8; 5000], vec![1_u8; 10]));
    assert_eq!(size, 5000);
    let refused = largest(|| Vec::<u8>::new().try_reserve_exact(1 << 60).is_err());
    assert_eq!(refused, (true, 0));
}
