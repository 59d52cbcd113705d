//! No rank gets more than it may hold, and layers move no further than they must.

use std::ops::Range;

use proptest::prelude::*;
use tbshard::backend::PAGE;
use tbshard::partition::{Layout, Plan, Sizes};
use tbshard::weights::Share;

use super::shapes::{Shape, cases, check};

/// What a rank holds of the layers `run` as stage `stage` of `stages`.
fn held(sizes: &Sizes, run: &Range<usize>, stage: usize, stages: usize) -> u64 {
    let ends = if stage == 0 { sizes.first } else { 0 } + if stage + 1 == stages { sizes.last } else { 0 };
    sizes.layers[run.clone()].iter().sum::<u64>() + ends
}

/// Every way to cut `layers` layers into `stages` runs.
fn splits(layers: usize, stages: usize) -> Vec<Vec<Range<usize>>> {
    fn cut(from: usize, layers: usize, stages: usize, runs: &[Range<usize>], all: &mut Vec<Vec<Range<usize>>>) {
        if stages == 1 {
            all.push([runs, std::slice::from_ref(&(from..layers))].concat());
            return;
        }
        for end in from + 1..=layers + 1 - stages {
            cut(end, layers, stages - 1, &[runs, std::slice::from_ref(&(from..end))].concat(), all);
        }
    }
    let mut all = Vec::new();
    cut(0, layers, stages, &[], &mut all);
    all
}

fn fits(layout: &Layout, sizes: &[Sizes], stages: &[Range<usize>]) -> bool {
    let tp = layout.world_size / stages.len();
    (0..layout.world_size)
        .all(|rank| held(&sizes[rank], &stages[rank / tp], rank / tp, stages.len()) <= layout.memory[rank])
}

fn moved(stages: &[Range<usize>], asked: &[Range<usize>]) -> usize {
    stages.iter().zip(asked).map(|(a, b)| a.end.abs_diff(b.end)).sum()
}

/// Layers, a layout with a bound, and what every rank would hold of every layer.
fn bounded() -> impl Strategy<Value = (usize, Layout, Vec<Sizes>)> {
    (1..=9usize, 1..=3usize, 1..=4usize).prop_flat_map(|(layers, tp, pp)| {
        let (pp, world) = (pp.min(layers), tp * pp.min(layers));
        let sizes = (prop::collection::vec(0..=9u64, layers), 0..=9u64, 0..=9u64);
        let sizes = sizes.prop_map(|(layers, first, last)| Sizes { layers, first, last });
        let most = 24 * layers.div_ceil(pp) as u64;
        let memory = prop::collection::vec(1..=most, world);
        let split = prop::option::weighted(0.2, prop::sample::select(splits(layers, pp)));
        (memory, prop::collection::vec(1..=9u64, world), split, prop::collection::vec(sizes, world)).prop_map(
            move |(memory, weights, split, sizes)| {
                let split = split.map(|runs| runs.iter().map(Range::len).collect());
                let (tp, pp) = (Some(tp), Some(pp));
                (layers, Layout { world_size: world, tp, pp, split, weights, memory, ..Layout::default() }, sizes)
            },
        )
    })
}

#[test]
fn layers_move_where_there_is_room_and_no_further() {
    let seen = std::cell::Cell::new([0; 4]);
    let count = |i: usize| {
        let mut all = seen.get();
        all[i] += 1;
        seen.set(all);
    };
    check(3000, bounded(), |(layers, layout, sizes)| {
        let asked = Plan::new(layers, 99, &layout).unwrap();
        let stages = asked.stages().len();
        let all = if layout.split.is_some() { vec![asked.stages().to_vec()] } else { splits(layers, stages) };
        let least = all.iter().filter(|runs| fits(&layout, &sizes, runs)).map(|runs| moved(runs, asked.stages())).min();
        match (asked.clone().within(&layout, &sizes), least) {
            (Ok(plan), Some(least)) => {
                assert!(fits(&layout, &sizes, plan.stages()), "{:?}", plan.stages());
                assert_eq!(moved(plan.stages(), asked.stages()), least, "{:?}", plan.stages());
                for (rank, sizes) in sizes.iter().enumerate() {
                    let stage = plan.stage_of(rank);
                    assert_eq!(plan.bytes(rank, sizes), held(sizes, &plan.stages()[stage], stage, stages));
                }
                count(usize::from(least > 0));
            }
            (Err(error), None) => {
                let over = |rank: &usize| asked.bytes(*rank, &sizes[*rank]).checked_sub(layout.memory[*rank]);
                let most = (0..layout.world_size).filter_map(|rank| over(&rank)).max().unwrap();
                let fullest = (0..layout.world_size).find(|rank| over(rank) == Some(most)).unwrap();
                assert!(error.to_string().starts_with(&format!("rank {fullest} would hold ")), "{error}");
                assert!(error.hint_text().unwrap().contains("more ranks"));
                assert_eq!(error.hint_text().unwrap().contains("--split"), layout.split.is_some());
                count(2 + usize::from(layout.split.is_some()));
            }
            (result, least) => panic!("{result:?} where the nearest that fits moves {least:?}"),
        }
    });
    let seen = seen.get();
    println!("as asked, moved, refused, refused by hand: {seen:?}");
    assert!(seen.iter().all(|count| *count > 50), "{seen:?}");
}

