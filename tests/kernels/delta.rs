//! The gated delta net: causal convolution and the recurrent rule, with state carried over chunks.

use candle_core::{D, DType, Device};
use tbshard::backend::{Backend, Cpu, DeltaGates, DeltaShape, DeltaStore, HeadGroups, Tensor};

use super::check::{cpu, near, same, same_everywhere};
use super::random::Rng;
use super::reference::{Bound, Exact, U, exact};
use super::schedule::{Pass, Schedule};

// 1037 channels of 33 rows are enough to be shared out over threads
const CHANNELS: [usize; 7] = [1, 16, 15, 1037, 48, 17, 130];
const CHUNKS: [usize; 6] = [1, 1, 2, 3, 5, 33];

struct Conv {
    what: String,
    schedule: Schedule,
    /// `[rows, channels]`, of all calls.
    x: Tensor,
    /// `[taps + 1, channels]`.
    weight: Tensor,
}

fn conv(case: usize) -> Conv {
    let mut rng = Rng::new(case as u64);
    let (channels, taps) = (CHANNELS[case % CHANNELS.len()], [3, 1, 2, 4, 0, 3][case % 6]);
    let schedule = Schedule::random(&mut rng, 5, &CHUNKS);
    let (x, weight) = (rng.tensor(schedule.rows(), channels, 3.0), rng.tensor(taps + 1, channels, 1.0));
    let what = format!("case {case}: {} rows, {channels} channels, {taps} past inputs", schedule.rows());
    Conv { what, schedule, x, weight }
}

impl Conv {
    fn run(&self, cpu: &Cpu, passes: &[Pass]) -> Vec<f32> {
        let mut store = DeltaStore::new(cpu, self.schedule.slots(), self.x.cols(), self.weight.rows() - 1, 1).unwrap();
        let weight = self.weight.clone().into_vec().into();
        let mut out = Vec::new();
        for Pass { batch, rows, fresh } in passes {
            fresh.iter().for_each(|slot| store.reset(*slot));
            let y = cpu.conv_silu(&self.x.select_rows(cpu, rows), &weight, &mut store, batch);
            out.extend_from_slice(y.data());
        }
        out
    }

    /// candle's depthwise convolution over all that a sequence has seen, after `taps` zeros.
    fn reference(&self) -> candle_core::Result<Bound> {
        let (channels, kernel) = (self.x.cols(), self.weight.rows());
        let x = exact(&self.x);
        let w = exact(&self.weight).t()?.reshape((channels, 1, kernel))?;
        let mut rows_of = vec![Vec::new(); self.schedule.sequences()];
        let mut outputs = (Vec::new(), Vec::new());
        for run in self.schedule.runs() {
            let past: &mut Vec<u32> = &mut rows_of[run.sequence];
            past.truncate(run.start);
            past.extend(run.rows.clone().map(|row| row as u32));
            let seen = x.index_select(&Exact::new(&past[..], x.device())?, 0)?;
            let padded = seen.t()?.unsqueeze(0)?.pad_with_zeros(2, kernel - 1, 0)?;
            let all = |x: &Exact, w: &Exact| -> candle_core::Result<Exact> {
                x.conv1d(w, 0, 1, 1, channels)?.squeeze(0)?.t()?.narrow(0, run.start, run.rows.len())
            };
            let error = (all(&padded.abs()?, &w.abs()?)? * (kernel as f64 * U))?;
            let y = Bound { value: all(&padded, &w)?, error }.silu()?;
            outputs.0.push(y.value);
            outputs.1.push(y.error);
        }
        Ok(Bound { value: Exact::cat(&outputs.0, 0)?, error: Exact::cat(&outputs.1, 0)? })
    }
}

#[test]
fn convolution_agrees_with_candle_and_with_itself() {
    for case in (0..28).map(conv) {
        let got = same_everywhere(&case.what, |cpu| case.run(cpu, &case.schedule.together()));
        near(&case.what, &got, &case.reference().unwrap());
        same(&case.what, &case.run(cpu(), &case.schedule.alone()), &got);
    }
}

const KEY_DIMS: [usize; 5] = [16, 64, 20, 128, 7];
// four registers at once, one at a time, and both
const VALUE_DIMS: [usize; 6] = [16, 64, 48, 128, 80, 32];
const HEADS: [(usize, usize); 7] = [(1, 1), (1, 2), (2, 2), (2, 6), (1, 4), (3, 3), (2, 8)];

struct Rule {
    what: String,
    schedule: Schedule,
    shape: DeltaShape,
    /// `[rows, q | k | v]`, of all calls.
    qkv: Tensor,
    gates: DeltaGates,
}

fn rule(case: usize) -> Rule {
    let mut rng = Rng::new(case as u64);
    let (k_heads, v_heads) = HEADS[case % HEADS.len()];
    let (key_dim, value_dim) = (KEY_DIMS[case % KEY_DIMS.len()], VALUE_DIMS[case % VALUE_DIMS.len()]);
    let shape = DeltaShape { heads: HeadGroups::whole(v_heads, k_heads), key_dim, value_dim };
    let schedule = Schedule::random(&mut rng, 4, &CHUNKS);
    let (rows, keys, values) = (schedule.rows(), k_heads * key_dim, v_heads * value_dim);
    let mut qkv = rng.tensor(rows, 2 * keys + values, 1.0);
    // tiny rows too, so that the epsilon of the norms counts
    for row in 0..rows {
        let scale = rng.pick(&[1.0, 1.0, 5.0, 1e-4]);
        qkv.row_mut(row)[..2 * keys].iter_mut().for_each(|x| *x *= scale);
    }
    // a decay a head, or one a channel of its key
    let decays = if (case / 2).is_multiple_of(2) { 1 } else { key_dim };
    let mut gate = |columns: usize, least: f32| {
        let mut gate = rng.tensor(rows, columns, 1.0);
        gate.data_mut().iter_mut().for_each(|x| *x = least + (1.0 - least) * x.abs());
        gate
    };
    let gates = DeltaGates { decay: gate(v_heads * decays, 0.5), beta: gate(v_heads, 0.0) };
    let what = format!("case {case}: {rows} rows, {k_heads} to {v_heads} heads of {key_dim} x {value_dim}");
    let what = format!("{what}, {decays} decays");
    Rule { what, schedule, shape, qkv, gates }
}

