//! Objects that C code holds by pointers: never freed, so that the use of a destroyed one is noticed.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::home::Home;
use crate::rules;

/// What stands behind the fields that the header knows.
pub(crate) trait Owned: Sized {
    /// The header's structure.
    type Public;
    /// The number that a live handle of this kind carries.
    const MAGIC: u64;
    /// Where violations are logged, and of which device.
    fn place(&self) -> (&Home, usize);
}

#[repr(C)]
struct Handle<O: Owned> {
    public: O::Public,
    magic: AtomicU64,
    own: O,
}

/// A new handle.
pub(crate) fn make<O: Owned>(public: O::Public, own: O) -> *mut O::Public {
    Box::into_raw(Box::new(Handle { public, magic: AtomicU64::new(O::MAGIC), own })).cast()
}

/// What is behind a handle, if it is alive; a violation if it is not.
///
/// # Safety
///
/// Null, or a pointer that `make` gave.
pub(crate) unsafe fn get<'a, O: Owned>(pointer: *mut O::Public) -> Option<&'a O> {
    // SAFETY: as the caller promises; nothing but atomics is written behind the public part.
    let (magic, own) = unsafe {
        let handle = pointer.cast::<Handle<O>>();
        if handle.is_null() {
            return None;
        }
        (&(*handle).magic, &(*handle).own)
    };
    if magic.load(Ordering::Acquire) == O::MAGIC {
        return Some(own);
    }
    if magic.load(Ordering::Acquire) == !O::MAGIC {
        let (home, device) = own.place();
        home.violation(rules::USE_AFTER_DESTROY, device, std::any::type_name::<O::Public>());
    }
    None
}

/// Ends a handle; only one caller hears `true`.
///
/// # Safety
///
/// A pointer that `make` gave.
pub(crate) unsafe fn end<O: Owned>(pointer: *mut O::Public) -> bool {
    // SAFETY: as the caller promises.
    let magic = unsafe { &(*pointer.cast::<Handle<O>>()).magic };
    magic.compare_exchange(O::MAGIC, !O::MAGIC, Ordering::AcqRel, Ordering::Acquire).is_ok()
}
