//! The compiled kernels, and how one call of them is run.

use std::ffi::{CStr, c_char, c_void};
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, Ordering};

use tbshard::error::{Error, Result};

/// A row of a table that the build makes: `MslKernel` in `shim/thread.h`.
#[repr(C)]
pub(crate) struct Compiled {
    name: *const c_char,
    entry: Option<unsafe extern "C" fn(*mut *mut c_void)>,
    buffers: u32,
    written: u32,
}

// SAFETY: names, numbers and functions that never change
unsafe impl Sync for Compiled {}

unsafe extern "C" {
    static msl_kernels: Compiled;
    static msl_mistakes: Compiled;
    fn msl_run(
        kernel: *const Compiled,
        buffers: *mut *mut c_void,
        groups: *const u32,
        threads: *const u32,
        order: u32,
        error: *mut c_char,
        error_bytes: usize,
    ) -> i32;
}

/// All kernels, those that make mistakes last.
pub(crate) fn all() -> Vec<&'static Compiled> {
    let mut found = Vec::new();
    for table in [&raw const msl_kernels, &raw const msl_mistakes] {
        let mut at = table;
        // SAFETY: the build ends every table by a row without a name
        while let row = unsafe { &*at }
            && !row.name.is_null()
        {
            found.push(row);
            // SAFETY: there is a row after each with a name
            at = unsafe { at.add(1) };
        }
    }
    found
}

impl Compiled {
    pub(crate) fn name(&self) -> &'static str {
        // SAFETY: a literal
        unsafe { CStr::from_ptr(self.name) }.to_str().unwrap_or_default()
    }

    /// Buffers, params among them.
    pub(crate) fn buffers(&self) -> usize {
        self.buffers as usize
    }

    /// Whether it is declared to write the buffer.
    pub(crate) fn writes(&self, buffer: usize) -> bool {
        self.written >> buffer & 1 != 0
    }

    /// Runs all threadgroups.
    ///
    /// # Safety
    /// The buffers are as large as the kernel believes, or end at a page that nobody may touch.
    pub(crate) unsafe fn run(
        &'static self,
        buffers: &mut [*mut c_void],
        groups: [u32; 3],
        threads: [u32; 3],
        order: u32,
    ) -> Result<()> {
        say_who_faults();
        let mut message = [0 as c_char; 512];
        RUNNING.store(self.name.cast_mut(), Ordering::SeqCst);
        // SAFETY: the caller's promise; the message has the room that is said
        let failed = unsafe {
            let (buffers, text) = (buffers.as_mut_ptr(), message.as_mut_ptr());
            msl_run(self, buffers, groups.as_ptr(), threads.as_ptr(), order, text, message.len())
        };
        RUNNING.store(std::ptr::null_mut(), Ordering::SeqCst);
        if failed == 0 {
            return Ok(());
        }
        // SAFETY: the runtime ends its message
        Err(Error::msg(unsafe { CStr::from_ptr(message.as_ptr()) }.to_string_lossy()))
    }
}

/// The name of the kernel that runs.
static RUNNING: AtomicPtr<c_char> = AtomicPtr::new(std::ptr::null_mut());

/// From now on a fault says which kernel touched what it may not, and ends the process.
fn say_who_faults() {
    static ONCE: Once = Once::new();
    extern "C" fn fault(_: i32) {
        let name = RUNNING.load(Ordering::SeqCst);
        // SAFETY: a literal, or nothing
        let name = if name.is_null() { b"nothing" } else { unsafe { CStr::from_ptr(name) }.to_bytes() };
        for part in [b"kernel `".as_slice(), name, b"` touched memory outside of its arguments\n"] {
            let _ = rustix::io::write(rustix::stdio::stderr(), part);
        }
        std::process::abort();
    }
    unsafe extern "C" {
        fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    }
    const SIGSEGV: i32 = 11;
    // SAFETY: the handler only writes and aborts
    ONCE.call_once(|| unsafe { _ = signal(SIGSEGV, fault) });
}
