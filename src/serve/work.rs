//! The engine's thread: takes errands, steps, and tells their owners what came of it.

use std::collections::BTreeMap;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::desk::{Desk, Errand, Message, News};
use crate::engine::{Engine, Limits, Scheduler, Update};
use crate::error::Result;

/// An errand under way.
struct Open {
    news: UnboundedSender<News>,
    asked: Instant,
    // by choice: the job, until its last word
    jobs: BTreeMap<usize, u64>,
}

/// A job's errand and choice, and when its last token came.
struct Place {
    key: u64,
    choice: usize,
    last: Option<Instant>,
}

struct Clerk<'a> {
    desk: &'a Desk,
    scheduler: Scheduler,
    errands: BTreeMap<u64, Open>,
    places: BTreeMap<u64, Place>,
    next: u64,
}

/// Answers what comes to `desk` until that is told to stop.
///
/// # Errors
/// If a rank is lost or the engine fails: the run is over, and everybody who waits has been told.
pub fn work(desk: &Desk, engine: &mut Engine, limits: Limits) -> Result<()> {
    let scheduler = Scheduler::new(limits);
    let mut clerk = Clerk { desk, scheduler, errands: BTreeMap::new(), places: BTreeMap::new(), next: 0 };
    let result = clerk.work(engine);
    if let Err(error) = &result {
        for errand in clerk.errands.into_values() {
            // one who has left needs no answer
            let _ = errand.news.send(News::Lost(error.to_string()));
        }
        desk.down(error, false);
    }
    result
}

impl Clerk<'_> {
    fn work(&mut self, engine: &mut Engine) -> Result<()> {
        loop {
            let (mut lost, mut stop) = (None, false);
            for message in self.desk.take(self.scheduler.is_idle()) {
                match message {
                    Message::Begin(errand) => self.begin(engine, errand),
                    Message::End(key, choice) => self.end(key, choice),
                    Message::Leave(key) => self.leave(key),
                    Message::Lost(error) => lost = Some(error),
                    Message::Stop => stop = true,
                }
            }
            // after the last message: whoever came with it is told too
            if let Some(error) = lost {
                return Err(error);
            }
            if stop {
                return self.scheduler.end_all(engine);
            }
            let updates = self.scheduler.step(engine)?;
            // before anybody hears that something is done
            self.desk.metrics.counts(self.scheduler.counts());
            for update in updates {
                self.pass_on(update);
            }
        }
    }

    fn begin(&mut self, engine: &Engine, errand: Errand) {
        let Errand { key, jobs, news, asked } = errand;
        let mut open = Open { news, asked, jobs: BTreeMap::new() };
        let mut refused = Vec::new();
        for mut job in jobs {
            let choice = job.id as usize;
            job.id = self.next;
            self.next += 1;
            open.jobs.insert(choice, job.id);
            self.places.insert(job.id, Place { key, choice, last: None });
            let id = job.id;
            if let Err(error) = self.scheduler.submit(engine, job) {
                refused.push(Update::Failed { id, error });
            }
        }
        self.errands.insert(key, open);
        refused.into_iter().for_each(|update| self.pass_on(update));
    }

    /// Tells an errand's owner, and forgets what is over.
    fn pass_on(&mut self, update: Update) {
        let id = update.id();
        let Some(place) = self.places.get_mut(&id) else { return };
        let (key, choice) = (place.key, place.choice);
        let Some(errand) = self.errands.get(&key) else { return };
        if matches!(update, Update::Token { .. }) {
            let now = Instant::now();
            match place.last.replace(now) {
                None => self.desk.metrics.first_token(now - errand.asked),
                Some(last) => self.desk.metrics.token(now - last),
            }
        }
        let last = matches!(update, Update::Done { .. } | Update::Failed { .. });
        // one who has left says so
        let _ = errand.news.send(News::Update(choice, update));
        if last {
            self.close(key, choice);
        }
    }

    /// Ends a choice that needs no more tokens.
    fn end(&mut self, key: u64, choice: usize) {
        let id = self.errands.get(&key).and_then(|errand| errand.jobs.get(&choice).copied());
        if let Some(id) = id {
            self.scheduler.end(id);
            self.close(key, choice);
            self.desk.metrics.counts(self.scheduler.counts());
        }
    }

    /// Ends all of an errand, for which nobody waits any more.
    fn leave(&mut self, key: u64) {
        let Some(errand) = self.errands.remove(&key) else { return };
        for id in errand.jobs.values() {
            self.places.remove(id);
            self.scheduler.end(*id);
        }
        self.desk.closed(errand.jobs.len());
        self.desk.metrics.cancelled(errand.jobs.len());
        self.desk.metrics.counts(self.scheduler.counts());
    }

    fn close(&mut self, key: u64, choice: usize) {
        let Some(errand) = self.errands.get_mut(&key) else { return };
        if let Some(id) = errand.jobs.remove(&choice) {
            self.places.remove(&id);
            self.desk.closed(1);
        }
        if errand.jobs.is_empty() {
            self.errands.remove(&key);
        }
    }
}
