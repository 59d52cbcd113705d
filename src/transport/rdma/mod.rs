//! Ranks on machines with RDMA: sends and receives over queue pairs, between machines that TCP has introduced.
//!
//! A message is cut into chunks that each carry their run, number and checksum, and are copied into registered slots in the
//! same pass that sums them up. On Thunderbolt there is no sign of a dead peer, so the TCP connection over which the ranks
//! met stays: who ends says there how much it has sent, and who dies is noticed there. Payload is not encrypted.

mod chunk;
mod connect;
mod examine;
mod lane;
mod link;
mod place;

use std::time::{Duration, Instant};

use super::backoff::Spin;
use super::mail::{Lost, Ready, Turn};
use super::pump::{self, Pump};
use super::tcp::Tcp;
use super::verbs::Slab;
use super::{Buffer, Endpoint, LinkError, Polled, check_message, check_peer, default_spin};
use crate::error::{Error, Result};
use connect::{Lines, Opened};
use lane::{Id, Lane};
use link::{Ended, Link};

pub use super::verbs::{Library, Service};
pub use connect::Cabling;
pub use examine::{Examination, Examined, examine};
pub use place::Place;

/// How long closing an endpoint waits until what was sent has left.
const FLUSH: Duration = Duration::from_secs(1);

/// How often it is looked, while nothing comes, whether peers are still there.
const LOOK: Duration = Duration::from_millis(5);

/// How long what a peer had sent before it ended may still take to come.
const LATE: Duration = Duration::from_millis(500);

/// How long the first chunk may take over a cable.
const FIRST: Duration = Duration::from_secs(3);

/// For so long after something moved sleeps stay short.
const NEAR: Duration = Duration::from_millis(2);

/// How long a device of Apple's may take to deliver what it says has left.
const DELIVERY: Duration = Duration::from_millis(100);

/// The first and the longest sleep between two looks; there is nothing that would wake a sleeper.
const NAPS: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(2));

/// One rank's end of its RDMA connections.
pub struct Rdma {
    rank: usize,
    spin: Spin,
    // dropped in this order: queue pairs, memory, devices
    /// By rank; `None` for this one.
    links: Vec<Option<Link>>,
    /// By device.
    slabs: Vec<Slab>,
    devices: Vec<Opened>,
    tcp: Tcp,
    ready: Ready,
    nap: Duration,
    /// When something moved last.
    moved: Instant,
    looked: Instant,
    turn: Turn,
}

impl Rdma {
    /// Connects the devices of `cabling` with those of the other ranks, to which `tcp` leads, and tries every cable.
    ///
    /// # Errors
    /// If a device is missing, not cabled or refuses, both ends do not fit, or nothing comes over a cable by `deadline`.
    pub fn connect(mut tcp: Tcp, cabling: &Cabling, run: u64, deadline: Instant) -> Result<Self> {
        let Lines { links, slabs, devices } = connect::connect(&mut tcp, cabling, run, deadline)?;
        let (rank, world_size) = (tcp.rank(), tcp.world_size());
        let (spin, now) = (Spin::new(default_spin(1)), Instant::now());
        let (ready, moved) = (Ready::default(), now);
        let mut rdma = Self {
            rank,
            spin,
            links,
            slabs,
            devices,
            tcp,
            ready,
            nap: NAPS.0,
            moved,
            looked: now,
            turn: Turn::default(),
        };
        let tried = rdma.try_cables(deadline.min(now + FIRST));
        connect::agree(&mut rdma.tcp, tried, deadline)?;
        // for the farewells
        for peer in (0..world_size).filter(|peer| *peer != rank) {
            rdma.tcp.post_recv(peer, Buffer::with_capacity(4096))?;
        }
        Ok(rdma)
    }

    /// Sets how long a wait spins before it yields.
    #[must_use]
    pub fn with_spin(mut self, spin: Duration) -> Self {
        self.spin = Spin::new(spin);
        self
    }