/// Bytes of the state of a rank's layers, by the heads that it has.
fn state(shape: &Shape, share: &Share, pages: usize, slots: usize) -> u64 {
    let mut values = 0;
    for (name, pieces) in share.tensors() {
        let rows: usize = pieces.iter().map(|piece| piece.rows.len()).sum();
        let is_kda = pieces[0].layer.is_some_and(|layer| shape.is_kda(layer));
        if name.ends_with(".k_proj.weight") {
            values += match is_kda {
                // as many queries and values, and a square a head
                true => slots * ((shape.kernel - 1) * 3 * rows + rows * shape.value_dim),
                false => pages * PAGE * 2 * rows,
            };
        }
        // on every rank, whatever heads it has
        if name.ends_with(".kv_a_layernorm.weight") {
            values += pages * PAGE * (shape.latent.kv_rank + shape.latent.rope_dim);
        }
        if name.ends_with(".out_proj.weight") {
            let own = pieces[0].columns.start / shape.value_dim..pieces[0].columns.end / shape.value_dim;
            let keys = match own.is_empty() {
                true => 0,
                false => (own.end - 1) / shape.v_group + 1 - own.start / shape.v_group,
            };
            let (keys, values_of) = (keys * shape.key_dim, own.len() * shape.value_dim);
            values += slots * ((shape.kernel - 1) * (2 * keys + values_of) + values_of * shape.key_dim);
        }
    }
    4 * values as u64
}

#[test]
fn any_model_stays_within_any_bound_or_is_refused_with_reason() {
    let outcomes = std::cell::Cell::new((0, 0));
    let cases = cases(false).prop_flat_map(|(shape, layout)| {
        let shares = prop::collection::vec(1..=40u64, layout.world_size);
        (Just(shape), Just(layout), shares, any::<bool>(), 0..=5usize, 0..=2usize)
    });
    check(300, cases, |(shape, layout, shares, open, pages, slots)| {
        let blueprint = shape.blueprint();
        let whole = blueprint.share(&Plan::solo(shape.layers), 0).unwrap();
        let all = whole.bytes() + state(&shape, &whole, pages, slots);
        let memory = shares.iter().map(|share| all * share / (8 * layout.world_size as u64) + 1).collect();
        let (tp, pp) = if open { (None, None) } else { (layout.tp, layout.pp) };
        let layout = Layout { memory, tp, pp, ..layout };
        let (fitted, refused) = outcomes.get();
        match blueprint.plan(&layout, pages, slots) {
            Ok(plan) => {
                for rank in 0..layout.world_size {
                    let share = blueprint.share(&plan, rank).unwrap();
                    // invented tables are in memory, of files only the rows that are looked up
                    let table: u64 = share.pieces().filter(|piece| piece.looked_up).map(|piece| piece.bytes()).sum();
                    let held = share.bytes() + table + state(&shape, &share, pages, slots);
                    assert!(held <= layout.memory[rank], "rank {rank} holds {held} in {plan:?}");
                    let sizes = &blueprint.sizes(&plan, pages, slots).unwrap()[rank];
                    assert_eq!(plan.bytes(rank, sizes), held, "rank {rank} in {plan:?}");
                }
                outcomes.set((fitted + 1, refused));
            }
            Err(error) => {
                assert!(error.to_string().contains("has room for"), "{error}");
                for candidate in layout.candidates(shape.layers, shape.heads()).unwrap() {
                    let plan = Plan::new(shape.layers, shape.heads(), &candidate).unwrap();
                    let sizes = blueprint.sizes(&plan, pages, slots).unwrap();
                    let all = splits(shape.layers, plan.stages().len());
                    assert!(!all.iter().any(|runs| fits(&candidate, &sizes, runs)), "{candidate:?} would fit");
                }
                outcomes.set((fitted, refused + 1));
            }
        }
    });
    let (fitted, refused) = outcomes.get();
    println!("{fitted} fitted, {refused} refused");
    assert!(fitted > 60 && refused > 60, "{fitted} fitted, {refused} refused");
}

#[test]
fn an_open_layout_is_tried_in_every_shape() {
    let layout = Layout { world_size: 6, memory: vec![5, 1, 1, 1, 1, 1], ..Layout::default() };
    let shapes: Vec<_> = layout
        .candidates(8, 6)
        .unwrap()
        .iter()
        .map(|candidate| (Plan::new(8, 6, candidate).unwrap().tp(), candidate.weights.clone()))
        .collect();
    let memory = &layout.memory;
    let both = |tp: usize| [(tp, Vec::new()), (tp, memory.clone())];
    assert_eq!(shapes, [6, 3, 2, 1].map(both).concat());
    let given = Layout { tp: Some(3), ..layout };
    assert_eq!(given.candidates(8, 6).unwrap().len(), 2);
}

#[test]
fn figures_of_a_bound_that_nothing_meets() {
    let sizes = vec![Sizes { layers: vec![61_000_000_000], first: 0, last: 300_000_000 }];
    let layout = Layout { world_size: 1, memory: vec![48_000_000_000], ..Layout::default() };
    let error = Plan::solo(1).within(&layout, &sizes).unwrap_err();
    assert_eq!(error.to_string(), "rank 0 would hold 61300.0 MB of weights and state, it has room for 48000.0 MB");
}
