//! The gated delta net: causal convolution and the recurrent gated delta rule (Yang et al., arXiv 2412.06464).
#![allow(clippy::needless_range_loop, reason = "register tiles are clearest, and unrolled, by index")]

use super::Cpu;
use super::dot::dot;
use super::linear::Shared;
use super::math::{add_products, scale_by, silu};
use super::rowwise::for_each_run;
use super::simd::{LANES, Simd, dispatch};
use crate::backend::state::DeltaStore;
use crate::backend::{Batch, DeltaGates, DeltaShape, Tensor};

/// Depthwise causal convolution over the rows of each sequence, then silu.
///
/// `x` is `[rows, channels]`, `weight` `[taps + 1, channels]`, its last row for the newest input; the store's `taps`
/// past inputs are read and replaced.
pub(super) fn conv_silu(cpu: &Cpu, x: &Tensor, weight: &[f32], store: &mut DeltaStore, batch: &Batch) -> Tensor {
    let (channels, taps) = (store.channels, store.taps);
    assert!(x.cols() == channels && weight.len() == (taps + 1) * channels);
    let mut y = Tensor::zeros(x.rows(), channels);
    for segment in batch.segments() {
        let past = &mut store.conv[segment.slot * taps * channels..][..taps * channels];
        let rows = &x.data()[segment.rows.start * channels..segment.rows.end * channels];
        let out = &mut y.data_mut()[segment.rows.start * channels..segment.rows.end * channels];
        let input = |row: usize| match row.checked_sub(taps) {
            None => &past[row * channels..][..channels],
            Some(row) => &rows[row * channels..][..channels],
        };
        for_each_run(cpu, out, channels, |row, out| {
            for tap in 0..=taps {
                let (x, w) = (input(row + tap), &weight[tap * channels..][..channels]);
                let out = &mut *out;
                // SAFETY: the instruction set is available, all three have `channels` values
                unsafe { dispatch!(cpu.isa, add_products(out: &mut [f32], x: &[f32], w: &[f32])) };
            }
            // SAFETY: the instruction set is available
            unsafe { dispatch!(cpu.isa, silu_all(out: &mut [f32])) };
        });
        let newest: Vec<f32> = (segment.rows.len()..segment.rows.len() + taps).flat_map(input).copied().collect();
        past.copy_from_slice(&newest);
    }
    y
}

#[inline(always)]
unsafe fn silu_all<S: Simd>(x: &mut [f32]) {
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    // SAFETY: chunks hold sixteen values, the rest is moved through a padded copy
    unsafe {
        for lanes in whole {
            S::store(lanes.as_mut_ptr(), silu::<S>(S::load(lanes.as_ptr())));
        }
        if !rest.is_empty() {
            let v = super::math::load_some::<S>(rest.as_ptr(), rest.len());
            super::math::store_some::<S>(rest.as_mut_ptr(), silu::<S>(v), rest.len());
        }
    }
}

