//! Matrix products in every format, and the tree they are summed in.

use std::collections::HashMap;
use std::ops::Range;

use tbshard::backend::{Backend, Tensor};
use tbshard::partition::{Fold, Leaves, halves};

use super::run_of;

use super::check::{cpu, near, same, same_everywhere};
use super::order;
use super::random::Rng;
use super::reference::Bound;
use super::stored::{Format, PLAIN, Stored};

// fewer and more than share the widened weights (8), whole sixteens or not, and more than make a block (64)
const ROWS: [usize; 13] = [1, 2, 3, 4, 5, 7, 8, 16, 23, 63, 64, 65, 130];
const INNER: [usize; 11] = [16, 1, 513, 15, 128, 17, 1037, 200, 31, 384, 1536];
const OUT: [usize; 9] = [1, 67, 2, 129, 3, 32, 4, 33, 5];
// 20 and 24: leaves start anywhere in a register's width and in a block of FP8
const UNITS: [usize; 6] = [128, 24, 1, 20, 64, 16];

pub struct Case {
    pub what: String,
    pub x: Tensor,
    pub w: Stored,
    pub leaves: Leaves,
}

/// Every number of rows in every plain format, twice, and packed ones in between; the other dimensions as they come round.
pub fn cases() -> impl Iterator<Item = Case> {
    (0..4 * ROWS.len() * PLAIN.len()).map(|case| {
        let mut rng = Rng::new(case as u64);
        let format = Format::of(case);
        let (rows, out) = (ROWS[case / 2 % ROWS.len()], OUT[case / 2 % OUT.len()]);
        let inner = format.width(INNER[case / 2 % INNER.len()]);
        let leaves = match rng.below(6) {
            0 => Leaves::unsharded(inner),
            _ => Leaves::of_units(inner, format.unit(rng.pick(&UNITS))),
        };
        let what = format!("case {case}: {format:?} [{rows}, {inner}] x [{out}, {inner}], {} leaves", leaves.count());
        Case { what, x: rng.tensor(rows, inner, 1.0), w: Stored::random(&mut rng, format, out, inner), leaves }
    })
}

/// Roundings that a product passes: the weight's, the lanes', the sixteen lanes', the tree's.
pub fn depth(leaves: &Leaves) -> usize {
    let widest = (0..leaves.count()).map(|leaf| leaves.columns(leaf).len()).max().unwrap();
    let tree = leaves.count().next_power_of_two().ilog2() as usize;
    1 + widest.div_ceil(16) + 4 + tree
}

#[test]
fn agrees_with_candle_and_with_itself() {
    for Case { what, x, w, leaves } in cases() {
        let (matrix, fold) = (w.matrix(), Fold::whole(leaves));
        let got = same_everywhere(&what, |cpu| cpu.linear(&x, &matrix, &fold).unwrap().data().to_vec());
        near(&what, &got, &Bound::input(&x).linear(&w.exact(), depth(&fold.leaves)).unwrap());
        for (row, whole) in got.chunks(w.out).enumerate() {
            let alone = cpu().linear(&x.select_rows(cpu(), &[row]), &matrix, &fold).unwrap();
            same(&format!("{what}: row {row} alone"), alone.data(), whole);
        }
    }
}

#[test]
fn adds_in_the_declared_order() {
    for Case { what, x, w, leaves } in cases() {
        let (values, fold) = (w.widened(), Fold::whole(leaves));
        let got = cpu().linear(&x, &w.matrix(), &fold).unwrap();
        let weights = |row: usize| &values[row * w.inner..][..w.inner];
        let want: Vec<f32> = x
            .rows_iter()
            .flat_map(|x| (0..w.out).map(move |row| (x, row)))
            .map(|(x, row)| order::dot(x, weights(row), &fold.leaves, order::leaf))
            .collect();
        same(&what, got.data(), &want);
    }
}

/// Cuts `leaves` at random into runs, of which some may be empty.
pub fn runs(rng: &mut Rng, leaves: usize, ranks: usize) -> Vec<Range<usize>> {
    let mut cuts: Vec<usize> = (1..ranks).map(|_| rng.below(leaves + 1)).collect();
    cuts.extend([0, leaves]);
    cuts.sort_unstable();
    cuts.windows(2).map(|cut| cut[0]..cut[1]).collect()
}

/// The subtrees that ranks have summed, by their leaves.
pub type Subtrees = HashMap<Range<usize>, Vec<f32>>;

/// Adds the subtrees up from `node` downwards, as `all_reduce` does on every rank.
pub fn finish(node: Range<usize>, subtrees: &Subtrees) -> Vec<f32> {
    if let Some(sum) = subtrees.get(&node) {
        return sum.clone();
    }
    assert!(node.len() > 1, "no rank has summed leaf {node:?}");
    let (left, right) = halves(&node);
    let (left, right) = (finish(left, subtrees), finish(right, subtrees));
    left.iter().zip(right).map(|(left, right)| left + right).collect()
}

#[test]
fn ranks_that_share_the_leaves_make_up_the_whole() {
    for case in 0..120 {
        let mut rng = Rng::new(case as u64);
        let format = Format::of(case);
        let unit = format.cut_unit(rng.pick(&[1, 16, 20, 64]));
        let inner = format.width(1 + rng.below(40 * unit).min(2500));
        let (rows, out) = (rng.pick(&[1, 3, 8, 70]), rng.pick(&[1, 4, 33]));
        let (x, w) = (rng.tensor(rows, inner, 1.0), Stored::random(&mut rng, format, out, inner));
        let leaves = Leaves::of_units(inner, unit);
        let whole = cpu().linear(&x, &w.matrix(), &Fold::whole(leaves.clone())).unwrap();
        for ranks in [2, 3, 5, 8, 32] {
            let mut subtrees = Subtrees::new();
            for run in runs(&mut rng, leaves.count(), ranks) {
                let cols = match run.is_empty() {
                    true => 0..0,
                    false => leaves.columns(run.start).start..leaves.columns(run.end - 1).end,
                };
                let fold = run_of(leaves.clone(), run);
                let x = if cols.is_empty() {
                    Tensor::zeros(rows, 0)
                } else {
                    x.head_part(cpu(), inner, cols.start, cols.len())
                };
                let part = cpu().linear(&x, &w.cut(0..out, cols).matrix(), &fold).unwrap();
                assert_eq!((part.rows(), part.cols()), (fold.roots.len() * rows, out));
                subtrees.extend(fold.roots.into_iter().zip(part.data().chunks(rows * out).map(<[f32]>::to_vec)));
            }
            let what = format!("{format:?} [{rows}, {inner}] x [{out}, {inner}] on {ranks} ranks");
            same(&what, &finish(0..leaves.count(), &subtrees), whole.data());
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let mut rng = Rng::new(3);
    let (x, w) = (rng.tensor(2, 32, 1.0), Stored::random(&mut rng, Format::F32, 4, 33).matrix());
    assert!(cpu().linear(&x, &w, &Fold::whole(Leaves::of_units(33, 1))).is_err());
    assert!(cpu().linear(&x, &w, &Fold::whole(Leaves::of_units(32, 1))).is_err());
    let x = rng.tensor(2, 33, 1.0);
    assert!(cpu().linear(&x, &w, &Fold::whole(Leaves::of_units(32, 1))).is_err());
    assert!(cpu().linear(&x, &w, &Fold::whole(Leaves::of_units(33, 1))).is_ok());
}
