//! Key heads are on every rank that has some of their group, and on no other.

use std::ops::Range;

use tbshard::partition::Plan;
use tbshard::weights::Share;

use super::shapes::{Shape, cases, check};

/// For every row of the tensor whether the rank has it.
fn rows(share: &Share, name: &str, count: usize) -> Vec<bool> {
    let mut owned = vec![false; count];
    let (_, pieces) = share.tensors().find(|(other, _)| *other == name).unwrap();
    for row in pieces.iter().flat_map(|piece| piece.rows.clone()) {
        assert!(!owned[row], "{name}: row {row} twice on one rank");
        owned[row] = true;
    }
    owned
}

/// The heads of `width` columns that the rank has of a row-parallel tensor.
fn heads(share: &Share, name: &str, width: usize) -> Range<usize> {
    let (_, pieces) = share.tensors().find(|(other, _)| *other == name).unwrap();
    assert_eq!(pieces.len(), 1);
    pieces[0].columns.start / width..pieces[0].columns.end / width
}

/// Whether key head `key` has one of `heads`, of which `group` share it.
fn needs(heads: &Range<usize>, group: usize, key: usize) -> bool {
    heads.clone().any(|head| head / group == key)
}

fn check_attention(shape: &Shape, share: &Share, prefix: &str) {
    let own = heads(share, &format!("{prefix}.o_proj.weight"), shape.head_dim);
    let width = if shape.is_hybrid() && shape.gated { 2 * shape.head_dim } else { shape.head_dim };
    let queries = rows(share, &format!("{prefix}.q_proj.weight"), shape.heads() * width);
    for (row, owned) in queries.into_iter().enumerate() {
        assert_eq!(owned, own.contains(&(row / width)), "{prefix}: row {row} of q_proj with heads {own:?}");
    }
    for name in ["k_proj", "v_proj"] {
        let keys = rows(share, &format!("{prefix}.{name}.weight"), shape.kv_heads * shape.head_dim);
        for (row, owned) in keys.into_iter().enumerate() {
            let needed = needs(&own, shape.group, row / shape.head_dim);
            assert_eq!(owned, needed, "{prefix}: row {row} of {name} with heads {own:?}");
        }
    }
}

/// That all per-head matrices of an attention without shared keys have the heads of `o_proj`, of `width` columns each.
fn check_heads(share: &Share, prefix: &str, count: usize, width: usize, matrices: &[(&str, usize)]) {
    let own = heads(share, &format!("{prefix}.o_proj.weight"), width);
    for (name, height) in matrices {
        let all = rows(share, &format!("{prefix}.{name}.weight"), count * height);
        for (row, owned) in all.into_iter().enumerate() {
            assert_eq!(owned, own.contains(&(row / height)), "{prefix}: row {row} of {name} with heads {own:?}");
        }
    }
}

fn check_latent(shape: &Shape, share: &Share, prefix: &str) {
    let (keys, values) = (shape.latent.plain_dim, shape.head_dim);
    let queries = if shape.latent.q_rank.is_some() { "q_b_proj" } else { "q_proj" };
    let matrices = [(queries, keys + shape.latent.rope_dim), ("kv_b_proj", keys + values)];
    check_heads(share, prefix, shape.heads(), values, &matrices);
}

fn check_kda(shape: &Shape, share: &Share, prefix: &str) {
    let dim = shape.value_dim;
    let wide = ["q_proj", "k_proj", "v_proj", "f_b_proj", "g_b_proj"].map(|name| (name, dim));
    check_heads(share, prefix, shape.key_heads, dim, &[&wide[..], &[("b_proj", 1)]].concat());
}

fn check_delta(shape: &Shape, share: &Share, prefix: &str) {
    let Shape { key_heads, v_group: group, key_dim, value_dim, .. } = *shape;
    let own = heads(share, &format!("{prefix}.out_proj.weight"), value_dim);
    let (keys, values) = (key_heads * key_dim, key_heads * group * value_dim);
    let key = |head: usize| needs(&own, group, head);
    let value = |head: usize| own.contains(&head);
    let expect = |name: &str, count: usize, needed: &dyn Fn(usize) -> bool| {
        for (row, owned) in rows(share, &format!("{prefix}.{name}.weight"), count).into_iter().enumerate() {
            assert_eq!(owned, needed(row), "{prefix}: row {row} of {name} with value heads {own:?}");
        }
    };
    if shape.is_fused() {
        // per key head: its query, its key, then the values and the gates of its value heads
        let of_key = 2 * key_dim + 2 * group * value_dim;
        expect("in_proj_qkvz", 2 * keys + 2 * values, &|row| match (row / of_key, row % of_key) {
            (head, at) if at < 2 * key_dim => key(head),
            (head, at) => value(head * group + (at - 2 * key_dim) / value_dim % group),
        });
        expect("in_proj_ba", 2 * key_heads * group, &|row| value(row / (2 * group) * group + row % group));
        return;
    }
    expect("in_proj_qkv", 2 * keys + values, &|row| match row {
        row if row < 2 * keys => key(row % keys / key_dim),
        row => value((row - 2 * keys) / value_dim),
    });
    expect("in_proj_z", values, &|row| value(row / value_dim));
    expect("in_proj_a", key_heads * group, &value);
    expect("in_proj_b", key_heads * group, &value);
}

#[test]
fn key_heads_are_where_their_groups_are() {
    check(300, cases(false), |(shape, layout)| {
        let blueprint = shape.blueprint();
        let plan = Plan::new(shape.layers, shape.heads(), &layout).unwrap();
        for rank in 0..plan.world_size() {
            let share = blueprint.share(&plan, rank).unwrap();
            let (mut attention, mut delta) = (0, 0);
            for (name, pieces) in share.tensors() {
                if let Some(prefix) = name.strip_suffix(".o_proj.weight") {
                    match pieces[0].layer.unwrap() {
                        layer if shape.is_kda(layer) => check_kda(&shape, &share, prefix),
                        _ if shape.is_latent() => check_latent(&shape, &share, prefix),
                        _ => check_attention(&shape, &share, prefix),
                    }
                    attention += 1;
                }
                if let Some(prefix) = name.strip_suffix(".out_proj.weight") {
                    check_delta(&shape, &share, prefix);
                    delta += 1;
                }
            }
            assert_eq!(attention + delta, plan.seat(rank).layers.len());
            assert!(shape.is_hybrid() || delta == 0);
        }
    });
}
