//! Where HTTP and the engine's thread meet: who is let in, what waits, and how the engine is.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::Metrics;
use super::refuse::{BAD, TOO_MANY, UNAVAILABLE};
use crate::api::{Refusal, Texts};
use crate::engine::{Job, Update};
use crate::error::Error;

/// How the engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The model is not there yet.
    Loading,
    /// It answers.
    Ready,
    /// A rank was lost; the model is loaded again.
    Relaunching,
    /// What runs may finish.
    Draining,
    /// It will not answer any more.
    Over,
}

impl Phase {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready => "ok",
            Self::Relaunching => "relaunching",
            Self::Draining => "draining",
            Self::Over => "over",
        }
    }
}

/// What the engine's thread is told.
pub(super) enum Message {
    Begin(Errand),
    /// This choice of an errand needs no more tokens.
    End(u64, usize),
    /// Nobody waits for the errand any more.
    Leave(u64),
    /// A rank was lost while nothing ran.
    Lost(Error),
    Stop,
}

/// A request's jobs.
pub(super) struct Errand {
    pub(super) key: u64,
    pub(super) jobs: Vec<Job>,
    pub(super) news: mpsc::UnboundedSender<News>,
    pub(super) asked: Instant,
}

/// What an errand's owner is told.
pub(super) enum News {
    /// Something happened to this choice.
    Update(usize, Update),
    /// The run has ended, for this reason.
    Lost(String),
}

struct Inner {
    phase: Phase,
    draining: bool,
    stopped: bool,
    // which run of the engine it is, from 1
    run: u64,
    texts: Option<Arc<Texts>>,
    inbox: VecDeque<Message>,
    // jobs that have not had their last word
    open: usize,
    next: u64,
}

/// Shared by HTTP and the engine's thread.
pub struct Desk {
    inner: Mutex<Inner>,
    wake: Condvar,
    phase: watch::Sender<Phase>,
    places: usize,
    /// What happened so far.
    pub metrics: Metrics,
}

