//! What a launcher and its agent on another machine say to each other over the agent's standard input and output.
//!
//! ```text
//! frame:  kind u8 | length u32, little-endian | payload
//! kind 0: JSON;  1: bytes for standard input, or from standard output;  2: bytes from standard error
//! ```

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cluster::run::Status;
use crate::cluster::ticket::Ticket;
use crate::error::{Error, Result};

/// The first bytes of an agent. Whatever a login shell prints before them is skipped.
pub(in crate::cluster) const GREETING: &[u8] = b"\n#tbshard agent 1\n";

/// Bytes of a payload at most.
const MAX_BYTES: usize = 1 << 20;

/// Bytes of a piece of a stream at most.
pub(in crate::cluster) const PIECE: usize = 32 << 10;

/// What a launcher says.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cluster) enum Order {
    /// It is there.
    Ping,
    /// Listen here, where the others will meet rank 0 if it is started here.
    Listen(IpAddr),
    /// Start the rank.
    Start(Box<Start>),
    /// A piece of its standard input; the next one may come when this one was [`Report::Taken`].
    #[serde(skip)]
    Input(Vec<u8>),
    /// The end of its standard input.
    InputEnd,
    /// Another rank's process has ended, and how.
    Exited(usize, String),
    /// End the rank, and yourself.
    Stop,
}

/// How a rank's process is started.
#[derive(Clone, Serialize, Deserialize)]
pub struct Start {
    /// The program; `None` is this one.
    pub program: Option<String>,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment, beside the agent's own.
    pub env: BTreeMap<String, String>,
    /// Where it runs; by default where the agent was started.
    pub directory: Option<String>,
    /// Whether it gets standard input.
    pub stdin: bool,
    /// What it needs to join the run, if it is a rank.
    pub ticket: Option<Ticket>,
}

/// What an agent says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cluster) enum Report {
    /// What it is and where it runs. Its first word.
    Hello(Machine),
    /// It is there.
    Alive,
    /// It listens here.
    Listening(SocketAddr),
    /// What the rank says.
    Status(Status),
    /// A piece of the rank's standard output.
    #[serde(skip)]
    Stdout(Vec<u8>),
    /// A piece of the rank's standard error.
    #[serde(skip)]
    Stderr(Vec<u8>),
    /// A piece of standard input was taken.
    Taken,
    /// The rank's process has ended.
    Exited(End),
    /// What was asked for cannot be done.
    Failed(String),
}

/// How a process ended: by itself, or by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// With this exit code.
    Code(u8),
    /// By this signal.
    Signal(i32),
}

impl End {
    /// The exit code that a shell gives it.
    pub fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => u8::try_from(128 + signal).unwrap_or(255),
        }
    }
}

/// `exit code 3`, `killed by signal 9`.
impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

impl From<std::process::ExitStatus> for End {
    fn from(status: std::process::ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt;
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code as u8),
            (None, signal) => Self::Signal(signal.unwrap_or(0)),
        }
    }
}

/// A machine, as an agent on it sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The version of tbshard.
    pub version: String,
    /// The build of tbshard.
    pub build: String,
    /// What `uname -sm` prints.
    pub system: String,
    /// What `uname -n` prints.
    pub hostname: String,
    /// Equal on agents that share a machine's processors.
    pub id: String,
    /// The address at which the launcher reached it, and the one that it came from, if over SSH.
    pub link: Option<(IpAddr, IpAddr)>,
}

/// A message that is a frame on the wire.
pub(in crate::cluster) trait Message: Serialize + DeserializeOwned {
    /// Its kind and bytes, if it is not JSON.
    fn raw(&self) -> Option<(u8, &[u8])>;
    /// The message of these bytes, if there is one of this kind.
    fn of_raw(kind: u8, bytes: Vec<u8>) -> Option<Self>;
}

impl Message for Order {
    fn raw(&self) -> Option<(u8, &[u8])> {
        if let Self::Input(bytes) = self { Some((1, bytes)) } else { None }
    }
    fn of_raw(kind: u8, bytes: Vec<u8>) -> Option<Self> {
        (kind == 1).then_some(Self::Input(bytes))
    }
}

impl Message for Report {
    fn raw(&self) -> Option<(u8, &[u8])> {
        match self {
            Self::Stdout(bytes) => Some((1, bytes)),
            Self::Stderr(bytes) => Some((2, bytes)),
            _ => None,
        }
    }
    fn of_raw(kind: u8, bytes: Vec<u8>) -> Option<Self> {
        match kind {
            1 => Some(Self::Stdout(bytes)),
            2 => Some(Self::Stderr(bytes)),
            _ => None,
        }
    }
}

