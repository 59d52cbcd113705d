//! What ranks say when they meet, all of it after the handshake: who they are, where they listen, yes or no.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::Cipher;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Control traffic with rank 0, for the length of the run.
    Control,
    /// Messages between two ranks.
    Data,
}

/// The first message of whoever connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) purpose: Purpose,
    pub(super) cipher: Cipher,
    /// Whether the run has data connections over TCP.
    pub(super) data: bool,
    pub(super) run: u64,
    pub(super) world_size: u32,
    pub(super) rank: u32,
    /// Where the rank accepts data connections, if it does.
    pub(super) listens: Option<SocketAddr>,
}

/// Bytes of a hello.
pub(super) const HELLO: usize = 19 + ADDRESS;
/// Bytes of an address: its presence (1), its IP as version 6 (16), its port (2).
const ADDRESS: usize = 19;
/// Longest reason for a refusal, in bytes.
const REASON: usize = 400;

impl Hello {
    pub(super) fn encode(&self) -> [u8; HELLO] {
        let mut text = [0; HELLO];
        text[0] = u8::from(self.purpose == Purpose::Data);
        text[1] = u8::from(self.cipher == Cipher::Plain);
        text[2] = u8::from(self.data);
        text[3..11].copy_from_slice(&self.run.to_le_bytes());
        text[11..15].copy_from_slice(&self.world_size.to_le_bytes());
        text[15..19].copy_from_slice(&self.rank.to_le_bytes());
        text[19..].copy_from_slice(&encode_address(self.listens));
        text
    }

    pub(super) fn decode(text: &[u8]) -> Option<Self> {
        let text: &[u8; HELLO] = text.try_into().ok()?;
        let flag = |at: usize| (text[at] < 2).then_some(text[at] == 1);
        Some(Self {
            purpose: if flag(0)? { Purpose::Data } else { Purpose::Control },
            cipher: if flag(1)? { Cipher::Plain } else { Cipher::Noise },
            data: flag(2)?,
            run: u64::from_le_bytes(*text[3..].first_chunk()?),
            world_size: u32::from_le_bytes(*text[11..].first_chunk()?),
            rank: u32::from_le_bytes(*text[15..].first_chunk()?),
            listens: decode_address(text[19..].first_chunk()?)?,
        })
    }
}

fn encode_address(address: Option<SocketAddr>) -> [u8; ADDRESS] {
    let mut text = [0; ADDRESS];
    if let Some(address) = address {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        text[0] = 1;
        text[1..17].copy_from_slice(&ip.octets());
        text[17..].copy_from_slice(&address.port().to_le_bytes());
    }
    text
}

fn decode_address(text: &[u8; ADDRESS]) -> Option<Option<SocketAddr>> {
    let ip = Ipv6Addr::from(*text[1..].first_chunk::<16>()?).to_canonical();
    let port = u16::from_le_bytes([text[17], text[18]]);
    match text[0] {
        0 => Some(None),
        1 => Some(Some(SocketAddr::new(ip, port))),
        _ => None,
    }
}

/// The answer to a hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Welcome; by rank, where each accepts data connections.
    Welcome(Vec<Option<SocketAddr>>),
    /// No, and why.
    Refused(String),
}

impl Verdict {
    /// Most bytes of a verdict for `world_size` ranks.
    pub(super) fn most(world_size: usize) -> usize {
        1 + REASON.max(world_size.saturating_mul(ADDRESS))
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Welcome(table) => {
                let mut text = vec![1];
                table.iter().for_each(|address| text.extend(encode_address(*address)));
                text
            }
            Self::Refused(why) => {
                let mut text = vec![0];
                text.extend(why.bytes().take(REASON));
                text
            }
        }
    }

    pub(super) fn decode(text: &[u8]) -> Option<Self> {
        let (first, rest) = text.split_first()?;
        match first {
            0 => {
                let why = String::from_utf8_lossy(rest).chars().filter(|c| !c.is_control()).collect();
                Some(Self::Refused(why))
            }
            1 if rest.len().is_multiple_of(ADDRESS) => {
                let entries = rest.chunks_exact(ADDRESS);
                entries.map(|entry| decode_address(entry.first_chunk()?)).collect::<Option<_>>().map(Self::Welcome)
            }
            _ => None,
        }
    }
}
