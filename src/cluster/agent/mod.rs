//! The small helper that a launcher starts on every host: it starts a rank, carries its streams, and ends it.
//!
//! An agent ends when its launcher says so, closes its standard input, or says nothing for a while; and it never leaves
//! its rank behind. The rank itself hangs on its line (see `run`), so it does not outlive an agent that was killed.

mod child;
mod machine;
pub(super) mod wire;

use std::io::{Read, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::time::{Duration, Instant};

use child::Child;
pub use wire::{End, Machine, Start};
use wire::{GREETING, Order, Report};

use super::ticket::Meeting;
use crate::error::{Error, Result};
use crate::transport::tcp;

/// After so much silence the other side is gone.
pub(super) const SILENT: Duration = Duration::from_secs(5);

/// The time between two signs of life.
pub(super) const SIGN: Duration = Duration::from_millis(500);

/// How often the rank's process is looked at.
const LOOK: Duration = Duration::from_millis(25);

/// Reports that wait for the launcher to take them.
const QUEUE: usize = 16;

enum Event {
    Order(Order),
    /// The launcher has closed its end, or wrote what is no order.
    Closed,
    StreamEnded,
}

/// Serves a launcher over `input` and `output` until it is done; nothing that was started is left then.
///
/// # Errors
/// If the system refuses a thread.
pub fn serve(
    machine: Machine,
    input: impl Read + Send + 'static,
    mut output: impl Write + Send + 'static,
) -> Result<()> {
    let (events, incoming) = channel();
    let (out, reports) = sync_channel(QUEUE);
    let for_reader = events.clone();
    spawn("orders", move || read(input, &for_reader))?;
    let written = spawn("reports", move || {
        let greeted = output.write_all(GREETING).and_then(|()| output.flush());
        while let Ok(report) = reports.recv()
            && greeted.is_ok()
            && wire::write(&mut output, &report).is_ok()
        {}
    })?;
    let mut agent = Agent { child: None, listener: None, out, events, sign: Instant::now() };
    agent.report(Report::Hello(machine));
    agent.run(&incoming);
    drop(agent);
    // the launcher may be there and slow, or gone and its network with it
    let until = Instant::now() + Duration::from_secs(1);
    while !written.is_finished() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Starts a thread.
pub(super) fn spawn(what: &str, run: impl FnOnce() + Send + 'static) -> Result<std::thread::JoinHandle<()>> {
    let thread = std::thread::Builder::new().name(format!("tbshard-{what}")).spawn(run);
    thread.map_err(|error| Error::from_std(error).context("cannot start a thread"))
}

fn read(mut input: impl Read, events: &Sender<Event>) {
    while let Ok(Some(order)) = wire::read(&mut input) {
        if events.send(Event::Order(order)).is_err() {
            return;
        }
    }
    // the agent may be at its end already
    let _ = events.send(Event::Closed);
}

struct Agent {
    child: Option<Child>,
    listener: Option<tcp::Listener>,
    out: SyncSender<Report>,
    events: Sender<Event>,
    // when the next sign of life is due
    sign: Instant,
}

impl Agent {
    fn run(&mut self, incoming: &Receiver<Event>) {
        let (mut heard, mut looked) = (Instant::now(), Instant::now());
        loop {
            let event = incoming.recv_timeout(LOOK);
            // a machine that slept has not heard anything because of that
            if looked.elapsed() > SILENT / 4 {
                heard = Instant::now();
            }
            looked = Instant::now();
            match event {
                Ok(Event::Order(Order::Stop) | Event::Closed) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Event::Order(order)) => {
                    heard = Instant::now();
                    if let Err(error) = self.obey(order) {
                        self.report(Report::Failed(format!("{error:?}")));
                    }
                }
                Ok(Event::StreamEnded) => self.child.iter_mut().for_each(Child::stream_ended),
                Err(RecvTimeoutError::Timeout) if heard.elapsed() > SILENT => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some(end) = self.child.as_mut().and_then(Child::ended) {
                self.child = None;
                self.report(Report::Exited(end));
            }
            if Instant::now() >= self.sign {
                self.sign = Instant::now() + SIGN;
                // when the queue is full, what is in it is sign enough
                let _ = self.out.try_send(Report::Alive);
            }
        }
    }

    fn obey(&mut self, order: Order) -> Result<()> {
        match order {
            Order::Ping | Order::Stop => {}
            Order::Listen(address) => {
                let listener = tcp::listen(address)?;
                self.report(Report::Listening(listener.address()));
                self.listener = Some(listener);
            }
            Order::Start(mut start) => {
                let listener = self.listener.take();
                if let (Some(listener), Some(ticket)) =
                    (&listener, start.ticket.as_mut().filter(|ticket| ticket.rank == 0))
                {
                    use std::os::fd::AsRawFd;
                    ticket.meeting = Meeting::Listener(listener.socket().as_raw_fd());
                }
                self.child = Some(Child::start(*start, listener.as_ref(), &self.out, &self.events)?);
            }
            Order::Input(piece) => self.child.iter_mut().for_each(|child| child.input(Some(piece.clone()))),
            Order::InputEnd => self.child.iter_mut().for_each(|child| child.input(None)),
            Order::Exited(rank, how) => self.child.iter().for_each(|child| child.exited(rank, &how)),
        }
        Ok(())
    }

    /// Says it, unless the launcher does not listen for so long that it must be gone.
    fn report(&self, mut report: Report) {
        let until = Instant::now() + SILENT;
        while let Err(TrySendError::Full(back)) = self.out.try_send(report) {
            if Instant::now() >= until {
                return;
            }
            report = back;
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
