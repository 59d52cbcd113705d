//! The Noise handshake: two messages of a fixed size that only holders of the run's key can make or read.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use snow::{Builder, HandshakeState, StatelessTransportState};

use super::record::PREFIX;
use crate::error::{Error, Result};

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
/// Mixed into the handshake: another version of the protocol fails like another key.
const PROLOGUE: &[u8] = b"tbshard transport 1";
/// Bytes of a handshake message: an ephemeral key and the tag of an empty text.
const MESSAGE: usize = 48;
/// The same with its length in front.
pub(super) const WIRE: usize = PREFIX + MESSAGE;

/// Why two ranks cannot talk, as far as either can tell.
pub(super) const OTHER_KEY: &str = "it was started with another key, by another version, or is not tbshard";

fn state(key: &[u8; 32], initiator: bool) -> std::result::Result<HandshakeState, snow::Error> {
    let builder = Builder::new(PATTERN.parse()?).psk(0, key)?.prologue(PROLOGUE)?;
    if initiator { builder.build_initiator() } else { builder.build_responder() }
}

fn write(state: &mut HandshakeState) -> std::result::Result<[u8; WIRE], snow::Error> {
    let mut wire = [0; WIRE];
    let count = state.write_message(&[], &mut wire[PREFIX..])?;
    wire[..PREFIX].copy_from_slice(&(count as u16).to_be_bytes());
    Ok(wire)
}

fn read(state: &mut HandshakeState, wire: &[u8; WIRE]) -> std::result::Result<(), snow::Error> {
    let mut nothing = [0; MESSAGE];
    if wire[..PREFIX] != (MESSAGE as u16).to_be_bytes() {
        return Err(snow::Error::Input);
    }
    let count = state.read_message(&wire[PREFIX..], &mut nothing)?;
    if count == 0 { Ok(()) } else { Err(snow::Error::Input) }
}

/// Answers the first message of a handshake; an error is a stranger's doing.
pub(super) fn respond(
    key: &[u8; 32],
    first: &[u8; WIRE],
) -> std::result::Result<([u8; WIRE], StatelessTransportState), snow::Error> {
    let mut state = state(key, false)?;
    read(&mut state, first)?;
    let answer = write(&mut state)?;
    Ok((answer, state.into_stateless_transport_mode()?))
}

/// Performs the handshake as the side that connected, with `whom` by name.
pub(super) fn initiate(
    stream: &mut TcpStream,
    key: &[u8; 32],
    deadline: Instant,
    whom: &str,
) -> Result<StatelessTransportState> {
    let broken = |error: snow::Error| Error::from_std(error).context(format!("the handshake with {whom}"));
    let mut state = state(key, true).map_err(broken)?;
    let first = write(&mut state).map_err(broken)?;
    let sent = stream.write_all(&first).map_err(Failure::from);
    let mut answer = [0; WIRE];
    sent.and_then(|()| read_exact(stream, &mut answer, deadline)).map_err(|failure| failure.error(whom))?;
    read(&mut state, &answer).map_err(|_| Error::msg(format!("{whom} has another key")).hint(OTHER_KEY))?;
    state.into_stateless_transport_mode().map_err(broken)
}

/// How reading a handshake message failed.
pub(super) enum Failure {
    Closed,
    Late,
    Io(std::io::Error),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Self::Closed,
            ErrorKind::ConnectionAborted => Self::Closed,
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::Late,
            _ => Self::Io(error),
        }
    }
}

impl Failure {
    /// The error of a handshake with `whom`.
    pub(super) fn error(self, whom: &str) -> Error {
        match self {
            Self::Closed => Error::msg(format!("{whom} closed the connection during the handshake")).hint(OTHER_KEY),
            Self::Late => Error::msg(format!("{whom} did not answer the handshake before the deadline"))
                .hint("is that address the rendezvous of a run, and does nothing stand in between?"),
            Self::Io(error) => Error::from_std(error).context(format!("the handshake with {whom}")),
        }
    }
}

/// The time until `deadline`, at least a millisecond because a socket takes no timeout of 0.
pub(super) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

/// Fills `into` from a blocking stream, or fails at the deadline. Reads nothing beyond.
pub(super) fn read_exact(
    stream: &mut TcpStream,
    into: &mut [u8],
    deadline: Instant,
) -> std::result::Result<(), Failure> {
    let mut have = 0;
    while have < into.len() {
        if Instant::now() >= deadline {
            return Err(Failure::Late);
        }
        stream.set_read_timeout(Some(left(deadline)))?;
        match stream.read(&mut into[have..]) {
            Ok(0) => return Err(Failure::Closed),
            Ok(count) => have += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
