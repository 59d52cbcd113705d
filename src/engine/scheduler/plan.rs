//! What the next step has in it: who joins, who is decoded, how much of which prompt, and who has to wait.

use std::time::Instant;

use super::task::Task;
use super::{Flying, MOST_FLIGHTS, Scheduler};
use crate::comm;
use crate::engine::command::MAX_BYTES;
use crate::engine::prefill::{FIRST_ROWS, LEAST_ROWS, PASS_SECONDS, whole};
use crate::engine::prefix::Match;
use crate::engine::sequence::Beginning;
use crate::engine::{Engine, Sequence, Wanted};
use crate::error::Result;

/// How long a step should take that prompts are in while others wait for their next token.
const SHORT_SECONDS: f64 = 0.2;

impl Scheduler {
    /// Launches the next step; `false` if there is nothing to do in one.
    pub(super) fn launch(&mut self, engine: &mut Engine) -> Result<bool> {
        self.bury(engine);
        self.admit(engine)?;
        let mut parts = self.compose(engine);
        if parts.is_empty() {
            return Ok(false);
        }
        parts.sort_unstable();
        let mut taken: Vec<(u64, usize, Wanted)> = Vec::new();
        let mut runs: Vec<(&mut Sequence, &[u32], Wanted)> = Vec::new();
        let mut parts = parts.into_iter().peekable();
        for task in &mut self.running {
            let Some((order, count)) = parts.next_if(|(order, _)| *order == task.order) else { continue };
            task.last = self.counts.steps + self.flights.len() as u64;
            let wanted = if count == task.left() { task.wanted() } else { Wanted::Nothing };
            let Some(place) = &mut task.place else { continue };
            let len = place.sequence.len();
            taken.push((order, count, wanted));
            place.flying = true;
            let tokens = &task.tokens[len..len + count];
            runs.push((&mut place.sequence, tokens, wanted));
        }
        let rows: usize = taken.iter().map(|(_, count, _)| count).sum();
        let start = Instant::now();
        let flight = engine.launch(&mut runs, None)?;
        if taken.iter().any(|(_, count, _)| *count > 1) {
            // this stage's part of it
            let seconds = start.elapsed().as_secs_f64() * engine.stages() as f64;
            self.rate = Some(rows as f64 / seconds.max(1e-9));
        }
        self.flights.push_back(Flying { flight, parts: taken });
        Ok(true)
    }

    /// Takes their places from jobs that are over.
    fn bury(&mut self, engine: &mut Engine) {
        let over = |task: &mut Task| task.place.as_ref().is_some_and(|place| place.dead && !place.flying);
        for mut task in self.running.extract_if(.., over) {
            displace(&mut task, engine);
        }
    }

    /// Gives places to jobs that wait, as long as there are some, in the order in which they came. One whose beginning
    /// another job computes right now waits for that.
    fn admit(&mut self, engine: &mut Engine) -> Result<()> {
        let mut at = 0;
        let context = engine.room().context;
        // half of a command is for the tokens
        while engine.free_slots() > 0 && engine.queued_words() < MAX_BYTES / 8 {
            let Some(task) = self.waiting.get_mut(at) else { break };
            let known = &task.tokens[..task.shareable(engine.grain())];
            let mut prefixes = engine.prefixes.as_mut().filter(|_| self.limits.shares && !known.is_empty());
            let found = match &mut prefixes {
                Some(prefixes) if task.waits.is_some_and(|wait| prefixes.is_coming(wait)) => {
                    at += 1;
                    continue;
                }
                Some(prefixes) => prefixes.find(known),
                None => Match::Begin(Beginning::default(), 0),
            };
            let (beginning, taken_up) = match found {
                Match::Begin(beginning, idle) => (beginning, idle),
                Match::Wait(wait) => {
                    task.waits = Some(wait);
                    at += 1;
                    continue;
                }
            };
            let idle = prefixes.as_ref().map_or(0, |prefixes| prefixes.idle()) - taken_up;
            let needed = task.wants(context) - beginning.pages.len();
            let promised: usize = self.running.iter().map(|task| task.wants(context)).sum();
            // everybody who runs will soon want another page
            let others = self.running.len();
            if others > 0 && engine.pages.free() + idle < needed + promised + others {
                break;
            }
            let way = prefixes.map(|prefixes| prefixes.enter(task.order, known)).unwrap_or_default();
            engine.make_room(1);
            let sequence = engine.start_with(&beginning)?;
            let Some(mut task) = self.waiting.remove(at) else { break };
            self.counts.shared_tokens += sequence.len() as u64;
            task.begin(sequence, way);
            let place = self.running.partition_point(|other| other.order < task.order);
            self.running.insert(place, task);
        }
        Ok(())
    }

