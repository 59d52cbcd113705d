//! Everything is owned by exactly one rank of a stage where it is cut, and by all of them where it is not.

use std::collections::BTreeMap;
use std::ops::Range;

use tbshard::models::Blueprint;
use tbshard::partition::{Layout, Leaves, MAX_LEAVES, Plan};
use tbshard::weights::{Piece, Share, parse_header};

use super::shapes::{Shape, cases, check};
use crate::support::tiny_checkpoints;

/// How a tensor is spread over the ranks of its stage.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
pub enum Spread {
    /// By rows, each owned once.
    Rows,
    /// By columns, each owned once.
    Columns,
    /// By rows, of which those of a key head are on every rank that has some of its group.
    Groups,
    /// Whole on every rank.
    Whole,
    /// Whole on every rank of the first stage, for rows that are looked up.
    Table,
}

/// By the last names of a tensor; one that is not here is a failure.
pub fn spread(name: &str) -> Spread {
    let parts: Vec<&str> = name.rsplit('.').collect();
    let (last, layer) = (parts[0], parts.get(1).copied().unwrap_or(""));
    // of a packed weight, as it is itself
    let last = if ["scales", "biases"].contains(&last) { "weight" } else { last };
    match (last, layer) {
        ("weight", "o_proj" | "out_proj" | "down_proj") | ("down_proj", "experts") => Spread::Columns,
        ("weight", "q_proj" | "gate_proj" | "up_proj" | "in_proj_z" | "in_proj_a" | "in_proj_b" | "lm_head")
        | ("gate_up_proj", "experts") => Spread::Rows,
        ("weight", "k_proj" | "v_proj" | "in_proj_qkv" | "in_proj_qkvz" | "in_proj_ba") => Spread::Groups,
        ("weight", "embed_tokens") => Spread::Table,
        ("weight", "gate" | "shared_expert_gate" | "conv1d")
        | ("bias" | "A_log" | "dt_bias" | "weight_scale_inv", _) => Spread::Whole,
        ("weight", norm) if norm.ends_with("norm") => Spread::Whole,
        _ => panic!("how is `{name}` spread?"),
    }
}

pub fn is_whole(piece: &Piece, whole: &Piece) -> bool {
    (&piece.rows, &piece.columns) == (&whole.rows, &whole.columns)
}

/// That the ranges of all ranks follow each other without a gap, and none is owned twice.
fn tile(name: &str, ranges: impl Iterator<Item = Range<u64>>, len: u64) {
    let mut ranges: Vec<Range<u64>> = ranges.collect();
    ranges.sort_by_key(|range| (range.start, range.end));
    let mut reached = 0;
    for range in ranges {
        assert_eq!(range.start, reached, "{name} is owned twice or not at all here");
        reached = range.end;
    }
    assert_eq!(reached, len, "the end of {name} is missing");
}

