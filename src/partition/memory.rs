//! The memory bound of a plan: where a stage is too full, layers move to stages that have room.

use std::ops::Range;

use super::{Layout, Plan, Strategy};
use crate::error::{Error, Result};

/// What a rank would hold if its stage ran all layers, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Of every layer: its share of the weights and of the sequences' state.
    pub layers: Vec<u64>,
    /// What the first stage holds beside its layers.
    pub first: u64,
    /// What the last stage holds beside its layers.
    pub last: u64,
}

impl Layout {
    /// The layouts to try in turn where ranks are bounded: as asked for, then with shares in proportion to the memory,
    /// then both for every other shape that the strategy leaves open.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn candidates(&self, layers: usize, widest: usize) -> Result<Vec<Self>> {
        let plan = Plan::new(layers, widest, self)?;
        let open = self.strategy == Strategy::Auto && self.tp.is_none() && self.pp.is_none() && self.split.is_none();
        let world = self.world_size;
        let narrower = (1..=widest.min(world)).rev().filter(|tp| world.is_multiple_of(*tp) && world / tp <= layers);
        let others = narrower.filter(|tp| *tp != plan.tp()).map(Some).take(if open { usize::MAX } else { 0 });
        let shapes = std::iter::once(self.tp).chain(others);
        let both =
            |tp| [&self.weights, &self.memory].map(|weights| Self { tp, weights: weights.clone(), ..self.clone() });
        Ok(shapes.flat_map(both).collect())
    }
}

impl Plan {
    /// The bytes that rank `rank` holds, given what all layers would take there.
    pub fn bytes(&self, rank: usize, sizes: &Sizes) -> u64 {
        let stage = self.stage_of(rank);
        let run = self.stages[stage].clone();
        u64::try_from(Room::new(self, sizes, 0).needs(stage, &run)).unwrap_or(u64::MAX)
    }

    /// This plan, or the nearest to it under which no rank holds more than `layout` allows. `sizes` has every rank's.
    ///
    /// # Errors
    /// Naming the rank that is the fullest, what it would hold, and what it may.
    pub fn within(mut self, layout: &Layout, sizes: &[Sizes]) -> Result<Self> {
        let memory = |rank: usize| layout.memory.get(rank).copied().unwrap_or(u64::MAX);
        let room = |rank: usize| Room::new(&self, &sizes[rank], memory(rank));
        let rooms: Vec<Room> = (0..self.world_size()).map(room).collect();
        let over = |(rank, room): (usize, &Room)| {
            let stage = self.stage_of(rank);
            let needs = room.needs(stage, &self.stages[stage]);
            (needs > room.memory.into()).then(|| (needs - u128::from(room.memory), rank, needs))
        };
        // of equally full ranks the first
        let fullest = rooms.iter().enumerate().filter_map(over).max_by_key(|(by, rank, _)| (*by, usize::MAX - rank));
        let Some((_, rank, needs)) = fullest else { return Ok(self) };
        let moved = if layout.split.is_some() { None } else { self.nearest(&rooms) };
        if let Some(stages) = moved {
            self.stages = stages;
            return Ok(self);
        }
        let megabytes = |bytes: u128| format!("{:.1} MB", bytes as f64 / 1e6);
        let (needs, has) = (megabytes(needs), megabytes(rooms[rank].memory.into()));
        let error = Error::usage(format!("rank {rank} would hold {needs} of weights and state, it has room for {has}"));
        Err(error.hint(match layout.split {
            Some(_) => "give its stage fewer layers with --split, use more ranks, or a smaller format of the model",
            None => "use more ranks, a smaller format of the model, or a shorter --ctx",
        }))
    }

    /// The stages whose ends are moved over the fewest layers, in sum, so that every rank has room for its stage.
    fn nearest(&self, rooms: &[Room]) -> Option<Vec<Range<usize>>> {
        let layers = self.stages.last()?.end;
        // by the end of the stages so far: layers moved, and where the last of these stages starts
        let mut steps: Vec<Vec<Option<(usize, usize)>>> = Vec::new();
        for (stage, asked) in self.stages.iter().enumerate() {
            let fits = |run: &Range<usize>| self.ranks_of(stage).all(|rank| rooms[rank].has_room(stage, run));
            let mut ends = vec![None; layers + 1];
            for start in 0..layers {
                let before = match steps.last() {
                    None => (start == 0).then_some(0),
                    Some(step) => step[start].map(|(moved, _)| moved),
                };
                let Some(before) = before else { continue };
                for end in (start + 1..=layers).take_while(|end| fits(&(start..*end))) {
                    let moved = before + end.abs_diff(asked.end);
                    if ends[end].is_none_or(|(least, _)| moved < least) {
                        ends[end] = Some((moved, start));
                    }
                }
            }
            steps.push(ends);
        }
        let mut end = layers;
        let mut stages = Vec::new();
        for step in steps.iter().rev() {
            let (_, start) = step[end]?;
            stages.push(start..end);
            end = start;
        }
        stages.reverse();
        Some(stages)
    }
}

/// What a rank has room for.
struct Room {
    // bytes of the layers before each, wide enough for any config
    before: Vec<u128>,
    first: u64,
    last: u64,
    last_stage: usize,
    memory: u64,
}

impl Room {
    fn new(plan: &Plan, sizes: &Sizes, memory: u64) -> Self {
        let mut before = vec![0];
        for bytes in &sizes.layers {
            before.push(before[before.len() - 1] + u128::from(*bytes));
        }
        Self { before, first: sizes.first, last: sizes.last, last_stage: plan.stages.len() - 1, memory }
    }

    /// The bytes of the layers `run` as stage `stage`.
    fn needs(&self, stage: usize, run: &Range<usize>) -> u128 {
        let first = if stage == 0 { self.first } else { 0 };
        let last = if stage == self.last_stage { self.last } else { 0 };
        self.before[run.end] - self.before[run.start] + u128::from(first) + u128::from(last)
    }

    fn has_room(&self, stage: usize, run: &Range<usize>) -> bool {
        self.needs(stage, run) <= self.memory.into()
    }
}