/// Writes one frame.
///
/// # Errors
/// If the other side is gone.
pub(in crate::cluster) fn write<M: Message>(out: &mut impl Write, message: &M) -> Result<()> {
    let json;
    let (kind, payload) = match message.raw() {
        Some(raw) => raw,
        None => {
            json = serde_json::to_vec(message).map_err(Error::from_std)?;
            (0, &json[..])
        }
    };
    let Some(length) = u32::try_from(payload.len()).ok().filter(|length| *length as usize <= MAX_BYTES) else {
        return Err(Error::msg(format!("a message of {} bytes is too long", payload.len())));
    };
    let mut frame = Vec::with_capacity(5 + payload.len());
    frame.push(kind);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(payload);
    out.write_all(&frame).and_then(|()| out.flush()).map_err(Error::from_std)
}

/// Reads one frame; `None` at the end of the stream.
///
/// # Errors
/// If what comes is no frame.
pub(in crate::cluster) fn read<M: Message>(from: &mut impl Read) -> Result<Option<M>> {
    let mut head = [0; 5];
    if from.read_exact(&mut head).is_err() {
        return Ok(None);
    }
    let [kind, length @ ..] = head;
    let length = u32::from_le_bytes(length) as usize;
    let garbage = || Error::cluster("what came is no message of tbshard").hint("something else writes to its output");
    if kind > 2 || length > MAX_BYTES {
        return Err(garbage());
    }
    let mut payload = vec![0; length];
    if from.read_exact(&mut payload).is_err() {
        return Ok(None);
    }
    let message = if kind == 0 { serde_json::from_slice(&payload).ok() } else { M::of_raw(kind, payload) };
    message.map(Some).ok_or_else(garbage)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back<M: Message>(message: &M) -> M {
        let mut bytes = Vec::new();
        write(&mut bytes, message).unwrap();
        for cut in 0..bytes.len() {
            assert!(read::<M>(&mut &bytes[..cut]).unwrap().is_none());
        }
        read(&mut &bytes[..]).unwrap().unwrap()
    }

    #[test]
    fn frames_survive_the_wire_and_cut_ones_are_the_end() {
        let reports =
            [Report::Stdout(vec![0, 255]), Report::Stderr(Vec::new()), Report::Alive, Report::Exited(End::Signal(9))];
        for report in reports {
            assert_eq!(there_and_back(&report), report);
        }
        assert!(matches!(there_and_back(&Order::Exited(2, "x".to_owned())), Order::Exited(2, _)));
        assert!(matches!(there_and_back(&Order::Input(vec![7])), Order::Input(bytes) if bytes == [7]));
    }

    #[test]
    fn garbage_is_refused_before_it_is_allocated() {
        assert!(read::<Report>(&mut &[0, 255, 255, 255, 255, 0][..]).is_err());
        assert!(read::<Report>(&mut &[9, 1, 0, 0, 0, 0][..]).is_err());
        assert!(read::<Order>(&mut &[2, 1, 0, 0, 0, 0][..]).is_err());
        assert!(read::<Order>(&mut &[0, 2, 0, 0, 0, b'{', b'}'][..]).is_err());
    }

    #[test]
    fn whatever_comes_is_read_or_refused() {
        let machine = Machine::here("build", None);
        let mut bytes = Vec::new();
        write(&mut bytes, &Report::Hello(machine)).unwrap();
        write(&mut bytes, &Report::Stdout(vec![b'x'; 300])).unwrap();
        write(&mut bytes, &Report::Exited(End::Code(3))).unwrap();
        let mut state = 5_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let (mut read_all, mut refused) = (0, 0);
        for _ in 0..20_000 {
            let mut bytes = bytes.clone();
            for _ in 0..1 + random(4) {
                let at = random(bytes.len());
                bytes[at] = random(256) as u8;
            }
            let mut from = &bytes[..bytes.len() - random(8)];
            loop {
                match read::<Report>(&mut from) {
                    Ok(Some(_)) => {}
                    Ok(None) => break read_all += 1,
                    Err(_) => break refused += 1,
                }
            }
        }
        assert!(read_all > 1000 && refused > 1000, "{read_all} {refused}");
    }
}
