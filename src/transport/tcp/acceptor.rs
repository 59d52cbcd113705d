//! Accepting connections while strangers knock: nobody blocks anybody, and nothing but a handshake is read.
//!
//! A connection has [`PATIENCE`] to prove that it knows the key and to say hello. Until then at most a hundred-odd
//! bytes of it are read, nothing is allocated for what it says, and no more than [`CROWD`] of them are kept at a time.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::handshake;
use super::hello::{HELLO, Hello};
use super::record::{self, Opener, Sealer};
use super::wait::Sockets;
use crate::error::{Error, Result};

/// How long a connection may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(3);

/// Connections that may be busy proving themselves at a time. Beyond it, the one that came first is dropped: a rank
/// needs milliseconds, so it is the least likely to be one.
const CROWD: usize = 128;

/// Bytes of the record with a hello on the wire.
const HELLO_WIRE: usize = record::PREFIX + HELLO + record::TAG;

/// A connection that has not said who it is.
struct Pending {
    stream: TcpStream,
    from: SocketAddr,
    until: Instant,
    wire: [u8; HELLO_WIRE],
    have: usize,
    /// Set once the handshake is done.
    keys: Option<(Sealer, Opener)>,
}

/// A connection that has, and knows the key. Its socket blocks.
pub(super) struct Guest {
    pub(super) stream: TcpStream,
    pub(super) from: SocketAddr,
    pub(super) hello: Hello,
    pub(super) sealer: Sealer,
    pub(super) opener: Opener,
}

/// What has become of a pending connection.
enum State {
    Waiting(Pending),
    Guest(Box<Guest>),
    Stranger,
}

/// A listening socket and the connections that are busy proving themselves.
pub(super) struct Acceptor {
    listener: TcpListener,
    key: [u8; 32],
    pending: VecDeque<Pending>,
    /// Connections that proved nothing.
    pub(super) strangers: usize,
    sockets: Sockets,
}

impl Acceptor {
    pub(super) fn new(listener: TcpListener, key: [u8; 32]) -> Result<Self> {
        let wrong = |error| Error::from_std(error).context("listening for other ranks");
        listener.set_nonblocking(true).map_err(wrong)?;
        Ok(Self { listener, key, pending: VecDeque::new(), strangers: 0, sockets: Sockets::default() })
    }

    /// Returns the next connection that knows the key, or `None` at the deadline.
    ///
    /// # Errors
    /// If the listening socket is lost. No connection's doing is an error.
    pub(super) fn next(&mut self, deadline: Instant) -> Result<Option<Guest>> {
        loop {
            self.accept()?;
            for _ in 0..self.pending.len() {
                let Some(pending) = self.pending.pop_front() else { break };
                match advance(pending, &self.key) {
                    State::Waiting(pending) => self.pending.push_back(pending),
                    State::Guest(guest) => return Ok(Some(*guest)),
                    State::Stranger => self.strangers += 1,
                }
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(None);
            }
            let next = self.pending.iter().map(|pending| pending.until).min().unwrap_or(deadline).min(deadline);
            self.sockets.clear();
            self.sockets.listener(self.listener.as_raw_fd());
            self.pending.iter().for_each(|pending| self.sockets.stream(&pending.stream, true, false));
            self.sockets.sleep(next.saturating_duration_since(now).min(Duration::from_millis(200)));
        }
    }

    /// Takes in who knocks, as many as fit.
    fn accept(&mut self) -> Result<()> {
        for _ in 0..CROWD {
            match self.listener.accept() {
                Ok((stream, from)) => {
                    let usable = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
                    if usable.is_err() {
                        continue;
                    }
                    if self.pending.len() >= CROWD {
                        self.pending.pop_front();
                        self.strangers += 1;
                    }
                    let until = Instant::now() + PATIENCE;
                    let wire = [0; HELLO_WIRE];
                    self.pending.push_back(Pending { stream, from, until, wire, have: 0, keys: None });
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return Ok(()),
                    // who knocked has gone again
                    ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted => {}
                    // out of descriptors, most likely: strangers free theirs within seconds
                    _ if !self.pending.is_empty() => {
                        std::thread::sleep(Duration::from_millis(10));
                        return Ok(());
                    }
                    _ => return Err(Error::from_std(error).context("accepting connections of other ranks")),
                },
            }
        }
        Ok(())
    }
}

/// Reads what has come of a pending connection, and no byte more than its next message has.
fn advance(mut pending: Pending, key: &[u8; 32]) -> State {
    loop {
        let need = if pending.keys.is_none() { handshake::WIRE } else { HELLO_WIRE };
        match pending.stream.read(&mut pending.wire[pending.have..need]) {
            Ok(0) => return State::Stranger,
            Ok(count) => pending.have += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return if Instant::now() < pending.until { State::Waiting(pending) } else { State::Stranger };
            }
            Err(_) => return State::Stranger,
        }
        if pending.have < need {
            continue;
        }
        pending.have = 0;
        match pending.keys.take() {
            None => {
                let Some(first) = pending.wire.first_chunk() else { return State::Stranger };
                let Ok((answer, cipher)) = handshake::respond(key, first) else { return State::Stranger };
                // an empty socket buffer takes so little whole
                if !matches!(pending.stream.write(&answer), Ok(handshake::WIRE)) {
                    return State::Stranger;
                }
                pending.keys = Some(record::directions(cipher));
            }
            Some((sealer, opener)) => {
                return greet(pending, sealer, opener).map_or(State::Stranger, |guest| State::Guest(Box::new(guest)));
            }
        }
    }
}

/// Opens the hello of a connection.
fn greet(pending: Pending, sealer: Sealer, mut opener: Opener) -> Option<Guest> {
    let body = &pending.wire[record::PREFIX..];
    if record::body_len(&pending.wire) != Some(body.len()) {
        return None;
    }
    let mut text = [0; HELLO + record::TAG];
    let count = opener.open(body, &mut text).ok()?;
    let hello = Hello::decode(&text[..count])?;
    pending.stream.set_nonblocking(false).ok()?;
    Some(Guest { stream: pending.stream, from: pending.from, hello, sealer, opener })
}
