//! What this process has open of RDMA devices, so that a process which ends without unwinding can give it back.
//!
//! A Mac may keep what a dead process had until it restarts, and has little of it (mlx #3207, #3910). Every call into the
//! library holds its device's lock, so nothing is destroyed under a call; whoever calls once everything is being closed
//! waits for the end of the process, because an error would be a false last word.

use std::collections::BTreeSet;
use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::Duration;

use super::abi;
use super::errors::errno;
use super::library::{Functions, Library};

/// What the library gave, in the order in which it may be destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Object {
    QueuePair(NonNull<abi::Qp>),
    Region(NonNull<abi::Mr>),
    Completions(NonNull<abi::Cq>),
    Domain(NonNull<abi::Pd>),
    Context(NonNull<abi::Context>),
}

// SAFETY: verbs may be called from any thread.
unsafe impl Send for Object {}

/// An open device, and what was made from it.
pub(super) struct Open {
    library: &'static Library,
    objects: Mutex<BTreeSet<Object>>,
}

static ALL: Mutex<Vec<Arc<Open>>> = Mutex::new(Vec::new());
static CLOSING: AtomicBool = AtomicBool::new(false);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the lock, or waits for the end of the process if everything is being closed.
fn enter<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    let guard = lock(mutex);
    if CLOSING.load(Ordering::SeqCst) {
        drop(guard);
        loop {
            std::thread::park();
        }
    }
    guard
}

impl Open {
    /// Notes the device that `open` opens.
    pub(super) fn device<E>(
        library: &'static Library,
        open: impl FnOnce() -> Result<NonNull<abi::Context>, E>,
    ) -> Result<(Arc<Self>, NonNull<abi::Context>), E> {
        let mut all = enter(&ALL);
        let context = open()?;
        let opened = Arc::new(Self { library, objects: Mutex::new([Object::Context(context)].into()) });
        all.push(Arc::clone(&opened));
        Ok((opened, context))
    }

    /// Calls the library about something of this device.
    pub(super) fn call<T>(&self, call: impl FnOnce(&Functions) -> T) -> T {
        let _held = enter(&self.objects);
        call(&self.library.functions)
    }

    /// Notes what `make` makes from this device; fails with the system's number for it.
    pub(super) fn make<T>(
        &self,
        kind: fn(NonNull<T>) -> Object,
        make: impl FnOnce(&Functions) -> *mut T,
    ) -> Result<NonNull<T>, i32> {
        let mut objects = enter(&self.objects);
        let made = NonNull::new(make(&self.library.functions)).ok_or_else(errno)?;
        objects.insert(kind(made));
        Ok(made)
    }

    /// Destroys an object that nobody uses any more; returns the system's number for what is wrong, or 0.
    pub(super) fn end(self: &Arc<Self>, object: Object) -> c_int {
        let mut objects = enter(&self.objects);
        objects.remove(&object);
        let errno = object.destroy(&self.library.functions);
        drop(objects);
        if let Object::Context(_) = object {
            enter(&ALL).retain(|other| !Arc::ptr_eq(other, self));
        }
        errno
    }

    fn close(&self) {
        let mut objects = lock(&self.objects);
        while let Some(object) = objects.pop_first() {
            object.destroy(&self.library.functions);
        }
    }
}

impl Object {
    fn destroy(self, functions: &Functions) -> c_int {
        // SAFETY: the library gave the object and has not got it back, what was made from it is gone, and nobody is in a
        // call: the lock of its device is held.
        unsafe {
            match self {
                Self::QueuePair(raw) => (functions.destroy_qp)(raw.as_ptr()),
                Self::Region(raw) => (functions.dereg_mr)(raw.as_ptr()),
                Self::Completions(raw) => (functions.destroy_cq)(raw.as_ptr()),
                Self::Domain(raw) => (functions.dealloc_pd)(raw.as_ptr()),
                Self::Context(raw) => (functions.close_device)(raw.as_ptr()),
            }
        }
    }
}

/// Gives back everything that this process has of RDMA devices, because it ends now: whoever uses RDMA afterwards waits
/// for that end. Returns whether it was done `within` a time; a call that hangs in the library may keep its device.
pub fn close(within: Duration) -> bool {
    CLOSING.store(true, Ordering::SeqCst);
    let (done, closed) = sync_channel(1);
    let close_all = move || {
        let all = lock(&ALL);
        std::thread::scope(|scope| {
            for open in all.iter() {
                // one that hangs keeps none of the others, unless the system has no thread for it
                if Builder::new().spawn_scoped(scope, || open.close()).is_err() {
                    open.close();
                }
            }
        });
        // nobody hears it when the time is over
        let _ = done.send(());
    };
    Builder::new().spawn(close_all).is_ok() && closed.recv_timeout(within).is_ok()
}
