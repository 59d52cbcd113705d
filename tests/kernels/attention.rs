//! Grouped-query attention over a paged cache.

use tbshard::backend::{Arithmetic, AttentionShape, Backend, Batch, Cpu, HeadGroups, KvStore, Tensor};

use super::check::{cpu, cpu_in, near, same, same_everywhere_in};
use super::random::Rng;
use super::reference::{self, Bound, Exact, exact, kept};
use super::schedule::{Pass, Schedule};

const HEAD_DIMS: [usize; 7] = [16, 24, 64, 128, 256, 20, 8];
const GROUPS: [usize; 8] = [1, 2, 3, 4, 5, 6, 7, 8];
const KV_HEADS: [usize; 3] = [1, 2, 3];

struct Case {
    what: String,
    shape: AttentionShape,
    head_dim: usize,
    schedule: Schedule,
    /// `[rows, heads · head_dim]`, of all calls.
    q: Tensor,
    /// `[rows, kv_heads · head_dim]`.
    k: Tensor,
    /// `[rows, kv_heads · head_dim]`.
    v: Tensor,
}

fn case(case: usize) -> Case {
    let mut rng = Rng::new(case as u64);
    let (head_dim, group, kv_heads) = (HEAD_DIMS[case % 7], GROUPS[case % 8], KV_HEADS[case % 3]);
    let heads = group * kv_heads;
    let chunks: &[usize] = match heads * head_dim {
        ..300 => &[1, 2, 31, 32, 33, 63, 64, 65, 100],
        300..1000 => &[1, 1, 3, 32, 33, 70],
        _ => &[1, 1, 2, 7, 33],
    };
    let schedule = Schedule::random(&mut rng, 5, chunks);
    build(&mut rng, case, (head_dim, group, kv_heads), schedule)
}

/// Sequences so long that what is folded of them has several spans, in few rows and in many.
fn long() -> impl Iterator<Item = Case> {
    let spans = |schedule: &Schedule| {
        let mut late = schedule.runs().filter(|run| run.start > 1024).map(|run| run.rows.len());
        let few = late.any(|rows| rows < 3);
        few && schedule.runs().any(|run| run.start > 0 && run.rows.len() > 100 && run.start + run.rows.len() > 1100)
    };
    let found = (1000..).filter_map(move |seed| {
        let mut rng = Rng::new(seed);
        let schedule = Schedule::random(&mut rng, 6, &[1, 700, 1000, 2]);
        spans(&schedule).then(|| build(&mut rng, seed as usize, [(16, 3, 1), (24, 1, 2)][seed as usize % 2], schedule))
    });
    found.take(2)
}

fn build(rng: &mut Rng, case: usize, (head_dim, group, kv_heads): (usize, usize, usize), schedule: Schedule) -> Case {
    let heads = group * kv_heads;
    let rows = schedule.rows();
    // flat, usual, and so sharp that few positions count and exponentials underflow
    let sharpness = rng.pick(&[0.1, 2.0, 2.0, 10.0, 100.0]);
    let q = rng.tensor(rows, heads * head_dim, sharpness);
    let mut k = rng.tensor(rows, kv_heads * head_dim, 1.0);
    if case % 4 == 1 {
        // later positions weigh more, so that the maximum moves in every tile
        let rise = |(row, k): (usize, &mut [f32])| k.iter_mut().for_each(|k| *k *= 0.1 + 0.05 * row as f32);
        k.data_mut().chunks_mut(kv_heads * head_dim).enumerate().for_each(rise);
    }
    let v = rng.tensor(rows, kv_heads * head_dim, 1.0);
    let shape = AttentionShape { heads: HeadGroups::whole(heads, kv_heads), scale: 1.0 / (head_dim as f32).sqrt() };
    let what = format!("case {case}: {rows} rows, {heads} heads of {head_dim}, {kv_heads} with keys");
    Case { what, shape, head_dim, schedule, q, k, v }
}

