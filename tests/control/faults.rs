//! What goes wrong in the simulator: processes end or stop, streams and links break, clocks leap.

use super::plan::{Fault, MILLI};
use super::sim::{Event, Sim};

impl Sim {
    pub(super) fn streams_close(&mut self, rank: usize) {
        // rank 0 closes with care when it exits, because others still read its last word
        let reset = (rank > 0 || self.ranks[rank].killed) && self.rng.one_in(4);
        let others = if rank == 0 { 1..self.ranks.len() } else { 0..1 };
        for other in others {
            let pipe = &mut self.pipes[Self::pipe(rank, other)];
            pipe.reset |= reset;
            if !std::mem::replace(&mut pipe.closed, true) && !pipe.cut {
                self.arrive(rank, other, Event::Closed { from: rank, to: other });
            }
        }
    }

    /// The data links of a main thread close, which some of the others notice.
    pub(super) fn links_close(&mut self, rank: usize) {
        for other in (0..self.ranks.len()).filter(|other| *other != rank) {
            if self.rng.one_in(2) {
                self.after(0, 100 * MILLI, Event::Link { rank: other, peer: rank });
            }
        }
    }

    pub(super) fn strike(&mut self, index: usize) {
        let fault = self.plan.faults[index].1.clone();
        self.say(|| format!("FAULT {fault:?}"));
        match fault {
            Fault::Kill { rank, told } if self.ranks[rank].over.is_none() => {
                self.ranks[rank].killed = true;
                self.streams_close(rank);
                self.links_close(rank);
                if told && rank > 0 {
                    self.after(0, 100 * MILLI, Event::Exited { rank });
                }
            }
            Fault::Freeze { rank, wake } => {
                self.ranks[rank].frozen = true;
                self.ranks[rank].doomed |= wake.is_none();
                if let Some(wake) = wake {
                    self.after(wake, 1, Event::Wake(rank));
                }
            }
            Fault::Cut { rank, up, down, loud } => {
                self.pipes[Self::pipe(rank, 0)].cut |= up;
                self.pipes[Self::pipe(0, rank)].cut |= down;
                if loud {
                    self.after(0, 50 * MILLI, Event::Broken { from: rank, to: 0 });
                    self.after(0, 50 * MILLI, Event::Broken { from: 0, to: rank });
                }
            }
            Fault::Garble { rank, up } => {
                let pipe = if up { Self::pipe(rank, 0) } else { Self::pipe(0, rank) };
                self.pipes[pipe].garbles = true;
            }
            Fault::Fail { rank } => {
                self.after(0, 1, Event::Link { rank, peer: rank });
                self.links_close(rank);
            }
            Fault::Link { ends: [a, b] } => {
                self.after(0, 20 * MILLI, Event::Link { rank: a, peer: b });
                self.after(0, 20 * MILLI, Event::Link { rank: b, peer: a });
            }
            Fault::Jump { rank, by } => {
                self.ranks[rank].offset += by;
                // its timer goes off at once
                self.after(0, 10 * MILLI, Event::Tick(rank));
            }
            Fault::Wedge { rank } => self.wedged = self.wedged.or(Some(rank)),
            Fault::Kill { .. } => {}
        }
    }

    pub(super) fn wake(&mut self, rank: usize) {
        if self.ranks[rank].doomed {
            return;
        }
        self.say(|| format!("rank {rank} wakes"));
        self.ranks[rank].frozen = false;
        let mut inbox = std::mem::take(&mut self.ranks[rank].inbox);
        let first = if self.rng.one_in(2) { 0 } else { inbox.len() };
        inbox.insert(first, Event::Tick(rank));
        inbox.into_iter().for_each(|event| self.handle(event));
    }
}
