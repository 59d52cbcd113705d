//! The loop of a run: lines in, steps of the scheduler, rows out.

use std::time::Duration;

use super::feed::{Item, Items};
use super::progress::Watch;
use super::row::{Head, Maker, refusal};
use super::rows::{HELD, Rows};
use crate::api::{Order, Reply};
use crate::cli::interrupt::Answering;
use crate::engine::{Engine, Groups, Limits, Update};
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
    head: Head,
    reply: Reply,
}

/// A run.
pub(super) struct Answers<'a> {
    engine: &'a mut Engine,
    maker: Maker,
    rows: &'a mut Rows,
    watch: &'a mut Watch,
    concurrency: usize,
    // by the line's number
    active: Groups<Active>,
}

impl<'a> Answers<'a> {
    pub(super) fn new(
        engine: &'a mut Engine,
        limits: Limits,
        maker: Maker,
        rows: &'a mut Rows,
        watch: &'a mut Watch,
        concurrency: usize,
    ) -> Self {
        Self { engine, maker, rows, watch, concurrency, active: Groups::new(limits) }
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
                match items.next(if self.active.is_idle() { LOOK } else { Duration::ZERO }) {
                    Some(Item::Order { seq, head, order }) => self.begin(seq, head, *order)?,
                    Some(Item::Row { seq, row }) => self.rows.put(seq, row),
                    Some(Item::End(end)) => over = Some(end),
                    None => break,
                }
            }
            if !self.active.is_idle() {
                for update in self.active.step(self.engine)? {
                    self.hear(update)?;
                }
            }
            if !self.rows.commit()? {
                return self.leave(End::Closed);
            }
            self.watch.show(self.rows, &self.active.counts());
            if self.active.is_idle() && over.is_some() {
                return over.unwrap_or(Ok(())).map(|()| End::Done);
            }
        }
    }

    /// Gives up what is being answered. Steps that are under way on other ranks come to their end.
    fn leave(&mut self, end: End) -> Result<End> {
        self.active.end_all(self.engine)?;
        Ok(end)
    }

    /// Whether another line may begin: some wait, so that a place that becomes free is taken at once.
    fn has_room(&self) -> bool {
        self.active.jobs() < 2 * self.concurrency && self.rows.held() < HELD
    }

    fn begin(&mut self, seq: u64, head: Head, order: Order) -> Result<()> {
        let Order { jobs, reply } = order;
        match self.active.begin(self.engine, seq, Active { head, reply }, jobs).first() {
            Some((_, error)) => self.fail(seq, 400, error),
            None => Ok(()),
        }
    }

    fn hear(&mut self, update: Update) -> Result<()> {
        let Some((seq, choice, active)) = self.active.find(&update) else { return Ok(()) };
        let last = update.is_last();
        match active.reply.update(choice, update) {
            Ok(progress) if progress.end || last => match self.active.end(seq, choice) {
                (_, Some(Active { head, reply })) => {
                    self.rows.put(seq, self.maker.answered(&head, reply.whole())?);
                    Ok(())
                }
                _ => Ok(()),
            },
            Ok(_) => Ok(()),
            Err(error) => self.fail(seq, 500, &error),
        }
    }

    fn fail(&mut self, seq: u64, status: u16, error: &Error) -> Result<()> {
        let Some((active, _)) = self.active.leave(seq) else { return Ok(()) };
        self.rows.put(seq, self.maker.failed(&active.head, status, refusal(status, error).body())?);
        Ok(())
    }
}
