//! The choice of experts: scores, the best groups, the best experts, their weights.

use super::Cpu;
use super::math::{exp, load_some, sigmoid, store_some, zip};
use super::simd::{LANES, Simd, dispatch};
use crate::backend::{Router, Routes, Scores, Tensor};

/// What is added to the sum that sigmoid weights are divided by (as DeepSeek-V3's code has it).
const TINY: f32 = 1e-20;

/// The experts of every row, the lower index first among equals.
pub(super) fn route(cpu: &Cpu, logits: &Tensor, router: &Router<'_>) -> Routes {
    let Router { scores, top_k, normalise, scale } = *router;
    let (mut experts, mut weights) = (Tensor::scratch(logits.rows(), top_k), Tensor::scratch(logits.rows(), top_k));
    for (at, row) in logits.rows_iter().enumerate() {
        let (p, wanted, tiny) = match scores {
            Scores::Softmax => {
                let p = softmax(cpu, row);
                (p.clone(), p, 0.0)
            }
            Scores::Sigmoid { bias, groups, top_groups } => {
                let mut p = sigmoids(cpu, row);
                let wanted: Vec<f32> = p.iter().zip(&**bias).map(|(p, bias)| p + bias).collect();
                if wanted.iter().any(|wanted| wanted.is_nan()) {
                    // it may rank last and stay unseen; a softmax has it in every weight
                    p.fill(f32::NAN);
                }
                (p, in_best_groups(wanted, groups, top_groups), TINY)
            }
        };
        let chosen = best(&wanted, top_k);
        let sum: f32 = chosen.iter().map(|expert| p[*expert as usize]).sum();
        let total = if normalise { sum + tiny } else { 1.0 };
        for ((to, weight), expert) in experts.row_mut(at).iter_mut().zip(weights.row_mut(at)).zip(chosen) {
            *to = f32::from_bits(expert);
            *weight = p[expert as usize] / total * scale;
        }
    }
    Routes { experts, weights }
}

/// The places of the `count` largest values, the largest first.
fn best(values: &[f32], count: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    order.sort_by(|a, b| values[*b as usize].total_cmp(&values[*a as usize]).then(a.cmp(b)));
    order.truncate(count);
    order
}

/// Makes every expert undesirable that is not in one of the `chosen` groups whose two best add up to most.
fn in_best_groups(mut wanted: Vec<f32>, groups: usize, chosen: usize) -> Vec<f32> {
    if groups <= chosen {
        return wanted;
    }
    let size = wanted.len() / groups;
    let sums: Vec<f32> = wanted
        .chunks_exact(size)
        .map(|group| best(group, 2).iter().map(|expert| group[*expert as usize]).sum())
        .collect();
    let kept = best(&sums, chosen);
    for (group, wanted) in wanted.chunks_exact_mut(size).enumerate() {
        if !kept.contains(&(group as u32)) {
            wanted.fill(f32::NEG_INFINITY);
        }
    }
    wanted
}

#[inline(always)]
unsafe fn exp_minus<S: Simd>(x: &mut [f32], max: &[f32]) {
    // SAFETY: the caller's promise: one length
    unsafe { zip!(S, x, max, |x, max| exp::<S>(S::sub(x, max))) }
}

fn softmax(cpu: &Cpu, logits: &[f32]) -> Vec<f32> {
    let mut p = logits.to_vec();
    let max = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (x, top) = (&mut p[..], &vec![max; logits.len()][..]);
    // SAFETY: the instruction set is available, both slices have one length
    unsafe { dispatch!(cpu.isa, exp_minus(x: &mut [f32], top: &[f32])) };
    let sum: f32 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= sum);
    p
}

#[inline(always)]
unsafe fn sigmoid_all<S: Simd>(to: &mut [f32], from: &[f32]) {
    // SAFETY: the caller's promise: one length
    unsafe { zip!(S, to, from, |_, x| sigmoid::<S>(x)) }
}

/// The sigmoid of every value.
pub(super) fn sigmoids(cpu: &Cpu, x: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    let to = &mut y[..];
    // SAFETY: the instruction set is available, both slices have one length
    unsafe { dispatch!(cpu.isa, sigmoid_all(to: &mut [f32], x: &[f32])) };
    y
}
