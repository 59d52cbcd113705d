//! The plan of a run: which rank holds which layers, and with whom it shares them.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::Group;
use crate::error::{Error, Result};

/// Ranks of one run at most.
pub const MAX_RANKS: usize = 1024;

/// How the ranks are arranged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Strategy {
    /// Tensor parallel as long as every rank gets something, pipeline beyond.
    #[default]
    Auto,
    /// One stage.
    Tensor,
    /// One rank a stage.
    Pipeline,
}

/// What a plan is made from: the same on every rank.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Ranks.
    pub world_size: usize,
    /// Ranks of a stage, if given.
    pub tp: Option<usize>,
    /// Stages, if given.
    pub pp: Option<usize>,
    /// What decides where neither is given.
    pub strategy: Strategy,
    /// Layers of every stage, if given.
    pub split: Option<Vec<usize>>,
    /// What every rank's share is proportional to (its memory); empty is equal.
    pub weights: Vec<u64>,
    /// The bytes that every rank may hold; empty is unbounded.
    pub memory: Vec<u64>,
}

/// Stages of `tp` ranks each: rank r sits in stage r / tp.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    tp: usize,
    pub(super) stages: Vec<Range<usize>>,
    weights: Vec<u64>,
}

/// One rank's place in a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// The layers that the rank runs.
    pub layers: Range<usize>,
    /// The ranks that run the same layers, and this rank's place among them.
    pub group: Group,
    /// The first stage: it embeds.
    pub first: bool,
    /// The last stage: it owns the head.
    pub last: bool,
}

impl Plan {
    /// Plans a model of `layers` layers; `widest` is how many ranks at most find something to do inside a layer.
    /// The bound on memory is another step, [`Plan::within`].
    ///
    /// # Errors
    /// If the sizes contradict each other, naming the flags that say them.
    pub fn new(layers: usize, widest: usize, layout: &Layout) -> Result<Self> {
        let world = layout.world_size;
        if world == 0 || world > MAX_RANKS {
            return Err(Error::usage(format!("{world} ranks are not one of 1..={MAX_RANKS}")));
        }
        for (what, values) in [("weights", &layout.weights), ("memory bounds", &layout.memory)] {
            if !values.is_empty() && (values.len() != world || values.contains(&0)) {
                let error = Error::usage(format!("{} {what} for {world} ranks", values.len()));
                return Err(error.hint("give every rank one above zero"));
            }
        }
        let pp = layout.pp.or(layout.split.as_ref().map(Vec::len));
        let (tp, pp) = match (layout.tp, pp) {
            (Some(tp), Some(pp)) => (tp, pp),
            (Some(tp), None) => (tp, divide(world, tp, "--tp")?),
            (None, Some(pp)) => (divide(world, pp, "--pp")?, pp),
            (None, None) => match layout.strategy {
                Strategy::Tensor => (world, 1),
                Strategy::Pipeline => (1, world),
                Strategy::Auto => {
                    let fits = |tp: &usize| world.is_multiple_of(*tp) && *tp <= widest.max(1) && world / tp <= layers;
                    let tp = (1..=world).rev().find(fits).unwrap_or(world);
                    (tp, world / tp)
                }
            },
        };
        if tp.checked_mul(pp) != Some(world) {
            let error = format!("--tp {tp} times --pp {pp} is not the {world} ranks there are");
            return Err(Error::usage(error).hint("leave one of them out"));
        }
        if pp > layers {
            let error = format!("--pp {pp} has more stages than the model's {layers} layers");
            return Err(Error::usage(error).hint("a stage has a layer at least; use --tp for the other ranks"));
        }
        let weights = if layout.weights.is_empty() { vec![1; world] } else { layout.weights.clone() };
        let stages = match &layout.split {
            Some(split) => by_hand(split, layers, pp)?,
            None => {
                let loads: Vec<u64> = weights.chunks(tp).map(|stage| stage.iter().sum()).collect();
                apportion(layers, &loads)
            }
        };
        Ok(Self { tp, stages, weights })
    }

