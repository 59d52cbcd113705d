//! The choice of experts.

use tbshard::backend::{Backend, Constant, Router, Scores, Tensor};

use super::check::{cpu, near, same, same_everywhere};
use super::random::Rng;
use super::reference::{Bound, U, exact, softmax};

const ROWS: [usize; 5] = [1, 3, 8, 70, 2];
const EXPERTS: [usize; 7] = [8, 16, 5, 64, 1, 17, 300];

/// Logits: continuous, of few values so that most are tied, or far apart.
fn logits(case: usize) -> Tensor {
    let mut rng = Rng::new(case as u64);
    let (rows, experts) = (ROWS[case % ROWS.len()], EXPERTS[case % EXPERTS.len()]);
    let mut logits = rng.tensor(rows, experts, [4.0, 2.0, 40.0][case % 3]);
    if case % 3 == 1 {
        logits.data_mut().iter_mut().for_each(|x| *x = x.round());
    }
    logits
}

/// The router of Qwen's mixtures.
pub fn softmax_router(top_k: usize, normalise: bool) -> Router<'static> {
    Router { scores: Scores::Softmax, top_k, normalise, scale: 1.0 }
}

#[test]
fn agrees_with_candle_and_with_itself() {
    for case in 0..70 {
        let logits = logits(case);
        let experts = logits.cols();
        let (top_k, normalise) = ((case % 8 + 1).min(experts), case % 2 == 0);
        let what = format!("case {case}: {top_k} of {experts} experts, {} rows", logits.rows());
        let weights =
            same_everywhere(&what, |cpu| cpu.route(&logits, &softmax_router(top_k, normalise)).weights.into_vec());
        let chosen = same_everywhere(&what, |cpu| {
            cpu.route(&logits, &softmax_router(top_k, normalise))
                .experts()
                .iter()
                .map(|expert| *expert as f32)
                .collect()
        });
        // candle sorts stably: among equals the lower index is first
        let probabilities = softmax(&exact(&logits)).unwrap();
        let order = exact(&logits).arg_sort_last_dim(false).unwrap().narrow(1, 0, top_k).unwrap().contiguous().unwrap();
        let order_flat: Vec<u32> = order.flatten_all().unwrap().to_vec1().unwrap();
        let routes = cpu().route(&logits, &softmax_router(top_k, normalise));
        assert_eq!((routes.top_k(), routes.experts()), (top_k, &order_flat[..]), "{what}");
        same(&what, &chosen, &order_flat.iter().map(|expert| *expert as f32).collect::<Vec<_>>());
        let mut want = probabilities.gather(&order, 1).unwrap();
        if normalise {
            want = want.broadcast_div(&want.sum_keepdim(1).unwrap()).unwrap();
        }
        // the sums over all and over the chosen; exponentials, of up to 80 halves of an ulp by their argument; divisions
        near(&what, &weights, &Bound::rounded(want, (experts + top_k + 80 + 12) as f64).unwrap());
        for row in 0..logits.rows() {
            let alone = cpu().route(&logits.select_rows(cpu(), &[row]), &softmax_router(top_k, normalise));
            assert_eq!(alone.experts(), &routes.experts()[row * top_k..][..top_k], "{what}: row {row} alone");
            same(&format!("{what}: row {row} alone"), alone.weights.data(), &weights[row * top_k..][..top_k]);
        }
    }
}

/// A router by sigmoids and its logits. Everything lies on a grid, so that what is not equal is far from it.
struct Grouped {
    what: String,
    logits: Tensor,
    bias: Constant,
    groups: usize,
    top_groups: usize,
    top_k: usize,
    normalise: bool,
    scale: f32,
}

fn grouped(case: usize) -> Grouped {
    let mut rng = Rng::new(case as u64);
    let (groups, size) = ([1, 4, 8, 3, 5, 2][case % 6], [4, 2, 1, 7, 16, 3, 32][case % 7]);
    let top_groups = if case.is_multiple_of(5) { groups } else { 1 + rng.below(groups) };
    let top_k = 1 + rng.below((size * top_groups).min(8));
    let experts = groups * size;
    let mut logits = rng.tensor(ROWS[case % ROWS.len()], experts, 4.0);
    logits.data_mut().iter_mut().for_each(|x| *x = (*x * 2.0).round() / 2.0);
    // large ones that overrule the scores, ones that make what is wanted negative, and none
    let reach = [0.0, 2.0, 0.25][case % 3];
    let bias = rng.values(experts, reach).into_iter().map(|x| (x * 16.0).round() / 16.0 - reach / 2.0);
    let bias = bias.collect::<Vec<f32>>().into();
    let what = format!("case {case}: {top_k} of {groups} groups of {size}, of which {top_groups} count");
    let (normalise, scale) = (!case.is_multiple_of(4), [1.0, 2.827, 0.5][case % 3]);
    Grouped { what, logits, bias, groups, top_groups, top_k, normalise, scale }
}

/// The place of every value when the largest comes first, and of equal ones the first.
fn places(values: &[f64]) -> Vec<usize> {
    let beats = |j: usize, i: usize| values[j] > values[i] || (values[j] == values[i] && j < i);
    (0..values.len()).map(|i| (0..values.len()).filter(|j| beats(*j, i)).count()).collect()
}

