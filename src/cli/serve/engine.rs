//! The engine of a server: loaded, watched, and loaded again when a rank is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::log::Lines;
use crate::api::Texts;
use crate::cli::caught::caught;
use crate::cli::load::{Loaded, ModelArgs};
use crate::cli::others::Crew;
use crate::cli::ranks::RankArgs;
use crate::cli::{Outcome, many, rank};
use crate::engine::Limits;
use crate::error::{Error, Result};
use crate::serve::{Desk, Phase, work};

/// How long to wait before the first of several tries, and before any.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A run that has answered for so long is no failure in a row with those before.
const LASTED: Duration = Duration::from_secs(120);

/// What is loaded, and how often.
pub(super) struct Keeper {
    pub(super) model: ModelArgs,
    pub(super) ranks: RankArgs,
    pub(super) limits: Limits,
    pub(super) name: String,
    /// Relaunches in a row at most.
    pub(super) most: u32,
}

/// How a run of the engine ended.
struct End {
    result: Result<Outcome>,
    // for how long it has answered, if at all, and whether there can be another
    served: Option<Duration>,
    again: bool,
}

impl Keeper {
    /// Serves `desk` until it is told to stop, or nothing helps any more.
    pub(super) fn keep(mut self, desk: &Arc<Desk>, log: &Lines) -> Result<Outcome> {
        rank::stay();
        let (mut failures, mut served) = (0, false);
        loop {
            let thread = std::thread::Builder::new().name("tbshard-engine".to_owned());
            // a thread of its own, because a run narrows the processors of the thread that it begins on
            let end = std::thread::scope(|scope| {
                let thread = thread.spawn_scoped(scope, || self.run(desk, log));
                thread
                    .map(|thread| thread.join().unwrap_or_else(|_| End::failed(Error::panicked("the engine's thread"))))
            });
            let end = end.unwrap_or_else(|error| End::failed(Error::from_std(error).context("cannot start a thread")));
            let error = match end.result {
                Ok(outcome) => return Ok(outcome),
                Err(error) => error,
            };
            served |= end.served.is_some();
            if end.served.is_some_and(|served| served > LASTED) {
                failures = 0;
            }
            failures += 1;
            let last = !served || !end.again || failures > self.most || desk.phase() == Phase::Draining;
            desk.down(&error, last);
            if last {
                let given_up = served && end.again && self.most > 0 && failures > self.most;
                let times = format!("{} relaunches did not help", self.most);
                return Err(if given_up { error.into_cluster().context(times) } else { error });
            }
            log.lost(&error);
            let pause = (PAUSE * 2_u32.pow((failures - 1).min(10))).min(LONGEST_PAUSE);
            log.say(&format!("loading again in {:.1} s ({failures} of {} tries)", pause.as_secs_f64(), self.most));
            if !desk.pause(pause) {
                desk.down(&error, true);
                return Ok(Outcome::Done);
            }
            desk.metrics.relaunched();
            // what was to go wrong on purpose has
            self.ranks.fault = None;
        }
    }

    /// One run: from loading the model to its end.
    fn run(&self, desk: &Arc<Desk>, log: &Lines) -> End {
        let begun = Instant::now();
        let mut loaded = match self.ranks.load(&self.model) {
            Ok(loaded) => loaded,
            Err(error) => return End { again: true, ..End::failed(error) },
        };
        let again = !matches!(&loaded.others, Some(others) if matches!(others.crew, Crew::Launched(_)));
        let texts = match self.texts(&mut loaded) {
            Ok(texts) => texts,
            Err(error) => return End { result: loaded.end(&self.ranks, Err(error)), served: None, again: false },
        };
        let (run, ready) = (desk.ready(texts), Instant::now());
        log.say(&format!("ready: {} after {:.1} s", self.name, begun.elapsed().as_secs_f64()));
        self.watch(&loaded, desk, run);
        let result = caught(|| work(desk, &mut loaded.engine, self.limits));
        let served = Some(ready.elapsed());
        if let Err(error) = &result {
            // before the others are ended, which takes its time
            desk.down(error, false);
        }
        End { result: loaded.end(&self.ranks, result.map(|()| Outcome::Done)), served, again }
    }

    /// Lets `desk` hear of a rank that is lost while nothing runs.
    fn watch(&self, loaded: &Loaded, desk: &Arc<Desk>, run: u64) {
        let Some(others) = &loaded.others else { return };
        let (monitor, desk) = (Arc::clone(&others.monitor), Arc::clone(desk));
        std::thread::spawn(move || {
            if let Some(cause) = monitor.join() {
                desk.lost(run, Error::from(cause));
            }
        });
    }

    fn texts(&self, loaded: &mut Loaded) -> Result<Texts> {
        loaded.tokenizer().map_err(|error| error.hint("a server needs one"))?;
        many::texts(loaded, self.name.clone())
    }
}

impl End {
    fn failed(error: Error) -> Self {
        Self { result: Err(error), served: None, again: false }
    }
}