    /// Everything on one rank.
    pub fn solo(layers: usize) -> Self {
        Self { tp: 1, stages: std::iter::once(0..layers).collect(), weights: vec![1] }
    }

    /// Stage `stage` alone, as if it ran all layers.
    #[must_use]
    pub fn alone(&self, stage: usize) -> Self {
        let layers = self.stages.last().map_or(0, |stage| stage.end);
        Self { tp: self.tp, weights: self.weights[self.ranks_of(stage)].to_vec(), ..Self::solo(layers) }
    }

    /// The number of ranks.
    pub fn world_size(&self) -> usize {
        self.weights.len()
    }

    /// Ranks of a stage.
    pub fn tp(&self) -> usize {
        self.tp
    }

    /// The layers of every stage.
    pub fn stages(&self) -> &[Range<usize>] {
        &self.stages
    }

    /// The ranks of stage `stage`.
    pub fn ranks_of(&self, stage: usize) -> Range<usize> {
        stage * self.tp..(stage + 1) * self.tp
    }

    /// The stage that rank `rank` sits in.
    pub fn stage_of(&self, rank: usize) -> usize {
        rank / self.tp
    }

    /// Where rank `rank` sits.
    pub fn seat(&self, rank: usize) -> Seat {
        let stage = self.stage_of(rank);
        let ranks = self.ranks_of(stage);
        Seat {
            layers: self.stages[stage].clone(),
            group: Group::new(rank - ranks.start, &self.weights[ranks]),
            first: stage == 0,
            last: stage + 1 == self.stages.len(),
        }
    }

    /// The plan in a word, for people and digests: `tp 2 × pp 2, layers 4+4`.
    pub fn describe(&self) -> String {
        let layers: Vec<String> = self.stages.iter().map(|stage| stage.len().to_string()).collect();
        let weights: Vec<String> = self.weights.iter().map(u64::to_string).collect();
        let mut text = format!("tp {} × pp {}, layers {}", self.tp, self.stages.len(), layers.join("+"));
        if self.weights.iter().any(|weight| *weight != self.weights[0]) {
            text += &format!(", weights {}", weights.join("+"));
        }
        text
    }
}

fn divide(world: usize, by: usize, flag: &str) -> Result<usize> {
    if by == 0 || !world.is_multiple_of(by) {
        let error = Error::usage(format!("{flag} {by} does not divide the {world} ranks"));
        return Err(error.hint("tensor times pipeline parallel ranks is all ranks"));
    }
    Ok(world / by)
}

fn by_hand(split: &[usize], layers: usize, pp: usize) -> Result<Vec<Range<usize>>> {
    let error = if split.len() != pp {
        format!("--split names {} stages, --pp {pp}", split.len())
    } else if split.contains(&0) {
        "--split gives a stage no layer".to_owned()
    } else if split.iter().sum::<usize>() != layers {
        format!("--split adds up to {}, the model has {layers} layers", split.iter().sum::<usize>())
    } else {
        let mut next = 0;
        return Ok(split
            .iter()
            .map(|count| {
                next += count;
                next - count..next
            })
            .collect());
    };
    Err(Error::usage(error).hint("name the layers of every stage, like --split 32,32"))
}