    /// Sends a sign over every lane and waits for the other end's.
    fn try_cables(&mut self, deadline: Instant) -> Result<()> {
        for link in self.links.iter_mut().flatten() {
            for lane in &mut link.lanes {
                lane.sign(&mut self.slabs[lane.device])
                    .map_err(|lost| Error::msg(format!("{} {}", link.name, lost.what)))?;
            }
        }
        loop {
            self.progress();
            self.look(Instant::now());
            let lost =
                self.links.iter().enumerate().find_map(|(peer, link)| Some((peer, link.as_ref()?.lost.as_ref()?)));
            if let Some((peer, lost)) = lost {
                return Err(lost.error(self, peer).into());
            }
            let dumb = self.links.iter().flatten().find_map(|link| {
                let lane = link.lanes.iter().find(|lane| lane.counts().1 == 0)?;
                Some((&link.name, &lane.name))
            });
            let Some((link, lane)) = dumb else { return Ok(()) };
            if Instant::now() >= deadline {
                let error = Error::msg(format!("nothing came over {lane} from {link}"));
                return Err(error.hint("does that cable lead to that host? `tbshard doctor` draws the cabling"));
            }
            std::thread::sleep(NAPS.0);
        }
    }

    /// The peer's link, if there are cables to it.
    fn link(&mut self, peer: usize) -> Result<&mut Link> {
        check_peer(self.rank, self.links.len(), peer)?;
        let rank = self.rank;
        self.links[peer].as_mut().ok_or_else(|| Error::msg(format!("rank {rank} has no RDMA device to rank {peer}")))
    }

    /// Takes in what has completed. Returns whether anything has.
    fn collect(&mut self) -> bool {
        let mut moved = false;
        for device in 0..self.devices.len() {
            loop {
                let batch = match self.devices[device].completions.poll() {
                    Ok(batch) => batch,
                    Err(error) => {
                        let lost = Lost::gone(format!("cannot be reached: {error}"));
                        let links = self.links.iter_mut().flatten();
                        links.filter(|link| link.lanes.iter().any(|lane| lane.device == device)).for_each(|link| {
                            link.lost.get_or_insert_with(|| lost.clone());
                        });
                        break;
                    }
                };
                for done in batch.done() {
                    let Id { peer, lane, is_send, slot } = Id::unpack(done.id());
                    let Some(Some(link)) = self.links.get_mut(peer) else { continue };
                    if link.lost.is_some() {
                        continue;
                    }
                    if let Err(lost) = link.completed((lane, slot, is_send), done, &mut self.slabs, &mut self.ready) {
                        link.lost = Some(lost);
                    }
                }
                moved |= !batch.done().is_empty();
                if !batch.is_full() {
                    break;
                }
            }
        }
        moved
    }

    /// Looks over TCP who has ended or died.
    fn look(&mut self, now: Instant) {
        self.looked = now;
        self.tcp.progress();
        while let Some(done) = self.tcp.ready().pop() {
            let Some(Some(link)) = self.links.get_mut(done.peer) else { continue };
            if done.kind == super::Kind::Received {
                match serde_json::from_slice::<Ended>(done.buffer.bytes()) {
                    Ok(ended) => link.ended = Some((ended, now)),
                    Err(error) => {
                        link.lost = Some(Lost::garbage(format!("ended with words that mean nothing: {error}")))
                    }
                }
            }
        }
        for (peer, link) in self.links.iter_mut().enumerate() {
            let Some(link) = link.as_mut().filter(|link| link.lost.is_none()) else { continue };
            if let Err(lost) = link.keep_alive(&mut self.slabs, now) {
                link.lost = Some(lost);
                continue;
            }
            let dead = self.tcp.lost(peer).filter(|_| link.ended.is_none());
            if let Some(lost) = dead {
                // no farewell: what it sent before is still taken in
                let ended = Ended { sent: Vec::new(), amid: true };
                link.ended = Some((ended, now));
                link.last_words = Some(lost.clone());
            }
            let Some((ended, since)) = &link.ended else { continue };
            let complete = link.last_words.is_none() && link.has_all(ended);
            if complete || now.saturating_duration_since(*since) >= LATE {
                link.lost = Some(match (&link.last_words, complete) {
                    (Some(lost), _) => lost.clone(),
                    (None, true) if ended.amid => Lost::gone("closed its connection in the middle of a message"),
                    (None, true) => Lost::gone("closed its connection"),
                    (None, false) => Lost::gone("closed its connection, and what it sent last did not come"),
                });
            }
        }
    }
}

impl Pump for Rdma {
    fn ready(&mut self) -> &mut Ready {
        &mut self.ready
    }
    fn spin(&mut self) -> &mut Spin {
        &mut self.spin
    }

