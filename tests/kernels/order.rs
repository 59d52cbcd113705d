//! The declared order of additions, spelt out one number at a time: what ranks on unlike machines agree on.

use std::ops::Range;

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

/// The sums of leaves in the fixed binary tree.
pub fn tree(node: Range<usize>, leaf_sums: &[f32]) -> f32 {
    if node.len() == 1 {
        return leaf_sums[node.start];
    }
    let (left, right) = halves(&node);
    tree(left, leaf_sums) + tree(right, leaf_sums)
}

/// The dot product over `leaves`.
pub fn dot(x: &[f32], w: &[f32], leaves: &Leaves) -> f32 {
    let columns = (0..leaves.count()).map(|i| leaves.columns(i));
    let leaf_sums: Vec<f32> = columns.map(|columns| leaf(&x[columns.clone()], &w[columns])).collect();
    tree(0..leaves.count(), &leaf_sums)
}