/// The recurrent gated delta rule for every row of every sequence: `[rows, v_heads · value_dim]`.
///
/// `qkv` is `[rows, q | k | v]`. Per v-head, with q and k of length one and q scaled by `key_dim^-½`:
/// `S ← S·decay; S ← S + k ⊗ (v − kᵀS)·beta; out = qᵀS`, the decay one number or one a channel of k.
pub(super) fn delta_rule(
    cpu: &Cpu,
    mut qkv: Tensor,
    gates: &DeltaGates,
    store: &mut DeltaStore,
    batch: &Batch,
    shape: &DeltaShape,
) -> Tensor {
    let (keys, values) = (shape.keys(), shape.values());
    assert!(qkv.cols() == 2 * keys + values && shape.value_dim.is_multiple_of(LANES));
    let mut slots: Vec<usize> = batch.segments().iter().map(|segment| segment.slot).collect();
    slots.sort_unstable();
    assert!(slots.windows(2).all(|pair| pair[0] != pair[1]), "a batch names a slot once");
    assert_eq!(store.state_values, values * shape.key_dim);
    let width = qkv.cols();
    for_each_run(cpu, qkv.data_mut(), width, |_, row| {
        for (head, x) in row[..2 * keys].chunks_exact_mut(shape.key_dim).enumerate() {
            let scale = if head < shape.heads.shared { 1.0 / (shape.key_dim as f32).sqrt() } else { 1.0 };
            // SAFETY: the instruction set is available
            unsafe { dispatch!(cpu.isa, unit_length(x: &mut [f32], scale: f32)) };
        }
    });
    let mut out = Tensor::zeros(qkv.rows(), values);
    let (out_shared, state_shared) = (Shared::new(out.data_mut()), Shared::new(&mut store.state));
    let heads = shape.heads.heads;
    // one decay a head, or one a channel of its key
    let decays = gates.decay.cols() / heads.max(1);
    assert!(gates.decay.cols() == heads * decays && (decays == 1 || decays == shape.key_dim || heads == 0));
    let state_len = shape.key_dim * shape.value_dim;
    cpu.pool.run(batch.segments().len() * heads, |task| {
        let (segment, head) = (&batch.segments()[task / heads], task % heads);
        let k_head = shape.heads.of(head);
        let at = (segment.slot * heads + head) * state_len;
        // SAFETY: every (slot, head) belongs to one task: a batch names a slot once
        let state = unsafe { state_shared.part(at..at + state_len) };
        for row in segment.rows.clone() {
            let x = qkv.row(row);
            let step = Step {
                q: &x[k_head * shape.key_dim..][..shape.key_dim],
                k: &x[keys + k_head * shape.key_dim..][..shape.key_dim],
                v: &x[2 * keys + head * shape.value_dim..][..shape.value_dim],
                decay: &gates.decay.row(row)[head * decays..(head + 1) * decays],
                beta: gates.beta.row(row)[head],
            };
            let at = row * values + head * shape.value_dim;
            // SAFETY: every (row, head) belongs to one task
            let out = unsafe { out_shared.part(at..at + shape.value_dim) };
            let state = &mut *state;
            // SAFETY: the instruction set is available; `state` is [key_dim, value_dim] of a whole number of lanes
            unsafe { dispatch!(cpu.isa, advance(step: Step<'_>, state: &mut [f32], out: &mut [f32])) };
        }
    });
    out
}

struct Step<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    // one for the whole key, or one a channel
    decay: &'a [f32],
    beta: f32,
}

#[inline(always)]
unsafe fn unit_length<S: Simd>(x: &mut [f32], scale: f32) {
    // SAFETY: the caller's promise
    unsafe {
        let squares = dot::<S>(x.as_ptr(), x.as_ptr(), x.len());
        scale_by::<S>(x, 1.0 / (squares + 1e-6).sqrt());
        scale_by::<S>(x, scale);
    }
}

#[inline(always)]
unsafe fn advance<S: Simd>(step: Step<'_>, state: &mut [f32], out: &mut [f32]) {
    let width = step.v.len();
    let mut column = 0;
    while column < width {
        // SAFETY: the caller's promise
        column += unsafe {
            if width - column >= 4 * LANES {
                columns::<S, 4>(&step, state, out, column)
            } else {
                columns::<S, 1>(&step, state, out, column)
            }
        };
    }
}

/// One step for `N` · 16 columns of the state; sums run over the key dimension in order. Returns the columns done.
#[inline(always)]
unsafe fn columns<S: Simd, const N: usize>(
    step: &Step<'_>,
    state: &mut [f32],
    out: &mut [f32],
    column: usize,
) -> usize {
    let width = step.v.len();
    // SAFETY: the caller's promise: `state` is [keys, width], `column + N · 16 ≤ width`
    unsafe {
        let s = state.as_mut_ptr().add(column);
        let mut seen = [S::splat(0.0); N];
        let channelwise = usize::from(step.decay.len() > 1);
        for (i, k) in step.k.iter().enumerate() {
            let (k, decay) = (S::splat(*k), S::splat(*step.decay.get_unchecked(i * channelwise)));
            for n in 0..N {
                let at = s.add(i * width + n * LANES);
                let value = S::mul(S::load(at), decay);
                S::store(at, value);
                seen[n] = S::fma(k, value, seen[n]);
            }
        }
        let mut delta = [S::splat(0.0); N];
        for n in 0..N {
            let v = S::load(step.v.as_ptr().add(column + n * LANES));
            delta[n] = S::mul(S::sub(v, seen[n]), S::splat(step.beta));
        }
        let mut acc = [S::splat(0.0); N];
        for (i, (q, k)) in step.q.iter().zip(step.k).enumerate() {
            let (q, k) = (S::splat(*q), S::splat(*k));
            for n in 0..N {
                let at = s.add(i * width + n * LANES);
                let value = S::fma(k, delta[n], S::load(at));
                S::store(at, value);
                acc[n] = S::fma(q, value, acc[n]);
            }
        }
        for n in 0..N {
            S::store(out.as_mut_ptr().add(column + n * LANES), acc[n]);
        }
    }
    N * LANES
}

/// decay = exp(−exp(A_log) · softplus(a + dt_bias)), beta = sigmoid(b), of the shapes of `a` and `b`.
pub(super) fn delta_gates(cpu: &Cpu, a: &Tensor, b: &Tensor, a_log: &[f32], dt_bias: &[f32]) -> DeltaGates {
    let mut gates = DeltaGates { decay: a.clone(), beta: b.clone() };
    let width = a.cols();
    for_each_run(cpu, gates.decay.data_mut(), width, |_, row| {
        for ((decay, a_log), dt_bias) in row.iter_mut().zip(a_log).zip(dt_bias) {
            let x = *decay + dt_bias;
            let softplus = if x > 20.0 { x } else { libm::log1pf(libm::expf(x)) };
            *decay = libm::expf(-libm::expf(*a_log) * softplus);
        }
    });
    for beta in gates.beta.data_mut() {
        *beta = 1.0 / (1.0 + libm::expf(-*beta));
    }
    gates
}
