//! The operations on each row alone: norms, activations, gates, sums, rotary embedding, the gates of the delta rule.

use candle_core::Result;
use tbshard::backend::{Backend, Constant, Cpu, RopeStyle, Tensor};

use super::check::{cpu, near, same, same_everywhere};
use super::random::Rng;
use super::reference::{self, Bound, U, exact, exact_of};

/// The operands of any of the operations.
struct Inputs {
    /// `[rows, cols]`.
    x: Tensor,
    /// `[rows, cols]`.
    y: Tensor,
    /// `[1, cols]`.
    one: Tensor,
    /// `[rows, rotated]`.
    table: Tensor,
    /// As wide as a norm's run, which divides `cols`.
    weight: Constant,
    /// Divides `cols`; at least `rotated`.
    head_dim: usize,
    eps: f32,
}

struct Op {
    name: &'static str,
    run: fn(&Cpu, &Inputs) -> Tensor,
    reference: fn(&Inputs) -> Result<Bound>,
}

const OPS: [Op; 11] = [
    Op {
        name: "rms_norm",
        run: |cpu, i| cpu.rms_norm(&i.x, &i.weight, i.eps),
        reference: |i| reference::rms_norm(&i.x, &i.weight, i.eps),
    },
    Op {
        name: "rms_norm_gated",
        run: |cpu, i| cpu.rms_norm_gated(&i.x, &i.y, &i.weight, i.eps),
        reference: |i| {
            let normed = reference::rms_norm(&i.x, &i.weight, i.eps)?;
            let gate = Bound::exactly(exact(&i.y).reshape(normed.value.shape())?);
            normed.times(&gate.silu()?)
        },
    },
    Op {
        name: "rope by halves",
        run: |cpu, i| in_place(&i.x, |x| cpu.rope(x, i.head_dim, &i.table, RopeStyle::Halves)),
        reference: |i| reference::rope(&i.x, i.head_dim, &i.table, RopeStyle::Halves),
    },
    Op {
        name: "rope by pairs",
        run: |cpu, i| in_place(&i.x, |x| cpu.rope(x, i.head_dim, &i.table, RopeStyle::Pairs)),
        reference: |i| reference::rope(&i.x, i.head_dim, &i.table, RopeStyle::Pairs),
    },
    Op {
        name: "swiglu",
        run: |cpu, i| cpu.swiglu(i.x.clone(), &i.y),
        reference: |i| Bound::input(&i.x).silu()?.times(&Bound::input(&i.y)),
    },
    Op {
        name: "gate_sigmoid",
        run: |cpu, i| in_place(&i.x, |x| cpu.gate_sigmoid(x, &i.y)),
        reference: |i| Bound::input(&i.x).times(&Bound::input(&i.y).sigmoid()?),
    },
    Op {
        name: "add",
        run: |cpu, i| in_place(&i.x, |x| cpu.add(x, &i.y)),
        reference: |i| Bound::rounded((exact(&i.x) + exact(&i.y))?, 1.0),
    },
    Op {
        name: "add_bias",
        run: |cpu, i| in_place(&i.x, |x| cpu.add_bias(x, &constant(i.one.data()))),
        reference: |i| Bound::rounded(exact(&i.x).broadcast_add(&exact(&i.one))?, 1.0),
    },
    Op {
        name: "delta_gates: decay",
        // as many as channels, where there is but one of the others a head
        run: |cpu, i| cpu.delta_gates(&i.x, &a_head(i), &constant(i.one.data()), &constant(&bias(i))).decay,
        reference: |i| {
            let (rows, cols) = (i.x.rows(), i.x.cols());
            let broadcast = |values: &[f32]| exact_of(values, 1, cols).broadcast_as((rows, cols));
            let x = (exact(&i.x) + broadcast(&bias(i))?)?;
            let rate = broadcast(i.one.data())?.exp()?;
            let exponent = (&rate * (x.exp()? + 1.0)?.log()?)?;
            let value = exponent.neg()?.exp()?;
            // x is rounded once and softplus is no steeper than one; then eight roundings of the exponent, two of e
            let off = ((rate * x.abs()?)? + (exponent * 8.0)?)?;
            let error = (((&value * (off + 2.0)?)? * U)? + 2e-38)?;
            Ok(Bound { value, error })
        },
    },
    Op {
        name: "delta_gates: beta",
        run: |cpu, i| cpu.delta_gates(&i.x, &i.y, &constant(i.one.data()), &constant(&bias(i))).beta,
        reference: |i| Bound::input(&i.y).sigmoid(),
    },
    Op {
        name: "swiglu of what overflows",
        run: |cpu, i| cpu.swiglu(times(&i.x, 60.0), &i.y),
        reference: |i| Bound::input(&times(&i.x, 60.0)).silu()?.times(&Bound::input(&i.y)),
    },
];

