//! What the next step has in it: who joins, who is decoded, how much of which prompt, and who has to wait.

use std::time::Instant;

use super::task::Task;
use super::{Flying, MOST_FLIGHTS, Scheduler};
use crate::backend::PAGE;
use crate::engine::prefix::Match;
use crate::engine::session::Beginning;
use crate::engine::{Engine, Sequence, Wanted};
use crate::error::Result;

/// Rows of the first step over a prompt, and the least of a later one.
const FIRST_ROWS: usize = 64;
const LEAST_ROWS: usize = 16;

/// How long a step should take that prompts are in: while others wait for their next token, and while nobody does.
const SHORT_SECONDS: f64 = 0.2;
const LONG_SECONDS: f64 = 0.5;

/// How many of a job's tokens may be shared with others. Where the bits of a prompt's rows are those of whole tiles, an answer's
/// are not, nor are those of the rows after the last tile.
pub(super) fn shareable(prompt: &[u32], tokens: &[u32], grain: usize) -> usize {
    if grain > 1 { prompt.len() / grain * grain } else { tokens.len() }
}

impl Scheduler {
    /// Launches the next step; `false` if there is nothing to do in one.
    pub(super) fn launch(&mut self, engine: &mut Engine) -> Result<bool> {
        self.bury(engine);
        self.admit(engine)?;
        let parts = self.choose(engine);
        if parts.is_empty() {
            return Ok(false);
        }
        let mut taken: Vec<(u64, usize, bool)> = Vec::new();
        let mut runs: Vec<(&mut Sequence, &[u32], Wanted)> = Vec::new();
        for task in &mut self.running {
            let Some((order, count)) = parts.iter().find(|(order, _)| *order == task.order) else { continue };
            let Some(place) = &mut task.place else { continue };
            let len = place.sequence.len();
            let wanted = len + count == task.tokens.len();
            taken.push((*order, *count, wanted));
            place.flying = true;
            let tokens = &task.tokens[len..len + count];
            runs.push((&mut place.sequence, tokens, if wanted { Wanted::Last } else { Wanted::Nothing }));
        }
        let (launched, rows) = (Instant::now(), runs.iter().map(|(_, tokens, _)| tokens.len()).sum());
        let flight = engine.launch(&mut runs, None)?;
        self.flights.push_back(Flying { flight, launched, rows, parts: taken });
        Ok(true)
    }

    /// Takes their places from jobs that are over.
    fn bury(&mut self, engine: &mut Engine) {
        let over = |task: &mut Task| task.place.as_ref().is_some_and(|place| place.dead && !place.flying);
        for mut task in self.running.extract_if(.., over).collect::<Vec<_>>() {
            self.displace(&mut task, engine);
        }
    }

