//! Sleeping on a word in shared memory, and waking who does.

use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Sleeps until [`wake`] is called for `bell`, at most for `nap`; returns at once if `bell` is not 1.
#[cfg(target_os = "linux")]
pub(super) fn sleep(bell: &AtomicU32, nap: Duration) {
    let timeout =
        libc::timespec { tv_sec: nap.as_secs().min(60) as libc::time_t, tv_nsec: nap.subsec_nanos() as libc::c_long };
    // SAFETY: FUTEX_WAIT reads the aligned word, which the borrow keeps mapped, and the timeout on the stack. The
    // futex is not private, because the waker is another process. Any result means: look again.
    unsafe { libc::syscall(libc::SYS_futex, bell.as_ptr(), libc::FUTEX_WAIT, 1, &raw const timeout, 0, 0) };
}

/// Wakes the sleeper of `bell`.
#[cfg(target_os = "linux")]
pub(super) fn wake(bell: &AtomicU32) {
    // SAFETY: FUTEX_WAKE does not touch the memory; the word's address is its name.
    unsafe { libc::syscall(libc::SYS_futex, bell.as_ptr(), libc::FUTEX_WAKE, 1, 0, 0, 0) };
}

/// Sleeps for a moment: other systems have no public futex between processes, so the sleeper looks again by itself.
#[cfg(not(target_os = "linux"))]
pub(super) fn sleep(bell: &AtomicU32, nap: Duration) {
    if bell.load(std::sync::atomic::Ordering::Relaxed) == 1 {
        std::thread::sleep(nap.min(Duration::from_micros(500)));
    }
}

/// Nothing to do: the sleeper looks again by itself.
#[cfg(not(target_os = "linux"))]
pub(super) fn wake(_bell: &AtomicU32) {}