/// Layers in proportion to `loads`, at least one a stage; the largest remainders round up.
fn apportion(layers: usize, loads: &[u64]) -> Vec<Range<usize>> {
    let total: f64 = loads.iter().map(|load| *load as f64).sum();
    let fair: Vec<f64> = loads.iter().map(|load| layers as f64 * *load as f64 / total).collect();
    let mut counts: Vec<usize> = fair.iter().map(|fair| (fair.floor() as usize).max(1)).collect();
    let lack = |counts: &[usize], stage: usize| fair[stage] - counts[stage] as f64;
    let by_lack = |counts: &[usize]| {
        let mut order: Vec<usize> = (0..counts.len()).collect();
        order.sort_by(|a, b| lack(counts, *b).total_cmp(&lack(counts, *a)).then(a.cmp(b)));
        order
    };
    while counts.iter().sum::<usize>() < layers {
        let neediest = by_lack(&counts)[0];
        counts[neediest] += 1;
    }
    while counts.iter().sum::<usize>() > layers {
        // the floor of one may have given too much away; there are as many layers as stages at least
        let Some(richest) = by_lack(&counts).into_iter().rev().find(|stage| counts[*stage] > 1) else { break };
        counts[richest] -= 1;
    }
    let mut next = 0;
    counts
        .into_iter()
        .map(|count| {
            next += count;
            next - count..next
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(world_size: usize) -> Layout {
        Layout { world_size, ..Layout::default() }
    }

    #[test]
    fn layers_follow_the_weights() {
        let plan = Plan::new(64, 24, &Layout { weights: vec![512, 256, 256], pp: Some(3), ..layout(3) }).unwrap();
        assert_eq!(plan.stages(), [0..32, 32..48, 48..64]);
        let plan = Plan::new(61, 24, &Layout { pp: Some(4), ..layout(4) }).unwrap();
        assert_eq!(plan.stages().iter().map(Range::len).collect::<Vec<_>>(), [16, 15, 15, 15]);
        let plan = Plan::new(3, 24, &Layout { pp: Some(3), weights: vec![1, 1000, 1], ..layout(3) }).unwrap();
        assert_eq!(plan.stages(), [0..1, 1..2, 2..3]);
    }

    #[test]
    fn sizes_that_contradict_each_other_are_named() {
        let bad = [
            (Layout { tp: Some(2), pp: Some(2), ..layout(3) }, "--tp 2 times --pp 2 is not the 3 ranks"),
            (Layout { tp: Some(2), ..layout(3) }, "--tp 2 does not divide the 3 ranks"),
            (Layout { pp: Some(9), ..layout(9) }, "--pp 9 has more stages than the model's 8 layers"),
            (Layout { split: Some(vec![4, 3]), ..layout(2) }, "--split adds up to 7"),
            (Layout { split: Some(vec![8, 0]), ..layout(2) }, "--split gives a stage no layer"),
            (Layout { split: Some(vec![4, 4]), pp: Some(4), ..layout(4) }, "--split names 2 stages, --pp 4"),
            (Layout { weights: vec![1, 0], ..layout(2) }, "2 weights for 2 ranks"),
            (Layout { memory: vec![1], ..layout(2) }, "1 memory bounds for 2 ranks"),
            (layout(0), "0 ranks"),
        ];
        for (layout, text) in bad {
            let error = Plan::new(8, 8, &layout).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn auto_goes_into_the_pipeline_where_layers_are_too_narrow() {
        let shape = |world, widest| {
            let plan = Plan::new(8, widest, &layout(world)).unwrap();
            (plan.tp(), plan.stages().len())
        };
        assert_eq!(shape(4, 6), (4, 1));
        assert_eq!(shape(8, 6), (4, 2));
        assert_eq!(shape(7, 6), (1, 7));
        assert_eq!(shape(11, 6), (11, 1));
    }

    #[test]
    fn every_layer_has_one_stage_and_every_rank_a_seat() {
        for layers in 1..=12 {
            for world in 1..=12 {
                for pp in (1..=world.min(layers)).filter(|pp| world % pp == 0) {
                    let weights = (0..world as u64).map(|rank| 1 + rank * rank % 7).collect();
                    let plan = Plan::new(layers, 99, &Layout { pp: Some(pp), weights, ..layout(world) }).unwrap();
                    let covered: Vec<usize> = plan.stages().iter().cloned().flatten().collect();
                    assert_eq!(covered, (0..layers).collect::<Vec<_>>());
                    assert!(plan.stages().iter().all(|stage| !stage.is_empty()));
                    for rank in 0..world {
                        let seat = plan.seat(rank);
                        assert_eq!((seat.group.size(), seat.group.rank()), (world / pp, rank % (world / pp)));
                        assert_eq!((seat.first, seat.last), (rank < world / pp, rank >= world - world / pp));
                    }
                }
            }
        }
    }
}
