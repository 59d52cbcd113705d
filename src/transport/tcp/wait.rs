//! Waiting for sockets: poll(2).

use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

/// A set of sockets and what is awaited of each.
#[derive(Default)]
pub(super) struct Sockets(Vec<libc::pollfd>);

impl Sockets {
    /// Empties the set and keeps its memory.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Awaits bytes to read, room to write, or both.
    pub(super) fn stream(&mut self, stream: &TcpStream, read: bool, write: bool) {
        let events = if read { libc::POLLIN } else { 0 } | if write { libc::POLLOUT } else { 0 };
        if events != 0 {
            self.0.push(libc::pollfd { fd: stream.as_raw_fd(), events, revents: 0 });
        }
    }

    /// Awaits a connection to accept.
    pub(super) fn listener(&mut self, fd: RawFd) {
        self.0.push(libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    }

    /// Sleeps until one of them is ready, at most for `nap` (rounded up to a millisecond). The caller looks at all.
    pub(super) fn sleep(&mut self, nap: Duration) {
        if self.0.is_empty() {
            std::thread::sleep(nap);
            return;
        }
        let timeout = nap.as_micros().div_ceil(1000).min(60_000) as libc::c_int;
        // SAFETY: the pointer and the count are those of the vector, which lives through the call; any result, also of
        // an interruption, means: look again.
        unsafe { libc::poll(self.0.as_mut_ptr(), self.0.len() as libc::nfds_t, timeout) };
    }
}