impl Desk {
    /// A desk at which so many jobs may run, and so many wait.
    pub fn new(running: usize, waiting: usize) -> Arc<Self> {
        let inner = Inner {
            phase: Phase::Loading,
            draining: false,
            stopped: false,
            run: 0,
            texts: None,
            inbox: VecDeque::new(),
            open: 0,
            next: 0,
        };
        Arc::new(Self {
            inner: Mutex::new(inner),
            wake: Condvar::new(),
            phase: watch::channel(Phase::Loading).0,
            places: running.saturating_add(waiting),
            metrics: Metrics::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, inner: &mut Inner, phase: Phase) {
        inner.phase = phase;
        let draining = inner.draining && phase != Phase::Over;
        self.phase.send_replace(if draining { Phase::Draining } else { phase });
        self.wake.notify_all();
    }

    /// How the engine is.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(super) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// The model is loaded; returns the number of this run, for [`Desk::lost`].
    pub fn ready(&self, texts: Texts) -> u64 {
        let mut inner = self.lock();
        inner.run += 1;
        inner.texts = Some(Arc::new(texts));
        self.turn(&mut inner, Phase::Ready);
        inner.run
    }

    /// A rank of run `run` was lost. The engine's thread may be waiting for work and not have noticed.
    pub fn lost(&self, run: u64, error: Error) {
        let mut inner = self.lock();
        if inner.run == run && inner.phase == Phase::Ready {
            inner.inbox.push_back(Message::Lost(error));
            self.wake.notify_all();
        }
    }

    /// The run has ended: whoever waits is told why. `over` if there will be no other.
    pub fn down(&self, why: &Error, over: bool) {
        let mut inner = self.lock();
        for message in inner.inbox.drain(..) {
            if let Message::Begin(errand) = message {
                // one who has left needs no answer
                let _ = errand.news.send(News::Lost(why.to_string()));
            }
        }
        inner.open = 0;
        self.metrics.forget_run();
        self.turn(&mut inner, if over { Phase::Over } else { Phase::Relaunching });
    }

    /// Waits before the next try; `false` if the server is to end meanwhile.
    pub fn pause(&self, patience: Duration) -> bool {
        let idle = self.wake.wait_timeout_while(self.lock(), patience, |inner| !inner.draining);
        !idle.unwrap_or_else(PoisonError::into_inner).0.draining
    }

    /// From now on nobody is let in.
    pub(super) fn drain(&self) {
        let mut inner = self.lock();
        inner.draining = true;
        let phase = inner.phase;
        self.turn(&mut inner, phase);
    }

    /// Lets the engine's thread return from its work; `false` if it has none.
    pub fn stop(&self) -> bool {
        let mut inner = self.lock();
        inner.stopped = true;
        self.wake.notify_all();
        inner.phase == Phase::Ready
    }

    /// The model's texts, if a request may come in now.
    pub(super) fn admit(&self) -> Result<Arc<Texts>, Refusal> {
        self.may_enter(&self.lock())
    }

    /// The model's texts, if it has ever been loaded.
    pub(super) fn texts(&self) -> Option<Arc<Texts>> {
        self.lock().texts.clone()
    }

    fn may_enter(&self, inner: &Inner) -> Result<Arc<Texts>, Refusal> {
        let why = match (inner.phase, inner.draining) {
            (Phase::Loading, false) => "the model is still loading",
            (Phase::Relaunching, false) => "a rank was lost and the model is loaded again",
            (_, true) | (Phase::Over, _) => "the server is about to end",
            (Phase::Ready | Phase::Draining, false) if inner.open >= self.places => {
                return Err(self.full(inner));
            }
            (Phase::Ready | Phase::Draining, false) => "the model is still loading",
        };
        let texts = inner.texts.clone().filter(|_| inner.phase == Phase::Ready && !inner.draining);
        texts.ok_or_else(|| Refusal::new(UNAVAILABLE, why).code("unavailable"))
    }

    fn full(&self, inner: &Inner) -> Refusal {
        let message = format!("{} answers are under way or wait; there is room for {}", inner.open, self.places);
        Refusal::new(TOO_MANY, message).code("queue_full")
    }

    /// Takes an errand in, if there is room for all of its jobs.
    pub(super) fn submit(self: &Arc<Self>, jobs: Vec<Job>) -> Result<Held, Refusal> {
        let mut inner = self.lock();
        self.may_enter(&inner)?;
        if jobs.len() > self.places {
            let message = format!("{} answers are asked for, and there is room for {}", jobs.len(), self.places);
            return Err(Refusal::new(BAD, message).code("too_many_answers"));
        }
        if jobs.len() > self.places - inner.open {
            return Err(self.full(&inner));
        }
        let key = inner.next;
        inner.next += 1;
        inner.open += jobs.len();
        let (news, updates) = mpsc::unbounded_channel();
        inner.inbox.push_back(Message::Begin(Errand { key, jobs, news, asked: Instant::now() }));
        self.wake.notify_all();
        Ok(Held { desk: Arc::clone(self), key, updates })
    }

    fn tell(&self, message: Message) {
        self.lock().inbox.push_back(message);
        self.wake.notify_all();
    }

    /// What the engine's thread is to hear; waits for something if it has nothing to do.
    pub(super) fn take(&self, idle: bool) -> VecDeque<Message> {
        let mut inner = self.lock();
        if idle {
            let some = self.wake.wait_while(inner, |inner| inner.inbox.is_empty() && !inner.stopped);
            inner = some.unwrap_or_else(PoisonError::into_inner);
        }
        if inner.stopped {
            inner.inbox.push_back(Message::Stop);
        }
        std::mem::take(&mut inner.inbox)
    }

    /// So many jobs have had their last word.
    pub(super) fn closed(&self, jobs: usize) {
        let mut inner = self.lock();
        inner.open = inner.open.saturating_sub(jobs);
    }

    /// Jobs that have not had their last word.
    pub(super) fn open(&self) -> usize {
        self.lock().open
    }
}

/// An errand as its owner holds it. Who lets go of it does not want it any more.
pub(super) struct Held {
    desk: Arc<Desk>,
    key: u64,
    updates: mpsc::UnboundedReceiver<News>,
}

impl Held {
    /// The next news; `None` if there can be no more.
    pub(super) async fn next(&mut self) -> Option<News> {
        self.updates.recv().await
    }

    /// This choice needs no more tokens.
    pub(super) fn end(&self, choice: usize) {
        self.desk.tell(Message::End(self.key, choice));
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.desk.tell(Message::Leave(self.key));
    }
}
