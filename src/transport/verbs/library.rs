//! The system's verbs library, found at run time: one binary starts with it and without it.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::sync::OnceLock;

use super::abi::{Context, Cq, Device, DeviceAttr, Gid, Mr, Pd, PortAttr, Qp, QpAttr, QpInitAttr};
use crate::error::{Error, Result};

/// What it is called: by rdma-core on Linux, and by Apple, who keeps it in the system's shared cache and not in a file.
#[cfg(target_os = "macos")]
const NAMES: [&CStr; 2] = [c"librdma.dylib", c"/usr/lib/librdma.dylib"];
#[cfg(not(target_os = "macos"))]
const NAMES: [&CStr; 2] = [c"libibverbs.so.1", c"libibverbs.so"];

macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident : $symbol:literal = fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The library's functions.
        pub(super) struct Functions { $(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)* }

        impl Functions {
            /// Looks up every function.
            fn find(handle: *mut c_void) -> std::result::Result<Self, String> {
                Ok(Self { $($name: {
                    // SAFETY: the handle is an open library's, and the name ends with a zero.
                    let found = unsafe { libc::dlsym(handle, concat!($symbol, "\0").as_ptr().cast::<c_char>()) };
                    if found.is_null() {
                        return Err(format!("it has no `{}`", $symbol));
                    }
                    // SAFETY: the header declares the symbol with these arguments.
                    unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) $(-> $result)?>(found) }
                },)* })
            }
        }
    };
}

functions! {
    get_device_list: "ibv_get_device_list" = fn(*mut c_int) -> *mut *mut Device;
    free_device_list: "ibv_free_device_list" = fn(*mut *mut Device);
    get_device_name: "ibv_get_device_name" = fn(*mut Device) -> *const c_char;
    open_device: "ibv_open_device" = fn(*mut Device) -> *mut Context;
    close_device: "ibv_close_device" = fn(*mut Context) -> c_int;
    query_device: "ibv_query_device" = fn(*mut Context, *mut DeviceAttr) -> c_int;
    query_port: "ibv_query_port" = fn(*mut Context, u8, *mut PortAttr) -> c_int;
    query_gid: "ibv_query_gid" = fn(*mut Context, u8, c_int, *mut Gid) -> c_int;
    alloc_pd: "ibv_alloc_pd" = fn(*mut Context) -> *mut Pd;
    dealloc_pd: "ibv_dealloc_pd" = fn(*mut Pd) -> c_int;
    reg_mr: "ibv_reg_mr" = fn(*mut Pd, *mut c_void, usize, c_int) -> *mut Mr;
    dereg_mr: "ibv_dereg_mr" = fn(*mut Mr) -> c_int;
    create_cq: "ibv_create_cq" = fn(*mut Context, c_int, *mut c_void, *mut c_void, c_int) -> *mut Cq;
    destroy_cq: "ibv_destroy_cq" = fn(*mut Cq) -> c_int;
    create_qp: "ibv_create_qp" = fn(*mut Pd, *mut QpInitAttr) -> *mut Qp;
    modify_qp: "ibv_modify_qp" = fn(*mut Qp, *mut QpAttr, c_int) -> c_int;
    query_qp: "ibv_query_qp" = fn(*mut Qp, *mut QpAttr, c_int, *mut QpInitAttr) -> c_int;
    destroy_qp: "ibv_destroy_qp" = fn(*mut Qp) -> c_int;
}

/// A verbs library. It stays open until the process ends, because providers keep threads.
pub struct Library {
    pub(super) functions: Functions,
}

impl Library {
    /// The system's.
    ///
    /// # Errors
    /// If there is none, or a function is missing in it.
    pub fn system() -> Result<&'static Self> {
        static SYSTEM: OnceLock<std::result::Result<Library, String>> = OnceLock::new();
        let found = SYSTEM.get_or_init(|| {
            let mut why = String::new();
            for name in NAMES {
                match open(name) {
                    Ok(library) => return Ok(library),
                    Err(error) if why.is_empty() => why = error,
                    Err(_) => {}
                }
            }
            Err(why)
        });
        found.as_ref().map_err(|why| {
            let hint = if cfg!(target_os = "macos") {
                "RDMA over Thunderbolt needs macOS 26.2 or later; `transport: tcp` needs nothing"
            } else {
                "install it (Debian: apt install libibverbs1 ibverbs-providers), or use `transport: tcp`"
            };
            Error::msg(format!("this system has no RDMA library: {why}")).hint(hint)
        })
    }

    /// The one in a file.
    ///
    /// # Errors
    /// As [`Library::system`].
    pub fn at(path: &Path) -> Result<&'static Self> {
        let name = CString::new(path.as_os_str().as_encoded_bytes());
        let name = name.map_err(|_| Error::msg(format!("`{}` has a zero in it", path.display())))?;
        open(&name).map(|library| &*Box::leak(Box::new(library))).map_err(Error::msg)
    }
}

fn open(name: &CStr) -> std::result::Result<Library, String> {
    // NOW and GLOBAL: with LAZY and LOCAL Apple's library is said to hang at its second device
    // SAFETY: the name ends with a zero; what the library does when it is loaded is trusted as the system is.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if handle.is_null() {
        // SAFETY: returns the last error of this thread as text that ends with a zero, or null.
        let why = unsafe { libc::dlerror() };
        if why.is_null() {
            return Err(format!("{} cannot be loaded", name.to_string_lossy()));
        }
        // SAFETY: it is copied before the next call could change it.
        return Err(unsafe { CStr::from_ptr(why) }.to_string_lossy().into_owned());
    }
    let functions = Functions::find(handle).map_err(|why| format!("{}: {why}", name.to_string_lossy()))?;
    Ok(Library { functions })
}
