//! The control thread of a rank: drives the state machine over the control connections.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Action, Activity, Cause, Control, Deadlines, Failure, Loss, MAX_FRAME, Operation};
use crate::comm::{Place, Watch};
use crate::error::{Error, Kind, Result};
use crate::transport::tcp::{Secure, SecureReader, SecureWriter};
use crate::transport::{Disconnected, End};

/// Frames that wait for a peer to read; more are dropped, because one peer must not hold up the others.
const QUEUE: usize = 64;

/// How long a reader waits before it looks whether it is still needed.
const LOOK: Duration = Duration::from_millis(200);

/// How long the end of a connection is waited for.
const PARTING: Duration = Duration::from_millis(300);

enum Event {
    Frame(usize, Vec<u8>),
    Lost(usize, Loss),
    Local(Failure),
    Finished,
    Gone,
}

/// Watches over the other ranks and answers for this one; ends when the run does.
pub struct Monitor {
    events: Sender<Event>,
    shared: Arc<Shared>,
    patience: Duration,
}

struct Shared {
    // why the run ended, once it has
    outcome: Mutex<Outcome>,
    changed: Condvar,
    // so that the main thread can look without a lock
    aborted: AtomicBool,
    over: AtomicBool,
    progress: AtomicU64,
    // connections that are still read
    readers: AtomicUsize,
    activity: Mutex<Option<Activity>>,
}

#[derive(Default)]
struct Outcome {
    cause: Option<Cause>,
    over: bool,
}

impl Shared {
    fn outcome(&self) -> MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `done` says so, at most for `patience`.
    fn wait(&self, patience: Duration, done: impl Fn(&Outcome) -> bool) -> Outcome {
        let until = self.changed.wait_timeout_while(self.outcome(), patience, |outcome| !done(outcome));
        let (outcome, _) = until.unwrap_or_else(PoisonError::into_inner);
        Outcome { cause: outcome.cause.clone(), over: outcome.over }
    }
}

impl Monitor {
    /// Starts the control thread of rank `rank` over the connections that it has (by rank); `names` has one a rank.
    ///
    /// # Errors
    /// If the deadlines contradict each other, or the system refuses a thread.
    pub fn start(
        rank: usize,
        connections: Vec<Option<Secure>>,
        names: Vec<String>,
        deadlines: Deadlines,
    ) -> Result<Arc<Self>> {
        let control = Control::new(rank, names.len(), names, deadlines, Duration::ZERO)?;
        let (events, incoming) = channel();
        let shared = Arc::new(Shared {
            outcome: Mutex::default(),
            changed: Condvar::new(),
            aborted: AtomicBool::new(false),
            over: AtomicBool::new(false),
            progress: AtomicU64::new(0),
            readers: AtomicUsize::new(connections.iter().flatten().count()),
            activity: Mutex::new(None),
        });
        let mut writers = Vec::new();
        for (peer, connection) in connections.into_iter().enumerate() {
            let Some(connection) = connection else {
                writers.push(None);
                continue;
            };
            let (reader, writer) = connection.split();
            let (events, shared) = (events.clone(), Arc::clone(&shared));
            spawn("reads", move || {
                read(peer, reader, &events, &shared);
                shared.readers.fetch_sub(1, Ordering::Release);
            })?;
            let (frames, queue) = sync_channel(QUEUE);
            spawn("writes", move || write(writer, &queue))?;
            writers.push(Some(frames));
        }
        let patience = deadlines.silent + deadlines.linger + deadlines.grace + Duration::from_secs(2);
        let for_thread = Arc::clone(&shared);
        spawn("control", move || {
            let over = Over(for_thread);
            drive(control, &incoming, writers, &over.0);
        })?;
        Ok(Arc::new(Self { events, shared, patience }))
    }

    /// Tells that a rank's process has ended, as who started it can see.
    pub fn exited(&self, rank: usize, how: String) {
        let _ = self.events.send(Event::Lost(rank, Loss::Exited(how)));
    }

    /// Tells that this rank itself failed; returns what was decided, with the error itself if it is that.
    pub fn failed(&self, rank: usize, error: Error) -> Error {
        // a decision that all ranks know is the error already
        if error.kind() == Kind::Cluster && self.cause().is_some() {
            return error;
        }
        let failure = Failure { peer: None, activity: None, why: error.to_string() };
        match self.decided(failure) {
            Some(cause) if cause.rank != rank => cause.into(),
            _ => error,
        }
    }

    /// Tells that this rank ended in good order, and waits until all know.
    ///
    /// # Errors
    /// If the run ended otherwise after all.
    pub fn finish(&self) -> Result<()> {
        let _ = self.events.send(Event::Finished);
        match self.shared.wait(self.patience, |outcome| outcome.over || outcome.cause.is_some()).cause {
            Some(cause) => Err(cause.into()),
            None => Ok(()),
        }
    }

    /// Waits until the decision has been passed on.
    pub fn settle(&self) {
        self.shared.wait(self.patience, |outcome| outcome.over);
    }

    /// Waits, for however long, until the run is over; returns the cause if it did not end in good order.
    pub fn join(&self) -> Option<Cause> {
        let done =
            self.shared.changed.wait_while(self.shared.outcome(), |outcome| !outcome.over && outcome.cause.is_none());
        done.unwrap_or_else(PoisonError::into_inner).cause.clone()
    }