    /// Who takes part in the next step, with how many tokens: first those who wait for their next token, then prompts; of
    /// either, those who have waited for longest.
    fn compose(&mut self, engine: &mut Engine) -> Vec<(u64, usize)> {
        let grain = engine.grain();
        // where a prompt's rows have other bits in tiles than alone, a step has one kind of rows
        let tiled = |task: &Task| grain > 1 && task.prompt_done() < task.tiled(grain);
        let ready: Vec<&Task> = self.running.iter().filter(|task| task.is_ready()).collect();
        let some = |kind: bool| ready.iter().any(|task| tiled(task) == kind);
        let tiles = some(true) && !(self.tiles && some(false));
        let mut turns: Vec<(bool, u64, u64)> = ready
            .iter()
            .filter(|task| task.left() > 0 && tiled(task) == tiles)
            // rows after a prompt's last tile are few, and do not wait for those who are decoded
            .map(|task| (grain == 1 && task.left() > 1, task.last, task.order))
            .collect();
        turns.sort_unstable();
        self.tiles = tiles;
        let decoded = turns.iter().filter(|(prompt, ..)| !prompt).count();
        let mut rows = self.budget(decoded);
        // the last stage holds them all at once, and may have to send them as one message
        let mut logits = (comm::MAX_MESSAGE / (4 * engine.model().geometry.vocab.max(1))).max(1);
        if grain > 1 {
            logits = logits.min(grain - 1);
            rows = if tiles { rows } else { rows.min(grain - 1) };
        }
        // with stages, a step has its part of those who are decoded
        let depth = engine.stages().min(MOST_FLIGHTS);
        let most = if depth > 1 { self.running.len().div_ceil(depth) } else { usize::MAX };
        let (mut parts, mut pages) = (Vec::new(), 0);
        for (prompt, _, order) in turns {
            if rows == 0 || logits == 0 {
                break;
            }
            if !prompt && parts.len() >= most {
                continue;
            }
            let Some(task) = self.find(order) else { continue };
            let count = portion(task, task.left().min(rows), engine, tiles);
            let Some(place) = &task.place else { continue };
            let (wanted, lacking) = (count == task.left(), place.sequence.lacks(count));
            if !self.find_pages(order, pages + lacking, engine, &parts) {
                continue;
            }
            pages += lacking;
            rows = rows.saturating_sub(count);
            logits -= usize::from(wanted);
            parts.push((order, count));
        }
        parts
    }

    fn find(&self, order: u64) -> Option<&Task> {
        self.running.binary_search_by_key(&order, |task| task.order).ok().map(|at| &self.running[at])
    }

    /// Makes room for `pages` pages, if need be by taking the places of jobs that are younger than `order` and not among
    /// `parts`; tells whether there is room now. The job itself gives up its place if it is the youngest.
    fn find_pages(&mut self, order: u64, pages: usize, engine: &mut Engine, parts: &[(u64, usize)]) -> bool {
        while !engine.make_room(pages) {
            let free = |task: &Task| {
                task.order >= order && task.is_ready() && parts.iter().all(|(part, _)| *part != task.order)
            };
            let Some(youngest) = self.running.iter().rposition(free) else { return false };
            let gone = self.running[youngest].order == order;
            // younger ones that have their part of a step first will give up theirs, or end
            if gone && self.running.last().is_some_and(|last| last.order > order) {
                return false;
            }
            let mut task = self.running.remove(youngest);
            displace(&mut task, engine);
            self.counts.preempted += 1;
            let at = self.waiting.partition_point(|other| other.order < task.order);
            self.waiting.insert(at, task);
            if gone {
                return false;
            }
        }
        true
    }

    /// Rows of the next step, in which so many are `decoded`.
    fn budget(&self, decoded: usize) -> usize {
        let talks = |task: &Task| task.tokens.len() > task.job.prompt.len() && !task.is_dead();
        let talked = self.running.iter().any(talks);
        let seconds = if talked { SHORT_SECONDS } else { PASS_SECONDS };
        let rows = self.rate.map_or(FIRST_ROWS, |rate| (rate * seconds) as usize).max(LEAST_ROWS) + decoded;
        let rows = if talked { rows.next_multiple_of(LEAST_ROWS) } else { whole(rows) };
        rows.min(self.limits.rows.max(1))
    }
}

/// Takes a job's place from it.
fn displace(task: &mut Task, engine: &mut Engine) {
    let Some(place) = task.place.take() else { return };
    if let Some(prefixes) = &mut engine.prefixes {
        prefixes.leave(task.order, place.way);
    }
    engine.end(place.sequence);
}

/// How many of its tokens a job has in a step that has room for `room` of them.
fn portion(task: &Task, room: usize, engine: &Engine, tiles: bool) -> usize {
    let Some(place) = &task.place else { return 0 };
    let (len, grain) = (place.sequence.len(), engine.grain());
    let state = engine.prefixes.as_ref().and_then(|prefixes| prefixes.next_state(&place.way, len));
    let count = state.map_or(room, |at| room.min(at - len));
    if tiles { ((count / grain).max(1) * grain).min(task.tiled(grain) - len) } else { count }
}
