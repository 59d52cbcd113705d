//! Who runs when: batches of several sequences in chunks, of which some start anew in a used slot and used pages.

use std::ops::Range;

use tbshard::backend::{Batch, PAGE};

use super::random::Rng;

/// Consecutive positions of one sequence.
#[derive(Clone)]
pub struct Run {
    pub sequence: usize,
    /// The position of the first row; zero starts the sequence anew.
    pub start: usize,
    /// Its rows among those of the whole schedule.
    pub rows: Range<usize>,
}

/// What one call of an operation is given.
pub struct Pass {
    pub batch: Batch,
    /// The rows of the batch among those of the whole schedule.
    pub rows: Vec<usize>,
    /// Slots to forget before.
    pub fresh: Vec<usize>,
}

/// Calls, each of some runs.
#[derive(Clone)]
pub struct Schedule {
    calls: Vec<Vec<Run>>,
    rows: usize,
    slots: Vec<u32>,
    pages: Vec<Vec<u32>>,
}

impl Schedule {
    /// Up to three sequences whose chunks are of the lengths `chunks`, in `calls` calls.
    pub fn random(rng: &mut Rng, calls: usize, chunks: &[usize]) -> Self {
        let sequences = 1 + rng.below(3);
        let mut schedule = Self { calls: Vec::new(), rows: 0, slots: rng.shuffled(sequences + 1), pages: Vec::new() };
        let mut lens = vec![0; sequences];
        let mut longest = lens.clone();
        for call in 0..calls {
            let mut runs = Vec::new();
            for sequence in rng.shuffled(sequences) {
                let (sequence, count) = (sequence as usize, rng.pick(chunks));
                if runs.len() + 1 < sequences && call > 0 && rng.below(4) == 0 {
                    continue;
                }
                let start = if rng.below(8) == 0 { 0 } else { lens[sequence] };
                runs.push(Run { sequence, start, rows: schedule.rows..schedule.rows + count });
                schedule.rows += count;
                lens[sequence] = start + count;
                longest[sequence] = longest[sequence].max(lens[sequence]);
            }
            schedule.calls.push(runs);
        }
        // every sequence takes its pages anywhere from the common store
        let needed = longest.iter().map(|len| len.div_ceil(PAGE));
        let mut free = rng.shuffled(needed.clone().sum::<usize>() + 1);
        schedule.pages = needed.map(|count| free.drain(..count).collect()).collect();
        schedule
    }

    /// All rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Pages of the store.
    pub fn pages(&self) -> usize {
        self.pages.iter().map(Vec::len).sum::<usize>() + 1
    }

    /// Slots of the store.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Sequences.
    pub fn sequences(&self) -> usize {
        self.pages.len()
    }

    /// All runs in order.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.calls.iter().flatten()
    }

    fn pass<'a>(&self, runs: impl Iterator<Item = (&'a Run, Range<usize>)>) -> Pass {
        let mut pass = Pass { batch: Batch::default(), rows: Vec::new(), fresh: Vec::new() };
        for (run, part) in runs {
            let (slot, start) = (self.slots[run.sequence] as usize, run.start + part.start);
            // the pages of positions to come are not known yet
            let pages = &self.pages[run.sequence][..(run.start + part.end).div_ceil(PAGE)];
            pass.batch.push(slot, start, part.len(), pages);
            pass.rows.extend(run.rows.start + part.start..run.rows.start + part.end);
            if start == 0 {
                pass.fresh.push(slot);
            }
        }
        pass
    }

    /// A pass per call.
    pub fn together(&self) -> Vec<Pass> {
        self.calls.iter().map(|runs| self.pass(runs.iter().map(|run| (run, 0..run.rows.len())))).collect()
    }

    /// A pass per row.
    pub fn alone(&self) -> Vec<Pass> {
        let rows = self.runs().flat_map(|run| (0..run.rows.len()).map(move |i| (run, i..i + 1)));
        rows.map(|row| self.pass(std::iter::once(row))).collect()
    }
}
