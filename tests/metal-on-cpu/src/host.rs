//! What kernels and the emulator know of each other: twins of `shim/simdgroup.h`, and the functions that kernels call.

use std::borrow::Cow;
use std::ffi::{CStr, c_char, c_void};
use std::ptr::null;

use crate::group::{LANES, RUNNING};

/// `emulator::Thread` of `shim/simdgroup.h`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Thread {
    pub(crate) position: [u32; 3],
    pub(crate) group: [u32; 3],
    pub(crate) threads: [u32; 3],
    pub(crate) groups: [u32; 3],
    pub(crate) index: u32,
    pub(crate) lane: u32,
    pub(crate) simdgroup: u32,
    pub(crate) simdgroups: u32,
    pub(crate) bound: *const *mut u8,
}

/// `emulator::Exchange` of `shim/simdgroup.h`.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct Exchange {
    pub(crate) slots: [u8; LANES * 32],
    pub(crate) result: [u8; 16],
    pub(crate) active: u32,
    pub(crate) has_result: u32,
}

/// `emulator::Host` of `shim/simdgroup.h`.
#[repr(C)]
pub(crate) struct Host {
    exchange: unsafe extern "C" fn(*const u8, u32, u32, *const c_char, *const c_char, u32, u32) -> *mut Exchange,
    barrier: unsafe extern "C" fn(u32, *const c_char, u32, u32),
    memory: unsafe extern "C" fn(*const c_void, u32, u32, *const c_char) -> *mut u8,
    lane: unsafe extern "C" fn() -> u32,
    access: unsafe extern "C" fn(*const u8, u32, bool, *const c_void),
    coherent: unsafe extern "C" fn(*mut u8, u32, bool, *const c_void),
    fence: unsafe extern "C" fn(),
}

pub(crate) const HOST: Host = Host { exchange, barrier, memory, lane, access, coherent, fence };

/// A kernel's function.
pub(crate) type Function = unsafe extern "C" fn(*const Thread);

/// A grid of threads that run one function.
#[derive(Clone, Copy)]
pub(crate) struct Grid<'a> {
    pub(crate) function: Function,
    pub(crate) bound: &'a [*mut u8],
    pub(crate) groups: [u32; 3],
    pub(crate) threads: [u32; 3],
}

// SAFETY: who makes a grid answers for what its threads may do to what is bound
unsafe impl Sync for Grid<'_> {}

/// Where a fiber waits.
#[derive(Clone, Copy)]
pub(crate) struct Site {
    what: *const c_char,
    file: *const c_char,
    line: u32,
    column: u32,
}

impl Site {
    pub(crate) const NONE: Self = Self { what: null(), file: null(), line: 0, column: 0 };

    pub(crate) fn is(self, other: Self) -> bool {
        // a header's name may be stored more than once
        (self.line, self.column) == (other.line, other.column) && text(self.file) == text(other.file)
    }

    pub(crate) fn name(self) -> String {
        format!("{} ({}:{})", text(self.what), text(self.file), self.line)
    }
}

pub(crate) fn text<'a>(at: *const c_char) -> Cow<'a, str> {
    // SAFETY: the compiler made these strings, or there is none
    if at.is_null() { "".into() } else { unsafe { CStr::from_ptr(at) }.to_string_lossy() }
}

unsafe extern "C" fn exchange(
    value: *const u8,
    size: u32,
    flags: u32,
    what: *const c_char,
    file: *const c_char,
    line: u32,
    column: u32,
) -> *mut Exchange {
    // SAFETY: a kernel calls this, so there is a runner, and the value has that size
    unsafe {
        let value = if size == 0 { &[] } else { std::slice::from_raw_parts(value, size as usize) };
        (*RUNNING.get()).exchange(value, flags, Site { what, file, line, column })
    }
}

unsafe extern "C" fn barrier(flags: u32, file: *const c_char, line: u32, column: u32) {
    // SAFETY: a kernel calls this, so there is a runner
    unsafe { (*RUNNING.get()).barrier(flags, Site { what: c"threadgroup_barrier".as_ptr(), file, line, column }) }
}

unsafe extern "C" fn memory(key: *const c_void, size: u32, align: u32, name: *const c_char) -> *mut u8 {
    // SAFETY: as above
    unsafe { (*RUNNING.get()).memory(key, size as usize, align as usize, name) }
}

unsafe extern "C" fn lane() -> u32 {
    // SAFETY: as above
    unsafe { ((*RUNNING.get()).current() % LANES) as u32 }
}

unsafe extern "C" fn access(at: *const u8, size: u32, writes: bool, code: *const c_void) {
    // SAFETY: as above
    unsafe { (*RUNNING.get()).access(at as usize, size as usize, writes, code as usize) }
}

unsafe extern "C" fn coherent(at: *mut u8, size: u32, writes: bool, code: *const c_void) {
    // SAFETY: as above
    unsafe { (*RUNNING.get()).coherent(at as usize, size as usize, writes, code as usize) }
}

unsafe extern "C" fn fence() {
    // SAFETY: as above
    unsafe { (*RUNNING.get()).fence() }
}
