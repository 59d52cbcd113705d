//! One rank as a thread: the start-up, passes on command, the end; and what can go wrong in the rank itself.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tbshard::backend::cpu::Pool;
use tbshard::comm::control::{Cause, Monitor};
use tbshard::comm::{Algorithm, Communicator, Hello, Watch, self_test};
use tbshard::error::{Error, Result};
use tbshard::transport::Endpoint;

use crate::support::sending::Sending;

/// What goes wrong in a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ill {
    Error,
    Panic,
    /// A panic in a thread of a pool.
    Worker,
    /// It ends without a word.
    Leave,
    /// It does nothing any more, and its heartbeats go on.
    Hang,
    /// It does nothing for longer than silence may last, then goes on.
    Slow,
    /// What it sends to one other does not arrive any more.
    Mute,
    /// It sends one message that is too short.
    Short,
}

pub const ILLS: [Ill; 8] =
    [Ill::Error, Ill::Panic, Ill::Worker, Ill::Leave, Ill::Hang, Ill::Slow, Ill::Mute, Ill::Short];

/// Where in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Hello,
    SelfTest,
    Loading,
    Command(usize),
    Pass(usize),
    Reports,
    Finish,
}

/// A rank that `rank` sends something to in every pass.
pub fn neighbour(rank: usize, world: usize) -> usize {
    if world == 4 { rank ^ 1 } else { (rank + 1) % world }
}

/// An endpoint that stops keeping the contract in the way that it is `armed` with.
pub fn faulty(inner: Box<dyn Endpoint>, armed: Arc<Mutex<Option<Ill>>>) -> Box<dyn Endpoint> {
    Sending::by(inner, move |inner, peer, mut message| {
        let next = neighbour(inner.rank(), inner.world_size());
        let mut armed = armed.lock().unwrap();
        match *armed {
            // the buffer never comes back, as if it waited for ever
            Some(Ill::Mute) if peer == next => return Ok(()),
            Some(Ill::Short) if peer == next && message.len() > 1 => {
                message.set_len(message.len() - 1)?;
                *armed = None;
            }
            _ => {}
        }
        drop(armed);
        inner.post_send(peer, message)
    })
}

/// A rank's part in a run.
pub struct Rank {
    pub world: Communicator,
    pub monitor: Arc<Monitor>,
    pub ill: Option<(Ill, Step)>,
    pub armed: Arc<Mutex<Option<Ill>>>,
    pub slow: Duration,
    /// How long rank 0 goes on.
    pub until: Instant,
    pub struck: Option<Instant>,
}

/// How a rank ended.
#[derive(Debug)]
pub struct Ended {
    /// What it would print, if it did not end well.
    pub error: Option<String>,
    pub cause: Option<Cause>,
    pub at: Instant,
    pub struck: Option<Instant>,
}

/// What a rank does that leaves without a word.
const LEFT: &str = "left";

impl Rank {
    /// As `cli/rank.rs` does it.
    pub fn run(mut self) -> Ended {
        let result = catch_unwind(AssertUnwindSafe(|| self.work())).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().copied().unwrap_or("?");
            Err(Error::panicked(text))
        });
        let rank = self.world.rank();
        if result.as_ref().is_err_and(|error| error.to_string() == LEFT) {
            return Ended { error: Some(LEFT.to_owned()), cause: None, at: Instant::now(), struck: self.struck };
        }
        let error = match result.and_then(|()| self.monitor.finish()) {
            Ok(()) => None,
            Err(error) => Some(self.monitor.failed(rank, error)),
        };
        self.monitor.settle();
        let (error, cause) = (error.map(|error| error.to_string()), self.monitor.cause());
        Ended { error, cause, at: Instant::now(), struck: self.struck }
    }

    /// Falls ill, if it is time.
    fn at(&mut self, step: Step) -> Result<()> {
        let Some((ill, _)) = self.ill.filter(|(_, when)| *when == step) else { return Ok(()) };
        self.struck = Some(Instant::now());
        match ill {
            Ill::Error => return Err(Error::msg("ill on purpose")),
            // without the words on stderr that a panic has
            Ill::Panic => resume_unwind(Box::new("ill on purpose")),
            Ill::Worker => {
                let (caller, both) = (std::thread::current().id(), std::sync::Barrier::new(2));
                Pool::new(2)?.run(2, |_| {
                    both.wait();
                    if std::thread::current().id() != caller {
                        resume_unwind(Box::new("ill on purpose"));
                    }
                });
            }
            Ill::Leave => return Err(Error::msg(LEFT)),
            Ill::Hang => {
                // until the last resort of a process would strike
                while self.monitor.ended().is_none() {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            Ill::Slow => std::thread::sleep(self.slow),
            Ill::Mute | Ill::Short => *self.armed.lock().unwrap() = Some(ill),
        }
        Ok(())
    }

    fn work(&mut self) -> Result<()> {
        let world = self.world.clone();
        let (rank, size) = (world.rank(), world.world_size());
        world.starting("hello")?;
        self.at(Step::Hello)?;
        Hello::new([("model", "one".to_owned())]).exchange(&world)?;
        world.starting("self-test")?;
        self.at(Step::SelfTest)?;
        self_test(&world)?;
        world.starting("loading")?;
        self.at(Step::Loading)?;
        world.barrier()?;
        world.busy(false)?;
        // four ranks are two stages of two
        let stages = size == 4;
        let first = rank / 2 * 2;
        let stage = if stages { world.split(&[first, first + 1])? } else { world.clone() };
        for pass in 0.. {
            self.at(Step::Command(pass))?;
            let goes_on = rank == 0 && Instant::now() < self.until;
            if world.broadcast_bytes(vec![u8::from(goes_on)], 1)? == [0] {
                break;
            }
            world.busy(true)?;
            self.at(Step::Pass(pass))?;
            let count = [1, 1000, 9000][pass % 3];
            let members = stage.world_size();
            for algorithm in [Algorithm::Direct, Algorithm::Scatter] {
                let mut values: Vec<f32> = (0..count).map(|i| (i % 89 + stage.rank()) as f32).collect();
                stage.clone().with_algorithm(algorithm).all_reduce(&mut values)?;
                let offset = members * (members - 1) / 2;
                let right = |(i, value): (usize, &f32)| *value == (i % 89 * members + offset) as f32;
                assert!(values.iter().enumerate().all(right), "a sum is wrong");
            }
            if stages && rank < 2 {
                world.send(rank + 2, &vec![pass as f32; count])?;
            } else if stages {
                assert_eq!(world.recv(rank - 2, count)?, vec![pass as f32; count], "a message is wrong");
            }
            world.busy(false)?;
            std::thread::sleep(Duration::from_millis(3));
        }
        self.at(Step::Reports)?;
        let all = world.gather_bytes(&[rank as u8], 1)?;
        assert!(rank > 0 || all.iter().enumerate().all(|(rank, bytes)| bytes[..] == [rank as u8]));
        world.flush()?;
        self.at(Step::Finish)
    }
}
