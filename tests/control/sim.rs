//! Ranks, streams and time for [`Control`], all virtual: one seed is one schedule.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use tbshard::comm::control::{Action, Activity, Cause, Control, Failure, Loss, Operation};

use super::plan::{MILLI, Micros, Plan, Rng, SECOND};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    Tick(usize),
    Frame { from: usize, to: usize, bytes: Vec<u8> },
    Closed { from: usize, to: usize },
    Broken { from: usize, to: usize },
    Exited { rank: usize },
    Link { rank: usize, peer: usize },
    Work(usize),
    Finish(usize),
    Fault(usize),
    Wake(usize),
}

/// One rank and what became of it.
pub struct Rank {
    pub(super) control: Control,
    /// How far its own clock is ahead.
    pub(super) offset: Micros,
    armed: Option<Duration>,
    pub(super) frozen: bool,
    /// It will not wake again.
    pub(super) doomed: bool,
    pub(super) inbox: Vec<Event>,
    progress: u64,
    pub killed: bool,
    pub over: Option<Micros>,
    /// How many frames it sent.
    pub sent: u64,
    pub aborts: Vec<Cause>,
    /// It has heard, or made, an orderly end.
    pub ended: bool,
}

/// One directed stream.
#[derive(Clone, Default)]
pub(super) struct Pipe {
    last_arrival: Micros,
    pub(super) cut: bool,
    pub(super) garbles: bool,
    pub(super) closed: bool,
    /// What was under way when it closed is lost, as it is when the system resets a connection.
    pub(super) reset: bool,
}

pub struct Sim {
    pub plan: Plan,
    pub ranks: Vec<Rank>,
    pub now: Micros,
    /// What happened, if it is wanted.
    pub trace: Option<Vec<String>>,
    /// The rule that was broken first.
    pub broken: Option<String>,
    pub(super) rng: Rng,
    pub(super) pipes: Vec<Pipe>,
    queue: BinaryHeap<Reverse<(Micros, u32, Event)>>,
    count: u32,
    pub(super) wedged: Option<usize>,
}

impl Sim {
    pub fn new(seed: u64, traced: bool) -> Self {
        let mut rng = Rng(seed);
        let plan = Plan::new(&mut rng);
        let names: Vec<String> =
            (0..plan.world_size).map(|rank| format!("rank {rank} (10.0.0.{rank}:50913)")).collect();
        let rank = |rank| Rank {
            control: Control::new(rank, plan.world_size, names.clone(), plan.deadlines, Duration::ZERO).unwrap(),
            offset: 0,
            armed: None,
            frozen: false,
            doomed: false,
            inbox: Vec::new(),
            progress: 0,
            killed: false,
            over: None,
            sent: 0,
            aborts: Vec::new(),
            ended: false,
        };
        let mut sim = Self {
            ranks: (0..plan.world_size).map(rank).collect(),
            pipes: vec![Pipe::default(); plan.world_size * 2],
            now: 0,
            trace: traced.then(|| vec![format!("{plan:#?}")]),
            broken: None,
            rng,
            queue: BinaryHeap::new(),
            count: 0,
            wedged: None,
            plan,
        };
        for rank in 0..sim.plan.world_size {
            sim.after(0, 10 * MILLI, Event::Tick(rank));
            sim.after(0, SECOND, Event::Work(rank));
            if let Some(finish) = sim.plan.finish {
                let early = sim.rng.below(SECOND).min(finish);
                match rank {
                    0 => sim.after(finish, 1, Event::Finish(0)),
                    _ if sim.plan.unfinished == Some(rank) => {}
                    _ => sim.after(finish - early, 1300 * MILLI, Event::Finish(rank)),
                }
            }
        }
        for fault in 0..sim.plan.faults.len() {
            sim.after(sim.plan.faults[fault].0, 1, Event::Fault(fault));
        }
        sim
    }

    pub fn run(&mut self) {
        while let Some(Reverse((time, _, event))) = self.queue.pop() {
            let quiet = self.ranks.iter().all(|rank| rank.killed || rank.over.is_some());
            if time > self.plan.horizon || quiet || self.broken.is_some() {
                break;
            }
            self.now = time;
            self.handle(event);
        }
    }

    pub(super) fn after(&mut self, delay: Micros, spread: Micros, event: Event) {
        self.count += 1;
        let time = self.now + delay + self.rng.below(spread.max(1));
        self.queue.push(Reverse((time, self.count, event)));
    }