    fn progress(&mut self) -> bool {
        let mut moved = self.collect();
        for link in self.links.iter_mut().flatten().filter(|link| link.lost.is_none()) {
            match link.send(&mut self.slabs, &mut self.ready) {
                Ok(sent) => moved |= sent,
                Err(lost) => link.lost = Some(lost),
            }
        }
        if moved {
            (self.nap, self.moved) = (NAPS.0, Instant::now());
        }
        moved
    }

    fn check(&mut self) -> std::result::Result<(), LinkError> {
        let now = Instant::now();
        if now.saturating_duration_since(self.looked) >= LOOK {
            self.look(now);
        }
        let wanted = |peer: usize| {
            let link = self.links[peer].as_ref()?;
            link.lost.as_ref().filter(|_| link.is_receiving() || link.is_sending())
        };
        let lost = self.turn.find(self.links.len(), wanted);
        lost.map_or(Ok(()), |(peer, lost)| Err(lost.error(self, peer)))
    }

    fn park(&mut self, nap: Duration) -> bool {
        std::thread::sleep(nap.min(self.nap));
        // a peer that computes answers soon; one that waits for its user does not
        if self.moved.elapsed() >= NEAR {
            self.nap = (self.nap * 2).min(NAPS.1);
        }
        false
    }
}

impl Endpoint for Rdma {
    fn rank(&self) -> usize {
        self.rank
    }
    fn world_size(&self) -> usize {
        self.links.len()
    }
    fn peer(&self, rank: usize) -> String {
        match self.links.get(rank) {
            Some(Some(link)) => link.name.clone(),
            _ => format!("rank {rank}"),
        }
    }

    fn post_send(&mut self, peer: usize, message: Buffer) -> Result<()> {
        check_message(&message)?;
        let link = self.link(peer)?;
        let idle = !link.is_sending() && link.lost.is_none();
        link.push(message);
        if idle && let Some(link) = &mut self.links[peer] {
            // an error here is found again by the poll that must follow
            if let Err(lost) = link.send(&mut self.slabs, &mut self.ready) {
                link.lost = Some(lost);
            }
        }
        Ok(())
    }

    fn post_recv(&mut self, peer: usize, into: Buffer) -> Result<()> {
        self.link(peer)?;
        if let Some(Some(link)) = self.links.get_mut(peer) {
            match link.post(into, &mut self.slabs, &mut self.ready) {
                Ok(()) => {}
                Err(lost) => {
                    link.lost.get_or_insert(lost);
                }
            }
        }
        Ok(())
    }

    fn send_now(&mut self, peer: usize, message: &[u8]) -> Result<bool> {
        self.link(peer)?;
        let Some(link) = self.links[peer].as_mut().filter(|link| link.lost.is_none()) else { return Ok(false) };
        Ok(link.send_now(message, &mut self.slabs).unwrap_or_else(|lost| {
            // found again when it is posted
            link.lost = Some(lost);
            false
        }))
    }

    fn poll(&mut self, deadline: Instant) -> Polled {
        pump::poll(self, deadline)
    }
}

/// Waits a second at most until what was sent has left, says over TCP how much that was, and ends everything in order.
impl Drop for Rdma {
    fn drop(&mut self) {
        let deadline = Instant::now() + FLUSH;
        while Instant::now() < deadline {
            self.progress();
            self.look(Instant::now());
            if self.links.iter().flatten().all(|link| link.lost.is_some() || link.is_flushed()) {
                break;
            }
            std::thread::sleep(NAPS.0);
        }
        for peer in 0..self.links.len() {
            let Some(link) = &self.links[peer] else { continue };
            let Ok(words) = serde_json::to_vec(&link.farewell()) else { continue };
            let mut message = Buffer::with_capacity(words.len());
            // a peer that is gone needs no farewell
            let _ = message.fill(&words).and_then(|()| self.tcp.post_send(peer, message));
        }
        // whoever ends too has everything; nobody else needs to
        let deadline = Instant::now() + DELIVERY;
        let waits =
            |link: &Link| link.lost.is_none() && link.ended.is_none() && link.lanes.iter().any(Lane::may_linger);
        while self.links.iter().flatten().any(waits) && Instant::now() < deadline {
            self.collect();
            self.look(Instant::now());
            std::thread::sleep(NAPS.0);
        }
    }
}
