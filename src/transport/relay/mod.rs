//! Ranks that are not all connected, as in a ring of cables: messages travel over the ranks in between.
//!
//! A message is cut into pieces, each in an envelope that says from whom to whom. A sender has at most eight pieces
//! under way to one rank that this rank has not taken, so what the ranks in between hold is bounded, and they always
//! take what comes: nothing waits in a circle. They pass it on while a method of their endpoint runs. Who ends passes on
//! until all others have ended too, for a second at most.

mod envelope;
mod flow;
mod routes;

use std::time::{Duration, Instant};

use super::mail::{Lost, Ready};
use super::{Buffer, Endpoint, Kind, LinkError, Polled, check_message, check_peer};
use crate::error::{Error, Result};
use envelope::{Envelope, HEADER, Kind as Purpose, PIECE};
use flow::Flow;

use routes::routes;

/// Receives that are posted for every neighbour.
const POSTED: usize = 16;

/// How long a rank that ends passes on what others send.
const LINGER: Duration = Duration::from_secs(1);

/// The sleep between two looks while a neighbour is gone that nobody here wants.
const NAP: Duration = Duration::from_micros(200);

/// One rank's end of a mesh that is made of fewer cables.
pub struct Relay {
    inner: Box<dyn Endpoint>,
    /// By destination.
    next: Vec<usize>,
    /// By rank; this one's own is not used.
    flows: Vec<Flow>,
    /// By neighbour: why it can no longer be used.
    gone: Vec<Option<String>>,
    ready: Ready,
    spare: Vec<Buffer>,
    /// From whom to whom something was that could not be passed on.
    undelivered: Option<(usize, usize)>,
    /// Envelopes that the neighbours have not been handed whole.
    sending: usize,
}

impl Relay {
    /// Puts a mesh over `inner`, which connects this rank with some; `neighbours` says whom with whom.
    ///
    /// # Errors
    /// If there is no way to some rank.
    pub fn new(mut inner: Box<dyn Endpoint>, neighbours: &[Vec<usize>]) -> Result<Self> {
        let (rank, size) = (inner.rank(), inner.world_size());
        if neighbours.len() != size {
            return Err(Error::msg(format!("{size} ranks, and the cables of {}", neighbours.len())));
        }
        let next = routes(rank, neighbours)?;
        for neighbour in &neighbours[rank] {
            for _ in 0..POSTED {
                inner.post_recv(*neighbour, Buffer::with_capacity(HEADER + PIECE))?;
            }
        }
        let flows = (0..size).map(|_| Flow::default()).collect();
        let (gone, ready, spare) = (vec![None; size], Ready::default(), Vec::new());
        Ok(Self { inner, next, flows, gone, ready, spare, undelivered: None, sending: 0 })
    }

    fn me(&self) -> usize {
        self.inner.rank()
    }

    /// Hands an envelope to the neighbour on the way.
    fn hand_on(&mut self, to: usize, letter: Buffer) {
        let next = self.next[to];
        if self.gone[next].is_none() && self.inner.post_send(next, letter).is_ok() {
            self.sending += 1;
        }
    }

    /// Hands on what another rank sent; what cannot be is trouble that only this rank knows of.
    fn pass_on(&mut self, envelope: &Envelope, letter: Buffer) {
        let next = self.next[envelope.to];
        if self.gone[next].is_some() && envelope.kind == Purpose::Piece {
            self.undelivered.get_or_insert((envelope.from, envelope.to));
        }
        self.hand_on(envelope.to, letter);
    }

    /// A buffer for any letter.
    fn blank(&mut self) -> Buffer {
        self.spare.pop().unwrap_or_else(|| Buffer::with_capacity(HEADER + PIECE))
    }

    /// A letter of this rank to another, with room for `piece` bytes behind the header.
    fn letter(&mut self, to: usize, envelope: Envelope, piece: usize) -> Buffer {
        let mut letter = self.blank();
        // a blank has room for the largest piece
        let _ = letter.set_len(HEADER + piece);
        Envelope { from: self.me(), to, ..envelope }.write(letter.bytes_mut());
        letter
    }

    /// Sends to a rank what its window has room for, and what it must know.
    fn send(&mut self, to: usize) {
        while let Some((envelope, range)) = self.flows[to].next_piece() {
            let mut letter = self.letter(to, envelope, range.len());
            self.flows[to].copy(range, &mut letter.bytes_mut()[HEADER..]);
            if let Some(sent) = self.flows[to].whole() {
                self.ready.push(to, Kind::Sent, sent);
            }
            self.hand_on(to, letter);
        }
        if let Some(envelope) = self.flows[to].news() {
            let letter = self.letter(to, envelope, 0);
            self.hand_on(to, letter);
        }
    }