    pub(super) fn say(&mut self, what: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>10.3} ms  {}", now as f64 / 1e3, what()));
        }
    }

    pub(super) fn handle(&mut self, event: Event) {
        if let Event::Frame { from, to, .. } = event
            && self.pipes[Self::pipe(from, to)].reset
        {
            return;
        }
        let rank = match event {
            Event::Fault(index) => return self.strike(index),
            Event::Wake(rank) => return self.wake(rank),
            Event::Frame { to, .. } | Event::Closed { to, .. } | Event::Broken { to, .. } => to,
            Event::Exited { .. } => 0,
            Event::Tick(rank) | Event::Link { rank, .. } | Event::Work(rank) | Event::Finish(rank) => rank,
        };
        if self.ranks[rank].killed || self.ranks[rank].over.is_some() {
            return;
        }
        if self.ranks[rank].frozen {
            if !matches!(event, Event::Tick(_)) {
                self.ranks[rank].inbox.push(event);
            }
            return;
        }
        self.input(rank, event);
    }

    fn input(&mut self, rank: usize, event: Event) {
        if !matches!(event, Event::Work(_) | Event::Tick(_)) {
            self.say(|| format!("rank {rank} takes {event:?}"));
        }
        let wedged = self.wedged;
        let this = &mut self.ranks[rank];
        let now = Duration::from_micros(self.now + this.offset);
        match event {
            Event::Tick(_) => this.control.on_tick(now),
            Event::Frame { from, bytes, .. } => {
                this.ended |= bytes == [7];
                this.control.on_frame(from, &bytes, now);
            }
            Event::Closed { from, .. } => this.control.on_lost(from, Loss::Closed, now),
            Event::Broken { from, .. } => this.control.on_lost(from, Loss::Broken("no route to host".to_owned()), now),
            Event::Exited { rank } => this.control.on_lost(rank, Loss::Exited("killed by signal 9".to_owned()), now),
            Event::Link { peer, .. } => {
                let peer = (peer != rank).then_some(peer);
                this.control.on_local(Failure { peer, activity: None, why: "it broke".to_owned() }, now);
            }
            Event::Finish(_) => {
                this.control.on_finished(now);
                this.ended |= rank == 0 && this.aborts.is_empty();
            }
            Event::Work(_) => {
                this.progress += u64::from(wedged.is_none());
                let waiting_for = wedged.filter(|wedged| *wedged != rank);
                let activity = Activity {
                    operation: Operation::AllReduce,
                    number: this.progress,
                    place: String::new(),
                    waiting_for,
                };
                this.control.on_activity(activity, this.progress);
                let slow = self.plan.slow == Some(rank);
                self.after(if slow { 60 * SECOND } else { SECOND }, 1, Event::Work(rank));
            }
            Event::Fault(_) | Event::Wake(_) => {}
        }
        self.drain(rank);
        self.arm(rank);
    }

    fn drain(&mut self, rank: usize) {
        let mut count = 0;
        while let Some(action) = self.ranks[rank].control.next_action() {
            count += 1;
            if self.ranks[rank].over.is_some() {
                self.broken = Some(format!("rank {rank} says {action:?} after its exit"));
            }
            match action {
                Action::Send(peer, bytes) => {
                    self.ranks[rank].sent += 1;
                    self.send(rank, peer, bytes);
                }
                Action::Abort(cause) => {
                    self.say(|| format!("rank {rank} ABORTS: {cause}"));
                    self.ranks[rank].ended &= rank > 0;
                    self.ranks[rank].aborts.push(cause);
                    self.links_close(rank);
                }
                Action::Exit => {
                    self.say(|| format!("rank {rank} exits"));
                    self.ranks[rank].over = Some(self.now);
                    self.streams_close(rank);
                }
            }
        }
        if count > 2 * self.plan.world_size + 2 {
            self.broken = Some(format!("rank {rank} answers one input with {count} actions"));
        }
    }

    fn arm(&mut self, rank: usize) {
        let this = &mut self.ranks[rank];
        let deadline = this.control.next_deadline();
        if deadline.is_none() != this.over.is_some() {
            self.broken = Some(format!("rank {rank} has the deadline {deadline:?} and is over at {:?}", this.over));
        }
        if let Some(asked) = deadline.filter(|_| deadline != this.armed) {
            this.armed = deadline;
            let time = (asked.as_micros() as Micros).saturating_sub(this.offset);
            let starved = self.plan.spiky && self.rng.one_in(50);
            let spread = if starved { SECOND } else { 10 * MILLI };
            self.after(time.saturating_sub(self.now), spread, Event::Tick(rank));
        }
    }

    /// The index of the stream between `from` and `to`, one of which is rank 0.
    pub(super) fn pipe(from: usize, to: usize) -> usize {
        if to == 0 { 2 * from } else { 2 * to + 1 }
    }

    /// Puts an event at the end of a stream.
    pub(super) fn arrive(&mut self, from: usize, to: usize, event: Event) {
        let spike = self.plan.spiky && self.rng.one_in(20);
        let delay = self.rng.below(if spike { self.plan.delay() } else { 50 * MILLI });
        let pipe = &mut self.pipes[Self::pipe(from, to)];
        pipe.last_arrival = pipe.last_arrival.max(self.now + delay);
        let time = pipe.last_arrival;
        self.after(time - self.now, 1, event);
    }

    fn send(&mut self, from: usize, to: usize, mut bytes: Vec<u8>) {
        let pipe = &mut self.pipes[Self::pipe(from, to)];
        if pipe.cut || pipe.closed {
            return;
        }
        if std::mem::take(&mut pipe.garbles) {
            if self.rng.one_in(2) {
                bytes.truncate(self.rng.below(bytes.len() as u64) as usize);
            } else {
                bytes[0] = 8 + self.rng.below(240) as u8;
            }
        }
        self.arrive(from, to, Event::Frame { from, to, bytes });
    }

    /// Whether this rank is there and can be asked what it did.
    pub fn survives(&self, rank: usize) -> bool {
        !self.ranks[rank].killed && !self.ranks[rank].frozen
    }
}
