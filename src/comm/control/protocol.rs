//! The control thread's state machine: what happens goes in, what to send and when to stop comes out.

use std::collections::VecDeque;
use std::time::Duration;

use super::activity::{Activity, one_line};
use super::cause::{Cause, Failure, Loss};
use super::peer::Peer;
use super::wire::Frame;
use crate::error::{Error, Result};

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// The time between two heartbeats; at most a quarter of `silent`.
    pub heartbeat_interval: Duration,
    /// After so much silence a rank is dead.
    pub silent: Duration,
    /// After so long without progress of its main thread a rank is stuck; `None` is never.
    pub progress: Option<Duration>,
    /// How long rank 0 waits for a more specific cause.
    pub grace: Duration,
    /// How long rank 0 keeps telling how it ends to those that have not acknowledged it.
    pub linger: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_millis(200),
            silent: Duration::from_secs(5),
            progress: Some(Duration::from_secs(600)),
            grace: Duration::from_millis(50),
            linger: Duration::from_secs(1),
        }
    }
}

/// What the driver is to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send one frame to this peer. A peer that cannot take it at once may miss it: it must not hold up the others.
    Send(usize, Vec<u8>),
    /// Stop the main thread, which ends with this cause. At most once, and never after an orderly end.
    Abort(Cause),
    /// Flush, close the streams and end the control thread. The last action of all. Without an abort before it, the
    /// group has ended in good order, and a main thread that still runs has nobody left to work with.
    Exit,
}

pub(super) enum Phase {
    Running,
    /// Rank 0 has a cause and waits until then for a better one.
    Suspecting(Cause, Duration),
    /// Rank 0 says how it ends until all know or until then.
    Telling(Frame, Duration),
    /// Rank 0 announced an orderly end, and the main thread has until then to reach its own.
    Ending(Duration),
    Over,
}

/// The control thread of one rank, without its streams and its clock.
///
/// All times are durations since one epoch of the driver's choice. Every input may produce actions: drain
/// [`Control::next_action`] after each, and call [`Control::on_tick`] no later than [`Control::next_deadline`].
pub struct Control {
    pub(super) rank: usize,
    pub(super) names: Vec<String>,
    pub(super) deadlines: Deadlines,
    pub(super) now: Duration,
    pub(super) peers: Vec<Peer>,
    pub(super) phase: Phase,
    pub(super) finished: bool,
    /// What this rank has reported, and when, while it waits for the decision. Not used by rank 0.
    pub(super) reported: Option<(Failure, Duration)>,
    pub(super) heartbeat_at: Duration,
    pub(super) actions: VecDeque<Action>,
}

impl Control {
    /// Returns the state at the time `now`, with every stream open; `names` has one a rank, e.g. `rank 2 (10.0.0.2:50913)`.
    ///
    /// # Errors
    /// If the rank, the number of names or the deadlines cannot be.
    pub fn new(
        rank: usize,
        world_size: usize,
        names: Vec<String>,
        deadlines: Deadlines,
        now: Duration,
    ) -> Result<Self> {
        if rank >= world_size || world_size >= usize::from(u16::MAX) {
            return Err(Error::msg(format_args!("there is no rank {rank} in a group of {world_size}")));
        }
        if names.len() != world_size {
            return Err(Error::msg(format_args!("a group of {world_size} ranks has {} names", names.len())));
        }
        let interval = deadlines.heartbeat_interval;
        if interval.is_zero() || interval > deadlines.silent / 4 {
            let silent = deadlines.silent;
            let error = Error::msg(format_args!("heartbeats every {interval:?} do not fit a deadline of {silent:?}"));
            return Err(error.hint("the deadline for silence must be at least four heartbeat intervals"));
        }
        Ok(Self {
            rank,
            names,
            deadlines,
            now,
            peers: (0..world_size).map(|_| Peer::new(now)).collect(),
            phase: Phase::Running,
            finished: false,
            reported: None,
            heartbeat_at: now,
            actions: VecDeque::new(),
        })
    }

