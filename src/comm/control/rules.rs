//! The rules of the control channel: what each event means for rank 0, which decides, and for the others.

use std::time::Duration;

use super::activity::{Activity, Operation};
use super::cause::{Cause, CauseKind, Failure, Loss};
use super::protocol::{Action, Control, Phase};
use super::stuck::stuck;
use super::wire::Frame;

impl Control {
    pub(super) fn receive(&mut self, peer: usize, frame: Frame) {
        let now = self.now;
        self.peers[peer].heard(now);
        match (self.rank, frame) {
            (_, Frame::Heartbeat { progress, activity }) => self.peers[peer].moved(activity, progress, now),
            (0, Frame::Report(failure)) => self.suspect(Cause::reported(failure, peer, &self.names)),
            (0, Frame::Leave(failure)) => {
                (self.peers[peer].done, self.peers[peer].told) = (true, true);
                self.suspect(Cause::reported(failure, peer, &self.names));
                self.exit_if_all_know();
            }
            (0, Frame::Done) => self.peers[peer].done = true,
            (0, Frame::Ack) if matches!(self.phase, Phase::Telling(..)) => {
                self.peers[peer].told = true;
                self.exit_if_all_know();
            }
            (1.., Frame::Decision(cause)) => {
                self.send(0, &Frame::Ack);
                if !matches!(self.phase, Phase::Ending(_)) {
                    self.actions.push_back(Action::Abort(cause));
                    self.exit();
                }
            }
            (1.., Frame::End) => {
                self.send(0, &Frame::Ack);
                self.phase = Phase::Ending(now.saturating_add(self.deadlines.silent));
                // a failure here is no news any more: the group has ended
                if self.finished || self.reported.is_some() {
                    self.exit();
                }
            }
            _ => self.lose(peer, Loss::Garbled("a control frame that this rank may not send".to_owned())),
        }
    }

    pub(super) fn lose(&mut self, peer: usize, why: Loss) {
        self.peers[peer].hears = false;
        // what garbles may still listen
        self.peers[peer].sends &= matches!(why, Loss::Garbled(_));
        let (kind, detail) = why.into_parts();
        match self.phase {
            Phase::Telling(..) => self.exit_if_all_know(),
            Phase::Ending(_) => {}
            _ if self.rank > 0 => self.abort_alone(kind, detail),
            _ if self.peers[peer].done => {}
            _ => self.suspect(self.observed(peer, kind, detail)),
        }
    }

    pub(super) fn fail(&mut self, failure: Failure) {
        match self.phase {
            Phase::Ending(_) => self.exit(),
            _ if self.rank == 0 => self.suspect(Cause::reported(failure, 0, &self.names)),
            // what breaks in the tidying up after a good end is no trouble
            _ if self.finished => {}
            _ => {
                let worse =
                    self.reported.as_ref().is_none_or(|(told, _)| told.peer.is_some() && failure.peer.is_none());
                if worse {
                    self.send(0, &Frame::Report(failure.clone()));
                    self.reported = Some((failure, self.now));
                }
            }
        }
    }

    pub(super) fn finish(&mut self) {
        self.finished = true;
        match self.phase {
            Phase::Running if self.rank == 0 => self.tell(Frame::End),
            Phase::Running if self.reported.is_none() => self.send(0, &Frame::Done),
            Phase::Ending(_) => self.exit(),
            _ => {}
        }
    }

    pub(super) fn tick(&mut self) {
        match self.phase {
            Phase::Running | Phase::Suspecting(..) if self.rank == 0 => self.watch(),
            Phase::Running => self.listen(),
            _ => {}
        }
        match &self.phase {
            Phase::Suspecting(cause, until) if *until <= self.now => self.tell(Frame::Decision(cause.clone())),
            Phase::Telling(_, until) | Phase::Ending(until) if *until <= self.now => self.exit(),
            _ => {}
        }
        if self.heartbeat_at <= self.now {
            self.beat();
        }
    }

    /// Rank 0 looks for the dead and the stuck.
    fn watch(&mut self) {
        let silences = (1..self.peers.len()).filter_map(|rank| Some((self.peers[rank].silence(self.now)?, rank)));
        if let Some((silence, rank)) = silences.max().filter(|(silence, _)| *silence >= self.deadlines.silent) {
            self.suspect(self.observed(rank, CauseKind::Silent, seconds(silence)));
        }
        let Some(progress) = self.deadlines.progress else { return };
        if let Some(rank) = stuck(&self.peers, self.now, progress) {
            let still = self.now.saturating_sub(self.peers[rank].moved_at);
            self.suspect(self.observed(rank, CauseKind::Stuck, seconds(still)));
        }
    }