impl Grouped {
    fn router(&self) -> Router<'_> {
        let Self { groups, top_groups, top_k, normalise, scale, .. } = *self;
        Router { scores: Scores::Sigmoid { bias: &self.bias, groups, top_groups }, top_k, normalise, scale }
    }

    /// Experts and weights of a row, by the words of the paper.
    fn reference(&self, logits: &[f32]) -> Vec<(usize, f64)> {
        let scores: Vec<f64> = logits.iter().map(|x| 1.0 / (1.0 + (-f64::from(*x)).exp())).collect();
        let wanted: Vec<f64> = scores.iter().zip(&*self.bias).map(|(score, bias)| score + f64::from(*bias)).collect();
        let size = wanted.len() / self.groups;
        let two_best = |group: &[f64]| {
            let places = places(group);
            (0..size).filter(|i| places[*i] < 2).map(|i| group[i]).sum::<f64>()
        };
        let of_groups = places(&wanted.chunks(size).map(two_best).collect::<Vec<_>>());
        let open: Vec<usize> = (0..wanted.len()).filter(|i| of_groups[i / size] < self.top_groups).collect();
        let among = places(&open.iter().map(|i| wanted[*i]).collect::<Vec<_>>());
        let at = |place: usize| open[among.iter().position(|found| *found == place).unwrap()];
        let chosen: Vec<usize> = (0..self.top_k).map(at).collect();
        let sum: f64 = chosen.iter().map(|i| scores[*i]).sum();
        let total = if self.normalise { sum } else { 1.0 };
        chosen.into_iter().map(|i| (i, scores[i] / total * f64::from(self.scale))).collect()
    }
}

#[test]
fn sigmoids_choose_by_their_bias_among_the_best_groups_and_weigh_without_it() {
    for case in (0..210).map(grouped) {
        let (what, top_k) = (&case.what, case.top_k);
        let routes = cpu().route(&case.logits, &case.router());
        let weights = same_everywhere(what, |cpu| cpu.route(&case.logits, &case.router()).weights.into_vec());
        same_everywhere(what, |cpu| {
            cpu.route(&case.logits, &case.router()).experts().iter().map(|expert| *expert as f32).collect()
        });
        let want: Vec<(usize, f64)> = case.logits.rows_iter().flat_map(|row| case.reference(row)).collect();
        let chosen: Vec<usize> = routes.experts().iter().map(|expert| *expert as usize).collect();
        assert_eq!(chosen, want.iter().map(|(expert, _)| *expert).collect::<Vec<_>>(), "{what}");
        // five roundings of a sigmoid, those of a sum of them and of the sum, a division and a product
        for ((weight, (expert, want)), i) in weights.iter().zip(&want).zip(0..) {
            let error = want * (5 + 5 + top_k + 3) as f64 * U;
            assert!((f64::from(*weight) - want).abs() <= error, "{what}: expert {expert} at {i}: {weight}, not {want}");
        }
        for row in 0..case.logits.rows() {
            let alone = cpu().route(&case.logits.select_rows(cpu(), &[row]), &case.router());
            assert_eq!(alone.experts(), &routes.experts()[row * top_k..][..top_k], "{what}: row {row} alone");
            same(&format!("{what}: row {row} alone"), alone.weights.data(), &weights[row * top_k..][..top_k]);
        }
    }
}

#[test]
fn groups_and_experts_that_are_equal_are_taken_from_the_first_on() {
    let (logits, bias) = (Tensor::zeros(1, 12), vec![0.5; 12].into());
    let scores = Scores::Sigmoid { bias: &bias, groups: 4, top_groups: 2 };
    let routes = cpu().route(&logits, &Router { scores, top_k: 5, normalise: true, scale: 2.0 });
    assert_eq!(routes.experts(), [0, 1, 2, 3, 4]);
    same("weights", routes.weights.data(), &[0.4; 5]);
}

#[test]
fn scores_that_vanish_weigh_nothing_and_no_nan() {
    // what is divided by is not zero
    let logits = Tensor::from_vec(1, 4, vec![f32::NEG_INFINITY; 4]).unwrap();
    let scores = Scores::Sigmoid { bias: &vec![0.0; 4].into(), groups: 1, top_groups: 1 };
    let routes = cpu().route(&logits, &Router { scores, top_k: 2, normalise: true, scale: 2.5 });
    assert!(routes.weights.data().iter().all(|weight| weight.abs() < 1e-15), "{:?}", routes.weights);
}

#[test]
fn a_nan_among_sigmoids_is_in_every_weight_of_its_row() {
    // of either sign, in a score or in a bias: sorted first or last, it must not go unseen
    for nan in [f32::NAN, -f32::NAN] {
        for (in_bias, groups) in [(false, 1), (true, 1), (false, 2), (true, 2)] {
            let (mut logits, mut bias) = (Tensor::zeros(2, 6), [0.0; 6]);
            if in_bias {
                bias[4] = nan
            } else {
                logits.row_mut(1)[4] = nan
            }
            let bias = bias.to_vec().into();
            let scores = Scores::Sigmoid { bias: &bias, groups, top_groups: 1 };
            let router = Router { scores, top_k: 2, normalise: true, scale: 1.0 };
            let nans = |cpu: &tbshard::backend::Cpu| {
                let weights = cpu.route(&logits, &router).weights;
                weights.data().iter().map(|weight| f32::from(weight.is_nan())).collect()
            };
            let other = if in_bias { 1.0 } else { 0.0 };
            same("NaN", &same_everywhere("NaN", nans), &[other, other, 1.0, 1.0]);
        }
    }
}