    /// Takes one frame that came from `peer`. Bytes that are no frame make the peer lost.
    pub fn on_frame(&mut self, peer: usize, bytes: &[u8], now: Duration) {
        self.advance(now);
        if self.has_stream(peer) && self.peers[peer].hears && !self.is_over() {
            match Frame::decode(bytes, &self.names) {
                Ok(frame) => self.receive(peer, frame),
                Err(error) => self.lose(peer, Loss::Garbled(error.to_string())),
            }
        }
    }

    /// Takes that the stream with `peer` is lost, or that the peer's process ended. May be told again with a better reason.
    pub fn on_lost(&mut self, peer: usize, why: Loss, now: Duration) {
        self.advance(now);
        if self.has_stream(peer) && !self.is_over() {
            self.lose(peer, why);
        }
    }

    /// Takes that this rank's main thread failed or panicked. The main thread should then keep its data links open and
    /// wait for the abort, so that its closing them is not taken for the first cause. A wait that is merely long is no
    /// failure: it is this thread's business to find the dead.
    pub fn on_local(&mut self, mut failure: Failure, now: Duration) {
        self.advance(now);
        failure.why = one_line(&failure.why);
        failure.peer = failure.peer.filter(|peer| *peer != self.rank && *peer < self.names.len());
        failure.activity = failure.activity.or_else(|| self.peers[self.rank].activity.clone());
        if !self.is_over() {
            self.fail(failure);
        }
    }

    /// Takes what the main thread is doing, and a counter that increases whenever it gets on.
    pub fn on_activity(&mut self, mut activity: Activity, progress: u64) {
        activity.place = one_line(&activity.place);
        self.peers[self.rank].moved(Some(activity), progress, self.now);
    }

    /// Takes that this rank's main thread has ended in good order; on rank 0 that ends the group in good order.
    pub fn on_finished(&mut self, now: Duration) {
        self.advance(now);
        if !self.finished && !self.is_over() {
            self.finish();
        }
    }

    /// Takes that time has passed.
    pub fn on_tick(&mut self, now: Duration) {
        self.advance(now);
        if !self.is_over() {
            self.tick();
        }
    }

    /// Returns what to do next, oldest first.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns when to tick at the latest, `None` once it is all over.
    pub fn next_deadline(&self) -> Option<Duration> {
        let silent = self.deadlines.silent;
        let heard = self.peers.iter().enumerate().filter(|(peer, _)| self.has_stream(*peer));
        let heard = heard
            .filter(|(_, peer)| peer.hears && !peer.done)
            .map(|(_, peer)| peer.heard_at.saturating_add(silent))
            .min();
        match &self.phase {
            Phase::Running => Some(heard.map_or(self.heartbeat_at, |heard| heard.min(self.heartbeat_at))),
            Phase::Suspecting(_, until) | Phase::Telling(_, until) => Some(self.heartbeat_at.min(*until)),
            Phase::Ending(until) => Some(*until),
            Phase::Over => None,
        }
    }

    /// Whether this rank has a stream with `peer`: rank 0 with all others, the others with rank 0.
    pub(super) fn has_stream(&self, peer: usize) -> bool {
        peer != self.rank && peer < self.names.len() && (self.rank == 0 || peer == 0)
    }

    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    /// Moves the clock, which never goes back here. Where it leapt by much more than the time to the next tick (a lid was
    /// closed, the process was stopped), it was this rank that slept and not its peers.
    fn advance(&mut self, now: Duration) {
        let slept = now.saturating_sub(self.now);
        self.now = self.now.max(now);
        let silent = self.deadlines.silent;
        if slept > (silent / 8).saturating_add(self.deadlines.heartbeat_interval) {
            self.peers.iter_mut().for_each(|peer| peer.excuse(now, slept, silent));
            self.reported.iter_mut().for_each(|(_, since)| *since = now.min(since.saturating_add(slept)));
        }
    }
}