    fn displace(&mut self, task: &mut Task, engine: &mut Engine) {
        let Some(place) = task.place.take() else { return };
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.leave(task.order, place.way);
        }
        engine.end(place.sequence);
    }

    /// Gives places to jobs that wait, as long as there are some, in the order in which they came. One whose beginning
    /// another job computes right now waits for that.
    fn admit(&mut self, engine: &mut Engine) -> Result<()> {
        let mut at = 0;
        while engine.free_slots() > 0 {
            let Some(task) = self.waiting.get(at) else { break };
            let known = &task.tokens[..shareable(&task.job.prompt, &task.tokens, engine.grain())];
            let found = match &mut self.prefixes {
                Some(prefixes) if !known.is_empty() => prefixes.find(known),
                _ => Match::Begin(Beginning::default()),
            };
            let Match::Begin(beginning) = found else {
                at += 1;
                continue;
            };
            let way = self.prefixes.as_mut().map(|prefixes| prefixes.enter(task.order, known)).unwrap_or_default();
            let promised: usize = self.running.iter().map(|task| lacks(task, engine)).sum();
            let needed = (task.tokens.len() + 1).min(engine.context()).div_ceil(PAGE) - beginning.pages.len();
            let idle = self.prefixes.as_ref().map_or(0, |prefixes| prefixes.idle());
            // everybody who runs will soon want another page
            let others = self.running.len();
            if others > 0 && engine.pages.free() + idle < needed + promised + others {
                if let Some(prefixes) = &mut self.prefixes {
                    prefixes.leave(task.order, way);
                }
                break;
            }
            self.room_for(1, engine);
            let sequence = engine.start_with(&beginning)?;
            let Some(mut task) = self.waiting.remove(at) else { break };
            self.counts.shared_tokens += sequence.len() as u64;
            task.begin(sequence, way);
            let place = self.running.partition_point(|other| other.order < task.order);
            self.running.insert(place, task);
        }
        Ok(())
    }

    /// Gives up what is only kept for prompts to come, until `pages` are free; tells whether they are.
    fn room_for(&mut self, pages: usize, engine: &mut Engine) -> bool {
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.make_room(pages, &mut engine.pages);
        }
        engine.pages.free() >= pages
    }

    /// Who takes part in the next step, with how many tokens.
    fn choose(&mut self, engine: &mut Engine) -> Vec<(u64, usize)> {
        let grain = engine.grain();
        let mut parts = Vec::new();
        // where a prompt's rows have other bits in tiles than alone, a step has one kind of rows
        let tiled = |task: &Task| grain > 1 && task.prompt_done() < task.job.prompt.len() / grain * grain;
        let some =
            |scheduler: &Self, kind: bool| scheduler.running.iter().any(|task| task.is_ready() && tiled(task) == kind);
        let tiles = some(self, true) && !(self.tiles && some(self, false));
        self.tiles = tiles;
        let decoding = self.running.iter().filter(|task| task.is_ready() && task.left() == 1).count();
        let mut rows = self.budget(decoding > 0);
        if grain > 1 && !tiles {
            rows = rows.min(grain - 1);
        }
        // with stages, a step has its part of those who are decoded
        let depth = engine.stages().min(MOST_FLIGHTS);
        let most = if depth > 1 { self.running.len().div_ceil(depth) } else { usize::MAX };
        let mut pages = 0;
        for prompts in [false, true] {
            let orders: Vec<u64> = self.running.iter().map(|task| task.order).collect();
            for order in orders {
                let Some(task) = self.running.iter().find(|task| task.order == order) else { continue };
                let left = task.left();
                if rows == 0 || !task.is_ready() || (left > 1) != prompts || tiled(task) != tiles || left == 0 {
                    continue;
                }
                if !prompts && parts.len() >= most {
                    break;
                }
                let count = self.share(task, left.min(rows), grain, tiles);
                let Some(place) = &task.place else { continue };
                let lacking = place.sequence.lacks(count);
                if !self.find_pages(order, pages + lacking, engine, &parts) {
                    continue;
                }
                pages += lacking;
                rows = rows.saturating_sub(count);
                parts.push((order, count));
            }
        }
        parts
    }

    /// How many of its tokens a job has in a step that has room for `room` of them.
    fn share(&self, task: &Task, room: usize, grain: usize, tiles: bool) -> usize {
        let Some(place) = &task.place else { return 0 };
        let len = place.sequence.len();
        let mut count = room;
        if let Some(at) = self.prefixes.as_ref().and_then(|prefixes| prefixes.next_state(&place.way, len)) {
            count = count.min(at - len);
        }
        if tiles {
            let tiled = task.job.prompt.len() / grain * grain - len;
            count = (count / grain).max(1) * grain;
            count = count.min(tiled);
        }
        count
    }

    /// Makes room for `pages` pages, if need be by taking the places of jobs that are younger than `order` and not among
    /// `parts`; tells whether there is room now. The job itself gives up its place if it is the youngest.
    fn find_pages(&mut self, order: u64, pages: usize, engine: &mut Engine, parts: &[(u64, usize)]) -> bool {
        while !self.room_for(pages, engine) {
            let free = |task: &Task| {
                task.order >= order && task.is_ready() && parts.iter().all(|(part, _)| *part != task.order)
            };
            let Some(youngest) = self.running.iter().rposition(free) else { return false };
            let mut task = self.running.remove(youngest);
            self.displace(&mut task, engine);
            self.counts.preempted += 1;
            let gone = task.order == order;
            let at = self.waiting.partition_point(|other| other.order < task.order);
            self.waiting.insert(at, task);
            if gone {
                return false;
            }
        }
        true
    }

    /// Rows of the next step.
    fn budget(&self, others_wait: bool) -> usize {
        let seconds = if others_wait { SHORT_SECONDS } else { LONG_SECONDS };
        let rows = self.rate.map_or(FIRST_ROWS, |rate| (rate * seconds) as usize);
        let waiting = self.running.iter().filter(|task| task.is_ready() && task.left() == 1).count();
        (rows.max(LEAST_ROWS) + waiting).min(self.limits.rows.max(1))
    }
}

/// Pages that a running job will want for what it has, and a token more.
fn lacks(task: &Task, engine: &Engine) -> usize {
    let Some(place) = &task.place else { return 0 };
    let positions = (task.tokens.len() + 1).min(engine.context());
    positions.div_ceil(PAGE).saturating_sub(place.sequence.pages.len())
}
