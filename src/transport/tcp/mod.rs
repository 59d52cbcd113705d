//! Ranks on any machines: TCP, authenticated by the run's key and encrypted.
//!
//! Every pair of ranks has a data connection, and rank 0 has a control connection with each other rank.
//! What strangers can do is in `acceptor.rs`: be dropped.

mod acceptor;
mod handshake;
mod hello;
mod link;
mod mesh;
mod record;
mod rendezvous;
mod secure;
mod wait;

use std::time::{Duration, Instant};

use super::backoff::Spin;
use super::mail::{Lost, Ready, Turn};
use super::pump::{self, Pump};
use super::{Buffer, Endpoint, LinkError, Polled, check_message, check_peer};
use crate::error::{Error, Result};
use link::Link;
use wait::Sockets;

pub use rendezvous::{Connected, Join, Listener, host, join, listen};
pub use secure::{Received, SEND_TIMEOUT, Secure, SecureReader, SecureWriter};

/// How long closing an endpoint waits for peers to take what has been sent.
const FLUSH: Duration = Duration::from_secs(1);

/// What protects the data connections. Every connection is authenticated, and control is always encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cipher {
    /// ChaCha20-Poly1305 with keys of this connection alone.
    #[default]
    Noise,
    /// Nothing: whoever can read or change the network's packets can do so. For measuring what encryption costs.
    Plain,
}

/// One rank's end of its data connections.
pub struct Tcp {
    rank: usize,
    spin: Spin,
    /// By rank; `None` for this one.
    links: Vec<Option<Link>>,
    ready: Ready,
    sockets: Sockets,
    turn: Turn,
}

impl Tcp {
    fn new(rank: usize, links: Vec<Option<Link>>, spin: Duration) -> Self {
        Self {
            rank,
            spin: Spin::new(spin),
            links,
            ready: Ready::default(),
            sockets: Sockets::default(),
            turn: Turn::default(),
        }
    }

    /// Sets how long a wait spins before it yields.
    #[must_use]
    pub fn with_spin(mut self, spin: Duration) -> Self {
        self.spin = Spin::new(spin);
        self
    }

    /// Why a peer can no longer be used, if so.
    pub(super) fn lost(&self, peer: usize) -> Option<&Lost> {
        self.links.get(peer)?.as_ref()?.lost.as_ref()
    }

    /// The peer's connection, which every peer has.
    fn link(&mut self, peer: usize) -> Result<&mut Link> {
        check_peer(self.rank, self.links.len(), peer)?;
        let rank = self.rank;
        self.links[peer].as_mut().ok_or_else(|| Error::msg(format!("rank {rank} has no connection to rank {peer}")))
    }
}

impl Pump for Tcp {
    fn ready(&mut self) -> &mut Ready {
        &mut self.ready
    }
    fn spin(&mut self) -> &mut Spin {
        &mut self.spin
    }

    fn progress(&mut self) -> bool {
        let mut moved = false;
        for link in self.links.iter_mut().flatten() {
            if link.is_receiving() || link.is_sending() {
                moved |= link.progress(&mut self.ready);
            }
        }
        moved
    }

    fn check(&mut self) -> std::result::Result<(), LinkError> {
        let wanted = |peer: usize| {
            let link = self.links[peer].as_ref()?;
            link.lost.as_ref().filter(|_| link.is_receiving() || link.is_sending())
        };
        let lost = self.turn.find(self.links.len(), wanted);
        lost.map_or(Ok(()), |(peer, lost)| Err(lost.error(self, peer)))
    }

    fn park(&mut self, nap: Duration) -> bool {
        self.sockets.clear();
        for link in self.links.iter().flatten().filter(|link| link.lost.is_none()) {
            self.sockets.stream(link.stream(), link.is_receiving(), link.is_sending());
        }
        self.sockets.sleep(nap);
        false
    }
}

impl Endpoint for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }
    fn world_size(&self) -> usize {
        self.links.len()
    }
    fn peer(&self, rank: usize) -> String {
        match self.links.get(rank) {
            Some(Some(link)) => format!("rank {rank} ({})", link.address),
            _ => format!("rank {rank}"),
        }
    }

    fn post_send(&mut self, peer: usize, message: Buffer) -> Result<()> {
        check_message(&message)?;
        let link = self.link(peer)?;
        let idle = !link.is_sending() && link.lost.is_none();
        link.outbox.push(message);
        if idle && let Some(link) = &mut self.links[peer] {
            // an error here is found again, with what the peer sent before, by the poll that must follow
            let _ = link.push(&mut self.ready);
        }
        Ok(())
    }

    fn post_recv(&mut self, peer: usize, into: Buffer) -> Result<()> {
        self.link(peer)?.inbox.post(into);
        Ok(())
    }

    fn poll(&mut self, deadline: Instant) -> Polled {
        pump::poll(self, deadline)
    }
}

/// Sends what is queued, as far as peers take it within a second, and closes the connections.
impl Drop for Tcp {
    fn drop(&mut self) {
        let deadline = Instant::now() + FLUSH;
        loop {
            let mut sending = false;
            self.sockets.clear();
            for link in self.links.iter_mut().flatten().filter(|link| link.lost.is_none()) {
                if let Err(lost) = link.push(&mut self.ready) {
                    link.lost = Some(lost);
                } else if link.is_sending() {
                    self.sockets.stream(link.stream(), false, true);
                    sending = true;
                }
            }
            if !sending || Instant::now() >= deadline {
                break;
            }
            self.sockets.sleep(Duration::from_millis(20));
        }
        self.links.iter_mut().flatten().for_each(Link::close);
    }
}