impl Rule {
    fn run(&self, cpu: &Cpu, passes: &[Pass]) -> Vec<f32> {
        let DeltaShape { heads: HeadGroups { heads: v_heads, .. }, key_dim, value_dim } = self.shape;
        let mut store = DeltaStore::new(cpu, self.schedule.slots(), 1, 1, v_heads * key_dim * value_dim).unwrap();
        let mut out = Vec::new();
        for Pass { batch, rows, fresh } in passes {
            fresh.iter().for_each(|slot| store.reset(*slot));
            let part = |x: &Tensor| x.select_rows(cpu, rows);
            let gates = DeltaGates { decay: part(&self.gates.decay), beta: part(&self.gates.beta) };
            out.extend_from_slice(cpu.delta_rule(part(&self.qkv), &gates, &mut store, batch, &self.shape).data());
        }
        out
    }

    /// S ← S·decay; S ← S + k ⊗ (v − kᵀS)·beta; out = qᵀS, all heads at once.
    ///
    /// The rule never makes a difference in S grow (decay ≤ 1, ‖1 − beta·k kᵀ‖ ≤ 1), so the errors of the steps add up.
    /// A step's is that of its dot products, a random walk of `key_dim` halves of an ulp of ‖S‖ + |v| at most, and that
    /// of making k and q of length one.
    fn reference(&self) -> candle_core::Result<Bound> {
        let DeltaShape { heads, key_dim, value_dim } = self.shape;
        let (k_heads, v_heads) = (heads.shared, heads.heads);
        let (rows, keys) = (self.qkv.rows(), k_heads * key_dim);
        let qkv = exact(&self.qkv);
        let shared: Vec<u32> = (0..v_heads).map(|head| (head / (v_heads / k_heads)) as u32).collect();
        let shared = Exact::new(shared, &Device::Cpu)?;
        let unit = |from: usize| -> candle_core::Result<Exact> {
            let x = qkv.narrow(1, from, keys)?.reshape((rows, k_heads, key_dim))?;
            let x = x.broadcast_div(&(x.sqr()?.sum_keepdim(D::Minus1)? + f64::from(1e-6f32))?.sqrt()?)?;
            x.index_select(&shared, 1)?.unsqueeze(3)
        };
        let (q, k) = ((unit(0)? * (key_dim as f64).powf(-0.5))?, unit(keys)?);
        let v = qkv.narrow(1, 2 * keys, v_heads * value_dim)?.reshape((rows, v_heads, 1, value_dim))?;
        let gate = |x: &Tensor| exact(x).reshape((rows, v_heads, x.cols() / v_heads, 1));
        let (decay, beta) = (gate(&self.gates.decay)?, gate(&self.gates.beta)?);

        let state = Exact::zeros((v_heads, key_dim, value_dim), DType::F64, &Device::Cpu)?;
        let drift = Exact::zeros((v_heads, 1, value_dim), DType::F64, &Device::Cpu)?;
        let mut carried = vec![(state.clone(), drift.clone()); self.schedule.sequences()];
        let step_error = ((key_dim as f64).sqrt() + key_dim as f64 / 16.0 + 8.0) * U;
        let (mut values, mut errors) = (Vec::new(), Vec::new());
        for run in self.schedule.runs() {
            if run.start == 0 {
                carried[run.sequence] = (state.clone(), drift.clone());
            }
            let (s, drift) = &mut carried[run.sequence];
            for row in run.rows.clone() {
                let (q, k, v) = (q.get(row)?, k.get(row)?, v.get(row)?);
                *s = s.broadcast_mul(&decay.get(row)?)?;
                let seen = s.broadcast_mul(&k)?.sum_keepdim(1)?;
                let delta = (&v - seen)?.broadcast_mul(&beta.get(row)?)?;
                *s = (&*s + k.broadcast_mul(&delta)?)?;
                let size = (s.sqr()?.sum_keepdim(1)?.sqrt()? + v.abs()?)?;
                *drift = (&*drift + (size * step_error)?)?;
                values.push(s.broadcast_mul(&q)?.sum_keepdim(1)?);
                errors.push((&*drift * (2.0 / (key_dim as f64).sqrt()))?);
            }
        }
        Ok(Bound { value: Exact::stack(&values, 0)?, error: Exact::stack(&errors, 0)? })
    }
}

#[test]
fn rule_agrees_with_candle_and_with_itself() {
    for case in (0..42).map(rule) {
        let got = same_everywhere(&case.what, |cpu| case.run(cpu, &case.schedule.together()));
        near(&case.what, &got, &case.reference().unwrap());
        same(&case.what, &case.run(cpu(), &case.schedule.alone()), &got);
    }
}