    /// Takes in what a neighbour handed over: for this rank, or to be passed on.
    fn arrived(&mut self, neighbour: usize, letter: Buffer) {
        let read = Envelope::read(letter.bytes(), self.next.len()).map(|(envelope, _)| envelope);
        // another one takes its place
        let fresh = self.blank();
        if self.inner.post_recv(neighbour, fresh).is_err() {
            return;
        }
        match read {
            Err(what) => self.gone[neighbour] = Some(what),
            Ok(envelope) if envelope.to != self.me() => self.pass_on(&envelope, letter),
            Ok(envelope) => {
                let from = envelope.from;
                let flow = &mut self.flows[from];
                if let Err(lost) = flow.arrived(&envelope, &letter.bytes()[HEADER..]) {
                    flow.lost.get_or_insert(lost);
                }
                self.spare.push(letter);
                self.deliver(from);
                self.send(from);
            }
        }
    }

    fn deliver(&mut self, from: usize) {
        while let Some(message) = self.flows[from].delivered() {
            self.ready.push(from, Kind::Received, message);
        }
    }

    /// Moves what moves by `deadline`, or finds a neighbour gone.
    fn step(&mut self, deadline: Instant) {
        match self.inner.poll(deadline) {
            Ok(None) => {}
            Ok(Some(done)) if done.kind == Kind::Sent => {
                self.sending -= 1;
                self.spare.push(done.buffer);
            }
            Ok(Some(done)) => self.arrived(done.peer, done.buffer),
            Err(LinkError { peer, error }) if self.gone[peer].is_none() => self.gone[peer] = Some(error.to_string()),
            // its error comes again at once, and others still send
            Err(_) => std::thread::sleep(NAP.min(deadline.saturating_duration_since(Instant::now()))),
        }
    }

    /// Finds a rank that is gone, or behind one that is, and still wanted.
    fn check(&self) -> std::result::Result<(), LinkError> {
        if let Some((from, to)) = self.undelivered {
            let next = self.next[to];
            let why = self.gone[next].as_deref().unwrap_or_default();
            let lost = Lost::gone(format!("takes nothing from rank {from} for rank {to} any more: {why}"));
            return Err(lost.error(self, next));
        }
        for (peer, flow) in self.flows.iter().enumerate().filter(|(_, flow)| flow.is_wanted()) {
            if let Some(lost) = &flow.lost {
                return Err(lost.error(self, peer));
            }
            let next = self.next[peer];
            if let Some(why) = &self.gone[next] {
                let via = if next == peer { String::new() } else { format!(" over {}", self.peer(next)) };
                let lost = Lost::gone(format!("cannot be reached{via}: {why}"));
                return Err(lost.error(self, next));
            }
        }
        Ok(())
    }
}

impl Endpoint for Relay {
    fn rank(&self) -> usize {
        self.inner.rank()
    }
    fn world_size(&self) -> usize {
        self.next.len()
    }
    fn peer(&self, rank: usize) -> String {
        self.inner.peer(rank)
    }

    fn post_send(&mut self, peer: usize, message: Buffer) -> Result<()> {
        check_message(&message)?;
        check_peer(self.me(), self.next.len(), peer)?;
        self.flows[peer].push(message);
        self.send(peer);
        Ok(())
    }

    fn post_recv(&mut self, peer: usize, into: Buffer) -> Result<()> {
        check_peer(self.me(), self.next.len(), peer)?;
        if let Err(lost) = self.flows[peer].post(into) {
            self.flows[peer].lost.get_or_insert(lost);
        }
        self.deliver(peer);
        self.send(peer);
        Ok(())
    }

    fn poll(&mut self, deadline: Instant) -> Polled {
        loop {
            if let Some(done) = self.ready.pop() {
                return Ok(Some(done));
            }
            self.check()?;
            self.step(deadline);
            // what is passed on for others is no reason to stay
            if self.ready.is_empty() && Instant::now() >= deadline {
                return self.check().map(|()| None);
            }
        }
    }
}

/// Says to all that this rank has ended, and passes on until they have too.
impl Drop for Relay {
    fn drop(&mut self) {
        let (me, deadline) = (self.me(), Instant::now() + LINGER);
        let others = |relay: &Self| (0..relay.next.len()).filter(move |rank| *rank != me).collect::<Vec<_>>();
        let unsent = |relay: &Self| others(relay).iter().any(|to| relay.flows[*to].is_sending());
        while unsent(self) && self.check().is_ok() && Instant::now() < deadline {
            self.step(deadline.min(Instant::now() + Duration::from_millis(20)));
        }
        for to in others(self) {
            let envelope = self.flows[to].end();
            let letter = self.letter(to, envelope, 0);
            self.hand_on(to, letter);
        }
        let behind = |relay: &Self, to: usize| relay.gone[relay.next[to]].is_some();
        let waits =
            |relay: &Self| others(relay).into_iter().any(|to| !relay.flows[to].has_ended() && !behind(relay, to));
        while (self.sending > 0 || waits(self)) && Instant::now() < deadline {
            self.step(deadline.min(Instant::now() + Duration::from_millis(20)));
        }
    }
}
