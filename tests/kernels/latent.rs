//! Multi-head latent attention over a paged cache: keys and values are one vector a position, shared by all heads.

use tbshard::backend::{Arithmetic, Backend, Batch, Cpu, LatentShape, LatentStore, Tensor};

use super::check::{cpu, cpu_in, near, same, same_everywhere_in};
use super::random::Rng;
use super::reference::{self, Bound, exact, kept};
use super::schedule::{Pass, Schedule};

/// Values of a latent vector, and how many of them are the value: with and without a rest beyond whole registers.
const WIDTHS: [(usize, usize); 9] =
    [(80, 64), (576, 512), (24, 16), (16, 16), (7, 5), (33, 32), (48, 48), (40, 35), (96, 80)];
/// As many as share the loads of a tile, as are one task, and other numbers.
const HEADS: [usize; 8] = [1, 4, 2, 16, 3, 17, 5, 35];

struct Case {
    what: String,
    shape: LatentShape,
    schedule: Schedule,
    /// `[rows, heads · width]`, of all calls.
    q: Tensor,
    /// `[rows, width]`.
    latent: Tensor,
}

fn case(case: usize) -> Case {
    let mut rng = Rng::new(case as u64);
    let (sizes, heads) = (WIDTHS[case % WIDTHS.len()], HEADS[case % HEADS.len()]);
    let chunks: &[usize] = match heads * sizes.0 {
        ..300 => &[1, 2, 31, 32, 33, 63, 64, 65, 100],
        300..2000 => &[1, 1, 3, 32, 33, 70],
        _ => &[1, 1, 2, 7, 33],
    };
    let schedule = Schedule::random(&mut rng, 5, chunks);
    build(&mut rng, case, sizes, heads, schedule)
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
        let (sizes, heads) = [((24, 16), 3), ((20, 7), 1)][seed as usize % 2];
        spans(&schedule).then(|| build(&mut rng, seed as usize, sizes, heads, schedule))
    });
    found.take(2)
}

fn build(rng: &mut Rng, case: usize, (width, values): (usize, usize), heads: usize, schedule: Schedule) -> Case {
    let rows = schedule.rows();
    // flat, usual, and so sharp that few positions count and exponentials underflow
    let sharpness = rng.pick(&[0.1, 2.0, 2.0, 10.0, 100.0]);
    let q = rng.tensor(rows, heads * width, sharpness);
    let mut latent = rng.tensor(rows, width, 1.0);
    if case % 4 == 1 {
        // later positions weigh more, so that the maximum moves in every tile
        let rise = |(row, x): (usize, &mut [f32])| x.iter_mut().for_each(|x| *x *= 0.1 + 0.05 * row as f32);
        latent.data_mut().chunks_mut(width).enumerate().for_each(rise);
    }
    let shape = LatentShape { heads, width, values, scale: 1.0 / (width as f32).sqrt() };
    let what = format!("case {case}: {rows} rows, {heads} heads, latent vectors of {width} with {values} values");
    Case { what, shape, schedule, q, latent }
}

impl Case {
    fn run(&self, cpu: &Cpu, passes: &[Pass]) -> Vec<f32> {
        let mut store = LatentStore::new(cpu, self.schedule.pages(), self.shape.width).unwrap();
        let mut out = Vec::new();
        for Pass { batch, rows, .. } in passes {
            let part = |x: &Tensor| x.select_rows(cpu, rows);
            let y = cpu.latent_attention(&part(&self.q), &part(&self.latent), &mut store, batch, &self.shape);
            assert_eq!((y.rows(), y.cols()), (rows.len(), self.shape.heads * self.shape.values));
            out.extend_from_slice(y.data());
        }
        out
    }

    /// Plain attention of every head, whose keys are the latent vectors so far and whose values are a part of those.
    fn reference(&self, arithmetic: Arithmetic) -> candle_core::Result<Bound> {
        let LatentShape { heads, width, values: count, scale } = self.shape;
        let (q, latent) = (exact(&self.q), kept(arithmetic, &self.latent));
        reference::by_runs(&self.schedule, |run, past| {
            let k = latent.index_select(past, 0)?;
            let v = k.narrow(1, 0, count)?.contiguous()?;
            let head = |head: usize| {
                let q = q.narrow(1, head * width, width)?.narrow(0, run.rows.start, run.rows.len())?.contiguous()?;
                reference::attention(&q, &k, &v, f64::from(scale))
            };
            (0..heads).map(head).collect()
        })
    }
}

/// `count` of the 72 combinations.
fn cases(first: usize, count: usize) -> impl Iterator<Item = Case> {
    (first..).step_by(5).take(count).map(case)
}

#[test]
fn agrees_with_candle() {
    for case in cases(0, 36).chain(long()) {
        for arithmetic in [Arithmetic::Exact, Arithmetic::Fast] {
            let got = case.run(cpu_in(arithmetic), &case.schedule.together());
            near(&format!("{} {arithmetic:?}", case.what), &got, &case.reference(arithmetic).unwrap());
        }
    }
}

#[test]
fn a_row_alone_has_the_same_bits() {
    for case in cases(1, 36).chain(long()) {
        for arithmetic in [Arithmetic::Exact, Arithmetic::Fast] {
            let run = |passes: &[Pass]| case.run(cpu_in(arithmetic), passes);
            let together = run(&case.schedule.together());
            same(&format!("{} {arithmetic:?}", case.what), &run(&case.schedule.alone()), &together);
        }
    }
}

#[test]
fn every_machine_has_the_same_bits() {
    let both = [(Arithmetic::Exact, cases(2, 24)), (Arithmetic::Fast, cases(3, 8))];
    for (arithmetic, case) in both.into_iter().flat_map(|(arithmetic, cases)| cases.map(move |case| (arithmetic, case)))
    {
        same_everywhere_in(arithmetic, &case.what, |cpu| case.run(cpu, &case.schedule.together()));
    }
    for case in long() {
        same_everywhere_in(Arithmetic::Exact, &case.what, |cpu| case.run(cpu, &case.schedule.together()));
    }
}

#[test]
fn a_head_does_not_see_the_others() {
    for case in cases(3, 24) {
        let LatentShape { heads, width, values, .. } = case.shape;
        let all = case.run(cpu(), &case.schedule.together());
        for head in [0, heads / 2, heads - 1] {
            let alone = Case {
                what: format!("{}: head {head} alone", case.what),
                shape: LatentShape { heads: 1, ..case.shape },
                schedule: case.schedule.clone(),
                q: case.q.columns(cpu(), std::slice::from_ref(&(head * width..(head + 1) * width))),
                latent: case.latent.clone(),
            };
            let part = |row: &[f32]| row[head * values..(head + 1) * values].to_vec();
            let want: Vec<f32> = all.chunks(heads * values).flat_map(part).collect();
            same(&alone.what, &alone.run(cpu(), &alone.schedule.together()), &want);
        }
    }
}

#[test]
#[should_panic(expected = "width")]
fn queries_of_another_width_are_refused() {
    // they would be read past their end
    let mut batch = Batch::default();
    batch.push(0, 0, 2, &[0]);
    let shape = LatentShape { heads: 2, width: 24, values: 16, scale: 1.0 };
    let mut store = LatentStore::new(cpu(), 1, 24).unwrap();
    cpu().latent_attention(&Tensor::zeros(2, 40), &Tensor::zeros(2, 24), &mut store, &batch, &shape);
}