/// What every rank owns of a model, held against what one rank owns that has it all.
pub fn check_cover(plan: &Plan, whole: &Share, shares: &[Share]) {
    let world = 0..plan.world_size();
    let mut covered = 0;
    for (name, all) in whole.tensors() {
        let spread = spread(name);
        let knowing: Vec<usize> = world.clone().filter(|rank| shares[*rank].knows(name)).collect();
        let len = whole.byte_ranges(name).last().unwrap().end;
        covered += len;
        assert_eq!(whole.byte_ranges(name), vec![0..len; 1], "{name} is not whole on one rank");
        // by layer: the stage that runs it; else the first stage, the last, or for a table that is the head too both
        let stages: Vec<usize> = (0..plan.stages().len())
            .filter(|stage| match all[0].layer {
                Some(layer) => plan.stages()[*stage].contains(&layer),
                None if spread == Spread::Table => *stage == 0 || (all.len() > 1 && stage + 1 == plan.stages().len()),
                None => stage + 1 == plan.stages().len(),
            })
            .collect();
        let owners: Vec<usize> = stages.iter().flat_map(|stage| plan.ranks_of(*stage)).collect();
        assert_eq!(knowing, owners, "{name} is known to other ranks than its stage's");
        let pieces = |rank: usize| shares[rank].tensors().find(|(other, _)| *other == name).unwrap().1;
        match spread {
            Spread::Rows | Spread::Columns => {
                tile(name, owners.iter().flat_map(|rank| shares[*rank].byte_ranges(name)), len);
                let (sum, own): (u64, u64) =
                    owners.iter().flat_map(|rank| pieces(*rank)).fold((0, 0), |(sum, own), piece| {
                        (sum + piece.bytes(), own + piece.byte_ranges().map(|run| run.end - run.start).sum::<u64>())
                    });
                assert_eq!((sum, own), (len, len), "{name}");
            }
            Spread::Groups => {
                let mut ranges: Vec<_> = owners.iter().flat_map(|rank| shares[*rank].byte_ranges(name)).collect();
                ranges.sort_by_key(|range| range.start);
                let reached = ranges.iter().fold(0, |reached, range| {
                    assert!(range.start <= reached, "{name} is not owned from byte {reached} on");
                    range.end.max(reached)
                });
                assert_eq!(reached, len, "the end of {name} is missing");
            }
            Spread::Whole => {
                for rank in owners {
                    assert!(pieces(rank).len() == 1 && is_whole(&pieces(rank)[0], &all[0]), "{name} on rank {rank}");
                }
            }
            Spread::Table => {
                for rank in plan.ranks_of(0) {
                    let looked_up = pieces(rank).iter().filter(|piece| piece.looked_up);
                    let mut found = looked_up.map(|piece| (piece.rows.clone(), piece.columns.clone()));
                    let rows = all.iter().map(|piece| piece.rows.end).max().unwrap();
                    assert_eq!(found.next(), Some((0..rows, 0..all[0].stride)), "{name} on rank {rank}");
                    assert_eq!(found.next(), None);
                }
                let head = owners.iter().flat_map(|rank| pieces(*rank)).filter(|piece| !piece.looked_up);
                if all.len() > 1 {
                    tile(name, head.flat_map(Piece::byte_ranges), len);
                }
            }
        }
    }
    for (name, pieces) in shares.iter().flat_map(Share::tensors) {
        let number = name.split_once("layers.").and_then(|(_, rest)| rest.split('.').next());
        let layer = number.map(|number| number.parse().unwrap());
        assert!(pieces.iter().all(|piece| piece.layer == layer), "{name}: {pieces:?}");
    }
    let names = |share: &Share| share.tensors().map(|(name, _)| name.to_owned()).collect::<Vec<_>>();
    let mut known: Vec<String> = shares.iter().flat_map(names).collect();
    known.sort();
    known.dedup();
    assert_eq!(known, names(whole));
    // what all ranks would fetch, each byte once, is the checkpoint
    let mut union: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, _) in whole.tensors() {
        let mut ranges: Vec<_> = shares.iter().flat_map(|share| share.byte_ranges(name)).collect();
        ranges.sort_by_key(|range| range.start);
        let (mut sum, mut reached) = (0, 0);
        for range in ranges {
            sum += range.end.saturating_sub(range.start.max(reached));
            reached = reached.max(range.end);
        }
        union.insert(name, sum);
    }
    assert_eq!(union.values().sum::<u64>(), covered);
}

/// That every rank has the scales, and biases, of just the packed values that it has.
pub fn check_groups(shares: &[Share]) {
    for share in shares {
        let pieces = |name: &str| share.tensors().find(|(other, _)| *other == name).map(|(_, pieces)| pieces);
        for (name, values) in share.tensors().filter(|(name, _)| name.ends_with(".weight")) {
            let module = name.strip_suffix("weight").unwrap();
            let Some(scales) = pieces(&format!("{module}scales")) else { continue };
            assert_eq!(values.len(), scales.len(), "{name}");
            for (values, scales) in values.iter().zip(scales) {
                assert_eq!((&values.rows, values.looked_up), (&scales.rows, scales.looked_up), "{name}");
                for (word, group) in
                    [(values.columns.start, scales.columns.start), (values.columns.end, scales.columns.end)]
                {
                    assert_eq!(word * scales.stride, group * values.stride, "{name} is cut at word {word}, in a group");
                }
            }
            let biases = pieces(&format!("{module}biases"));
            assert!(biases.is_none_or(|biases| biases == scales), "{module}biases");
        }
    }
}