    /// The cause that the run ended with, if it did.
    pub fn cause(&self) -> Option<Cause> {
        self.shared.outcome().cause.clone()
    }

    fn decided(&self, failure: Failure) -> Option<Cause> {
        let _ = self.events.send(Event::Local(failure));
        self.shared.wait(self.patience, |outcome| outcome.over || outcome.cause.is_some()).cause
    }

    fn say(&self, activity: Activity) {
        *self.shared.activity.lock().unwrap_or_else(PoisonError::into_inner) = Some(activity);
    }
}

/// Who leaves without a word closes its connections, which is a word too.
impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.events.send(Event::Gone);
    }
}

impl Watch for Monitor {
    fn begins(&self, _: Operation, _: &'static str) -> Result<()> {
        self.shared.progress.fetch_add(1, Ordering::Relaxed);
        self.ended().map_or(Ok(()), Err)
    }

    fn waiting(&self, operation: Operation, number: u64, place: Place, peer: usize) {
        let place = if place.part.is_empty() { String::new() } else { place.to_string() };
        self.say(Activity { operation, number, place, waiting_for: Some(peer) });
    }

    fn working(&self, operation: Operation, part: &'static str) {
        let number = self.shared.progress.load(Ordering::Relaxed);
        self.say(Activity { operation, number, place: part.to_owned(), waiting_for: None });
    }

    fn ended(&self) -> Option<Error> {
        if self.shared.aborted.load(Ordering::Acquire) {
            return self.cause().map(Error::from);
        }
        // rank 0 has ended in good order, and this rank still wants something
        let over = self.shared.over.load(Ordering::Acquire);
        over.then(|| Error::cluster("the run is over").hint("this is a bug, please report it"))
    }

    fn report(&self, peer: usize, error: Error) -> Error {
        let failure = Failure { peer: Some(peer), activity: None, why: error.to_string() };
        self.decided(failure).map_or(error, Error::from)
    }
}

fn spawn(what: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(format!("tbshard-{what}")).spawn(run);
    thread.map(drop).map_err(|error| Error::from_std(error).context("cannot start the control thread"))
}

fn read(peer: usize, mut reader: SecureReader, events: &Sender<Event>, shared: &Shared) {
    while !shared.over.load(Ordering::Acquire) {
        let event = match reader.recv(MAX_FRAME, Instant::now() + LOOK) {
            Ok(None) => continue,
            Ok(Some(frame)) => Event::Frame(peer, frame),
            Err(Disconnected { end, error }) => {
                let loss = match end {
                    End::Closed => Loss::Closed,
                    End::Broken => Loss::Broken(error.to_string()),
                    End::Garbled => Loss::Garbled(error.to_string()),
                };
                let _ = events.send(Event::Lost(peer, loss));
                return;
            }
        };
        if events.send(event).is_err() {
            return;
        }
    }
}

fn write(mut writer: SecureWriter, queue: &Receiver<Vec<u8>>) {
    // a writer that fails says nothing: the reader of the same connection will
    while let Ok(frame) = queue.recv() {
        if writer.send(&frame).is_err() {
            return;
        }
    }
    writer.shutdown();
}

/// Tells, when it is dropped, that the control thread has ended, even if that panicked.
struct Over(Arc<Shared>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.outcome().over = true;
        self.0.over.store(true, Ordering::Release);
        self.0.changed.notify_all();
    }
}

fn drive(mut control: Control, incoming: &Receiver<Event>, writers: Vec<Option<SyncSender<Vec<u8>>>>, shared: &Shared) {
    let epoch = Instant::now();
    'run: while let Some(deadline) = control.next_deadline() {
        let mut event = incoming.recv_timeout(deadline.saturating_sub(epoch.elapsed()));
        // before the events, because a failure is told with the place where it happened
        let activity = shared.activity.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(activity) = activity {
            control.on_activity(activity, shared.progress.load(Ordering::Relaxed));
        }
        // everything that has come is heard before anybody is called silent
        loop {
            let now = epoch.elapsed();
            match event {
                Ok(Event::Frame(peer, frame)) => control.on_frame(peer, &frame, now),
                Ok(Event::Lost(peer, why)) => control.on_lost(peer, why, now),
                Ok(Event::Local(failure)) => control.on_local(failure, now),
                Ok(Event::Finished) => control.on_finished(now),
                Err(RecvTimeoutError::Timeout) => break,
                Ok(Event::Gone) | Err(RecvTimeoutError::Disconnected) => break 'run,
            }
            event = incoming.recv_timeout(Duration::ZERO);
        }
        control.on_tick(epoch.elapsed());
        while let Some(action) = control.next_action() {
            match action {
                Action::Send(peer, frame) => {
                    // one that does not read misses it; its silence will be noticed
                    let _ = writers[peer].as_ref().map(|writer| writer.try_send(frame));
                }
                Action::Abort(cause) => {
                    shared.outcome().cause = Some(cause);
                    shared.aborted.store(true, Ordering::Release);
                    shared.changed.notify_all();
                }
                Action::Exit => break 'run,
            }
        }
    }
    // the writers end when their queues do; the readers go on until the other side has closed too, because a connection
    // that is closed with bytes unread takes the last word with it
    drop(writers);
    let until = Instant::now() + PARTING;
    while shared.readers.load(Ordering::Acquire) > 0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
}