impl Case {
    fn run(&self, cpu: &Cpu, passes: &[Pass]) -> Vec<f32> {
        let mut store = KvStore::new(cpu, self.schedule.pages(), self.shape.heads.shared, self.head_dim).unwrap();
        let mut out = Vec::new();
        for Pass { batch, rows, .. } in passes {
            let part = |x: &Tensor| x.select_rows(cpu, rows);
            let y = cpu.attention(&part(&self.q), &part(&self.k), &part(&self.v), &mut store, batch, &self.shape);
            out.extend_from_slice(y.data());
        }
        out
    }

    /// `[rows, heads · head_dim]` by the keys and values that each sequence has so far.
    fn reference(&self, arithmetic: Arithmetic) -> candle_core::Result<Bound> {
        let (q, k, v) = (exact(&self.q), kept(arithmetic, &self.k), kept(arithmetic, &self.v));
        reference::by_runs(&self.schedule, |run, past| {
            let head = |head: usize| {
                let kv_head = head / self.shape.heads.group;
                let of = |x: &Exact, head: usize| x.narrow(1, head * self.head_dim, self.head_dim)?.contiguous();
                let q = of(&q, head)?.narrow(0, run.rows.start, run.rows.len())?;
                let (k, v) = (of(&k, kv_head)?.index_select(past, 0)?, of(&v, kv_head)?.index_select(past, 0)?);
                reference::attention(&q, &k, &v, f64::from(self.shape.scale))
            };
            (0..self.shape.heads.heads).map(head).collect()
        })
    }
}

/// `count` of the 168 combinations; 24 are enough for every head dimension, group and number of heads.
fn cases(first: usize, count: usize) -> impl Iterator<Item = Case> {
    (first..).step_by(5).take(count).map(case)
}

#[test]
fn agrees_with_candle() {
    for case in cases(0, 40).chain(long()) {
        for arithmetic in [Arithmetic::Exact, Arithmetic::Fast] {
            let got = case.run(cpu_in(arithmetic), &case.schedule.together());
            near(&format!("{} {arithmetic:?}", case.what), &got, &case.reference(arithmetic).unwrap());
        }
    }
}

#[test]
fn a_row_alone_has_the_same_bits() {
    for case in cases(1, 40).chain(long()) {
        for arithmetic in [Arithmetic::Exact, Arithmetic::Fast] {
            let run = |passes: &[Pass]| case.run(cpu_in(arithmetic), passes);
            let together = run(&case.schedule.together());
            same(&format!("{} {arithmetic:?}", case.what), &run(&case.schedule.alone()), &together);
        }
    }
}

#[test]
fn every_machine_has_the_same_bits() {
    for case in cases(2, 24).chain(long()) {
        for arithmetic in [Arithmetic::Exact, Arithmetic::Fast] {
            same_everywhere_in(arithmetic, &case.what, |cpu| case.run(cpu, &case.schedule.together()));
        }
    }
}

#[test]
fn the_first_maximum_is_a_score() {
    // all scores are far below zero: a maximum that started there would make every weight underflow
    let (rows, dim) = (40, 16);
    let mut rng = Rng::new(7);
    let q = Tensor::from_vec(rows, dim, vec![-30.0; rows * dim]).unwrap();
    let mut k = rng.tensor(rows, dim, 0.1);
    k.data_mut().iter_mut().for_each(|k| *k += 1.0);
    let v = rng.tensor(rows, dim, 1.0);
    let mut batch = Batch::default();
    batch.push(0, 0, rows, &[0]);
    let shape = AttentionShape { heads: HeadGroups::whole(1, 1), scale: 1.0 };
    let got = cpu().attention(&q, &k, &v, &mut KvStore::new(cpu(), 1, 1, dim).unwrap(), &batch, &shape);
    near("negative scores", got.data(), &reference::attention(&exact(&q), &exact(&k), &exact(&v), 1.0).unwrap());
}
