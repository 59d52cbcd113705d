//! Kernels that have been compiled, as the emulator finds them in a library.

use std::ffi::{CStr, CString, c_char};
use std::path::Path;

use tbshard::error::{Error, Result};

use crate::compile::Build;
use crate::host::{Function, HOST, Host};

/// `emulator::Entry` of `shim/entry.h`.
#[repr(C)]
struct Row {
    name: *const c_char,
    call: Option<Function>,
    bound: u32,
    written: u32,
    threads: u32,
}

/// A kernel.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) call: Function,
    /// Bits of the buffers that it takes, and of those that it may write.
    pub(crate) bound: u32,
    pub(crate) written: u32,
    pub(crate) threads: u32,
}

/// Loaded kernels.
#[derive(Debug, Clone)]
pub struct Library {
    pub(crate) entries: Vec<Entry>,
}

impl Library {
    /// The project's kernels.
    ///
    /// # Errors
    /// If they cannot be loaded.
    pub fn kernels(build: Build) -> Result<Self> {
        Self::made("kernels", build)
    }

    /// Kernels with mistakes, for the emulator's own tests.
    ///
    /// # Errors
    /// If they cannot be loaded.
    pub fn mistakes(build: Build) -> Result<Self> {
        Self::made("mistakes", build)
    }

    fn made(name: &str, build: Build) -> Result<Self> {
        let kind = if build == Build::Races { "-races" } else { "" };
        Self::load(&Path::new(env!("OUT_DIR")).join(format!("{name}{kind}.so")))
    }

    /// What [`compile`](crate::compile::compile) has made; it stays loaded.
    ///
    /// # Errors
    /// If it is no such library.
    pub fn load(path: &Path) -> Result<Self> {
        let name = CString::new(path.as_os_str().as_encoded_bytes()).map_err(Error::from_std)?;
        // SAFETY: the library's initialisers do nothing
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        // SAFETY: the names are strings; a null library has no symbols but those of this process
        let symbol = |name: &CStr| unsafe { libc::dlsym(library, name.as_ptr()) };
        let (host, rows) = (symbol(c"emulator_host"), symbol(c"emulator_entries"));
        if library.is_null() || host.is_null() || rows.is_null() {
            // SAFETY: what was wrong last, if anything, is a string
            let why = unsafe { libc::dlerror().as_ref() }.map(|why| unsafe { CStr::from_ptr(why) }.to_string_lossy());
            let why = why.unwrap_or("it has no kernels".into());
            return Err(Error::msg(format!("`{}` cannot be loaded: {why}", path.display())));
        }
        // SAFETY: the library is of this type's making
        unsafe { host.cast::<Host>().write(HOST) };
        let mut entries = Vec::new();
        let mut row = rows.cast::<Row>().cast_const();
        // SAFETY: the rows end with one without a function
        while let Some(call) = unsafe { (*row).call } {
            // SAFETY: as above, and its name is a string
            let (Row { bound, written, threads, .. }, name) = unsafe { (&*row, CStr::from_ptr((*row).name)) };
            let name = name.to_string_lossy().into_owned();
            entries.push(Entry { name, call, bound: *bound, written: *written, threads: *threads });
            row = row.wrapping_add(1);
        }
        Ok(Self { entries })
    }
}