    /// Any other rank looks for a dead rank 0, and for a decision that should have come.
    fn listen(&mut self) {
        let silent = self.deadlines.silent;
        if let Some(silence) = self.peers[0].silence(self.now).filter(|silence| *silence >= silent) {
            return self.abort_alone(CauseKind::Silent, seconds(silence));
        }
        // rank 0 is heard and decides within a grace: it must be deaf, which it finds out itself unless it is broken
        let waited = self.reported.as_ref().map(|(_, since)| self.now.saturating_sub(*since));
        if let Some(waited) = waited.filter(|waited| *waited >= silent.saturating_mul(3)) {
            self.abort_alone(CauseKind::Stuck, seconds(waited));
        }
    }

    /// Rank 0 takes a cause unless it has one that is at least as specific.
    fn suspect(&mut self, cause: Cause) {
        let until = match &self.phase {
            Phase::Running => self.now.saturating_add(self.deadlines.grace),
            Phase::Suspecting(known, until) if cause.kind > known.kind => *until,
            _ => return,
        };
        if cause.kind == CauseKind::Failed {
            // nothing is more specific
            self.tell(Frame::Decision(cause));
        } else {
            self.phase = Phase::Suspecting(cause, until);
        }
    }

    /// Rank 0 ends, and tells the others how.
    fn tell(&mut self, how: Frame) {
        if let Frame::Decision(cause) = &how {
            self.actions.push_back(Action::Abort(cause.clone()));
        }
        self.phase = Phase::Telling(how, self.now.saturating_add(self.deadlines.linger));
        self.beat();
        self.exit_if_all_know();
    }

    /// Ends with what this rank alone knows: rank 0 is lost, unless it has itself seen worse.
    fn abort_alone(&mut self, kind: CauseKind, detail: String) {
        let mut cause = self.observed(0, kind, detail);
        let silent = matches!(kind, CauseKind::Silent | CauseKind::Stuck);
        let why = if silent { format!("it heard nothing for {}", cause.detail) } else { cause.detail.clone() };
        // a broken data link is no match for a lost rank 0: its other end may have left because of that very loss
        if let Some((failure, _)) = self.reported.take().filter(|(failure, _)| failure.peer.is_none()) {
            cause = Cause::reported(failure, self.rank, &self.names);
        }
        cause.agreed = false;
        self.send(0, &Frame::Leave(Failure { peer: Some(0), activity: cause.activity.clone(), why }));
        self.actions.push_back(Action::Abort(cause));
        self.exit();
    }

    /// Sends to everybody who is to hear something what the time is right for.
    fn beat(&mut self) {
        let own = &self.peers[self.rank];
        let frame = match &self.phase {
            Phase::Running | Phase::Suspecting(..) => own.heartbeat(),
            Phase::Telling(how, _) => how.clone(),
            Phase::Ending(_) | Phase::Over => return,
        };
        self.heartbeat_at = self.now.saturating_add(self.deadlines.heartbeat_interval);
        let bytes = frame.encode();
        for peer in 0..self.peers.len() {
            if self.has_stream(peer) && self.peers[peer].sends && !self.peers[peer].told {
                self.actions.push_back(Action::Send(peer, bytes.clone()));
            }
        }
    }

    fn send(&mut self, peer: usize, frame: &Frame) {
        if self.peers[peer].sends {
            self.actions.push_back(Action::Send(peer, frame.encode()));
        }
    }

    fn exit_if_all_know(&mut self) {
        if matches!(self.phase, Phase::Telling(..)) && self.peers.iter().skip(1).all(|peer| peer.told || !peer.sends) {
            self.exit();
        }
    }

    fn exit(&mut self) {
        self.phase = Phase::Over;
        self.actions.push_back(Action::Exit);
    }

    /// Returns a cause that this rank saw itself, at the place the rank at fault told last.
    fn observed(&self, rank: usize, kind: CauseKind, detail: String) -> Cause {
        let (theirs, own) = (self.peers[rank].activity.as_ref(), self.peers[self.rank].activity.as_ref());
        let starts = |activity: &&Activity| activity.operation == Operation::Start;
        // who has been through the start-up knows that all have
        let place = theirs.filter(|theirs| !starts(theirs) || own.is_none_or(|own| starts(&own))).or(own);
        Cause { activity: place.cloned(), detail, ..Cause::new(rank, kind, self.rank, &self.names) }
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