/// That no piece starts or ends inside a unit that must not be cut, nor inside a canonical leaf.
fn check_cuts(shape: &Shape, name: &str, pieces: &[Piece]) {
    let units = |inner: usize| inner.div_ceil(128);
    let shared =
        |inner: usize| if shape.is_hybrid() { units(inner).min(units(shape.shared_inner)) } else { MAX_LEAVES };
    let experts = |inner: usize| Leaves::into_parts(inner, 128, shared(shape.expert_inner).min(MAX_LEAVES));
    let heads = |count: usize, width: usize| Leaves::of_units(count * width, width);
    let v_heads = heads(shape.key_heads * shape.v_group, shape.value_dim);
    let q_heads = heads(shape.heads(), shape.head_dim);
    // the leaves along the cut dimension, what one of their features is there, and a unit
    let (leaves, scale, unit) = match () {
        () if name.ends_with("o_proj.weight") => (q_heads, 1, shape.head_dim),
        () if name.ends_with("q_proj.weight") => {
            let gated = if shape.is_hybrid() && shape.gated { 2 } else { 1 };
            (q_heads, gated, gated * shape.head_dim)
        }
        () if name.ends_with("out_proj.weight") || name.ends_with("in_proj_z.weight") => (v_heads, 1, shape.value_dim),
        () if name.contains(".shared_expert.") => (experts(shape.shared_inner), 1, 128),
        () if name.contains(".experts.") => (experts(shape.expert_inner), 1, 128),
        () if name.contains(".mlp.") => (Leaves::of_units(shape.inner, 128), 1, 128),
        () => return,
    };
    for piece in pieces {
        let run = if spread(name) == Spread::Columns { &piece.columns } else { &piece.rows };
        let end = leaves.len() * scale;
        for edge in [run.start, run.end] {
            assert!(edge.is_multiple_of(unit) || edge == end, "{name} is cut at {edge}, inside a unit of {unit}");
            let whole = edge == end || (0..leaves.count()).any(|leaf| leaves.columns(leaf).start * scale == edge);
            assert!(whole, "{name} is cut at {edge}, inside a leaf");
        }
    }
}

#[test]
fn any_model_on_any_layout_is_owned_once() {
    check(400, cases(false), |(shape, layout)| {
        let blueprint = shape.blueprint();
        let plan = Plan::new(shape.layers, shape.heads(), &layout).unwrap();
        let whole = blueprint.share(&Plan::solo(shape.layers), 0).unwrap();
        let shares: Vec<Share> = (0..plan.world_size()).map(|rank| blueprint.share(&plan, rank).unwrap()).collect();
        check_cover(&plan, &whole, &shares);
        for (name, pieces) in shares.iter().flat_map(Share::tensors) {
            if matches!(spread(name), Spread::Rows | Spread::Columns) {
                check_cuts(&shape, name, pieces);
            }
            // rows of the vocabulary, at multiples of what a kernel does at a time
            let is_head = spread(name) == Spread::Table || name == "lm_head.weight";
            if let Some(head) = pieces.iter().find(|piece| is_head && !piece.looked_up) {
                let edges = [head.rows.start, head.rows.end];
                assert!(edges.iter().all(|edge| edge.is_multiple_of(16) || *edge == shape.vocab), "{name} {edges:?}");
            }
        }
    });
}

#[test]
fn checkpoints_are_owned_once_and_to_the_last_byte() {
    for dir in tiny_checkpoints() {
        let blueprint = Blueprint::open(&dir).unwrap();
        let layers = blueprint.geometry.layers;
        let whole = blueprint.share(&Plan::solo(layers), 0).unwrap();
        let mut bytes = 0;
        for file in std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().path()) {
            let name = file.file_name().unwrap().to_string_lossy();
            if name.ends_with(".safetensors") && !name.starts_with("fixture") {
                let header = parse_header(&std::fs::read(&file).unwrap()).unwrap();
                let used = header.tensors.iter().filter(|(name, _)| whole.knows(name));
                bytes += used.map(|(_, entry)| entry.bytes.len() as u64).sum::<u64>();
            }
        }
        let owned: u64 =
            whole.tensors().flat_map(|(name, _)| whole.byte_ranges(name)).map(|run| run.end - run.start).sum();
        assert_eq!(owned, bytes, "{}", dir.display());
        for (tp, pp) in (1..=9).flat_map(|tp| (1..=layers.min(9 / tp)).map(move |pp| (tp, pp))) {
            let layout = Layout { world_size: tp * pp, tp: Some(tp), pp: Some(pp), ..Layout::default() };
            let plan = Plan::new(layers, blueprint.geometry.heads, &layout).unwrap();
            let shares: Vec<Share> = (0..tp * pp).map(|rank| blueprint.share(&plan, rank).unwrap()).collect();
            check_cover(&plan, &whole, &shares);
            check_groups(&shares);
        }
    }
}