fn constant(values: &[f32]) -> Constant {
    values.to_vec().into()
}

/// The first column of every head.
fn a_head(inputs: &Inputs) -> Tensor {
    let first = |head: usize| head * inputs.head_dim..head * inputs.head_dim + 1;
    inputs.y.columns(cpu(), &(0..inputs.y.cols() / inputs.head_dim).map(first).collect::<Vec<_>>())
}

fn bias(inputs: &Inputs) -> Vec<f32> {
    inputs.one.data().iter().map(|x| 3.0 * x).collect()
}

fn times(x: &Tensor, factor: f32) -> Tensor {
    in_place(x, |x| x.data_mut().iter_mut().for_each(|x| *x *= factor))
}

fn in_place(x: &Tensor, f: impl Fn(&mut Tensor)) -> Tensor {
    let mut x = x.clone();
    f(&mut x);
    x
}

const ROWS: [usize; 7] = [1, 2, 5, 70, 8, 3, 33];
// 70 rows of 528 and more are enough to be shared out over threads
const HEADS: [usize; 5] = [1, 6, 2, 5, 33];
const HEAD_DIMS: [usize; 9] = [16, 24, 64, 128, 256, 17, 18, 100, 3];

fn inputs(case: usize) -> Inputs {
    let mut rng = Rng::new(case as u64);
    let (rows, heads, head_dim) =
        (ROWS[case % ROWS.len()], HEADS[case % HEADS.len()], HEAD_DIMS[case % HEAD_DIMS.len()]);
    let cols = heads * head_dim;
    let half = if case.is_multiple_of(2) { head_dim / 2 } else { 1 + rng.below(head_dim / 2) };
    // tiny rows, so that eps counts; large ones, so that sigmoids saturate
    let scale = rng.pick(&[1e-3, 1.0, 1.0, 4.0, 30.0]);
    let run = if case % 3 == 1 { head_dim } else { cols };
    Inputs {
        x: rng.tensor(rows, cols, scale),
        y: rng.tensor(rows, cols, 5.0),
        one: rng.tensor(1, cols, 2.0),
        table: rng.tensor(rows, 2 * half, 1.0),
        weight: rng.values(run, 2.0).into(),
        head_dim,
        eps: rng.pick(&[1e-5, 1e-6]),
    }
}

impl Inputs {
    fn row(&self, row: usize) -> Self {
        let row = [row];
        Self {
            x: self.x.select_rows(cpu(), &row),
            y: self.y.select_rows(cpu(), &row),
            table: self.table.select_rows(cpu(), &row),
            one: self.one.clone(),
            weight: self.weight.clone(),
            ..*self
        }
    }
}

#[test]
fn agree_with_candle_and_with_themselves() {
    for case in 0..ROWS.len() * HEADS.len() {
        let inputs = inputs(case);
        for Op { name, run, reference } in &OPS {
            let what = format!("case {case}: {name} of [{}, {}]", inputs.x.rows(), inputs.x.cols());
            let got = same_everywhere(&what, |cpu| run(cpu, &inputs).data().to_vec());
            near(&what, &got, &reference(&inputs).unwrap());
            for (row, whole) in got.chunks(inputs.x.cols()).enumerate() {
                same(&format!("{what}: row {row} alone"), run(cpu(), &inputs.row(row)).data(), whole);
            }
        }
    }
}

#[test]
fn a_nan_shows_in_its_row_and_in_no_other() {
    for case in 0..ROWS.len() {
        let mut inputs = inputs(case);
        let (rows, cols) = (inputs.x.rows(), inputs.x.cols());
        let clean: Vec<Vec<f32>> = OPS.iter().map(|op| (op.run)(cpu(), &inputs).data().to_vec()).collect();
        let (row, col) = (rows / 2, cols - 1);
        inputs.x.row_mut(row)[col] = f32::NAN;
        inputs.y.row_mut(row)[col] = f32::NAN;
        for (Op { name, run, .. }, clean) in OPS.iter().zip(clean) {
            let what = format!("case {case}: {name} with a NaN in row {row}");
            let got = same_everywhere(&what, |cpu| {
                let got = run(cpu, &inputs);
                got.data().iter().map(|x| if x.is_nan() { f32::NAN } else { *x }).collect()
            });
            assert!(got[row * cols + col].is_nan(), "{what}: it is gone");
            same(&what, &got[..row * cols], &clean[..row * cols]);
            same(&what, &got[(row + 1) * cols..], &clean[(row + 1) * cols..]);
        }
    }
}
