//! What a process has from the one that started it: file descriptors, and signals that it is not to hear.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::error::{Error, Result};

/// Lets `command`'s process, and no other, inherit `fd`, which must stay open until then; returns its number there.
pub fn inherit(fd: BorrowedFd<'_>, command: &mut Command) -> RawFd {
    let fd = fd.as_raw_fd();
    let keep = move || {
        // SAFETY: fcntl on a number touches no memory and may be called between fork and exec.
        let done = unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
        if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: the closure allocates nothing and takes no lock, as the moment between fork and exec demands.
    unsafe { command.pre_exec(keep) };
    fd
}

/// Takes a descriptor that the process which started this one gave with [`inherit`]. It is the caller's from then on, so
/// this is to be called once a number.
///
/// # Errors
/// If there is none of that number.
pub fn inherited(fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: fcntl on a number touches no memory, whatever the number.
    if fd <= 2 || unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(Error::msg(format!("descriptor {fd} was not inherited")));
    }
    // SAFETY: it is open, and nobody else in this process knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the process that started this one wants it to ignore a signal, as `nohup` does.
pub fn ignores(signal: i32) -> bool {
    // SAFETY: all zeros is a value of this structure of integers and an address.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: with no new action nothing changes, and the old one is written where it may be.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut now) };
    asked == 0 && now.sa_sigaction == libc::SIG_IGN
}
