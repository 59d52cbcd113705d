//! Everything is owned by exactly one rank of a stage where it is cut, and by all of them where it is not.

use std::collections::BTreeMap;
use std::ops::Range;

use tbshard::models::Blueprint;
use tbshard::partition::{Layout, Leaves, MAX_LEAVES, Plan};
use tbshard::weights::{FP8_BLOCK, Piece, Share, parse_header};

use super::shapes::{Shape, cases, check};
use crate::support::tiny::tiny_checkpoints;

/// How a tensor is spread over the ranks of its stage.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
pub enum Spread {
    /// By rows, each owned once.
    Rows,
    /// By columns, each owned once.
    Columns,
    /// By rows, of which those of a key head are on every rank that has some of its group.
    Groups,
    /// By blocks of FP8, each on every rank that has some of it.
    Blocks,
    /// Whole on every rank.
    Whole,
    /// Whole on every rank of the first stage, for rows that are looked up.
    Table,
}

/// By the last names of a tensor of the model `whole`; one that is not here is a failure.
pub fn spread(whole: &Share, name: &str) -> Spread {
    let parts: Vec<&str> = name.rsplit('.').collect();
    let (last, layer) = (parts[0], parts.get(1).copied().unwrap_or(""));
    // of a packed weight, as it is itself
    let last = if ["scales", "biases", "weight_packed", "weight_scale"].contains(&last) { "weight" } else { last };
    // the keys of a Kimi Delta Attention are not shared
    let module = name.rsplitn(3, '.').last().unwrap();
    let alone = ["k_conv1d", "k_conv.conv"].iter().any(|conv| whole.knows(&format!("{module}.{conv}.weight")));
    match (last, layer) {
        ("weight", "o_proj" | "out_proj" | "down_proj" | "w2") | ("down_proj", "experts") => Spread::Columns,
        ("weight", "q_proj" | "gate_proj" | "up_proj" | "in_proj_z" | "in_proj_a" | "in_proj_b" | "lm_head")
        | (
            "weight",
            "embed_q" | "unembed_out" | "q_b_proj" | "kv_b_proj" | "w1" | "w3" | "b_proj" | "f_b_proj" | "g_b_proj",
        )
        | ("gate_up_proj", "experts") => Spread::Rows,
        ("weight", "k_proj" | "v_proj") if alone => Spread::Rows,
        ("weight", "k_proj" | "v_proj" | "in_proj_qkv" | "in_proj_qkvz" | "in_proj_ba") => Spread::Groups,
        ("weight", "embed_tokens") => Spread::Table,
        ("weight", "gate" | "shared_expert_gate" | "q_a_proj" | "kv_a_proj_with_mqa" | "f_a_proj" | "g_a_proj")
        | ("bias" | "e_score_correction_bias" | "A_log" | "dt_bias", _) => Spread::Whole,
        ("weight_scale_inv", _) => Spread::Blocks,
        ("weight", kept) if kept.ends_with("norm") || kept.ends_with("conv1d") || kept == "conv" => Spread::Whole,
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
        let spread = spread(whole, name);
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
            Spread::Groups | Spread::Blocks => {
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

/// That every rank has the scales, and biases, of just the packed values that it has, and of FP8 the blocks that those lie in.
pub fn check_groups(shares: &[Share]) {
    for share in shares {
        let pieces = |name: &str| share.tensors().find(|(other, _)| *other == name).map(|(_, pieces)| pieces);
        for (name, values) in share.tensors() {
            if let Some(scales) = pieces(&format!("{name}_scale_inv")) {
                let blocks = |run: &Range<usize>| run.start / FP8_BLOCK..run.end.div_ceil(FP8_BLOCK);
                for values in values.iter().filter(|values| values.bytes() > 0) {
                    let (mut rows, columns) = (blocks(&values.rows), blocks(&values.columns));
                    // heads may share a block
                    let has =
                        |row: usize| scales.iter().any(|piece| piece.rows.contains(&row) && piece.columns == columns);
                    assert!(rows.all(has), "{name}: {scales:?}");
                }
            }
            // as mlx_lm names them, or as compressed-tensors does
            let (module, scales) = match (name.strip_suffix("weight"), name.strip_suffix("weight_packed")) {
                (Some(module), _) => (module, "scales"),
                (_, Some(module)) => (module, "weight_scale"),
                _ => continue,
            };
            let Some(scales) = pieces(&format!("{module}{scales}")) else { continue };
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
fn check_cuts(shape: &Shape, spread: Spread, name: &str, pieces: &[Piece]) {
    let units = |inner: usize| inner.div_ceil(128);
    let shared = |inner: usize| shape.shared_columns().map_or(MAX_LEAVES, |shared| units(inner).min(units(shared)));
    let experts = |inner: usize| Leaves::into_parts(inner, 128, shared(shape.expert_inner).min(MAX_LEAVES));
    let heads = |count: usize, width: usize| Leaves::of_units(count * width, width);
    let v_heads = heads(shape.key_heads * shape.v_group, shape.value_dim);
    let layer = name.split_once("layers.").and_then(|(_, rest)| rest.split('.').next()?.parse().ok());
    let is_kda = layer.is_some_and(|layer| shape.is_kda(layer));
    let kda = ["o_proj", "q_proj", "k_proj", "v_proj", "f_b_proj", "g_b_proj"];
    let is = |module: &str| name.ends_with(&format!(".{module}.weight"));
    let key_dim = shape.latent.plain_dim + shape.latent.rope_dim;
    // the leaves along the cut dimension, of which a feature is `scale` rows there, and a unit
    let (leaves, scale, unit) = match () {
        () if is_kda && kda.into_iter().any(is) => (heads(shape.key_heads, shape.value_dim), 1, shape.value_dim),
        () if is_kda && is("b_proj") => (heads(shape.key_heads, 1), 1, 1),
        () if shape.is_latent() && (is("q_proj") || is("q_b_proj")) => (heads(shape.heads(), key_dim), 1, key_dim),
        () if is("o_proj") => (heads(shape.heads(), shape.head_dim), 1, shape.head_dim),
        () if is("q_proj") => {
            let gated = if shape.is_hybrid() && shape.gated { 2 } else { 1 };
            (heads(shape.heads(), shape.head_dim), gated, gated * shape.head_dim)
        }
        () if is("out_proj") || is("in_proj_z") => (v_heads, 1, shape.value_dim),
        () if name.contains(".shared_expert") => (experts(shape.shared_columns().unwrap()), 1, 128),
        () if name.contains(".experts.") => (experts(shape.expert_inner), 1, 128),
        () if name.contains(".mlp.") => (Leaves::of_units(shape.inner, 128), 1, 128),
        () => return,
    };
    // columns of codes are words, those of their scales are groups
    let columns = if name.ends_with("_packed") {
        8
    } else if name.ends_with("_scale") {
        32
    } else {
        1
    };
    for piece in pieces {
        let edges = match spread {
            Spread::Columns => [piece.columns.start * columns, piece.columns.end * columns],
            _ => [piece.rows.start, piece.rows.end],
        };
        let end = leaves.len() * scale;
        for edge in edges {
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
        check_groups(&shares);
        for (name, pieces) in shares.iter().flat_map(Share::tensors) {
            let spread = spread(&whole, name);
            if matches!(spread, Spread::Rows | Spread::Columns) {
                check_cuts(&shape, spread, name, pieces);
            }
            // rows of the vocabulary, at multiples of what a kernel does at a time
            let is_head = spread == Spread::Table || name.ends_with("lm_head.weight");
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
