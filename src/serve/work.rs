//! The engine's thread: takes errands, steps, and tells their owners what came of it.

use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::desk::{Desk, Errand, Message, News};
use crate::engine::{Engine, Groups, Limits, Update};
use crate::error::Result;

/// An errand under way.
struct Open {
    news: UnboundedSender<News>,
    asked: Instant,
    // by choice: when its last token came
    last: Vec<Option<Instant>>,
}

struct Clerk<'a> {
    desk: &'a Desk,
    errands: Groups<Open>,
}

/// Answers what comes to `desk` until that is told to stop.
///
/// # Errors
/// If a rank is lost or the engine fails: the run is over, and everybody who waits has been told.
pub fn work(desk: &Desk, engine: &mut Engine, limits: Limits) -> Result<()> {
    let mut clerk = Clerk { desk, errands: Groups::new(limits) };
    let result = clerk.work(engine);
    if let Err(error) = &result {
        for errand in clerk.errands.into_owners() {
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
            for message in self.desk.take(self.errands.is_idle()) {
                match message {
                    Message::Begin(errand) => self.begin(engine, errand),
                    Message::End(key, choice) => {
                        self.end(key, choice);
                        self.desk.metrics.counts(self.errands.counts());
                    }
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
                return self.errands.end_all(engine);
            }
            let updates = self.errands.step(engine)?;
            // before anybody hears that something is done
            self.desk.metrics.counts(self.errands.counts());
            for update in updates {
                self.pass_on(update);
            }
        }
    }

    fn begin(&mut self, engine: &Engine, errand: Errand) {
        let Errand { key, jobs, news, asked } = errand;
        let open = Open { news: news.clone(), asked, last: vec![None; jobs.len()] };
        for (choice, error) in self.errands.begin(engine, key, open, jobs) {
            // one who has left says so
            let _ = news.send(News::Update(choice, Update::Failed { id: choice as u64, error }));
            self.end(key, choice);
        }
    }

    /// Tells an errand's owner, and forgets what is over.
    fn pass_on(&mut self, update: Update) {
        let Some((key, choice, errand)) = self.errands.find(&update) else { return };
        if matches!(update, Update::Token { .. }) {
            let now = Instant::now();
            match errand.last[choice].replace(now) {
                None => self.desk.metrics.first_token(now - errand.asked),
                Some(last) => self.desk.metrics.token(now - last),
            }
        }
        let last = update.is_last();
        // as above
        let _ = errand.news.send(News::Update(choice, update));
        if last {
            self.end(key, choice);
        }
    }

    /// Ends a choice that needs no more tokens.
    fn end(&mut self, key: u64, choice: usize) {
        if self.errands.end(key, choice).0 {
            self.desk.closed(1);
        }
    }

    /// Ends all of an errand, for which nobody waits any more.
    fn leave(&mut self, key: u64) {
        let Some((_, left)) = self.errands.leave(key) else { return };
        self.desk.closed(left);
        self.desk.metrics.cancelled(left);
        self.desk.metrics.counts(self.errands.counts());
    }
}
