//! What programs are linked with and these devices have not: completion channels and extended queue pairs.

use std::ffi::{c_int, c_void};

use crate::abi::{Context, Cq, Qp};
use crate::home::raise;

/// There are no channels.
#[unsafe(no_mangle)]
pub extern "C" fn ibv_create_comp_channel(_: *mut Context) -> *mut c_void {
    raise(libc::ENOSYS);
    std::ptr::null_mut()
}

/// So none can be destroyed,
#[unsafe(no_mangle)]
pub extern "C" fn ibv_destroy_comp_channel(_: *mut c_void) -> c_int {
    raise(libc::EINVAL)
}

/// asked,
#[unsafe(no_mangle)]
pub extern "C" fn ibv_get_cq_event(_: *mut c_void, _: *mut *mut Cq, _: *mut *mut c_void) -> c_int {
    raise(libc::EINVAL);
    -1
}

/// or told that what it said was heard.
#[unsafe(no_mangle)]
pub extern "C" fn ibv_ack_cq_events(_: *mut Cq, _: u32) {}

/// Every queue pair is a plain one.
#[unsafe(no_mangle)]
pub extern "C" fn ibv_qp_to_qp_ex(_: *mut Qp) -> *mut c_void {
    std::ptr::null_mut()
}
