//! The declared order of additions, spelt out one number at a time: what ranks on unlike machines agree on.

use std::ops::Range;

use half::bf16;
use tbshard::partition::{Leaves, halves};

/// One leaf: sixteen lanes, lane i adding the columns i, i + 16, …; then lanes i and i + 8, i + 4, i + 2, i + 1.
pub fn leaf(x: &[f32], w: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    for (i, (x, w)) in x.iter().zip(w).enumerate() {
        lanes[i % 16] = x.mul_add(*w, lanes[i % 16]);
    }
    for apart in [8, 4, 2, 1] {
        for i in 0..apart {
            lanes[i] += lanes[i + apart];
        }
    }
    lanes[0]
}

/// One leaf of bf16 operands: lane i adds columns 2i + 1 and 2i, 2i + 33 and 2i + 32, …; then as in [`leaf`].
///
/// What the instruction does with each product (VDPBF16PS, Intel SDM vol. 2C) is one rounding, and no subnormals.
pub fn paired_leaf(x: &[f32], w: &[f32]) -> f32 {
    let flush = |x: f32| if x.abs() < f32::MIN_POSITIVE { 0.0 } else { x };
    let rounded = |values: &[f32], i: usize| values.get(i).map_or(0.0, |x| bf16::from_f32(flush(*x)).to_f32());
    let mut lanes = [0.0f32; 16];
    for start in (0..x.len()).step_by(32) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            for column in [start + 2 * lane + 1, start + 2 * lane] {
                *sum = flush(rounded(x, column).mul_add(rounded(w, column), *sum));
            }
        }
    }
    for apart in [8, 4, 2, 1] {
        for i in 0..apart {
            lanes[i] += lanes[i + apart];
        }
    }
    lanes[0]
}

/// One leaf of activations in eight bits, 32 columns with a scale of their own, and weights that are a code, a scale, a bias.
pub fn int8_leaf(x: &[f32], w: &[(u32, f32, f32)]) -> f32 {
    x.chunks(32).zip(w.chunks(32)).fold(0.0, |sum, (x, w)| {
        let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let codes = x.iter().map(|x| if largest == 0.0 { 0 } else { (x * (127.0 / largest)).round_ties_even() as i32 });
        let codes: Vec<i32> = codes.collect();
        let (scale, (_, scale_w, bias)) = (largest / 127.0, w[0]);
        let products: i32 = codes.iter().zip(w).map(|(x, (code, ..))| x * *code as i32).sum();
        let sum = (products as f32).mul_add(scale_w * scale, sum);
        bias.mul_add(scale * codes.iter().sum::<i32>() as f32, sum)
    })
}

/// The sums of leaves in the fixed binary tree.
pub fn tree(node: Range<usize>, leaf_sums: &[f32]) -> f32 {
    if node.len() == 1 {
        return leaf_sums[node.start];
    }
    let (left, right) = halves(&node);
    tree(left, leaf_sums) + tree(right, leaf_sums)
}

/// The dot product over `leaves`, each summed by `leaf`.
pub fn dot<W>(x: &[f32], w: &[W], leaves: &Leaves, leaf: fn(&[f32], &[W]) -> f32) -> f32 {
    let columns = (0..leaves.count()).map(|i| leaves.columns(i));
    let leaf_sums: Vec<f32> = columns.map(|columns| leaf(&x[columns.clone()], &w[columns])).collect();
    tree(0..leaves.count(), &leaf_sums)
}
