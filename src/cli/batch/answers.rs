//! The loop of a run: lines in, steps of the scheduler, rows out.

use std::collections::HashMap;
use std::time::Duration;

use super::feed::{Item, Items};
use super::progress::Watch;
use super::row::{Head, Maker, refusal};
use super::rows::{HELD, Rows};
use crate::api::{Order, Reply};
use crate::cli::interrupt::Answering;
use crate::engine::{Engine, Scheduler, Update};
use crate::error::{Error, Result};

/// How long an idle run waits for a line until it looks whether the user wants to end it.
const LOOK: Duration = Duration::from_millis(50);

/// How a run ended.
#[derive(Debug)]
pub(super) enum End {
    /// Every line has its row.
    Done,
    /// The user ended it.
    Interrupted,
    /// Nobody reads the rows any more.
    Closed,
}

/// A line that is being answered.
struct Active {
    seq: u64,
    head: Head,
    reply: Reply,
    jobs: Vec<u64>,
}

/// A run.
pub(super) struct Answers<'a> {
    pub(super) engine: &'a mut Engine,
    pub(super) scheduler: Scheduler,
    pub(super) maker: Maker,
    pub(super) rows: &'a mut Rows,
    pub(super) watch: &'a mut Watch,
    pub(super) concurrency: usize,
    active: HashMap<u64, Active>,
    // whose job it is, and which of its choices
    jobs: HashMap<u64, (u64, usize)>,
    next: u64,
}

impl<'a> Answers<'a> {
    pub(super) fn new(
        engine: &'a mut Engine,
        scheduler: Scheduler,
        maker: Maker,
        rows: &'a mut Rows,
        watch: &'a mut Watch,
        concurrency: usize,
    ) -> Self {
        let (active, jobs) = (HashMap::new(), HashMap::new());
        Self { engine, scheduler, maker, rows, watch, concurrency, active, jobs, next: 0 }
    }

    /// Answers all lines.
    ///
    /// # Errors
    /// If a rank is lost, a row cannot be written, or the input ends in an error; the last once all lines before it have
    /// their rows.
    pub(super) fn run(&mut self, items: &Items) -> Result<End> {
        let answering = Answering::begin();
        // the input's end, and whether it is an error
        let mut over: Option<Result<()>> = None;
        loop {
            if answering.interrupted() {
                return self.leave(End::Interrupted);
            }
            while over.is_none() && self.has_room() {
                let idle = self.scheduler.is_idle() && self.active.is_empty();
                match items.next(if idle { LOOK } else { Duration::ZERO }) {
                    Some(Item::Order { seq, head, order }) => self.begin(seq, head, *order)?,
                    Some(Item::Row { seq, row }) => self.rows.put(seq, row),
                    Some(Item::End(end)) => over = Some(end),
                    None => break,
                }
            }
            if !self.scheduler.is_idle() {
                for update in self.scheduler.step(self.engine)? {
                    self.hear(update)?;
                }
            }
            if !self.rows.commit()? {
                return self.leave(End::Closed);
            }
            self.watch.show(self.rows, &self.scheduler.counts());
            if self.active.is_empty() && self.scheduler.is_idle() && over.is_some() {
                return over.unwrap_or(Ok(())).map(|()| End::Done);
            }
        }
    }

    /// Gives up what is being answered. Steps that are under way on other ranks come to their end.
    fn leave(&mut self, end: End) -> Result<End> {
        self.scheduler.end_all(self.engine)?;
        Ok(end)
    }

    /// Whether another line may begin: some wait, so that a place that becomes free is taken at once.
    fn has_room(&self) -> bool {
        self.jobs.len() < 2 * self.concurrency && self.rows.held() < HELD
    }

    fn begin(&mut self, seq: u64, head: Head, order: Order) -> Result<()> {
        let Order { jobs, reply } = order;
        let mut active = Active { seq, head, reply, jobs: Vec::new() };
        for (choice, mut job) in jobs.into_iter().enumerate() {
            job.id = self.next;
            self.next += 1;
            active.jobs.push(job.id);
            self.jobs.insert(job.id, (seq, choice));
            if let Err(error) = self.scheduler.submit(self.engine, job) {
                return self.fail(active, 400, &error);
            }
        }
        self.active.insert(seq, active);
        Ok(())
    }

    fn hear(&mut self, update: Update) -> Result<()> {
        let id = update.id();
        // a job that was ended may have had a word left
        let Some((seq, choice)) = self.jobs.get(&id).copied() else { return Ok(()) };
        let Some(active) = self.active.get_mut(&seq) else { return Ok(()) };
        let told = match update {
            Update::Failed { error, .. } => Err(error),
            update => active.reply.update(choice, update),
        };
        match told {
            Ok(progress) => {
                if progress.end {
                    self.jobs.remove(&id);
                    self.scheduler.end(id);
                }
                if !active.reply.is_done() {
                    return Ok(());
                }
                let Some(active) = self.active.remove(&seq) else { return Ok(()) };
                for job in &active.jobs {
                    self.jobs.remove(job);
                }
                self.rows.put(seq, self.maker.answered(&active.head, active.reply.whole())?);
                Ok(())
            }
            Err(error) => match self.active.remove(&seq) {
                Some(active) => self.fail(active, 500, &error),
                None => Ok(()),
            },
        }
    }

    fn fail(&mut self, active: Active, status: u16, error: &Error) -> Result<()> {
        for job in active.jobs {
            self.jobs.remove(&job);
            self.scheduler.end(job);
        }
        let refusal = refusal(status, error);
        self.rows.put(active.seq, self.maker.failed(&active.head, status, refusal.body())?);
        Ok(())
    }
}
